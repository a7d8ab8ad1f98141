/* Handlers of torch's and numpy's own C callables: is there a torch function, mode stacks, autograd.Function, numpy on constants. */
#include "observe/observe.h"
#include "trace/arrays.h"
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <opcode.h>

static void no_memory(mp_call *call)
{
    PyErr_Clear();
    mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "call");
}

/* -- numpy: a constant where all that comes in is constant, else an operator of the graph ------------------------------------------------------- */

void mp_handle_numpy(mp_call *call)
{
    if (mp_array_call(call, true)) return;
    for (Py_ssize_t i = 0; i < call->nargs; i++) mp_effect_read(call, call->args[i], true);
    for (Py_ssize_t i = 0; i < call->nkw; i++) mp_effect_read(call, call->kwvalues[i], true);
    mp_effect_check_result(call);
    if (mp_array_call_is_plain(call)) mp_deferred_silent(call->rec, call->frame);
}

/* data: (_C.Value of the array). */
static void shown(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_kept kept = mp_keep();
    PyObject *func = slot ? PyObject_GetAttrString((PyObject *)mp_names.tensor_base, "detach") : NULL;
    if (func && !mp_rec_abandoned(rec)) mp_rec_template_op(rec, func, Py_NewRef(data), *slot);
    Py_XDECREF(func);
    Py_DECREF(data);
    mp_restore(kept);
}

/* The tensor shows the array's memory. */
void mp_handle_from_numpy(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    PyObject *array = call->nargs == 1 && !call->nkw && mp_is_array(call->args[0]) ? call->args[0] : NULL;
    if (!state || state->muted || !array || !mp_array_plain(array)) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE,
                        "of an array that torch has no type for or may not write to");
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *value = mp_array_value(call->rec, array, true), *args = value ? PyTuple_Pack(1, value) : NULL;
    Py_XDECREF(value);
    if (args)
        mp_rec_pend(call->rec, call->frame, shown, args);
    else
        no_memory(call); /* unless there is a reason */
    mp_restore(kept);
}

/* -- torch ------------------------------------------------------------------------------------------------------------------------------------ */

/* Would eager find a torch function? Not where every argument is a plain tensor or no tensor at all. */
static bool plain_for_torch(PyObject *object, int depth)
{
    if (mp_is_scalar(object) || mp_is_exact_tensor(object)) return true;
    if (mp_is_tensor(object) || depth > 4) return false;
    if (PyTuple_Check(object) || PyList_Check(object)) {
        PyObject **items = PySequence_Fast_ITEMS(object);
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); i++)
            if (!plain_for_torch(items[i], depth + 1)) return false;
        return true;
    }
    mp_kept kept = mp_keep();
    PyObject *name = mp_intern("__torch_function__");
    bool plain = name && !mp_raw_type_lookup(Py_TYPE(object), name);
    Py_XDECREF(name);
    mp_restore(kept);
    return plain;
}

static void answer_no(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    if (slot && *slot == Py_True) Py_SETREF(*slot, Py_NewRef(Py_False));
    Py_XDECREF(data);
}

/* Code of torch's own modules chooses its way by this (fast paths): it must not see that it is watched. Elsewhere True lets the mode
** see the function as one operator. */
void mp_handle_has_torch_function(mp_call *call)
{
    bool plain = true;
    for (Py_ssize_t i = 0; i < call->nargs; i++) {
        if (!mp_is_tensor(call->args[i])) mp_effect_read(call, call->args[i], true);
        plain = plain && plain_for_torch(call->args[i], 0);
    }
    if (!call->frame->globals) return; /* the compiled callable itself */
    mp_kept kept = mp_keep();
    PyObject *name = PyDict_GetItemString(call->frame->globals, "__name__");
    const char *module = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    bool own = module && (!strncmp(module, "torch.nn.modules", 16) || !strcmp(module, "torch.overrides") ||
                          !strcmp(module, "torch.autograd")); /* grad and backward are watched down to the engine */
    own = own || (module && !strcmp(module, "torch._tensor") && call->frame->code &&
                  PyUnicode_CompareWithASCIIString(call->frame->code->co_name, "backward") == 0);
    bool outside =
        !module || strncmp(module, "torch", 5) != 0; /* the program itself is told what is so without magpy */
    mp_restore(kept);
    if (plain && (own || outside)) mp_rec_pend(call->rec, call->frame, answer_no, NULL);
}

