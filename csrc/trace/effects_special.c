/* Handlers of the C callables whose effect no class describes: attributes by name, type tests, dict look-ups, context variables,
** weak references. Each records what the C code is about to read and write, with raw looks.
*/
#include "trace/arrays.h"
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

/* -- Helpers ---------------------------------------------------------------------------------------------------------- */

static PyObject *argument(const mp_call *call, Py_ssize_t i) { return i < call->nargs ? call->args[i] : NULL; }

static PyObject *keyword(const mp_call *call, const char *name)
{
    for (Py_ssize_t i = 0; i < call->nkw; i++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, i), name) == 0) return call->kwvalues[i];
    return NULL;
}

static bool is_object(PyObject *object) { return object && !mp_is_scalar(object) && !mp_is_tensor(object); }

static void no_memory(mp_call *call)
{
    PyErr_Clear();
    mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "call");
}

static void read_attr_named(mp_recorder *rec, PyObject *object, const char *name)
{
    mp_kept kept = mp_keep();
    PyObject *key = mp_intern(name);
    if (key) mp_rec_attr(rec, object, key);
    Py_XDECREF(key);
    mp_restore(kept);
}

/* -- Attributes by name ------------------------------------------------------------------------------------------------- */

void mp_handle_getattr(mp_call *call)
{
    call->rec->gives_read = true;
    if (call->nargs >= 2 && !mp_is_scalar(call->args[0])) mp_rec_attr(call->rec, call->args[0], call->args[1]);
}

void mp_handle_generic_getattr(mp_call *call)
{
    call->rec->gives_read = true;
    if (call->nargs >= 2 && !mp_is_scalar(call->args[0])) mp_rec_generic_attr(call->rec, call->args[0], call->args[1]);
}

void mp_handle_setattr(mp_call *call)
{
    if (call->nargs == 3) mp_rec_store_attr(call->rec, call->args[0], call->args[1], call->args[2]);
}

void mp_handle_delattr(mp_call *call)
{
    if (call->nargs != 2) return;
    mp_rec_attr(call->rec, call->args[0], call->args[1]);
    mp_rec_store_attr(call->rec, call->args[0], call->args[1], NULL);
}

/* object.__setattr__ and __delattr__ are one C function: three arguments or two. */
void mp_handle_generic_setattr(mp_call *call)
{
    if (call->nargs < 2) return;
    if (call->nargs == 2) mp_rec_generic_attr(call->rec, call->args[0], call->args[1]);
    mp_rec_generic_store(call->rec, call->args[0], call->args[1], argument(call, 2));
}

void mp_handle_globals(mp_call *call)
{
    if (call->frame->globals && mp_rec_find(call->rec, call->frame->globals) == MP_NO_OBJ)
        mp_rec_pin(call->rec, call->frame->globals, "globals");
}

/* -- Types and identity ----------------------------------------------------------------------------------------------------- */

static void class_info(mp_call *call, PyObject *info, int depth)
{
    if (PyTuple_Check(info) && depth < 16) {
        mp_rec_whole(call->rec, info);
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(info); i++) class_info(call, PyTuple_GET_ITEM(info, i), depth + 1);
    } else if (PyType_Check(info)) {
        mp_rec_type_dunders(call->rec, (PyTypeObject *)info);
        if (Py_IS_TYPE(info, &PyType_Type)) return;
        mp_rec_type(call->rec, info);
        mp_type_attr_named(call->rec, Py_TYPE(info), "__instancecheck__");
        mp_type_attr_named(call->rec, Py_TYPE(info), "__subclasscheck__");
    } else
        mp_rec_deep(call->rec, info);
}

void mp_handle_isinstance(mp_call *call)
{
    if (call->nargs != 2) return;
    if (is_object(call->args[0])) mp_rec_type(call->rec, call->args[0]);
    if (PyType_Check(call->args[0])) mp_rec_type_dunders(call->rec, (PyTypeObject *)call->args[0]);
    class_info(call, call->args[1], 0);
}

