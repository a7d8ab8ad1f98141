/* _C.BoundPlan: a plan some of whose inputs are bound. Constants come before the inputs of a call; behind them comes what is made of weights
** among these and kept as long as they are unchanged (magpy/freezing.py).
*/
#ifndef MP_RUN_BOUND_H
#define MP_RUN_BOUND_H
#include "run/plan.h"

typedef struct mp_bound mp_bound;

/* `object` as such, if it is one around a plan; NULL without an exception if not. Borrowed. */
mp_bound *mp_bound_from_object(PyObject *object);

/* Of the plan inside. */
uint32_t mp_bound_n_outputs(const mp_bound *bound);

/* As mp_plan_run, with the n inputs that are not bound. The plan takes what it was compiled for: that is checked of what is made anew, of
** `inputs` the caller has checked it. */
int mp_bound_run(mp_bound *bound, PyObject *const *inputs, uint32_t n, PyObject **outputs);

/* Add the type to the module. Returns 0, or -1 with an exception. */
int mp_bound_init(PyObject *module);

#endif
