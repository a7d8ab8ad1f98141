/* Elements at places that are no affine functions of the loops: embedding, index_select, gather, index, roll; and
** elements that are replaced at such a place.
**
** The source is always read from memory; the places may be computed in the kernel. Each place is checked against the size of its dim
** (MP_K_CHECK), but for those that are known from the loops. Kernels read nothing out of range, and the plan learns of it.
*/
#include "fuse/builder.h"

#include <string.h>

typedef struct {
    mp_builder *b;
    const mp_meta *source;
    mp_affine at;  /* what is known of the position */
    mp_kid offset; /* what is data */
    mp_dtype type; /* of the offset */
    bool wrap;
} gather;

/* Take dim `dim` of the source at place `x`. */
static void take_place(gather *g, int dim, mp_kid x)
{
    mp_builder *b = g->b;
    int64_t size = g->source->size[dim], stride = g->source->stride[dim];
    if (b->failed) return;
    mp_kid plain = x;
    while (b->kir->exprs[plain].op == MP_K_CAST) plain = b->kir->exprs[plain].arg[0];
    const mp_kexpr *e = &b->kir->exprs[plain];
    if (e->op == MP_K_INDEX || (e->op == MP_K_CONST && !mp_dtype_float(e->dtype))) {
        mp_affine at = e->op == MP_K_INDEX ? e->at : mp_affine_const(e->i);
        int64_t least = at.base, most = at.base;
        for (uint32_t i = 0; i < b->loops.n; i++)
            *(at.coef[i] < 0 ? &least : &most) += at.coef[i] * (b->loops.extent[i] - 1);
        if (least >= 0 && most < size) {
            mp_affine_add(&g->at, &at, stride);
            return;
        }
    }
    x = mp_expr_cast(b, mp_expr_check(b, x, size, g->wrap), g->type);
    if (b->failed) return;
    x = mp_expr_op2(b, MP_K_MUL, x, mp_expr_const(b, g->type, 0, stride));
    g->offset = g->offset == MP_NO_KID ? x : mp_expr_op2(b, MP_K_ADD, g->offset, x);
}

/* Dim `dim` of the source runs with the result's. */
static void take_dim(gather *g, int dim, const mp_affine *at) { mp_affine_add(&g->at, at, g->source->stride[dim]); }

static mp_kid eval_at(mp_builder *b, mp_val value, const mp_index *index)
{
    mp_index *own = MP_NEW(b->pool, mp_index, 1);
    *own = *index;
    return mp_build_eval_value(b, value, own);
}

/* The place that tensor `value` of places holds, its dims being the last of `n` dims of the result that begin at `first`. */
static mp_kid eval_place(gather *g, mp_val value, const mp_index *index, int first, int n)
{
    const mp_meta *meta = &g->b->graph->metas[value];
    mp_index at;
    memset(&at, 0, sizeof at);
    at.ndim = meta->ndim;
    for (int d = 0; d < meta->ndim; d++)
        if (meta->size[d] != 1) at.dim[d] = index->dim[first + n - meta->ndim + d];
    return eval_at(g->b, value, &at);
}

/* gather(self, dim, index): the result lies as the index does. */
static void take_along(gather *g, const mp_gnode *gnode, const mp_index *index)
{
    int64_t dim = gnode->args[1].i;
    if (dim < 0) dim += g->source->ndim;
    if (dim < 0 || dim >= g->source->ndim || index->ndim != g->source->ndim) {
        mp_build_fail(g->b);
        return;
    }
    for (int d = 0; d < g->source->ndim; d++)
        if (d != dim) take_dim(g, d, &index->dim[d]);
    take_place(g, (int)dim, eval_at(g->b, gnode->args[2].value, index));
}

/* Places of some dims: `of`[dim] is NULL where a dim is whole. The places' own dims stand where the first of theirs was if the dims
** are neighbours, and in front if they are not. */
static void take_dims(gather *g, const mp_arg *const *of, const mp_index *index)
{
    const mp_graph *graph = g->b->graph;
    int n = 0, first = -1, last = -1, taken = 0;
    for (int d = 0; d < g->source->ndim; d++) {
        if (!of[d]) continue;
        if (graph->metas[of[d]->value].ndim > n) n = graph->metas[of[d]->value].ndim;
        if (first < 0) first = d;
        last = d;
        taken++;
    }
    int at = last - first + 1 == taken ? first : 0;
    if (index->ndim != g->source->ndim - taken + n) {
        mp_build_fail(g->b);
        return;
    }
    for (int d = 0, to = 0; d < g->source->ndim; d++) {
        if (of[d]) {
            take_place(g, d, eval_place(g, of[d]->value, index, at, n));
            continue;
        }
        take_dim(g, d, &index->dim[to < at ? to : to + n]);
        to++;
    }
}

/* A gather from tensor `value`. False if it is not read from memory. */
static bool start(gather *g, mp_builder *b, mp_val value)
{
    mp_val owner = b->region->owner[value];
    uint32_t maker = b->graph->node_of[owner];
    const mp_meta *source = &b->graph->metas[value], *base = &b->graph->metas[owner];
    if (mp_build_member(b, maker) || b->region->constant[maker] || source->dtype != base->dtype) return false;
    int64_t reach = 0;
    for (int d = 0; d < source->ndim; d++) reach += (source->size[d] - 1) * source->stride[d];
    *g = (gather){.b = b,
                  .source = source,
                  .at = mp_affine_const(source->offset - base->offset),
                  .offset = MP_NO_KID,
                  .type = reach < INT32_MAX / 2 ? MP_I32 : MP_I64};
    return true;
}

