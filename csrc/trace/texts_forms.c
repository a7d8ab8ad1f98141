/* Templates of text in the one form that texts.c keeps: fields by their positions, containers taken apart. See texts.h. */
#include "trace/numbers.h"
#include "trace/texts.h"

enum { DEEPEST = 8, MOST_OPERANDS = 256 };

bool mp_text_is_steady(const char *spec, size_t n) { return !n || (spec[n - 1] != 'c' && spec[n - 1] != 'n'); }

/* -- Fields ----------------------------------------------------------------------------------------------------------- */

static void add_text(PyObject **out, const char *text, size_t n)
{ PyUnicode_AppendAndDel(out, PyUnicode_DecodeUTF8(text, (Py_ssize_t)n, NULL)); }

/* The position that a field's name means, or -1. *next: what fields without a name have come to; -1 once there were numbers. */
static Py_ssize_t position_of(const char *name, size_t n, Py_ssize_t *next, Py_ssize_t n_args, PyObject *kwnames)
{
    enum { DIGITS = 4 };
    Py_ssize_t at = 0;
    if (!n) return *next < 0 || *next >= n_args ? -1 : (*next)++;
    if (strspn(name, "0123456789") >= n) {
        if (*next > 0 || n > DIGITS) return -1;
        *next = -1;
        for (size_t i = 0; i < n; i++) at = at * 10 + (name[i] - '0');
        return at < n_args ? at : -1;
    }
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        Py_ssize_t length;
        const char *text = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(kwnames, i), &length);
        if (text && (size_t)length == n && !memcmp(text, name, n)) return n_args + i;
    }
    return -1;
}

/* "{} {a:.3f} {!r:>8}": no attributes, items or formats that are arguments. */
PyObject *mp_text_numbered(PyObject *template, Py_ssize_t n_args, PyObject *kwnames, const bool *no_conversion)
{
    Py_ssize_t size, next = 0;
    const char *at = PyUnicode_AsUTF8AndSize(template, &size);
    PyObject *out = at && strlen(at) == (size_t)size ? PyUnicode_New(0, 0) : NULL;
    while (out && *at) {
        size_t plain = strcspn(at, "{}");
        add_text(&out, at, plain);
        at += plain;
        if (!*at || !out) break;
        if (at[0] == at[1]) {
            add_text(&out, at, 2);
            at += 2;
            continue;
        }
        size_t name = strcspn(at + 1, "!:{}"), rest;
        Py_ssize_t position = *at == '{' ? position_of(at + 1, name, &next, n_args, kwnames) : -1;
        at += 1 + name;
        rest = *at == '!' ? at[1] ? 2 : 1 : 0;
        if (position >= 0 && rest && no_conversion[position]) position = -1;
        if (at[rest] == ':') {
            size_t spec = strcspn(at + rest + 1, "{}");
            if (!mp_text_is_steady(at + rest + 1, spec)) position = -1;
            rest += 1 + spec;
        }
        if (position < 0 || at[rest] != '}') {
            Py_CLEAR(out);
            break;
        }
        PyUnicode_AppendAndDel(&out, PyUnicode_FromFormat("{%zd", position));
        if (out) add_text(&out, at, rest + 1);
        at += rest + 1;
    }
    PyErr_Clear();
    return out;
}

/* "%(name).3f %(step)d": all of its conversions have names. */
bool mp_text_named(PyObject *template, PyObject *dict, PyObject **operands)
{
    const char *at = PyUnicode_AsUTF8(template), *end;
    PyObject *out = at ? PyUnicode_New(0, 0) : NULL, *items = PyList_New(0);
    bool good = out && items;
    while (good && (end = strchr(at, '%'))) {
        bool percent = end[1] == '%';
        add_text(&out, at, (size_t)(end - at) + 1 + percent);
        at = end + 1 + percent;
        if (percent) continue;
        size_t name = *at == '(' ? strcspn(at + 1, "()") : 0;
        PyObject *key = name && at[1 + name] == ')' ? PyUnicode_DecodeUTF8(at + 1, (Py_ssize_t)name, NULL) : NULL;
        PyObject *value = key ? PyDict_GetItemWithError(dict, key) : NULL; /* of exact types */
        good = value && PyList_Append(items, value) == 0;
        Py_XDECREF(key);
        at += name + 2;
    }
    if (good) add_text(&out, at, strlen(at));
    operands[0] = good ? out : NULL;
    operands[1] = operands[0] ? PyList_AsTuple(items) : NULL;
    if (!good || !operands[1]) Py_XDECREF(out);
    Py_XDECREF(items);
    PyErr_Clear();
    return operands[1];
}

