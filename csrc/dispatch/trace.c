/* One trace: its life, and one compiled run (compute, rebuild, commit). */
#include "dispatch/dispatch.h"
#include "run/torch_abi.h"
#include "trace/ndarray.h"

#include <string.h>

#define ON_STACK 64 /* outputs kept on the C stack during a run; more are allocated */

/* -- Life ---------------------------------------------------------------------------------------------------------- */

void mp_trace_release(mp_trace *trace)
{
    if (!trace || --trace->refs) return;
    mp_guard_free(trace->guards);
    mp_mock_free(trace->mocks);
    Py_XDECREF(trace->runner);
    Py_XDECREF(trace->info);
    Py_XDECREF(trace->marks);
    Py_XDECREF(trace->counters);
    for (uint32_t i = 0; trace->kept && i < trace->n_outputs; i++) Py_XDECREF(trace->kept[i]);
    for (uint32_t i = 0; i < trace->n_checks; i++) {
        mp_trace_check *check = &trace->checks[i];
        Py_XDECREF(check->func);
        Py_XDECREF(check->args);
        Py_XDECREF(check->kwargs);
        Py_XDECREF(check->result);
        Py_XDECREF(check->site);
        PyMem_Free(check->outputs);
    }
    mp_draws_free(trace);
    PyMem_Free(trace->checks);
    PyMem_Free(trace->kept);
    PyMem_Free(trace->mutated);
    PyMem_Free(trace->uncounted);
    PyMem_Free(trace);
}

int mp_trace_traverse(mp_trace *trace, visitproc visit, void *arg)
{
    Py_VISIT(trace->runner);
    Py_VISIT(trace->info);
    for (uint32_t i = 0; trace->kept && i < trace->n_outputs; i++) Py_VISIT(trace->kept[i]);
    for (uint32_t i = 0; i < trace->n_checks; i++) {
        Py_VISIT(trace->checks[i].func);
        Py_VISIT(trace->checks[i].args);
        Py_VISIT(trace->checks[i].kwargs);
    }
    for (uint32_t i = 0; i < trace->n_draws; i++) {
        Py_VISIT(trace->draws[i].func);
        Py_VISIT(trace->draws[i].args);
        Py_VISIT(trace->draws[i].kwargs);
        Py_VISIT(trace->draws[i].keeper);
    }
    int stop = trace->guards ? mp_guard_traverse(trace->guards, visit, arg) : 0;
    return stop || !trace->mocks ? stop : mp_mock_traverse(trace->mocks, visit, arg);
}

