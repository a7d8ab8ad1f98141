/* Calls: what calling something reads, until a Python function (its frame shows the rest) or a C function (the effects table) is
** reached. Methods, partials, static methods and instances are unwrapped, types are followed through their metaclass, __new__, __init__.
*/
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

enum { SMALL = 24 };

/* -- Helpers ---------------------------------------------------------------------------------------------------------- */

/* A C member of an object with a fixed layout, as an outside location. Borrowed where the object holds it, or NULL. */
static PyObject *read_member(mp_recorder *rec, PyObject *owner, const char *name)
{
    mp_kept kept = mp_keep();
    PyObject *key = mp_intern(name);
    PyObject *value = key ? PyObject_GenericGetAttr(owner, key) : NULL;
    if (key && mp_rec_find(rec, owner) != MP_NO_OBJ) mp_rec_read(rec, owner, MP_READ_MEMBER, key, value);
    Py_XDECREF(key);
    Py_XDECREF(value); /* `owner` holds it */
    mp_restore(kept);
    return value;
}

void mp_function_code(mp_recorder *rec, PyObject *function)
{
    if (mp_rec_ensure(rec, function) != MP_NO_OBJ) read_member(rec, function, "__code__");
}

void mp_type_attr_named(mp_recorder *rec, PyTypeObject *type, const char *name)
{
    mp_kept kept = mp_keep();
    PyObject *key = mp_intern(name);
    if (key) mp_rec_type_attr(rec, type, key);
    Py_XDECREF(key);
    mp_restore(kept);
}

static PyObject *type_lookup(PyTypeObject *type, const char *name)
{
    mp_kept kept = mp_keep();
    PyObject *key = mp_intern(name);
    PyObject *found = key ? mp_raw_type_lookup(type, key) : NULL;
    Py_XDECREF(key);
    mp_restore(kept);
    return found;
}

/* Go on with `next` for the same call of `callable` with `first` before the arguments; `first` NULL: without. */
static void call_with(const mp_call *call, PyObject *callable, PyObject *first, void (*next)(mp_call *))
{
    mp_call inner = *call;
    inner.callable = callable;
    if (!first) {
        next(&inner);
        return;
    }
    PyObject *small[SMALL], **args = small;
    if (call->nargs + 1 > SMALL) args = PyMem_RawMalloc(((size_t)call->nargs + 1) * sizeof *args);
    if (!args) {
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "call");
        return;
    }
    args[0] = first;
    if (call->nargs) memcpy(args + 1, call->args, (size_t)call->nargs * sizeof *args);
    inner.args = args;
    inner.nargs++;
    next(&inner);
    if (args != small) PyMem_RawFree(args);
}

/* -- Partials ------------------------------------------------------------------------------------------------------------ */

static bool is_partial(PyObject *callable)
{
    static PyTypeObject *partial; /* owned for ever, like the interpreter's own types */
    if (!partial) {
        mp_kept kept = mp_keep();
        partial = (PyTypeObject *)mp_import("functools", "partial");
        mp_restore(kept);
    }
    return partial && Py_IS_TYPE(callable, partial);
}

