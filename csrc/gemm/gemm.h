/* Matrix products of float on plain memory: C = A B + bias for any strides of A and B, one or many of them.
**
** A register tile multiplies a panel of vectors by broadcast numbers. Either the rows of A lie in the lanes (form ROWS: A is copied
** into panels, B is read where it lies, whatever its strides) or the columns of B do (form COLUMNS: the reverse); few rows of A against
** rows that are adjacent in memory are dot products (form DOTS). No matrix is copied as a whole, but the caller may give B packed. The
** sum over k is taken in the same order for every element, however the work is divided: results do not depend on the number of threads.
**
** Pure C on memory: nothing here knows torch or Python. The code exists for vectors of 512, 256 and 128 bits; the CPU decides at run time.
*/
#ifndef MP_GEMM_GEMM_H
#define MP_GEMM_GEMM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MP_GEMM_MAX_BATCH 6

typedef enum { MP_GEMM_ROWS, MP_GEMM_COLUMNS, MP_GEMM_DOTS } mp_gemm_form;

typedef struct {
    /* Given. Strides are in elements and never negative; the columns of C are adjacent. */
    int64_t m, n, k;
    int64_t a_row, a_col; /* A [m, k] */
    int64_t b_row, b_col; /* B [k, n] */
    bool packed;          /* B, of all batches, is as mp_gemm_pack leaves it; its strides do not count */
    int64_t c_row;        /* C [m, n]: elements do not overlap */
    int n_batch;
    int64_t batch[MP_GEMM_MAX_BATCH], a_batch[MP_GEMM_MAX_BATCH], b_batch[MP_GEMM_MAX_BATCH],
        c_batch[MP_GEMM_MAX_BATCH];
    /* Filled in by mp_gemm_prepare. */
    mp_gemm_form form;
    int bits;                    /* of vectors */
    int64_t block, chunk, depth; /* lanes of a packed block, numbers of the other side in a task, k at a time */
    int64_t blocks, chunks;      /* how many */
    int64_t extent, grain;       /* tasks, small ones, of which a thread runs many together; how many are worth it */
    size_t scratch;              /* bytes that a thread needs */
} mp_gemm;

/* Choose the form and the blocks. `bits`: vector width to use, 0 for the CPU's. Returns 0, or -1 for sizes or strides not covered. */
int mp_gemm_prepare(mp_gemm *gemm, int bits);

/* Where the matrices are; `bias` [n] may be NULL. `gemm` is prepared. All borrowed. */
typedef struct {
    const mp_gemm *gemm;
    const float *a, *b, *bias;
    float *c;
} mp_gemm_call;

/* Compute tasks [begin, end) of [0, extent); disjoint ranges may run on different threads. Never fails: without memory to pack into it
** computes slowly. */
void mp_gemm_run(const mp_gemm_call *call, int64_t begin, int64_t end);

/* -- One side kept packed: for callers that walk over the rows of C themselves ------------------------------------------ */

/* Prepare for the two functions below: form COLUMNS, `scratch` is the bytes of a packed B. Returns as mp_gemm_prepare. */
int mp_gemm_prepare_packed(mp_gemm *gemm, int bits);

/* Floats of a packed B [k, n]. */
int64_t mp_gemm_packed_size(int64_t k, int64_t n, int bits);

/* Copy B of matrix number `batch` into `packed`: panels of as many columns as two vectors have lanes, or one at the end, [k][columns] each. */
void mp_gemm_pack(const mp_gemm_call *call, int64_t batch, float *packed);

/* Rows [row, row + rows) of C of matrix `batch`, from its packed B. `a` and `c` are where these rows of A and C begin, or NULL for their
** places in the call. */
void mp_gemm_rows(const mp_gemm_call *call, int64_t batch, const float *packed, int64_t row, int64_t rows,
                  const float *a, float *c);

/* Memory of this thread of at least `bytes`, aligned to 64, kept until the thread ends or asks for more; NULL on no memory. Two
** `slot`s (0 is mp_gemm_run's own). */
void *mp_gemm_scratch(int slot, size_t bytes);

#endif
