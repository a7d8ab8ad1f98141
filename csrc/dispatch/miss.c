/* Misses: observe the call and make a trace of it. */
#include "dispatch/dispatch.h"
#include "observe/observe.h"
#include "trace/ndarray.h"
#include "trace/tensors.h"

#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- Calls observed in vain ------------------------------------------------------------------------------------------ */

/* After how many vain observations of one call shape the call is no longer observed. 1: what failed depends on the program alone, and finding
** out again is dear. 0: it depends on the moment (a debugger, another thread); always try again. */
static uint32_t patience(mp_reason_code code)
{
    switch (code) {
    case MP_REASON_TRACER_PRESENT:
    case MP_REASON_TRACER_REMOVED:
    case MP_REASON_TOO_DEEP:
    case MP_REASON_FOREIGN_FRAME:
    case MP_REASON_TORCH_STATE:
    case MP_REASON_NO_MEMORY: return 0;
    case MP_REASON_LOWERING_FAILED:
    case MP_REASON_OPERATOR:
    case MP_REASON_COMPILE_FAILED: return 1;
    case MP_REASON_EXCEPTION: return 8;
    default: return 3;
    }
}

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash ^= word + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
    return hash * 0xff51afd7ed558ccdu;
}

/* What a call looks like from outside: count, names, types and sizes of its arguments. Collisions only cost a chance to compile. */
uint64_t mp_miss_shape(const mp_call *call)
{
    size_t n = call->nargs + (call->kwnames ? (size_t)PyTuple_GET_SIZE(call->kwnames) : 0);
    if (!mp_torch.loaded && mp_torch_load() < 0) mp_error_clear(); /* then all sizes are one shape */
    uint64_t hash = mix(n, call->nargs);
    for (size_t i = 0; i < n; i++) {
        PyObject *arg = call->args[i];
        hash = mix(hash, (uintptr_t)Py_TYPE(arg));
        if (PyLong_CheckExact(arg) || PyBool_Check(arg) || arg == Py_None) {
            hash = mix(hash, (uint64_t)PyObject_Hash(arg));
        } else if (mp_torch.loaded && mp_torch.layout_verified && mp_tensor_exact(arg)) {
            int64_t ndim = 0, *sizes = NULL;
            int32_t dtype = 0;
            mp_handle handle = mp_tensor_handle(arg);
            if (mp_torch.get_dim(handle, &ndim) || mp_torch.get_dtype(handle, &dtype)) continue;
            hash = mix(mix(hash, (uint64_t)ndim), (uint64_t)dtype);
            if (ndim && !mp_torch.get_sizes(handle, &sizes))
                for (int64_t d = 0; d < ndim; d++) hash = mix(hash, (uint64_t)sizes[d]);
        }
    }
    return hash;
}

const mp_reason *mp_miss_in_vain(const mp_callable *self, uint64_t shape)
{
    for (uint32_t i = 0; i < self->n_vain; i++) {
        const mp_vain *row = &self->vain[i];
        uint32_t limit = patience(row->why.code);
        if (row->shape == shape && limit && row->count >= limit) return &row->why;
    }
    return NULL;
}

static void remember_vain(mp_callable *self, uint64_t shape, const mp_reason *why)
{
    if (!patience(why->code)) return;
    if (!self->vain && !(self->vain = PyMem_Calloc(MP_SHAPES, sizeof *self->vain))) return; /* then it is tried again */
    mp_vain *row = NULL;
    for (uint32_t i = 0; i < self->n_vain && !row; i++)
        if (self->vain[i].shape == shape) row = &self->vain[i];
    if (!row) {
        if (self->n_vain == MP_SHAPES) memmove(self->vain, self->vain + 1, --self->n_vain * sizeof *self->vain);
        row = &self->vain[self->n_vain++];
        *row = (mp_vain){.shape = shape};
    }
    row->count = row->why.code == why->code ? row->count + 1 : 1;
    row->why = *why;
}

/* -- From recording to trace -------------------------------------------------------------------------------------------- */

/* Append a row (func, args, kwargs, out, state, site) to the list *rows, which is cleared where that fails. Steals `row`; NULL: it failed. */
static void add_row(PyObject **rows, PyObject *row)
{
    if (*rows && (!row || PyList_Append(*rows, row) < 0)) Py_CLEAR(*rows);
    Py_XDECREF(row);
}

