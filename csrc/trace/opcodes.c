/* Instructions: what each opcode of CPython 3.11 is about to read, write or call. One handler per opcode, one table.
**
** A handler runs before its instruction, sees the value stack as the instruction will find it, and only records. Opcodes without a
** handler touch nothing but the frame itself. Where the instruction calls Python code (properties, special methods), that code is a
** frame and shows itself.
*/
#include "trace/arrays.h"
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/opcodes.h"
#include "trace/raw.h"
#include "trace/texts.h"

#include "guard/torch_state.h"
#include "observe/observe.h"

#include <frameobject.h>
#include <opcode.h>

PyObject *mp_dict_item(mp_recorder *rec, PyObject *dict, PyObject *key)
{
    PyObject *item = NULL;
    if (dict && PyDict_Check(dict) && mp_dict_find_str(dict, key, &item) < 0)
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a name among keys that compare by Python code");
    return item;
}

static bool is_outside(mp_recorder *rec, PyObject *object) { return object && mp_rec_find(rec, object) != MP_NO_OBJ; }

void mp_read_key(mp_recorder *rec, PyObject *dict, PyObject *key)
{ mp_rec_read(rec, dict, MP_READ_KEY, key, mp_dict_item(rec, dict, key)); }

/* -- Names ----------------------------------------------------------------------------------------------------------- */

void mp_read_global(mp_recorder *rec, const mp_frame *frame, PyObject *name)
{
    PyObject *value = mp_dict_item(rec, frame->globals, name);
    mp_rec_pin(rec, frame->globals, "globals");
    mp_rec_read(rec, frame->globals, MP_READ_KEY, name, value);
    if (value) return;
    mp_rec_pin(rec, frame->builtins, "builtins");
    mp_read_key(rec, frame->builtins, name);
}

static void load_global(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_read_global(rec, frame, name_of(frame, oparg >> 1)); }

static void load_name(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *name = name_of(frame, oparg);
    if (is_outside(rec, frame->locals) && frame->locals != frame->globals) mp_read_key(rec, frame->locals, name);
    if (frame->locals != frame->globals && mp_dict_item(rec, frame->locals, name)) return;
    mp_read_global(rec, frame, name);
}

static void store_name(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (is_outside(rec, frame->locals)) mp_rec_write(rec, frame->locals, MP_WRITE_KEY, name_of(frame, oparg), TOP(1));
}

static void delete_name(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (is_outside(rec, frame->locals)) mp_rec_write(rec, frame->locals, MP_WRITE_KEY, name_of(frame, oparg), NULL);
}

static void store_global(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_pin(rec, frame->globals, "globals");
    mp_rec_write(rec, frame->globals, MP_WRITE_KEY, name_of(frame, oparg), TOP(1));
}

static void delete_global(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_pin(rec, frame->globals, "globals");
    mp_rec_write(rec, frame->globals, MP_WRITE_KEY, name_of(frame, oparg), NULL);
}

static void read_cell(mp_recorder *rec, PyObject *cell)
{
    if (cell && PyCell_Check(cell) && is_outside(rec, cell))
        mp_rec_read(rec, cell, MP_READ_CELL, NULL, PyCell_GET(cell));
}

static void load_deref(mp_recorder *rec, const mp_frame *frame, int oparg) { read_cell(rec, frame->localsplus[oparg]); }

static void load_classderef(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *name = PyTuple_GET_ITEM(frame->code->co_localsplusnames, oparg);
    if (is_outside(rec, frame->locals)) mp_read_key(rec, frame->locals, name);
    if (!mp_dict_item(rec, frame->locals, name)) read_cell(rec, frame->localsplus[oparg]);
}

static void write_cell(mp_recorder *rec, PyObject *cell, PyObject *value)
{
    if (is_outside(rec, cell)) mp_rec_write(rec, cell, MP_WRITE_CELL, NULL, value);
}

static void store_deref(mp_recorder *rec, const mp_frame *frame, int oparg)
{ write_cell(rec, frame->localsplus[oparg], TOP(1)); }

static void delete_deref(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    read_cell(rec, frame->localsplus[oparg]); /* deleting an empty one raises */
    write_cell(rec, frame->localsplus[oparg], NULL);
}

