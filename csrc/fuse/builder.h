/* Builder: the making of one kernel from a set of nodes, shared by the files that do it.
**
** build.c chooses loops and stores; anchor.c finds where on the loops each node lies; eval.c, formula.c and gather.c evaluate nodes to
** expressions; expr.c makes these, each once. A step that cannot go on sets b->failed, and everything after it is skipped: no
** caller checks more than it needs to. All memory is of the pool.
*/
#ifndef MP_FUSE_BUILDER_H
#define MP_FUSE_BUILDER_H
#include "fuse/region.h"

typedef struct mp_memo {
    struct mp_memo *next;
    mp_index index;
    mp_kid pred, result;
} mp_memo;

typedef struct {
    mp_region *region;
    const mp_graph *graph;
    mp_pool *pool;
    const uint32_t *nodes; /* borrowed, ascending */
    uint32_t n_nodes;
    mp_loops loops;
    mp_index **anchor;  /* [n_nodes], NULL: none */
    mp_memo **memos;    /* [n_nodes * 2]: for the first two values of each node */
    mp_conv *conv;      /* the convolution among the nodes, or NULL */
    mp_val operands[2]; /* its input and weight */
    mp_kir *kir;
    uint32_t cap_exprs, cap_stores, cap_buffers;
    uint16_t *hash; /* [MP_BUILD_HASH]: expression number + 1 */
    mp_kid pred;    /* condition under which loads are allowed, or MP_NO_KID */
    int depth;
    bool failed;
} mp_builder;

#define MP_BUILD_HASH 4096

/* Give up. Returns a number that is valid as long as nobody looks. */
static inline mp_kid mp_build_fail(mp_builder *b)
{
    b->failed = true;
    return 0;
}

/* Is the node one of the kernel's? */
static inline bool mp_build_member(const mp_builder *b, uint32_t node)
{ return b->region->slot_stamp[node] == b->region->stamp; }
static inline uint32_t mp_build_all_loops(const mp_builder *b) { return (1u << b->loops.n) - 1; }
static inline uint32_t mp_build_kept_loops(const mp_builder *b) { return mp_build_all_loops(b) & ~b->loops.reduced; }

/* -- Expressions (expr.c): each returns the number of an expression equal to the one described ----------------------- */

mp_kid mp_expr_intern(mp_builder *b, const mp_kexpr *e);
mp_kexpr mp_expr_blank(mp_kop op, mp_dtype dtype);
/* `f` counts for floating types, `i` for others. */
mp_kid mp_expr_const(mp_builder *b, mp_dtype dtype, double f, int64_t i);
mp_kid mp_expr_number(mp_builder *b, mp_dtype dtype, const mp_arg *arg);
mp_kid mp_expr_op(mp_builder *b, mp_kop op, mp_dtype dtype, const mp_kid *args);
mp_kid mp_expr_op1(mp_builder *b, mp_kop op, mp_kid x);
mp_kid mp_expr_op2(mp_builder *b, mp_kop op, mp_kid x, mp_kid y);
mp_kid mp_expr_cast(mp_builder *b, mp_kid x, mp_dtype dtype);
mp_kid mp_expr_index(mp_builder *b, const mp_affine *at, mp_dtype dtype);
/* The number of the value's buffer. */
uint32_t mp_expr_buffer(mp_builder *b, mp_val value);
/* The element at `at`, and `offset` (an integer, or MP_NO_KID) behind it. */
mp_kid mp_expr_load(mp_builder *b, mp_val value, const mp_affine *at, mp_kid offset);
/* x if it is an index of a dim of `size` elements; otherwise 0, and the kernel says so. */
mp_kid mp_expr_check(mp_builder *b, mp_kid x, int64_t size, bool wrap);
/* Sum and the like of x over the reduced loops. */
mp_kid mp_expr_reduce(mp_builder *b, mp_reduction kind, mp_kid x);
/* x to the power of a known number, as ATen special-cases it; MP_NO_KID if it is no special case. */
mp_kid mp_expr_power(mp_builder *b, mp_kid x, mp_kid y);

/* -- Convolutions (conv.c) ----------------------------------------------------------------------------------------------- */

/* With a convolution among the nodes the loops are the dims of its result; its input and weight must come from outside. Returns false
** if there is none. */
bool mp_build_conv_loops(mp_builder *b, mp_loops *loops, uint32_t *seed);
/* The convolution's sum, where the kernel's loops compute it, and its bias. */
mp_kid mp_build_eval_conv(mp_builder *b, uint32_t node, const mp_gnode *gnode, const mp_index *index);

/* -- Where nodes lie (anchor.c) ---------------------------------------------------------------------------------------- */

/* Where a broadcast operand is read when the result is computed at `index`. */
mp_index mp_build_operand_index(const mp_meta *result, const mp_index *index, const mp_meta *operand);
int64_t mp_build_reduced_numel(const mp_meta *input, uint32_t dims);
/* Where a reduction reads its input, when its result is at `index`. False if the reduced loops do not run over its dims. */
bool mp_build_reduce_index(mp_builder *b, const mp_meta *input, uint32_t dims, const mp_index *index, mp_index *out);
/* The owner's index that belongs to an index of its view `value`. False if there is none. */
bool mp_build_owner_index(mp_builder *b, mp_val value, const mp_index *index, mp_index *out);
/* Anchors for all nodes that lie on the loops, beginning with `seed`. */
void mp_build_anchors(mp_builder *b, uint32_t seed);

/* -- What nodes compute (eval.c, formula.c, gather.c) ------------------------------------------------------------------------------ */

/* The result `value` of a node of the kernel, or a constant, at an index. */
mp_kid mp_build_eval(mp_builder *b, mp_val value, const mp_index *index);
/* Any value at an index: computed, or loaded. */
mp_kid mp_build_eval_value(mp_builder *b, mp_val value, const mp_index *index);
mp_kid mp_build_eval_point(mp_builder *b, const mp_gnode *gnode, const mp_op *op, const mp_index *index);
mp_kid mp_build_eval_gather(mp_builder *b, const mp_gnode *gnode, const mp_index *index);
mp_kid mp_build_eval_scatter(mp_builder *b, const mp_gnode *gnode, const mp_index *index);
mp_kid mp_build_eval_roll(mp_builder *b, const mp_gnode *gnode, const mp_index *index);

#endif
