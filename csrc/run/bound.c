/* See bound.h. */
#include "run/bound.h"

#include "run/weights.h"

#include <structmember.h>

/* What is made of weights, and the marks of these. Counted, since a run may outlive it. */
typedef struct {
    uint32_t references, n;
    PyObject *constants; /* owned tuple */
    PyObject *memory;    /* owned: what keeps the weights' memory, so that no other weight can lie there */
    mp_weight_mark marks[];
} made_of_weights;

struct mp_bound {
    PyObject_HEAD PyObject *run; /* owned: a plan, or another callable that takes a list of tensors */
    mp_plan *plan;               /* of `run`, or NULL */
    PyObject *first;             /* owned tuple: comes before the inputs */
    PyObject *make; /* owned, or NULL: list of inputs -> (tuple of constants, what keeps the weights' memory) */
    uint32_t n_weights, *weights; /* owned: numbers of the inputs that are weights */
    uint32_t least;               /* inputs of a call, so that all of these are there */
    made_of_weights *made;        /* a reference, or NULL: nothing is made by now, or it does not hold any more */
    uint64_t n_forgotten;
    PyObject *weak; /* list of weak references */
};

static PyTypeObject *bound_type; /* owned by the module as well */

mp_bound *mp_bound_from_object(PyObject *object)
{
    mp_bound *bound = bound_type && Py_TYPE(object) == bound_type ? (mp_bound *)object : NULL;
    return bound && bound->plan ? bound : NULL;
}

uint32_t mp_bound_n_outputs(const mp_bound *bound) { return mp_plan_n_outputs(bound->plan); }

/* -- What is made of weights ---------------------------------------------------------------------------------------------- */

static void release(made_of_weights *made)
{
    if (!made || --made->references) return;
    for (uint32_t i = 0; i < made->n; i++) mp_weight_mark_free(&made->marks[i]);
    Py_XDECREF(made->constants);
    Py_XDECREF(made->memory);
    PyMem_Free(made);
}

static void forget(mp_bound *self)
{
    made_of_weights *made = self->made;
    self->made = NULL;
    self->n_forgotten++;
    release(made);
}

/* A weight has gone: neither its memory nor what was made of it is wanted. self: a weak reference to the bound plan. */
static PyObject *gone(PyObject *self, PyObject *unused)
{
    PyObject *bound = PyWeakref_GET_OBJECT(self);
    if (bound != Py_None) {
        Py_INCREF(bound);
        forget((mp_bound *)bound);
        Py_DECREF(bound);
    }
    Py_RETURN_NONE;
}

static PyMethodDef gone_method = {"gone", gone, METH_O, NULL};

/* 1, 0, or -1 with an exception. */
static int holds(const made_of_weights *made, const uint32_t *weights, PyObject *const *inputs)
{
    for (uint32_t i = 0; i < made->n; i++) {
        int same = mp_weight_mark_holds(&made->marks[i], inputs[weights[i]]);
        if (same <= 0) return same;
    }
    return 1;
}

/* Marks of the weights as they are. 0, 1 if they cannot be marked, or -1 with an exception. */
static int mark(mp_bound *self, made_of_weights *made, PyObject *const *inputs)
{
    PyObject *own = PyWeakref_NewRef((PyObject *)self, NULL),
             *callback = own ? PyCFunction_New(&gone_method, own) : NULL;
    int result = callback ? 0 : -1;
    for (uint32_t i = 0; !result && i < self->n_weights; i++) {
        made->n = i + 1;
        result = mp_weight_mark_take(&made->marks[i], inputs[self->weights[i]], callback);
    }
    Py_XDECREF(callback);
    Py_XDECREF(own);
    return result;
}

/* Take (constants, memory) of make's over. 0, or -1 with an exception. */
static int take(const mp_bound *self, made_of_weights *made, PyObject *answer, uint32_t n_inputs)
{
    PyObject *constants, *memory;
    if (!PyArg_Parse(answer, "(O!O)", &PyTuple_Type, &constants, &memory)) return -1;
    made->constants = Py_NewRef(constants);
    made->memory = Py_NewRef(memory);
    if (!self->plan) return 0;
    uint32_t behind = (uint32_t)PyTuple_GET_SIZE(self->first) + n_inputs, n = (uint32_t)PyTuple_GET_SIZE(constants);
    if (behind + n != mp_plan_n_inputs(self->plan)) {
        PyErr_Format(PyExc_RuntimeError, "%u constants were made instead of %u", n,
                     mp_plan_n_inputs(self->plan) - behind);
        return -1;
    }
    for (uint32_t i = 0; i < n; i++)
        if (mp_plan_check_input(self->plan, PyTuple_GET_ITEM(constants, i), behind + i) < 0) return -1;
    return 0;
}

