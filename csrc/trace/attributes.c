/* Reads and writes of attributes: what LOAD_ATTR, STORE_ATTR and their relatives look at, location by location.
**
** The lookups of CPython's object, type, module, super and method are followed here with raw MRO and dict lookups; whatever has
** a getattro of its own ends the trace. What is found is only recorded, never called: Python code behind a descriptor is a frame
** of its own and shows itself.
*/
#include "trace/arrays.h"
#include "trace/raw.h"

#include "observe/observe.h"
#include <structmember.h>

/* -- Types ----------------------------------------------------------------------------------------------------------- */

PyObject *mp_raw_type_lookup(PyTypeObject *type, PyObject *name)
{
    if (!PyUnicode_CheckExact(name)) return NULL;
    mp_kept kept = mp_keep();
    PyObject *found = _PyType_Lookup(type, name);
    mp_restore(kept);
    return found;
}

static PyObject *lookup(PyTypeObject *type, const char *name)
{
    mp_kept kept = mp_keep();
    PyObject *text = mp_intern(name);
    PyObject *found = text ? _PyType_Lookup(type, text) : NULL;
    Py_XDECREF(text);
    mp_restore(kept);
    return found;
}

bool mp_type_python(PyTypeObject *type, const char *method)
{
    PyObject *found = lookup(type, method);
    return found && PyFunction_Check(found);
}

void mp_rec_type_dunders(mp_recorder *rec, PyTypeObject *type)
{
    if (mp_type_mutable(type)) mp_rec_read(rec, (PyObject *)type, MP_READ_TYPE_DUNDERS, NULL, Py_None);
}

void mp_rec_type(mp_recorder *rec, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (mp_rec_find(rec, object) != MP_NO_OBJ) mp_rec_read(rec, object, MP_READ_TYPE, NULL, (PyObject *)type);
    mp_rec_type_dunders(rec, type);
}

/* Record the MRO lookup of `name` in `type`, and give what it found (borrowed or NULL). */
static PyObject *type_attr(mp_recorder *rec, PyTypeObject *type, PyObject *name)
{
    PyObject *found = mp_raw_type_lookup(type, name);
    if (mp_type_mutable(type)) mp_rec_read(rec, (PyObject *)type, MP_READ_TYPE_ATTR, name, found);
    return found;
}

static PyObject *type_attr_named(mp_recorder *rec, PyTypeObject *type, const char *name)
{
    PyObject *text = mp_intern(name);
    if (!text) {
        PyErr_Clear();
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", name);
        return NULL;
    }
    PyObject *found = type_attr(rec, type, text);
    Py_DECREF(text);
    return found;
}

void mp_rec_type_attr(mp_recorder *rec, PyTypeObject *type, PyObject *name) { type_attr(rec, type, name); }

/* -- Instance attributes ----------------------------------------------------------------------------------------------- */

PyObject *mp_raw_dict(PyObject *object)
{
    if (PyType_Check(object)) return NULL; /* a type's dict is reached by TYPE_ATTR only */
    PyObject **slot = mp_instance_dict_slot(object);
    return slot && *slot && PyDict_Check(*slot) ? *slot : NULL;
}

static bool may_have_dict(PyObject *object) { return !PyType_Check(object) && mp_instance_dict_slot(object) != NULL; }

/* The attribute as the instance itself holds it, whether or not its dict is materialised. Borrowed or NULL. */
static PyObject *own_attribute(mp_recorder *rec, PyObject *object, PyObject *dict, PyObject *name)
{
    if (dict) {
        PyObject *value = NULL;
        if (mp_dict_find_str(dict, name, &value) < 0)
            mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "an attribute among keys that compare by Python code");
        return value;
    }
    PyObject **slot = may_have_dict(object) ? mp_instance_value_slot(object, name) : NULL;
    return slot ? *slot : NULL;
}

/* The program is about to ask for vars(object): let the dict exist, as it will a moment later, so that it can be recorded. */
static PyObject *materialised_dict(mp_recorder *rec, PyObject *object)
{
    PyObject *dict = mp_raw_dict(object);
    if (dict || !may_have_dict(object)) return dict;
    mp_kept kept = mp_keep();
    PyObject *made = PyObject_GenericGetDict(object, NULL);
    mp_restore(kept);
    if (!made) {
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "__dict__");
        return NULL;
    }
    Py_DECREF(made);
    return mp_raw_dict(object);
}

