/* Tensor metadata compared in place.
**
** at::Tensor, one pointer to its implementation, follows the object header; sizes, strides, dtype, device and layout come from the
** C ABI on that pointer. What the C ABI does not tell (requires_grad, is_leaf, is_view, conj, neg, inference) is read from fields of the
** implementation whose places are found at start-up by looking at tensors of which the answers are known, and then verified on
** others. If they are not found, torch's own Python getters answer: slower, never wrong. For dense tensors on the CPU the places of
** dtype, sizes and strides are found in the same way: a model has hundreds of parameters, and a comparison without calls takes a
** fifth of the time.
*/
#include "guard/program.h"

#include "trace/recorder.h"

static struct {
    bool loaded;
    bool in_place;      /* the handle is where it is expected and the places of the flags are verified */
    bool numbers_too;   /* the places of dtype, sizes and strides are verified as well */
    PyTypeObject *base; /* torch._C.TensorBase, owned for ever as libtorch is */
    int (*get_dim)(void *, int64_t *);
    int (*get_sizes)(void *, int64_t **);
    int (*get_strides)(void *, int64_t **);
    int (*get_dtype)(void *, int32_t *);
    int (*get_device_type)(void *, int32_t *);
    int (*get_device_index)(void *, int32_t *);
    int (*get_layout)(void *, int32_t *);
    int (*get_storage_offset)(void *, int64_t *);
    int (*get_storage_size)(void *, int64_t *);
    int (*get_data_ptr)(void *, void **);
    size_t (*element_size)(int32_t);
    uint16_t keys, autograd;          /* places in the implementation */
    uint16_t grad_fn, requires, view; /* places in its autograd part */
    uint16_t dim, sizes, strides;     /* places in the implementation, of words; for at most INLINE_DIM dimensions */
    uint16_t dtype;                   /* and of 16 bits */
    uint64_t conj, neg, no_inference; /* bits of keys */
    uint64_t plain;                   /* keys of a dense tensor on the CPU */
} torch_;

static const struct {
    void *function;
    const char *name;
} abi[] = {
    {&torch_.get_dim, "aoti_torch_get_dim"},
    {&torch_.get_sizes, "aoti_torch_get_sizes"},
    {&torch_.get_strides, "aoti_torch_get_strides"},
    {&torch_.get_dtype, "aoti_torch_get_dtype"},
    {&torch_.get_device_type, "aoti_torch_get_device_type"},
    {&torch_.get_device_index, "aoti_torch_get_device_index"},
    {&torch_.get_layout, "aoti_torch_get_layout"},
    {&torch_.get_storage_offset, "aoti_torch_get_storage_offset"},
    {&torch_.get_storage_size, "aoti_torch_get_storage_size"},
    {&torch_.get_data_ptr, "aoti_torch_get_data_ptr"},
    {&torch_.element_size, "aoti_torch_dtype_element_size"},
};

static inline void *handle_of(PyObject *tensor) { return (char *)tensor + sizeof(PyObject); }
static inline const char *implementation(PyObject *tensor) { return *(const char **)handle_of(tensor); }

static inline uint64_t word_at(const char *base, size_t place)
{
    uint64_t word;
    memcpy(&word, base + place, sizeof word);
    return word;
}

/* -- Flags ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    bool requires_grad, is_leaf, is_view, is_conj, is_neg, is_inference;
} flags;

static inline flags flags_in_place(PyObject *tensor)
{
    const char *impl = implementation(tensor);
    const char *autograd = (const char *)(uintptr_t)word_at(impl, torch_.autograd);
    uint64_t keys = word_at(impl, torch_.keys);
    flags f = {false, true, false, keys & torch_.conj, keys & torch_.neg, !(keys & torch_.no_inference)};
    if (autograd) {
        bool made = word_at(autograd, torch_.grad_fn) != 0;
        f.is_leaf = !made;
        f.requires_grad = made || autograd[torch_.requires];
        f.is_view = autograd[torch_.view];
    }
    return f;
}

/* A getset or method of the base class, whatever subclasses say. 1, 0, or -1 with an exception. */
static int ask(PyObject *tensor, const char *name)
{
    PyObject *found = PyDict_GetItemString(torch_.base->tp_dict, name), *answer = NULL; /* borrowed */
    if (found && Py_TYPE(found) == &PyGetSetDescr_Type)
        answer = Py_TYPE(found)->tp_descr_get(found, tensor, (PyObject *)Py_TYPE(tensor));
    else if (found)
        answer = PyObject_CallOneArg(found, tensor);
    int truth = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return truth;
}