/* Make them anew, and keep them unless something was forgotten meanwhile. A reference, or NULL with an exception. */
static made_of_weights *make(mp_bound *self, PyObject *const *inputs, uint32_t n)
{
    forget(self); /* its memory goes before there is more */
    uint64_t before = self->n_forgotten;
    made_of_weights *made = PyMem_Calloc(1, sizeof *made + self->n_weights * sizeof *made->marks);
    if (!made) return (made_of_weights *)PyErr_NoMemory();
    made->references = 1;
    PyObject *list = PyList_New(n), *answer = NULL;
    for (uint32_t i = 0; list && i < n; i++) PyList_SET_ITEM(list, i, Py_NewRef(inputs[i]));
    int marked = list ? mark(self, made, inputs) : -1; /* before: a change in between is noticed later */
    if (marked >= 0) answer = PyObject_CallOneArg(self->make, list);
    if (!answer || take(self, made, answer, n) < 0) {
        release(made);
        made = NULL;
    } else if (!marked && self->n_forgotten == before && !self->made) {
        made->references++;
        self->made = made;
    }
    Py_XDECREF(answer);
    Py_XDECREF(list);
    return made;
}

/* -- Running ---------------------------------------------------------------------------------------------------------------- */

/* What holds for these inputs: a reference, or NULL with an exception. */
static made_of_weights *made_of(mp_bound *self, PyObject *const *inputs, uint32_t n)
{
    made_of_weights *made = self->made;
    if (n < self->least)
        return PyErr_Format(PyExc_TypeError, "%u inputs given, number %u is a weight", n, self->least - 1), NULL;
    if (!made) return make(self, inputs, n);
    made->references++; /* what is asked of a subclass of tensors may run Python code */
    int same = holds(made, self->weights, inputs);
    if (same > 0) return made;
    release(made);
    return same < 0 ? NULL : make(self, inputs, n);
}

int mp_bound_run(mp_bound *self, PyObject *const *inputs, uint32_t n, PyObject **outputs)
{
    enum { SMALL = 64 };
    uint32_t n_first = (uint32_t)PyTuple_GET_SIZE(self->first), behind = n_first + n;
    made_of_weights *made = NULL;
    if (self->make && !(made = made_of(self, inputs, n))) return -1;
    uint32_t n_made = made ? (uint32_t)PyTuple_GET_SIZE(made->constants) : 0;
    PyObject *small[SMALL], **all = small;
    int result = -1;
    if (behind + n_made != mp_plan_n_inputs(self->plan))
        PyErr_Format(PyExc_TypeError, "%u inputs given", n);
    else if (behind + n_made > SMALL && !(all = PyMem_Malloc((behind + n_made) * sizeof *all)))
        PyErr_NoMemory();
    else {
        for (uint32_t i = 0; i < n_first; i++) all[i] = PyTuple_GET_ITEM(self->first, i);
        for (uint32_t i = 0; i < n; i++) all[n_first + i] = inputs[i];
        for (uint32_t i = 0; i < n_made; i++) all[behind + i] = PyTuple_GET_ITEM(made->constants, i);
        result = mp_plan_run(self->plan, all, outputs);
    }
    if (all != small) PyMem_Free(all);
    release(made);
    return result;
}

/* The same without a plan. Owned, or NULL with an exception. */
static PyObject *run_other(mp_bound *self, PyObject *inputs)
{
    made_of_weights *made = NULL;
    if (self->make && !(made = made_of(self, &PyTuple_GET_ITEM(inputs, 0), (uint32_t)PyTuple_GET_SIZE(inputs))))
        return NULL;
    PyObject *front = PySequence_Concat(self->first, inputs);
    PyObject *all = front && made ? PySequence_Concat(front, made->constants) : Py_XNewRef(front);
    PyObject *result = all ? PyObject_CallOneArg(self->run, all) : NULL;
    Py_XDECREF(all);
    Py_XDECREF(front);
    release(made);
    return result;
}

static PyObject *bound_call(PyObject *object, PyObject *args, PyObject *kwargs)
{
    mp_bound *self = (mp_bound *)object;
    if (PyTuple_GET_SIZE(args) != 1 || (kwargs && PyDict_GET_SIZE(kwargs)))
        return PyErr_Format(PyExc_TypeError, "a bound plan takes one sequence of tensors");
    PyObject *inputs = PySequence_Tuple(PyTuple_GET_ITEM(args, 0)), *result = NULL;
    if (!inputs) return NULL;
    uint32_t n = (uint32_t)PyTuple_GET_SIZE(inputs), n_first = (uint32_t)PyTuple_GET_SIZE(self->first);
    bool good = true;
    if (!self->plan)
        result = run_other(self, inputs);
    else if (n_first + n > mp_plan_n_inputs(self->plan))
        PyErr_Format(PyExc_TypeError, "%u inputs given", n);
    else {
        for (uint32_t i = 0; good && i < n; i++)
            good = !mp_plan_check_input(self->plan, PyTuple_GET_ITEM(inputs, i), n_first + i);
        uint32_t n_outputs = mp_plan_n_outputs(self->plan);
        PyObject **outputs = good ? PyMem_Calloc(n_outputs + 1, sizeof *outputs) : NULL;
        if (good && !outputs)
            PyErr_NoMemory();
        else if (good && mp_bound_run(self, &PyTuple_GET_ITEM(inputs, 0), n, outputs) == 0)
            result = mp_plan_answer(outputs, n_outputs);
        PyMem_Free(outputs);
    }
    Py_DECREF(inputs);
    return result;
}

