/* Operator graph from its Python description. */
#include "ir/graph.h"
#include "ir/pool.h"

#include <stdlib.h>
#include <string.h>

/* The graph, its memory, and the Python objects it keeps. */
typedef struct {
    mp_graph graph; /* first: an mp_graph* is an owner* */
    mp_pool pool;
    PyObject **kept; /* owned references */
    uint32_t n_kept, cap_kept;
    mp_meta *metas;
    uint32_t *node_of;
    uint32_t cap_metas, cap_node_of;
} owner;

static const char *const placeholder = "placeholder";

/* -- Parts --------------------------------------------------------------------------------------------------------- */

static void keep(owner *own, PyObject *object)
{
    MP_GROW(&own->pool, own->kept, own->n_kept, own->cap_kept);
    Py_INCREF(object);
    own->kept[own->n_kept++] = object;
}

static char *copy_str(owner *own, PyObject *text)
{
    Py_ssize_t n;
    const char *chars = PyUnicode_AsUTF8AndSize(text, &n);
    if (!chars) return NULL;
    char *copy = mp_pool_get(&own->pool, (size_t)n + 1);
    memcpy(copy, chars, (size_t)n);
    return copy;
}

/* ("v", 3), ("dtype", 6), ("obj", x) and their like. Returns 1 if `tuple` is one, 0 if it is a plain list, -1 with an exception. */
static int build_tagged(owner *own, PyObject *tuple, mp_arg *out)
{
    static const struct {
        const char *tag;
        mp_arg_kind kind;
    } tags[] = {
        {"v", MP_ARG_VALUE},       {"dtype", MP_ARG_DTYPE}, {"layout", MP_ARG_LAYOUT},
        {"device", MP_ARG_DEVICE}, {"obj", MP_ARG_OBJECT},  {"memory_format", MP_ARG_MEMORY_FORMAT},
    };
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(tuple, 0))) return 0;
    PyObject *tag = PyTuple_GET_ITEM(tuple, 0), *content = PyTuple_GET_ITEM(tuple, 1);
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        if (PyUnicode_CompareWithASCIIString(tag, tags[i].tag) != 0) continue;
        out->kind = tags[i].kind;
        if (out->kind == MP_ARG_OBJECT) {
            keep(own, content);
            out->object = content;
            return 1;
        }
        long long number = PyLong_AsLongLong(content);
        if (number == -1 && PyErr_Occurred()) return -1;
        if (out->kind == MP_ARG_VALUE) {
            if (number < 0 || number >= own->graph.n_values) {
                PyErr_Format(PyExc_ValueError, "value %lld is used before it is made", number);
                return -1;
            }
            out->value = (mp_val)number;
        } else {
            out->i = number;
        }
        return 1;
    }
    return 0;
}

/* Fill *out from a Python argument. Returns -1 with an exception set. */
static int build_arg(owner *own, PyObject *object, mp_arg *out)
{
    if (object == Py_None) {
        out->kind = MP_ARG_NONE;
    } else if (PyBool_Check(object)) {
        out->kind = MP_ARG_BOOL;
        out->i = object == Py_True;
    } else if (PyLong_Check(object)) {
        out->kind = MP_ARG_INT;
        out->i = PyLong_AsLongLong(object);
        if (out->i == -1 && PyErr_Occurred()) return -1;
    } else if (PyFloat_Check(object)) {
        out->kind = MP_ARG_FLOAT;
        out->f = PyFloat_AS_DOUBLE(object);
    } else if (PyComplex_Check(object)) {
        out->kind = MP_ARG_COMPLEX;
        out->complex_[0] = PyComplex_RealAsDouble(object);
        out->complex_[1] = PyComplex_ImagAsDouble(object);
    } else if (PyUnicode_Check(object)) {
        out->kind = MP_ARG_STR;
        if (!(out->str = copy_str(own, object))) return -1;
    } else if (PyTuple_Check(object) || PyList_Check(object)) {
        int tagged = build_tagged(own, object, out);
        if (tagged) return tagged < 0 ? -1 : 0;
        Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
        mp_arg *items = MP_NEW(&own->pool, mp_arg, n ? n : 1);
        for (Py_ssize_t i = 0; i < n; i++)
            if (build_arg(own, PySequence_Fast_GET_ITEM(object, i), &items[i]) < 0) return -1;
        out->kind = MP_ARG_LIST;
        out->list.n = (uint32_t)n;
        out->list.items = items;
    } else {
        PyErr_Format(PyExc_TypeError, "an argument is a %.80s", Py_TYPE(object)->tp_name);
        return -1;
    }
    return 0;
}

