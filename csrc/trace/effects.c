/* Effects: the table of C callables, resolved once, and what each class of effect records. */
#include "trace/arrays.h"
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <frameobject.h>

/* -- Keys ------------------------------------------------------------------------------------------------------------ */

/* What is keyed: the callable itself, a type being called, an instance of a type being called, a torch function shown by the mode,
** a member of tensors shown by the mode. C functions are aligned, so the kind goes into the low bits. */
enum { KEY_FUNCTION, KEY_TYPE, KEY_INSTANCE, KEY_SEEN, KEY_MEMBER };

typedef struct { /* bound slot wrapper, private to CPython's Objects/descrobject.c (3.11) */
    PyObject_HEAD PyWrapperDescrObject *descr;
    PyObject *self;
} method_wrapper;

static PyCFunction new_wrapper; /* what every type's __new__ is */

static bool is_pybind(PyObject *self) { return self && strncmp(Py_TYPE(self)->tp_name, "pybind11_builtins.", 18) == 0; }

/* The address that stands for what the callable does, or NULL if it is no C function. */
static const void *function_address(PyObject *callable)
{
    PyTypeObject *type = Py_TYPE(callable);
    if (type == &PyCFunction_Type || PyCFunction_Check(callable)) {
        PyCFunctionObject *function = (PyCFunctionObject *)callable;
        return is_pybind(function->m_self) ? (const void *)function->m_self : (const void *)function->m_ml->ml_meth;
    }
    if (type == &PyMethodDescr_Type || type == &PyClassMethodDescr_Type)
        return (const void *)((PyMethodDescrObject *)callable)->d_method->ml_meth;
    if (type == &PyInstanceMethod_Type) return function_address(PyInstanceMethod_GET_FUNCTION(callable));
    if (type == &PyWrapperDescr_Type) return ((PyWrapperDescrObject *)callable)->d_wrapped;
    if (type == &_PyMethodWrapper_Type) return ((method_wrapper *)callable)->descr->d_wrapped;
    if (type == &PyFunction_Type) return ((PyFunctionObject *)callable)->func_code; /* known as a whole by its code */
    if (strstr(type->tp_name, "cython_function_or_method")) return callable;
    return NULL;
}

static const void *tagged(const void *address, int kind)
{ return (const char *)address + (size_t)kind * 0x100000000000000; }

/* -- The table ------------------------------------------------------------------------------------------------------- */

/* Process-wide like the C functions it is about: filled once, never freed. `kept` owns whatever must not go away for an address to keep
** its meaning. */
static struct {
    mp_map index; /* tagged address -> entry */
    mp_effect *entries;
    uint32_t n, room;
    PyObject *kept;    /* list */
    PyObject *missing; /* list of names that were not found, for the tests */
    PyObject *clashes; /* list of names that met another class under the same address, for the tests */
    bool base_done, torch_done;
} table;

typedef enum { ROW_FUNCTIONS, ROW_TYPES, ROW_INSTANCES, ROW_SEEN, ROW_MEMBERS } row_kind;
typedef struct {
    row_kind kind;
    mp_effect_class effect;
    mp_effect_handler handler;
    const char *where, *names;
} table_row;

static const table_row rows[] = {
#define FUNCTIONS(effect, where, names) {ROW_FUNCTIONS, MP_EFFECT_##effect, NULL, where, names},
#define TYPES(effect, where, names) {ROW_TYPES, MP_EFFECT_##effect, NULL, where, names},
#define INSTANCES(effect, where, names) {ROW_INSTANCES, MP_EFFECT_##effect, NULL, where, names},
#define SEEN(effect, where, names) {ROW_SEEN, MP_EFFECT_##effect, NULL, where, names},
#define SEEN_MEMBERS(effect, where, names) {ROW_MEMBERS, MP_EFFECT_##effect, NULL, where, names},
#define HANDLED(handler, where, names) {ROW_FUNCTIONS, MP_EFFECT_SPECIAL, mp_handle_##handler, where, names},
#define HANDLED_TYPES(handler, where, names) {ROW_TYPES, MP_EFFECT_SPECIAL, mp_handle_##handler, where, names},
#define HANDLED_INSTANCES(handler, where, names) {ROW_INSTANCES, MP_EFFECT_SPECIAL, mp_handle_##handler, where, names},
#include "trace/effects_table.h"
#undef FUNCTIONS
#undef TYPES
#undef INSTANCES
#undef SEEN
#undef SEEN_MEMBERS
#undef HANDLED
#undef HANDLED_TYPES
#undef HANDLED_INSTANCES
};

