/* Convolutions at run time: the loaded library, and the memory it works in. */
#ifndef MP_RUN_CONV_H
#define MP_RUN_CONV_H
#include "codegen/conv.h"

/* A function of the library, which is compiled or found in the kernel cache once per process. Returns NULL with *why set. GIL held. */
void *mp_conv_function(const char *name, int vector_bits, mp_reason *why);

/* At least `floats` floats, aligned to 64 bytes, the same memory at each call on one thread; freed when the thread ends. NULL without
** memory. Needs no GIL. */
float *mp_conv_scratch(int64_t floats);

#endif
