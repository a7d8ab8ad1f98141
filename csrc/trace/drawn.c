/* Values that were drawn, and steps that compute from them. See drawn.h. */
#include "trace/drawn.h"

#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"
#include "trace/texts.h"

#include <opcode.h>

enum {
    MAX_DEPTH = 4,
    MAX_ITEMS = 4096,
    OWN_REFERENCES = 3 /* to an operand that the program has no more: the list of numbers', the step's, the value
                           ** stack's; and maybe that of the draw that gave it */
};

#define TOP(i) (frame->stack[frame->depth - (i)])

/* -- Functions of the standard library -------------------------------------------------------------------------------- */

/* Borrowed from the module, which the process keeps; NULL without an exception. */
static PyObject *function_of(const char *module_name, const char *name)
{
    PyObject *function = mp_import(module_name, name);
    Py_XDECREF(function);
    PyErr_Clear();
    return function;
}

/* Likewise of C, and NULL where the program has put something of its own in its place. */
static PyObject *builtin(const char *module, const char *name)
{
    PyObject *function = function_of(module, name);
    return function && PyCFunction_Check(function) ? function : NULL;
}

/* Columns: the instruction's argument, the function of _operator. */
#define BINARY_FUNCTIONS(X)                                                                                            \
    X(NB_ADD, "add")                                                                                                   \
    X(NB_AND, "and_")                                                                                                  \
    X(NB_FLOOR_DIVIDE, "floordiv")                                                                                     \
    X(NB_LSHIFT, "lshift")                                                                                             \
    X(NB_MULTIPLY, "mul")                                                                                              \
    X(NB_REMAINDER, "mod")                                                                                             \
    X(NB_OR, "or_")                                                                                                    \
    X(NB_POWER, "pow")                                                                                                 \
    X(NB_RSHIFT, "rshift")                                                                                             \
    X(NB_SUBTRACT, "sub")                                                                                              \
    X(NB_TRUE_DIVIDE, "truediv")                                                                                       \
    X(NB_XOR, "xor")

static const char *binary_name(int op)
{
    static const char *const names[] = {
#define NAME(number, text) [number] = text,
        BINARY_FUNCTIONS(NAME)
#undef NAME
    };
    if (op >= NB_INPLACE_ADD) op -= NB_INPLACE_ADD;
    return op >= 0 && (size_t)op < sizeof names / sizeof *names ? names[op] : NULL;
}

/* -- Operands ----------------------------------------------------------------------------------------------------------- */

/* A constant that a step may hold: immutable, of a type without code of the program's, which looks at nothing else. */
static bool is_constant(mp_recorder *rec, PyObject *object)
{ return mp_is_scalar(object) && !mp_is_decimal(object) && !PySlice_Check(object) && !mp_number_is(rec, object); }

/* What stands for the object in the arguments of a step; *drawn: there is something drawn in it. Owned, or NULL, maybe with an exception: it
** cannot. */
static PyObject *operand(mp_recorder *rec, PyObject *object, bool *drawn, int depth)
{
    uint32_t draw = mp_number_drawn(rec, object);
    if (draw != MP_NO_DRAW) {
        *drawn = true;
        return mp_drawn_new(draw);
    }
    if (is_constant(rec, object)) return Py_NewRef(object);
    if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        bool plain = is_constant(rec, slice->start) && is_constant(rec, slice->stop) && is_constant(rec, slice->step);
        return plain ? Py_NewRef(object) : NULL;
    }
    if (!PyTuple_CheckExact(object) || depth >= MAX_DEPTH) return NULL;
    PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(object));
    for (Py_ssize_t i = 0; copy && i < PyTuple_GET_SIZE(object); i++) {
        PyObject *item = operand(rec, PyTuple_GET_ITEM(object, i), drawn, depth + 1);
        if (item)
            PyTuple_SET_ITEM(copy, i, item);
        else
            Py_CLEAR(copy);
    }
    return copy;
}

static bool is_for_steps(mp_recorder *rec, PyObject *object)
{ return mp_number_is_drawn(rec, object) || mp_number_is_late(rec, object); }

PyObject *mp_drawn_operand(mp_recorder *rec, PyObject *object, bool *drawn) { return operand(rec, object, drawn, 0); }