/* "Tensor.__bool__ is True (model.py:41)" for each check: owned list, or NULL with an exception. */
static PyObject *checks_describe(const mp_trace *trace)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < trace->n_checks; i++) {
        const mp_trace_check *check = &trace->checks[i];
        PyObject *name = PyObject_GetAttrString(check->func, "__qualname__");
        if (!name) mp_error_clear();
        PyObject *shown = check->in_graph ? PyTuple_GET_ITEM(check->args, 0) : name ? name : check->func;
        PyObject *text = PyUnicode_FromFormat("%S gives %R (%U)", shown, check->result, check->site);
        Py_XDECREF(name);
        if (!text || PyList_Append(list, text) < 0) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

PyObject *mp_trace_describe(const mp_trace *trace)
{
    PyObject *checks = checks_describe(trace);
    PyObject *guards = PyList_New(0), *writes = NULL, *mocks = NULL, *mutated = PyList_New(0), *result = NULL;
    if (!guards || !mutated || !checks) goto done;
    for (uint32_t i = 0; i < mp_guard_count(trace->guards); i++) {
        PyObject *text = mp_guard_describe(trace->guards, i);
        int failed = !text || PyList_Append(guards, text) < 0;
        Py_XDECREF(text);
        if (failed) goto done;
    }
    for (uint32_t i = 0; i < trace->n_mutated; i++) {
        PyObject *number = PyLong_FromUnsignedLong(trace->mutated[i]);
        int failed = !number || PyList_Append(mutated, number) < 0;
        Py_XDECREF(number);
        if (failed) goto done;
    }
    writes = mp_mock_describe_writes(trace->mocks);
    mocks = writes ? mp_mock_describe_result(trace->mocks) : NULL;
    if (mocks)
        result =
            Py_BuildValue("{s:O,s:O,s:O,s:O,s:O,s:O,s:O,s:K,s:I,s:I}", "guards", guards, "checks", checks, "writes",
                          writes, "mocks", mocks, "mutated", mutated, "runner", trace->runner ? trace->runner : Py_None,
                          "info", trace->info ? trace->info : Py_None, "hits", (unsigned long long)trace->hits,
                          "inputs", trace->n_inputs, "operators", trace->n_ops);
done:
    Py_XDECREF(checks);
    Py_XDECREF(guards);
    Py_XDECREF(writes);
    Py_XDECREF(mocks);
    Py_XDECREF(mutated);
    return result;
}

/* -- Compute ------------------------------------------------------------------------------------------------------- */

/* An int or float as a graph input. Owned; an int that is too large for a tensor is other data. */
static PyObject *number_input(PyObject *number)
{
    static PyObject *make; /* owned by the process: magpy.steps.number_input */
    if (!make) {
        make = mp_import("magpy.steps", "number_input");
        if (!make) return NULL;
    }
    return PyObject_CallOneArg(make, number);
}

static int compute_from(mp_trace *trace, PyObject *const *inputs, PyObject **outputs);

/* Fill outputs[n_outputs] (owned). Returns 0, or -1 with an exception and nothing owned in outputs. */
static int compute(mp_trace *trace, PyObject *const *bound, PyObject **outputs)
{
    if (!trace->n_numbers) return compute_from(trace, bound, outputs);
    uint32_t n = trace->n_inputs + trace->n_drawn;
    PyObject **inputs = PyMem_Calloc(n, sizeof *inputs);
    if (!inputs) return PyErr_NoMemory(), -1;
    int done = 0;
    for (uint32_t i = 0; i < n && !done; i++) {
        bool number = PyLong_CheckExact(bound[i]) || PyFloat_CheckExact(bound[i]);
        inputs[i] = number ? number_input(bound[i]) : Py_NewRef(bound[i]);
        if (!inputs[i]) done = -1;
    }
    if (!done) done = compute_from(trace, inputs, outputs);
    for (uint32_t i = 0; i < n; i++) Py_XDECREF(inputs[i]);
    PyMem_Free(inputs);
    return done;
}

static int compute_from(mp_trace *trace, PyObject *const *inputs, PyObject **outputs)
{
    if (trace->kept) {
        for (uint32_t i = 0; i < trace->n_outputs; i++) outputs[i] = Py_XNewRef(trace->kept[i]);
        return 0;
    }
    if (!trace->runner) return 0;
    uint32_t n = trace->n_inputs + trace->n_drawn;
    if (trace->plan) return mp_plan_run(trace->plan, inputs, outputs);
    if (trace->bound) return mp_bound_run(trace->bound, inputs, n, outputs);
    PyObject *list = PyList_New(n);
    if (!list) return -1;
    for (uint32_t i = 0; i < n; i++) PyList_SET_ITEM(list, i, Py_NewRef(inputs[i]));
    PyObject *answer = PyObject_CallOneArg(trace->runner, list);
    Py_DECREF(list);
    PyObject *items = answer ? PySequence_Fast(answer, "a graph's runner must return a sequence") : NULL;
    Py_XDECREF(answer);
    if (!items) return -1;
    if (PySequence_Fast_GET_SIZE(items) != trace->n_outputs) {
        PyErr_Format(PyExc_RuntimeError, "the graph gave %zd outputs instead of %u", PySequence_Fast_GET_SIZE(items),
                     trace->n_outputs);
        Py_DECREF(items);
        return -1;
    }
    for (uint32_t i = 0; i < trace->n_outputs; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        outputs[i] = item == Py_None ? NULL : Py_NewRef(item);
    }
    Py_DECREF(items);
    return 0;
}

/* How a run ended that raised: stopped by a step that found other data (its exception is cleared), or FAILED. */
static mp_run_end other_data(void)
{
    if (!PyErr_Occurred() || !PyErr_ExceptionMatches(mp_other_data)) return MP_RUN_FAILED;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *args = error ? PyObject_GetAttrString(error, "args") : NULL;
    bool value = args && PyTuple_Check(args) && PyTuple_GET_SIZE(args) && PyTuple_GET_ITEM(args, 0) == Py_True;
    Py_XDECREF(args);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    PyErr_Clear();
    return value ? MP_RUN_OTHER_VALUE : MP_RUN_OTHER;
}

/* -- Checks on data ---------------------------------------------------------------------------------------------- */

/* 1 the data is as the program saw it, 0 it is not, -1 an exception. */
static int check_holds(const mp_trace_check *check, PyObject *const *outputs, const mp_drawn *drawn)
{
    Py_ssize_t n = PyTuple_GET_SIZE(check->args);
    PyObject *args = PyTuple_New(n);
    for (Py_ssize_t i = 0; args && i < n; i++) {
        PyObject *item = PyTuple_GET_ITEM(check->args, i);
        uint32_t draw = mp_drawn_number(item);
        if (check->outputs[i] != MP_NO_VALUE)
            item = outputs[check->outputs[i]];
        else if (draw != MP_NO_DRAW)
            item = drawn->given[draw];
        PyTuple_SET_ITEM(args, i, Py_NewRef(item ? item : Py_None));
    }
    PyObject *result = args ? PyObject_Call(check->func, args, check->kwargs) : NULL;
    Py_XDECREF(args);
    if (!result) return -1;
    int holds = mp_answer_same(check->result, result);
    Py_DECREF(result);
    return holds;
}

/* DONE: all hold; OTHER, OTHER_VALUE, or FAILED with an exception. early: those of what was drawn, with `outputs` the drawn inputs. */
static mp_run_end checks_hold(const mp_trace *trace, PyObject *const *outputs, const mp_drawn *drawn, bool early)
{
    for (uint32_t i = 0; i < trace->n_checks; i++) {
        if (trace->checks[i].in_graph || trace->checks[i].early != early) continue;
        int holds = check_holds(&trace->checks[i], outputs, drawn);
        if (holds < 0) return MP_RUN_FAILED;
        if (!holds) return mp_answer_is_value(trace->checks[i].result) ? MP_RUN_OTHER_VALUE : MP_RUN_OTHER;
    }
    return MP_RUN_DONE;
}

/* Draw, look at what was drawn, compute, look at what was computed: as checks_hold. */
static mp_run_end draw_and_compute(mp_trace *trace, PyObject *const *bound, mp_drawn *drawn, PyObject **outputs)
{
    int drew = mp_draw_all(trace, bound, drawn);
    if (drew != 1) return drew < 0 ? MP_RUN_FAILED : drew ? MP_RUN_OTHER_VALUE : MP_RUN_OTHER;
    mp_run_end end = trace->n_drawn ? checks_hold(trace, drawn->inputs + trace->n_inputs, drawn, true) : MP_RUN_DONE;
    if (end != MP_RUN_DONE) return end;
    if (compute(trace, drawn->inputs, outputs) < 0) return other_data();
    if (trace->counters && !trace->kept && mp_counters_arrange(trace->counters, drawn->inputs, outputs) < 0)
        return MP_RUN_FAILED;
    return checks_hold(trace, outputs, drawn, false);
}

/* -- Commit of tensors -------------------------------------------------------------------------------------------- */

static struct {
    PyObject *copy;        /* owned: torch.Tensor.copy_ */
    PyObject *set_enabled; /* owned: torch._C._set_grad_enabled */
    PyObject *is_enabled;  /* owned: torch.is_grad_enabled */
} torch_calls;

static int torch_calls_load(void)
{
    if (torch_calls.copy) return 0;
    PyObject *core = PyImport_ImportModule("torch._C"), *torch = PyImport_ImportModule("torch");
    PyObject *tensor = torch ? PyObject_GetAttrString(torch, "Tensor") : NULL;
    if (core && tensor) {
        Py_XSETREF(torch_calls.set_enabled, PyObject_GetAttrString(core, "_set_grad_enabled"));
        Py_XSETREF(torch_calls.is_enabled, PyObject_GetAttrString(torch, "is_grad_enabled"));
        if (torch_calls.set_enabled && torch_calls.is_enabled)
            torch_calls.copy = PyObject_GetAttrString(tensor, "copy_");
    }
    Py_XDECREF(core);
    Py_XDECREF(torch);
    Py_XDECREF(tensor);
    return torch_calls.copy ? 0 : -1;
}

static int set_grad(PyObject *enabled)
{
    PyObject *done = PyObject_CallOneArg(torch_calls.set_enabled, enabled);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Copy the new data of mutated inputs into them, without a gradient: what the gradient needs was made by the runner. Returns the number
** of inputs written before an exception, or n_mutated. */
static uint32_t copy_mutated(const mp_trace *trace, PyObject *const *inputs, PyObject *const *outputs)
{
    if (torch_calls_load() < 0) return 0;
    PyObject *was = PyObject_CallNoArgs(torch_calls.is_enabled);
    if (!was || set_grad(Py_False) < 0) {
        Py_XDECREF(was);
        return 0;
    }
    uint32_t written = 0;
    for (; written < trace->n_mutated; written++) {
        if (outputs[written] == inputs[trace->mutated[written]]) continue; /* written in place already */
        PyObject *input = inputs[trace->mutated[written]];
        PyObject *target = trace->uncounted[written] ? PyObject_GetAttrString(input, "data") : Py_NewRef(input);
        PyObject *pair[] = {target, outputs[written]};
        PyObject *done = target ? PyObject_Vectorcall(torch_calls.copy, pair, 2, NULL) : NULL;
        Py_XDECREF(target);
        if (!done) break;
        Py_DECREF(done);
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (set_grad(was) < 0) mp_error_clear(); /* setting a flag to a bool that it had before does not fail */
    PyErr_Restore(type, value, traceback);
    Py_DECREF(was);
    return written;
}

/* -- Run -------------------------------------------------------------------------------------------------------------- */

/* The state of torch's random generator, and of those that the program was given: an owned list of (generator, state), or NULL with an
** exception. */
static PyObject *random_state(const mp_trace *trace)
{
    PyObject *own = mp_import("torch.random", "default_generator");
    PyObject *others =
        trace->info && PyDict_Check(trace->info) ? PyDict_GetItemString(trace->info, "generators") : NULL;
    Py_ssize_t n = others && PyTuple_Check(others) ? PyTuple_GET_SIZE(others) : 0;
    PyObject *states = own ? PyList_New(n + 1) : NULL;
    for (Py_ssize_t i = 0; states && i <= n; i++) {
        PyObject *generator = i ? PyTuple_GET_ITEM(others, i - 1) : own;
        PyObject *state = PyObject_CallMethod(generator, "get_state", NULL);
        PyObject *pair = state ? PyTuple_Pack(2, generator, state) : NULL;
        Py_XDECREF(state);
        if (pair)
            PyList_SET_ITEM(states, i, pair);
        else
            Py_CLEAR(states);
    }
    Py_XDECREF(own);
    return states;
}

static void random_restore(PyObject *states)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(states); i++) {
        PyObject *pair = PyList_GET_ITEM(states, i);
        PyObject *done = PyObject_CallMethod(PyTuple_GET_ITEM(pair, 0), "set_state", "O", PyTuple_GET_ITEM(pair, 1));
        if (!done) mp_log("warning", "the random state could not be put back after a failed compiled run");
        mp_error_clear();
        Py_XDECREF(done);
    }
    PyErr_Restore(type, value, traceback);
}

/* An exception before commit: can the call be made again? Not after KeyboardInterrupt and the like, which are the user's. */
static mp_run_end failed(void) { return PyErr_ExceptionMatches(PyExc_Exception) ? MP_RUN_FAILED : MP_RUN_RAISED; }

/* Releasing tensors may run weak reference callbacks: keep the pending exception. */
static void release_outputs(const mp_trace *trace, PyObject **outputs)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (uint32_t i = 0; i < trace->n_outputs; i++) Py_XDECREF(outputs[i]);
    PyErr_Restore(type, value, traceback);
}

