/* Reads and writes of containers: subscripts, iteration, membership, truth, and how far C code may look into an operand.
**
** Where a container's class has the method in Python, only that it has it is read: the method's frame shows the rest. Everything
** else goes by the C base: list, tuple, dict, set, frozenset, deque. A dict key that only user code could compare is looked for by
** identity, and if that does not decide, the trace ends.
*/
#include "trace/arrays.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include "observe/observe.h"

#include <math.h>

/* -- C types that the reads know ---------------------------------------------------------------------------------------- */

/* A type of an extension module, looked up once. Owned for the life of the process, like the types of the interpreter itself. */
typedef struct {
    const char *module, *name;
    bool import;        /* false: only if the module is loaded */
    PyTypeObject *type; /* owned, or NULL */
} mp_known_type;

enum { DEQUE, DEFAULTDICT, NDARRAY, THREAD_LOCAL, PARTIAL, LRU_CACHE, NAMESPACE, KNOWN_TYPES };
static mp_known_type known_types[KNOWN_TYPES] = {
    [DEQUE] = {"collections", "deque", true},         [DEFAULTDICT] = {"collections", "defaultdict", true},
    [NDARRAY] = {"numpy", "ndarray", false},          [THREAD_LOCAL] = {"_thread", "_local", true},
    [PARTIAL] = {"functools", "partial", true},       [LRU_CACHE] = {"functools", "_lru_cache_wrapper", true},
    [NAMESPACE] = {"types", "SimpleNamespace", true},
};

/* C types whose values never change: that it is the same object is all there is to read. */
static mp_known_type immutable_types[] = {
    {"re", "Pattern", true},          {"datetime", "datetime", false},    {"datetime", "date", false},
    {"datetime", "timedelta", false}, {"decimal", "Decimal", false},      {"operator", "attrgetter", true},
    {"operator", "itemgetter", true}, {"operator", "methodcaller", true},
};

static PyTypeObject *known_type(mp_known_type *known)
{
    if (known->type) return known->type;
    mp_kept kept = mp_keep();
    PyObject *module = NULL, *found = NULL, *name = PyUnicode_FromString(known->module);
    if (name) module = PyImport_GetModule(name);
    if (!module && name && known->import && !PyErr_Occurred()) module = PyImport_Import(name);
    if (module && PyModule_Check(module)) {
        found = PyDict_GetItemString(PyModule_GetDict(module), known->name);
        if (found && PyType_Check(found)) known->type = (PyTypeObject *)Py_NewRef(found);
    }
    Py_XDECREF(module);
    Py_XDECREF(name);
    mp_restore(kept);
    return known->type;
}

PyTypeObject *mp_type_deque(void) { return known_type(&known_types[DEQUE]); }
PyTypeObject *mp_type_defaultdict(void) { return known_type(&known_types[DEFAULTDICT]); }
PyTypeObject *mp_type_ndarray(void) { return known_type(&known_types[NDARRAY]); }
PyTypeObject *mp_type_thread_local(void) { return known_type(&known_types[THREAD_LOCAL]); }

static bool is_a(PyObject *object, PyTypeObject *type) { return type && PyType_IsSubtype(Py_TYPE(object), type); }
static bool is_deque(PyObject *object) { return is_a(object, mp_type_deque()); }
static bool is_ndarray(PyObject *object) { return is_a(object, mp_type_ndarray()); }
static bool is_sequence(PyObject *object) { return PyList_Check(object) || PyTuple_Check(object) || is_deque(object); }
static bool is_proxy(PyObject *object) { return Py_IS_TYPE(object, &PyDictProxy_Type); }

bool mp_is_container(PyObject *object)
{
    return PyList_Check(object) || PyTuple_Check(object) || PyDict_Check(object) || PyAnySet_Check(object) ||
           is_deque(object);
}

/* An instance of a subclass of these carries an immutable value; it is read when the object is found (BASE_VALUE). */
static bool has_base_value(PyObject *object)
{
    return PyLong_Check(object) || PyUnicode_Check(object) || PyFloat_Check(object) || PyBytes_Check(object) ||
           PyComplex_Check(object);
}

/* -- Keys ---------------------------------------------------------------------------------------------------------------- */