/* -- Descriptors --------------------------------------------------------------------------------------------------------- */

PyObject *mp_raw_member(PyTypeObject *base, const char *name, PyObject *owner)
{
    mp_kept kept = mp_keep();
    PyObject *descr = PyDict_GetItemString(base->tp_dict, name);
    PyObject *value =
        descr && Py_TYPE(descr)->tp_descr_get ? Py_TYPE(descr)->tp_descr_get(descr, owner, (PyObject *)base) : NULL;
    mp_restore(kept);
    return value;
}

static void read_member(mp_recorder *rec, PyTypeObject *base, PyObject *owner, const char *name)
{
    PyObject *key = mp_intern(name);
    PyObject *value = mp_raw_member(base, name, owner);
    if (key)
        mp_rec_read(rec, owner, MP_READ_MEMBER, key, value);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", name);
    PyErr_Clear();
    Py_XDECREF(key);
    Py_XDECREF(value);
}

static const char *chars(PyObject *name)
{
    mp_kept kept = mp_keep();
    const char *text = PyUnicode_AsUTF8(name);
    mp_restore(kept);
    return text ? text : "?";
}

static bool name_is(PyObject *name, const char *text) { return PyUnicode_CompareWithASCIIString(name, text) == 0; }

/* What a property calls (fget, fset, fdel). A Python function is a frame of its own; what C does to an outside object is not seen. */
static void read_accessor(mp_recorder *rec, PyObject *property, PyObject *object, const char *name)
{
    read_member(rec, &PyProperty_Type, property, name);
    PyObject *accessor = mp_raw_member(&PyProperty_Type, name, property);
    PyObject *function = accessor && PyMethod_Check(accessor) ? PyMethod_GET_FUNCTION(accessor) : accessor;
    if (function && function != Py_None && !PyFunction_Check(function) && mp_rec_ensure(rec, object) != MP_NO_OBJ)
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "a property of %s is a %s", Py_TYPE(object)->tp_name,
                       Py_TYPE(function)->tp_name);
    Py_XDECREF(accessor);
}

/* What a C descriptor gives for an external owner. Getters that make a new object each time cannot be guarded by identity; they are
** harmless where the object is derived from what is known already, else they end the trace. */
static void read_slot(mp_recorder *rec, PyObject *descr, PyObject *owner, PyObject *name)
{
    if (mp_rec_ensure(rec, owner) == MP_NO_OBJ || mp_is_tensor(owner)) return;
    if (PyType_Check(owner) && name_is(name, "__dict__")) {
        PyObject *dict = ((PyTypeObject *)owner)->tp_dict; /* the view is the call's own, what it shows is read now */
        if (mp_type_mutable((PyTypeObject *)owner) && mp_rec_pin(rec, dict, "__dict__ of a class") != MP_NO_OBJ)
            mp_rec_whole(rec, dict);
        return;
    }
    if (PyCell_Check(owner)) { /* cell_contents: the place that LOAD_DEREF looks at */
        mp_rec_read(rec, owner, MP_READ_CELL, NULL, PyCell_GET(owner));
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *value = Py_TYPE(descr)->tp_descr_get(descr, owner, (PyObject *)Py_TYPE(owner));
    mp_restore(kept);
    bool made_now = value && Py_REFCNT(value) == 1 && !mp_is_scalar(value);
    if (!made_now)
        mp_rec_read(rec, owner, MP_READ_SLOT, descr, value);
    else if (!PyMethod_Check(value) && !PyCFunction_Check(value) && !PyCode_Check(owner) && !PyType_Check(owner))
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "%s of %s is a new object each time", chars(name),
                       Py_TYPE(owner)->tp_name);
    Py_XDECREF(value);
}

/* A field of a namedtuple is the item at its place, by whatever way that is read. False: the descriptor is none. */
static bool read_field(mp_recorder *rec, PyObject *descr, PyObject *owner)
{
    if (strcmp(Py_TYPE(descr)->tp_name, "_collections._tuplegetter") != 0 || !PyTuple_Check(owner)) return false;
    mp_kept kept = mp_keep();
    PyObject *parts = PyObject_CallMethod(descr, "__reduce__", NULL); /* (type, (place, documentation)): C's own */
    PyObject *args = parts && PyTuple_Check(parts) && PyTuple_GET_SIZE(parts) == 2 ? PyTuple_GET_ITEM(parts, 1) : NULL;
    bool known = args && PyTuple_Check(args) && PyTuple_GET_SIZE(args) && PyLong_CheckExact(PyTuple_GET_ITEM(args, 0));
    mp_restore(kept);
    if (known) mp_rec_raw_subscript(rec, owner, PyTuple_GET_ITEM(args, 0));
    Py_XDECREF(parts);
    return known;
}

