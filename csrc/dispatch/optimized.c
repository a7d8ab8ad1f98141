/* The base of compiled modules: calling one goes straight to its C callable unless hooks ask for torch's own way. */
#include "dispatch/dispatch.h"
#include "observe/observe.h"

#include <string.h>

/* Names of the instance's hook dicts, then of torch.nn.modules.module's global ones: if any is not empty, nn.Module.__call__ runs. */
#define OWN_HOOKS(X) X(_forward_hooks) X(_forward_pre_hooks) X(_backward_hooks) X(_backward_pre_hooks)
#define GLOBAL_HOOKS(X)                                                                                                \
    X(_global_forward_hooks) X(_global_forward_pre_hooks) X(_global_backward_hooks) X(_global_backward_pre_hooks)

enum {
#define NAME(name) NAME_##name,
    OWN_HOOKS(NAME) GLOBAL_HOOKS(NAME) N_NAMES
#undef NAME
};
static PyObject *names[N_NAMES + 3]; /* owned, interned */
enum { NAME_forward = N_NAMES, NAME_slow_call, NAME_compiled };
static PyObject *module_globals; /* owned: the dict of torch.nn.modules.module */

/* torch.nn.Module's ways to be called, which a program may replace (as torch.fx does while it traces) and put back. */
static struct {
    PyTypeObject *type;                /* owned */
    PyObject *names[2], *functions[2]; /* owned: torch's own; NULL where another was there before magpy was loaded */
    uint64_t version;                  /* of the type's dict when they were last found in place */
} calls;

/* Is a module still called as torch does it? No exception. */
static bool calls_in_place(void)
{
    PyObject *dict = calls.type->tp_dict; /* str keys, as in every class: compares without user code */
    if (MP_LIKELY(mp_dict_version(dict) == calls.version)) return true;
    for (int i = 0; i < 2; i++)
        if (PyDict_GetItemWithError(dict, calls.names[i]) != calls.functions[i]) return false;
    calls.version = mp_dict_version(dict);
    return true;
}

static bool empty(PyObject *dict, PyObject *name)
{
    PyObject *hooks = PyDict_GetItemWithError(dict, name); /* a str key compares without user code */
    return hooks && PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0;
}

/* The callable to go to, borrowed, or NULL (no exception): hooks are present, `forward` or the way to it is something else, or the call is
** watched and the way through Python shows what it reads. */
static PyObject *direct(PyObject *self)
{
    PyObject **slot = _PyObject_GetDictPtr(self), *dict = slot ? *slot : NULL;
    if (!dict || !module_globals || mp_observe_active()) return NULL;
    if (!calls_in_place()) return NULL;
    PyObject *forward = PyDict_GetItemWithError(dict, names[NAME_forward]);
    if (!forward || Py_TYPE(forward) != mp_callable_type) return NULL;
    for (int i = 0; i < N_NAMES; i++)
        if (!empty(i < NAME__global_forward_hooks ? dict : module_globals, names[i])) return NULL;
    if (PyDict_GetItemWithError(dict, names[NAME_compiled])) return NULL; /* the compiled module was compiled in turn */
    return forward;
}

static PyObject *optimized_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    PyObject *forward = direct(self);
    if (MP_LIKELY(forward != NULL)) {
        Py_INCREF(forward);
        PyObject *result =
            kwargs && PyDict_GET_SIZE(kwargs)
                ? PyObject_VectorcallDict(forward, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args), kwargs)
                : PyObject_Vectorcall(forward, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args), NULL);
        Py_DECREF(forward);
        return result;
    }
    mp_error_clear();
    PyObject *slow = PyObject_GetAttr(self, names[NAME_slow_call]);
    PyObject *result = slow ? PyObject_Call(slow, args, kwargs) : NULL;
    Py_XDECREF(slow);
    return result;
}

static PyType_Slot optimized_slots[] = {
    {Py_tp_doc,
     "Base of compiled modules: a call goes to the instance's `forward`, through `_slow_call` if there are hooks."},
    {Py_tp_call, optimized_call},
    {0, NULL},
};

static PyType_Spec optimized_spec = {
    .name = "magpy._C.OptimizedBase",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = optimized_slots,
};

/* _C.watch_hooks(dict): the globals of torch.nn.modules.module, with the class Module. Raises TypeError where they are not. */
PyObject *mp_optimized_watch_hooks(PyObject *module, PyObject *globals)
{
    static const char *const texts[] = {"__call__", "_call_impl"};
    PyObject *type = PyDict_CheckExact(globals) ? PyDict_GetItemString(globals, "Module") : NULL;
    if (!type || !PyType_Check(type))
        return PyErr_Format(PyExc_TypeError, "the globals of torch.nn.modules.module are needed");
    for (int i = 0; i < 2; i++) {
        if (!calls.names[i] && !(calls.names[i] = PyUnicode_InternFromString(texts[i]))) return NULL;
        PyObject *function = PyDict_GetItemWithError(((PyTypeObject *)type)->tp_dict, calls.names[i]);
        bool is_torchs = function && PyFunction_Check(function) && PyFunction_GET_GLOBALS(function) == globals;
        Py_XSETREF(calls.functions[i], is_torchs ? Py_NewRef(function) : NULL);
    }
    calls.version = 0;
    Py_XSETREF(calls.type, (PyTypeObject *)Py_NewRef(type));
    Py_XSETREF(module_globals, Py_NewRef(globals));
    Py_RETURN_NONE;
}

int mp_optimized_module_init(PyObject *module)
{
    static const char *const texts[] = {
#define NAME(name) #name,
        OWN_HOOKS(NAME) GLOBAL_HOOKS(NAME)
#undef NAME
            "forward",
        "_slow_call", "_compiled_call_impl"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!names[i] && !(names[i] = PyUnicode_InternFromString(texts[i]))) return -1;
    PyObject *type = PyType_FromSpec(&optimized_spec);
    if (!type) return -1;
    int failed = PyModule_AddObjectRef(module, "OptimizedBase", type);
    Py_DECREF(type);
    return failed;
}