bool mp_key_plain(PyObject *key)
{
    if (mp_is_scalar(key)) return true;
    if (!PyTuple_CheckExact(key)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
        if (!mp_key_plain(PyTuple_GET_ITEM(key, i))) return false;
    return true;
}

static bool python_method(PyTypeObject *type, const char *name)
{
    if (!mp_type_mutable(type)) return false;
    mp_kept kept = mp_keep();
    PyObject *text = mp_intern(name);
    PyObject *found = text ? mp_raw_type_lookup(type, text) : NULL;
    Py_XDECREF(text);
    mp_restore(kept);
    return found && found != Py_None && !Py_IS_TYPE(found, &PyWrapperDescr_Type);
}

bool mp_key_safe(PyObject *key)
{
    if (mp_is_scalar(key)) return true;
    if (PyTuple_Check(key)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
            if (!mp_key_safe(PyTuple_GET_ITEM(key, i))) return false;
    } else if (PyFrozenSet_Check(key)) {
        Py_ssize_t at = 0;
        PyObject *item;
        Py_hash_t hash;
        while (_PySet_NextEntry(key, &at, &item, &hash))
            if (!mp_key_safe(item)) return false;
    } else if (PyWeakref_Check(key)) {
        PyObject *referent = PyWeakref_GET_OBJECT(key);
        if (PyWeakref_CheckProxy(key) || (referent != Py_None && !mp_key_safe(referent))) return false;
    } else if (is_a(key, known_type(&known_types[PARTIAL])) || is_proxy(key))
        return !is_proxy(key);
    PyTypeObject *type = Py_TYPE(key);
    return !python_method(type, "__eq__") && !python_method(type, "__hash__");
}

/* A tensor's hash is its address: no other key has it but that number. */
static bool is_address_of(PyObject *number, PyObject *tensor)
{
    mp_kept kept = mp_keep();
    bool same = PyLong_Check(number) && mp_is_exact_tensor(tensor) && PyLong_AsVoidPtr(number) == (void *)tensor;
    mp_restore(kept);
    return same;
}

static bool compares_by_identity(PyObject *key)
{
    if (mp_is_exact_tensor(key)) return true;
    return Py_TYPE(key)->tp_richcompare == PyBaseObject_Type.tp_richcompare;
}

PyObject *mp_raw_dict_item(PyObject *dict, PyObject *key, bool *known)
{
    *known = true;
    bool all_safe = true, key_safe = mp_key_safe(key), identical = key_safe || compares_by_identity(key);
    Py_ssize_t at = 0;
    PyObject *other, *value, *found = NULL;
    if (key_safe && _PyDict_HasOnlyStringKeys(dict)) goto c_lookup;
    while (PyDict_Next(dict, &at, &other, &value)) {
        if (other == key)
            found = value;
        else if (all_safe && ((!mp_key_safe(other) && !compares_by_identity(other)) || is_address_of(other, key)))
            all_safe = false;
    }
    if (found) return found;
    if (!identical || !all_safe) {
        *known = PyDict_GET_SIZE(dict) == 0;
        return NULL;
    }
    if (!key_safe)
        return NULL; /* equal to nothing but itself, as an enum member is whose __hash__ is written in Python */
c_lookup:;
    mp_kept kept = mp_keep();
    found = PyDict_GetItemWithError(
        dict, key); /* an unhashable key raises here as it will for the program: nothing is read */
    mp_restore(kept);
    return found;
}

/* -- Raw contents ----------------------------------------------------------------------------------------------------------- */

Py_ssize_t mp_raw_length(PyObject *container)
{
    if (PyDict_Check(container)) return PyDict_GET_SIZE(container);
    if (PyAnySet_Check(container)) return PySet_GET_SIZE(container);
    return Py_SIZE(container); /* list, tuple, deque */
}

PyObject *mp_raw_item(PyObject *sequence, Py_ssize_t index)
{
    Py_ssize_t n = Py_SIZE(sequence);
    if (index < 0) index += n;
    if (index < 0 || index >= n) return NULL;
    if (PyList_Check(sequence)) return Py_NewRef(PyList_GET_ITEM(sequence, index));
    if (PyTuple_Check(sequence)) return Py_NewRef(PyTuple_GET_ITEM(sequence, index));
    mp_kept kept = mp_keep();
    PyObject *item = mp_type_deque()->tp_as_sequence->sq_item(sequence, index);
    mp_restore(kept);
    return item;
}

static void no_memory(mp_recorder *rec)
{
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "reading a container");
}

static void read_length(mp_recorder *rec, PyObject *container)
{
    mp_kept kept = mp_keep();
    PyObject *n = PyLong_FromSsize_t(mp_raw_length(container));
    if (n)
        mp_rec_read(rec, container, MP_READ_LEN, NULL, n);
    else
        no_memory(rec);
    Py_XDECREF(n);
    mp_restore(kept);
}

