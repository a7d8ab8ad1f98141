/* Operators: what the torch-function mode shows, and calls of torch that it does not see, become nodes of the graph.
**
** An operator is recorded at API level. Its template is made before it runs (it may change its arguments), its in-place changes are
** found by version counters afterwards, and its results are bound to new values. What it reads of data ends the trace, unless the
** data is a constant of the trace.
*/
#include "trace/ops.h"

#include "trace/arrays.h"
#include "trace/numbers.h"
#include "trace/opaque.h"
#include "trace/raw.h"

static void free_running(mp_running_op *op)
{
    mp_kept kept = mp_keep();
    Py_XDECREF(op->func);
    Py_XDECREF(op->real_args);
    Py_XDECREF(op->kwargs);
    Py_XDECREF(op->args_template);
    Py_XDECREF(op->kwargs_template);
    PyMem_RawFree(op);
    mp_restore(kept);
}

void mp_op_abandon(mp_recorder *rec, mp_reason_code code, PyObject *func, const char *what)
{
    if (mp_rec_abandoned(rec)) return;
    mp_kept kept = mp_keep();
    PyObject *name = mp_callable_name(func);
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    mp_rec_abandon(rec, code, "%s%s%s", text ? text : "torch function", what ? ": " : "", what ? what : "");
    Py_XDECREF(name);
    mp_restore(kept);
}

/* -- Recording ------------------------------------------------------------------------------------------------------- */

/* Append an operator and bind its results. Steals the templates. */
void mp_op_append(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs, PyObject *out, bool state,
                  bool constant)
{
    mp_op *op = NULL;
    uint32_t index = rec->recording ? rec->recording->n_ops : 0;
    if (rec->recording) op = mp_rec_grow(rec, &rec->recording->ops, &rec->recording->n_ops, sizeof *op);
    if (!op) {
        Py_XDECREF(args);
        Py_XDECREF(kwargs);
        return;
    }
    op->func = Py_NewRef(func);
    op->args = args;
    op->kwargs = kwargs;
    op->state = state;
    op->site = mp_rec_site(rec);
    if (!constant && rec->op_state) rec->op_state->n_varying++;
    mp_rec_bind_results(rec, out, index, constant);
    PyObject *made = mp_rec_template(rec, out);
    rec->recording->ops[index].out = made ? made : Py_NewRef(Py_None);
}

/* What C code inside torch reads of the arguments that are no tensors. */
static void read_arguments(mp_recorder *rec, PyObject *args, PyObject *kwargs)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++)
        if (!mp_is_tensor(PyTuple_GET_ITEM(args, i))) mp_rec_deep(rec, PyTuple_GET_ITEM(args, i));
    PyObject *key, *value;
    for (Py_ssize_t i = 0; kwargs && PyDict_Next(kwargs, &i, &key, &value);)
        if (!mp_is_tensor(value)) mp_rec_deep(rec, value);
}

bool mp_op_named_in_place(PyObject *func, PyObject *kwargs)
{
    if (kwargs && PyDict_GetItemString(kwargs, "out")) return true;
    const char *text = mp_op_name(func);
    size_t n = text ? strlen(text) : 0;
    if (n > 4 && !strncmp(text, "__", 2)) return !strcmp(text, "__setitem__") || text[2] == 'i'; /* __iadd__ */
    return n > 1 && text[n - 1] == '_';
}

/* Does the function see where in its memory a tensor lies? */
static bool sees_place(PyObject *func)
{
    const char *text = mp_op_name(func);
    return text && (!strcmp(text, "storage_offset") || !strncmp(text, "as_strided", 10));
}

static bool visit_mark_mutated(mp_recorder *rec, PyObject *tensor, void *context)
{
    mp_value_id id = mp_rec_find_value(rec, tensor);
    mp_facts *facts = mp_rec_facts(rec, id);
    if (!facts || facts->versioned) return true;
    facts->constant = false;
    mp_rec_counted(rec, tensor);
    return true;
}

/* -- Checks -------------------------------------------------------------------------------------------------------- */

static bool accept_checks; /* process-wide default for tests */

void mp_rec_accept_checks(mp_recorder *rec)
{
    mp_op_state *state = mp_rec_op_state(rec);
    if (state) state->accept_checks = state->accept_values = true;
}