static void load_build_class(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *name = mp_intern("__build_class__");
    if (!name) return;
    mp_rec_pin(rec, frame->builtins, "builtins");
    mp_read_key(rec, frame->builtins, name);
    Py_DECREF(name);
}

/* -- Attributes -------------------------------------------------------------------------------------------------------- */

static void load_attr(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_rec_attr(rec, TOP(1), name_of(frame, oparg)); }

static void store_attr(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_rec_store_attr(rec, TOP(1), name_of(frame, oparg), TOP(2)); }

static void delete_attr(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_attr(rec, TOP(1), name_of(frame, oparg)); /* deleting a missing one raises */
    mp_rec_store_attr(rec, TOP(1), name_of(frame, oparg), NULL);
}

/* -- Items, iteration, operators ------------------------------------------------------------------------------------------ */

static void binary_subscr(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_subscript(rec, TOP(2), TOP(1)); }

static void store_subscr(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_rec_store_subscript(rec, TOP(2), TOP(1), TOP(3)); }

static void delete_subscr(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_rec_store_subscript(rec, TOP(2), TOP(1), NULL); }

static void iterate_top(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_iterate(rec, TOP(1)); }

static void for_iter(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (is_outside(rec, TOP(1)) && !mp_is_tensor(TOP(1)) && !mp_draw_loop(rec, frame, TOP(1)))
        mp_rec_iterate(rec, TOP(1));
}

static void get_iter(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (is_outside(rec, TOP(1)) && mp_draw_walks(rec, TOP(1)))
        mp_rec_type(rec, TOP(1)); /* it is its own iterator, and FOR_ITER shows what is taken */
    else
        mp_rec_iterate(rec, TOP(1));
}

static void send(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (is_outside(rec, TOP(2))) mp_rec_iterate(rec, TOP(2));
}

static void merge_dict(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_operand(rec, TOP(1), false); }

/* A key is hashed and compared by C code. */
static void hash_key(mp_recorder *rec, PyObject *key)
{
    if (!mp_is_scalar(key) && !mp_is_tensor(key)) mp_rec_deep(rec, key);
}

static void build_set(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    for (int i = 1; i <= oparg; i++) hash_key(rec, TOP(i));
}

static void build_map(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    for (int i = 1; i <= oparg; i++) hash_key(rec, TOP(2 * i));
}

static void set_add(mp_recorder *rec, const mp_frame *frame, int oparg) { hash_key(rec, TOP(1)); }
static void map_add(mp_recorder *rec, const mp_frame *frame, int oparg) { hash_key(rec, TOP(2)); }

static void contains_op(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_contains(rec, TOP(1), TOP(2)); }

/* Those that CPython makes once. */
static bool small_int(PyObject *number)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(number, &overflow);
    return !overflow && value >= -5 && value <= 256;
}

/* An interned text is the only one of its value that is: wherever the text was read, it must be this very object again. False: it may have
** come in another way. */
static bool is_very_text(mp_recorder *rec, PyObject *text)
{
    if (!PyUnicode_CheckExact(text) || !PyUnicode_CHECK_INTERNED(text)) return false;
    mp_read *reads = rec->recording->reads;
    for (uint32_t i = 0; i < rec->recording->n_reads; i++)
        if (reads[i].was == MP_WAS_ITEMS) {
            PyObject *items = PyTuple_GET_ITEM(reads[i].value, 0);
            for (Py_ssize_t j = 0; j < PyTuple_GET_SIZE(items); j++)
                if (PyTuple_GET_ITEM(items, j) == text) return false;
        } else if (reads[i].was == MP_WAS_SCALAR && reads[i].value == text)
            reads[i].very = true;
    for (uint32_t i = 0; i < rec->recording->n_objects; i++) { /* defaults of functions */
        PyObject *object = mp_object_get(&rec->recording->objects[i]);
        bool holds = false;
        for (Py_ssize_t j = 0; object && PyTuple_CheckExact(object) && j < PyTuple_GET_SIZE(object); j++)
            holds = holds || PyTuple_GET_ITEM(object, j) == text;
        if (holds) mp_rec_identity(rec, object);
    }
    return true;
}