static void add_op(const mp_recording *recording, PyObject **rows, const mp_op *op)
{
    PyObject *site = *rows ? mp_recording_site(recording, op->site) : NULL;
    add_row(rows, site ? Py_BuildValue("(OOOOOO)", op->func, op->args, op->kwargs ? op->kwargs : Py_None, op->out,
                                       op->state ? Py_True : Py_False, site)
                       : NULL);
    Py_XDECREF(site);
}

/* Which of the drawn graph inputs the value is, or MP_NO_VALUE. */
static uint32_t drawn_number(const mp_recording *recording, mp_value_id value)
{
    uint32_t number = 0;
    for (uint32_t i = 0; i < recording->n_draws; i++) {
        if (recording->draws[i].value == value) return number;
        number += recording->draws[i].value != MP_NO_VALUE;
    }
    return MP_NO_VALUE;
}

/* Is it a check of nothing but draws? */
static bool is_early(const mp_recording *recording, const mp_check *check)
{
    uint32_t n = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(check->args); i++) {
        PyObject *item = PyTuple_GET_ITEM(check->args, i);
        if (!mp_value_check(item)) continue;
        if (drawn_number(recording, mp_index_of(item)) == MP_NO_VALUE) return false;
        n++;
    }
    return n > 0;
}

static void add_check(const mp_recording *recording, PyObject **rows, const mp_check *check)
{
    PyObject *step = is_early(recording, check) ? NULL : mp_check_step(check);
    PyObject *site = *rows && step ? mp_recording_site(recording, check->site) : NULL;
    PyObject *value = mp_answer_is_value(check->result) ? Py_True : Py_False;
    if (step)
        add_row(rows, site ? Py_BuildValue("(O(OOO)OOOO)", step, check->result, value, check->args, Py_None, Py_None,
                                           Py_True, site)
                           : NULL);
    Py_XDECREF(site);
}

/* The operators, and between them the checks that are steps of the graph. Owned tuple of rows, or NULL with an exception. */
static PyObject *ops_tuple(const mp_recording *recording)
{
    PyObject *rows = PyList_New(0);
    uint32_t next = 0; /* check */
    for (uint32_t i = 0; i <= recording->n_ops; i++) {
        for (; next < recording->n_checks && recording->checks[next].op <= i; next++)
            add_check(recording, &rows, &recording->checks[next]);
        if (i < recording->n_ops) add_op(recording, &rows, &recording->ops[i]);
    }
    PyObject *ops = rows ? PyList_AsTuple(rows) : NULL;
    Py_XDECREF(rows);
    return ops;
}

/* Does the tensor still lie as it did before the call, and hold elements of the same type (`tensor.data = other`)? -1 with an exception. */
static int lies_as_recorded(PyObject *tensor, PyObject *layout, int dtype)
{
    PyObject *type = PyObject_GetAttrString(tensor, "dtype");
    PyObject *code = type ? PyDict_GetItemWithError(mp_names.dtypes, type) : NULL;
    Py_XDECREF(type);
    if (!code) return PyErr_Occurred() ? -1 : 0;
    if (PyLong_AsLong(code) != dtype) return 0;
    PyObject *sizes = PyObject_GetAttrString(tensor, "shape");
    PyObject *strides = sizes ? PyObject_CallMethod(tensor, "stride", NULL) : NULL;
    int same = strides ? PyObject_RichCompareBool(sizes, PyTuple_GET_ITEM(layout, 0), Py_EQ) : -1;
    if (same == 1) same = PyObject_RichCompareBool(strides, PyTuple_GET_ITEM(layout, 1), Py_EQ);
    Py_XDECREF(sizes);
    Py_XDECREF(strides);
    return same;
}

