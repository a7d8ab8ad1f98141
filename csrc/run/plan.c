/* Running a plan: the loop over its instructions, outputs, and what happens when an operator fails. */
#include "run/plan_inside.h"

#include <time.h>

#define LONG_RUN_NS 20000 /* runs at least this long release the GIL */
#define TIMED_RUNS 4

/* One run. `thread` is the saved thread state while the GIL is released, else NULL. */
typedef struct {
    mp_plan *plan;
    mp_frame *frame;
    PyThreadState *thread;
    bool release_gil;
} run;

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void gil_release(run *r)
{
    if (r->release_gil) r->thread = PyEval_SaveThread();
}

static void gil_take(run *r)
{
    if (r->thread) PyEval_RestoreThread(r->thread);
    r->thread = NULL;
}

/* Turn torch's last error into an exception. Takes the GIL, which stays held. Returns -1. */
static int run_failed(run *r)
{
    gil_take(r); /* keeps torch's thread-local message */
    return mp_torch_raise();
}

/* -- Results of operators ------------------------------------------------------------------------------------------------ */

typedef enum { META_SAME, META_STRIDES, META_OTHER, META_FAILED } meta_difference;

/* How the tensor behind `handle` differs from `meta`. Strides of dimensions with less than two elements do not count. */
static meta_difference compare_meta(mp_handle handle, const mp_meta *meta)
{
    int64_t ndim, *sizes, *strides;
    int32_t dtype;
    if (mp_torch.get_dim(handle, &ndim) || mp_torch.get_sizes(handle, &sizes) ||
        mp_torch.get_strides(handle, &strides) || mp_torch.get_dtype(handle, &dtype))
        return META_FAILED;
    if (ndim != meta->ndim || dtype != meta->dtype) return META_OTHER;
    bool empty = false, same = true;
    for (int64_t i = 0; i < ndim; i++) {
        if (sizes[i] != meta->size[i]) return META_OTHER;
        empty |= sizes[i] == 0;
        same &= sizes[i] < 2 || strides[i] == meta->stride[i];
    }
    return same || empty ? META_SAME : META_STRIDES;
}

/* A tensor of torch's allocator with the metadata of value `v`. Returns 0, or 1 if torch failed. */
static int alloc_value(const mp_plan *plan, mp_val v, mp_handle *out)
{
    const mp_meta *meta = &plan->schedule->places[v].meta;
    return mp_torch.empty_strided(meta->ndim, meta->size, meta->stride, meta->dtype, meta->device, -1, out);
}

/* Make `handle` (stolen) the frame's value `v`. Returns 0, or -1 with an exception and the GIL held. */
static int adopt(run *r, const mp_op *op, mp_val v, mp_handle handle)
{
    mp_plan *plan = r->plan;
    mp_frame *frame = r->frame;
    const mp_place *place = &plan->schedule->places[v];
    bool defined = false;
    if (handle) mp_torch.is_defined(handle, &defined);
    if (!(plan->needs[v] & MP_NEED_USED) || place->home == MP_HOME_NONE ||
        (!defined && place->meta.dtype == MP_UNDEFINED)) {
        if (handle) mp_torch.delete_handle(handle);
        return 0;
    }
    if (defined && place->meta.dtype == MP_OPAQUE) { /* magpy/opaque_tensors.py has looked at it */
        frame->handles[v] = handle;
        frame->held[v] = MP_HELD_RUN;
        return 0;
    }
    meta_difference difference = defined ? compare_meta(handle, &place->meta) : META_OTHER;
    if (difference == META_OTHER) {
        if (handle) mp_torch.delete_handle(handle);
        gil_take(r);
        PyErr_Format(PyExc_RuntimeError, "%s returned a tensor of unexpected size or type", op->node->op);
        return -1;
    }
    mp_handle to = place->home == MP_HOME_ARENA ? frame->handles[v] : NULL;
    bool copy = to || difference == META_STRIDES || mp_frame_in_arena(frame, handle, plan->schedule->arena_bytes);
    if (copy && !to && alloc_value(plan, v, &to)) goto failed;
    if (copy && mp_torch.copy(to, handle, 0)) goto failed;
    if (copy) mp_torch.delete_handle(handle);
    if (place->home == MP_HOME_ARENA) return 0;
    handle = copy ? to : handle;
    frame->handles[v] = handle;
    frame->held[v] = MP_HELD_RUN;
    if (!(plan->needs[v] & MP_NEED_POINTER) || !mp_torch.get_data_ptr(handle, (void **)&frame->pointers[v])) return 0;
    return run_failed(r);
failed:
    run_failed(r);
    mp_torch.delete_handle(handle);
    if (to && place->home != MP_HOME_ARENA) mp_torch.delete_handle(to);
    return -1;
}

/* The call failed in torch: repeat it in Python, which raises what eager raises. If it does not, its results are as good. */
static int repeat_in_python(run *r, const mp_op *op, mp_handle *results)
{
    mp_log("debug", "%s failed and is repeated by the operator itself", op->node->op);
    return mp_op_call_python(op, r->frame, results);
}

