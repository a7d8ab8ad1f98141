/* The torch-function mode: an object on torch's mode stack through which every torch call of the program passes. */
#include "observe/internal.h"

/* -- The object ---------------------------------------------------------------------------------------------------------- */

static PyObject *the_mode; /* owned by the process; holds nothing, the observation is found by thread */

/* __torch_function__(func, types, args=(), kwargs=None) */
static PyObject *torch_function(PyObject *self, PyObject *const *given, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *args = nargs > 2 ? given[2] : NULL, *kwargs = nargs > 3 ? given[3] : NULL;
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (PyUnicode_CompareWithASCIIString(name, "args") == 0) args = given[nargs + i];
        if (PyUnicode_CompareWithASCIIString(name, "kwargs") == 0) kwargs = given[nargs + i];
    }
    if (nargs < 2 || (args && !PyTuple_Check(args)) || (kwargs && kwargs != Py_None && !PyDict_Check(kwargs))) {
        PyErr_SetString(PyExc_TypeError, "__torch_function__(func, types, args=(), kwargs=None)");
        return NULL;
    }
    PyObject *positional = args ? Py_NewRef(args) : PyTuple_New(0);
    if (!positional) return NULL;
    if (kwargs == Py_None || (kwargs && PyDict_GET_SIZE(kwargs) == 0)) kwargs = NULL;
    PyObject *out = mp_observe_torch_function(given[0], positional, kwargs);
    Py_DECREF(positional);
    return out;
}

static PyMethodDef mode_methods[] = {
    {"__torch_function__", (PyCFunction)(void *)torch_function, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL},
};

static PyType_Slot mode_slots[] = {
    {Py_tp_methods, mode_methods},
    {Py_tp_doc, "Watches torch calls while a call is observed."},
    {0, NULL},
};

static PyType_Spec mode_spec = {.name = "magpy._C.Mode",
                                .basicsize = sizeof(PyObject),
                                .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                                .slots = mode_slots};

int mp_mode_init(PyObject *module)
{
    if (the_mode) return 0;
    PyObject *type = PyType_FromSpec(&mode_spec);
    the_mode = type ? PyObject_CallNoArgs(type) : NULL;
    Py_XDECREF(type);
    return the_mode ? 0 : -1;
}

/* -- torch's stack ---------------------------------------------------------------------------------------------------------- */

static struct { /* owned by the process, looked up when torch has been imported */
    PyObject *push, *pop, *length, *at;
    PyObject *dispatch; /* code of torch.overrides.handle_torch_function */
} torch;

static PyObject *imported(const char *name) { return PyDict_GetItemString(PyImport_GetModuleDict(), name); }

/* 1 torch is there, 0 not (yet), -1 with an exception. */
static int find_torch(void)
{
    if (torch.dispatch) return 1;
    PyObject *overrides = imported("torch.overrides"), *c = imported("torch._C");
    if (!overrides || !c || !imported("torch")) return 0;
    PyObject *handle = PyObject_GetAttrString(overrides, "handle_torch_function");
    if (!handle) return -1;
    PyObject *code = PyObject_GetAttrString(handle, "__code__");
    Py_DECREF(handle);
    torch.push = PyObject_GetAttrString(c, "_push_on_torch_function_stack");
    torch.pop = torch.push ? PyObject_GetAttrString(c, "_pop_torch_function_stack") : NULL;
    torch.length = torch.pop ? PyObject_GetAttrString(c, "_len_torch_function_stack") : NULL;
    torch.at = torch.length ? PyObject_GetAttrString(c, "_get_function_stack_at") : NULL;
    if (!torch.at || !code) {
        Py_CLEAR(torch.push);
        Py_CLEAR(torch.pop);
        Py_CLEAR(torch.length);
        Py_XDECREF(code);
        return -1;
    }
    torch.dispatch = code;
    return 1;
}

bool mp_mode_is_dispatch(PyCodeObject *code) { return (PyObject *)code == torch.dispatch; }

bool mp_mode_push(mp_recorder *rec)
{
    int found = find_torch();
    PyObject *done = found == 1 ? PyObject_CallOneArg(torch.push, the_mode) : NULL;
    if (found < 0 || (found && !done)) {
        mp_reason why = {0};
        mp_reason_set_exception(&why, MP_REASON_TORCH_STATE);
        mp_rec_abandon(rec, why.code, "%s", why.detail);
    }
    Py_XDECREF(done);
    return done != NULL;
}

static Py_ssize_t stack_length(void)
{
    PyObject *length = PyObject_CallNoArgs(torch.length);
    Py_ssize_t n = length ? PyLong_AsSsize_t(length) : -1;
    Py_XDECREF(length);
    return n;
}

bool mp_mode_pop_if_top(void)
{
    Py_ssize_t n = stack_length();
    if (n <= 0) return false;
    PyObject *top = PyObject_CallFunction(torch.at, "n", n - 1);
    bool ours = top == the_mode;
    Py_XDECREF(top);
    if (!ours) return false;
    PyObject *popped = PyObject_CallNoArgs(torch.pop);
    Py_XDECREF(popped);
    return popped != NULL;
}

void mp_mode_remove(void)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *above = PyList_New(0);
    while (above && stack_length() > 0 && !mp_mode_pop_if_top()) {
        PyObject *mode = PyObject_CallNoArgs(torch.pop);
        if (!mode || PyList_Append(above, mode) < 0) {
            Py_XDECREF(mode);
            break;
        }
        Py_DECREF(mode);
    }
    for (Py_ssize_t i = above ? PyList_GET_SIZE(above) : 0; i-- > 0;) {
        PyObject *done = PyObject_CallOneArg(torch.push, PyList_GET_ITEM(above, i));
        Py_XDECREF(done);
    }
    Py_XDECREF(above);
    mp_error_clear();
    PyErr_Restore(type, value, trace);
}
