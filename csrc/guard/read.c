/* Evaluate one read: look at a location as the interpreter would, but run no user code and raise nothing. */
#include "guard/program.h"

#include "observe/observe.h"
#include "trace/lru.h"
#include "trace/ndarray.h"
#include "trace/recorder.h"
#include "trace/tensors.h"

#include <structmember.h>

/* Keep `value` (owned, may be NULL) until the end of the check and lend it. NULL stays NULL; also NULL without memory. */
static PyObject *read_lend(mp_guard_program *prog, PyObject *value)
{
    if (!value) {
        PyErr_Clear(); /* a location that raises is one that holds nothing */
        return NULL;
    }
    if (prog->n_temps == prog->room_temps) {
        uint32_t room = prog->room_temps ? prog->room_temps * 2 : 16;
        PyObject **temps = PyMem_Realloc(prog->temps, room * sizeof *temps);
        if (!temps) {
            Py_DECREF(value);
            return NULL;
        }
        prog->temps = temps;
        prog->room_temps = room;
    }
    return prog->temps[prog->n_temps++] = value;
}

PyTypeObject *guard_builtin_base(PyTypeObject *type)
{
    while ((type->tp_flags & Py_TPFLAGS_HEAPTYPE) && !(type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE) && type->tp_base)
        type = type->tp_base;
    return type;
}

/* -- Binding ----------------------------------------------------------------------------------------------------------- */

/* Tuples that no program can tell apart without looking at identities: the same items, or equal scalars. */
static bool tuple_same(PyObject *a, PyObject *b)
{
    if (!PyTuple_CheckExact(a) || !PyTuple_CheckExact(b) || PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); i++) {
        PyObject *x = PyTuple_GET_ITEM(a, i), *y = PyTuple_GET_ITEM(b, i);
        if (x != y && !(mp_is_scalar(x) && mp_scalar_same(x, y))) return false;
    }
    return true;
}

bool guard_bind(mp_guard_program *prog, mp_obj_id id, PyObject *value)
{
    const guard_object *object = &prog->objects[id];
    const mp_object *recorded = &prog->rec.objects[id];
    PyObject **current = &prog->now.current[id];
    if (Py_TYPE(value) != recorded->type) return false; /* of fixed ones too: __class__ may be assigned */
    /* An address says nothing of an object that may have died since it was noted: ask the watch. */
    if (object->fixed) return *current == value && (recorded->owned || mp_object_get(recorded) == value);
    if (*current == value) return true;
    if (prog->strict) return false;
    if (object->noalias) {
        if (*current) return tuple_same(*current, value);
        *current = value;
        return true;
    }
    if (*current) return false;
    /* The way back: a recorded object's current one must not stand for another recorded object too. */
    if (mp_map_get(&prog->now.held_static, value) != MP_MAP_NONE ||
        mp_map_get(&prog->now.held_args, value) != MP_MAP_NONE)
        return false;
    if (mp_map_put(object->group ? &prog->now.held_args : &prog->now.held_static, value, id) < 0) return false;
    *current = value;
    return true;
}

/* -- Comparing what was found ------------------------------------------------------------------------------------------ */

/* `value` (borrowed) was found, NULL: nothing there. */
static bool accept(mp_guard_program *prog, const mp_read *read, PyObject *value)
{
    switch ((mp_was)read->was) {
    case MP_WAS_OBJECT: return value && guard_bind(prog, read->obj, value);
    case MP_WAS_SCALAR: return value && (value == read->value || (!read->very && mp_scalar_same(value, read->value)));
    case MP_WAS_NUMBER:
        if (!value || Py_TYPE(value) != prog->rec.objects[read->obj].type) return false;
        prog->now.current[read->obj] = value;
        return !read->value || mp_scalar_same(value, read->value);
    case MP_WAS_MISSING: return !value;
    case MP_WAS_ANY: return true;
    default: return false;
    }
}

static bool accept_bool(const mp_read *read, int value)
{
    if (read->was == MP_WAS_ANY) return true;
    return read->was == MP_WAS_SCALAR && value >= 0 && read->value == (value ? Py_True : Py_False);
}

