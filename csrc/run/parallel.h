/* Parallel: a kernel's outer iterations on torch's own thread pool.
**
** at::parallel_for divides [0, extent) as eager's kernels are divided: torch.get_num_threads() threads at most, at least `grain` iterations
** each, one thread inside of another parallel region. No second OpenMP runtime is ever started.
*/
#ifndef MP_RUN_PARALLEL_H
#define MP_RUN_PARALLEL_H
#include "run/torch_abi.h"

typedef void (*mp_kernel_fn)(void *const *buffers, int64_t begin, int64_t end);

typedef struct {
    mp_kernel_fn function;
    void *const *buffers; /* borrowed */
} mp_parallel_task;

static inline void mp_parallel_body(int64_t begin, int64_t end, void *context)
{
    const mp_parallel_task *task = context;
    task->function(task->buffers, begin, end);
}

/* Run all iterations. Never fails: without the pool, or if it gives an error before it starts, the calling thread does the work. */
static inline void mp_parallel_run(mp_kernel_fn function, void *const *buffers, int64_t extent, int64_t grain)
{
    if (extent <= 0) return;
    if (grain < 1) grain = 1;
    if (extent > grain && mp_torch.parallel_for) {
        mp_parallel_task task = {function, buffers};
        if (!mp_torch.parallel_for(0, extent, grain, mp_parallel_body, &task)) return;
    }
    function(buffers, 0, extent);
}

#endif