/* Scalars in the copy module: it asks whether a copy is its original, and a scalar's copy always is.
** Which of two objects of one kind it is matters where kinds have no identity of their own: tuples and such by the guards' leave, scalars by
** the interpreter's. Objects of different types are told apart by the types. */
static void is_op(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *left = TOP(2), *right = TOP(1);
    PyTypeObject *type = Py_TYPE(left);
    if (type != Py_TYPE(right) || PyBool_Check(left) || left == Py_None) return;
    if (PyTuple_Check(left) || PyFrozenSet_Check(left) || PyMethod_Check(left)) {
        mp_rec_identity(rec, left);
        mp_rec_identity(rec, right);
    } else if ((type == &PyUnicode_Type || type == &PyBytes_Type || type == &PyFloat_Type || type == &PyComplex_Type ||
                type == &PyLong_Type) &&
               mp_scalar_same(left, right) && !(type == &PyLong_Type && small_int(left)) &&
               !(left == right && (mp_is_copy_code(frame->code) || is_very_text(rec, left))))
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "the identity of equal values of type %s", type->tp_name);
}

static void compare_op(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_operand(rec, TOP(2), true);
    mp_rec_operand(rec, TOP(1), true);
}

static void binary_op(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *left = TOP(2), *right = TOP(1);
    bool text = PyUnicode_Check(left) || PyBytes_Check(left); /* "%s" % (a, b) looks deep into b */
    mp_rec_operand(rec, left, text);
    mp_rec_operand(rec, right, text);
    if (text && oparg % NB_INPLACE_ADD == NB_REMAINDER) mp_text_percent(rec, frame, &TOP(2));
    if (oparg < NB_INPLACE_ADD || !is_outside(rec, left) || mp_is_tensor(left) || mp_is_scalar(left)) return;
    if (PyList_Check(left) && oparg == NB_INPLACE_ADD) mp_rec_iterate(rec, right);
    if (PyTuple_Check(left) || PyFrozenSet_Check(left) || PyUnicode_Check(left) || PyLong_Check(left)) return;
    mp_rec_own(rec, left);
}

static void unary_op(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_operand(rec, TOP(1), false); }
static void truth(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_truth(rec, TOP(1)); }
static void match_exception(mp_recorder *rec, const mp_frame *frame, int oparg) { mp_rec_operand(rec, TOP(1), true); }

/* It gets a traceback and a context, which are no part of what is written back. */
static void raise_varargs(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *error = oparg == 0 ? NULL : TOP(oparg);
    if (error && PyExceptionInstance_Check(error) && mp_rec_find(rec, error) != MP_NO_OBJ)
        mp_rec_abandon(rec, MP_REASON_EFFECT, "raises a %s from outside the call", Py_TYPE(error)->tp_name);
}

static void format_value(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *value = oparg & 4 ? TOP(2) : TOP(1);
    if (mp_is_scalar(value)) return;
    mp_rec_frame *entry = mp_is_tensor(value) && !(oparg & 3) ? mp_rec_frame_of(rec, frame) : NULL;
    if (entry) entry->converts = true;
    mp_rec_operand(rec, value, true);
    mp_rec_shown(rec, value);
    if (Py_TYPE(value)->tp_repr == PyBaseObject_Type.tp_repr) mp_rec_identity(rec, value); /* shows its address */
}

static void build_string(mp_recorder *rec, const mp_frame *frame, int oparg) {} /* of texts of numbers: trace/texts.c */

static void get_type(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (!mp_is_scalar(TOP(1))) mp_rec_type(rec, TOP(1));
}

/* -- Calls ------------------------------------------------------------------------------------------------------------------- */

static void kw_names(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (entry) entry->kwnames = PyTuple_GET_ITEM(frame->code->co_consts, oparg);
}

static void read_member(mp_recorder *rec, PyObject *owner, const char *name, PyObject *value)
{
    PyObject *key = mp_intern(name);
    if (key) mp_rec_read(rec, owner, MP_READ_MEMBER, key, value ? value : Py_None);
    Py_XDECREF(key);
}

/* A bound method is taken apart by PRECALL: CALL sees only its function. */
static void precall(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *method = TOP(oparg + 1);
    if (TOP(oparg + 2) || !method || !PyMethod_Check(method) || !is_outside(rec, method)) return;
    read_member(rec, method, "__func__", PyMethod_GET_FUNCTION(method));
    read_member(rec, method, "__self__", PyMethod_GET_SELF(method));
}

