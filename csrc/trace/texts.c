/* Text of numbers that are data: which formatting stays open, and how a run repeats it. See texts.h. */
#include "trace/texts.h"

#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <opcode.h>

enum { FORMAT, REPR, JOIN, PERCENT, BRACES };

#define TOP(i) (frame->stack[frame->depth - (i)])

/* -- Making --------------------------------------------------------------------------------------------------------- */

static PyObject *join(PyObject *const *operands, Py_ssize_t n)
{
    PyObject *nothing = PyUnicode_New(0, 0), *parts = nothing ? PyTuple_New(n) : NULL;
    for (Py_ssize_t i = 0; parts && i < n; i++) PyTuple_SET_ITEM(parts, i, Py_NewRef(operands[i]));
    PyObject *text = parts ? PyUnicode_Join(nothing, parts) : NULL;
    Py_XDECREF(nothing);
    Py_XDECREF(parts);
    return text;
}

PyObject *mp_text_make(int how, PyObject *const *operands, Py_ssize_t n)
{
    switch (how) {
    case FORMAT: return PyObject_Format(operands[0], operands[1]);
    case REPR: return PyObject_Repr(operands[0]);
    case JOIN: return join(operands, n);
    case PERCENT: return PyUnicode_Format(operands[0], operands[1]);
    case MP_TEXT_CALL: return PyObject_Vectorcall(operands[0], operands + 1, (size_t)n - 1, NULL);
    default: {
        PyObject *format = PyObject_GetAttrString((PyObject *)&PyUnicode_Type, "format"); /* of a type that is fixed */
        PyObject *text = format ? PyObject_Vectorcall(format, operands, (size_t)n, NULL) : NULL;
        Py_XDECREF(format);
        return text;
    }
    }
}

PyObject *mp_text_function(PyObject *how)
{
    static PyObject *functions; /* owned by the process: magpy.steps.TEXTS, in the order of the kinds */
    if (!functions) {
        functions = mp_import("magpy.steps", "TEXTS");
        PyErr_Clear();
    }
    long kind = PyLong_AsLong(how);
    return functions && kind < PyTuple_GET_SIZE(functions) ? PyTuple_GET_ITEM(functions, kind) : NULL;
}

/* Small texts are one object for the whole process: an equal one that nothing else has. Owned, or NULL with an exception. */
static PyObject *fresh(PyObject *text)
{
    PyObject *copy = PyUnicode_New(1, PyUnicode_MAX_CHAR_VALUE(text));
    if (copy) PyUnicode_WRITE(PyUnicode_KIND(copy), PyUnicode_DATA(copy), 0, PyUnicode_READ_CHAR(text, 0));
    return copy;
}

/* data: the template, which nothing else has yet. */
static void made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *text = slot ? *slot : NULL;
    bool good = text && PyUnicode_CheckExact(text) && !mp_number_is(rec, text);
    bool copied = good && PyUnicode_GET_LENGTH(text) == 1 && Py_REFCNT(text) > 1;
    PyObject *own = copied ? fresh(text) : NULL;
    if (own) {
        Py_SETREF(*slot, own);
        text = own;
    }
    PyErr_Clear();
    if (good && PyUnicode_GET_LENGTH(text) && Py_REFCNT(text) == 1)
        mp_text_open(rec, text, data, copied);
    else if (!text || !mp_number_is(rec, text)) /* else it is an operand itself, of whatever value */
        mp_number_settle_inside(rec, data);
    Py_DECREF(data);
}

/* (how, operands...): owned, or NULL after abandoning. */
static PyObject *template_of(mp_recorder *rec, int how, PyObject *const *operands, Py_ssize_t n)
{
    PyObject *template = PyTuple_New(n + 1), *number = PyLong_FromLong(how);
    if (!template || !number) {
        Py_XDECREF(template);
        Py_XDECREF(number);
        mp_number_no_memory(rec);
        return NULL;
    }
    PyTuple_SET_ITEM(template, 0, number);
    for (Py_ssize_t i = 0; i < n; i++) PyTuple_SET_ITEM(template, i + 1, Py_NewRef(operands[i]));
    return template;
}