void mp_rec_refuse_values(mp_recorder *rec)
{
    mp_op_state *state = mp_rec_op_state(rec);
    if (state) state->accept_values = false;
}

/* -- Functions that the mode shows ------------------------------------------------------------------------------------- */

static mp_effect_class class_of(PyObject *func)
{
    const mp_effect *effect = mp_effect_of_torch(func);
    return effect ? (mp_effect_class)effect->effect : MP_EFFECT_OP;
}

/* tensor.grad = value, del tensor.grad, tensor.data = value. Is it one of those? */
static bool store_member(mp_recorder *rec, mp_running_op *op)
{
    const char *name = mp_op_member(op->func);
    Py_ssize_t n = PyTuple_GET_SIZE(op->real_args);
    const mp_effect *effect = mp_effect_of_torch(op->func);
    bool store = effect && effect->effect == MP_EFFECT_REFUSED; /* else a read */
    if (!name || !store || n < 1 || n > 2) return false;
    PyObject *value = n == 2 ? PyTuple_GET_ITEM(op->real_args, 1) : Py_None;
    if (strcmp(name, "grad") == 0 && (value == Py_None || mp_is_tensor(value))) {
        mp_rec_store_grad(rec, PyTuple_GET_ITEM(op->real_args, 0), value);
        op->effect = MP_EFFECT_META;
        return true;
    }
    if (strcmp(name, "data") != 0 || !mp_is_tensor(value)) return false;
    op->effect = MP_EFFECT_META;
    if (value == PyTuple_GET_ITEM(op->real_args, 0)) return true; /* module.to() where nothing is to be done */
    op->args_template = mp_rec_template(rec, op->real_args);
    op->sets_data = true;
    return true;
}

static bool is_requires_grad(PyObject *func)
{
    return Py_IS_TYPE(func, &PyMethodDescr_Type) &&
           PyUnicode_CompareWithASCIIString(PyDescr_NAME(func), "requires_grad_") == 0;
}

static bool is_required(PyObject *tensor)
{
    PyObject *answer = mp_is_tensor(tensor) ? mp_tensor_ask(mp_names.requires_grad, tensor) : NULL;
    bool required = answer == Py_True;
    PyErr_Clear();
    Py_XDECREF(answer);
    return required;
}

/* Sizes of a nested tensor are data. */
static bool asks_nested_sizes(const mp_running_op *op)
{
    static const char *const others[] = {"dim",           "ndim",    "is_nested", "dtype",  "device",
                                         "requires_grad", "is_cuda", "is_cpu",    "layout", "is_floating_point"};
    PyObject *tensor = PyTuple_GET_SIZE(op->real_args) ? PyTuple_GET_ITEM(op->real_args, 0) : NULL;
    if (op->effect != MP_EFFECT_META || !tensor || !mp_is_tensor(tensor)) return false;
    PyObject *nested = mp_tensor_ask(mp_names.is_nested, tensor);
    bool asks = nested != Py_False;
    PyErr_Clear();
    Py_XDECREF(nested);
    const char *name = asks ? mp_op_member(op->func) : NULL;
    if (asks && !name) name = mp_op_name(op->func);
    for (size_t i = 0; asks && name && i < sizeof others / sizeof *others; i++) asks = strcmp(name, others[i]) != 0;
    return asks;
}

/* May the function be run under observation at all? */
static bool admit(mp_recorder *rec, mp_running_op *op)
{
    if (asks_nested_sizes(op)) {
        mp_op_abandon(rec, MP_REASON_DATA_READ, op->func, "sizes of a nested tensor");
        return false;
    }
    if (mp_opaque_asked(op)) {
        mp_op_abandon(rec, MP_REASON_UNGUARDABLE, op->func, "of a sparse or quantised tensor");
        return false;
    }
    if (op->effect == MP_EFFECT_REFUSED) {
        mp_op_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, op->func, "not traceable");
        return false;
    }
    bool data = op->effect == MP_EFFECT_DATA || op->effect == MP_EFFECT_SIZED || mp_op_size_is_data(rec, op);
    bool packed = mp_op_batch_sizes(op) != NULL;
    data = data || packed;
    op->check = op->effect == MP_EFFECT_DATA && !op->constant && rec->op_state->accept_checks && !rec->op_state->muted;
    bool sized = op->effect == MP_EFFECT_SIZED || op->effect == MP_EFFECT_OP || packed;
    bool constant = op->constant && op->tensors; /* a fake tensor does not know its elements all the same */
    op->sized = data && sized && (constant || (!op->constant && rec->op_state->accept_values)) &&
                !rec->op_state->muted && mp_number_sized();
    if (data && !op->check && !op->sized && !constant) {
        mp_op_abandon(rec, MP_REASON_DATA_READ, op->func, NULL);
        return false;
    }
    if (data && (op->effect == MP_EFFECT_OP || packed)) op->effect = MP_EFFECT_SIZED;
    return true;
}

