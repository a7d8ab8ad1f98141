/* _C.Value, _C.Number and _C.Drawn: numbers that stand in templates for what they number. */
#include "trace/tensors.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD unsigned int index;
} index_object;

static PyMemberDef index_members[] = {{"index", T_UINT, offsetof(index_object, index), READONLY, NULL}, {NULL}};

static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", NULL};
    unsigned int index;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I", names, &index)) return NULL;
    index_object *self = (index_object *)type->tp_alloc(type, 0);
    if (self) self->index = index;
    return (PyObject *)self;
}

static PyObject *index_repr(PyObject *self)
{
    const char *name = strrchr(Py_TYPE(self)->tp_name, '.');
    return PyUnicode_FromFormat("%s(%u)", name ? name + 1 : Py_TYPE(self)->tp_name, ((index_object *)self)->index);
}

static PyObject *index_compare(PyObject *a, PyObject *b, int op)
{
    if (Py_TYPE(a) != Py_TYPE(b) || (op != Py_EQ && op != Py_NE)) Py_RETURN_NOTIMPLEMENTED;
    return PyBool_FromLong((((index_object *)a)->index == ((index_object *)b)->index) == (op == Py_EQ));
}

static Py_hash_t index_hash(PyObject *self) { return (Py_hash_t)((index_object *)self)->index; }

#define INDEX_TYPE(name, doc)                                                                                          \
    {                                                                                                                  \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = "magpy._C." name,                                                     \
        .tp_doc = doc,                                                                                                 \
        .tp_basicsize = sizeof(index_object),                                                                          \
        .tp_flags = Py_TPFLAGS_DEFAULT,                                                                                \
        .tp_members = index_members,                                                                                   \
        .tp_new = index_new,                                                                                           \
        .tp_repr = index_repr,                                                                                         \
        .tp_richcompare = index_compare,                                                                               \
        .tp_hash = index_hash,                                                                                         \
    }

static PyTypeObject value_type = INDEX_TYPE(
    "Value", "A tensor of a recorded graph, standing in templates of arguments and results; `index` is its number.");
static PyTypeObject number_type = INDEX_TYPE(
    "Number", "An int or float in arguments of a recorded operator: the only element of tensor number `index`.");

static PyTypeObject drawn_type =
    INDEX_TYPE("Drawn", "In arguments of a draw: what draw number `index` of the run gave.");

static PyObject *index_make(PyTypeObject *type, uint32_t index)
{
    index_object *self = (index_object *)type->tp_alloc(type, 0);
    if (self) self->index = index;
    return (PyObject *)self;
}

PyObject *mp_value_new(mp_value_id value) { return index_make(&value_type, value); }
bool mp_value_check(PyObject *object) { return Py_TYPE(object) == &value_type; }
uint32_t mp_index_of(PyObject *object) { return ((index_object *)object)->index; }

PyObject *mp_number_new(mp_value_id value) { return index_make(&number_type, value); }

PyObject *mp_drawn_new(uint32_t draw) { return index_make(&drawn_type, draw); }
uint32_t mp_drawn_number(PyObject *object) { return Py_TYPE(object) == &drawn_type ? mp_index_of(object) : MP_NO_DRAW; }

int mp_values_module_init(PyObject *module)
{
    PyTypeObject *types[] = {&value_type, &number_type, &drawn_type};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(module, types[i]) < 0) return -1;
    return 0;
}