/* Is there something in it that only steps take? */
static bool holds_for_steps(mp_recorder *rec, PyObject *object)
{
    if (is_for_steps(rec, object)) return true;
    for (Py_ssize_t i = 0; PyTuple_CheckExact(object) && i < PyTuple_GET_SIZE(object); i++)
        if (is_for_steps(rec, PyTuple_GET_ITEM(object, i))) return true;
    return false;
}

static bool any_for_steps(mp_recorder *rec, PyObject *const *objects, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        if (holds_for_steps(rec, objects[i])) return true;
    return false;
}

static bool any_drawn(mp_recorder *rec, PyObject *const *objects, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        if (mp_number_is_drawn(rec, objects[i])) return true;
        bool tuple = PyTuple_CheckExact(objects[i]);
        if (tuple && any_drawn(rec, ((PyTupleObject *)objects[i])->ob_item, PyTuple_GET_SIZE(objects[i]))) return true;
    }
    return false;
}

/* The data of a step: (func, args, kwargs, None, the operands themselves). kwnames may be NULL. Owned, or NULL without an exception: it is none. */
static PyObject *step_of(mp_recorder *rec, PyObject *func, PyObject *const *args, Py_ssize_t n, PyObject *kwnames,
                         PyObject *const *kwvalues)
{
    Py_ssize_t nkw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    PyObject *templates = PyTuple_New(n), *keywords = PyDict_New(), *operands = PyTuple_New(n + nkw), *data = NULL;
    bool good = func && templates && keywords && operands, drawn = false;
    for (Py_ssize_t i = 0; good && i < n + nkw; i++) {
        PyObject *object = i < n ? args[i] : kwvalues[i - n], *template = operand(rec, object, &drawn, 0);
        PyTuple_SET_ITEM(operands, i, Py_NewRef(object));
        if (template && i < n)
            PyTuple_SET_ITEM(templates, i, template);
        else if (template) {
            good = PyDict_SetItem(keywords, PyTuple_GET_ITEM(kwnames, i - n), template) == 0;
            Py_DECREF(template);
        } else
            good = false;
    }
    if (good && drawn) data = PyTuple_Pack(5, func, templates, keywords, Py_None, operands);
    Py_XDECREF(templates);
    Py_XDECREF(keywords);
    Py_XDECREF(operands);
    PyErr_Clear();
    return data;
}

/* -- What is given -------------------------------------------------------------------------------------------------------- */

/* Types of which every object may be drawn: immutable, with no code of the program's and no two objects that differ in more than their value. */
static bool may_be_drawn(PyObject *object)
{
    if (PyUnicode_CheckExact(object)) return PyUnicode_GET_LENGTH(object) > 0;
    if (PyBytes_CheckExact(object)) return PyBytes_GET_SIZE(object) > 0;
    if (mp_is_number(object) || PyComplex_CheckExact(object)) return true;
    const char *name = Py_TYPE(object)->tp_name;
    if (!strcmp(name, "time.struct_time")) return Py_REFCNT(object) == 1; /* there is no way to make its like */
    return !strncmp(name, "datetime.", 9) && strcmp(name, "datetime.timezone") != 0 && mp_is_scalar(object);
}

/* A step over the result of draw number `draw`, further arguments being constants: `further` is stolen and may be NULL. Owned data, or
** NULL after abandoning. */
static PyObject *step_over(mp_recorder *rec, const char *module, const char *name, uint32_t draw, PyObject *further)
{
    PyObject *func = builtin(module, name), *whole = mp_drawn_new(draw), *keywords = PyDict_New();
    PyObject *args = whole ? further ? PyTuple_Pack(2, whole, further) : PyTuple_Pack(1, whole) : NULL, *data = NULL;
    if (func && args && keywords) data = PyTuple_Pack(5, func, args, keywords, Py_None, args);
    Py_XDECREF(whole);
    Py_XDECREF(args);
    Py_XDECREF(keywords);
    Py_XDECREF(further);
    if (!data) mp_number_no_memory(rec);
    return data;
}

static bool is_item(PyObject *tuple, PyObject *object)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++)
        if (PyTuple_GET_ITEM(tuple, i) == object) return true;
    return false;
}

/* Is it in the tuple, or in one of those in it? */
static bool holds(PyObject *tuple, PyObject *object)
{
    if (is_item(tuple, object)) return true;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        PyObject *item = PyTuple_GET_ITEM(tuple, i);
        if (PyTuple_CheckExact(item) && holds(item, object)) return true;
    }
    return false;
}