static bool has_known_getter(PyTypeObject *type)
{
    return PyType_IsSubtype(type, &PyProperty_Type) || PyType_IsSubtype(type, &PyStaticMethod_Type) ||
           PyType_IsSubtype(type, &PyClassMethod_Type);
}

/* The attribute lookup ended at `descr` (borrowed) found in a type; `object` NULL: found in a class, without an instance. */
static void descriptor(mp_recorder *rec, PyObject *descr, PyObject *object, PyObject *name)
{
    PyTypeObject *type = Py_TYPE(descr);
    if (type == &PyFunction_Type || type == &PyMethodDescr_Type || type == &PyWrapperDescr_Type ||
        type == &PyClassMethodDescr_Type || type == &PyCFunction_Type)
        return;
    if (PyType_IsSubtype(type, &PyProperty_Type)) {
        if (object) read_accessor(rec, descr, object, "fget");
        if (type == &PyProperty_Type) return;
    } else if (type == &PyStaticMethod_Type || type == &PyClassMethod_Type) {
        read_member(rec, type, descr, "__func__");
        return;
    } else if (type == &PyMemberDescr_Type || type == &PyGetSetDescr_Type) {
        if (!object || name_is(name, "__class__")) return; /* the type has been read */
        if (name_is(name, "__dict__") && !PyType_Check(object)) {
            if (mp_rec_ensure(rec, object) == MP_NO_OBJ) return;
            mp_rec_read(rec, object, MP_READ_DICT, NULL, materialised_dict(rec, object));
        } else
            read_slot(rec, descr, object, name);
        return;
    }
    if (mp_type_mutable(type)) {
        mp_rec_type_dunders(rec, type);
        PyObject *getter = type_attr_named(rec, type, "__get__");
        if (getter && !PyFunction_Check(getter) && object && !has_known_getter(type) &&
            mp_rec_ensure(rec, object) != MP_NO_OBJ)
            mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "attribute %s by a %s", chars(name), type->tp_name);
        if (PyType_IsSubtype(type, &PyStaticMethod_Type)) read_member(rec, &PyStaticMethod_Type, descr, "__func__");
        if (PyType_IsSubtype(type, &PyClassMethod_Type)) read_member(rec, &PyClassMethod_Type, descr, "__func__");
    } else if (type->tp_descr_get && object && !read_field(rec, descr, object))
        read_slot(rec, descr, object, name);
}

/* -- getattr --------------------------------------------------------------------------------------------------------------- */

static bool generic_getattro(void *function)
{
    return function == (void *)PyObject_GenericGetAttr || function == (void *)PyModule_Type.tp_getattro ||
           function == (void *)PyType_Type.tp_getattro || function == (void *)PySuper_Type.tp_getattro;
}

static void class_attr(mp_recorder *rec, PyTypeObject *cls, PyObject *name)
{
    PyTypeObject *meta = Py_TYPE(cls);
    PyObject *on_meta = type_attr(rec, meta, name);
    if (on_meta && Py_TYPE(on_meta)->tp_descr_set) {
        descriptor(rec, on_meta, (PyObject *)cls, name);
        return;
    }
    PyObject *found = mp_raw_type_lookup(cls, name);
    if (mp_type_mutable(cls)) mp_rec_read(rec, (PyObject *)cls, MP_READ_TYPE_ATTR, name, found);
    if (found)
        descriptor(rec, found, NULL, name);
    else if (on_meta)
        descriptor(rec, on_meta, (PyObject *)cls, name);
    else
        type_attr_named(rec, meta, "__getattr__");
}