/* Set requires_grad of the inputs whose flag the call changes, for autograd to see it while the graph runs; or put it back as it was. False
** with an exception. */
static bool mark_inputs(const mp_trace *trace, PyObject *const *inputs, bool back)
{
    Py_ssize_t n = trace->marks ? PyTuple_GET_SIZE(trace->marks) : 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *pair = PyTuple_GET_ITEM(trace->marks, i);
        bool flag = (PyTuple_GET_ITEM(pair, 1) == Py_True) != back;
        Py_ssize_t number = PyLong_AsSsize_t(PyTuple_GET_ITEM(pair, 0));
        if (PyObject_SetAttrString(inputs[number], "requires_grad", flag ? Py_True : Py_False) < 0) return false;
    }
    return true;
}

static void unmark_inputs(const mp_trace *trace, PyObject *const *inputs)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    mark_inputs(trace, inputs, true);
    PyErr_Clear(); /* a flag that could be set can be put back */
    PyErr_Restore(type, value, traceback);
}

static mp_run_end run_with(mp_trace *trace, PyObject *const *bound, PyObject **result)
{
    PyObject *stack[ON_STACK] = {NULL}, **outputs = stack, *random = NULL;
    *result = NULL;
    if (trace->n_outputs > ON_STACK && !(outputs = PyMem_Calloc(trace->n_outputs, sizeof *outputs))) {
        PyErr_NoMemory();
        return MP_RUN_FAILED;
    }
    mp_drawn drawn = {0};
    mp_run_end end = MP_RUN_FAILED;
    if (mark_inputs(trace, bound, false) && (!trace->random || (random = random_state(trace))))
        end = draw_and_compute(trace, bound, &drawn, outputs);
    if (end == MP_RUN_FAILED) {
        end = failed();
    } else if (end == MP_RUN_DONE) {
        mp_mock_run *run =
            mp_mock_build(trace->mocks, bound + trace->n_inputs, outputs + trace->n_mutated, drawn.given);
        uint32_t copied = 0;
        if (!run) {
            end = failed();
        } else if (MP_UNLIKELY(mp_mock_lets_die(run, bound, (size_t)trace->n_inputs + trace->n_objects))) {
            mp_mock_discard(run);
            end = MP_RUN_DEATH;
        } else if (trace->n_mutated && (copied = copy_mutated(trace, bound, outputs)) < trace->n_mutated) {
            mp_mock_discard(run);
            /* Copies between tensors of one type, shape and device do not fail midway. The first may (an input that must not be
            ** written): nothing is visible yet. */
            end = copied ? MP_RUN_RAISED : failed();
        } else {
            *result = mp_mock_commit(run);
            end = *result ? MP_RUN_DONE : MP_RUN_RAISED;
        }
    }
    if (end != MP_RUN_DONE && end != MP_RUN_RAISED) {
        unmark_inputs(trace, bound);
        if (random) random_restore(random);
        mp_drawn_undo(&drawn);
        if (end != MP_RUN_FAILED) mp_drawn_keep(trace, &drawn);
    }
    mp_drawn_end(&drawn);
    Py_XDECREF(random);
    release_outputs(trace, outputs);
    if (outputs != stack) PyMem_Free(outputs);
    return end;
}