/* The tensor of a graph input, owned: the very object, or if the program has let go of it meanwhile or has changed how it lies, an empty one
** with the metadata it had (only metadata matters to lowering). NULL with an exception. */
static PyObject *input_tensor(const mp_recording *recording, mp_obj_id id)
{
    PyObject *tensor = mp_object_get(&recording->objects[id]);
    if (tensor && (PyLong_CheckExact(tensor) || PyFloat_CheckExact(tensor))) {
        PyObject *make = mp_import("magpy.steps", "number_input");
        Py_XSETREF(make, make ? PyObject_CallOneArg(make, tensor) : NULL);
        return make;
    }
    if (tensor && mp_is_array(tensor)) {
        PyObject *make = mp_import("magpy.arrays", "array_input");
        Py_XSETREF(make, make ? PyObject_CallOneArg(make, tensor) : NULL);
        return make;
    }
    const mp_tensor_meta *meta = NULL;
    for (uint32_t i = 0; i < recording->n_reads && !meta; i++)
        if (recording->reads[i].meta && recording->reads[i].owner == id) meta = recording->reads[i].meta;
    if (!meta || !meta->stride)
        return tensor ? Py_NewRef(tensor) : PyErr_Format(PyExc_RuntimeError, "an input tensor is gone");
    PyObject *layout = mp_recording_layout(meta), *made = NULL;
    int same = layout && tensor ? lies_as_recorded(tensor, layout, meta->dtype) : layout ? 0 : -1;
    PyObject *make = same == 0 ? mp_import("magpy.backend", "_empty_like_recorded") : NULL;
    if (same == 1)
        made = Py_NewRef(tensor);
    else if (make)
        made = PyObject_CallFunction(make, "OOiiLOO", PyTuple_GET_ITEM(layout, 0), PyTuple_GET_ITEM(layout, 1),
                                     (int)meta->dtype, (int)meta->device_type, (long long)meta->storage_offset,
                                     meta->requires_grad ? Py_True : Py_False, meta->is_leaf ? Py_True : Py_False);
    Py_XDECREF(make);
    Py_XDECREF(layout);
    return made;
}

/* Owned list of numbers, or NULL with an exception. */
static PyObject *number_list(const uint32_t *numbers, size_t n)
{
    PyObject *list = PyList_New(n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *number = PyLong_FromUnsignedLong(numbers[i]);
        if (!number)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, number);
    }
    return list;
}

/* Numbers of the inputs that are parameters or buffers of modules: owned list, or NULL with an exception. */
static PyObject *state_inputs(const mp_recording *recording)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < recording->n_inputs; i++) {
        if (!mp_recording_is_state(recording, recording->values[recording->inputs[i]].input)) continue;
        PyObject *number = PyLong_FromUnsignedLong(i);
        if (!number || PyList_Append(list, number) < 0) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

/* Take mutated and info over from lower's answer. Returns 0, or -1 with an exception. */
static int take_lowered(const mp_recording *recording, mp_trace *trace, PyObject *lowered)
{
    PyObject *mutated = PyObject_GetAttrString(lowered, "mutated");
    PyObject *numbers = mutated ? PySequence_Tuple(mutated) : NULL;
    Py_XDECREF(mutated);
    trace->runner = PyObject_GetAttrString(lowered, "runner");
    trace->info = PyObject_GetAttrString(lowered, "info");
    if (!numbers || !trace->runner || !trace->info) {
        Py_XDECREF(numbers);
        return -1;
    }
    trace->plan = mp_plan_from_object(trace->runner);
    trace->bound = mp_bound_from_object(trace->runner);
    trace->n_mutated = (uint32_t)PyTuple_GET_SIZE(numbers);
    trace->n_outputs += trace->n_mutated;
    for (uint32_t i = 0; i < trace->n_checks; i++)
        for (Py_ssize_t a = 0; !trace->checks[i].early && a < PyTuple_GET_SIZE(trace->checks[i].args); a++)
            if (trace->checks[i].outputs[a] != MP_NO_VALUE) trace->checks[i].outputs[a] += trace->n_mutated;
    trace->mutated = PyMem_Calloc(trace->n_mutated + 1, sizeof *trace->mutated);
    trace->uncounted = PyMem_Calloc(trace->n_mutated + 1, sizeof *trace->uncounted);
    int ok = trace->mutated && trace->uncounted ? 0 : (PyErr_NoMemory(), -1);
    for (uint32_t i = 0; !ok && i < trace->n_mutated; i++) {
        unsigned long number = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(numbers, i));
        if (number >= trace->n_inputs) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "lowering named an input that does not exist");
            ok = -1;
            break;
        }
        trace->mutated[i] = (uint32_t)number;
        trace->uncounted[i] = recording->input_mutated[number] != MP_MUTATION_COUNTED;
    }
    Py_DECREF(numbers);
    if (ok) return -1;
    if (trace->plan && (mp_plan_n_inputs(trace->plan) != trace->n_inputs + trace->n_drawn ||
                        mp_plan_n_outputs(trace->plan) != trace->n_outputs)) {
        PyErr_Format(PyExc_RuntimeError, "the plan takes %u inputs and gives %u outputs instead of %u and %u",
                     mp_plan_n_inputs(trace->plan), mp_plan_n_outputs(trace->plan), trace->n_inputs + trace->n_drawn,
                     trace->n_outputs);
        return -1;
    }
    if (trace->bound && mp_bound_n_outputs(trace->bound) != trace->n_outputs) {
        PyErr_Format(PyExc_RuntimeError, "the plan gives %u outputs instead of %u", mp_bound_n_outputs(trace->bound),
                     trace->n_outputs);
        return -1;
    }
    if (PyDict_Check(trace->info)) {
        PyObject *random = PyDict_GetItemString(trace->info, "random");
        trace->random = random && PyObject_IsTrue(random) == 1;
        PyObject *counters = PyDict_GetItemString(trace->info, "counters");
        if (counters && PyTuple_Check(counters) && PyTuple_GET_SIZE(counters)) trace->counters = Py_NewRef(counters);
        PyObject *seconds = PyDict_GetItemString(trace->info, "seconds_compiling");
        if (seconds && PyFloat_Check(seconds)) mp_stats.seconds_compiling += PyFloat_AS_DOUBLE(seconds);
    }
    return 0;
}