static bool flags_asked(PyObject *tensor, flags *f)
{
    int r = ask(tensor, "requires_grad"), l = ask(tensor, "is_leaf"), v = ask(tensor, "_is_view");
    int c = ask(tensor, "is_conj"), n = ask(tensor, "is_neg"), i = ask(tensor, "is_inference");
    *f = (flags){r > 0, l > 0, v > 0, c > 0, n > 0, i > 0};
    if ((r | l | v | c | n | i) >= 0) return true;
    PyErr_Clear();
    return false;
}

/* -- Finding the places --------------------------------------------------------------------------------------------------------- */

/* Tensors with known answers, made in whatever modes the user has set. Each row: tensor, raw key set. */
static const char samples_source[] =
    "import torch\n"
    "def row(t): return (t, torch._C._dispatch_keys(t).raw_repr())\n"
    "def new(*size, **kw): return torch.empty(*size, device='cpu', **kw)\n"
    "with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.enable_grad():\n"
    "    plain = new(3, dtype=torch.float32)\n"
    "    leaf = new(2, 5, dtype=torch.float32, requires_grad=True)\n"
    "    made = leaf * 2\n"
    "    view = plain[1:]\n"
    "    made_view = leaf[:1]\n"
    "    detached = made.detach()\n"
    "    conj = new(2, dtype=torch.complex64).conj()\n"
    "    neg = conj.imag\n"
    "    number = new(4, dtype=torch.int64)\n"
    "    dropped = new(2, dtype=torch.float64, requires_grad=True).requires_grad_(False)\n"
    "    kept = made * 3\n"
    "    kept.retain_grad()\n"
    "    hooked = new(2, dtype=torch.float32, requires_grad=True)\n"
    "    hooked.register_hook(lambda g: g)\n"
    "    hooked.sum().backward()\n"
    "    double_view = view[:1].view(1, 1)\n"
    "    parameter = torch.nn.Parameter(new(3, 4, dtype=torch.float32))\n"
    "    with torch.inference_mode():\n"
    "        inference = new(4, dtype=torch.float32)\n"
    "    scalar = new((), dtype=torch.bool)\n"
    "    large = new(2, 3, 4, 5, 6, dtype=torch.bfloat16).transpose(0, 3)\n"
    "    small = new(7, 0, 1, dtype=torch.uint8)\n"
    "rows = [row(t) for t in (plain, leaf, made, view, made_view, detached, conj, neg, number, inference,\n"
    "        dropped, kept, hooked, double_view, parameter, scalar, large, small)]\n";

enum {
    PLAIN,
    LEAF,
    MADE,
    VIEW,
    MADE_VIEW,
    DETACHED,
    CONJ,
    NEG,
    NUMBER,
    INFERENCE,
    DROPPED,
    KEPT,
    HOOKED,
    DOUBLE_VIEW,
    PARAMETER,
    SCALAR,
    LARGE,
    SMALL,
    N_SAMPLES
};
/* Searches end at the find. Skipped in the autograd part: virtual table and name, whose unused bytes can be anything. */
enum { IMPLEMENTATION_BYTES = 176, AUTOGRAD_BYTES = 160, AUTOGRAD_SKIPPED = 40, INLINE_DIM = 5 };

/* First place in [from, bytes) where, for each sample of `which`, the field is zero or not as `wanted` says. 0: none. */
static uint16_t find_place(const char *const *bases, const int *which, const bool *wanted, int n, size_t step,
                           size_t bytes)
{
    size_t from = bytes == AUTOGRAD_BYTES ? AUTOGRAD_SKIPPED : sizeof(void *);
    for (size_t place = from; place < bytes; place += step) {
        bool all = true;
        for (int i = 0; all && i < n; i++) {
            const char *base = bases[which[i]];
            bool set = step == 1 ? base[place] == 1 : word_at(base, place) != 0;
            bool clean = step != 1 || !(base[place] & ~1); /* a bool */
            all = set == wanted[i] && clean;
        }
        if (all) return (uint16_t)place;
    }
    return 0;
}