/* torch.Size reads numbers out of tensors unseen. */
void mp_handle_size(mp_call *call)
{
    bool tensors = false;
    for (Py_ssize_t i = 0; i < call->nargs; i++) {
        tensors = tensors || mp_has_tensor(call->args[i]);
        mp_effect_read(call, call->args[i], true);
    }
    if (tensors) mp_call_abandon(call, MP_REASON_DATA_READ, NULL);
}

/* data: (tensor, does the result require grad). */
static void detached(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_kept kept = mp_keep();
    bool leaf = PyTuple_GET_ITEM(data, 1) == Py_True;
    PyObject *func = PyObject_GetAttrString((PyObject *)mp_names.tensor_base, "detach");
    PyObject *mark = leaf ? PyObject_GetAttrString((PyObject *)mp_names.tensor_base, "requires_grad_") : NULL;
    PyObject *args = PyTuple_Pack(1, PyTuple_GET_ITEM(data, 0));
    PyObject *result = slot ? *slot : NULL, *made = result ? PyTuple_Pack(1, result) : NULL;
    if (result && func && args && made && (mark || !leaf)) {
        mp_rec_op(rec, func, args, NULL, result, false);
        if (leaf) mp_rec_op(rec, mark, made, NULL, result, false);
    } else if (result)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "call");
    Py_XDECREF(func);
    Py_XDECREF(mark);
    Py_XDECREF(args);
    Py_XDECREF(made);
    Py_XDECREF(data);
    mp_restore(kept);
}

static void pend_detached(mp_call *call, PyObject *requires_grad)
{
    mp_kept kept = mp_keep();
    PyObject *data = PyTuple_Pack(2, call->args[0], requires_grad);
    if (data)
        mp_rec_pend(call->rec, call->frame, detached, data);
    else
        no_memory(call);
    mp_restore(kept);
}

/* Variable(tensor) of old programs is tensor.detach(), from C. With requires_grad it makes a leaf of it; other arguments make a name or a warning. */
void mp_handle_variable(mp_call *call)
{
    bool plain = call->nargs >= 1 && call->nargs <= 2 && mp_is_exact_tensor(call->args[0]);
    PyObject *requires_grad = call->nargs == 2 ? call->args[1] : Py_False;
    for (Py_ssize_t i = 0; i < call->nkw; i++) {
        bool flag = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, i), "requires_grad") == 0;
        if (flag) requires_grad = call->kwvalues[i];
        bool nothing = !flag && (call->kwvalues[i] == Py_None || call->kwvalues[i] == Py_False); /* volatile=False */
        plain = plain && (flag || nothing);
    }
    plain = plain && PyBool_Check(requires_grad);
    if (plain)
        pend_detached(call, requires_grad);
    else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "with more than a tensor");
}

static void answer_zero(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    if (slot && *slot && PyBool_Check(*slot))
        Py_SETREF(*slot, Py_NewRef(Py_False));
    else if (slot && *slot && PyLong_CheckExact(*slot)) {
        PyObject *zero = PyLong_FromLong(0); /* a small int: cannot fail */
        if (zero) Py_SETREF(*slot, zero);
    }
    Py_XDECREF(data);
}

/* How many torch-function modes there are: one less than it seems, and tracing starts only where there is none. */
void mp_handle_function_stack(mp_call *call) { mp_rec_pend(call->rec, call->frame, answer_zero, NULL); }

/* torch.compiler.disable and the like put Dynamo's callback away and back around a call. The functions that torch disables for Dynamo are no
** trouble here; what a user has disabled is not to be compiled. */
static void restored(mp_recorder *rec, PyObject *data, PyObject **slot) { Py_XDECREF(data); }

