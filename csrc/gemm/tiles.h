/* What the widths of vectors differ in: a table of functions, made by including tiles_body.h with the vector's macros defined. */
#ifndef MP_GEMM_TILES_H
#define MP_GEMM_TILES_H
#include "gemm/gemm.h"

/* What a tile computes: c[j * c_row + lane] (+)= bias[lane] + sum over k of x[k * x_step + lane] * y[j * y_j + k * y_k]. */
typedef struct {
    int64_t k;
    const float *x, *y;
    int64_t x_step, y_j, y_k;
    const float *next; /* the numbers that are wanted next, or NULL */
    const float *bias; /* or NULL */
    bool add;
    float *c;
    int64_t c_row;
} mp_gemm_tile;

#define MP_GEMM_MOST_NUMBERS 12

/* Tiles have MV vectors of lanes and NR numbers: MV is 1, 2 or `wide`. */
typedef struct {
    int lanes;   /* in a vector */
    int numbers; /* of the largest tile; at most MP_GEMM_MOST_NUMBERS */
    int wide;    /* at most 8 */
    void (*tile[3][MP_GEMM_MOST_NUMBERS + 1])(
        const mp_gemm_tile *tile); /* by NR; NULL where there is none, not for 1 */
    /* A panel [k][width] of `rows` rows (strides row, col), zeros in the lanes behind; width is 1 or 2 vectors */
    void (*pack)(int64_t rows, int64_t k, const float *from, int64_t row, int64_t col, float *to, int width);
    /* The same for `panels` whole panels of 2 vectors, [panel][k][width], of rows that are adjacent (row is 1) */
    void (*pack_adjacent)(int64_t panels, int64_t k, const float *from, int64_t col, float *to);
    /* c[i * c_row + j] (+)= in[j][i] + bias[j] for i < rows, j < columns; in has rows of `width` floats and is readable up to the next
    ** multiple of `lanes` of columns */
    void (*put_turned)(const float *in, int width, int64_t rows, int64_t columns, float *c, int64_t c_row,
                       const float *bias, bool add);
    /* c[j * c_row + i] (+)= in[j][i] + bias[i] for j < rows, i < columns */
    void (*put)(const float *in, int width, int64_t rows, int64_t columns, float *c, int64_t c_row, const float *bias,
                bool add);
    /* out[i][j] = sum over k of a[i * a_row + k] * b[j * b_col + k], i < rows (1 to 4), j < 4; out has rows of 4; `next` are
    ** the columns that are wanted next, or NULL */
    void (*dots)(int64_t rows, int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_col,
                 const float *next, float *out);
} mp_gemm_tiles;

#if defined(__x86_64__)
extern const mp_gemm_tiles mp_gemm_tiles_512, mp_gemm_tiles_256;
#endif
extern const mp_gemm_tiles mp_gemm_tiles_128;

#endif