/* separator.join: it makes a list of what an iterator gives before it looks at any of it. */
static bool is_join(PyObject *callable, bool method)
{
    PyObject *descr = PyDict_GetItemString(PyUnicode_Type.tp_dict, "join");
    if (!descr || !PyCFunction_Check(callable)) return descr && method && callable == descr;
    return ((PyCFunctionObject *)callable)->m_ml == ((PyMethodDescrObject *)descr)->d_method;
}

static void call(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    PyObject *kwnames = entry ? entry->kwnames : NULL;
    if (entry) entry->kwnames = NULL;
    bool method = TOP(oparg + 2) != NULL;
    PyObject *callable = TOP(oparg + (method ? 2 : 1));
    if (PyFunction_Check(callable) && !mp_effect_of_function(callable)) return;
    size_t nargs = (size_t)(oparg + method);
    if (kwnames) nargs -= (size_t)PyTuple_GET_SIZE(kwnames);
    if (oparg == 1 && !kwnames && PyGen_CheckExact(TOP(1)) &&
        is_join(callable, method)) { /* its text stays what it is */
        mp_rec_iterate(rec, TOP(1));
        if (mp_rec_abandoned(rec) || !mp_observe_gather(&TOP(1))) return;
    }
    mp_rec_call(rec, frame, callable, &TOP(oparg + method), nargs, kwnames);
}

/* The values of a dict after those in `values`; its keys as an owned tuple, or NULL where there are none or on failure. */
static PyObject *append_keywords(PyObject *dict, PyObject **values)
{
    Py_ssize_t n = dict ? PyDict_GET_SIZE(dict) : 0, at = 0, i = 0;
    PyObject *names = n ? PyTuple_New(n) : NULL, *key, *value;
    while (names && i < n && PyDict_Next(dict, &at, &key, &value)) {
        PyTuple_SET_ITEM(names, i, Py_NewRef(key));
        values[i++] = value;
    }
    return names;
}

/* The items that *object gives, where looking at them uses nothing up and runs no code of the program. Owned, or NULL. */
static PyObject *star_items(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    bool sequence = (PyTuple_Check(object) && type->tp_iter == PyTuple_Type.tp_iter) ||
                    (PyList_Check(object) && type->tp_iter == PyList_Type.tp_iter);
    bool exact = type == &PyDict_Type || type == &PyDictKeys_Type || type == &PyDictValues_Type ||
                 type == &PyRange_Type || type == &PyUnicode_Type || PyAnySet_CheckExact(object);
    if (!sequence && !exact) return NULL;
    mp_kept kept = mp_keep();
    PyObject *items = PySequence_Tuple(object);
    mp_restore(kept);
    return items;
}

/* Does the call of it enter a Python function at once? Then the arguments are that frame's. */
static bool enters_python(PyObject *callable)
{
    if (PyType_Check(callable)) { /* through a __new__ that does not look at them */
        PyTypeObject *type = (PyTypeObject *)callable;
        return Py_IS_TYPE(callable, &PyType_Type) && mp_type_python(type, "__init__") &&
               (type->tp_new == PyBaseObject_Type.tp_new || type->tp_new == PyDict_Type.tp_new);
    }
    if (PyMethod_Check(callable)) return PyFunction_Check(PyMethod_GET_FUNCTION(callable));
    return mp_type_python(Py_TYPE(callable), "__call__");
}

