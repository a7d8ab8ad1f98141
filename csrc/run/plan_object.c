/* _C.Plan and _C.compile_graph: plans as Python sees them. */
#include "run/plan_inside.h"

#include "run/bound.h"
#include "run/build_id.h"
#include "run/cache.h"
#include "run/compiler.h"
#include "run/conv.h"
#include "run/random.h"
#include "run/weights.h"
#include "run/work.h"

typedef struct {
    PyObject_HEAD mp_plan *plan; /* owned */
} plan_object;

static PyTypeObject *plan_type; /* owned by the module as well; one per process, like libtorch */

mp_plan *mp_plan_from_object(PyObject *object)
{ return plan_type && Py_TYPE(object) == plan_type ? ((plan_object *)object)->plan : NULL; }

static void plan_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    mp_plan_free(((plan_object *)self)->plan);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -- Calling --------------------------------------------------------------------------------------------------------------- */

/* From Python nobody has checked the inputs, and kernels trust them. */
int mp_plan_check_input(const mp_plan *plan, PyObject *object, uint32_t number)
{
    const mp_meta *meta = &plan->graph->metas[number];
    int64_t ndim, *sizes, *strides;
    int32_t dtype, device, layout;
    if (!PyObject_TypeCheck(object, mp_torch.tensor_type)) {
        PyErr_Format(PyExc_TypeError, "input %u is a %.80s, not a tensor", number, Py_TYPE(object)->tp_name);
        return -1;
    }
    if (meta->dtype == MP_OPAQUE) return 0; /* it goes to operators alone, which check what they take */
    mp_handle handle = mp_tensor_handle(object);
    if (mp_torch.get_device_type(handle, &device) || mp_torch.get_layout(handle, &layout) ||
        mp_torch.get_dtype(handle, &dtype) || mp_torch.get_dim(handle, &ndim))
        return mp_torch_raise();
    bool same = dtype == meta->dtype && device == meta->device && layout == 0 && ndim == meta->ndim;
    if (same && (mp_torch.get_sizes(handle, &sizes) || mp_torch.get_strides(handle, &strides))) return mp_torch_raise();
    bool empty = false, same_strides = true;
    for (int64_t i = 0; same && i < ndim; i++) {
        same = sizes[i] == meta->size[i];
        empty |= sizes[i] == 0;
        same_strides &= sizes[i] < 2 || strides[i] == meta->stride[i];
    }
    if (same && (same_strides || empty)) return 0;
    PyErr_Format(PyExc_ValueError, "input %u has not the size, strides, dtype or device the plan was compiled for",
                 number);
    return -1;
}

/* The inputs as a tuple of our own (the caller's list may change while an operator runs Python). Owned, or NULL with an exception. */
static PyObject *checked_inputs(const mp_plan *plan, PyObject *inputs)
{
    PyObject *fast = PySequence_Tuple(inputs);
    uint32_t n = plan->graph->n_inputs;
    if (!fast) return NULL;
    if (PyTuple_GET_SIZE(fast) != n) {
        PyErr_Format(PyExc_TypeError, "%zd inputs given, the plan takes %u", PyTuple_GET_SIZE(fast), n);
        Py_CLEAR(fast);
    }
    for (uint32_t i = 0; fast && i < n; i++)
        if (mp_plan_check_input(plan, PyTuple_GET_ITEM(fast, i), i) < 0) Py_CLEAR(fast);
    return fast;
}

PyObject *mp_plan_answer(PyObject *const *outputs, uint32_t n)
{
    PyObject *answer = PyTuple_New(n);
    for (uint32_t i = 0; i < n; i++) {
        PyObject *output = outputs[i] ? outputs[i] : Py_NewRef(Py_None);
        if (answer)
            PyTuple_SET_ITEM(answer, i, output);
        else
            Py_DECREF(output);
    }
    return answer;
}

