/* torch's own objects, found once: types, descriptors, dtypes, and how to ask a tensor without being seen. */
#include "trace/tensors.h"

#include "guard/guard.h"

mp_torch_names mp_names;

static const struct { /* c10::ScalarType by the name of torch's dtype object */
    const char *name;
    int code;
} scalar_types[] = {
    {"uint8", 0},
    {"int8", 1},
    {"int16", 2},
    {"int32", 3},
    {"int64", 4},
    {"float16", 5},
    {"float32", 6},
    {"float64", 7},
    {"complex32", 8},
    {"complex64", 9},
    {"complex128", 10},
    {"bool", 11},
    {"bfloat16", 15},
    {"float8_e5m2", 23},
    {"float8_e4m3fn", 24},
    {"qint8", 12},
    {"quint8", 13},
    {"qint32", 14},
    {"float8_e5m2fnuz", 25},
    {"float8_e4m3fnuz", 26},
    {"uint16", 27},
    {"uint32", 28},
    {"uint64", 29},
};

bool mp_dtype_known(int code)
{
    for (size_t i = 0; i < sizeof scalar_types / sizeof *scalar_types; i++)
        if (scalar_types[i].code == code) return true;
    return false;
}

bool mp_is_opaque(PyObject *tensor) { return mp_guard_tensor_opaque(tensor); }

static PyObject *module_attr(const char *module_name, const char *name)
{
    PyObject *key = PyUnicode_FromString(module_name);
    PyObject *module = key ? PyImport_GetModule(key) : NULL;
    Py_XDECREF(key);
    if (!module) return NULL;
    PyObject *value = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return value;
}

static PyTypeObject *module_type(const char *module_name, const char *name)
{
    PyObject *value = module_attr(module_name, name);
    if (!value || PyType_Check(value)) return (PyTypeObject *)value;
    Py_DECREF(value);
    return NULL;
}

static bool find_dtypes(void)
{
    mp_names.dtypes = PyDict_New();
    if (!mp_names.dtypes) return false;
    for (size_t i = 0; i < sizeof scalar_types / sizeof *scalar_types; i++) {
        PyObject *dtype = module_attr("torch", scalar_types[i].name), *code;
        if (!dtype) { /* an older torch lacks some */
            PyErr_Clear();
            continue;
        }
        code = PyLong_FromLong(scalar_types[i].code);
        int failed = !code || PyDict_SetItem(mp_names.dtypes, dtype, code) < 0;
        Py_DECREF(dtype);
        Py_XDECREF(code);
        if (failed) return false;
    }
    return true;
}

static bool find_names(void)
{
    mp_names.tensor_base = module_type("torch._C", "TensorBase");
    mp_names.tensor = module_type("torch", "Tensor");
    mp_names.parameter = module_type("torch.nn.parameter", "Parameter");
    mp_names.disable = module_type("torch._C", "DisableTorchFunction");
    mp_names.strided = module_attr("torch", "strided");
    if (!mp_names.tensor_base || !mp_names.tensor || !mp_names.parameter || !mp_names.disable || !mp_names.strided)
        return false;
#define MP_TENSOR_NAME(name)                                                                                           \
    mp_names.name = Py_XNewRef(PyDict_GetItemString(mp_names.tensor_base->tp_dict, #name));                            \
    if (!mp_names.name) return false;
    MP_TENSOR_NAMES(MP_TENSOR_NAME)
#undef MP_TENSOR_NAME
    return find_dtypes();
}

bool mp_torch_names_ready(void)
{
    if (MP_LIKELY(mp_names.ready)) return true;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    mp_names.ready = find_names();
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return mp_names.ready;
}

PyObject *mp_quiet_begin(void)
{
    if (!mp_torch_names_ready()) return NULL;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *guard = PyObject_CallNoArgs((PyObject *)mp_names.disable);
    PyObject *entered = guard ? PyObject_CallMethod(guard, "__enter__", NULL) : NULL;
    if (!entered) Py_CLEAR(guard);
    Py_XDECREF(entered);
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return guard;
}

void mp_quiet_end(PyObject *guard)
{
    if (!guard) return;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(PyObject_CallMethod(guard, "__exit__", "OOO", Py_None, Py_None, Py_None));
    Py_DECREF(guard);
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
}

PyObject *mp_tensor_ask(PyObject *descriptor, PyObject *tensor)
{
    descrgetfunc get = Py_TYPE(descriptor)->tp_descr_get;
    if (PyObject_TypeCheck(descriptor, &PyGetSetDescr_Type))
        return get(descriptor, tensor, (PyObject *)Py_TYPE(tensor));
    return PyObject_CallOneArg(descriptor, tensor);
}

bool mp_is_operator_code(PyCodeObject *code)
{
    static const char *const names[] = {"OpOverload", "OpOverloadPacket"};
    static PyObject *codes[2]; /* owned by the process */
    for (size_t i = 0; i < 2; i++) {
        if (!codes[i]) {
            PyObject *type = module_attr("torch._ops", names[i]);
            PyObject *call = type ? PyObject_GetAttrString(type, "__call__") : NULL;
            if (call && PyFunction_Check(call)) codes[i] = Py_NewRef(PyFunction_GET_CODE(call));
            Py_XDECREF(type);
            Py_XDECREF(call);
            PyErr_Clear();
        }
        if (codes[i] == (PyObject *)code) return true;
    }
    return false;
}

bool mp_is_tensor(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE) && type != mp_names.tensor_base) return false; /* Tensor is a class */
    if (!mp_torch_names_ready() || type->tp_basicsize < mp_names.tensor_base->tp_basicsize) return false;
    return type == mp_names.tensor || PyType_IsSubtype(type, mp_names.tensor_base);
}

bool mp_is_exact_tensor(PyObject *object)
{ return mp_torch_names_ready() && (Py_TYPE(object) == mp_names.tensor || Py_TYPE(object) == mp_names.parameter); }
