/* torch's global state as far as it changes what a program computes: grad mode, inference mode, autocast, default dtype and device,
** deterministic flags, mkldnn and SDP flags, dispatch and function modes, saved-tensor hooks, anomaly, functorch level, threads' flush
** denormal, matmul precision. One packed snapshot, one compare. */
#ifndef MP_GUARD_TORCH_STATE_H
#define MP_GUARD_TORCH_STATE_H
#include "magpy.h"

/* Owned snapshot object (opaque), or NULL with an exception. Reads only. */
PyObject *mp_torch_state_read(void);
/* 1 the current state equals `snapshot`, 0 not (*what, if not NULL, gets a static name of the first difference). Never fails. */
int mp_torch_state_same(PyObject *snapshot, const char **what);
/* Can a program be traced in the current state at all (no functorch level, dispatch mode, jit tracing, foreign function mode)? 0, or -1
** with *why set (TORCH_STATE). */
int mp_torch_state_traceable(mp_reason *why);

/* {mode: (value, is it read directly?)}: owned dict, or NULL with an exception. For tests and for people. */
PyObject *mp_torch_state_show(void);

#endif