/* The template of the operand that `given` is: where it is one, that is what the program learns. Owned, or NULL without an exception. */
static PyObject *operand_given(mp_recorder *rec, PyObject *data, PyObject *given)
{
    PyObject *operands = PyTuple_GET_SIZE(data) == 5 ? PyTuple_GET_ITEM(data, 4) : NULL;
    bool shared = PyLong_Check(given) || given == Py_None; /* such are one object for the whole process, by value */
    bool drawn = false;
    if (!operands || !PyTuple_CheckExact(operands))
        return NULL; /* a list that is shuffled: its items are told apart by nobody */
    if ((shared && !mp_number_is(rec, given)) || !holds(operands, given)) return NULL;
    return operand(rec, given, &drawn, 0);
}

/* What `data` gives is the operand with this template, which is stolen: each run must find that again. */
static void same_given(mp_recorder *rec, PyObject *data, PyObject *given, PyObject *template)
{
    uint32_t draw = mp_draw_append(rec, data, given, true);
    PyObject *step = draw == MP_NO_DRAW ? NULL : step_over(rec, "_operator", "is_", draw, Py_NewRef(template));
    if (step) mp_draw_append(rec, step, Py_True, false);
    Py_XDECREF(step);
    Py_DECREF(template);
}

/* Items of a new tuple or list: how many there are must come out again, and each is drawn by itself. */
static void items_given(mp_recorder *rec, PyObject *data, PyObject *several)
{
    Py_ssize_t n = PySequence_Fast_GET_SIZE(several);
    PyObject *like = PyTuple_CheckExact(several) ? PyTuple_New(0) : PyList_New(0);
    PyObject *length = like ? PyLong_FromSsize_t(n) : NULL;
    uint32_t draw = length ? mp_draw_append(rec, data, like, true) : MP_NO_DRAW;
    PyObject *step = draw == MP_NO_DRAW ? NULL : step_over(rec, "builtins", "len", draw, NULL);
    if (step) mp_draw_append(rec, step, length, false);
    for (Py_ssize_t i = 0; step && i < n && !mp_rec_abandoned(rec); i++) {
        Py_SETREF(step, step_over(rec, "_operator", "getitem", draw, PyLong_FromSsize_t(i)));
        PyObject **item = PySequence_Fast_ITEMS(several) + i, *same = step ? operand_given(rec, data, *item) : NULL;
        if (same)
            same_given(rec, step, *item, same);
        else if (step)
            mp_drawn_given(rec, step, item); /* scalars can always be given */
    }
    Py_XDECREF(step);
    Py_XDECREF(like);
    Py_XDECREF(length);
    PyErr_Clear();
}

static bool few_scalars(mp_recorder *rec, PyObject *several)
{
    Py_ssize_t n = PySequence_Fast_GET_SIZE(several);
    bool good = n > 0 && n <= MAX_ITEMS;
    for (Py_ssize_t i = 0; good && i < n; i++) good = mp_is_scalar(PySequence_Fast_GET_ITEM(several, i));
    return good;
}

void mp_drawn_order(mp_recorder *rec, PyObject *data, PyObject *list)
{
    if (few_scalars(rec, list))
        items_given(rec, data, list);
    else
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "the order of a list of %zd items is drawn",
                       PyList_GET_SIZE(list));
}

/* *slot is what the draw that follows next gives. */
static void open_draw(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_number_draw(rec, slot, rec->recording->n_draws);
    if (!mp_rec_abandoned(rec)) mp_draw_append(rec, data, *slot, true);
}

/* Does the draw advance an iterator that keeps the tuple it gave, to fill it again where nobody else has it? */
static bool keeps_its_tuple(PyObject *data)
{
    PyObject *args = PyTuple_GET_ITEM(data, 1);
    PyObject *first = PyTuple_GET_SIZE(args) ? PyTuple_GET_ITEM(args, 0) : NULL;
    return first && (Py_IS_TYPE(first, &PyZip_Type) || Py_IS_TYPE(first, &PyEnum_Type));
}

/* A tuple or list that nobody else has: by its references, or since the standard library makes new ones (whose frames may live on a little). */
static bool several_given(mp_recorder *rec, PyObject *data, PyObject *result)
{
    PyObject *func = PyTuple_GET_ITEM(data, 0);
    bool library = PyFunction_Check(func) && mp_is_library_code((PyCodeObject *)PyFunction_GET_CODE(func));
    bool several = (PyTuple_CheckExact(result) || PyList_CheckExact(result)) &&
                   (library || Py_REFCNT(result) == 1 + keeps_its_tuple(data));
    if (!several || !few_scalars(rec, result)) return false;
    items_given(rec, data, result);
    return true;
}

