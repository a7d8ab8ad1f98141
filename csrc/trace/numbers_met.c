/* What the program does with numbers that are data: computes with them, moves them, or lets something look at them. See numbers.h. */
#include "trace/arrays.h"
#include "trace/drawn.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"
#include "trace/texts.h"

#include <opcode.h>
#include <structmember.h>

enum {
    REACH_DEPTH = 8,   /* how far C code is followed into an object, */
    REACH_COUNT = 4000 /* and through how many; beyond it all numbers count as reached */
};

/* -- What C code can reach ----------------------------------------------------------------------------------------- */

typedef enum {            /* what C code does with instances of the program's classes, */
               REACH_ANY, /* nobody knows: it may look at attributes */
               REACH_CALLED, /* it calls their methods, which are frames, and passes over what else is in them: as mp_rec_deep has it */
               REACH_HASHED, /* it hashes and compares them; where that means which object it is, it looks at nothing in it */
} reach_kind;

typedef struct {
    mp_recorder *rec;
    PyObject *found; /* owned list of numbers, or NULL without memory */
    uint32_t count;
    int depth;
    reach_kind kind;
} reach;

/* An instance of nothing but Python classes: its methods show what they do. */
static bool of_python_classes(PyTypeObject *type)
{
    PyObject *mro = type->tp_mro;
    if (!mp_type_mutable(type)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        if (base != &PyBaseObject_Type && !mp_type_mutable(base)) return false;
    }
    return true;
}

/* Is what is in the object no business of this C code? */
static bool passed_over(PyObject *object, reach_kind kind)
{
    PyTypeObject *type = Py_TYPE(object);
    if (kind == REACH_CALLED && (PyFunction_Check(object) || PyGen_CheckExact(object))) return true;
    if (kind == REACH_ANY || !of_python_classes(type)) return false;
    return kind == REACH_CALLED ||
           (type->tp_hash == PyBaseObject_Type.tp_hash && type->tp_richcompare == PyBaseObject_Type.tp_richcompare);
}

static int reach_into(PyObject *object, void *context);

static void reach_object(reach *r, PyObject *object)
{
    if (mp_number_is(r->rec, object)) {
        if (r->found && PyList_Append(r->found, object) < 0) Py_CLEAR(r->found);
        return;
    }
    if (PySlice_Check(object)) { /* the collector does not go into it */
        PySliceObject *slice = (PySliceObject *)object;
        reach_object(r, slice->start);
        reach_object(r, slice->stop);
        reach_object(r, slice->step);
        return;
    }
    bool closed = !PyType_IS_GC(Py_TYPE(object)) || PyModule_Check(object) || PyType_Check(object) ||
                  PyCode_Check(object) || mp_is_tensor(object);
    if (closed || r->count > REACH_COUNT || passed_over(object, r->kind)) return;
    if (PyFunction_Check(object)) { /* its globals are not what C code looks at */
        PyFunctionObject *function = (PyFunctionObject *)object;
        PyObject *parts[] = {function->func_defaults, function->func_kwdefaults, function->func_closure,
                             function->func_dict};
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            if (parts[i]) reach_into(parts[i], r);
        return;
    }
    if (r->depth >= REACH_DEPTH) {
        r->count = REACH_COUNT + 1;
        return;
    }
    r->depth++;
    Py_TYPE(object)->tp_traverse(object, reach_into, r);
    r->depth--;
}

static int reach_into(PyObject *object, void *context)
{
    reach *r = context;
    r->count++;
    reach_object(r, object);
    return 0;
}

static void settle_reached(mp_recorder *rec, PyObject *object, reach_kind kind)
{
    if (!object || !mp_numbers_any(rec)) return;
    if (mp_number_is(rec, object)) {
        mp_number_settle(rec, object);
        return;
    }
    if (mp_is_scalar(object) && !PySlice_Check(object)) return;
    mp_kept kept = mp_keep();
    reach r = {.rec = rec, .found = PyList_New(0), .kind = kind};
    reach_object(&r, object);
    if (!r.found)
        mp_number_no_memory(rec);
    else if (r.count > REACH_COUNT)
        mp_number_settle_all(rec);
    else
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(r.found); i++) mp_number_settle(rec, PyList_GET_ITEM(r.found, i));
    Py_XDECREF(r.found);
    mp_restore(kept);
}