/* type.__instancecheck__(cls, object), as a metaclass in Python calls it. */
void mp_handle_instancecheck(mp_call *call)
{
    if (call->nargs != 2) return;
    if (is_object(call->args[1])) mp_rec_type(call->rec, call->args[1]);
    if (PyType_Check(call->args[1])) mp_rec_type_dunders(call->rec, (PyTypeObject *)call->args[1]);
    if (PyType_Check(call->args[0])) mp_rec_type_dunders(call->rec, (PyTypeObject *)call->args[0]);
}

/* What an abstract class counts as its own changes by ABC.register: the cache token tells. */
void mp_handle_abc_check(mp_call *call)
{
    mp_handle_instancecheck(call);
    mp_kept kept = mp_keep();
    PyObject *none = PyTuple_New(0), *getter = mp_import("_abc", "get_cache_token");
    PyObject *token = getter ? PyObject_CallNoArgs(getter) : NULL;
    if (token && none && mp_rec_ensure(call->rec, getter) != MP_NO_OBJ)
        mp_rec_read(call->rec, getter, MP_READ_STATE_CALL, none, token);
    else
        mp_rec_abandon(call->rec, MP_REASON_UNGUARDABLE, "the cache token of abstract classes");
    Py_XDECREF(none);
    Py_XDECREF(getter);
    Py_XDECREF(token);
    mp_restore(kept);
}

static void made_inside(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    if (slot && *slot && !mp_is_scalar(*slot)) mp_rec_internal(rec, *slot);
    Py_XDECREF(data);
}

void mp_handle_build_class(mp_call *call) { mp_rec_pend(call->rec, call->frame, made_inside, NULL); }

void mp_handle_type_type(mp_call *call)
{
    if (call->nargs == 1) {
        if (is_object(call->args[0])) mp_rec_type(call->rec, call->args[0]);
    } else
        mp_handle_build_class(call);
}

/* type.__call__(cls, ...), as a metaclass in Python calls it. */
void mp_handle_type(mp_call *call)
{
    if (!call->nargs || !PyType_Check(call->args[0])) return;
    mp_call inner = *call;
    inner.callable = call->args[0];
    inner.args++;
    inner.nargs--;
    mp_call_type(&inner, true);
}

enum { FAST_FREE = 0x80 }; /* CO_FAST_FREE of CPython's pycore_code.h, 3.11 */

/* super() without arguments looks into the frame's __class__ cell. */
static void read_class_cell(mp_call *call)
{
    PyCodeObject *code = call->frame->code;
    if (!code) return;
    const char *kinds = PyBytes_AS_STRING(code->co_localspluskinds);
    for (int i = 0; i < code->co_nlocalsplus; i++) {
        PyObject *cell = call->frame->localsplus[i];
        if (!(kinds[i] & FAST_FREE) || !cell || !PyCell_Check(cell)) continue;
        PyObject *name = PyTuple_GET_ITEM(code->co_localsplusnames, i);
        if (PyUnicode_CompareWithASCIIString(name, "__class__") == 0)
            mp_rec_read(call->rec, cell, MP_READ_CELL, NULL, PyCell_GET(cell));
    }
}

void mp_handle_super(mp_call *call)
{
    if (!call->nargs) read_class_cell(call);
    for (Py_ssize_t i = 0; i < call->nargs; i++)
        if (is_object(call->args[i])) mp_rec_type(call->rec, call->args[i]);
}

static bool named(const mp_call *call, const char *name)
{ return PyCFunction_Check(call->callable) && !strcmp(((PyCFunctionObject *)call->callable)->m_ml->ml_name, name); }

/* The module copy asks for addresses to tell the objects that it copies apart: of a single one nothing is learned. */
static bool only_copied(mp_recorder *rec, PyObject *object)
{
    mp_obj_id id = mp_rec_find(rec, object);
    if (id == MP_NO_OBJ || rec->copied == id + 1) return true;
    if (!rec->copied) {
        rec->copied = id + 1;
        return true;
    }
    PyObject *other = rec->recording ? mp_object_get(&rec->recording->objects[rec->copied - 1]) : NULL;
    if (other) mp_rec_identity(rec, other);
    return false;
}

/* id, and the hash or text that is made of it. */
void mp_handle_identity(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (!object || mp_is_scalar(object)) return;
    if (named(call, "id") && mp_is_copy_code(call->frame->code) && only_copied(call->rec, object)) return;
    bool by_address = !named(call, "hash") || Py_TYPE(object)->tp_hash == PyBaseObject_Type.tp_hash;
    if (by_address)
        mp_rec_identity(call->rec, object);
    else
        mp_effect_read(call, object, true);
}

