/* Tiles of 256-bit vectors (AVX2): 6 numbers by 2 vectors, 12 of 16 registers. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>
#include <stdint.h>

#define VEC __m256
#define LANES 8
#define NUMBERS 6
#define WIDE 4
#define SET1(x) _mm256_set1_ps(x)
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define ADD(a, b) _mm256_add_ps(a, b)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)

static inline void turn(const float *from, int64_t step, float *to, int64_t to_step)
{
    __m256 r[8], t[8];
#define ROW(i) r[i] = LOAD(from + (i) * step);
#define PAIR(i)                                                                                                        \
    t[2 * (i)] = _mm256_unpacklo_ps(r[2 * (i)], r[2 * (i) + 1]);                                                       \
    t[2 * (i) + 1] = _mm256_unpackhi_ps(r[2 * (i)], r[2 * (i) + 1]);
#define FOUR(i)                                                                                                        \
    r[4 * (i)] = _mm256_shuffle_ps(t[4 * (i)], t[4 * (i) + 2], 0x44);                                                  \
    r[4 * (i) + 1] = _mm256_shuffle_ps(t[4 * (i)], t[4 * (i) + 2], 0xee);                                              \
    r[4 * (i) + 2] = _mm256_shuffle_ps(t[4 * (i) + 1], t[4 * (i) + 3], 0x44);                                          \
    r[4 * (i) + 3] = _mm256_shuffle_ps(t[4 * (i) + 1], t[4 * (i) + 3], 0xee);
#define ALL(c)                                                                                                         \
    STORE(to + (c) * to_step, _mm256_permute2f128_ps(r[c], r[4 + (c)], 0x20));                                         \
    STORE(to + (4 + (c)) * to_step, _mm256_permute2f128_ps(r[c], r[4 + (c)], 0x31));
    /* clang-format off */
    ROW(0) ROW(1) ROW(2) ROW(3)
    ROW(4) ROW(5) ROW(6) ROW(7)
    PAIR(0) PAIR(1) PAIR(2) PAIR(3)
    FOUR(0) FOUR(1)
    ALL(0) ALL(1) ALL(2) ALL(3)
    /* clang-format on */
}
#define TURN turn

static inline __m128 halves(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
#define SUM4(p, a, b, c, d)                                                                                            \
    _mm_storeu_ps(p, _mm_hadd_ps(_mm_hadd_ps(halves(a), halves(b)), _mm_hadd_ps(halves(c), halves(d))))

#define TILES mp_gemm_tiles_256
#include "gemm/tiles_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int mp_gemm_no_tiles_256;
#endif
