/* Numbers that are data: see numbers.h. */
#include "trace/numbers.h"

#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <opcode.h>
#include <structmember.h>

enum {
    LONG_TEXT = 160,   /* longer expressions are computed once, as a value */
    REACH_DEPTH = 8,   /* how far C code is followed into an object, */
    REACH_COUNT = 4000 /* and through how many; beyond it all numbers count as reached */
};

typedef struct {
    PyObject *object; /* owned: what the program has */
    PyObject *text;   /* owned: Python source of its value over values of the graph */
    PyObject *leaves; /* owned dict: the values in `text`, name -> _C.Value, in order of first use */
    mp_value_id value;
    bool settled;
    uint32_t read;      /* a number from outside: the read that found it, or MP_NO_READ */
    mp_obj_id argument; /* likewise: the argument that it is, or MP_NO_OBJ */
} number;

struct mp_numbers {
    number *list;
    uint32_t n, open; /* open: not settled */
    mp_map of;        /* object -> index; without the settled ones */
};

static struct {          /* from magpy.symbols, owned by the process */
    PyObject *functions; /* dict: C callable -> its name in expressions */
    PyObject *carriers;  /* dict: C callable -> number of its first argument that it looks at, or None */
    PyObject *operators; /* dict: torch function -> tuple of positions and names that may be numbers; True: in lists */
    PyObject *evaluate;  /* Python functions of magpy.steps: evaluate(source, *leaves), */
    PyObject *compute;   /* the same as an operator's result, */
    PyObject *check, *sized; /* and mp_check_step, mp_number_sized */
} tables;

bool mp_numbers_ready(void) { return tables.functions != NULL; }

/* -- The list ------------------------------------------------------------------------------------------------------ */

static number *find(mp_recorder *rec, PyObject *object)
{
    if (!rec->numbers || !rec->numbers->open) return NULL;
    uint32_t i = mp_map_get(&rec->numbers->of, object);
    return i == MP_MAP_NONE ? NULL : &rec->numbers->list[i];
}

bool mp_number_is(mp_recorder *rec, PyObject *object) { return find(rec, object) != NULL; }

bool mp_numbers_any(mp_recorder *rec)
{
    if (!rec->numbers || !rec->numbers->open || rec->why.code) return false;
    for (uint32_t i = 0; i < rec->numbers->n; i++)
        if (!rec->numbers->list[i].settled && Py_REFCNT(rec->numbers->list[i].object) > 1) return true;
    return false;
}

static void no_memory(mp_recorder *rec)
{
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "numbers");
}

static bool is_number(PyObject *object) { return PyFloat_CheckExact(object) || PyLong_CheckExact(object); }

/* An equal object that nothing else has: small ints are one object for the whole process. Owned, or NULL with an exception. */
static PyObject *fresh(PyObject *object)
{
    if (PyFloat_CheckExact(object)) return PyFloat_FromDouble(PyFloat_AS_DOUBLE(object));
    Py_ssize_t size = Py_SIZE(object), digits = size < 0 ? -size : size;
    PyLongObject *copy = _PyLong_New(digits ? digits : 1);
    if (!copy) return NULL;
    copy->ob_digit[0] = 0;
    memcpy(copy->ob_digit, ((PyLongObject *)object)->ob_digit, (size_t)digits * sizeof(digit));
    Py_SET_SIZE(copy, size);
    return (PyObject *)copy;
}

/* *object becomes a number with this expression; its references `text` and `leaves` are stolen and may be NULL after a failure. */
static void add(mp_recorder *rec, PyObject **object, PyObject *text, PyObject *leaves)
{
    PyObject *own = text && leaves ? fresh(*object) : NULL;
    if (own && !rec->numbers) rec->numbers = PyMem_RawCalloc(1, sizeof *rec->numbers);
    number *entry = own && rec->numbers ? mp_rec_grow(rec, &rec->numbers->list, &rec->numbers->n, sizeof *entry) : NULL;
    if (!entry || mp_map_put(&rec->numbers->of, own, rec->numbers->n - 1) < 0) {
        if (entry) rec->numbers->n--;
        Py_XDECREF(own);
        Py_XDECREF(text);
        Py_XDECREF(leaves);
        no_memory(rec);
        return;
    }
    rec->numbers->open++;
    *entry = (number){.object = Py_NewRef(own),
                      .text = text,
                      .leaves = leaves,
                      .value = MP_NO_VALUE,
                      .read = MP_NO_READ,
                      .argument = MP_NO_OBJ};
    Py_SETREF(*object, own);
}