static bool accept_size(mp_guard_program *prog, const mp_read *read, Py_ssize_t size)
{
    if (read->was == MP_WAS_ANY) return true;
    if (read->was == MP_WAS_NUMBER) return accept(prog, read, read_lend(prog, PyLong_FromSsize_t(size)));
    return read->was == MP_WAS_SCALAR && PyLong_CheckExact(read->value) && PyLong_AsSsize_t(read->value) == size;
}

/* -- Dicts --------------------------------------------------------------------------------------------------------------- */

/* Value of `key` in a dict, subclass methods not called, borrowed or NULL. hash -1: only identity is looked at. False: unknown without
** a comparison by user code. */
static bool dict_get(PyObject *dict, PyObject *key, Py_hash_t hash, PyObject **value)
{
    *value = NULL;
    if (hash != -1) return mp_dict_find(dict, key, hash, value) >= 0;
    PyObject *other;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &other, value);)
        if (other == key) return true;
    *value = NULL;
    return true;
}

typedef struct { /* what every evaluation gets; all borrowed */
    PyObject *owner, *key;
    Py_hash_t hash;
    uint32_t number;
} look;

static bool read_key(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject *value;
    if (PyDict_Check(at.owner)) return dict_get(at.owner, at.key, at.hash, &value) && accept(prog, read, value);
    if (Py_TYPE(at.owner) == &PyDictProxy_Type)
        return accept(prog, read, read_lend(prog, PyObject_GetItem(at.owner, at.key)));
    return false;
}

static bool read_has(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject *value;
    return PyDict_Check(at.owner) && dict_get(at.owner, at.key, at.hash, &value) && accept_bool(read, value != NULL);
}

/* Keys in order are asked for one after the other: go on from the last one instead of counting again. */
static bool read_key_at(mp_guard_program *prog, const mp_read *read, look at)
{
    Py_ssize_t index = PyLong_AsSsize_t(at.key);
    if (!PyDict_Check(at.owner) || index < 0) return PyErr_Clear(), false;
    if (PyODict_Check(at.owner)) { /* its order is not the dict's */
        if (prog->order_of != at.owner) {
            PyObject *iterator = PyODict_Type.tp_iter(at.owner);
            PyObject *keys = iterator ? PySequence_List(iterator) : NULL;
            Py_XDECREF(iterator);
            if (!read_lend(prog, keys)) return false;
            prog->order_of = at.owner;
            prog->order_position = (Py_ssize_t)(prog->n_temps - 1);
        }
        PyObject *keys = prog->temps[prog->order_position];
        return accept(prog, read, index < PyList_GET_SIZE(keys) ? PyList_GET_ITEM(keys, index) : NULL);
    }
    if (prog->order_of != at.owner || prog->order_next > index) {
        prog->order_of = at.owner;
        prog->order_position = prog->order_next = 0;
    }
    PyObject *key = NULL, *value;
    for (; prog->order_next <= index; prog->order_next++)
        if (!PyDict_Next(at.owner, &prog->order_position, &key, &value)) {
            prog->order_of = NULL;
            return accept(prog, read, NULL);
        }
    return accept(prog, read, key);
}

/* -- Instances ----------------------------------------------------------------------------------------------------------- */

static bool read_type(mp_guard_program *prog, const mp_read *read, look at)
{ return accept(prog, read, (PyObject *)Py_TYPE(at.owner)); }

/* Argument slots tell: they bind to the same object. */
static bool read_same_arg(mp_guard_program *prog, const mp_read *read, look at) { return true; }

static bool read_value(mp_guard_program *prog, const mp_read *read, look at) { return accept(prog, read, at.owner); }

static bool read_dict(mp_guard_program *prog, const mp_read *read, look at)
{
    if (PyType_Check(at.owner)) return accept(prog, read, ((PyTypeObject *)at.owner)->tp_dict);
    PyObject **slot = mp_instance_dict_slot(at.owner);
    if (slot && !*slot && read->was != MP_WAS_MISSING)
        return accept(prog, read, read_lend(prog, PyObject_GenericGetDict(at.owner, NULL)));
    return accept(prog, read, slot ? *slot : NULL);
}

