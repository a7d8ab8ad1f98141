/* Gradients inside the call: torch.autograd.grad, backward(), and the .grad of tensors.
**
** The engine's run is one operator that gives the gradients of the tensors it was asked for, or of the leaves it reaches. What it does to
** their .grad is spelled out as operators and writes: where there was none, the gradient becomes a new tensor there; where there was one, it
** is added in place, or out of place if the gradients are to be differentiated again.
*/
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

/* -- Python helpers (magpy/backward.py) ------------------------------------------------------------------------------------ */

static PyObject *helper(const char *name) /* owned, or NULL with an exception */
{
    PyObject *function = mp_import("magpy.backward", name);
    return function;
}

/* -- State of a tensor -------------------------------------------------------------------------------------------------------- */

static PyObject *ask(PyObject *tensor, const char *name) /* owned; None where there is nothing or an error */
{
    PyObject *value = PyObject_GetAttrString(tensor, name);
    if (!value) PyErr_Clear();
    return value ? value : Py_NewRef(Py_None);
}

static void read_attr(mp_recorder *rec, PyObject *tensor, const char *name, PyObject *value)
{
    PyObject *key = mp_intern(name);
    if (key && mp_rec_find(rec, tensor) != MP_NO_OBJ) mp_rec_read(rec, tensor, MP_READ_TENSOR_ATTR, key, value);
    if (!key) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "gradient");
    Py_XDECREF(key);
}

void mp_rec_store_grad(mp_recorder *rec, PyObject *tensor, PyObject *value)
{
    PyObject *key = mp_intern("grad");
    if (!key)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "gradient");
    else if (mp_rec_find(rec, tensor) != MP_NO_OBJ)
        mp_rec_write(rec, tensor, MP_WRITE_TENSOR_ATTR, key, value);
    Py_XDECREF(key);
}

/* The tensor stands for another value from now on: the new data, with the tensor's own place in autograd. */
void mp_rec_set_data(mp_recorder *rec, PyObject *args, PyObject *tensor, PyObject *value)
{
    PyObject *function = args ? helper("with_data") : NULL, *key = function ? mp_intern("data") : NULL;
    uint32_t op = rec->recording ? rec->recording->n_ops : 0;
    if (key) mp_rec_template_op(rec, function, Py_NewRef(args), Py_None);
    mp_value_id id = key && !mp_rec_abandoned(rec) ? mp_rec_bind_new(rec, tensor, op) : MP_NO_VALUE;
    PyObject *out = id != MP_NO_VALUE ? mp_value_new(id) : NULL;
    if (out) {
        Py_SETREF(rec->recording->ops[op].out, out);
        if (mp_rec_find(rec, tensor) != MP_NO_OBJ) mp_rec_write(rec, tensor, MP_WRITE_TENSOR_ATTR, key, value);
    } else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "data");
    PyErr_Clear();
    Py_XDECREF(function);
    Py_XDECREF(key);
}

/* Sizes, strides and place in memory: owned, or NULL without an exception. */
static PyObject *how_it_lies(PyObject *tensor)
{
    PyObject *strides = PyObject_CallMethod(tensor, "stride", NULL);
    PyObject *offset = strides ? PyObject_CallMethod(tensor, "storage_offset", NULL) : NULL;
    PyObject *lies = offset ? Py_BuildValue("(NOO)", ask(tensor, "shape"), strides, offset) : NULL;
    PyErr_Clear();
    Py_XDECREF(strides);
    Py_XDECREF(offset);
    return lies;
}

