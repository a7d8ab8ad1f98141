/* Operators: what the torch-function mode shows, and calls of torch that it does not see, become nodes of the graph.
**
** An operator is recorded at API level. Its template is made before it runs (it may change its arguments), its in-place changes are
** found by version counters afterwards, and its results are bound to new values. What it reads of data ends the trace, unless the
** data is a constant of the trace.
*/
#include "trace/arrays.h"
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

typedef struct {                               /* a torch function between op_begin and op_end */
    PyObject *func;                            /* owned */
    PyObject *real_args, *kwargs;              /* owned; kwargs may be NULL */
    PyObject *args_template, *kwargs_template; /* owned, NULL where no operator is recorded */
    mp_effect_class effect;
    bool constant;        /* all tensors given are constants of the trace */
    bool check;           /* DATA that becomes a check */
    bool sized;           /* its results' sizes are data, and the recording holds where they are the same */
    bool numbers;         /* there are numbers that are data among the arguments */
    bool sets_data;       /* tensor.data = other */
    bool marks, required; /* tensor.requires_grad_(flag), and what the flag was */
    bool draws;           /* from a generator that the call made */
    int tensors;          /* how many there are */
} running_op;

static void free_running(running_op *op)
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

static void abandon_func(mp_recorder *rec, mp_reason_code code, PyObject *func, const char *what)
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
static void append_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs, PyObject *out, bool state,
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

/* The name of a function or method of torch's, or NULL. */
static const char *text_name(PyObject *func)
{
    PyObject *name = NULL;
    if (Py_IS_TYPE(func, &PyMethodDescr_Type)) name = PyDescr_NAME(func);
    if (Py_IS_TYPE(func, &PyWrapperDescr_Type)) name = PyDescr_NAME(func);
    return name ? PyUnicode_AsUTF8(name) : PyCFunction_Check(func) ? ((PyCFunctionObject *)func)->m_ml->ml_name : NULL;
}

/* Is the name one of an in-place function, where version counters do not tell (inference tensors)? */
static bool named_in_place(PyObject *func, PyObject *kwargs)
{
    if (kwargs && PyDict_GetItemString(kwargs, "out")) return true;
    const char *text = text_name(func);
    size_t n = text ? strlen(text) : 0;
    if (n > 4 && !strncmp(text, "__", 2)) return !strcmp(text, "__setitem__") || text[2] == 'i'; /* __iadd__ */
    return n > 1 && text[n - 1] == '_';
}

/* Does the function see where in its memory a tensor lies? */
static bool sees_place(PyObject *func)
{
    const char *text = text_name(func);
    return text && (!strcmp(text, "storage_offset") || !strncmp(text, "as_strided", 10));
}

static bool visit_mark_mutated(mp_recorder *rec, PyObject *tensor, void *context)
{
    mp_value_id id = mp_rec_find_value(rec, tensor);
    mp_facts *facts = mp_rec_facts(rec, id);
    if (!facts || facts->versioned) return true;
    facts->constant = false;
    for (uint32_t k = 0; k < rec->recording->n_inputs; k++)
        if (rec->recording->inputs[k] == id) rec->recording->input_mutated[k] = MP_MUTATION_COUNTED;
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

PyObject *mp_rec_silent_op(mp_recorder *rec, PyObject *func, PyObject *args)
{
    PyObject *value = NULL;
    uint32_t index = rec->recording->n_ops;
    mp_value_id id = func && args ? mp_rec_new_value(rec, index) : MP_NO_VALUE;
    if (id != MP_NO_VALUE) {
        append_op(rec, func, Py_NewRef(args), NULL, Py_None, false, false);
        value = mp_value_new(id);
        if (value && rec->recording->n_ops > index) Py_SETREF(rec->recording->ops[index].out, Py_NewRef(value));
    }
    Py_XDECREF(args);
    Py_XDECREF(func);
    PyErr_Clear();
    if (!value) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "check");
    return value;
}

static PyObject *tensor_method(const char *name)
{ return PyObject_GetAttrString((PyObject *)mp_names.tensor_base, name); }

PyObject *mp_rec_snapshot(mp_recorder *rec, PyObject *tensor)
{
    PyObject *args = PyTuple_Pack(1, tensor), *template = args ? mp_rec_template(rec, args) : NULL;
    PyObject *detached = template ? mp_rec_silent_op(rec, tensor_method("detach"), template) : NULL;
    Py_XDECREF(args);
    if (!detached) return NULL;
    args = PyTuple_Pack(1, detached);
    Py_DECREF(detached);
    return mp_rec_silent_op(rec, tensor_method("clone"), args);
}

