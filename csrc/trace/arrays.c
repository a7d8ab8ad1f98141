/* numpy arrays: which memory they show, which value of the graph that is, and what changes it. See arrays.h. */
#include "trace/arrays.h"

#include "guard/guard.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

enum { LOOKED_AT = 1 << 16 }; /* elements of an array that may become a check */

static struct { /* owned by the process; NULL while numpy is not imported, or is not as it is known */
    PyTypeObject *array, *scalar;
    PyObject *dtypes;       /* dict of magpy.arrays: numpy's dtype -> torch's */
    PyObject *copy, *order; /* ndarray.copy, "K" */
    PyObject *from_numpy;   /* torch.from_numpy */
    PyObject *view;         /* magpy.arrays.view */
} numpy;

typedef struct {     /* memory that stands for a value of the graph */
    PyObject *watch; /* owned: the root, or a weak reference to it */
    char *begin, *end, *data;
    PyObject *descr, *meta; /* owned: of the array that the value is */
    mp_value_id value;
    uint32_t input; /* number of the graph input that it is, or UINT32_MAX */
    uint32_t next;  /* region of the same root, or UINT32_MAX */
} region;

struct mp_arrays {
    region *list;
    uint32_t n;
    mp_map of; /* root -> its first region */
    struct {
        char *begin, *end;
    } *looked; /* memory at which C code goes on looking */
    uint32_t n_looked;
};

/* -- Types ---------------------------------------------------------------------------------------------------------- */

/* Is the layout the one that we know? */
static bool known_layout(PyObject *module)
{
    PyObject *array = PyObject_CallMethod(module, "zeros", "((ii))", 3, 5);
    PyObject *view = array ? PySequence_GetSlice(array, 1, 2) : NULL;
    const mp_array *a = (const mp_array *)array, *v = (const mp_array *)view;
    bool known = view && Py_IS_TYPE(view, Py_TYPE(array)) && a->nd == 2 && a->dimensions[0] == 3 &&
                 a->dimensions[1] == 5 && a->strides[0] == 40 && a->strides[1] == 8 && !a->base && v->base == array &&
                 v->data == a->data + 40 && v->descr == a->descr && (a->flags & MP_ARRAY_OWNS) &&
                 !(v->flags & MP_ARRAY_OWNS) && (v->flags & MP_ARRAY_WRITEABLE) && (v->flags & MP_ARRAY_ALIGNED);
    Py_XDECREF(view);
    Py_XDECREF(array);
    return known;
}

void mp_arrays_prepare(void)
{
    static bool looked;
    if (looked) return;
    mp_kept kept = mp_keep();
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy"), *ours = NULL; /* borrowed */
    PyObject *type = module && PyModule_Check(module) ? PyObject_GetAttrString(module, "ndarray") : NULL;
    if (type && PyType_Check(type) && mp_torch_names_ready()) {
        looked = true;
        PyObject *scalar = PyObject_GetAttrString(module, "generic");
        ours = PyImport_ImportModule("magpy.arrays");
        PyObject *torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch"); /* borrowed */
        if (ours && torch && scalar && PyType_Check(scalar) && known_layout(module)) {
            numpy.dtypes = PyObject_GetAttrString(ours, "DTYPES");
            numpy.copy = PyObject_GetAttrString(type, "copy");
            numpy.view = PyObject_GetAttrString(ours, "view");
            numpy.order = PyUnicode_FromString("K");
            numpy.from_numpy = PyObject_GetAttrString(torch, "from_numpy");
            numpy.scalar = (PyTypeObject *)Py_NewRef(scalar);
            if (numpy.dtypes && numpy.view && numpy.copy && numpy.order && numpy.from_numpy)
                numpy.array = (PyTypeObject *)Py_NewRef(type);
        }
        Py_XDECREF(scalar);
    }
    Py_XDECREF(ours);
    Py_XDECREF(type);
    mp_restore(kept);
}

bool mp_is_array(PyObject *object) { return numpy.array && Py_IS_TYPE(object, numpy.array); }
bool mp_is_array_flags(PyObject *object)
{
    const char *name = Py_TYPE(object)->tp_name, *last = strrchr(name, '.');
    return !strncmp(name, "numpy.", 6) && last && !strcmp(last, ".flagsobj");
}
bool mp_is_array_scalar_type(PyTypeObject *type) { return numpy.scalar && PyType_IsSubtype(type, numpy.scalar); }