static bool find_places(PyObject *const *tensors, const uint64_t *keys)
{
    const char *impl[N_SAMPLES], *autograd[N_SAMPLES];
    for (int i = 0; i < N_SAMPLES; i++) impl[i] = implementation(tensors[i]);
    static const int some[] = {PLAIN, NUMBER, LEAF, MADE, MADE_VIEW};
    static const bool has_autograd[] = {false, false, true, true, true};
    torch_.autograd = find_place(impl, some, has_autograd, 5, 8, IMPLEMENTATION_BYTES);
    if (!torch_.autograd) return false;
    for (size_t place = 8; !torch_.keys && place < IMPLEMENTATION_BYTES; place += 8) {
        bool all = true;
        for (int i = 0; all && i < N_SAMPLES; i++) all = word_at(impl[i], place) == keys[i];
        if (all) torch_.keys = (uint16_t)place;
    }
    if (!torch_.keys) return false;
    for (int i = 0; i < N_SAMPLES; i++) autograd[i] = (const char *)(uintptr_t)word_at(impl[i], torch_.autograd);
    static const int with[] = {LEAF, MADE, MADE_VIEW, VIEW, CONJ, PARAMETER};
    static const bool made[] = {false, true, true, false, false, false};
    static const bool requires[] = {true, false, false, false, false, true};
    static const bool is_view[] = {false, false, true, true, true, false};
    for (int i = 0; i < 6; i++)
        if (!autograd[with[i]]) return false;
    torch_.grad_fn = find_place(autograd, with, made, 6, 8, AUTOGRAD_BYTES);
    torch_.requires = find_place(autograd, with, requires, 6, 1, AUTOGRAD_BYTES);
    torch_.view = find_place(autograd, with, is_view, 6, 1, AUTOGRAD_BYTES);
    torch_.conj = keys[CONJ] & ~keys[NEG] & ~keys[PLAIN];
    torch_.neg = keys[NEG] & ~keys[CONJ] & ~keys[PLAIN];
    torch_.no_inference = keys[PLAIN] & ~keys[INFERENCE];
    torch_.plain = keys[PLAIN];
    return torch_.grad_fn && torch_.requires && torch_.view && torch_.conj && torch_.neg && torch_.no_inference;
}

/* Where the implementation itself holds dtype, sizes and strides: the same places for every sample, with the C ABI's answers. */
static bool find_numbers(PyObject *const *tensors)
{
    uint16_t dtypes[IMPLEMENTATION_BYTES / 2]; /* places that may hold the dtype */
    size_t n_dtypes = 0;
    size_t bytes = torch_.keys + sizeof(uint64_t); /* which are in the implementation, whatever is behind them */
    for (uint16_t place = sizeof(void *); place < bytes; place += 2) dtypes[n_dtypes++] = place;
    for (int i = 0; i < N_SAMPLES; i++) {
        const char *impl = implementation(tensors[i]);
        void *handle = handle_of(tensors[i]);
        int64_t dim, *sizes, *strides;
        int32_t dtype;
        if (torch_.get_dim(handle, &dim) || torch_.get_sizes(handle, &sizes) || torch_.get_strides(handle, &strides) ||
            torch_.get_dtype(handle, &dtype) || dim > INLINE_DIM)
            return false;
        uintptr_t at_sizes = (uintptr_t)sizes - (uintptr_t)impl, at_strides = (uintptr_t)strides - (uintptr_t)impl;
        size_t end = bytes - INLINE_DIM * sizeof *sizes;
        if (at_sizes < 2 * sizeof(void *) || at_sizes > end || at_strides > end || at_strides <= at_sizes) return false;
        if (i == 0) {
            torch_.sizes = (uint16_t)at_sizes;
            torch_.strides = (uint16_t)at_strides;
            torch_.dim = (uint16_t)(at_sizes - sizeof(int64_t)); /* verified, here and for the others */
        }
        if (at_sizes != torch_.sizes || at_strides != torch_.strides || word_at(impl, torch_.dim) != (uint64_t)dim)
            return false;
        size_t left = 0;
        for (size_t k = 0; k < n_dtypes; k++) {
            uint16_t found;
            memcpy(&found, impl + dtypes[k], sizeof found);
            if (found == dtype) dtypes[left++] = dtypes[k];
        }
        n_dtypes = left;
    }
    if (n_dtypes != 1) return false;
    torch_.dtype = dtypes[0];
    return true;
}