static const char *const class_names[] = {
#define MP_EFFECT_CLASS(name, text) #name,
    MP_EFFECT_CLASSES(MP_EFFECT_CLASS)
#undef MP_EFFECT_CLASS
};

static const mp_effect *find(const void *address, int kind)
{
    uint32_t i = address ? mp_map_get(&table.index, tagged(address, kind)) : MP_MAP_NONE;
    return i == MP_MAP_NONE ? NULL : &table.entries[i];
}

/* Enter a callable. 1 entered, 0 there was an entry already, -1 without memory. */
static int enter(const void *address, int kind, mp_effect effect, bool replace)
{
    uint32_t old = mp_map_get(&table.index, tagged(address, kind));
    if (old != MP_MAP_NONE) {
        if (replace) table.entries[old] = effect;
        return 0;
    }
    if (table.n == table.room) {
        uint32_t room = table.room ? table.room * 2 : 4096;
        mp_effect *bigger = PyMem_RawRealloc(table.entries, room * sizeof *bigger);
        if (!bigger) return -1;
        table.entries = bigger;
        table.room = room;
    }
    if (mp_map_put(&table.index, tagged(address, kind), table.n) < 0) return -1;
    table.entries[table.n++] = effect;
    return 1;
}

/* -- Resolving rows ------------------------------------------------------------------------------------------------------ */

/* The module or type of a full name: the longest importable prefix, then attributes. Owned, or NULL without an exception. torch is
** never imported for it. */
static PyObject *resolve(const char *where)
{
    char prefix[160];
    size_t n = strlen(where);
    if (n >= sizeof prefix) return NULL;
    memcpy(prefix, where, n + 1);
    PyObject *found = NULL;
    bool torch = strncmp(where, "torch", 5) == 0;
    for (char *end = prefix + n; end && !found; end = strrchr(prefix, '.')) {
        *end = 0;
        PyObject *name = PyUnicode_FromString(prefix);
        found = name ? PyImport_GetModule(name) : NULL;
        if (!found && name && !torch) found = PyImport_Import(name);
        PyErr_Clear();
        Py_XDECREF(name);
        n = strlen(prefix);
    }
    while (found && where[n]) {
        const char *start = where + n + 1, *stop = strchr(start, '.');
        n = stop ? (size_t)(stop - where) : strlen(where);
        PyObject *name = PyUnicode_FromStringAndSize(start, (Py_ssize_t)(where + n - start));
        PyObject *next = name ? PyObject_GetAttr(found, name) : NULL;
        Py_XDECREF(name);
        Py_SETREF(found, next);
    }
    PyErr_Clear();
    return found;
}

static int note(PyObject *list, const table_row *row, const char *name)
{
    PyObject *text = PyUnicode_FromFormat("%s %s.%s", class_names[row->effect], row->where, name);
    int failed = !text || PyList_Append(list, text) < 0;
    Py_XDECREF(text);
    return failed ? -1 : 0;
}

/* 0, or -1 without memory. The value's address keeps its meaning: it is kept alive for ever. */
static int enter_value(const table_row *row, PyObject *value, const char *name, bool wildcard)
{
    static const int kinds[] = {KEY_FUNCTION, KEY_TYPE, KEY_INSTANCE, KEY_SEEN, KEY_MEMBER};
    const void *address;
    switch (row->kind) {
    case ROW_FUNCTIONS: address = function_address(value); break;
    case ROW_SEEN: address = PyFunction_Check(value) ? (const void *)value : function_address(value); break;
    case ROW_MEMBERS: address = PyObject_TypeCheck(value, &PyGetSetDescr_Type) ? value : NULL; break;
    default: address = PyType_Check(value) ? value : NULL;
    }
    if (!address || address == (const void *)new_wrapper) return wildcard ? 0 : note(table.missing, row, name);
    mp_effect effect = {(uint8_t)row->effect, row->handler, row->where};
    int entered = enter(address, kinds[row->kind], effect, false);
    if (entered < 0 || PyList_Append(table.kept, value) < 0) return -1;
    if (PyFunction_Check(value) && PyList_Append(table.kept, PyFunction_GET_CODE(value)) < 0) return -1;
    const mp_effect *there = find(address, kinds[row->kind]);
    if (!entered && !wildcard && (there->effect != effect.effect || there->handler != effect.handler))
        return note(table.clashes, row, name);
    return 0;
}