/* Inside a call that is one node of the graph, tensors are its own or its arguments: what it takes from elsewhere would be no argument
** of the node. */
static bool visit_given(mp_recorder *rec, PyObject *tensor, void *context)
{
    PyObject *given = rec->op_state->given;
    for (Py_ssize_t i = 0; given && i < PyTuple_GET_SIZE(given); i++)
        if (PyTuple_GET_ITEM(given, i) == tensor) return true;
    return mp_rec_find_value(rec, tensor) == MP_NO_VALUE && mp_rec_find(rec, tensor) == MP_NO_OBJ;
}

/* A torch function written in Python runs unwatched: it must be torch's own. */
static bool is_foreign_function(PyObject *func)
{ return PyFunction_Check(func) && !mp_is_library_code((PyCodeObject *)((PyFunctionObject *)func)->func_code); }

void *mp_rec_op_begin(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs)
{
    rec->in_op++;
    mp_op_state *state = mp_rec_op_state(rec);
    if (state && accept_checks) state->accept_checks = state->accept_values = true;
    if (!state || mp_rec_abandoned(rec) || !mp_torch_names_ready() || !mp_effects_ready()) return NULL;
    mp_kept kept = mp_keep();
    state->seen++;
    mp_running_op *op = PyMem_RawCalloc(1, sizeof *op);
    if (!op) {
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "operator");
        mp_restore(kept);
        return NULL;
    }
    op->func = Py_NewRef(func);
    op->real_args = args && PyTuple_Check(args) ? Py_NewRef(args) : PyTuple_New(0);
    op->kwargs = kwargs && PyDict_Check(kwargs) && PyDict_GET_SIZE(kwargs) ? Py_NewRef(kwargs) : NULL;
    mp_op_settle_function(rec, op);
    op->effect = class_of(op->func);
    op->marks = is_requires_grad(op->func) && PyTuple_GET_SIZE(op->real_args) && !state->muted;
    if (op->marks) op->required = is_required(PyTuple_GET_ITEM(op->real_args, 0));
    if (!state->muted) mp_op_settle_arguments(rec, op);
    op->constant = true;
    op->numbers = mp_number_arguments(rec, func, op->real_args, op->kwargs);
    bool known = true;
    if (!state->muted)
        known = mp_rec_check_tensors(rec, op->real_args, &op->constant, &op->tensors) &&
                mp_rec_check_tensors(rec, op->kwargs, &op->constant, &op->tensors);
    else {
        op->constant = false;
        known =
            mp_each_tensor(rec, op->real_args, visit_given, NULL) && mp_each_tensor(rec, op->kwargs, visit_given, NULL);
        if (!known)
            mp_op_abandon(rec, MP_REASON_UNKNOWN_TENSOR, func,
                          "autograd.Function uses a tensor that is no argument of it");
    }
    if (op->numbers) op->constant = false;
    if (is_foreign_function(func))
        mp_op_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, func, "a torch function of the program's own");
    if (known && !state->muted && store_member(rec, op)) {
        mp_restore(kept);
        return op;
    }
    op->draws = known && mp_draws_from_own(rec, op->kwargs);
    if (known && admit(rec, op) && op->effect != MP_EFFECT_ATTR && !state->muted && !op->draws) {
        read_arguments(rec, op->real_args, op->kwargs);
        if (op->effect != MP_EFFECT_META && op->effect != MP_EFFECT_DATA) {
            op->args_template = mp_rec_template(rec, op->real_args);
            if (op->kwargs) op->kwargs_template = mp_rec_template(rec, op->kwargs);
        }
    }
    mp_restore(kept);
    return op;
}

