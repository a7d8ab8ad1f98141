/* Plan: an executable schedule. A flat list of kernel calls, operator calls and views, run by a C loop without Python.
**
** Operators run by tier: KERNEL (generated), SHIM (a function of torch's AOTInductor C ABI), DISPATCHER
** (aoti_torch_call_dispatcher), PYTHON (the OpOverload is called; last resort, counted, shown by explain).
** The GIL is held by the caller. Intermediates live in the plan's arena; a plan that is already running (another thread, or
** re-entered) uses an arena of its own for that call.
*/
#ifndef MP_RUN_PLAN_H
#define MP_RUN_PLAN_H
#include "fuse/schedule.h"
#include "run/torch_abi.h"

typedef struct mp_plan mp_plan;

/* Compile `graph` (stolen, also on failure) into a plan: fuse, print, compile or find in the kernel cache, resolve operators.
** Without a usable compiler every operator runs as an operator (one warning). Returns an owned plan, or NULL with *why set. */
mp_plan *mp_plan_compile(mp_graph *graph, const mp_fuse_options *options, mp_reason *why);
void mp_plan_free(mp_plan *plan);

uint32_t mp_plan_n_inputs(const mp_plan *plan);
uint32_t mp_plan_n_outputs(const mp_plan *plan);

/* Run. `inputs` are borrowed tensors with exactly the metadata the graph was made for (guards ensure it). On success returns
** 0 and outputs[i] is an owned Python tensor, or NULL where the graph's output is none. An output that is an input is that very
** object (a new reference). On failure returns -1 with a Python exception set and nothing owned in `outputs`. Inputs are never
** written. */
int mp_plan_run(mp_plan *plan, PyObject *const *inputs, PyObject **outputs);

/* Has `object` what the plan was compiled to take as input `number`? Returns 0, or -1 with an exception. */
int mp_plan_check_input(const mp_plan *plan, PyObject *object, uint32_t number);

/* A tuple of n outputs (stolen), with None for NULL. Owned, or NULL with an exception. */
PyObject *mp_plan_answer(PyObject *const *outputs, uint32_t n);

/* Python: _C.compile_graph(nodes, outputs, fuse=True) -> _C.Plan; Plan is callable with a list/tuple of tensors and returns a tuple; its
** attributes: steps (list of (tier, name, detail) in order), kernels (list of dicts: name, ops, source_path, source, cuda_source, ir),
** arena_bytes. Unwraps a _C.Plan, or NULL without an exception if `object` is none. Borrowed. */
mp_plan *mp_plan_from_object(PyObject *object);

#endif
