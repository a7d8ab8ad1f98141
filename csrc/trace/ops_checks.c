/* What the program sees of data: numbers that stay open, and checks that a later run sees the same.
*/
#include "trace/ops.h"

#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/texts.h"

PyObject *mp_rec_silent_op(mp_recorder *rec, PyObject *func, PyObject *args)
{
    PyObject *value = NULL;
    uint32_t index = rec->recording->n_ops;
    mp_value_id id = func && args ? mp_rec_new_value(rec, index) : MP_NO_VALUE;
    if (id != MP_NO_VALUE) {
        mp_op_append(rec, func, Py_NewRef(args), NULL, Py_None, false, false);
        value = mp_value_new(id);
        if (value && rec->recording->n_ops > index) Py_SETREF(rec->recording->ops[index].out, Py_NewRef(value));
    }
    Py_XDECREF(args);
    Py_XDECREF(func);
    PyErr_Clear();
    if (!value) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "check");
    return value;
}

PyObject *mp_rec_snapshot(mp_recorder *rec, PyObject *tensor)
{
    PyObject *args = PyTuple_Pack(1, tensor), *template = args ? mp_rec_template(rec, args) : NULL;
    PyObject *detached = template ? mp_rec_silent_op(rec, mp_op_method("detach"), template) : NULL;
    Py_XDECREF(args);
    if (!detached) return NULL;
    args = PyTuple_Pack(1, detached);
    Py_DECREF(detached);
    return mp_rec_silent_op(rec, mp_op_method("clone"), args);
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
static const char *looks_at_element(const mp_running_op *op, PyObject *out)
{
    static const struct {
        const char *method, *how;
    } looks[] = {{"item", ""},       {"__bool__", "bool"}, {"is_nonzero", "bool"},
                 {"__int__", "int"}, {"__index__", "int"}, {"__float__", "float"}};
    PyObject *name = Py_IS_TYPE(op->func, &PyMethodDescr_Type) || Py_IS_TYPE(op->func, &PyWrapperDescr_Type)
                         ? PyDescr_NAME(op->func)
                         : NULL;
    bool number = PyFloat_CheckExact(out) || PyLong_CheckExact(out) || PyBool_Check(out);
    if (!number || !name || !mp_numbers_ready() || op->kwargs || PyTuple_GET_SIZE(op->real_args) != 1) return NULL;
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++)
        if (PyUnicode_CompareWithASCIIString(name, looks[i].method) == 0) return looks[i].how;
    return NULL;
}

void mp_op_add_check(mp_recorder *rec, mp_running_op *op, PyObject *out)
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
        mp_op_abandon(rec, code, op->func, NULL);
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

bool mp_op_read_number(mp_recorder *rec, mp_running_op *op, PyObject **out)
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
        mp_rec_frame *entry = &rec->frames[rec->n_frames - 1];
        bool text = mp_text_reads(entry);                            /* "%d" % x */
        if (reads[i].how && !entry->converts && !text) return false; /* math.exp(x) */
        PyObject *value = mp_rec_snapshot(rec, PyTuple_GET_ITEM(op->real_args, 0));
        if (value) mp_number_read(rec, out, mp_index_of(value), reads[i].how);
        if (value && text) mp_text_read(rec, entry, PyTuple_GET_ITEM(op->real_args, 0), *out);
        Py_XDECREF(value);
        return true;
    }
    return false;
}

/* The number that Tensor.__format__ makes text of. Owned, or NULL without an exception if it makes it of more. */
static PyObject *formatted_number(PyObject *tensor)
{
    PyObject *number = NULL, *quiet = mp_quiet_begin();
    PyObject *dims = PyObject_GetAttrString(tensor, "ndim"), *detached = NULL;
    if (dims && PyLong_CheckExact(dims) && PyLong_AsLong(dims) == 0)
        detached = PyObject_CallMethod(tensor, "detach", NULL);
    if (detached) number = PyObject_CallMethod(detached, "item", NULL);
    PyErr_Clear();
    mp_quiet_end(quiet);
    Py_XDECREF(detached);
    Py_XDECREF(dims);
    return number;
}

bool mp_op_read_text(mp_recorder *rec, mp_running_op *op, PyObject **out)
{
    PyObject *args = op->real_args;
    if (!PyFunction_Check(op->func) || op->kwargs || PyTuple_GET_SIZE(args) != 2 || !mp_numbers_ready() ||
        PyUnicode_CompareWithASCIIString(((PyFunctionObject *)op->func)->func_name, "__format__") != 0)
        return false;
    PyObject *tensor = PyTuple_GET_ITEM(args, 0), *number = NULL;
    if (Py_IS_TYPE(tensor, mp_names.tensor)) number = formatted_number(tensor);
    if (!number) return false;
    mp_rec_frame *entry =
        rec->n_frames > 1 ? &rec->frames[rec->n_frames - 2] : NULL; /* the caller of Tensor.__format__ */
    bool part = entry && mp_text_reads(entry), given = part || (entry && entry->converts); /* f"{x}" */
    PyObject *value = given && mp_is_number(number) ? mp_rec_snapshot(rec, tensor) : NULL;
    if (value && mp_number_read(rec, &number, mp_index_of(value), NULL)) {
        if (part)
            mp_text_read(rec, entry, tensor, number);
        else
            mp_text_format(rec, number, PyTuple_GET_ITEM(args, 1), out);
    } else if (!rec->why.code) {
        mp_running_op look = {.func = mp_op_method("item"), .real_args = PyTuple_Pack(1, tensor), .tensors = 1};
        if (look.func && look.real_args)
            mp_op_add_check(rec, &look, number);
        else
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "check");
        PyErr_Clear();
        Py_XDECREF(look.func);
        Py_XDECREF(look.real_args);
    }
    Py_XDECREF(value);
    Py_DECREF(number);
    return true;
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
