/* The finished recording: its end, look-ups in it, and references to its objects. */
#include "trace/arrays.h"
#include "trace/numbers.h"
#include "trace/texts.h"
#include "trace/raw.h"

/* -- References ------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD mp_obj_id id;
} mp_ref;

static PyTypeObject *ref_type; /* owned by the process */

static PyObject *ref_repr(PyObject *self) { return PyUnicode_FromFormat("Ref(%u)", ((mp_ref *)self)->id); }

static PyObject *ref_compare(PyObject *a, PyObject *b, int op)
{
    if (!Py_IS_TYPE(b, ref_type) || (op != Py_EQ && op != Py_NE)) Py_RETURN_NOTIMPLEMENTED;
    return PyBool_FromLong((((mp_ref *)a)->id == ((mp_ref *)b)->id) == (op == Py_EQ));
}

static Py_hash_t ref_hash(PyObject *self) { return (Py_hash_t)((mp_ref *)self)->id; }

static void ref_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot ref_slots[] = {
    {Py_tp_repr, (void *)ref_repr},
    {Py_tp_richcompare, (void *)ref_compare},
    {Py_tp_hash, (void *)ref_hash},
    {Py_tp_dealloc, (void *)ref_dealloc},
    {Py_tp_doc, "The number of an external object."},
    {0, NULL},
};

static PyType_Spec ref_spec = {
    .name = "magpy._C.Ref",
    .basicsize = sizeof(mp_ref),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ref_slots,
};

int mp_trace_init_ref(PyObject *module)
{
    if (!ref_type) ref_type = (PyTypeObject *)PyType_FromSpec(&ref_spec);
    return ref_type ? PyModule_AddObjectRef(module, "Ref", (PyObject *)ref_type) : -1;
}

PyObject *mp_ref_new(mp_obj_id id)
{
    mp_ref *ref = PyObject_New(mp_ref, ref_type);
    if (ref) ref->id = id;
    return (PyObject *)ref;
}

mp_obj_id mp_ref_id(PyObject *ref) { return Py_IS_TYPE(ref, ref_type) ? ((mp_ref *)ref)->id : MP_NO_OBJ; }

/* -- Look-ups ----------------------------------------------------------------------------------------------------------- */

mp_obj_id mp_recording_find_object(const mp_recording *recording, PyObject *object)
{ return recording->recorder ? mp_rec_find(recording->recorder, object) : MP_NO_OBJ; }

mp_value_id mp_recording_find_value(const mp_recording *recording, PyObject *tensor)
{ return recording->recorder ? mp_rec_find_value(recording->recorder, tensor) : MP_NO_VALUE; }

mp_value_id mp_recording_find_number(const mp_recording *recording, PyObject *object, PyObject **make)
{
    mp_recorder *rec = recording->recorder;
    *make = NULL;
    return rec && mp_number_is(rec, object) ? mp_number_at_end(rec, object, make) : MP_NO_VALUE;
}

uint32_t mp_recording_find_drawn(const mp_recording *recording, PyObject *object)
{ return recording->recorder ? mp_number_drawn(recording->recorder, object) : MP_NO_DRAW; }

PyObject *mp_recording_must_make(const mp_recording *recording, uint32_t i)
{ return recording->recorder ? mp_number_must(recording->recorder, i) : NULL; }

PyObject *mp_recording_find_text(const mp_recording *recording, PyObject *object)
{ return recording->recorder ? mp_text_template(recording->recorder, object) : NULL; }

mp_value_id mp_recording_find_array(const mp_recording *recording, PyObject *array, bool *owns, mp_reason *why)
{
    mp_recorder *rec = recording->recorder;
    PyObject *value = rec ? mp_array_at_end(rec, array, owns) : NULL;
    mp_value_id id = value ? mp_index_of(value) : MP_NO_VALUE;
    Py_XDECREF(value);
    if (rec && rec->why.code) *why = rec->why;
    return rec && rec->why.code ? MP_NO_VALUE : id;
}

bool mp_recording_is_internal(const mp_recording *recording, PyObject *object)
{ return recording->recorder && mp_rec_is_internal(recording->recorder, object); }

/* -- Numbers from outside ------------------------------------------------------------------------------------------------- */

