/* A set of nodes -> one kernel: evaluates the nodes' results at indices over the kernel's loops.
**
** The loops come from the group's first reduction (or its largest result). Each node that lies on these loops gets an anchor:
** the index at which an iteration computes it; anchors pass from node to node, through views too. Then everything that must be
** stored is evaluated at its anchor, its operands at the indices that follow, down to loads. Equal (node, index) pairs are one
** expression. Where an index is not affine over the loops, splitting a loop may help: the loops are split and all is done again.
*/
#include "fuse/region.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_EXPRS 1500
#define MAX_DEPTH 150
#define HASH_SIZE 4096

typedef struct memo {
    struct memo *next;
    mp_index index;
    mp_kid pred, result;
} memo;

typedef struct {
    mp_region *region;
    const mp_graph *graph;
    mp_pool *pool;
    const uint32_t *nodes; /* borrowed, ascending */
    uint32_t n_nodes;
    mp_loops loops;
    mp_index **anchor;  /* [n_nodes], NULL: none */
    memo **memos;       /* [n_nodes * 2]: for the first two values of each node */
    mp_conv *conv;      /* the convolution among the nodes, or NULL */
    mp_val operands[2]; /* its input and weight */
    mp_kir *kir;
    uint32_t cap_exprs, cap_stores, cap_buffers;
    uint16_t *hash; /* [HASH_SIZE]: expression number + 1 */
    mp_kid pred;    /* condition under which loads are allowed, or MP_NO_KID */
    int depth;
    bool failed;
} builder;

/* -- Expressions --------------------------------------------------------------------------------------------------- */

static mp_kid fail(builder *b)
{
    b->failed = true;
    return 0; /* a valid number as long as nobody looks: building ends */
}

/* The number of an expression equal to *e. */
static mp_kid intern(builder *b, const mp_kexpr *e)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i + 8 <= sizeof *e; i += 8) {
        uint64_t word;
        memcpy(&word, (const char *)e + i, 8);
        h = (h ^ word) * 1099511628211u;
        h ^= h >> 29;
    }
    uint32_t at = (uint32_t)(h >> 7) % HASH_SIZE;
    for (; b->hash[at]; at = (at + 1) % HASH_SIZE)
        if (memcmp(&b->kir->exprs[b->hash[at] - 1], e, sizeof *e) == 0) return b->hash[at] - 1u;
    if (b->kir->n_exprs >= MAX_EXPRS) return fail(b);
    MP_GROW(b->pool, b->kir->exprs, b->kir->n_exprs, b->cap_exprs);
    b->kir->exprs[b->kir->n_exprs] = *e;
    b->hash[at] = (uint16_t)(b->kir->n_exprs + 1);
    return b->kir->n_exprs++;
}

static mp_kexpr blank(mp_kop op, mp_dtype dtype)
{
    mp_kexpr e;
    memset(&e, 0, sizeof e);
    e.op = op;
    e.dtype = dtype;
    e.arg[0] = e.arg[1] = e.arg[2] = MP_NO_KID;
    return e;
}

static mp_kid make_const(builder *b, mp_dtype dtype, double f, int64_t i)
{
    mp_kexpr e = blank(MP_K_CONST, dtype);
    switch (dtype) {
    case MP_F32: e.f = (double)(float)f; break;
    case MP_F64: e.f = f; break;
    case MP_BOOL: e.i = i != 0; break;
    case MP_U8: e.i = (uint8_t)i; break;
    case MP_I8: e.i = (int8_t)i; break;
    case MP_I16: e.i = (int16_t)i; break;
    case MP_I32: e.i = (int32_t)i; break;
    default: e.i = i;
    }
    return intern(b, &e);
}

static mp_kid make_number(builder *b, mp_dtype dtype, const mp_arg *arg)
{
    if (dtype == MP_BOOL) return make_const(b, dtype, 0, arg->kind == MP_ARG_FLOAT ? arg->f != 0 : arg->i != 0);
    return make_const(b, dtype, mp_arg_double(arg), mp_arg_int(arg));
}

static bool is_const(const builder *b, mp_kid kid, double number)
{
    const mp_kexpr *e = &b->kir->exprs[kid];
    if (e->op != MP_K_CONST) return false;
    return mp_dtype_float(e->dtype) ? e->f == number : (double)e->i == number;
}

static mp_kid make_op(builder *b, mp_kop op, mp_dtype dtype, const mp_kid *args)
{
    if (b->failed) return 0;
    if (op == MP_K_MUL && dtype != MP_BOOL) { /* exact for all values; alpha=1 is everywhere */
        if (is_const(b, args[1], 1)) return args[0];
        if (is_const(b, args[0], 1)) return args[1];
    }
    mp_kexpr e = blank(op, mp_kops[op].to_bool ? MP_BOOL : dtype);
    uint32_t cost = mp_kops[op].weight;
    for (int i = 0; i < mp_kops[op].arity; i++) {
        const mp_kexpr *arg = &b->kir->exprs[args[i]];
        e.arg[i] = args[i];
        e.deps |= arg->deps;
        if (arg->level > e.level) e.level = arg->level;
        cost += arg->cost;
    }
    e.cost = cost > 60000 ? 60000 : (uint16_t)cost;
    return intern(b, &e);
}

static mp_kid op1(builder *b, mp_kop op, mp_kid x) { return make_op(b, op, b->kir->exprs[x].dtype, (mp_kid[]){x}); }
static mp_kid op2(builder *b, mp_kop op, mp_kid x, mp_kid y)
{ return make_op(b, op, b->kir->exprs[x].dtype, (mp_kid[]){x, y}); }

