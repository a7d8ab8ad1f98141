/* Nodes at an index -> expressions: operands at the indices that follow, down to loads. Equal (node, index) pairs are one. */
#include "fuse/builder.h"

#include <string.h>

#define MAX_DEPTH 150

/* Input of a reduction, converted to the type it is computed in. */
static mp_kid eval_reduced(mp_builder *b, const mp_gnode *gnode, const mp_index *index, mp_dtype dtype, int64_t *count)
{
    mp_val value = gnode->args[0].value;
    const mp_meta *input = &b->graph->metas[value];
    uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    *count = mp_build_reduced_numel(input, dims);
    const mp_meta *result = &b->graph->metas[gnode->first];
    bool aligned = *count == 1 || mp_index_bijective(&b->loops, index, result->size, mp_build_kept_loops(b));
    if (b->pred != MP_NO_KID || !aligned || !mp_build_reduce_index(b, input, dims, index, at)) return mp_build_fail(b);
    return mp_expr_cast(b, mp_build_eval_value(b, value, at), dtype);
}

static mp_kid eval_reduce(mp_builder *b, const mp_gnode *gnode, const mp_op *op, const mp_index *index)
{
    mp_dtype dtype = mp_dtype_register(b->graph->metas[gnode->first].dtype);
    int64_t count;
    bool truth = op->reduction == MP_RED_ANY || op->reduction == MP_RED_ALL;
    mp_kid x = eval_reduced(b, gnode, index, truth ? MP_BOOL : dtype, &count);
    if (b->failed) return 0;
    if (count > 1) x = mp_expr_reduce(b, op->reduction, x);
    if (op->mean) x = mp_expr_op2(b, MP_K_DIV, x, mp_expr_const(b, dtype, (double)count, count));
    return mp_expr_cast(b, x, dtype);
}

/* Variance in two passes: the mean, then the squared distances from it. `which` is 1 for var_mean's mean. */
static mp_kid eval_var(mp_builder *b, const mp_gnode *gnode, const mp_index *index, uint32_t which)
{
    mp_dtype dtype = mp_dtype_register(b->graph->metas[gnode->first].dtype);
    int64_t count;
    mp_kid x = eval_reduced(b, gnode, index, dtype, &count);
    if (b->failed) return 0;
    mp_kid sum = count > 1 ? mp_expr_reduce(b, MP_RED_SUM, x) : x;
    mp_kid mean = mp_expr_op2(b, MP_K_DIV, sum, mp_expr_const(b, dtype, (double)count, 0));
    if (which == 1) return mean;
    double correction = 1;
    if (gnode->n_args > 2 && mp_arg_number(&gnode->args[2])) correction = mp_arg_double(&gnode->args[2]);
    double divisor = (double)count - correction;
    mp_kid distance = mp_expr_op2(b, MP_K_SUB, x, mean), square = mp_expr_op2(b, MP_K_MUL, distance, distance);
    if (b->failed) return 0;
    mp_kid total = count > 1 ? mp_expr_reduce(b, MP_RED_SUM, square) : square;
    return mp_expr_op2(b, MP_K_DIV, total, mp_expr_const(b, dtype, divisor > 0 ? divisor : 0, 0));
}

/* The place of the greatest or least element in two passes: the element, then the first place that has it. NaN is the greatest and
** the least. `which` is 0 for the element itself. */
static mp_kid eval_arg(mp_builder *b, const mp_gnode *gnode, const mp_op *op, const mp_index *index, uint32_t which)
{
    mp_val value = gnode->args[0].value;
    const mp_meta *input = &b->graph->metas[value];
    mp_dtype dtype = mp_dtype_register(input->dtype), place = mp_meta_numel(input) < INT32_MAX ? MP_I32 : MP_I64;
    int64_t count;
    mp_kid x = eval_reduced(b, gnode, index, dtype, &count);
    if (b->failed) return 0;
    if (count == 1) return which ? mp_expr_const(b, MP_I64, 0, 0) : x;
    mp_kid most = mp_expr_reduce(b, op->reduction, x);
    if (b->failed || which == 0) return most;
    uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    if (!mp_build_reduce_index(b, input, dims, index, at)) return mp_build_fail(b);
    mp_affine number = mp_affine_const(0);
    int64_t step = 1;
    for (int d = input->ndim; d-- > 0;) {
        if (!(dims >> d & 1)) continue;
        mp_affine_add(&number, &at->dim[d], step);
        step *= input->size[d];
    }
    mp_kid found = mp_expr_op2(b, MP_K_EQ, x, most);
    if (mp_dtype_float(dtype)) found = mp_expr_op2(b, MP_K_OR, found, mp_expr_op1(b, MP_K_ISNAN, x));
    mp_kid numbers[3] = {found, mp_expr_index(b, &number, place), mp_expr_const(b, place, 0, step)};
    mp_kid candidate = mp_expr_op(b, MP_K_WHERE, place, numbers);
    if (b->failed) return 0;
    return mp_expr_cast(b, mp_expr_reduce(b, MP_RED_MIN, candidate), MP_I64);
}

