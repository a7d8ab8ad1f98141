/* Handlers of torch's modes and random generators: inference mode, seeds, states of generators, generators that the call makes.
**
** Inference mode is recorded as the grad mode that it brings: which results are inference tensors, the mocks know. Seeds and states of
** generators are operators that stay in their place among those that draw. What a generator made and seeded by the call draws is the same at
** every call: a constant of the trace.
*/
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

enum { MAX_DRAWN = 1 << 22 }; /* elements of one constant that a generator of the call's own draws */

static PyObject *torch_attribute(const char *module_name, const char *name) /* owned, or NULL without an exception */
{
    PyObject *key = PyUnicode_FromString(module_name), *module = key ? PyImport_GetModule(key) : NULL;
    PyObject *value = module ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(key);
    Py_XDECREF(module);
    PyErr_Clear();
    return value;
}

/* -- Inference mode --------------------------------------------------------------------------------------------------- */

static void inference_mode_changed(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    bool entered = data == Py_True;
    Py_XDECREF(data);
    if (!slot || !*slot || mp_rec_abandoned(rec)) return;
    mp_kept kept = mp_keep();
    PyObject *ask = torch_attribute("torch", "is_grad_enabled"),
             *set = torch_attribute("torch._C", "_set_grad_enabled");
    PyObject *enabled = ask ? PyObject_CallNoArgs(ask) : NULL, *args = enabled ? PyTuple_Pack(1, enabled) : NULL;
    if (args && set && mp_rec_op_state(rec)) {
        rec->op_state->inference += entered ? 1 : -1;
        mp_rec_op(rec, set, args, NULL, Py_None, true);
    } else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "call");
    Py_XDECREF(ask);
    Py_XDECREF(set);
    Py_XDECREF(enabled);
    Py_XDECREF(args);
    mp_restore(kept);
}

void mp_handle_inference_new(mp_call *call) {} /* holds its flag alone */

/* The C guard behind torch.inference_mode is entered or left. */
void mp_handle_inference_enter(mp_call *call)
{ mp_rec_pend(call->rec, call->frame, inference_mode_changed, Py_NewRef(Py_True)); }

void mp_handle_inference_exit(mp_call *call)
{ mp_rec_pend(call->rec, call->frame, inference_mode_changed, Py_NewRef(Py_False)); }

/* -- Seeds and states --------------------------------------------------------------------------------------------------- */

static bool is_own_generator(mp_recorder *rec, PyObject *object)
{
    PyObject *own = rec->op_state ? rec->op_state->generators : NULL;
    for (Py_ssize_t i = 0; own && i < PyList_GET_SIZE(own); i++)
        if (PyList_GET_ITEM(own, i) == object) return true;
    return false;
}

/* data: (function, args). The operator is recorded; a generator that it gives back is an outside object. */
static void seeded(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    if (result && !mp_rec_abandoned(rec)) {
        bool tensor = mp_is_tensor(result);
        if (!mp_is_scalar(result) && !tensor && mp_rec_find(rec, result) == MP_NO_OBJ)
            mp_rec_pin(rec, result, "torch.default_generator");
        mp_rec_op(rec, PyTuple_GET_ITEM(data, 0), PyTuple_GET_ITEM(data, 1), NULL, tensor ? result : Py_None, true);
    }
    Py_XDECREF(data);
}

static void pend_seeded(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *args = PyTuple_New(call->nargs);
    for (Py_ssize_t i = 0; args && i < call->nargs; i++) PyTuple_SET_ITEM(args, i, Py_NewRef(call->args[i]));
    PyObject *function = PyCFunction_Check(call->callable) /* bound */
                             ? PyObject_GetAttrString((PyObject *)Py_TYPE(call->args[0]),
                                                      ((PyCFunctionObject *)call->callable)->m_ml->ml_name)
                             : Py_NewRef(call->callable);
    PyObject *data = args && function ? PyTuple_Pack(2, function, args) : NULL;
    if (data)
        mp_rec_pend(call->rec, call->frame, seeded, data);
    else
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "call");
    Py_XDECREF(args);
    Py_XDECREF(function);
    mp_restore(kept);
}

/* torch.random.manual_seed(seed), as a whole. */
void mp_handle_seed(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    PyObject *seed = call->nargs == 1 && !call->nkw   ? call->args[0]
                     : call->nkw == 1 && !call->nargs ? call->kwvalues[0]
                                                      : NULL;
    if (!state || !seed) return; /* raises */
    if (!PyLong_CheckExact(seed) || state->muted) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, state->muted ? "inside an autograd.Function" : "of no int");
        return;
    }
    mp_call plain = *call;
    plain.args = &seed;
    plain.nargs = 1;
    plain.nkw = 0;
    pend_seeded(&plain);
    call->rec->whole = (PyCodeObject *)((PyFunctionObject *)call->callable)->func_code;
}