void mp_number_settle_inside(mp_recorder *rec, PyObject *object) { settle_reached(rec, object, REACH_ANY); }

/* Instructions that hash and compare it. */
static void settle_hashed(mp_recorder *rec, PyObject *object) { settle_reached(rec, object, REACH_HASHED); }

/* -- Arithmetic ---------------------------------------------------------------------------------------------------- */

/* Does the computation give its operand itself, whatever that is? (abs(n) and n % m do so for some values only.) */
static bool gives_operand(PyObject *data, PyObject *result)
{
    static const char *const formats[] = {"(+$)", "float($)", "int($)"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(data, 0), formats[i]) == 0)
            return PyTuple_GET_ITEM(data, 1) == result;
    return false;
}

/* May the computation raise for other operands? Then it is made also where nothing uses what it gives. */
static bool may_raise(PyObject *data)
{
    static const char *const parts[] = {"/", "%", "**", "<<", ">>", "math.", "int(", "round(", "pow("};
    const char *format = PyUnicode_AsUTF8(PyTuple_GET_ITEM(data, 0));
    for (size_t i = 0; format && i < sizeof parts / sizeof *parts; i++)
        if (strstr(format, parts[i])) return true;
    return !format;
}

/* data: (format of the expression, operands...), where "%" stands for each operand in turn. */
static void number_made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(data);
    if (!result ||
        !mp_is_number(result)) { /* it raised, or gave a complex number: that follows from what the operands are */
        for (Py_ssize_t i = 1; i < n; i++) mp_number_settle(rec, PyTuple_GET_ITEM(data, i));
    } else if (!gives_operand(data, result)) {
        PyObject *leaves = PyDict_New(), *text = PyUnicode_FromString("");
        const char *format = PyUnicode_AsUTF8(PyTuple_GET_ITEM(data, 0));
        for (Py_ssize_t i = 1; format && text && leaves && *format;) {
            size_t plain = strcspn(format, "$");
            PyObject *part = PyUnicode_FromStringAndSize(format, (Py_ssize_t)plain);
            PyUnicode_AppendAndDel(&text, part);
            format += plain;
            if (*format != '$' || !text) continue;
            format++;
            PyUnicode_AppendAndDel(&text, i < n ? mp_number_text(rec, PyTuple_GET_ITEM(data, i), leaves) : NULL);
            i++;
        }
        mp_number_add(rec, slot, text, leaves);
        if (may_raise(data)) mp_number_value(rec, *slot);
        PyErr_Clear();
    }
    Py_DECREF(data);
}

/* The instruction or call now about to run computes `format` of the operands. */
static void computes(mp_recorder *rec, const mp_frame *frame, const char *format, PyObject *const *operands,
                     Py_ssize_t n)
{
    PyObject *data = PyTuple_New(n + 1), *text = PyUnicode_FromString(format);
    if (!data || !text) {
        Py_XDECREF(data);
        Py_XDECREF(text);
        mp_number_no_memory(rec);
        return;
    }
    PyTuple_SET_ITEM(data, 0, text);
    for (Py_ssize_t i = 0; i < n; i++) PyTuple_SET_ITEM(data, i + 1, Py_NewRef(operands[i]));
    mp_rec_pend_told(rec, frame, number_made, data);
}

/* The program learns whether `left op right`. */
static void compared(mp_recorder *rec, PyObject *left, PyObject *right, int op)
{
    static const char *const signs[] = {"<", "<=", "==", "!=", ">", ">="};
    PyObject *leaves = PyDict_New(), *a = leaves ? mp_number_text(rec, left, leaves) : NULL,
             *b = a ? mp_number_text(rec, right, leaves) : NULL;
    PyObject *text = b ? PyUnicode_FromFormat("%U %s %U", a, signs[op], b) : NULL;
    int holds = PyObject_RichCompareBool(left, right, op); /* of exact ints and floats */
    if (left == right && PyFloat_CheckExact(left) && Py_IS_NAN(PyFloat_AS_DOUBLE(left)))
        holds = op == Py_NE; /* which the identity of the two hides */
    mp_number_learn(rec, text, leaves, holds > 0 ? Py_True : Py_False);
    Py_XDECREF(a);
    Py_XDECREF(b);
    PyErr_Clear();
}

