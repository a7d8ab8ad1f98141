/* See weights.h.
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

int mp_weight_mark_take(mp_weight_mark *mark, PyObject *tensor, PyObject *gone)
{
    memset(mark, 0, sizeof *mark);
    if (mp_torch_load() < 0) return -1;
    if (!mp_torch.layout_verified) {
        PyErr_SetString(PyExc_RuntimeError, "this torch lays tensors out in an unknown way");
        return -1;
    }
    if (look(tensor, &mark->data, &mark->bytes) < 0) return -1;
    int none = mp_counter_version(tensor, &mark->version);
    if (none) return none;
    if (mark->bytes <= COMPARED_BYTES) {
        if (!(mark->content = PyMem_Malloc((size_t)mark->bytes + 1))) return PyErr_NoMemory(), -1;
        if (mark->bytes) memcpy(mark->content, mark->data, (size_t)mark->bytes);
    }
    mark->reference = PyWeakref_NewRef(tensor, gone);
    return mark->reference ? 0 : -1;
}

int mp_weight_mark_holds(const mp_weight_mark *mark, PyObject *tensor)
{
    void *data;
    int64_t bytes;
    uint32_t version;
    if (PyWeakref_GET_OBJECT(mark->reference) != tensor) return 0;
    if (look(tensor, &data, &bytes) < 0) return -1;
    if (data != mark->data || bytes != mark->bytes) return 0;
    int none = mp_counter_version(tensor, &version);
    if (none) return none < 0 ? -1 : 0;
    return version == mark->version && (!mark->content || !memcmp(data, mark->content, (size_t)bytes));
}

void mp_weight_mark_free(mp_weight_mark *mark)
{
    Py_CLEAR(mark->reference);
    PyMem_Free(mark->content);
    mark->content = NULL;
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
    {NULL},
};

int mp_weights_init(PyObject *module)
{
    if (PyModule_AddFunctions(module, functions) < 0) return -1;
    return PyModule_AddIntConstant(module, "COMPARED_BYTES", COMPARED_BYTES);
}