void mp_rec_generic_attr(mp_recorder *rec, PyObject *object, PyObject *name)
{
    if (!PyUnicode_CheckExact(name)) {
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "an attribute name of type %s", Py_TYPE(name)->tp_name);
        return;
    }
    mp_rec_type(rec, object);
    if (PyType_Check(object)) {
        class_attr(rec, (PyTypeObject *)object, name);
        return;
    }
    PyTypeObject *type = Py_TYPE(object);
    PyObject *descr = mp_raw_type_lookup(type, name);
    PyObject *dict = mp_raw_dict(object);
    PyObject *own = own_attribute(rec, object, dict, name);
    bool data = descr && Py_TYPE(descr)->tp_descr_set;
    if (!data && own) {
        if (mp_type_mutable(type)) mp_rec_read(rec, (PyObject *)type, MP_READ_NO_DATA_DESCR, name, Py_None);
    } else
        type_attr(rec, type, name);
    if (data) {
        descriptor(rec, descr, object, name);
        return;
    }
    if (mp_rec_ensure(rec, object) == MP_NO_OBJ) {
        /* an object of the call's own: what it holds is known */
    } else if (dict) {
        mp_rec_read(rec, object, MP_READ_DICT, NULL, dict);
        mp_rec_read(rec, dict, MP_READ_KEY, name, own);
    } else if (may_have_dict(object))
        mp_rec_read(rec, object, MP_READ_INSTANCE_ATTR, name, own);
    if (own) return;
    if (descr)
        descriptor(rec, descr, object, name);
    else if (PyModule_Check(object) && dict) {
        PyObject *hook = mp_intern("__getattr__");
        if (hook)
            mp_rec_read(rec, dict, MP_READ_KEY, hook, own_attribute(rec, object, dict, hook));
        else
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "__getattr__");
        PyErr_Clear();
        Py_XDECREF(hook);
    } else
        type_attr_named(rec, type, "__getattr__");
}

/* super(C, self).name: the MRO of self's class after C. */
static void super_attr(mp_recorder *rec, PyObject *super, PyObject *name)
{
    PyObject *start = mp_raw_member(&PySuper_Type, "__self_class__", super);
    PyObject *after = mp_raw_member(&PySuper_Type, "__thisclass__", super);
    PyObject *self = mp_raw_member(&PySuper_Type, "__self__", super);
    PyObject *found = NULL, *key = NULL;
    if (!start || start == Py_None || !after || !PyType_Check(start) || name_is(name, "__class__")) goto done;
    PyObject *mro = ((PyTypeObject *)start)->tp_mro;
    Py_ssize_t n = mro ? PyTuple_GET_SIZE(mro) : 0, i = 0;
    while (i < n && PyTuple_GET_ITEM(mro, i) != after) i++;
    mp_kept kept = mp_keep();
    for (i++; i < n && !found; i++)
        if (mp_dict_find_str(((PyTypeObject *)PyTuple_GET_ITEM(mro, i))->tp_dict, name, &found) < 0)
            mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "an attribute among keys that compare by Python code");
    Py_XINCREF(found);
    key = PyTuple_Pack(2, after, name);
    mp_restore(kept);
    if (!key) {
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "super");
        goto done;
    }
    mp_rec_ensure(rec, after);
    mp_rec_read(rec, start, MP_READ_SUPER_ATTR, key, found);
    if (found) descriptor(rec, found, self == start ? NULL : self, name);
done:
    Py_XDECREF(start);
    Py_XDECREF(after);
    Py_XDECREF(self);
    Py_XDECREF(found);
    Py_XDECREF(key);
}

/* An attribute of a bound method is its function's, but for what a method has itself. */
static void method_attr(mp_recorder *rec, PyObject *method, PyObject *name)
{
    if (mp_rec_ensure(rec, method) != MP_NO_OBJ) {
        read_member(rec, &PyMethod_Type, method, "__func__");
        read_member(rec, &PyMethod_Type, method, "__self__");
    }
    if (!name_is(name, "__func__") && !name_is(name, "__self__")) mp_rec_attr(rec, PyMethod_GET_FUNCTION(method), name);
}

/* A few attributes are its own; list[int] has all others from list. False for what is no alias, and for what the type itself gives. */
static bool alias_attr(mp_recorder *rec, PyObject *alias, PyObject *name)
{
    PyTypeObject *type = Py_TYPE(alias);
    if (!mp_is_type_alias(alias)) return false;
    PyObject *descr = mp_raw_type_lookup(type, name);
    if (descr && (Py_IS_TYPE(descr, &PyMemberDescr_Type) || Py_IS_TYPE(descr, &PyGetSetDescr_Type)))
        mp_rec_generic_attr(rec, alias, name);
    else if (type == &Py_GenericAliasType && mp_rec_ensure(rec, alias) != MP_NO_OBJ) {
        read_member(rec, type, alias, "__origin__");
        PyObject *origin = mp_raw_member(type, "__origin__", alias);
        if (origin) mp_rec_attr(rec, origin, name);
        Py_XDECREF(origin);
    } else
        return false;
    return true;
}