/* The instruction or call now about to run formats like this. */
static void makes(mp_recorder *rec, const mp_frame *frame, int how, PyObject *const *operands, Py_ssize_t n)
{
    PyObject *template = template_of(rec, how, operands, n);
    if (template) mp_rec_pend_told(rec, frame, made, template); /* what raises tells of the operands, too */
}

/* -- What may stay open --------------------------------------------------------------------------------------------- */

bool mp_text_is_plain(PyObject *object)
{ return mp_is_number(object) || PyUnicode_CheckExact(object) || PyBool_Check(object) || object == Py_None; }

/* Are they all of types whose text is their own, with something open among them? Ints become values of the graph, of 64 bits, also where
** nothing uses the text: larger ones may have none. */
static bool are_open(mp_recorder *rec, PyObject *const *items, Py_ssize_t n)
{
    bool open = false;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!mp_text_is_plain(items[i])) return false;
        open = open || mp_number_is(rec, items[i]);
    }
    for (Py_ssize_t i = 0; open && i < n; i++)
        if (PyLong_CheckExact(items[i]) && !mp_number_is_drawn(rec, items[i]) && !mp_number_is_late(rec, items[i]))
            mp_number_value(rec, items[i]);
    return open && !rec->why.code;
}

static bool is_constant_text(mp_recorder *rec, PyObject *object)
{ return PyUnicode_CheckExact(object) && !mp_number_is(rec, object); }

static bool is_steady_spec(mp_recorder *rec, PyObject *spec)
{
    Py_ssize_t n;
    const char *text = is_constant_text(rec, spec) ? PyUnicode_AsUTF8AndSize(spec, &n) : NULL;
    PyErr_Clear();
    return text && mp_text_is_steady(text, (size_t)n);
}

/* "%5.2f %d": one conversion for each item, which can take all values of its type. */
static bool fits_percent(mp_recorder *rec, PyObject *template, PyObject *const *items, Py_ssize_t n)
{
    const char *at = PyUnicode_AsUTF8(template);
    Py_ssize_t used = 0;
    PyErr_Clear();
    while (at && (at = strchr(at, '%'))) {
        if (at[1] == '%') {
            at += 2;
            continue;
        }
        at += 1 + strspn(at + 1, "-+ #0");
        at += strspn(at, "0123456789");
        if (*at == '.') at += 1 + strspn(at + 1, "0123456789");
        if (used == n || !*at) return false;
        PyObject *item = items[used++];
        const char *types = mp_is_tensor(item)           ? "diueEfFgG" /* which ask it for a number */
                            : PyFloat_CheckExact(item)   ? "eEfFgGsra" /* not "d": some floats are no ints */
                            : PyUnicode_CheckExact(item) ? "sra"
                                                         : "diuoxXeEfFgGsra";
        bool data = mp_number_is(rec, item) || mp_is_tensor(item);
        if (!strchr(data ? types : "diuoxXeEfFgGsra", *at)) return false;
        at++;
    }
    return used == n && PyUnicode_AsUTF8(template);
}

void mp_text_format(mp_recorder *rec, PyObject *number, PyObject *spec, PyObject **text)
{
    PyObject *how = PyLong_FromLong(FORMAT), *template = NULL;
    if (how && is_steady_spec(rec, spec) && are_open(rec, &number, 1)) template = PyTuple_Pack(3, how, number, spec);
    PyErr_Clear(); /* then it is settled */
    Py_XDECREF(how);
    if (template)
        made(rec, template, text);
    else
        mp_number_settle(rec, number);
}

/* -- Text of tensors -------------------------------------------------------------------------------------------------- */

/* `object` with the numbers that were read in the place of tensors, also in a tuple. Owned; NULL without an exception: one was not read as a
** number. */
static PyObject *with_numbers(PyObject *object, PyObject *read)
{
    for (Py_ssize_t i = 0; mp_is_tensor(object) && i < PyList_GET_SIZE(read); i += 2)
        if (PyList_GET_ITEM(read, i) == object) return Py_NewRef(PyList_GET_ITEM(read, i + 1));
    if (mp_is_tensor(object)) return NULL;
    if (!PyTuple_CheckExact(object)) return Py_NewRef(object);
    PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(object));
    for (Py_ssize_t i = 0; copy && i < PyTuple_GET_SIZE(object); i++) {
        PyObject *item = with_numbers(PyTuple_GET_ITEM(object, i), read);
        if (item)
            PyTuple_SET_ITEM(copy, i, item);
        else
            Py_CLEAR(copy);
    }
    PyErr_Clear();
    return copy;
}