static int enter_all(const table_row *row, PyObject *owner)
{
    PyObject *names = PyObject_Dir(owner);
    PyObject *own = PyType_Check(owner) ? ((PyTypeObject *)owner)->tp_dict : NULL;
    int failed = !names;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(names); i++) {
        PyObject *name = PyList_GET_ITEM(names, i);
        if (own && !PyDict_GetItem(own, name)) continue; /* inherited */
        PyObject *value = PyObject_GetAttr(owner, name);
        if (!value) {
            PyErr_Clear();
            continue;
        }
        failed = enter_value(row, value, "", true) < 0;
        Py_DECREF(value);
    }
    Py_XDECREF(names);
    return failed ? -1 : 0;
}

static int enter_row(const table_row *row)
{
    PyObject *owner = resolve(row->where);
    if (!owner) return note(table.missing, row, "");
    if (!strcmp(row->names, "*")) {
        int done = enter_all(row, owner);
        Py_DECREF(owner);
        return done;
    }
    int failed = 0;
    for (const char *at = row->names; *at && !failed;) {
        char name[96];
        size_t n = strcspn(at, " ");
        bool optional = n && at[n - 1] == '?';
        size_t keep = optional ? n - 1 : n;
        if (keep >= sizeof name) keep = sizeof name - 1;
        memcpy(name, at, keep);
        name[keep] = 0;
        at += n + (at[n] == ' ');
        PyObject *value = PyObject_GetAttrString(owner, name);
        PyErr_Clear();
        if (value)
            failed = enter_value(row, value, name, optional) < 0;
        else if (!optional)
            failed = note(table.missing, row, name) < 0;
        Py_XDECREF(value);
    }
    Py_DECREF(owner);
    return failed ? -1 : 0;
}

static bool enter_rows(bool torch)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if ((strncmp(rows[i].where, "torch", 5) == 0) == torch && enter_row(&rows[i]) < 0) return false;
    return true;
}

bool mp_effects_ready(void)
{
    if (MP_LIKELY(table.torch_done)) return true;
    mp_kept kept = mp_keep();
    bool good = true;
    if (!table.base_done) {
        PyObject *object_new = PyObject_GetAttrString((PyObject *)&PyBaseObject_Type, "__new__");
        if (object_new) new_wrapper = ((PyCFunctionObject *)object_new)->m_ml->ml_meth;
        Py_XDECREF(object_new);
        if (!table.kept) table.kept = PyList_New(0);
        if (!table.missing) table.missing = PyList_New(0);
        if (!table.clashes) table.clashes = PyList_New(0);
        good = object_new && table.kept && table.missing && table.clashes && enter_rows(false);
        table.base_done = good;
    }
    if (good && mp_torch_names_ready()) good = table.torch_done = enter_rows(true);
    mp_restore(kept);
    return good;
}

const mp_effect *mp_effect_of(PyObject *callable)
{
    const mp_effect *effect = find(callable, KEY_FUNCTION); /* declared by the user */
    return effect ? effect : find(function_address(callable), KEY_FUNCTION);
}

const mp_effect *mp_effect_of_function(PyObject *function)
{ return mp_effects_ready() ? mp_effect_of(function) : NULL; }

const mp_effect *mp_effect_of_type(PyTypeObject *type) { return find(type, KEY_TYPE); }
const mp_effect *mp_effect_of_instance(PyTypeObject *type) { return find(type, KEY_INSTANCE); }

const mp_effect *mp_effect_of_torch(PyObject *func)
{
    static const mp_effect store = {MP_EFFECT_REFUSED, NULL, "a tensor's attribute is set"};
    if (Py_IS_TYPE(func, &_PyMethodWrapper_Type)) {
        method_wrapper *wrapper = (method_wrapper *)func;
        if (!Py_IS_TYPE(wrapper->self, &PyGetSetDescr_Type)) return NULL;
        const char *name = wrapper->descr->d_base->name;
        return strcmp(name, "__get__") ? &store : find(wrapper->self, KEY_MEMBER);
    }
    return find(PyFunction_Check(func) ? (const void *)func : function_address(func), KEY_SEEN);
}

