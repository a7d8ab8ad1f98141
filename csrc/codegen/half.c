/* Elements of float16 by blocks. CPUs convert them by vectors (F16C), but compilers do not use that in loops: there the conversion is a dozen
** operations on integers. So what a vector loop reads and stores is in arrays of float, converted before and after it. NaN keeps the upper
** bits of its payload and denormals are exact whatever the mode of the CPU, as in torch's own conversion.
**
** Loads under a condition, those of places that are data, and those that do not run along memory are converted one by one in the loop, as
** is everything on CPUs without such instructions, and what a loop rounds on the way.
*/
#include "codegen/half.h"
#include "ir/index.h"

#include <string.h>

#define LEAST 16      /* steps of a loop that has blocks */
#define MOST_ARRAYS 8 /* of a loop */

const char mp_codegen_half_text[] =
    "#if defined(__F16C__) && defined(__AVX__) && defined(__has_builtin)\n"
    "#if __has_builtin(__builtin_ia32_vcvtph2ps256) && __has_builtin(__builtin_ia32_vcvtps2ph256)\n"
    "#define MP_HALF_LANES 8\n"
    "#if defined(__AVX512F__) && __has_builtin(__builtin_ia32_vcvtph2ps512_mask) && \\\n"
    "    __has_builtin(__builtin_ia32_vcvtps2ph512_mask)\n"
    "#undef MP_HALF_LANES\n"
    "#define MP_HALF_LANES 16\n"
    "#endif\n"
    "#endif\n"
    "#endif\n"
    "#ifdef MP_HALF_LANES\n"
    "typedef float mp_half_floats __attribute__((vector_size(32)));\n"
    "typedef short mp_half_bits __attribute__((vector_size(16)));\n"
    "static inline void mp_half_load8(const unsigned short *from, float *to)\n"
    "{\n"
    "    mp_half_bits h;\n"
    "    __builtin_memcpy(&h, from, 16);\n"
    "    const mp_half_floats x = __builtin_ia32_vcvtph2ps256(h);\n"
    "    __builtin_memcpy(to, &x, 32);\n"
    "}\n"
    "static inline void mp_half_store8(const float *from, unsigned short *to)\n"
    "{\n"
    "    mp_half_floats x;\n"
    "    __builtin_memcpy(&x, from, 32);\n"
    "    const mp_half_bits h = (mp_half_bits)__builtin_ia32_vcvtps2ph256(x, 0);\n"
    "    __builtin_memcpy(to, &h, 16);\n"
    "}\n"
    "#if MP_HALF_LANES == 16\n"
    "typedef float mp_half_floats2 __attribute__((vector_size(64)));\n"
    "typedef short mp_half_bits2 __attribute__((vector_size(32)));\n"
    "static inline void mp_half_load(const unsigned short *from, float *to)\n"
    "{\n"
    "    mp_half_bits2 h;\n"
    "    __builtin_memcpy(&h, from, 32);\n"
    "    const mp_half_floats2 x = __builtin_ia32_vcvtph2ps512_mask(h, (mp_half_floats2){0}, (unsigned short)-1, 4);\n"
    "    __builtin_memcpy(to, &x, 64);\n"
    "}\n"
    "static inline void mp_half_store(const float *from, unsigned short *to)\n"
    "{\n"
    "    mp_half_floats2 x;\n"
    "    __builtin_memcpy(&x, from, 64);\n"
    "    const mp_half_bits2 h =\n"
    "        (mp_half_bits2)__builtin_ia32_vcvtps2ph512_mask(x, 0, (mp_half_bits2){0}, (unsigned short)-1);\n"
    "    __builtin_memcpy(to, &h, 32);\n"
    "}\n"
    "#else\n"
    "#define mp_half_load mp_half_load8\n"
    "#define mp_half_store mp_half_store8\n"
    "#endif\n"
    "/* The last vector overlaps the one before; fewer elements than a vector go by a copy. */\n"
    "#define MP_HALF_BLOCKS(name, convert, convert8, from_t, to_t) \\\n"
    "    static inline void name(const from_t *from, to_t *to, int64_t n) \\\n"
    "    { \\\n"
    "        int64_t i = 0; \\\n"
    "        for (; i + MP_HALF_LANES <= n; i += MP_HALF_LANES) convert(from + i, to + i); \\\n"
    "        if (i < n && n >= MP_HALF_LANES) \\\n"
    "            convert(from + (n - MP_HALF_LANES), to + (n - MP_HALF_LANES)); \\\n"
    "        else \\\n"
    "            for (; i < n; i += 8) { \\\n"
    "                from_t a[8] = {0}; \\\n"
    "                to_t b[8]; \\\n"
    "                const int64_t left = n - i < 8 ? n - i : 8; \\\n"
    "                for (int64_t j = 0; j < left; j++) a[j] = from[i + j]; \\\n"
    "                convert8(a, b); \\\n"
    "                for (int64_t j = 0; j < left; j++) to[i + j] = b[j]; \\\n"
    "            } \\\n"
    "    }\n"
    "MP_HALF_BLOCKS(mp_half_from, mp_half_load, mp_half_load8, unsigned short, float)\n"
    "MP_HALF_BLOCKS(mp_half_to, mp_half_store, mp_half_store8, float, unsigned short)\n"
    "#else\n"
    "static inline void mp_half_from(const unsigned short *restrict from, float *restrict to, int64_t n)\n"
    "{\n"
    "#pragma omp simd\n"
    "    for (int64_t i = 0; i < n; i++) to[i] = mp_from_f16(from[i]);\n"
    "}\n"
    "static inline void mp_half_to(const float *restrict from, unsigned short *restrict to, int64_t n)\n"
    "{\n"
    "#pragma omp simd\n"
    "    for (int64_t i = 0; i < n; i++) to[i] = mp_to_f16(from[i]);\n"
    "}\n"
    "#endif\n";

