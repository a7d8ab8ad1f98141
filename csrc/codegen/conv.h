/* Convolutions: a library of C that is compiled once for a machine, and printed functions that work on its sums. */
#ifndef MP_CODEGEN_CONV_H
#define MP_CODEGEN_CONV_H
#include "codegen/codegen.h"

/* What happens to sums while they are in cache: tile[(c - c0) * row + q - q0] belongs to image n, channel c in [c0, c1), position q in
** [q0, q1). `buffers` are the kernel's. */
typedef void (*mp_conv_epilogue)(void *const *buffers, const float *tile, int64_t row, int64_t n, int64_t c0,
                                 int64_t c1, int64_t q0, int64_t q1);

/* The first buffer of a call of the library, mp_conv_run(buffers, begin, end); the workspace and the kernel's buffers follow. With a
** workspace, mp_conv_prepare with the same buffers is to run over all of its n_prepare items before. */
typedef struct {
    mp_conv conv;
    mp_conv_epilogue epilogue; /* NULL: sums are stored to the kernel's buffer 2 */
    float *(*scratch)(
        int64_t floats); /* memory of this thread until its next call, aligned to 64 bytes; NULL if there is none */
} mp_conv_call;

/* Append the kernel's epilogue as an mp_conv_epilogue. False, and nothing, if there is nothing to do with sums but to store them. */
bool mp_codegen_conv(const mp_kir *kir, mp_text *out, mp_codegen_launch *launch);

#define MP_CODEGEN_CONV_SECTIONS 5
/* The library's whole source: void mp_conv_run(void *const *buffers, int64_t begin, int64_t end), mp_conv_prepare likewise. */
void mp_codegen_conv_library(mp_text *out);

/* Its text behind the declaration of mp_conv, in three parts. Static storage. */
extern const char mp_codegen_conv_text[], mp_codegen_conv_winograd[], mp_codegen_conv_entry[];

#endif
