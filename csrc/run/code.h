/* Code: generated C made into functions, by the compiler or from the kernel cache. */
#ifndef MP_RUN_CODE_H
#define MP_RUN_CODE_H
#include "magpy.h"

typedef struct mp_code mp_code; /* a loaded shared object */

/* Compile `source` or find it in the cache, and load it. Its `sections` (codegen/codegen.h) may be compiled side by side, 0 or 1: it has none.
** `vector_bits`: preferred width. Returns an owned object, or NULL with *why set (NO_COMPILER, COMPILE_FAILED). The GIL is released while a
** compiler runs. */
mp_code *mp_code_load(const char *source, uint32_t sections, int vector_bits, mp_reason *why);
void mp_code_free(mp_code *code); /* NULL is fine */

/* Address of function `name`, or NULL. */
void *mp_code_symbol(const mp_code *code, const char *name);
/* Where the C source is kept, or "" if it is not (cache unusable). Borrowed. */
const char *mp_code_source_path(const mp_code *code);

#endif
