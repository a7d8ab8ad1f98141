/* Where on the loops of a kernel its nodes lie: anchors pass from node to node, through views too. */
#include "fuse/builder.h"

#include <string.h>

/* -- Indices of operands ------------------------------------------------------------------------------------------- */

/* Where a broadcast operand is read when the result is computed at `index`. */
mp_index mp_build_operand_index(const mp_meta *result, const mp_index *index, const mp_meta *operand)
{
    mp_index out;
    memset(&out, 0, sizeof out);
    out.ndim = operand->ndim;
    int shift = result->ndim - operand->ndim;
    for (int d = 0; d < operand->ndim && d + shift < result->ndim; d++)
        if (operand->size[d] != 1 && d + shift >= 0) out.dim[d] = index->dim[d + shift];
    return out;
}

int64_t mp_build_reduced_numel(const mp_meta *input, uint32_t dims)
{
    int64_t n = 1;
    for (int d = 0; d < input->ndim; d++)
        if (dims >> d & 1) n *= input->size[d];
    return n;
}

/* Where a reduction reads its input, when its result is at `index`. False if the reduced loops do not run over its dims. */
bool mp_build_reduce_index(mp_builder *b, const mp_meta *input, uint32_t dims, const mp_index *index, mp_index *out)
{
    memset(out, 0, sizeof *out);
    out->ndim = input->ndim;
    bool keepdim = index->ndim == input->ndim && (dims & ((1u << input->ndim) - 1));
    for (int d = 0, from = 0; d < input->ndim; d++) {
        bool reduced = dims >> d & 1;
        if (!reduced && input->size[d] != 1) out->dim[d] = index->dim[keepdim ? d : from];
        if (!reduced || keepdim) from++;
    }
    int64_t n = mp_build_reduced_numel(input, dims), loops = 1;
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
bool mp_build_owner_index(mp_builder *b, mp_val value, const mp_index *index, mp_index *out)
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

/* Make `index` the anchor of a group node if it can be one. Returns true if it was set. */
static bool set_anchor(mp_builder *b, uint32_t node, const mp_index *index)
{
    mp_index **anchor = &b->anchor[b->region->slot[node]];
    const mp_meta *meta = &b->graph->metas[b->graph->nodes[node].first];
    if (*anchor) return false;
    bool reduces = mp_op_reduces(b->region->ops[node]);
    bool full = !reduces && mp_index_bijective(&b->loops, index, meta->size, mp_build_all_loops(b));
    if (!full && !mp_index_bijective(&b->loops, index, meta->size, mp_build_kept_loops(b))) return false;
    *anchor = MP_NEW(b->pool, mp_index, 1);
    **anchor = *index;
    return true;
}

/* From an anchored node to its operands. */
static bool anchor_operands(mp_builder *b, uint32_t node, const mp_arg *args, uint32_t n)
{
    const mp_gnode *gnode = &b->graph->nodes[node];
    const mp_op *op = b->region->ops[node];
    const mp_index *index = b->anchor[b->region->slot[node]];
    if (op->class_ != MP_OP_POINT && !mp_op_reduces(op)) return false;
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind != MP_ARG_VALUE) continue;
        mp_val value = args[i].value, owner = b->region->owner[value];
        uint32_t maker = b->graph->node_of[owner];
        if (!mp_build_member(b, maker) || b->anchor[b->region->slot[maker]]) continue;
        mp_index operand, own;
        if (op->class_ == MP_OP_POINT) {
            operand = mp_build_operand_index(&b->graph->metas[gnode->first], index, &b->graph->metas[value]);
        } else {
            uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
            if (!mp_build_reduce_index(b, &b->graph->metas[value], dims, index, &operand)) continue;
        }
        if (mp_build_owner_index(b, value, &operand, &own)) any |= set_anchor(b, maker, &own);
    }
    return any;
}

/* From an anchored operand to the node. */
static bool anchor_from_operand(mp_builder *b, uint32_t node, mp_val value)
{
    mp_val owner = b->region->owner[value];
    uint32_t maker = b->graph->node_of[owner];
    if (!mp_build_member(b, maker)) return false;
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
static bool anchor_default(mp_builder *b, uint32_t node)
{
    const mp_meta *meta = &b->graph->metas[b->graph->nodes[node].first];
    int64_t stride[MP_MAX_DIMS], numel = mp_meta_numel(meta), full = 1, kept = 1;
    for (uint32_t i = 0; i < b->loops.n; i++) {
        full *= b->loops.extent[i];
        if (!(b->loops.reduced >> i & 1)) kept *= b->loops.extent[i];
    }
    bool reduces = mp_op_reduces(b->region->ops[node]);
    if (numel != kept && (numel != full || reduces)) return false;
    mp_affine at = mp_loops_linear(&b->loops, numel == kept ? mp_build_kept_loops(b) : mp_build_all_loops(b));
    mp_contiguous_strides(meta->ndim, meta->size, stride);
    mp_index index;
    return mp_index_from_position(&b->loops, &at, meta->ndim, meta->size, stride, &index) &&
           set_anchor(b, node, &index);
}

void mp_build_anchors(mp_builder *b, uint32_t seed)
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
            const mp_op *op = b->region->ops[b->nodes[i]];
            if (op->class_ != MP_OP_POINT && !mp_op_reduces(op)) continue;
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
