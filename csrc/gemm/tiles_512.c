/* Tiles of 512-bit vectors (AVX-512): 12 numbers by 2 vectors, 24 of 32 registers. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx2,fma")
#endif
#include <immintrin.h>
#include <stdint.h>

#define VEC __m512
#define LANES 16
#define NUMBERS 12
#define WIDE 8
#define SET1(x) _mm512_set1_ps(x)
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define ADD(a, b) _mm512_add_ps(a, b)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)

/* Pairs, then quarters within 128 bits, then the 128-bit quarters of four rows. */
static inline void turn(const float *from, int64_t step, float *to, int64_t to_step)
{
    __m512 r[16], t[16];
#define ROW(i) r[i] = LOAD(from + (i) * step);
#define PAIR(i)                                                                                                        \
    t[2 * (i)] = _mm512_unpacklo_ps(r[2 * (i)], r[2 * (i) + 1]);                                                       \
    t[2 * (i) + 1] = _mm512_unpackhi_ps(r[2 * (i)], r[2 * (i) + 1]);
#define FOUR(i)                                                                                                        \
    r[4 * (i)] = _mm512_shuffle_ps(t[4 * (i)], t[4 * (i) + 2], 0x44);                                                  \
    r[4 * (i) + 1] = _mm512_shuffle_ps(t[4 * (i)], t[4 * (i) + 2], 0xee);                                              \
    r[4 * (i) + 2] = _mm512_shuffle_ps(t[4 * (i) + 1], t[4 * (i) + 3], 0x44);                                          \
    r[4 * (i) + 3] = _mm512_shuffle_ps(t[4 * (i) + 1], t[4 * (i) + 3], 0xee);
#define ALL(c)                                                                                                         \
    {                                                                                                                  \
        __m512 even = _mm512_shuffle_f32x4(r[c], r[4 + (c)], 0x88);                                                    \
        __m512 even_high = _mm512_shuffle_f32x4(r[8 + (c)], r[12 + (c)], 0x88);                                        \
        __m512 odd = _mm512_shuffle_f32x4(r[c], r[4 + (c)], 0xdd);                                                     \
        __m512 odd_high = _mm512_shuffle_f32x4(r[8 + (c)], r[12 + (c)], 0xdd);                                         \
        STORE(to + (c) * to_step, _mm512_shuffle_f32x4(even, even_high, 0x88));                                        \
        STORE(to + (8 + (c)) * to_step, _mm512_shuffle_f32x4(even, even_high, 0xdd));                                  \
        STORE(to + (4 + (c)) * to_step, _mm512_shuffle_f32x4(odd, odd_high, 0x88));                                    \
        STORE(to + (12 + (c)) * to_step, _mm512_shuffle_f32x4(odd, odd_high, 0xdd));                                   \
    }
    /* clang-format off */
    ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7)
    ROW(8) ROW(9) ROW(10) ROW(11) ROW(12) ROW(13) ROW(14) ROW(15)
    PAIR(0) PAIR(1) PAIR(2) PAIR(3) PAIR(4) PAIR(5) PAIR(6) PAIR(7)
    FOUR(0) FOUR(1) FOUR(2) FOUR(3)
    ALL(0) ALL(1) ALL(2) ALL(3)
    /* clang-format on */
}
#define TURN turn

static inline __m128 quarters(__m512 v)
{
    __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#define SUM4(p, a, b, c, d)                                                                                            \
    _mm_storeu_ps(p, _mm_hadd_ps(_mm_hadd_ps(quarters(a), quarters(b)), _mm_hadd_ps(quarters(c), quarters(d))))

#define TILES mp_gemm_tiles_512
#include "gemm/tiles_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int mp_gemm_no_tiles_512;
#endif
