/* Iterators of C that run no code of a program and can be put back to where they were: how CPython 3.11 lays them out. */
#include "observe/observe.h"

#include <string.h>

typedef enum {
    NOTHING,
    INDEX,    /* a number that next() moves */
    HELD,     /* an object that it replaces, or NULL */
    SEQUENCE, /* what it walks, or NULL once it has let go of that */
    INNER,    /* the iterator that it asks, likewise */
    SOURCE,   /* the iterator that gives what it walks next, likewise */
    TUPLE,    /* iterators that it asks */
    LENGTH,   /* a list of its own to which it appends */
} field_kind;

typedef struct {
    uint8_t word, kind;
} field;

enum { HEAD = sizeof(PyObject) / sizeof(void *), MOST_FIELDS = 3, MOST_DEEP = 16 };

typedef struct {
    const char *name;
    size_t words; /* of an instance, by which another layout is told */
    field fields[MOST_FIELDS];
} layout;

/* CPython's Objects/{iter,list,tuple,range,enum}object.c, Python/bltinmodule.c, Modules/itertoolsmodule.c */
static const layout layouts[] = {
    {"list_iterator", 4, {{HEAD, INDEX}, {HEAD + 1, SEQUENCE}}},
    {"list_reverseiterator", 4, {{HEAD, INDEX}, {HEAD + 1, SEQUENCE}}},
    {"tuple_iterator", 4, {{HEAD, INDEX}, {HEAD + 1, SEQUENCE}}},
    {"reversed", 4, {{HEAD, INDEX}, {HEAD + 1, SEQUENCE}}},
    {"range_iterator", 6, {{HEAD, INDEX}}},
    {"longrange_iterator", 6, {{HEAD, HELD}}},
    {"itertools.count", 5, {{HEAD, INDEX}, {HEAD + 1, HELD}}},
    {"itertools.repeat", 4, {{HEAD + 1, INDEX}}},
    {"enumerate", 7, {{HEAD, INDEX}, {HEAD + 1, INNER}, {HEAD + 3, HELD}}},
    {"zip", 6, {{HEAD + 1, TUPLE}}},
    {"itertools.cycle", 6, {{HEAD, INNER}, {HEAD + 1, LENGTH}, {HEAD + 2, INDEX}}},
    {"itertools.chain", 4, {{HEAD, SOURCE}, {HEAD + 1, INNER}}},
    {"itertools.islice", 7, {{HEAD, INNER}, {HEAD + 1, INDEX}, {HEAD + 4, INDEX}}},
};

static const layout *layout_of(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) return NULL;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (!strcmp(layouts[i].name, type->tp_name) && (size_t)type->tp_basicsize == layouts[i].words * sizeof(void *))
            return &layouts[i];
    return NULL;
}

static PyObject **object_at(PyObject *iterator, field at) { return (PyObject **)iterator + at.word; }
static Py_ssize_t *index_at(PyObject *iterator, field at) { return (Py_ssize_t *)iterator + at.word; }

/* -- Which ones ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    mp_sequence_seen seen;
    void *data;
} visit;

static bool is_plain_sequence(PyObject *object, visit v)
{
    if (PyTuple_CheckExact(object) || PyRange_Check(object)) return true;
    return PyList_CheckExact(object) && v.seen(object, v.data);
}

static bool is_plain(PyObject *iterator, visit v, int depth);

/* Does it walk plain sequences, whose items are plain sequences? */
static bool is_plain_source(PyObject *iterator, visit v, int depth)
{
    const layout *known = layout_of(iterator);
    if (!known || known->fields[1].kind != SEQUENCE || !is_plain(iterator, v, depth)) return false;
    PyObject *sequence = *object_at(iterator, known->fields[1]);
    if (sequence && PyRange_Check(sequence)) return false;
    for (Py_ssize_t i = 0; sequence && i < PySequence_Fast_GET_SIZE(sequence); i++)
        if (!is_plain_sequence(PySequence_Fast_GET_ITEM(sequence, i), v)) return false;
    return true;
}

static bool is_number(PyObject *object) { return PyLong_CheckExact(object) || PyFloat_CheckExact(object); }