static bool places_verified(PyObject *const *tensors)
{
    for (int i = 0; i < N_SAMPLES; i++) {
        flags asked, found = flags_in_place(tensors[i]);
        if (!flags_asked(tensors[i], &asked) || memcmp(&asked, &found, sizeof asked) != 0) return false;
        int64_t dim = -1, *sizes = NULL;
        PyObject *shape = PyObject_GetAttrString(tensors[i], "shape");
        bool same = shape && !torch_.get_dim(handle_of(tensors[i]), &dim) &&
                    !torch_.get_sizes(handle_of(tensors[i]), &sizes) && dim == PyTuple_GET_SIZE(shape);
        for (int64_t k = 0; same && k < dim; k++) same = sizes[k] == PyLong_AsLongLong(PyTuple_GET_ITEM(shape, k));
        Py_XDECREF(shape);
        PyErr_Clear();
        if (!same) return false;
    }
    return true;
}

/* The implementation pointer is where it is expected: torch's own `_cdata` says the same address. */
static bool handle_verified(PyObject *tensor)
{
    PyObject *address = PyObject_GetAttrString(tensor, "_cdata");
    bool same = address && PyLong_AsVoidPtr(address) == (void *)implementation(tensor);
    Py_XDECREF(address);
    PyErr_Clear();
    return same;
}

static bool find_and_verify(void)
{
    if (torch_.base->tp_basicsize < (Py_ssize_t)(sizeof(PyObject) + sizeof(void *))) return false;
    PyObject *names = PyDict_New(), *rows = NULL, *done = NULL, *tensors[N_SAMPLES];
    uint64_t keys[N_SAMPLES];
    bool good = names && PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0 &&
                (done = PyRun_String(samples_source, Py_file_input, names, names)) != NULL &&
                (rows = PyDict_GetItemString(names, "rows")) != NULL && PyList_GET_SIZE(rows) == N_SAMPLES;
    for (int i = 0; good && i < N_SAMPLES; i++) {
        PyObject *row = PyList_GET_ITEM(rows, i);
        tensors[i] = PyTuple_GET_ITEM(row, 0);
        keys[i] = PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(row, 1));
        good = !PyErr_Occurred();
    }
    good = good && handle_verified(tensors[0]) && handle_verified(tensors[LEAF]) && find_places(tensors, keys) &&
           places_verified(tensors);
    torch_.numbers_too = good && find_numbers(tensors);
    PyErr_Clear(); /* whatever went wrong: the getters will do */
    Py_XDECREF(done);
    Py_XDECREF(names);
    return good;
}

int guard_tensor_load(void)
{
    if (torch_.loaded) return 0;
    PyObject *base = mp_import("torch._C", "TensorBase");
    if (!base) return -1;
    if (!PyType_Check(base)) {
        Py_DECREF(base);
        PyErr_SetString(PyExc_TypeError, "torch._C.TensorBase is not a type");
        return -1;
    }
    torch_.base = (PyTypeObject *)base;
    for (size_t i = 0; i < sizeof abi / sizeof *abi; i++) {
        void *address = guard_symbol("libtorch_cpu.", abi[i].name);
        if (!address) {
            PyErr_Format(PyExc_ImportError, "this libtorch has no %s", abi[i].name);
            return -1;
        }
        memcpy(abi[i].function, &address, sizeof address);
    }
    torch_.in_place = find_and_verify();
    if (!torch_.in_place) mp_log("info", "tensors are not laid out as expected; guards ask torch for their flags");
    torch_.loaded = true;
    return 0;
}

bool guard_tensor_in_place(void) { return torch_.in_place; }

bool guard_tensor_is(PyObject *object)
{ return torch_.base && (Py_TYPE(object) == torch_.base || PyType_IsSubtype(Py_TYPE(object), torch_.base)); }