/* -- Option verify ------------------------------------------------------------------------------------------------------- */

/* [(input, new data)] of the mutated inputs: owned list, or NULL with an exception. */
static PyObject *mutated_pairs(const mp_trace *trace, PyObject *const *inputs, PyObject *const *outputs)
{
    PyObject *pairs = PyList_New(trace->n_mutated);
    for (uint32_t i = 0; pairs && i < trace->n_mutated; i++) {
        PyObject *pair = PyTuple_Pack(2, inputs[trace->mutated[i]], outputs[i] ? outputs[i] : Py_None);
        if (!pair)
            Py_CLEAR(pairs);
        else
            PyList_SET_ITEM(pairs, i, pair);
    }
    return pairs;
}

static mp_run_end verify_with(mp_trace *trace, PyObject *const *bound, const mp_call *call, PyObject **answer)
{
    PyObject **outputs = PyMem_Calloc(trace->n_outputs + 1, sizeof *outputs), *pairs = NULL, *compiled = NULL,
             *stores = NULL, *result = NULL;
    *answer = NULL;
    if (!outputs) return PyErr_NoMemory(), MP_RUN_RAISED;
    PyObject *random = random_state(trace);
    mp_mock_run *run = NULL;
    mp_run_end end = MP_RUN_FAILED;
    mp_state_busy++;
    mp_drawn drawn = {0};
    if (random && mark_inputs(trace, bound, false)) end = draw_and_compute(trace, bound, &drawn, outputs);
    if (end == MP_RUN_DONE && (pairs = mutated_pairs(trace, bound, outputs)))
        run = mp_mock_build(trace->mocks, bound + trace->n_inputs, outputs + trace->n_mutated, drawn.given);
    mp_state_busy--;
    if (run && (stores = mp_mock_stores(run))) compiled = Py_XNewRef(mp_mock_result(run));
    mp_mock_discard(run);
    unmark_inputs(trace, bound);
    if (random) random_restore(random);
    mp_drawn_undo(&drawn);
    if (end == MP_RUN_OTHER || end == MP_RUN_OTHER_VALUE) mp_drawn_keep(trace, &drawn);
    mp_drawn_end(&drawn);
    if (end == MP_RUN_OTHER || end == MP_RUN_OTHER_VALUE) goto done;
    end = MP_RUN_RAISED;
    PyObject *error_type, *error, *traceback;
    PyErr_Fetch(&error_type, &error, &traceback); /* of the compiled run: part of what is compared */
    PyErr_NormalizeException(&error_type, &error, &traceback);
    if ((result = mp_call_plain(call))) {
        PyObject *done = mp_call_imported("magpy.verify", "compare", "(OOOOO)", compiled ? compiled : Py_None, result,
                                          pairs ? pairs : Py_None, stores ? stores : Py_None, error ? error : Py_None);
        if (!done) Py_CLEAR(result);
        Py_XDECREF(done);
    }
    Py_XDECREF(error_type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    if (result) end = MP_RUN_DONE;
    *answer = result;
done:
    Py_XDECREF(random);
    Py_XDECREF(stores);
    Py_XDECREF(pairs);
    Py_XDECREF(compiled);
    release_outputs(trace, outputs);
    PyMem_Free(outputs);
    return end;
}

/* -- Arrays among the inputs -------------------------------------------------------------------------------------------------- */

static void free_shown(const mp_trace *trace, PyObject **shown)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (uint32_t i = 0; shown && i < trace->n_inputs + trace->n_objects; i++) Py_XDECREF(shown[i]);
    PyMem_Free(shown);
    PyErr_Restore(type, value, traceback);
}