/* copy.copy and pickle ask an object how it is made: its class and its whole state. */
void mp_handle_reduce_ex(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (!is_object(object)) return;
    mp_rec_type(call->rec, object);
    mp_rec_type_dunders(call->rec, Py_TYPE(object));
    if (PyType_Check(object) || PyFunction_Check(object)) return;
    if (mp_is_container(object)) mp_rec_whole(call->rec, object);
    if (!mp_is_container(object)) mp_rec_foreign(call->rec, object);
    PyObject *slots = NULL;
    mp_kept kept = mp_keep();
    PyObject *name = mp_intern("__slots__");
    if (name) slots = mp_raw_type_lookup(Py_TYPE(object), name);
    Py_XDECREF(name);
    mp_restore(kept);
    if (slots && mp_rec_find(call->rec, object) != MP_NO_OBJ)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "an object with __slots__");
    else if (mp_raw_dict(object) || Py_TYPE(object)->tp_dictoffset)
        read_attr_named(call->rec, object, "__dict__");
}

/* function.__call__(...) */
void mp_handle_call_self(mp_call *call)
{
    if (!call->nargs) return;
    mp_call inner = *call;
    inner.callable = call->args[0];
    inner.args++;
    inner.nargs--;
    mp_call_any(&inner);
}

/* -- Text and numbers ------------------------------------------------------------------------------------------------------------ */

/* format(x), repr(x): the default text holds the address. */
void mp_handle_format(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (is_object(object) && Py_TYPE(object)->tp_repr == PyBaseObject_Type.tp_repr) mp_rec_identity(call->rec, object);
    if (is_object(object)) mp_rec_shown(call->rec, object);
    mp_effect_read_all(call, 0, true);
}

/* Do replacement fields look at attributes or items ("{0.shape}")? */
static bool looks_inside(PyObject *text)
{
    const char *at = PyUnicode_AsUTF8(text);
    if (!at) {
        PyErr_Clear();
        return true;
    }
    while ((at = strchr(at, '{'))) {
        if (at[1] == '{') {
            at += 2;
            continue;
        }
        size_t field = strcspn(at, "}:!"), inside = strcspn(at, ".[");
        if (inside < field) return true;
        at++;
    }
    return false;
}

void mp_handle_str_format(mp_call *call)
{
    PyObject *text = argument(call, 0);
    if (text && PyUnicode_Check(text) && looks_inside(text)) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "a field that looks at attributes or items");
        return;
    }
    mp_effect_read_all(call, 0, true);
}

/* int(x), float(x), bool(x), str(x) */
void mp_handle_convert(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (PyType_IsSubtype((PyTypeObject *)call->callable, &PyBool_Type) && object) {
        mp_rec_truth(call->rec, object);
        return;
    }
    mp_handle_format(call);
}

/* -- operator ------------------------------------------------------------------------------------------------------------------------ */

void mp_handle_subscript(mp_call *call)
{
    if (call->nargs != 2) return;
    mp_rec_subscript(call->rec, call->args[0], call->args[1]);
    mp_effect_check_result(call);
}

void mp_handle_raw_subscript(mp_call *call)
{
    if (call->nargs != 2) return;
    mp_effect_read(call, call->args[1], true);
    mp_rec_raw_subscript(call->rec, call->args[0], call->args[1]);
    mp_effect_check_result(call);
}

void mp_handle_store_subscript(mp_call *call)
{
    if (call->nargs < 2) return;
    mp_effect_read(call, call->args[1], true);
    mp_rec_raw_store_subscript(call->rec, call->args[0], call->args[1], argument(call, 2));
}

void mp_handle_truth(mp_call *call)
{
    if (call->nargs) mp_rec_truth(call->rec, call->args[0]);
}

