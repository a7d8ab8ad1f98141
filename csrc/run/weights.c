/* Marks of weights, for magpy/freezing.py: by what one knows that tensors are the same and hold the same numbers.
**
** The version counter does not count every write (batch norm's statistics, fused optimizers), so that small tensors are compared by content.
*/
#include "run/weights.h"
#include "gemm/node.h"
#include "run/torch_abi.h"

#include <string.h>

#define COMPARED_BYTES 65536 /* of a tensor whose content is compared */

/* Bytes from the first to behind the last element of `tensor`. Returns 0, or -1 with an exception. */
static int look(PyObject *tensor, void **data, int64_t *bytes)
{
    int64_t ndim, *sizes, *strides, last = 0;
    int32_t dtype;
    if (!PyObject_TypeCheck(tensor, mp_torch.tensor_type)) {
        PyErr_Format(PyExc_TypeError, "a weight is a %.80s, not a tensor", Py_TYPE(tensor)->tp_name);
        return -1;
    }
    mp_handle handle = mp_tensor_handle(tensor);
    if (mp_torch.get_data_ptr(handle, data) || mp_torch.get_dim(handle, &ndim) || mp_torch.get_sizes(handle, &sizes) ||
        mp_torch.get_strides(handle, &strides) || mp_torch.get_dtype(handle, &dtype))
        return mp_torch_raise();
    *bytes = 0;
    for (int64_t i = 0; i < ndim; i++) {
        if (!sizes[i]) return 0;
        last += (sizes[i] - 1) * strides[i];
    }
    *bytes = *data ? (last + 1) * (int64_t)mp_torch.element_size(dtype) : 0;
    return 0;
}

static int needs_torch(void)
{
    if (mp_torch_load() < 0) return -1;
    if (mp_torch.layout_verified) return 0;
    PyErr_SetString(PyExc_RuntimeError, "this torch lays tensors out in an unknown way");
    return -1;
}

/* (weak reference, version, address, content or None) of `tensor`. Owned, or NULL with an exception. */
static PyObject *mark(PyObject *tensor, PyObject *gone)
{
    void *data;
    int64_t bytes;
    if (look(tensor, &data, &bytes) < 0) return NULL;
    PyObject *version = PyObject_GetAttrString(tensor, "_version"), *content = NULL;
    if (!version) return NULL;
    content = bytes <= COMPARED_BYTES ? PyBytes_FromStringAndSize(data, bytes) : Py_NewRef(Py_None);
    PyObject *reference = content ? PyWeakref_NewRef(tensor, gone) : NULL;
    if (reference) return Py_BuildValue("(NNNN)", reference, version, PyLong_FromVoidPtr(data), content);
    Py_XDECREF(content);
    Py_DECREF(version);
    return NULL;
}

static PyObject *weight_marks(PyObject *module, PyObject *args)
{
    PyObject *weights, *gone;
    if (!PyArg_ParseTuple(args, "OO:_weight_marks", &weights, &gone) || needs_torch() < 0) return NULL;
    PyObject *fast = PySequence_Tuple(weights), *marks = fast ? PyTuple_New(PyTuple_GET_SIZE(fast)) : NULL;
    for (Py_ssize_t i = 0; marks && i < PyTuple_GET_SIZE(fast); i++) {
        PyObject *one = mark(PyTuple_GET_ITEM(fast, i), gone);
        if (one)
            PyTuple_SET_ITEM(marks, i, one);
        else
            Py_CLEAR(marks);
    }
    Py_XDECREF(fast);
    return marks;
}