/* A load that runs along memory, at all points of the loop? */
static bool plain(const mp_c_kernel *k, const mp_kexpr *e, mp_dtype dtype)
{
    return e->op == MP_K_LOAD && k->kir->buffers[e->aux].dtype == dtype && e->arg[0] == MP_NO_KID &&
           e->arg[1] == MP_NO_KID && e->at.coef[k->kir->vector] == 1 && !k->array[e - k->kir->exprs];
}

/* The load that is all of what a store stores, where only its type changes, from or to float16. NULL: there is more to it. */
static const mp_kexpr *converted(const mp_c_kernel *k, const mp_kstore *store)
{
    const mp_kexpr *e = &k->kir->exprs[store->what];
    mp_dtype memory = k->kir->buffers[store->buffer].dtype;
    if (store->at.coef[k->kir->vector] != 1 || (memory != MP_F16 && memory != MP_F32)) return NULL;
    if (e->op == MP_K_ROUND16 && e->aux == (uint32_t)memory) e = &k->kir->exprs[e->arg[0]];
    return plain(k, e, memory == MP_F16 ? MP_F32 : MP_F16) ? e : NULL;
}

/* Does anything but stores of that kind use the value? */
static bool used(const mp_c_kernel *k, mp_kid kid, const bool *stored)
{
    const mp_kir *kir = k->kir;
    bool any = false;
    for (uint32_t i = 0; i < kir->n_stores; i++)
        any |= stored[i] && kir->stores[i].what == kid && !converted(k, &kir->stores[i]);
    for (uint32_t u = kid + 1; u < kir->n_exprs; u++)
        for (int a = 0; a < 3; a++) any |= k->p.live[u] && kir->exprs[u].arg[a] == kid;
    return any;
}

bool mp_half_choose(mp_c_kernel *k, const bool *stored)
{
    const mp_kir *kir = k->kir;
    mp_pool *pool = k->p.out->pool;
    int v = kir->vector, n = 0;
    if (!k->converts || k->one_by_one || kir->extent[v] < LEAST) return false;
    k->half_load = MP_NEW(pool, bool, kir->n_exprs + 1);
    k->half_store = MP_NEW(pool, bool, kir->n_stores + 1);
    for (uint32_t i = 0; i < kir->n_stores && n < MOST_ARRAYS; i++) {
        const mp_kstore *store = &kir->stores[i];
        if (!stored[i] || store->at.coef[v] != 1) continue;
        if (kir->buffers[store->buffer].dtype != MP_F16 && !converted(k, store)) continue;
        k->half_store[i] = true;
        n++;
    }
    for (uint32_t i = 0; i < kir->n_exprs && n < MOST_ARRAYS; i++) {
        if (!k->p.need[i] || !plain(k, &kir->exprs[i], MP_F16) || !used(k, i, stored)) continue;
        k->half_load[i] = true;
        n++;
    }
    return n > 0;
}