static void truth(mp_recorder *rec, PyObject *object)
{
    if (!mp_number_is(rec, object)) return;
    PyObject *template = mp_text_template(rec, object);
    if (mp_number_is_drawn(rec, object) || (template && mp_text_function(PyTuple_GET_ITEM(template, 0)) == NULL)) {
        mp_number_settle(rec, object);
        return;
    }
    if (mp_number_is_numpy(rec, object)) mp_number_settle(rec, object);
    if (!mp_is_number(object)) return; /* a moment is always true, texts of numbers are never empty */
    PyObject *leaves = PyDict_New();
    if (!leaves) {
        mp_number_no_memory(rec);
        return;
    }
    PyObject *text = mp_number_text(rec, object, leaves);
    mp_number_learn(rec, text ? PyUnicode_FromFormat("bool(%U)", text) : NULL, leaves,
                    PyObject_IsTrue(object) > 0 ? Py_True : Py_False);
    Py_XDECREF(text);
}

/* -- Instructions -------------------------------------------------------------------------------------------------- */

#define TOP(i) (frame->stack[frame->depth - (i)])

static const char *const binary_formats[] = {
    [NB_ADD] = "($ + $)",        [NB_AND] = "($ & $)",         [NB_FLOOR_DIVIDE] = "($ // $)",
    [NB_LSHIFT] = "($ << $)",    [NB_MULTIPLY] = "($ * $)",    [NB_REMAINDER] = "($ % $)",
    [NB_OR] = "($ | $)",         [NB_POWER] = "($ ** $)",      [NB_RSHIFT] = "($ >> $)",
    [NB_SUBTRACT] = "($ - $)",   [NB_TRUE_DIVIDE] = "($ / $)", [NB_XOR] = "($ ^ $)",
    [NB_MATRIX_MULTIPLY] = NULL,
};

static bool plain_number(PyObject *object) { return mp_is_number(object) || PyBool_Check(object); }

static void binary(mp_recorder *rec, const mp_frame *frame, int op)
{
    PyObject *operands[] = {TOP(2), TOP(1)};
    bool open[] = {mp_number_is(rec, operands[0]), mp_number_is(rec, operands[1])};
    if (op >= NB_INPLACE_ADD) op -= NB_INPLACE_ADD;
    if (mp_text_binary(rec, frame, op, operands)) return;
    if ((open[0] || open[1]) && plain_number(operands[0]) && plain_number(operands[1]) && binary_formats[op])
        computes(rec, frame, binary_formats[op], operands, 2);
    else if (PyUnicode_Check(operands[0]) || PyBytes_Check(operands[0])) { /* "%s" % (a, b) */
        mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
        mp_number_settle(rec, operands[0]);
        settle_reached(rec, operands[1], entry ? REACH_CALLED : REACH_ANY);
        if (entry) entry->in_c = true; /* what its __str__ and the like give */
    } else {
        for (int i = 0; i < 2; i++)
            if (open[i] && !(mp_is_tensor(operands[1 - i]) && mp_is_number(operands[i])))
                mp_number_settle(rec, operands[i]);
    }
}

static void compare(mp_recorder *rec, PyObject *left, PyObject *right, int op)
{
    bool open = (mp_is_number(left) && mp_number_is(rec, left)) || (mp_is_number(right) && mp_number_is(rec, right));
    if (open && (mp_is_tensor(left) || mp_is_tensor(right))) return;
    if (open && plain_number(left) && plain_number(right)) {
        compared(rec, left, right, op);
        return;
    }
    if (!of_python_classes(Py_TYPE(left))) settle_hashed(rec, left);
    if (!of_python_classes(Py_TYPE(right))) settle_hashed(rec, right);
}

/* Which object it is: that of any other int of the value, or text of one character. */
static void identity(mp_recorder *rec, PyObject **left, PyObject **right)
{
    if (*left == *right || Py_TYPE(*left) != Py_TYPE(*right)) return; /* whatever it is */
    PyObject **both[] = {left, right};
    for (int i = 0; i < 2; i++) {
        PyObject *usual = mp_number_usual(rec, *both[i]);
        mp_number_settle(rec, *both[i]);
        if (usual)
            Py_SETREF(*both[i], usual); /* the stack's reference */
        else
            PyErr_Clear();
    }
}