PyObject *mp_recording_layout(const mp_tensor_meta *meta)
{
    PyObject *sizes = PyTuple_New(meta->ndim), *strides = PyTuple_New(meta->ndim);
    for (int d = 0; sizes && strides && d < meta->ndim; d++) {
        PyObject *size = PyLong_FromLongLong(meta->size[d]), *stride = PyLong_FromLongLong(meta->stride[d]);
        if (!size || !stride) {
            Py_CLEAR(sizes);
            Py_XDECREF(size);
            Py_XDECREF(stride);
            break;
        }
        PyTuple_SET_ITEM(sizes, d, size);
        PyTuple_SET_ITEM(strides, d, stride);
    }
    PyObject *layout = sizes && strides ? PyTuple_Pack(2, sizes, strides) : NULL;
    Py_XDECREF(sizes);
    Py_XDECREF(strides);
    return layout;
}

PyObject *mp_recording_argument_name(uint32_t position) { return PyUnicode_FromFormat("#%u", position); }

PyObject *mp_recording_number_name(const mp_recording *recording, uint32_t index)
{
    const mp_read *read = &recording->reads[index];
    bool scalar = read->was == MP_WAS_SCALAR || read->was == MP_WAS_NUMBER;
    if (!scalar || !read->value || !(PyLong_CheckExact(read->value) || PyFloat_CheckExact(read->value))) return NULL;
    switch ((mp_read_kind)read->kind) {
    case MP_READ_VALUE: return mp_recording_argument_name(recording->objects[read->owner].root_index);
    case MP_READ_INSTANCE_ATTR:
    case MP_READ_TYPE_ATTR:
    case MP_READ_KEY:
    case MP_READ_ITEM:
    case MP_READ_LEN:
    case MP_READ_CELL: return mp_recording_location(recording, index);
    case MP_READ_SLOT: { /* of a class in Python: C code of other types may look at its own members */
        bool member = read->key && Py_IS_TYPE(read->key, &PyMemberDescr_Type);
        return member && mp_type_mutable(PyDescr_TYPE(read->key)) ? mp_recording_location(recording, index) : NULL;
    }
    default: return NULL;
    }
}

/* -- The end -------------------------------------------------------------------------------------------------------------- */

void mp_recording_free(mp_recording *recording)
{
    if (!recording) return;
    if (recording->recorder) recording->recorder->recording = NULL;
    for (uint32_t i = 0; i < recording->n_objects; i++) {
        Py_XDECREF(recording->objects[i].watch);
        Py_XDECREF(recording->objects[i].type);
        Py_XDECREF(recording->objects[i].root_name);
    }
    for (uint32_t i = 0; i < recording->n_reads; i++) {
        mp_read *read = &recording->reads[i];
        Py_XDECREF(read->key);
        Py_XDECREF(read->value);
        if (!read->meta) continue;
        PyMem_RawFree(read->meta->size);
        PyMem_RawFree(read->meta->stride);
        PyMem_RawFree(read->meta);
    }
    for (uint32_t i = 0; i < recording->n_writes; i++) {
        Py_XDECREF(recording->writes[i].key);
        Py_XDECREF(recording->writes[i].value);
    }
    for (uint32_t i = 0; i < recording->n_ops; i++) {
        Py_XDECREF(recording->ops[i].func);
        Py_XDECREF(recording->ops[i].args);
        Py_XDECREF(recording->ops[i].kwargs);
        Py_XDECREF(recording->ops[i].out);
    }
    for (uint32_t i = 0; i < recording->n_checks; i++) {
        Py_XDECREF(recording->checks[i].func);
        Py_XDECREF(recording->checks[i].args);
        Py_XDECREF(recording->checks[i].kwargs);
        Py_XDECREF(recording->checks[i].result);
    }
    for (uint32_t i = 0; i < recording->n_draws; i++) {
        Py_XDECREF(recording->draws[i].func);
        Py_XDECREF(recording->draws[i].args);
        Py_XDECREF(recording->draws[i].kwargs);
        Py_XDECREF(recording->draws[i].keeper);
        Py_XDECREF(recording->draws[i].result);
        Py_XDECREF(recording->draws[i].meta);
    }
    for (uint32_t i = 0; i < recording->n_sites; i++) Py_XDECREF(recording->sites[i].code);
    Py_XDECREF(recording->result);
    Py_XDECREF(recording->torch_state);
    PyMem_RawFree(recording->objects);
    PyMem_RawFree(recording->reads);
    PyMem_RawFree(recording->writes);
    PyMem_RawFree(recording->ops);
    PyMem_RawFree(recording->checks);
    PyMem_RawFree(recording->draws);
    PyMem_RawFree(recording->values);
    PyMem_RawFree(recording->sites);
    PyMem_RawFree(recording->inputs);
    PyMem_RawFree(recording->input_mutated);
    PyMem_RawFree(recording);
}