static void thread_local_attr(mp_recorder *rec, PyObject *local, PyObject *name)
{
    if (mp_rec_ensure(rec, local) == MP_NO_OBJ) return;
    PyObject *init = lookup(Py_TYPE(local), "__init__");
    if (init && PyFunction_Check(init)) { /* may run it for a thread that is new to the object */
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a threading.local with __init__");
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *value = PyObject_GetAttr(local, name);
    mp_restore(kept);
    mp_rec_read(rec, local, MP_READ_LOCAL_ATTR, name, value);
    Py_XDECREF(value);
}

/* The names that the text of an object shows, in whatever containers it is. */
static void shown(mp_recorder *rec, PyObject *object, int depth)
{
    if (depth > 8 || mp_is_scalar(object) || mp_is_tensor(object)) return;
    PyObject *function = PyMethod_Check(object) ? PyMethod_GET_FUNCTION(object) : object, *key, *value;
    if (PyFunction_Check(function) && mp_rec_ensure(rec, function) != MP_NO_OBJ)
        read_member(rec, &PyFunction_Type, function, "__qualname__");
    bool plain = Py_TYPE(object)->tp_repr == PyBaseObject_Type.tp_repr;
    PyTypeObject *named = PyType_Check(object) ? (PyTypeObject *)object : plain ? Py_TYPE(object) : NULL;
    if (named && mp_type_mutable(named)) {
        type_attr_named(rec, named, "__module__");
        read_member(rec, &PyType_Type, (PyObject *)named, "__qualname__");
    }
    if (PyDict_Check(object))
        for (Py_ssize_t at = 0; PyDict_Next(object, &at, &key, &value);)
            shown(rec, key, depth + 1), shown(rec, value, depth + 1);
    else if (PyList_Check(object) || PyTuple_Check(object))
        for (Py_ssize_t i = 0; i < Py_SIZE(object); i++) shown(rec, PySequence_Fast_GET_ITEM(object, i), depth + 1);
}

void mp_rec_shown(mp_recorder *rec, PyObject *object) { shown(rec, object, 0); }

void mp_rec_attr(mp_recorder *rec, PyObject *object, PyObject *name)
{
    PyTypeObject *type = Py_TYPE(object);
    if (!PyUnicode_CheckExact(name)) {
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "an attribute name of type %s", Py_TYPE(name)->tp_name);
        return;
    }
    if (mp_is_scalar(object)) return;
    if (mp_is_array(object)) {
        mp_array_attr(rec, object, name);
        return;
    }
    if (mp_is_tensor(object)) { /* C getters of tensors arrive by the torch mode */
        PyObject *descr = mp_raw_type_lookup(type, name);
        if (descr && Py_IS_TYPE(descr, &PyGetSetDescr_Type)) return;
    }
    mp_rec_type(rec, object);
    if (PyType_IsSubtype(type, &PySuper_Type)) {
        super_attr(rec, object, name);
        return;
    }
    /* A class made by pybind11 differs from type only in how it gives instance methods. */
    bool pybind_class = PyType_Check(object) && strcmp(type->tp_name, "pybind11_type") == 0;
    if (!generic_getattro((void *)type->tp_getattro) && !pybind_class) {
        PyObject *getter = lookup(type, "__getattribute__");
        if (getter && PyFunction_Check(getter)) {
            type_attr_named(rec, type, "__getattribute__"); /* its frame shows the rest */
            return;
        }
        bool generic = getter && Py_IS_TYPE(getter, &PyWrapperDescr_Type) &&
                       generic_getattro(((PyWrapperDescrObject *)getter)->d_wrapped);
        if (!generic) {
            PyTypeObject *local = mp_type_thread_local();
            if (PyMethod_Check(object))
                method_attr(rec, object, name);
            else if (local && PyType_IsSubtype(type, local))
                thread_local_attr(rec, object, name);
            else if (!alias_attr(rec, object, name))
                mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "attribute %s of a %s", chars(name), type->tp_name);
            return;
        }
    }
    mp_rec_generic_attr(rec, object, name);
}

