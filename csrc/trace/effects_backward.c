/* What the code of an autograd.Function's backward looks up by name, and does: it runs once, when the graph is made, so nothing that it reads
** outside may change afterwards, and nothing that it does may be seen. This is told from its code, as far as that goes; else the trace ends.
*/
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include "observe/observe.h"

#include <opcode.h>

typedef struct { /* an instruction, without the cache entries behind it */
    int opcode;
    unsigned oparg;
} instruction;

/* The next instruction from *at on; opcode 0 at the end. */
static instruction next_instruction(const uint8_t **at, const uint8_t *end)
{
    for (unsigned oparg = 0; *at + 1 < end;) {
        int opcode = (*at)[0];
        oparg = oparg << 8 | (*at)[1];
        *at += 2;
        if (opcode == EXTENDED_ARG) continue;
        if (opcode != CACHE) return (instruction){opcode, oparg};
        oparg = 0;
    }
    return (instruction){0, 0};
}

/* Is the object met for the first time? False also without memory, with an exception. */
static bool is_new(PyObject *seen, PyObject *object)
{
    PyObject *address = PyLong_FromVoidPtr(object);
    int before = address ? PySet_Contains(seen, address) : -1;
    bool fresh = before == 0 && PySet_Add(seen, address) == 0;
    Py_XDECREF(address);
    return fresh;
}

static void refuse(mp_call *call, const char *what) { mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, what); }

/* Does calling it do more than compute of its arguments? */
static bool has_effects(PyObject *callable)
{
    static const mp_effect_handler handlers[] = {mp_handle_setattr, mp_handle_delattr, mp_handle_generic_setattr,
                                                 mp_handle_eval,    mp_handle_log,     mp_handle_warn,
                                                 mp_handle_moment};
    const mp_effect *effect = PyFunction_Check(callable) ? mp_effect_of_function(callable) : mp_effect_of(callable);
    if (!effect) return false;
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++)
        if (effect->handler == handlers[i]) return true;
    switch ((mp_effect_class)effect->effect) {
    case MP_EFFECT_OUTPUT:
    case MP_EFFECT_EFFECT:
    case MP_EFFECT_CLOCK:
    case MP_EFFECT_OPAQUE:
    case MP_EFFECT_STATE_CALL:
    case MP_EFFECT_REFUSED: return true;
    default: return false;
    }
}

/* Members of an enumeration are constants. */
static bool is_enumeration(PyTypeObject *type) { return !strcmp(Py_TYPE(type)->tp_name, "EnumType"); }

/* Is it a module that a library has, whose numbers and objects are constants? */
static bool is_library(PyObject *module)
{
    PyObject *file = PyDict_GetItemString(PyModule_GetDict(module), "__file__"); /* borrowed */
    const char *path = file && PyUnicode_Check(file) ? PyUnicode_AsUTF8(file) : NULL;
    PyErr_Clear();
    return !file || (path && mp_is_installed_file(path));
}

static bool is_librarys(PyTypeObject *type)
{
    if (!mp_type_mutable(type)) return true;
    PyObject *name = PyDict_GetItemString(type->tp_dict, "__module__"),
             *modules = PyImport_GetModuleDict(); /* borrowed */
    PyObject *module = name && PyUnicode_CheckExact(name) ? PyDict_GetItemWithError(modules, name) : NULL;
    PyErr_Clear();
    return module && PyModule_Check(module) && is_library(module);
}

static void read_function(mp_call *call, PyObject *function, PyObject *seen);

/* It is applied as an autograd.Function: its methods run. */
static void read_class(mp_call *call, PyTypeObject *type, PyObject *seen)
{
    PyObject *key, *value;
    if (!mp_type_mutable(type) || !is_new(seen, (PyObject *)type)) return;
    for (Py_ssize_t i = 0; type->tp_mro && i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(type->tp_mro, i);
        if (!mp_type_mutable(base)) continue;
        for (Py_ssize_t at = 0; PyDict_Next(base->tp_dict, &at, &key, &value);) read_function(call, value, seen);
    }
}

