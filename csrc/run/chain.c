/* Chains: blocks of rows through two products and the kernel between them. */
#include "run/chain.h"

#include <stdatomic.h>
#include <string.h>

#define BLOCK_BYTES                                                                                                    \
    (1 << 17)   /* of a block between the products: two of them and a panel stay in the second level cache */
#define STEP 12 /* rows of the largest tile */
#define MIN_BLOCK 24
#define MAX_BLOCK 192
#define GRAIN (1 << 19) /* multiplications worth a thread */

static int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

static size_t padded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

int mp_chain_prepare(mp_chain_call *chain)
{
    mp_gemm *first = &chain->first.gemm, *second = &chain->second.gemm;
    if (mp_gemm_prepare_packed(first, mp_gemm_bits) < 0 || mp_gemm_prepare_packed(second, mp_gemm_bits) < 0) return -1;
    int64_t row_bytes = first->n * (int64_t)sizeof(float), rows = BLOCK_BYTES / row_bytes / STEP * STEP;
    rows = rows < MIN_BLOCK ? MIN_BLOCK : rows > MAX_BLOCK ? MAX_BLOCK : rows;
    rows = pieces(pieces(first->m, pieces(first->m, rows)), STEP) * STEP; /* blocks of about the same size */
    chain->rows = rows;
    chain->blocks = pieces(first->m, rows);
    chain->extent = first->extent * chain->blocks;
    int64_t work = rows * first->n * (first->k + second->n);
    chain->grain = work < GRAIN ? GRAIN / (work > 0 ? work : 1) : 1;
    chain->first_bytes = padded(first->scratch);
    chain->second_bytes = padded(second->scratch);
    chain->block_bytes = padded((size_t)(rows * row_bytes));
    return 0;
}

typedef struct {
    const mp_chain_call *chain;
    char *const *pointers;
    mp_gemm_call first, second;
    atomic_bool failed;
} run;

static char *at(const mp_product_operand *operand, char *const *pointers)
{ return pointers[operand->root] + operand->delta; }

/* Where row 0 of everything would begin for row `row` to begin at `block`: kernels count rows from the first. */
static void *as_if_whole(float *block, int64_t row, int64_t length)
{ return (void *)((uintptr_t)block - (uintptr_t)(row * length) * sizeof(float)); }

static void run_part(void *const *context, int64_t begin, int64_t end)
{
    run *r = context[0];
    const mp_chain_call *chain = r->chain;
    int64_t m = chain->first.gemm.m, length = chain->first.gemm.n, packed = -1;
    char *scratch = mp_gemm_scratch(1, chain->first_bytes + chain->second_bytes + 2 * chain->block_bytes);
    if (!scratch) {
        atomic_store(&r->failed, true);
        return;
    }
    float *left = (float *)scratch, *right = (float *)(scratch + chain->first_bytes);
    float *in = (float *)(scratch + chain->first_bytes + chain->second_bytes);
    float *out = (float *)((char *)in + chain->block_bytes);
    void *buffers[MP_MAX_BUFFERS];
    for (uint32_t k = 0; k < chain->n_buffers; k++)
        if (k != chain->in && k != chain->out) buffers[k] = at(&chain->buffers[k], r->pointers);
    for (int64_t task = begin; task < end; task++) {
        int64_t batch = task / chain->blocks, row = task % chain->blocks * chain->rows;
        int64_t rows = m - row < chain->rows ? m - row : chain->rows, whole = batch * m + row;
        if (batch != packed) {
            mp_gemm_pack(&r->first, batch, left);
            mp_gemm_pack(&r->second, batch, right);
            packed = batch;
        }
        mp_gemm_rows(&r->first, batch, left, row, rows, NULL, in);
        buffers[chain->in] = as_if_whole(in, whole, length);
        buffers[chain->out] = as_if_whole(out, whole, length);
        chain->function(buffers, whole, whole + rows);
        mp_gemm_rows(&r->second, batch, right, row, rows, out, NULL);
    }
}

int mp_chain_run(const mp_chain_call *chain, char *const *pointers)
{
    run r = {.chain = chain, .pointers = pointers};
    mp_product_call(&chain->first, pointers, &r.first);
    mp_product_call(&chain->second, pointers, &r.second);
    void *const context[] = {&r};
    mp_parallel_run(run_part, context, chain->extent, chain->grain);
    return atomic_load(&r.failed) ? -1 : 0;
}
