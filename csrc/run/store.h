/* Store: memory that is allocated piece by piece and freed at once. For what a plan's compilation makes. */
#ifndef MP_RUN_STORE_H
#define MP_RUN_STORE_H
#include "magpy.h"

#include <stdlib.h>
#include <string.h>

typedef struct mp_store_chunk {
    struct mp_store_chunk *next;
    max_align_t data[];
} mp_store_chunk;

typedef struct {
    mp_store_chunk *chunks;
    size_t used, size; /* of the first chunk */
} mp_store;

/* Zeroed memory, owned by the pool; NULL on no memory (no exception). */
static inline void *mp_store_alloc(mp_store *pool, size_t size)
{
    size = (size + 15) & ~(size_t)15;
    if (!pool->chunks || pool->size - pool->used < size) {
        size_t chunk = size > 4096 ? size : 4096;
        mp_store_chunk *fresh = calloc(1, sizeof *fresh + chunk);
        if (!fresh) return NULL;
        fresh->next = pool->chunks;
        pool->chunks = fresh;
        pool->used = 0;
        pool->size = chunk;
    }
    void *memory = (char *)pool->chunks->data + pool->used;
    pool->used += size;
    return memory;
}

static inline void *mp_store_copy(mp_store *pool, const void *from, size_t size)
{
    void *to = mp_store_alloc(pool, size);
    if (to && size) memcpy(to, from, size);
    return to;
}

static inline void mp_store_free(mp_store *pool)
{
    for (mp_store_chunk *chunk = pool->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    *pool = (mp_store){0};
}

#endif
