/* Scalars: immutable values without identity, by exact type. */
#include "trace/recorder_internal.h"

/* -- Foreign scalar types ------------------------------------------------------------------------------------------- */

/* torch's and numpy's types, looked up in the modules that are already imported. Owned for the life of the process, as the modules
** are; a module that is not imported yet is asked for again. */
static struct {
    PyTypeObject *dtype, *device, *layout, *memory_format, *size, *generic, *numpy_dtype;
} foreign;

/* Values of the standard library in C whose repr() shows all of them. */
enum { DATETIME, DATE, TIME, TIMEDELTA, TIMEZONE, DECIMAL, VALUE_TYPES };
static struct {
    const char *module, *name;
    PyTypeObject *type; /* as in `foreign` */
} value_types[VALUE_TYPES] = {
    [DATETIME] = {"datetime", "datetime"},   [DATE] = {"datetime", "date"},         [TIME] = {"datetime", "time"},
    [TIMEDELTA] = {"datetime", "timedelta"}, [TIMEZONE] = {"datetime", "timezone"}, [DECIMAL] = {"decimal", "Decimal"},
};

static PyTypeObject *module_type(const char *module_name, const char *name)
{
    PyObject *modules = PyImport_GetModuleDict();                  /* borrowed */
    PyObject *module = PyDict_GetItemString(modules, module_name); /* borrowed */
    if (!module || !PyModule_Check(module)) return NULL;
    PyObject *type = PyDict_GetItemString(PyModule_GetDict(module), name); /* borrowed */
    return type && PyType_Check(type) ? (PyTypeObject *)Py_NewRef(type) : NULL;
}

void mp_scalars_prepare(void)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (!foreign.size) {
        foreign.dtype = module_type("torch", "dtype");
        foreign.device = module_type("torch", "device");
        foreign.layout = module_type("torch", "layout");
        foreign.memory_format = module_type("torch", "memory_format");
        foreign.size = module_type("torch", "Size");
    }
    if (!foreign.generic) foreign.generic = module_type("numpy", "generic");
    if (!foreign.numpy_dtype) foreign.numpy_dtype = module_type("numpy", "dtype");
    for (int i = 0; i < VALUE_TYPES; i++)
        if (!value_types[i].type) value_types[i].type = module_type(value_types[i].module, value_types[i].name);
    PyErr_Restore(type, value, trace);
}

static bool is_singleton_type(PyTypeObject *type)
{ return type == foreign.dtype || type == foreign.layout || type == foreign.memory_format; }

static bool is_numpy_scalar(PyTypeObject *type) { return foreign.generic && PyType_IsSubtype(type, foreign.generic); }

/* A numpy dtype without parts, whose names could be changed, and without objects. */
static bool is_numpy_dtype(PyTypeObject *type)
{
    return foreign.numpy_dtype && PyType_IsSubtype(type, foreign.numpy_dtype) && !strstr(type->tp_name, "Void") &&
           !strstr(type->tp_name, "Object") && type != foreign.numpy_dtype;
}

/* A date, a duration or a decimal number. A zone that the program has written has code of its own: then it is none. */
static bool is_library_value(PyObject *value)
{
    int kind = 0;
    if (PyType_HasFeature(Py_TYPE(value), Py_TPFLAGS_HEAPTYPE)) return false; /* a class in its place */
    while (kind < VALUE_TYPES && value_types[kind].type != Py_TYPE(value)) kind++;
    if (kind != DATETIME && kind != TIME) return kind < VALUE_TYPES;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyObject *zone = PyObject_GetAttrString(value, "tzinfo"); /* a C member */
    bool plain = zone && (zone == Py_None || Py_TYPE(zone) == value_types[TIMEZONE].type);
    Py_XDECREF(zone);
    PyErr_Clear();
    PyErr_Restore(type, error, trace);
    return plain;
}

bool mp_is_decimal(PyObject *value) { return Py_TYPE(value) == value_types[DECIMAL].type && value_types[DECIMAL].type; }

/* -- What is one ---------------------------------------------------------------------------------------------------- */

bool mp_is_scalar(PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBool_Type || value == Py_None ||
        type == &PyFloat_Type || type == &PyBytes_Type || type == &PyComplex_Type || value == Py_Ellipsis ||
        value == Py_NotImplemented || type == &PyRange_Type)
        return true;
    if (type == &PySlice_Type) {
        PySliceObject *slice = (PySliceObject *)value;
        return mp_is_scalar(slice->start) && mp_is_scalar(slice->stop) && mp_is_scalar(slice->step);
    }
    if (type == &PyType_Type || type == &PyTuple_Type || type == &PyDict_Type || type == &PyFunction_Type) return false;
    return is_singleton_type(type) || (foreign.size && (type == foreign.device || type == foreign.size)) ||
           is_numpy_scalar(type) || is_numpy_dtype(type) || is_library_value(value);
}

/* -- Equality: same exact type and same value ------------------------------------------------------------------------ */

/* C types only, so no user code can run; an error counts as different. */
static bool same_by_compare(PyObject *a, PyObject *b)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    int same = PyObject_RichCompareBool(a, b, Py_EQ);
    if (same < 0) PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return same == 1;
}

