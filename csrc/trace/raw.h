/* Raw looks at Python objects, shared by attributes.c and containers.c: no user code runs, a pending exception is kept.
**
** "Plain" keys hash and compare in C alone and mean the same in every call (scalars and tuples of them); "safe" keys hash and compare
** in C alone, by identity or otherwise. Any other key may run the user's __hash__ or __eq__ and is only ever looked for by identity.
*/
#ifndef MP_TRACE_RAW_H
#define MP_TRACE_RAW_H
#include "trace/recorder.h"

/* A pending exception put aside around C calls that may set or clear one. */
typedef struct {
    PyObject *type, *value, *trace; /* owned */
} mp_kept;

static inline mp_kept mp_keep(void)
{
    mp_kept kept = {NULL, NULL, NULL};
    if (MP_UNLIKELY(PyErr_Occurred() != NULL)) PyErr_Fetch(&kept.type, &kept.value, &kept.trace);
    return kept;
}

/* Drop what was raised since mp_keep and set the exception that was pending then. */
static inline void mp_restore(mp_kept kept)
{
    if (MP_UNLIKELY(PyErr_Occurred() != NULL)) PyErr_Clear();
    if (MP_UNLIKELY(kept.type != NULL)) PyErr_Restore(kept.type, kept.value, kept.trace);
}

/* The interned str of `text`, remembered by its address: for names that the source spells out. Owned, or NULL with an exception. */
PyObject *mp_intern(const char *text);

/* Made by a class statement (or alike): its attributes can change. */
static inline bool mp_type_mutable(PyTypeObject *type)
{ return (type->tp_flags & Py_TPFLAGS_HEAPTYPE) && !(type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE); }

bool mp_type_python(PyTypeObject *type, const char *method); /* MRO lookup of `method` gives a Python function */
PyTypeObject *mp_type_deque(void); /* collections.deque and friends, borrowed; NULL only without memory */
PyTypeObject *mp_type_defaultdict(void);
PyTypeObject *mp_type_ndarray(void); /* NULL while numpy is not imported */
PyTypeObject *mp_type_thread_local(void);
bool mp_is_container(PyObject *object); /* list, tuple, dict, set, frozenset, deque or a subclass */

bool mp_key_plain(PyObject *key);
bool mp_key_safe(PyObject *key);
/* Item of a dict by identity where the key is not safe. *known false: only user code could tell. Borrowed or NULL. */
PyObject *mp_raw_dict_item(PyObject *dict, PyObject *key, bool *known);
Py_ssize_t mp_raw_length(PyObject *container);               /* of mp_is_container */
PyObject *mp_raw_item(PyObject *sequence, Py_ssize_t index); /* list, tuple, deque: owned, or NULL out of range */

/* C member or getset `name` of `owner` as `base` declares it. Owned, or NULL without an exception where it is unset. */
PyObject *mp_raw_member(PyTypeObject *base, const char *name, PyObject *owner);

void mp_rec_foreign(mp_recorder *rec,
                    PyObject *object); /* C code is about to look into an object that is no container */

#endif
