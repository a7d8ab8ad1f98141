/* Numbers that are data: which there are, their expressions, checks of them, and those from outside. See numbers.h. */
#include "trace/numbers.h"

#include "trace/arrays.h"
#include "trace/effects.h"
#include "trace/opaque.h"
#include "trace/raw.h"
#include "trace/tensors.h"
#include "trace/texts.h"

#include <opcode.h>

enum { LONG_TEXT = 160 }; /* longer expressions are computed once, as a value */

typedef struct {
    PyObject *object;   /* owned: what the program has */
    PyObject *template; /* owned: that of an open text, which has nothing of what follows; NULL: it is a number */
    PyObject *text;     /* owned: Python source of its value over values of the graph */
    PyObject *leaves;   /* owned dict: the values in `text`, name -> _C.Value, in order of first use */
    PyObject *make;     /* owned: makes the object of the number that `value` is; NULL: the object is that number */
    mp_value_id value;
    bool copied;        /* eager has the process's one text or bytes of that character in its place */
    bool settled, must; /* must: every run makes it, for that may raise */
    uint32_t drawn;     /* the draw that gave it, or MP_NO_DRAW; `text` and so on only where the graph takes it */
    uint32_t read;      /* a number from outside: the read that found it, or MP_NO_READ */
    mp_obj_id argument; /* likewise: the argument that it is, or MP_NO_OBJ */
} number;

struct mp_numbers {
    number *list;
    uint32_t n, open; /* open: not settled */
    mp_map of;        /* object -> index; without the settled ones */
};

mp_number_knowledge mp_number_tables;

bool mp_numbers_ready(void) { return mp_number_tables.functions != NULL; }

/* -- The list ------------------------------------------------------------------------------------------------------ */

static number *find(mp_recorder *rec, PyObject *object)
{
    if (!rec->numbers || !rec->numbers->open) return NULL;
    uint32_t i = mp_map_get(&rec->numbers->of, object);
    return i == MP_MAP_NONE ? NULL : &rec->numbers->list[i];
}

bool mp_number_is(mp_recorder *rec, PyObject *object) { return find(rec, object) != NULL; }

bool mp_number_is_object(mp_recorder *rec, PyObject *object)
{
    const number *entry = find(rec, object);
    return entry && entry->make;
}

bool mp_number_is_numpy(mp_recorder *rec, PyObject *object)
{
    const number *entry = mp_is_array_scalar_type(Py_TYPE(object)) ? find(rec, object) : NULL;
    return entry && entry->make;
}

bool mp_numbers_any(mp_recorder *rec)
{
    if (!rec->numbers || !rec->numbers->open || rec->why.code) return false;
    for (uint32_t i = 0; i < rec->numbers->n; i++)
        if (!rec->numbers->list[i].settled && Py_REFCNT(rec->numbers->list[i].object) > 1) return true;
    return false;
}

void mp_number_no_memory(mp_recorder *rec)
{
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "numbers");
}

bool mp_is_number(PyObject *object) { return PyFloat_CheckExact(object) || PyLong_CheckExact(object); }

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

/* `own` (stolen, NULL without memory) is open. The entry, or NULL after abandoning. */
static number *add_entry(mp_recorder *rec, PyObject *own)
{
    if (own && !rec->numbers) rec->numbers = PyMem_RawCalloc(1, sizeof *rec->numbers);
    number *entry = own && rec->numbers ? mp_rec_grow(rec, &rec->numbers->list, &rec->numbers->n, sizeof *entry) : NULL;
    if (!entry || mp_map_put(&rec->numbers->of, own, rec->numbers->n - 1) < 0) {
        if (entry) rec->numbers->n--;
        Py_XDECREF(own);
        mp_number_no_memory(rec);
        return NULL;
    }
    rec->numbers->open++;
    *entry =
        (number){.object = own, .value = MP_NO_VALUE, .drawn = MP_NO_DRAW, .read = MP_NO_READ, .argument = MP_NO_OBJ};
    return entry;
}