/* Is the text of an object made by code of its own in Python, for str() and the like, or by what they ask instead? */
static bool shows_itself(PyObject *object, const char *method)
{
    PyTypeObject *type = Py_TYPE(object);
    if (!mp_type_mutable(type)) return false;
    if (mp_type_python(type, method)) return true;
    PyObject *name = PyUnicode_FromString(method), *found = name ? mp_raw_type_lookup(type, name) : NULL;
    PyObject *base = name ? PyDict_GetItemWithError(PyBaseObject_Type.tp_dict, name) : NULL;
    Py_XDECREF(name);
    PyErr_Clear();
    if (!found || found != base) return false;
    return strcmp(method, "__format__") == 0 ? shows_itself(object, "__str__")
                                             : !strcmp(method, "__str__") && shows_itself(object, "__repr__");
}

/* str(object) of such an object, repr, format: C code that passes on what its methods give. */
static bool shows(mp_call *call)
{
    if (call->nargs != 1 || call->nkw || !call->frame) return false;
    PyObject *callable = call->callable;
    if (callable == (PyObject *)&PyUnicode_Type) return shows_itself(call->args[0], "__str__");
    PyTypeObject *type = Py_TYPE(call->args[0]);
    if (callable == (PyObject *)&PyLong_Type) return mp_type_mutable(type) && mp_type_python(type, "__int__");
    if (callable == (PyObject *)&PyFloat_Type) return mp_type_mutable(type) && mp_type_python(type, "__float__");
    PyMethodDef *method = PyCFunction_Check(callable) ? ((PyCFunctionObject *)callable)->m_ml : NULL;
    PyObject *self = method ? PyCFunction_GET_SELF(callable) : NULL;
    if (!self || !PyModule_Check(self) || strcmp(PyModule_GetName(self), "builtins") != 0) return false;
    if (!strcmp(method->ml_name, "repr")) return shows_itself(call->args[0], "__repr__");
    return !strcmp(method->ml_name, "format") && shows_itself(call->args[0], "__format__");
}

/* Does storing this attribute only keep the object? */
static bool keeps_attribute(PyObject *owner, PyObject *name)
{
    if (mp_is_tensor(owner)) return false;
    PyObject *descr = mp_raw_type_lookup(PyType_Check(owner) ? Py_TYPE(owner) : Py_TYPE(owner), name);
    if (!descr || !Py_TYPE(descr)->tp_descr_set) return true;
    if (Py_IS_TYPE(descr, &PyMemberDescr_Type)) return ((PyMemberDescrObject *)descr)->d_member->type == T_OBJECT_EX;
    return PyObject_TypeCheck(descr, &PyProperty_Type) || mp_type_python(Py_TYPE(descr), "__set__");
}

static bool keeps_items(PyObject *container)
{ return PyList_Check(container) || PyDict_Check(container) || mp_type_python(Py_TYPE(container), "__setitem__"); }

/* A dict hashes it; other containers ask it for a number. */
static void settle_key(mp_recorder *rec, PyObject *container, PyObject *key)
{ settle_reached(rec, key, PyDict_Check(container) ? REACH_HASHED : REACH_ANY); }