/* The function that a wrapper of torch.compiler.disable is about to call, or NULL: another caller of set_eval_frame. Borrowed. */
static PyFunctionObject *disabled_function(const mp_frame *frame)
{
    PyCodeObject *code = frame->code;
    if (!code || PyUnicode_CompareWithASCIIString(code->co_qualname, "DisableContext.__call__.<locals>._fn") != 0)
        return NULL;
    for (int i = 0; i < code->co_nlocalsplus; i++) {
        PyObject *cell = frame->localsplus[i];
        if (!cell || !PyCell_Check(cell)) continue;
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(code->co_localsplusnames, i), "fn") != 0) continue;
        PyObject *fn = PyCell_GET(cell);
        if (fn && PyMethod_Check(fn)) fn = PyMethod_GET_FUNCTION(fn);
        return fn && PyFunction_Check(fn) ? (PyFunctionObject *)fn : NULL;
    }
    return NULL;
}

void mp_handle_set_eval_frame(mp_call *call)
{
    PyFunctionObject *disabled = disabled_function(call->frame);
    if (disabled && !mp_is_library_code((PyCodeObject *)disabled->func_code)) {
        const char *name = PyUnicode_AsUTF8(disabled->func_qualname);
        PyErr_Clear(); /* a name that cannot be encoded is left out */
        mp_rec_abandon(call->rec, MP_REASON_DISABLED, "torch.compiler.disable on %s", name ? name : "?");
        return;
    }
    mp_rec_pend(call->rec, call->frame, restored, NULL);
}

/* What magpy has compiled runs plainly while it is watched: a callable calls its target, which never changes. */
void mp_handle_compiled_callable(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *target = PyObject_GetAttrString(call->callable, "__wrapped__"); /* a C member */
    mp_restore(kept);
    if (!target) return;
    mp_rec_identity(call->rec, call->callable);
    if (mp_rec_find(call->rec, target) == MP_NO_OBJ) mp_rec_pin(call->rec, target, "compiled function");
    mp_call inner = *call;
    inner.callable = target;
    mp_call_any(&inner);
    Py_DECREF(target); /* the callable holds it */
}

/* A compiled module takes the way through its Python method _slow_call, whose frame shows the rest. */
void mp_handle_compiled_module(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *name = mp_intern("_slow_call");
    if (name) mp_rec_type_attr(call->rec, Py_TYPE(call->callable), name);
    Py_XDECREF(name);
    mp_restore(kept);
}

typedef struct {
    mp_recorder *rec;   /* NULL once the call has ended */
    PyObject *call;     /* owned: (function, args, kwargs, all arguments) */
    PyObject *previous; /* borrowed: arguments of the call around it */
} apply_data;

/* May a context keep this value for its backward? Not what can change until then. */
static bool lasting(PyObject *value)
{
    if (mp_is_scalar(value) || mp_is_tensor(value) || PyType_Check(value) || PyModule_Check(value) ||
        PyCFunction_Check(value))
        return true;
    PyObject *key, *item;
    if (PyTuple_Check(value) || PyList_Check(value)) {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); i++)
            if (!lasting(PySequence_Fast_GET_ITEM(value, i))) return false;
        return true;
    }
    if (!PyDict_CheckExact(value)) return false;
    for (Py_ssize_t at = 0; PyDict_Next(value, &at, &key, &item);)
        if (!lasting(key) || !lasting(item)) return false;
    return true;
}

/* What forward has left in its context is read by backward, unseen: containers must be the call's own, and hold values only. */
static void read_context(mp_recorder *rec, PyObject *result)
{
    if (!mp_is_tensor(result)) {
        for (Py_ssize_t i = 0; PyTuple_Check(result) && i < PyTuple_GET_SIZE(result); i++)
            read_context(rec, PyTuple_GET_ITEM(result, i));
        return;
    }
    PyObject *context = PyObject_GetAttrString(result, "grad_fn");
    PyObject *kept = context && context != Py_None ? PyObject_GetAttrString(context, "__dict__") : NULL;
    PyErr_Clear(); /* no Python context: nothing is kept in one */
    PyObject *name, *value;
    for (Py_ssize_t at = 0; kept && PyDict_Check(kept) && PyDict_Next(kept, &at, &name, &value);)
        if (!lasting(value) || (mp_is_container(value) && mp_rec_find(rec, value) != MP_NO_OBJ)) {
            const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
            PyErr_Clear();
            mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "a %s kept for backward (ctx.%s)", Py_TYPE(value)->tp_name,
                           text ? text : "?");
        }
    Py_XDECREF(kept);
    Py_XDECREF(context);
}