static void call_function_ex(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    int with_keywords = oparg & 1;
    PyObject *keywords = with_keywords ? TOP(1) : NULL, *args = TOP(1 + with_keywords),
             *callable = TOP(2 + with_keywords);
    mp_rec_operand(rec, args, false);
    if (keywords) mp_rec_operand(rec, keywords, false);
    if (PyFunction_Check(callable) && !mp_effect_of_function(callable)) return;
    bool known = !keywords || PyDict_CheckExact(keywords);
    PyObject *items = known ? star_items(args) : NULL;
    if (!items && known && enters_python(callable)) {
        mp_rec_call(rec, frame, callable, NULL, 0, NULL);
        return;
    }
    if (!items && known && Py_TYPE(args)->tp_iter) { /* used up now, it is a tuple that the call finds */
        mp_rec_iterate(rec, args);
        if (mp_rec_abandoned(rec) || !mp_observe_gather(&TOP(1 + with_keywords))) return;
        items = Py_NewRef(TOP(1 + with_keywords));
    }
    if (!items) {
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "%s called with *%s", Py_TYPE(callable)->tp_name,
                       Py_TYPE(args)->tp_name);
        return;
    }
    Py_ssize_t n = PyTuple_GET_SIZE(items), n_keywords = keywords ? PyDict_GET_SIZE(keywords) : 0;
    PyObject *few[16],
        **values = n + n_keywords <= 16 ? few : PyMem_RawMalloc((size_t)(n + n_keywords) * sizeof *values);
    if (!values) {
        Py_DECREF(items);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
        return;
    }
    for (Py_ssize_t i = 0; i < n; i++) values[i] = PyTuple_GET_ITEM(items, i);
    PyObject *names = append_keywords(keywords, values + n);
    if (names || !n_keywords)
        mp_rec_call(rec, frame, callable, values, (size_t)n, names);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
    Py_DECREF(items);
    Py_XDECREF(names);
    if (values != few) PyMem_RawFree(values);
}

static void function_made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    if (slot) mp_rec_internal(rec, *slot);
}

static void make_function(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_rec_pend(rec, frame, function_made, NULL); }

/* Special method `name` of `object` is about to be called by the interpreter. */
static void call_special(mp_recorder *rec, const mp_frame *frame, PyObject *object, const char *name, bool now)
{
    PyObject *key = mp_intern(name);
    if (!key) return;
    mp_rec_type_attr(rec, Py_TYPE(object), key);
    PyObject *method = mp_raw_type_lookup(Py_TYPE(object), key); /* borrowed from the type */
    if (now && method && (!PyFunction_Check(method) || mp_effect_of_function(method)))
        mp_rec_call(rec, frame, method, &object, 1, NULL);
    Py_DECREF(key);
}

static void before_with(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_type(rec, TOP(1));
    call_special(rec, frame, TOP(1), "__exit__", false); /* called later, by a CALL of its own */
    call_special(rec, frame, TOP(1), "__enter__", true);
}

static void before_async_with(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    mp_rec_type(rec, TOP(1));
    call_special(rec, frame, TOP(1), "__aexit__", false);
    call_special(rec, frame, TOP(1), "__aenter__", true);
}

static void with_except_start(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *exit = TOP(4), *error = TOP(1);
    PyObject *trace = PyException_GetTraceback(error);
    PyObject *args[] = {(PyObject *)Py_TYPE(error), error, trace ? trace : Py_None};
    if (!PyFunction_Check(exit) || mp_effect_of_function(exit)) mp_rec_call(rec, frame, exit, args, 3, NULL);
    Py_XDECREF(trace);
}

/* -- Pattern matching -------------------------------------------------------------------------------------------------------------- */

static void match_keys(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *keys = TOP(1), *subject = TOP(2);
    for (Py_ssize_t i = 0; PyTuple_Check(keys) && i < PyTuple_GET_SIZE(keys); i++)
        if (PyDict_Check(subject) || Py_IS_TYPE(subject, &PyDictProxy_Type))
            mp_rec_raw_subscript(rec, subject, PyTuple_GET_ITEM(keys, i));
}

static void match_class(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *names = TOP(1), *cls = TOP(2), *subject = TOP(3);
    mp_rec_operand(rec, subject, false);
    if (!PyType_Check(cls)) return;
    PyObject *key = mp_intern("__match_args__");
    if (!key) return;
    mp_rec_type_attr(rec, (PyTypeObject *)cls, key);
    PyObject *positional = mp_raw_type_lookup((PyTypeObject *)cls, key);
    Py_DECREF(key);
    if (positional) mp_rec_deep(rec, positional);
    for (Py_ssize_t i = 0; positional && PyTuple_Check(positional) && i < oparg && i < PyTuple_GET_SIZE(positional);
         i++)
        mp_rec_attr(rec, subject, PyTuple_GET_ITEM(positional, i));
    for (Py_ssize_t i = 0; PyTuple_Check(names) && i < PyTuple_GET_SIZE(names); i++)
        mp_rec_attr(rec, subject, PyTuple_GET_ITEM(names, i));
}

