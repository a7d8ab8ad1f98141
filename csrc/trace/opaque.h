/* Opaque tensors: sparse and quantised ones, whose elements no kernel reads. A function that takes or gives one is recorded as a step that calls
** it (magpy/opaque_tensors.py), if it is one of those known there.
*/
#ifndef MP_TRACE_OPAQUE_H
#define MP_TRACE_OPAQUE_H
#include "trace/ops.h"

/* Does the function ask an opaque tensor for what no guard tells of it? */
bool mp_opaque_asked(const mp_running_op *op);
/* Is an opaque tensor among its arguments or results? */
bool mp_opaque_involved(const mp_running_op *op, PyObject *out);
/* Record it, or abandon. */
void mp_opaque_end(mp_recorder *rec, mp_running_op *op, PyObject *out);
/* Is it the function of a recorded operator whose results' sizes, or what it answers, are data? */
bool mp_opaque_is_sized(PyObject *func);

int mp_opaque_module_init(PyObject *module);

#endif