/* The function's forward has ended, or the pending operation was dropped because it raised. */
static void apply_free(PyObject *capsule)
{
    apply_data *data = PyCapsule_GetPointer(capsule, "magpy apply");
    if (!data) return;
    if (data->rec) {
        if (data->rec->op_state) data->rec->op_state->muted--;
        if (data->rec->op_state) data->rec->op_state->given = data->previous;
        mp_rec_abandon(data->rec, MP_REASON_EXCEPTION, "autograd.Function.apply");
    }
    Py_DECREF(data->call);
    PyMem_RawFree(data);
}

static void applied(mp_recorder *rec, PyObject *capsule, PyObject **slot)
{
    apply_data *data = PyCapsule_GetPointer(capsule, "magpy apply");
    PyObject *result = slot ? *slot : NULL;
    if (data && result) {
        data->rec = NULL;
        read_context(rec, result);
        if (rec->op_state) rec->op_state->muted--;
        if (rec->op_state) rec->op_state->given = data->previous;
        mp_rec_op(rec, PyTuple_GET_ITEM(data->call, 0), PyTuple_GET_ITEM(data->call, 1),
                  PyTuple_GET_ITEM(data->call, 2), result, false);
    }
    Py_XDECREF(capsule);
}

static bool gradients_on(void)
{
    PyObject *name = mp_intern("torch"), *torch = name ? PyImport_GetModule(name) : NULL;
    PyObject *on = torch ? PyObject_CallMethod(torch, "is_grad_enabled", NULL) : NULL;
    bool answer = on != Py_False;
    PyErr_Clear();
    Py_XDECREF(name);
    Py_XDECREF(torch);
    Py_XDECREF(on);
    return answer;
}

/* Is a tensor among the arguments differentiated? */
static bool requires_gradient(mp_call *call)
{
    bool required = false;
    mp_kept kept = mp_keep();
    PyObject *quiet = mp_quiet_begin();
    for (Py_ssize_t i = 1; i < call->nargs && !required; i++) {
        PyObject *answer = mp_is_tensor(call->args[i]) ? mp_tensor_ask(mp_names.requires_grad, call->args[i]) : NULL;
        required = answer == Py_True;
        PyErr_Clear();
        Py_XDECREF(answer);
    }
    mp_quiet_end(quiet);
    mp_restore(kept);
    return required;
}

/* -- Calls of something else -------------------------------------------------------------------------------------------------------------- */

/* Let the running instruction call `callable` instead of what is on the stack. NULL: leaves the exception to the caller. */
static void call_other(mp_call *call, PyObject **slot, PyObject *callable)
{
    if (callable && slot)
        Py_SETREF(*slot, Py_NewRef(callable));
    else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "called in an unusual way");
}

static PyObject **on_stack(const mp_call *call)
{
    int i = call->frame->depth - 1;
    while (i >= 0 && call->frame->stack[i] != call->callable) i--;
    return i >= 0 ? &call->frame->stack[i] : NULL;
}

/* Likewise magpy.<module>.<name>, bound to `self` unless that is NULL. */
static void call_instead(mp_call *call, const char *module_name, const char *name, PyObject *self)
{
    mp_kept kept = mp_keep();
    PyObject *function = mp_import(module_name, name);
    PyObject *callable = function && self ? PyMethod_New(function, self) : Py_XNewRef(function);
    if (callable && mp_rec_pin(call->rec, function, module_name) == MP_NO_OBJ) Py_CLEAR(callable);
    call_other(call, on_stack(call), callable);
    PyErr_Clear();
    Py_XDECREF(callable);
    Py_XDECREF(function);
    mp_restore(kept);
}

