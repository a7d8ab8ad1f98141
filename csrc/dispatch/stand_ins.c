/* Stand-ins for progress bars (magpy/progress.py): those that the program still has when the call that was observed ends become bars. */
#include "dispatch/dispatch.h"
#include "observe/observe.h"

static _Thread_local PyObject *made; /* owned list of weak references, or NULL */

/* _C.note_stand_in(bar): an observed call has made it. */
PyObject *mp_stand_ins_note(PyObject *module, PyObject *bar)
{
    if (!mp_observe_active()) Py_RETURN_NONE;
    if (!made && !(made = PyList_New(0))) return NULL;
    PyObject *ref = PyWeakref_NewRef(bar, NULL);
    int failed = ref ? PyList_Append(made, ref) : -1;
    Py_XDECREF(ref);
    if (failed < 0) return NULL;
    Py_RETURN_NONE;
}

bool mp_stand_ins_left(void)
{
    for (Py_ssize_t i = 0; made && i < PyList_GET_SIZE(made); i++)
        if (PyWeakref_GET_OBJECT(PyList_GET_ITEM(made, i)) != Py_None) return true;
    return false;
}

void mp_stand_ins_end(void)
{
    if (MP_LIKELY(!made)) return;
    PyObject *refs = made, *type, *value, *traceback;
    made = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *progress = PyImport_ImportModule("magpy.progress");
    for (Py_ssize_t i = 0; progress && i < PyList_GET_SIZE(refs); i++) {
        PyObject *bar = PyWeakref_GET_OBJECT(PyList_GET_ITEM(refs, i));
        if (bar == Py_None) continue;
        Py_INCREF(bar);
        PyObject *done = PyObject_CallMethod(progress, "become", "O", bar);
        if (!done) mp_error_clear(); /* it stays a stand-in, which passes on to the bar what it is asked */
        Py_XDECREF(done);
        Py_DECREF(bar);
    }
    if (!progress) mp_error_clear();
    Py_XDECREF(progress);
    Py_DECREF(refs);
    PyErr_Restore(type, value, traceback);
}