static mp_kid make_cast(builder *b, mp_kid x, mp_dtype dtype)
{
    if (b->failed) return 0;
    const mp_kexpr *e = &b->kir->exprs[x];
    if (e->dtype == dtype) return x;
    if (e->op == MP_K_CONST) {
        if (mp_dtype_float(e->dtype)) {
            if (dtype == MP_BOOL) return make_const(b, dtype, 0, e->f != 0);
            if (mp_dtype_float(dtype) || fabs(e->f) < 1e9)
                return make_const(b, dtype, e->f, (int64_t)(fabs(e->f) < 1e9 ? e->f : 0));
        } else {
            return make_const(b, dtype, (double)e->i, e->i);
        }
    }
    mp_kexpr cast = blank(MP_K_CAST, dtype);
    cast.arg[0] = x;
    cast.deps = e->deps;
    cast.level = e->level;
    cast.cost = (uint16_t)(e->cost + (e->cost < 60000));
    return intern(b, &cast);
}

static mp_kid make_index(builder *b, const mp_affine *at, mp_dtype dtype)
{
    if (!mp_affine_deps(at)) return make_const(b, dtype, 0, at->base);
    mp_kexpr e = blank(MP_K_INDEX, dtype);
    e.at = *at;
    e.deps = mp_affine_deps(at);
    e.cost = 1;
    return intern(b, &e);
}

static uint32_t buffer_of(builder *b, mp_val value)
{
    mp_kir *kir = b->kir;
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        if (kir->buffers[i].value == value) return i;
    if (kir->n_buffers >= MP_MAX_BUFFERS) return fail(b);
    MP_GROW(b->pool, kir->buffers, kir->n_buffers, b->cap_buffers);
    const mp_meta *meta = &b->graph->metas[value];
    int64_t bytes = mp_meta_numel(meta) * mp_dtype_bytes(meta->dtype);
    kir->buffers[kir->n_buffers] = (mp_kbuffer){.value = value, .dtype = (mp_dtype)meta->dtype, .bytes = bytes};
    return kir->n_buffers++;
}

static mp_kid make_load(builder *b, mp_val value, const mp_affine *at)
{
    uint32_t buffer = buffer_of(b, value);
    if (b->failed) return 0;
    mp_kexpr e = blank(MP_K_LOAD, mp_dtype_register(b->graph->metas[value].dtype));
    e.aux = buffer;
    e.at = *at;
    e.arg[0] = b->pred;
    e.deps = mp_affine_deps(at);
    if (b->pred != MP_NO_KID) {
        e.deps |= b->kir->exprs[b->pred].deps;
        e.level = b->kir->exprs[b->pred].level;
    }
    e.cost = 1;
    return intern(b, &e);
}

/* Sum and the like of x over the reduced loops. */
static mp_kid make_reduce(builder *b, mp_reduction kind, mp_kid x)
{
    if (b->failed) return 0;
    mp_kexpr e = blank(MP_K_REDUCE, b->kir->exprs[x].dtype);
    if (e.dtype == MP_BOOL && kind == MP_RED_MAX) kind = MP_RED_ANY;
    if (e.dtype == MP_BOOL && kind == MP_RED_MIN) kind = MP_RED_ALL;
    e.arg[0] = x;
    e.aux = kind;
    e.deps = b->kir->exprs[x].deps & ~b->loops.reduced;
    e.level = b->kir->exprs[x].level + 1;
    if (e.level > b->kir->n_passes) b->kir->n_passes = e.level;
    return intern(b, &e);
}

/* x to the power of a known number, as ATen special-cases it. Returns MP_NO_KID if it is no special case. */
static mp_kid make_power(builder *b, mp_kid x, mp_kid y)
{
    const mp_kexpr *e = &b->kir->exprs[y];
    mp_dtype dtype = b->kir->exprs[x].dtype;
    if (e->op != MP_K_CONST) return MP_NO_KID;
    double power = mp_dtype_float(dtype) ? e->f : (double)e->i;
    mp_kid one = make_const(b, dtype, 1, 1);
    if (power == 0) return one;
    if (mp_dtype_float(dtype)) {
        if (power == 0.5) return op1(b, MP_K_SQRT, x);
        if (power == -0.5) return op2(b, MP_K_DIV, one, op1(b, MP_K_SQRT, x));
        if (power == -1) return op2(b, MP_K_DIV, one, x);
        if (power == -2) return op2(b, MP_K_DIV, one, op2(b, MP_K_MUL, x, x));
        if (power != 1 && power != 2 && power != 3 && power != 4) return MP_NO_KID;
    }
    if (power < 0 || power > 8) return MP_NO_KID;
    mp_kid result = MP_NO_KID;
    for (int left = (int)power; left; left >>= 1, x = left ? op2(b, MP_K_MUL, x, x) : x)
        if (left & 1) result = result == MP_NO_KID ? x : op2(b, MP_K_MUL, result, x);
    return result;
}

/* -- Indices of operands ------------------------------------------------------------------------------------------- */

static bool in_group(const builder *b, uint32_t node) { return b->region->slot_stamp[node] == b->region->stamp; }

/* Where a broadcast operand is read when the result is computed at `index`. */
static mp_index operand_index(const mp_meta *result, const mp_index *index, const mp_meta *operand)
{
    mp_index out;
    memset(&out, 0, sizeof out);
    out.ndim = operand->ndim;
    int shift = result->ndim - operand->ndim;
    for (int d = 0; d < operand->ndim && d + shift < result->ndim; d++)
        if (operand->size[d] != 1 && d + shift >= 0) out.dim[d] = index->dim[d + shift];
    return out;
}