/* -- Users' declarations ---------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    mp_effect_class effect;
} declarable[] = {
    {"pure", MP_EFFECT_PURE},     {"reads", MP_EFFECT_READS},     {"iterates", MP_EFFECT_ITERATES},
    {"makes", MP_EFFECT_MAKES},   {"writes", MP_EFFECT_COMPARES}, {"nothing", MP_EFFECT_NOTHING},
    {"opaque", MP_EFFECT_OPAQUE}, {"unknown", MP_EFFECT_UNKNOWN}, {"effect", MP_EFFECT_EFFECT},
};

int mp_effects_declare(PyObject *callable, const char *class_name)
{
    mp_effect effect = {MP_EFFECT_CLASS_COUNT, NULL, MP_EFFECT_DECLARED};
    for (size_t i = 0; i < sizeof declarable / sizeof *declarable; i++)
        if (!strcmp(declarable[i].name, class_name)) effect.effect = (uint8_t)declarable[i].effect;
    if (effect.effect == MP_EFFECT_CLASS_COUNT) {
        PyErr_Format(PyExc_ValueError,
                     "unknown class of effects '%s'; choose pure, reads, iterates, makes, writes, nothing, effect, "
                     "opaque or unknown",
                     class_name);
        return -1;
    }
    if (PyMethod_Check(callable)) callable = PyMethod_GET_FUNCTION(callable);
    bool whole = effect.effect == MP_EFFECT_EFFECT || effect.effect == MP_EFFECT_OPAQUE;
    if (PyFunction_Check(callable) && !whole) {
        PyErr_Format(PyExc_TypeError, "%R is a Python function: it is watched as it runs and needs no declaration",
                     callable);
        return -1;
    }
    if (!mp_effects_ready()) {
        PyErr_NoMemory();
        return -1;
    }
    const void *address = callable;
    int kind = KEY_FUNCTION;
    if (PyType_Check(callable))
        kind = KEY_TYPE;
    else if (!PyFunction_Check(callable) && function_address(callable))
        address = function_address(callable);
    if (enter(address, kind, effect, true) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return PyList_Append(table.kept, callable); /* its address must keep its meaning */
}

/* -- Names and giving up -------------------------------------------------------------------------------------------------------- */

PyObject *mp_callable_name(PyObject *callable)
{
    PyObject *name = NULL;
    if (PyType_Check(callable))
        name = PyUnicode_FromString(((PyTypeObject *)callable)->tp_name);
    else if (PyCFunction_Check(callable)) {
        PyCFunctionObject *function = (PyCFunctionObject *)callable;
        PyObject *self = is_pybind(function->m_self) ? NULL : function->m_self;
        PyObject *module = function->m_module && PyUnicode_Check(function->m_module) ? function->m_module : NULL;
        if (self && !PyModule_Check(self))
            name = PyUnicode_FromFormat("%s.%s",
                                        PyType_Check(self) ? ((PyTypeObject *)self)->tp_name : Py_TYPE(self)->tp_name,
                                        function->m_ml->ml_name);
        else if (module)
            name = PyUnicode_FromFormat("%U.%s", module, function->m_ml->ml_name);
        else
            name = PyUnicode_FromString(function->m_ml->ml_name);
    } else if (Py_IS_TYPE(callable, &PyMethodDescr_Type) || Py_IS_TYPE(callable, &PyWrapperDescr_Type) ||
               Py_IS_TYPE(callable, &PyClassMethodDescr_Type))
        name = PyUnicode_FromFormat("%s.%U", PyDescr_TYPE(callable)->tp_name, PyDescr_NAME(callable));
    else if (Py_IS_TYPE(callable, &_PyMethodWrapper_Type)) {
        method_wrapper *wrapper = (method_wrapper *)callable;
        PyObject *owner = PyObject_TypeCheck(wrapper->self, &PyGetSetDescr_Type) ? PyDescr_NAME(wrapper->self) : NULL;
        name = owner ? PyUnicode_FromFormat("Tensor.%U.%s", owner, wrapper->descr->d_base->name)
                     : PyUnicode_FromFormat("%s.%s", Py_TYPE(wrapper->self)->tp_name, wrapper->descr->d_base->name);
    } else if (PyFunction_Check(callable))
        name = Py_NewRef(((PyFunctionObject *)callable)->func_qualname);
    else
        name = PyUnicode_FromFormat("a call of a %s", Py_TYPE(callable)->tp_name);
    if (!name) PyErr_Clear();
    return name;
}

void mp_call_abandon(mp_call *call, mp_reason_code code, const char *what)
{
    if (mp_rec_abandoned(call->rec)) return;
    mp_kept kept = mp_keep();
    PyObject *name = mp_callable_name(call->callable);
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    mp_rec_abandon(call->rec, code, "%s%s%s", text ? text : "C callable", what ? ": " : "", what ? what : "");
    Py_XDECREF(name);
    mp_restore(kept);
}

/* -- Reading arguments ------------------------------------------------------------------------------------------------------------ */

