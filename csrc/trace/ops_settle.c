/* In what form a torch function is recorded: other spellings of the same, arrays as tensors, and tensors that are taken for numbers (places in
** an index, bounds of slices, sizes) as the numbers that they are, which the program has thereby looked at.
*/
#include "trace/drawn.h"
#include "trace/ops.h"

#include "trace/arrays.h"
#include "trace/numbers.h"
#include "trace/raw.h"

/* -- Names ---------------------------------------------------------------------------------------------------------------- */

const char *mp_op_name(PyObject *func)
{
    PyObject *name = NULL;
    if (Py_IS_TYPE(func, &PyMethodDescr_Type)) name = PyDescr_NAME(func);
    if (Py_IS_TYPE(func, &PyWrapperDescr_Type)) name = PyDescr_NAME(func);
    return name ? PyUnicode_AsUTF8(name) : PyCFunction_Check(func) ? ((PyCFunctionObject *)func)->m_ml->ml_name : NULL;
}

const char *mp_op_member(PyObject *func)
{
    if (!Py_IS_TYPE(func, &_PyMethodWrapper_Type)) return NULL;
    PyObject *self = PyObject_GetAttrString(func, "__self__"); /* a C member */
    const char *name = self && Py_IS_TYPE(self, &PyGetSetDescr_Type) ? PyUnicode_AsUTF8(PyDescr_NAME(self)) : NULL;
    Py_XDECREF(self); /* the type keeps it */
    return name;
}

PyObject *mp_op_method(const char *name) { return PyObject_GetAttrString((PyObject *)mp_names.tensor_base, name); }

/* -- Settling ------------------------------------------------------------------------------------------------------------- */

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

/* tensor.requires_grad = flag is tensor.requires_grad_(flag). */
static void settle_store(mp_running_op *op)
{
    const char *name = mp_op_member(op->func);
    if (!name || strcmp(name, "requires_grad") != 0 || PyTuple_GET_SIZE(op->real_args) != 2) return;
    PyObject *method = PyObject_GetAttrString((PyObject *)mp_names.tensor_base, "requires_grad_");
    if (method)
        Py_SETREF(op->func, method);
    else
        PyErr_Clear(); /* refused as other stores are */
}

/* copy.deepcopy of a tensor that requires no gradient is tensor.clone(): the memo is the copier's business. */
static void settle_copy(mp_running_op *op)
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

/* The program looked at every tensor in a slice as a number. */
static bool visit_bound(mp_recorder *rec, PyObject *tensor, void *context)
{
    PyObject *func = PyObject_GetAttrString((PyObject *)Py_TYPE(tensor), "__index__"), *number = PyNumber_Index(tensor);
    mp_running_op op = {.func = func, .real_args = PyTuple_Pack(1, tensor), .tensors = 1};
    if (func && number && op.real_args) mp_op_add_check(rec, &op, number);
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
static void settle_slices(mp_recorder *rec, mp_running_op *op)
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
static void settle_reshape(mp_recorder *rec, mp_running_op *op)
{
    const char *name = PyCFunction_Check(op->func) ? ((PyCFunctionObject *)op->func)->m_ml->ml_name : "";
    if (strcmp(name, "_reshape_from_tensor") != 0 || op->kwargs || PyTuple_GET_SIZE(op->real_args) != 2) return;
    PyObject *sizes = PyTuple_GET_ITEM(op->real_args, 1);
    bool constant = true;
    int count = 0;
    if (!mp_is_tensor(sizes) || !mp_rec_check_tensors(rec, sizes, &constant, &count)) return;
    if (!constant && !rec->op_state->accept_values) return; /* refused as data that is looked at */
    PyObject *quiet = mp_quiet_begin(), *tolist = mp_op_method("tolist"), *reshape = mp_op_method("reshape");
    PyObject *numbers = tolist && reshape ? PyObject_CallOneArg(tolist, sizes) : NULL;
    mp_quiet_end(quiet);
    PyObject *args = numbers ? PyTuple_Pack(2, PyTuple_GET_ITEM(op->real_args, 0), numbers) : NULL;
    mp_running_op look = {.func = tolist, .real_args = args ? PyTuple_Pack(1, sizes) : NULL, .tensors = 1};
    if (look.real_args) {
        if (!constant) mp_op_add_check(rec, &look, numbers);
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
        bool constant = facts && facts->constant; /* so is its number */
        PyObject *item = mp_op_method("item"), *number = item ? PyObject_CallOneArg(item, object) : NULL;
        Py_XDECREF(item);
        if (!number || !(PyLong_CheckExact(number) || PyFloat_CheckExact(number))) {
            Py_XDECREF(number);
            return NULL;
        }
        PyObject *value = constant ? NULL : mp_rec_snapshot(rec, object);
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
static void settle_numbers(mp_recorder *rec, mp_running_op *op)
{
    Py_ssize_t from = op->effect == MP_EFFECT_FACTORY ? 0 : 1;
    bool numbers = op->effect == MP_EFFECT_FACTORY || op->effect == MP_EFFECT_SHAPES || op->effect == MP_EFFECT_LIKE;
    if (!numbers || !rec->op_state->accept_checks || !mp_numbers_ready()) return;
    if (!numbers_are_tensors(op->real_args, op->kwargs, from)) return;
    bool constant = true;
    int count = 0;
    if (!mp_rec_check_tensors(rec, op->real_args, &constant, &count)) return;
    if (op->kwargs && !mp_rec_check_tensors(rec, op->kwargs, &constant, &count)) return;
    if (constant) return; /* so is the result */
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

bool mp_op_size_is_data(mp_recorder *rec, const mp_running_op *op)
{
    mp_effect_class effect = op->effect;
    PyObject *func = op->func, *args = op->real_args, *kwargs = op->kwargs;
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
PyObject *mp_op_batch_sizes(const mp_running_op *op)
{
    static const char *const names[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
    if (!PyCFunction_Check(op->func) || op->kwargs || PyTuple_GET_SIZE(op->real_args) < 4) return NULL;
    const char *name = ((PyCFunctionObject *)op->func)->m_ml->ml_name;
    bool layer = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) layer = layer || !strcmp(name, names[i]);
    PyObject *sizes = PyTuple_GET_ITEM(op->real_args, 1), *weights = PyTuple_GET_ITEM(op->real_args, 3);
    return layer && mp_is_tensor(sizes) && (PyList_Check(weights) || PyTuple_Check(weights)) ? sizes : NULL;
}

/* Does it take arrays as it takes tensors? as_tensor may share their memory. */
static bool takes_arrays(PyObject *func, bool *shared)
{
    static const char *const names[] = {"tensor", "as_tensor", "new_tensor", "__getitem__", "__setitem__"};
    const char *name = mp_op_name(func);
    *shared = name && !strcmp(name, "as_tensor");
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

/* Arrays among the arguments are values of the graph: the operator is recorded with tensors over them. */
static void settle_arrays(mp_recorder *rec, mp_running_op *op)
{
    bool shared;
    if (takes_arrays(op->func, &shared) && !shared) mp_drawn_lists(rec, &op->real_args);
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

void mp_op_settle_function(mp_recorder *rec, mp_running_op *op)
{
    settle_store(op);
    settle_copy(op);
    if (!rec->op_state->muted) settle_reshape(rec, op);
}

void mp_op_settle_arguments(mp_recorder *rec, mp_running_op *op)
{
    settle_arrays(rec, op);
    settle_slices(rec, op);
    settle_numbers(rec, op);
}
