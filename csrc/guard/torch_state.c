/* torch's global state as one row of numbers, read through libtorch's exported C++ functions.
**
** Each row of the table below is one mode: the C++ symbol that answers for it (plain functions of plain values, none of which can throw),
** and the Python expression that says the same. At the first use every symbol's answer is compared with Python's; where a symbol is
** missing or does not agree, Python is asked from then on: slower, never wrong. A snapshot is the numbers, in the table's order.
*/
#include "guard/torch_state.h"

#include "guard/program.h"

/* -- The table ----------------------------------------------------------------------------------------------------------- */

typedef enum {
    STATE_BOOL,       /* bool f() */
    STATE_BYTE,       /* int8 f() */
    STATE_SIZE,       /* int64 f() */
    STATE_DEVICE,     /* int8 or bool f(int8 device type) */
    STATE_CONTEXT,    /* bool f(Context *) */
    STATE_PRECISIONS, /* int f(Context *, backend, operator), of all of them */
    STATE_FLAG,       /* bool variable */
    STATE_VECTOR,     /* vector &f(): is it not empty? */
    STATE_POINTER,    /* pointer &f(): is it not null? */
    STATE_STACK,      /* stack &f(), on a deque of libstdc++: is it not empty? */
    STATE_FLUSH,      /* the CPU's own register */
    STATE_PYTHON,     /* no symbol */
} state_kind;

typedef struct {
    const char *name; /* for people */
    uint8_t kind;
    bool blocks; /* nothing can be traced while it is not zero */
    int8_t argument;
    const char *library, *symbol, *python;
} state_row;

#define C10 "libc10."
#define CPU "libtorch_cpu."

