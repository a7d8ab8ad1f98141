/* Fallback by frame: a call that cannot be traced runs plainly, and the Python functions it calls get traces of their own. */
#include "dispatch/dispatch.h"
#include "observe/observe.h"

#include <string.h>

#define MAX_CALLEES 512 /* code objects that one callable serves; further functions run plainly */
#define MAX_ARGS 64     /* arguments of a function that is served */

#define QUIET_CALLS 4   /* after so many calls in which nothing was served, the eval hook is not worth its cost */
#define QUIET_RETRY 256 /* but a call in so many is watched again */

/* Code of the wrappers that torch.compiler.disable makes: they and what they call are left alone. */
static PyObject *disabled_codes; /* owned frozenset, or NULL */
static _Thread_local bool left_alone;

/* Where magpy's own Python code lies, which the program may get into: backward passes, hooks. It is left alone likewise. */
static PyObject *own_folder; /* owned str, ending in a slash, or NULL */

/* Code of nn.Module's call machinery, the same for every module: it is not served itself, what it calls is. */
static PyObject *transparent_codes;             /* owned frozenset, or NULL */
static _Thread_local mp_callable *current_root; /* borrowed: whose fallback by frame is under way */

typedef struct {
    mp_callable *root;     /* borrowed */
    uint64_t served;       /* frames answered by callables */
    PyObject *target_code; /* borrowed, or NULL: the target's own frame, which is the one that cannot be traced */
} frames_context;

/* The callable that serves a code object, made at first sight. Borrowed from root->callees, or NULL (never an exception): run plainly. */
static mp_callable *callee(mp_callable *root, PyObject *code)
{
    if (!root->callees && !(root->callees = PyDict_New())) goto give_up;
    PyObject *found = PyDict_GetItemWithError(root->callees, code);
    if (found || PyErr_Occurred() || PyDict_GET_SIZE(root->callees) >= MAX_CALLEES) {
        mp_error_clear();
        return (mp_callable *)found;
    }
    mp_callable *made = mp_callable_for_frame(root);
    if (!made) goto give_up;
    int failed = PyDict_SetItem(root->callees, code, (PyObject *)made);
    Py_DECREF(made); /* the dict owns it */
    if (!failed) return made;
give_up:
    mp_error_clear();
    return NULL;
}

/* Lay out a frame's bound arguments for a call. Returns the number of positional ones, or -1 if there are too many (no exception).
** *kwnames is owned. All values are borrowed from the frame. */
static Py_ssize_t lay_out(PyCodeObject *code, PyObject *const *locals, PyObject **args, PyObject **kwnames)
{
    Py_ssize_t n = 0, next = code->co_argcount + code->co_kwonlyargcount, n_names = code->co_kwonlyargcount;
    PyObject *varargs = code->co_flags & CO_VARARGS ? locals[next++] : NULL;
    PyObject *varkw = code->co_flags & CO_VARKEYWORDS ? locals[next] : NULL;
    if (varkw) n_names += PyDict_GET_SIZE(varkw);
    if (code->co_argcount + n_names + (varargs ? PyTuple_GET_SIZE(varargs) : 0) > MAX_ARGS) return -1;
    for (int i = 0; i < code->co_argcount; i++) args[n++] = locals[i];
    for (Py_ssize_t i = 0; varargs && i < PyTuple_GET_SIZE(varargs); i++) args[n++] = PyTuple_GET_ITEM(varargs, i);
    *kwnames = NULL;
    if (!n_names) return n;
    PyObject *names = PyTuple_New(n_names);
    if (!names) {
        mp_error_clear();
        return -1;
    }
    Py_ssize_t name = 0, position = 0;
    for (int i = 0; i < code->co_kwonlyargcount; i++, name++) {
        PyTuple_SET_ITEM(names, name, Py_NewRef(PyTuple_GET_ITEM(code->co_localsplusnames, code->co_argcount + i)));
        args[n + name] = locals[code->co_argcount + i];
    }
    PyObject *key, *value;
    while (varkw && PyDict_Next(varkw, &position, &key, &value)) {
        PyTuple_SET_ITEM(names, name, Py_NewRef(key));
        args[n + name++] = value;
    }
    *kwnames = names;
    return n;
}

/* Run a disabled function without offers from below. */
static PyObject *call_left_alone(const mp_call *call)
{
    left_alone = true;
    PyObject *result = mp_call_plain(call);
    left_alone = false;
    return result;
}