bool mp_drawn_given(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = *slot;
    PyObject *same = operand_given(rec, data, result);
    bool open = same && is_item(PyTuple_GET_ITEM(data, 4), result) && mp_number_is_drawn(rec, result);
    bool held = open && rec->recording->draws[mp_number_drawn(rec, result)].result == result;
    if (open && Py_REFCNT(result) == OWN_REFERENCES + held) {
        open_draw(rec, data, slot); /* which nobody can tell from its operand */
        Py_DECREF(same);
    } else if (same)
        same_given(rec, data, result, same);
    else if (may_be_drawn(result)) {
        open_draw(rec, data, slot);
    } else if (mp_is_scalar(result)) {
        if (result == Py_None || PyBool_Check(result) || rec->op_state->accept_values)
            mp_draw_append(rec, data, result, false);
        else {
            mp_call call = {.rec = rec, .callable = PyTuple_GET_ITEM(data, 0)};
            mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another result at nearly every call");
        }
    } else
        return several_given(rec, data, result);
    return true;
}

/* -- Steps -------------------------------------------------------------------------------------------------------------- */

static void step_made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_kept kept = mp_keep();
    if (!slot || !*slot) /* it raised, which follows from what the operands are */
        mp_number_settle_inside(rec, PyTuple_GET_ITEM(data, 4));
    else if (!mp_rec_abandoned(rec) && !mp_drawn_given(rec, data, slot)) {
        mp_call call = {.rec = rec, .callable = PyTuple_GET_ITEM(data, 0)};
        mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "makes another kind of object of what is new each time");
    }
    Py_DECREF(data);
    mp_restore(kept);
}

/* -- Late steps --------------------------------------------------------------------------------------------------------- */

/* Is it a constant or open, in whatever way? *late: there is something in it that only late steps take. */
static bool may_be_late(mp_recorder *rec, PyObject *object, bool *late, int depth)
{
    if (mp_number_is(rec, object)) {
        *late = *late || mp_number_is_late(rec, object) || mp_number_is_drawn(rec, object);
        return true;
    }
    if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        return is_constant(rec, slice->start) && is_constant(rec, slice->stop) && is_constant(rec, slice->step);
    }
    for (Py_ssize_t i = 0; PyTuple_CheckExact(object) && i < PyTuple_GET_SIZE(object); i++)
        if (depth >= MAX_DEPTH || !may_be_late(rec, PyTuple_GET_ITEM(object, i), late, depth + 1)) return false;
    return PyTuple_CheckExact(object) || is_constant(rec, object);
}

/* (how, func, operands...): owned, or NULL without an exception: it is no late step. */
static PyObject *late_of(mp_recorder *rec, PyObject *func, PyObject *const *args, Py_ssize_t n)
{
    bool late = false;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!may_be_late(rec, args[i], &late, 0)) return NULL;
    PyObject *template = func && late ? PyTuple_New(n + 2) : NULL,
             *how = template ? PyLong_FromLong(MP_TEXT_CALL) : NULL;
    if (!how) {
        Py_XDECREF(template);
        PyErr_Clear();
        return NULL;
    }
    PyTuple_SET_ITEM(template, 0, how);
    PyTuple_SET_ITEM(template, 1, Py_NewRef(func));
    for (Py_ssize_t i = 0; i < n; i++) PyTuple_SET_ITEM(template, i + 2, Py_NewRef(args[i]));
    return template;
}

