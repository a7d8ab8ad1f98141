/* A set of nodes -> one kernel: evaluates the nodes' results at indices over the kernel's loops.
**
** The loops come from the group's first reduction (or its largest result). Each node that lies on these loops gets an anchor:
** the index at which an iteration computes it; anchors pass from node to node, through views too. Then everything that must be
** stored is evaluated at its anchor, its operands at the indices that follow, down to loads. Equal (node, index) pairs are one
** expression. Where an index is not affine over the loops, splitting a loop may help: the loops are split and all is done again.
*/
#include "fuse/builder.h"

#include <string.h>

/* The node whose shape gives the loops, and these loops. */
static uint32_t choose_loops(mp_builder *b, mp_loops *loops)
{
    uint32_t conv;
    if (mp_build_conv_loops(b, loops, &conv)) return conv;
    int64_t most = -1;
    uint32_t seed = b->nodes[0];
    bool reduces = false;
    for (uint32_t i = 0; i < b->n_nodes; i++) {
        const mp_gnode *gnode = &b->graph->nodes[b->nodes[i]];
        if (mp_op_reduces(b->region->ops[b->nodes[i]])) {
            const mp_meta *input = &b->graph->metas[gnode->args[0].value];
            uint32_t dims = mp_op_reduced_dims(b->graph, gnode);
            if (mp_build_reduced_numel(input, dims) > 1) {
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

static void build_stores(mp_builder *b)
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
            mp_kid what = mp_build_eval(b, value, b->anchor[i]);
            uint32_t buffer = b->failed ? 0 : mp_expr_buffer(b, value);
            if (b->failed) return;
            b->kir->buffers[buffer].written = true;
            MP_GROW(b->pool, b->kir->stores, b->kir->n_stores, b->cap_stores);
            b->kir->stores[b->kir->n_stores++] = (mp_kstore){
                .buffer = buffer, .at = mp_index_position(b->anchor[i], b->graph->metas[value].stride), .what = what};
        }
    }
}

/* A few long reductions run on few threads: what every iteration stores does not have to. */
static bool starves(const mp_builder *b)
{
    const mp_kir *kir = b->kir;
    int64_t kept = 1, reduced = 1;
    for (uint32_t i = 0; i < b->loops.n; i++) *(b->loops.reduced >> i & 1 ? &reduced : &kept) *= b->loops.extent[i];
    if (b->n_nodes == 1 || kept >= 16 || reduced < 32768) return false;
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (mp_affine_deps(&kir->stores[i].at) & b->loops.reduced) return true;
    return false;
}

#define LINE 16 /* floats */

/* One result is stored along memory, another one across it, each element into a line of its own: where rows are many lines apart, these
** keep each other out of the cache. On its own the other one is turned by tiles. */
static bool scatters(const mp_kir *kir)
{
    bool along = false, across = false;
    for (uint32_t i = 0; i < kir->n_stores && kir->vector >= 0; i++) {
        int64_t step = kir->stores[i].at.coef[kir->vector];
        along |= step == 1;
        across |= step >= LINE && kir->extent[kir->vector] >= LINE;
    }
    return along && across;
}

mp_kir *mp_fuse_build(mp_region *region, const uint32_t *nodes, uint32_t n, mp_pool *pool)
{
    mp_builder b = {
        .region = region, .graph = region->graph, .pool = pool, .nodes = nodes, .n_nodes = n, .pred = MP_NO_KID};
    region->stamp++;
    for (uint32_t i = 0; i < n; i++) {
        region->slot[nodes[i]] = i;
        region->slot_stamp[nodes[i]] = region->stamp;
    }
    uint32_t seed = choose_loops(&b, &b.loops);
    for (int attempt = 0; attempt < 2 * MP_MAX_LOOPS && !b.failed; attempt++) {
        b.anchor = MP_NEW(pool, mp_index *, n);
        b.memos = MP_NEW(pool, mp_memo *, 2 * n);
        b.hash = MP_NEW(pool, uint16_t, MP_BUILD_HASH);
        b.kir = MP_NEW(pool, mp_kir, 1);
        b.cap_exprs = b.cap_stores = b.cap_buffers = 0;
        b.depth = 0;
        b.pred = MP_NO_KID;
        b.kir->conv = b.conv;
        for (int i = 0; i < 2 && b.conv; i++) mp_expr_buffer(&b, b.operands[i]);
        mp_build_anchors(&b, seed);
        if (b.loops.split < 0) build_stores(&b);
        if (b.conv && (b.loops.split >= 0 || b.kir->checks)) return NULL;
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
        return n > 1 && scatters(b.kir) ? NULL : b.kir;
    }
    return NULL;
}