void mp_rec_check_data_stored(mp_recorder *rec)
{
    for (uint32_t i = 0; i < rec->recording->n_writes && !rec->why.code; i++) {
        const mp_write *write = &rec->recording->writes[i];
        if (write->kind != MP_WRITE_TENSOR_ATTR || !write->value || !mp_is_tensor(write->value)) continue;
        PyObject *tensor = mp_object_get(&rec->recording->objects[write->owner]);
        if (!tensor || PyUnicode_CompareWithASCIIString(write->key, "data") != 0) continue;
        Py_INCREF(tensor);
        PyObject *now = how_it_lies(tensor), *given = how_it_lies(write->value);
        if (!now || !given || PyObject_RichCompareBool(now, given, Py_EQ) != 1)
            mp_rec_abandon(rec, MP_REASON_INPUT_METADATA_CHANGED, "a tensor that was given data");
        PyErr_Clear();
        Py_XDECREF(now);
        Py_XDECREF(given);
        Py_DECREF(tensor);
    }
}

/* Hooks see gradients as they come, and may change them: they must not be there. */
static bool has_no_hooks(mp_recorder *rec, PyObject *tensor)
{
    static const char *const names[] = {"_backward_hooks", "_post_accumulate_grad_hooks"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyObject *hooks = ask(tensor, names[i]);
        bool none = hooks == Py_None;
        if (none) read_attr(rec, tensor, names[i], hooks);
        Py_DECREF(hooks);
        if (none) continue;
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "a gradient is computed where a tensor has hooks (%s)",
                       names[i]);
        return false;
    }
    return true;
}

/* -- One run of the engine ------------------------------------------------------------------------------------------------------- */

typedef struct {
    mp_recorder *rec;                 /* NULL once the run has ended */
    PyObject *outputs, *grad_outputs; /* owned tuples */
    PyObject *sources;                /* owned list: tensors whose gradients are computed */
    PyObject *before;                 /* owned list: what their .grad was; NULL where nothing is accumulated */
    PyObject *retain, *create;        /* owned: keep_graph, create_graph */
} engine_run;

static void free_run(PyObject *capsule)
{
    engine_run *run = PyCapsule_GetPointer(capsule, "magpy backward");
    if (!run) return;
    if (run->rec) {
        run->rec->engine = false;
        mp_rec_abandon(run->rec, MP_REASON_EXCEPTION, "backward");
    }
    Py_XDECREF(run->outputs);
    Py_XDECREF(run->grad_outputs);
    Py_XDECREF(run->sources);
    Py_XDECREF(run->before);
    Py_XDECREF(run->retain);
    Py_XDECREF(run->create);
    PyMem_RawFree(run);
}

/* Graph inputs that have a history before the call, as an owned list, or NULL with an exception. */
static PyObject *histories(mp_recorder *rec)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && rec->recording && i < rec->recording->n_inputs; i++) {
        mp_obj_id id = rec->recording->values[rec->recording->inputs[i]].input;
        PyObject *tensor = mp_object_get(&rec->recording->objects[id]);
        PyObject *node = tensor ? ask(tensor, "grad_fn") : NULL;
        if (node && node != Py_None && PyList_Append(list, tensor) < 0) Py_CLEAR(list);
        Py_XDECREF(node);
    }
    return list;
}