/* Returns 0, or -1 with an exception and the GIL held. */
static int run_op(run *r, const mp_op *op)
{
    mp_handle small[8], *results = small;
    uint32_t n = op->node->n_values;
    if (n > 8 && !(results = malloc(n * sizeof *results))) {
        gil_take(r);
        PyErr_NoMemory();
        return -1;
    }
    if (op->tier == MP_TIER_PYTHON) gil_take(r);
    int failed = mp_op_call(op, r->frame, results);
    bool repeated = failed > 0;
    if (repeated) {
        gil_take(r);
        failed = repeat_in_python(r, op, results);
    }
    for (uint32_t i = 0; !failed && i < n && (!op->out || repeated); i++) {
        mp_val v = op->node->first + i;
        mp_frame_drop(r->frame, v); /* storage for an out-variant that was not used */
        if (!adopt(r, op, v, results[i])) continue;
        while (++i < n)
            if (results[i]) mp_torch.delete_handle(results[i]);
        failed = -1;
    }
    if (results != small) free(results);
    if (!failed && !r->thread) gil_release(r);
    return failed;
}

/* -- The loop ------------------------------------------------------------------------------------------------------------- */

/* A kernel met an index out of range: the operators, run one by one, raise what eager raises. Always returns -1 with an exception and
** the GIL held. */
static int index_failed(run *r)
{
    mp_plan *plan = r->plan;
    mp_reason why = {0};
    uint32_t n = plan->graph->n_outputs;
    gil_take(r);
    r->frame->bad = 0;
    PyObject **outputs = calloc(n + 1, sizeof *outputs);
    mp_plan *slow = outputs ? mp_plan_without_kernels(plan, &why) : NULL;
    if (slow && mp_plan_run(slow, r->frame->inputs, outputs) == 0)
        for (uint32_t i = 0; i < n; i++) Py_CLEAR(outputs[i]);
    if (slow) mp_plan_free(slow);
    free(outputs);
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_IndexError, "index out of range in self");
    return -1;
}

/* Returns 0, or -1 with an exception and the GIL held. */
static inline int run_kernel(run *r, const mp_kernel_call *call)
{
    mp_frame *frame = r->frame;
    uint64_t *words = frame->words;
    for (uint32_t i = 0; i < call->n_buffers; i++) {
        const mp_buffer *buffer = &call->buffers[i];
        words[buffer->word] = (uint64_t)(uintptr_t)(frame->pointers[buffer->root] + buffer->delta);
    }
    if (call->checks) words[call->first_word + call->n_buffers] = (uint64_t)(uintptr_t)&frame->bad;
    void *const *given = (void *const *)(words + call->first_word);
    if (call->prepare) {
        words[call->first_word + 1] = (uint64_t)(uintptr_t)(frame->arena_base + call->workspace);
        mp_parallel_run(call->prepare, given, call->prepare_extent, 1);
    }
    mp_parallel_run(call->function, given, call->extent, call->grain);
    return frame->bad ? index_failed(r) : 0;
}

/* Returns 0, or 1 if torch failed. */
static int run_alloc(run *r, mp_val v)
{
    mp_frame *frame = r->frame;
    if (alloc_value(r->plan, v, &frame->handles[v])) return 1;
    frame->held[v] = MP_HELD_RUN;
    return r->plan->needs[v] & MP_NEED_POINTER ? mp_torch.get_data_ptr(frame->handles[v], (void **)&frame->pointers[v])
                                               : 0;
}

/* Returns 0, or -1 with an exception and the GIL held. */
static inline int run_insn(run *r, const mp_insn *insn)
{
    const mp_plan *plan = r->plan;
    mp_frame *frame = r->frame;
    switch (insn->kind) {
    case MP_INSN_KERNEL: return run_kernel(r, &plan->calls[insn->index]);
    case MP_INSN_PRODUCT: mp_product_run(&plan->products[insn->index], frame->pointers); break;
    case MP_INSN_CHAIN:
        if (!mp_chain_run(&plan->chains[insn->index], frame->pointers)) break;
        gil_take(r);
        PyErr_NoMemory();
        return -1;
    case MP_INSN_OP: return run_op(r, &plan->ops[insn->index]);
    case MP_INSN_ALLOC: return run_alloc(r, insn->index) ? run_failed(r) : 0;
    case MP_INSN_VIEW:
        if (mp_frame_make_view(plan, frame, insn->index)) return run_failed(r);
        frame->held[insn->index] = MP_HELD_RUN;
        break;
    case MP_INSN_RELEASE: mp_frame_drop(frame, insn->index); break;
    }
    return 0;
}

/* The same with the least time of each instruction kept in plan->timed_ns. */
static int run_all_timed(run *r)
{
    const mp_plan *plan = r->plan;
    for (uint32_t i = 0; i < plan->n_insns; i++) {
        int64_t start = now_ns();
        if (run_insn(r, &plan->insns[i]) < 0) return -1;
        int64_t took = now_ns() - start;
        if (plan->timed_ns && took < plan->timed_ns[i]) plan->timed_ns[i] = took;
    }
    gil_take(r);
    return 0;
}

