/* Tiles of 128-bit vectors, in the compiler's own vector notation: whatever CPU this is. */
#include <stdint.h>
#include <string.h>

typedef float vec4 __attribute__((vector_size(16)));

#define VEC vec4
#define LANES 4
#if defined(__aarch64__)
#define NUMBERS 12
#else
#define NUMBERS 6
#endif
#define WIDE 4
#define SET1(x) ((vec4){(x), (x), (x), (x)})
#define ADD(a, b) ((a) + (b))
#define FMA(a, b, c) ((a) * (b) + (c))

static inline vec4 load(const float *p)
{
    vec4 v;
    memcpy(&v, p, sizeof v);
    return v;
}
#define LOAD(p) load(p)
static inline void store(float *p, vec4 v) { memcpy(p, &v, sizeof v); }
#define STORE(p, v) store(p, v)

static inline void turn(const float *from, int64_t step, float *to, int64_t to_step)
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) to[j * to_step + i] = from[i * step + j];
}
#define TURN turn

#define SUM(v) (((v)[0] + (v)[1]) + ((v)[2] + (v)[3]))
#define SUM4(p, a, b, c, d) ((p)[0] = SUM(a), (p)[1] = SUM(b), (p)[2] = SUM(c), (p)[3] = SUM(d))

#define TILES mp_gemm_tiles_128
#include "gemm/tiles_body.h"