/* Positional arguments of the partial, then of the call; keywords of the call override the partial's. */
static void call_partial(mp_call *call)
{
    PyObject *func = read_member(call->rec, call->callable, "func");
    PyObject *args = read_member(call->rec, call->callable, "args");
    PyObject *keywords = read_member(call->rec, call->callable, "keywords");
    if (!func || !args || !PyTuple_Check(args) || !keywords || !PyDict_Check(keywords)) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "a partial that is not one");
        return;
    }
    mp_rec_whole(call->rec, args);
    mp_rec_whole(call->rec, keywords);
    mp_kept kept = mp_keep();
    PyObject *all = PyDict_Copy(keywords), *names = NULL, *values = NULL, *positional = NULL;
    for (Py_ssize_t i = 0; all && i < call->nkw; i++)
        if (PyDict_SetItem(all, PyTuple_GET_ITEM(call->kwnames, i), call->kwvalues[i]) < 0) Py_CLEAR(all);
    if (all) names = PySequence_Tuple(all);
    if (names) values = PyTuple_New(PyTuple_GET_SIZE(names));
    for (Py_ssize_t i = 0; values && i < PyTuple_GET_SIZE(names); i++)
        PyTuple_SET_ITEM(values, i, Py_NewRef(PyDict_GetItem(all, PyTuple_GET_ITEM(names, i))));
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (values) positional = PyTuple_New(n + call->nargs);
    for (Py_ssize_t i = 0; positional && i < n + call->nargs; i++)
        PyTuple_SET_ITEM(positional, i, Py_NewRef(i < n ? PyTuple_GET_ITEM(args, i) : call->args[i - n]));
    if (positional) {
        mp_call inner = *call;
        inner.callable = func;
        inner.args = ((PyTupleObject *)positional)->ob_item;
        inner.nargs = n + call->nargs;
        inner.kwnames = names;
        inner.kwvalues = ((PyTupleObject *)values)->ob_item;
        inner.nkw = PyTuple_GET_SIZE(names);
        mp_call_any(&inner);
    } else
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "partial");
    Py_XDECREF(all);
    Py_XDECREF(names);
    Py_XDECREF(values);
    Py_XDECREF(positional);
    mp_restore(kept);
}

/* -- Types --------------------------------------------------------------------------------------------------------------- */

/* The first type of the MRO that the table knows: a class of the program makes its instances as its C base does. */
static const mp_effect *nearest_type(PyTypeObject *type)
{
    PyObject *mro = type->tp_mro;
    for (Py_ssize_t i = 0; mro && i < PyTuple_GET_SIZE(mro); i++) {
        const mp_effect *effect = mp_effect_of_type((PyTypeObject *)PyTuple_GET_ITEM(mro, i));
        if (effect) return effect;
        if (!mp_type_mutable((PyTypeObject *)PyTuple_GET_ITEM(mro, i)))
            return NULL; /* a C type the table does not know */
    }
    return NULL;
}

static bool written_in_python(mp_recorder *rec, PyTypeObject *type, const char *name)
{
    if (!mp_type_mutable(type)) return false;
    mp_type_attr_named(rec, type, name);
    PyObject *found = type_lookup(type, name);
    if (found && Py_IS_TYPE(found, &PyStaticMethod_Type)) {
        PyObject *inside = read_member(rec, found, "__func__");
        return inside && PyFunction_Check(inside);
    }
    return found && PyFunction_Check(found);
}

static bool takes_arguments_in_new(PyTypeObject *type)
{
    return type->tp_flags & (Py_TPFLAGS_TUPLE_SUBCLASS | Py_TPFLAGS_LONG_SUBCLASS | Py_TPFLAGS_UNICODE_SUBCLASS |
                             Py_TPFLAGS_BYTES_SUBCLASS) ||
           PyType_IsSubtype(type, &PyFrozenSet_Type) || PyType_IsSubtype(type, &PyFloat_Type);
}

void mp_call_type(mp_call *call, bool skip_metaclass)
{
    mp_stand_in_for_bar(call);
    PyTypeObject *type = (PyTypeObject *)call->callable, *meta = Py_TYPE(type);
    mp_rec_ensure(call->rec, call->callable);
    mp_rec_type_dunders(call->rec, type);
    if (meta != &PyType_Type && !skip_metaclass) {
        mp_rec_type(call->rec, call->callable);
        if (written_in_python(call->rec, meta, "__call__")) return; /* its frame shows the rest */
    }
    bool python_new = written_in_python(call->rec, type, "__new__");
    bool python_init = written_in_python(call->rec, type, "__init__");
    if (python_new || (python_init && !takes_arguments_in_new(type))) return;
    const mp_effect *effect = nearest_type(type);
    if (effect)
        mp_effect_apply(call, effect);
    else if (!PyType_IsSubtype(type, (PyTypeObject *)PyExc_BaseException))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, NULL);
}