static int64_t reduced_numel(const mp_meta *input, uint32_t dims)
{
    int64_t n = 1;
    for (int d = 0; d < input->ndim; d++)
        if (dims >> d & 1) n *= input->size[d];
    return n;
}

/* Where a reduction reads its input, when its result is at `index`. False if the reduced loops do not run over its dims. */
static bool reduce_index(builder *b, const mp_meta *input, uint32_t dims, const mp_index *index, mp_index *out)
{
    memset(out, 0, sizeof *out);
    out->ndim = input->ndim;
    bool keepdim = index->ndim == input->ndim && (dims & ((1u << input->ndim) - 1));
    for (int d = 0, from = 0; d < input->ndim; d++) {
        bool reduced = dims >> d & 1;
        if (!reduced && input->size[d] != 1) out->dim[d] = index->dim[keepdim ? d : from];
        if (!reduced || keepdim) from++;
    }
    int64_t n = reduced_numel(input, dims), loops = 1;
    if (n == 1) return true;
    for (uint32_t i = 0; i < b->loops.n; i++)
        if (b->loops.reduced >> i & 1) loops *= b->loops.extent[i];
    if (n != loops) return false;
    int64_t size[MP_MAX_DIMS], stride[MP_MAX_DIMS];
    int which[MP_MAX_DIMS], k = 0;
    for (int d = 0; d < input->ndim; d++)
        if (dims >> d & 1) which[k] = d, size[k++] = input->size[d];
    mp_contiguous_strides(k, size, stride);
    mp_affine linear = mp_loops_linear(&b->loops, b->loops.reduced);
    mp_index *part = MP_NEW(b->pool, mp_index, 1);
    if (!mp_index_from_position(&b->loops, &linear, k, size, stride, part)) return false;
    for (int i = 0; i < k; i++) out->dim[which[i]] = part->dim[i];
    return true;
}

/* The owner's index that belongs to an index of its view `value`. */
static bool owner_index(builder *b, mp_val value, const mp_index *index, mp_index *out)
{
    mp_val owner = b->region->owner[value];
    if (owner == value) {
        *out = *index;
        return true;
    }
    const mp_meta *view = &b->graph->metas[value], *base = &b->graph->metas[owner];
    mp_affine at = mp_index_position(index, view->stride);
    at.base += view->offset - base->offset;
    return mp_index_from_position(&b->loops, &at, base->ndim, base->size, base->stride, out);
}

/* -- Anchors ------------------------------------------------------------------------------------------------------- */

static uint32_t all_loops(const builder *b) { return (1u << b->loops.n) - 1; }
static uint32_t kept_loops(const builder *b) { return all_loops(b) & ~b->loops.reduced; }

/* Make `index` the anchor of a group node if it can be one. Returns true if it was set. */
static bool set_anchor(builder *b, uint32_t node, const mp_index *index)
{
    mp_index **anchor = &b->anchor[b->region->slot[node]];
    const mp_meta *meta = &b->graph->metas[b->graph->nodes[node].first];
    if (*anchor) return false;
    bool reduces = b->region->ops[node]->class_ == MP_OP_REDUCE || b->region->ops[node]->class_ == MP_OP_VAR;
    bool full = !reduces && mp_index_bijective(&b->loops, index, meta->size, all_loops(b));
    if (!full && !mp_index_bijective(&b->loops, index, meta->size, kept_loops(b))) return false;
    *anchor = MP_NEW(b->pool, mp_index, 1);
    **anchor = *index;
    return true;
}

/* From an anchored node to its operands. */
static bool anchor_operands(builder *b, uint32_t node, const mp_arg *args, uint32_t n)
{
    const mp_gnode *gnode = &b->graph->nodes[node];
    const mp_op *op = b->region->ops[node];
    const mp_index *index = b->anchor[b->region->slot[node]];
    if (op->class_ == MP_OP_CAT || op->class_ == MP_OP_PAD) return false;
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind != MP_ARG_VALUE) continue;
        mp_val value = args[i].value, owner = b->region->owner[value];
        uint32_t maker = b->graph->node_of[owner];
        if (!in_group(b, maker) || b->anchor[b->region->slot[maker]]) continue;
        mp_index operand, own;
        if (op->class_ == MP_OP_POINT) {
            operand = operand_index(&b->graph->metas[gnode->first], index, &b->graph->metas[value]);
        } else {
            uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
            if (!reduce_index(b, &b->graph->metas[value], dims, index, &operand)) continue;
        }
        if (owner_index(b, value, &operand, &own)) any |= set_anchor(b, maker, &own);
    }
    return any;
}

