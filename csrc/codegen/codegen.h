/* Kernel IR -> source text. One walk over the IR; what a target calls things is a table. */
#ifndef MP_CODEGEN_CODEGEN_H
#define MP_CODEGEN_CODEGEN_H
#include "ir/kernel_ir.h"

/* C: outer iterations and how few of them are worth a thread. CUDA: blocks, and threads in a block. */
typedef struct {
    int64_t extent, grain;
} mp_codegen_launch;

#define MP_CODEGEN_RUN 6144 /* the most elements that one run of a vector loop takes in kernels without reductions */

/* Types and vector math that all C kernels of a source share; it comes first, once. */
void mp_codegen_c_prelude(mp_text *out);

/* Append the kernel as `void NAME(void *const *restrict buffers, int64_t begin, int64_t end)`. One that checks indices has one more
** buffer, an int that becomes 1 if an index was out of range. */
void mp_codegen_c(const mp_kir *kir, int vector_bits, mp_text *out, mp_codegen_launch *launch);

/* Append a complete CUDA source with the kernel. False (and nothing useful in `out`) if its form is not covered. */
bool mp_codegen_cuda(const mp_kir *kir, mp_text *out, mp_codegen_launch *launch);

/* The math part of the C prelude. Static storage. */
extern const char mp_codegen_vecmath[];
extern const char mp_codegen_vecmath_angles[]; /* behind it */

#endif
