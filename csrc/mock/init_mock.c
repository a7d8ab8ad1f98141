/* Debug surface of mocks: _C._mock compiles from given tables, _C._mocks from an observed call; both return a _C.Mock.
**
** _C._mock(result, objects=(), outputs=(), writes=(), internals=()): `objects` are external, `outputs` are graph values, `internals` are
** functions that count as made by the call. A write is (kind name, owner or None, key, value) with Ellipsis as value for a delete.
*/
#include "mock/program.h"

#include "observe/observe.h"
#include "trace/recorder.h"

/* -- _C.Mock --------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD mp_mock_program *prog; /* owned */
    PyObject *result;                    /* owned: what an observed call returned, or None */
    PyObject *now;                       /* owned: tuple of the external objects of the observed call, or None */
} mock_object;

static int mock_traverse(mock_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->result);
    Py_VISIT(self->now);
    return mp_mock_traverse(self->prog, visit, arg);
}

static int mock_clear(mock_object *self)
{
    mp_mock_free(self->prog);
    self->prog = NULL;
    Py_CLEAR(self->result);
    Py_CLEAR(self->now);
    return 0;
}

static void mock_dealloc(mock_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    mock_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The arguments as sequences of the right lengths. Borrowed run, or NULL with an exception. */
static mp_mock_run *build(mock_object *self, PyObject *args)
{
    PyObject *objects, *outputs;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &objects, &PyTuple_Type, &outputs)) return NULL;
    if (PyTuple_GET_SIZE(objects) != self->prog->n_objects || PyTuple_GET_SIZE(outputs) != self->prog->n_values) {
        PyErr_Format(PyExc_ValueError, "expected %u objects and %u outputs", self->prog->n_objects,
                     self->prog->n_values);
        return NULL;
    }
    return mp_mock_build(self->prog, ((PyTupleObject *)objects)->ob_item, ((PyTupleObject *)outputs)->ob_item, NULL);
}

static PyObject *mock_rebuild(mock_object *self, PyObject *args)
{
    mp_mock_run *run = build(self, args);
    return run ? mp_mock_commit(run) : NULL;
}

static PyObject *mock_discard(mock_object *self, PyObject *args)
{
    mp_mock_run *run = build(self, args);
    if (!run) return NULL;
    mp_mock_discard(run);
    Py_RETURN_NONE;
}

static PyObject *numbers(const uint32_t *array, size_t n)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *number = PyLong_FromUnsignedLong(array[i]);
        if (!number || PyList_Append(list, number) < 0) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

static PyObject *mock_get_objects(mock_object *self, void *closure)
{
    const mp_obj_id *objects;
    size_t n = mp_mock_objects(self->prog, &objects);
    return numbers(objects, n);
}

static PyObject *mock_get_values(mock_object *self, void *closure)
{
    const mp_value_id *values;
    size_t n = mp_mock_values(self->prog, &values);
    return numbers(values, n);
}

static PyObject *mock_get_writes(mock_object *self, void *closure) { return mp_mock_describe_writes(self->prog); }
static PyObject *mock_get_text(mock_object *self, void *closure) { return mp_mock_describe_result(self->prog); }
static PyObject *mock_get_result(mock_object *self, void *closure) { return Py_NewRef(self->result); }
static PyObject *mock_get_now(mock_object *self, void *closure) { return Py_NewRef(self->now); }

static PyMethodDef mock_methods[] = {
    {"rebuild", (PyCFunction)mock_rebuild, METH_VARARGS,
     "rebuild(objects, outputs): build, commit, and return the result."},
    {"discard", (PyCFunction)mock_discard, METH_VARARGS, "discard(objects, outputs): build, then throw away."},
    {NULL},
};

static PyGetSetDef mock_getset[] = {
    {"objects", (getter)mock_get_objects, NULL, "Numbers of the external objects that rebuild wants, in order."},
    {"values", (getter)mock_get_values, NULL, "Numbers of the graph values that rebuild wants, in order."},
    {"writes", (getter)mock_get_writes, NULL, "The writes, as lines."},
    {"text", (getter)mock_get_text, NULL, "The result, as lines."},
    {"now", (getter)mock_get_now, NULL, "The external objects of the observed call, as rebuild wants them."},
    {"result", (getter)mock_get_result, NULL, "What the observed call returned."},
    {NULL},
};