void mp_effect_read(mp_call *call, PyObject *argument, bool deep)
{
    if (mp_is_scalar(argument)) {
        mp_rec_decimal(call->rec, argument);
        return;
    }
    if (mp_is_tensor(argument)) {
        mp_rec_touch(call->rec, argument);
        return;
    }
    if (PyIter_Check(argument) && !mp_type_python(Py_TYPE(argument), "__next__") &&
        mp_rec_find(call->rec, argument) != MP_NO_OBJ) {
        mp_rec_abandon(call->rec, MP_REASON_EXTERNAL_ITERATOR, "%s", Py_TYPE(argument)->tp_name);
        return;
    }
    if (deep)
        mp_rec_deep(call->rec, argument);
    else
        mp_rec_operand(call->rec, argument, false);
}

void mp_effect_read_all(mp_call *call, Py_ssize_t from, bool deep)
{
    for (Py_ssize_t i = from; i < call->nargs; i++) mp_effect_read(call, call->args[i], deep);
    for (Py_ssize_t i = 0; i < call->nkw; i++) mp_effect_read(call, call->kwvalues[i], deep);
}

static bool can_iterate(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type->tp_iter || (type->tp_as_sequence && type->tp_as_sequence->sq_item);
}

static void iterate(mp_call *call, PyObject *argument, bool keys)
{
    if (mp_is_scalar(argument)) return;
    if (can_iterate(argument)) {
        mp_rec_iterate(call->rec, argument);
        if (PyDict_Check(argument)) /* also where C code goes past a Python __iter__ */
            keys ? mp_rec_keys(call->rec, argument) : mp_rec_whole(call->rec, argument);
    } else if (!mp_is_tensor(argument) && mp_type_python(Py_TYPE(argument), "keys"))
        mp_rec_type(call->rec, argument);
    else
        mp_effect_read(call, argument, false);
}

/* keys: of dicts nothing else. */
static void iterate_all(mp_call *call, Py_ssize_t from, bool keys)
{
    for (Py_ssize_t i = from; i < call->nargs; i++) iterate(call, call->args[i], keys);
    for (Py_ssize_t i = 0; i < call->nkw; i++) mp_effect_read(call, call->kwvalues[i], false);
}

static void iterate_or_call(mp_call *call, PyObject *argument)
{
    if (mp_is_scalar(argument) || mp_is_tensor(argument)) {
        mp_effect_read(call, argument, true);
        return;
    }
    if (can_iterate(argument) && !PyType_Check(argument)) {
        mp_rec_iterate(call->rec, argument);
        mp_effect_read(call, argument, true);
    } else if (Py_TYPE(argument)->tp_call)
        mp_effect_callback(call, argument);
    else
        mp_effect_read(call, argument, true);
}

static bool own_object(mp_recorder *rec, PyObject *object) /* made by the call: what it gives is the call's own */
{ return !mp_is_scalar(object) && !mp_is_tensor(object) && mp_rec_find(rec, object) == MP_NO_OBJ; }

/* A method that changes only its own object, as far as C code can call it with what has been read. */
static bool changes_own(const mp_effect *effect)
{
    return effect->effect == MP_EFFECT_STORES || effect->effect == MP_EFFECT_COMPARES ||
           effect->handler == mp_handle_list_append || effect->handler == mp_handle_dict_pop ||
           effect->handler == mp_handle_dict_get || effect->handler == mp_handle_raw_subscript ||
           effect->handler == mp_handle_contains;
}

bool mp_effect_changes_self(const mp_effect *effect)
{
    static const mp_effect_handler changing[] = {
        mp_handle_list_append,     mp_handle_store_subscript, mp_handle_dict_setdefault,
        mp_handle_dict_pop,        mp_handle_setattr,         mp_handle_delattr,
        mp_handle_generic_setattr, mp_handle_context_set,     mp_handle_context_reset};
    for (size_t i = 0; i < sizeof changing / sizeof *changing; i++)
        if (effect->handler == changing[i]) return true;
    return false;
}

/* A C function that other C code calls with things out of the containers read (deep): only what reads nothing else may be. */
static bool harmless_inside(const mp_effect *effect)
{
    switch (effect->effect) {
    case MP_EFFECT_PURE:
    case MP_EFFECT_READS:
    case MP_EFFECT_MAKES:
    case MP_EFFECT_ITERATES:
    case MP_EFFECT_KEYS:
    case MP_EFFECT_NOTHING:
    case MP_EFFECT_TORCH: return true;
    default:
        return effect->handler == mp_handle_len || effect->handler == mp_handle_isinstance ||
               effect->handler == mp_handle_convert || effect->handler == mp_handle_itemgetter ||
               effect->handler == mp_handle_subscript || effect->handler == mp_handle_truth ||
               effect->handler == mp_handle_format || effect->handler == mp_handle_identity;
    }
}