/* A tensor with the elements as they are now, as they lie in memory; no Python code runs. Owned, or NULL with an exception. */
static PyObject *copied(PyObject *array)
{
    PyObject *copy = PyObject_CallFunctionObjArgs(numpy.copy, array, numpy.order, NULL);
    PyObject *tensor = copy ? PyObject_CallOneArg(numpy.from_numpy, copy) : NULL;
    Py_XDECREF(copy);
    return tensor;
}

static bool abandon(mp_recorder *rec, const char *what)
{
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a numpy array %s", what);
    return false;
}

static PyObject *no_memory(mp_recorder *rec)
{
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "arrays");
    return NULL;
}

/* Number of the torch dtype, or -1: torch has none. */
static int dtype_code(PyObject *descr)
{
    PyObject *dtype = PyDict_GetItemWithError(numpy.dtypes, descr);
    PyObject *code = dtype ? PyDict_GetItemWithError(mp_names.dtypes, dtype) : NULL;
    PyErr_Clear();
    int number = code ? (int)PyLong_AsLong(code) : -1;
    return number >= 0 && mp_dtype_known(number) ? number : -1;
}

static Py_ssize_t item_size(PyObject *descr)
{
    PyObject *size = PyObject_GetAttrString(descr, "itemsize"); /* a C member */
    Py_ssize_t n = size ? PyLong_AsSsize_t(size) : 0;
    Py_XDECREF(size);
    return n;
}

Py_ssize_t mp_array_item_size(PyObject *array) { return item_size(((mp_array *)array)->descr); }

/* -- Geometry --------------------------------------------------------------------------------------------------------- */

static bool is_empty(const mp_array *a)
{
    for (int d = 0; d < a->nd; d++)
        if (!a->dimensions[d]) return true;
    return false;
}

static void extent(const mp_array *a, Py_ssize_t size, char **begin, char **end)
{
    *begin = a->data;
    *end = a->data + size;
    for (int d = 0; d < a->nd; d++) {
        Py_ssize_t reach = (a->dimensions[d] - 1) * a->strides[d];
        *(reach < 0 ? begin : end) += reach;
    }
    if (is_empty(a)) *begin = *end = a->data;
}

void mp_array_range(PyObject *array, char **first, char **begin, char **end)
{
    *first = ((mp_array *)array)->data;
    extent((mp_array *)array, mp_array_item_size(array), begin, end);
}

/* Elements that torch has a type for, at places that whole strides give? */
static bool regular(const mp_array *a, Py_ssize_t size)
{
    if (size <= 0 || dtype_code(a->descr) < 0 || !(a->flags & MP_ARRAY_ALIGNED)) return false;
    for (int d = 0; d < a->nd; d++)
        if (a->strides[d] % size) return false;
    return true;
}

static bool is_reversed(const mp_array *a)
{
    for (int d = 0; d < a->nd; d++)
        if (a->strides[d] < 0 && a->dimensions[d] > 1) return true;
    return false;
}

bool mp_array_plain(PyObject *array)
{
    const mp_array *a = (const mp_array *)array;
    return regular(a, item_size(a->descr)) && !is_reversed(a) && (a->flags & MP_ARRAY_WRITEABLE);
}

/* Sizes, or strides in elements with those of reversed dimensions turned around: owned tuple, or NULL with an exception. */
static PyObject *tuple_of(const mp_array *a, Py_ssize_t size, bool strides)
{
    PyObject *tuple = PyTuple_New(a->nd);
    for (int d = 0; tuple && d < a->nd; d++) {
        Py_ssize_t stride = size ? a->strides[d] / size : 0;
        PyObject *number = PyLong_FromSsize_t(!strides ? a->dimensions[d] : stride < 0 ? -stride : stride);
        if (number)
            PyTuple_SET_ITEM(tuple, d, number);
        else
            Py_CLEAR(tuple);
    }
    return tuple;
}

PyObject *mp_array_strides(PyObject *array) { return tuple_of((mp_array *)array, mp_array_item_size(array), true); }

PyObject *mp_array_meta(PyObject *array)
{
    const mp_array *a = (const mp_array *)array;
    Py_ssize_t size = item_size(a->descr);
    PyObject *sizes = tuple_of(a, size, false), *strides = sizes ? tuple_of(a, size, true) : NULL;
    PyObject *dtype = strides ? PyDict_GetItemWithError(numpy.dtypes, a->descr) : NULL; /* borrowed */
    PyObject *meta = strides ? PyTuple_Pack(3, sizes, strides, dtype ? dtype : Py_None) : NULL;
    Py_XDECREF(sizes);
    Py_XDECREF(strides);
    return meta;
}