/* The tensors among the arguments become snapshots, the rest stays. Owned, or NULL after abandoning. */
static PyObject *check_arguments(mp_recorder *rec, PyObject *args)
{
    PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(args));
    for (Py_ssize_t i = 0; copy && i < PyTuple_GET_SIZE(args); i++) {
        PyObject *item = PyTuple_GET_ITEM(args, i);
        item = mp_is_tensor(item) ? mp_rec_snapshot(rec, item) : mp_rec_template(rec, item);
        if (item)
            PyTuple_SET_ITEM(copy, i, item);
        else
            Py_CLEAR(copy);
    }
    return copy;
}

/* What the program saw, in a form that it cannot change: numbers as they are, lists (tolist) copied with their lists. Owned; NULL without an
** exception where it is neither, or with one. */
static PyObject *keep_answer(PyObject *out, int depth)
{
    if (PyBool_Check(out) || PyLong_CheckExact(out) || PyFloat_CheckExact(out) || PyComplex_CheckExact(out))
        return Py_NewRef(out);
    if (!PyList_CheckExact(out) || depth > MP_ANSWER_DEPTH) return NULL;
    PyObject *copy = PyList_New(PyList_GET_SIZE(out));
    for (Py_ssize_t i = 0; copy && i < PyList_GET_SIZE(out); i++) {
        PyObject *item = keep_answer(PyList_GET_ITEM(out, i), depth + 1);
        if (item)
            PyList_SET_ITEM(copy, i, item);
        else
            Py_CLEAR(copy);
    }
    return copy;
}

bool mp_answer_same(PyObject *seen, PyObject *now)
{
    if (!PyList_CheckExact(seen)) return mp_scalar_same(seen, now);
    if (!PyList_CheckExact(now) || PyList_GET_SIZE(seen) != PyList_GET_SIZE(now)) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(seen); i++)
        if (!mp_answer_same(PyList_GET_ITEM(seen, i), PyList_GET_ITEM(now, i))) return false;
    return true;
}

bool mp_answer_is_value(PyObject *seen) { return !PyBool_Check(seen) && !PyLong_Check(seen); }

/* Steals all but func. */
static void new_check(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs, PyObject *answer)
{
    mp_check *check = NULL;
    if (rec->recording) check = mp_rec_grow(rec, &rec->recording->checks, &rec->recording->n_checks, sizeof *check);
    if (!check) {
        Py_XDECREF(args);
        Py_XDECREF(kwargs);
        Py_DECREF(answer);
        return;
    }
    *check = (mp_check){.func = Py_NewRef(func), .args = args, .kwargs = kwargs, .result = answer};
    check->op = rec->recording->n_ops;
    check->site = mp_rec_site(rec);
}

void mp_rec_check(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *seen)
{
    PyObject *answer = keep_answer(seen, 0);
    if (answer)
        new_check(rec, func, Py_NewRef(args), NULL, answer);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "check");
}

/* Is it a look at the only element of one tensor? By which Python function, or NULL. */
static const char *looks_at_element(const running_op *op, PyObject *out)
{
    static const struct {
        const char *method, *how;
    } looks[] = {{"item", ""}, {"__bool__", "bool"}, {"is_nonzero", "bool"}, {"__int__", "int"}, {"__index__", "int"}};
    PyObject *name = Py_IS_TYPE(op->func, &PyMethodDescr_Type) || Py_IS_TYPE(op->func, &PyWrapperDescr_Type)
                         ? PyDescr_NAME(op->func)
                         : NULL;
    bool number = PyFloat_CheckExact(out) || PyLong_CheckExact(out) || PyBool_Check(out);
    if (!number || !name || !mp_numbers_ready() || op->kwargs || PyTuple_GET_SIZE(op->real_args) != 1) return NULL;
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++)
        if (PyUnicode_CompareWithASCIIString(name, looks[i].method) == 0) return looks[i].how;
    return NULL;
}

/* The program saw `out`: the recording holds where it is so again. */
static void add_check(mp_recorder *rec, running_op *op, PyObject *out)
{
    const char *how = looks_at_element(op, out);
    if (how && (!mp_answer_is_value(out) || rec->op_state->accept_values)) {
        PyObject *value = mp_rec_snapshot(rec, PyTuple_GET_ITEM(op->real_args, 0));
        if (value) mp_number_look(rec, mp_index_of(value), how, out);
        Py_XDECREF(value);
        return;
    }
    bool nested = op->kwargs && mp_has_tensor(op->kwargs);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(op->real_args); i++) {
        PyObject *item = PyTuple_GET_ITEM(op->real_args, i);
        nested = nested || (!mp_is_tensor(item) && mp_has_tensor(item));
    }
    bool accepted = !nested && (!mp_answer_is_value(out) || rec->op_state->accept_values);
    PyObject *answer = accepted ? keep_answer(out, 0) : NULL;
    if (!answer) {
        mp_reason_code code = PyErr_Occurred() ? MP_REASON_NO_MEMORY : MP_REASON_DATA_READ;
        PyErr_Clear();
        abandon_func(rec, code, op->func, NULL);
        return;
    }
    PyObject *args = check_arguments(rec, op->real_args);
    PyObject *kwargs = args && op->kwargs ? mp_rec_template(rec, op->kwargs) : NULL;
    if (args && (kwargs || !op->kwargs)) {
        new_check(rec, op->func, args, kwargs, answer);
        return;
    }
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_DECREF(answer);
}

