/* Products of a plan: magpy.matmul and magpy.grouped nodes, run by the tiles of csrc/gemm on plain memory. */
#ifndef MP_RUN_PRODUCT_H
#define MP_RUN_PRODUCT_H
#include "gemm/node.h"

/* Where a matrix begins: pointers[root] + delta bytes. */
typedef struct {
    mp_val root;
    int64_t delta;
} mp_product_operand;

typedef struct {
    const mp_gnode *node; /* borrowed from the graph */
    mp_gemm gemm;
    mp_product_operand a, b, bias, c;
    bool has_bias;
    int64_t groups, step;    /* of a product of groups of rows (gemm/node.h); else 0 groups */
    mp_product_operand ends; /* its third operand */
} mp_product;

/* The product with its addresses. A side that a chain keeps in scratch memory has the root MP_NO_VAL, and NULL here. */
void mp_product_call(const mp_product *product, char *const *pointers, mp_gemm_call *call);

/* Compute. `pointers` are the addresses of all values' storage. Never fails. */
void mp_product_run(const mp_product *product, char *const *pointers);

#endif