/* Fill run->sources and run->before. False after abandoning. */
static bool find_sources(mp_recorder *rec, engine_run *run, PyObject *inputs, bool accumulate)
{
    PyObject *find = helper("sources"), *outside = find ? histories(rec) : NULL;
    PyObject *retained = accumulate && rec->op_state->retained ? rec->op_state->retained : Py_None;
    PyObject *found =
        outside ? PyObject_CallFunction(find, "OOOiO", run->outputs, inputs, outside, accumulate, retained) : NULL;
    Py_XDECREF(find);
    Py_XDECREF(outside);
    if (found && PyUnicode_Check(found)) {
        const char *text = PyUnicode_AsUTF8(found);
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_TENSOR, "%s", text ? text : "backward");
    } else if (!found)
        mp_rec_abandon(rec, MP_REASON_INTERNAL, "the leaves of a backward pass");
    PyErr_Clear();
    if (!found || mp_rec_abandoned(rec)) {
        Py_XDECREF(found);
        return false;
    }
    run->sources = found;
    run->before = accumulate ? PyList_New(PyList_GET_SIZE(found)) : NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(found); i++) {
        PyObject *source = PyList_GET_ITEM(found, i);
        mp_obj_id id = mp_rec_find(rec, source);
        mp_value_id value = mp_rec_value(rec, source);
        if (value == MP_NO_VALUE || !has_no_hooks(rec, source)) return false;
        if (id != MP_NO_OBJ && rec->recording->objects[id].value != value) {
            mp_rec_abandon(rec, MP_REASON_ALIAS_WRITE, "a gradient of a tensor whose .data the call has set");
            return false;
        }
        if (!run->before) continue;
        PyObject *grad = ask(source, "grad");
        read_attr(rec, source, "grad", grad);
        PyList_SET_ITEM(run->before, i, grad);
    }
    return (!accumulate || run->before) && !mp_rec_abandoned(rec);
}

/* Append `gradients(outputs, sources, grad_outputs, retain, create)`; its number, or UINT32_MAX after abandoning. */
static uint32_t append_gradients(mp_recorder *rec, const engine_run *run, PyObject *out)
{
    uint32_t index = rec->recording->n_ops;
    PyObject *function = helper(run->before ? "accumulated" : "gradients");
    PyObject *args =
        function ? Py_BuildValue("(OOOOO)", run->outputs, run->sources, run->grad_outputs, run->retain, run->create)
                 : NULL;
    if (args)
        mp_rec_op(rec, function, args, NULL, out, false);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "backward");
    PyErr_Clear();
    Py_XDECREF(function);
    Py_XDECREF(args);
    return mp_rec_abandoned(rec) || rec->recording->n_ops == index ? UINT32_MAX : index;
}

/* before + gradient, as operator `method`; `now` is the tensor that holds the sum. */
static void append_sum(mp_recorder *rec, const char *method, PyObject *before, mp_value_id gradient, PyObject *now)
{
    PyObject *function = PyObject_GetAttrString((PyObject *)mp_names.tensor_base, method);
    PyObject *given = PyTuple_Pack(1, before), *value = mp_value_new(gradient);
    PyObject *first = mp_rec_template(rec, before), *args = first && value ? PyTuple_Pack(2, first, value) : NULL;
    if (function && args && given && mp_rec_note_changes(rec, given, NULL, false) >= 0) {
        mp_rec_template_op(rec, function, Py_NewRef(args), now);
        if (now == before) mp_rec_counted(rec, before); /* the engine has changed it before it was known */
    } else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "backward");
    PyErr_Clear();
    Py_XDECREF(function);
    Py_XDECREF(given);
    Py_XDECREF(value);
    Py_XDECREF(first);
    Py_XDECREF(args);
}

/* What became of one tensor's .grad; `place` gets its gradient in the operator's result (owned). */
static void note_gradient(mp_recorder *rec, uint32_t op, PyObject *source, PyObject *before, PyObject **place)
{
    PyObject *now = ask(source, "grad");
    mp_value_id id = MP_NO_VALUE;
    if (now == before && (now == Py_None || mp_rec_unchanged(rec, now))) { /* it has no gradient */
        *place = Py_NewRef(Py_None);
        Py_DECREF(now);
        return;
    }
    if (before == Py_None)
        id = mp_rec_bind_new(rec, now, op);
    else
        id = mp_rec_new_value(rec, op);
    if (id != MP_NO_VALUE && before != Py_None) append_sum(rec, now == before ? "add_" : "add", before, id, now);
    *place = id == MP_NO_VALUE ? Py_NewRef(Py_None) : mp_value_new(id);
    if (now != before) mp_rec_store_grad(rec, source, now);
    Py_DECREF(now);
}