static bool read_instance_attr(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject **slot = mp_instance_dict_slot(at.owner);
    PyObject *item;
    if (slot && *slot)
        return PyDict_Check(*slot) && dict_get(*slot, at.key, at.hash, &item) && accept(prog, read, item);
    PyObject **value = mp_instance_value_slot(at.owner, at.key);
    return accept(prog, read, value ? *value : NULL);
}

static bool read_local_attr(mp_guard_program *prog, const mp_read *read, look at)
{
    PyTypeObject *local = guard_builtin_base(Py_TYPE(at.owner));
    if (!local->tp_getattro) return false;
    return accept(prog, read, read_lend(prog, local->tp_getattro(at.owner, at.key)));
}

/* -- Containers ---------------------------------------------------------------------------------------------------------- */

/* deque has no C header: its length is its ob_size, its items come through its own sequence methods. */
static bool is_deque(PyObject *object)
{
    PyTypeObject *base = guard_builtin_base(Py_TYPE(object));
    return base->tp_as_sequence && base->tp_as_sequence->sq_item && !strcmp(base->tp_name, "collections.deque");
}

static bool read_len(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject *o = at.owner;
    if (PyList_Check(o) || PyTuple_Check(o) || is_deque(o)) return accept_size(prog, read, Py_SIZE(o));
    if (PyDict_Check(o)) return accept_size(prog, read, ((PyDictObject *)o)->ma_used);
    if (PyAnySet_Check(o)) return accept_size(prog, read, PySet_GET_SIZE(o));
    if (Py_TYPE(o) == &PyDictProxy_Type) {
        Py_ssize_t size = PyObject_Size(o);
        if (size < 0) PyErr_Clear();
        return size >= 0 && accept_size(prog, read, size);
    }
    return false;
}

static bool read_item(mp_guard_program *prog, const mp_read *read, look at)
{
    Py_ssize_t index = PyLong_AsSsize_t(at.key);
    if (index == -1 && PyErr_Occurred()) return PyErr_Clear(), false;
    PyObject *o = at.owner;
    if (!PyList_Check(o) && !PyTuple_Check(o) && !is_deque(o)) return false;
    if (index < 0) index += Py_SIZE(o);
    if (index < 0 || index >= Py_SIZE(o)) return accept(prog, read, NULL);
    if (PyList_Check(o)) return accept(prog, read, PyList_GET_ITEM(o, index));
    if (PyTuple_Check(o)) return accept(prog, read, PyTuple_GET_ITEM(o, index));
    return accept(prog, read, read_lend(prog, guard_builtin_base(Py_TYPE(o))->tp_as_sequence->sq_item(o, index)));
}

static bool read_set_has(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyAnySet_Check(at.owner)) return false;
    if (at.hash != -1) {
        int has = mp_set_find(at.owner, at.key, at.hash);
        return has >= 0 && accept_bool(read, has);
    }
    PyObject *item;
    Py_hash_t hash;
    for (Py_ssize_t position = 0; _PySet_NextEntry(at.owner, &position, &item, &hash);)
        if (item == at.key) return accept_bool(read, 1);
    return accept_bool(read, 0);
}

static bool read_set_items(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyAnySet_Check(at.owner) || read->was != MP_WAS_ITEMS || !PyTuple_Check(read->value)) return false;
    PyObject *items = PyTuple_GET_ITEM(read->value, 0), *item;
    if (PySet_GET_SIZE(at.owner) != PyTuple_GET_SIZE(items)) return false;
    if (!mp_set_lies(at.owner, PyTuple_GET_ITEM(read->value, 1))) return false;
    Py_hash_t hash;
    Py_ssize_t position = 0;
    for (Py_ssize_t i = 0; _PySet_NextEntry(at.owner, &position, &item, &hash); i++) {
        PyObject *was = PyTuple_GET_ITEM(items, i);
        mp_obj_id id = mp_ref_id(was);
        if (id != MP_NO_OBJ) {
            if (id >= prog->rec.n_objects || !guard_bind(prog, id, item)) return false;
        } else if (item != was && !mp_scalar_same(item, was)) {
            return false;
        }
    }
    return true;
}

/* -- Types ----------------------------------------------------------------------------------------------------------------- */