static bool is_own_tensor(mp_recorder *rec, PyObject *object)
{ return mp_is_tensor(object) && mp_rec_find(rec, object) == MP_NO_OBJ; }

/* A function under functools.lru_cache. A tensor that the call has made is a key of its own, for which no cache holds anything: the function
** itself is called. */
void mp_handle_cached_function(mp_call *call)
{
    bool own = false;
    for (Py_ssize_t i = 0; i < call->nargs; i++) own = own || is_own_tensor(call->rec, call->args[i]);
    for (Py_ssize_t i = 0; i < call->nkw; i++) own = own || is_own_tensor(call->rec, call->kwvalues[i]);
    if (own && mp_rec_find(call->rec, call->callable) != MP_NO_OBJ && mp_caches_installed(call->callable))
        call_instead(call, "magpy.functions", "uncached", call->callable);
    else
        mp_handle_lru_cache(call);
}

/* Where the instruction has what it calls, or NULL if it calls it otherwise: the callable itself, a method bound to it, or for an instance
** (*unbound) its class's __call__, with the instance as first argument. */
static PyObject **callable_slot(const mp_call *call, bool *unbound)
{
    const mp_frame *frame = call->frame;
    Py_ssize_t reach = call->nargs + call->nkw + 2;
    if (!frame || !frame->stack) return NULL;
    if (reach < 3) reach = 3; /* CALL_FUNCTION_EX: callable, tuple, dict */
    if (reach > frame->depth) reach = frame->depth;
    for (; reach > 0; reach--) {
        PyObject **slot = &frame->stack[frame->depth - reach], *found = *slot;
        *unbound = false;
        if (found && PyMethod_Check(found)) found = PyMethod_GET_FUNCTION(found);
        if (found == call->callable) return slot;
        *unbound = true;
        if (found && PyInstanceMethod_Check(found)) found = PyInstanceMethod_GET_FUNCTION(found);
        if (found && PyCFunction_Check(found) && !strcmp(((PyCFunctionObject *)found)->m_ml->ml_name, "__call__"))
            return slot;
    }
    return NULL;
}

/* made: owned, what magpy/scripted.py found to stand in at `slot`, None or NULL: a function, its guard, a list of what it holds. All of it is
** pinned: no path leads into C++. */
static void call_stand_in(mp_call *call, PyObject **slot, PyObject *made)
{
    PyObject *function, *same, *held, *none = PyTuple_New(0);
    if (none && made && made != Py_None && PyArg_ParseTuple(made, "OOO!", &function, &same, &PyList_Type, &held)) {
        mp_rec_internal(call->rec, function);
        mp_rec_pin(call->rec, same, "same");
        mp_rec_read(call->rec, same, MP_READ_STATE_CALL, none, Py_True);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(held); i++)
            mp_rec_pin(call->rec, PyList_GET_ITEM(held, i), "state of a ScriptModule");
        call_other(call, slot, function);
    } else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "cannot be traced");
    PyErr_Clear();
    Py_XDECREF(none);
    Py_XDECREF(made);
}

/* A method of a TorchScript module: called as a function of what it reads there; a guard asks whether that still is there. */
void mp_handle_script_method(mp_call *call)
{
    if (mp_rec_find(call->rec, call->callable) == MP_NO_OBJ) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "made by the call");
        return;
    }
    mp_rec_identity(call->rec, call->callable);
    mp_kept kept = mp_keep();
    bool unbound = false;
    PyObject **slot = callable_slot(call, &unbound), *names = call->nkw ? Py_NewRef(call->kwnames) : PyTuple_New(0);
    PyObject *made = NULL;
    if (names)
        made = mp_call_imported("magpy.scripted", "method", "(OniO)", call->callable, call->nargs, unbound, names);
    call_stand_in(call, slot, made);
    Py_XDECREF(names);
    mp_restore(kept);
}