void mp_number_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    if (opcode == IS_OP && rec->numbers && !rec->why.code) identity(rec, &TOP(2), &TOP(1)); /* also of settled ones */
    if (!mp_numbers_any(rec)) return;
    if (mp_drawn_instruction(rec, frame, opcode, oparg) || mp_text_instruction(rec, frame, opcode, oparg)) return;
    switch (opcode) {
    case BINARY_OP: binary(rec, frame, oparg); return;
    case COMPARE_OP: compare(rec, TOP(2), TOP(1), oparg); return;
    case UNARY_NEGATIVE:
        if (mp_number_is(rec, TOP(1))) computes(rec, frame, "(-$)", &TOP(1), 1);
        return;
    case UNARY_POSITIVE:
        if (mp_number_is(rec, TOP(1))) computes(rec, frame, "(+$)", &TOP(1), 1);
        return;
    case UNARY_INVERT:
        if (mp_number_is(rec, TOP(1))) computes(rec, frame, "(~$)", &TOP(1), 1);
        return;
    case UNARY_NOT:
    case POP_JUMP_FORWARD_IF_TRUE:
    case POP_JUMP_FORWARD_IF_FALSE:
    case POP_JUMP_BACKWARD_IF_TRUE:
    case POP_JUMP_BACKWARD_IF_FALSE:
    case JUMP_IF_TRUE_OR_POP:
    case JUMP_IF_FALSE_OR_POP: truth(rec, TOP(1)); return;
    case IS_OP: return;
    case LOAD_ATTR:
    case LOAD_METHOD: mp_number_settle(rec, TOP(1)); return;
    case SET_ADD: settle_hashed(rec, TOP(1)); return;
    case MAP_ADD: settle_hashed(rec, TOP(2)); return;
    case STORE_ATTR:
        if (!keeps_attribute(TOP(1), PyTuple_GET_ITEM(frame->code->co_names, oparg)))
            mp_number_settle_inside(rec, TOP(2));
        return;
    case BINARY_SUBSCR:
    case DELETE_SUBSCR:
        if (!mp_is_tensor(TOP(2))) settle_key(rec, TOP(2), TOP(1));
        return;
    case STORE_SUBSCR:
        if (mp_is_tensor(TOP(2))) return;
        settle_key(rec, TOP(2), TOP(1));
        if (!keeps_items(TOP(2))) mp_number_settle_inside(rec, TOP(3));
        return;
    case CONTAINS_OP:
        settle_hashed(rec, TOP(2));
        if (!PyDict_Check(TOP(1))) settle_hashed(rec, TOP(1)); /* its keys were looked at when they came in */
        return;
    case FORMAT_VALUE: {
        static const char *const names[] = {"__format__", "__str__", "__repr__", "__repr__"};
        PyObject *value = oparg & 4 ? TOP(2) : TOP(1);
        mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
        if (!shows_itself(value, names[oparg & 3]) || !entry)
            settle_reached(rec, value, REACH_CALLED);
        else
            entry->shows = !(oparg & 4) && (oparg & 3) != 3;
        return;
    }
    case SET_UPDATE: settle_hashed(rec, TOP(1)); return;
    case MATCH_CLASS:
        if (!PyTuple_CheckExact(TOP(1)) || PyTuple_GET_SIZE(TOP(1))) mp_number_settle(rec, TOP(3));
        return;
    case BUILD_SET:
        for (int i = 1; i <= oparg; i++) settle_hashed(rec, TOP(i));
        return;
    case BUILD_MAP:
        for (int i = 1; i <= oparg; i++) settle_hashed(rec, TOP(2 * i));
        return;
    default: return;
    }
}

/* Does the interpreter, after a frame that it entered by this instruction, only pass on what the frame gives? */
static bool passes_on(int opcode)
{
    switch (opcode) {
    case CALL:
    case CALL_FUNCTION_EX:
    case LOAD_ATTR:
    case LOAD_METHOD:
    case STORE_ATTR:
    case STORE_SUBSCR:
    case BINARY_SUBSCR:
    case BINARY_OP:
    case COMPARE_OP:
    case UNARY_NEGATIVE:
    case UNARY_POSITIVE:
    case UNARY_INVERT:
    case GET_ITER:
    case FOR_ITER:
    case SEND:
    case UNPACK_SEQUENCE:
    case UNPACK_EX:
    case LIST_EXTEND:
    case BEFORE_WITH: return true;
    default: return false;
    }
}

