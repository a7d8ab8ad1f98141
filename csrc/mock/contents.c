/* Containers' contents as sequences, in the order in which putting them into an empty container makes an equal one. */
#include "mock/contents.h"

#include "observe/observe.h"
#include "trace/raw.h"

PyObject *mp_sequence_items(PyObject *sequence)
{
    Py_ssize_t n = Py_SIZE(sequence);
    PyObject *items = PyTuple_New(n);
    for (Py_ssize_t i = 0; items && i < n; i++) {
        PyObject *item = mp_raw_item(sequence, i);
        if (!item)
            Py_CLEAR(items);
        else
            PyTuple_SET_ITEM(items, i, item);
    }
    return items;
}

PyObject *mp_dict_items(PyObject *dict)
{
    PyObject *items = PyList_New(0), *key, *value;
    Py_ssize_t at = 0;
    if (items && PyODict_Check(dict)) { /* its order is not its dict's */
        PyObject *iterator = PyODict_Type.tp_iter(dict);
        while (items && iterator && (key = Py_TYPE(iterator)->tp_iternext(iterator))) {
            bool known;
            value = mp_raw_dict_item(dict, key, &known);
            if (!value || PyList_Append(items, key) < 0 || PyList_Append(items, value) < 0) Py_CLEAR(items);
            Py_DECREF(key);
        }
        if (!iterator || PyErr_Occurred()) Py_CLEAR(items);
        Py_XDECREF(iterator);
    } else
        while (items && PyDict_Next(dict, &at, &key, &value))
            if (PyList_Append(items, key) < 0 || PyList_Append(items, value) < 0) Py_CLEAR(items);
    return items;
}

bool mp_every_key_safe(PyObject *items, Py_ssize_t stride)
{
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i += stride)
        if (!mp_key_safe(PySequence_Fast_GET_ITEM(items, i))) return false;
    return true;
}

/* Takes an item's place in a trial, so that neither `__hash__` nor `__eq__` of the user's runs. */
typedef struct {
    PyObject_HEAD Py_hash_t hash;
    PyObject *item; /* borrowed */
} stand_in;

static Py_hash_t stand_in_hash(PyObject *self) { return ((stand_in *)self)->hash; }

static PyTypeObject stand_in_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "magpy.stand_in",
    .tp_basicsize = sizeof(stand_in),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_hash = stand_in_hash,
};

static bool add_stand_in(PyObject *trial, PyObject *item, Py_hash_t hash)
{
    stand_in *key = PyObject_New(stand_in, &stand_in_type);
    if (!key) return false;
    key->hash = hash;
    key->item = item;
    bool added = PySet_Add(trial, (PyObject *)key) == 0;
    Py_DECREF(key);
    return added;
}

/* Does adding the items one by one make a set with the order of `set`? */
static bool makes_order_of(PyObject *items, const Py_hash_t *hashes, PyObject *set)
{
    PyObject *trial = PyType_Ready(&stand_in_type) == 0 ? PySet_New(NULL) : NULL, *key, *wanted;
    bool same = trial != NULL;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(items); i++)
        same = add_stand_in(trial, PyTuple_GET_ITEM(items, i), hashes[i]);
    Py_ssize_t at = 0, wanted_at = 0;
    Py_hash_t hash;
    while (same && _PySet_NextEntry(trial, &at, &key, &hash))
        same = _PySet_NextEntry(set, &wanted_at, &wanted, &hash) && ((stand_in *)key)->item == wanted;
    Py_XDECREF(trial);
    PyErr_Clear();
    return same;
}

/* The ways to add a set's items: as they lie in the table; those that another had pushed out of the slot of their hash last; these from the
** end. */
typedef enum { AS_THEY_LIE, PUSHED_LAST, PUSHED_LAST_REVERSED, N_SET_ORDERS } set_order;

/* New reference; NULL without memory. Their hashes go to `hashes`. */
static PyObject *set_items(PyObject *object, set_order order, Py_hash_t *hashes)
{
    const PySetObject *set = (PySetObject *)object;
    PyObject *items = PyTuple_New(PySet_GET_SIZE(object)), *item;
    Py_ssize_t first = 0, last = PySet_GET_SIZE(object);
    for (int pushed = 0; items && pushed < 2; pushed++) {
        Py_ssize_t at = 0;
        Py_hash_t hash;
        while (_PySet_NextEntry(object, &at, &item, &hash)) {
            bool moved = order != AS_THEY_LIE && (hash & set->mask) != at - 1;
            if (moved != (pushed == 1)) continue;
            Py_ssize_t place = moved && order == PUSHED_LAST_REVERSED ? --last : first++;
            PyTuple_SET_ITEM(items, place, Py_NewRef(item));
            hashes[place] = hash;
        }
    }
    return items;
}

static bool all_plain(PyObject *items)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items); i++)
        if (!mp_key_plain(PyTuple_GET_ITEM(items, i))) return false;
    return true;
}