/* .grad and the like: state of an external tensor; of the call's own, whatever it gave must be known. */
static void end_attr(mp_recorder *rec, mp_running_op *op, PyObject *out)
{
    const char *name = mp_op_member(op->func);
    PyObject *tensor = PyTuple_GET_SIZE(op->real_args) ? PyTuple_GET_ITEM(op->real_args, 0) : NULL;
    PyObject *key = name ? mp_intern(name) : NULL;
    if (key && tensor && mp_rec_find(rec, tensor) != MP_NO_OBJ) {
        mp_rec_read(rec, tensor, MP_READ_TENSOR_ATTR, key, out);
    } else if (!key || (mp_is_tensor(out) && mp_rec_has_unknown(rec, out)))
        mp_op_abandon(rec, MP_REASON_UNKNOWN_TENSOR, op->func, NULL);
    else if (tensor && !strcmp(name, "grad_fn"))
        mp_hooks_note_node(rec, out, tensor);
    Py_XDECREF(key);
    PyErr_Clear();
}

static bool visit_size(mp_recorder *rec, PyObject *tensor, void *list)
{
    PyObject *size = mp_tensor_ask(mp_names.shape, tensor),
             *stride = size ? mp_tensor_ask(mp_names.stride, tensor) : NULL;
    PyObject *plain = stride ? PyTuple_GetSlice(size, 0, PY_SSIZE_T_MAX) : NULL;
    PyObject *pair = plain ? PyTuple_Pack(2, plain, stride) : NULL;
    int failed = !pair || PyList_Append(list, pair) < 0;
    Py_XDECREF(size);
    Py_XDECREF(stride);
    Py_XDECREF(plain);
    Py_XDECREF(pair);
    return !failed;
}

/* An operator whose results' sizes are data: it is replayed by a function that knows the sizes that they had. */
static void append_sized(mp_recorder *rec, mp_running_op *op, PyObject *out, bool constant)
{
    PyObject *quiet = mp_quiet_begin(), *sizes = PyList_New(0), *args = NULL;
    bool known = sizes && mp_each_tensor(rec, out, visit_size, sizes);
    PyObject *batch_sizes = mp_op_batch_sizes(op);
    if (known && batch_sizes) { /* what it steps by stands behind the sizes */
        PyObject *tolist = mp_op_method("tolist");
        PyObject *steps = tolist ? PyObject_CallOneArg(tolist, batch_sizes) : NULL;
        known = steps && PyList_Append(sizes, steps) == 0;
        Py_XDECREF(tolist);
        Py_XDECREF(steps);
    }
    mp_quiet_end(quiet);
    PyObject *tuple = known ? PyList_AsTuple(sizes) : NULL;
    if (tuple)
        args = op->kwargs_template ? PyTuple_Pack(4, op->func, tuple, op->args_template, op->kwargs_template)
                                   : PyTuple_Pack(3, op->func, tuple, op->args_template);
    Py_XDECREF(sizes);
    Py_XDECREF(tuple);
    if (args)
        mp_op_append(rec, mp_number_sized(), args, NULL, out, false, constant);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "sizes");
}

/* tensor.requires_grad_(flag) of a tensor from outside: a write, where that changes it. */
static void mark(mp_recorder *rec, PyObject *tensor, bool required)
{
    PyObject *key = mp_intern("requires_grad"), *now = mp_tensor_ask(mp_names.requires_grad, tensor);
    if (!key || !now)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "requires_grad");
    else if (mp_rec_known(rec, tensor, MP_READ_TENSOR_ATTR, key))
        mp_rec_abandon(rec, MP_REASON_INPUT_METADATA_CHANGED, "requires_grad of one tensor is set twice");
    else if (required != (now == Py_True) && mp_rec_find(rec, tensor) != MP_NO_OBJ)
        mp_rec_write(rec, tensor, MP_WRITE_TENSOR_ATTR, key, now);
    Py_XDECREF(key);
    Py_XDECREF(now);
}

/* Tensor's operators that torch writes in Python compute like those in C++. */
static bool is_python_operator(PyObject *func)
{
    static const char *const names[] = {"__pow__",      "__rpow__",     "__rsub__",      "__rdiv__",
                                        "__rtruediv__", "__floordiv__", "__rfloordiv__", "__rmod__",
                                        "__rmatmul__",  "__rlshift__",  "__rrshift__"};
    PyObject *name = ((PyFunctionObject *)func)->func_name;
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        found = found || PyUnicode_CompareWithASCIIString(name, names[i]) == 0;
    return found && mp_raw_type_lookup(mp_names.tensor, name) == func;
}