void mp_effect_callback(mp_call *call, PyObject *callable)
{
    mp_call inner = {.rec = call->rec, .frame = call->frame, .callable = callable};
    const mp_effect *effect = NULL;
    if (PyFunction_Check(callable)) return; /* its frames are watched */
    if (PyMethod_Check(callable)) {
        mp_rec_deep(call->rec, callable);
        mp_effect_callback(call, PyMethod_GET_FUNCTION(callable));
        return;
    }
    if (PyType_Check(callable)) {
        mp_call_type(&inner, false);
        return;
    }
    if (function_address(callable)) {
        effect = mp_effect_of(callable);
        PyObject *self = PyCFunction_Check(callable) ? PyCFunction_GET_SELF(callable) : NULL;
        if (self && !PyModule_Check(self) && !PyType_Check(self) && !is_pybind(self)) {
            mp_effect_read(call, self, true);
            if (effect && changes_own(effect) && own_object(call->rec, self)) return;
        }
    } else {
        mp_rec_deep(call->rec, callable); /* partials, instances */
        if (mp_type_python(Py_TYPE(callable), "__call__")) return;
        PyObject *inside = Py_TYPE(callable)->tp_name && !strcmp(Py_TYPE(callable)->tp_name, "functools.partial")
                               ? PyObject_GetAttrString(callable, "func")
                               : NULL;
        if (inside) {
            mp_effect_callback(call, inside);
            Py_DECREF(inside);
            return;
        }
        PyErr_Clear();
        effect = mp_effect_of_instance(Py_TYPE(callable));
    }
    if (effect && effect->effect == MP_EFFECT_CALLS && PyCFunction_Check(callable)) { /* max of what has been read */
        static const char *const plain[] = {"max", "min", "sum", "any", "all"};
        for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
            if (!strcmp(((PyCFunctionObject *)callable)->m_ml->ml_name, plain[i])) return;
    }
    if (!effect || !harmless_inside(effect))
        mp_call_abandon(&inner, MP_REASON_UNKNOWN_C_CALLABLE, "called from C code");
}

/* -- Results ------------------------------------------------------------------------------------------------------------------------ */

/* What `result` is must follow from what was read; the stack's is the only reference to a fresh object. */
static void result_known(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    if (!result || mp_rec_abandoned(rec) || mp_is_scalar(result)) goto done;
    if (mp_is_tensor(result)) {
        mp_rec_value(rec, result);
        goto done;
    }
    if (PyFunction_Check(result) || PyType_Check(result)) {
        if (Py_REFCNT(result) == 1) mp_rec_internal(rec, result);
        goto done;
    }
    if (Py_REFCNT(result) == 1 || PyModule_Check(result) || PyCFunction_Check(result)) goto done;
    if (PyTuple_CheckExact(result) && !PyTuple_GET_SIZE(result)) goto done;
    if (PyFrozenSet_CheckExact(result) && !PySet_GET_SIZE(result)) goto done;
    if (data == Py_True || mp_rec_find(rec, result) != MP_NO_OBJ || mp_rec_is_internal(rec, result)) goto done;
    mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "a %s given by a C callable", Py_TYPE(result)->tp_name);
done:
    Py_XDECREF(data);
}

void mp_effect_check_result(mp_call *call)
{
    bool own = false;
    for (Py_ssize_t i = 0; i < call->nargs && !own; i++) own = own_object(call->rec, call->args[i]);
    for (Py_ssize_t i = 0; i < call->nkw && !own; i++) own = own_object(call->rec, call->kwvalues[i]);
    if (!mp_rec_abandoned(call->rec))
        mp_rec_pend(call->rec, call->frame, result_known, Py_NewRef(own ? Py_True : Py_False));
}

/* -- torch and state calls ------------------------------------------------------------------------------------------------------------- */

PyObject *mp_call_args(mp_call *call)
{
    PyObject *tuple = PyTuple_New(call->nargs);
    for (Py_ssize_t i = 0; tuple && i < call->nargs; i++) PyTuple_SET_ITEM(tuple, i, Py_NewRef(call->args[i]));
    return tuple;
}

PyObject *mp_call_kwargs(mp_call *call)
{
    PyObject *dict = PyDict_New();
    for (Py_ssize_t i = 0; dict && i < call->nkw; i++)
        if (PyDict_SetItem(dict, PyTuple_GET_ITEM(call->kwnames, i), call->kwvalues[i]) < 0) Py_CLEAR(dict);
    return dict;
}