/* What is bound, with tensors over the memory of the arrays among the graph's inputs. Owned array of owned, or NULL with an exception. */
static PyObject **with_shown(const mp_trace *trace, PyObject *const *bound)
{
    static PyObject *make; /* owned by the process: magpy.arrays.array_input */
    if (!make) {
        make = mp_import("magpy.arrays", "array_input");
        if (!make) return NULL;
    }
    uint32_t n = trace->n_inputs + trace->n_objects;
    PyObject **shown = PyMem_Calloc(n + 1, sizeof *shown);
    if (!shown) {
        PyErr_NoMemory();
        return NULL;
    }
    for (uint32_t i = 0; i < n; i++) {
        bool array = i < trace->n_inputs && mp_is_array(bound[i]);
        shown[i] = array ? PyObject_CallOneArg(make, bound[i]) : Py_XNewRef(bound[i]);
        if (!array || shown[i]) continue;
        free_shown(trace, shown);
        return NULL;
    }
    return shown;
}

mp_run_end mp_trace_run(mp_trace *trace, PyObject *const *bound, PyObject **result)
{
    if (MP_LIKELY(!trace->n_arrays)) return run_with(trace, bound, result);
    *result = NULL;
    PyObject **shown = with_shown(trace, bound);
    mp_run_end end = shown ? run_with(trace, shown, result) : failed();
    free_shown(trace, shown);
    return end;
}

mp_run_end mp_trace_verify(mp_trace *trace, PyObject *const *bound, const mp_call *call, PyObject **result)
{
    if (!trace->n_arrays) return verify_with(trace, bound, call, result);
    *result = NULL;
    PyObject **shown = with_shown(trace, bound);
    mp_run_end end = shown ? verify_with(trace, shown, call, result) : MP_RUN_RAISED;
    free_shown(trace, shown);
    return end;
}