static void read_item(mp_recorder *rec, PyObject *sequence, Py_ssize_t index)
{
    mp_kept kept = mp_keep();
    PyObject *key = PyLong_FromSsize_t(index), *item = mp_raw_item(sequence, index);
    if (key)
        mp_rec_read(rec, sequence, MP_READ_ITEM, key, item);
    else
        no_memory(rec);
    Py_XDECREF(key);
    Py_XDECREF(item);
    mp_restore(kept);
}

static void read_key_at(mp_recorder *rec, PyObject *dict, Py_ssize_t index, PyObject *key)
{
    mp_kept kept = mp_keep();
    PyObject *at = PyLong_FromSsize_t(index);
    if (at)
        mp_rec_read(rec, dict, MP_READ_KEY_AT, at, key);
    else
        no_memory(rec);
    Py_XDECREF(at);
    mp_restore(kept);
}

/* Keys in order, also of an OrderedDict, whose order is not its dict's. Owned list, or NULL without memory. */
static PyObject *ordered_keys(PyObject *dict)
{
    if (!PyODict_Check(dict)) return PyDict_Keys(dict);
    PyObject *keys = PyList_New(0), *iterator = PyODict_Type.tp_iter(dict), *key;
    while (keys && iterator && (key = Py_TYPE(iterator)->tp_iternext(iterator))) {
        if (PyList_Append(keys, key) < 0) Py_CLEAR(keys);
        Py_DECREF(key);
    }
    if (!iterator || PyErr_Occurred()) Py_CLEAR(keys);
    Py_XDECREF(iterator);
    return keys;
}

/* A key with an __eq__ or __hash__ of the user's meets the other keys: which they are, and in which order, is read. */
static void read_user_keys(mp_recorder *rec, PyObject *dict, PyObject *key)
{
    if (mp_key_plain(key) || mp_key_safe(key) || mp_rec_find(rec, dict) == MP_NO_OBJ) return;
    mp_kept kept = mp_keep();
    PyObject *keys = ordered_keys(dict);
    if (!keys) no_memory(rec);
    for (Py_ssize_t i = 0; keys && i < PyList_GET_SIZE(keys); i++) read_key_at(rec, dict, i, PyList_GET_ITEM(keys, i));
    Py_XDECREF(keys);
    mp_restore(kept);
}

static void read_set_items(mp_recorder *rec, PyObject *set)
{
    mp_kept kept = mp_keep();
    PyObject *items = PyTuple_New(PySet_GET_SIZE(set)), *item;
    Py_ssize_t at = 0, i = 0;
    Py_hash_t hash;
    while (items && _PySet_NextEntry(set, &at, &item, &hash)) PyTuple_SET_ITEM(items, i++, Py_NewRef(item));
    PyObject *layout = items ? mp_set_layout(set) : NULL, *held = layout ? PyTuple_Pack(2, items, layout) : NULL;
    if (held)
        mp_rec_read(rec, set, MP_READ_SET_ITEMS, NULL, held);
    else
        no_memory(rec);
    Py_XDECREF(held);
    Py_XDECREF(layout);
    Py_XDECREF(items);
    mp_restore(kept);
}

/* -- Whole and deep ------------------------------------------------------------------------------------------------------- */

/* What the call itself put in is at the end and known to the recorder, so that the others stand where they stood before. */
static void read_dict(mp_recorder *rec, PyObject *dict, bool values)
{
    read_length(rec, dict);
    mp_kept kept = mp_keep();
    PyObject *keys = ordered_keys(dict);
    if (!keys) no_memory(rec);
    for (Py_ssize_t i = 0; keys && i < PyList_GET_SIZE(keys); i++) {
        PyObject *key = PyList_GET_ITEM(keys, i);
        bool known;
        read_key_at(rec, dict, i, key);
        if (values) mp_rec_read(rec, dict, MP_READ_KEY, key, mp_raw_dict_item(dict, key, &known));
    }
    Py_XDECREF(keys);
    mp_restore(kept);
}

/* How many items a deque keeps: what is put into it, and copies of it, follow from that. */
static void read_maxlen(mp_recorder *rec, PyObject *deque)
{
    PyTypeObject *type = mp_type_deque();
    mp_kept kept = mp_keep();
    PyObject *descr = PyDict_GetItemString(type->tp_dict, "maxlen");
    PyObject *maxlen = descr ? Py_TYPE(descr)->tp_descr_get(descr, deque, (PyObject *)type) : NULL;
    mp_restore(kept);
    if (maxlen) mp_rec_read(rec, deque, MP_READ_SLOT, descr, maxlen);
    Py_XDECREF(maxlen);
}