/* Likewise, with this expression; `text` and `leaves` are stolen and may be NULL after a failure. */
static number *add_open(mp_recorder *rec, PyObject *own, PyObject *text, PyObject *leaves)
{
    number *entry = add_entry(rec, own);
    if (entry) {
        entry->text = text;
        entry->leaves = leaves;
    } else {
        Py_XDECREF(text);
        Py_XDECREF(leaves);
    }
    return entry;
}

/* *object becomes a number with this expression; its references `text` and `leaves` are stolen and may be NULL after a failure. */
void mp_number_add(mp_recorder *rec, PyObject **object, PyObject *text, PyObject *leaves)
{
    const number *entry = add_open(rec, text && leaves ? fresh(*object) : NULL, text, leaves);
    if (entry) Py_SETREF(*object, Py_NewRef(entry->object));
}

void mp_text_open(mp_recorder *rec, PyObject *object, PyObject *template, bool copied)
{
    number *entry = add_entry(rec, Py_NewRef(object));
    if (!entry) return;
    entry->template = Py_NewRef(template);
    entry->copied = copied;
}

PyObject *mp_text_template(mp_recorder *rec, PyObject *object)
{
    number *entry = find(rec, object);
    return entry ? entry->template : NULL;
}

void mp_numbers_free(mp_recorder *rec)
{
    for (size_t i = 0; i < rec->n_own_args; i++) Py_DECREF(rec->own_args[i]);
    PyMem_RawFree(rec->own_args);
    Py_CLEAR(rec->changing);
    if (!rec->numbers) return;
    for (uint32_t i = 0; i < rec->numbers->n; i++) {
        Py_XDECREF(rec->numbers->list[i].object);
        Py_XDECREF(rec->numbers->list[i].template);
        Py_XDECREF(rec->numbers->list[i].text);
        Py_XDECREF(rec->numbers->list[i].leaves);
        Py_XDECREF(rec->numbers->list[i].make);
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

static void no_longer_open(mp_recorder *rec, number *entry)
{
    mp_map_remove(&rec->numbers->of, entry->object);
    entry->settled = true;
    rec->numbers->open--;
}

/* -- What was drawn ------------------------------------------------------------------------------------------------ */

/* An equal object that nothing else has, of a type that may be drawn. Owned, or NULL with an exception. */
static PyObject *unshared(PyObject *object)
{
    if (mp_is_number(object)) return fresh(object);
    if (PyUnicode_CheckExact(object)) {
        Py_ssize_t n = PyUnicode_GET_LENGTH(object);
        PyObject *copy = PyUnicode_New(n, PyUnicode_MAX_CHAR_VALUE(object));
        if (copy && n && PyUnicode_CopyCharacters(copy, 0, object, 0, n) < 0) Py_CLEAR(copy);
        return copy;
    }
    if (PyBytes_CheckExact(object)) {
        PyObject *copy = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(object));
        if (copy) memcpy(PyBytes_AS_STRING(copy), PyBytes_AS_STRING(object), (size_t)PyBytes_GET_SIZE(object));
        return copy;
    }
    if (PyComplex_CheckExact(object)) return PyComplex_FromCComplex(PyComplex_AsCComplex(object));
    if (!strcmp(Py_TYPE(object)->tp_name, "datetime.timedelta")) return PyNumber_Positive(object);
    return PyObject_CallMethod(object, "replace", NULL); /* a date or time, with nothing replaced */
}

/* *object is open, replaced by an equal object where it is shared. The entry, or NULL after abandoning. */
static number *add_object(mp_recorder *rec, PyObject **object)
{
    bool shared = Py_REFCNT(*object) > 1;
    if (shared || PyLong_CheckExact(*object)) {
        PyObject *own = unshared(*object);
        if (!own) return mp_number_no_memory(rec), NULL;
        Py_SETREF(*object, own);
    }
    number *entry = add_entry(rec, Py_NewRef(*object));
    if (entry) entry->copied = shared;
    return entry;
}

PyObject *mp_number_usual(mp_recorder *rec, PyObject *object)
{
    enum { LEAST = -5, MOST = 256 }; /* ints that are one object each for the whole process */
    for (uint32_t i = 0; rec->numbers && i < rec->numbers->n; i++) {
        const number *entry = &rec->numbers->list[i];
        if (entry->object != object) continue; /* it is owned, so that its address is its own */
        int overflow = 0;
        long value = PyLong_CheckExact(object) ? PyLong_AsLongAndOverflow(object, &overflow) : MOST + 1;
        if (!overflow && value >= LEAST && value <= MOST) return PyLong_FromLong(value);
        if (entry->copied && PyUnicode_CheckExact(object) && PyUnicode_GET_LENGTH(object) == 1)
            return PyUnicode_FromOrdinal((int)PyUnicode_READ_CHAR(object, 0));
        if (entry->copied && PyBytes_CheckExact(object) && PyBytes_GET_SIZE(object) == 1)
            return PyBytes_FromStringAndSize(PyBytes_AS_STRING(object), 1);
        return NULL;
    }
    return NULL;
}

void mp_number_draw(mp_recorder *rec, PyObject **object, uint32_t draw)
{
    number *entry = add_object(rec, object);
    if (entry) entry->drawn = draw;
}

void mp_number_late(mp_recorder *rec, PyObject **object, PyObject *template)
{
    number *entry = add_object(rec, object);
    if (!entry) return;
    entry->template = Py_NewRef(template);
    entry->must = true;
}

bool mp_number_is_late(mp_recorder *rec, PyObject *object)
{
    const number *entry = find(rec, object);
    return entry && (entry->make || entry->template);
}

PyObject *mp_number_maker(mp_recorder *rec, PyObject *object, mp_value_id *value)
{
    const number *entry = find(rec, object);
    *value = entry ? entry->value : MP_NO_VALUE;
    return entry ? entry->make : NULL;
}

PyObject *mp_number_must(mp_recorder *rec, uint32_t i)
{
    if (!rec->numbers || i >= rec->numbers->n) return NULL;
    const number *entry = &rec->numbers->list[i];
    return entry->must && !entry->settled ? entry->object : Py_None;
}

uint32_t mp_number_drawn(mp_recorder *rec, PyObject *object)
{
    const number *entry = find(rec, object);
    if (!entry || entry->drawn != MP_NO_DRAW || !entry->text || PyDict_GET_SIZE(entry->leaves) != 1 || entry->make)
        return entry ? entry->drawn : MP_NO_DRAW;
    PyObject *leaf = PyDict_GetItemWithError(entry->leaves, entry->text);
    for (uint32_t i = 0; leaf && i < rec->recording->n_draws; i++)
        if (rec->recording->draws[i].value == mp_index_of(leaf)) return i;
    return MP_NO_DRAW;
}

bool mp_number_is_drawn(mp_recorder *rec, PyObject *object)
{
    const number *entry = find(rec, object);
    return entry && entry->drawn != MP_NO_DRAW && !entry->text;
}

/* What was drawn is looked at: every run must draw it again. */
static void settle_drawn(mp_recorder *rec, number *entry)
{
    mp_draw *draw = &rec->recording->draws[entry->drawn];
    if (!PyLong_CheckExact(entry->object) && !rec->op_state->accept_values) {
        mp_rec_abandon(
            rec, MP_REASON_DATA_READ,
            "a %s, which is another one each time: what follows from its value (a condition, a key of a dict, an "
            "argument of a function that is unknown) must not, for the call to be traced",
            Py_TYPE(entry->object)->tp_name);
        return;
    }
    no_longer_open(rec, entry);
    draw->open = false;
}

bool mp_number_fits(PyObject *object)
{
    int overflow = 0;
    if (PyLong_CheckExact(object)) (void)PyLong_AsLongLongAndOverflow(object, &overflow);
    return mp_is_number(object) && !overflow;
}

/* The graph takes a number that was drawn. False: it does not fit, and is settled. */
static bool give_to_graph(mp_recorder *rec, number *entry)
{
    if (!mp_number_fits(entry->object)) {
        settle_drawn(rec, entry);
        return false;
    }
    mp_value_id value = mp_rec_new_value(rec, UINT32_MAX);
    if (value == MP_NO_VALUE) return false;
    entry->text = name_of_value(value);
    entry->leaves = leaf(value);
    entry->value = value;
    rec->recording->draws[entry->drawn].value = value;
    if (entry->text && entry->leaves) return true;
    mp_number_no_memory(rec);
    return false;
}

/* -- Text of expressions -------------------------------------------------------------------------------------------- */

/* The text of an operand, whose values are added to `leaves`. Owned, or NULL with an exception. */
PyObject *mp_number_text(mp_recorder *rec, PyObject *operand, PyObject *leaves)
{
    number *entry = find(rec, operand);
    if (entry && entry->drawn != MP_NO_DRAW && !entry->text && !give_to_graph(rec, entry)) entry = NULL;
    if (entry && !entry->text) {
        mp_number_settle(rec, operand);
        entry = NULL;
    }
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
void mp_number_learn(mp_recorder *rec, PyObject *text, PyObject *leaves, PyObject *seen)
{
    PyObject *args = text && leaves ? arguments_of(text, leaves, NULL) : NULL;
    if (args)
        mp_rec_check(rec, mp_number_tables.evaluate, args, seen);
    else
        mp_number_no_memory(rec);
    Py_XDECREF(args);
    Py_XDECREF(text);
    Py_XDECREF(leaves);
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
    if (entry->template) {
        PyObject *template = Py_NewRef(entry->template);
        no_longer_open(rec, entry);
        mp_number_settle_inside(rec, template);
        Py_DECREF(template);
        return;
    }
    if (entry->read != MP_NO_READ || entry->argument != MP_NO_OBJ) {
        settle_outside(rec, entry);
        return;
    }
    bool of_numpy = mp_number_is_numpy(rec, object);
    if (entry->make && !of_numpy) {
        mp_rec_abandon(rec, MP_REASON_DATA_READ, "a %s, which is another one each time", Py_TYPE(object)->tp_name);
        return;
    }
    if (entry->drawn != MP_NO_DRAW && !entry->text) {
        settle_drawn(rec, entry);
        return;
    }
    if (mp_answer_is_value(object) && !rec->op_state->accept_values) {
        mp_rec_abandon(rec, MP_REASON_DATA_READ, "the value of a float");
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *seen = of_numpy ? PyNumber_Float(object) : Py_NewRef(object); /* of a float's size at most */
    no_longer_open(rec, entry);
    if (seen)
        mp_number_learn(rec, Py_NewRef(entry->text), Py_NewRef(entry->leaves), seen);
    else
        mp_number_no_memory(rec);
    Py_XDECREF(seen);
    mp_restore(kept);
}

void mp_number_settle_all(mp_recorder *rec)
{
    for (uint32_t i = 0; rec->numbers && i < rec->numbers->n; i++)
        if (!rec->numbers->list[i].settled && Py_REFCNT(rec->numbers->list[i].object) > 1)
            mp_number_settle(rec, rec->numbers->list[i].object);
}

mp_value_id mp_number_value(mp_recorder *rec, PyObject *object)
{
    number *entry = find(rec, object);
    if (entry && entry->make) mp_number_settle(rec, object); /* which ends the trace: it is no number */
    if (entry && entry->template)
        mp_number_settle(rec, object); /* what follows from data after the graph is none of it */
    if (!entry || entry->make || entry->template) return MP_NO_VALUE;
    if (entry->drawn != MP_NO_DRAW && !entry->text && !give_to_graph(rec, entry)) return MP_NO_VALUE;
    if (entry->value != MP_NO_VALUE) return entry->value;
    PyObject *leaf = PyDict_GET_SIZE(entry->leaves) == 1 ? PyDict_GetItemWithError(entry->leaves, entry->text) : NULL;
    if (leaf && mp_recording_is_draw(rec->recording, mp_index_of(leaf))) /* an input of the type that it needs */
        return entry->value = mp_index_of(leaf);
    uint32_t index = (uint32_t)(entry - rec->numbers->list);
    mp_kept kept = mp_keep();
    PyObject *is_float = PyFloat_CheckExact(object) ? Py_True : Py_False;
    PyObject *args = arguments_of(entry->text, entry->leaves, is_float);
    PyObject *value = args ? mp_rec_silent_op(rec, Py_NewRef(mp_number_tables.compute), args) : NULL;
    if (value)
        rec->numbers->list[index].value = mp_index_of(value);
    else
        mp_number_no_memory(rec);
    Py_XDECREF(value);
    mp_restore(kept);
    return rec->numbers->list[index].value;
}

mp_value_id mp_number_at_end(mp_recorder *rec, PyObject *object, PyObject **make)
{
    const number *entry = find(rec, object);
    *make = entry ? entry->make : NULL;
    if (entry && (entry->drawn != MP_NO_DRAW || entry->template))
        return MP_NO_VALUE; /* the run has the object itself, or makes it */
    return *make ? entry->value : mp_number_value(rec, object);
}

PyObject *mp_check_step(const mp_check *check)
{
    return mp_number_tables.check && check->func == mp_number_tables.evaluate && !check->kwargs ? mp_number_tables.check
                                                                                                : NULL;
}

PyObject *mp_number_sized(void) { return mp_number_tables.sized; }
bool mp_op_is_sized(const mp_op *op)
{ return (mp_number_tables.sized && op->func == mp_number_tables.sized) || mp_opaque_is_sized(op->func); }

void mp_number_look(mp_recorder *rec, mp_value_id value, const char *how, PyObject *seen)
{
    PyObject *name = name_of_value(value);
    mp_number_learn(rec, name ? PyUnicode_FromFormat("%s(%U)", how, name) : NULL, leaf(value), seen);
    Py_XDECREF(name);
}

bool mp_number_read(mp_recorder *rec, PyObject **object, mp_value_id value, const char *how)
{
    if (!mp_number_tables.functions || !mp_is_number(*object)) return false;
    PyObject *name = name_of_value(value);
    PyObject *text = name && how ? PyUnicode_FromFormat("%s(%U)", how, name) : Py_XNewRef(name);
    Py_XDECREF(name);
    mp_number_add(rec, object, text, leaf(value));
    return true;
}

void mp_number_object(mp_recorder *rec, PyObject *object, mp_value_id value, PyObject *make)
{
    number *entry = add_open(rec, Py_NewRef(object), name_of_value(value), leaf(value));
    if (!entry) return;
    entry->make = Py_NewRef(make);
    entry->value = value;
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
    mp_value_id value = mp_rec_object_input(rec, id);
    uint32_t n = rec->numbers ? rec->numbers->n : 0;
    if (value == MP_NO_VALUE) return NULL;
    mp_number_add(rec, object, name_of_value(value), leaf(value));
    if (rec->why.code || rec->numbers->n == n) return NULL;
    rec->numbers->list[n].value = value;
    return &rec->numbers->list[n];
}

/* *object (owned by who calls) becomes the open number that the scalar of a read is from now on. */
static void open_read(mp_recorder *rec, PyObject **object, uint32_t index)
{
    mp_obj_id id = mp_rec_new_object(rec, *object, MP_ROOT_NONE, index);
    number *entry = id == MP_NO_OBJ ? NULL : add_outside(rec, object, id);
    if (!entry) return;
    mp_read *read = &rec->recording->reads[index];
    entry->read = index;
    read->was = MP_WAS_NUMBER;
    read->obj = id;
    Py_CLEAR(read->value);
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
    if (at->kind == MP_READ_LEN) { /* open where the program calls len() alone: mp_number_length */
        pin_number(rec, read);
        return;
    }
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
    } else if (result && result == read->value && mp_number_fits(result))
        open_read(rec, slot, index);
    Py_DECREF(data);
}

/* data: (the read of the length before the call, how many items the call had appended), of which len() gives the sum. */
static void length_made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    uint32_t index = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(data, 0));
    PyObject *more = PyTuple_GET_ITEM(data, 1);
    mp_read *read = &rec->recording->reads[index];
    if (read->was == MP_WAS_SCALAR) {
        PyObject *own = Py_NewRef(read->value);
        open_read(rec, &own, index);
        Py_DECREF(own);
    }
    number *entry = found_by(rec, index);
    if (!entry || entry->settled || !slot || !*slot || !PyLong_CheckExact(*slot))
        pin_number(rec, index);
    else if (Py_SIZE(more) == 0)
        Py_SETREF(*slot, Py_NewRef(entry->object));
    else {
        PyObject *text = PyUnicode_FromFormat("(%U + %R)", entry->text, more), *leaves = PyDict_Copy(entry->leaves);
        mp_number_add(rec, slot, text, leaves);
    }
    Py_DECREF(data);
}