/* Python raised while lowering: make it the reason. LoweringError carries the user's file and line as .file and .line. */
static void lowering_failed(mp_reason *why)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *file = value ? PyObject_GetAttrString(value, "file") : NULL;
    PyObject *line = file ? PyObject_GetAttrString(value, "line") : NULL;
    mp_error_clear();
    if (file && PyUnicode_Check(file) && !why->file[0]) {
        const char *chars = PyUnicode_AsUTF8(file);
        if (chars) snprintf(why->file, sizeof why->file, "%s", chars);
        why->line = line && PyLong_Check(line) ? (int)PyLong_AsLong(line) : 0;
        mp_error_clear();
    }
    Py_XDECREF(file);
    Py_XDECREF(line);
    PyErr_Restore(type, value, traceback);
    mp_reason_set_exception(why, MP_REASON_LOWERING_FAILED);
}

/* ((input number, flag), ...): inputs whose requires_grad the call changes. Owned, or NULL with an exception. */
static PyObject *marked_inputs(const mp_recording *recording)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < recording->n_writes; i++) {
        const mp_write *write = &recording->writes[i];
        if (write->kind != MP_WRITE_TENSOR_ATTR || !write->value || !PyBool_Check(write->value)) continue;
        for (uint32_t k = 0; list && k < recording->n_inputs; k++) {
            if (recording->values[recording->inputs[k]].input != write->owner) continue;
            PyObject *pair = Py_BuildValue("(IO)", k, write->value);
            if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
            Py_XDECREF(pair);
        }
    }
    PyObject *marks = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return marks;
}

static size_t n_check_values(const mp_recording *recording)
{
    size_t n = 0;
    for (uint32_t i = 0; i < recording->n_checks; i++) n += (size_t)PyTuple_GET_SIZE(recording->checks[i].args);
    return n;
}

/* Take the recording's draws over. Returns 0, or -1 with an exception. */
static int draws(const mp_recording *recording, mp_trace *trace)
{
    if (!recording->n_draws) return 0;
    if (!(trace->draws = PyMem_Calloc(recording->n_draws, sizeof *trace->draws))) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i < recording->n_draws; i++) {
        const mp_draw *from = &recording->draws[i];
        bool number = from->value != MP_NO_VALUE, any = number || from->open;
        trace->draws[i] = (mp_trace_draw){Py_NewRef(from->func),
                                          Py_NewRef(from->args),
                                          Py_NewRef(from->kwargs),
                                          Py_NewRef(from->keeper),
                                          any ? NULL : Py_NewRef(from->result),
                                          Py_TYPE(from->result),
                                          Py_XNewRef(from->meta),
                                          number,
                                          mp_draw_steps(from->args, from->kwargs),
                                          from->again};
        trace->n_draws = i + 1;
        trace->n_drawn += number;
        trace->values = trace->values || (!any && mp_draw_is_value(from->result));
        trace->decides = trace->decides || (!any && trace->draws[i].steps);
    }
    return 0;
}

/* The graph's inputs as they were: owned list, or NULL with an exception. */
static PyObject *graph_inputs(const mp_recording *recording)
{
    PyObject *inputs = PyList_New(0);
    for (uint32_t i = 0; inputs && i < recording->n_inputs + recording->n_draws; i++) {
        const mp_draw *draw = i < recording->n_inputs ? NULL : &recording->draws[i - recording->n_inputs];
        if (draw && draw->value == MP_NO_VALUE) continue;
        PyObject *tensor = draw ? mp_draw_tensor(draw->result, draw->meta)
                                : input_tensor(recording, recording->values[recording->inputs[i]].input);
        if (!tensor || PyList_Append(inputs, tensor) < 0) Py_CLEAR(inputs);
        Py_XDECREF(tensor);
    }
    return inputs;
}

