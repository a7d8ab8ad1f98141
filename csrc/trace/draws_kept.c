/* What draws gave to runs that were thrown away, for the other traces that the same call tries, and for the call itself where it is observed:
** which trace serves a call must not decide what is drawn. Of generators whose state is put back nothing needs to be kept.
*/
#include "trace/recorder.h"
#include "trace/recorder_internal.h"

static _Thread_local PyObject
    *kept; /* owned list of (func, args, kwargs, result) in the order in which they were made, or NULL */

PyObject *mp_draws_begin(void)
{
    PyObject *outer = kept;
    kept = NULL;
    return outer;
}

void mp_draws_end(PyObject *outer)
{
    PyObject *own = kept;
    kept = outer;
    if (!own) return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_DECREF(own);
    PyErr_Restore(type, value, traceback);
}

void mp_draws_keep(PyObject *func, PyObject *args, PyObject *kwargs, PyObject *result)
{
    if (!kept) kept = PyList_New(0);
    PyObject *row = kept ? PyTuple_Pack(4, func, args, kwargs, result) : NULL;
    if (!row || PyList_Append(kept, row) < 0) PyErr_Clear(); /* then it is drawn anew */
    Py_XDECREF(row);
}

/* The same object, or constants of one value; no user code runs. */
static bool same(PyObject *a, PyObject *b)
{
    if (a == b) return true;
    if (mp_is_scalar(a) && mp_is_scalar(b)) return mp_scalar_same(a, b);
    bool tuples = PyTuple_CheckExact(a) && PyTuple_CheckExact(b), lists = PyList_CheckExact(a) && PyList_CheckExact(b);
    if ((!tuples && !lists) || Py_SIZE(a) != Py_SIZE(b)) return false;
    for (Py_ssize_t i = 0; i < Py_SIZE(a); i++)
        if (!same(PySequence_Fast_GET_ITEM(a, i), PySequence_Fast_GET_ITEM(b, i))) return false;
    return true;
}

/* Bound C functions are made anew by each look at them. */
static bool same_function(PyObject *a, PyObject *b)
{
    if (a == b || !PyCFunction_Check(a) || !PyCFunction_Check(b)) return a == b;
    return ((PyCFunctionObject *)a)->m_ml == ((PyCFunctionObject *)b)->m_ml &&
           PyCFunction_GET_SELF(a) == PyCFunction_GET_SELF(b);
}

static bool same_keywords(PyObject *a, PyObject *b)
{
    PyObject *key, *value;
    if (PyDict_GET_SIZE(a) != PyDict_GET_SIZE(b)) return false;
    for (Py_ssize_t at = 0; PyDict_Next(a, &at, &key, &value);) {
        PyObject *other = PyDict_GetItemWithError(b, key); /* keys are names */
        if (!other || !same(value, other)) return false;
    }
    return true;
}

PyObject *mp_draws_take(PyObject *func, PyObject *args, PyObject *kwargs)
{
    for (Py_ssize_t i = 0; kept && i < PyList_GET_SIZE(kept); i++) {
        PyObject *row = PyList_GET_ITEM(kept, i);
        if (!same_function(PyTuple_GET_ITEM(row, 0), func)) continue;
        if (!same(PyTuple_GET_ITEM(row, 1), args) || !same_keywords(PyTuple_GET_ITEM(row, 2), kwargs)) continue;
        PyObject *result = Py_NewRef(PyTuple_GET_ITEM(row, 3));
        if (PyList_SetSlice(kept, i, i + 1, NULL) < 0) PyErr_Clear();
        return result;
    }
    return NULL;
}
