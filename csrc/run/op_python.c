/* PYTHON tier: the OpOverload is called. The last resort, and the way to eager's own exception when another tier failed. */
#include "run/op.h"

/* -- Arguments as Python objects --------------------------------------------------------------------------------------- */

/* torch.<name> for an enum's code, such as torch.float32. Owned, or NULL with an exception. */
static PyObject *torch_constant(mp_arg_kind kind, int64_t code)
{
    static const struct {
        mp_arg_kind kind;
        int code;
        const char *name;
    } names[] = {
        {MP_ARG_DTYPE, 0, "uint8"},
        {MP_ARG_DTYPE, 1, "int8"},
        {MP_ARG_DTYPE, 2, "int16"},
        {MP_ARG_DTYPE, 3, "int32"},
        {MP_ARG_DTYPE, 4, "int64"},
        {MP_ARG_DTYPE, 5, "float16"},
        {MP_ARG_DTYPE, 6, "float32"},
        {MP_ARG_DTYPE, 7, "float64"},
        {MP_ARG_DTYPE, 8, "complex32"},
        {MP_ARG_DTYPE, 9, "complex64"},
        {MP_ARG_DTYPE, 10, "complex128"},
        {MP_ARG_DTYPE, 11, "bool"},
        {MP_ARG_DTYPE, 12, "qint8"},
        {MP_ARG_DTYPE, 13, "quint8"},
        {MP_ARG_DTYPE, 14, "qint32"},
        {MP_ARG_DTYPE, 15, "bfloat16"},
        {MP_ARG_DTYPE, 23, "float8_e5m2"},
        {MP_ARG_DTYPE, 24, "float8_e4m3fn"},
        {MP_ARG_DTYPE, 25, "float8_e5m2fnuz"},
        {MP_ARG_DTYPE, 26, "float8_e4m3fnuz"},
        {MP_ARG_DTYPE, 27, "uint16"},
        {MP_ARG_DTYPE, 28, "uint32"},
        {MP_ARG_DTYPE, 29, "uint64"},
        {MP_ARG_LAYOUT, 0, "strided"},
        {MP_ARG_LAYOUT, 1, "sparse_coo"},
        {MP_ARG_LAYOUT, 2, "sparse_csr"},
        {MP_ARG_LAYOUT, 3, "_mkldnn"},
        {MP_ARG_LAYOUT, 4, "sparse_csc"},
        {MP_ARG_LAYOUT, 5, "sparse_bsr"},
        {MP_ARG_LAYOUT, 6, "sparse_bsc"},
        {MP_ARG_LAYOUT, 7, "jagged"},
        {MP_ARG_MEMORY_FORMAT, 0, "contiguous_format"},
        {MP_ARG_MEMORY_FORMAT, 1, "preserve_format"},
        {MP_ARG_MEMORY_FORMAT, 2, "channels_last"},
        {MP_ARG_MEMORY_FORMAT, 3, "channels_last_3d"},
    };
    PyObject *torch = PyImport_ImportModule("torch");
    if (!torch) return NULL;
    PyObject *constant = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].kind == kind && names[i].code == code) constant = PyObject_GetAttrString(torch, names[i].name);
    if (!constant && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "unknown torch code %lld", (long long)code);
    Py_DECREF(torch);
    return constant;
}

static PyObject *torch_device(int64_t type)
{
    static const char *const names[] = {"cpu", "cuda"};
    const char *name = type >= 0 && type < 2 ? names[type] : type == 14 ? "meta" : NULL;
    if (!name) return PyErr_Format(PyExc_ValueError, "unknown device type %lld", (long long)type);
    return mp_call_imported("torch", "device", "(s)", name);
}

static bool has_tensor(const mp_arg *arg)
{
    if (arg->kind == MP_ARG_VALUE) return true;
    if (arg->kind != MP_ARG_LIST) return false;
    for (uint32_t i = 0; i < arg->list.n; i++)
        if (has_tensor(&arg->list.items[i])) return true;
    return false;
}

/* The Python tensor of value `v` for the call: an input is the caller's own object. Owned, or NULL with an exception. */
static PyObject *tensor_object(const mp_op *op, mp_frame *frame, mp_val v)
{
    if (v < frame->n_inputs) return Py_NewRef(frame->inputs[v]);
    mp_handle handle = mp_op_argument(op, frame, v);
    if (handle) return mp_tensor_wrap(handle);
    mp_torch_raise();
    return NULL;
}

/* `arg` as an object; `frame` is NULL while constants are made. Owned, or NULL with an exception. */
static PyObject *arg_object(const mp_op *op, mp_frame *frame, const mp_arg *arg)
{
    switch (arg->kind) {
    case MP_ARG_NONE: return Py_NewRef(Py_None);
    case MP_ARG_INT: return PyLong_FromLongLong(arg->i);
    case MP_ARG_FLOAT: return PyFloat_FromDouble(arg->f);
    case MP_ARG_BOOL: return PyBool_FromLong(arg->i != 0);
    case MP_ARG_STR: return PyUnicode_FromString(arg->str);
    case MP_ARG_COMPLEX: return PyComplex_FromDoubles(arg->complex_[0], arg->complex_[1]);
    case MP_ARG_OBJECT: return Py_NewRef(arg->object);
    case MP_ARG_DEVICE: return torch_device(arg->i);
    case MP_ARG_DTYPE:
    case MP_ARG_LAYOUT:
    case MP_ARG_MEMORY_FORMAT: return torch_constant(arg->kind, arg->i);
    case MP_ARG_VALUE: return tensor_object(op, frame, arg->value);
    case MP_ARG_LIST: {
        PyObject *list = PyList_New(arg->list.n);
        for (uint32_t i = 0; list && i < arg->list.n; i++) {
            PyObject *item = arg_object(op, frame, &arg->list.items[i]);
            if (!item) {
                Py_DECREF(list);
                return NULL;
            }
            PyList_SET_ITEM(list, i, item);
        }
        return list;
    }
    }
    PyErr_SetString(PyExc_SystemError, "unknown kind of argument");
    return NULL;
}

