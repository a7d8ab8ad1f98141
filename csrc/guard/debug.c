/* _C._guards(callable, *args, **kwargs): observe once, compile the guards, and let tests and people ask them.
**
** The object has check(*args, **kwargs) -> (bool, str or None: what does not hold), describe() -> list of str, result, and words: how many
** words and stops prove group 0.
*/
#include "guard/program.h"

#include "guard/debug.h"
#include "guard/torch_state.h"
#include "observe/observe.h"
#include "trace/recorder.h"

typedef struct {
    PyObject_HEAD mp_guard_program *prog; /* owned */
    PyObject *target;                     /* owned */
    PyObject *result;                     /* owned: of the observed call */
    PyObject **bound;                     /* room for the wanted objects: the graph's inputs */
    uint32_t n_bound;
} guards_object;

static PyTypeObject *guards_type; /* owned by the process */

static int guards_traverse(PyObject *self, visitproc visit, void *arg)
{
    guards_object *guards = (guards_object *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(guards->target);
    Py_VISIT(guards->result);
    return mp_guard_traverse(guards->prog, visit, arg);
}

static int guards_clear(PyObject *self)
{
    guards_object *guards = (guards_object *)self;
    Py_CLEAR(guards->target);
    Py_CLEAR(guards->result);
    mp_guard_free(guards->prog);
    guards->prog = NULL;
    return 0;
}

static void guards_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    guards_clear(self);
    PyMem_Free(((guards_object *)self)->bound);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *guards_check(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    guards_object *guards = (guards_object *)self;
    if (!guards->prog) return PyErr_Format(PyExc_RuntimeError, "these guards were cleared");
    mp_call call = {guards->target, args, (size_t)nargs, kwnames};
    mp_guard_id miss = 0;
    if (mp_guard_check(guards->prog, &call, guards->bound, &miss)) return Py_BuildValue("(OO)", Py_True, Py_None);
    PyObject *text = mp_guard_describe(guards->prog, miss);
    return text ? Py_BuildValue("(ON)", Py_False, text) : NULL;
}

static PyObject *guards_inputs(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    guards_object *guards = (guards_object *)self;
    PyObject *checked = guards_check(self, args, nargs, kwnames);
    if (!checked || PyTuple_GET_ITEM(checked, 0) != Py_True) return checked;
    Py_DECREF(checked);
    PyObject *inputs = PyTuple_New(guards->n_bound);
    for (uint32_t i = 0; inputs && i < guards->n_bound; i++) PyTuple_SET_ITEM(inputs, i, Py_NewRef(guards->bound[i]));
    return inputs;
}

static PyObject *guards_describe(PyObject *self, PyObject *unused)
{
    guards_object *guards = (guards_object *)self;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && guards->prog && i < mp_guard_count(guards->prog); i++) {
        PyObject *text = mp_guard_describe(guards->prog, i);
        if (!text || PyList_Append(list, text) < 0) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

static PyObject *guards_result(PyObject *self, void *unused) { return Py_XNewRef(((guards_object *)self)->result); }

/* {"words": n, "stops": n, "tensors": n, "reads": n, "valid": bool} of group 0. */
static PyObject *guards_proof(PyObject *self, void *unused)
{
    const mp_guard_program *prog = ((guards_object *)self)->prog;
    if (!prog) Py_RETURN_NONE;
    const guard_block *block = &prog->blocks[0];
    return Py_BuildValue("{sIsIsIsIsO}", "words", block->n_words, "stops", block->n_stops, "tensors", block->n_tensors,
                         "reads", prog->rec.n_reads, "valid", block->valid ? Py_True : Py_False);
}

static PyMethodDef guards_methods[] = {
    {"check", (PyCFunction)(void *)guards_check, METH_FASTCALL | METH_KEYWORDS,
     "check(*args, **kwargs) -> (bool, what does not hold or None)"},
    {"inputs", (PyCFunction)(void *)guards_inputs, METH_FASTCALL | METH_KEYWORDS,
     "inputs(*args, **kwargs) -> the graph's inputs on a hit, else as check"},
    {"describe", guards_describe, METH_NOARGS, "describe() -> list of str"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef guards_getset[] = {
    {"result", guards_result, NULL, "what the observed call returned", NULL},
    {"proof", guards_proof, NULL, "size of the snapshot of what the target reaches", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot guards_slots[] = {
    {Py_tp_traverse, (void *)guards_traverse},
    {Py_tp_clear, (void *)guards_clear},
    {Py_tp_dealloc, (void *)guards_dealloc},
    {Py_tp_methods, guards_methods},
    {Py_tp_getset, guards_getset},
    {0, NULL},
};

static PyType_Spec guards_spec = {
    .name = "magpy._C._Guards",
    .basicsize = sizeof(guards_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = guards_slots,
};

/* Compile the guards of a finished recording. 0, or -1 with an exception. */
static int compile_guards(guards_object *guards, mp_recording *recording, const mp_call *call)
{
    mp_reason why = {0};
    mp_obj_id *wanted = PyMem_Malloc((recording->n_inputs + 1) * sizeof *wanted);
    guards->bound = PyMem_Calloc(recording->n_inputs + 1, sizeof *guards->bound);
    if (!wanted || !guards->bound) {
        PyMem_Free(wanted);
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i < recording->n_inputs; i++) wanted[i] = recording->values[recording->inputs[i]].input;
    guards->n_bound = recording->n_inputs;
    guards->prog = mp_guard_compile(recording, call, wanted, recording->n_inputs, &why);
    PyMem_Free(wanted);
    if (!guards->prog) PyErr_Format(PyExc_RuntimeError, "%s: %s", mp_reason_text(why.code), why.detail);
    return guards->prog ? 0 : -1;
}

static PyObject *guards_of(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (nargs < 1) return PyErr_Format(PyExc_TypeError, "_guards(callable, *args, **kwargs)");
    mp_call call = {args[0], args + 1, (size_t)nargs - 1, kwnames};
    mp_reason why = {0};
    mp_recorder *rec = mp_rec_new(call.target, call.args, call.nargs, kwnames, &why);
    if (!rec) return PyErr_Format(PyExc_RuntimeError, "%s: %s", mp_reason_text(why.code), why.detail);
    guards_object *guards = PyObject_GC_New(guards_object, guards_type);
    if (guards) {
        memset((char *)guards + sizeof(PyObject), 0, sizeof *guards - sizeof(PyObject));
        guards->target = Py_NewRef(call.target);
        guards->result = mp_observe_call(rec, call.target, call.args, call.nargs, kwnames);
        PyObject_GC_Track((PyObject *)guards);
    }
    mp_recording *recording = guards && guards->result ? mp_rec_finish(rec, guards->result, &why) : NULL;
    int made = recording ? compile_guards(guards, recording, &call) : -1;
    mp_rec_free(rec);
    mp_recording_free(recording);
    if (made == 0) return (PyObject *)guards;
    if (!PyErr_Occurred()) PyErr_Format(PyExc_RuntimeError, "%s: %s", mp_reason_text(why.code), why.detail);
    Py_XDECREF(guards);
    return NULL;
}

static PyObject *show_torch_state(PyObject *module, PyObject *unused) { return mp_torch_state_show(); }

static PyObject *read_torch_state(PyObject *module, PyObject *unused) { return mp_torch_state_read(); }

/* None if it is the same, else the name of what differs. */
static PyObject *compare_torch_state(PyObject *module, PyObject *snapshot)
{
    const char *what = NULL;
    if (mp_torch_state_same(snapshot, &what)) Py_RETURN_NONE;
    return PyUnicode_FromString(what ? what : "?");
}

/* None if something can be traced now, else why not. */
static PyObject *traceable_torch_state(PyObject *module, PyObject *unused)
{
    mp_reason why = {0};
    if (mp_torch_state_traceable(&why) == 0) Py_RETURN_NONE;
    return PyUnicode_FromString(why.detail);
}

static PyObject *tensor_in_place(PyObject *module, PyObject *unused)
{ return guard_tensor_load() < 0 ? NULL : PyBool_FromLong(guard_tensor_in_place()); }

static PyMethodDef functions[] = {
    {"_tensor_in_place", tensor_in_place, METH_NOARGS, "_tensor_in_place() -> are tensors' flags read in place?"},
    {"_torch_state", show_torch_state, METH_NOARGS, "_torch_state() -> {mode: (value, is it read directly?)}"},
    {"_torch_state_read", read_torch_state, METH_NOARGS, "_torch_state_read() -> snapshot"},
    {"_torch_state_same", compare_torch_state, METH_O, "_torch_state_same(snapshot) -> None, or what differs"},
    {"_torch_state_traceable", traceable_torch_state, METH_NOARGS, "_torch_state_traceable() -> None, or why not"},
    {"_guards", (PyCFunction)(void *)guards_of, METH_FASTCALL | METH_KEYWORDS,
     "_guards(callable, *args, **kwargs) -> the guards of that call, which is made once"},
    {NULL, NULL, 0, NULL},
};

int mp_guard_debug_init(PyObject *module)
{
    if (!guards_type) guards_type = (PyTypeObject *)PyType_FromSpec(&guards_spec);
    return guards_type ? PyModule_AddFunctions(module, functions) : -1;
}