/* The program has read one number, whose value may stay open. False: it is looked at. */
static bool read_number(mp_recorder *rec, running_op *op, PyObject **out)
{
    static const struct {
        const char *method, *how;
    } reads[] = {{"item", NULL}, {"__float__", "float"}, {"__int__", "int"}};
    PyObject *name = Py_IS_TYPE(op->func, &PyMethodDescr_Type) || Py_IS_TYPE(op->func, &PyWrapperDescr_Type)
                         ? PyDescr_NAME(op->func)
                         : NULL;
    bool number = PyFloat_CheckExact(*out) || PyLong_CheckExact(*out);
    if (!number || !name || !mp_numbers_ready() || op->kwargs || PyTuple_GET_SIZE(op->real_args) != 1) return false;
    for (size_t i = 0; i < sizeof reads / sizeof *reads; i++) {
        if (PyUnicode_CompareWithASCIIString(name, reads[i].method) != 0) continue;
        PyObject *value = mp_rec_snapshot(rec, PyTuple_GET_ITEM(op->real_args, 0));
        if (value) mp_number_read(rec, out, mp_index_of(value), reads[i].how);
        Py_XDECREF(value);
        return true;
    }
    return false;
}

void mp_rec_check_call(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *result)
{
    if (rec->why.code || !rec->recording || !rec->op_state || !rec->op_state->accept_checks) return;
    mp_check *check = mp_rec_grow(rec, &rec->recording->checks, &rec->recording->n_checks, sizeof *check);
    if (!check) return;
    *check = (mp_check){.func = Py_NewRef(func), .args = Py_NewRef(args), .result = Py_NewRef(result)};
    check->op = rec->recording->n_ops;
    check->site = mp_rec_site(rec);
}

/* -- Functions that the mode shows ------------------------------------------------------------------------------------- */

static mp_effect_class class_of(PyObject *func)
{
    const mp_effect *effect = mp_effect_of_torch(func);
    return effect ? (mp_effect_class)effect->effect : MP_EFFECT_OP;
}

static const char *member_name(PyObject *func) /* of a getset whose __get__ or __set__ this is; borrowed, or NULL */
{
    if (!Py_IS_TYPE(func, &_PyMethodWrapper_Type)) return NULL;
    PyObject *self = PyObject_GetAttrString(func, "__self__"); /* a C member */
    const char *name = self && Py_IS_TYPE(self, &PyGetSetDescr_Type) ? PyUnicode_AsUTF8(PyDescr_NAME(self)) : NULL;
    Py_XDECREF(self); /* the type keeps it */
    return name;
}

static long dtype_code(PyObject *tensor)
{
    PyObject *dtype = mp_tensor_ask(mp_names.dtype, tensor);
    PyObject *code = dtype ? PyDict_GetItemWithError(mp_names.dtypes, dtype) : NULL;
    long kind = code ? PyLong_AsLong(code) : 0;
    Py_XDECREF(dtype);
    PyErr_Clear();
    return kind;
}

/* Is this index data: a mask of bool or uint8, whose count of true elements is the result's size? */
static bool visit_mask(mp_recorder *rec, PyObject *tensor, void *context)
{
    long kind = dtype_code(tensor);
    return kind != 0 && kind != 11;
}

/* tensor.grad = value, del tensor.grad, tensor.data = value. Is it one of those? */
static bool store_member(mp_recorder *rec, running_op *op)
{
    const char *name = member_name(op->func);
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
    op->args_template = mp_rec_template(rec, op->real_args);
    op->effect = MP_EFFECT_META;
    op->sets_data = true;
    return true;
}

/* tensor.requires_grad = flag is tensor.requires_grad_(flag). */
static void settle_store(running_op *op)
{
    const char *name = member_name(op->func);
    if (!name || strcmp(name, "requires_grad") != 0 || PyTuple_GET_SIZE(op->real_args) != 2) return;
    PyObject *method = PyObject_GetAttrString((PyObject *)mp_names.tensor_base, "requires_grad_");
    if (method)
        Py_SETREF(op->func, method);
    else
        PyErr_Clear(); /* refused as other stores are */
}