/* 1, 0, or -1 with an exception. */
static int holds(PyObject *tensor, PyObject *mark)
{
    static PyObject *name; /* interned, lives as long as the process */
    void *data;
    int64_t bytes;
    if (PyWeakref_GET_OBJECT(PyTuple_GET_ITEM(mark, 0)) != tensor) return 0;
    if (look(tensor, &data, &bytes) < 0) return -1;
    if (data != PyLong_AsVoidPtr(PyTuple_GET_ITEM(mark, 2))) return PyErr_Occurred() ? -1 : 0;
    if (!name && !(name = PyUnicode_InternFromString("_version"))) return -1;
    PyObject *version = PyObject_GetAttr(tensor, name);
    int same = version ? PyObject_RichCompareBool(version, PyTuple_GET_ITEM(mark, 1), Py_EQ) : -1;
    Py_XDECREF(version);
    PyObject *content = PyTuple_GET_ITEM(mark, 3);
    if (same <= 0 || content == Py_None) return same;
    return bytes == PyBytes_GET_SIZE(content) && memcmp(data, PyBytes_AS_STRING(content), (size_t)bytes) == 0;
}

static PyObject *weights_hold(PyObject *module, PyObject *args)
{
    PyObject *weights, *marks;
    if (!PyArg_ParseTuple(args, "O!O!:_weights_hold", &PyList_Type, &weights, &PyTuple_Type, &marks)) return NULL;
    if (PyList_GET_SIZE(weights) != PyTuple_GET_SIZE(marks)) Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(marks); i++) {
        PyObject *one = PyTuple_GET_ITEM(marks, i);
        PyObject *content = PyTuple_Check(one) && PyTuple_GET_SIZE(one) == 4 ? PyTuple_GET_ITEM(one, 3) : NULL;
        if (!content || !PyWeakref_Check(PyTuple_GET_ITEM(one, 0)) || (content != Py_None && !PyBytes_Check(content)))
            return PyErr_Format(PyExc_TypeError, "marks are what _weight_marks gives");
        int same = holds(PyList_GET_ITEM(weights, i), one);
        if (same < 0) return NULL;
        if (!same) Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyObject *packed_size(PyObject *module, PyObject *args)
{
    long long k, n;
    if (!PyArg_ParseTuple(args, "LL:_packed_size", &k, &n)) return NULL;
    if (k < 0 || n < 0 || k > INT32_MAX || n > INT32_MAX) return PyErr_Format(PyExc_ValueError, "k or n");
    return PyLong_FromLongLong(mp_gemm_packed_size(k, n, mp_gemm_bits));
}

static PyObject *pack_weight(PyObject *module, PyObject *args)
{
    unsigned long long from, to;
    long long k, n, row, col;
    if (!PyArg_ParseTuple(args, "K(LL)(LL)K:_pack_weight", &from, &k, &n, &row, &col, &to)) return NULL;
    mp_gemm gemm = {.m = 1, .n = n, .k = k, .a_row = k, .a_col = 1, .b_row = row, .b_col = col, .c_row = n};
    if (mp_gemm_prepare_packed(&gemm, mp_gemm_bits) < 0) return PyErr_Format(PyExc_ValueError, "sizes or strides");
    mp_gemm_call call = {.gemm = &gemm, .b = (const float *)(uintptr_t)from};
    Py_BEGIN_ALLOW_THREADS;
    mp_gemm_pack(&call, 0, (float *)(uintptr_t)to);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_packed_size", packed_size, METH_VARARGS, "_packed_size(k, n) -> int: floats of a packed matrix [k, n]."},
    {"_pack_weight", pack_weight, METH_VARARGS,
     "_pack_weight(address, (k, n), (row, col), to): copy a matrix of float32 of these sizes and strides to `to`, "
     "where there is room for _packed_size(k, n)."},
    {"_weight_marks", weight_marks, METH_VARARGS,
     "_weight_marks(tensors, gone) -> tuple of (weak reference, version, address, content or None), one for each. "
     "gone(ref) is called when "
     "a tensor has gone."},
    {"_weights_hold", weights_hold, METH_VARARGS,
     "_weights_hold(tensors: list, marks: tuple) -> bool: are they the tensors of these marks, unchanged?"},
    {NULL},
};

int mp_weights_init(PyObject *module) { return PyModule_AddFunctions(module, functions); }
