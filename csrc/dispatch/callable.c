/* _C.Callable: what a user's call of a compiled function or module reaches. */
#include "dispatch/dispatch.h"
#include "observe/observe.h"

#include <string.h>
#include <structmember.h>

#define ON_STACK 256 /* wanted objects of a trace kept on the C stack during a call; more are allocated */

PyTypeObject *mp_callable_type;
PyObject *mp_fullgraph_error, *mp_verification_error, *mp_other_data;

/* All callables of the process, for reset. */
static mp_callable *ring;
static uint64_t generation = 1;

/* -- Traces of a callable ----------------------------------------------------------------------------------------- */

void mp_callable_forget(mp_callable *self)
{
    mp_trace **traces = self->traces;
    uint32_t n = self->n_traces;
    self->traces = NULL;
    self->n_traces = 0;
    self->n_vain = self->quiet = self->values_lost = self->data_lost = 0;
    self->warned = self->met = self->leaf_alone = self->plain = self->refuse_values = self->refuse_checks = false;
    Py_CLEAR(self->callees);
    Py_CLEAR(self->last_miss);
    Py_CLEAR(self->changing);
    for (uint32_t i = 0; i < n; i++) mp_trace_release(traces[i]);
    PyMem_Free(traces);
}

void mp_callable_reset_all(void)
{
    generation++;
    for (bool again = true; again;) { /* freeing traces can free callables: start over after each */
        again = false;
        for (mp_callable *each = ring; each; each = each->next == ring ? NULL : each->next)
            if (each->generation != generation) {
                each->generation = generation;
                Py_INCREF(each);
                mp_callable_forget(each);
                Py_DECREF(each);
                again = true;
                break;
            }
    }
}

/* _C.callables() -> list of all living callables. */
PyObject *mp_callable_all(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    for (mp_callable *each = ring; list && each; each = each->next == ring ? NULL : each->next)
        if (PyList_Append(list, (PyObject *)each) < 0) Py_CLEAR(list);
    return list;
}

static void ring_enter(mp_callable *self)
{
    self->next = ring ? ring : self;
    self->previous = ring ? ring->previous : self;
    self->next->previous = self->previous->next = self;
    ring = self;
    self->generation = generation;
}

static void ring_leave(mp_callable *self)
{
    if (!self->next) return;
    self->next->previous = self->previous;
    self->previous->next = self->next;
    if (ring == self) ring = self->next == self ? NULL : self->next;
    self->next = self->previous = NULL;
}

/* -- The way of a call -------------------------------------------------------------------------------------------- */

PyObject *mp_call_plain(const mp_call *call)
{ return PyObject_Vectorcall(call->target, call->args, call->nargs, call->kwnames); }

/* A compiled run failed before commit: nothing happened, so the call is simply made, and the user sees eager's outcome. */
static MP_COLD PyObject *repeat_plainly(mp_callable *self, mp_trace *trace, const mp_call *call)
{
    mp_reason why = {0};
    mp_reason_set_exception(&why, MP_REASON_RUN_FAILED);
    PyObject *result = mp_error_kept() ? NULL : mp_call_plain(call);
    if (result) { /* else it is the program's own error, which the compiled run met as well */
        trace->failures++;
        self->last_fallback = why;
        mp_fallbacks_count(&self->fallbacks, &why);
    }
    return result;
}

/* A store would let die what has a finalizer, which runs between the program's stores: in plain Python, and not while it is observed, since
** that lengthens some lives. */
static MP_COLD PyObject *let_die_plainly(mp_callable *self, const mp_call *call)
{
    mp_reason why = {0};
    mp_reason_set(&why, MP_REASON_FOREIGN_FRAME, "%s", "of what a store of the call replaces");
    self->last_fallback = why;
    mp_fallbacks_count(&self->fallbacks, &why);
    return mp_call_plain(call);
}

