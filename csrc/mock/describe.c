/* Mock programs as lines for people. */
#include "mock/program.h"

#define MAX_TEXT_DEPTH 6
#define MAX_TEXT_ITEMS 12

typedef struct {
    const mp_mock_program *prog;
    int depth;
} printer;

/* Each function here returns an owned str, or NULL with an exception. */
static PyObject *text_of(printer *p, mp_operand operand);

static const char *const op_names[] = {
#define MP_MOCK_OP(name) #name,
    MP_MOCK_OPS(MP_MOCK_OP)
#undef MP_MOCK_OP
};

static const mp_step *maker_of(const mp_mock_program *prog, uint32_t made)
{
    for (uint32_t i = 0; i < prog->n_steps; i++)
        if (prog->steps[i].out == made) return &prog->steps[i]; /* the first is the one that makes it */
    return NULL;
}

/* A constant. repr only of exact built-in types: it must not run anyone's code. */
static PyObject *text_of_constant(PyObject *value)
{
    if (PyType_Check(value)) return PyUnicode_FromFormat("class %s", ((PyTypeObject *)value)->tp_name);
    if (PyFunction_Check(value)) return PyUnicode_FromFormat("function %U", ((PyFunctionObject *)value)->func_qualname);
    if (value == Py_None || PyLong_CheckExact(value) || PyBool_Check(value) || PyFloat_CheckExact(value) ||
        PyUnicode_CheckExact(value) || PyBytes_CheckExact(value) || PyComplex_CheckExact(value))
        return PyObject_Repr(value);
    return PyUnicode_FromFormat("constant %s", Py_TYPE(value)->tp_name);
}

/* Append the texts of a step's arguments to the list `out`. pairs: "key: value"; names: a tuple, "name=value". */
static int texts_of_arguments(printer *p, const mp_step *step, bool pairs, PyObject *names, PyObject *out)
{
    for (uint32_t i = 0; i < step->n; i += 1 + pairs) {
        if (i / (1 + pairs) >= MAX_TEXT_ITEMS) {
            PyObject *more = PyUnicode_FromString("...");
            int failed = more ? PyList_Append(out, more) : -1;
            Py_XDECREF(more);
            return failed;
        }
        const mp_operand *args = p->prog->args + step->first;
        PyObject *first = text_of(p, args[i]), *whole = NULL;
        if (first && pairs) {
            PyObject *second = text_of(p, args[i + 1]);
            whole = second ? PyUnicode_FromFormat("%U: %U", first, second) : NULL;
            Py_XDECREF(second);
        } else if (first && names)
            whole = PyUnicode_FromFormat("%S=%U", PyTuple_GET_ITEM(names, i), first);
        else if (first)
            whole = Py_NewRef(first);
        int failed = whole ? PyList_Append(out, whole) : -1;
        Py_XDECREF(first);
        Py_XDECREF(whole);
        if (failed) return -1;
    }
    return 0;
}

/* What is in it: the arguments of the step that makes it and of those that fill it. */
static int texts_of_parts(printer *p, uint32_t made, PyObject *out)
{
    for (uint32_t i = 0; i < p->prog->n_steps; i++) {
        const mp_step *step = &p->prog->steps[i];
        if (step->out != made || step->op == MP_MOCK_LIST_NEW) continue;
        bool pairs = step->op == MP_MOCK_DICT || step->op == MP_MOCK_DICT_FILL;
        if (texts_of_arguments(p, step, pairs, step->op == MP_MOCK_ATTRS ? step->data : NULL, out) < 0) return -1;
    }
    return 0;
}