static bool read_type_attr(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyType_Check(at.owner) || !PyUnicode_Check(at.key)) return false;
    return accept(prog, read, _PyType_Lookup((PyTypeObject *)at.owner, at.key));
}

static bool read_no_data_descr(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyType_Check(at.owner) || !PyUnicode_Check(at.key)) return false;
    PyObject *found = _PyType_Lookup((PyTypeObject *)at.owner, at.key);
    return !found || !Py_TYPE(found)->tp_descr_set;
}

static bool read_super_attr(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyType_Check(at.owner) || !PyTuple_Check(at.key) || PyTuple_GET_SIZE(at.key) != 2) return false;
    PyObject *mro = ((PyTypeObject *)at.owner)->tp_mro, *name = PyTuple_GET_ITEM(at.key, 1);
    Py_hash_t hash = PyObject_Hash(name); /* a str */
    bool after = false;
    for (Py_ssize_t i = 0; mro && i < PyTuple_GET_SIZE(mro); i++) {
        PyObject *base = PyTuple_GET_ITEM(mro, i);
        PyObject *found = NULL;
        if (after && !dict_get(((PyTypeObject *)base)->tp_dict, name, hash, &found)) return false;
        if (found) return accept(prog, read, found);
        after = after || base == PyTuple_GET_ITEM(at.key, 0);
    }
    return after && accept(prog, read, NULL);
}

/* Names between double underscores in a type's MRO that say something about it rather than do something. */
static bool is_descriptive(PyObject *name)
{
    static const char *const names[] = {"__doc__",         "__module__",          "__dict__",       "__weakref__",
                                        "__annotations__", "__qualname__",        "__parameters__", "__orig_bases__",
                                        "__match_args__",  "__abstractmethods__", "__slots__"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) return true;
    return false;
}

PyObject *guard_type_dunders(PyTypeObject *type)
{
    PyObject *list = PyList_New(0), *mro = type->tp_mro;
    for (Py_ssize_t i = 0; list && mro && i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        if (!(base->tp_flags & Py_TPFLAGS_HEAPTYPE) || !base->tp_dict) continue; /* cannot change */
        PyObject *name = PyUnicode_InternFromString("__mro__"), *value; /* that it is a base: isinstance() asks */
        bool added = name && PyList_Append(list, (PyObject *)base) == 0 && PyList_Append(list, name) == 0 &&
                     PyList_Append(list, (PyObject *)base) == 0;
        Py_XDECREF(name);
        if (!added) {
            Py_CLEAR(list);
            break;
        }
        for (Py_ssize_t at = 0; PyDict_Next(base->tp_dict, &at, &name, &value);) {
            if (!PyUnicode_Check(name) || PyUnicode_GET_LENGTH(name) < 5) continue;
            Py_ssize_t length = PyUnicode_GET_LENGTH(name);
            bool special = PyUnicode_READ_CHAR(name, 0) == '_' && PyUnicode_READ_CHAR(name, 1) == '_' &&
                           PyUnicode_READ_CHAR(name, length - 1) == '_' && PyUnicode_READ_CHAR(name, length - 2) == '_';
            if (!special || is_descriptive(name)) continue;
            if (PyList_Append(list, (PyObject *)base) < 0 || PyList_Append(list, name) < 0 ||
                PyList_Append(list, value) < 0) {
                Py_CLEAR(list);
                break;
            }
        }
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    if (!tuple) PyErr_Clear();
    return tuple;
}

/* Is the entry (class, name, value) at `i` of `now` somewhere in `was`? The order in which a class got its methods does not matter, which
** class has them does. */
static bool has_entry(PyObject *was, PyObject *now, Py_ssize_t i)
{
    PyObject *const *entry = &PyTuple_GET_ITEM(now, i), *const *others = &PyTuple_GET_ITEM(was, 0);
    if (!memcmp(others + i, entry, 3 * sizeof *entry)) return true;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(was); k += 3)
        if (others[k] == entry[0] && others[k + 2] == entry[2] && PyUnicode_Compare(others[k + 1], entry[1]) == 0)
            return true;
    return false;
}