/* Run a trace whose guards hold; bound: its wanted objects, borrowed. 1: *result is the call's outcome. 0: the data is other. */
static int run(mp_callable *self, mp_trace *trace, PyObject **bound, size_t n_bound, const mp_call *call,
               PyObject **result)
{
    mp_run_end end;
    for (size_t i = 0; i < n_bound; i++) Py_INCREF(bound[i]);
    trace->refs++;
    if (MP_UNLIKELY(self->verify)) {
        end = mp_trace_verify(trace, bound, call, result);
    } else {
        mp_state_busy++;
        end = mp_trace_run(trace, bound, result);
        mp_state_busy--;
    }
    for (size_t i = 0; i < n_bound; i++) Py_DECREF(bound[i]);
    bool other = end == MP_RUN_OTHER || end == MP_RUN_OTHER_VALUE;
    if (MP_UNLIKELY(end == MP_RUN_DEATH)) {
        *result = let_die_plainly(self, call);
    } else if (MP_LIKELY(!other)) {
        trace->hits++;
        self->hits++;
        mp_stats.hits++;
        if (trace->values && self->values_lost) self->values_lost--;
        if ((trace->values || trace->n_checks) && self->data_lost) self->data_lost--;
    } else {
        self->data_missed = true;
        if (end == MP_RUN_OTHER_VALUE) self->value_missed = true;
    }
    if (MP_UNLIKELY(end == MP_RUN_FAILED)) *result = repeat_plainly(self, trace, call);
    mp_trace_release(trace);
    return !other;
}

/* Keep the guard that failed, for explain, logs and torch's fail_on_recompile. */
static void note_miss(mp_callable *self, const mp_trace *trace, mp_guard_id miss)
{
    PyObject *text = mp_guard_describe(trace->guards, miss);
    if (!text)
        mp_error_clear();
    else
        Py_XSETREF(self->last_miss, text);
}

/* Call through `trace` if it holds. 1: *result is the call's outcome (NULL with an exception). 0: it does not hold; *miss tells the guard,
** or is UINT32_MAX if it was the data. */
static int try_trace(mp_callable *self, mp_trace *trace, const mp_call *call, PyObject **result, mp_guard_id *miss)
{
    PyObject *stack[ON_STACK], **bound = stack;
    size_t n_bound = (size_t)trace->n_inputs + trace->n_objects;
    if (n_bound > ON_STACK && !(bound = PyMem_Malloc(n_bound * sizeof *bound))) return 0;
    int done = 0;
    if (mp_guard_check(trace->guards, call, bound, miss)) {
        *miss = UINT32_MAX;
        if (MP_LIKELY(trace->failures < MP_FAILURES)) {
            done = run(self, trace, bound, n_bound, call, result);
        } else {
            mp_reason why = {0};
            mp_reason_set(&why, MP_REASON_RUN_FAILED, "this trace has failed %d times", MP_FAILURES);
            mp_fallbacks_count(&self->fallbacks, &why);
            *result = mp_call_plain(call);
            done = 1;
        }
    }
    if (bound != stack) PyMem_Free(bound);
    return done;
}

/* Most recently hit first. Traces may have been added or dropped while this one ran. */
static void move_to_front(mp_callable *self, const mp_trace *trace)
{
    for (uint32_t i = 1; i < self->n_traces; i++)
        if (self->traces[i] == trace) {
            memmove(self->traces + 1, self->traces, i * sizeof *self->traces);
            self->traces[0] = (mp_trace *)trace;
            return;
        }
}

/* Try all traces. 1: *result is the call's outcome (NULL with an exception). 0: none holds. */
static int try_traces(mp_callable *self, const mp_call *call, PyObject **result)
{
    mp_guard_id first_miss = 0, miss = 0;
    uint64_t resets = self->generation;
    self->value_missed = self->data_missed = false;
    for (uint32_t i = 0; i < self->n_traces; i++) {
        mp_trace *trace = self->traces[i];
        trace->missed = UINT32_MAX;
        if (try_trace(self, trace, call, result, &miss)) {
            if (i) move_to_front(self, trace);
            return 1;
        }
        if (MP_UNLIKELY(self->generation != resets)) return 0;
        if (i < self->n_traces && self->traces[i] == trace) trace->missed = miss;
        if (i == 0) first_miss = miss;
    }
    if (self->n_traces && first_miss != UINT32_MAX) note_miss(self, self->traces[0], first_miss);
    return 0;
}