static PyObject *plan_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    mp_plan *plan = ((plan_object *)self)->plan;
    PyObject *inputs, *fast, *result = NULL, *small[16], **outputs = small;
    uint32_t n = plan->graph->n_outputs;
    if (kwargs && PyDict_GET_SIZE(kwargs)) return PyErr_Format(PyExc_TypeError, "a plan takes no keywords"), NULL;
    if (!PyArg_ParseTuple(args, "O", &inputs)) return NULL;
    if (!(fast = checked_inputs(plan, inputs))) return NULL;
    if (n > 16 && !(outputs = PyMem_Malloc(n * sizeof *outputs))) {
        PyErr_NoMemory();
        goto done;
    }
    if (mp_plan_run(plan, &PyTuple_GET_ITEM(fast, 0), outputs) == 0) result = mp_plan_answer(outputs, n);
    if (outputs != small) PyMem_Free(outputs);
done:
    Py_DECREF(fast);
    return result;
}

/* -- Attributes -------------------------------------------------------------------------------------------------------------- */

static PyObject *kernel_ops(const mp_kernel *kernel)
{
    PyObject *names = PyList_New(0);
    for (const char *const *name = kernel->ops; names && name && *name; name++) {
        PyObject *text = PyUnicode_FromString(*name);
        if (!text || PyList_Append(names, text) < 0) Py_CLEAR(names);
        Py_XDECREF(text);
    }
    return names;
}

/* (tier, name, detail) of an instruction. Owned, or NULL with an exception. */
static PyObject *describe(const mp_plan *plan, const mp_insn *insn)
{
    static const char *const tiers[] = {"kernel", "shim", "dispatcher", "python"};
    if (insn->kind == MP_INSN_KERNEL) {
        const mp_kernel *kernel = &plan->schedule->kernels[plan->calls[insn->index].number];
        PyObject *ops = kernel_ops(kernel), *comma = PyUnicode_FromString(", ");
        PyObject *detail = ops && comma ? PyUnicode_Join(comma, ops) : NULL;
        Py_XDECREF(comma);
        Py_XDECREF(ops);
        return detail ? Py_BuildValue("(ssN)", "kernel", kernel->name, detail) : NULL;
    }
    if (insn->kind == MP_INSN_OP) {
        const mp_op *op = &plan->ops[insn->index];
        const char *detail = op->tier == MP_TIER_SHIM ? op->symbol : op->tier == MP_TIER_DISPATCHER ? op->name : "";
        return Py_BuildValue("(sss)", tiers[op->tier], op->node->op, detail);
    }
    if (insn->kind == MP_INSN_CHAIN) {
        const mp_chain_call *chain = &plan->chains[insn->index];
        const mp_gemm *first = &chain->first.gemm, *second = &chain->second.gemm;
        const char *name = plan->schedule->kernels[chain->kernel].name;
        return Py_BuildValue("(ssN)", "kernel", "magpy.chain",
                             PyUnicode_FromFormat("%lldx%lldx%lld, %s, %lldx%lldx%lld", (long long)first->m,
                                                  (long long)first->k, (long long)first->n, name, (long long)second->m,
                                                  (long long)second->k, (long long)second->n));
    }
    if (insn->kind == MP_INSN_PRODUCT) {
        static const char *const forms[] = {
            [MP_GEMM_ROWS] = "rows", [MP_GEMM_COLUMNS] = "columns", [MP_GEMM_DOTS] = "dots"};
        const mp_product *product = &plan->products[insn->index];
        const mp_gemm *gemm = &product->gemm;
        return Py_BuildValue("(ssN)", "kernel", product->node->op,
                             PyUnicode_FromFormat("%s, %lldx%lldx%lld", gemm->packed ? "packed" : forms[gemm->form],
                                                  (long long)gemm->m, (long long)gemm->k, (long long)gemm->n));
    }
    static const char *const names[] = {
        [MP_INSN_ALLOC] = "alloc", [MP_INSN_VIEW] = "view", [MP_INSN_RELEASE] = "release"};
    return Py_BuildValue("(ssN)", names[insn->kind], "", PyUnicode_FromFormat("value %u", insn->index));
}

static PyObject *get_steps(PyObject *self, void *closure)
{
    const mp_plan *plan = ((plan_object *)self)->plan;
    PyObject *steps = PyList_New(plan->n_insns);
    for (uint32_t i = 0; steps && i < plan->n_insns; i++) {
        PyObject *step = describe(plan, &plan->insns[i]);
        if (step)
            PyList_SET_ITEM(steps, i, step);
        else
            Py_CLEAR(steps);
    }
    return steps;
}