/* copy.deepcopy of a tensor that requires no gradient is tensor.clone(): the memo is the copier's business. */
static void settle_copy(running_op *op)
{
    if (!PyFunction_Check(op->func) || PyTuple_GET_SIZE(op->real_args) != 2) return;
    PyObject *tensor = PyTuple_GET_ITEM(op->real_args, 0), *key = mp_intern("__deepcopy__");
    PyObject *own = key ? mp_raw_type_lookup(Py_TYPE(tensor), key) : NULL;
    Py_XDECREF(key);
    if (own != op->func || !mp_is_exact_tensor(tensor)) return;
    PyObject *grad = mp_tensor_ask(mp_names.requires_grad, tensor);
    PyObject *method = grad == Py_False ? PyObject_GetAttrString((PyObject *)mp_names.tensor_base, "clone") : NULL;
    PyObject *args = method ? PyTuple_Pack(1, tensor) : NULL;
    if (args) {
        Py_SETREF(op->func, Py_NewRef(method));
        Py_SETREF(op->real_args, args);
    }
    Py_XDECREF(method);
    Py_XDECREF(grad);
    PyErr_Clear(); /* refused otherwise */
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

/* An index without dimensions counts as the int that it holds (bool and uint8 are masks). */
static bool is_place(PyObject *index)
{
    if (!mp_is_tensor(index)) return false;
    PyObject *sizes = mp_tensor_ask(mp_names.shape, index);
    bool single = sizes && PyTuple_GET_SIZE(sizes) == 0;
    long code = single ? dtype_code(index) : 0;
    Py_XDECREF(sizes);
    PyErr_Clear();
    return code >= 1 && code <= 4; /* int8 to int64 */
}

/* Does the index hold tensors that are taken for numbers? */
static bool sliced_by_tensor(PyObject *index)
{
    if (PySlice_Check(index)) return mp_has_tensor(index);
    for (Py_ssize_t i = 0; PyTuple_Check(index) && i < PyTuple_GET_SIZE(index); i++)
        if (sliced_by_tensor(PyTuple_GET_ITEM(index, i))) return true;
    return is_place(index);
}

/* The index with such tensors replaced by their numbers. Owned, or NULL with an exception. */
static PyObject *slices_as_numbers(PyObject *index)
{
    if (is_place(index)) return PyNumber_Index(index);
    if (PySlice_Check(index)) {
        PySliceObject *slice = (PySliceObject *)index;
        PyObject *bounds[3] = {slice->start, slice->stop, slice->step}, *numbers[3] = {NULL}, *made = NULL;
        int n = 0;
        for (; n < 3; n++)
            if (!(numbers[n] = mp_is_tensor(bounds[n]) ? PyNumber_Index(bounds[n]) : Py_NewRef(bounds[n]))) break;
        if (n == 3) made = PySlice_New(numbers[0], numbers[1], numbers[2]);
        for (int i = 0; i < 3; i++) Py_XDECREF(numbers[i]);
        return made;
    }
    if (!PyTuple_CheckExact(index)) return Py_NewRef(index);
    PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(index));
    for (Py_ssize_t i = 0; copy && i < PyTuple_GET_SIZE(index); i++) {
        PyObject *item = slices_as_numbers(PyTuple_GET_ITEM(index, i));
        if (!item)
            Py_CLEAR(copy);
        else
            PyTuple_SET_ITEM(copy, i, item);
    }
    return copy;
}

static void add_check(mp_recorder *rec, running_op *op, PyObject *out);

/* The program looked at every tensor in a slice as a number. */
static bool visit_bound(mp_recorder *rec, PyObject *tensor, void *context)
{
    PyObject *func = PyObject_GetAttrString((PyObject *)Py_TYPE(tensor), "__index__"), *number = PyNumber_Index(tensor);
    running_op op = {.func = func, .real_args = PyTuple_Pack(1, tensor), .tensors = 1};
    if (func && number && op.real_args) add_check(rec, &op, number);
    PyErr_Clear(); /* such as a bound that is no number: the call itself raises */
    Py_XDECREF(func);
    Py_XDECREF(number);
    Py_XDECREF(op.real_args);
    return true;
}

static void check_bounds(mp_recorder *rec, PyObject *index)
{
    if (PySlice_Check(index) || is_place(index)) mp_each_tensor(rec, index, visit_bound, NULL);
    for (Py_ssize_t i = 0; PyTuple_Check(index) && i < PyTuple_GET_SIZE(index); i++)
        check_bounds(rec, PyTuple_GET_ITEM(index, i));
}