/* -- C functions ------------------------------------------------------------------------------------------------------------ */

static bool is_new(PyObject *callable) /* T.__new__, the same C function for every type */
{
    static PyCFunction wrapper;
    if (!wrapper) {
        mp_kept kept = mp_keep();
        PyObject *found = PyObject_GetAttrString((PyObject *)&PyBaseObject_Type, "__new__");
        if (found) wrapper = ((PyCFunctionObject *)found)->m_ml->ml_meth;
        Py_XDECREF(found);
        mp_restore(kept);
    }
    return wrapper && ((PyCFunctionObject *)callable)->m_ml->ml_meth == wrapper;
}

/* T.__new__(cls, *args): as making an instance by calling T. */
static void call_new(mp_call *call, PyTypeObject *type)
{
    if (!call->nargs) return; /* raises */
    mp_call inner = *call;
    inner.callable = (PyObject *)type;
    inner.args++;
    inner.nargs--;
    if (PyType_Check(call->args[0])) mp_rec_type_dunders(call->rec, (PyTypeObject *)call->args[0]);
    if (type == &PyType_Type) { /* a class is made: not the one-argument form of type */
        mp_handle_build_class(&inner);
        return;
    }
    const mp_effect *effect = nearest_type(type);
    if (effect)
        mp_effect_apply(&inner, effect);
    else if (!PyType_IsSubtype(type, (PyTypeObject *)PyExc_BaseException))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, NULL);
}

static const mp_effect *nearest_instance(PyTypeObject *type)
{
    PyObject *mro = type->tp_mro;
    for (Py_ssize_t i = 0; mro && i < PyTuple_GET_SIZE(mro); i++) {
        const mp_effect *effect = mp_effect_of_instance((PyTypeObject *)PyTuple_GET_ITEM(mro, i));
        if (effect) return effect;
    }
    return NULL;
}

/* T.__call__ as a C function of its own, which a wrapper in Python calls with the instance: as calling the instance. */
static bool call_wrapped_instance(mp_call *call)
{
    PyObject *callable = call->callable;
    if (!PyCFunction_Check(callable) || strcmp(((PyCFunctionObject *)callable)->m_ml->ml_name, "__call__") != 0 ||
        !call->nargs)
        return false;
    const mp_effect *effect = nearest_instance(Py_TYPE(call->args[0]));
    if (!effect) return false;
    mp_call inner = *call;
    inner.callable = call->args[0];
    inner.args++;
    inner.nargs--;
    mp_rec_type(call->rec, inner.callable);
    mp_effect_apply(&inner, effect);
    return true;
}

static void call_c(mp_call *call)
{
    static const mp_effect operator = {MP_EFFECT_TORCH, NULL, "torch.ops"};
    const mp_effect *effect = mp_effect_of(call->callable);
    if (!effect && mp_is_operator_code(call->frame->code)) effect = &operator;
    if (effect)
        mp_effect_apply(call, effect);
    else if (!call_wrapped_instance(call))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, NULL);
}

/* A builtin bound to something: `self` becomes the first argument. */
static void call_builtin(mp_call *call)
{
    PyCFunctionObject *function = (PyCFunctionObject *)call->callable;
    PyObject *self = function->m_self;
    bool bound = self && !PyModule_Check(self) && !(function->m_ml->ml_flags & METH_STATIC) &&
                 strncmp(Py_TYPE(self)->tp_name, "pybind11_builtins.", 18) != 0;
    if (!bound) {
        call_c(call);
        return;
    }
    if (PyType_Check(self) && is_new(call->callable)) {
        call_new(call, (PyTypeObject *)self);
        return;
    }
    if (mp_rec_find(call->rec, call->callable) != MP_NO_OBJ) read_member(call->rec, call->callable, "__self__");
    call_with(call, call->callable, self, call_c);
}