/* -- Comparing ------------------------------------------------------------------------------------------------------------------- */

const char *guard_tensor_difference(PyObject *tensor, const mp_tensor_meta *meta)
{
    if (MP_UNLIKELY(!torch_.loaded)) return "torch";
    void *handle = handle_of(tensor);
    flags f;
    if (MP_LIKELY(torch_.in_place)) {
        if (meta->dispatch_keys && word_at(implementation(tensor), torch_.keys) != meta->dispatch_keys)
            return "dispatch keys";
        f = flags_in_place(tensor);
    } else if (!flags_asked(tensor, &f)) {
        return "flags";
    }
    if (f.requires_grad != meta->requires_grad) return "requires_grad";
    if (f.is_leaf != meta->is_leaf) return "is_leaf";
    if (f.is_view != meta->is_view && (meta->requires_grad || f.requires_grad)) return "_is_view()";
    if (f.is_conj != meta->is_conj) return "is_conj()";
    if (f.is_neg != meta->is_neg) return "is_neg()";
    if (f.is_inference != meta->is_inference) return "is_inference()";
    int32_t code;
    if (torch_.get_dtype(handle, &code) || code != meta->dtype) return "dtype";
    if (torch_.get_device_type(handle, &code) || code != meta->device_type) return "device";
    if (code && (torch_.get_device_index(handle, &code) || code != meta->device_index)) return "device";
    if (torch_.get_layout(handle, &code) || code != meta->layout) return "layout";
    int64_t dim, *numbers;
    if (torch_.get_dim(handle, &dim) || dim != meta->ndim) return "shape";
    if (dim && (torch_.get_sizes(handle, &numbers) || memcmp(numbers, meta->size, (size_t)dim * sizeof *numbers)))
        return "shape";
    if (dim && meta->stride &&
        (torch_.get_strides(handle, &numbers) || memcmp(numbers, meta->stride, (size_t)dim * sizeof *numbers)))
        return "stride()";
    int64_t number;
    if (meta->placed && (torch_.get_storage_offset(handle, &number) || number != meta->storage_offset))
        return "storage_offset()";
    if (meta->placed && (torch_.get_storage_size(handle, &number) || number != meta->storage_bytes))
        return "untyped_storage().nbytes()";
    return NULL;
}

/* All that guard_tensor_difference compares, without a call. False where it does not apply. The keys of a dense tensor on the CPU
** tell device, layout, conj, neg and inference; sizes and strides of such a tensor are what the implementation holds. */
static inline bool same_in_place(PyObject *tensor, const mp_tensor_meta *meta)
{
    const char *impl = implementation(tensor);
    if (!torch_.numbers_too || meta->placed || meta->dispatch_keys != torch_.plain ||
        word_at(impl, torch_.keys) != torch_.plain || meta->ndim > INLINE_DIM ||
        word_at(impl, torch_.dim) != (uint64_t)meta->ndim)
        return false;
    flags f = flags_in_place(tensor);
    uint16_t dtype;
    memcpy(&dtype, impl + torch_.dtype, sizeof dtype);
    if (dtype != meta->dtype || f.requires_grad != meta->requires_grad || f.is_leaf != meta->is_leaf ||
        (f.requires_grad && f.is_view != meta->is_view))
        return false;
    for (int i = 0; i < meta->ndim; i++)
        if (word_at(impl, torch_.sizes + 8u * (unsigned)i) != (uint64_t)meta->size[i]) return false;
    if (!meta->stride) return true;
    for (int i = 0; i < meta->ndim; i++)
        if (word_at(impl, torch_.strides + 8u * (unsigned)i) != (uint64_t)meta->stride[i]) return false;
    return true;
}

bool guard_tensor_same(PyObject *tensor, const mp_tensor_meta *meta)
{ return MP_LIKELY(same_in_place(tensor, meta)) || !guard_tensor_difference(tensor, meta); }

/* -- Reading ------------------------------------------------------------------------------------------------------------------- */

void mp_guard_prepare(void)
{
    if (MP_LIKELY(torch_.loaded)) return;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (PyDict_GetItemString(PyImport_GetModuleDict(), "torch"))
        (void)
            guard_tensor_load(); /* what could not be loaded is asked for in Python, and reported when guards are compiled */
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
}

