/* Elements of 16 bits by blocks: see half.c. */
#ifndef MP_CODEGEN_HALF_H
#define MP_CODEGEN_HALF_H
#include "codegen/c_kernel.h"

#define MP_HALF_BLOCK 1024 /* elements where a loop may be cut anywhere */

/* The conversions of blocks, as C. Static storage. */
extern const char mp_codegen_half_text[];

/* Is there anything to convert by blocks in a vector loop for what is needed now and for the stores in `stored` ([n_stores])? Chooses it:
** until mp_half_end, such loads and stores are of arrays instead. */
bool mp_half_choose(mp_c_kernel *k, const bool *stored);

/* Print the arrays, for `most` elements, and the conversions of what is read from `begin` up to `end` of the vector loop. */
void mp_half_begin(mp_c_kernel *k, const char *begin, const char *end, int64_t most);

/* Print the conversions of what was stored. */
void mp_half_store(mp_c_kernel *k, const char *begin, const char *end);

/* Print the arrays and conversions of what several passes over a row of one loop read, at the row's begin. They stay for the kernel. */
void mp_half_rows(mp_c_kernel *k);

/* Loads and stores are of memory again. */
void mp_half_end(mp_c_kernel *k);

#endif
