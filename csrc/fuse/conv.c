/* Kernels with a convolution: their loops, and what its sums are called. */
#include "fuse/builder.h"

#include <string.h>

bool mp_build_conv_loops(mp_builder *b, mp_loops *loops, uint32_t *seed)
{
    const mp_gnode *conv = NULL;
    bool others = false;
    for (uint32_t i = 0; i < b->n_nodes; i++) {
        const mp_op *op = b->region->ops[b->nodes[i]];
        others |= mp_op_reduces(op) || (op->class_ == MP_OP_CONV && conv);
        if (op->class_ == MP_OP_CONV) conv = &b->graph->nodes[ *seed = b->nodes[i]];
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
        if (mp_build_member(b, b->graph->node_of[owner])) b->failed = true;
        b->operands[i] = owner;
    }
    return true;
}

mp_kid mp_build_eval_conv(mp_builder *b, uint32_t node, const mp_gnode *gnode, const mp_index *index)
{
    const mp_index *anchor = mp_build_member(b, node) ? b->anchor[b->region->slot[node]] : NULL;
    if (!anchor || b->pred != MP_NO_KID || memcmp(anchor, index, sizeof *index) != 0) return mp_build_fail(b);
    mp_kexpr e = mp_expr_blank(MP_K_TILE, MP_F32);
    e.deps = mp_build_all_loops(b);
    e.cost = 1;
    mp_kid sum = mp_expr_intern(b, &e);
    if (gnode->args[2].kind != MP_ARG_VALUE || b->failed) return sum;
    mp_index *at = MP_NEW(b->pool, mp_index, 1);
    at->ndim = 1;
    at->dim[0] = index->dim[1];
    return mp_expr_op2(b, MP_K_ADD, sum, mp_build_eval_value(b, gnode->args[2].value, at));
}
