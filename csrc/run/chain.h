/* Chains of a plan: product, kernel, product by blocks of rows. What lies between is a block's, in scratch memory of the thread, so that a
** large attention never leaves the cache and takes no memory for its scores. The right sides are packed once for each matrix.
*/
#ifndef MP_RUN_CHAIN_H
#define MP_RUN_CHAIN_H
#include "run/parallel.h"
#include "run/product.h"
#include "ir/kernel_ir.h"

typedef struct {
    mp_product first, second;    /* prepared as packed ones */
    uint32_t kernel, n_buffers;  /* the kernel's number and how many buffers it has */
    uint32_t in, out;            /* of its buffers: the first product's result, the second's left side */
    mp_kernel_fn function;       /* of the kernel */
    mp_product_operand *buffers; /* [n_buffers], in the plan's store; `in` and `out` are not used */
    int64_t rows, blocks;        /* of a block; blocks of a matrix */
    int64_t extent, grain;       /* tasks, and how many are worth a thread */
    size_t first_bytes, second_bytes, block_bytes; /* scratch: packed right sides, a block of `in` or `out` */
} mp_chain_call;

/* Choose the blocks; products, in and out are filled in. Returns 0, or -1 if sizes are not covered. */
int mp_chain_prepare(mp_chain_call *chain);

/* Compute. Returns 0, or -1 on no memory for scratch (no exception). */
int mp_chain_run(const mp_chain_call *chain, char *const *pointers);

#endif