static bool is_plain(PyObject *iterator, visit v, int depth)
{
    const layout *known = depth < MOST_DEEP ? layout_of(iterator) : NULL;
    if (!known) return false;
    for (int i = 0; i < MOST_FIELDS; i++) {
        field at = known->fields[i];
        PyObject *object = at.kind == NOTHING || at.kind == INDEX ? NULL : *object_at(iterator, at);
        if (!object) continue;
        switch ((field_kind)at.kind) {
        case SEQUENCE:
            if (PyRange_Check(object) || !is_plain_sequence(object, v)) return false;
            break;
        case HELD: /* and what is added to it */
            if (!is_number(object)) return false;
            break;
        case INNER:
            if (!is_plain(object, v, depth + 1)) return false;
            break;
        case SOURCE:
            if (!is_plain_source(object, v, depth + 1)) return false;
            break;
        case TUPLE:
            for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(object); k++)
                if (!is_plain(PyTuple_GET_ITEM(object, k), v, depth + 1)) return false;
            break;
        default: break;
        }
    }
    if (strcmp(known->name, "itertools.count") != 0) return true;
    PyObject *step = ((PyObject **)iterator)[HEAD + 2];
    return !step || is_number(step);
}

bool mp_iterator_plain(PyObject *iterator, mp_sequence_seen seen, void *data)
{ return is_plain(iterator, (visit){seen, data}, 0); }

/* -- Where it is ----------------------------------------------------------------------------------------------------------- */

/* Owned, or NULL with an exception. */
static PyObject *field_state(PyObject *iterator, field at)
{
    if (at.kind == NOTHING) return Py_NewRef(Py_None);
    if (at.kind == INDEX) return PyLong_FromSsize_t(*index_at(iterator, at));
    PyObject *object = *object_at(iterator, at);
    if (!object) return Py_NewRef(Py_None);
    if (at.kind == LENGTH) return PyLong_FromSsize_t(PyList_GET_SIZE(object));
    if (at.kind == INNER || at.kind == SOURCE) return mp_iterator_state(object);
    if (at.kind != TUPLE) return Py_NewRef(object);
    PyObject *states = PyTuple_New(PyTuple_GET_SIZE(object));
    for (Py_ssize_t i = 0; states && i < PyTuple_GET_SIZE(object); i++) {
        PyObject *state = mp_iterator_state(PyTuple_GET_ITEM(object, i));
        if (state)
            PyTuple_SET_ITEM(states, i, state);
        else
            Py_CLEAR(states);
    }
    return states;
}

PyObject *mp_iterator_state(PyObject *iterator)
{
    const layout *known = layout_of(iterator);
    if (!known) return PyErr_Format(PyExc_TypeError, "a %s has no known state", Py_TYPE(iterator)->tp_name);
    PyObject *state = PyTuple_New(MOST_FIELDS + 1);
    if (state) PyTuple_SET_ITEM(state, 0, Py_NewRef(iterator));
    for (int i = 0; state && i < MOST_FIELDS; i++) {
        PyObject *value = field_state(iterator, known->fields[i]);
        if (value)
            PyTuple_SET_ITEM(state, i + 1, value);
        else
            Py_CLEAR(state);
    }
    return state;
}

static int set_field(PyObject *iterator, field at, PyObject *state)
{
    if (at.kind == NOTHING) return 0;
    if (at.kind == INDEX) {
        *index_at(iterator, at) = PyLong_AsSsize_t(state);
        return 0;
    }
    PyObject **object = object_at(iterator, at);
    if (at.kind == LENGTH) return PyList_SetSlice(*object, PyLong_AsSsize_t(state), PyList_GET_SIZE(*object), NULL);
    if (at.kind == TUPLE) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(state); i++)
            if (mp_iterator_set_state(PyTuple_GET_ITEM(state, i)) < 0) return -1;
        return 0;
    }
    bool inner = at.kind == INNER || at.kind == SOURCE;
    PyObject *held = state == Py_None ? NULL : inner ? PyTuple_GET_ITEM(state, 0) : state;
    Py_XSETREF(*object, Py_XNewRef(held));
    return held && inner ? mp_iterator_set_state(state) : 0;
}

int mp_iterator_set_state(PyObject *state)
{
    PyObject *iterator = PyTuple_GET_ITEM(state, 0);
    const layout *known = layout_of(iterator); /* it had one */
    for (int i = 0; i < MOST_FIELDS; i++)
        if (set_field(iterator, known->fields[i], PyTuple_GET_ITEM(state, i + 1)) < 0) return -1;
    return 0;
}