/* Their values: owned list of numbers, or NULL with an exception. */
static PyObject *graph_input_values(const mp_recording *recording)
{
    PyObject *list = number_list(recording->inputs, recording->n_inputs);
    for (uint32_t i = 0; list && i < recording->n_draws; i++) {
        if (recording->draws[i].value == MP_NO_VALUE) continue;
        PyObject *number = PyLong_FromUnsignedLong(recording->draws[i].value);
        if (!number || PyList_Append(list, number) < 0) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

/* Take the recording's checks over. wanted: filled with the graph values that the mocks need (values[*n]), then those of the checks; *n
** becomes their number. Returns 0, or -1 with an exception. */
static int checks(const mp_recording *recording, mp_trace *trace, mp_value_id *wanted, size_t *n,
                  const mp_value_id *values)
{
    if (*n) memcpy(wanted, values, *n * sizeof *wanted);
    for (uint32_t i = 0; i < recording->n_ops; i++) trace->values = trace->values || mp_op_is_sized(&recording->ops[i]);
    if (!recording->n_checks) return 0;
    if (!(trace->checks = PyMem_Calloc(recording->n_checks, sizeof *trace->checks))) return -1;
    for (uint32_t i = 0; i < recording->n_checks; i++) {
        const mp_check *from = &recording->checks[i];
        mp_trace_check *check = &trace->checks[i];
        Py_ssize_t n_args = PyTuple_GET_SIZE(from->args);
        trace->n_checks = i + 1;
        check->func = Py_NewRef(from->func);
        check->kwargs = Py_XNewRef(from->kwargs);
        check->result = Py_NewRef(from->result);
        trace->values = trace->values || mp_answer_is_value(check->result);
        check->in_graph = !is_early(recording, from) && mp_check_step(from) != NULL;
        check->args = PyTuple_New(n_args);
        check->outputs = PyMem_Calloc((size_t)n_args + 1, sizeof *check->outputs);
        check->site = mp_recording_site(recording, from->site);
        if (!check->args || !check->outputs || !check->site) return -1;
        check->early = is_early(recording, from);
        for (Py_ssize_t a = 0; a < n_args; a++) {
            PyObject *item = PyTuple_GET_ITEM(from->args, a);
            mp_value_id value = mp_value_check(item) ? mp_index_of(item) : MP_NO_VALUE;
            check->outputs[a] = MP_NO_VALUE;
            if (value != MP_NO_VALUE && check->in_graph) {
                item = Py_None;
            } else if (value != MP_NO_VALUE) {
                check->outputs[a] = check->early ? drawn_number(recording, value) : (uint32_t)*n;
                if (!check->early) wanted[(*n)++] = value; /* n_mutated is added when it is known */
                item = Py_None;
            }
            PyTuple_SET_ITEM(check->args, a, Py_NewRef(item));
        }
    }
    return 0;
}

/* Give trace its runner. Returns 0, or -1 with *why set and no exception. */
static int lower(mp_callable *self, const mp_recording *recording, mp_trace *trace, mp_reason *why)
{
    const mp_value_id *values;
    size_t n_values = mp_mock_values(trace->mocks, &values);
    mp_value_id *wanted = PyMem_Malloc((n_values + n_check_values(recording) + 1) * sizeof *wanted);
    if (!wanted || draws(recording, trace) < 0 || checks(recording, trace, wanted, &n_values, values) < 0) {
        PyMem_Free(wanted);
        mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", "");
        mp_error_clear();
        return -1;
    }
    trace->n_outputs = (uint32_t)n_values;
    bool graph = recording->n_ops || n_values; /* or checks alone, which are its steps, of numbers from outside */
    for (uint32_t i = 0; i < trace->n_checks; i++) graph = graph || trace->checks[i].in_graph;
    if (!graph) {
        PyMem_Free(wanted);
        return 0;
    }
    double start = now(), compiling = mp_stats.seconds_compiling;
    int ok = -1;
    PyObject *inputs = graph_inputs(recording), *ops = inputs ? ops_tuple(recording) : NULL;
    PyObject *input_values = ops ? graph_input_values(recording) : NULL;
    PyObject *output_values = input_values ? number_list(wanted, n_values) : NULL;
    PyMem_Free(wanted);
    PyObject *function = NULL, *lowered = NULL, *state = NULL;
    if (!output_values || !(state = state_inputs(recording))) goto done;
    if (!(function = mp_import("magpy.lower", "lower")) || !(trace->marks = marked_inputs(recording))) goto done;
    mp_state_busy++;
    PyObject *looks = mp_mock_looks(trace->mocks);
    lowered = PyObject_CallFunctionObjArgs(function, ops, inputs, input_values, output_values, self->options,
                                           looks ? looks : Py_None, state, trace->marks, NULL);
    mp_state_busy--;
    if (lowered) ok = take_lowered(recording, trace, lowered);
done:
    if (ok < 0) lowering_failed(why);
    Py_XDECREF(inputs);
    Py_XDECREF(ops);
    Py_XDECREF(input_values);
    Py_XDECREF(output_values);
    Py_XDECREF(state);
    Py_XDECREF(function);
    Py_XDECREF(lowered);
    mp_stats.seconds_lowering += now() - start - (mp_stats.seconds_compiling - compiling);
    return ok;
}

/* Compile the guards; the caller of a hit needs the inputs first, then what mocks name. Returns 0, or -1 with *why set. */
static int guards(const mp_recording *recording, const mp_call *call, mp_trace *trace, mp_reason *why)
{
    const mp_obj_id *objects;
    size_t n_objects = mp_mock_objects(trace->mocks, &objects);
    trace->n_inputs = recording->n_inputs;
    trace->n_objects = (uint32_t)n_objects;
    mp_obj_id *wanted = PyMem_Malloc((trace->n_inputs + n_objects + 1) * sizeof *wanted);
    if (!wanted) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", "");
        return -1;
    }
    for (uint32_t i = 0; i < trace->n_inputs; i++) {
        wanted[i] = recording->values[recording->inputs[i]].input;
        PyTypeObject *type = recording->objects[wanted[i]].type;
        trace->n_arrays += !strcmp(type->tp_name, "numpy.ndarray");
        trace->n_numbers += type == &PyLong_Type || type == &PyFloat_Type;
    }
    if (n_objects) memcpy(wanted + trace->n_inputs, objects, n_objects * sizeof *wanted);
    trace->guards = mp_guard_compile(recording, call, wanted, trace->n_inputs + n_objects, why);
    PyMem_Free(wanted);
    return trace->guards ? 0 : -1;
}

/* Option dry_run: the graph's outputs as they are now answer from now on. Returns 0, or -1 with *why set. */
static int keep_outputs(const mp_recording *recording, mp_trace *trace, mp_reason *why)
{
    if (!trace->runner) return 0;
    PyObject *inputs = graph_inputs(recording), *outputs = NULL;
    PyObject *answer = inputs ? PyObject_CallOneArg(trace->runner, inputs) : NULL;
    if (answer) outputs = PySequence_Tuple(answer);
    Py_XDECREF(answer);
    Py_XDECREF(inputs);
    if (outputs && PyTuple_GET_SIZE(outputs) == trace->n_outputs)
        trace->kept = PyMem_Calloc(trace->n_outputs + 1, sizeof *trace->kept);
    if (!trace->kept) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "the graph gave a wrong number of outputs");
        mp_reason_set_exception(why, MP_REASON_RUN_FAILED);
        Py_XDECREF(outputs);
        return -1;
    }
    for (uint32_t i = 0; i < trace->n_outputs; i++) {
        PyObject *item = PyTuple_GET_ITEM(outputs, i);
        trace->kept[i] = item == Py_None ? NULL : Py_NewRef(item);
    }
    Py_DECREF(outputs);
    return 0;
}

