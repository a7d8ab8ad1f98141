/* Elements at places that are data: embedding, index_select, gather, index.
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

mp_kid mp_build_eval_gather(mp_builder *b, const mp_gnode *gnode, const mp_index *index)
{
    mp_val value = gnode->args[0].value, owner = b->region->owner[value];
    uint32_t maker = b->graph->node_of[owner];
    const mp_meta *source = &b->graph->metas[value], *base = &b->graph->metas[owner];
    if (mp_build_member(b, maker) || b->region->constant[maker] || source->dtype != base->dtype)
        return mp_build_fail(b);
    int64_t reach = 0;
    for (int d = 0; d < source->ndim; d++) reach += (source->size[d] - 1) * source->stride[d];
    gather g = {.b = b,
                .source = source,
                .at = mp_affine_const(source->offset - base->offset),
                .offset = MP_NO_KID,
                .type = reach < INT32_MAX ? MP_I32 : MP_I64,
                .wrap = strstr(gnode->op, "index.Tensor") != NULL};
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
    return mp_expr_load(b, owner, &g.at, g.offset);
}