/* The C++ module's getattr(name), hasattr(name), _has_method(name), as the Python module around it asks. */
void mp_handle_script_attr(mp_call *call)
{
    if (call->nargs != 2 || call->nkw || mp_rec_find(call->rec, call->args[0]) == MP_NO_OBJ) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "made by the call");
        return;
    }
    mp_rec_identity(call->rec, call->args[0]);
    mp_kept kept = mp_keep();
    bool unbound = false;
    PyObject **slot = callable_slot(call, &unbound);
    const char *asked = PyCFunction_Check(call->callable) ? ((PyCFunctionObject *)call->callable)->m_ml->ml_name : "";
    call_stand_in(call, slot,
                  mp_call_imported("magpy.scripted", "attribute", "(OsO)", call->args[0], asked, call->args[1]));
    mp_restore(kept);
}

/* torch.utils.checkpoint(use_reentrant=False) goes into and out of this generator around the function. */
void mp_handle_checkpoint(mp_call *call) { call_instead(call, "magpy.checkpoint", "without_reentrant", NULL); }

/* Is it the autograd.Function of torch.utils.checkpoint(use_reentrant=True)? */
static bool is_checkpoint(PyObject *type)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "torch.utils.checkpoint"); /* borrowed */
    return module && PyModule_Check(module) &&
           PyDict_GetItemString(PyModule_GetDict(module), "CheckpointFunction") == type;
}

bool mp_applies_forward(mp_call *call)
{
    const mp_op_state *state = mp_rec_op_state(call->rec);
    if (!state || !call->nargs || !PyType_Check(call->args[0])) return false;
    if (is_checkpoint(call->args[0])) return true;
    bool on = gradients_on(); /* a mode of the trace */
    return !state->muted && !call->nkw && (!on || !requires_gradient(call));
}

/* autograd.Function.apply is one node where it is differentiated: what its forward does with tensors is its own business, or its gradient
** would be lost. Elsewhere it is its forward. */
void mp_handle_function_apply(mp_call *call)
{
    static const char *const methods[] = {"forward", "backward", "setup_context", "vjp", "jvp", "vmap", "_is_legacy"};
    mp_op_state *state = mp_rec_op_state(call->rec);
    if (!state || !call->nargs || !PyType_Check(call->args[0])) return;
    if (is_checkpoint(call->args[0])) {
        call_instead(call, "magpy.checkpoint", "reentrant", NULL);
        return;
    }
    if (mp_applies_forward(call)) {
        call_instead(call, "magpy.functions", "undifferentiated", call->args[0]);
        return;
    }
    bool on = gradients_on();
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        mp_type_attr_named(call->rec, (PyTypeObject *)call->args[0], methods[i]);
    mp_kept kept = mp_keep();
    for (size_t i = 1; on && i < sizeof methods / sizeof *methods; i++) {
        PyObject *name = mp_intern(methods[i]);
        PyObject *found = name ? mp_raw_type_lookup((PyTypeObject *)call->args[0], name) : NULL;
        if (found) mp_backward_reads(call, found);
        Py_XDECREF(name);
    }
    mp_call inner = *call;
    inner.args++;
    inner.nargs--;
    PyObject *args = mp_call_args(&inner), *kwargs = mp_call_kwargs(&inner),
             *all = PyTuple_New(inner.nargs + inner.nkw);
    for (Py_ssize_t i = 0; all && i < inner.nargs + inner.nkw; i++)
        PyTuple_SET_ITEM(all, i, Py_NewRef(i < inner.nargs ? inner.args[i] : inner.kwvalues[i - inner.nargs]));
    bool known = args && kwargs && all && mp_rec_check_tensors(call->rec, all, NULL, NULL);
    apply_data *data = known ? PyMem_RawCalloc(1, sizeof *data) : NULL;
    if (data) data->call = PyTuple_Pack(4, call->callable, args, kwargs, all);
    PyObject *capsule = data && data->call ? PyCapsule_New(data, "magpy apply", apply_free) : NULL;
    if (capsule) {
        data->rec = call->rec;
        data->previous = state->given;
        state->given = all;
        state->muted++;
        mp_rec_pend(call->rec, call->frame, applied, capsule);
    } else if (!mp_rec_abandoned(call->rec))
        no_memory(call);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(all);
    mp_restore(kept);
}