/* -- Resolving --------------------------------------------------------------------------------------------------------- */

/* Names of the keyword-only arguments, which stand at the end of the schema. Owned tuple, or NULL with an exception. */
static PyObject *keyword_names(PyObject *target, uint32_t n_args)
{
    PyObject *schema = PyObject_GetAttrString(target, "_schema"), *names = PyList_New(0), *tuple = NULL;
    PyObject *arguments = schema ? PyObject_GetAttrString(schema, "arguments") : NULL;
    if (!names || !arguments) goto done;
    if (!PyList_Check(arguments) || PyList_GET_SIZE(arguments) != n_args) {
        PyErr_SetString(PyExc_ValueError, "the number of arguments is not the schema's");
        goto done;
    }
    for (uint32_t i = 0; i < n_args; i++) {
        PyObject *only = PyObject_GetAttrString(PyList_GET_ITEM(arguments, i), "kwarg_only");
        int keyword = only ? PyObject_IsTrue(only) : -1;
        Py_XDECREF(only);
        if (keyword < 0) goto done;
        if (!keyword) continue;
        PyObject *name = PyObject_GetAttrString(PyList_GET_ITEM(arguments, i), "name");
        int failed = !name || PyList_Append(names, name) < 0;
        Py_XDECREF(name);
        if (failed) goto done;
    }
    tuple = PyList_AsTuple(names);
done:
    Py_XDECREF(schema);
    Py_XDECREF(arguments);
    Py_XDECREF(names);
    return tuple;
}

int mp_python_resolve(mp_op *op, const mp_graph *graph, mp_store *store, mp_reason *why)
{
    const mp_gnode *node = op->node;
    op->constants = mp_store_alloc(store, (node->n_args + 1) * sizeof *op->constants);
    if (!op->constants) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", node->op);
        return -1;
    }
    op->keywords = keyword_names(node->target, node->n_args);
    bool failed = !op->keywords;
    for (uint32_t i = 0; !failed && i < node->n_args; i++) {
        if (has_tensor(&node->args[i])) continue;
        failed = !(op->constants[i] = arg_object(op, NULL, &node->args[i]));
    }
    if (!failed) return 1;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *text = value ? PyObject_Str(value) : NULL;
    const char *chars = text ? PyUnicode_AsUTF8(text) : NULL;
    mp_reason_set(why, MP_REASON_OPERATOR, "%s: %s", node->op, chars ? chars : "unknown error");
    mp_error_clear();
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return -1;
}

void mp_op_clear(mp_op *op)
{
    Py_CLEAR(op->keywords);
    for (uint32_t i = 0; op->constants && i < op->node->n_args; i++) Py_CLEAR(op->constants[i]);
}

/* -- Calling ------------------------------------------------------------------------------------------------------------ */

/* A handle of our own for a returned tensor; *out is NULL for None. Returns 0, or -1 with an exception. */
static int take_tensor(PyObject *object, mp_handle *out)
{
    *out = NULL;
    if (!PyObject_TypeCheck(object, mp_torch.tensor_type)) return 0; /* None, or a number that no value stands for */
    return mp_torch.new_handle(mp_tensor_handle(object), out) ? mp_torch_raise() : 0;
}

/* Flatten what the operator returned into results[*n..limit). Returns 0, or -1 with an exception. */
static int take_results(PyObject *returned, mp_handle *results, uint32_t *n, uint32_t limit)
{
    if (!PyTuple_Check(returned) && !PyList_Check(returned)) {
        if (*n >= limit) return 0;
        return take_tensor(returned, &results[(*n)++]);
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(returned); i++)
        if (take_results(PySequence_Fast_GET_ITEM(returned, i), results, n, limit) < 0) return -1;
    return 0;
}

int mp_op_call_python(const mp_op *op, mp_frame *frame, mp_handle *results)
{
    PyObject *small[16], **args = small;
    uint32_t n_args = op->node->n_args, made = 0, n = 0;
    int result = -1;
    if (n_args > 16 && !(args = PyMem_Malloc(n_args * sizeof *args))) {
        PyErr_NoMemory();
        return -1;
    }
    for (; made < n_args; made++) {
        PyObject *constant = op->constants[made];
        args[made] = constant ? Py_NewRef(constant) : arg_object(op, frame, &op->node->args[made]);
        if (!args[made]) goto done;
    }
    size_t n_keywords = (size_t)PyTuple_GET_SIZE(op->keywords);
    PyObject *returned =
        PyObject_Vectorcall(op->node->target, args, n_args - n_keywords, n_keywords ? op->keywords : NULL);
    if (!returned) goto done;
    result = take_results(returned, results, &n, op->node->n_values);
    Py_DECREF(returned);
    if (result < 0)
        while (n-- > 0)
            if (results[n]) mp_torch.delete_handle(results[n]);
    if (result == 0)
        while (n < op->node->n_values) results[n++] = NULL;
done:
    while (made-- > 0) Py_DECREF(args[made]);
    if (args != small) PyMem_Free(args);
    return result;
}