static void end_op(mp_recorder *rec, mp_running_op *op, PyObject *out)
{
    if (mp_opaque_involved(op, out)) {
        mp_opaque_end(rec, op, out);
        return;
    }
    bool derived = op->tensors > 0 && op->constant &&
                   (op->effect == MP_EFFECT_OP || op->effect == MP_EFFECT_SIZED || op->effect == MP_EFFECT_SHAPES) &&
                   (!PyFunction_Check(op->func) || is_python_operator(op->func));
    bool constant = ((op->effect == MP_EFFECT_FACTORY || op->effect == MP_EFFECT_COPIES) && op->constant) ||
                    (op->effect == MP_EFFECT_LIKE && op->tensors <= 1 && !op->numbers) ||
                    (derived && !(op->kwargs && PyDict_GetItemString(op->kwargs, "generator")));
    int changed = mp_rec_note_changes(rec, op->real_args, op->kwargs, constant);
    if (changed < 0) return;
    if (!changed && mp_op_named_in_place(op->func, op->kwargs)) {
        mp_each_tensor(rec, op->real_args, visit_mark_mutated, NULL);
        changed = 1;
    }
    bool state = op->effect == MP_EFFECT_STATE_WRITE;
    if (op->effect == MP_EFFECT_NOTHING && !op->tensors && !mp_has_tensor(out)) return;
    if (!mp_has_tensor(out) && !changed && !state) {
        bool metadata =
            PyUnicode_CheckExact(out) || (mp_is_scalar(out) && !strncmp(Py_TYPE(out)->tp_name, "torch.", 6));
        if (op->effect == MP_EFFECT_STATE || metadata) return; /* names, dtypes, devices: no data can be in them */
        mp_op_abandon(rec, out == Py_None ? MP_REASON_UNKNOWN_C_CALLABLE : MP_REASON_DATA_READ, op->func, NULL);
        return;
    }
    if (!op->args_template || (op->kwargs && !op->kwargs_template)) return; /* abandoned */
    if (op->sized) {
        append_sized(rec, op, out, constant);
        return;
    }
    mp_op_append(rec, op->func, Py_NewRef(op->args_template), Py_XNewRef(op->kwargs_template), out, state, constant);
}

/* The program may catch it. A compiled run need not raise it if it follows from what is guarded: sizes, types and plain arguments. */
void mp_rec_op_raised(mp_recorder *rec, void *token, PyObject *error)
{
    mp_running_op *op = token;
    bool plain = op->effect == MP_EFFECT_OP || op->effect == MP_EFFECT_SHAPES || op->effect == MP_EFFECT_LIKE ||
                 op->effect == MP_EFFECT_FACTORY || op->effect == MP_EFFECT_META;
    bool own = op->marks || op->sets_data || op->draws || op->numbers || op->sized || op->check || rec->op_state->muted;
    if (mp_rec_abandoned(rec) || !plain || own || !error || mp_op_named_in_place(op->func, op->kwargs) ||
        (PyFunction_Check(op->func) && !is_python_operator(op->func)))
        return;
    PyObject *kwargs = op->kwargs ? Py_NewRef(op->kwargs) : PyDict_New(), *same = NULL;
    if (kwargs)
        same = mp_call_imported("magpy.raised", "without_data", "(OOOO)", op->func, op->real_args, kwargs, error);
    op->raised = same == Py_True && mp_rec_note_changes(rec, op->real_args, op->kwargs, false) == 0;
    PyErr_Clear();
    Py_XDECREF(same);
    Py_XDECREF(kwargs);
}