static int64_t *copy_numbers(const int64_t *numbers, int64_t n)
{
    int64_t *copy = PyMem_RawMalloc((size_t)(n ? n : 1) * sizeof *copy);
    if (copy && n) memcpy(copy, numbers, (size_t)n * sizeof *copy);
    return copy;
}

bool mp_guard_read_tensor(PyObject *tensor, mp_tensor_meta *meta)
{
    if (!torch_.in_place || !torch_.loaded || word_at(implementation(tensor), torch_.keys) != torch_.plain)
        return false;
    void *handle = handle_of(tensor);
    int64_t dim, *sizes = NULL, *strides = NULL;
    flags f = flags_in_place(tensor);
    if (torch_.get_dim(handle, &dim) || dim > INT8_MAX || torch_.get_sizes(handle, &sizes) ||
        torch_.get_strides(handle, &strides) || torch_.get_storage_offset(handle, &meta->storage_offset) ||
        torch_.get_dtype(handle, &meta->dtype) || torch_.get_layout(handle, &meta->layout) || meta->layout != 0)
        return false;
    meta->ndim = (int8_t)dim;
    meta->dispatch_keys = torch_.plain;
    meta->device_type = 0;
    meta->device_index = -1;
    meta->requires_grad = f.requires_grad;
    meta->is_leaf = f.is_leaf;
    meta->is_view = f.is_view;
    meta->is_conj = meta->is_neg = meta->is_inference = false; /* else the keys are others */
    meta->size = copy_numbers(sizes, dim);
    meta->stride = copy_numbers(strides, dim);
    if (meta->size && meta->stride) return true;
    PyMem_RawFree(meta->size);
    PyMem_RawFree(meta->stride);
    meta->size = meta->stride = NULL;
    return false;
}

enum { QINT8 = 12, QINT32 = 14, QUINT4X2 = 16, QUINT2X4 = 17 }; /* c10::ScalarType */
enum { MKLDNN = 3, JAGGED = 7 };                                /* c10::Layout */

bool mp_guard_tensor_opaque(PyObject *tensor)
{
    int32_t layout, dtype;
    if (torch_.loaded && torch_.in_place && word_at(implementation(tensor), torch_.keys) == torch_.plain) return false;
    mp_guard_prepare();
    if (!torch_.loaded || torch_.get_layout(handle_of(tensor), &layout) || torch_.get_dtype(handle_of(tensor), &dtype))
        return false;
    return layout != 0 || (dtype >= QINT8 && dtype <= QINT32) || dtype == QUINT4X2 || dtype == QUINT2X4;
}

bool mp_guard_read_opaque(PyObject *tensor, mp_tensor_meta *meta)
{
    void *handle = handle_of(tensor);
    int64_t dim, *sizes = NULL, *strides = NULL;
    int32_t type, index = -1;
    flags f;
    if (!torch_.loaded) return false;
    if (torch_.in_place)
        f = flags_in_place(tensor);
    else if (!flags_asked(tensor, &f))
        return false;
    if (torch_.get_dim(handle, &dim) || dim > INT8_MAX || torch_.get_sizes(handle, &sizes) ||
        torch_.get_dtype(handle, &meta->dtype) || torch_.get_layout(handle, &meta->layout) || meta->layout == MKLDNN ||
        meta->layout == JAGGED || (meta->layout == 0 && torch_.get_strides(handle, &strides)) ||
        torch_.get_device_type(handle, &type) || (type && torch_.get_device_index(handle, &index)))
        return false;
    meta->ndim = (int8_t)dim;
    meta->device_type = (int8_t)type;
    meta->device_index = (int16_t)index;
    meta->requires_grad = f.requires_grad;
    meta->is_leaf = f.is_leaf;
    meta->is_view = f.is_view;
    meta->is_conj = f.is_conj;
    meta->is_neg = f.is_neg;
    meta->is_inference = f.is_inference;
    meta->size = copy_numbers(sizes, dim);
    if (strides) meta->stride = copy_numbers(strides, dim);
    return meta->size && (meta->stride || !strides);
}