/* -- The type ---------------------------------------------------------------------------------------------------------------- */

static int bound_traverse(PyObject *object, visitproc visit, void *arg)
{
    mp_bound *self = (mp_bound *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->run);
    Py_VISIT(self->first);
    Py_VISIT(self->make);
    if (self->made && self->made->references == 1) { /* else a run has it, too */
        Py_VISIT(self->made->constants);
        Py_VISIT(self->made->memory);
    }
    return 0;
}

static int bound_clear(PyObject *object)
{
    mp_bound *self = (mp_bound *)object;
    forget(self);
    Py_CLEAR(self->make);
    return 0; /* `run` and `first` stay: what is unreachable may still be called by finalizers */
}

static void bound_dealloc(PyObject *object)
{
    mp_bound *self = (mp_bound *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weak) PyObject_ClearWeakRefs(object);
    forget(self);
    Py_CLEAR(self->make);
    Py_CLEAR(self->run);
    Py_CLEAR(self->first);
    PyMem_Free(self->weights);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *bound_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"run", "first", "weights", "make", NULL};
    PyObject *run, *first, *weights = NULL, *make = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!|O!O:BoundPlan", names, &run, &PyTuple_Type, &first,
                                     &PyTuple_Type, &weights, &make))
        return NULL;
    mp_bound *self = (mp_bound *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->run = Py_NewRef(run);
    self->plan = mp_plan_from_object(run);
    self->first = Py_NewRef(first);
    self->make = Py_XNewRef(make);
    self->n_weights = weights ? (uint32_t)PyTuple_GET_SIZE(weights) : 0;
    self->weights = PyMem_Calloc(self->n_weights + 1, sizeof *self->weights);
    bool good = self->weights || PyErr_NoMemory();
    for (uint32_t i = 0; good && i < self->n_weights; i++) {
        self->weights[i] = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(weights, i));
        good = !PyErr_Occurred();
        if (self->least <= self->weights[i]) self->least = self->weights[i] + 1;
    }
    for (Py_ssize_t i = 0; good && self->plan && i < PyTuple_GET_SIZE(first); i++) {
        good = i < mp_plan_n_inputs(self->plan);
        if (!good)
            PyErr_SetString(PyExc_ValueError, "more constants than the plan has inputs");
        else
            good = !mp_plan_check_input(self->plan, PyTuple_GET_ITEM(first, i), (uint32_t)i);
    }
    if (good) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyObject *bound_forget(PyObject *object, PyObject *unused)
{
    forget((mp_bound *)object);
    Py_RETURN_NONE;
}

static PyObject *get_made_of(PyObject *object, void *closure)
{
    const made_of_weights *made = ((mp_bound *)object)->made;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && made && i < made->n; i++) {
        PyObject *weight = PyWeakref_GET_OBJECT(made->marks[i].reference);
        if (weight != Py_None && PyList_Append(list, weight) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyMethodDef bound_methods[] = {
    {"forget", bound_forget, METH_NOARGS, "forget(): what is made of weights is made anew by the next call."},
    {NULL},
};

static PyMemberDef bound_members[] = {
    {"run", T_OBJECT, offsetof(mp_bound, run), READONLY, "the plan, or what runs the graph without one"},
    {"first", T_OBJECT, offsetof(mp_bound, first), READONLY, "tuple of the constants that come before the inputs"},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(mp_bound, weak), READONLY, NULL},
    {NULL},
};

static PyGetSetDef bound_getset[] = {
    {"made_of", get_made_of, NULL, "list of the weights that something is made of now", NULL},
    {NULL},
};

static PyType_Slot bound_slots[] = {
    {Py_tp_new, bound_new},
    {Py_tp_dealloc, bound_dealloc},
    {Py_tp_traverse, bound_traverse},
    {Py_tp_clear, bound_clear},
    {Py_tp_call, bound_call},
    {Py_tp_methods, bound_methods},
    {Py_tp_members, bound_members},
    {Py_tp_getset, bound_getset},
    {Py_tp_doc, "BoundPlan(run, first, weights=(), make=None)\n\n"
                "A plan, or another runner of a graph, some of whose inputs are bound: the tensors `first` come before "
                "those of a call; behind\nthem come those that make(list of inputs) -> (tuple of tensors, what keeps "
                "the weights' memory) gives, which is asked again\nonce the inputs of the numbers `weights` are other "
                "tensors or have changed.\n\nCalled with a sequence of tensors it returns what `run` returns."},
    {0, NULL},
};

static PyType_Spec bound_spec = {
    .name = "magpy._C.BoundPlan",
    .basicsize = sizeof(mp_bound),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = bound_slots,
};

int mp_bound_init(PyObject *module)
{
    if (!bound_type && !(bound_type = (PyTypeObject *)PyType_FromSpec(&bound_spec))) return -1;
    return PyModule_AddObjectRef(module, "BoundPlan", (PyObject *)bound_type);
}
