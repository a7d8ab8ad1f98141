/* _C._schedule: graphs, schedules and sources for tests and for people. */
#include "fuse/schedule.h"

#include <stdlib.h>

static PyObject *str_or_none(const char *text) { return text ? PyUnicode_FromString(text) : Py_NewRef(Py_None); }

/* Append `item` (stolen, may be NULL) to `list`. */
static int append(PyObject *list, PyObject *item)
{
    int failed = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return failed;
}

static PyObject *describe_kernel(const mp_schedule *schedule, uint32_t number)
{
    const mp_kernel *kernel = &schedule->kernels[number];
    PyObject *values = PyList_New(0), *written = PyList_New(0), *ops = PyList_New(0), *result = NULL;
    if (!values || !written || !ops) goto done;
    for (uint32_t i = 0; i < kernel->n_buffers; i++) {
        if (append(values, PyLong_FromUnsignedLong(kernel->values[i])) < 0) goto done;
        if (append(written, PyBool_FromLong(kernel->written[i])) < 0) goto done;
    }
    for (uint32_t i = 0; kernel->ops[i]; i++)
        if (append(ops, PyUnicode_FromString(kernel->ops[i])) < 0) goto done;
    char *ir = mp_fuse_dump(schedule, number);
    result = Py_BuildValue("{s:s,s:O,s:O,s:O,s:L,s:L,s:O,s:N,s:L,s:i,s:s}", "name", kernel->name, "values", values,
                           "written", written, "checks", kernel->checks ? Py_True : Py_False, "extent",
                           (long long)kernel->extent, "grain", (long long)kernel->grain, "ops", ops, "cuda_source",
                           str_or_none(kernel->cuda_source), "cuda_grid", (long long)kernel->cuda_grid, "cuda_block",
                           kernel->cuda_block, "ir", ir ? ir : "");
    free(ir);
done:
    Py_XDECREF(values);
    Py_XDECREF(written);
    Py_XDECREF(ops);
    return result;
}

static PyObject *tuple_of(const int64_t *numbers, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) {
        PyObject *number = PyLong_FromLongLong(numbers[i]);
        if (!number)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, number);
    }
    return tuple;
}

static PyObject *describe_place(const mp_place *place)
{
    static const char *const homes[] = {"none", "input", "output", "arena", "extern", "view"};
    const mp_meta *meta = &place->meta;
    return Py_BuildValue("{s:s,s:I,s:I,s:L,s:(iiNNL)}", "home", homes[place->home], "index", place->index, "base",
                         place->base, "arena_offset", (long long)place->arena_offset, "meta", (int)meta->dtype,
                         (int)meta->device, tuple_of(meta->size, meta->ndim), tuple_of(meta->stride, meta->ndim),
                         (long long)meta->offset);
}

static PyObject *describe_schedule(const mp_schedule *schedule)
{
    static const char *const kinds[] = {[MP_STEP_KERNEL] = "kernel",
                                        [MP_STEP_OP] = "op",
                                        [MP_STEP_CHAIN] = "chain",
                                        [MP_STEP_VIEW] = "view",
                                        [MP_STEP_RELEASE] = "release"};
    PyObject *kernels = PyList_New(0), *steps = PyList_New(0), *places = PyList_New(0), *result = NULL;
    if (!kernels || !steps || !places) goto done;
    for (uint32_t i = 0; i < schedule->n_kernels; i++)
        if (append(kernels, describe_kernel(schedule, i)) < 0) goto done;
    for (uint32_t i = 0; i < schedule->n_steps; i++)
        if (append(steps, Py_BuildValue("(sI)", kinds[schedule->steps[i].kind], schedule->steps[i].index)) < 0)
            goto done;
    for (uint32_t i = 0; i < schedule->graph->n_values; i++)
        if (append(places, describe_place(&schedule->places[i])) < 0) goto done;
    result = Py_BuildValue("{s:s,s:O,s:O,s:O,s:L}", "source", schedule->source, "kernels", kernels, "steps", steps,
                           "places", places, "arena_bytes", (long long)schedule->arena_bytes);
done:
    Py_XDECREF(kernels);
    Py_XDECREF(steps);
    Py_XDECREF(places);
    return result;
}

PyDoc_STRVAR(schedule_doc,
             "_schedule(nodes, outputs, fuse=True, vector_bits=512) -> dict\n\n"
             "The schedule of a graph that is described as graph.h says: source, kernels, steps, places, arena_bytes.\n"
             "Raises TypeError or ValueError for a bad description, RuntimeError if there is no schedule.");

static PyObject *py_schedule(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"nodes", "outputs", "fuse", "vector_bits", NULL};
    PyObject *nodes, *outputs;
    int fuse = 1;
    mp_fuse_options options = {.vector_bits = 512};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|pi", names, &PyTuple_Type, &nodes, &PyTuple_Type, &outputs,
                                     &fuse, &options.vector_bits))
        return NULL;
    options.fuse = fuse;
    mp_graph *graph = mp_ir_graph_build(nodes, outputs);
    if (!graph) return NULL;
    mp_reason why = {0};
    mp_schedule *schedule = mp_fuse_schedule(graph, &options, &why);
    PyObject *result = NULL;
    if (schedule) {
        result = describe_schedule(schedule);
    } else {
        PyObject *text = mp_reason_describe(&why);
        if (text) PyErr_SetObject(PyExc_RuntimeError, text);
        Py_XDECREF(text);
    }
    mp_fuse_free(schedule);
    mp_ir_graph_free(graph);
    return result;
}

static PyMethodDef methods[] = {
    {"_schedule", (PyCFunction)(void (*)(void))py_schedule, METH_VARARGS | METH_KEYWORDS, schedule_doc},
    {NULL},
};

int mp_ir_module_init(PyObject *module) { return PyModule_AddFunctions(module, methods); }