void mp_handle_attrgetter(mp_call *call)
{
    PyObject *object = argument(call, 0), *parts = NULL;
    if (!object || mp_is_scalar(object)) return;
    mp_kept kept = mp_keep();
    PyObject *state = PyObject_CallMethod(call->callable, "__reduce__", NULL);
    if (state && PyTuple_Check(state) && PyTuple_GET_SIZE(state) > 1) parts = PyTuple_GET_ITEM(state, 1);
    for (Py_ssize_t i = 0; parts && PyTuple_Check(parts) && i < PyTuple_GET_SIZE(parts); i++) {
        PyObject *name = PyTuple_GET_ITEM(parts, i);
        if (PyUnicode_FindChar(name, '.', 0, PyUnicode_GET_LENGTH(name), 1) >= 0)
            mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "a dotted name");
        else
            mp_rec_attr(call->rec, object, name);
    }
    if (!parts) no_memory(call);
    Py_XDECREF(state);
    mp_restore(kept);
}

void mp_handle_itemgetter(mp_call *call)
{
    PyObject *object = argument(call, 0), *parts = NULL;
    if (!object || mp_is_scalar(object)) return;
    mp_kept kept = mp_keep();
    PyObject *state = PyObject_CallMethod(call->callable, "__reduce__", NULL);
    if (state && PyTuple_Check(state) && PyTuple_GET_SIZE(state) > 1) parts = PyTuple_GET_ITEM(state, 1);
    for (Py_ssize_t i = 0; parts && PyTuple_Check(parts) && i < PyTuple_GET_SIZE(parts); i++)
        mp_rec_subscript(call->rec, object, PyTuple_GET_ITEM(parts, i));
    if (!parts) no_memory(call);
    Py_XDECREF(state);
    mp_restore(kept);
}

/* A JSON encoder or scanner in C is what it was made as; it may call what it was given. */
void mp_handle_json(mp_call *call)
{
    static const char *const calls[] = {"default",           "encoder",     "object_hook",
                                        "object_pairs_hook", "parse_float", "parse_int"};
    mp_kept kept = mp_keep();
    mp_rec_identity(call->rec, call->callable);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        PyObject *inside = mp_raw_member(Py_TYPE(call->callable), calls[i], call->callable);
        if (inside && inside != Py_None) mp_effect_callback(call, inside);
        Py_XDECREF(inside);
    }
    mp_effect_read_all(call, 0, true);
    mp_effect_check_result(call);
    mp_restore(kept);
}

/* Calls a method: the attribute is read, and what is found must be a Python function or belong to torch. */
void mp_handle_methodcaller(mp_call *call)
{
    PyObject *object = argument(call, 0), *name = NULL;
    if (!object) return;
    mp_kept kept = mp_keep();
    PyObject *state = PyObject_CallMethod(call->callable, "__reduce__", NULL);
    PyObject *parts = state && PyTuple_Check(state) && PyTuple_GET_SIZE(state) > 1 ? PyTuple_GET_ITEM(state, 1) : NULL;
    if (parts && PyTuple_Check(parts) && PyTuple_GET_SIZE(parts)) name = PyTuple_GET_ITEM(parts, 0);
    if (name && PyUnicode_Check(name)) {
        mp_rec_attr(call->rec, object, name);
        PyObject *found = mp_raw_type_lookup(Py_TYPE(object), name);
        const mp_effect *effect = found && !PyFunction_Check(found) ? mp_effect_of(found) : NULL;
        if (mp_is_scalar(object) || (found && PyFunction_Check(found)) || (effect && effect->effect == MP_EFFECT_TORCH))
            ;
        else
            mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "a method in C");
    } else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "keyword arguments");
    Py_XDECREF(state);
    mp_restore(kept);
}

/* -- Containers ------------------------------------------------------------------------------------------------------------------------ */

void mp_handle_len(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (!object) return;
    if (mp_is_array(object)) {
        mp_array_is_data(call->rec, object); /* how it lies in memory is guarded */
        return;
    }
    if (is_object(object) && mp_type_mutable(Py_TYPE(object)))
        mp_type_attr_named(call->rec, Py_TYPE(object), "__len__");
    if (mp_type_python(Py_TYPE(object), "__len__") && !mp_is_tensor(object)) {
        mp_rec_type(call->rec, object); /* the method's frame shows the rest; a raw len of the base shows itself */
        if (!PyCFunction_Check(call->callable)) mp_rec_truth(call->rec, object);
    } else if (!PyList_CheckExact(object) || !mp_number_length(call->rec, call->frame, object))
        mp_rec_truth(call->rec, object);
}

