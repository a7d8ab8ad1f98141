/* Wide: a loop over tasks compiled for three vector widths, of which the CPU at hand takes one.
**
** WIDE(kind, state) wants `static inline always_inline void kind_tasks(state *s, int64_t begin, int64_t end)` and defines kind_run, an
** mp_kernel_fn whose first buffer is the state.
*/
#ifndef MP_RUN_WIDE_H
#define MP_RUN_WIDE_H
#include "run/parallel.h"

#define INLINED inline __attribute__((always_inline))

#if defined(__x86_64__)
#define WIDE(kind, state)                                                                                              \
    static __attribute__((target("avx512f,avx512dq,avx512vl"))) void kind##_512(state *s, int64_t begin, int64_t end)  \
    { kind##_tasks(s, begin, end); }                                                                                   \
    static __attribute__((target("avx2"))) void kind##_256(state *s, int64_t begin, int64_t end)                       \
    { kind##_tasks(s, begin, end); }                                                                                   \
    static void kind##_run(void *const *buffers, int64_t begin, int64_t end)                                           \
    {                                                                                                                  \
        if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))                                  \
            kind##_512(buffers[0], begin, end);                                                                        \
        else if (__builtin_cpu_supports("avx2"))                                                                       \
            kind##_256(buffers[0], begin, end);                                                                        \
        else                                                                                                           \
            kind##_tasks(buffers[0], begin, end);                                                                      \
    }
#else
#define WIDE(kind, state)                                                                                              \
    static void kind##_run(void *const *buffers, int64_t begin, int64_t end) { kind##_tasks(buffers[0], begin, end); }
#endif

#endif
