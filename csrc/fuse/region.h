/* Region: what the parts of fuse share while a schedule is made: the graph with its operators' classes, views and users. */
#ifndef MP_FUSE_REGION_H
#define MP_FUSE_REGION_H
#include "fuse/schedule.h"
#include "ir/index.h"
#include "ir/ops.h"

#define MP_NO_GROUP UINT32_MAX
#define MP_NO_NODE UINT32_MAX

typedef struct {
    const mp_graph *graph;
    mp_pool *pool;      /* lives as long as the schedule */
    mp_pool scratch;    /* reset by every attempt to build a kernel */
    const mp_op **ops;  /* [n_nodes] */
    mp_val *owner;      /* [n_values]: whose storage it is a view of; itself if it is no view */
    bool *constant;     /* [n_nodes]: a POINT without tensor operands; kernels compute it wherever they need it */
    uint32_t **users;   /* [n_values], for owners: nodes that use it or a view of it, views themselves not counted */
    uint32_t *n_users;  /* [n_values] */
    bool *is_output;    /* [n_values], for owners: it or a view of it is an output of the graph */
    uint32_t *group_of; /* [n_nodes]: MP_NO_GROUP for views, inputs, operators and constants */
    uint32_t
        *after;     /* [n_nodes]: the operator with an effect (random numbers) that must run before it, or MP_NO_NODE */
    uint32_t *slot; /* [n_nodes]: the builder's */
    uint32_t *slot_stamp; /* [n_nodes]: the builder's */
    uint32_t stamp;
} mp_region;

/* Must the result be in memory when exactly `nodes` are one kernel? */
bool mp_region_stored(const mp_region *region, mp_val value);

/* The kernel of `nodes` (ascending), in `pool` (which may be the region's scratch). NULL if they cannot or should not be one. */
mp_kir *mp_fuse_build(mp_region *region, const uint32_t *nodes, uint32_t n, mp_pool *pool);

/* Put every node that kernels cover into a group, so that groups can run one after another. Returns the number of groups. */
uint32_t mp_fuse_group(mp_region *region);

/* Elements r of which iteration i of a kernel that has a row in its vector lanes touches exactly [i * r, (i + 1) * r) in the buffer; 0 if
** there is no such r. */
int64_t mp_fuse_row(const mp_kir *kir, uint32_t buffer);

/* Let products and the kernel between them run together where that is possible: changes steps and places. */
void mp_fuse_chain(mp_schedule *schedule, const mp_region *region, mp_place *places, mp_pool *pool);

/* Order the loops of a finished kernel, join loops that run through memory together, choose the vector loop. */
void mp_fuse_order_loops(mp_kir *kir);

/* The loops of a convolution's kernel, which are its result's dims, as image, channel and position. False if they do not all
** run over positions in one step. */
bool mp_fuse_conv_loops(mp_kir *kir);

#endif