/* From an anchored operand to the node. */
static bool anchor_from_operand(builder *b, uint32_t node, mp_val value)
{
    mp_val owner = b->region->owner[value];
    uint32_t maker = b->graph->node_of[owner];
    if (!in_group(b, maker)) return false;
    const mp_index *anchor = b->anchor[b->region->slot[maker]];
    if (!anchor) return false;
    const mp_meta *base = &b->graph->metas[owner], *view = &b->graph->metas[value];
    const mp_gnode *gnode = &b->graph->nodes[node];
    const mp_meta *result = &b->graph->metas[gnode->first];
    mp_index index = *anchor, out;
    if (owner != value) {
        mp_affine at = mp_index_position(anchor, base->stride);
        at.base += base->offset - view->offset;
        if (!mp_index_from_position(&b->loops, &at, view->ndim, view->size, view->stride, &index)) return false;
    }
    memset(&out, 0, sizeof out);
    out.ndim = result->ndim;
    if (b->region->ops[node]->class_ == MP_OP_POINT) {
        if (mp_meta_numel(view) != mp_meta_numel(result)) return false;
        for (int d = 0; d < view->ndim; d++)
            if (result->ndim - view->ndim + d >= 0) out.dim[result->ndim - view->ndim + d] = index.dim[d];
        return set_anchor(b, node, &out);
    }
    uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
    bool keepdim = result->ndim == view->ndim;
    for (int d = 0, to = 0; d < view->ndim; d++) {
        bool reduced = dims >> d & 1;
        if (!reduced) out.dim[to] = index.dim[d];
        if (!reduced || keepdim) to++;
    }
    return set_anchor(b, node, &out);
}

/* The plain anchor: elements in row-major order over the loops. */
static bool anchor_default(builder *b, uint32_t node)
{
    const mp_meta *meta = &b->graph->metas[b->graph->nodes[node].first];
    int64_t stride[MP_MAX_DIMS], numel = mp_meta_numel(meta), full = 1, kept = 1;
    for (uint32_t i = 0; i < b->loops.n; i++) {
        full *= b->loops.extent[i];
        if (!(b->loops.reduced >> i & 1)) kept *= b->loops.extent[i];
    }
    bool reduces = b->region->ops[node]->class_ == MP_OP_REDUCE || b->region->ops[node]->class_ == MP_OP_VAR;
    if (numel != kept && (numel != full || reduces)) return false;
    mp_affine at = mp_loops_linear(&b->loops, numel == kept ? kept_loops(b) : all_loops(b));
    mp_contiguous_strides(meta->ndim, meta->size, stride);
    mp_index index;
    return mp_index_from_position(&b->loops, &at, meta->ndim, meta->size, stride, &index) &&
           set_anchor(b, node, &index);
}

static void find_anchors(builder *b, uint32_t seed)
{
    anchor_default(b, seed);
    for (;;) {
        bool any = false;
        for (uint32_t i = b->n_nodes; i-- > 0;)
            if (b->anchor[i]) {
                const mp_gnode *gnode = &b->graph->nodes[b->nodes[i]];
                any |= anchor_operands(b, b->nodes[i], gnode->args, gnode->n_args);
            }
        for (uint32_t i = 0; i < b->n_nodes; i++) {
            const mp_gnode *gnode = &b->graph->nodes[b->nodes[i]];
            mp_op_class class_ = b->region->ops[b->nodes[i]]->class_;
            if (class_ == MP_OP_CAT || class_ == MP_OP_PAD) continue;
            for (uint32_t k = 0; k < gnode->n_args && !b->anchor[i]; k++)
                if (gnode->args[k].kind == MP_ARG_VALUE)
                    any |= anchor_from_operand(b, b->nodes[i], gnode->args[k].value);
        }
        for (uint32_t i = b->n_nodes; i-- > 0 && !any;)
            if (!b->anchor[i] && mp_region_stored(b->region, b->graph->nodes[b->nodes[i]].first))
                any |= anchor_default(b, b->nodes[i]);
        if (!any) return;
    }
}

/* -- Evaluation ---------------------------------------------------------------------------------------------------- */

static mp_kid eval_value(builder *b, mp_val value, const mp_index *index);

/* Argument `arg` of a node at the node's index, in its own register type. */
static mp_kid eval_operand(builder *b, const mp_gnode *gnode, const mp_index *index, mp_val value)
{
    mp_index *operand = MP_NEW(b->pool, mp_index, 1);
    *operand = operand_index(&b->graph->metas[gnode->first], index, &b->graph->metas[value]);
    return eval_value(b, value, operand);
}

typedef struct {
    builder *b;
    const mp_gnode *gnode;
    const mp_index *index;
    mp_dtype dtype;   /* of the computation, a register type */
    const char *text; /* what is left of the formula */
} formula;

static mp_kid eval_letter(formula *f, uint32_t number, bool truth)
{
    builder *b = f->b;
    if (number >= f->gnode->n_args) return fail(b);
    const mp_arg *arg = &f->gnode->args[number];
    mp_dtype dtype = truth ? MP_BOOL : f->dtype;
    if (mp_arg_number(arg)) return make_number(b, dtype, arg);
    if (arg->kind == MP_ARG_NONE) return make_const(b, dtype, 1, 1); /* arange's step, alpha: nothing given is 1 */
    if (arg->kind != MP_ARG_VALUE) return fail(b);
    mp_kid x = eval_operand(b, f->gnode, f->index, arg->value);
    return make_cast(b, x, dtype);
}

static mp_kid eval_call(formula *f);

static mp_kid eval_term(formula *f)
{
    if (*f->text == '?') {
        char letter = f->text[1];
        f->text += 2;
        return eval_letter(f, (uint32_t)(letter - 'a'), true);
    }
    char c = *f->text, after = c ? f->text[1] : 0;
    if (c >= 'a' && c <= 'g' && !(after >= 'a' && after <= 'z')) {
        f->text++;
        return eval_letter(f, (uint32_t)(c - 'a'), false);
    }
    if ((c >= '0' && c <= '9') || c == '-' || strncmp(f->text, "inf", 3) == 0) {
        char *end;
        double number = strtod(f->text, &end); /* formulas hold no locale's points: checked by the tests of every row */
        f->text = end;
        return make_const(f->b, f->dtype, number, (int64_t)(fabs(number) < 1e9 ? number : 0));
    }
    if (strncmp(f->text, "iota", 4) == 0) {
        f->text += 4;
        return make_cast(f->b, make_index(f->b, &f->index->dim[0], MP_I64), f->dtype);
    }
    return eval_call(f);
}