void mp_rec_whole(mp_recorder *rec, PyObject *container)
{
    if (mp_rec_find(rec, container) == MP_NO_OBJ || mp_is_tensor(container)) return;
    if (is_sequence(container)) {
        if (is_deque(container)) read_maxlen(rec, container);
        read_length(rec, container);
        for (Py_ssize_t i = 0; i < Py_SIZE(container); i++) read_item(rec, container, i);
    } else if (PyDict_Check(container))
        read_dict(rec, container, true);
    else if (PyAnySet_Check(container))
        read_set_items(rec, container);
    else if (is_ndarray(container))
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a numpy array from outside the call");
    else if (is_proxy(container))
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a mappingproxy from outside the call");
}

void mp_rec_keys(mp_recorder *rec, PyObject *dict)
{
    if (mp_rec_find(rec, dict) != MP_NO_OBJ) read_dict(rec, dict, false);
}

#define MAX_DEPTH 32

/* Objects being looked into, innermost first: a cycle ends where it closes. */
typedef struct mp_chain {
    const struct mp_chain *outer;
    PyObject *object;
    int depth;
} mp_chain;

static void deep(mp_recorder *rec, PyObject *object, const mp_chain *outer);

static void deep_items(mp_recorder *rec, PyObject *object, const mp_chain *here)
{
    if (is_sequence(object)) {
        for (Py_ssize_t i = 0; i < Py_SIZE(object); i++) {
            PyObject *item = mp_raw_item(object, i);
            if (item) deep(rec, item, here);
            Py_XDECREF(item);
        }
    } else if (PyDict_Check(object)) {
        Py_ssize_t at = 0;
        PyObject *key, *value;
        while (PyDict_Next(object, &at, &key, &value)) {
            deep(rec, key, here);
            deep(rec, value, here);
        }
    } else if (PyAnySet_Check(object)) {
        Py_ssize_t at = 0;
        PyObject *item;
        Py_hash_t hash;
        while (_PySet_NextEntry(object, &at, &item, &hash)) deep(rec, item, here);
    }
}

/* A C member or getset of an object, and what it holds. */
static void deep_part(mp_recorder *rec, PyObject *object, PyTypeObject *base, PyObject *name, const mp_chain *here,
                      bool containers_alone)
{
    PyObject *descr = PyDict_GetItemWithError(base->tp_dict, name);
    PyObject *part = descr ? Py_TYPE(descr)->tp_descr_get(descr, object, (PyObject *)base) : NULL;
    if (mp_rec_ensure(rec, object) != MP_NO_OBJ) mp_rec_read(rec, object, MP_READ_MEMBER, name, part);
    if (part && (!containers_alone || mp_is_container(part))) deep(rec, part, here);
    PyErr_Clear(); /* unset */
    Py_XDECREF(part);
}

static void deep_part_named(mp_recorder *rec, PyObject *object, PyTypeObject *base, const char *name,
                            const mp_chain *here)
{
    PyObject *key = mp_intern(name);
    if (key)
        deep_part(rec, object, base, key, here, true);
    else
        no_memory(rec);
    Py_XDECREF(key);
}

/* What str(), repr() and == look at in an exception: its arguments and what its C classes keep besides. */
static void deep_exception(mp_recorder *rec, PyObject *object, const mp_chain *here)
{
    PyObject *mro = Py_TYPE(object)->tp_mro, *name, *descr;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        if (mp_type_mutable(type) || !PyType_IsSubtype(type, (PyTypeObject *)PyExc_BaseException)) continue;
        for (Py_ssize_t at = 0; PyDict_Next(type->tp_dict, &at, &name, &descr);)
            if (Py_IS_TYPE(descr, &PyMemberDescr_Type) && PyUnicode_READ_CHAR(name, 0) != '_')
                deep_part(rec, object, type, name, here, false);
    }
    PyObject *args = mp_intern("args");
    if (args) deep_part(rec, object, (PyTypeObject *)PyExc_BaseException, args, here, false);
    Py_XDECREF(args);
}

