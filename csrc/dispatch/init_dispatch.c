/* Dispatch's part of the module. */
#include "dispatch/dispatch.h"

extern PyType_Spec mp_callable_spec;
PyObject *mp_stats_counters(PyObject *module, PyObject *unused);
PyObject *mp_stats_clear(PyObject *module, PyObject *unused);
PyObject *mp_stats_reasons(PyObject *module, PyObject *unused);
PyObject *mp_callable_all(PyObject *module, PyObject *unused);
PyObject *mp_state_watch_stance(PyObject *module, PyObject *globals);
PyObject *mp_frames_watch_codes(PyObject *module, PyObject *args);
PyObject *mp_optimized_watch_hooks(PyObject *module, PyObject *globals);
PyObject *mp_stand_ins_note(PyObject *module, PyObject *bar);

static PyObject *reset(PyObject *module, PyObject *unused)
{
    mp_callable_reset_all();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"counters", mp_stats_counters, METH_NOARGS, "counters() -> dict\n\nCounters of this process."},
    {"clear_counters", mp_stats_clear, METH_NOARGS, "clear_counters()\n\nSet all counters to zero."},
    {"reasons", mp_stats_reasons, METH_NOARGS, "reasons() -> dict\n\nNames of fallback reasons and what they mean."},
    {"callables", mp_callable_all, METH_NOARGS, "callables() -> list\n\nAll living callables."},
    {"reset", reset, METH_NOARGS, "reset()\n\nMake every callable forget its traces."},
    {"watch_stance", mp_state_watch_stance, METH_O, "watch_stance(dict)\n\nTake the globals that hold torch's stance."},
    {"watch_codes", mp_frames_watch_codes, METH_VARARGS,
     "watch_codes(disabled, transparent, own_folder)\n\nTake codes of torch.compiler.disable's wrappers, and of "
     "nn.Module's call, and where magpy's code lies."},
    {"watch_hooks", mp_optimized_watch_hooks, METH_O,
     "watch_hooks(dict)\n\nTake the globals of torch.nn.modules.module, which hold its global hooks and the class "
     "Module."},
    {"note_stand_in", mp_stand_ins_note, METH_O,
     "note_stand_in(bar)\n\nA stand-in for a progress bar, made while a call is observed: at its end it becomes a "
     "bar."},
    {NULL},
};

static PyObject *add_error(PyObject *module, const char *name, const char *doc)
{
    char full[64];
    snprintf(full, sizeof full, "magpy.%s", name);
    PyObject *error = PyErr_NewExceptionWithDoc(full, doc, PyExc_RuntimeError, NULL);
    if (error && PyModule_AddObjectRef(module, name, error) < 0) Py_CLEAR(error);
    return error;
}

int mp_dispatch_module_init(PyObject *module)
{
    mp_callable_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &mp_callable_spec, NULL);
    if (!mp_callable_type || PyModule_AddType(module, mp_callable_type) < 0) return -1;
    mp_fullgraph_error = add_error(
        module, "FullgraphError",
        "A call compiled with fullgraph=True did not become one graph.\n\nThe message names the reason and the "
        "place in the program. The call was observed while it ran: its effects have happened.");
    mp_verification_error =
        add_error(module, "VerificationError", "Option verify found a compiled call that differs from the eager one.");
    mp_other_data = add_error(module, "OtherData",
                              "A step of a graph found data that the trace was not made for; never seen by programs.");
    if (!mp_fullgraph_error || !mp_verification_error || !mp_other_data) return -1;
    return mp_optimized_module_init(module) < 0 ? -1 : PyModule_AddFunctions(module, methods);
}