/* Make a trace of the call that has just returned `result`. Owned, or NULL with *why set and no exception. */
static mp_trace *trace_make(mp_callable *self, const mp_call *call, mp_recorder *rec, PyObject *result, mp_reason *why)
{
    const char *what = NULL;
    mp_recording *recording = mp_rec_finish(rec, result, why);
    mp_trace *trace = recording ? PyMem_Calloc(1, sizeof *trace) : NULL;
    if (!trace) {
        if (recording) mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", "");
        mp_recording_free(recording);
        return NULL;
    }
    trace->refs = 1;
    trace->n_ops = recording->n_ops;
    mp_stats.observed_opcodes += recording->opcodes;
    mp_stats.observed_frames += recording->frames;
    mp_stats.seconds_observing += recording->seconds;
    bool ok = false;
    if (recording->torch_state && !mp_torch_state_same(recording->torch_state, &what))
        mp_reason_set(why, MP_REASON_TORCH_STATE, "the call changes it: %s", what ? what : "?");
    else if ((trace->mocks = mp_mock_compile(recording, why)) && guards(recording, call, trace, why) == 0 &&
             lower(self, recording, trace, why) == 0 && (!self->dry_run || keep_outputs(recording, trace, why) == 0))
        ok = true;
    mp_recording_free(recording);
    if (ok) return trace;
    mp_trace_release(trace);
    return NULL;
}