static bool read_type_dunders(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject *was = prog->reads[at.number].dunders;
    PyObject *now = was && PyType_Check(at.owner) ? guard_type_dunders((PyTypeObject *)at.owner) : NULL;
    if (!now) return false;
    bool same = PyTuple_GET_SIZE(was) == PyTuple_GET_SIZE(now);
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(now); i += 3) same = has_entry(was, now, i);
    Py_DECREF(now);
    return same;
}

/* -- C fields --------------------------------------------------------------------------------------------------------------- */

PyObject **guard_slot_address(PyObject *owner, PyObject *descriptor)
{
    if (Py_TYPE(descriptor) != &PyMemberDescr_Type) return NULL;
    PyMemberDescrObject *d = (PyMemberDescrObject *)descriptor;
    if (d->d_member->type != T_OBJECT_EX && d->d_member->type != T_OBJECT) return NULL;
    if (!PyType_IsSubtype(Py_TYPE(owner), d->d_common.d_type)) return NULL;
    return (PyObject **)((char *)owner + d->d_member->offset);
}

typedef struct {
    const char *name;
    size_t offset;
} field;

/* Function fields that are getset descriptors, not members. NULL reads as None, as their getters do. */
static const field function_fields[] = {{"__code__", offsetof(PyFunctionObject, func_code)},
                                        {"__defaults__", offsetof(PyFunctionObject, func_defaults)},
                                        {"__kwdefaults__", offsetof(PyFunctionObject, func_kwdefaults)},
                                        {"__name__", offsetof(PyFunctionObject, func_name)},
                                        {"__qualname__", offsetof(PyFunctionObject, func_qualname)}};

PyObject **guard_member_address(PyObject *owner, PyObject *name)
{
    if (PyFunction_Check(owner))
        for (size_t i = 0; i < sizeof function_fields / sizeof *function_fields; i++)
            if (PyUnicode_CompareWithASCIIString(name, function_fields[i].name) == 0)
                return (PyObject **)((char *)owner + function_fields[i].offset);
    if (PyCFunction_Check(owner) && PyUnicode_CompareWithASCIIString(name, "__self__") == 0)
        return &((PyCFunctionObject *)owner)->m_self;
    PyObject *found = _PyType_Lookup(guard_builtin_base(Py_TYPE(owner)), name);
    return found ? guard_slot_address(owner, found) : NULL;
}

/* A field that is NULL in C: its getter gives None, or raises. Recorders may have said either; both mean "nothing there". */
static bool accept_field(mp_guard_program *prog, const mp_read *read, PyObject *value)
{
    if (value && value != Py_None) return accept(prog, read, value);
    if (read->was == MP_WAS_SCALAR) return read->value == Py_None;
    return read->was == MP_WAS_MISSING || read->was == MP_WAS_ANY;
}

static bool read_member(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyUnicode_Check(at.key)) return false;
    PyObject **address = guard_member_address(at.owner, at.key);
    if (address) return accept_field(prog, read, *address);
    PyTypeObject *type = guard_builtin_base(Py_TYPE(at.owner));
    PyObject *found = _PyType_Lookup(type, at.key);
    if (!found || !Py_TYPE(found)->tp_descr_get) return false;
    PyObject *value = Py_TYPE(found)->tp_descr_get(found, at.owner, (PyObject *)Py_TYPE(at.owner));
    return accept_field(prog, read, read_lend(prog, value));
}

static bool read_slot(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject **address = guard_slot_address(at.owner, at.key);
    if (address && *address) return accept(prog, read, *address);
    PyTypeObject *type = Py_TYPE(at.key);
    if (!type->tp_descr_get || guard_builtin_base(type) != type) return false; /* a Python descriptor: user code */
    return accept(prog, read, read_lend(prog, type->tp_descr_get(at.key, at.owner, (PyObject *)Py_TYPE(at.owner))));
}

static bool read_cell(mp_guard_program *prog, const mp_read *read, look at)
{ return PyCell_Check(at.owner) && accept(prog, read, PyCell_GET(at.owner)); }

static bool read_deref(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyWeakref_Check(at.owner)) return false;
    PyObject *referent = PyWeakref_GET_OBJECT(at.owner);
    return accept(prog, read, referent == Py_None ? NULL : referent);
}