static PyObject *describe_kernel(const mp_plan *plan, uint32_t number)
{
    const mp_schedule *schedule = plan->schedule;
    const mp_kernel *kernel = &schedule->kernels[number];
    PyObject *ops = kernel_ops(kernel);
    char *ir = mp_fuse_dump(schedule, number);
    PyObject *result = !ops ? NULL
                            : Py_BuildValue("{s:s,s:N,s:s,s:s,s:z,s:z,s:L,s:L}", "name", kernel->name, "ops", ops,
                                            "source_path", mp_code_source_path(plan->code), "source", schedule->source,
                                            "cuda_source", kernel->cuda_source, "ir", ir, "extent",
                                            (long long)kernel->extent, "grain", (long long)kernel->grain);
    free(ir);
    return result;
}

static PyObject *get_kernels(PyObject *self, void *closure)
{
    const mp_plan *plan = ((plan_object *)self)->plan;
    PyObject *kernels = PyList_New(plan->schedule->n_kernels);
    for (uint32_t i = 0; kernels && i < plan->schedule->n_kernels; i++) {
        PyObject *kernel = describe_kernel(plan, i);
        if (kernel)
            PyList_SET_ITEM(kernels, i, kernel);
        else
            Py_CLEAR(kernels);
    }
    return kernels;
}

static PyObject *get_arena_bytes(PyObject *self, void *closure)
{ return PyLong_FromLongLong(((plan_object *)self)->plan->schedule->arena_bytes); }

static PyObject *get_work(PyObject *self, void *closure)
{
    const mp_plan *plan = ((plan_object *)self)->plan;
    PyObject *list = PyList_New(plan->n_insns);
    for (uint32_t i = 0; list && i < plan->n_insns; i++) {
        mp_work work = mp_plan_work(plan, &plan->insns[i]);
        PyObject *row = Py_BuildValue("(LL)", (long long)work.flops, (long long)work.bytes);
        if (row)
            PyList_SET_ITEM(list, i, row);
        else
            Py_CLEAR(list);
    }
    return list;
}

/* Call `call` n times with the least time of each step kept in `ns`; reading the clock adds some 50 ns to each. Returns 0, or -1
** with an exception. */
static int timed_calls(mp_plan *plan, PyObject *call, int n, int64_t *ns)
{
    if (plan->timed_ns) {
        PyErr_SetString(PyExc_RuntimeError, "this plan is being profiled");
        return -1;
    }
    for (uint32_t i = 0; i < plan->n_insns; i++) ns[i] = INT64_MAX;
    plan->timed_ns = ns;
    PyObject *result = Py_NewRef(Py_None);
    for (int i = 0; i < n && result; i++) {
        Py_DECREF(result);
        result = PyObject_CallNoArgs(call);
    }
    plan->timed_ns = NULL;
    Py_XDECREF(result);
    if (result && plan->n_insns && ns[plan->n_insns - 1] == INT64_MAX) {
        PyErr_SetString(PyExc_ValueError, "the call does not run this plan to its end");
        return -1;
    }
    return result ? 0 : -1;
}

static PyObject *plan_profile(PyObject *self, PyObject *args)
{
    mp_plan *plan = ((plan_object *)self)->plan;
    PyObject *call, *list = NULL;
    int n = 10;
    if (!PyArg_ParseTuple(args, "O|i:profile", &call, &n)) return NULL;
    int64_t *ns = PyMem_Calloc(plan->n_insns + 1, sizeof *ns);
    if (!ns) return PyErr_NoMemory();
    if (timed_calls(plan, call, n < 1 ? 1 : n, ns) == 0) list = PyList_New(plan->n_insns);
    for (uint32_t i = 0; list && i < plan->n_insns; i++) {
        PyObject *step = describe(plan, &plan->insns[i]);
        PyObject *row = step ? Py_BuildValue("(OOOd)", PyTuple_GET_ITEM(step, 0), PyTuple_GET_ITEM(step, 1),
                                             PyTuple_GET_ITEM(step, 2), (double)ns[i] * 1e-9)
                             : NULL;
        Py_XDECREF(step);
        if (row)
            PyList_SET_ITEM(list, i, row);
        else
            Py_CLEAR(list);
    }
    PyMem_Free(ns);
    return list;
}