static bool same_bytes(PyObject *a, PyObject *b)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_buffer x = {0}, y = {0};
    bool same = false;
    if (PyObject_GetBuffer(a, &x, PyBUF_SIMPLE) == 0) {
        if (PyObject_GetBuffer(b, &y, PyBUF_SIMPLE) == 0) {
            same = x.len == y.len && memcmp(x.buf, y.buf, (size_t)x.len) == 0;
            PyBuffer_Release(&y);
        }
        PyBuffer_Release(&x);
    }
    PyErr_Clear(); /* a scalar without bytes, such as a datetime64: counted as different */
    PyErr_Restore(type, value, trace);
    return same;
}

static bool same_slice(PySliceObject *a, PySliceObject *b)
{ return mp_scalar_same(a->start, b->start) && mp_scalar_same(a->stop, b->stop) && mp_scalar_same(a->step, b->step); }

static bool same_range(PyObject *a, PyObject *b)
{
    static const char *const parts[] = {"start", "stop", "step"}; /* range(0) == range(1, 1), but they look different */
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    bool same = true;
    for (int i = 0; i < 3 && same; i++) {
        PyObject *x = PyObject_GetAttrString(a, parts[i]), *y = PyObject_GetAttrString(b, parts[i]);
        same = x && y && mp_scalar_same(x, y);
        Py_XDECREF(x);
        Py_XDECREF(y);
    }
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return same;
}

/* Equality alone is too little: 1.0 == 1.00, and one instant in two zones. */
static bool same_repr(PyObject *a, PyObject *b)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *x = PyObject_Repr(a), *y = x ? PyObject_Repr(b) : NULL;
    bool same = y && PyUnicode_Compare(x, y) == 0;
    Py_XDECREF(x);
    Py_XDECREF(y);
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return same;
}

static bool same_items(PyObject *a, PyObject *b)
{
    if (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); i++)
        if (!mp_scalar_same(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
    return true;
}

static bool same_double(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

bool mp_scalar_same(PyObject *a, PyObject *b)
{
    if (a == b) return true;
    PyTypeObject *type = Py_TYPE(a);
    if (type != Py_TYPE(b)) return false;
    if (type == &PyFloat_Type) return same_double(PyFloat_AS_DOUBLE(a), PyFloat_AS_DOUBLE(b));
    if (type == &PyComplex_Type) {
        Py_complex x = ((PyComplexObject *)a)->cval, y = ((PyComplexObject *)b)->cval;
        return same_double(x.real, y.real) && same_double(x.imag, y.imag);
    }
    if (type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBytes_Type) return same_by_compare(a, b);
    if (type == &PySlice_Type) return same_slice((PySliceObject *)a, (PySliceObject *)b);
    if (type == &PyRange_Type) return same_range(a, b);
    if (foreign.size && type == foreign.device) return same_by_compare(a, b);
    if (foreign.size && type == foreign.size) return same_items(a, b);
    if (is_numpy_scalar(type)) return same_bytes(a, b);
    if (is_library_value(a)) return is_library_value(b) && same_repr(a, b);
    return false; /* None, bool and torch's singletons are the same object or different */
}

/* -- Keys ------------------------------------------------------------------------------------------------------------ */

bool mp_is_constant_ref(PyObject *key)
{
    PyObject *referent = PyWeakref_CheckRefExact(key) ? PyWeakref_GET_OBJECT(key) : Py_None;
    PyTypeObject *type = Py_TYPE(referent);
    bool plain = mp_is_identity_type(referent) || PyFunction_Check(referent);
    return plain && type->tp_richcompare == PyBaseObject_Type.tp_richcompare &&
           type->tp_hash == PyBaseObject_Type.tp_hash;
}

bool mp_is_constant_key(PyObject *key)
{
    if (PyTuple_CheckExact(key)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
            if (!mp_is_constant_key(PyTuple_GET_ITEM(key, i))) return false;
        return true;
    }
    return mp_is_scalar(key) || mp_is_identity_type(key) || mp_ref_id(key) != MP_NO_OBJ || mp_is_constant_ref(key);
}

/* Same constant key: as scalars, tuples item by item, everything else by identity. */
bool mp_key_same(PyObject *a, PyObject *b)
{
    if (a == b) return true;
    if (!a || !b || Py_TYPE(a) != Py_TYPE(b)) return false;
    if (mp_ref_id(a) != MP_NO_OBJ) return mp_ref_id(a) == mp_ref_id(b);
    if (!PyTuple_CheckExact(a)) return mp_scalar_same(a, b);
    if (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); i++)
        if (!mp_key_same(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
    return true;
}

/* Equal for the same keys; only cheap and safe hashes are used, the rest hashes by type alone. */
uint32_t mp_key_hash(PyObject *key)
{
    if (!key) return 0;
    PyTypeObject *type = Py_TYPE(key);
    uint64_t hash;
    if (type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBytes_Type || type == &PyBool_Type)
        hash = (uint64_t)PyObject_Hash(key);
    else if (type == &PyTuple_Type) {
        hash = 0x345678;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
            hash = hash * 1000003 ^ mp_key_hash(PyTuple_GET_ITEM(key, i));
    } else
        hash = mp_is_identity_type(key) ? (uint64_t)(uintptr_t)key >> 4 : (uint64_t)(uintptr_t)type >> 4;
    return (uint32_t)((hash * 0x9E3779B97F4A7C15u) >> 32);
}