bool mp_array_regular(PyObject *array) { return regular((mp_array *)array, item_size(((mp_array *)array)->descr)); }

/* -- Regions ------------------------------------------------------------------------------------------------------------ */

static struct mp_arrays *arrays(mp_recorder *rec)
{
    if (!rec->arrays) rec->arrays = PyMem_RawCalloc(1, sizeof *rec->arrays);
    if (!rec->arrays) no_memory(rec);
    return rec->arrays;
}

void mp_arrays_free(mp_recorder *rec)
{
    struct mp_arrays *state = rec->arrays;
    if (!state) return;
    rec->arrays = NULL;
    for (uint32_t i = 0; i < state->n; i++) {
        Py_XDECREF(state->list[i].watch);
        Py_XDECREF(state->list[i].descr);
        Py_XDECREF(state->list[i].meta);
    }
    mp_map_free(&state->of);
    PyMem_RawFree(state->list);
    PyMem_RawFree(state->looked);
    PyMem_RawFree(state);
}

static PyObject *root_of(PyObject *array)
{
    while (mp_is_array(array) && ((mp_array *)array)->base) array = ((mp_array *)array)->base;
    return array;
}

static uint32_t first_region(mp_recorder *rec, PyObject *root)
{
    uint32_t i = rec->arrays ? mp_map_get(&rec->arrays->of, root) : MP_MAP_NONE;
    return i != MP_MAP_NONE && mp_watched(rec->arrays->list[i].watch) == root ? i : UINT32_MAX;
}

static bool same_meta(PyObject *a, PyObject *b) { return PyObject_RichCompareBool(a, b, Py_EQ) == 1; }

/* The region that holds the array: the one that is just it, else the only one that it lies in. NULL: none, or several. */
static region *region_of(mp_recorder *rec, PyObject *array)
{
    const mp_array *a = (const mp_array *)array;
    char *begin, *end;
    extent(a, item_size(a->descr), &begin, &end);
    region *found = NULL;
    PyObject *meta = NULL;
    for (uint32_t i = first_region(rec, root_of(array)); i != UINT32_MAX; i = rec->arrays->list[i].next) {
        region *r = &rec->arrays->list[i];
        if (r->data == a->data && r->descr == a->descr) {
            if (!meta && !(meta = mp_array_meta(array))) break;
            if (same_meta(meta, r->meta) && !is_reversed(a)) {
                Py_DECREF(meta);
                return r;
            }
        }
        if (r->begin > begin || r->end < end) continue;
        if (found) {
            Py_XDECREF(meta);
            return NULL;
        }
        found = r;
    }
    Py_XDECREF(meta);
    return found;
}

static region *add_region(mp_recorder *rec, PyObject *array, mp_value_id value)
{
    struct mp_arrays *state = arrays(rec);
    PyObject *root = root_of(array), *watch = state ? mp_watch(root) : NULL,
             *meta = watch ? mp_array_meta(array) : NULL;
    uint32_t first = first_region(rec, root);
    region *r = meta ? mp_rec_grow(rec, &state->list, &state->n, sizeof *r) : NULL;
    if (!r || mp_map_put(&state->of, root, state->n - 1) < 0) {
        if (r) state->n--;
        Py_XDECREF(watch);
        Py_XDECREF(meta);
        no_memory(rec);
        return NULL;
    }
    const mp_array *a = (const mp_array *)array;
    *r = (region){.watch = watch,
                  .data = a->data,
                  .descr = Py_NewRef(a->descr),
                  .meta = meta,
                  .value = value,
                  .input = UINT32_MAX,
                  .next = first};
    extent(a, item_size(a->descr), &r->begin, &r->end);
    return r;
}

void mp_array_bind(mp_recorder *rec, PyObject *array, mp_value_id value) { add_region(rec, array, value); }

/* -- Arrays from outside ------------------------------------------------------------------------------------------------ */

static int64_t *numbers_of(PyObject *tuple)
{
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    int64_t *numbers = PyMem_RawMalloc((size_t)(n ? n : 1) * sizeof *numbers);
    for (Py_ssize_t i = 0; numbers && i < n; i++) numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    return numbers;
}