void mp_numbers_free(mp_recorder *rec)
{
    for (size_t i = 0; i < rec->n_own_args; i++) Py_DECREF(rec->own_args[i]);
    PyMem_RawFree(rec->own_args);
    Py_CLEAR(rec->changing);
    if (!rec->numbers) return;
    for (uint32_t i = 0; i < rec->numbers->n; i++) {
        Py_XDECREF(rec->numbers->list[i].object);
        Py_XDECREF(rec->numbers->list[i].text);
        Py_XDECREF(rec->numbers->list[i].leaves);
    }
    PyMem_RawFree(rec->numbers->list);
    mp_map_free(&rec->numbers->of);
    PyMem_RawFree(rec->numbers);
    rec->numbers = NULL;
}

/* -- Expressions --------------------------------------------------------------------------------------------------- */

static PyObject *name_of_value(mp_value_id value) { return PyUnicode_FromFormat("v%u", value); }

/* {name: value}: owned, or NULL with an exception. */
static PyObject *leaf(mp_value_id id)
{
    PyObject *name = name_of_value(id), *value = mp_value_new(id), *leaves = PyDict_New();
    if (!name || !value || !leaves || PyDict_SetItem(leaves, name, value) < 0) Py_CLEAR(leaves);
    Py_XDECREF(name);
    Py_XDECREF(value);
    return leaves;
}

/* The text of an operand, whose values are added to `leaves`. Owned, or NULL with an exception. */
static PyObject *text_of(mp_recorder *rec, PyObject *operand, PyObject *leaves)
{
    number *entry = find(rec, operand);
    if (!entry) {
        if (PyFloat_CheckExact(operand) && !(PyFloat_AS_DOUBLE(operand) - PyFloat_AS_DOUBLE(operand) == 0))
            return PyUnicode_FromFormat("float('%R')", operand); /* an infinity or NaN */
        return PyUnicode_FromFormat("(%R)", operand);
    }
    if (PyUnicode_GET_LENGTH(entry->text) > LONG_TEXT) {
        mp_value_id value = mp_number_value(rec, operand);
        PyObject *name = value == MP_NO_VALUE ? NULL : name_of_value(value), *values = name ? leaf(value) : NULL;
        entry = find(rec, operand);
        if (!values || !entry) {
            Py_XDECREF(name);
            Py_XDECREF(values);
            if (!PyErr_Occurred()) PyErr_NoMemory();
            return NULL;
        }
        Py_SETREF(entry->text, name);
        Py_SETREF(entry->leaves, values);
    }
    if (PyDict_Update(leaves, entry->leaves) < 0) return NULL;
    return Py_NewRef(entry->text);
}

/* "lambda v1, v2: text". Owned, or NULL with an exception. */
static PyObject *source_of(PyObject *text, PyObject *leaves)
{
    PyObject *comma = PyUnicode_FromString(", "), *names = comma ? PyUnicode_Join(comma, leaves) : NULL;
    PyObject *source = names ? PyUnicode_FromFormat("lambda %U: %U", names, text) : NULL;
    Py_XDECREF(comma);
    Py_XDECREF(names);
    return source;
}

/* (source, further..., leaves...) as a template of arguments; `further` is borrowed and may be NULL. Owned, or NULL with an exception. */
static PyObject *arguments_of(PyObject *text, PyObject *leaves, PyObject *further)
{
    PyObject *source = source_of(text, leaves), *list = PyDict_Values(leaves), *args = NULL;
    if (source && list && (!further || PyList_Insert(list, 0, further) == 0) && PyList_Insert(list, 0, source) == 0)
        args = PyList_AsTuple(list);
    Py_XDECREF(source);
    Py_XDECREF(list);
    return args;
}

/* The program learned that the expression is `seen` (borrowed: a bool, int or float). Steals text and leaves, which may be NULL. */
static void check(mp_recorder *rec, PyObject *text, PyObject *leaves, PyObject *seen)
{
    PyObject *args = text && leaves ? arguments_of(text, leaves, NULL) : NULL;
    if (args)
        mp_rec_check(rec, tables.evaluate, args, seen);
    else
        no_memory(rec);
    Py_XDECREF(args);
    Py_XDECREF(text);
    Py_XDECREF(leaves);
}