/* Tell torch.compiler.reset() that there is something to forget. */
static void keep_reset(void)
{
    PyObject *keep = mp_import("magpy.backend", "_keep_reset"), *done = keep ? PyObject_CallNoArgs(keep) : NULL;
    mp_error_clear(); /* without torch.compile there is no reset to hear of */
    Py_XDECREF(done);
    Py_XDECREF(keep);
}

/* Returns 0, or -1 with *why set; takes the trace over in both cases. */
static int trace_add(mp_callable *self, mp_trace *trace, mp_reason *why)
{
    mp_trace **traces = PyMem_Realloc(self->traces, (self->n_traces + 1) * sizeof *traces);
    if (!traces) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", "");
        mp_trace_release(trace);
        return -1;
    }
    memmove(traces + 1, traces, self->n_traces * sizeof *traces);
    traces[0] = trace;
    self->traces = traces;
    self->n_traces++;
    mp_stats.traces++;
    if (trace->runner) mp_stats.segments++;
    keep_reset();
    return 0;
}

/* -- Misses ---------------------------------------------------------------------------------------------------------- */

/* FullgraphError from why. Returns NULL. */
static PyObject *raise_fullgraph(const mp_reason *why)
{
    PyObject *text = mp_reason_describe(why);
    if (text) PyErr_Format(mp_fullgraph_error, "fullgraph=True, but the call is not one graph: %U", text);
    Py_XDECREF(text);
    return NULL;
}

/* Count a fallback of this call. With fullgraph, and if the program is the cause, the call's result is exchanged for an error. */
static PyObject *fall_back(mp_callable *self, const mp_reason *why, PyObject *result)
{
    self->last_fallback = *why;
    mp_fallbacks_count(&self->fallbacks, why);
    if (!self->fullgraph || !patience(why->code)) return result;
    Py_DECREF(result);
    return raise_fullgraph(why);
}

/* A call that is known not to become a trace: plainly, but its callees may. */
static PyObject *call_untraceable(mp_callable *self, const mp_call *call, const mp_reason *why)
{
    mp_reason copy = *why; /* the table may change during the call */
    if (self->fullgraph) {
        mp_fallbacks_count(&self->fallbacks, &copy);
        return raise_fullgraph(&copy); /* before the call: nothing has happened yet */
    }
    PyObject *result = self->frames && self->target ? mp_frames_call(self, call) : mp_call_plain(call);
    return result ? fall_back(self, &copy, result) : NULL;
}

static PyObject *call_at_limit(mp_callable *self, const mp_call *call)
{
    mp_reason why = {0};
    mp_reason_set(&why, MP_REASON_TRACE_LIMIT, "%u traces (option trace_limit)", self->trace_limit);
    if (!self->warned) {
        self->warned = true;
        const char *miss = self->last_miss ? PyUnicode_AsUTF8(self->last_miss) : NULL;
        mp_error_clear();
        mp_log("warning",
               "the limit of %u traces is reached; calls that none of them serves run in plain Python. The last one "
               "needed: %s",
               self->trace_limit, miss ? miss : "?");
    }
    if (self->fullgraph) {
        mp_fallbacks_count(&self->fallbacks, &why);
        return raise_fullgraph(&why);
    }
    PyObject *result = mp_call_plain(call);
    return result ? fall_back(self, &why, result) : NULL;
}

/* Drop the traces with checks of values, or with any checks. */
static void drop_traces(mp_callable *self, bool any)
{
    mp_trace **dropped = PyMem_Calloc(self->n_traces + 1, sizeof *dropped);
    if (!dropped) return; /* then they stay */
    uint32_t kept = 0, n_dropped = 0;
    for (uint32_t i = 0; i < self->n_traces; i++) {
        mp_trace *trace = self->traces[i];
        if (trace->values || (any && (trace->n_checks || trace->decides)))
            dropped[n_dropped++] = trace;
        else
            self->traces[kept++] = trace;
    }
    self->n_traces = kept;
    for (uint32_t i = 0; i < n_dropped; i++) mp_trace_release(dropped[i]); /* may run the program's code */
    PyMem_Free(dropped);
}