/* How magpy.steps.answer makes the object: a node of its tree. Values of the graph and _C.Drawn are appended to `leaves`. Owned, or NULL, maybe with an exception: it cannot. */
static PyObject *tree_of(mp_recorder *rec, PyObject *object, PyObject *leaves, int depth)
{
    enum { DEEPEST = 32 };
    mp_value_id value;
    PyObject *make = mp_number_maker(rec, object, &value), *template = mp_text_template(rec, object);
    if (depth > DEEPEST) return NULL;
    if (mp_number_is_drawn(rec, object)) {
        PyObject *leaf = mp_drawn_new(mp_number_drawn(rec, object));
        bool added = leaf && PyList_Append(leaves, leaf) == 0;
        Py_XDECREF(leaf);
        return added ? Py_BuildValue("(sn)", "drawn", PyList_GET_SIZE(leaves) - 1) : NULL;
    }
    if (!mp_number_is(rec, object) && !PyTuple_CheckExact(object)) return Py_BuildValue("(sO)", "constant", object);
    if (!template && !PyTuple_CheckExact(object)) {
        if (!make) value = mp_number_value(rec, object);
        PyObject *leaf = value == MP_NO_VALUE ? NULL : mp_value_new(value);
        bool added = leaf && PyList_Append(leaves, leaf) == 0;
        Py_XDECREF(leaf);
        return added ? Py_BuildValue("(snO)", "leaf", PyList_GET_SIZE(leaves) - 1, make ? make : Py_None) : NULL;
    }
    PyObject *func = template ? mp_text_function(PyTuple_GET_ITEM(template, 0)) : (PyObject *)&PyTuple_Type;
    Py_ssize_t first = !template ? 0 : func ? 1 : 2;
    PyObject *from = template ? template : object, *tree = PyList_New(0);
    if (!func) func = PyTuple_GET_ITEM(template, 1);
    bool good = tree && PyList_Append(tree, func) == 0;
    for (Py_ssize_t i = first; good && i < PyTuple_GET_SIZE(from); i++) {
        PyObject *part = tree_of(rec, PyTuple_GET_ITEM(from, i), leaves, depth + 1);
        good = part && PyList_Append(tree, part) == 0;
        Py_XDECREF(part);
    }
    PyObject *parts = good ? PyList_AsTuple(tree) : NULL, *node = NULL;
    if (parts) node = Py_BuildValue("(sO)", template ? "call" : "tuple", parts);
    Py_XDECREF(tree);
    Py_XDECREF(parts);
    return node;
}

/* The program learns func(*args), whose template this is: it must come out again. False: it cannot be asked. */
static bool late_decision(mp_recorder *rec, PyObject *template, PyObject *answer)
{
    PyObject *leaves = PyList_New(0), *parts = leaves ? PyList_New(0) : NULL;
    bool good = parts && PyList_Append(parts, PyTuple_GET_ITEM(template, 1)) == 0;
    for (Py_ssize_t i = 2; good && i < PyTuple_GET_SIZE(template); i++) {
        PyObject *part = tree_of(rec, PyTuple_GET_ITEM(template, i), leaves, 0);
        good = part && PyList_Append(parts, part) == 0;
        Py_XDECREF(part);
    }
    PyObject *tuple = good ? PyList_AsTuple(parts) : NULL, *node = tuple ? Py_BuildValue("(sO)", "call", tuple) : NULL;
    PyObject *args = NULL, *func = function_of("magpy.steps", "answer");
    if (node && func && PyList_Insert(leaves, 0, node) == 0) args = PyList_AsTuple(leaves);
    if (args && !mp_rec_abandoned(rec)) mp_rec_check(rec, func, args, answer);
    Py_XDECREF(leaves);
    Py_XDECREF(parts);
    Py_XDECREF(tuple);
    Py_XDECREF(node);
    Py_XDECREF(args);
    PyErr_Clear();
    return args != NULL;
}

static void late_made(mp_recorder *rec, PyObject *template, PyObject **slot)
{
    mp_kept kept = mp_keep();
    PyObject *result = slot ? *slot : NULL;
    bool operand = false, drawn = result && may_be_drawn(result);
    for (Py_ssize_t i = 2; i < PyTuple_GET_SIZE(template); i++) operand |= PyTuple_GET_ITEM(template, i) == result;
    if (mp_rec_abandoned(rec))
        ;
    else if (drawn && !operand)
        mp_number_late(rec, slot, template);
    else if (!result || operand || !PyBool_Check(result) || !late_decision(rec, template, result)) {
        mp_number_settle_inside(rec, template);
        mp_call call = {.rec = rec, .callable = PyTuple_GET_ITEM(template, 1)};
        if (result && !mp_is_scalar(result))
            mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "makes another kind of object of data");
    }
    Py_DECREF(template);
    mp_restore(kept);
}