/* torch.compiler.set_stance asked for another backend: torch compiles the target for it. */
static PyObject *call_forced_backend(mp_callable *self, const mp_call *call)
{
    PyObject *forced = mp_call_imported("magpy.backend", "_forced", "(OO)", self, call->target);
    PyObject *result = forced ? PyObject_Vectorcall(forced, call->args, call->nargs, call->kwnames) : NULL;
    Py_XDECREF(forced);
    return result;
}

static MP_COLD PyObject *fail_on_recompile(mp_callable *self, const mp_call *call)
{
    PyObject *function = PyMethod_Check(call->target) ? PyMethod_GET_FUNCTION(call->target) : call->target;
    PyCodeObject *code = PyFunction_Check(function) ? (PyCodeObject *)PyFunction_GET_CODE(function) : NULL;
    if (code)
        PyErr_Format(
            PyExc_RuntimeError,
            "Detected recompile when torch.compile stance is 'fail_on_recompile'. filename: '%U', function name: "
            "'%U', line number: %d%s%V",
            code->co_filename, code->co_name, code->co_firstlineno,
            self->last_miss ? "\ntriggered by the following guard failure(s):\n- " : "", self->last_miss, "");
    else
        PyErr_Format(PyExc_RuntimeError,
                     "Detected recompile when torch.compile stance is 'fail_on_recompile'. callable: %R", call->target);
    return NULL;
}

PyObject *mp_callable_call(mp_callable *self, const mp_call *call)
{
    if (MP_UNLIKELY(mp_state_busy) || mp_observe_active()) return mp_call_plain(call);
    mp_stance stance = mp_state_stance();
    if (MP_UNLIKELY(stance != MP_STANCE_DEFAULT)) {
        if (stance == MP_STANCE_FORCE_EAGER) return mp_call_plain(call);
        if (stance == MP_STANCE_FORCE_BACKEND) return call_forced_backend(self, call);
        if (stance == MP_STANCE_EAGER_THEN_COMPILE && !self->met) {
            self->met = true;
            return mp_call_plain(call);
        }
    }
    mp_stats.calls++;
    self->calls++;
    PyObject *result = NULL;
    Py_INCREF(self); /* the call may drop the last reference to us */
    PyObject *outer = mp_draws_begin();
    if (!try_traces(self, call, &result)) {
        self->misses++;
        mp_stats.misses++;
        if (stance == MP_STANCE_EAGER_ON_RECOMPILE)
            result = mp_call_plain(call);
        else if (stance == MP_STANCE_FAIL_ON_RECOMPILE)
            result = fail_on_recompile(self, call);
        else
            result = mp_miss_observe(self, call);
    }
    mp_draws_end(outer);
    Py_DECREF(self);
    return mp_error_resume(result);
}

static PyObject *callable_vectorcall(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    mp_callable *self = (mp_callable *)object;
    if (!self->target) return PyErr_Format(PyExc_TypeError, "a frame's callable cannot be called from outside");
    mp_call call = {self->target, args, PyVectorcall_NARGS(nargsf), kwnames};
    return mp_callable_call(self, &call);
}

/* -- Life ---------------------------------------------------------------------------------------------------------- */

