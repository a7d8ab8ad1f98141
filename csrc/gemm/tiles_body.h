/* The tiles for one width of vectors. Included once by each tiles_*.c, which defines
**   VEC, LANES, NUMBERS   the vector type, its lanes, the numbers of the largest tile
**   WIDE                  the vectors of lanes of a tile for few numbers
**   SET1(x) LOAD(p) STORE(p, v) ADD(a, b) FMA(a, b, c)
**   TURN(from, step, to, to_step)   transposes LANES x LANES floats
**   SUM4(p, a, b, c, d)             p[0..3] = the sums of the lanes of four vectors
**   TILES                 the name of the table
*/
#include "gemm/tiles.h"
#include <string.h>

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* -- Tiles ------------------------------------------------------------------------------------------------------------ */

/* Numbers in steps of three from one pointer each: y_j and 2 y_j are index registers, and 12 pointers would not fit. While one line of
** each number is multiplied a line of each number of `next` is brought in: numbers that come from far away have the time of a tile. */
#define LINE 16
#define AHEAD 64 /* vectors of lanes */
#define TILE(name, MV, NR)                                                                                             \
    static void name(const mp_gemm_tile *t)                                                                            \
    {                                                                                                                  \
        const int64_t k = t->k, x_step = t->x_step, y_j = t->y_j, y_k = t->y_k;                                        \
        const float *x = t->x, *y = t->y, *next = t->next;                                                             \
        VEC sum[NR][MV];                                                                                               \
        UNROLL for (int j = 0; j < NR; j++) UNROLL for (int i = 0; i < MV; i++)                                        \
            __builtin_prefetch(t->c + j * t->c_row + i * LANES, 1);                                                    \
        const float *p[(NR + 2) / 3];                                                                                  \
        UNROLL for (int j = 0; j < NR; j++) UNROLL for (int i = 0; i < MV; i++) sum[j][i] = SET1(0);                   \
        UNROLL for (int j = 0; j < (NR + 2) / 3; j++) p[j] = y + 3 * j * y_j;                                          \
        for (int64_t step = 0; step < k;) {                                                                            \
            int64_t stop = k - step < LINE ? k : step + LINE;                                                          \
            if (next) UNROLL for (int j = 0; j < NR; j++) __builtin_prefetch(next + j * y_j + step * y_k);             \
            for (; step < stop; step++) {                                                                              \
                VEC lane[MV];                                                                                          \
                UNROLL for (int i = 0; i < MV; i++) lane[i] = LOAD(x + LANES * i);                                     \
                UNROLL for (int i = 0; i < MV; i++) __builtin_prefetch(x + AHEAD / MV * x_step + LANES * i);           \
                UNROLL for (int j = 0; j < NR; j++)                                                                    \
                {                                                                                                      \
                    VEC number = SET1(p[j / 3][(j % 3) * y_j]);                                                        \
                    UNROLL for (int i = 0; i < MV; i++) sum[j][i] = FMA(lane[i], number, sum[j][i]);                   \
                }                                                                                                      \
                x += x_step;                                                                                           \
                UNROLL for (int j = 0; j < (NR + 2) / 3; j++) p[j] += y_k;                                             \
            }                                                                                                          \
        }                                                                                                              \
        float *c = t->c;                                                                                               \
        if (t->bias) UNROLL for (int i = 0; i < MV; i++)                                                               \
            {                                                                                                          \
                const VEC bias = LOAD(t->bias + i * LANES);                                                            \
                UNROLL for (int j = 0; j < NR; j++) sum[j][i] = ADD(sum[j][i], bias);                                  \
            }                                                                                                          \
        if (t->add)                                                                                                    \
            UNROLL for (int j = 0; j < NR; j++) UNROLL for (int i = 0; i < MV; i++) sum[j][i] =                        \
                ADD(sum[j][i], LOAD(c + j * t->c_row + i * LANES));                                                    \
        UNROLL for (int j = 0; j < NR; j++, c += t->c_row) UNROLL for (int i = 0; i < MV; i++)                         \
            STORE(c + i * LANES, sum[j][i]);                                                                           \
    }