void mp_rec_op_end(mp_recorder *rec, void *token, PyObject **result)
{
    PyObject *out = *result;
    mp_running_op *op = token;
    if (!op) {
        rec->in_op--;
        return;
    }
    mp_kept kept = mp_keep();
    if (!mp_rec_abandoned(rec)) {
        if (out && sees_place(op->func)) mp_rec_placed(rec, op->real_args, op->kwargs);
        if (!out && !op->raised)
            mp_op_abandon(rec, MP_REASON_EXCEPTION, op->func, NULL);
        else if (!out)
            ;
        else if (op->effect == MP_EFFECT_META && mp_is_array(out) && PyTuple_GET_SIZE(op->real_args))
            mp_array_adopt(rec, out, PyTuple_GET_ITEM(op->real_args, 0)); /* tensor.numpy() */
        else if (op->effect == MP_EFFECT_ATTR)
            end_attr(rec, op, out);
        else if (op->marks) {
            mark(rec, PyTuple_GET_ITEM(op->real_args, 0), op->required);
            end_op(rec, op, PyTuple_GET_ITEM(op->real_args, 0));
        } else if (op->sets_data)
            mp_rec_set_data(rec, op->args_template, PyTuple_GET_ITEM(op->real_args, 0),
                            PyTuple_GET_ITEM(op->real_args, 1));
        else if (op->check) {
            if (!mp_op_read_number(rec, op, result) && !mp_op_read_text(rec, op, result)) mp_op_add_check(rec, op, out);
        } else if (op->draws && !rec->op_state->muted)
            mp_rec_draw(rec, op->func, op->real_args, op->tensors, out);
        else if (op->effect != MP_EFFECT_META && op->effect != MP_EFFECT_DATA && !rec->op_state->muted)
            end_op(rec, op, out);
    }
    free_running(op);
    rec->in_op--;
    mp_restore(kept);
}

/* -- Calls that the mode does not see ------------------------------------------------------------------------------------ */

void mp_rec_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs, PyObject *out, bool state)
{
    if (mp_rec_abandoned(rec) || !mp_rec_op_state(rec) || rec->op_state->muted || !mp_torch_names_ready()) return;
    mp_kept kept = mp_keep();
    if (kwargs && !PyDict_GET_SIZE(kwargs)) kwargs = NULL;
    read_arguments(rec, args, kwargs);
    /* the versions may have moved in this very call */
    const mp_effect *effect = mp_effect_of_torch(func);
    bool factory =
        effect && effect->effect == MP_EFFECT_FACTORY && !mp_has_tensor(args) && !(kwargs && mp_has_tensor(kwargs));
    PyObject *args_template = mp_rec_template(rec, args);
    PyObject *kwargs_template = kwargs && args_template ? mp_rec_template(rec, kwargs) : NULL;
    if (args_template && (!kwargs || kwargs_template) && mp_rec_note_changes(rec, args, kwargs, false) >= 0)
        mp_op_append(rec, func, Py_NewRef(args_template), Py_XNewRef(kwargs_template), out, state, factory);
    Py_XDECREF(args_template);
    Py_XDECREF(kwargs_template);
    mp_restore(kept);
}

void mp_rec_template_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *out)
{ mp_op_append(rec, func, args, NULL, out, false, false); }

void mp_rec_values_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *out)
{
    uint32_t index = rec->recording->n_ops;
    mp_op_append(rec, func, args, NULL, Py_None, false, false);
    if (rec->recording->n_ops > index)
        Py_SETREF(rec->recording->ops[index].out, out);
    else
        Py_DECREF(out);
}

void mp_rec_constant_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *constant, PyObject *out)
{
    PyObject *template = PyTuple_New(PyTuple_GET_SIZE(args));
    for (Py_ssize_t i = 0; template && i < PyTuple_GET_SIZE(args); i++) {
        PyObject *item = PyTuple_GET_ITEM(args, i);
        item = item == constant ? Py_NewRef(item) : mp_rec_template(rec, item);
        if (item)
            PyTuple_SET_ITEM(template, i, item);
        else
            Py_CLEAR(template);
    }
    if (template && mp_rec_note_changes(rec, args, NULL, true) >= 0)
        mp_op_append(rec, func, template, NULL, out, false, true);
    else
        Py_XDECREF(template);
}

/* -- Module part --------------------------------------------------------------------------------------------------------- */

static PyObject *set_accept_checks(PyObject *module, PyObject *on)
{
    int truth = PyObject_IsTrue(on);
    if (truth < 0) return NULL;
    accept_checks = truth;
    Py_RETURN_NONE;
}

static PyMethodDef op_methods[] = {
    {"_accept_checks", set_accept_checks, METH_O, "Let every recording have checks (for tests)."},
    {NULL},
};

int mp_ops_module_init(PyObject *module) { return PyModule_AddFunctions(module, op_methods); }