static void no_longer_open(mp_recorder *rec, number *entry)
{
    mp_map_remove(&rec->numbers->of, entry->object);
    entry->settled = true;
    rec->numbers->open--;
}

/* A number from outside is guarded by value where it was found. */
static void settle_outside(mp_recorder *rec, number *entry)
{
    no_longer_open(rec, entry);
    if (entry->read != MP_NO_READ)
        rec->recording->reads[entry->read].value = Py_NewRef(entry->object);
    else
        mp_rec_read_argument(rec, entry->argument, entry->object);
}

void mp_number_settle(mp_recorder *rec, PyObject *object)
{
    number *entry = find(rec, object);
    if (!entry || rec->why.code) return;
    if (entry->read != MP_NO_READ || entry->argument != MP_NO_OBJ) {
        settle_outside(rec, entry);
        return;
    }
    if (mp_answer_is_value(object) && !rec->op_state->accept_values) {
        mp_rec_abandon(rec, MP_REASON_DATA_READ, "the value of a float");
        return;
    }
    mp_kept kept = mp_keep();
    no_longer_open(rec, entry);
    check(rec, Py_NewRef(entry->text), Py_NewRef(entry->leaves), object);
    mp_restore(kept);
}

static void settle_all(mp_recorder *rec)
{
    for (uint32_t i = 0; rec->numbers && i < rec->numbers->n; i++)
        if (!rec->numbers->list[i].settled && Py_REFCNT(rec->numbers->list[i].object) > 1)
            mp_number_settle(rec, rec->numbers->list[i].object);
}

mp_value_id mp_number_value(mp_recorder *rec, PyObject *object)
{
    number *entry = find(rec, object);
    if (!entry) return MP_NO_VALUE;
    if (entry->value != MP_NO_VALUE) return entry->value;
    PyObject *leaf = PyDict_GET_SIZE(entry->leaves) == 1 ? PyDict_GetItemWithError(entry->leaves, entry->text) : NULL;
    if (leaf && mp_recording_is_draw(rec->recording, mp_index_of(leaf))) /* an input of the type that it needs */
        return entry->value = mp_index_of(leaf);
    uint32_t index = (uint32_t)(entry - rec->numbers->list);
    mp_kept kept = mp_keep();
    PyObject *is_float = PyFloat_CheckExact(object) ? Py_True : Py_False;
    PyObject *args = arguments_of(entry->text, entry->leaves, is_float);
    PyObject *value = args ? mp_rec_silent_op(rec, Py_NewRef(tables.compute), args) : NULL;
    if (value)
        rec->numbers->list[index].value = mp_index_of(value);
    else
        no_memory(rec);
    Py_XDECREF(value);
    mp_restore(kept);
    return rec->numbers->list[index].value;
}

PyObject *mp_check_step(const mp_check *check)
{ return tables.check && check->func == tables.evaluate && !check->kwargs ? tables.check : NULL; }

PyObject *mp_number_sized(void) { return tables.sized; }
bool mp_op_is_sized(const mp_op *op) { return tables.sized && op->func == tables.sized; }

void mp_number_look(mp_recorder *rec, mp_value_id value, const char *how, PyObject *seen)
{
    PyObject *name = name_of_value(value);
    check(rec, name ? PyUnicode_FromFormat("%s(%U)", how, name) : NULL, leaf(value), seen);
    Py_XDECREF(name);
}

bool mp_number_read(mp_recorder *rec, PyObject **object, mp_value_id value, const char *how)
{
    if (!tables.functions || !is_number(*object)) return false;
    PyObject *name = name_of_value(value);
    PyObject *text = name && how ? PyUnicode_FromFormat("%s(%U)", how, name) : Py_XNewRef(name);
    Py_XDECREF(name);
    add(rec, object, text, leaf(value));
    return true;
}

/* -- Numbers from outside ------------------------------------------------------------------------------------------ */

static bool is_changing(mp_recorder *rec, PyObject *name) /* steals it; may be NULL */
{
    int found = name ? PySet_Contains(rec->changing, name) : 0;
    Py_XDECREF(name);
    PyErr_Clear();
    return found > 0;
}

/* *object, external object `id` from now on, becomes a number and an input of the graph. Its entry, or NULL. */
static number *add_outside(mp_recorder *rec, PyObject **object, mp_obj_id id)
{
    mp_value_id value = mp_rec_number_input(rec, id);
    uint32_t n = rec->numbers ? rec->numbers->n : 0;
    if (value == MP_NO_VALUE) return NULL;
    add(rec, object, name_of_value(value), leaf(value));
    if (rec->why.code || rec->numbers->n == n) return NULL;
    rec->numbers->list[n].value = value;
    return &rec->numbers->list[n];
}