/* data: (template with tensors, list of tensors each followed by the number that was read from it). */
static void made_of_tensors(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *read = PyTuple_GET_ITEM(data, 1), *template = with_numbers(PyTuple_GET_ITEM(data, 0), read);
    PyObject *last = template ? PyTuple_GET_ITEM(template, PyTuple_GET_SIZE(template) - 1) : NULL;
    bool several = last && PyTuple_CheckExact(last), open = false;
    PyObject *items = several ? last : template;
    if (template)
        open = are_open(rec, ((PyTupleObject *)items)->ob_item + !several, PyTuple_GET_SIZE(items) - !several);
    if (open)
        made(rec, Py_NewRef(template), slot);
    else
        mp_number_settle_inside(rec, data);
    Py_XDECREF(template);
    Py_DECREF(data);
}

/* Likewise, where tensors among the operands are asked for their numbers while the instruction or call runs. */
static void makes_of_tensors(mp_recorder *rec, const mp_frame *frame, int how, PyObject *const *operands, Py_ssize_t n)
{
    PyObject *template = template_of(rec, how, operands, n), *read = PyList_New(0);
    PyObject *data = template && read ? PyTuple_Pack(2, template, read) : NULL;
    Py_XDECREF(template);
    Py_XDECREF(read);
    if (data)
        mp_rec_pend_told(rec, frame, made_of_tensors, data);
    else
        mp_number_no_memory(rec);
}

bool mp_text_reads(const mp_rec_frame *entry) { return entry->pending == made_of_tensors; }

void mp_text_read(mp_recorder *rec, mp_rec_frame *entry, PyObject *tensor, PyObject *number)
{
    PyObject *read = PyTuple_GET_ITEM(entry->pending_data, 1);
    if (PyList_Append(read, tensor) < 0 || PyList_Append(read, number) < 0) mp_number_no_memory(rec);
}

/* Are tensors among them, and else only what text can stay open with? */
static bool are_tensors(PyObject *const *items, Py_ssize_t n)
{
    bool any = false;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!mp_text_is_plain(items[i]) && !mp_is_exact_tensor(items[i])) return false;
        any = any || mp_is_tensor(items[i]);
    }
    return any && mp_numbers_ready();
}

/* -- Instructions ----------------------------------------------------------------------------------------------------- */

/* str(container) is about to run. False: there is nothing open in it, or what has text of its own. */
static bool contained(mp_recorder *rec, const mp_frame *frame, PyObject *container)
{
    PyObject *args = mp_text_of_container(rec, container);
    bool good = args && are_open(rec, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args));
    if (good) makes(rec, frame, BRACES, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args));
    Py_XDECREF(args);
    return good;
}

static bool formats(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    enum { SPEC = 4, CONVERSION = 3, STR = 1, ASCII = 3 };
    PyObject *value = oparg & SPEC ? TOP(2) : TOP(1), *spec = oparg & SPEC ? TOP(1) : NULL;
    int conversion = oparg & CONVERSION;
    bool text = PyUnicode_CheckExact(value);
    if (!spec && conversion < ASCII && contained(rec, frame, value)) return true;
    if (!mp_number_is(rec, value) || (spec && !is_steady_spec(rec, spec))) return false;
    if (text && !spec && conversion <= STR) return true; /* the text itself */
    if (text ? conversion == ASCII || (conversion > STR && spec) : conversion && spec) return false;
    if (!are_open(rec, &value, 1)) return false;
    PyObject *nothing = spec ? NULL : PyUnicode_New(0, 0), *operands[] = {value, spec ? spec : nothing};
    if (conversion && !spec)
        makes(rec, frame, REPR, operands, 1); /* of numbers, str is repr */
    else
        makes(rec, frame, FORMAT, operands, 2);
    Py_XDECREF(nothing);
    return true;
}