/* Objects of C types that call, show or compare what they hold: bound methods, partials, exceptions, namespaces, cells, references. */
static bool deep_holder(mp_recorder *rec, PyObject *object, const mp_chain *here)
{
    static const char *const of_method[] = {"__func__", "__self__", NULL}, *const of_partial[] = {"func", "args",
                                                                                                  "keywords", NULL};
    bool partial = is_a(object, known_type(&known_types[PARTIAL])), method = PyMethod_Check(object);
    bool namespace = is_a(object, known_type(&known_types[NAMESPACE]));
    bool bound = PyCFunction_Check(object) || Py_IS_TYPE(object, &_PyMethodWrapper_Type);
    if (!partial && !method && !namespace && !bound && !PyExceptionInstance_Check(object) && !PyCell_Check(object) &&
        !PyWeakref_CheckRefExact(object))
        return false;
    mp_rec_type(rec, object);
    mp_kept kept = mp_keep();
    bool outside = mp_rec_ensure(rec, object) != MP_NO_OBJ;
    if (bound) {
        PyObject *self = mp_raw_member(Py_TYPE(object), "__self__", object), *name = mp_intern("__self__");
        bool fixed = !self || PyModule_Check(self) || PyType_Check(self);
        if (outside && name && !fixed) mp_rec_read(rec, object, MP_READ_MEMBER, name, self);
        Py_XDECREF(name);
        Py_XDECREF(self);
    } else if (PyWeakref_CheckRefExact(object)) {
        PyObject *referent = PyWeakref_GET_OBJECT(object);
        if (outside) mp_rec_read(rec, object, MP_READ_DEREF, NULL, referent == Py_None ? NULL : referent);
        if (referent != Py_None) deep(rec, referent, here);
    } else if (partial || method) {
        PyTypeObject *base = partial ? known_types[PARTIAL].type : &PyMethod_Type;
        for (const char *const *name = partial ? of_partial : of_method; *name; name++)
            deep_part_named(rec, object, base, *name, here);
    } else if (namespace) {
        PyObject *dict = mp_raw_dict(object);
        if (dict && outside) mp_rec_read(rec, object, MP_READ_DICT, NULL, dict);
        if (dict) deep(rec, dict, here);
    } else if (PyCell_Check(object)) {
        PyObject *held = PyCell_GET(object);
        if (outside) mp_rec_read(rec, object, MP_READ_CELL, NULL, held);
        if (held) deep(rec, held, here);
    } else
        deep_exception(rec, object, here);
    mp_restore(kept);
    return true;
}

/* Containers compare what they hold by identity first: a NaN there is equal to itself and to no other. */
static bool is_nan(PyObject *object) { return PyFloat_CheckExact(object) && isnan(PyFloat_AS_DOUBLE(object)); }

static void deep(mp_recorder *rec, PyObject *object, const mp_chain *outer)
{
    if (mp_rec_abandoned(rec)) return;
    if (outer && is_nan(object)) mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a NaN in a container that is compared");
    if (mp_is_scalar(object)) {
        mp_rec_decimal(rec, object);
        return;
    }
    if (mp_is_tensor(object)) {
        mp_rec_touch(rec, object);
        return;
    }
    if (mp_is_array(object)) {
        mp_array_settle(rec, object, false);
        return;
    }
    for (const mp_chain *at = outer; at; at = at->outer)
        if (at->object == object) return;
    mp_chain here = {outer, object, outer ? outer->depth + 1 : 0};
    if (here.depth > MAX_DEPTH) {
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a structure nested more than %d deep", MAX_DEPTH);
        return;
    }
    if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        deep(rec, slice->start, &here);
        deep(rec, slice->stop, &here);
        deep(rec, slice->step, &here);
    } else if (mp_is_container(object) || is_proxy(object) || is_ndarray(object)) {
        mp_rec_type(rec, object);
        mp_rec_whole(rec, object);
        deep_items(rec, object, &here);
        if (is_a(object, mp_type_defaultdict()))
            deep_part_named(rec, object, mp_type_defaultdict(), "default_factory", &here);
    } else if (!deep_holder(rec, object, &here)) {
        mp_rec_type(rec, object);
        mp_rec_foreign(rec, object);
    }
}

void mp_rec_deep(mp_recorder *rec, PyObject *object) { deep(rec, object, NULL); }

/* -- Operands ---------------------------------------------------------------------------------------------------------------- */

static PyTypeObject *const plain_c_types[] = {
    /* their contents are read by kinds of their own, or are fixed */
    &PyBaseObject_Type,       &PyLong_Type,         &PyFloat_Type,          &PyUnicode_Type,      &PyBytes_Type,
    &PyComplex_Type,          &PyList_Type,         &PyTuple_Type,          &PyDict_Type,         &PySet_Type,
    &PyFrozenSet_Type,        &PyODict_Type,        &PyFunction_Type,       &PyMethod_Type,       &PyCFunction_Type,
    &PyMethodDescr_Type,      &PyWrapperDescr_Type, &_PyMethodWrapper_Type, &PyGetSetDescr_Type,  &PyMemberDescr_Type,
    &PyClassMethodDescr_Type, &PyProperty_Type,     &PyStaticMethod_Type,   &PyClassMethod_Type,  &PyType_Type,
    &PyModule_Type,           &_PyWeakref_RefType,  &PyCell_Type,           &PyCode_Type,         &PyGen_Type,
    &PyDictProxy_Type,        &PySuper_Type,        &PySlice_Type,          &Py_GenericAliasType, &PyFrame_Type,
    &PyTraceBack_Type,        &PyContextVar_Type,
};

