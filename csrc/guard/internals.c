/* Layouts of interpreter objects that no public header shows (CPython 3.11). */
#define Py_BUILD_CORE
#include "guard/program.h"

#include "observe/observe.h"

#include <internal/pycore_dict.h>
#include <internal/pycore_object.h>
#undef Py_BUILD_CORE

static bool has_managed_dict(PyObject *object) { return Py_TYPE(object)->tp_flags & Py_TPFLAGS_MANAGED_DICT; }

PyObject **guard_values_pointer(PyObject *object)
{ return has_managed_dict(object) ? (PyObject **)_PyObject_ValuesPointer(object) : NULL; }

const Py_ssize_t *guard_shared_names(PyTypeObject *type)
{
    PyDictKeysObject *keys = type->tp_flags & Py_TPFLAGS_HEAPTYPE ? ((PyHeapTypeObject *)type)->ht_cached_keys : NULL;
    return keys ? &keys->dk_nentries : NULL;
}