/* Methods whose result C code uses, by whatever instruction they are called. */
static bool is_asked_by_c(PyCodeObject *code)
{
    static const char *const names[] = {"__bool__",  "__len__",     "__index__", "__hash__", "__int__",
                                        "__float__", "__complex__", "__eq__",    "__lt__",   "__length_hint__"};
    const char *name = PyUnicode_AsUTF8(code->co_name);
    if (!name) PyErr_Clear();
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

void mp_number_leaves(mp_recorder *rec, const mp_frame *frame, PyObject *value)
{
    if (!value || !mp_numbers_any(rec)) return;
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (!entry || entry <= rec->frames + 1) return; /* the target itself gives its result to the caller */
    const mp_rec_frame *caller = entry - 1;
    if (caller->shows && (PyUnicode_CheckExact(value) || mp_is_number(value))) return;
    if (caller->converts && caller->opcode == FORMAT_VALUE) return; /* a tensor's text, which is passed on */
    if (caller->in_c || !passes_on(caller->opcode) || is_asked_by_c(frame->code))
        settle_reached(rec, value, caller->in_unknown_c ? REACH_ANY : REACH_CALLED);
}

/* -- Calls --------------------------------------------------------------------------------------------------------- */

static PyObject *look_up(PyObject *table, PyObject *callable)
{
    bool hashes = PyCFunction_Check(callable) || PyType_Check(callable) || PyFunction_Check(callable) ||
                  Py_IS_TYPE(callable, &PyMethodDescr_Type) || Py_IS_TYPE(callable, &PyWrapperDescr_Type);
    PyObject *found = hashes && table ? PyDict_GetItemWithError(table, callable) : NULL;
    if (!found) PyErr_Clear();
    return found;
}

typedef struct { /* CPython's Objects/descrobject.c (3.11) */
    PyObject_HEAD PyWrapperDescrObject *descr;
    PyObject *self;
} method_wrapper;

/* A bound builtin stands in the table as its type's method. Borrowed, or NULL. */
static PyObject *look_up_method(PyObject *table, mp_call *call)
{
    if (Py_IS_TYPE(call->callable, &_PyMethodWrapper_Type))
        return look_up(table, (PyObject *)((method_wrapper *)call->callable)->descr);
    PyObject *found = look_up(table, call->callable);
    if (found || !PyCFunction_Check(call->callable) || !call->nargs) return found;
    PyMethodDef *method = ((PyCFunctionObject *)call->callable)->m_ml;
    PyObject *self = PyCFunction_GET_SELF(call->callable), *mro = self ? Py_TYPE(self)->tp_mro : NULL;
    for (Py_ssize_t i = 0; mro && self == call->args[0] && i < PyTuple_GET_SIZE(mro); i++) {
        PyObject *dict = ((PyTypeObject *)PyTuple_GET_ITEM(mro, i))->tp_dict;
        PyObject *descr = dict ? PyDict_GetItemString(dict, method->ml_name) : NULL;
        if (descr && Py_IS_TYPE(descr, &PyMethodDescr_Type) && ((PyMethodDescrObject *)descr)->d_method == method)
            return look_up(table, descr);
    }
    return NULL;
}

/* Is it one of the functions of which the table says all that they read? */
static bool reads_by_class(const mp_effect *effect)
{
    static const mp_effect_handler handlers[] = {
        mp_handle_identity,
        mp_handle_isinstance,
        mp_handle_len,
        mp_handle_iter,
        mp_handle_next,
        mp_handle_generator,
        mp_handle_list_append,
        mp_handle_subscript,
        mp_handle_contains,
        mp_handle_truth,
        mp_handle_raw_subscript,
        mp_handle_dict_get,
        mp_handle_dict_pop,
        mp_handle_attrgetter,
        mp_handle_weakref,
        mp_handle_itemgetter,
        mp_handle_numpy,
        mp_handle_dict_setdefault,
        mp_handle_store_subscript,
        mp_handle_format,
        mp_handle_str_format,
        mp_handle_convert,
        mp_handle_abc_check,
    };
    if (!effect || (effect->name && !strcmp(effect->name, MP_EFFECT_DECLARED))) return false;
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++)
        if (effect->handler == handlers[i]) return true;
    switch ((mp_effect_class)effect->effect) {
    case MP_EFFECT_PURE:
    case MP_EFFECT_READS:
    case MP_EFFECT_MAKES:
    case MP_EFFECT_NOTHING:
    case MP_EFFECT_ITERATES:
    case MP_EFFECT_KEYS:
    case MP_EFFECT_CALLS:
    case MP_EFFECT_STORES:
    case MP_EFFECT_WRITES:
    case MP_EFFECT_COMPARES: return true;
    default: return false;
    }
}

static void settle_arguments(mp_call *call, Py_ssize_t from, reach_kind kind)
{
    for (Py_ssize_t i = from; i < call->nargs; i++) settle_reached(call->rec, call->args[i], kind);
    for (Py_ssize_t i = 0; i < call->nkw; i++) settle_reached(call->rec, call->kwvalues[i], kind);
}

/* What only carries numbers on may look into an object that it works on: getattr(moment, name), super(datetime, moment). */
static void settle_object(mp_call *call)
{
    Py_ssize_t n = call->callable == (PyObject *)&PySuper_Type ? call->nargs : Py_MIN(call->nargs, 1);
    for (Py_ssize_t i = 0; i < n; i++)
        if (mp_number_is_object(call->rec, call->args[i])) mp_number_settle(call->rec, call->args[i]);
}

/* min(a, b, ...) and max give one of their arguments, by comparisons. */
static void extreme(mp_recorder *rec, PyObject *const *items, Py_ssize_t n, int op)
{
    PyObject *best = items[0];
    for (Py_ssize_t i = 1; i < n; i++) {
        if (mp_number_is(rec, items[i]) || mp_number_is(rec, best)) compared(rec, items[i], best, op);
        if (PyObject_RichCompareBool(items[i], best, op) > 0) best = items[i];
    }
}