static mp_kid eval_flip(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_meta *meta = &b->graph->metas[gnode->first];
    if (gnode->args[0].kind != MP_ARG_VALUE || gnode->args[1].kind != MP_ARG_LIST) return mp_build_fail(b);
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    *at = *index;
    for (uint32_t i = 0; i < gnode->args[1].list.n; i++) {
        int64_t dim = gnode->args[1].list.items[i].i;
        if (dim < 0) dim += meta->ndim;
        if (dim < 0 || dim >= meta->ndim) continue; /* of a number */
        mp_affine back = mp_affine_const(meta->size[dim] - 1);
        mp_affine_add(&back, &index->dim[dim], -1);
        at->dim[dim] = back;
    }
    return mp_build_eval_value(b, gnode->args[0].value, at);
}

/* low <= at < high, joined with the condition that holds already. MP_NO_KID: always true. */
static mp_kid make_range(mp_builder *b, const mp_affine *at, int64_t low, int64_t high, int64_t size)
{
    mp_kid pred = MP_NO_KID;
    mp_dtype dtype = size < INT32_MAX ? MP_I32 : MP_I64;
    for (int side = 0; side < 2; side++) {
        if (side == 0 ? low <= 0 : high >= size) continue;
        mp_kid bound = mp_expr_const(b, dtype, 0, side == 0 ? low : high);
        mp_kid test = mp_expr_op2(b, side == 0 ? MP_K_GE : MP_K_LT, mp_expr_index(b, at, dtype), bound);
        if (b->failed) return 0;
        pred = pred == MP_NO_KID ? test : mp_expr_op2(b, MP_K_AND, pred, test);
    }
    return pred;
}

static mp_kid join(mp_builder *b, mp_kid x, mp_kid y)
{
    if (b->failed) return 0;
    return x == MP_NO_KID ? y : y == MP_NO_KID ? x : mp_expr_op2(b, MP_K_AND, x, y);
}

/* eval_value under a further condition, in type `dtype`. */
static mp_kid eval_under(mp_builder *b, mp_val value, const mp_index *index, mp_kid pred, mp_dtype dtype)
{
    mp_kid outer = b->pred;
    b->pred = join(b, outer, pred);
    mp_kid x = mp_expr_cast(b, mp_build_eval_value(b, value, index), dtype);
    b->pred = outer;
    return x;
}

static mp_kid eval_cat(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_meta *meta = &b->graph->metas[gnode->first];
    mp_dtype dtype = mp_dtype_register(meta->dtype);
    const mp_arg *list = &gnode->args[0];
    int64_t dim = gnode->n_args > 1 && gnode->args[1].kind == MP_ARG_INT ? gnode->args[1].i : 0;
    if (dim < 0) dim += meta->ndim;
    if (list->kind != MP_ARG_LIST || list->list.n == 0 || list->list.n > 8) return mp_build_fail(b);
    mp_kid result = MP_NO_KID;
    int64_t start = 0;
    for (uint32_t i = 0; i < list->list.n && !b->failed; i++) {
        const mp_arg *item = &list->list.items[i];
        if (item->kind != MP_ARG_VALUE || b->graph->metas[item->value].ndim != meta->ndim) return mp_build_fail(b);
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
            result = mp_expr_op(b, MP_K_WHERE, dtype, (mp_kid[]){before, result, x});
        }
        start = end;
    }
    return result;
}

