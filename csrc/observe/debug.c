/* _C._observe(callable, *args, **kwargs) -> (result, dict): what a call reads, writes and computes, for tests and for people. */
#include "observe/internal.h"

#include "trace/recorder_internal.h"

#include <time.h>

/* -- Words for kinds ---------------------------------------------------------------------------------------------------- */

static const char *const read_kinds[] = {
#define MP_READ_KIND(name) #name,
#define X(name) #name,
    MP_READ_KINDS(X)
#undef X
#undef MP_READ_KIND
};

static const char *const write_kinds[] = {
#define X(name) #name,
    MP_WRITE_KINDS(X)
#undef X
};

/* -- Rows ------------------------------------------------------------------------------------------------------------------- */

static PyObject *place(const mp_recording *recording, mp_obj_id id)
{ return id == MP_NO_OBJ ? Py_NewRef(Py_None) : mp_recording_path(recording, id); }

static PyObject *held(const mp_recording *recording, const mp_read *read)
{
    switch ((mp_was)read->was) {
    case MP_WAS_OBJECT: {
        PyObject *path = place(recording, read->obj);
        return path ? Py_BuildValue("(sNs)", "object", path, recording->objects[read->obj].type->tp_name) : NULL;
    }
    case MP_WAS_NUMBER: return Py_BuildValue("(sO)", "number", read->value ? read->value : Py_None);
    case MP_WAS_SCALAR: return Py_BuildValue("(sO)", "value", read->value);
    case MP_WAS_ITEMS: return Py_BuildValue("(sO)", "value", PyTuple_GET_ITEM(read->value, 0));
    case MP_WAS_MISSING: return Py_BuildValue("(s)", "missing");
    case MP_WAS_META: return Py_BuildValue("(s)", "meta");
    case MP_WAS_ANY: break;
    }
    return Py_BuildValue("(s)", "any");
}

static PyObject *key_or_place(const mp_recording *recording, PyObject *key, mp_obj_id key_obj)
{ return key_obj != MP_NO_OBJ ? place(recording, key_obj) : Py_NewRef(key ? key : Py_None); }

static PyObject *read_row(const mp_recording *recording, const mp_read *read)
{
    PyObject *owner = place(recording, read->owner), *key = key_or_place(recording, read->key, read->key_obj);
    PyObject *was = held(recording, read), *row = NULL;
    if (owner && key && was) row = Py_BuildValue("(sOOO)", read_kinds[read->kind], owner, key, was);
    Py_XDECREF(owner);
    Py_XDECREF(key);
    Py_XDECREF(was);
    return row;
}

static PyObject *write_row(const mp_recording *recording, const mp_write *write)
{
    PyObject *owner = place(recording, write->owner), *key = key_or_place(recording, write->key, write->key_obj);
    PyObject *row = NULL;
    if (owner && key && write->value) row = Py_BuildValue("(sOOO)", write_kinds[write->kind], owner, key, write->value);
    if (owner && key && !write->value) row = Py_BuildValue("(sOO)", write_kinds[write->kind], owner, key);
    Py_XDECREF(owner);
    Py_XDECREF(key);
    return row;
}

static PyObject *op_row(const mp_op *op)
{ return Py_BuildValue("(OOOO)", op->func, op->args, op->kwargs ? op->kwargs : Py_None, op->out ? op->out : Py_None); }

/* Append the new reference `row`; false with an exception. */
static bool add(PyObject *list, PyObject *row)
{
    bool done = row && PyList_Append(list, row) == 0;
    Py_XDECREF(row);
    return done;
}

static PyObject *check_row(const mp_check *check)
{ return Py_BuildValue("(OOOO)", check->func, check->args, check->kwargs ? check->kwargs : Py_None, check->result); }

/* {"reads": [...], "writes": [...], "ops": [...], "inputs": [...], ...}: owned, or NULL with an exception. */
static PyObject *describe(const mp_recording *recording)
{
    PyObject *reads = PyList_New(0), *writes = PyList_New(0), *ops = PyList_New(0), *inputs = PyList_New(0);
    PyObject *checks = PyList_New(0);
    bool good = reads && writes && ops && inputs && checks;
    for (uint32_t i = 0; good && i < recording->n_checks; i++) good = add(checks, check_row(&recording->checks[i]));
    for (uint32_t i = 0; good && i < recording->n_reads; i++)
        good = add(reads, read_row(recording, &recording->reads[i]));
    for (uint32_t i = 0; good && i < recording->n_writes; i++)
        good = add(writes, write_row(recording, &recording->writes[i]));
    for (uint32_t i = 0; good && i < recording->n_ops; i++) good = add(ops, op_row(&recording->ops[i]));
    for (uint32_t i = 0; good && i < recording->n_inputs; i++)
        good = add(inputs, place(recording, recording->values[recording->inputs[i]].input));
    PyObject *all = NULL;
    if (good)
        all = Py_BuildValue("{sOsOsOsOsOsIsKsKsd}", "checks", checks, "reads", reads, "writes", writes, "ops", ops,
                            "inputs", inputs, "objects", recording->n_objects, "opcodes", recording->opcodes, "frames",
                            recording->frames, "seconds", recording->seconds);
    Py_XDECREF(reads);
    Py_XDECREF(writes);
    Py_XDECREF(ops);
    Py_XDECREF(inputs);
    Py_XDECREF(checks);
    return all;
}

static bool oracle_on; /* set by tests: look for holes in the read set, see trace/oracle.c */

static PyObject *set_oracle(PyObject *module, PyObject *on)
{
    oracle_on = PyObject_IsTrue(on) == 1;
    Py_RETURN_NONE;
}