/* A trace for every value that data takes serves nobody, nor does a tree with more branches than are kept: each trace would be run in vain,
** up to its first check that fails, at each call. Where that is the rule, those traces go, and looking at such data ends a trace again. */
static void count_data_miss(mp_callable *self)
{
    if (self->value_missed && !self->refuse_values && ++self->values_lost >= MP_VALUES_LOST) {
        self->refuse_values = true;
        drop_traces(self, false);
    }
    if (self->data_missed && !self->refuse_checks && ++self->data_lost >= MP_DATA_LOST) {
        self->refuse_checks = true;
        drop_traces(self, true);
    }
}

/* Ints and floats from outside that this call has other values of than the traces: they may be inputs of the graph. */
static void note_changing(mp_callable *self, const mp_call *call)
{
    for (uint32_t i = 0; i < self->n_traces; i++) {
        if (self->traces[i]->missed == UINT32_MAX) continue;
        PyObject *name = mp_guard_number_name(self->traces[i]->guards, self->traces[i]->missed);
        if (name && !self->changing) self->changing = PySet_New(NULL);
        if (name && self->changing && PySet_GET_SIZE(self->changing) < MP_CHANGING)
            mp_guard_other_numbers(self->traces[i]->guards, call, self->changing);
        Py_XDECREF(name);
        PyErr_Clear(); /* it stays guarded by value */
    }
}

PyObject *mp_miss_observe(mp_callable *self, const mp_call *call)
{
    if (self->compiling || self->leaf_alone) return mp_call_plain(call);
    note_changing(self, call);
    count_data_miss(self);
    if (self->n_traces >= self->trace_limit) return call_at_limit(self, call);
    uint64_t shape = mp_miss_shape(call);
    const mp_reason *vain = mp_miss_in_vain(self, shape);
    if (vain) return call_untraceable(self, call, vain);
    mp_reason why = {0};
    mp_recorder *rec = NULL;
    if (mp_observe_possible(&why) == 0 && mp_torch_state_traceable(&why) == 0)
        rec = mp_rec_new(call->target, call->args, call->nargs, call->kwnames, &why);
    if (!rec) {
        PyObject *plain = mp_call_plain(call);
        return plain ? fall_back(self, &why, plain) : NULL;
    }
    if (!self->refuse_checks) mp_rec_accept_checks(rec);
    if (self->refuse_values) mp_rec_refuse_values(rec);
    size_t n_args = call->nargs + (call->kwnames ? (size_t)PyTuple_GET_SIZE(call->kwnames) : 0);
    PyObject *const *args = mp_rec_changing(rec, self->changing, call->args, n_args);
    self->compiling = true;
    PyObject *result = mp_observe_call(rec, call->target, args, call->nargs, call->kwnames);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback); /* the program's own, untouched by what we do now */
    mp_trace *trace = NULL;
    if (mp_stand_ins_left()) mp_rec_abandon(rec, MP_REASON_UNREBUILDABLE, "a progress bar that outlives the call");
    if (result)
        trace = trace_make(self, call, rec, result, &why);
    else if (!mp_rec_abandoned(rec))
        mp_reason_set(&why, MP_REASON_EXCEPTION, "%s", type ? ((PyTypeObject *)type)->tp_name : "?");
    else
        why = *mp_rec_reason(rec);
    if (mp_rec_abandoned(rec) && why.code != MP_REASON_EXCEPTION && patience(why.code))
        mp_frames_running(self, mp_rec_running(rec));
    mp_rec_free(rec);
    if (!trace) {
        if (!mp_error_kept()) remember_vain(self, shape, &why); /* an interrupt says nothing about the program */
    } else if (!self->target && !trace->n_ops) {                /* a frame's callable: not worth its guards */
        self->leaf_alone = true;
        mp_trace_release(trace);
        trace = NULL;
        why = (mp_reason){0};
    } else {
        trace_add(self, trace, &why);
    }
    self->compiling = false;
    mp_stand_ins_end();
    PyErr_Restore(type, value, traceback);
    return result && why.code != MP_REASON_NONE && !mp_error_kept() ? fall_back(self, &why, result) : result;
}
