/* Pool: memory of one owner, freed at once. Running out leaves through the owner's jump, so callers never check.
**
** The owner sets `escape` with setjmp before the first allocation; nothing that is owned outside of the pool may be held where
** the jump passes. Memory comes zeroed and aligned to 16 bytes.
*/
#ifndef MP_IR_POOL_H
#define MP_IR_POOL_H
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mp_pool_block mp_pool_block;

typedef struct {
    mp_pool_block *head; /* owned; the block that is being filled */
    size_t used;         /* bytes used of it */
    jmp_buf *escape;     /* borrowed; where to go without memory */
} mp_pool;

void *mp_pool_get(mp_pool *pool, size_t bytes);
char *mp_pool_printf(mp_pool *pool, const char *format, ...) __attribute__((format(printf, 2, 3)));
void mp_pool_reset(mp_pool *pool); /* forget everything, keep one block */
void mp_pool_free(mp_pool *pool);

#define MP_NEW(pool, type, n) ((type *)mp_pool_get(pool, sizeof(type) * (size_t)(n)))

/* Room for one more in a pool array: `array` of `n` used and `cap` allocated entries. Old arrays stay in the pool. */
#define MP_GROW(pool, array, n, cap)                                                                                   \
    do {                                                                                                               \
        if ((n) == (cap)) {                                                                                            \
            (cap) = (cap) ? 2 * (cap) : 16;                                                                            \
            void *grown_ = mp_pool_get(pool, sizeof *(array) * (size_t)(cap));                                         \
            if (n) __builtin_memcpy(grown_, array, sizeof *(array) * (size_t)(n));                                     \
            (array) = grown_;                                                                                          \
        }                                                                                                              \
    } while (0)

/* -- Text that grows in a pool ------------------------------------------------------------------------------------ */

typedef struct {
    mp_pool *pool;
    char *chars; /* NUL-terminated once something was added */
    size_t n, cap;
} mp_text;

void mp_text_add(mp_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