/* Unset is MISSING, whether the variable has a default (which never changes) or not. */
static bool read_context_var(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject *value = NULL;
    /* Unset is unset whatever the variable's own default is: the variable itself stands for it, as nobody sets a variable to itself. */
    if (!PyContextVar_CheckExact(at.owner) || PyContextVar_Get(at.owner, at.owner, &value) < 0)
        return PyErr_Clear(), false;
    if (value == at.owner) Py_CLEAR(value);
    return accept(prog, read, read_lend(prog, value));
}

static bool read_state_call(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!PyTuple_Check(at.key)) return false;
    return accept(prog, read, read_lend(prog, PyObject_Call(at.owner, at.key, NULL)));
}

/* The owner's type is guarded before: it is a cache. */
/* What the cache holds for the key, borrowed, or NULL; *known false: that cannot be told. */
static PyObject *held_in_cache(mp_guard_program *prog, look at, bool *known)
{
    Py_ssize_t n = PyTuple_GET_SIZE(at.key);
    PyObject *args = PyTuple_New(n);
    for (Py_ssize_t i = 0; args && i < n; i++) {
        PyObject *item = PyTuple_GET_ITEM(at.key, i);
        mp_obj_id id = mp_ref_id(item);
        if (id != MP_NO_OBJ) item = prog->now.current[id];
        if (item)
            PyTuple_SET_ITEM(args, i, Py_NewRef(item));
        else
            Py_CLEAR(args);
    }
    *known = args != NULL;
    if (!args) return PyErr_Clear(), NULL;
    PyObject *found = mp_lru_find(at.owner, args);
    Py_DECREF(args);
    return found;
}

static bool read_cached(mp_guard_program *prog, const mp_read *read, look at)
{
    bool known;
    PyObject *found = held_in_cache(prog, at, &known);
    return known && accept(prog, read, found);
}

static bool read_cached_tensor(mp_guard_program *prog, const mp_read *read, look at)
{
    bool known;
    PyObject *found = held_in_cache(prog, at, &known);
    if (!known || !found) return known; /* a run computes what the function would */
    if (!mp_is_exact_tensor(found)) return false;
    PyObject *version = mp_tensor_ask(mp_names._version, found);
    bool same = version && accept(prog, read, version);
    PyErr_Clear();
    Py_XDECREF(version);
    return same;
}

/* The builtin's value inside an instance of a subclass, without asking the subclass. */
static bool read_base_value(mp_guard_program *prog, const mp_read *read, look at)
{
    PyObject *o = at.owner, *was = read->value;
    if (read->was != MP_WAS_SCALAR) return false;
    PyTypeObject *base = Py_TYPE(was);
    if (!PyType_IsSubtype(Py_TYPE(o), base)) return false;
    if (base == &PyFloat_Type) return !memcmp(&((PyFloatObject *)o)->ob_fval, &((PyFloatObject *)was)->ob_fval, 8);
    if (base == &PyComplex_Type)
        return !memcmp(&((PyComplexObject *)o)->cval, &((PyComplexObject *)was)->cval, sizeof(Py_complex));
    if (base != &PyLong_Type && base != &PyUnicode_Type && base != &PyBytes_Type) return false;
    PyObject *same = base->tp_richcompare(was, o, Py_EQ); /* the base's own comparison */
    if (!same) PyErr_Clear();
    Py_XDECREF(same);
    return same == Py_True;
}

/* -- Tensors ----------------------------------------------------------------------------------------------------------------- */

static bool read_tensor_meta(mp_guard_program *prog, const mp_read *read, look at)
{ return read->meta && guard_tensor_is(at.owner) && guard_tensor_same(at.owner, read->meta); }

static bool read_array_meta(mp_guard_program *prog, const mp_read *read, look at)
{
    const mp_array *a = (const mp_array *)at.owner;
    const mp_tensor_meta *meta = read->meta;
    if (!meta || !mp_is_array(at.owner) || a->nd != meta->ndim || a->descr != PyTuple_GET_ITEM(read->value, 0) ||
        PyLong_AsLong(PyTuple_GET_ITEM(read->value, 1)) != (a->flags & MP_ARRAY_WRITEABLE) ||
        !(a->flags & MP_ARRAY_ALIGNED))
        return false;
    Py_ssize_t size = mp_array_item_size(at.owner);
    for (int d = 0; d < a->nd; d++)
        if (a->dimensions[d] != meta->size[d] || a->strides[d] != meta->stride[d] * size) return false;
    return true;
}