/* tensor[a:b] and tensor[i] with bounds and places that are tensors are recorded with the numbers they are: constants of the trace, or
** looked at and checked. */
static void settle_slices(mp_recorder *rec, running_op *op)
{
    Py_ssize_t n = PyTuple_GET_SIZE(op->real_args);
    if (!Py_IS_TYPE(op->func, &PyWrapperDescr_Type) || n < 2 || n > 3 ||
        PyUnicode_CompareWithASCIIString(PyDescr_NAME(op->func), n == 2 ? "__getitem__" : "__setitem__") != 0)
        return;
    PyObject *index = PyTuple_GET_ITEM(op->real_args, 1);
    bool constant = true;
    int count = 0;
    if (!sliced_by_tensor(index) || !mp_rec_check_tensors(rec, index, &constant, &count)) return;
    if (!constant && !rec->op_state->accept_checks) return;
    if (!constant) check_bounds(rec, index);
    PyObject *numbers = slices_as_numbers(index), *tensor = PyTuple_GET_ITEM(op->real_args, 0);
    PyObject *args = NULL;
    if (numbers)
        args = n == 2 ? PyTuple_Pack(2, tensor, numbers)
                      : PyTuple_Pack(3, tensor, numbers, PyTuple_GET_ITEM(op->real_args, 2));
    Py_XDECREF(numbers);
    if (args)
        Py_SETREF(op->real_args, args);
    else
        PyErr_Clear(); /* the call itself raises */
}

/* _reshape_from_tensor(x, sizes) is x.reshape(numbers), constants of the trace or looked at and checked. */
static void settle_reshape(mp_recorder *rec, running_op *op)
{
    const char *name = PyCFunction_Check(op->func) ? ((PyCFunctionObject *)op->func)->m_ml->ml_name : "";
    if (strcmp(name, "_reshape_from_tensor") != 0 || op->kwargs || PyTuple_GET_SIZE(op->real_args) != 2) return;
    PyObject *sizes = PyTuple_GET_ITEM(op->real_args, 1);
    bool constant = true;
    int count = 0;
    if (!mp_is_tensor(sizes) || !mp_rec_check_tensors(rec, sizes, &constant, &count)) return;
    if (!constant && !rec->op_state->accept_values) return; /* refused as data that is looked at */
    PyObject *quiet = mp_quiet_begin(), *tolist = tensor_method("tolist"), *reshape = tensor_method("reshape");
    PyObject *numbers = tolist && reshape ? PyObject_CallOneArg(tolist, sizes) : NULL;
    mp_quiet_end(quiet);
    PyObject *args = numbers ? PyTuple_Pack(2, PyTuple_GET_ITEM(op->real_args, 0), numbers) : NULL;
    running_op look = {.func = tolist, .real_args = args ? PyTuple_Pack(1, sizes) : NULL, .tensors = 1};
    if (look.real_args) {
        if (!constant) add_check(rec, &look, numbers);
        Py_SETREF(op->func, Py_NewRef(reshape));
        Py_SETREF(op->real_args, Py_NewRef(args));
    }
    PyErr_Clear(); /* then it stays as it is */
    Py_XDECREF(look.real_args);
    Py_XDECREF(args);
    Py_XDECREF(numbers);
    Py_XDECREF(reshape);
    Py_XDECREF(tolist);
}

static bool numbers_are_tensors(PyObject *args, PyObject *kwargs, Py_ssize_t from)
{
    for (Py_ssize_t i = from; i < PyTuple_GET_SIZE(args); i++)
        if (mp_has_tensor(PyTuple_GET_ITEM(args, i))) return true;
    PyObject *key, *value;
    for (Py_ssize_t i = 0; kwargs && PyDict_Next(kwargs, &i, &key, &value);)
        if (mp_has_tensor(value) && PyUnicode_CompareWithASCIIString(key, "input") &&
            PyUnicode_CompareWithASCIIString(key, "out"))
            return true;
    return false;
}

/* The object with every tensor of data in it, as far as tuples and lists go, replaced by the number that is its only element, which the program
** has thereby read. Owned, or NULL with an exception. */
static PyObject *as_numbers(mp_recorder *rec, PyObject *object, int depth)
{
    if (mp_is_tensor(object)) {
        mp_facts *facts = mp_rec_facts(rec, mp_rec_find_value(rec, object));
        if (facts && facts->constant) return Py_NewRef(object);
        PyObject *item = tensor_method("item"), *number = item ? PyObject_CallOneArg(item, object) : NULL;
        Py_XDECREF(item);
        if (!number || !(PyLong_CheckExact(number) || PyFloat_CheckExact(number))) {
            Py_XDECREF(number);
            return NULL;
        }
        PyObject *value = mp_rec_snapshot(rec, object);
        if (value) mp_number_read(rec, &number, mp_index_of(value), NULL);
        Py_XDECREF(value);
        return number;
    }
    bool list = PyList_CheckExact(object);
    if ((!list && !PyTuple_CheckExact(object)) || depth > 4 || !mp_has_tensor(object)) return Py_NewRef(object);
    Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
    PyObject *copy = list ? PyList_New(n) : PyTuple_New(n);
    for (Py_ssize_t i = 0; copy && i < n; i++) {
        PyObject *item = as_numbers(rec, PySequence_Fast_GET_ITEM(object, i), depth + 1);
        if (!item)
            Py_CLEAR(copy);
        else if (list)
            PyList_SET_ITEM(copy, i, item);
        else
            PyTuple_SET_ITEM(copy, i, item);
    }
    return copy;
}

