/* Convolutions at run time. */
#include "run/conv.h"

#include "run/code.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>

/* -- The library --------------------------------------------------------------------------------------------------------- */

void *mp_conv_function(const char *name, int vector_bits, mp_reason *why)
{
    static mp_code *code; /* under the GIL; the library stays loaded, like libtorch */
    if (code) return mp_code_symbol(code, name);
    jmp_buf escape;
    mp_pool pool = {.escape = &escape};
    mp_text text = {.pool = &pool};
    if (setjmp(escape)) {
        mp_pool_free(&pool);
        mp_reason_set(why, MP_REASON_NO_MEMORY, "the library of convolutions");
        return NULL;
    }
    mp_codegen_conv_library(&text);
    mp_code *loaded = mp_code_load(text.chars, MP_CODEGEN_CONV_SECTIONS, vector_bits, why);
    mp_pool_free(&pool);
    if (code)
        mp_code_free(loaded); /* another thread was faster while the compiler ran */
    else
        code = loaded;
    return mp_code_symbol(code, name);
}

/* -- Memory -------------------------------------------------------------------------------------------------------------- */

typedef struct {
    float *memory;
    int64_t floats;
} scratch;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool have_key;

static void free_scratch(void *of)
{
    free(((scratch *)of)->memory);
    free(of);
}

static void make_key(void) { have_key = pthread_key_create(&key, free_scratch) == 0; }

float *mp_conv_scratch(int64_t floats)
{
    pthread_once(&once, make_key);
    if (!have_key) return NULL;
    scratch *own = pthread_getspecific(key);
    if (!own) {
        own = calloc(1, sizeof *own);
        if (!own || pthread_setspecific(key, own)) {
            free(own);
            return NULL;
        }
    }
    if (own->floats >= floats) return own->memory;
    void *fresh;
    if (posix_memalign(&fresh, 64, (size_t)floats * sizeof(float))) return NULL;
    free(own->memory);
    own->memory = fresh;
    own->floats = floats;
    return fresh;
}