/* (callable, args, kwargs, number of torch functions seen so far), owned; NULL after abandoning. */
static PyObject *packed_call(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    PyObject *args = mp_call_args(call), *kwargs = args ? mp_call_kwargs(call) : NULL;
    PyObject *packed = state && kwargs ? Py_BuildValue("(OOOI)", call->callable, args, kwargs, state->seen) : NULL;
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    if (!packed) mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "call");
    return packed;
}

static void pend_packed(mp_call *call, mp_pending handler)
{
    mp_kept kept = mp_keep();
    PyObject *packed = packed_call(call);
    if (packed) mp_rec_pend(call->rec, call->frame, handler, packed);
    mp_restore(kept);
}

static bool all_scalars(PyObject *args)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++)
        if (!mp_is_scalar(PyTuple_GET_ITEM(args, i))) return false;
    return true;
}

static void torch_done(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    mp_op_state *state = rec->op_state;
    if (result && state && !mp_rec_abandoned(rec)) {
        PyObject *func = PyTuple_GET_ITEM(data, 0), *args = PyTuple_GET_ITEM(data, 1),
                 *kwargs = PyTuple_GET_ITEM(data, 2);
        bool seen = state->seen != (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(data, 3));
        if (!seen) mp_number_settle_inside(rec, args), mp_number_settle_inside(rec, kwargs);
        mp_call call = {.rec = rec, .callable = func};
        const mp_effect *shown = mp_effect_of_torch(func);
        if (!seen && shown && shown->effect == MP_EFFECT_REFUSED)
            mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "not traceable");
        else if (!seen && PyType_Check(func) && mp_holds_array(args, 0) && mp_is_tensor(result))
            mp_array_constructed(rec, args, kwargs, result);
        else if (mp_has_tensor(result)) {
            bool known =
                seen && !mp_rec_has_unknown(rec, result); /* seen: also where it gives back what it was given */
            if (seen && !known) mp_number_settle_inside(rec, args), mp_number_settle_inside(rec, kwargs);
            if (!state->muted && !known) mp_rec_op(rec, func, args, kwargs, result, false);
        } else if (!seen && !(mp_is_scalar(result) && all_scalars(args) && !PyDict_GET_SIZE(kwargs)))
            mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "not seen by the torch-function mode");
    }
    Py_XDECREF(data);
}

static void state_write_done(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    if (result && rec->op_state && !mp_rec_abandoned(rec) &&
        rec->op_state->seen == (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(data, 3)))
        mp_rec_op(rec, PyTuple_GET_ITEM(data, 0), PyTuple_GET_ITEM(data, 1), PyTuple_GET_ITEM(data, 2), result, true);
    Py_XDECREF(data);
}

static void state_call_done(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    if (result && !mp_rec_abandoned(rec)) {
        PyObject *func = PyTuple_GET_ITEM(data, 0), *args = PyTuple_GET_ITEM(data, 1);
        mp_call call = {.rec = rec, .callable = func};
        if (!mp_is_scalar(result) || !all_scalars(args) || PyDict_GET_SIZE(PyTuple_GET_ITEM(data, 2)))
            mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "its result cannot be guarded");
        else if (mp_rec_ensure(rec, func) == MP_NO_OBJ && mp_rec_pin(rec, func, NULL) == MP_NO_OBJ)
            mp_call_abandon(&call, MP_REASON_UNKNOWN_OBJECT, NULL);
        else if (!mp_flag_is_set(rec, func, args)) /* by the call */
            mp_rec_read(rec, func, MP_READ_STATE_CALL, args, result);
    }
    Py_XDECREF(data);
}

/* -- Applying -------------------------------------------------------------------------------------------------------------------------- */

static void change_first(mp_call *call)
{
    if (call->nargs) mp_rec_own(call->rec, call->args[0]);
    mp_effect_check_result(call);
}

/* Are its arguments left unseen: is it put off, or do Python functions run in its place? */
static bool is_blind(mp_call *call, const mp_effect *effect)
{
    if (effect->handler == mp_handle_function_apply) return mp_applies_forward(call);
    return effect->effect == MP_EFFECT_OUTPUT || effect->effect == MP_EFFECT_EFFECT ||
           effect->handler == mp_handle_log || effect->handler == mp_handle_warn;
}