/* -- Not understood ----------------------------------------------------------------------------------------------------------------- */

static void refuse(mp_recorder *rec, const mp_frame *frame, int oparg)
{ mp_rec_abandon(rec, MP_REASON_OPCODE, "%s", "import *, annotations of a module, or an interactive statement"); }

/* __annotations__ is made in the namespace of a class that the call makes. */
static void setup_annotations(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    if (!frame->locals || is_outside(rec, frame->locals) || frame->locals == frame->globals) refuse(rec, frame, oparg);
}

/* -- The table ------------------------------------------------------------------------------------------------------------------------ */

static const mp_opcode handlers[256] = {
    [LOAD_GLOBAL] = load_global,
    [LOAD_NAME] = load_name,
    [STORE_NAME] = store_name,
    [DELETE_NAME] = delete_name,
    [STORE_GLOBAL] = store_global,
    [DELETE_GLOBAL] = delete_global,
    [LOAD_DEREF] = load_deref,
    [LOAD_CLASSDEREF] = load_classderef,
    [STORE_DEREF] = store_deref,
    [DELETE_DEREF] = delete_deref,
    [LOAD_BUILD_CLASS] = load_build_class,
    [LOAD_ATTR] = load_attr,
    [LOAD_METHOD] = load_attr,
    [STORE_ATTR] = store_attr,
    [DELETE_ATTR] = delete_attr,
    [BINARY_SUBSCR] = binary_subscr,
    [STORE_SUBSCR] = store_subscr,
    [DELETE_SUBSCR] = delete_subscr,
    [GET_ITER] = get_iter,
    [GET_YIELD_FROM_ITER] = iterate_top,
    [UNPACK_SEQUENCE] = iterate_top,
    [UNPACK_EX] = iterate_top,
    [LIST_EXTEND] = iterate_top,
    [SET_UPDATE] = iterate_top,
    [FOR_ITER] = for_iter,
    [SEND] = send,
    [DICT_UPDATE] = merge_dict,
    [DICT_MERGE] = merge_dict,
    [BUILD_SET] = build_set,
    [BUILD_MAP] = build_map,
    [SET_ADD] = set_add,
    [MAP_ADD] = map_add,
    [CONTAINS_OP] = contains_op,
    [COMPARE_OP] = compare_op,
    [IS_OP] = is_op,
    [BINARY_OP] = binary_op,
    [UNARY_NEGATIVE] = unary_op,
    [UNARY_POSITIVE] = unary_op,
    [UNARY_INVERT] = unary_op,
    [UNARY_NOT] = truth,
    [POP_JUMP_FORWARD_IF_TRUE] = truth,
    [POP_JUMP_FORWARD_IF_FALSE] = truth,
    [POP_JUMP_BACKWARD_IF_TRUE] = truth,
    [POP_JUMP_BACKWARD_IF_FALSE] = truth,
    [JUMP_IF_TRUE_OR_POP] = truth,
    [JUMP_IF_FALSE_OR_POP] = truth,
    [GET_LEN] = truth,
    [RAISE_VARARGS] = raise_varargs,
    [CHECK_EXC_MATCH] = match_exception,
    [CHECK_EG_MATCH] = match_exception,
    [FORMAT_VALUE] = format_value,
    [BUILD_STRING] = build_string,
    [GET_AWAITABLE] = get_type,
    [GET_AITER] = get_type,
    [GET_ANEXT] = get_type,
    [MATCH_MAPPING] = get_type,
    [MATCH_SEQUENCE] = get_type,
    [MATCH_KEYS] = match_keys,
    [MATCH_CLASS] = match_class,
    [KW_NAMES] = kw_names,
    [PRECALL] = precall,
    [CALL] = call,
    [CALL_FUNCTION_EX] = call_function_ex,
    [MAKE_FUNCTION] = make_function,
    [BEFORE_WITH] = before_with,
    [BEFORE_ASYNC_WITH] = before_async_with,
    [WITH_EXCEPT_START] = with_except_start,
    [IMPORT_NAME] = mp_import_name,
    [IMPORT_FROM] = mp_import_from,
    [IMPORT_STAR] = refuse,
    [SETUP_ANNOTATIONS] = setup_annotations,
    [PRINT_EXPR] = refuse,
};