void mp_handle_iter(mp_call *call)
{
    if (call->nargs == 2)
        mp_effect_callback(call, call->args[0]);
    else if (call->nargs == 1)
        mp_rec_iterate(call->rec, call->args[0]);
    mp_effect_check_result(call);
}

void mp_handle_next(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (!is_object(object)) return;
    mp_rec_type(call->rec, object);
    if (mp_type_python(Py_TYPE(object), "__next__") || mp_rec_find(call->rec, object) == MP_NO_OBJ) return;
    if (call->nargs == 1 && mp_draw_next(call, object)) return;
    mp_rec_abandon(call->rec, MP_REASON_EXTERNAL_ITERATOR, "%s", Py_TYPE(object)->tp_name);
}

void mp_handle_generator(mp_call *call)
{
    PyObject *object = argument(call, 0);
    if (object && mp_rec_find(call->rec, object) != MP_NO_OBJ)
        mp_rec_abandon(call->rec, MP_REASON_EXTERNAL_ITERATOR, "%s", Py_TYPE(object)->tp_name);
}

void mp_handle_list_append(mp_call *call)
{
    if (call->nargs != 2 || !PyList_Check(call->args[0])) return;
    mp_rec_type(call->rec, call->args[0]);
    mp_rec_append(call->rec, call->args[0], call->args[1]);
}

/* Read one key of a dict as the C code will, whatever methods a subclass has. False if it cannot be told. */
static bool read_key(mp_call *call, PyObject *dict, PyObject *key, mp_read_kind kind, PyObject **value)
{
    *value = NULL;
    if (!mp_is_scalar(key)) mp_effect_read(call, key, true);
    if (mp_rec_find(call->rec, dict) == MP_NO_OBJ) return false;
    if (!mp_key_safe(key)) mp_rec_whole(call->rec, dict);
    bool known;
    *value = mp_raw_dict_item(dict, key, &known);
    if (!known) {
        mp_rec_abandon(call->rec, MP_REASON_UNGUARDABLE, "a dict key whose class %s has its own __eq__",
                       Py_TYPE(key)->tp_name);
        return false;
    }
    PyObject *was = kind == MP_READ_HAS ? (*value ? Py_True : Py_False) : *value;
    mp_rec_read(call->rec, dict, kind, key, was);
    return true;
}

void mp_handle_dict_get(mp_call *call)
{
    PyObject *value;
    if (call->nargs < 2 || !PyDict_Check(call->args[0])) return;
    call->rec->gives_read = true;
    mp_rec_type(call->rec, call->args[0]);
    read_key(call, call->args[0], call->args[1], MP_READ_KEY, &value);
}

void mp_handle_dict_setdefault(mp_call *call)
{
    PyObject *value, *other = argument(call, 2);
    if (call->nargs < 2 || !PyDict_Check(call->args[0])) return;
    mp_rec_type(call->rec, call->args[0]);
    if (!other) other = keyword(call, "default");
    if (read_key(call, call->args[0], call->args[1], MP_READ_KEY, &value) && !value)
        mp_rec_write(call->rec, call->args[0], MP_WRITE_KEY, call->args[1], other ? other : Py_None);
}

void mp_handle_dict_pop(mp_call *call)
{
    PyObject *value;
    if (call->nargs < 2 || !PyDict_Check(call->args[0])) return;
    mp_rec_type(call->rec, call->args[0]);
    if (read_key(call, call->args[0], call->args[1], MP_READ_KEY, &value) && value)
        mp_rec_raw_store_subscript(call->rec, call->args[0], call->args[1], NULL);
}

/* key in container: operator.contains goes by the class, the methods of the built-in containers do not. */
void mp_handle_contains(mp_call *call)
{
    if (call->nargs != 2) return;
    PyObject *container = call->args[0], *value;
    if (PyCFunction_Check(call->callable) && named(call, "contains"))
        mp_rec_contains(call->rec, container, call->args[1]);
    else if (PyDict_Check(container)) {
        mp_rec_type(call->rec, container);
        read_key(call, container, call->args[1], MP_READ_HAS, &value);
    } else
        mp_effect_read_all(call, 0, true);
}