static int build_sizes(owner *own, PyObject *tuple, Py_ssize_t n, const char *what, const int64_t **out)
{
    int64_t *numbers = MP_NEW(&own->pool, int64_t, n ? n : 1);
    for (Py_ssize_t i = 0; i < n; i++) {
        numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
        if (numbers[i] == -1 && PyErr_Occurred()) return -1;
        if (numbers[i] < 0) {
            PyErr_Format(PyExc_ValueError, "a negative %s", what);
            return -1;
        }
    }
    *out = numbers;
    return 0;
}

/* (dtype, device, sizes, strides, offset), or None for a result that does not exist. */
static int build_meta(owner *own, PyObject *tuple, mp_meta *out)
{
    if (tuple == Py_None) {
        *out = (mp_meta){
            .dtype = MP_UNDEFINED, .size = MP_NEW(&own->pool, int64_t, 1), .stride = MP_NEW(&own->pool, int64_t, 1)};
        return 0;
    }
    PyObject *sizes, *strides;
    long long offset;
    int dtype, device;
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "metadata is no tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "iiO!O!L", &dtype, &device, &PyTuple_Type, &sizes, &PyTuple_Type, &strides, &offset))
        return -1;
    Py_ssize_t ndim = PyTuple_GET_SIZE(sizes);
    if (ndim > MP_MAX_DIMS || PyTuple_GET_SIZE(strides) != ndim || offset < 0) {
        PyErr_Format(PyExc_ValueError, "metadata with %zd sizes, %zd strides, offset %lld", ndim,
                     PyTuple_GET_SIZE(strides), offset);
        return -1;
    }
    *out = (mp_meta){.dtype = (int16_t)dtype, .ndim = (int8_t)ndim, .device = (int8_t)device, .offset = offset};
    if (build_sizes(own, sizes, ndim, "size", &out->size) < 0) return -1;
    return build_sizes(own, strides, ndim, "stride", &out->stride);
}

static int build_node(owner *own, PyObject *tuple, mp_gnode *out, uint32_t number)
{
    PyObject *op, *target, *args, *metas, *form = NULL;
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "a node is no tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "UOO!O!|U", &op, &target, &PyTuple_Type, &args, &PyTuple_Type, &metas, &form))
        return -1;
    if (!(out->op = copy_str(own, op))) return -1;
    if (form && !(out->form = copy_str(own, form))) return -1;
    if (target != Py_None) {
        keep(own, target);
        out->target = target;
    }
    out->n_args = (uint32_t)PyTuple_GET_SIZE(args);
    mp_arg *items = MP_NEW(&own->pool, mp_arg, out->n_args ? out->n_args : 1);
    for (uint32_t i = 0; i < out->n_args; i++)
        if (build_arg(own, PyTuple_GET_ITEM(args, i), &items[i]) < 0) return -1;
    out->args = items;
    mp_graph *graph = &own->graph;
    out->first = graph->n_values;
    out->n_values = (uint32_t)PyTuple_GET_SIZE(metas);
    for (uint32_t i = 0; i < out->n_values; i++) {
        MP_GROW(&own->pool, own->metas, graph->n_values, own->cap_metas);
        MP_GROW(&own->pool, own->node_of, graph->n_values, own->cap_node_of);
        if (build_meta(own, PyTuple_GET_ITEM(metas, i), &own->metas[graph->n_values]) < 0) return -1;
        own->node_of[graph->n_values++] = number;
    }
    if (strcmp(out->op, placeholder) == 0) {
        if (number != graph->n_inputs || out->n_values != 1) {
            PyErr_SetString(PyExc_ValueError, "placeholders come first and have one value");
            return -1;
        }
        graph->n_inputs++;
    } else if (!out->target) {
        PyErr_SetString(PyExc_ValueError, "an operator without target");
        return -1;
    }
    return 0;
}