static mp_kid eval_call(formula *f)
{
    builder *b = f->b;
    char name[16];
    size_t n = 0;
    while (((*f->text >= 'a' && *f->text <= 'z') || (*f->text >= '0' && *f->text <= '9')) && n < sizeof name - 1)
        name[n++] = *f->text++;
    name[n] = 0;
    if (*f->text++ != '(') return fail(b);
    bool low = strcmp(name, "lo") == 0, high = strcmp(name, "hi") == 0;
    mp_kid args[3] = {0};
    uint32_t n_args = 0;
    while (n_args < 3) {
        uint32_t letter = (uint32_t)(*f->text - 'a');
        if ((low || high) && n_args == 1 &&
            (letter >= f->gnode->n_args || f->gnode->args[letter].kind == MP_ARG_NONE)) {
            f->text += 2;
            return args[0];
        }
        args[n_args++] = eval_term(f);
        if (b->failed) return 0;
        if (*f->text != ',') break;
        f->text++;
    }
    if (*f->text++ != ')') return fail(b);
    mp_kop op = low ? MP_K_MAX : high ? MP_K_MIN : MP_K_COUNT;
    for (mp_kop k = MP_K_REDUCE + 1; k < MP_K_COUNT && op == MP_K_COUNT; k++)
        if (strcmp(mp_kops[k].name, name) == 0) op = k;
    if (op == MP_K_COUNT || mp_kops[op].arity != n_args) return fail(b);
    if (op == MP_K_POW) {
        mp_kid power = make_power(b, args[0], args[1]);
        if (power != MP_NO_KID) return power;
        if (!mp_dtype_float(f->dtype)) return fail(b);
    }
    mp_dtype dtype = b->kir->exprs[args[op == MP_K_WHERE ? 1 : 0]].dtype;
    return make_op(b, op, dtype, args);
}

/* The alternative of the formula that the node's string argument chooses. */
static const char *choose_formula(const mp_gnode *gnode, const char *text)
{
    for (;;) {
        const char *colon = strchr(text, ':'), *end = strchr(text, ';');
        if (!colon || (end && end < colon)) return text;
        for (uint32_t i = 0; i < gnode->n_args; i++)
            if (gnode->args[i].kind == MP_ARG_STR && strlen(gnode->args[i].str) == (size_t)(colon - text) &&
                strncmp(gnode->args[i].str, text, (size_t)(colon - text)) == 0)
                return colon + 2;
        if (!end) return text;
        text = end + 1;
        while (*text == ' ') text++;
    }
}

static mp_kid eval_point(builder *b, const mp_gnode *gnode, const mp_op *op, const mp_index *index)
{
    int dtype = b->graph->metas[gnode->first].dtype;
    mp_dtype compute = mp_dtype_register(dtype);
    if (op->rule == 'P') compute = mp_dtype_register(mp_op_promote(b->graph, gnode, 2));
    if (op->rule == 'D' && mp_dtype_float(dtype)) compute = MP_F64;
    formula f = {b, gnode, index, compute, choose_formula(gnode, op->formula)};
    mp_kid x = eval_term(&f);
    x = make_cast(b, x, mp_dtype_register(dtype));
    bool copies = strcmp(op->formula, "a") == 0 || strcmp(op->formula, "b") == 0;
    if (copies && !b->failed && (dtype == MP_F16 || dtype == MP_BF16)) { /* a conversion the program asked for */
        mp_kexpr e = blank(MP_K_ROUND16, MP_F32);
        e.arg[0] = x;
        e.aux = (uint32_t)dtype;
        e.deps = b->kir->exprs[x].deps;
        e.level = b->kir->exprs[x].level;
        e.cost = (uint16_t)(b->kir->exprs[x].cost + 3);
        return intern(b, &e);
    }
    return x;
}

/* Input of a reduction, converted to the type it is computed in. */
static mp_kid eval_reduced(builder *b, const mp_gnode *gnode, const mp_index *index, mp_dtype dtype, int64_t *count)
{
    mp_val value = gnode->args[0].value;
    const mp_meta *input = &b->graph->metas[value];
    uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    *count = reduced_numel(input, dims);
    const mp_meta *result = &b->graph->metas[gnode->first];
    bool aligned = *count == 1 || mp_index_bijective(&b->loops, index, result->size, kept_loops(b));
    if (b->pred != MP_NO_KID || !aligned || !reduce_index(b, input, dims, index, at)) return fail(b);
    return make_cast(b, eval_value(b, value, at), dtype);
}

static mp_kid eval_reduce(builder *b, const mp_gnode *gnode, const mp_op *op, const mp_index *index)
{
    mp_dtype dtype = mp_dtype_register(b->graph->metas[gnode->first].dtype);
    int64_t count;
    bool truth = op->reduction == MP_RED_ANY || op->reduction == MP_RED_ALL;
    mp_kid x = eval_reduced(b, gnode, index, truth ? MP_BOOL : dtype, &count);
    if (b->failed) return 0;
    if (count > 1) x = make_reduce(b, op->reduction, x);
    if (op->mean) x = op2(b, MP_K_DIV, x, make_const(b, dtype, (double)count, count));
    return make_cast(b, x, dtype);
}