/* `value` is what a name stood for. */
static void meets(mp_call *call, PyObject *value, PyObject *seen)
{
    if (PyModule_Check(value) && is_library(value)) return;
    if (PyObject_TypeCheck(value, &PyStaticMethod_Type) || PyObject_TypeCheck(value, &PyClassMethod_Type) ||
        PyFunction_Check(value)) {
        read_function(call, value, seen);
        return;
    }
    if (PyCFunction_Check(value) || PyType_Check(value)) {
        if (has_effects(value)) refuse(call, "its backward has effects");
        if (PyType_Check(value) && !is_enumeration((PyTypeObject *)value) && !is_librarys((PyTypeObject *)value))
            refuse(call, "its backward uses a class of the program's");
        return;
    }
    const mp_effect *called = mp_effect_of_instance(Py_TYPE(value));
    if (called && called->effect == MP_EFFECT_TORCH) /* a ScriptFunction: this one, which does not change */
        mp_rec_identity(call->rec, value);
    else /* a number too: it may be another one by the time the gradient is computed */
        refuse(call, "its backward uses an object of the program's");
}

/* The instruction has given `value`; what follows at `at` may ask modules and classes for more. */
static void follow(mp_call *call, PyCodeObject *code, PyObject *value, const uint8_t *at, const uint8_t *end,
                   PyObject *seen)
{
    PyObject *names = code->co_names;
    for (;;) {
        instruction next = next_instruction(&at, end);
        bool asks = next.opcode == LOAD_ATTR || next.opcode == LOAD_METHOD;
        bool module = PyModule_Check(value), type = PyType_Check(value);
        if (!asks || !(module || type)) break;
        PyObject *name = PyTuple_GET_ITEM(names, next.oparg), *found = NULL;
        bool fixed = module && is_library(value);
        if (module) {
            if (mp_dict_find_str(PyModule_GetDict(value), name, &found) <= 0)
                return; /* raises, or a library's own way */
            if (!fixed) {
                mp_rec_pin(call->rec, PyModule_GetDict(value), "globals");
                mp_rec_read(call->rec, PyModule_GetDict(value), MP_READ_KEY, name, found);
            }
        } else {
            found = mp_raw_type_lookup((PyTypeObject *)value, name);
            if (PyUnicode_CompareWithASCIIString(name, "apply") == 0) read_class(call, (PyTypeObject *)value, seen);
            if (!found || !mp_type_mutable((PyTypeObject *)value)) return; /* of the metaclass, or C's */
            if (is_enumeration((PyTypeObject *)value)) return;
            mp_rec_type_attr(call->rec, (PyTypeObject *)value, name);
        }
        bool known =
            PyModule_Check(found) || PyType_Check(found) || PyFunction_Check(found) || PyCFunction_Check(found);
        if (fixed && !known) return; /* math.pi, torch.float32 */
        value = found;
        if (type && !PyModule_Check(found) && !PyType_Check(found)) break;
    }
    meets(call, value, seen);
}

/* What the closures of a library's function hold: decorators of the program's own functions. */
static void read_wrapped(mp_call *call, PyFunctionObject *f, PyObject *seen)
{
    for (Py_ssize_t i = 0; f->func_closure && i < PyTuple_GET_SIZE(f->func_closure); i++) {
        PyObject *inside = PyCell_GET(PyTuple_GET_ITEM(f->func_closure, i));
        if (inside && PyFunction_Check(inside)) read_function(call, inside, seen);
    }
}

