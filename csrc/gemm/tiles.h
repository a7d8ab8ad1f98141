/* What the widths of vectors differ in: a table of functions, made by including tiles_body.h with the vector's macros defined. */
#ifndef MP_GEMM_TILES_H
#define MP_GEMM_TILES_H
#include "gemm/gemm.h"

/* Tiles have MV vectors of lanes and NR numbers: MV is 2 or 1; NR is `numbers`, 3 or 1. */
typedef struct {
    int lanes;   /* in a vector */
    int numbers; /* of the largest tile; a multiple of 3, at most 12 */
    /* out[j][lane] (rows of mv * lanes) = sum over k of x[k * x_step + lane] * y[j * y_j + k * y_k] */
    void (*tile[2][3])(int64_t k, const float *x, int64_t x_step, const float *y, int64_t y_j, int64_t y_k, float *out);
    /* A panel [k][width] of `rows` rows (strides row, col), zeros in the lanes behind; width is 1 or 2 vectors */
    void (*pack)(int64_t rows, int64_t k, const float *from, int64_t row, int64_t col, float *to, int width);
    /* c[i * c_row + j] (+)= in[j][i] + bias[j] for i < rows, j < columns; in has rows of `width` floats and is readable up to the next
    ** multiple of `lanes` of columns */
    void (*put_turned)(const float *in, int width, int64_t rows, int64_t columns, float *c, int64_t c_row,
                       const float *bias, bool add);
    /* c[j * c_row + i] (+)= in[j][i] + bias[i] for j < rows, i < columns */
    void (*put)(const float *in, int width, int64_t rows, int64_t columns, float *c, int64_t c_row, const float *bias,
                bool add);
    /* out[i][j] = sum over k of a[i * a_row + k] * b[j * b_col + k], i < rows (1 to 4), j < 4; out has rows of 4 */
    void (*dots)(int64_t rows, int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_col, float *out);
} mp_gemm_tiles;

#if defined(__x86_64__)
extern const mp_gemm_tiles mp_gemm_tiles_512, mp_gemm_tiles_256;
#endif
extern const mp_gemm_tiles mp_gemm_tiles_128;

#endif
