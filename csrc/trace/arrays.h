/* numpy arrays inside the recorder: which memory they show, and what of it is data.
**
** An array of the program is one of three things, told by the object at the end of its chain of bases, its *root*:
**   constant  its memory was made by the call, of constants alone: nothing is recorded of it, until it meets a tensor or data;
**   data      its root is a tensor, or an array that stands for a value of the graph (its *region*): an array from outside, the result of a
**             computation with data, what was drawn. Every use takes a view of that value, as the array lies in the root's memory;
**   foreign   anything else (mapped files, buffers of others, other types of elements): the trace ends.
** A computation of numpy with data is one operator of the graph that makes the very call again (magpy.arrays). What writes into an array is
** recorded as a copy into the view. Files: arrays.c (memory, values), arrays_met.c (calls and instructions that meet arrays).
*/
#ifndef MP_TRACE_ARRAYS_H
#define MP_TRACE_ARRAYS_H
#include "trace/ndarray.h"
#include "trace/recorder_internal.h"

/* Find numpy's and magpy.arrays' objects, if numpy is imported; called when a recording starts. Keeps a pending exception. */
void mp_arrays_prepare(void);
bool mp_is_array_scalar_type(PyTypeObject *type); /* numpy.generic or a subclass */

/* Does the array, or anything in tuples, lists, dicts and slices, depend on data? Tensors count. */
bool mp_array_is_data(mp_recorder *rec, PyObject *array);
bool mp_holds_data(mp_recorder *rec, PyObject *object, int depth);
bool mp_holds_array(PyObject *object, int depth);

/* The array as a value of the graph, as it is now. shared: what changes the one must change the other from now on; else a constant stays one.
** Owned _C.Value, or NULL after abandoning. */
PyObject *mp_array_value(mp_recorder *rec, PyObject *array, bool shared);
/* The same with dimensions that run backwards turned around. */
PyObject *mp_array_forward(mp_recorder *rec, PyObject *array, bool shared);
/* The array's memory, from now on, is what `value` gives (a new array's: one that has no value yet). */
void mp_array_bind(mp_recorder *rec, PyObject *array, mp_value_id value);
/* The array's elements have been set, or are about to be set, to those of `value` (borrowed _C.Value). */
void mp_array_store(mp_recorder *rec, PyObject *array, PyObject *value);
/* C code looks at the elements: they become a check. later: it goes on looking at them, so that nothing may change them. */
void mp_array_settle(mp_recorder *rec, PyObject *array, bool later);
/* The array shows the tensor's memory, be it by a tensor of its own, which becomes known. */
void mp_array_adopt(mp_recorder *rec, PyObject *array, PyObject *tensor);
/* The tensor's data was changed by torch. */
void mp_array_tensor_changed(mp_recorder *rec, PyObject *tensor);
/* Can it be changed and stand beside tensors as from_numpy asks? */
bool mp_array_plain(PyObject *array);
/* (sizes, strides in elements without their signs, torch's type or None): owned, or NULL with an exception. */
PyObject *mp_array_meta(PyObject *array);
bool mp_array_regular(PyObject *array); /* elements that torch has a type for, at places that whole strides give? */
/* Positions of the dimensions that run backwards in memory: owned tuple, or NULL with an exception. */
PyObject *mp_array_reversed(PyObject *array);
/* Has it memory of its own, of which nothing is known? */
bool mp_array_is_new(mp_recorder *rec, PyObject *array);

/* The arguments with a tensor in the place of each array, for a torch function that takes arrays. Owned; NULL: after abandoning. */
PyObject *mp_arrays_as_tensors(mp_recorder *rec, PyObject *object, bool shared);

/* -- Calls and instructions that meet arrays (arrays_met.c) ----------------------------------------------------------------------------- */

/* A legacy constructor of tensors (torch.FloatTensor) has made `result` of arguments that hold arrays. */
void mp_array_constructed(mp_recorder *rec, PyObject *args, PyObject *kwargs, PyObject *result);
/* Before the instruction. True: it computes with arrays that are data, and nothing is left to record. */
bool mp_array_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg);
/* An attribute of an array is about to be read or set. */
void mp_array_attr(mp_recorder *rec, PyObject *array, PyObject *name);
void mp_array_store_attr(mp_recorder *rec, PyObject *array, PyObject *name);
void mp_array_iterate(mp_recorder *rec, PyObject *array);

/* A result or written value. owns: it has memory of its own, which no other result shows. Owned _C.Value, or NULL after abandoning. */
PyObject *mp_array_at_end(mp_recorder *rec, PyObject *array, bool *owns);

void mp_arrays_free(mp_recorder *rec);

#endif