static const state_row rows[] = {
    {"grad mode", STATE_BOOL, 0, 0, C10, "_ZN3c108GradMode10is_enabledEv", "torch.is_grad_enabled()"},
    {"inference mode", STATE_BOOL, 0, 0, C10, "_ZN3c1013InferenceMode10is_enabledEv",
     "torch.is_inference_mode_enabled()"},
    {"torch function modes", STATE_SIZE, 1, 0, CPU, "_ZN2at4impl22PythonTorchFunctionTLS9stack_lenEv",
     "torch._C._len_torch_function_stack()"},
    {"torch function disabled", STATE_BYTE, 1, 0, CPU, "_ZN2at4impl22PythonTorchFunctionTLS18get_disabled_stateEv",
     "torch._C._get_torch_function_state()"},
    {"torch dispatch modes", STATE_SIZE, 1, 0, C10, "_ZN3c104impl20TorchDispatchModeTLS9stack_lenEv",
     "torch._C._len_torch_dispatch_stack()"},
    {"functorch transforms", STATE_VECTOR, 1, 0, CPU, "_ZN2at9functorch20getDynamicLayerStackEv",
     "torch._C._functorch.peek_interpreter_stack() is not None"},
    {"jit tracing", STATE_POINTER, 1, 0, CPU, "_ZN5torch3jit6tracer15getTracingStateEv",
     "torch._C._get_tracing_state() is not None"},
    {"saved tensor hooks", STATE_STACK, 1, 0, CPU, "_ZN2at23SavedTensorDefaultHooks13get_tls_stateEv",
     "torch._C._autograd._top_saved_tensors_default_hooks(False) is not None"},
    {"anomaly mode", STATE_FLAG, 1, 0, CPU, "_ZN5torch8autograd11AnomalyMode8_enabledE", "torch.is_anomaly_enabled()"},
    {"autocast on CPU", STATE_DEVICE, 0, 0, CPU, "_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE",
     "torch.is_autocast_enabled('cpu')"},
    {"autocast on CUDA", STATE_DEVICE, 0, 1, CPU, "_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE",
     "torch.is_autocast_enabled('cuda')"},
    {"autocast's type on CPU", STATE_DEVICE, 0, 0, CPU, "_ZN2at8autocast18get_autocast_dtypeEN3c1010DeviceTypeE",
     "code(torch.get_autocast_dtype('cpu'))"},
    {"autocast's type on CUDA", STATE_DEVICE, 0, 1, CPU, "_ZN2at8autocast18get_autocast_dtypeEN3c1010DeviceTypeE",
     "code(torch.get_autocast_dtype('cuda'))"},
    {"autocast's cache", STATE_BOOL, 0, 0, CPU, "_ZN2at8autocast25is_autocast_cache_enabledEv",
     "torch.is_autocast_cache_enabled()"},
    {"default dtype", STATE_BYTE, 0, 0, C10, "_ZN3c1031get_default_dtype_as_scalartypeEv",
     "code(torch.get_default_dtype())"},
    {"deterministic algorithms", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context23deterministicAlgorithmsEv",
     "torch.are_deterministic_algorithms_enabled()"},
    {"deterministic algorithms, warn only", STATE_CONTEXT, 0, 0, CPU,
     "_ZNK2at7Context31deterministicAlgorithmsWarnOnlyEv", "torch.is_deterministic_algorithms_warn_only_enabled()"},
    {"deterministic fill", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context36deterministicFillUninitializedMemoryEv",
     "torch.utils.deterministic.fill_uninitialized_memory"},
    {"mkldnn", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context17userEnabledMkldnnEv", "torch._C._get_mkldnn_enabled()"},
    {"mkldnn deterministic", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context19deterministicMkldnnEv",
     "torch._C._get_mkldnn_deterministic()"},
    {"nnpack", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context17userEnabledNNPACKEv", "torch._C._get_nnpack_enabled()"},
    {"flash attention", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context19userEnabledFlashSDPEv",
     "torch._C._get_flash_sdp_enabled()"},
    {"memory-efficient attention", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context26userEnabledMemEfficientSDPEv",
     "torch._C._get_mem_efficient_sdp_enabled()"},
    {"math attention", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context18userEnabledMathSDPEv",
     "torch._C._get_math_sdp_enabled()"},
    {"cuDNN attention", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context19userEnabledCuDNNSDPEv",
     "torch._C._get_cudnn_sdp_enabled()"},
    {"cuDNN", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context16userEnabledCuDNNEv", "torch._C._get_cudnn_enabled()"},
    {"cuDNN deterministic", STATE_CONTEXT, 0, 0, CPU, "_ZNK2at7Context18deterministicCuDNNEv",
     "torch._C._get_cudnn_deterministic()"},
    {"float32 precision", STATE_PRECISIONS, 0, 0, CPU,
     "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE", NULL},
    {"flush denormal", STATE_FLUSH, 0, 0, NULL, NULL, NULL},
};

enum { N_ROWS = sizeof rows / sizeof *rows };

/* What the table's Python expressions use. code: c10::ScalarType. */
static const char prelude[] =
    "import torch\n"
    "import torch.utils.deterministic\n"
    "codes = {torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5,\n"
    "         torch.float32: 6, torch.float64: 7, torch.complex32: 8, torch.complex64: 9, torch.complex128: 10,\n"
    "         torch.bool: 11, torch.bfloat16: 15}\n"
    "code = lambda dtype: codes.get(dtype, hash(dtype) & 0xffffff)\n";

/* -- Reading ------------------------------------------------------------------------------------------------------------------- */

static struct {
    bool ready;
    void *context;                  /* at::globalContext() */
    void *symbol[N_ROWS];           /* NULL: ask Python */
    PyObject *python[N_ROWS];       /* owned for the life of the process: callables without arguments */
    const uint32_t *precisions[16]; /* values in the context's table of precisions, which never moves */
    int n_precisions;               /* 0: not found */
    PyObject *forward_ad;           /* owned: the module's dict, where forward-mode levels are counted */
    PyObject *level_name;
} state;

static int64_t flush_bits(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr() & 0x8040; /* flush to zero, denormals are zero */
#elif defined(__aarch64__)
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return (int64_t)(control & (1u << 24));
#else
    return 0;
#endif
}

/* The precision of each backend and operator, four bits each. */
static int64_t ask_precisions(int (*getter)(void *, int, int))
{
    uint64_t all = 0;
    for (int i = 0; i < state.n_precisions; i++) all = all << 4 | (*state.precisions[i] & 15);
    if (state.n_precisions) return (int64_t)all;
    static const int8_t pairs[][2] = {{0, 0}, {1, 0}, {1, 1}, {1, 2}, {1, 3}, {2, 0}, {2, 1}, {2, 2}, {2, 3}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        all = all << 4 | (getter(state.context, pairs[i][0], pairs[i][1]) & 15);
    return (int64_t)all;
}

static int64_t ask_symbol(const state_row *row, void *symbol)
{
    switch ((state_kind)row->kind) {
    case STATE_BOOL: return ((bool (*)(void))symbol)();
    case STATE_BYTE: return ((int8_t (*)(void))symbol)();
    case STATE_SIZE: return ((int64_t (*)(void))symbol)();
    case STATE_DEVICE: return ((int8_t (*)(int8_t))symbol)(row->argument);
    case STATE_CONTEXT: return ((bool (*)(void *))symbol)(state.context);
    case STATE_PRECISIONS: return ask_precisions((int (*)(void *, int, int))symbol);
    case STATE_FLAG: return *(const bool *)symbol;
    case STATE_VECTOR: {
        char *const *bounds = ((char *const *(*)(void))symbol)(); /* begin, end, ... */
        return bounds[0] != bounds[1];
    }
    case STATE_POINTER: return *((void *const *(*)(void))symbol)() != NULL;
    case STATE_STACK: {
        void *const *deque = ((void *const *(*)(void))symbol)(); /* map, size, start{cur, ...}, finish{cur, ...} */
        return deque[2] != deque[6];
    }
    case STATE_FLUSH:
    case STATE_PYTHON: break;
    }
    return 0;
}

/* 0, or -1 with an exception. */
static int ask_python(int row, int64_t *answer)
{
    PyObject *value = PyObject_CallNoArgs(state.python[row]);
    PyObject *number = value ? PyNumber_Long(value) : NULL;
    Py_XDECREF(value);
    *answer = number ? PyLong_AsLongLong(number) : -1;
    Py_XDECREF(number);
    return number && !PyErr_Occurred() ? 0 : -1;
}

/* Cannot be asked: counts as a state of its own. */
enum { UNKNOWN_STATE = -99 };

static inline int64_t ask(int row)
{
    if (rows[row].kind == STATE_FLUSH) return flush_bits();
    if (MP_LIKELY(state.symbol[row] != NULL)) return ask_symbol(&rows[row], state.symbol[row]);
    int64_t answer = UNKNOWN_STATE;
    if (!state.python[row] || ask_python(row, &answer) < 0) {
        mp_error_clear();
        return UNKNOWN_STATE;
    }
    return answer;
}

/* -- Finding out how to read -------------------------------------------------------------------------------------------------- */

static int make_python(int row, PyObject *names)
{
    if (!rows[row].python) return 0;
    PyObject *source = PyUnicode_FromFormat("lambda: %s", rows[row].python);
    const char *text = source ? PyUnicode_AsUTF8(source) : NULL;
    state.python[row] = text ? PyRun_String(text, Py_eval_input, names, names) : NULL;
    Py_XDECREF(source);
    return state.python[row] ? 0 : -1;
}

/* The getter of precisions looks each up in a hash table inside the context: 20 ns. Find the table itself (libstdc++: buckets, their
** number, first node, number of nodes, load factor 1.0; a node: next, backend, operator, value) and read its values from then on. Taken only
** if every node has a key of its own and agrees with the getter wherever that does not fall back on another key. */
static void find_precisions(int (*getter)(void *, int, int))
{
    enum { CONTEXT_WORDS = 256, NODES = 9 };
    for (int at = 0; at < CONTEXT_WORDS; at++) {
        const uint64_t *table = (const uint64_t *)state.context + at;
        if (table[3] != NODES || (uint32_t)table[4] != 0x3f800000 || table[1] < NODES || table[1] > 64) continue;
        const uint64_t *node = (const uint64_t *)(uintptr_t)table[2];
        uint32_t seen = 0;
        int n = 0;
        for (; node && n < NODES; n++, node = (const uint64_t *)(uintptr_t)node[0]) {
            const uint32_t *fields = (const uint32_t *)(node + 1);
            if (fields[0] > 2 || fields[1] > 3 || fields[2] > 4 || seen & (1u << (fields[0] * 4 + fields[1]))) break;
            seen |= 1u << (fields[0] * 4 + fields[1]);
            int said = getter(state.context, (int)fields[0], (int)fields[1]);
            if (fields[2] != 0 && fields[2] != 4 && said != (int)fields[2]) break; /* neither none nor default */
            state.precisions[n] = &fields[2];
        }
        if (n != NODES || node) continue;
        state.n_precisions = NODES;
        return;
    }
}

static void verify(int row)
{
    int64_t answer, found;
    if (!state.symbol[row]) return;
    if (rows[row].kind == STATE_PRECISIONS) {
        find_precisions((int (*)(void *, int, int))state.symbol[row]);
        return; /* Python shows what it amounts to, not what is set: nothing to compare with */
    }
    found = ask_symbol(&rows[row], state.symbol[row]);
    if (ask_python(row, &answer) == 0 && answer == found) return;
    mp_error_clear(); /* this torch may not have the Python name: then this mode is not watched at all (UNKNOWN_STATE) */
    state.symbol[row] = NULL;
}

/* Push saved-tensor hooks: the stack must show. */
static void verify_stack(PyObject *names)
{
    static const char push[] = "torch._C._autograd._push_saved_tensors_default_hooks(id, id)";
    static const char pop[] = "torch._C._autograd._pop_saved_tensors_default_hooks()";
    for (int row = 0; row < N_ROWS; row++) {
        if (rows[row].kind != STATE_STACK || !state.symbol[row] || ask_symbol(&rows[row], state.symbol[row])) continue;
        PyObject *done = PyRun_String(push, Py_eval_input, names, names);
        bool shows = done && ask_symbol(&rows[row], state.symbol[row]);
        Py_XDECREF(done);
        PyObject *undone = done ? PyRun_String(pop, Py_eval_input, names, names) : NULL;
        bool gone = undone && !ask_symbol(&rows[row], state.symbol[row]);
        Py_XDECREF(undone);
        if (!shows || !gone) state.symbol[row] = NULL;
        mp_error_clear(); /* hooks are disabled just now: Python will be asked */
    }
}

/* 0, or -1 with an exception. */
static int prepare(void)
{
    if (MP_LIKELY(state.ready)) return 0;
    PyObject *names = PyDict_New();
    PyObject *done = NULL;
    if (!names || PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0) goto failed;
    done = PyRun_String(prelude, Py_file_input, names, names);
    if (!done) goto failed;
    void *global = guard_symbol(CPU, "_ZN2at13globalContextEv");
    if (global) state.context = ((void *(*)(void))global)();
    for (int row = 0; row < N_ROWS; row++) {
        Py_CLEAR(state.python[row]);
        if (make_python(row, names) < 0) goto failed;
        state.symbol[row] = rows[row].symbol ? guard_symbol(rows[row].library, rows[row].symbol) : NULL;
        bool context = rows[row].kind == STATE_CONTEXT || rows[row].kind == STATE_PRECISIONS;
        if (context && !state.context) state.symbol[row] = NULL;
        verify(row);
    }
    verify_stack(names);
    PyObject *forward_ad = PyImport_ImportModule("torch.autograd.forward_ad");
    if (!forward_ad) goto failed;
    Py_XSETREF(state.forward_ad, Py_NewRef(PyModule_GetDict(forward_ad)));
    Py_DECREF(forward_ad);
    Py_XSETREF(state.level_name, PyUnicode_InternFromString("_current_level"));
    if (!state.level_name) goto failed;
    state.ready = true;
    Py_DECREF(done);
    Py_DECREF(names);
    return 0;
failed:
    Py_XDECREF(done);
    Py_XDECREF(names);
    return -1;
}

/* Levels of forward-mode differentiation: -1 outside of any. */
static int64_t forward_level(void)
{
    PyObject *level = PyDict_GetItemWithError(state.forward_ad, state.level_name);
    int64_t answer = level && PyLong_Check(level) ? PyLong_AsLongLong(level) : -1;
    if (PyErr_Occurred()) mp_error_clear();
    return answer;
}

/* -- The door -------------------------------------------------------------------------------------------------------------------- */

PyObject *mp_torch_state_read(void)
{
    if (prepare() < 0) return NULL;
    int64_t answers[N_ROWS + 1];
    for (int row = 0; row < N_ROWS; row++) answers[row] = ask(row);
    answers[N_ROWS] = forward_level();
    return PyBytes_FromStringAndSize((const char *)answers, sizeof answers);
}

int mp_torch_state_same(PyObject *snapshot, const char **what)
{
    if (!state.ready || !PyBytes_CheckExact(snapshot) || PyBytes_GET_SIZE(snapshot) != (N_ROWS + 1) * sizeof(int64_t)) {
        if (what) *what = "torch";
        return 0;
    }
    const char *was = PyBytes_AS_STRING(snapshot);
    for (int row = 0; row < N_ROWS; row++) {
        int64_t now = ask(row);
        if (MP_LIKELY(memcmp(was + (size_t)row * sizeof now, &now, sizeof now) == 0)) continue;
        if (what) *what = rows[row].name;
        return 0;
    }
    int64_t now = forward_level();
    if (memcmp(was + N_ROWS * sizeof now, &now, sizeof now) == 0) return 1;
    if (what) *what = "forward-mode differentiation";
    return 0;
}

int mp_torch_state_traceable(mp_reason *why)
{
    if (prepare() < 0) {
        mp_reason_set_exception(why, MP_REASON_TORCH_STATE);
        return -1;
    }
    for (int row = 0; row < N_ROWS; row++)
        if (rows[row].blocks && ask(row)) {
            mp_reason_set(why, MP_REASON_TORCH_STATE, "%s", rows[row].name);
            return -1;
        }
    if (forward_level() < 0) return 0;
    mp_reason_set(why, MP_REASON_TORCH_STATE, "forward-mode differentiation");
    return -1;
}

/* {name: (value, asked through its symbol)} for tests, or NULL with an exception. */
PyObject *mp_torch_state_show(void)
{
    if (prepare() < 0) return NULL;
    PyObject *all = PyDict_New();
    for (int row = 0; all && row < N_ROWS; row++) {
        bool direct = state.symbol[row] || rows[row].kind == STATE_FLUSH;
        PyObject *entry = Py_BuildValue("(LO)", (long long)ask(row), direct ? Py_True : Py_False);
        if (!entry || PyDict_SetItemString(all, rows[row].name, entry) < 0) Py_CLEAR(all);
        Py_XDECREF(entry);
    }
    return all;
}