typedef struct { /* mappingproxy, private to CPython's Objects/descrobject.c (3.11) */
    PyObject_HEAD PyObject *mapping;
} proxy_object;

/* A read-only view: what is read is the mapping behind it. */
void mp_handle_proxy(mp_call *call)
{
    PyObject *proxy = argument(call, 0), *value;
    if (!proxy || !Py_IS_TYPE(proxy, &PyDictProxy_Type)) return;
    PyObject *mapping = ((proxy_object *)proxy)->mapping;
    if (mp_rec_find(call->rec, proxy) != MP_NO_OBJ) {
        mp_rec_whole(call->rec, proxy); /* gives up: the way from a proxy to its mapping is no location */
        return;
    }
    if (!PyDict_Check(mapping)) return;
    mp_kept kept = mp_keep();
    PyObject *name = mp_callable_name(call->callable);
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    const char *method = text && strrchr(text, '.') ? strrchr(text, '.') + 1 : "";
    bool one = !strcmp(method, "get") || !strcmp(method, "__getitem__") || !strcmp(method, "__contains__");
    bool has = !strcmp(method, "__contains__");
    Py_XDECREF(name);
    mp_restore(kept);
    if (one && call->nargs >= 2)
        read_key(call, mapping, call->args[1], has ? MP_READ_HAS : MP_READ_KEY, &value);
    else
        mp_rec_whole(call->rec, mapping);
}

/* -- weakref, contextvars ------------------------------------------------------------------------------------------------------ */

void mp_handle_weakref(mp_call *call)
{
    if (!PyWeakref_Check(call->callable)) return;
    PyObject *referent = PyWeakref_GET_OBJECT(call->callable);
    if (mp_rec_find(call->rec, call->callable) != MP_NO_OBJ)
        mp_rec_read(call->rec, call->callable, MP_READ_DEREF, NULL, referent == Py_None ? NULL : referent);
    else
        mp_effect_check_result(call);
}

void mp_handle_context_new(mp_call *call) { mp_rec_pend(call->rec, call->frame, made_inside, NULL); }

static bool context_variable(mp_call *call)
{
    PyObject *variable = argument(call, 0);
    if (!variable || !PyContextVar_CheckExact(variable) || mp_rec_is_internal(call->rec, variable)) return false;
    return mp_rec_pin(call->rec, variable, "context variable") != MP_NO_OBJ;
}

static void read_context_variable(mp_call *call)
{
    static PyObject *unset; /* owned for ever: any object of our own */
    mp_kept kept = mp_keep();
    if (!unset) unset = PyList_New(0);
    PyObject *value = NULL;
    if (!unset || PyContextVar_Get(call->args[0], unset, &value) < 0)
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "context variable");
    else
        mp_rec_read(call->rec, call->args[0], MP_READ_CONTEXT_VAR, NULL, value == unset ? NULL : value);
    Py_XDECREF(value);
    mp_restore(kept);
}

void mp_handle_context_get(mp_call *call)
{
    if (context_variable(call)) read_context_variable(call);
}

void mp_handle_context_set(mp_call *call)
{
    if (call->nargs != 2 || !context_variable(call)) return;
    read_context_variable(call); /* what reset will bring back */
    mp_rec_write(call->rec, call->args[0], MP_WRITE_CONTEXT_VAR, NULL, call->args[1]);
}

void mp_handle_context_reset(mp_call *call)
{
    if (call->nargs != 2 || !context_variable(call)) return;
    mp_kept kept = mp_keep();
    if (mp_rec_find(call->rec, call->args[1]) != MP_NO_OBJ)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "a token from outside the call");
    PyObject *old =
        PyObject_GetAttrString(call->args[1], "old_value"); /* a C getter of Token; another type raises in reset too */
    PyObject *missing = old ? PyObject_GetAttrString((PyObject *)Py_TYPE(call->args[1]), "MISSING") : NULL;
    if (missing) mp_rec_write(call->rec, call->args[0], MP_WRITE_CONTEXT_VAR, NULL, old == missing ? NULL : old);
    Py_XDECREF(old);
    Py_XDECREF(missing);
    mp_restore(kept);
}
