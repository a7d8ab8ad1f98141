/* What other rooms need of CPython 3.11's insides: versions, and where an instance keeps its attributes. */
#define Py_BUILD_CORE 1
#include "observe/observe.h"

#include <internal/pycore_dict.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_gc.h>
#include <internal/pycore_object.h>
#include <string.h>

/* -- Versions --------------------------------------------------------------------------------------------------------- */

uint64_t mp_dict_version(PyObject *dict) { return ((PyDictObject *)dict)->ma_version_tag; }
const uint64_t *mp_dict_version_address(PyObject *dict) { return &((PyDictObject *)dict)->ma_version_tag; }

static bool has_version(PyTypeObject *type)
{ return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) && type->tp_version_tag != 0; }

uint32_t mp_type_version(PyTypeObject *type)
{
    if (!has_version(type)) { /* a lookup assigns one, if there are any left */
        PyObject *error, *value, *trace;
        PyErr_Fetch(&error, &value, &trace);
        PyObject *name = PyUnicode_InternFromString("__init__");
        if (name) _PyType_Lookup(type, name);
        Py_XDECREF(name);
        PyErr_Clear();
        PyErr_Restore(error, value, trace);
    }
    return has_version(type) ? type->tp_version_tag : 0;
}

/* The interpreter counts function versions up from 1 when it specialises a call, by a function it does not export; ours count down
** from the top and so are never one of its. Either way 0 is put back when code, defaults or annotations are replaced. */
uint32_t mp_function_version(PyObject *func)
{
    static uint32_t next = UINT32_MAX;
    PyFunctionObject *function = (PyFunctionObject *)func;
    if (function->func_version == 0 && next > UINT32_MAX / 2) function->func_version = next--;
    return function->func_version;
}

const uint32_t *mp_function_version_address(PyObject *func) { return &((PyFunctionObject *)func)->func_version; }

/* -- Sequence iterators -------------------------------------------------------------------------------------------------- */

mp_sequence_iterator *mp_sequence_iterator_of(PyObject *object)
{
    static PyTypeObject *ascii; /* a static type of the interpreter's that it does not export */
    if (!ascii) {
        PyObject *empty = PyUnicode_New(0, 0), *iterator = empty ? PyObject_GetIter(empty) : NULL;
        if (iterator) ascii = Py_TYPE(iterator);
        if (!iterator) PyErr_Clear();
        Py_XDECREF(iterator);
        Py_XDECREF(empty);
    }
    PyTypeObject *const types[] = {&PyListIter_Type,  &PyListRevIter_Type,   &PyTupleIter_Type,
                                   &PyBytesIter_Type, &PyByteArrayIter_Type, &PyUnicodeIter_Type,
                                   &PySeqIter_Type,   &PyReversed_Type,      ascii};
    PyTypeObject *type = Py_TYPE(object);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i] == type && type->tp_basicsize == sizeof(mp_sequence_iterator))
            return (mp_sequence_iterator *)object;
    return NULL;
}

PyObject *mp_sequence_iterator_new(PyTypeObject *type, PyObject *sequence, Py_ssize_t place)
{
    mp_sequence_iterator *made = PyObject_GC_New(mp_sequence_iterator, type);
    if (!made) return NULL;
    made->place = place;
    made->sequence = Py_XNewRef(sequence);
    PyObject_GC_Track(made);
    return (PyObject *)made;
}

/* -- Instances ----------------------------------------------------------------------------------------------------------- */

PyObject **mp_instance_dict_slot(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT)) return _PyObject_ManagedDictPointer(object);
    return type->tp_dictoffset ? _PyObject_GetDictPtr(object) : NULL; /* materialises managed ones only */
}

PyObject **mp_instance_value_slot(PyObject *object, PyObject *name)
{
    PyTypeObject *type = Py_TYPE(object);
    if (!PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT) || !PyUnicode_CheckExact(name)) return NULL;
    PyDictValues *values = *_PyObject_ValuesPointer(object);
    PyDictKeysObject *keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
    if (!values || !keys || !DK_IS_UNICODE(keys)) return NULL;
    const PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
    Py_ssize_t n = keys->dk_nentries;  /* at most SHARED_KEYS_MAX_SIZE */
    for (Py_ssize_t i = 0; i < n; i++) /* both are interned nearly always */
        if (entries[i].me_key == name) return &values->values[i];
    for (Py_ssize_t i = 0; i < n; i++)
        if (entries[i].me_key && PyUnicode_Compare(entries[i].me_key, name) == 0) return &values->values[i];
    return NULL;
}