/* Variance in two passes: the mean, then the squared distances from it. `which` is 1 for var_mean's mean. */
static mp_kid eval_var(builder *b, const mp_gnode *gnode, const mp_index *index, uint32_t which)
{
    mp_dtype dtype = mp_dtype_register(b->graph->metas[gnode->first].dtype);
    int64_t count;
    mp_kid x = eval_reduced(b, gnode, index, dtype, &count);
    if (b->failed) return 0;
    mp_kid sum = count > 1 ? make_reduce(b, MP_RED_SUM, x) : x;
    mp_kid mean = op2(b, MP_K_DIV, sum, make_const(b, dtype, (double)count, 0));
    if (which == 1) return mean;
    double correction = 1;
    if (gnode->n_args > 2 && mp_arg_number(&gnode->args[2])) correction = mp_arg_double(&gnode->args[2]);
    double divisor = (double)count - correction;
    mp_kid distance = op2(b, MP_K_SUB, x, mean), square = op2(b, MP_K_MUL, distance, distance);
    if (b->failed) return 0;
    mp_kid total = count > 1 ? make_reduce(b, MP_RED_SUM, square) : square;
    return op2(b, MP_K_DIV, total, make_const(b, dtype, divisor > 0 ? divisor : 0, 0));
}

/* low <= at < high, joined with the condition that holds already. MP_NO_KID: always true. */
static mp_kid make_range(builder *b, const mp_affine *at, int64_t low, int64_t high, int64_t size)
{
    mp_kid pred = MP_NO_KID;
    mp_dtype dtype = size < INT32_MAX ? MP_I32 : MP_I64;
    for (int side = 0; side < 2; side++) {
        if (side == 0 ? low <= 0 : high >= size) continue;
        mp_kid bound = make_const(b, dtype, 0, side == 0 ? low : high);
        mp_kid test = op2(b, side == 0 ? MP_K_GE : MP_K_LT, make_index(b, at, dtype), bound);
        if (b->failed) return 0;
        pred = pred == MP_NO_KID ? test : op2(b, MP_K_AND, pred, test);
    }
    return pred;
}

static mp_kid join(builder *b, mp_kid x, mp_kid y)
{
    if (b->failed) return 0;
    return x == MP_NO_KID ? y : y == MP_NO_KID ? x : op2(b, MP_K_AND, x, y);
}

/* eval_value under a further condition, in type `dtype`. */
static mp_kid eval_under(builder *b, mp_val value, const mp_index *index, mp_kid pred, mp_dtype dtype)
{
    mp_kid outer = b->pred;
    b->pred = join(b, outer, pred);
    mp_kid x = make_cast(b, eval_value(b, value, index), dtype);
    b->pred = outer;
    return x;
}

static mp_kid eval_cat(builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_meta *meta = &b->graph->metas[gnode->first];
    mp_dtype dtype = mp_dtype_register(meta->dtype);
    const mp_arg *list = &gnode->args[0];
    int64_t dim = gnode->n_args > 1 && gnode->args[1].kind == MP_ARG_INT ? gnode->args[1].i : 0;
    if (dim < 0) dim += meta->ndim;
    if (list->kind != MP_ARG_LIST || list->list.n == 0 || list->list.n > 8) return fail(b);
    mp_kid result = MP_NO_KID;
    int64_t start = 0;
    for (uint32_t i = 0; i < list->list.n && !b->failed; i++) {
        const mp_arg *item = &list->list.items[i];
        if (item->kind != MP_ARG_VALUE || b->graph->metas[item->value].ndim != meta->ndim) return fail(b);
        int64_t end = start + b->graph->metas[item->value].size[dim];
        mp_index *at = MP_NEW(b->pool, mp_index, 1);
        *at = *index;
        at->dim[dim].base -= start;
        mp_kid pred = make_range(b, &index->dim[dim], start, end, meta->size[dim]);
        mp_kid x = b->failed ? 0 : eval_under(b, item->value, at, pred, dtype);
        if (b->failed) return 0;
        if (result == MP_NO_KID) {
            result = x;
        } else {
            mp_kid before = make_range(b, &index->dim[dim], 0, start, meta->size[dim]);
            result = make_op(b, MP_K_WHERE, dtype, (mp_kid[]){before, result, x});
        }
        start = end;
    }
    return result;
}

static mp_kid eval_pad(builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_meta *meta = &b->graph->metas[gnode->first], *input = &b->graph->metas[gnode->args[0].value];
    mp_dtype dtype = mp_dtype_register(meta->dtype);
    const mp_arg *pads = &gnode->args[1];
    if (gnode->args[0].kind != MP_ARG_VALUE || pads->kind != MP_ARG_LIST) return fail(b);
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    *at = *index;
    mp_kid pred = MP_NO_KID;
    for (uint32_t k = 0; k + 1 < pads->list.n && !b->failed; k += 2) {
        int d = meta->ndim - 1 - (int)k / 2;
        if (d < 0 || pads->list.items[k].kind != MP_ARG_INT) return fail(b);
        int64_t low = pads->list.items[k].i;
        at->dim[d].base -= low;
        pred = join(b, pred, make_range(b, &index->dim[d], low, low + input->size[d], meta->size[d]));
    }
    mp_arg zero = {.kind = MP_ARG_INT};
    mp_kid fill = make_number(b, dtype, gnode->n_args > 2 && mp_arg_number(&gnode->args[2]) ? &gnode->args[2] : &zero);
    if (b->failed) return 0;
    mp_kid x = eval_under(b, gnode->args[0].value, at, pred, dtype);
    if (b->failed || pred == MP_NO_KID) return x;
    return make_op(b, MP_K_WHERE, dtype, (mp_kid[]){pred, x, fill});
}

