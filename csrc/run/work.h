/* Work: how many operations and bytes a step of a plan cannot do without, for comparison with what the machine can do. */
#ifndef MP_RUN_WORK_H
#define MP_RUN_WORK_H
#include "run/plan_inside.h"

/* flops: multiplications and additions of matrix products and convolutions, by their definition; 0 for all else. bytes: of what is read
** and written, each element once; 0 where data says how much is read (gathers), of
** other operators of torch, and of steps that compute nothing. */
typedef struct {
    int64_t flops, bytes;
} mp_work;

mp_work mp_plan_work(const mp_plan *plan, const mp_insn *insn);

#endif