static bool contents_known(PyTypeObject *type)
{
    for (size_t i = 0; i < sizeof plain_c_types / sizeof *plain_c_types; i++)
        if (plain_c_types[i] == type) return true;
    for (size_t i = 0; i < KNOWN_TYPES; i++)
        if (known_type(&known_types[i]) == type) return true;
    if (PyType_IsSubtype(type, (PyTypeObject *)PyExc_BaseException)) return true;
    return strncmp(type->tp_name, "torch", 5) == 0 || strncmp(type->tp_name, "numpy", 5) == 0 ||
           strcmp(type->tp_name, "types.UnionType") == 0;
}

void mp_rec_foreign(mp_recorder *rec, PyObject *object)
{
    if (mp_rec_find(rec, object) == MP_NO_OBJ || mp_is_tensor(object)) return;
    PyObject *mro = Py_TYPE(object)->tp_mro;
    for (Py_ssize_t i = 0; mro && i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        if (mp_type_mutable(type)) continue;
        if (contents_known(type)) return;
        for (size_t k = 0; k < sizeof immutable_types / sizeof *immutable_types; k++)
            if (known_type(&immutable_types[k]) == type) {
                mp_rec_identity(rec, object);
                return;
            }
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "C code looks into a %s", type->tp_name);
        return;
    }
}

void mp_rec_decimal(mp_recorder *rec, PyObject *value)
{
    if (!mp_is_decimal(value) || mp_rec_abandoned(rec)) return;
    mp_kept kept = mp_keep();
    PyObject *none = PyTuple_New(0), *function = mp_import("magpy.effects", "decimal_context");
    PyObject *context = function && none ? PyObject_Call(function, none, NULL) : NULL;
    if (context && mp_rec_pin(rec, function, "decimal_context") != MP_NO_OBJ)
        mp_rec_read(rec, function, MP_READ_STATE_CALL, none, context);
    else
        no_memory(rec);
    Py_XDECREF(none);
    Py_XDECREF(function);
    Py_XDECREF(context);
    mp_restore(kept);
}

void mp_rec_operand(mp_recorder *rec, PyObject *object, bool is_deep)
{
    if (mp_is_scalar(object)) {
        mp_rec_decimal(rec, object);
        return;
    }
    if (mp_is_tensor(object)) {
        mp_rec_touch(rec, object);
        return;
    }
    if (mp_is_array(object)) {
        mp_array_settle(rec, object, false);
        return;
    }
    mp_rec_type(rec, object);
    bool container = mp_is_container(object) || is_proxy(object) || is_ndarray(object);
    if (!container) {
        if (is_deep)
            mp_rec_deep(rec, object);
        else
            mp_rec_foreign(rec, object);
    } else if (is_deep)
        mp_rec_deep(rec, object);
    else
        mp_rec_whole(rec, object);
}

/* Is an instance of this type true whatever is in it? */
static bool always_true(PyTypeObject *type)
{
    return !(type->tp_as_number && type->tp_as_number->nb_bool) &&
           !(type->tp_as_mapping && type->tp_as_mapping->mp_length) &&
           !(type->tp_as_sequence && type->tp_as_sequence->sq_length);
}

void mp_rec_truth(mp_recorder *rec, PyObject *object)
{
    if (mp_is_scalar(object) || mp_is_tensor(object)) return;
    if (mp_is_array(object)) {
        mp_array_settle(rec, object, false);
        return;
    }
    mp_rec_type(rec, object);
    if (!mp_type_mutable(Py_TYPE(object)) && always_true(Py_TYPE(object))) return;
    if (!mp_is_container(object)) {
        if (is_ndarray(object) || is_proxy(object))
            mp_rec_whole(rec, object);
        else
            mp_rec_foreign(rec, object);
    } else if (mp_rec_ensure(rec, object) != MP_NO_OBJ)
        read_length(rec, object);
}

/* -- Subscripts ---------------------------------------------------------------------------------------------------------------- */