/* -- Keys -------------------------------------------------------------------------------------------------------------------- */

/* Is comparing it C's business alone? */
static bool compared_by_c(PyObject *key)
{
    static PyTypeObject *const builtin[] = {&PyUnicode_Type, &PyLong_Type, &PyFloat_Type, &PyBytes_Type,
                                            &PyComplex_Type};
    PyTypeObject *type = Py_TYPE(key);
    if (type->tp_richcompare == PyBaseObject_Type.tp_richcompare) return true;
    for (size_t i = 0; i < sizeof builtin / sizeof *builtin; i++)
        if (type->tp_richcompare == builtin[i]->tp_richcompare) return true;
    if (type->tp_richcompare == _PyWeakref_RefType.tp_richcompare) { /* live ones compare what they refer to */
        PyObject *referent = PyWeakref_GET_OBJECT(key);
        return referent == Py_None || compared_by_c(referent);
    }
    if (!PyTuple_CheckExact(key)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
        if (!compared_by_c(PyTuple_GET_ITEM(key, i))) return false;
    return true;
}

/* Keys of equal hash: 1 equal, 0 not, -1 unknown. */
static int same_key(PyObject *a, PyObject *b)
{
    if (a == b) return 1;
    if (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b)) return _PyUnicode_EQ(a, b);
    if (!compared_by_c(a) || !compared_by_c(b)) return -1;
    int same = PyObject_RichCompareBool(a, b, Py_EQ);
    if (same < 0) PyErr_Clear(); /* C's comparison of such keys fails for lack of memory only */
    return same;
}

int mp_dict_find(PyObject *object, PyObject *key, Py_hash_t hash, PyObject **value)
{
    PyDictObject *dict = (PyDictObject *)object;
    PyDictKeysObject *keys = dict->ma_keys;
    bool unicode = DK_IS_UNICODE(keys);
    size_t mask = (size_t)DK_SIZE(keys) - 1, perturb = (size_t)hash, at = (size_t)hash & mask;
    int log2 = DK_LOG_SIZE(keys);
    for (;; perturb >>= 5, at = (at * 5 + perturb + 1) & mask) {
        const void *indices = keys->dk_indices;
        Py_ssize_t index = log2 < 8    ? ((const int8_t *)indices)[at]
                           : log2 < 16 ? ((const int16_t *)indices)[at]
                           : log2 < 32 ? ((const int32_t *)indices)[at]
                                       : (Py_ssize_t)((const int64_t *)indices)[at];
        if (index == DKIX_EMPTY) return 0;
        if (index < 0) continue; /* deleted */
        PyObject *other = unicode ? DK_UNICODE_ENTRIES(keys)[index].me_key : DK_ENTRIES(keys)[index].me_key;
        Py_hash_t other_hash = unicode ? ((PyASCIIObject *)other)->hash : DK_ENTRIES(keys)[index].me_hash;
        int same = other == key ? 1 : other_hash == hash ? same_key(other, key) : 0;
        if (same < 0) return -1;
        if (!same) continue;
        *value = dict->ma_values ? dict->ma_values->values[index]
                 : unicode       ? DK_UNICODE_ENTRIES(keys)[index].me_value
                                 : DK_ENTRIES(keys)[index].me_value;
        return *value != NULL; /* another instance's attribute may have a place in shared keys */
    }
}

int mp_dict_find_str(PyObject *dict, PyObject *key, PyObject **value)
{ return mp_dict_find(dict, key, PyObject_Hash(key), value); }

#define SET_LINEAR_PROBES 9 /* Objects/setobject.c */