/* A convolution's sum, where the kernel's loops compute it, and its bias. */
static mp_kid eval_conv(builder *b, uint32_t node, const mp_gnode *gnode, const mp_index *index)
{
    const mp_index *anchor = in_group(b, node) ? b->anchor[b->region->slot[node]] : NULL;
    if (!anchor || b->pred != MP_NO_KID || memcmp(anchor, index, sizeof *index) != 0) return fail(b);
    mp_kexpr e = blank(MP_K_TILE, MP_F32);
    e.deps = all_loops(b);
    e.cost = 1;
    mp_kid sum = intern(b, &e);
    if (gnode->args[2].kind != MP_ARG_VALUE || b->failed) return sum;
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    at->ndim = 1;
    at->dim[0] = index->dim[1];
    return op2(b, MP_K_ADD, sum, eval_value(b, gnode->args[2].value, at));
}

/* The result `value` of a node of the group (or a constant) at an index. */
static mp_kid eval_owner(builder *b, mp_val value, const mp_index *index)
{
    uint32_t node = b->graph->node_of[value];
    const mp_gnode *gnode = &b->graph->nodes[node];
    const mp_op *op = b->region->ops[node];
    bool member = in_group(b, node);
    uint32_t which = value - gnode->first;
    memo **list = NULL;
    int evaluations = 0;
    if (member && which < 2) {
        list = &b->memos[2 * b->region->slot[node] + which];
        for (memo *m = *list; m; m = m->next, evaluations++)
            if (m->pred == b->pred && memcmp(&m->index, index, sizeof *index) == 0) return m->result;
    }
    if (++b->depth > MAX_DEPTH) return fail(b);
    mp_kid x;
    switch (op->class_) {
    case MP_OP_POINT: x = eval_point(b, gnode, op, index); break;
    case MP_OP_REDUCE: x = eval_reduce(b, gnode, op, index); break;
    case MP_OP_VAR: x = eval_var(b, gnode, index, b->graph->nodes[node].n_values == 2 ? which : 0); break;
    case MP_OP_CAT: x = eval_cat(b, gnode, index); break;
    case MP_OP_PAD: x = eval_pad(b, gnode, index); break;
    case MP_OP_CONV: x = eval_conv(b, node, gnode, index); break;
    default: x = fail(b);
    }
    b->depth--;
    if (b->failed) return 0;
    /* Not worth it: computing something dear several times, or anew for each iteration of a loop it does not depend on. */
    bool dear = b->kir->exprs[x].cost > 12;
    if (b->n_nodes > 1 && member) {
        if (evaluations > (dear ? 0 : 2)) return fail(b);
        if (dear && !b->anchor[b->region->slot[node]] && (all_loops(b) & ~b->kir->exprs[x].deps) &&
            b->kir->exprs[x].deps)
            return fail(b);
    }
    if (list) {
        memo *m = MP_NEW(b->pool, memo, 1);
        *m = (memo){.next = *list, .index = *index, .pred = b->pred, .result = x};
        *list = m;
    }
    return x;
}

static mp_kid eval_value(builder *b, mp_val value, const mp_index *index)
{
    if (b->failed) return 0;
    mp_val owner = b->region->owner[value];
    uint32_t maker = b->graph->node_of[owner];
    if (in_group(b, maker) || b->region->constant[maker]) {
        mp_index *own = MP_NEW(b->pool, mp_index, 1);
        if (!owner_index(b, value, index, own)) return fail(b);
        return eval_owner(b, owner, own);
    }
    const mp_meta *view = &b->graph->metas[value], *base = &b->graph->metas[owner];
    if (view->dtype != base->dtype) return fail(b);
    mp_affine at = mp_index_position(index, view->stride);
    at.base += view->offset - base->offset;
    return make_load(b, owner, &at);
}

/* -- Building ------------------------------------------------------------------------------------------------------ */

/* With a convolution in the group the loops are the dims of its result. Its input and weight must come from outside. Returns false
** if there is none. */
static bool choose_conv_loops(builder *b, mp_loops *loops, uint32_t *seed)
{
    const mp_gnode *conv = NULL;
    bool others = false;
    for (uint32_t i = 0; i < b->n_nodes; i++) {
        mp_op_class class_ = b->region->ops[b->nodes[i]]->class_;
        others |= class_ == MP_OP_REDUCE || class_ == MP_OP_VAR || (class_ == MP_OP_CONV && conv);
        if (class_ == MP_OP_CONV) conv = &b->graph->nodes[ *seed = b->nodes[i]];
    }
    if (!conv) return false;
    const mp_meta *meta = &b->graph->metas[conv->first];
    memset(loops, 0, sizeof *loops);
    loops->split = -1;
    loops->n = (uint32_t)meta->ndim;
    for (int d = 0; d < meta->ndim; d++) loops->extent[d] = meta->size[d];
    b->conv = MP_NEW(b->pool, mp_conv, 1);
    b->failed = others || !mp_conv_describe(b->graph, conv, b->conv);
    for (int i = 0; i < 2; i++) {
        mp_val owner = b->region->owner[conv->args[i].value];
        int64_t offset = b->graph->metas[conv->args[i].value].offset - b->graph->metas[owner].offset;
        *(i ? &b->conv->w_offset : &b->conv->x_offset) = offset;
        if (in_group(b, b->graph->node_of[owner])) b->failed = true;
        b->operands[i] = owner;
    }
    return true;
}