static void type_attr_named(mp_recorder *rec, PyTypeObject *type, const char *name)
{
    mp_kept kept = mp_keep();
    PyObject *text = mp_intern(name);
    if (text)
        mp_rec_type_attr(rec, type, text);
    else
        no_memory(rec);
    Py_XDECREF(text);
    mp_restore(kept);
}

/* Is `method` written in Python in the object's class? Then that is what is read, and its frame shows the rest. */
static bool python_handles(mp_recorder *rec, PyObject *object, const char *method)
{
    if (!mp_type_python(Py_TYPE(object), method)) return false;
    type_attr_named(rec, Py_TYPE(object), method);
    return true;
}

/* Read dict item `key` as the program is about to; false if only user code could tell what it is. *value borrowed or NULL. */
static bool read_dict_key(mp_recorder *rec, PyObject *dict, PyObject *key, mp_read_kind kind, PyObject **value)
{
    bool known;
    read_user_keys(rec, dict, key);
    *value = mp_raw_dict_item(dict, key, &known);
    if (!known) {
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a dict key whose class %s has its own __eq__",
                       Py_TYPE(key)->tp_name);
        return false;
    }
    if (kind == MP_READ_HAS)
        mp_rec_read(rec, dict, kind, key, *value ? Py_True : Py_False);
    else
        mp_rec_read(rec, dict, kind, key, *value);
    return true;
}

static void missing_key(mp_recorder *rec, PyObject *dict)
{
    PyTypeObject *type = mp_type_defaultdict();
    if (mp_type_mutable(Py_TYPE(dict))) {
        type_attr_named(rec, Py_TYPE(dict), "__missing__");
        if (mp_type_python(Py_TYPE(dict), "__missing__")) return;
    }
    if (!is_a(dict, type)) return;
    mp_kept kept = mp_keep();
    PyObject *descr = PyDict_GetItemString(type->tp_dict, "default_factory");
    PyObject *factory = descr ? Py_TYPE(descr)->tp_descr_get(descr, dict, (PyObject *)type) : NULL;
    mp_restore(kept);
    if (descr) mp_rec_read(rec, dict, MP_READ_SLOT, descr, factory);
    if (factory && factory != Py_None) mp_rec_own(rec, dict); /* the factory's object is about to be stored */
    Py_XDECREF(factory);
}

void mp_rec_raw_subscript(mp_recorder *rec, PyObject *container, PyObject *key)
{
    if (mp_rec_ensure(rec, container) == MP_NO_OBJ) {
        if (PyDict_Check(container) && mp_type_mutable(Py_TYPE(container)))
            type_attr_named(rec, Py_TYPE(container), "__missing__");
        return;
    }
    PyObject *value;
    if (PyDict_Check(container)) {
        if (read_dict_key(rec, container, key, MP_READ_KEY, &value) && !value) missing_key(rec, container);
    } else if (is_sequence(container) && (PyLong_CheckExact(key) || PyBool_Check(key))) {
        mp_kept kept = mp_keep();
        Py_ssize_t index = PyLong_AsSsize_t(key);
        bool fits = !PyErr_Occurred();
        mp_restore(kept);
        if (fits)
            read_item(rec, container, index);
        else
            read_length(rec, container); /* out of range, whatever is in it */
    } else if (mp_is_container(container) || is_ndarray(container) || is_proxy(container))
        mp_rec_whole(rec, container);
    else if (!has_base_value(container))
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "a subscript of a %s", Py_TYPE(container)->tp_name);
}

void mp_rec_subscript(mp_recorder *rec, PyObject *container, PyObject *key)
{
    if (mp_is_scalar(container) || mp_is_tensor(container)) return;
    mp_rec_type(rec, container);
    if (PyType_Check(container)) {
        type_attr_named(rec, Py_TYPE(container), "__getitem__"); /* an enum class has one */
        type_attr_named(rec, (PyTypeObject *)container, "__class_getitem__");
        return;
    }
    if (python_handles(rec, container, "__getitem__")) return;
    if (!mp_is_scalar(key) && !mp_is_tensor(key)) mp_rec_deep(rec, key);
    mp_rec_raw_subscript(rec, container, key);
}

