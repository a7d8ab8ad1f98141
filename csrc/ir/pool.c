/* Pool allocation and growing text. */
#include "ir/pool.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mp_pool_block {
    mp_pool_block *next;
    size_t size;
    _Alignas(16) char bytes[];
};

void *mp_pool_get(mp_pool *pool, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    if (!pool->head || pool->head->size - pool->used < bytes) {
        size_t size = bytes > 65536 ? bytes : 65536;
        mp_pool_block *block = malloc(sizeof *block + size);
        if (!block) longjmp(*pool->escape, 1);
        block->next = pool->head;
        block->size = size;
        pool->head = block;
        pool->used = 0;
    }
    void *memory = pool->head->bytes + pool->used;
    pool->used += bytes;
    return memset(memory, 0, bytes);
}

char *mp_pool_printf(mp_pool *pool, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = mp_pool_get(pool, (size_t)n + 1);
    va_start(args, format);
    vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    return text;
}

static void free_blocks(mp_pool_block *block)
{
    while (block) {
        mp_pool_block *next = block->next;
        free(block);
        block = next;
    }
}

void mp_pool_reset(mp_pool *pool)
{
    if (!pool->head) return;
    free_blocks(pool->head->next);
    pool->head->next = NULL;
    pool->used = 0;
}

void mp_pool_free(mp_pool *pool)
{
    free_blocks(pool->head);
    pool->head = NULL;
}

void mp_text_add(mp_text *text, const char *format, ...)
{
    for (;;) {
        va_list args;
        va_start(args, format);
        size_t room = text->cap - text->n;
        int n = vsnprintf(text->cap ? text->chars + text->n : NULL, room, format, args);
        va_end(args);
        if (n < 0) return;
        if ((size_t)n < room) {
            text->n += (size_t)n;
            return;
        }
        size_t cap = 2 * (text->cap + (size_t)n) + 256;
        char *grown = mp_pool_get(text->pool, cap);
        if (text->n) memcpy(grown, text->chars, text->n);
        text->chars = grown;
        text->cap = cap;
    }
}
