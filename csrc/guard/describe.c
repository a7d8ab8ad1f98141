/* Guards as lines for people: "self.training is False (model.py:41)". */
#include "guard/program.h"

#include "trace/recorder.h"

enum { LONGEST_VALUE = 80 }; /* characters of a value that is shown */

static PyObject *short_repr(PyObject *value)
{
    PyObject *text = PyObject_Repr(value);
    if (!text || PyUnicode_GET_LENGTH(text) <= LONGEST_VALUE) return text;
    PyObject *head = PyUnicode_Substring(text, 0, LONGEST_VALUE);
    Py_DECREF(text);
    text = head ? PyUnicode_FromFormat("%U...", head) : NULL;
    Py_XDECREF(head);
    return text;
}

/* "format" with the new reference `first` (consumed) and `second` (consumed). NULL with an exception if either is NULL. */
static PyObject *join(const char *format, PyObject *first, PyObject *second)
{
    PyObject *text = first && second ? PyUnicode_FromFormat(format, first, second) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(second);
    return text;
}

/* -- What it held ------------------------------------------------------------------------------------------------------------ */

static const char *dtype_name(int32_t code) /* c10::ScalarType */
{
    static const char *const names[] = {"uint8",   "int8",    "int16",     "int32",     "int64",      "float16",
                                        "float32", "float64", "complex32", "complex64", "complex128", "bool",
                                        "qint8",   "quint8",  "qint32",    "bfloat16"};
    return code >= 0 && (size_t)code < sizeof names / sizeof *names ? names[code] : "?";
}

static PyObject *numbers(const int64_t *values, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) {
        PyObject *number = PyLong_FromLongLong(values[i]);
        if (!number)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, number);
    }
    return tuple;
}

static const char *layout_name(int32_t code) /* c10::Layout */
{
    static const char *const names[] = {"strided",    "sparse_coo", "sparse_csr", "_mkldnn",
                                        "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged"};
    return code >= 0 && (size_t)code < sizeof names / sizeof *names ? names[code] : "?";
}

static PyObject *meta_text(PyObject *owner, const mp_tensor_meta *meta)
{
    PyObject *shape = numbers(meta->size, meta->ndim);
    PyObject *stride = NULL, *text = NULL;
    if (meta->stride)
        stride = join("%U.stride() == %R", Py_XNewRef(owner), numbers(meta->stride, meta->ndim));
    else
        stride = owner ? PyUnicode_FromFormat("%U.layout is torch.%s", owner, layout_name(meta->layout)) : NULL;
    if (owner && shape && stride)
        text = PyUnicode_FromFormat("%U.shape == %R, %U, %U.dtype is torch.%s, %U.requires_grad is %s%s%s%s%s", owner,
                                    shape, stride, owner, dtype_name(meta->dtype), owner,
                                    meta->requires_grad ? "True" : "False", meta->is_conj ? ", conjugated" : "",
                                    meta->is_neg ? ", negated" : "", meta->is_inference ? ", inference" : "",
                                    meta->placed ? ", the same place in its memory" : "");
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    Py_XDECREF(owner);
    return text;
}

static PyObject *missing_text(const mp_recording *rec, const mp_read *read, uint32_t number)
{
    if (read->kind == MP_READ_KEY && read->key)
        return join("%U not in %U", PyObject_Repr(read->key), mp_recording_path(rec, read->owner));
    if (read->kind == MP_READ_CELL || read->kind == MP_READ_DEREF || read->kind == MP_READ_CONTEXT_VAR)
        return join("%U is empty%U", mp_recording_location(rec, number), PyUnicode_FromString(""));
    if (read->kind == MP_READ_ITEM || read->kind == MP_READ_KEY_AT)
        return join("%U is out of range%U", mp_recording_location(rec, number), PyUnicode_FromString(""));
    return join("%U does not exist%U", mp_recording_location(rec, number), PyUnicode_FromString(""));
}

static PyObject *object_text(const mp_guard_program *prog, const mp_read *read, uint32_t number)
{
    PyObject *location = mp_recording_location(&prog->rec, number);
    const mp_object *object = &prog->rec.objects[read->obj];
    if (!prog->objects[read->obj].fixed)
        return join("type(%U) is %U", location, PyUnicode_FromString(object->type->tp_name));
    PyObject *fixed = mp_object_get(object);
    if (fixed && PyType_Check(fixed))
        return join("%U is %U", location, PyUnicode_FromString(((PyTypeObject *)fixed)->tp_name));
    return join("%U is the same %U", location, PyUnicode_FromString(object->type->tp_name));
}