/* Returns 0, or -1 with an exception and the GIL held. */
static int run_all(run *r)
{
    const mp_plan *plan = r->plan;
    if (plan->timed_ns) return run_all_timed(r);
    for (const mp_insn *insn = plan->insns, *end = insn + plan->n_insns; insn < end; insn++)
        if (run_insn(r, insn) < 0) return -1;
    gil_take(r);
    return 0;
}

/* -- Inputs and outputs ------------------------------------------------------------------------------------------------------ */

/* Returns 0, or -1 with an exception. */
static int take_inputs(const mp_plan *plan, mp_frame *frame, PyObject *const *inputs)
{
    frame->inputs = inputs;
    for (uint32_t i = 0; i < plan->graph->n_inputs; i++) {
        frame->handles[i] = mp_tensor_handle(inputs[i]);
        if ((plan->needs[i] & MP_NEED_POINTER) &&
            mp_torch.get_data_ptr(frame->handles[i], (void **)&frame->pointers[i]))
            return mp_torch_raise();
    }
    return 0;
}

/* A Python tensor for output number `i` (None without one); earlier outputs are made already. Owned, or NULL with an exception. */
static PyObject *make_output(const mp_plan *plan, mp_frame *frame, PyObject **outputs, uint32_t i)
{
    mp_val v = plan->graph->outputs[i];
    if (v < plan->graph->n_inputs) return Py_NewRef(frame->inputs[v]);
    for (uint32_t k = 0; k < i; k++)
        if (plan->graph->outputs[k] == v) return Py_NewRef(outputs[k]);
    mp_handle handle = frame->handles[v], copy = NULL;
    if (!handle) return Py_NewRef(Py_None); /* a result that does not exist */
    if (frame->held[v] == MP_HELD_FRAME) {  /* the arena is reused: what leaves the plan is a copy */
        if (mp_torch.clone_preserve_strides(handle, &copy)) return mp_torch_raise(), NULL;
        return mp_tensor_wrap(copy);
    }
    frame->handles[v] = NULL;
    frame->held[v] = MP_HELD_NOT;
    return mp_tensor_wrap(handle);
}

static int make_outputs(const mp_plan *plan, mp_frame *frame, PyObject **outputs)
{
    uint32_t n = plan->graph->n_outputs, made = 0;
    for (; made < n; made++) {
        outputs[made] =
            plan->graph->outputs[made] == MP_NO_VAL ? Py_NewRef(Py_None) : make_output(plan, frame, outputs, made);
        if (!outputs[made]) break;
    }
    for (uint32_t i = 0; i < made; i++)
        if (made < n || outputs[i] == Py_None) Py_CLEAR(outputs[i]);
    return made == n ? 0 : -1;
}

/* -- The door ------------------------------------------------------------------------------------------------------------------ */

/* Modes that would change what operators do: off while the plan runs, since the graph was made with them taken into account. */
typedef struct {
    bool grad, autocast[2]; /* by device type: CPU, CUDA */
} modes;

static modes modes_off(void)
{
    modes was = {.grad = mp_torch.grad_enabled()};
    if (was.grad) mp_torch.set_grad_enabled(false);
    for (int8_t i = 0; i < 2 && mp_torch.autocast_enabled && mp_torch.set_autocast_enabled; i++)
        if ((was.autocast[i] = mp_torch.autocast_enabled(i))) mp_torch.set_autocast_enabled(i, false);
    return was;
}

static void modes_back(modes was)
{
    if (was.grad) mp_torch.set_grad_enabled(true);
    for (int8_t i = 0; i < 2; i++)
        if (was.autocast[i]) mp_torch.set_autocast_enabled(i, true);
}

int mp_plan_run(mp_plan *plan, PyObject *const *inputs, PyObject **outputs)
{
    mp_frame *frame = mp_frame_take(plan);
    if (!frame) return -1;
    plan->n_running++;
    bool timed = plan->n_timed < TIMED_RUNS;
    run r = {.plan = plan, .frame = frame, .release_gil = timed || plan->fastest_ns >= LONG_RUN_NS};
    uint32_t n_inputs = plan->graph->n_inputs;
    if (r.release_gil) /* other threads may drop what the caller only borrows */
        for (uint32_t i = 0; i < n_inputs; i++) Py_INCREF(inputs[i]);
    modes was = {0};
    if (plan->has_operators) was = modes_off();
    int64_t start = timed ? now_ns() : 0;
    int result = take_inputs(plan, frame, inputs);
    if (!result) {
        gil_release(&r);
        result = run_all(&r);
    }
    if (timed && !result) {
        int64_t took = now_ns() - start;
        if (!plan->n_timed || took < plan->fastest_ns) plan->fastest_ns = took;
        plan->n_timed++;
    }
    if (plan->has_operators) modes_back(was);
    if (!result) result = make_outputs(plan, frame, outputs);
    mp_frame_give(plan, frame);
    if (r.release_gil)
        for (uint32_t i = 0; i < n_inputs; i++) Py_DECREF(inputs[i]);
    if (!--plan->n_running && plan->freed) mp_plan_destroy(plan);
    return result;
}