/* It becomes a graph input: its elements are read by every run, how it lies in memory is guarded. NULL after abandoning. */
static region *touch(mp_recorder *rec, PyObject *array, mp_obj_id id)
{
    const mp_array *a = (const mp_array *)array;
    region *r = rec->recording && rec->recording->objects[id].value != MP_NO_VALUE ? region_of(rec, array) : NULL;
    if (r || mp_rec_abandoned(rec)) return r;
    if (!mp_array_regular(array) || is_reversed(a)) {
        abandon(rec, "from outside whose elements torch has no type for, or that lies unusually in memory");
        return NULL;
    }
    mp_tensor_meta *meta = PyMem_RawCalloc(1, sizeof *meta);
    PyObject *told = mp_array_meta(array), *value = Py_BuildValue("(Oi)", a->descr, a->flags & MP_ARRAY_WRITEABLE);
    if (meta && told) {
        meta->ndim = (int8_t)a->nd;
        meta->dtype = dtype_code(a->descr);
        meta->device_index = -1;
        meta->is_leaf = true;
        meta->size = numbers_of(PyTuple_GET_ITEM(told, 0));
        meta->stride = numbers_of(PyTuple_GET_ITEM(told, 1));
    }
    mp_rec_type(rec, array);
    bool good = meta && told && value && meta->size && meta->stride;
    mp_read *read = good ? mp_rec_read_entry(rec, array, MP_READ_ARRAY_META, NULL) : NULL;
    if (read) {
        read->was = MP_WAS_META;
        read->meta = meta;
        read->value = Py_NewRef(value);
        mp_array_range(array, &meta->first, &meta->begin, &meta->end);
        uint32_t input = rec->recording->n_inputs;
        mp_value_id number = mp_rec_object_input(rec, id);
        r = number == MP_NO_VALUE ? NULL : add_region(rec, array, number);
        if (r) r->input = input;
    } else {
        if (meta) {
            PyMem_RawFree(meta->size);
            PyMem_RawFree(meta->stride);
        }
        PyMem_RawFree(meta);
        no_memory(rec);
    }
    Py_XDECREF(told);
    Py_XDECREF(value);
    PyErr_Clear();
    return r;
}

/* An array from outside is a graph input from now on, and where another one is a view of it, or it of another, by its root. */
static void touch_outside(mp_recorder *rec, PyObject *array)
{
    for (PyObject *at = array; mp_is_array(at); at = ((mp_array *)at)->base) {
        mp_obj_id id = mp_rec_find(rec, at);
        if (id != MP_NO_OBJ) {
            touch(rec, at, id);
            return;
        }
        if (!((mp_array *)at)->base) return;
    }
}

/* -- Constant or data ----------------------------------------------------------------------------------------------------- */

/* Was its memory made by the call, of nothing but constants? */
static bool is_constant(mp_recorder *rec, PyObject *array)
{
    PyObject *root = root_of(array);
    if (mp_is_tensor(root) || first_region(rec, root) != UINT32_MAX) return false;
    if (mp_is_array(root)) return (((mp_array *)root)->flags & MP_ARRAY_OWNS) && mp_rec_find(rec, root) == MP_NO_OBJ;
    return PyBytes_CheckExact(root);
}

bool mp_array_is_new(mp_recorder *rec, PyObject *array)
{
    PyObject *root = root_of(array);
    return first_region(rec, root) == UINT32_MAX && mp_rec_find(rec, root) == MP_NO_OBJ && is_constant(rec, array);
}

bool mp_array_is_data(mp_recorder *rec, PyObject *array)
{
    touch_outside(rec, array);
    return !is_constant(rec, array);
}

bool mp_holds_array(PyObject *object, int depth)
{
    if (mp_is_array(object)) return true;
    if (depth > 16) return false;
    PyObject *key, *value;
    if (PyTuple_Check(object) || PyList_Check(object)) {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); i++)
            if (mp_holds_array(PySequence_Fast_GET_ITEM(object, i), depth + 1)) return true;
    } else if (PyDict_Check(object)) {
        for (Py_ssize_t at = 0; PyDict_Next(object, &at, &key, &value);)
            if (mp_holds_array(value, depth + 1)) return true;
    } else if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        return mp_is_array(slice->start) || mp_is_array(slice->stop) || mp_is_array(slice->step);
    }
    return false;
}