static PyObject *text_of_made(printer *p, uint32_t made)
{
    const mp_step *maker = maker_of(p->prog, made);
    if (p->depth >= MAX_TEXT_DEPTH || !maker) return PyUnicode_FromFormat("#%u", made);
    p->depth++;
    PyObject *parts = PyList_New(0), *comma = PyUnicode_FromString(", "), *joined = NULL, *text = NULL;
    if (parts && comma && texts_of_parts(p, made, parts) == 0) joined = PyUnicode_Join(comma, parts);
    static const struct {
        mp_mock_op op;
        const char *format;
    } formats[] = {
        {MP_MOCK_TUPLE, "(%U)"},        {MP_MOCK_LIST, "[%U]"},
        {MP_MOCK_LIST_NEW, "[%U]"},     {MP_MOCK_DICT, "{%U}"},
        {MP_MOCK_DICT_NEW, "{%U}"},     {MP_MOCK_SET_NEW, "set(%U)"},
        {MP_MOCK_SLICE, "slice(%U)"},   {MP_MOCK_CELL, "cell(%U)"},
        {MP_MOCK_METHOD, "method(%U)"}, {MP_MOCK_FROZENSET, "frozenset(%U)"},
    };
    for (size_t i = 0; joined && !text && i < sizeof formats / sizeof *formats; i++)
        if (formats[i].op == maker->op) text = PyUnicode_FromFormat(formats[i].format, joined);
    if (joined && !text && maker->data && PyType_Check(maker->data))
        text = PyUnicode_FromFormat("%s(%U)", ((PyTypeObject *)maker->data)->tp_name, joined);
    else if (joined && !text && maker->data && PyCode_Check(maker->data))
        text = PyUnicode_FromFormat("function %U", ((PyCodeObject *)maker->data)->co_qualname);
    else if (joined && !text)
        text = PyUnicode_FromFormat("%s(%U)", op_names[maker->op], joined);
    p->depth--;
    Py_XDECREF(parts);
    Py_XDECREF(comma);
    Py_XDECREF(joined);
    return text;
}

static PyObject *text_of(printer *p, mp_operand operand)
{
    uint32_t index = MP_OPERAND_INDEX(operand);
    if (operand == MP_NO_OPERAND) return PyUnicode_FromString("nothing");
    switch (MP_OPERAND_KIND(operand)) {
    case MP_OPERAND_CONST: return text_of_constant(p->prog->consts[index]);
    case MP_OPERAND_OBJECT: return Py_NewRef(p->prog->paths[index]);
    case MP_OPERAND_OUTPUT: return PyUnicode_FromFormat("tensor %u", p->prog->values[index]);
    default: return text_of_made(p, index);
    }
}

PyObject *mp_mock_describe_result(const mp_mock_program *prog)
{
    printer p = {prog, 0};
    PyObject *text = text_of(&p, prog->result), *lines = text ? PyList_New(1) : NULL;
    if (lines)
        PyList_SET_ITEM(lines, 0, text);
    else
        Py_XDECREF(text);
    return lines;
}

static PyObject *text_of_store(const mp_mock_program *prog, const mp_mock_store *store)
{
    printer p = {prog, 0};
    PyObject *owner = text_of(&p, store->owner), *key = text_of(&p, store->key), *value = text_of(&p, store->value),
             *text = NULL;
    bool removed = store->value == MP_NO_OPERAND;
    if (!owner || !key || !value) goto done;
    switch (store->kind) {
    case MP_WRITE_KEY:
    case MP_WRITE_ITEM:
        text = removed ? PyUnicode_FromFormat("del %U[%U]", owner, key)
                       : PyUnicode_FromFormat("%U[%U] = %U", owner, key, value);
        break;
    case MP_WRITE_SLOT:
    case MP_WRITE_ATTR:
    case MP_WRITE_TENSOR_ATTR: {
        PyObject *constant =
            MP_OPERAND_KIND(store->key) == MP_OPERAND_CONST ? prog->consts[MP_OPERAND_INDEX(store->key)] : NULL;
        PyObject *name = constant && PyUnicode_CheckExact(constant)                      ? constant
                         : constant && PyObject_TypeCheck(constant, &PyMemberDescr_Type) ? PyDescr_NAME(constant)
                                                                                         : key;
        text = removed ? PyUnicode_FromFormat("del %U.%U", owner, name)
                       : PyUnicode_FromFormat("%U.%U = %U", owner, name, value);
        break;
    }
    case MP_WRITE_CELL: text = PyUnicode_FromFormat("cell of %U = %U", owner, value); break;
    case MP_WRITE_LIST_APPEND: text = PyUnicode_FromFormat("%U.append(%U)", owner, value); break;
    case MP_WRITE_CONTENTS: text = PyUnicode_FromFormat("%U[:] = %U", owner, value); break;
    case MP_WRITE_CONTEXT_VAR: text = PyUnicode_FromFormat("%U.set(%U)", owner, value); break;
    default: text = PyUnicode_FromFormat("call %U with %U", key, value);
    }
done:
    Py_XDECREF(owner);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return text;
}

PyObject *mp_mock_describe_writes(const mp_mock_program *prog)
{
    PyObject *lines = PyList_New(0);
    for (uint32_t i = 0; lines && i < prog->n_stores; i++) {
        PyObject *text = text_of_store(prog, &prog->stores[i]);
        if (!text || PyList_Append(lines, text) < 0) Py_CLEAR(lines);
        Py_XDECREF(text);
    }
    return lines;
}