bool mp_rec_opcode_matters(int opcode) { return handlers[opcode] != NULL; }

void mp_rec_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    mp_rec_frame *entry = rec->why.code ? NULL : mp_rec_frame_of(rec, frame);
    if (!entry || !handlers[opcode]) return;
    entry->offset = frame->offset;
    entry->wrote = entry->in_c = entry->in_unknown_c = entry->converts = entry->shows = false;
    entry->opcode = opcode;
    rec->whole = NULL;
    mp_kept kept = mp_keep();
    if (MP_UNLIKELY(rec->numbers != NULL)) mp_number_instruction(rec, frame, opcode, oparg);
    if (MP_UNLIKELY(rec->oracle != NULL)) mp_oracle_look(rec, frame, opcode);
    rec->in_instruction = true;
    rec->gives_read = false;
    if (!mp_array_instruction(rec, frame, opcode, oparg)) handlers[opcode](rec, frame, oparg);
    rec->in_instruction = false;
    if (MP_UNLIKELY(rec->n_number_reads)) mp_number_met_end(rec, frame, opcode);
    mp_restore(kept);
}

void mp_rec_at(mp_recorder *rec, void *frame_id, int offset)
{
    mp_frame frame = {.id = frame_id};
    mp_rec_frame *entry = mp_rec_frame_of(rec, &frame);
    if (entry) entry->offset = offset;
}

void mp_rec_result(mp_recorder *rec, const mp_frame *frame, PyObject **slot, bool raised)
{
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (!entry) return;
    mp_pending handler = entry->pending;
    PyObject *data = entry->pending_data;
    bool wrote = entry->wrote;
    entry->pending = NULL;
    entry->pending_data = NULL;
    entry->wrote = false;
    if (rec->deferred) mp_deferred_ended(rec, frame->id, raised);
    if (raised && wrote) mp_rec_abandon(rec, MP_REASON_EXCEPTION, "%s", "a store to an outside object failed");
    if (raised && handler && entry->must)
        mp_rec_abandon(rec, MP_REASON_EXCEPTION, "a call that changes outside state raised");
    if (raised && handler && entry->told && !rec->why.code)
        handler(rec, data, NULL);
    else if (!raised && handler && !rec->why.code)
        handler(rec, data, slot);
    else
        Py_XDECREF(data);
}

/* -- Frames ------------------------------------------------------------------------------------------------------------------------------ */

/* Positional argument `i` of a frame that has begun, also where the compiler put it into a cell. Borrowed or NULL. */
static PyObject *argument(const mp_frame *frame, int i)
{
    if (i >= frame->code->co_argcount) return NULL;
    PyObject *value = frame->localsplus[i];
    const char *kinds = PyBytes_AS_STRING(frame->code->co_localspluskinds);
    return value && PyCell_Check(value) && kinds[i] & 0x40 /* CO_FAST_CELL */ ? PyCell_GET(value) : value;
}

/* Record by which attribute of `type` the function is found, if by any. */
static bool found_in_class(mp_recorder *rec, PyTypeObject *type, PyObject *func)
{
    PyObject *mro = type->tp_mro;
    for (Py_ssize_t i = 0; mro && i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        PyObject *key, *value;
        Py_ssize_t at = 0;
        while (base->tp_dict && PyDict_Next(base->tp_dict, &at, &key, &value)) {
            static const char *const accessors[] = {"fget", "fset", "fdel"};
            const char *member = NULL;
            if (PyObject_TypeCheck(value, &PyProperty_Type)) {
                PyObject **held = (PyObject **)((char *)value + sizeof(PyObject)); /* prop_get, prop_set, prop_del */
                for (int k = 0; k < 3 && !member; k++)
                    if (held[k] == func) member = accessors[k];
            } else if (Py_IS_TYPE(value, &PyStaticMethod_Type) || Py_IS_TYPE(value, &PyClassMethod_Type)) {
                if (*(PyObject **)((char *)value + sizeof(PyObject)) == func) member = "__func__";
            }
            if (value != func && !member) continue;
            if (!PyUnicode_CheckExact(key)) continue;
            Py_INCREF(key);
            Py_INCREF(value);
            mp_rec_type_attr(rec, type, key);
            if (member && mp_rec_find(rec, value) != MP_NO_OBJ) read_member(rec, value, member, func);
            Py_DECREF(key);
            Py_DECREF(value);
            return mp_rec_find(rec, func) != MP_NO_OBJ;
        }
    }
    return false;
}