bool mp_holds_data(mp_recorder *rec, PyObject *object, int depth)
{
    if (mp_is_array(object)) return mp_array_is_data(rec, object);
    if (mp_is_tensor(object)) return true;
    if (depth > 16) return false;
    PyObject *key, *value;
    bool found = false; /* all are looked at: those from outside become inputs */
    if (PyTuple_Check(object) || PyList_Check(object)) {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); i++)
            found = mp_holds_data(rec, PySequence_Fast_GET_ITEM(object, i), depth + 1) || found;
    } else if (PyDict_Check(object)) {
        for (Py_ssize_t at = 0; PyDict_Next(object, &at, &key, &value);)
            found = mp_holds_data(rec, value, depth + 1) || found;
    } else if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        found = mp_holds_data(rec, slice->start, depth + 1) || mp_holds_data(rec, slice->stop, depth + 1) ||
                mp_holds_data(rec, slice->step, depth + 1);
    }
    return found;
}

/* -- Values ----------------------------------------------------------------------------------------------------------------- */

static PyObject *tensor_method(const char *name)
{ return PyObject_GetAttrString((PyObject *)mp_names.tensor_base, name); }

/* Do the elements fill the memory, so that a copy lies as they do? */
static bool is_dense(const mp_array *a)
{
    Py_ssize_t bytes = item_size(a->descr);
    char *begin, *end;
    extent(a, bytes, &begin, &end);
    for (int d = 0; d < a->nd; d++) bytes *= a->dimensions[d];
    return end - begin == bytes && !is_reversed(a);
}

/* A constant's whole memory as a value. MP_NO_VALUE after abandoning. */
static mp_value_id lift(mp_recorder *rec, PyObject *root)
{
    PyObject *tensor = copied(root), *args = tensor ? PyTuple_Pack(1, tensor) : NULL;
    PyObject *value = args ? mp_rec_silent_op(rec, tensor_method("clone"), args) : NULL;
    mp_value_id id = value ? mp_index_of(value) : MP_NO_VALUE;
    mp_facts *facts = mp_rec_facts(rec, id);
    if (facts) facts->constant = true;
    Py_XDECREF(tensor);
    Py_XDECREF(value);
    if (!value) no_memory(rec);
    return id;
}

/* Where the first element of the memory lies, by reversed dimensions turned around. */
static char *lowest(const mp_array *a)
{
    char *begin = a->data;
    for (int d = 0; d < a->nd; d++)
        if (a->strides[d] < 0 && a->dimensions[d] > 0) begin += (a->dimensions[d] - 1) * a->strides[d];
    return begin;
}

/* The view of `value` (stolen) at this offset from its first element, in elements. Owned _C.Value or NULL after abandoning. */
static PyObject *view_of(mp_recorder *rec, PyObject *value, const mp_array *a, Py_ssize_t size, Py_ssize_t offset)
{
    PyObject *sizes = tuple_of(a, size, false), *strides = sizes ? tuple_of(a, size, true) : NULL;
    PyObject *args = strides ? Py_BuildValue("(OOOn)", value, sizes, strides, offset) : NULL;
    PyObject *view = args ? mp_rec_silent_op(rec, Py_NewRef(numpy.view), args) : no_memory(rec);
    Py_XDECREF(sizes);
    Py_XDECREF(strides);
    Py_DECREF(value);
    return view;
}

void mp_array_adopt(mp_recorder *rec, PyObject *array, PyObject *tensor)
{
    PyObject *root = root_of(array), *quiet = mp_quiet_begin();
    bool other =
        mp_is_tensor(root) && mp_rec_find_value(rec, root) == MP_NO_VALUE && mp_rec_find(rec, root) == MP_NO_OBJ;
    other = other && mp_tensor_storage(root) == mp_tensor_storage(tensor);
    mp_quiet_end(quiet);
    PyObject *held = other ? PyTuple_Pack(1, tensor) : NULL, *args = held ? mp_rec_template(rec, held) : NULL;
    PyObject *func = args ? tensor_method("detach") : NULL;
    if (func)
        mp_rec_template_op(rec, func, args, root);
    else
        Py_XDECREF(args);
    Py_XDECREF(func);
    Py_XDECREF(held);
}