bool mp_text_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    switch (opcode) {
    case FORMAT_VALUE:
        if (formats(rec, frame, oparg)) return true;
        if (oparg & 4) mp_number_settle(rec, TOP(1));
        return false;
    case BUILD_STRING:
        if (are_open(rec, &TOP(oparg), oparg))
            makes(rec, frame, JOIN, &TOP(oparg), oparg);
        else
            for (int i = 1; i <= oparg; i++) mp_number_settle(rec, TOP(i));
        return true;
    case GET_ITER:
    case GET_YIELD_FROM_ITER:
    case UNPACK_SEQUENCE:
    case UNPACK_EX:
    case LIST_EXTEND: mp_number_settle(rec, TOP(1)); return true;
    case BINARY_SUBSCR:
        if (!mp_is_number(TOP(2))) mp_number_settle(rec, TOP(2));
        return false;
    case CALL_FUNCTION_EX: { /* f(*text) */
        PyObject *args = TOP(oparg & 1 ? 2 : 1);
        mp_number_settle(rec, args);
        return true;
    }
    default: return false;
    }
}

/* Are its keys of a type without code of the program's? */
static bool are_exact_texts(PyObject *dict)
{
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);)
        if (!PyUnicode_CheckExact(key)) return false;
    return true;
}

/* template % items. False: it does not stay open. */
static bool percent(mp_recorder *rec, const mp_frame *frame, PyObject *const *operands, bool of_tensors)
{
    PyObject *named[2];
    if (mp_number_is(rec, operands[0])) return false;
    if (PyDict_CheckExact(operands[1])) {
        if (!are_exact_texts(operands[1]) || !mp_text_named(operands[0], operands[1], named)) return false;
        bool done = percent(rec, frame, named, of_tensors);
        Py_DECREF(named[0]);
        Py_DECREF(named[1]);
        return done;
    }
    bool several = PyTuple_CheckExact(operands[1]);
    PyObject *const *items = several ? ((PyTupleObject *)operands[1])->ob_item : &operands[1];
    Py_ssize_t n = several ? PyTuple_GET_SIZE(operands[1]) : 1;
    if (are_tensors(items, n) != of_tensors || !fits_percent(rec, operands[0], items, n)) return false;
    if (!of_tensors && !are_open(rec, items, n)) return false;
    (of_tensors ? makes_of_tensors : makes)(rec, frame, PERCENT, operands, 2);
    return true;
}

bool mp_text_binary(mp_recorder *rec, const mp_frame *frame, int op, PyObject *const *operands)
{
    if (!PyUnicode_CheckExact(operands[0])) return false;
    if (op == NB_ADD && PyUnicode_CheckExact(operands[1])) {
        if (are_open(rec, operands, 2)) makes(rec, frame, JOIN, operands, 2);
        return true;
    }
    return op == NB_REMAINDER && (percent(rec, frame, operands, false) || percent(rec, frame, operands, true));
}

void mp_text_percent(mp_recorder *rec, const mp_frame *frame, PyObject *const *operands)
{
    if (PyUnicode_CheckExact(operands[0])) percent(rec, frame, operands, true);
}

/* -- Calls ------------------------------------------------------------------------------------------------------------ */

/* A C callable that carries objects on may look into strings: the arguments before this one do not only move. -1: all only move, also those
** with names. */
static Py_ssize_t looked_into(const mp_call *call)
{
    static const char *const none[] = {"append", "appendleft", "isinstance", "__instancecheck__", "callable",
                                       "type",   "dict",       "update",     "setdefault"};
    static const char *const last[] = {"setattr", "__setattr__"};
    PyObject *name = PyObject_GetAttrString(call->callable, "__name__"); /* by C code */
    const char *text = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    Py_ssize_t n = call->nargs;
    for (size_t i = 0; text && i < sizeof none / sizeof *none; i++)
        if (!strcmp(text, none[i])) n = -1;
    for (size_t i = 0; text && n > 0 && i < sizeof last / sizeof *last; i++)
        if (!strcmp(text, last[i])) n--;
    Py_XDECREF(name);
    PyErr_Clear();
    return n;
}

static bool is_looked_into(mp_recorder *rec, PyObject *object)
{
    bool open = mp_number_is_drawn(rec, object) || mp_text_template(rec, object);
    return PyUnicode_Check(object) || (open && !mp_is_number(object));
}