/* Read a flag or number of the options dict. Returns 0, or -1 with an exception. */
static int option(PyObject *options, const char *name, long otherwise, long *value)
{
    PyObject *object = PyDict_GetItemString(options, name);
    *value = object ? PyLong_AsLong(object) : otherwise;
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static mp_callable *callable_make(PyObject *target, PyObject *options)
{
    long trace_limit, verify, dry_run, fullgraph, frames;
    if (option(options, "trace_limit", 16, &trace_limit) < 0 || option(options, "verify", 0, &verify) < 0 ||
        option(options, "dry_run", 0, &dry_run) < 0 || option(options, "fullgraph", 0, &fullgraph) < 0 ||
        option(options, "frames", 1, &frames) < 0)
        return NULL;
    mp_callable *self = (mp_callable *)mp_callable_type->tp_alloc(mp_callable_type, 0);
    if (!self) return NULL;
    self->vectorcall = callable_vectorcall;
    self->target = Py_XNewRef(target);
    self->options = Py_NewRef(options);
    self->trace_limit = trace_limit < 0 ? 0 : (uint32_t)trace_limit;
    self->verify = verify;
    self->dry_run = dry_run;
    self->fullgraph = fullgraph;
    self->frames = frames;
    ring_enter(self);
    return self;
}

mp_callable *mp_callable_for_frame(const mp_callable *root)
{
    mp_callable *self = callable_make(NULL, root->options);
    if (self) self->fullgraph = false; /* the root has already raised, or does not want to */
    return self;
}

static PyObject *callable_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"target", "options", NULL};
    PyObject *target, *options = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O!:Callable", names, &target, &PyDict_Type, &options))
        return NULL;
    if (!PyCallable_Check(target)) return PyErr_Format(PyExc_TypeError, "%R is not callable", target);
    PyObject *copy = options ? PyDict_Copy(options) : PyDict_New();
    mp_callable *self = copy ? callable_make(target, copy) : NULL;
    Py_XDECREF(copy);
    return (PyObject *)self;
}

static int callable_traverse(PyObject *object, visitproc visit, void *arg)
{
    mp_callable *self = (mp_callable *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->target);
    Py_VISIT(self->options);
    Py_VISIT(self->dict);
    Py_VISIT(self->callees);
    for (uint32_t i = 0; i < self->n_traces; i++) {
        int stop = mp_trace_traverse(self->traces[i], visit, arg);
        if (stop) return stop;
    }
    return 0;
}

static int callable_clear(PyObject *object)
{
    mp_callable *self = (mp_callable *)object;
    mp_callable_forget(self);
    Py_CLEAR(self->target);
    Py_CLEAR(self->options);
    Py_CLEAR(self->dict);
    return 0;
}

