/* Mocks: rebuild the result and the written values of a recorded call, then commit the writes.
**
** A mock program is made once from the recording's result and write set and then only run. Steps: constant, external object, graph
** output, new tuple/list/dict/set/deque/slice/namedtuple/dataclass/instance/function/..., in an order in which everything exists before it is
** used (cycles are closed by fill-in steps). Shared references stay shared; external objects come back as themselves.
*/
#ifndef MP_MOCK_H
#define MP_MOCK_H
#include "trace/recording.h"

typedef struct mp_mock_program mp_mock_program;

/* Compile. Must be called while the recording's recorder is alive. Owned program, or NULL with *why (UNREBUILDABLE) set. */
mp_mock_program *mp_mock_compile(const mp_recording *recording, mp_reason *why);

/* External objects the program names, and graph values it needs as outputs: borrowed arrays that live as long as the program. */
size_t mp_mock_objects(const mp_mock_program *prog, const mp_obj_id **objects);
size_t mp_mock_values(const mp_mock_program *prog, const mp_value_id **values);
/* What the values' tensors were at the end of the observed call, as far as a graph does not tell: a borrowed list of (strides, or None for a
** tensor without; is it an inference tensor; the class of a leaf of autograd's or a parameter, else None; does it require grad). NULL where there are no values. */
PyObject *mp_mock_looks(const mp_mock_program *prog);

/* Rebuild: objects[i] current external objects, outputs[i] tensors, in the orders above, drawn[i] what draw number i gave (all borrowed). Builds the result and all values to be
** written; changes nothing outside. Owned state for commit, or NULL with an exception. */
typedef struct mp_mock_run mp_mock_run;
mp_mock_run *mp_mock_build(mp_mock_program *prog, PyObject *const *objects, PyObject *const *outputs,
                           PyObject *const *drawn);

/* Store everything in order and return the result (owned). Plain stores first, deferred effects last. `run` is consumed. NULL with
** an exception only if a deferred effect raised as it would have in eager. */
PyObject *mp_mock_commit(mp_mock_run *run);
void mp_mock_discard(mp_mock_run *run); /* NULL is fine */
/* Would its commit let something die of whose death a program hears: by __del__, a weak reference's callback, the end of a suspended generator?
** The program lets it die between its stores, the commit behind them. `held`: what the caller owns one reference to, each. Looks alone. */
bool mp_mock_lets_die(const mp_mock_run *run, PyObject *const *held, size_t n_held);
/* The rebuilt result of a run that is not committed yet. Borrowed. */
PyObject *mp_mock_result(const mp_mock_run *run);
/* What it would store: a list of (kind's name, owner, key or None, value), without a value where it would delete. Effects are left out. Owned, or
** NULL with an exception. */
PyObject *mp_mock_stores(const mp_mock_run *run);

/* Lines for people: writes and mocks, owned lists of str. */
PyObject *mp_mock_describe_writes(const mp_mock_program *prog);
PyObject *mp_mock_describe_result(const mp_mock_program *prog);

int mp_mock_traverse(mp_mock_program *prog, visitproc visit, void *arg);
void mp_mock_free(mp_mock_program *prog);

#endif