/* Where an operator takes sizes and fill values from tensors, the program reads numbers of them. */
static void settle_numbers(mp_recorder *rec, running_op *op)
{
    Py_ssize_t from = op->effect == MP_EFFECT_FACTORY ? 0 : 1;
    bool numbers = op->effect == MP_EFFECT_FACTORY || op->effect == MP_EFFECT_SHAPES || op->effect == MP_EFFECT_LIKE;
    if (!numbers || !rec->op_state->accept_checks || !mp_numbers_ready()) return;
    if (!numbers_are_tensors(op->real_args, op->kwargs, from)) return;
    if (!mp_rec_check_tensors(rec, op->real_args, NULL, &op->tensors)) return;
    op->tensors = 0; /* counted later */
    Py_ssize_t n = PyTuple_GET_SIZE(op->real_args);
    PyObject *args = PyTuple_New(n), *kwargs = op->kwargs ? PyDict_Copy(op->kwargs) : NULL, *key, *value;
    for (Py_ssize_t i = 0; args && i < n; i++) {
        PyObject *item = PyTuple_GET_ITEM(op->real_args, i);
        item = i < from ? Py_NewRef(item) : as_numbers(rec, item, 0);
        if (item)
            PyTuple_SET_ITEM(args, i, item);
        else
            Py_CLEAR(args);
    }
    for (Py_ssize_t i = 0; args && kwargs && PyDict_Next(op->kwargs, &i, &key, &value);) {
        bool tensor = !PyUnicode_CompareWithASCIIString(key, "input") || !PyUnicode_CompareWithASCIIString(key, "out");
        PyObject *item = tensor ? Py_NewRef(value) : as_numbers(rec, value, 0);
        if (!item || PyDict_SetItem(kwargs, key, item) < 0) Py_CLEAR(args);
        Py_XDECREF(item);
    }
    if (args) {
        Py_SETREF(op->real_args, args);
        if (kwargs) Py_SETREF(op->kwargs, Py_NewRef(kwargs));
    }
    Py_XDECREF(kwargs);
    PyErr_Clear(); /* no numbers: the operator looks at data in another way */
}

static bool size_is_data(mp_recorder *rec, mp_effect_class effect, PyObject *func, PyObject *args, PyObject *kwargs)
{
    if (effect == MP_EFFECT_FACTORY) return numbers_are_tensors(args, kwargs, 0);
    if (effect == MP_EFFECT_SHAPES || effect == MP_EFFECT_LIKE) return numbers_are_tensors(args, kwargs, 1);
    if (effect != MP_EFFECT_OP) return false;
    if (Py_IS_TYPE(func, &PyWrapperDescr_Type) && PyTuple_GET_SIZE(args) == 2 &&
        PyUnicode_CompareWithASCIIString(PyDescr_NAME(func), "__getitem__") == 0)
        return sliced_by_tensor(PyTuple_GET_ITEM(args, 1)) ||
               !mp_each_tensor(rec, PyTuple_GET_ITEM(args, 1), visit_mask, NULL);
    const char *name = PyCFunction_Check(func)                 ? ((PyCFunctionObject *)func)->m_ml->ml_name
                       : Py_IS_TYPE(func, &PyMethodDescr_Type) ? ((PyMethodDescrObject *)func)->d_method->ml_name
                                                               : "";
    if (!strcmp(name, "where")) return PyTuple_GET_SIZE(args) == 1 && !kwargs;
    if (!strcmp(name, "repeat_interleave")) { /* sizes are data where the repeats are a tensor */
        Py_ssize_t n = PyTuple_GET_SIZE(args);
        PyObject *repeats = kwargs ? PyDict_GetItemString(kwargs, "repeats") : NULL;
        if (kwargs && PyDict_GetItemString(kwargs, "output_size")) return false;
        return n < 2 ? !repeats || mp_is_tensor(repeats) : mp_is_tensor(PyTuple_GET_ITEM(args, 1));
    }
    if (!strcmp(name, "one_hot"))
        return PyTuple_GET_SIZE(args) < 2 && !(kwargs && PyDict_GetItemString(kwargs, "num_classes"));
    return false;
}