static void callable_dealloc(PyObject *object)
{
    mp_callable *self = (mp_callable *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    ring_leave(self);
    if (self->weakrefs) PyObject_ClearWeakRefs(object);
    callable_clear(object);
    mp_fallbacks_clear(&self->fallbacks);
    PyMem_Free(self->vain);
    type->tp_free(object);
    Py_DECREF(type);
}

/* -- Python ------------------------------------------------------------------------------------------------------ */

static PyObject *callable_descr_get(PyObject *self, PyObject *instance, PyObject *owner)
{
    if (!instance || instance == Py_None) return Py_NewRef(self);
    return PyMethod_New(self, instance);
}

static PyObject *callable_repr(PyObject *object)
{
    mp_callable *self = (mp_callable *)object;
    return self->target ? PyUnicode_FromFormat("<magpy callable of %R>", self->target)
                        : PyUnicode_FromString("<magpy callable of a frame>");
}

/* describe() -> dict: calls, hits, misses, traces, fallbacks, callees, last_miss. */
static PyObject *callable_describe(PyObject *object, PyObject *unused)
{
    mp_callable *self = (mp_callable *)object;
    PyObject *traces = PyList_New(0), *fallbacks = NULL, *callees = PyDict_New(), *result = NULL;
    if (!traces || !callees) goto done;
    for (uint32_t i = 0; i < self->n_traces; i++) {
        PyObject *text = mp_trace_describe(self->traces[i]);
        int failed = !text || PyList_Append(traces, text) < 0;
        Py_XDECREF(text);
        if (failed) goto done;
    }
    if (self->callees && PyDict_Update(callees, self->callees) < 0) goto done;
    fallbacks = mp_fallbacks_list(&self->fallbacks);
    if (fallbacks)
        result = Py_BuildValue("{s:O,s:K,s:K,s:K,s:O,s:O,s:O,s:O}", "target", self->target ? self->target : Py_None,
                               "calls", (unsigned long long)self->calls, "hits", (unsigned long long)self->hits,
                               "misses", (unsigned long long)self->misses, "traces", traces, "fallbacks", fallbacks,
                               "callees", callees, "last_miss", self->last_miss ? self->last_miss : Py_None);
done:
    Py_XDECREF(traces);
    Py_XDECREF(fallbacks);
    Py_XDECREF(callees);
    return result;
}

/* runners() -> list of (runner, info), one for each trace. */
static PyObject *callable_runners(PyObject *object, PyObject *unused)
{
    mp_callable *self = (mp_callable *)object;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < self->n_traces; i++) {
        const mp_trace *trace = self->traces[i];
        PyObject *pair = PyTuple_Pack(2, trace->runner ? trace->runner : Py_None, trace->info ? trace->info : Py_None);
        if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *callable_reduce(PyObject *object, PyObject *unused)
{
    mp_callable *self = (mp_callable *)object;
    if (!self->target) return PyErr_Format(PyExc_TypeError, "a frame's callable cannot be copied");
    return Py_BuildValue("O(OO)", Py_TYPE(object), self->target, self->options); /* a copy has traces of its own */
}

static PyObject *callable_reset(PyObject *object, PyObject *unused)
{
    mp_callable_forget((mp_callable *)object);
    Py_RETURN_NONE;
}

static PyMethodDef callable_methods[] = {
    {"describe", callable_describe, METH_NOARGS,
     "describe() -> dict\n\nCalls, traces, fallbacks and callees, for magpy.explain."},
    {"runners", callable_runners, METH_NOARGS, "runners() -> list of (runner, info)\n\nWhat runs each trace's graph."},
    {"reset", callable_reset, METH_NOARGS, "reset()\n\nForget all traces."},
    {"__reduce__", callable_reduce, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef callable_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(mp_callable, vectorcall), READONLY},
    {"__dictoffset__", T_PYSSIZET, offsetof(mp_callable, dict), READONLY},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(mp_callable, weakrefs), READONLY},
    {"__wrapped__", T_OBJECT, offsetof(mp_callable, target), READONLY, "the plain function"},
    {"options", T_OBJECT, offsetof(mp_callable, options), READONLY, "all options of this callable"},
    {"calls", T_ULONGLONG, offsetof(mp_callable, calls), READONLY, "calls made"},
    {"hits", T_ULONGLONG, offsetof(mp_callable, hits), READONLY, "calls served by a trace"},
    {"misses", T_ULONGLONG, offsetof(mp_callable, misses), READONLY, "calls for which no trace held"},
    {NULL},
};

static PyObject *callable_count(PyObject *object, void *unused)
{ return PyLong_FromUnsignedLong(((mp_callable *)object)->n_traces); }

static PyGetSetDef callable_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict},
    {"n_traces", callable_count, NULL, "traces kept"},
    {NULL},
};

static PyType_Slot callable_slots[] = {
    {Py_tp_doc, "Callable(target, options={})\n\nA callable that observes calls of target and compiles what it saw."},
    {Py_tp_new, callable_new},
    {Py_tp_dealloc, callable_dealloc},
    {Py_tp_traverse, callable_traverse},
    {Py_tp_clear, callable_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, callable_descr_get},
    {Py_tp_repr, callable_repr},
    {Py_tp_methods, callable_methods},
    {Py_tp_members, callable_members},
    {Py_tp_getset, callable_getset},
    {0, NULL},
};

PyType_Spec mp_callable_spec = {
    .name = "magpy._C.Callable",
    .basicsize = sizeof(mp_callable),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .slots = callable_slots,
};