/* The instruction or call func(*args, **kwargs) that is about to run, of C code and plain types, is a step, early or late. False: it is none. */
static bool makes(mp_recorder *rec, const mp_frame *frame, PyObject *func, PyObject *const *args, Py_ssize_t n,
                  PyObject *kwnames, PyObject *const *kwvalues)
{
    PyObject *data = step_of(rec, func, args, n, kwnames, kwvalues);
    if (!data && kwnames && PyTuple_GET_SIZE(kwnames)) return false;
    PyObject *late = data ? NULL : late_of(rec, func, args, n);
    if (data)
        mp_rec_pend_told(rec, frame, step_made, data);
    else if (late)
        mp_rec_pend_told(rec, frame, late_made, late);
    return data || late;
}

/* The program learns func(*args), a bool. False: no run can be asked. */
static bool learns(mp_recorder *rec, PyObject *func, PyObject *const *args, Py_ssize_t n)
{
    PyObject *data = step_of(rec, func, args, n, NULL, NULL), *late = data ? NULL : late_of(rec, func, args, n);
    PyObject *answer = data || late ? PyObject_Vectorcall(func, args, (size_t)n, NULL) : NULL;
    bool learned = answer && PyBool_Check(answer);
    if (learned && data)
        mp_draw_append(rec, data, answer, false);
    else if (learned)
        learned = late_decision(rec, late, answer);
    Py_XDECREF(data);
    Py_XDECREF(late);
    Py_XDECREF(answer);
    PyErr_Clear();
    return learned;
}

/* -- Instructions ------------------------------------------------------------------------------------------------------- */

static bool computes(mp_recorder *rec, const mp_frame *frame, const char *name, PyObject *const *operands, Py_ssize_t n)
{
    if (!name || !any_for_steps(rec, operands, n)) return false;
    PyObject *func = builtin("_operator", name);
    return func && makes(rec, frame, func, operands, n, NULL, NULL);
}

static bool decides(mp_recorder *rec, const char *name, PyObject *const *operands, Py_ssize_t n)
{
    if (!any_for_steps(rec, operands, n)) return false;
    PyObject *func = builtin("_operator", name);
    return func && learns(rec, func, operands, n);
}

/* An attribute of a built-in type: a method is only bound, and its call shows the rest. */
static bool attribute(mp_recorder *rec, const mp_frame *frame, PyObject *object, PyObject *name, bool method)
{
    if (!is_for_steps(rec, object)) return false;
    PyObject *descr = mp_raw_type_lookup(Py_TYPE(object), name);
    if (!descr) return false;
    if (Py_IS_TYPE(descr, &PyMethodDescr_Type) || Py_IS_TYPE(descr, &PyWrapperDescr_Type) ||
        Py_IS_TYPE(descr, &PyClassMethodDescr_Type))
        return true;
    if (mp_number_is_numpy(rec, object)) return false; /* its size and type, or itself */
    bool read = Py_IS_TYPE(descr, &PyGetSetDescr_Type) || Py_IS_TYPE(descr, &PyMemberDescr_Type);
    PyObject *const args[] = {object, name};
    PyObject *func = read && !method ? builtin("builtins", "getattr") : NULL;
    return func && makes(rec, frame, func, args, 2, NULL, NULL);
}

/* f"{value!r:spec}" */
static bool formats(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    enum { SPEC = 4, CONVERSION = 3, NONE = 0, STR = 1, REPR = 2 };
    PyObject *value = oparg & SPEC ? TOP(2) : TOP(1), *nothing = PyUnicode_New(0, 0);
    PyObject *spec = oparg & SPEC ? TOP(1) : nothing;
    int conversion = oparg & CONVERSION;
    bool done = false, plain = conversion <= STR && !(oparg & SPEC);
    PyObject *const both[] = {value, spec};
    bool text = PyUnicode_CheckExact(value) || mp_is_number(value);
    if (text && !any_drawn(rec, both, 2)) {
        Py_XDECREF(nothing); /* of numbers alone: see texts.c */
        return false;
    }
    if (spec && any_for_steps(rec, both, 2) && !(PyUnicode_CheckExact(value) && plain)) {
        const char *text = conversion == NONE   ? "{:{}}"
                           : conversion == STR  ? "{!s:{}}"
                           : conversion == REPR ? "{!r:{}}"
                                                : "{!a:{}}";
        PyObject *format = PyUnicode_FromString(text), *const args[] = {format, value, spec};
        PyObject *func = PyDict_GetItemString(PyUnicode_Type.tp_dict, "format");
        done = format && func && makes(rec, frame, func, args, 3, NULL, NULL);
        Py_XDECREF(format);
    }
    Py_XDECREF(nothing);
    return done;
}

