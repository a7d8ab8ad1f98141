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

static void run_call(mp_gemm_call *call)
{
    void *const buffers[] = {call};
    mp_parallel_run(run_part, buffers, call->gemm->extent, call->gemm->grain);
}

/* Rows between the ends of groups, as slices of the rows that there are; rows of no group are left as they are. */
static void run_groups(const mp_product *product, char *const *pointers)
{
    const mp_gemm *whole = &product->gemm;
    const int32_t *ends = at(&product->ends, pointers);
    mp_gemm_call call;
    mp_product_call(product, pointers, &call);
    const float *a = call.a, *b = call.b;
    float *c = call.c;
    for (int64_t g = 0, row = 0; g < product->groups; g++) {
        int64_t end = ends[g] < 0 ? 0 : ends[g] > whole->m ? whole->m : ends[g];
        mp_gemm rows = {.m = end - row, .n = whole->n, .k = whole->k, .a_row = whole->a_row, .a_col = whole->a_col};
        rows.b_row = whole->b_row, rows.b_col = whole->b_col, rows.c_row = whole->c_row;
        if (rows.m > 0 && !mp_gemm_prepare(&rows, whole->bits)) {
            call.gemm = &rows;
            call.a = a + row * whole->a_row;
            call.b = b + g * product->step;
            call.c = c + row * whole->c_row;
            run_call(&call);
        }
        row = end;
    }
}

void mp_product_run(const mp_product *product, char *const *pointers)
{
    mp_gemm_call call;
    if (product->groups) {
        run_groups(product, pointers);
        return;
    }
    mp_product_call(product, pointers, &call);
    run_call(&call);
}