/* Python functions of torch's whose inside is nothing of the program's: marks for profilers. */
void mp_handle_unwatched(mp_call *call)
{
    if (PyFunction_Check(call->callable))
        call->rec->whole = (PyCodeObject *)((PyFunctionObject *)call->callable)->func_code;
}

bool mp_rec_is_whole(mp_recorder *rec, PyCodeObject *code)
{
    if (rec->whole != code) return false;
    rec->whole = NULL;
    return true;
}

/* Methods of a generator: manual_seed, get_state, set_state. */
void mp_handle_random_generator(mp_call *call)
{
    if (!call->nargs || is_own_generator(call->rec, call->args[0])) return; /* what it draws is known */
    if (call->nkw || (call->rec->op_state && call->rec->op_state->muted))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "inside an autograd.Function, or with keywords");
    else if (mp_rec_find(call->rec, call->args[0]) == MP_NO_OBJ)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of a generator that the call was not given");
    else
        pend_seeded(call);
}

/* -- Generators that the call makes ------------------------------------------------------------------------------------------ */

static void generator_made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    Py_XDECREF(data);
    if (!slot || !*slot || mp_rec_abandoned(rec) || !mp_rec_op_state(rec)) return;
    mp_kept kept = mp_keep();
    if (!rec->op_state->generators) rec->op_state->generators = PyList_New(0);
    if (!rec->op_state->generators || PyList_Append(rec->op_state->generators, *slot) < 0)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "generator");
    mp_restore(kept);
}

void mp_handle_new_generator(mp_call *call) { mp_rec_pend(call->rec, call->frame, generator_made, NULL); }

bool mp_draws_from_own(mp_recorder *rec, PyObject *kwargs)
{
    PyObject *generator = kwargs ? PyDict_GetItemString(kwargs, "generator") : NULL;
    return generator && is_own_generator(rec, generator);
}

/* In-place functions of tensors whose result depends on sizes, numbers and the generator alone. */
static bool fills(PyObject *func)
{
    static const char *const names[] = {"normal_",     "uniform_", "random_",   "exponential_",
                                        "log_normal_", "cauchy_",  "geometric_"};
    if (!Py_IS_TYPE(func, &PyMethodDescr_Type)) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (PyUnicode_CompareWithASCIIString(PyDescr_NAME(func), names[i]) == 0) return true;
    return false;
}

/* A copy of what was drawn, in memory that nobody changes, or NULL after abandoning. */
static PyObject *kept_draw(mp_recorder *rec, PyObject *tensor)
{
    PyObject *detached = PyObject_CallMethod(tensor, "detach", NULL);
    PyObject *numel = detached ? PyObject_CallMethod(detached, "numel", NULL) : NULL;
    PyObject *copy = numel && PyLong_AsLong(numel) <= MAX_DRAWN ? PyObject_CallMethod(detached, "clone", NULL) : NULL;
    if (!copy)
        mp_rec_abandon(rec, numel ? MP_REASON_DATA_READ : MP_REASON_NO_MEMORY, "%s",
                       "a generator made by the call draws very many numbers");
    Py_XDECREF(detached);
    Py_XDECREF(numel);
    PyErr_Clear();
    return copy;
}

void mp_rec_draw(mp_recorder *rec, PyObject *func, PyObject *args, int tensors, PyObject *out)
{
    bool filled = tensors == 1 && fills(func) && PyTuple_GET_SIZE(args) && PyTuple_GET_ITEM(args, 0) == out;
    if (!mp_is_tensor(out) || (tensors && !filled)) {
        mp_rec_abandon(
            rec, MP_REASON_DATA_READ, "%s",
            "a generator made by the call draws for data: give it one from outside, or draw without tensors");
        return;
    }
    PyObject *copy = kept_draw(rec, out);
    PyObject *given = copy ? filled ? PyTuple_Pack(2, out, copy) : PyTuple_Pack(1, copy) : NULL;
    PyObject *method = PyObject_GetAttrString((PyObject *)mp_names.tensor_base, filled ? "copy_" : "clone");
    if (given && method)
        mp_rec_constant_op(rec, method, given, copy, out);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "operator");
    PyErr_Clear();
    Py_XDECREF(copy);
    Py_XDECREF(given);
    Py_XDECREF(method);
}
