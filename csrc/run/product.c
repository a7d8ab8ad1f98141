/* Products: their run on torch's threads. */
#include "run/product.h"
#include "run/parallel.h"

static void run_part(void *const *buffers, int64_t begin, int64_t end) { mp_gemm_run(buffers[0], begin, end); }

static char *at(const mp_product_operand *operand, char *const *pointers)
{ return pointers[operand->root] + operand->delta; }

void mp_product_run(const mp_product *product, char *const *pointers)
{
    mp_gemm_call call = {
        .gemm = &product->gemm,
        .a = (const float *)at(&product->a, pointers),
        .b = (const float *)at(&product->b, pointers),
        .bias = product->has_bias ? (const float *)at(&product->bias, pointers) : NULL,
        .c = (float *)at(&product->c, pointers),
    };
    void *const buffers[] = {&call};
    mp_parallel_run(run_part, buffers, product->gemm.extent, product->gemm.grain);
}