bool mp_guard_tensor_overlaps(PyObject *tensor)
{
    void *handle = handle_of(tensor);
    int32_t layout;
    int64_t dim, *sizes, *strides, reach = 0, above = 0;
    if (!torch_.loaded || torch_.get_layout(handle, &layout) || layout != 0 || torch_.get_dim(handle, &dim) ||
        torch_.get_sizes(handle, &sizes) || torch_.get_strides(handle, &strides))
        return false;
    for (int64_t i = 0; i < dim; i++)
        if (sizes[i] == 0) return false;
    /* from the smallest stride up, each must step over all that the ones before it reach */
    for (int64_t left = dim; left > 0; left--) {
        int64_t least = -1;
        for (int64_t i = 0; i < dim; i++)
            if (strides[i] > above && (least < 0 || strides[i] < strides[least])) least = i;
        if (least < 0) break;
        above = strides[least];
        int64_t steps = 0, wide = 0;
        for (int64_t i = 0; i < dim; i++)
            if (strides[i] == above && sizes[i] > 1) steps = sizes[i] - 1, wide++;
        if (wide > 1 || (wide && above <= reach)) return true;
        reach += steps * above;
    }
    for (int64_t i = 0; i < dim; i++)
        if (strides[i] <= 0 && sizes[i] > 1) return true;
    return false;
}

bool guard_tensor_range(PyObject *tensor, char **first, char **begin, char **end)
{
    void *handle = handle_of(tensor), *data;
    int32_t layout, dtype;
    int64_t dim, *sizes, *strides, low = 0, high = 0;
    if (torch_.get_layout(handle, &layout) || layout != 0 || torch_.get_dtype(handle, &dtype)) return false;
    if (torch_.get_dim(handle, &dim) || torch_.get_sizes(handle, &sizes) || torch_.get_strides(handle, &strides) ||
        torch_.get_data_ptr(handle, &data))
        return false;
    int64_t bytes = (int64_t)torch_.element_size(dtype);
    *first = *begin = *end = data;
    for (int64_t i = 0; i < dim; i++) {
        if (sizes[i] == 0) return true; /* no elements */
        int64_t span = (sizes[i] - 1) * strides[i];
        if (span < 0)
            low += span;
        else
            high += span;
    }
    *begin += low * bytes;
    *end += (high + 1) * bytes;
    return true;
}

/* Methods that give the parts of a sparse tensor, by its layout (c10::Layout). */
static const char *const parts[][GUARD_MOST_PARTS] = {
    [1] = {"_indices", "_values"},
    [2] = {"crow_indices", "col_indices", "values"},
    [4] = {"ccol_indices", "row_indices", "values"},
    [5] = {"crow_indices", "col_indices", "values"},
    [6] = {"ccol_indices", "row_indices", "values"},
};

static const char *const *parts_of(PyObject *tensor)
{
    int32_t layout;
    if (torch_.get_layout(handle_of(tensor), &layout) || layout < 0 || (size_t)layout >= sizeof parts / sizeof *parts)
        return NULL;
    return parts[layout][0] ? parts[layout] : NULL;
}

int guard_tensor_parts(PyObject *tensor)
{
    const char *const *names = parts_of(tensor);
    int n = 0;
    while (names && n < GUARD_MOST_PARTS && names[n]) n++;
    return n;
}

bool guard_tensor_part_range(PyObject *tensor, int part, char **first, char **begin, char **end)
{
    if (part == 0) return !mp_guard_tensor_opaque(tensor) && guard_tensor_range(tensor, first, begin, end);
    const char *const *names = parts_of(tensor);
    PyObject *method = names ? PyDict_GetItemString(torch_.base->tp_dict, names[part - 1]) : NULL; /* borrowed */
    PyObject *found = method ? PyObject_CallOneArg(method, tensor) : NULL;
    bool known = found && guard_tensor_is(found) && guard_tensor_range(found, first, begin, end);
    Py_XDECREF(found); /* the sparse tensor keeps its memory */
    PyErr_Clear();
    return known;
}

bool mp_guard_tensor_range(PyObject *tensor, char **first, char **begin, char **end)
{
    if (guard_tensor_load() < 0) {
        PyErr_Clear();
        return false;
    }
    return guard_tensor_range(tensor, first, begin, end);
}
