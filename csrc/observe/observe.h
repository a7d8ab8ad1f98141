/* Observe: runs a call under the eye of the recorder. The only room that knows interpreter internals.
**
** While a call is observed: a C trace function with opcode events and a torch-function mode are installed on this thread, garbage
** collection is held off, and the eval hook is chained. Everything is put back at the end, whatever happened in between.
*/
#ifndef MP_OBSERVE_H
#define MP_OBSERVE_H
#include "trace/recorder.h"

/* Call target(*args, **kwargs) (vectorcall style) observed by `rec`. Returns what the call returned: an owned result, or NULL with the
** program's own exception. If it could not be observed, the call has still been made exactly once and rec is abandoned. */
PyObject *mp_observe_call(mp_recorder *rec, PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames);

/* Is this thread inside mp_observe_call? Then magpy's own callables run their targets plainly (they are being watched). */
bool mp_observe_active(void);

/* Can this thread be observed now? 0, or -1 with *why set (another tracer, torch mode, recursion). */
int mp_observe_possible(mp_reason *why);

/* Only while the recorder is shown an instruction: put tuple(*slot) into *slot, a place on the frame's stack, as that instruction is about to
** do itself. The frames that this runs are observed like all others. False if it raised: then the instruction will raise that. */
bool mp_observe_gather(PyObject **slot);

/* Likewise, where that instruction imports a module for the first time: import it now, as it is about to do. What runs then is no part of the
** recording. False if it raised: then the instruction will raise that. */
bool mp_observe_import(PyObject *name, PyObject *globals, PyObject *fromlist, int level);

/* -- Frame fallback: run plainly, offer every callee frame to dispatch ------------------------------------------------------ */

/* Called for each Python function frame entered on this thread while mp_observe_frames runs a call; `func` and the bound arguments
** are borrowed. Return 1 with *result set (owned, or NULL with exception) to answer instead of running the frame; 0 to run it. */
typedef int (*mp_frame_offer)(void *context, PyFunctionObject *func, PyObject *const *locals, PyObject **result);

/* Call target with the eval hook installed (chained to the hook that was there; removed only if still ours). Owned result or NULL
** with the program's exception. */
PyObject *mp_observe_frames(PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames,
                            mp_frame_offer offer, void *context);

/* -- Interpreter internals other rooms need ---------------------------------------------------------------------------------- */

uint64_t mp_dict_version(PyObject *dict); /* ma_version_tag */
const uint64_t *mp_dict_version_address(PyObject *dict);
uint32_t mp_type_version(PyTypeObject *type); /* forced to exist; 0: impossible */
uint32_t mp_function_version(PyObject *func); /* forced to exist; 0: impossible */
const uint32_t *mp_function_version_address(PyObject *func);
bool mp_generator_suspended(PyObject *object); /* a generator, coroutine or the like that has begun and not ended? */
void mp_never_finalize(PyObject *object);      /* it may die, but without its __del__ */
/* Iterators over lists, tuples and ranges, count() and repeat(), and what enumerate(), zip(), reversed(), cycle(), chain() and islice() make
** of them: next() runs no code of a program's. seen: called with each list that one walks; false from it is the answer. */
typedef bool (*mp_sequence_seen)(PyObject *list, void *data);
bool mp_iterator_plain(PyObject *iterator, mp_sequence_seen seen, void *data);
PyObject *mp_iterator_state(
    PyObject *iterator); /* where such a one is, and those inside: owned tuple, or NULL with an exception */
int mp_iterator_set_state(PyObject *state); /* put it back; -1 with an exception without memory */
/* An iterator over a list, tuple, text, bytes or bytearray, one over a list or anything else from its end, or one by __getitem__: they are
** laid out alike. */
typedef struct {
    PyObject_HEAD Py_ssize_t place;
    PyObject *sequence; /* owned; NULL: it has ended, and stays so */
} mp_sequence_iterator;
mp_sequence_iterator *mp_sequence_iterator_of(PyObject *object); /* the object itself, or NULL if it is none such */
/* A new one of such a type; no code of the sequence's runs, and `place` is taken as it is. sequence: NULL for one that has ended. Owned, or
** NULL with an exception. */
PyObject *mp_sequence_iterator_new(PyTypeObject *type, PyObject *sequence, Py_ssize_t place);
/* Where an instance's attributes are: its dict pointer's slot and inline values' slot, NULL where it has none. No materialisation. */
PyObject **mp_instance_dict_slot(PyObject *object);
/* The inline value slot of attribute `name` of an instance whose dict is not materialised, or NULL. Borrowed address, valid while the
** type's shared keys and the instance's values stay. */
PyObject **mp_instance_value_slot(PyObject *object, PyObject *name);
/* Look a key up without hashing or comparing by anybody's Python code; subclass methods are not called. 1: found, *value is borrowed (set
** only for dicts). 0: not there. -1: a key of the same hash has an equality of its own, so only the program can tell. No exception. */
int mp_dict_find(PyObject *dict, PyObject *key, Py_hash_t hash, PyObject **value);
int mp_set_find(PyObject *set, PyObject *key, Py_hash_t hash);
/* How a set lies in its table: what its order is after the next change, and which element it pops next, follow from that. Owned bytes, or
** NULL with an exception. */
PyObject *mp_set_layout(PyObject *set);
bool mp_set_lies(PyObject *set, PyObject *layout); /* does it lie so? */
/* Fill a new, empty set with plain items, in the order in which they lie. 0, or -1 with an exception. */
int mp_set_lay(PyObject *set, PyObject *layout, PyObject *const *items);
void mp_set_swap(PyObject *first, PyObject *second); /* exchange the contents of two sets that are no frozensets */
int mp_dict_find_str(PyObject *dict, PyObject *key, PyObject **value); /* an exact str, whose hash is C's own */

#endif