static number *found_by(mp_recorder *rec, uint32_t read)
{
    for (uint32_t i = 0; rec->numbers && i < rec->numbers->n; i++)
        if (rec->numbers->list[i].read == read) return &rec->numbers->list[i];
    return NULL;
}

/* The program may get the object itself in a way that cannot be told: its value is what counts. */
static void pin_number(mp_recorder *rec, uint32_t read)
{
    number *entry = found_by(rec, read);
    if (entry && !entry->settled) settle_outside(rec, entry);
}

void mp_number_met(mp_recorder *rec, uint32_t read)
{
    mp_read *at = &rec->recording->reads[read];
    if (at->was == MP_WAS_SCALAR && !is_changing(rec, mp_recording_number_name(rec->recording, read))) return;
    if (at->was != MP_WAS_SCALAR && at->was != MP_WAS_NUMBER) return;
    if (rec->in_instruction && rec->n_number_reads < 2)
        rec->number_reads[rec->n_number_reads++] = read;
    else
        pin_number(rec, read);
}

/* data: the number of the read, whose value is the result if that is what the instruction gives. */
static void number_loaded(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    uint32_t index = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(data, 0));
    PyObject *seen = PyTuple_GET_ITEM(data, 1), *result = slot ? *slot : NULL;
    mp_read *read = &rec->recording->reads[index];
    if (read->was == MP_WAS_NUMBER) {
        number *entry = found_by(rec, index);
        if (entry && !entry->settled && result && result == seen)
            Py_SETREF(*slot, Py_NewRef(entry->object));
        else
            pin_number(rec, index);
    } else if (result && result == read->value) {
        mp_obj_id id = mp_rec_new_object(rec, result, MP_ROOT_NONE, index);
        number *entry = id == MP_NO_OBJ ? NULL : add_outside(rec, slot, id);
        read = &rec->recording->reads[index];
        if (entry) {
            entry->read = index;
            read->was = MP_WAS_NUMBER;
            read->obj = id;
            Py_CLEAR(read->value);
        }
    }
    Py_DECREF(data);
}

void mp_number_met_end(mp_recorder *rec, const mp_frame *frame, int opcode)
{
    int n = rec->n_number_reads;
    rec->n_number_reads = 0;
    bool loads = opcode == LOAD_ATTR || opcode == LOAD_GLOBAL || opcode == LOAD_NAME || opcode == LOAD_DEREF ||
                 opcode == BINARY_SUBSCR;
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (n == 1 && loads && entry && !entry->pending && tables.functions) {
        const mp_read *read = &rec->recording->reads[rec->number_reads[0]];
        PyObject *now = read->was == MP_WAS_NUMBER ? mp_object_get(&rec->recording->objects[read->obj]) : read->value;
        PyObject *data = now ? Py_BuildValue("(IO)", rec->number_reads[0], now) : NULL;
        if (data) {
            mp_rec_pend(rec, frame, number_loaded, data);
            return;
        }
        PyErr_Clear();
    }
    for (int i = 0; i < n; i++) pin_number(rec, rec->number_reads[i]);
}

PyObject *const *mp_rec_changing(mp_recorder *rec, PyObject *names, PyObject *const *args, size_t n_args)
{
    if (!names || !PySet_GET_SIZE(names) || rec->why.code || !mp_rec_op_state(rec) || !tables.functions) return args;
    Py_XSETREF(rec->changing, Py_NewRef(names));
    for (uint32_t id = 0; id < rec->recording->n_objects; id++) {
        const mp_object *object = &rec->recording->objects[id];
        bool argument = object->root == MP_ROOT_ARG || object->root == MP_ROOT_KWARG;
        size_t at = object->root_index;
        if (!argument || at >= n_args || !is_number(args[at])) continue;
        if (!is_changing(rec, mp_recording_argument_name(object->root_index))) continue;
        if (!rec->own_args) {
            if (!(rec->own_args = PyMem_RawMalloc(n_args * sizeof *rec->own_args))) return args;
            for (rec->n_own_args = 0; rec->n_own_args < n_args; rec->n_own_args++)
                rec->own_args[rec->n_own_args] = Py_NewRef(args[rec->n_own_args]);
        }
        number *entry = add_outside(rec, &rec->own_args[at], id);
        if (entry) entry->argument = id;
        if (entry) mp_rec_forget_argument(rec, id);
    }
    return rec->own_args ? rec->own_args : args;
}