/* The node whose shape gives the loops, and these loops. */
static uint32_t choose_loops(builder *b, mp_loops *loops)
{
    uint32_t conv;
    if (choose_conv_loops(b, loops, &conv)) return conv;
    int64_t most = -1;
    uint32_t seed = b->nodes[0];
    bool reduces = false;
    for (uint32_t i = 0; i < b->n_nodes; i++) {
        const mp_gnode *gnode = &b->graph->nodes[b->nodes[i]];
        mp_op_class class_ = b->region->ops[b->nodes[i]]->class_;
        if (class_ == MP_OP_REDUCE || class_ == MP_OP_VAR) {
            const mp_meta *input = &b->graph->metas[gnode->args[0].value];
            uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
            if (reduced_numel(input, dims) > 1) {
                reduces = true;
                seed = b->nodes[i];
                break;
            }
        }
        if (!mp_region_stored(b->region, gnode->first)) continue;
        int64_t numel = mp_meta_numel(&b->graph->metas[gnode->first]);
        if (numel >= most) most = numel, seed = b->nodes[i];
    }
    const mp_gnode *gnode = &b->graph->nodes[seed];
    const mp_meta *meta = &b->graph->metas[reduces ? gnode->args[0].value : gnode->first];
    uint32_t dims = reduces ? mp_op_reduced_dims(b->graph, gnode) : 0;
    memset(loops, 0, sizeof *loops);
    loops->split = -1;
    for (int d = 0; d < meta->ndim; d++) {
        if (meta->size[d] == 1) continue;
        bool same = loops->n && ((loops->reduced >> (loops->n - 1)) & 1) == (dims >> d & 1);
        if (loops->n == MP_MAX_LOOPS - 4 && same) { /* many dims: start joined, splits will tell where not */
            loops->extent[loops->n - 1] *= meta->size[d];
            continue;
        }
        if (loops->n == MP_MAX_LOOPS) {
            b->failed = true;
            return seed;
        }
        if (dims >> d & 1) loops->reduced |= 1u << loops->n;
        loops->extent[loops->n++] = meta->size[d];
    }
    return seed;
}

static void build_stores(builder *b)
{
    for (uint32_t i = 0; i < b->n_nodes && !b->failed; i++) {
        const mp_gnode *gnode = &b->graph->nodes[b->nodes[i]];
        for (uint32_t k = 0; k < gnode->n_values && !b->failed; k++) {
            mp_val value = gnode->first + k;
            if (!mp_region_stored(b->region, value)) continue;
            if (!b->anchor[i]) {
                b->failed = true;
                return;
            }
            mp_kid what = eval_owner(b, value, b->anchor[i]);
            uint32_t buffer = b->failed ? 0 : buffer_of(b, value);
            if (b->failed) return;
            b->kir->buffers[buffer].written = true;
            MP_GROW(b->pool, b->kir->stores, b->kir->n_stores, b->cap_stores);
            b->kir->stores[b->kir->n_stores++] = (mp_kstore){
                .buffer = buffer, .at = mp_index_position(b->anchor[i], b->graph->metas[value].stride), .what = what};
        }
    }
}

/* A few long reductions run on few threads: what every iteration stores does not have to. */
static bool starves(const builder *b)
{
    const mp_kir *kir = b->kir;
    int64_t kept = 1, reduced = 1;
    for (uint32_t i = 0; i < b->loops.n; i++) *(b->loops.reduced >> i & 1 ? &reduced : &kept) *= b->loops.extent[i];
    if (b->n_nodes == 1 || kept >= 16 || reduced < 32768) return false;
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (mp_affine_deps(&kir->stores[i].at) & b->loops.reduced) return true;
    return false;
}

mp_kir *mp_fuse_build(mp_region *region, const uint32_t *nodes, uint32_t n, mp_pool *pool)
{
    builder b = {
        .region = region, .graph = region->graph, .pool = pool, .nodes = nodes, .n_nodes = n, .pred = MP_NO_KID};
    region->stamp++;
    for (uint32_t i = 0; i < n; i++) {
        region->slot[nodes[i]] = i;
        region->slot_stamp[nodes[i]] = region->stamp;
    }
    uint32_t seed = choose_loops(&b, &b.loops);
    for (int attempt = 0; attempt < 2 * MP_MAX_LOOPS && !b.failed; attempt++) {
        b.anchor = MP_NEW(pool, mp_index *, n);
        b.memos = MP_NEW(pool, memo *, 2 * n);
        b.hash = MP_NEW(pool, uint16_t, HASH_SIZE);
        b.kir = MP_NEW(pool, mp_kir, 1);
        b.cap_exprs = b.cap_stores = b.cap_buffers = 0;
        b.depth = 0;
        b.pred = MP_NO_KID;
        b.kir->conv = b.conv;
        for (int i = 0; i < 2 && b.conv; i++) buffer_of(&b, b.operands[i]);
        find_anchors(&b, seed);
        if (b.loops.split < 0) build_stores(&b);
        if (b.conv && b.loops.split >= 0) return NULL;
        if (b.loops.split >= 0) {
            b.failed = !mp_loops_split(&b.loops);
            continue;
        }
        if (b.failed || b.kir->n_stores == 0 || starves(&b)) return NULL;
        b.kir->n_loops = b.loops.n;
        memcpy(b.kir->extent, b.loops.extent, sizeof b.loops.extent);
        b.kir->reduced = b.loops.reduced;
        if (b.conv) return mp_fuse_conv_loops(b.kir) ? b.kir : NULL;
        mp_fuse_order_loops(b.kir);
        return b.kir;
    }
    return NULL;
}