/* A function of numbers: the expression goes on. */
static bool computed(mp_call *call, PyObject *name)
{
    enum { MOST = 32 };
    bool open = false;
    const char *text = PyUnicode_AsUTF8(name);
    if (!text || call->nkw || !call->nargs) return false;
    bool of_list = !strcmp(text, "min") || !strcmp(text, "max") || !strcmp(text, "sum");
    PyObject *const *items = call->args;
    Py_ssize_t n = call->nargs;
    of_list = of_list && n == 1 && (PyList_CheckExact(items[0]) || PyTuple_CheckExact(items[0]));
    if (of_list) {
        mp_rec_iterate(call->rec, items[0]); /* an outside list holds more than the call has put into it */
        n = PySequence_Fast_GET_SIZE(items[0]);
        items = PySequence_Fast_ITEMS(items[0]);
    }
    for (Py_ssize_t i = 0; i < n && n <= MOST; i++) {
        if (!plain_number(items[i])) return false;
        open = open || mp_number_is(call->rec, items[i]);
    }
    if (!open) return false;
    if (text[0] == 'm' && strlen(text) == 3) { /* min, max */
        if (n < 2) return of_list;
        extreme(call->rec, items, n, text[1] == 'i' ? Py_LT : Py_GT);
    } else if (!strcmp(text, "bool")) {
        truth(call->rec, items[0]);
    } else {
        char format[MOST * 4 + 40];
        int at = snprintf(format, 32, of_list ? "%s([" : "%s(", text);
        for (Py_ssize_t i = 0; i < n; i++) at += sprintf(format + at, i ? ", $" : "$");
        sprintf(format + at, of_list ? "])" : ")");
        computes(call->rec, call->frame, format, items, n);
    }
    return true;
}

/* data: the value of the graph that the float of numpy was made of. */
static void number_taken(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    if (slot && *slot && mp_is_number(*slot) && !rec->why.code) mp_number_read(rec, slot, mp_index_of(data), NULL);
    Py_DECREF(data);
}

/* float(value) or value.item() of an open float of numpy: the number itself. */
static bool takes_number(mp_call *call)
{
    if (call->nargs != 1 || call->nkw || !call->frame || !mp_number_is_numpy(call->rec, call->args[0])) return false;
    PyObject *callable = call->callable;
    PyMethodDef *method = NULL; /* of numpy's */
    if (Py_IS_TYPE(callable, &PyMethodDescr_Type) && mp_is_array_scalar_type(PyDescr_TYPE(callable)))
        method = ((PyMethodDescrObject *)callable)->d_method;
    else if (PyCFunction_Check(callable) && PyCFunction_GET_SELF(callable) == call->args[0])
        method = ((PyCFunctionObject *)callable)->m_ml;
    if (callable != (PyObject *)&PyFloat_Type && (!method || strcmp(method->ml_name, "item") != 0)) return false;
    mp_value_id id = MP_NO_VALUE;
    mp_number_maker(call->rec, call->args[0], &id);
    PyObject *value = mp_value_new(id);
    if (value)
        mp_rec_pend(call->rec, call->frame, number_taken, value);
    else
        mp_number_no_memory(call->rec);
    return true;
}

static bool is_method(PyObject *callable, PyTypeObject *type, const char *name)
{
    PyObject *descr = PyDict_GetItemString(type->tp_dict, name);
    if (!descr || !PyCFunction_Check(callable)) return descr && callable == descr;
    return ((PyCFunctionObject *)callable)->m_ml == ((PyMethodDescrObject *)descr)->d_method;
}