/* -- What C code can reach ----------------------------------------------------------------------------------------- */

typedef struct {
    mp_recorder *rec;
    PyObject *found; /* owned list of numbers, or NULL without memory */
    uint32_t count;
    int depth;
} reach;

static int reach_into(PyObject *object, void *context);

static void reach_object(reach *r, PyObject *object)
{
    if (find(r->rec, object)) {
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
    if (closed || r->count > REACH_COUNT) return;
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

void mp_number_settle_inside(mp_recorder *rec, PyObject *object)
{
    if (!object || !mp_numbers_any(rec)) return;
    if (find(rec, object)) {
        mp_number_settle(rec, object);
        return;
    }
    if (mp_is_scalar(object) && !PySlice_Check(object)) return;
    mp_kept kept = mp_keep();
    reach r = {.rec = rec, .found = PyList_New(0)};
    reach_object(&r, object);
    if (!r.found)
        no_memory(rec);
    else if (r.count > REACH_COUNT)
        settle_all(rec);
    else
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(r.found); i++) mp_number_settle(rec, PyList_GET_ITEM(r.found, i));
    Py_XDECREF(r.found);
    mp_restore(kept);
}

/* -- Arithmetic ---------------------------------------------------------------------------------------------------- */

/* data: (format of the expression, operands...), where "%" stands for each operand in turn. */
void mp_number_made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(data);
    if (!result ||
        !is_number(result)) { /* it raised, or gave a complex number: that follows from what the operands are */
        for (Py_ssize_t i = 1; i < n; i++) mp_number_settle(rec, PyTuple_GET_ITEM(data, i));
    } else if (!find(rec, result)) { /* else it gave back an operand */
        PyObject *leaves = PyDict_New(), *text = PyUnicode_FromString("");
        const char *format = PyUnicode_AsUTF8(PyTuple_GET_ITEM(data, 0));
        for (Py_ssize_t i = 1; format && text && leaves && *format;) {
            size_t plain = strcspn(format, "$");
            PyObject *part = PyUnicode_FromStringAndSize(format, (Py_ssize_t)plain);
            PyUnicode_AppendAndDel(&text, part);
            format += plain;
            if (*format != '$' || !text) continue;
            format++;
            PyUnicode_AppendAndDel(&text, i < n ? text_of(rec, PyTuple_GET_ITEM(data, i), leaves) : NULL);
            i++;
        }
        add(rec, slot, text, leaves);
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
        no_memory(rec);
        return;
    }
    PyTuple_SET_ITEM(data, 0, text);
    for (Py_ssize_t i = 0; i < n; i++) PyTuple_SET_ITEM(data, i + 1, Py_NewRef(operands[i]));
    mp_rec_pend(rec, frame, mp_number_made, data);
}

/* The program learns whether `left op right`. */
static void compared(mp_recorder *rec, PyObject *left, PyObject *right, int op)
{
    static const char *const signs[] = {"<", "<=", "==", "!=", ">", ">="};
    PyObject *leaves = PyDict_New(), *a = leaves ? text_of(rec, left, leaves) : NULL,
             *b = a ? text_of(rec, right, leaves) : NULL;
    PyObject *text = b ? PyUnicode_FromFormat("%U %s %U", a, signs[op], b) : NULL;
    int holds = PyObject_RichCompareBool(left, right, op); /* of exact ints and floats */
    if (left == right && PyFloat_CheckExact(left) && Py_IS_NAN(PyFloat_AS_DOUBLE(left)))
        holds = op == Py_NE; /* which the identity of the two hides */
    check(rec, text, leaves, holds > 0 ? Py_True : Py_False);
    Py_XDECREF(a);
    Py_XDECREF(b);
    PyErr_Clear();
}