void mp_effect_apply(mp_call *call, const mp_effect *effect)
{
    if (effect->effect != MP_EFFECT_TORCH && !is_blind(call, effect) && mp_number_call(call, effect)) return;
    if (mp_array_call(call, false)) return;
    switch ((mp_effect_class)effect->effect) {
    case MP_EFFECT_SPECIAL: effect->handler(call); return;
    case MP_EFFECT_PURE:
        mp_effect_read_all(call, 0, true);
        mp_effect_check_result(call);
        return;
    case MP_EFFECT_READS:
        mp_effect_read_all(call, 0, false);
        mp_effect_check_result(call);
        return;
    case MP_EFFECT_KEYS:
    case MP_EFFECT_ITERATES:
        iterate_all(call, 0, effect->effect == MP_EFFECT_KEYS);
        mp_effect_check_result(call);
        return;
    case MP_EFFECT_CALLS:
        for (Py_ssize_t i = 0; i < call->nargs; i++) iterate_or_call(call, call->args[i]);
        for (Py_ssize_t i = 0; i < call->nkw; i++) iterate_or_call(call, call->kwvalues[i]);
        mp_effect_check_result(call);
        return;
    case MP_EFFECT_STORES: change_first(call); return;
    case MP_EFFECT_WRITES:
        iterate_all(call, 1, false);
        change_first(call);
        return;
    case MP_EFFECT_COMPARES:
        for (Py_ssize_t i = 0; i < call->nargs; i++) mp_effect_read(call, call->args[i], true);
        for (Py_ssize_t i = 0; i < call->nkw; i++) iterate_or_call(call, call->kwvalues[i]);
        change_first(call);
        return;
    case MP_EFFECT_MAKES:
    case MP_EFFECT_NOTHING:
    case MP_EFFECT_STATE: return;
    case MP_EFFECT_TORCH: pend_packed(call, torch_done); return;
    case MP_EFFECT_STATE_CALL: pend_packed(call, state_call_done); return;
    case MP_EFFECT_STATE_WRITE: pend_packed(call, state_write_done); return;
    case MP_EFFECT_OUTPUT: mp_defer(call, true, false); return;
    case MP_EFFECT_EFFECT: mp_defer(call, false, true); return;
    case MP_EFFECT_CLOCK: mp_clock_call(call); return;
    case MP_EFFECT_OPAQUE: mp_draw_call(call); return;
    case MP_EFFECT_REFUSED: mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "cannot be traced"); return;
    default: mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, NULL);
    }
}

/* -- Module part ---------------------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(
    declare_doc,
    "declare($module, callable, effect, /)\n--\n\n"
    "Say what calling a C callable does: 'pure', 'reads', 'iterates', 'makes', 'writes', 'nothing', 'opaque' or\n"
    "'unknown'. Raises ValueError for another word, TypeError for a Python function (those are watched).");

static PyObject *declare(PyObject *module, PyObject *args)
{
    PyObject *callable;
    const char *effect;
    if (!PyArg_ParseTuple(args, "Os:declare", &callable, &effect)) return NULL;
    if (!PyCallable_Check(callable)) return PyErr_Format(PyExc_TypeError, "%R is not callable", callable);
    if (mp_effects_declare(callable, effect) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *effect_of(PyObject *module, PyObject *callable)
{
    if (!mp_effects_ready()) return PyErr_NoMemory();
    const mp_effect *effect =
        PyType_Check(callable) ? mp_effect_of_type((PyTypeObject *)callable) : mp_effect_of(callable);
    if (!effect && !function_address(callable)) effect = mp_effect_of_instance(Py_TYPE(callable));
    if (!effect) Py_RETURN_NONE;
    return PyUnicode_FromString(class_names[effect->effect]);
}

static PyObject *effect_rows(PyObject *module, PyObject *unused)
{
    if (!mp_effects_ready()) return PyErr_NoMemory();
    return Py_BuildValue("{sIsOsO}", "entries", table.n, "missing", table.missing, "clashes", table.clashes);
}

static PyObject *frame_of(PyObject *module, PyObject *args)
{
    PyObject *code, *globals;
    if (!PyArg_ParseTuple(args, "O!O!:_frame", &PyCode_Type, &code, &PyDict_Type, &globals)) return NULL;
    return (PyObject *)PyFrame_New(PyThreadState_Get(), (PyCodeObject *)code, globals, NULL);
}

static PyMethodDef effect_methods[] = {
    {"_frame", frame_of, METH_VARARGS,
     "_frame(code, globals): a frame of this code that does not run, for tracebacks."},
    {"declare", declare, METH_VARARGS, declare_doc},
    {"_effect_of", effect_of, METH_O, "The table's class of a C callable, or None (for tests)."},
    {"_effect_rows", effect_rows, METH_NOARGS, "How the table was resolved: entries, missing, clashes (for tests)."},
    {NULL},
};

int mp_effects_module_init(PyObject *module) { return PyModule_AddFunctions(module, effect_methods); }