static mp_kid eval_pad(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_meta *meta = &b->graph->metas[gnode->first], *input = &b->graph->metas[gnode->args[0].value];
    mp_dtype dtype = mp_dtype_register(meta->dtype);
    const mp_arg *pads = &gnode->args[1];
    if (gnode->args[0].kind != MP_ARG_VALUE || pads->kind != MP_ARG_LIST) return mp_build_fail(b);
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    *at = *index;
    mp_kid pred = MP_NO_KID;
    for (uint32_t k = 0; k + 1 < pads->list.n && !b->failed; k += 2) {
        int d = meta->ndim - 1 - (int)k / 2;
        if (d < 0 || pads->list.items[k].kind != MP_ARG_INT) return mp_build_fail(b);
        int64_t low = pads->list.items[k].i;
        at->dim[d].base -= low;
        pred = join(b, pred, make_range(b, &index->dim[d], low, low + input->size[d], meta->size[d]));
    }
    mp_arg zero = {.kind = MP_ARG_INT};
    mp_kid fill =
        mp_expr_number(b, dtype, gnode->n_args > 2 && mp_arg_number(&gnode->args[2]) ? &gnode->args[2] : &zero);
    if (b->failed) return 0;
    mp_kid x = eval_under(b, gnode->args[0].value, at, pred, dtype);
    if (b->failed || pred == MP_NO_KID) return x;
    return mp_expr_op(b, MP_K_WHERE, dtype, (mp_kid[]){pred, x, fill});
}

/* The result `value` of a node of the group (or a constant) at an index. */
mp_kid mp_build_eval(mp_builder *b, mp_val value, const mp_index *index)
{
    uint32_t node = b->graph->node_of[value];
    const mp_gnode *gnode = &b->graph->nodes[node];
    const mp_op *op = b->region->ops[node];
    bool member = mp_build_member(b, node);
    uint32_t which = value - gnode->first;
    mp_memo **list = NULL;
    int evaluations = 0;
    if (member && which < 2) {
        list = &b->memos[2 * b->region->slot[node] + which];
        for (mp_memo *m = *list; m; m = m->next, evaluations++)
            if (m->pred == b->pred && memcmp(&m->index, index, sizeof *index) == 0) return m->result;
    }
    if (++b->depth > MAX_DEPTH) return mp_build_fail(b);
    mp_kid x;
    switch (op->class_) {
    case MP_OP_POINT: x = mp_build_eval_point(b, gnode, op, index); break;
    case MP_OP_REDUCE: x = eval_reduce(b, gnode, op, index); break;
    case MP_OP_VAR: x = eval_var(b, gnode, index, b->graph->nodes[node].n_values == 2 ? which : 0); break;
    case MP_OP_ARG: x = eval_arg(b, gnode, op, index, gnode->n_values == 2 ? which : 1); break;
    case MP_OP_GATHER: x = mp_build_eval_gather(b, gnode, index); break;
    case MP_OP_SCATTER: x = mp_build_eval_scatter(b, gnode, index); break;
    case MP_OP_ROLL: x = mp_build_eval_roll(b, gnode, index); break;
    case MP_OP_FLIP: x = eval_flip(b, gnode, index); break;
    case MP_OP_CAT: x = eval_cat(b, gnode, index); break;
    case MP_OP_PAD: x = eval_pad(b, gnode, index); break;
    case MP_OP_CONV: x = mp_build_eval_conv(b, node, gnode, index); break;
    default: x = mp_build_fail(b);
    }
    b->depth--;
    if (b->failed) return 0;
    /* Not worth it: computing something dear several times, or anew for each iteration of a loop it does not depend on. */
    bool dear = b->kir->exprs[x].cost > 12;
    if (b->n_nodes > 1 && member) {
        if (evaluations > (dear ? 0 : 2)) return mp_build_fail(b);
        if (dear && !b->anchor[b->region->slot[node]] && (mp_build_all_loops(b) & ~b->kir->exprs[x].deps) &&
            b->kir->exprs[x].deps)
            return mp_build_fail(b);
    }
    if (list) {
        mp_memo *m = MP_NEW(b->pool, mp_memo, 1);
        *m = (mp_memo){.next = *list, .index = *index, .pred = b->pred, .result = x};
        *list = m;
    }
    return x;
}

mp_kid mp_build_eval_value(mp_builder *b, mp_val value, const mp_index *index)
{
    if (b->failed) return 0;
    mp_val owner = b->region->owner[value];
    uint32_t maker = b->graph->node_of[owner];
    if (mp_build_member(b, maker) || b->region->constant[maker]) {
        mp_index *own = MP_NEW(b->pool, mp_index, 1);
        if (!mp_build_owner_index(b, value, index, own)) return mp_build_fail(b);
        return mp_build_eval(b, owner, own);
    }
    const mp_meta *view = &b->graph->metas[value], *base = &b->graph->metas[owner];
    if (view->dtype != base->dtype) return mp_build_fail(b);
    mp_affine at = mp_index_position(index, view->stride);
    at.base += view->offset - base->offset;
    return mp_expr_load(b, owner, &at, MP_NO_KID);
}