int mp_set_find(PyObject *object, PyObject *key, Py_hash_t hash)
{
    PySetObject *set = (PySetObject *)object;
    size_t mask = (size_t)set->mask, perturb = (size_t)hash, at = (size_t)hash & mask;
    for (;; perturb >>= 5, at = (at * 5 + 1 + perturb) & mask) {
        const setentry *entry = &set->table[at];
        int probes = at + SET_LINEAR_PROBES <= mask ? SET_LINEAR_PROBES : 0;
        for (; probes >= 0; probes--, entry++) {
            if (!entry->key) return 0;
            int same = entry->key == key ? 1 : entry->hash == hash ? same_key(entry->key, key) : 0;
            if (same) return same;
        }
    }
}

/* -- Sets as they lie ----------------------------------------------------------------------------------------------------- */

enum { SLOT_FREE, SLOT_TAKEN, SLOT_REMOVED };

typedef struct {
    Py_ssize_t mask, finger;
    char slots[]; /* [mask + 1] */
} set_layout;

static char slot_state(const setentry *entry)
{ return !entry->key ? SLOT_FREE : entry->key == _PySet_Dummy ? SLOT_REMOVED : SLOT_TAKEN; }

PyObject *mp_set_layout(PyObject *object)
{
    const PySetObject *set = (PySetObject *)object;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizeof(set_layout) + set->mask + 1);
    if (!bytes) return NULL;
    set_layout *layout = (set_layout *)PyBytes_AS_STRING(bytes);
    *layout = (set_layout){set->mask, set->finger};
    for (Py_ssize_t i = 0; i <= set->mask; i++) layout->slots[i] = slot_state(&set->table[i]);
    return bytes;
}

bool mp_set_lies(PyObject *object, PyObject *bytes)
{
    const PySetObject *set = (PySetObject *)object;
    const set_layout *layout = (set_layout *)PyBytes_AS_STRING(bytes);
    if (set->mask != layout->mask || set->finger != layout->finger) return false;
    for (Py_ssize_t i = 0; i <= set->mask; i++)
        if (slot_state(&set->table[i]) != layout->slots[i]) return false;
    return true;
}

int mp_set_lay(PyObject *object, PyObject *bytes, PyObject *const *items)
{
    PySetObject *set = (PySetObject *)object;
    const set_layout *layout = (set_layout *)PyBytes_AS_STRING(bytes);
    if (layout->mask + 1 > PySet_MINSIZE) { /* freed by the set, as its own tables are */
        setentry *table = PyMem_Calloc((size_t)layout->mask + 1, sizeof *table);
        if (!table) return PyErr_NoMemory(), -1;
        set->table = table;
    }
    set->mask = layout->mask;
    set->finger = layout->finger;
    for (Py_ssize_t i = 0; i <= layout->mask; i++) {
        setentry *entry = &set->table[i];
        if (layout->slots[i] == SLOT_FREE) continue;
        set->fill++;
        if (layout->slots[i] == SLOT_REMOVED) {
            *entry = (setentry){_PySet_Dummy, -1};
            continue;
        }
        *entry = (setentry){Py_NewRef(*items), PyObject_Hash(*items)}; /* a plain value's: C's own, kept or cheap */
        items++;
        set->used++;
    }
    return 0;
}

void mp_set_swap(PyObject *first, PyObject *second)
{
    PySetObject *a = (PySetObject *)first, *b = (PySetObject *)second, kept = *a;
    bool small = a->table == a->smalltable, other_small = b->table == b->smalltable;
    a->fill = b->fill, a->used = b->used, a->mask = b->mask, a->finger = b->finger;
    b->fill = kept.fill, b->used = kept.used, b->mask = kept.mask, b->finger = kept.finger;
    memcpy(a->smalltable, b->smalltable, sizeof a->smalltable);
    memcpy(b->smalltable, kept.smalltable, sizeof b->smalltable);
    a->table = other_small ? a->smalltable : b->table;
    b->table = small ? b->smalltable : kept.table;
}

bool mp_generator_suspended(PyObject *object)
{
    if (!PyGen_CheckExact(object) && !PyCoro_CheckExact(object) && !PyAsyncGen_CheckExact(object)) return false;
    return ((PyGenObject *)object)->gi_frame_state == FRAME_SUSPENDED;
}

void mp_never_finalize(PyObject *object)
{
    if (!Py_TYPE(object)->tp_finalize) return;
    if (PyObject_IS_GC(object))
        _PyGC_SET_FINALIZED(object);
    else
        Py_INCREF(object); /* nothing tells the interpreter that it has been done: it is never let go */
}