/* -- The function --------------------------------------------------------------------------------------------------------------- */

static PyObject *observe(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "_observe(callable, *args, **kwargs)");
        return NULL;
    }
    mp_reason why = {0};
    mp_recorder *rec = mp_rec_new(args[0], args + 1, (size_t)nargs - 1, kwnames, &why);
    if (!rec) {
        PyErr_Format(PyExc_RuntimeError, "%s: %s", mp_reason_text(why.code), why.detail);
        return NULL;
    }
    if (oracle_on && mp_oracle_start(rec) < 0) {
        mp_rec_free(rec);
        return NULL;
    }
    PyObject *result = mp_observe_call(rec, args[0], args + 1, (size_t)nargs - 1, kwnames);
    if (!result) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        mp_rec_free(rec);
        PyErr_Restore(type, value, trace);
        return NULL;
    }
    mp_recording *recording = mp_rec_finish(rec, result, &why);
    PyObject *about = recording ? describe(recording) : PyDict_New();
    PyObject *reason = recording ? Py_NewRef(Py_None) : mp_reason_describe(&why);
    PyObject *holes = mp_oracle_holes(rec);
    if (about && holes && PyDict_SetItemString(about, "holes", holes) < 0) Py_CLEAR(about);
    Py_XDECREF(holes);
    if (about && reason && PyDict_SetItemString(about, "reason", reason) < 0) Py_CLEAR(about);
    Py_XDECREF(reason);
    mp_recording_free(recording);
    mp_rec_free(rec);
    if (!about) {
        Py_DECREF(result);
        return NULL;
    }
    return Py_BuildValue("(NN)", result, about);
}

/* -- What observing costs --------------------------------------------------------------------------------------------------- */

static double clock_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* _observe_cost(callable, *args, **kwargs) -> dict: as _observe, without a word about what was read. */
static PyObject *observe_cost(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "_observe_cost(callable, *args, **kwargs)");
        return NULL;
    }
    mp_reason why = {0};
    double start = clock_now();
    mp_recorder *rec = mp_rec_new(args[0], args + 1, (size_t)nargs - 1, kwnames, &why);
    if (!rec) return PyErr_Format(PyExc_RuntimeError, "%s: %s", mp_reason_text(why.code), why.detail);
    PyObject *result = mp_observe_call(rec, args[0], args + 1, (size_t)nargs - 1, kwnames);
    mp_recording *recording = result ? mp_rec_finish(rec, result, &why) : NULL;
    double seconds = clock_now() - start;
    PyObject *cost = NULL;
    if (recording)
        cost = Py_BuildValue("{sdsKsKsIsIsI}", "seconds", seconds, "opcodes", recording->opcodes, "frames",
                             recording->frames, "reads", recording->n_reads, "objects", recording->n_objects, "ops",
                             recording->n_ops);
    else if (result)
        PyErr_Format(PyExc_RuntimeError, "%s: %s", mp_reason_text(why.code), why.detail);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(result);
    mp_recording_free(recording);
    mp_rec_free(rec);
    PyErr_Restore(type, value, trace);
    return cost;
}

/* -- Frames ------------------------------------------------------------------------------------------------------------------- */

/* Ask the Python callable `context`: offer(function, arguments) -> None to run the frame, or a 1-tuple with the answer. */
static int ask(void *context, PyFunctionObject *func, PyObject *const *locals, PyObject **result)
{
    PyCodeObject *code = (PyCodeObject *)func->func_code;
    PyObject *arguments = PyTuple_New(code->co_argcount);
    for (int i = 0; arguments && i < code->co_argcount; i++) PyTuple_SET_ITEM(arguments, i, Py_NewRef(locals[i]));
    PyObject *answer = arguments ? PyObject_CallFunctionObjArgs(context, func, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    if (answer && PyTuple_Check(answer) && PyTuple_GET_SIZE(answer) == 1)
        *result = Py_NewRef(PyTuple_GET_ITEM(answer, 0));
    int answered = answer != Py_None;
    Py_XDECREF(answer);
    return answered;
}

static PyObject *offer_frames(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (nargs >= 2) return mp_observe_frames(args[1], args + 2, (size_t)nargs - 2, kwnames, ask, args[0]);
    PyErr_SetString(PyExc_TypeError, "_offer_frames(offer, callable, *args, **kwargs)");
    return NULL;
}

static PyObject *has_hook(PyObject *module, PyObject *ignored) { return PyBool_FromLong(mp_observe_hook_installed()); }

static PyMethodDef debug_methods[] = {
    {"_offer_frames", (PyCFunction)(void *)offer_frames, METH_FASTCALL | METH_KEYWORDS,
     "_offer_frames(offer, callable, *args, **kwargs): call, asking offer(function, arguments) at every function "
     "frame"},
    {"_set_oracle", set_oracle, METH_O, "Let _observe list holes in the read set, slowly."},
    {"_hook_installed", has_hook, METH_NOARGS, "Is the interpreter's eval hook magpy's?"},
    {"_observe", (PyCFunction)(void *)observe, METH_FASTCALL | METH_KEYWORDS,
     "_observe(callable, *args, **kwargs) -> (result, {'reads', 'writes', 'ops', 'inputs', 'reason', ...})"},
    {"_observe_cost", (PyCFunction)(void *)observe_cost, METH_FASTCALL | METH_KEYWORDS,
     "_observe_cost(callable, *args, **kwargs) -> {'seconds', 'opcodes', 'frames', 'reads', 'objects', 'ops'} of an "
     "observed call"},
    {NULL},
};

int mp_observe_debug_init(PyObject *module) { return PyModule_AddFunctions(module, debug_methods); }