static void call_method_wrapper(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *self = PyObject_GetAttrString(call->callable, "__self__"); /* a C member */
    mp_restore(kept);
    if (!self) return;
    if (mp_rec_find(call->rec, call->callable) != MP_NO_OBJ) read_member(call->rec, call->callable, "__self__");
    call_with(call, call->callable, self, call_c);
    Py_DECREF(self);
}

/* -- Instances ------------------------------------------------------------------------------------------------------------------ */

static void call_instance(mp_call *call)
{
    PyObject *object = call->callable;
    PyTypeObject *type = Py_TYPE(object);
    const mp_effect *declared = mp_effect_of(object);
    if (declared) {
        mp_effect_apply(call, declared);
        return;
    }
    mp_rec_type(call->rec, object);
    if (mp_type_mutable(type)) mp_type_attr_named(call->rec, type, "__call__");
    PyObject *found = type_lookup(type, "__call__");
    if (!found || PyFunction_Check(found)) return; /* raises, or a frame that shows the rest */
    const mp_effect *effect = nearest_instance(type);
    if (effect)
        mp_effect_apply(call, effect);
    else if (Py_IS_TYPE(found, &PyWrapperDescr_Type))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, NULL);
    else if (Py_IS_TYPE(found, &PyMethodDescr_Type))
        call_with(call, found, object, mp_call_any);
    else if (found != object)
        call_with(call, found, NULL,
                  mp_call_any); /* static methods, bound methods, partials and other instances are not bound */
}

/* -- Any call ----------------------------------------------------------------------------------------------------------------------- */

void mp_call_any(mp_call *call)
{
    PyObject *callable = call->callable;
    PyTypeObject *type = Py_TYPE(callable);
    if (mp_rec_abandoned(call->rec)) return;
    if (type == &PyFunction_Type) { /* its frame shows the rest, unless it is known as a whole */
        const mp_effect *effect = mp_effect_of_function(callable);
        if (effect) mp_effect_apply(call, effect);
        return;
    }
    if (type == &PyMethod_Type) {
        if (mp_rec_find(call->rec, callable) != MP_NO_OBJ) {
            read_member(call->rec, callable, "__func__");
            read_member(call->rec, callable, "__self__");
        }
        call_with(call, PyMethod_GET_FUNCTION(callable), PyMethod_GET_SELF(callable), mp_call_any);
    } else if (type == &PyInstanceMethod_Type)
        call_with(call, PyInstanceMethod_GET_FUNCTION(callable), NULL, mp_call_any);
    else if (type == &PyStaticMethod_Type) {
        PyObject *inside = read_member(call->rec, callable, "__func__");
        if (inside) call_with(call, inside, NULL, mp_call_any);
    } else if (PyType_Check(callable))
        mp_call_type(call, false);
    else if (PyCFunction_Check(callable))
        call_builtin(call);
    else if (type == &_PyMethodWrapper_Type)
        call_method_wrapper(call);
    else if (type == &PyMethodDescr_Type || type == &PyWrapperDescr_Type || type == &PyClassMethodDescr_Type)
        call_c(call);
    else if (is_partial(callable) && !mp_effect_of(callable)) /* not declared by the user */
        call_partial(call);
    else
        call_instance(call);
}

void mp_rec_call(mp_recorder *rec, const mp_frame *frame, PyObject *callable, PyObject *const *args, size_t nargs,
                 PyObject *kwnames)
{
    if (mp_rec_abandoned(rec)) return;
    if (!mp_effects_ready()) {
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "table of effects");
        return;
    }
    mp_call call = {
        rec, frame, callable, args, (Py_ssize_t)nargs, args + nargs, kwnames, kwnames ? PyTuple_GET_SIZE(kwnames) : 0};
    mp_call_any(&call);
}