static PyType_Slot mock_slots[] = {
    {Py_tp_dealloc, mock_dealloc},
    {Py_tp_traverse, mock_traverse},
    {Py_tp_clear, mock_clear},
    {Py_tp_methods, mock_methods},
    {Py_tp_getset, mock_getset},
    {Py_tp_doc, "A compiled mock program."},
    {0, NULL},
};

static PyType_Spec mock_spec = {
    .name = "magpy._C.Mock",
    .basicsize = sizeof(mock_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = mock_slots,
};

/* Wrap `prog` (stolen; NULL: raise ValueError from `why`). */
static PyObject *wrap(PyObject *module, mp_mock_program *prog, PyObject *result, PyObject *now, const mp_reason *why)
{
    if (!prog) {
        PyObject *text = mp_reason_describe(why);
        if (text) PyErr_SetObject(PyExc_ValueError, text);
        Py_XDECREF(text);
        return NULL;
    }
    PyObject *type = PyObject_GetAttrString(module, "Mock");
    mock_object *self = type ? (mock_object *)PyType_GenericAlloc((PyTypeObject *)type, 0) : NULL;
    Py_XDECREF(type);
    if (!self) {
        mp_mock_free(prog);
        return NULL;
    }
    self->prog = prog;
    self->result = Py_NewRef(result);
    self->now = Py_NewRef(now);
    return (PyObject *)self;
}

/* -- From tables --------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject *objects, *outputs, *internals; /* borrowed tuples */
} tables;

static uint32_t position(PyObject *tuple, PyObject *object)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++)
        if (PyTuple_GET_ITEM(tuple, i) == object) return (uint32_t)i;
    return UINT32_MAX;
}

static mp_obj_id table_object(void *context, PyObject *object)
{ return position(((tables *)context)->objects, object); }
static mp_value_id table_value(void *context, PyObject *tensor)
{ return position(((tables *)context)->outputs, tensor); }
static PyObject *table_path(void *context, mp_obj_id object) { return PyUnicode_FromFormat("object%u", object); }

static bool table_internal(void *context, PyObject *object)
{ return position(((tables *)context)->internals, object) != UINT32_MAX; }

static const char *const write_names[] = {
#define MP_WRITE_KIND(name) #name,
    MP_WRITE_KINDS(MP_WRITE_KIND)
#undef MP_WRITE_KIND
};

/* Fill in `write` from its tuple (all borrowed). 0, or -1 with an exception. */
static int parse_write(const tables *given, PyObject *tuple, mp_write *write)
{
    const char *name;
    PyObject *owner, *key, *value;
    if (!PyTuple_Check(tuple) || !PyArg_ParseTuple(tuple, "sOOO", &name, &owner, &key, &value)) return -1;
    *write = (mp_write){.kind = MP_WRITE_KIND_COUNT, .owner = MP_NO_OBJ, .key_obj = MP_NO_OBJ};
    for (uint8_t kind = 0; kind < MP_WRITE_KIND_COUNT; kind++)
        if (strcmp(write_names[kind], name) == 0) write->kind = kind;
    if (write->kind == MP_WRITE_KIND_COUNT) {
        PyErr_Format(PyExc_ValueError, "no write is called %s", name);
        return -1;
    }
    if (owner != Py_None) write->owner = position(given->objects, owner);
    if (write->kind != MP_WRITE_CALL && write->owner == MP_NO_OBJ) {
        PyErr_SetString(PyExc_ValueError, "the owner of a write is one of `objects`");
        return -1;
    }
    if (write->kind == MP_WRITE_CALL &&
        !(PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 3 && PyTuple_Check(PyTuple_GET_ITEM(value, 0)) &&
          PyDict_Check(PyTuple_GET_ITEM(value, 1)) && PyTuple_Check(PyTuple_GET_ITEM(value, 2)))) {
        PyErr_SetString(PyExc_ValueError, "the value of a call is (args, kwargs, frames)");
        return -1;
    }
    if (key != Py_None) write->key_obj = position(given->objects, key);
    if (key != Py_None && write->key_obj == MP_NO_OBJ) write->key = key;
    if (value != Py_Ellipsis) write->value = value;
    return 0;
}