static void record_run(mp_recorder *rec, engine_run *run, PyObject *result)
{
    if (!run->before) {
        append_gradients(rec, run, result);
        return;
    }
    Py_ssize_t n = PyList_GET_SIZE(run->sources);
    if (!n) return;
    uint32_t op = append_gradients(rec, run, Py_None);
    PyObject *out = op == UINT32_MAX ? NULL : PyList_New(n);
    PyObject *quiet = mp_quiet_begin();
    for (Py_ssize_t i = 0; out && i < n; i++) {
        PyObject *place = NULL;
        note_gradient(rec, op, PyList_GET_ITEM(run->sources, i), PyList_GET_ITEM(run->before, i), &place);
        if (place)
            PyList_SET_ITEM(out, i, place);
        else
            Py_CLEAR(out);
    }
    mp_quiet_end(quiet);
    if (out && !mp_rec_abandoned(rec))
        Py_SETREF(rec->recording->ops[op].out, out);
    else {
        Py_XDECREF(out);
        PyErr_Clear();
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "backward");
    }
}

static void engine_ran(mp_recorder *rec, PyObject *capsule, PyObject **slot)
{
    engine_run *run = PyCapsule_GetPointer(capsule, "magpy backward");
    if (run && slot && *slot) {
        run->rec = NULL;
        rec->engine = false;
        mp_kept kept = mp_keep();
        if (!mp_rec_abandoned(rec)) record_run(rec, run, *slot);
        mp_restore(kept);
    }
    Py_XDECREF(capsule);
}

static PyObject *argument(const mp_call *call, Py_ssize_t i, const char *name) /* borrowed or NULL */
{
    for (Py_ssize_t k = 0; k < call->nkw; k++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, k), name) == 0) return call->kwvalues[k];
    return i < call->nargs ? call->args[i] : NULL;
}

/* torch.autograd.graph._engine_run_backward(outputs, grad_outputs, keep_graph, create_graph, inputs, allow_unused, accumulate_grad): behind
** grad and backward. */
void mp_handle_run_backward(mp_call *call)
{
    mp_recorder *rec = call->rec;
    mp_op_state *state = mp_rec_op_state(rec);
    PyObject *accumulate = argument(call, 6, "accumulate_grad");
    if (!state || call->nargs < 5 || !PyTuple_Check(call->args[0]) || !PyTuple_Check(call->args[1]) ||
        !PyTuple_Check(call->args[4]) || !accumulate || !PyBool_Check(accumulate) || state->muted) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "with such arguments");
        return;
    }
    if (state->hooks) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE,
                        "gradients are computed in a call that registers hooks of tensors; go backward after it");
        return;
    }
    mp_kept kept = mp_keep();
    engine_run *run = PyMem_RawCalloc(1, sizeof *run);
    PyObject *capsule = run ? PyCapsule_New(run, "magpy backward", free_run) : NULL, *quiet = NULL;
    if (!capsule) {
        PyMem_RawFree(run);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "backward");
        goto end;
    }
    run->outputs = Py_NewRef(call->args[0]);
    run->grad_outputs = Py_NewRef(call->args[1]);
    run->retain = Py_NewRef(call->args[2]);
    run->create = Py_NewRef(call->args[3]);
    quiet = mp_quiet_begin();
    bool known = mp_rec_check_tensors(rec, call->args[0], NULL, NULL) &&
                 mp_rec_check_tensors(rec, call->args[1], NULL, NULL) &&
                 mp_rec_check_tensors(rec, call->args[4], NULL, NULL);
    if (known && find_sources(rec, run, call->args[4], accumulate == Py_True)) {
        run->rec = rec;
        rec->engine = true;
        rec->whole = (PyCodeObject *)((PyFunctionObject *)call->callable)->func_code;
        mp_rec_pend(rec, call->frame, engine_ran, capsule);
        capsule = NULL;
    }
end:
    mp_quiet_end(quiet);
    Py_XDECREF(capsule);
    mp_restore(kept);
}