PyObject *mp_set_items(PyObject *set, PyObject **layout)
{
    Py_hash_t *hashes = PyMem_Calloc((size_t)PySet_GET_SIZE(set) + 1, sizeof *hashes);
    PyObject *items = hashes ? set_items(set, AS_THEY_LIE, hashes) : NULL;
    bool plain = items && all_plain(items);
    *layout = plain ? mp_set_layout(set) : NULL;
    if (plain && !*layout) Py_CLEAR(items);
    for (set_order order = AS_THEY_LIE; items && !plain && !makes_order_of(items, hashes, set);) {
        if (++order == N_SET_ORDERS) break;
        Py_SETREF(items, set_items(set, order, hashes));
    }
    PyMem_Free(hashes);
    return items;
}

/* -- Iterators over iterators ---------------------------------------------------------------------------------------------- */

enum { GOES_OVER_NONE = -1 };

static const struct {
    const char *name;
    int over; /* the first argument of its type from which on iterators are what it goes over */
} iterators[] = {
    {"range_iterator", GOES_OVER_NONE},
    {"longrange_iterator", GOES_OVER_NONE},
    {"zip", 0},
    {"map", 1},
    {"filter", 1},
    {"enumerate", 0},
    {"itertools.count", GOES_OVER_NONE},
    {"itertools.repeat", GOES_OVER_NONE},
    {"itertools.chain", GOES_OVER_NONE},
    {"itertools.islice", 0},
    {"itertools.starmap", 1},
};

static int row_of(PyTypeObject *type)
{
    if (mp_type_mutable(type)) return -1; /* no class of the program's, whatever it is called */
    for (size_t i = 0; i < sizeof iterators / sizeof *iterators; i++)
        if (!strcmp(type->tp_name, iterators[i].name)) return (int)i;
    return -1;
}

bool mp_is_iterator(PyTypeObject *type) { return row_of(type) >= 0; }

/* It has dropped what it went over, and tells that of an empty one that it was not. */
static bool has_ended(PyTypeObject *type, PyObject *args, bool state)
{
    if (!strcmp(type->tp_name, "itertools.chain")) return !state; /* one that has not always has a state */
    return !strcmp(type->tp_name, "itertools.islice") && PyTuple_GET_SIZE(args) == 2;
}

PyObject *mp_iterator_parts(PyObject *iterator)
{
    PyObject *parts = PyObject_CallMethod(iterator, "__reduce__", NULL), *whole = NULL;
    if (parts && PyTuple_Check(parts) && PyTuple_GET_SIZE(parts) >= 2 && PyTuple_Check(PyTuple_GET_ITEM(parts, 1))) {
        bool state = PyTuple_GET_SIZE(parts) > 2;
        bool ended = has_ended(Py_TYPE(iterator), PyTuple_GET_ITEM(parts, 1), state);
        whole = PyTuple_Pack(3, PyTuple_GET_ITEM(parts, 1), state ? PyTuple_GET_ITEM(parts, 2) : Py_None,
                             ended ? Py_True : Py_False);
    }
    Py_XDECREF(parts);
    return whole;
}

/* What iter() of it gives is the iterator that it holds, whatever that one's class would say: the program has asked it once. */
typedef struct {
    PyObject_HEAD PyObject *iterator; /* owned */
} handed_over;

static PyObject *hand_over(PyObject *self) { return Py_NewRef(((handed_over *)self)->iterator); }

static void drop_handed_over(PyObject *self)
{
    Py_DECREF(((handed_over *)self)->iterator);
    PyObject_Free(self);
}

static PyTypeObject handed_over_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "magpy.handed_over",
    .tp_basicsize = sizeof(handed_over),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_iter = hand_over,
    .tp_dealloc = drop_handed_over,
};

static PyObject *argument_for(PyObject *arg, bool over)
{
    if (!over || !PyIter_Check(arg)) return Py_NewRef(arg);
    handed_over *made = PyType_Ready(&handed_over_type) == 0 ? PyObject_New(handed_over, &handed_over_type) : NULL;
    if (made) made->iterator = Py_NewRef(arg);
    return (PyObject *)made;
}

PyObject *mp_iterator_make(PyTypeObject *type, PyObject *args, bool ended)
{
    if (type == &PyRangeIter_Type || type == &PyLongRangeIter_Type) return PyObject_GetIter(PyTuple_GET_ITEM(args, 0));
    int over = iterators[row_of(type)].over;
    PyObject *arguments = PyTuple_New(PyTuple_GET_SIZE(args)), *made, *more;
    for (Py_ssize_t i = 0; arguments && i < PyTuple_GET_SIZE(args); i++) {
        PyObject *argument = argument_for(PyTuple_GET_ITEM(args, i), over != GOES_OVER_NONE && i >= over);
        if (argument)
            PyTuple_SET_ITEM(arguments, i, argument);
        else
            Py_CLEAR(arguments);
    }
    made = arguments ? PyObject_Call((PyObject *)type, arguments, NULL) : NULL;
    if (made && ended && (more = type->tp_iternext(made))) Py_DECREF(more);
    Py_XDECREF(arguments);
    return made;
}