void mp_frames_running(mp_callable *self, PyObject *codes)
{
    mp_callable *root = self->target ? self : current_root;
    for (Py_ssize_t i = 0; root && codes && i < PyTuple_GET_SIZE(codes); i++) {
        mp_callable *found = callee(root, PyTuple_GET_ITEM(codes, i));
        if (found) found->plain = true;
    }
}

static bool is_in(PyObject *codes, PyObject *code)
{
    int found = codes ? PySet_Contains(codes, code) : 0;
    if (found < 0) mp_error_clear();
    return found > 0;
}

static bool is_own(const PyCodeObject *code)
{
    Py_ssize_t found = own_folder ? PyUnicode_Tailmatch(code->co_filename, own_folder, 0, PY_SSIZE_T_MAX, -1) : 0;
    if (found < 0) mp_error_clear();
    return found > 0;
}

/* A frame is about to run: serve it by a trace, or let it run. */
static int offer(void *data, PyFunctionObject *func, PyObject *const *locals, PyObject **result)
{
    frames_context *context = data;
    PyCodeObject *code = (PyCodeObject *)func->func_code;
    const int wanted = CO_OPTIMIZED | CO_NEWLOCALS, unwanted = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR;
    if (left_alone || mp_state_busy || mp_observe_active()) return 0;
    if ((code->co_flags & wanted) != wanted || code->co_flags & unwanted || (PyObject *)code == context->target_code)
        return 0;
    bool disabled = is_own(code) || is_in(disabled_codes, (PyObject *)code);
    if (!disabled && is_in(transparent_codes, (PyObject *)code)) return 0;
    mp_callable *self = disabled ? NULL : callee(context->root, (PyObject *)code);
    if (!disabled && (!self || self->leaf_alone || self->plain || self->compiling)) return 0;
    PyObject *args[MAX_ARGS], *kwnames = NULL;
    Py_ssize_t nargs = lay_out(code, locals, args, &kwnames);
    if (nargs < 0) return 0;
    mp_call call = {(PyObject *)func, args, (size_t)nargs, kwnames};
    int served = 1;
    Py_XINCREF(self);
    if (disabled) {
        *result = call_left_alone(&call);
    } else if (!self->n_traces && mp_miss_in_vain(self, mp_miss_shape(&call))) {
        served = 0; /* this frame runs plainly too, and its callees are offered in turn */
    } else {
        context->served++;
        *result = mp_callable_call(self, &call);
    }
    Py_XDECREF(self);
    Py_XDECREF(kwnames);
    return served;
}

/* _C.watch_codes(disabled, transparent, own_folder): frozensets of code objects, and where magpy's code lies. */
PyObject *mp_frames_watch_codes(PyObject *module, PyObject *args)
{
    PyObject *disabled, *transparent, *folder;
    if (!PyArg_ParseTuple(args, "O!O!U:watch_codes", &PyFrozenSet_Type, &disabled, &PyFrozenSet_Type, &transparent,
                          &folder))
        return NULL;
    Py_INCREF(folder);
    Py_XSETREF(own_folder, folder);
    Py_INCREF(disabled);
    Py_XSETREF(disabled_codes, disabled);
    Py_INCREF(transparent);
    Py_XSETREF(transparent_codes, transparent);
    Py_RETURN_NONE;
}

PyObject *mp_frames_call(mp_callable *root, const mp_call *call)
{
    PyObject *function = PyMethod_Check(call->target) ? PyMethod_GET_FUNCTION(call->target) : call->target;
    frames_context context = {root, 0, PyFunction_Check(function) ? PyFunction_GET_CODE(function) : NULL};
    if (root->quiet >= QUIET_CALLS && root->quiet++ % QUIET_RETRY) return mp_call_plain(call);
    bool outer = left_alone;
    mp_callable *outer_root = current_root;
    current_root = root;
    left_alone = false; /* a compiled function called in a disabled one is compiled all the same */
    Py_INCREF(root);
    PyObject *result = mp_observe_frames(call->target, call->args, call->nargs, call->kwnames, offer, &context);
    left_alone = outer;
    current_root = outer_root;
    if (context.served)
        root->quiet = 0;
    else if (root->quiet < QUIET_CALLS)
        root->quiet++;
    Py_DECREF(root);
    return result;
}
