/* Kernel IR -> source text. One walk over the IR; what a target calls things is a table. */
#ifndef MP_CODEGEN_CODEGEN_H
#define MP_CODEGEN_CODEGEN_H
#include "ir/kernel_ir.h"

/* C: outer iterations and how few of them are worth a thread. CUDA: blocks, and threads in a block. */
typedef struct {
    int64_t extent, grain;
} mp_codegen_launch;

#define MP_CODEGEN_RUN 6144 /* the most elements that one run of a vector loop takes in kernels without reductions */

/* Sources are made of sections between `#if MP_SECTION(number)` and `#endif`, behind this and what all share. With MP_PARTS and MP_PART defined, a
** compilation takes those of one part: several of them, side by side, make the whole. */
#define MP_CODEGEN_SECTIONS                                                                                            \
    "#ifndef MP_PARTS\n#define MP_PARTS 1\n#define MP_PART 0\n#endif\n"                                                \
    "#define MP_SECTION(n) ((n) % MP_PARTS == MP_PART)\n"

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