/* An array over the memory of a tensor. */
static PyObject *value_by_tensor(mp_recorder *rec, const mp_array *a, PyObject *tensor)
{
    PyObject *number = NULL, *detached = NULL, *dtype = NULL;
    Py_ssize_t size = item_size(a->descr);
    int count = 0;
    PyObject *held = PyTuple_Pack(1, tensor);
    bool known = held && mp_rec_check_tensors(rec, held, NULL, &count);
    PyObject *args = known ? mp_rec_template(rec, held) : NULL, *quiet = mp_quiet_begin();
    if (args) dtype = mp_tensor_ask(mp_names.dtype, tensor);
    PyObject *code = dtype ? PyDict_GetItemWithError(mp_names.dtypes, dtype) : NULL;
    char *first = NULL;
    if (code) {
        number = mp_tensor_ask(mp_names.data_ptr, tensor);
        first = number ? PyLong_AsVoidPtr(number) : NULL;
    }
    mp_quiet_end(quiet);
    Py_XDECREF(held);
    Py_XDECREF(dtype);
    Py_XDECREF(number);
    if (!args || !code || !number || PyLong_AsLong(code) != dtype_code(a->descr)) {
        Py_XDECREF(args);
        if (!mp_rec_abandoned(rec)) abandon(rec, "that shows a tensor's elements as another type");
        return NULL;
    }
    detached = mp_rec_silent_op(rec, tensor_method("detach"), args);
    return detached ? view_of(rec, detached, a, size, is_empty(a) ? 0 : (lowest(a) - first) / size) : NULL;
}

/* The array with reversed dimensions turned around: owned _C.Value, or NULL after abandoning. */
PyObject *mp_array_forward(mp_recorder *rec, PyObject *array, bool shared)
{
    if (mp_rec_abandoned(rec)) return NULL;
    const mp_array *a = (const mp_array *)array;
    Py_ssize_t size = item_size(a->descr);
    if (!regular(a, size)) {
        abandon(rec, "whose elements torch has no type for, or that lies unusually in memory");
        return NULL;
    }
    touch_outside(rec, array);
    PyObject *root = root_of(array), *value = NULL;
    region *r = region_of(rec, array), whole = {0};
    if (!r && first_region(rec, root) == UINT32_MAX && mp_is_tensor(root)) return value_by_tensor(rec, a, root);
    if (!r && is_constant(rec, array) && mp_is_array(root)) {
        const mp_array *base = (const mp_array *)root;
        mp_value_id lifted = mp_array_regular(root) && is_dense(base) ? lift(rec, root) : MP_NO_VALUE;
        if (lifted == MP_NO_VALUE) {
            if (!mp_rec_abandoned(rec)) abandon(rec, "of elements that torch has no type for");
            return NULL;
        }
        if (shared) r = add_region(rec, root, lifted);
        whole = (region){.data = base->data, .descr = base->descr, .value = lifted};
        if (!shared) r = &whole;
    }
    if (mp_rec_abandoned(rec)) return NULL;
    if (!r || r->descr != a->descr) {
        abandon(rec, r ? "that shows its elements as another type" : "of unknown origin");
        return NULL;
    }
    value = mp_value_new(r->value);
    if (!value) return no_memory(rec);
    PyObject *meta = r->meta && r->data == a->data && !is_reversed(a) ? mp_array_meta(array) : NULL;
    bool same = meta && same_meta(meta, r->meta);
    Py_XDECREF(meta);
    PyErr_Clear();
    return same ? value : view_of(rec, value, a, size, is_empty(a) ? 0 : (lowest(a) - r->data) / size);
}

PyObject *mp_array_value(mp_recorder *rec, PyObject *array, bool shared)
{
    if (is_reversed((mp_array *)array)) {
        abandon(rec, "that is reversed");
        return NULL;
    }
    return mp_array_forward(rec, array, shared);
}