/* Say which node the pending exception is about. */
static void name_node(PyObject *tuple, uint32_t number)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *op = PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) ? PyTuple_GET_ITEM(tuple, 0) : Py_None;
    PyObject *what = value ? value : Py_None;
    bool ours = type == PyExc_TypeError || type == PyExc_ValueError || type == PyExc_OverflowError;
    if (ours)
        PyErr_Format(type == PyExc_TypeError ? PyExc_TypeError : PyExc_ValueError, "node %u (%S): %S", number, op,
                     what);
    else
        PyErr_Restore(Py_XNewRef(type), Py_XNewRef(value), Py_XNewRef(trace));
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

static int build_all(owner *own, PyObject *nodes, PyObject *outputs)
{
    mp_graph *graph = &own->graph;
    graph->n_nodes = (uint32_t)PyTuple_GET_SIZE(nodes);
    mp_gnode *items = MP_NEW(&own->pool, mp_gnode, graph->n_nodes ? graph->n_nodes : 1);
    graph->nodes = items;
    for (uint32_t i = 0; i < graph->n_nodes; i++) {
        PyObject *tuple = PyTuple_GET_ITEM(nodes, i);
        if (build_node(own, tuple, &items[i], i) < 0) {
            name_node(tuple, i);
            return -1;
        }
    }
    graph->metas = own->metas;
    graph->node_of = own->node_of;
    graph->n_outputs = (uint32_t)PyTuple_GET_SIZE(outputs);
    mp_val *values = MP_NEW(&own->pool, mp_val, graph->n_outputs ? graph->n_outputs : 1);
    graph->outputs = values;
    for (uint32_t i = 0; i < graph->n_outputs; i++) {
        long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(outputs, i));
        if (value == -1 && PyErr_Occurred()) return -1;
        if (value < -1 || value >= graph->n_values) {
            PyErr_Format(PyExc_ValueError, "output %u is value %lld of %u", i, value, graph->n_values);
            return -1;
        }
        values[i] = value < 0 ? MP_NO_VAL : (mp_val)value;
    }
    return 0;
}

/* -- The door ------------------------------------------------------------------------------------------------------ */

mp_graph *mp_ir_graph_build(PyObject *nodes, PyObject *outputs)
{
    if (!PyTuple_Check(nodes) || !PyTuple_Check(outputs)) {
        PyErr_SetString(PyExc_TypeError, "a graph is described by two tuples");
        return NULL;
    }
    owner *own = calloc(1, sizeof *own);
    if (!own) return (mp_graph *)PyErr_NoMemory();
    jmp_buf escape;
    own->pool.escape = &escape;
    volatile bool built = false;
    if (setjmp(escape) == 0)
        built = build_all(own, nodes, outputs) == 0;
    else
        PyErr_NoMemory();
    own->pool.escape = NULL; /* a finished graph allocates no more */
    if (built) return &own->graph;
    mp_ir_graph_free(&own->graph);
    return NULL;
}

void mp_ir_graph_free(mp_graph *graph)
{
    if (!graph) return;
    owner *own = (owner *)graph;
    for (uint32_t i = 0; i < own->n_kept; i++) Py_DECREF(own->kept[i]);
    mp_pool_free(&own->pool);
    free(own);
}
