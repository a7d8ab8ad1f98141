/* Containers' contents as sequences, in the order in which putting them into an empty container makes an equal one. */
#include "mock/contents.h"
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

/* Does adding the items one by one make a set with the order of `set`? */
static bool makes_order_of(PyObject *items, PyObject *set)
{
    PyObject *trial = PySet_New(NULL), *item, *wanted;
    bool same = trial != NULL;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(items); i++)
        same = PySet_Add(trial, PyTuple_GET_ITEM(items, i)) == 0;
    Py_ssize_t at = 0, wanted_at = 0;
    Py_hash_t hash;
    while (same && _PySet_NextEntry(trial, &at, &item, &hash))
        same = _PySet_NextEntry(set, &wanted_at, &wanted, &hash) && item == wanted;
    Py_XDECREF(trial);
    PyErr_Clear();
    return same;
}

/* A set's items, first those that lie in the slot of their hash, then those that another had pushed out of it: as they lie in the
** table, or the latter from the end. New reference; NULL without memory. */
typedef enum { AS_THEY_LIE, PUSHED_LAST, PUSHED_LAST_REVERSED, N_SET_ORDERS } set_order;

static PyObject *set_items(PyObject *object, set_order order)
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
            PyTuple_SET_ITEM(items, moved && order == PUSHED_LAST_REVERSED ? --last : first++, Py_NewRef(item));
        }
    }
    return items;
}

PyObject *mp_set_items(PyObject *set, bool *found)
{
    *found = true;
    for (set_order order = AS_THEY_LIE; order < N_SET_ORDERS; order++) {
        PyObject *items = set_items(set, order);
        if (!items) return NULL;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items); i++)
            if (!mp_key_plain(PyTuple_GET_ITEM(items, i))) return items;
        if (makes_order_of(items, set)) return items;
        Py_DECREF(items);
    }
    *found = false;
    return NULL;
}