static PyMethodDef plan_methods[] = {
    {"profile", plan_profile, METH_VARARGS,
     "profile(call, n=10) -> list of (tier, name, detail, seconds) in order: the least of the plan's runs while call() "
     "is\n"
     "called n times. ValueError where that does not run the plan to its end."},
    {NULL},
};

static PyGetSetDef plan_getset[] = {
    {"steps", get_steps, NULL, "list of (tier, name, detail) in the order of running", NULL},
    {"kernels", get_kernels, NULL, "list of dicts: name, ops, source_path, source, cuda_source, ir, extent, grain",
     NULL},
    {"work", get_work, NULL, "list of (flops, bytes) of each step, see run/work.h", NULL},
    {"arena_bytes", get_arena_bytes, NULL, "bytes of the arena for intermediate values", NULL},
    {NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_call, plan_call},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset},
    {Py_tp_doc, "A compiled graph: call it with a sequence of tensors, get a tuple of tensors (None where the graph's "
                "output is)."},
    {0, NULL},
};

static PyType_Spec plan_spec = {
    .name = "magpy._C.Plan",
    .basicsize = sizeof(plan_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};

/* -- Module functions --------------------------------------------------------------------------------------------------------- */

static PyObject *compile_graph(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"nodes", "outputs", "fuse", NULL};
    PyObject *nodes, *outputs;
    int fuse = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|p:compile_graph", names, &nodes, &outputs, &fuse)) return NULL;
    mp_graph *graph = mp_ir_graph_build(nodes, outputs);
    if (!graph) return NULL;
    plan_object *self = (plan_object *)plan_type->tp_alloc(plan_type, 0);
    if (!self) {
        mp_ir_graph_free(graph);
        return NULL;
    }
    mp_fuse_options options = {.vector_bits = mp_cpu_vector_bits(), .fuse = fuse};
    mp_reason why = {0};
    self->plan = mp_plan_compile(graph, &options, &why);
    if (self->plan) return (PyObject *)self;
    Py_DECREF(self);
    PyObject *text = mp_reason_describe(&why);
    if (text) PyErr_SetObject(PyExc_RuntimeError, text);
    Py_XDECREF(text);
    return NULL;
}

static PyObject *cache_dir(PyObject *module, PyObject *unused)
{
    char dir[PATH_MAX];
    if (mp_cache_dir(dir, sizeof dir)) return PyUnicode_DecodeFSDefault(dir);
    Py_RETURN_NONE;
}

static PyObject *compiler_usable(PyObject *module, PyObject *unused) { return PyBool_FromLong(mp_compiler_usable()); }

/* Does the library of convolutions compile here? */
static PyObject *convolutions_usable(PyObject *module, PyObject *unused)
{
    mp_reason why = {0};
    return PyBool_FromLong(mp_compiler_usable() && mp_conv_function("mp_conv_run", mp_cpu_vector_bits(), &why));
}

/* The kernel cache's directory, if it can be used; NULL without an exception if not. */
static const char *usable_cache(char dir[PATH_MAX])
{ return mp_cache_dir(dir, PATH_MAX) && !mp_cache_open(dir) ? dir : NULL; }

static bool is_cache_name(const char *name)
{ return strlen(name) == MP_CACHE_NAME_SIZE - 1 && strspn(name, "0123456789abcdef") == MP_CACHE_NAME_SIZE - 1; }

static PyObject *cached_graph(PyObject *module, PyObject *args)
{
    const char *name;
    char dir[PATH_MAX];
    if (!PyArg_ParseTuple(args, "s:cached_graph", &name)) return NULL;
    PyObject *content = is_cache_name(name) && usable_cache(dir) ? mp_cache_graph(dir, name) : NULL;
    return content ? content : Py_NewRef(Py_None);
}