/* The descriptor is looked for below the Python classes: their properties would be user code. */
static bool read_tensor_attr(mp_guard_program *prog, const mp_read *read, look at)
{
    if (!guard_tensor_is(at.owner) || !PyUnicode_Check(at.key)) return false;
    PyObject *mro = Py_TYPE(at.owner)->tp_mro;
    Py_hash_t hash = PyObject_Hash(at.key);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(mro); i++) {
        PyObject *found;
        if (!dict_get(((PyTypeObject *)PyTuple_GET_ITEM(mro, i))->tp_dict, at.key, hash, &found)) return false;
        if (!found || Py_TYPE(found) != &PyGetSetDescr_Type) continue;
        PyObject *value = PyGetSetDescr_Type.tp_descr_get(found, at.owner, (PyObject *)Py_TYPE(at.owner));
        return accept(prog, read, read_lend(prog, value));
    }
    return false;
}

/* -- One read ------------------------------------------------------------------------------------------------------------------ */

static bool (*const evaluate[MP_READ_KIND_COUNT])(mp_guard_program *, const mp_read *, look) = {
    [MP_READ_VALUE] = read_value,
    [MP_READ_SAME_ARG] = read_same_arg,
    [MP_READ_TYPE] = read_type,
    [MP_READ_DICT] = read_dict,
    [MP_READ_INSTANCE_ATTR] = read_instance_attr,
    [MP_READ_LOCAL_ATTR] = read_local_attr,
    [MP_READ_KEY] = read_key,
    [MP_READ_HAS] = read_has,
    [MP_READ_KEY_AT] = read_key_at,
    [MP_READ_LEN] = read_len,
    [MP_READ_ITEM] = read_item,
    [MP_READ_SET_HAS] = read_set_has,
    [MP_READ_SET_ITEMS] = read_set_items,
    [MP_READ_TYPE_ATTR] = read_type_attr,
    [MP_READ_TYPE_DUNDERS] = read_type_dunders,
    [MP_READ_NO_DATA_DESCR] = read_no_data_descr,
    [MP_READ_SUPER_ATTR] = read_super_attr,
    [MP_READ_CELL] = read_cell,
    [MP_READ_MEMBER] = read_member,
    [MP_READ_SLOT] = read_slot,
    [MP_READ_TENSOR_META] = read_tensor_meta,
    [MP_READ_ARRAY_META] = read_array_meta,
    [MP_READ_TENSOR_ATTR] = read_tensor_attr,
    [MP_READ_DEREF] = read_deref,
    [MP_READ_CONTEXT_VAR] = read_context_var,
    [MP_READ_STATE_CALL] = read_state_call,
    [MP_READ_CACHED] = read_cached,
    [MP_READ_CACHED_TENSOR] = read_cached_tensor,
    [MP_READ_BASE_VALUE] = read_base_value,
};

bool guard_read_holds(mp_guard_program *prog, uint32_t number)
{
    const mp_read *read = &prog->rec.reads[number];
    look at = {prog->now.current[read->owner], read->key, prog->reads[number].hash, number};
    if (read->key_obj != MP_NO_OBJ) {
        at.key = prog->now.current[read->key_obj];
        /* Keys compared by identity hash by address, unless their type says otherwise: then only a search is free of user code. */
        at.hash = at.key && Py_TYPE(at.key)->tp_hash == PyBaseObject_Type.tp_hash ? _Py_HashPointer(at.key) : -1;
        if (!at.key) return false;
    }
    return at.owner && evaluate[read->kind] && evaluate[read->kind](prog, read, at);
}

bool guard_read_same(mp_guard_program *prog, uint32_t number)
{
    prog->strict = true;
    bool same = guard_read_holds(prog, number);
    prog->strict = false;
    return same;
}