/* A recurrent layer over a packed sequence, (data, batch_sizes, state, weights, ...), steps through it as its batch_sizes say; over a plain
** one, (input, state, weights, ...), it has no such argument. */
static PyObject *batch_sizes_of(const running_op *op)
{
    static const char *const names[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
    if (!PyCFunction_Check(op->func) || op->kwargs || PyTuple_GET_SIZE(op->real_args) < 4) return NULL;
    const char *name = ((PyCFunctionObject *)op->func)->m_ml->ml_name;
    bool layer = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) layer = layer || !strcmp(name, names[i]);
    PyObject *sizes = PyTuple_GET_ITEM(op->real_args, 1), *weights = PyTuple_GET_ITEM(op->real_args, 3);
    return layer && mp_is_tensor(sizes) && (PyList_Check(weights) || PyTuple_Check(weights)) ? sizes : NULL;
}

/* May the function be run under observation at all? */
static bool admit(mp_recorder *rec, running_op *op)
{
    if (op->effect == MP_EFFECT_REFUSED) {
        abandon_func(rec, MP_REASON_UNKNOWN_C_CALLABLE, op->func, "not traceable");
        return false;
    }
    bool data = op->effect == MP_EFFECT_DATA || op->effect == MP_EFFECT_SIZED ||
                size_is_data(rec, op->effect, op->func, op->real_args, op->kwargs);
    bool packed = batch_sizes_of(op) != NULL;
    data = data || packed;
    op->check = op->effect == MP_EFFECT_DATA && !op->constant && rec->op_state->accept_checks && !rec->op_state->muted;
    bool sized = op->effect == MP_EFFECT_SIZED || op->effect == MP_EFFECT_OP || packed;
    op->sized =
        data && sized && !op->constant && rec->op_state->accept_values && !rec->op_state->muted && mp_number_sized();
    if (data && !op->check && !op->sized && !(op->constant && op->tensors)) {
        abandon_func(rec, MP_REASON_DATA_READ, op->func, NULL);
        return false;
    }
    if (data && (op->effect == MP_EFFECT_OP || packed)) op->effect = MP_EFFECT_SIZED;
    return true;
}