static PyObject *keep_graph(PyObject *module, PyObject *args)
{
    const char *name, *content;
    Py_ssize_t size;
    char dir[PATH_MAX];
    if (!PyArg_ParseTuple(args, "sy#:keep_graph", &name, &content, &size)) return NULL;
    return PyBool_FromLong(is_cache_name(name) && usable_cache(dir) &&
                           !mp_cache_keep_graph(dir, name, content, (size_t)size));
}

static PyObject *compiler_identity(PyObject *module, PyObject *unused)
{ return mp_compiler_usable() ? mp_compiler_identity(mp_cpu_vector_bits()) : Py_NewRef(Py_None); }

static PyObject *build_id(PyObject *module, PyObject *unused) { return mp_build_id(); }

static PyObject *cpu_info(PyObject *module, PyObject *unused) { return mp_cpu_info(); }

/* For tests: load `source` of some sections as a plan's code is, and keep it loaded. Returns (source path, address of function `symbol`). */
static PyObject *load_code(PyObject *module, PyObject *args)
{
    const char *source, *symbol;
    unsigned sections = 1;
    mp_reason why = {0};
    if (!PyArg_ParseTuple(args, "ss|I:_run_load_code", &source, &symbol, &sections)) return NULL;
    mp_code *code = mp_code_load(source, sections, mp_cpu_vector_bits(), &why);
    if (code) return Py_BuildValue("(sN)", mp_code_source_path(code), PyLong_FromVoidPtr(mp_code_symbol(code, symbol)));
    PyObject *text = mp_reason_describe(&why);
    if (text) PyErr_SetObject(PyExc_RuntimeError, text);
    Py_XDECREF(text);
    return NULL;
}

static PyObject *set_product_bits(PyObject *module, PyObject *bits)
{
    long given = PyLong_AsLong(bits);
    if (given == -1 && PyErr_Occurred()) return NULL;
    mp_gemm_bits = (int)given;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"compile_graph", (PyCFunction)(void *)compile_graph, METH_VARARGS | METH_KEYWORDS,
     "compile_graph(nodes, outputs, fuse=True) -> Plan. RuntimeError says why a graph cannot be compiled."},
    {"cache_dir", cache_dir, METH_NOARGS, "Directory of the kernel cache, or None without a home directory."},
    {"cached_graph", cached_graph, METH_VARARGS,
     "cached_graph(name) -> bytes, or None: what the kernel cache keeps of a lowered graph. name: 32 hex digits."},
    {"keep_graph", keep_graph, METH_VARARGS, "keep_graph(name, content) -> bool: keep it; False where that fails."},
    {"compiler_identity", compiler_identity, METH_NOARGS,
     "What tells the C compiler, its flags and the CPU from others, or None without a compiler."},
    {"build_id", build_id, METH_NOARGS, "A hash of this extension that the linker made, or None."},
    {"compiler_usable", compiler_usable, METH_NOARGS, "Is there a C compiler? Says so once if there is none."},
    {"convolutions_usable", convolutions_usable, METH_NOARGS,
     "Can the library of convolutions be used? Compiles it, unless the kernel cache has it."},
    {"cpu_info", cpu_info, METH_NOARGS, "The CPU that kernels are compiled for: model, vector_bits."},
    {"_product_bits", set_product_bits, METH_O,
     "For tests: width of the vectors in products that are made from now on; 0 is the CPU's own."},
    {"bernoulli", mp_random_py_bernoulli, METH_VARARGS,
     "bernoulli(generator, tensor, p) -> bool: what tensor.bernoulli_(p, generator=generator) does to a contiguous "
     "tensor of float32. False, with nothing drawn, where the generator is not as known."},
    {"_run_load_code", load_code, METH_VARARGS, NULL},
    {NULL},
};

int mp_run_module_init(PyObject *module)
{
    if (!plan_type && !(plan_type = (PyTypeObject *)PyType_FromSpec(&plan_spec))) return -1;
    if (PyModule_AddFunctions(module, functions) < 0 || mp_weights_init(module) < 0 || mp_bound_init(module) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Plan", (PyObject *)plan_type);
}
