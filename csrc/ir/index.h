/* Index arithmetic: positions in a tensor as affine functions of loops, and their way through views. */
#ifndef MP_IR_INDEX_H
#define MP_IR_INDEX_H
#include "ir/kernel_ir.h"

/* One affine function for each dim. Dims beyond ndim are zero (so that indices compare by memcmp). */
typedef struct {
    int ndim;
    mp_affine dim[MP_MAX_DIMS];
} mp_index;

/* The loops an index runs over. `split` and `factor` answer a position that only a split of a loop can express: loop `split`
** is to become two, the inner one with extent `factor`. */
typedef struct {
    uint32_t n;
    int64_t extent[MP_MAX_LOOPS];
    uint32_t reduced; /* bit set */
    int split;        /* -1: none was asked for */
    int64_t factor;
} mp_loops;

mp_affine mp_affine_const(int64_t value);
mp_affine mp_affine_loop(uint32_t loop, int64_t coef);
void mp_affine_add(mp_affine *into, const mp_affine *what, int64_t times);
uint32_t mp_affine_deps(const mp_affine *at);

/* Row-major number of the iteration, over the loops of `which` (bit set) only. */
mp_affine mp_loops_linear(const mp_loops *loops, uint32_t which);

/* Split loop `loops->split` and clear the request. Returns false if there is no room or nothing was asked. */
bool mp_loops_split(mp_loops *loops);

/* Element position (in elements of storage) of an index in a tensor with these strides; the offset is not added. */
mp_affine mp_index_position(const mp_index *index, const int64_t *stride);

/* The index in a tensor of this size and these strides whose position is `at`. Returns false if there is none that is affine
** for all iterations; loops->split may then say what would help. */
bool mp_index_from_position(mp_loops *loops, const mp_affine *at, int ndim, const int64_t *size, const int64_t *stride,
                            mp_index *out);

/* Does the index meet every element exactly once when exactly the loops of `which` run? */
bool mp_index_bijective(const mp_loops *loops, const mp_index *index, const int64_t *size, uint32_t which);

/* Row-major strides for a size. */
void mp_contiguous_strides(int ndim, const int64_t *size, int64_t *stride);

#endif