void mp_rec_raw_store_subscript(mp_recorder *rec, PyObject *container, PyObject *key, PyObject *value)
{
    if (mp_rec_ensure(rec, container) == MP_NO_OBJ) return;
    if (PyDict_Check(container)) {
        PyObject *old;
        if (!value) {
            /* what is stored under the key later goes to the end: order changes, so the contents are committed as a whole */
            if (read_dict_key(rec, container, key, MP_READ_HAS, &old) && old) mp_rec_own(rec, container);
            return;
        }
        if (!mp_key_safe(key) && !read_dict_key(rec, container, key, MP_READ_HAS, &old)) return;
        mp_rec_write(rec, container, MP_WRITE_KEY, key, value);
    } else if (PyList_Check(container) && PyLong_CheckExact(key) && value) {
        read_length(rec, container); /* one item, one location: a negative index is counted from the end now */
        mp_kept kept = mp_keep();
        Py_ssize_t index = PyLong_AsSsize_t(key), n = PyList_GET_SIZE(container);
        bool fits = !PyErr_Occurred();
        PyErr_Clear();
        if (index < 0) index += n;
        PyObject *at = PyLong_FromSsize_t(index);
        if (!at)
            no_memory(rec);
        else if (fits && index >= 0 && index < n)
            mp_rec_write(rec, container, MP_WRITE_ITEM, at, value);
        Py_XDECREF(at);
        mp_restore(kept);
    } else if (PyTuple_Check(container) || PyAnySet_Check(container)) {
        /* raises, and changes nothing */
    } else if (mp_is_container(container)) {
        if (!mp_is_scalar(key)) mp_rec_deep(rec, key);
        if (value && PySlice_Check(key)) mp_rec_operand(rec, value, false);
        mp_rec_own(rec, container);
    } else
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "an item of a %s is stored", Py_TYPE(container)->tp_name);
}

void mp_rec_store_subscript(mp_recorder *rec, PyObject *container, PyObject *key, PyObject *value)
{
    if (mp_is_tensor(container)) return;
    if (mp_is_array_flags(container)) mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "flags of a numpy array are set");
    mp_rec_type(rec, container);
    if (python_handles(rec, container, value ? "__setitem__" : "__delitem__")) return;
    if (!mp_is_scalar(key) && !mp_is_tensor(key)) mp_rec_deep(rec, key);
    mp_rec_raw_store_subscript(rec, container, key, value);
}

/* -- Iteration and membership --------------------------------------------------------------------------------------------------- */

void mp_rec_iterate(mp_recorder *rec, PyObject *object)
{
    if (mp_is_scalar(object)) return;
    if (mp_is_tensor(object)) {
        mp_rec_touch(rec, object);
        return;
    }
    if (mp_is_array(object)) {
        mp_array_iterate(rec, object);
        return;
    }
    mp_rec_type(rec, object);
    PyTypeObject *type = Py_TYPE(object);
    if (python_handles(rec, object, "__iter__")) return;
    if (mp_rec_ensure(rec, object) == MP_NO_OBJ || PyType_Check(object) || has_base_value(object)) return;
    if (PyDict_Check(object))
        read_dict(rec, object, false);
    else if (mp_is_container(object) || is_ndarray(object) || is_proxy(object))
        mp_rec_whole(rec, object);
    else if (type->tp_iternext)
        mp_rec_abandon(rec, MP_REASON_EXTERNAL_ITERATOR, "%s", type->tp_name);
    else if (type->tp_iter || !mp_type_python(type, "__getitem__"))
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "iteration over a %s", type->tp_name);
}

void mp_rec_contains(mp_recorder *rec, PyObject *container, PyObject *key)
{
    if (mp_is_scalar(container) || mp_is_tensor(container)) return;
    if (mp_is_array(container)) mp_array_settle(rec, container, false);
    if (!mp_is_scalar(key)) mp_rec_deep(rec, key);
    if (mp_is_array(container)) return;
    mp_rec_type(rec, container);
    if (is_nan(key)) mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a NaN is looked for in a container");
    if (python_handles(rec, container, "__contains__")) return;
    if (mp_rec_ensure(rec, container) == MP_NO_OBJ || PyType_Check(container) || has_base_value(container)) return;
    PyObject *value;
    if (PyDict_Check(container))
        read_dict_key(rec, container, key, MP_READ_HAS, &value);
    else if (PyAnySet_Check(container) && mp_key_plain(key)) {
        mp_kept kept = mp_keep();
        Py_hash_t hash = PyObject_Hash(key); /* a plain key's: C's own */
        mp_restore(kept);
        int has = hash == -1 ? -1 : mp_set_find(container, key, hash);
        if (has >= 0)
            mp_rec_read(rec, container, MP_READ_SET_HAS, key, has ? Py_True : Py_False);
        else if (hash != -1)
            mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a set of elements that compare by Python code");
    } else if (mp_is_container(container) || is_ndarray(container) || is_proxy(container))
        mp_rec_deep(rec, container);
    else
        mp_rec_iterate(rec, container);
}
