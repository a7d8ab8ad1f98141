/* Turned loads: choosing them, and what is printed for them. */
#include "codegen/turn.h"

#include "ir/index.h"

#include <string.h>

#define TILE_BYTES 32768 /* of all arrays */
#define MIN_EXTENT 8     /* of both loops: less is not worth it */

const char mp_codegen_turn_text[] =
    "/* to[j * 64 + i] = from[i * step + j] for i < columns, j < rows: in blocks by exchanging ever smaller squares. "
    "*/\n"
    "#define MP_TURN(name, type, mask, W) \\\n"
    "    static __attribute__((noinline, noclone, unused)) void name(type *restrict to, const type *restrict from, "
    "int64_t "
    "step, \\\n"
    "                                                       int64_t columns, int64_t rows) \\\n"
    "    { \\\n"
    "        int64_t i = 0; \\\n"
    "        MP_TURN_BLOCKS(type, mask, W) \\\n"
    "        for (; i < columns; i++) \\\n"
    "            for (int64_t j = 0; j < rows; j++) to[j * 64 + i] = from[i * step + j]; \\\n"
    "    }\n"
    "#if defined(__AVX2__) && !defined(__clang__)\n"
    "#define MP_TURN_BLOCKS(type, mask, W) \\\n"
    "    typedef type block __attribute__((vector_size(W * sizeof(type)))); \\\n"
    "    typedef type memory __attribute__((vector_size(W * sizeof(type)), aligned(sizeof(type)), may_alias)); \\\n"
    "    typedef mask lanes __attribute__((vector_size(W * sizeof(type)))); \\\n"
    "    const lanes at = {MP_IOTA##W}; \\\n"
    "    for (; i + W <= columns; i += W) { \\\n"
    "        int64_t j = 0; \\\n"
    "        for (; j + W <= rows; j += W) { \\\n"
    "            block r[W]; \\\n"
    "            _Pragma(\"GCC unroll 16\") for (int k = 0; k < W; k++) r[k] = *(const memory *)(from + (i + k) * step "
    "+ j); \\\n"
    "            _Pragma(\"GCC unroll 4\") for (int s = 0; 1 << s < W; s++) \\\n"
    "                _Pragma(\"GCC unroll 16\") for (int k = 0; k < W; k++) \\\n"
    "                    if (!(k >> s & 1)) { \\\n"
    "                        const mask size = (mask)(1 << s), rest = (mask)(W - (1 << s)), one = 1, shift = (mask)s; "
    "\\\n"
    "                        const lanes low = at + (at >> shift & one) * rest, high = low + size; \\\n"
    "                        const block a = r[k], b = r[k + (1 << s)]; \\\n"
    "                        r[k] = __builtin_shuffle(a, b, low); \\\n"
    "                        r[k + (1 << s)] = __builtin_shuffle(a, b, high); \\\n"
    "                    } \\\n"
    "            _Pragma(\"GCC unroll 16\") for (int k = 0; k < W; k++) *(memory *)(to + (j + k) * 64 + i) = r[k]; \\\n"
    "        } \\\n"
    "        for (; j < rows; j++) \\\n"
    "            for (int64_t k = i; k < i + W; k++) to[j * 64 + k] = from[k * step + j]; \\\n"
    "    }\n"
    "#else\n"
    "#define MP_TURN_BLOCKS(type, mask, W)\n"
    "#endif\n"
    "#define MP_IOTA4 0, 1, 2, 3\n"
    "#define MP_IOTA8 MP_IOTA4, 4, 5, 6, 7\n"
    "#define MP_IOTA16 MP_IOTA8, 8, 9, 10, 11, 12, 13, 14, 15\n"
    "MP_TURN(mp_turn1, unsigned char, char, 16)\n"
    "MP_TURN(mp_turn2, unsigned short, short, 16)\n"
    "#ifdef __AVX512F__\n"
    "MP_TURN(mp_turn4, float, int, 16)\n"
    "MP_TURN(mp_turn8, double, int64_t, 8)\n"
    "#else\n"
    "MP_TURN(mp_turn4, float, int, 8)\n"
    "MP_TURN(mp_turn8, double, int64_t, 4)\n"
    "#endif\n";

/* The loop along which an expression's memory runs, if that is not the vector loop and turning is worth it; -1 otherwise. */
static int runs_along(const mp_kir *kir, const mp_kexpr *e)
{
    if (e->op != MP_K_LOAD || e->arg[0] != MP_NO_KID || e->arg[1] != MP_NO_KID) return -1;
    if (e->at.coef[kir->vector] < MIN_EXTENT) return -1;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (e->at.coef[i] == 1 && kir->extent[i] >= MIN_EXTENT) return (int)i;
    return -1;
}

mp_turn mp_turn_choose(const mp_kir *kir, mp_pool *pool)
{
    mp_turn turn = {.loop = -1};
    if (kir->vector < 0 || kir->reduced || kir->extent[kir->vector] < MIN_EXTENT) return turn;
    int64_t bytes[MP_MAX_LOOPS] = {0};
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        int loop = runs_along(kir, &kir->exprs[i]);
        if (loop < 0) continue;
        bytes[loop] += mp_dtype_bytes(kir->buffers[kir->exprs[i].aux].dtype);
        if (turn.loop < 0 || bytes[loop] > bytes[turn.loop]) turn.loop = loop;
    }
    if (turn.loop < 0) return turn;
    turn.rows = MP_TURN_LANES;
    while (turn.rows > 16 && turn.rows * MP_TURN_LANES * bytes[turn.loop] > TILE_BYTES) turn.rows /= 2;
    int64_t extent = kir->extent[turn.loop];
    if (extent <= turn.rows + turn.rows / 2) turn.rows = extent;
    turn.n_tiles = (extent + turn.rows - 1) / turn.rows;
    turn.array = MP_NEW(pool, const char *, kir->n_exprs + 1);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (runs_along(kir, &kir->exprs[i]) == turn.loop)
            turn.array[i] =
                mp_pool_printf(pool, "l%u[(i%d - j0) * %d + i%d - c0]", i, turn.loop, MP_TURN_LANES, kir->vector);
    return turn;
}

void mp_turn_print_arrays(mp_printer *p, const mp_turn *turn)
{
    for (uint32_t i = 0; i < p->kir->n_exprs && turn->array; i++) {
        if (!turn->array[i] || !p->live[i]) continue;
        mp_dtype memory = p->kir->buffers[p->kir->exprs[i].aux].dtype;
        mp_print_line(p, "%s l%u[%lld] __attribute__((aligned(64)));", p->target->memory[memory], i,
                      (long long)turn->rows * MP_TURN_LANES);
    }
}

void mp_turn_print_fill(mp_printer *p, const mp_turn *turn)
{
    int v = p->kir->vector;
    for (uint32_t i = 0; i < p->kir->n_exprs && turn->array; i++) {
        if (!turn->array[i] || !p->live[i]) continue;
        const mp_kexpr *e = &p->kir->exprs[i];
        mp_affine at = e->at;
        at.coef[v] = at.coef[turn->loop] = 0;
        mp_print_line(p,
                      "mp_turn%lld((void *)l%u, (const void *)(p%u + (%s + c0 * %lld + j0)), %lld, c1 - c0, j1 - j0);",
                      (long long)mp_dtype_bytes(p->kir->buffers[e->aux].dtype), i, e->aux, mp_print_affine(p, &at),
                      (long long)e->at.coef[v], (long long)e->at.coef[v]);
    }
}