/* Where along memory the vector loop's element `begin` is. */
static const char *place(mp_c_kernel *k, const mp_affine *at, const char *begin)
{
    mp_affine rest = *at;
    rest.coef[k->kir->vector] = 0;
    return mp_pool_printf(k->p.out->pool, "(%s + %s)", mp_print_affine(&k->p, &rest), begin);
}

/* The array of a load, and what it begins with. */
static void print_load(mp_c_kernel *k, mp_kid kid, const char *begin, const char *end, int64_t most)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    mp_print_line(&k->p, "float f%u[%lld] __attribute__((aligned(64)));", kid, (long long)most);
    mp_print_line(&k->p, "mp_half_from(p%u + %s, f%u, %s - %s);", e->aux, place(k, &e->at, begin), kid, end, begin);
    k->array[kid] = mp_pool_printf(k->p.out->pool, "f%u[i%d - %s]", kid, k->kir->vector, begin);
}

void mp_half_rows(mp_c_kernel *k)
{
    const mp_kir *kir = k->kir;
    mp_pool *pool = k->p.out->pool;
    uint32_t bit = 1u << kir->vector;
    int64_t extent = kir->extent[kir->vector], left = ROW_BYTES;
    if (!k->converts || kir->reduced != bit || extent < LEAST) return;
    uint8_t *passes = MP_NEW(pool, uint8_t, kir->n_exprs + 1);
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        mp_c_need_pass(k, pass);
        for (uint32_t i = 0; i < kir->n_exprs; i++) passes[i] = (uint8_t)(passes[i] + (k->p.need[i] && passes[i] < 2));
    }
    k->half_row = MP_NEW(pool, bool, kir->n_exprs + 1);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (passes[i] < 2 || extent * 4 > left || k->row_kept[i] || !plain(k, &kir->exprs[i], MP_F16)) continue;
        print_load(k, i, "0", mp_pool_printf(pool, "%lld", (long long)extent), extent);
        k->half_row[i] = true;
        left -= extent * 4;
    }
    k->p.wide = k->half_row;
}

void mp_half_begin(mp_c_kernel *k, const char *begin, const char *end, int64_t most)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    const char **stored = MP_NEW(p->out->pool, const char *, kir->n_stores + 1);
    bool *wide = MP_NEW(p->out->pool, bool, kir->n_exprs + 1);
    for (uint32_t i = 0; i < kir->n_stores; i++) {
        if (!k->half_store[i]) continue;
        const mp_kstore *store = &kir->stores[i];
        const mp_kexpr *e = converted(k, store);
        stored[i] = "";
        if (e && kir->buffers[store->buffer].dtype == MP_F32)
            mp_print_line(p, "mp_half_from(p%u + %s, p%u + %s, %s - %s);", e->aux, place(k, &e->at, begin),
                          store->buffer, place(k, &store->at, begin), end, begin);
        else if (e)
            mp_print_line(p, "mp_half_to(p%u + %s, p%u + %s, %s - %s);", e->aux, place(k, &e->at, begin), store->buffer,
                          place(k, &store->at, begin), end, begin);
        if (e) continue;
        mp_print_line(p, "float g%u[%lld] __attribute__((aligned(64)));", i, (long long)most);
        stored[i] = mp_pool_printf(p->out->pool, "g%u[i%d - %s]", i, kir->vector, begin);
    }
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        wide[i] = k->half_row && k->half_row[i];
        if (!k->half_load[i]) continue;
        print_load(k, i, begin, end, most);
        wide[i] = true;
    }
    p->wide = wide;
    p->stored = stored;
}

void mp_half_store(mp_c_kernel *k, const char *begin, const char *end)
{
    const mp_kir *kir = k->kir;
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (k->half_store[i] && *k->p.stored[i])
            mp_print_line(&k->p, "mp_half_to(g%u, p%u + %s, %s - %s);", i, kir->stores[i].buffer,
                          place(k, &kir->stores[i].at, begin), end, begin);
}

void mp_half_end(mp_c_kernel *k)
{
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (k->half_load[i]) k->array[i] = NULL;
    k->p.wide = k->half_row;
    k->p.stored = NULL;
}