/* Does it take arrays as it takes tensors? as_tensor may share their memory. */
static bool takes_arrays(PyObject *func, bool *shared)
{
    static const char *const names[] = {"tensor", "as_tensor", "new_tensor", "__getitem__", "__setitem__"};
    bool method = Py_IS_TYPE(func, &PyMethodDescr_Type) || Py_IS_TYPE(func, &PyWrapperDescr_Type);
    const char *name = method                    ? PyUnicode_AsUTF8(PyDescr_NAME(func))
                       : PyCFunction_Check(func) ? ((PyCFunctionObject *)func)->m_ml->ml_name
                                                 : "";
    *shared = name && !strcmp(name, "as_tensor");
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

/* Arrays among the arguments are values of the graph: the operator is recorded with tensors over them. */
static void settle_arrays(mp_recorder *rec, running_op *op)
{
    bool shared;
    if (!mp_holds_array(op->real_args, 0) && !(op->kwargs && mp_holds_array(op->kwargs, 0))) return;
    if (!takes_arrays(op->func, &shared)) return; /* read as other arguments are */
    shared = shared && PyTuple_GET_SIZE(op->real_args) && mp_is_array(PyTuple_GET_ITEM(op->real_args, 0));
    PyObject *args = mp_arrays_as_tensors(rec, op->real_args, shared);
    PyObject *kwargs = args && op->kwargs ? mp_arrays_as_tensors(rec, op->kwargs, shared) : NULL;
    if (args && (kwargs || !op->kwargs)) {
        Py_SETREF(op->real_args, args);
        Py_XSETREF(op->kwargs, kwargs);
    } else {
        Py_XDECREF(args);
        Py_XDECREF(kwargs);
    }
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
    running_op *op = PyMem_RawCalloc(1, sizeof *op);
    if (!op) {
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "operator");
        mp_restore(kept);
        return NULL;
    }
    op->func = Py_NewRef(func);
    op->real_args = args && PyTuple_Check(args) ? Py_NewRef(args) : PyTuple_New(0);
    op->kwargs = kwargs && PyDict_Check(kwargs) && PyDict_GET_SIZE(kwargs) ? Py_NewRef(kwargs) : NULL;
    settle_store(op);
    settle_copy(op);
    if (!state->muted) settle_reshape(rec, op);
    op->effect = class_of(op->func);
    op->marks = is_requires_grad(op->func) && PyTuple_GET_SIZE(op->real_args) && !state->muted;
    if (op->marks) op->required = is_required(PyTuple_GET_ITEM(op->real_args, 0));
    if (!state->muted) settle_arrays(rec, op);
    if (!state->muted) settle_slices(rec, op);
    if (!state->muted) settle_numbers(rec, op);
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
            abandon_func(rec, MP_REASON_UNKNOWN_TENSOR, func,
                         "autograd.Function uses a tensor that is no argument of it");
    }
    if (op->numbers) op->constant = false;
    if (is_foreign_function(func))
        abandon_func(rec, MP_REASON_UNKNOWN_C_CALLABLE, func, "a torch function of the program's own");
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
static void end_attr(mp_recorder *rec, running_op *op, PyObject *out)
{
    const char *name = member_name(op->func);
    PyObject *tensor = PyTuple_GET_SIZE(op->real_args) ? PyTuple_GET_ITEM(op->real_args, 0) : NULL;
    PyObject *key = name ? mp_intern(name) : NULL;
    if (key && tensor && mp_rec_find(rec, tensor) != MP_NO_OBJ) {
        mp_rec_read(rec, tensor, MP_READ_TENSOR_ATTR, key, out);
    } else if (!key || (mp_is_tensor(out) && mp_rec_has_unknown(rec, out)))
        abandon_func(rec, MP_REASON_UNKNOWN_TENSOR, op->func, NULL);
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
static void append_sized(mp_recorder *rec, running_op *op, PyObject *out)
{
    PyObject *quiet = mp_quiet_begin(), *sizes = PyList_New(0), *args = NULL;
    bool known = sizes && mp_each_tensor(rec, out, visit_size, sizes);
    PyObject *batch_sizes = batch_sizes_of(op);
    if (known && batch_sizes) { /* what it steps by stands behind the sizes */
        PyObject *tolist = tensor_method("tolist");
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
        append_op(rec, mp_number_sized(), args, NULL, out, false, false);
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

static void end_op(mp_recorder *rec, running_op *op, PyObject *out)
{
    bool derived = op->tensors > 0 && op->constant &&
                   (op->effect == MP_EFFECT_OP || op->effect == MP_EFFECT_SIZED || op->effect == MP_EFFECT_SHAPES) &&
                   (!PyFunction_Check(op->func) || is_python_operator(op->func));
    bool constant = ((op->effect == MP_EFFECT_FACTORY || op->effect == MP_EFFECT_COPIES) && op->constant) ||
                    (op->effect == MP_EFFECT_LIKE && op->tensors <= 1 && !op->numbers) ||
                    (derived && !(op->kwargs && PyDict_GetItemString(op->kwargs, "generator")));
    int changed = mp_rec_note_changes(rec, op->real_args, op->kwargs, constant);
    if (changed < 0) return;
    if (!changed && named_in_place(op->func, op->kwargs)) {
        mp_each_tensor(rec, op->real_args, visit_mark_mutated, NULL);
        changed = 1;
    }
    bool state = op->effect == MP_EFFECT_STATE_WRITE;
    if (op->effect == MP_EFFECT_NOTHING && !op->tensors && !mp_has_tensor(out)) return;
    if (!mp_has_tensor(out) && !changed && !state) {
        bool metadata =
            PyUnicode_CheckExact(out) || (mp_is_scalar(out) && !strncmp(Py_TYPE(out)->tp_name, "torch.", 6));
        if (op->effect == MP_EFFECT_STATE || metadata) return; /* names, dtypes, devices: no data can be in them */
        abandon_func(rec, out == Py_None ? MP_REASON_UNKNOWN_C_CALLABLE : MP_REASON_DATA_READ, op->func, NULL);
        return;
    }
    if (!op->args_template || (op->kwargs && !op->kwargs_template)) return; /* abandoned */
    if (op->sized) {
        append_sized(rec, op, out);
        return;
    }
    append_op(rec, op->func, Py_NewRef(op->args_template), Py_XNewRef(op->kwargs_template), out, state, constant);
}

void mp_rec_op_end(mp_recorder *rec, void *token, PyObject **result)
{
    PyObject *out = *result;
    running_op *op = token;
    if (!op) {
        rec->in_op--;
        return;
    }
    mp_kept kept = mp_keep();
    if (!mp_rec_abandoned(rec)) {
        if (out && sees_place(op->func)) mp_rec_placed(rec, op->real_args, op->kwargs);
        if (!out) /* the program may catch it, and a compiled run would not know that it is raised */
            abandon_func(rec, MP_REASON_EXCEPTION, op->func, NULL);
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
            if (!read_number(rec, op, result)) add_check(rec, op, out);
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
        append_op(rec, func, Py_NewRef(args_template), Py_XNewRef(kwargs_template), out, state, factory);
    Py_XDECREF(args_template);
    Py_XDECREF(kwargs_template);
    mp_restore(kept);
}

void mp_rec_template_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *out)
{ append_op(rec, func, args, NULL, out, false, false); }

void mp_rec_values_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *out)
{
    uint32_t index = rec->recording->n_ops;
    append_op(rec, func, args, NULL, Py_None, false, false);
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
        append_op(rec, func, template, NULL, out, false, true);
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