/* "".join(parts) */
static bool joins(mp_recorder *rec, const mp_frame *frame, PyObject *const *parts, Py_ssize_t n)
{
    if (!any_drawn(rec, parts, n)) return false;
    PyObject *nothing = PyUnicode_New(0, 0), *several = PyTuple_New(n);
    for (Py_ssize_t i = 0; several && i < n; i++) PyTuple_SET_ITEM(several, i, Py_NewRef(parts[i]));
    PyObject *const args[] = {nothing, several};
    PyObject *func = PyDict_GetItemString(PyUnicode_Type.tp_dict, "join");
    PyObject *data =
        nothing && several ? step_of(rec, func, args, 2, NULL, NULL) : NULL; /* mixed with data, it is text of that */
    if (data) mp_rec_pend_told(rec, frame, step_made, data);
    Py_XDECREF(nothing);
    Py_XDECREF(several);
    PyErr_Clear();
    return data != NULL;
}

bool mp_drawn_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    static const char *const relations[] = {"lt", "le", "eq", "ne", "gt", "ge"};
    switch (opcode) {
    case BINARY_OP: /* text of numbers alone has its own ways */
        if (!any_drawn(rec, &TOP(2), 2) && mp_text_binary(rec, frame, oparg % NB_INPLACE_ADD, &TOP(2))) return true;
        return computes(rec, frame, binary_name(oparg), &TOP(2), 2);
    case BINARY_SUBSCR: return computes(rec, frame, "getitem", &TOP(2), 2);
    case UNARY_NEGATIVE: return computes(rec, frame, "neg", &TOP(1), 1);
    case UNARY_POSITIVE: return computes(rec, frame, "pos", &TOP(1), 1);
    case UNARY_INVERT: return computes(rec, frame, "invert", &TOP(1), 1);
    case COMPARE_OP: return decides(rec, relations[oparg], &TOP(2), 2);
    case CONTAINS_OP: {
        PyObject *const operands[] = {TOP(1), TOP(2)};
        return decides(rec, "contains", operands, 2);
    }
    case UNARY_NOT:
    case POP_JUMP_FORWARD_IF_TRUE:
    case POP_JUMP_FORWARD_IF_FALSE:
    case POP_JUMP_BACKWARD_IF_TRUE:
    case POP_JUMP_BACKWARD_IF_FALSE:
    case JUMP_IF_TRUE_OR_POP:
    case JUMP_IF_FALSE_OR_POP: return decides(rec, "truth", &TOP(1), 1);
    case LOAD_ATTR: return attribute(rec, frame, TOP(1), PyTuple_GET_ITEM(frame->code->co_names, oparg), false);
    case LOAD_METHOD: return attribute(rec, frame, TOP(1), PyTuple_GET_ITEM(frame->code->co_names, oparg), true);
    case FORMAT_VALUE: return formats(rec, frame, oparg);
    case BUILD_STRING: return joins(rec, frame, &TOP(oparg), oparg);
    default: return false;
    }
}

/* -- Calls -------------------------------------------------------------------------------------------------------------- */

/* The method `callable` as its type has it, where it is bound to the first argument. Borrowed; NULL: it is bound to something else. */
static PyObject *unbound(mp_call *call, bool *skip)
{
    PyObject *callable = call->callable, *self = PyCFunction_Check(callable) ? PyCFunction_GET_SELF(callable) : NULL;
    if (!self || PyModule_Check(self) || ((PyCFunctionObject *)callable)->m_ml->ml_flags & METH_STATIC) return callable;
    if (!call->nargs || call->args[0] != self) return NULL;
    *skip = PyType_Check(self);
    if (*skip) return callable;
    PyObject *name = PyUnicode_FromString(((PyCFunctionObject *)callable)->m_ml->ml_name);
    PyObject *descr = name ? mp_raw_type_lookup(Py_TYPE(self), name) : NULL;
    Py_XDECREF(name);
    bool same = descr && Py_IS_TYPE(descr, &PyMethodDescr_Type) &&
                ((PyMethodDescrObject *)descr)->d_method == ((PyCFunctionObject *)callable)->m_ml;
    return same ? descr : NULL;
}