/* Is it str.format, bound to a template or as it stands in str? The template is the first argument. */
static bool is_format(const mp_call *call)
{
    PyObject *descr = PyDict_GetItemString(PyUnicode_Type.tp_dict, "format"), *callable = call->callable;
    if (!descr || !call->nargs || !PyUnicode_CheckExact(call->args[0])) return false;
    PyMethodDef *method = ((PyMethodDescrObject *)descr)->d_method;
    return callable == descr || (PyCFunction_Check(callable) && ((PyCFunctionObject *)callable)->m_ml == method &&
                                 PyCFunction_GET_SELF(callable) == call->args[0]);
}

/* Is it this function of the builtins? */
static bool is_builtin(const mp_call *call, const char *name)
{
    PyMethodDef *method = PyCFunction_Check(call->callable) ? ((PyCFunctionObject *)call->callable)->m_ml : NULL;
    PyObject *self = method ? PyCFunction_GET_SELF(call->callable) : NULL;
    return self && PyModule_Check(self) && !strcmp(method->ml_name, name) &&
           !strcmp(PyModule_GetName(self), "builtins");
}

bool mp_text_call(mp_call *call, PyObject *looks)
{
    mp_recorder *rec = call->rec;
    if (looks) {
        Py_ssize_t n = looked_into(call);
        for (Py_ssize_t i = 0; i < n; i++)
            if (is_looked_into(rec, call->args[i])) mp_number_settle(rec, call->args[i]);
        for (Py_ssize_t i = 0; n >= 0 && i < call->nkw; i++)
            if (is_looked_into(rec, call->kwvalues[i])) mp_number_settle(rec, call->kwvalues[i]);
        return false;
    }
    if (call->nkw || call->nargs != 1 || !call->frame || !mp_is_number(call->args[0])) return false;
    if (call->callable != (PyObject *)&PyUnicode_Type && !is_builtin(call, "repr")) return false;
    if (!are_open(rec, call->args, 1)) return false;
    makes(rec, call->frame, REPR, call->args, 1); /* of numbers, str is repr */
    return true;
}

/* template.format(...) */
static bool braces(mp_call *call)
{
    enum { MOST = 64 };
    bool no_conversion[MOST] = {false}, of_tensors = false;
    PyObject *operands[MOST];
    Py_ssize_t n = 0;
    if (call->nargs + call->nkw > MOST || !is_constant_text(call->rec, call->args[0])) return false;
    for (Py_ssize_t i = 1; i < call->nargs; i++) operands[++n] = call->args[i];
    for (Py_ssize_t i = 0; i < call->nkw; i++) operands[++n] = call->kwvalues[i];
    for (Py_ssize_t i = 0; i < n; i++) no_conversion[i] = mp_is_tensor(operands[i + 1]);
    of_tensors = are_tensors(operands + 1, n);
    if (!of_tensors && !are_open(call->rec, operands + 1, n)) return false;
    operands[0] = mp_text_numbered(call->args[0], call->nargs - 1, call->kwnames, no_conversion);
    if (!operands[0]) return false;
    (of_tensors ? makes_of_tensors : makes)(call->rec, call->frame, BRACES, operands, n + 1);
    Py_DECREF(operands[0]);
    return true;
}

bool mp_text_shown(mp_call *call)
{
    mp_recorder *rec = call->rec;
    if (!call->nargs || !call->frame) return false;
    if (is_format(call)) return braces(call);
    if (call->nkw) return false;
    if (call->nargs == 1 && (call->callable == (PyObject *)&PyUnicode_Type || is_builtin(call, "repr")))
        return contained(rec, call->frame, call->args[0]);
    if (call->nargs > 2 || !is_builtin(call, "format")) return false;
    PyObject *nothing = PyUnicode_New(0, 0), *operands[] = {call->args[0], call->nargs == 2 ? call->args[1] : nothing};
    bool of_tensors = are_tensors(operands, 1), good = nothing && is_steady_spec(rec, operands[1]);
    good = good && (of_tensors || (mp_is_number(operands[0]) && are_open(rec, operands, 1)));
    if (good) (of_tensors ? makes_of_tensors : makes)(rec, call->frame, FORMAT, operands, 2);
    Py_XDECREF(nothing);
    return good;
}