/* -- Containers ------------------------------------------------------------------------------------------------------- */

static void add_constant(PyObject **out, PyObject *object)
{
    PyObject *text = PyObject_Repr(object), *brace = PyUnicode_FromString("{"), *both = PyUnicode_FromString("{{");
    PyObject *half = text && brace && both ? PyUnicode_Replace(text, brace, both, -1) : NULL;
    Py_XSETREF(brace, PyUnicode_FromString("}"));
    Py_XSETREF(both, PyUnicode_FromString("}}"));
    PyUnicode_AppendAndDel(out, half && brace && both ? PyUnicode_Replace(half, brace, both, -1) : NULL);
    Py_XDECREF(text);
    Py_XDECREF(half);
    Py_XDECREF(brace);
    Py_XDECREF(both);
}

static bool add_object(mp_recorder *rec, PyObject **out, PyObject *object, PyObject *operands, int depth)
{
    PyObject *key, *value;
    Py_ssize_t n = 0, at = 0;
    if (!*out || depth > DEEPEST) return false;
    if (mp_number_is(rec, object)) {
        if (!mp_text_is_plain(object) || PyList_GET_SIZE(operands) >= MOST_OPERANDS ||
            PyList_Append(operands, object) < 0)
            return false;
        PyUnicode_AppendAndDel(out, PyUnicode_FromFormat("{%zd!r}", PyList_GET_SIZE(operands) - 1));
        return *out;
    }
    if (mp_text_is_plain(object)) {
        add_constant(out, object);
        return *out;
    }
    if (PyDict_CheckExact(object)) {
        add_text(out, "{{", 2);
        while (PyDict_Next(object, &at, &key, &value)) {
            if (n++ && *out) add_text(out, ", ", 2);
            if (!mp_text_is_plain(key) || !add_object(rec, out, key, operands, depth + 1)) return false;
            add_text(out, ": ", 2);
            if (!add_object(rec, out, value, operands, depth + 1)) return false;
        }
        add_text(out, "}}", 2);
        return *out;
    }
    bool tuple = PyTuple_CheckExact(object);
    if (!tuple && !PyList_CheckExact(object)) return false;
    add_text(out, tuple ? "(" : "[", 1);
    for (n = PySequence_Fast_GET_SIZE(object); at < n; at++) {
        if (at && *out) add_text(out, ", ", 2);
        if (!add_object(rec, out, PySequence_Fast_GET_ITEM(object, at), operands, depth + 1)) return false;
    }
    add_text(out, tuple ? n == 1 ? ",)" : ")" : "]", tuple && n == 1 ? 2 : 1);
    return *out;
}

PyObject *mp_text_of_container(mp_recorder *rec, PyObject *container)
{
    if (!PyDict_CheckExact(container) && !PyTuple_CheckExact(container) && !PyList_CheckExact(container)) return NULL;
    PyObject *out = PyUnicode_New(0, 0), *operands = PyList_New(0), *args = NULL;
    if (out && operands && add_object(rec, &out, container, operands, 0) && PyList_GET_SIZE(operands) &&
        PyList_Insert(operands, 0, out) == 0)
        args = PyList_AsTuple(operands);
    Py_XDECREF(out);
    Py_XDECREF(operands);
    PyErr_Clear();
    return args;
}