static PyObject *read_text(const mp_guard_program *prog, uint32_t number)
{
    const mp_recording *rec = &prog->rec;
    const mp_read *read = &rec->reads[number];
    PyObject *value = read->value;
    if (read->kind == MP_READ_SAME_ARG)
        return join("argument %U is %U", PyObject_Str(read->key), mp_recording_path(rec, read->owner));
    switch ((mp_was)read->was) {
    case MP_WAS_META: return meta_text(mp_recording_path(rec, read->owner), read->meta);
    case MP_WAS_MISSING: return missing_text(rec, read, number);
    case MP_WAS_OBJECT: return object_text(prog, read, number);
    case MP_WAS_ANY:
        return join(read->kind == MP_READ_NO_DATA_DESCR  ? "%U is no data descriptor%U"
                    : read->kind == MP_READ_TYPE_DUNDERS ? "%U are unchanged%U"
                                                         : "%U%U",
                    mp_recording_location(rec, number), PyUnicode_FromString(""));
    case MP_WAS_NUMBER:
        if (value) break;
        return join("%U is a %U", mp_recording_location(rec, number),
                    PyUnicode_FromString(rec->objects[read->obj].type->tp_name));
    case MP_WAS_ITEMS:
        if (value && PyTuple_Check(value)) value = PyTuple_GET_ITEM(value, 0);
        break;
    case MP_WAS_SCALAR: break;
    }
    bool membership = read->kind == MP_READ_HAS || read->kind == MP_READ_SET_HAS;
    if (membership && value == Py_True)
        return join("%U%U", mp_recording_location(rec, number), PyUnicode_FromString(""));
    if (membership) return join("not %U%U", mp_recording_location(rec, number), PyUnicode_FromString(""));
    bool single = value == Py_None || PyBool_Check(value);
    return join(single ? "%U is %U" : "%U == %U", mp_recording_location(rec, number), short_repr(value));
}

/* -- The door ------------------------------------------------------------------------------------------------------------------ */

static PyObject *slot_text(const mp_guard_program *prog, uint32_t i)
{
    const guard_slot *slot = &prog->slots[i];
    PyObject *name = NULL;
    if (slot->object != MP_NO_OBJ)
        name = mp_recording_path(&prog->rec, slot->object);
    else if (i < prog->n_positional)
        name = PyUnicode_FromFormat("args[%u]", i);
    else
        name = Py_NewRef(PyTuple_GET_ITEM(prog->kwnames, i - prog->n_positional));
    if (slot->kind == GUARD_SLOT_SCALAR) return join("%U == %U", name, short_repr(slot->scalar));
    if (slot->kind == GUARD_SLOT_OTHER) return join("argument %U is %U", PyUnicode_FromFormat("%u", i), name);
    return join("%U is a %U that is no other argument or known object", name,
                PyUnicode_FromString(slot->type->tp_name));
}

PyObject *mp_guard_describe(const mp_guard_program *prog, mp_guard_id id)
{
    if (id < prog->rec.n_reads) {
        PyObject *text = read_text(prog, id),
                 *site = text ? mp_recording_site(&prog->rec, prog->rec.reads[id].site) : NULL;
        if (!site) {
            Py_XDECREF(text);
            return NULL;
        }
        return join(PyUnicode_GET_LENGTH(site) ? "%U (%U)" : "%U%U", text, site);
    }
    uint32_t which = id - prog->rec.n_reads;
    if (which >= GUARD_ID_SLOTS && which - GUARD_ID_SLOTS < prog->n_slots)
        return slot_text(prog, which - GUARD_ID_SLOTS);
    if (which == GUARD_ID_SIGNATURE)
        return PyUnicode_FromFormat("the call has %u positional and %u keyword arguments, by the same names",
                                    prog->n_positional, prog->n_slots - prog->n_positional);
    if (which == GUARD_ID_TORCH_STATE)
        return PyUnicode_FromString("torch's modes (grad mode, autocast, default dtype, ...) are as they were");
    if (which == GUARD_ID_OVERLAP) return PyUnicode_FromString("the inputs share memory as they did");
    return PyUnicode_FromString("?");
}

PyObject *mp_guard_number_name(const mp_guard_program *prog, mp_guard_id id)
{
    if (id < prog->rec.n_reads) return mp_recording_number_name(&prog->rec, id);
    uint32_t slot = id - prog->rec.n_reads - GUARD_ID_SLOTS;
    if (id < guard_id_of(prog, GUARD_ID_SLOTS) || slot >= prog->n_slots) return NULL;
    PyObject *scalar = prog->slots[slot].scalar;
    bool number = scalar && (PyLong_CheckExact(scalar) || PyFloat_CheckExact(scalar));
    return number ? mp_recording_argument_name(slot) : NULL;
}

uint32_t mp_guard_count(const mp_guard_program *prog) { return prog->rec.n_reads; }
