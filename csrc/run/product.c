/* Products: their run on torch's threads. */
#include "run/product.h"
#include "run/parallel.h"

static void run_part(void *const *buffers, int64_t begin, int64_t end) { mp_gemm_run(buffers[0], begin, end); }

static void *at(const mp_product_operand *operand, char *const *pointers)
{ return operand->root == MP_NO_VAL ? NULL : pointers[operand->root] + operand->delta; }

void mp_product_call(const mp_product *product, char *const *pointers, mp_gemm_call *call)
{
    *call = (mp_gemm_call){
        .gemm = &product->gemm,
        .a = at(&product->a, pointers),
        .b = at(&product->b, pointers),
        .bias = product->has_bias ? at(&product->bias, pointers) : NULL,
        .c = at(&product->c, pointers),
    };
}

void mp_product_run(const mp_product *product, char *const *pointers)
{
    mp_gemm_call call;
    mp_product_call(product, pointers, &call);
    void *const buffers[] = {&call};
    mp_parallel_run(run_part, buffers, product->gemm.extent, product->gemm.grain);
}