/* nested: the code is that of a function which f makes; what f gives it of its own closure is met in f. */
static void read_instruction(mp_call *call, PyFunctionObject *f, PyCodeObject *code, instruction now,
                             instruction before, const uint8_t *at, const uint8_t *end, PyObject *seen)
{
    bool nested = (PyObject *)code != f->func_code;
    Py_ssize_t outside = (Py_ssize_t)now.oparg - (code->co_nlocalsplus - code->co_nfreevars);
    PyObject *value = NULL, *name = NULL;
    switch (now.opcode) {
    case LOAD_GLOBAL:
        name = PyTuple_GET_ITEM(code->co_names, now.oparg >> 1);
        if (mp_dict_find_str(f->func_globals, name, &value) > 0) {
            mp_rec_pin(call->rec, f->func_globals, "globals");
            mp_rec_read(call->rec, f->func_globals, MP_READ_KEY, name, value);
        } else if (!PyDict_Check(f->func_builtins) || mp_dict_find_str(f->func_builtins, name, &value) <= 0)
            return; /* raises */
        break;
    case LOAD_CLOSURE:
    case LOAD_DEREF: {
        if (outside < 0 || nested || !f->func_closure) return;
        PyObject *cell = PyTuple_GET_ITEM(f->func_closure, outside);
        if (!(value = PyCell_GET(cell))) return;
        if (mp_rec_find(call->rec, cell) != MP_NO_OBJ) mp_rec_read(call->rec, cell, MP_READ_CELL, NULL, value);
        break;
    }
    case IMPORT_NAME:
        name = PyTuple_GET_ITEM(code->co_names, now.oparg);
        if (PyUnicode_CompareWithASCIIString(name, "torch") && PyUnicode_CompareWithASCIIString(name, "math"))
            refuse(call, "its backward imports modules");
        return;
    case STORE_ATTR:
        if (before.opcode != LOAD_FAST || before.oparg) refuse(call, "its backward stores attributes"); /* ctx's own */
        return;
    case STORE_DEREF:
        if (outside >= 0) refuse(call, "its backward has effects");
        return;
    case DELETE_ATTR:
    case STORE_GLOBAL:
    case DELETE_GLOBAL: refuse(call, "its backward has effects"); return;
    default: return;
    }
    follow(call, code, value, at, end, seen);
}

static void read_code(mp_call *call, PyFunctionObject *f, PyCodeObject *code, PyObject *seen)
{
    PyObject *bytes = PyCode_GetCode(code);
    if (!bytes) {
        PyErr_Clear();
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "autograd.Function");
        return;
    }
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(bytes), *end = at + PyBytes_GET_SIZE(bytes);
    instruction before = {0, 0}, now;
    while ((now = next_instruction(&at, end)).opcode && !mp_rec_abandoned(call->rec)) {
        read_instruction(call, f, code, now, before, at, end, seen);
        before = now;
    }
    Py_DECREF(bytes);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(code->co_consts); i++) {
        PyObject *inside = PyTuple_GET_ITEM(code->co_consts, i);
        if (PyCode_Check(inside)) read_code(call, f, (PyCodeObject *)inside, seen);
    }
}

static void read_function(mp_call *call, PyObject *function, PyObject *seen)
{
    if (mp_rec_abandoned(call->rec)) return;
    if (PyObject_TypeCheck(function, &PyStaticMethod_Type) || PyObject_TypeCheck(function, &PyClassMethod_Type)) {
        PyObject *inside = PyObject_GetAttrString(function, "__func__");
        if (inside) read_function(call, inside, seen);
        PyErr_Clear();
        Py_XDECREF(inside);
        return;
    }
    if (!PyFunction_Check(function) || !is_new(seen, function)) return;
    PyFunctionObject *f = (PyFunctionObject *)function;
    if (mp_is_installed_code((PyCodeObject *)f->func_code)) {
        if (has_effects(function)) refuse(call, "its backward has effects");
        read_wrapped(call, f, seen);
        return;
    }
    mp_rec_ensure(call->rec, function);
    read_code(call, f, (PyCodeObject *)f->func_code, seen);
}

void mp_backward_reads(mp_call *call, PyObject *function)
{
    PyObject *seen = PySet_New(NULL);
    if (seen) read_function(call, function, seen);
    if (!seen || PyErr_Occurred()) mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "autograd.Function");
    PyErr_Clear();
    Py_XDECREF(seen);
}