#define TILES_OF(MV)                                                                                                   \
    TILE(tile_##MV##_all, MV, NUMBERS)                                                                                 \
    TILE(tile_##MV##_4, MV, 4)                                                                                         \
    TILE(tile_##MV##_2, MV, 2)                                                                                         \
    TILE(tile_##MV##_1, MV, 1)
TILES_OF(1)
TILES_OF(2)
#if NUMBERS > 8
TILE(tile_1_8, 1, 8)
TILE(tile_2_8, 2, 8)
#define EIGHT(MV) [8] = tile_##MV##_8,
#else
#define EIGHT(MV)
#endif
TILE(tile_wide_3, WIDE, 3)
TILE(tile_wide_2, WIDE, 2)
TILE(tile_wide_1, WIDE, 1)
#define SIZES(MV) {[NUMBERS] = tile_##MV##_all, EIGHT(MV)[4] = tile_##MV##_4, [2] = tile_##MV##_2, [1] = tile_##MV##_1}

/* -- Packing ---------------------------------------------------------------------------------------------------------- */

static void pack(int64_t rows, int64_t k, const float *from, int64_t row, int64_t col, float *to, int width)
{
    if (rows < width) memset(to, 0, (size_t)(k * width) * sizeof *to);
    int64_t turned = 0, whole = col == 1 ? rows / LANES * LANES : 0; /* by squares */
    if (whole) turned = k / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int64_t step = 0; step < turned; step += LANES)
            TURN(from + i * row + step, row, to + step * width + i, width);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t step = i < whole ? turned : 0; step < k; step++) to[step * width + i] = from[i * row + step * col];
}

/* Along memory over all panels, a step at a time. */
static void pack_adjacent(int64_t panels, int64_t k, const float *from, int64_t col, float *to)
{
    const int width = 2 * LANES;
    for (int64_t step = 0; step < k; step++, from += col, to += width)
        for (int64_t panel = 0; panel < panels; panel++) {
            const float *at = from + panel * width;
            float *put = to + panel * k * width;
            UNROLL for (int i = 0; i < 2; i++)
            {
                STORE(put + i * LANES, LOAD(at + i * LANES));
                __builtin_prefetch(at + i * LANES + 2 * col);
            }
        }
}

/* -- Results ---------------------------------------------------------------------------------------------------------- */

static inline void put_row(const float *in, int64_t columns, float *c, const float *bias, bool add)
{
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) {
        VEC value = LOAD(in + i);
        if (bias) value = ADD(value, LOAD(bias + i));
        if (add) value = ADD(value, LOAD(c + i));
        STORE(c + i, value);
    }
    for (; i < columns; i++) {
        float value = in[i];
        if (bias) value += bias[i];
        c[i] = add ? value + c[i] : value;
    }
}

static void put(const float *in, int width, int64_t rows, int64_t columns, float *c, int64_t c_row, const float *bias,
                bool add)
{
    for (int64_t j = 0; j < rows; j++) put_row(in + j * width, columns, c + j * c_row, bias, add);
}

static void put_turned(const float *in, int width, int64_t rows, int64_t columns, float *c, int64_t c_row,
                       const float *bias, bool add)
{
    float square[LANES * LANES];
    for (int64_t j = 0; j < columns; j += LANES)
        for (int64_t i = 0; i < rows; i += LANES) {
            int64_t n = rows - i < LANES ? rows - i : LANES;
            TURN(in + j * width + i, width, square, LANES);
            put(square, LANES, n, columns - j < LANES ? columns - j : LANES, c + i * c_row + j, c_row,
                bias ? bias + j : NULL, add);
        }
}

/* -- Dot products ----------------------------------------------------------------------------------------------------- */

#define DOTS(name, MR)                                                                                                 \
    static void name(int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_col, const float *next,       \
                     float *out)                                                                                       \
    {                                                                                                                  \
        VEC sum[MR][4];                                                                                                \
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < 4; j++) sum[i][j] = SET1(0);                    \
        int64_t step = 0;                                                                                              \
        for (; step + LANES <= k; step += LANES) {                                                                     \
            VEC row[MR];                                                                                               \
            UNROLL for (int i = 0; i < MR; i++) row[i] = LOAD(a + i * a_row + step);                                   \
            if (next) UNROLL for (int j = 0; j < 4; j++) __builtin_prefetch(next + j * b_col + step);                  \
            UNROLL for (int j = 0; j < 4; j++)                                                                         \
            {                                                                                                          \
                VEC column = LOAD(b + j * b_col + step);                                                               \
                UNROLL for (int i = 0; i < MR; i++) sum[i][j] = FMA(row[i], column, sum[i][j]);                        \
            }                                                                                                          \
        }                                                                                                              \
        if (step < k) { /* the rest, with zeros behind */                                                              \
            float rest[(MR + 4) * LANES];                                                                              \
            memset(rest, 0, sizeof rest);                                                                              \
            size_t bytes = (size_t)(k - step) * sizeof *rest;                                                          \
            for (int i = 0; i < MR; i++) memcpy(rest + i * LANES, a + i * a_row + step, bytes);                        \
            for (int j = 0; j < 4; j++) memcpy(rest + (MR + j) * LANES, b + j * b_col + step, bytes);                  \
            UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < 4; j++) sum[i][j] =                         \
                FMA(LOAD(rest + i * LANES), LOAD(rest + (MR + j) * LANES), sum[i][j]);                                 \
        }                                                                                                              \
        UNROLL for (int i = 0; i < MR; i++) SUM4(out + 4 * i, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);             \
    }

DOTS(dots_1, 1)
DOTS(dots_2, 2)
DOTS(dots_4, 4)

static void dots(int64_t rows, int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_col,
                 const float *next, float *out)
{
    if (rows == 4) {
        dots_4(k, a, a_row, b, b_col, next, out);
        return;
    }
    if (rows >= 2) dots_2(k, a, a_row, b, b_col, next, out);
    if (rows != 2) dots_1(k, a + (rows - 1) * a_row, a_row, b, b_col, next, out + 4 * (rows - 1));
}

const mp_gemm_tiles TILES = {
    .lanes = LANES,
    .numbers = NUMBERS,
    .wide = WIDE,
    .tile = {SIZES(1), SIZES(2), {[3] = tile_wide_3, [2] = tile_wide_2, [1] = tile_wide_1}},
    .pack = pack,
    .pack_adjacent = pack_adjacent,
    .put_turned = put_turned,
    .put = put,
    .dots = dots,
};