/* Positions of the reversed dimensions: owned tuple, or NULL with an exception. */
PyObject *mp_array_reversed(PyObject *array)
{
    const mp_array *a = (const mp_array *)array;
    PyObject *list = PyList_New(0);
    for (int d = 0; list && d < a->nd; d++) {
        if (a->strides[d] >= 0 || a->dimensions[d] < 2) continue;
        PyObject *number = PyLong_FromLong(d);
        if (!number || PyList_Append(list, number) < 0) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

/* -- Changes ------------------------------------------------------------------------------------------------------------------ */

static void mark_input(mp_recorder *rec, uint32_t input, mp_mutation how)
{
    if (input < rec->recording->n_inputs && !rec->recording->input_mutated[input])
        rec->recording->input_mutated[input] = how;
}

static void check_looked(mp_recorder *rec, const char *begin, const char *end)
{
    for (uint32_t i = 0; rec->arrays && i < rec->arrays->n_looked; i++)
        if (begin < rec->arrays->looked[i].end && rec->arrays->looked[i].begin < end)
            abandon(rec, "that is changed while it is gone through");
}

static void changed_memory(mp_recorder *rec, const char *begin, const char *end)
{
    check_looked(rec, begin, end);
    for (uint32_t i = 0; rec->arrays && i < rec->arrays->n; i++) {
        region *r = &rec->arrays->list[i];
        if (r->input != UINT32_MAX && mp_watched(r->watch) && begin < r->end && r->begin < end)
            mark_input(rec, r->input, MP_MUTATION_COUNTED);
    }
}

void mp_array_tensor_changed(mp_recorder *rec, PyObject *tensor)
{
    if (!rec->arrays) return;
    char *first, *begin, *end;
    if (mp_guard_tensor_range(tensor, &first, &begin, &end))
        changed_memory(rec, begin, end);
    else if (rec->arrays->n)
        abandon(rec, "beside a tensor that is changed and whose memory is unknown");
}

void mp_array_store(mp_recorder *rec, PyObject *array, PyObject *value)
{
    PyObject *view = mp_array_value(rec, array, true), *root = root_of(array);
    uint32_t first = first_region(rec, root);
    if (view && first != UINT32_MAX && rec->arrays->list[first].next != UINT32_MAX)
        abandon(rec, "that is changed and whose parts came apart");
    PyObject *args = view ? PyTuple_Pack(2, view, value) : NULL;
    PyObject *done = args ? mp_rec_silent_op(rec, tensor_method("copy_"), args) : NULL;
    const mp_array *a = (const mp_array *)array;
    char *begin, *end;
    extent(a, item_size(a->descr), &begin, &end);
    if (done) changed_memory(rec, begin, end);
    if (done && first == UINT32_MAX && mp_is_tensor(root)) mp_rec_memory_changed(rec, root);
    Py_XDECREF(view);
    Py_XDECREF(done);
}

/* -- Looking -------------------------------------------------------------------------------------------------------------------- */

static void settle(mp_recorder *rec, PyObject *array)
{
    mp_op_state *state = mp_rec_op_state(rec);
    PyObject *method = PyObject_GetAttrString((PyObject *)numpy.array, "tolist"), *value = NULL, *args = NULL;
    PyObject *seen = method ? PyObject_CallOneArg(method, array) : NULL, *dims = NULL, *func = NULL;
    value = seen ? mp_array_forward(rec, array, false) : NULL;
    dims = value ? mp_array_reversed(array) : NULL;
    if (dims && PyTuple_GET_SIZE(dims)) {
        args = PyTuple_Pack(2, value, dims);
        Py_SETREF(value, args ? mp_rec_silent_op(rec, tensor_method("flip"), args) : NULL);
    } else if (dims) { /* as it is now, whatever is written into it later */
        args = PyTuple_Pack(1, value);
        Py_SETREF(value, args ? mp_rec_silent_op(rec, tensor_method("clone"), args) : NULL);
    }
    args = value ? PyTuple_Pack(1, value) : NULL;
    func = args ? tensor_method("tolist") : NULL;
    if (func && state && state->accept_values)
        mp_rec_check(rec, func, args, seen);
    else if (func)
        mp_rec_abandon(rec, MP_REASON_DATA_READ, "the elements of a numpy array");
    else
        no_memory(rec); /* unless there is a reason */
    Py_XDECREF(method);
    Py_XDECREF(seen);
    Py_XDECREF(value);
    Py_XDECREF(dims);
    Py_XDECREF(args);
    Py_XDECREF(func);
    PyErr_Clear();
}

void mp_array_settle(mp_recorder *rec, PyObject *array, bool later)
{
    mp_kept kept = mp_keep();
    if (!mp_rec_abandoned(rec) && mp_array_is_data(rec, array) && !mp_rec_abandoned(rec)) {
        const mp_array *a = (const mp_array *)array;
        mp_op_state *state = mp_rec_op_state(rec);
        Py_ssize_t n = 1;
        for (int d = 0; d < a->nd; d++) n *= a->dimensions[d];
        if (!state || !state->accept_checks || state->muted || n > LOOKED_AT)
            mp_rec_abandon(rec, MP_REASON_DATA_READ, "the elements of a numpy array");
        else
            settle(rec, array);
        struct mp_arrays *all = later && !mp_rec_abandoned(rec) ? arrays(rec) : NULL;
        if (all && mp_rec_grow(rec, &all->looked, &all->n_looked, sizeof *all->looked))
            extent(a, item_size(a->descr), &all->looked[all->n_looked - 1].begin, &all->looked[all->n_looked - 1].end);
    }
    mp_restore(kept);
}

/* -- Arrays for torch functions --------------------------------------------------------------------------------------------------- */

/* A tensor over the array's memory that is a value of the graph. Owned, or NULL after abandoning. */
static PyObject *as_tensor(mp_recorder *rec, PyObject *array, bool shared)
{
    if (shared && !mp_array_plain(array)) {
        abandon(rec, "that torch may share but not write to");
        return NULL;
    }
    bool constant = is_constant(rec, array) && !shared;
    PyObject *value = mp_array_value(rec, array, shared), *args = value ? PyTuple_Pack(1, value) : NULL;
    PyObject *tensor = args ? copied(array) : NULL, *func = tensor ? tensor_method("detach") : NULL;
    Py_XDECREF(value);
    if (func) {
        mp_rec_template_op(rec, func, args, tensor);
        mp_facts *facts = mp_rec_facts(rec, mp_rec_find_value(rec, tensor));
        if (facts) facts->constant = constant;
    } else {
        Py_XDECREF(args);
        Py_CLEAR(tensor);
        no_memory(rec);
    }
    Py_XDECREF(func);
    return tensor;
}

PyObject *mp_arrays_as_tensors(mp_recorder *rec, PyObject *object, bool shared)
{
    if (mp_is_array(object)) return as_tensor(rec, object, shared);
    if (!mp_holds_array(object, 0)) return Py_NewRef(object);
    bool tuple = PyTuple_Check(object);
    if (PyDict_Check(object)) {
        PyObject *copy = PyDict_New(), *key, *value;
        for (Py_ssize_t at = 0; copy && PyDict_Next(object, &at, &key, &value);) {
            PyObject *item = mp_arrays_as_tensors(rec, value, shared);
            if (!item || PyDict_SetItem(copy, key, item) < 0) Py_CLEAR(copy);
            Py_XDECREF(item);
        }
        return copy ? copy : no_memory(rec);
    }
    if (!tuple && !PyList_Check(object)) {
        abandon(rec, "among the bounds of a slice");
        return NULL;
    }
    Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
    PyObject *copy = tuple ? PyTuple_New(n) : PyList_New(n);
    for (Py_ssize_t i = 0; copy && i < n; i++) {
        PyObject *item = mp_arrays_as_tensors(rec, PySequence_Fast_GET_ITEM(object, i), shared);
        if (!item)
            Py_CLEAR(copy);
        else if (tuple)
            PyTuple_SET_ITEM(copy, i, item);
        else
            PyList_SET_ITEM(copy, i, item);
    }
    return copy ? copy : no_memory(rec);
}

/* -- Results ---------------------------------------------------------------------------------------------------------------------- */

PyObject *mp_array_at_end(mp_recorder *rec, PyObject *array, bool *owns)
{
    const mp_array *a = (const mp_array *)array;
    char *first, *begin, *end;
    mp_array_range(array, &first, &begin, &end);
    *owns = (a->flags & MP_ARRAY_OWNS) != 0;
    for (uint32_t i = 0; *owns && i < rec->n_bound; i++) {
        char *from, *to;
        PyObject *tensor = mp_watched(rec->bound[i].watch);
        if (!tensor || !mp_guard_tensor_range(tensor, &first, &from, &to) || to <= begin || from >= end) continue;
        abandon(rec, "that is a result and whose memory a tensor shows"); /* the tensor would own it, not the array */
        return NULL;
    }
    for (uint32_t i = 0; *owns && rec->arrays && i < rec->arrays->n; i++) { /* others may be views of it */
        const region *r = &rec->arrays->list[i];
        if (mp_watched(r->watch) && r->input != UINT32_MAX && r->begin < end && begin < r->end)
            abandon(rec, "that is a result and an input");
    }
    return mp_array_value(rec, array, true);
}