bool mp_number_length(mp_recorder *rec, const mp_frame *frame, PyObject *list)
{
    Py_ssize_t more = 0;
    bool first = false;
    uint32_t index = mp_rec_length(rec, list, &more, &first);
    if (index == MP_NO_READ || rec->why.code) return false;
    const mp_read *read = &rec->recording->reads[index];
    bool able = read->was == MP_WAS_SCALAR && first && mp_number_tables.functions && mp_rec_op_state(rec) &&
                rec->op_state->accept_checks;
    if (able && more) mp_number_will_change(rec, index);
    bool open = read->was == MP_WAS_NUMBER ||
                (able && rec->changing && is_changing(rec, mp_recording_number_name(rec->recording, index)));
    mp_rec_frame *entry = frame ? mp_rec_frame_of(rec, frame) : NULL;
    PyObject *data = open && entry && !entry->pending ? Py_BuildValue("(In)", index, more) : NULL;
    if (data)
        mp_rec_pend(rec, frame, length_made, data);
    else
        pin_number(rec, index);
    PyErr_Clear();
    return true;
}

void mp_number_met_end(mp_recorder *rec, const mp_frame *frame, int opcode)
{
    int n = rec->n_number_reads;
    rec->n_number_reads = 0;
    bool loads = opcode == LOAD_ATTR || opcode == LOAD_GLOBAL || opcode == LOAD_NAME || opcode == LOAD_DEREF ||
                 opcode == BINARY_SUBSCR || rec->gives_read;
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (n == 1 && loads && entry && !entry->pending && mp_number_tables.functions) {
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
    if (!names || !PySet_GET_SIZE(names) || rec->why.code || !mp_rec_op_state(rec) || !mp_number_tables.functions)
        return args;
    Py_XSETREF(rec->changing, Py_NewRef(names));
    for (uint32_t id = 0; id < rec->recording->n_objects; id++) {
        const mp_object *object = &rec->recording->objects[id];
        bool argument = object->root == MP_ROOT_ARG || object->root == MP_ROOT_KWARG;
        size_t at = object->root_index;
        if (!argument || at >= n_args || !mp_number_fits(args[at])) continue;
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

/* -- Module part --------------------------------------------------------------------------------------------------- */

static PyObject *set_tables(PyObject *module, PyObject *args)
{
    PyObject *functions, *carriers, *steps, *operators, *evaluate, *compute, *check_step, *sized;
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOO", &PyDict_Type, &functions, &PyDict_Type, &carriers, &PyDict_Type, &steps,
                          &PyDict_Type, &operators, &evaluate, &compute, &check_step, &sized))
        return NULL;
    Py_XSETREF(mp_number_tables.steps, Py_NewRef(steps));
    Py_XSETREF(mp_number_tables.functions, Py_NewRef(functions));
    Py_XSETREF(mp_number_tables.carriers, Py_NewRef(carriers));
    Py_XSETREF(mp_number_tables.operators, Py_NewRef(operators));
    Py_XSETREF(mp_number_tables.evaluate, Py_NewRef(evaluate));
    Py_XSETREF(mp_number_tables.compute, Py_NewRef(compute));
    Py_XSETREF(mp_number_tables.check, Py_NewRef(check_step));
    Py_XSETREF(mp_number_tables.sized, Py_NewRef(sized));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_number_tables", set_tables, METH_VARARGS,
     "_number_tables(functions, carriers, steps, operators, evaluate, compute, check, sized): what magpy.symbols "
     "knows."},
    {NULL},
};

int mp_numbers_module_init(PyObject *module) { return PyModule_AddFunctions(module, methods); }