/* The interpreter or C code called a function that no read had found (a special method, say): it is its class's. */
static void adopt(mp_recorder *rec, const mp_frame *frame)
{
    PyObject *self = argument(frame, 0);
    if (!self) return;
    if (PyType_Check(self) && found_in_class(rec, (PyTypeObject *)self, frame->func)) return;
    found_in_class(rec, Py_TYPE(self), frame->func);
}

static void read_function(mp_recorder *rec, const mp_frame *frame)
{
    PyFunctionObject *func = (PyFunctionObject *)frame->func;
    mp_obj_id id = mp_rec_find(rec, frame->func);
    if (id == MP_NO_OBJ) {
        adopt(rec, frame);
        id = mp_rec_ensure(rec, frame->func);
    }
    if (id == MP_NO_OBJ || rec->object_state[id] & MP_STATE_CALLED) return;
    rec->object_state[id] |= MP_STATE_CALLED;
    struct {
        const char *name;
        PyObject *value;
        bool whole;
    } members[] = {
        {"__code__", func->func_code, false},
        {"__globals__", func->func_globals, false},
        {"__builtins__", func->func_builtins, false},
        {"__defaults__", func->func_defaults, true},
        {"__kwdefaults__", func->func_kwdefaults, true},
        {"__closure__", func->func_closure, true},
    };
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        read_member(rec, frame->func, members[i].name, members[i].value);
        if (members[i].whole && members[i].value) mp_rec_whole(rec, members[i].value);
    }
}

void mp_rec_frame_enter(mp_recorder *rec, const mp_frame *frame)
{
    if (rec->why.code || !mp_rec_push_frame(rec, frame)) return;
    rec->recording->frames++;
    mp_kept kept = mp_keep();
    if (frame->func && !mp_rec_is_internal(rec, frame->func) &&
        PyUnicode_CompareWithASCIIString(frame->code->co_name, "<module>") != 0)
        read_function(rec, frame);
    else
        mp_rec_pin(rec, frame->globals, "globals");
    mp_restore(kept);
}

/* What the frame gives, or that it was left by a computation with numbers that raised. */
static void leave_numbers(mp_recorder *rec, const mp_frame *frame, mp_rec_frame *entry, PyObject *value)
{
    if (!value && entry->pending && entry->told) {
        mp_pending handler = entry->pending;
        PyObject *data = entry->pending_data;
        entry->pending = NULL;
        entry->pending_data = NULL;
        handler(rec, data, NULL);
    }
    mp_number_leaves(rec, frame, value);
}

void mp_rec_frame_exit(mp_recorder *rec, const mp_frame *frame, PyObject *value)
{
    mp_rec_frame *entry = rec->why.code ? NULL : mp_rec_frame_of(rec, frame);
    if (!entry) return;
    if (!value && entry->wrote) mp_rec_abandon(rec, MP_REASON_EXCEPTION, "%s", "a store to an outside object failed");
    if (MP_UNLIKELY(rec->numbers != NULL)) leave_numbers(rec, frame, entry, value);
    mp_rec_pop_frame(rec, frame);
}

/* -- The target ---------------------------------------------------------------------------------------------------------------------------- */

void mp_rec_call_target(mp_recorder *rec, PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames)
{
    mp_frame caller = {.id = rec};
    if (!PyFunction_Check(target)) mp_rec_call(rec, &caller, target, args, nargs, kwnames);
}

void mp_rec_target_returned(mp_recorder *rec, PyObject *result)
{
    mp_frame caller = {.id = rec};
    PyObject *slot = Py_XNewRef(result);
    mp_rec_result(rec, &caller, slot ? &slot : NULL, result == NULL);
    Py_XDECREF(slot);
}

void mp_rec_count(mp_recorder *rec, uint64_t opcodes)
{
    if (rec->recording) rec->recording->opcodes += opcodes;
}

bool mp_rec_op_may_run(mp_recorder *rec, PyCodeObject *code) { return rec->engine || mp_is_library_code(code); }
