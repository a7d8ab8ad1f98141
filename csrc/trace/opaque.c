/* Opaque tensors: which functions meet them, and how these are recorded. See opaque.h. */
#include "trace/opaque.h"

static struct { /* from magpy.opaque_tensors, owned by the process; NULL until that is imported */
    PyObject *
        look; /* look(func, args, kwargs, out) -> (recorded function, name, what it must give again), or a str: why not */
    PyObject *of_data; /* the recorded function of those whose results' sizes are data */
} tables;

bool mp_opaque_is_sized(PyObject *func) { return tables.of_data && func == tables.of_data; }

static bool visit_plain(mp_recorder *rec, PyObject *tensor, void *context)
{
    (void)rec, (void)context;
    return !mp_is_opaque(tensor);
}

static bool holds_opaque(PyObject *object) { return object && !mp_each_tensor(NULL, object, visit_plain, NULL); }

bool mp_opaque_involved(const mp_running_op *op, PyObject *out)
{ return holds_opaque(op->real_args) || holds_opaque(op->kwargs) || holds_opaque(out); }

bool mp_opaque_asked(const mp_running_op *op)
{
    static const char *const told[] = {"shape",
                                       "size",
                                       "dim",
                                       "ndim",
                                       "ndimension",
                                       "numel",
                                       "nelement",
                                       "dtype",
                                       "device",
                                       "get_device",
                                       "layout",
                                       "requires_grad",
                                       "is_leaf",
                                       "is_sparse",
                                       "is_sparse_csr",
                                       "is_quantized",
                                       "is_mkldnn",
                                       "is_cuda",
                                       "is_cpu",
                                       "is_meta",
                                       "is_nested",
                                       "is_complex",
                                       "is_conj",
                                       "is_neg",
                                       "is_inference",
                                       "is_same_size",
                                       "result_type",
                                       "promote_types",
                                       "is_signed",
                                       "__len__",
                                       "is_floating_point"};
    if (op->effect != MP_EFFECT_META || !(holds_opaque(op->real_args) || holds_opaque(op->kwargs))) return false;
    const char *name = mp_op_member(op->func);
    if (!name && PyFunction_Check(op->func)) name = PyUnicode_AsUTF8(((PyFunctionObject *)op->func)->func_name);
    if (!name) name = mp_op_name(op->func);
    for (size_t i = 0; name && i < sizeof told / sizeof *told; i++)
        if (!strcmp(name, told[i])) return false;
    return true;
}

/* What magpy.opaque_tensors says of the function that has just run: (recorded function, name, seen). Owned, or NULL after abandoning. */
static PyObject *look_at(mp_recorder *rec, const mp_running_op *op, PyObject *out)
{
    PyObject *kwargs = op->kwargs ? Py_NewRef(op->kwargs) : PyDict_New(), *quiet = mp_quiet_begin(), *seen = NULL;
    PyThreadState_EnterTracing(PyThreadState_Get()); /* it is no part of the program */
    if (kwargs && tables.look)
        seen = PyObject_CallFunctionObjArgs(tables.look, op->func, op->real_args, kwargs, out, NULL);
    PyThreadState_LeaveTracing(PyThreadState_Get());
    mp_quiet_end(quiet);
    const char *why = seen && PyUnicode_Check(seen) ? PyUnicode_AsUTF8(seen) : NULL;
    if (seen && PyTuple_CheckExact(seen) && PyTuple_GET_SIZE(seen) == 3) {
        Py_XDECREF(kwargs);
        return seen;
    }
    mp_op_abandon(rec, MP_REASON_UNKNOWN_TENSOR, op->func, why ? why : "a sparse or quantised tensor");
    PyErr_Clear();
    Py_XDECREF(seen);
    Py_XDECREF(kwargs);
    return NULL;
}

void mp_opaque_end(mp_recorder *rec, mp_running_op *op, PyObject *out)
{
    int changed = mp_rec_note_changes(rec, op->real_args, op->kwargs, false);
    if (changed < 0) return;
    if (changed || op->marks || mp_op_named_in_place(op->func, op->kwargs)) {
        mp_op_abandon(rec, MP_REASON_ALIAS_WRITE, op->func, "a change in place, with a sparse or quantised tensor");
        return;
    }
    if (op->numbers) {
        mp_op_abandon(rec, MP_REASON_DATA_READ, op->func, "a number that is data, with a sparse or quantised tensor");
        return;
    }
    if (!op->args_template || (op->kwargs && !op->kwargs_template)) return; /* abandoned */
    PyObject *known = look_at(rec, op, out), *args = NULL;
    if (!known) return;
    PyObject *func = PyTuple_GET_ITEM(known, 0), *name = PyTuple_GET_ITEM(known, 1), *seen = PyTuple_GET_ITEM(known, 2);
    bool checks = !mp_has_tensor(out), values = mp_opaque_is_sized(func);
    if ((checks && !rec->op_state->accept_checks) || (values && !rec->op_state->accept_values))
        mp_op_abandon(rec, MP_REASON_DATA_READ, op->func, NULL);
    else if (op->kwargs)
        args = PyTuple_Pack(4, name, seen, op->args_template, op->kwargs_template);
    else
        args = PyTuple_Pack(3, name, seen, op->args_template);
    if (args)
        mp_op_append(rec, func, args, NULL, out, checks, false);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "operator");
    PyErr_Clear();
    Py_DECREF(known);
}

static PyObject *set_tables(PyObject *module, PyObject *args)
{
    PyObject *look, *of_data;
    if (!PyArg_ParseTuple(args, "OO", &look, &of_data)) return NULL;
    Py_XSETREF(tables.look, Py_NewRef(look));
    Py_XSETREF(tables.of_data, Py_NewRef(of_data));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_opaque_tables", set_tables, METH_VARARGS, "_opaque_tables(look, of_data): what magpy.opaque_tensors knows."},
    {NULL},
};

int mp_opaque_module_init(PyObject *module) { return PyModule_AddFunctions(module, methods); }