static void truth(mp_recorder *rec, PyObject *object)
{
    number *entry = find(rec, object);
    if (!entry) return;
    check(rec, PyUnicode_FromFormat("bool(%U)", entry->text), Py_NewRef(entry->leaves),
          PyObject_IsTrue(object) > 0 ? Py_True : Py_False);
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

static bool plain_number(PyObject *object) { return is_number(object) || PyBool_Check(object); }

static void binary(mp_recorder *rec, const mp_frame *frame, int op)
{
    PyObject *operands[] = {TOP(2), TOP(1)};
    bool open[] = {find(rec, operands[0]) != NULL, find(rec, operands[1]) != NULL};
    if (op >= NB_INPLACE_ADD) op -= NB_INPLACE_ADD;
    if ((open[0] || open[1]) && plain_number(operands[0]) && plain_number(operands[1]) && binary_formats[op])
        computes(rec, frame, binary_formats[op], operands, 2);
    else if (PyUnicode_Check(operands[0]) || PyBytes_Check(operands[0])) /* "%s" % (a, b) */
        mp_number_settle_inside(rec, operands[1]);
    else
        for (int i = 0; i < 2; i++)
            if (open[i] && !mp_is_tensor(operands[1 - i])) mp_number_settle(rec, operands[i]);
}

static void compare(mp_recorder *rec, PyObject *left, PyObject *right, int op)
{
    bool open = find(rec, left) || find(rec, right);
    if (open && (mp_is_tensor(left) || mp_is_tensor(right))) return;
    if (open && plain_number(left) && plain_number(right)) {
        compared(rec, left, right, op);
        return;
    }
    mp_number_settle_inside(rec, left);
    mp_number_settle_inside(rec, right);
}

/* Which object it is: that of any other int of the value. */
static void identity(mp_recorder *rec, PyObject **left, PyObject **right)
{
    if (Py_TYPE(*left) != Py_TYPE(*right)) return;
    PyObject **both[] = {left, right};
    for (int i = 0; i < 2; i++) {
        if (!find(rec, *both[i])) continue;
        mp_number_settle(rec, *both[i]);
        int overflow;
        long value = PyLong_CheckExact(*both[i]) ? PyLong_AsLongAndOverflow(*both[i], &overflow) : 0;
        PyObject *usual = PyLong_CheckExact(*both[i]) && !overflow ? PyLong_FromLong(value) : NULL;
        if (usual) Py_SETREF(*both[i], usual); /* the stack's reference */
    }
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

void mp_number_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    if (!mp_numbers_any(rec)) return;
    switch (opcode) {
    case BINARY_OP: binary(rec, frame, oparg); return;
    case COMPARE_OP: compare(rec, TOP(2), TOP(1), oparg); return;
    case UNARY_NEGATIVE:
        if (find(rec, TOP(1))) computes(rec, frame, "(-$)", &TOP(1), 1);
        return;
    case UNARY_POSITIVE:
        if (find(rec, TOP(1))) computes(rec, frame, "(+$)", &TOP(1), 1);
        return;
    case UNARY_INVERT:
        if (find(rec, TOP(1))) computes(rec, frame, "(~$)", &TOP(1), 1);
        return;
    case UNARY_NOT:
    case POP_JUMP_FORWARD_IF_TRUE:
    case POP_JUMP_FORWARD_IF_FALSE:
    case POP_JUMP_BACKWARD_IF_TRUE:
    case POP_JUMP_BACKWARD_IF_FALSE:
    case JUMP_IF_TRUE_OR_POP:
    case JUMP_IF_FALSE_OR_POP: truth(rec, TOP(1)); return;
    case IS_OP: identity(rec, &TOP(2), &TOP(1)); return;
    case LOAD_ATTR:
    case LOAD_METHOD:
    case SET_ADD: mp_number_settle(rec, TOP(1)); return;
    case MAP_ADD: mp_number_settle_inside(rec, TOP(2)); return;
    case STORE_ATTR:
        if (!keeps_attribute(TOP(1), PyTuple_GET_ITEM(frame->code->co_names, oparg)))
            mp_number_settle_inside(rec, TOP(2));
        return;
    case BINARY_SUBSCR:
    case DELETE_SUBSCR:
        if (!mp_is_tensor(TOP(2))) mp_number_settle_inside(rec, TOP(1));
        return;
    case STORE_SUBSCR:
        if (mp_is_tensor(TOP(2))) return;
        mp_number_settle_inside(rec, TOP(1));
        if (!keeps_items(TOP(2))) mp_number_settle_inside(rec, TOP(3));
        return;
    case CONTAINS_OP:
        mp_number_settle_inside(rec, TOP(2));
        if (!PyDict_Check(TOP(1))) mp_number_settle_inside(rec, TOP(1)); /* its keys were looked at when they came in */
        return;
    case FORMAT_VALUE: mp_number_settle_inside(rec, oparg & 4 ? TOP(2) : TOP(1)); return;
    case SET_UPDATE: mp_number_settle_inside(rec, TOP(1)); return;
    case BUILD_SET:
        for (int i = 1; i <= oparg; i++) mp_number_settle_inside(rec, TOP(i));
        return;
    case BUILD_MAP:
        for (int i = 1; i <= oparg; i++) mp_number_settle_inside(rec, TOP(2 * i));
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
    if (caller->in_c || !passes_on(caller->opcode) || is_asked_by_c(frame->code)) mp_number_settle_inside(rec, value);
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

static void settle_arguments(mp_call *call, Py_ssize_t from)
{
    for (Py_ssize_t i = from; i < call->nargs; i++) mp_number_settle_inside(call->rec, call->args[i]);
    for (Py_ssize_t i = 0; i < call->nkw; i++) mp_number_settle_inside(call->rec, call->kwvalues[i]);
}

/* min(a, b, ...) and max give one of their arguments, by comparisons. */
static void extreme(mp_recorder *rec, PyObject *const *items, Py_ssize_t n, int op)
{
    PyObject *best = items[0];
    for (Py_ssize_t i = 1; i < n; i++) {
        if (find(rec, items[i]) || find(rec, best)) compared(rec, items[i], best, op);
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
        n = PySequence_Fast_GET_SIZE(items[0]);
        items = PySequence_Fast_ITEMS(items[0]);
    }
    for (Py_ssize_t i = 0; i < n && n <= MOST; i++) {
        if (!plain_number(items[i])) return false;
        open = open || find(call->rec, items[i]);
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

bool mp_number_call(mp_call *call)
{
    if (!tables.functions || call->rec->why.code) return false;
    mp_kept kept = mp_keep();
    PyObject *looks = look_up_method(tables.carriers, call);
    mp_rec_frame *entry = call->frame ? mp_rec_frame_of(call->rec, call->frame) : NULL;
    if (entry && looks != Py_None) entry->in_c = true; /* what Python functions below it give goes to C code */
    bool done = false;
    if (mp_numbers_any(call->rec)) {
        PyObject *name = look_up(tables.functions, call->callable);
        done = name && computed(call, name);
        if (!done && looks != Py_None) settle_arguments(call, looks ? PyLong_AsSsize_t(looks) : 0);
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
    if (taken && find(rec, object)) return true;
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
    PyObject *allowed = rec->op_state->muted ? NULL : look_up(tables.operators, func), *key, *value;
    bool in_lists = false, left = false;
    for (Py_ssize_t i = 0; allowed && i < PyTuple_GET_SIZE(allowed); i++)
        in_lists = in_lists || PyTuple_GET_ITEM(allowed, i) == Py_True;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++)
        left = argument(rec, PyTuple_GET_ITEM(args, i), allowed && takes(allowed, i, NULL), in_lists) || left;
    for (Py_ssize_t i = 0; kwargs && PyDict_Next(kwargs, &i, &key, &value);)
        left = argument(rec, value, allowed && takes(allowed, 0, key), in_lists) || left;
    return left && !rec->why.code;
}

/* -- Module part --------------------------------------------------------------------------------------------------- */

static PyObject *set_tables(PyObject *module, PyObject *args)
{
    PyObject *functions, *carriers, *operators, *evaluate, *compute, *check_step, *sized;
    if (!PyArg_ParseTuple(args, "O!O!O!OOOO", &PyDict_Type, &functions, &PyDict_Type, &carriers, &PyDict_Type,
                          &operators, &evaluate, &compute, &check_step, &sized))
        return NULL;
    Py_XSETREF(tables.functions, Py_NewRef(functions));
    Py_XSETREF(tables.carriers, Py_NewRef(carriers));
    Py_XSETREF(tables.operators, Py_NewRef(operators));
    Py_XSETREF(tables.evaluate, Py_NewRef(evaluate));
    Py_XSETREF(tables.compute, Py_NewRef(compute));
    Py_XSETREF(tables.check, Py_NewRef(check_step));
    Py_XSETREF(tables.sized, Py_NewRef(sized));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_number_tables", set_tables, METH_VARARGS,
     "_number_tables(functions, carriers, operators, evaluate, compute, check, sized): what magpy.symbols knows."},
    {NULL},
};

int mp_numbers_module_init(PyObject *module) { return PyModule_AddFunctions(module, methods); }