/* -- setattr, delattr ------------------------------------------------------------------------------------------------------- */

static void store_by_descriptor(mp_recorder *rec, PyObject *descr, PyObject *object, PyObject *name, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(descr);
    if (PyType_IsSubtype(type, &PyProperty_Type)) {
        read_accessor(rec, descr, object, value ? "fset" : "fdel");
        if (type == &PyProperty_Type) return;
    }
    if (mp_type_mutable(type)) {
        mp_rec_type_dunders(rec, type);
        PyObject *setter = type_attr_named(rec, type, value ? "__set__" : "__delete__");
        if (setter && !PyFunction_Check(setter) && !has_known_getter(type))
            mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "a store through a %s", type->tp_name);
    } else if (PyCell_Check(object)) {
        mp_rec_write(rec, object, MP_WRITE_CELL, NULL, value);
    } else if (type == &PyMemberDescr_Type || type == &PyGetSetDescr_Type) {
        if (name_is(name, "__dict__"))
            mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "an outside object's __dict__ is replaced");
        else
            mp_rec_write(rec, object, MP_WRITE_SLOT, descr, value);
    } else
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "a store through a %s", type->tp_name);
}

void mp_rec_generic_store(mp_recorder *rec, PyObject *object, PyObject *name, PyObject *value)
{
    if (!PyUnicode_CheckExact(name)) {
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "an attribute name of type %s", Py_TYPE(name)->tp_name);
        return;
    }
    if (mp_rec_ensure(rec, object) == MP_NO_OBJ) return;
    if (PyType_Check(object) && !mp_type_mutable((PyTypeObject *)object)) return; /* raises, always */
    if (PyType_Check(object)) {
        type_attr(rec, (PyTypeObject *)object, name);
        mp_rec_write(rec, object, MP_WRITE_ATTR, name, value);
        return;
    }
    PyObject *descr = type_attr(rec, Py_TYPE(object), name);
    if (descr && Py_TYPE(descr)->tp_descr_set) {
        store_by_descriptor(rec, descr, object, name, value);
        return;
    }
    /* a delete moves what is stored later to the end of the dict: that takes the whole contents to be put back */
    PyObject *dict = value ? mp_raw_dict(object) : materialised_dict(rec, object);
    if (dict) {
        mp_rec_read(rec, object, MP_READ_DICT, NULL, dict);
        if (value)
            mp_rec_write(rec, dict, MP_WRITE_KEY, name, value);
        else
            mp_rec_own(rec, dict);
    } else if (may_have_dict(object))
        mp_rec_write(rec, object, MP_WRITE_ATTR, name, value);
}

void mp_rec_store_attr(mp_recorder *rec, PyObject *object, PyObject *name, PyObject *value)
{
    if (mp_is_array(object)) {
        mp_array_store_attr(rec, object, name);
        return;
    }
    if (mp_is_array_flags(object)) mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "flags of a numpy array are set");
    PyTypeObject *type = Py_TYPE(object);
    const char *hook = value ? "__setattr__" : "__delattr__";
    if (mp_is_tensor(object) && PyUnicode_CheckExact(name)) { /* C setters of tensors arrive by the torch mode */
        PyObject *descr = mp_raw_type_lookup(type, name);
        if (descr && Py_IS_TYPE(descr, &PyGetSetDescr_Type)) return;
    }
    mp_rec_type(rec, object);
    PyObject *setter = lookup(type, hook);
    if (setter && PyFunction_Check(setter)) {
        type_attr_named(rec, type, hook); /* its frame shows the rest */
        return;
    }
    void *function =
        setter && Py_IS_TYPE(setter, &PyWrapperDescr_Type) ? ((PyWrapperDescrObject *)setter)->d_wrapped : NULL;
    PyTypeObject *local = mp_type_thread_local();
    if (function == (void *)PyObject_GenericSetAttr || function == (void *)PyType_Type.tp_setattro)
        mp_rec_generic_store(rec, object, name, value);
    else if (mp_rec_ensure(rec, object) == MP_NO_OBJ)
        return;
    else if (local && PyType_IsSubtype(type, local) && PyUnicode_CheckExact(name))
        mp_rec_write(rec, object, MP_WRITE_ATTR, name, value);
    else
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "an attribute of a %s is set", type->tp_name);
}
