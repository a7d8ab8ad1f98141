/* What every call reads first: torch.compiler's stance, and whether this thread is already inside magpy. */
#include "dispatch/dispatch.h"
#include "observe/observe.h"

_Thread_local uint32_t mp_state_busy;

/* torch keeps the stance in a global of torch._dynamo.eval_frame, as an object that set_stance replaces. */
static struct {
    PyObject *globals; /* owned: eval_frame's dict, once magpy.backend has handed it over */
    uint64_t version;  /* of globals when `now` was read; 0: read again */
    PyObject *object;  /* owned: the stance object that `now` stands for (owned, so that its address is not reused) */
    mp_stance now;
} stance;

static const struct {
    const char *name;
    mp_stance value;
} stance_names[] = {
    {"default", MP_STANCE_DEFAULT},
    {"force_eager", MP_STANCE_FORCE_EAGER},
    {"eager_on_recompile", MP_STANCE_EAGER_ON_RECOMPILE},
    {"fail_on_recompile", MP_STANCE_FAIL_ON_RECOMPILE},
    {"eager_then_compile", MP_STANCE_EAGER_THEN_COMPILE},
    {"aot_eager_then_compile", MP_STANCE_EAGER_THEN_COMPILE},
};

/* Read a stance object's fields. An unknown stance runs plainly: torch itself rejects unknown names. */
static mp_stance stance_read(PyObject *object)
{
    mp_stance result = MP_STANCE_FORCE_EAGER;
    PyObject *name = PyObject_GetAttrString(object, "stance");
    PyObject *backend = name ? PyObject_GetAttrString(object, "backend") : NULL;
    if (backend && PyUnicode_Check(name))
        for (size_t i = 0; i < sizeof stance_names / sizeof *stance_names; i++)
            if (PyUnicode_CompareWithASCIIString(name, stance_names[i].name) == 0) result = stance_names[i].value;
    if (backend && backend != Py_None && result == MP_STANCE_DEFAULT) {
        PyObject *ours = mp_call_imported("magpy.backend", "_is_magpy", "(O)", backend);
        if (ours != Py_True) result = MP_STANCE_FORCE_BACKEND;
        Py_XDECREF(ours);
    }
    Py_XDECREF(name);
    Py_XDECREF(backend);
    mp_error_clear(); /* a stance that cannot be read runs plainly */
    return result;
}

static MP_COLD void stance_refresh(void)
{
    PyObject *object = PyDict_GetItemString(stance.globals, "_stance"); /* borrowed */
    uint64_t version = mp_dict_version(stance.globals);
    if (object && object != stance.object) {
        Py_INCREF(object);
        mp_stance now = stance_read(object);
        PyObject *old = stance.object;
        stance.object = object;
        stance.now = now;
        Py_XDECREF(old);
    }
    stance.version = object ? version : 0;
}

mp_stance mp_state_stance(void)
{
    if (MP_UNLIKELY(!stance.globals)) return MP_STANCE_DEFAULT; /* torch.compile was never used */
    if (MP_UNLIKELY(mp_dict_version(stance.globals) != stance.version)) stance_refresh();
    return stance.now;
}

/* -- Python ------------------------------------------------------------------------------------------------------ */

/* _C.watch_stance(dict): the globals of torch._dynamo.eval_frame. */
PyObject *mp_state_watch_stance(PyObject *module, PyObject *globals)
{
    if (!PyDict_CheckExact(globals)) return PyErr_Format(PyExc_TypeError, "a dict is needed");
    Py_INCREF(globals);
    Py_XSETREF(stance.globals, globals);
    stance.version = 0;
    Py_RETURN_NONE;
}