static PyObject *mock_of_tables(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"result", "objects", "outputs", "writes", "internals", NULL};
    PyObject *result, *none = PyTuple_New(0), *made = NULL;
    tables given = {none, none, none};
    PyObject *writes = none;
    if (!none || !PyArg_ParseTupleAndKeywords(args, kwargs, "O|O!O!O!O!", names, &result, &PyTuple_Type, &given.objects,
                                              &PyTuple_Type, &given.outputs, &PyTuple_Type, &writes, &PyTuple_Type,
                                              &given.internals)) {
        Py_XDECREF(none);
        return NULL;
    }
    uint32_t n = (uint32_t)PyTuple_GET_SIZE(writes), done = 0;
    mp_write *parsed = PyMem_Calloc(n + 1, sizeof *parsed);
    if (!parsed) PyErr_NoMemory();
    while (parsed && done < n && parse_write(&given, PyTuple_GET_ITEM(writes, done), &parsed[done]) == 0) done++;
    if (parsed && done == n) {
        mp_reason why = {0};
        mp_mock_source source = {.context = &given,
                                 .find_object = table_object,
                                 .find_value = table_value,
                                 .is_internal = table_internal,
                                 .path = table_path,
                                 .result = result,
                                 .writes = parsed,
                                 .n_writes = n};
        made = wrap(module, mp_mock_compile_source(&source, &why), Py_None, Py_None, &why);
    }
    PyMem_Free(parsed);
    Py_DECREF(none);
    return made;
}

/* -- From an observed call ------------------------------------------------------------------------------------------------------- */

/* The external objects that the program names, as they are now. Owned tuple, or NULL with an exception. */
static PyObject *current_objects(const mp_recording *recording, const mp_mock_program *prog)
{
    PyObject *now = PyTuple_New(prog->n_objects);
    for (uint32_t i = 0; now && i < prog->n_objects; i++) {
        PyObject *object = mp_object_get(&recording->objects[prog->objects[i]]);
        PyTuple_SET_ITEM(now, i, Py_NewRef(object ? object : Py_None));
    }
    return now;
}

/* Observe the call that rec was made for and compile its mocks. Owned result of the call, *prog and *now, or NULL with an exception. */
static PyObject *observe(mp_recorder *rec, PyObject *const *args, size_t nargs, PyObject *kwnames,
                         mp_mock_program **prog, PyObject **now, mp_reason *why)
{
    PyObject *result = mp_observe_call(rec, args[0], args + 1, nargs - 1, kwnames);
    if (!result) return NULL;
    mp_recording *recording = mp_rec_finish(rec, result, why);
    if (recording) *prog = mp_mock_compile(recording, why);
    if (*prog && !(*now = current_objects(recording, *prog))) PyErr_Clear();
    mp_recording_free(recording);
    return result;
}

static PyObject *mocks_of_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "_mocks(callable, *args, **kwargs)");
        return NULL;
    }
    mp_reason why = {0};
    mp_mock_program *prog = NULL;
    PyObject *now = NULL;
    mp_recorder *rec = mp_rec_new(args[0], args + 1, (size_t)nargs - 1, kwnames, &why);
    if (!rec) return wrap(module, NULL, Py_None, Py_None, &why);
    PyObject *result = observe(rec, args, (size_t)nargs, kwnames, &prog, &now, &why);
    PyObject *mock = result ? wrap(module, prog, result, now ? now : Py_None, &why) : NULL;
    mp_rec_free(rec);
    Py_XDECREF(now);
    Py_XDECREF(result);
    return mock;
}

static PyMethodDef functions[] = {
    {"_mocks", (PyCFunction)(void (*)(void))mocks_of_call, METH_FASTCALL | METH_KEYWORDS,
     "_mocks(callable, *args, **kwargs): observe the call and compile its mocks; ValueError with the reason if that "
     "fails."},
    {"_mock", (PyCFunction)(void (*)(void))mock_of_tables, METH_VARARGS | METH_KEYWORDS,
     "_mock(result, objects=(), outputs=(), writes=(), internals=()): compile a mock program from tables (for tests)."},
    {NULL},
};

int mp_mock_module_init(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &mock_spec, NULL);
    int failed = type ? PyModule_AddObjectRef(module, "Mock", type) : -1;
    Py_XDECREF(type);
    return failed ? -1 : PyModule_AddFunctions(module, functions);
}