/* dict(...), dict.update and dict.setdefault of plain containers: keys are hashed, values only carried. */
static bool fills_dict(mp_call *call)
{
    bool makes = call->callable == (PyObject *)&PyDict_Type;
    Py_ssize_t n = call->nargs - !makes;
    PyObject *const *args = call->args + !makes;
    if (n < 0 || (!makes && !PyDict_Check(call->args[0]))) return false;
    if (!makes && n == 2 && !call->nkw && is_method(call->callable, &PyDict_Type, "setdefault")) {
        settle_hashed(call->rec, args[0]);
        return true;
    }
    if (n > 1 || (!makes && !is_method(call->callable, &PyDict_Type, "update"))) return false;
    if (!n || PyDict_CheckExact(args[0])) return true; /* whose keys were looked at when they came in */
    if (!PyList_CheckExact(args[0]) && !PyTuple_CheckExact(args[0])) return false;
    PyObject *const *pairs = PySequence_Fast_ITEMS(args[0]);
    Py_ssize_t n_pairs = PySequence_Fast_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < n_pairs; i++)
        if (!PyTuple_CheckExact(pairs[i]) || PyTuple_GET_SIZE(pairs[i]) != 2) return false;
    for (Py_ssize_t i = 0; i < n_pairs; i++) settle_hashed(call->rec, PyTuple_GET_ITEM(pairs[i], 0));
    return true;
}

bool mp_number_call(mp_call *call, const mp_effect *effect)
{
    if (!mp_number_tables.functions || call->rec->why.code) return false;
    mp_kept kept = mp_keep();
    PyObject *looks = fills_dict(call) ? Py_None : look_up_method(mp_number_tables.carriers, call);
    mp_rec_frame *entry = call->frame ? mp_rec_frame_of(call->rec, call->frame) : NULL;
    bool known = reads_by_class(effect);
    if (entry && looks != Py_None) { /* what Python functions below it give goes to C code */
        entry->in_c = true;
        entry->in_unknown_c = !known;
    }
    PyObject *callable = call->callable; /* all other C code that asks a tensor for a number computes with it unseen */
    if (entry) entry->converts = callable == (PyObject *)&PyLong_Type || callable == (PyObject *)&PyFloat_Type;
    bool done = false, any = mp_numbers_any(call->rec);
    if (any) {
        PyObject *name = look_up(mp_number_tables.functions, call->callable);
        done = takes_number(call) || mp_drawn_call(call, effect) || (name && computed(call, name)) ||
               mp_text_call(call, looks);
    }
    bool made = !done && mp_text_shown(call); /* its arguments are read as those of any other call */
    if (any && !made) {
        bool text = !done && shows(call);
        if (entry && text) entry->shows = true;
        if (text || (!done && (mp_drawn_blind(call) || mp_draw_takes(call, effect))))
            ; /* what is in it is only looked at by its own code, if at all */
        else if (!done) {
            if (looks != Py_None)
                settle_arguments(call, looks ? PyLong_AsSsize_t(looks) : 0, known ? REACH_CALLED : REACH_ANY);
            if (looks) settle_object(call);
        }
    }
    mp_restore(kept);
    return done;
}

/* -- Torch functions ----------------------------------------------------------------------------------------------- */

static bool takes(PyObject *allowed, Py_ssize_t position, PyObject *name)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(allowed); i++) {
        PyObject *each = PyTuple_GET_ITEM(allowed, i);
        if (name && PyUnicode_Check(each) && PyUnicode_Compare(each, name) == 0) return true;
        if (!name && PyLong_CheckExact(each) && PyLong_AsSsize_t(each) == position) return true;
    }
    return false;
}

/* True: numbers are left in it. */
static bool argument(mp_recorder *rec, PyObject *object, bool taken, bool in_lists)
{
    if (taken && mp_is_number(object) && mp_number_is(rec, object)) return true;
    bool left = false;
    if (taken && in_lists && (PyList_CheckExact(object) || PyTuple_CheckExact(object))) {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); i++)
            left = argument(rec, PySequence_Fast_GET_ITEM(object, i), true, true) || left;
        return left;
    }
    mp_number_settle_inside(rec, object);
    return false;
}

bool mp_number_arguments(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs)
{
    if (!mp_numbers_any(rec)) return false;
    PyObject *allowed = rec->op_state->muted ? NULL : look_up(mp_number_tables.operators, func), *key, *value;
    bool in_lists = false, left = false;
    for (Py_ssize_t i = 0; allowed && i < PyTuple_GET_SIZE(allowed); i++)
        in_lists = in_lists || PyTuple_GET_ITEM(allowed, i) == Py_True;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++)
        left = argument(rec, PyTuple_GET_ITEM(args, i), allowed && takes(allowed, i, NULL), in_lists) || left;
    for (Py_ssize_t i = 0; kwargs && PyDict_Next(kwargs, &i, &key, &value);)
        left = argument(rec, value, allowed && takes(allowed, 0, key), in_lists) || left;
    return left && !rec->why.code;
}