mp_kid mp_build_eval_gather(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    mp_val value = gnode->args[0].value;
    const mp_meta *source = &b->graph->metas[value];
    gather g;
    if (!start(&g, b, value)) return mp_build_fail(b);
    g.wrap = strstr(gnode->op, "index.Tensor") != NULL;
    const mp_arg *of[MP_MAX_DIMS] = {NULL};
    if (strcmp(gnode->op, "aten.gather.default") == 0) {
        take_along(&g, gnode, index);
    } else if (strcmp(gnode->op, "aten.embedding.default") == 0) {
        of[0] = &gnode->args[1];
        take_dims(&g, of, index);
    } else if (g.wrap) {
        const mp_arg *list = &gnode->args[1];
        if (list->list.n > (uint32_t)source->ndim) return mp_build_fail(b);
        for (uint32_t i = 0; i < list->list.n; i++)
            if (list->list.items[i].kind == MP_ARG_VALUE) of[i] = &list->list.items[i];
        take_dims(&g, of, index);
    } else { /* index_select(self, dim, index): a number counts as one place */
        int64_t dim = gnode->args[1].i;
        if (dim < 0) dim += source->ndim;
        if (dim < 0 || dim >= source->ndim || index->ndim != source->ndim) return mp_build_fail(b);
        for (int d = 0; d < source->ndim; d++)
            if (d != dim) take_dim(&g, d, &index->dim[d]);
        take_place(&g, (int)dim, eval_place(&g, gnode->args[2].value, index, (int)dim, 1));
    }
    if (b->failed) return 0;
    return mp_expr_load(b, b->region->owner[value], &g.at, g.offset);
}

/* scatter(self, dim, index, value or src) with one index along dim: a choice between self and what replaces it. */
mp_kid mp_build_eval_scatter(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_meta *meta = &b->graph->metas[gnode->first];
    const mp_arg *with = &gnode->args[3];
    int64_t dim = gnode->args[1].i < 0 ? gnode->args[1].i + meta->ndim : gnode->args[1].i;
    mp_dtype dtype = mp_dtype_register(meta->dtype);
    mp_index at = *index;
    at.dim[dim] = mp_affine_const(0);
    mp_kid place = mp_expr_check(b, eval_at(b, gnode->args[2].value, &at), meta->size[dim], false);
    if (b->failed) return 0;
    mp_dtype type = b->kir->exprs[place].dtype;
    mp_kid here = mp_expr_op2(b, MP_K_EQ, mp_expr_index(b, &index->dim[dim], type), place);
    mp_kid x = with->kind == MP_ARG_VALUE ? mp_expr_cast(b, eval_at(b, with->value, &at), dtype)
                                          : mp_expr_number(b, dtype, with);
    mp_kid self = mp_expr_cast(b, eval_at(b, gnode->args[0].value, index), dtype);
    return b->failed ? 0 : mp_expr_op(b, MP_K_WHERE, dtype, (mp_kid[]){here, x, self});
}

/* roll(self, shifts, dims): each shifted dim is read in two runs. */
mp_kid mp_build_eval_roll(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    const mp_arg *shifts = &gnode->args[1], *dims = &gnode->args[2];
    gather g;
    if (gnode->args[0].kind != MP_ARG_VALUE || shifts->kind != MP_ARG_LIST || dims->kind != MP_ARG_LIST ||
        shifts->list.n != dims->list.n || !start(&g, b, gnode->args[0].value))
        return mp_build_fail(b);
    int64_t shift[MP_MAX_DIMS] = {0};
    for (uint32_t i = 0; i < dims->list.n; i++) {
        int64_t dim = dims->list.items[i].i;
        if (dim < 0) dim += g.source->ndim;
        if (dim < 0 || dim >= g.source->ndim || shifts->list.items[i].kind != MP_ARG_INT) return mp_build_fail(b);
        int64_t size = g.source->size[dim], by = shifts->list.items[i].i % size;
        shift[dim] = (shift[dim] + by + size) % size;
    }
    for (int d = 0; d < g.source->ndim; d++) {
        int64_t stride = g.source->stride[d];
        take_dim(&g, d, &index->dim[d]);
        if (shift[d] == 0) continue;
        if (stride == 1) return mp_build_fail(b); /* torch copies whole runs; lanes that jump would be slower */
        mp_dtype type = g.source->size[d] < INT32_MAX ? MP_I32 : MP_I64;
        mp_kid wraps =
            mp_expr_op2(b, MP_K_LT, mp_expr_index(b, &index->dim[d], type), mp_expr_const(b, type, 0, shift[d]));
        mp_kid both[3] = {wraps, mp_expr_const(b, g.type, 0, (g.source->size[d] - shift[d]) * stride),
                          mp_expr_const(b, g.type, 0, -shift[d] * stride)};
        if (b->failed) return 0;
        mp_kid x = mp_expr_op(b, MP_K_WHERE, g.type, both);
        g.offset = g.offset == MP_NO_KID ? x : mp_expr_op2(b, MP_K_ADD, g.offset, x);
    }
    return b->failed ? 0 : mp_expr_load(b, b->region->owner[gnode->args[0].value], &g.at, g.offset);
}
