/* Handlers of the switches of libraries for other devices (torch.backends.cudnn.flags): where torch has none of these, no operator looks at
** them. A call may set them as long as it puts them back (magpy/flags.py). What they are before is guarded; what the call reads of them
** afterwards, it has set itself. */
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <string.h>

static PyObject *attribute(const char *module_name, const char *name) /* owned, or NULL without an exception */
{
    PyObject *value = mp_import(module_name, name);
    PyErr_Clear();
    return value;
}

/* Borrowed, or NULL: magpy.flags.switched. */
static PyObject *switched(void)
{
    static PyObject *function; /* owned by the process */
    if (!function) function = attribute("magpy.flags", "switched");
    return function;
}

static bool has(const char *name)
{
    PyObject *value = attribute("torch._C", name);
    bool there = value != Py_False;
    Py_XDECREF(value);
    return there;
}

bool mp_flag_is_set(const mp_recorder *rec, PyObject *getter, PyObject *place)
{
    const char *name = PyCFunction_Check(getter) ? ((PyCFunctionObject *)getter)->m_ml->ml_name : NULL;
    for (uint32_t i = 0; name && i < rec->recording->n_ops; i++) {
        const mp_op *op = &rec->recording->ops[i];
        if (op->func != switched() || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(op->args, 0), name) != 0)
            continue;
        if (PyObject_RichCompareBool(PyTuple_GET_ITEM(op->args, 1), place, Py_EQ) == 1)
            return true; /* of plain values */
    }
    return false;
}

/* A switch of torch._C: _set_name(*place, value), beside _get_name(*place). */
void mp_handle_device_flag(mp_call *call)
{
    mp_recorder *rec = call->rec;
    char name[128];
    snprintf(name, sizeof name, "_get%s", ((PyCFunctionObject *)call->callable)->m_ml->ml_name + strlen("_set"));
    char *end = strstr(name, "_setter");
    if (end) memcpy(end, "_getter", strlen("_getter"));
    mp_kept kept = mp_keep();
    PyObject *args = mp_call_args(call), *place = args ? PyTuple_GetSlice(args, 0, call->nargs - 1) : NULL;
    bool plain = call->nargs && !call->nkw && switched();
    for (Py_ssize_t i = 0; i < call->nargs; i++) plain = plain && mp_is_scalar(call->args[i]);
    bool here = has("_has_cuda") || has("_has_cudnn");
    if (plain && end) /* precisions of other backends matter here */
        here = here || !PyUnicode_Check(call->args[0]) || PyUnicode_CompareWithASCIIString(call->args[0], "cuda") != 0;
    PyObject *getter = plain && !here ? attribute("torch._C", name) : NULL;
    PyObject *before = getter && place ? PyObject_CallObject(getter, place) : NULL;
    PyObject *note = before && mp_is_scalar(before)
                         ? Py_BuildValue("(sOOO)", name, place, before, call->args[call->nargs - 1])
                         : NULL;
    PyErr_Clear();
    if (!note) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "cannot be traced");
    } else {
        if (!mp_flag_is_set(rec, getter, place) &&
            (mp_rec_ensure(rec, getter) != MP_NO_OBJ || mp_rec_pin(rec, getter, NULL) != MP_NO_OBJ))
            mp_rec_read(rec, getter, MP_READ_STATE_CALL, place, before);
        if (!mp_rec_abandoned(rec)) mp_rec_op(rec, switched(), note, NULL, Py_None, true);
    }
    Py_XDECREF(args);
    Py_XDECREF(place);
    Py_XDECREF(getter);
    Py_XDECREF(before);
    Py_XDECREF(note);
    mp_restore(kept);
}