static bool in_table(PyObject *table, PyObject *callable)
{
    PyObject *found =
        table ? PyDict_GetItemWithError(table, callable) : NULL; /* C functions and types hash by address */
    PyErr_Clear();
    return found != NULL;
}

/* separator.join(list) */
static bool joins_call(mp_call *call, PyObject *func)
{
    bool join = func == PyDict_GetItemString(PyUnicode_Type.tp_dict, "join") ||
                func == PyDict_GetItemString(PyBytes_Type.tp_dict, "join");
    if (!join || call->nargs != 2 || call->nkw) return false;
    PyObject *items = call->args[1];
    if (!PyList_CheckExact(items) && !PyTuple_CheckExact(items)) return false;
    PyObject *copy = PySequence_Tuple(items), *const args[] = {call->args[0], copy};
    bool done = copy && any_for_steps(call->rec, args, 2) &&
                mp_rec_find(call->rec, items) == MP_NO_OBJ && /* else its length and items are reads */
                makes(call->rec, call->frame, func, args, 2, NULL, NULL);
    Py_XDECREF(copy);
    PyErr_Clear();
    return done;
}

/* [a, b].count(None) */
bool mp_drawn_blind(mp_call *call)
{
    static const char *const names[] = {"count", "index", "__contains__"};
    if (call->nargs != 2 || call->nkw || call->args[1] != Py_None) return false;
    if (!PyList_CheckExact(call->args[0]) && !PyTuple_CheckExact(call->args[0])) return false;
    PyMethodDef *method = PyCFunction_Check(call->callable) ? ((PyCFunctionObject *)call->callable)->m_ml
                          : Py_IS_TYPE(call->callable, &PyMethodDescr_Type)
                              ? ((PyMethodDescrObject *)call->callable)->d_method
                              : NULL;
    const char *name = method ? method->ml_name : "";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

bool mp_drawn_call(mp_call *call, const mp_effect *effect)
{
    if (!call->frame) return false;
    bool skip = false;
    PyObject *func = unbound(call, &skip);
    if (!func) return false;
    if (joins_call(call, func)) return true;
    bool drawn =
        any_for_steps(call->rec, call->args, call->nargs) || any_for_steps(call->rec, call->kwvalues, call->nkw);
    bool known = drawn && (effect->effect == MP_EFFECT_PURE || in_table(mp_number_tables.steps, func));
    if (!known) return false;
    return makes(call->rec, call->frame, func, call->args + skip, call->nargs - skip, call->kwnames, call->kwvalues);
}

/* -- Lists of ints ---------------------------------------------------------------------------------------------------------- */

/* The array that torch would make of it, which is data. Owned, or NULL without an exception: it is no list of ints, or none of them is drawn. */
static PyObject *array_of(mp_recorder *rec, PyObject *list)
{
    bool drawn = false;
    if (!PyList_CheckExact(list)) return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        if (!PyLong_CheckExact(item)) return NULL;
        drawn = drawn || mp_number_is_drawn(rec, item);
    }
    PyObject *func = drawn ? function_of("numpy", "array") : NULL, *items = func ? PyList_AsTuple(list) : NULL;
    PyObject *data = items ? step_of(rec, func, &items, 1, NULL, NULL) : NULL;
    PyObject *array = data ? PyObject_CallOneArg(func, items) : NULL;
    if (array) mp_draw_array(rec, data, array);
    Py_XDECREF(items);
    Py_XDECREF(data);
    PyErr_Clear();
    return array;
}

/* `object`, or with arrays in the place of such lists, one level into a tuple. Owned, or NULL without memory. */
static PyObject *with_arrays(mp_recorder *rec, PyObject *object, int depth)
{
    PyObject *array = array_of(rec, object);
    if (array) return array;
    if (!PyTuple_CheckExact(object) || depth > 1) return Py_NewRef(object);
    PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(object));
    for (Py_ssize_t i = 0; copy && i < PyTuple_GET_SIZE(object); i++) {
        PyObject *item = with_arrays(rec, PyTuple_GET_ITEM(object, i), depth + 1);
        if (item)
            PyTuple_SET_ITEM(copy, i, item);
        else
            Py_CLEAR(copy);
    }
    return copy;
}

void mp_drawn_lists(mp_recorder *rec, PyObject **args)
{
    if (!mp_numbers_any(rec)) return;
    PyObject *made = with_arrays(rec, *args, 0);
    if (made)
        Py_SETREF(*args, made);
    else
        mp_number_no_memory(rec);
}
