/* Values: which tensor is which value of the graph, what was last seen of it, and templates of arguments and results. */
#include "trace/arrays.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include "guard/guard.h"

enum { MAX_DEPTH = 64 };

/* -- Facts --------------------------------------------------------------------------------------------------------- */

mp_op_state *mp_rec_op_state(mp_recorder *rec)
{
    if (!rec->op_state) {
        rec->op_state = PyMem_RawCalloc(1, sizeof *rec->op_state);
        if (!rec->op_state) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "tensors");
    }
    return rec->op_state;
}

void mp_rec_free_op_state(mp_recorder *rec)
{
    if (!rec->op_state) return;
    Py_XDECREF(rec->op_state->generators);
    Py_XDECREF(rec->op_state->retained);
    Py_XDECREF(rec->op_state->nodes);
    Py_XDECREF(rec->op_state->locks);
    PyMem_RawFree(rec->op_state->facts);
    PyMem_RawFree(rec->op_state);
    rec->op_state = NULL;
}

mp_facts *mp_rec_facts(mp_recorder *rec, mp_value_id value)
{ return rec->op_state && value < rec->op_state->n_facts ? &rec->op_state->facts[value] : NULL; }

/* A tensor's _version; false if it has none (inference tensors). Called quietly. */
static bool read_version(PyObject *tensor, uint32_t *version)
{
    PyObject *number = mp_tensor_ask(mp_names._version, tensor);
    if (!number) {
        PyErr_Clear();
        *version = 0;
        return false;
    }
    *version = (uint32_t)PyLong_AsUnsignedLongMask(number);
    Py_DECREF(number);
    return true;
}

void *mp_tensor_storage(PyObject *tensor)
{
    PyObject *storage = mp_tensor_ask(mp_names.untyped_storage, tensor);
    PyObject *number = storage ? PyObject_GetAttrString(storage, "_cdata") : NULL;
    void *address = number ? PyLong_AsVoidPtr(number) : NULL;
    Py_XDECREF(storage);
    Py_XDECREF(number);
    PyErr_Clear();
    return address;
}

static void *read_data(PyObject *tensor)
{
    PyObject *number = mp_tensor_ask(mp_names.data_ptr, tensor);
    void *address = number ? PyLong_AsVoidPtr(number) : NULL;
    Py_XDECREF(number);
    PyErr_Clear();
    return address;
}

mp_value_id mp_rec_new_value(mp_recorder *rec, uint32_t op)
{
    mp_op_state *state = mp_rec_op_state(rec);
    if (!state || !rec->recording) return MP_NO_VALUE;
    mp_value_id id = rec->recording->n_values;
    mp_value *value = mp_rec_grow(rec, &rec->recording->values, &rec->recording->n_values, sizeof *value);
    if (!value) return MP_NO_VALUE;
    value->input = MP_NO_OBJ;
    value->op = op;
    mp_facts *facts = mp_rec_grow(rec, &state->facts, &state->n_facts, sizeof *facts);
    if (!facts) return MP_NO_VALUE;
    facts->read = MP_NO_READ;
    return id;
}

/* A new value bound to `tensor`, or MP_NO_VALUE after abandoning. Called quietly. */
static mp_value_id new_value(mp_recorder *rec, PyObject *tensor, mp_obj_id input, uint32_t op, bool constant)
{
    mp_value_id id = mp_rec_new_value(rec, op);
    mp_facts *facts = mp_rec_facts(rec, id);
    if (!facts) return MP_NO_VALUE;
    rec->recording->values[id].input = input;
    facts->versioned = read_version(tensor, &facts->version);
    facts->constant = constant;
    facts->overlaps = mp_guard_tensor_overlaps(tensor);
    rec->op_state->overlaps |= facts->overlaps;
    if (rec->op_state->overlaps) facts->storage = mp_tensor_storage(tensor);
    mp_rec_bind_value(rec, tensor, id);
    return id;
}

mp_value_id mp_rec_bind_new(mp_recorder *rec, PyObject *tensor, uint32_t op)
{ return new_value(rec, tensor, MP_NO_OBJ, op, false); }

bool mp_rec_unchanged(mp_recorder *rec, PyObject *tensor)
{
    uint32_t version;
    mp_facts *facts = mp_rec_facts(rec, mp_rec_find_value(rec, tensor));
    return facts && read_version(tensor, &version) == facts->versioned && version == facts->version;
}

/* -- Metadata ------------------------------------------------------------------------------------------------------ */

static void free_meta(mp_tensor_meta *meta)
{
    if (!meta) return;
    PyMem_RawFree(meta->size);
    PyMem_RawFree(meta->stride);
    PyMem_RawFree(meta);
}

static int64_t *read_numbers(PyObject *tuple, Py_ssize_t n)
{
    int64_t *numbers = PyMem_RawMalloc((size_t)(n ? n : 1) * sizeof *numbers);
    for (Py_ssize_t i = 0; numbers && i < n; i++) numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    return numbers;
}

/* 1, 0, or -1 with an exception */
static int ask_bool(PyObject *descriptor, PyObject *tensor)
{
    PyObject *answer = mp_tensor_ask(descriptor, tensor);
    int truth = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return truth;
}

static const struct { /* c10::DeviceType */
    const char *name;
    int8_t code;
} device_types[] = {{"cpu", 0}, {"cuda", 1}, {"xpu", 12}, {"mps", 13}, {"meta", 14}, {"privateuseone", 20}};

static bool read_device(PyObject *tensor, mp_tensor_meta *meta)
{
    PyObject *device = mp_tensor_ask(mp_names.device, tensor);
    PyObject *type = device ? PyObject_GetAttrString(device, "type") : NULL;
    PyObject *index = device ? PyObject_GetAttrString(device, "index") : NULL;
    bool found = false;
    for (size_t i = 0; type && index && i < sizeof device_types / sizeof *device_types; i++) {
        if (PyUnicode_CompareWithASCIIString(type, device_types[i].name) != 0) continue;
        meta->device_type = device_types[i].code;
        meta->device_index = (int16_t)(index == Py_None ? -1 : PyLong_AsLong(index));
        found = true;
    }
    Py_XDECREF(device);
    Py_XDECREF(type);
    Py_XDECREF(index);
    return found;
}

static bool read_dtype(PyObject *tensor, mp_tensor_meta *meta)
{
    PyObject *dtype = mp_tensor_ask(mp_names.dtype, tensor);
    PyObject *code = dtype ? PyDict_GetItemWithError(mp_names.dtypes, dtype) : NULL;
    Py_XDECREF(dtype);
    if (!code) return false;
    meta->dtype = (int32_t)PyLong_AsLong(code);
    return true;
}

static bool read_flags(PyObject *tensor, mp_tensor_meta *meta)
{
    int requires_grad = ask_bool(mp_names.requires_grad, tensor), is_leaf = ask_bool(mp_names.is_leaf, tensor);
    int is_conj = ask_bool(mp_names.is_conj, tensor), is_neg = ask_bool(mp_names.is_neg, tensor);
    int is_inference = ask_bool(mp_names.is_inference, tensor), is_view = ask_bool(mp_names._is_view, tensor);
    if ((requires_grad | is_leaf | is_conj | is_neg | is_inference | is_view) < 0) return false;
    meta->requires_grad = requires_grad;
    meta->is_leaf = is_leaf;
    meta->is_conj = is_conj;
    meta->is_neg = is_neg;
    meta->is_inference = is_inference;
    meta->is_view = is_view;
    return true;
}

/* Owned metadata of a tensor, or NULL if it has none that can be guarded. Called quietly; leaves no exception. */
static mp_tensor_meta *read_meta(PyObject *tensor)
{
    mp_tensor_meta *meta = PyMem_RawCalloc(1, sizeof *meta);
    PyObject *layout = NULL, *shape = NULL, *stride = NULL, *offset = NULL;
    bool done = false, opaque = mp_is_opaque(tensor);
    if (!meta) goto end;
    if (opaque ? mp_guard_read_opaque(tensor, meta) : mp_guard_read_tensor(tensor, meta)) {
        done = mp_dtype_known(meta->dtype);
        read_version(tensor, &meta->version);
        goto end;
    }
    layout = mp_tensor_ask(mp_names.layout, tensor);
    if (opaque || layout != mp_names.strided) goto end;
    shape = mp_tensor_ask(mp_names.shape, tensor);
    stride = shape ? mp_tensor_ask(mp_names.stride, tensor) : NULL;
    offset = stride ? mp_tensor_ask(mp_names.storage_offset, tensor) : NULL;
    if (!offset || !PyTuple_Check(shape) || !PyTuple_Check(stride)) goto end;
    Py_ssize_t n = PyTuple_GET_SIZE(shape);
    if (n > INT8_MAX || PyTuple_GET_SIZE(stride) != n) goto end;
    meta->ndim = (int8_t)n;
    meta->size = read_numbers(shape, n);
    meta->stride = read_numbers(stride, n);
    meta->storage_offset = PyLong_AsLongLong(offset);
    if (!meta->size || !meta->stride) goto end;
    read_version(tensor, &meta->version);
    done = read_dtype(tensor, meta) && read_device(tensor, meta) && read_flags(tensor, meta) && !PyErr_Occurred();
end:
    Py_XDECREF(layout);
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    Py_XDECREF(offset);
    PyErr_Clear();
    if (done) return meta;
    free_meta(meta);
    return NULL;
}

static bool same_meta(const mp_tensor_meta *a, const mp_tensor_meta *b, bool marked)
{
    if (a->ndim != b->ndim) return false; /* first: so many sizes and strides they have */
    size_t n = (size_t)a->ndim * sizeof(int64_t);
    bool strides = a->stride && b->stride ? !memcmp(a->stride, b->stride, n) : a->stride == b->stride;
    return !memcmp(a->size, b->size, n) && strides && a->layout == b->layout &&
           a->storage_offset == b->storage_offset && a->dtype == b->dtype && a->device_type == b->device_type &&
           a->device_index == b->device_index && (marked || a->requires_grad == b->requires_grad) &&
           a->is_leaf == b->is_leaf && a->is_conj == b->is_conj && a->is_neg == b->is_neg &&
           a->is_inference == b->is_inference;
}

/* -- Touching ------------------------------------------------------------------------------------------------------ */

/* An external tensor becomes a graph input. Its value, or MP_NO_VALUE after abandoning. Called quietly. */
static mp_value_id new_input(mp_recorder *rec, PyObject *tensor, mp_obj_id object)
{
    if (!mp_is_exact_tensor(tensor)) {
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_TENSOR, "tensor subclass %s", Py_TYPE(tensor)->tp_name);
        return MP_NO_VALUE;
    }
    mp_tensor_meta *meta = read_meta(tensor);
    if (!meta) {
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "tensor that is nested or of an unknown type");
        return MP_NO_VALUE;
    }
    mp_rec_type(rec, tensor);
    uint32_t index = rec->recording ? rec->recording->n_reads : 0;
    mp_read *read = mp_rec_read_entry(rec, tensor, MP_READ_TENSOR_META, NULL);
    if (!read) {
        free_meta(meta);
        mp_rec_abandon(rec, MP_REASON_INTERNAL, "a tensor's metadata was read before it was touched");
        return MP_NO_VALUE;
    }
    read->was = MP_WAS_META;
    read->meta = meta;
    mp_value_id id = new_value(rec, tensor, object, 0, false);
    if (id == MP_NO_VALUE) return id;
    rec->op_state->facts[id].data = read_data(tensor);
    rec->op_state->facts[id].read = index;
    if (mp_is_opaque(tensor) || !mp_guard_tensor_range(tensor, &meta->first, &meta->begin, &meta->end))
        meta->first = NULL;
    rec->recording->objects[object].value = id;
    uint32_t n = rec->recording->n_inputs; /* input_mutated has the same length */
    mp_value_id *input = mp_rec_grow(rec, &rec->recording->inputs, &rec->recording->n_inputs, sizeof *input);
    if (!input || !mp_rec_grow(rec, &rec->recording->input_mutated, &n, sizeof(uint8_t))) return MP_NO_VALUE;
    *input = id;
    return id;
}

mp_value_id mp_rec_object_input(mp_recorder *rec, mp_obj_id object)
{
    mp_value_id id = mp_rec_new_value(rec, 0);
    if (id == MP_NO_VALUE) return id;
    rec->recording->values[id].input = object;
    rec->recording->objects[object].value = id;
    uint32_t n = rec->recording->n_inputs; /* input_mutated has the same length */
    mp_value_id *input = mp_rec_grow(rec, &rec->recording->inputs, &rec->recording->n_inputs, sizeof *input);
    if (!input || !mp_rec_grow(rec, &rec->recording->input_mutated, &n, sizeof(uint8_t))) return MP_NO_VALUE;
    *input = id;
    return id;
}

/* Its value, or MP_NO_VALUE if it is unknown or the recording is abandoned. */
static mp_value_id touch(mp_recorder *rec, PyObject *tensor)
{
    if (mp_rec_abandoned(rec)) return MP_NO_VALUE;
    mp_value_id id = mp_rec_find_value(rec, tensor);
    if (id != MP_NO_VALUE) return id;
    mp_obj_id object = mp_rec_find(rec, tensor);
    if (object == MP_NO_OBJ) return MP_NO_VALUE;
    PyObject *quiet = mp_quiet_begin();
    id = new_input(rec, tensor, object);
    mp_quiet_end(quiet);
    return id;
}

void mp_rec_touch(mp_recorder *rec, PyObject *tensor) { touch(rec, tensor); }

mp_value_id mp_rec_value(mp_recorder *rec, PyObject *tensor)
{
    mp_value_id id = touch(rec, tensor);
    if (id == MP_NO_VALUE) mp_rec_abandon(rec, MP_REASON_UNKNOWN_TENSOR, "%s", Py_TYPE(tensor)->tp_name);
    return id;
}

/* -- Walking arguments and results ----------------------------------------------------------------------------------- */

static bool each_tensor(mp_recorder *rec, PyObject *object, mp_tensor_visit visit, void *context, int depth)
{
    if (!object || depth > MAX_DEPTH) return true;
    if (mp_is_tensor(object)) return visit(rec, object, context);
    if (PyTuple_Check(object)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); i++)
            if (!each_tensor(rec, PyTuple_GET_ITEM(object, i), visit, context, depth + 1)) return false;
    } else if (PyList_Check(object)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); i++)
            if (!each_tensor(rec, PyList_GET_ITEM(object, i), visit, context, depth + 1)) return false;
    } else if (PyDict_Check(object)) {
        PyObject *key, *value;
        for (Py_ssize_t i = 0; PyDict_Next(object, &i, &key, &value);)
            if (!each_tensor(rec, value, visit, context, depth + 1)) return false;
    } else if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        return each_tensor(rec, slice->start, visit, context, depth + 1) &&
               each_tensor(rec, slice->stop, visit, context, depth + 1) &&
               each_tensor(rec, slice->step, visit, context, depth + 1);
    }
    return true;
}

bool mp_each_tensor(mp_recorder *rec, PyObject *object, mp_tensor_visit visit, void *context)
{ return each_tensor(rec, object, visit, context, 0); }

static bool visit_none(mp_recorder *rec, PyObject *tensor, void *context) { return false; }
bool mp_has_tensor(PyObject *object) { return !mp_each_tensor(NULL, object, visit_none, NULL); }

static bool visit_known(mp_recorder *rec, PyObject *tensor, void *context)
{ return mp_rec_find_value(rec, tensor) != MP_NO_VALUE || mp_rec_find(rec, tensor) != MP_NO_OBJ; }
bool mp_rec_has_unknown(mp_recorder *rec, PyObject *out) { return !mp_each_tensor(rec, out, visit_known, NULL); }

typedef struct {
    bool *constant;
    int *count;
} check_context;

static bool visit_check(mp_recorder *rec, PyObject *tensor, void *context)
{
    check_context *check = context;
    mp_value_id id = mp_rec_value(rec, tensor);
    mp_facts *facts = mp_rec_facts(rec, id);
    if (!facts) return false;
    uint32_t version;
    bool versioned = read_version(tensor, &version);
    if (versioned != facts->versioned || version != facts->version) {
        mp_rec_abandon(rec, MP_REASON_ALIAS_WRITE, "version %u, expected %u", version, facts->version);
        return false;
    }
    if (check->constant && !facts->constant) *check->constant = false;
    if (check->count) ++*check->count;
    return true;
}

bool mp_rec_check_tensors(mp_recorder *rec, PyObject *object, bool *constant, int *count)
{
    check_context check = {constant, count};
    PyObject *quiet = rec->in_op ? NULL : mp_quiet_begin();
    bool all = mp_each_tensor(rec, object, visit_check, &check);
    mp_quiet_end(quiet);
    return all && !mp_rec_abandoned(rec);
}

/* -- In-place changes ------------------------------------------------------------------------------------------------ */

enum { MAX_CHANGED = 256 };
typedef struct {
    void *storage[MAX_CHANGED]; /* of the tensors that the operator was given and changed */
    int n;
} changes;

/* Does the template have a value that overlaps, or one that is a view of such a value? Views have the storage of what they show, and an
** operator's results are not where its arguments are: only chains of views are followed. The budget bounds the search: true where it is
** spent. */
static bool shows_overlap(mp_recorder *rec, PyObject *template, void *storage, int *budget)
{
    if (!template) return false;
    if (PyDict_Check(template)) {
        PyObject *key, *value;
        for (Py_ssize_t i = 0; PyDict_Next(template, &i, &key, &value);)
            if (shows_overlap(rec, value, storage, budget)) return true;
        return false;
    }
    if (PyTuple_Check(template) || PyList_Check(template)) {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(template); i++)
            if (shows_overlap(rec, PySequence_Fast_GET_ITEM(template, i), storage, budget)) return true;
        return false;
    }
    mp_facts *facts = mp_value_check(template) ? mp_rec_facts(rec, mp_index_of(template)) : NULL;
    if (!facts || facts->storage != storage) return false;
    if (facts->overlaps || --*budget < 0) return true;
    uint32_t op = rec->recording->values[mp_index_of(template)].op;
    if (op >= rec->recording->n_ops) return false;
    return shows_overlap(rec, rec->recording->ops[op].args, storage, budget) ||
           shows_overlap(rec, rec->recording->ops[op].kwargs, storage, budget);
}

/* Is the changed tensor one with several elements at one place, or a view of one? Eager changes that place in its own order, if it does
** not raise; for the graph it would be the sum of its elements' changes. */
static bool changes_overlap(mp_recorder *rec, mp_value_id id, void *storage)
{
    if (!rec->op_state->overlaps) return false;
    int budget = 4096;
    PyObject *value = mp_value_new(id);
    bool found = !value || shows_overlap(rec, value, storage, &budget);
    Py_XDECREF(value);
    PyErr_Clear();
    return found;
}

static bool visit_changed(mp_recorder *rec, PyObject *tensor, void *context)
{
    changes *found = context;
    mp_value_id id = mp_rec_find_value(rec, tensor);
    mp_facts *facts = mp_rec_facts(rec, id);
    uint32_t version;
    if (!facts || (read_version(tensor, &version) == facts->versioned && version == facts->version)) return true;
    if (mp_is_opaque(tensor))
        mp_rec_abandon(rec, MP_REASON_ALIAS_WRITE, "a sparse or quantised tensor is changed in place");
    if (found->n == MAX_CHANGED) return false;
    void *storage = found->storage[found->n++] = mp_tensor_storage(tensor);
    if (changes_overlap(rec, id, storage))
        mp_rec_abandon(rec, MP_REASON_ALIAS_WRITE, "elements of an expanded tensor, which share memory");
    return true;
}

static bool shares(const changes *found, void *storage)
{
    for (int i = 0; i < found->n; i++)
        if (found->storage[i] == storage) return true;
    return false;
}

/* Take over the new versions of every known tensor that shares memory with a changed one. The version of one may have stayed: x and x.data
** count their changes apart. */
static void adopt_versions(mp_recorder *rec, const changes *found, bool constant)
{
    for (uint32_t i = 0; i < rec->n_bound; i++) {
        PyObject *tensor = mp_watched(rec->bound[i].watch);
        mp_facts *facts = tensor ? mp_rec_facts(rec, rec->bound[i].value) : NULL;
        if (!facts || mp_rec_find_value(rec, tensor) != rec->bound[i].value) continue;
        uint32_t version;
        read_version(tensor, &version);
        if (!shares(found, mp_tensor_storage(tensor))) continue;
        bool counted = version != facts->version || !facts->versioned;
        facts->version = version;
        if (!constant) facts->constant = false;
        if (facts->cached) mp_rec_abandon(rec, MP_REASON_ALIAS_WRITE, "a cached tensor is changed");
        mp_obj_id input = rec->recording->values[rec->bound[i].value].input;
        if (input == MP_NO_OBJ) continue;
        for (uint32_t k = 0; k < rec->recording->n_inputs; k++)
            if (rec->recording->inputs[k] == rec->bound[i].value)
                if (counted || !rec->recording->input_mutated[k])
                    rec->recording->input_mutated[k] = counted ? MP_MUTATION_COUNTED : MP_MUTATION_UNCOUNTED;
    }
}

void mp_rec_memory_changed(mp_recorder *rec, PyObject *tensor)
{
    PyObject *quiet = mp_quiet_begin();
    changes found = {{mp_tensor_storage(tensor)}, 1};
    adopt_versions(rec, &found, false);
    mp_deferred_changed(rec, found.storage[0]);
    mp_quiet_end(quiet);
}

bool mp_rec_shares_memory(mp_recorder *rec, PyObject *tensor)
{
    void *storage = mp_tensor_storage(tensor);
    for (uint32_t i = 0; i < rec->n_bound; i++) {
        PyObject *other = mp_watched(rec->bound[i].watch);
        if (other && other != tensor && mp_tensor_storage(other) == storage) return true;
    }
    return !storage;
}

static bool visit_array_memory(mp_recorder *rec, PyObject *tensor, void *context)
{
    changes *found = context;
    if (shares(found, mp_tensor_storage(tensor))) mp_array_tensor_changed(rec, tensor);
    return true;
}

void mp_rec_counted(mp_recorder *rec, PyObject *tensor)
{
    mp_value_id id = mp_rec_find_value(rec, tensor);
    for (uint32_t k = 0; k < rec->recording->n_inputs; k++)
        if (rec->recording->inputs[k] == id) rec->recording->input_mutated[k] = MP_MUTATION_COUNTED;
}

int mp_rec_note_changes(mp_recorder *rec, PyObject *args, PyObject *kwargs, bool constant)
{
    if (mp_rec_abandoned(rec) || !rec->recording) return -1;
    changes found = {.n = 0};
    PyObject *quiet = rec->in_op ? NULL : mp_quiet_begin();
    bool all = mp_each_tensor(rec, args, visit_changed, &found) && mp_each_tensor(rec, kwargs, visit_changed, &found);
    if (!all) mp_rec_abandon(rec, MP_REASON_INTERNAL, "an operator changed more than %d tensors", MAX_CHANGED);
    if (all && found.n) adopt_versions(rec, &found, constant);
    if (all && found.n && rec->arrays) {
        mp_each_tensor(rec, args, visit_array_memory, &found);
        mp_each_tensor(rec, kwargs, visit_array_memory, &found);
    }
    for (int i = 0; i < found.n; i++) mp_deferred_changed(rec, found.storage[i]);
    mp_quiet_end(quiet);
    return all ? found.n > 0 : -1;
}

static bool visit_placed(mp_recorder *rec, PyObject *tensor, void *context)
{
    (void)context;
    void *memory = mp_tensor_storage(tensor);
    for (uint32_t i = 0; memory && i < rec->n_bound; i++) {
        PyObject *input = mp_watched(rec->bound[i].watch);
        mp_facts *facts = input ? mp_rec_facts(rec, rec->bound[i].value) : NULL;
        if (!facts || facts->read == MP_NO_READ || mp_tensor_storage(input) != memory) continue;
        mp_tensor_meta *meta = rec->recording->reads[facts->read].meta;
        PyObject *storage = mp_tensor_ask(mp_names.untyped_storage, input);
        PyObject *size = storage ? PyObject_CallMethod(storage, "nbytes", NULL) : NULL;
        meta->storage_bytes = size ? PyLong_AsLongLong(size) : -1;
        meta->placed = true;
        PyErr_Clear();
        Py_XDECREF(size);
        Py_XDECREF(storage);
    }
    return true;
}

void mp_rec_placed(mp_recorder *rec, PyObject *args, PyObject *kwargs)
{
    PyObject *quiet = rec->in_op ? NULL : mp_quiet_begin();
    mp_each_tensor(rec, args, visit_placed, NULL);
    mp_each_tensor(rec, kwargs, visit_placed, NULL);
    mp_quiet_end(quiet);
}

/* -- Results --------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t op;
    bool constant;
} result_context;

static bool visit_result(mp_recorder *rec, PyObject *tensor, void *context)
{
    result_context *result = context;
    if (mp_rec_find_value(rec, tensor) != MP_NO_VALUE) return true;
    if (mp_rec_find(rec, tensor) != MP_NO_OBJ) {
        touch(rec, tensor);
        return !mp_rec_abandoned(rec);
    }
    if (!mp_is_exact_tensor(tensor)) {
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_TENSOR, "tensor subclass %s", Py_TYPE(tensor)->tp_name);
        return false;
    }
    return new_value(rec, tensor, MP_NO_OBJ, result->op, result->constant) != MP_NO_VALUE;
}

void mp_rec_bind_results(mp_recorder *rec, PyObject *out, uint32_t op, bool constant)
{
    result_context result = {op, constant};
    PyObject *quiet = rec->in_op ? NULL : mp_quiet_begin();
    mp_each_tensor(rec, out, visit_result, &result);
    mp_quiet_end(quiet);
}

/* -- The canary ------------------------------------------------------------------------------------------------------ */

/* Has the call set its requires_grad? */
static bool is_marked(mp_recorder *rec, PyObject *tensor)
{
    PyObject *key = mp_intern("requires_grad");
    bool marked = key && mp_rec_known(rec, tensor, MP_READ_TENSOR_ATTR, key);
    Py_XDECREF(key);
    PyErr_Clear();
    return marked;
}

/* Sizes and strides of an input are others now, and nothing else: a write. Not where autograd has an eye on the tensor. */
static bool write_layout(mp_recorder *rec, PyObject *tensor, const mp_tensor_meta *was, mp_tensor_meta *now)
{
    mp_tensor_meta as_it_was = *now;
    as_it_was.ndim = was->ndim;
    as_it_was.size = was->size;
    as_it_was.stride = was->stride;
    if (!now->stride || !same_meta(&as_it_was, was, false)) return false; /* or sparse */
    if (now->requires_grad || now->storage_bytes != was->storage_bytes) return false;
    PyObject *key = mp_intern("layout"), *layout = key ? mp_recording_layout(now) : NULL;
    if (layout)
        mp_rec_write(rec, tensor, MP_WRITE_TENSOR_ATTR, key, layout);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "layout");
    PyErr_Clear();
    Py_XDECREF(key);
    Py_XDECREF(layout);
    return true;
}

static void check_at_end(mp_recorder *rec, PyObject *tensor, mp_value_id value, const mp_facts *facts)
{
    uint32_t version;
    bool versioned = read_version(tensor, &version);
    if (versioned != facts->versioned || version != facts->version) {
        mp_rec_abandon(rec, MP_REASON_ALIAS_WRITE, "version %u, expected %u", version, facts->version);
        return;
    }
    if (facts->read == MP_NO_READ) return;
    mp_tensor_meta *now = read_meta(tensor), *was = rec->recording->reads[facts->read].meta;
    bool here = now && read_data(tensor) == facts->data;
    if (!here || !(same_meta(now, was, is_marked(rec, tensor)) || write_layout(rec, tensor, was, now)))
        mp_rec_abandon(rec, MP_REASON_INPUT_METADATA_CHANGED, "graph input %u", value);
    free_meta(now);
}

void mp_rec_finish_ops(mp_recorder *rec)
{
    mp_op_state *state = rec->op_state;
    if (!state || !rec->recording) return;
    if (state->locks && PyList_GET_SIZE(state->locks))
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "a lock was acquired and not released");
    if (state->inference) mp_rec_abandon(rec, MP_REASON_TORCH_STATE, "inference mode is another one after the call");
    PyObject *quiet = mp_quiet_begin();
    for (uint32_t i = 0; i < rec->n_bound && !mp_rec_abandoned(rec); i++) {
        PyObject *tensor = mp_watched(rec->bound[i].watch);
        mp_facts *facts = tensor ? mp_rec_facts(rec, rec->bound[i].value) : NULL;
        if (!facts || mp_rec_find_value(rec, tensor) != rec->bound[i].value) continue;
        Py_INCREF(tensor);
        check_at_end(rec, tensor, rec->bound[i].value, facts);
        Py_DECREF(tensor);
    }
    mp_rec_check_data_stored(rec);
    mp_quiet_end(quiet);
}

/* -- Templates ------------------------------------------------------------------------------------------------------- */

static PyObject *make_template(mp_recorder *rec, PyObject *object, int depth);

static PyObject *no_template(mp_recorder *rec, PyObject *owned)
{
    Py_XDECREF(owned);
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "template");
    return NULL;
}

static PyObject *sequence_template(mp_recorder *rec, PyObject *object, bool tuple, int depth)
{
    Py_ssize_t n = tuple ? PyTuple_GET_SIZE(object) : PyList_GET_SIZE(object);
    PyObject *copy = tuple ? PyTuple_New(n) : PyList_New(n);
    if (!copy) return no_template(rec, NULL);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = tuple ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i);
        item = make_template(rec, item, depth + 1);
        if (!item) {
            Py_DECREF(copy);
            return NULL;
        }
        if (tuple)
            PyTuple_SET_ITEM(copy, i, item);
        else
            PyList_SET_ITEM(copy, i, item);
    }
    return copy;
}

static PyObject *dict_template(mp_recorder *rec, PyObject *object, int depth)
{
    PyObject *copy = PyDict_New(), *key, *value;
    if (!copy) return no_template(rec, NULL);
    for (Py_ssize_t i = 0; PyDict_Next(object, &i, &key, &value);) {
        PyObject *item = make_template(rec, value, depth + 1);
        int failed = !item || PyDict_SetItem(copy, key, item) < 0;
        Py_XDECREF(item);
        if (!failed) continue;
        if (item) return no_template(rec, copy);
        Py_DECREF(copy);
        return NULL;
    }
    return copy;
}

static PyObject *slice_template(mp_recorder *rec, PySliceObject *slice, int depth)
{
    PyObject *start = make_template(rec, slice->start, depth + 1);
    PyObject *stop = start ? make_template(rec, slice->stop, depth + 1) : NULL;
    PyObject *step = stop ? make_template(rec, slice->step, depth + 1) : NULL;
    PyObject *copy = step ? PySlice_New(start, stop, step) : NULL;
    if (step && !copy) no_template(rec, NULL);
    Py_XDECREF(start);
    Py_XDECREF(stop);
    Py_XDECREF(step);
    return copy;
}

static PyObject *make_template(mp_recorder *rec, PyObject *object, int depth)
{
    if (depth > MAX_DEPTH) {
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "an operator's argument is nested too deeply");
        return NULL;
    }
    if (mp_is_tensor(object)) {
        mp_value_id id = mp_rec_value(rec, object);
        if (id == MP_NO_VALUE) return NULL;
        PyObject *value = mp_value_new(id);
        return value ? value : no_template(rec, NULL);
    }
    if (PySlice_Check(object)) return slice_template(rec, (PySliceObject *)object, depth);
    if (rec->numbers && mp_is_number(object) && mp_number_is(rec, object)) {
        mp_value_id id = mp_number_value(rec, object);
        if (id == MP_NO_VALUE && !mp_rec_abandoned(rec)) return Py_NewRef(object); /* it fits into no tensor: settled */
        PyObject *number = id == MP_NO_VALUE ? NULL : mp_number_new(id);
        return number ? number : no_template(rec, NULL);
    }
    if (mp_is_scalar(object)) return Py_NewRef(object);
    if (PyTuple_Check(object)) return sequence_template(rec, object, true, depth);
    if (PyList_Check(object)) return sequence_template(rec, object, false, depth);
    if (PyDict_Check(object)) return dict_template(rec, object, depth);
    /* Any other object is an argument by identity: it must be the one that was there. */
    if (mp_rec_ensure(rec, object) == MP_NO_OBJ) {
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_OBJECT, "%s as an operator's argument", Py_TYPE(object)->tp_name);
        return NULL;
    }
    mp_rec_identity(rec, object);
    return Py_NewRef(object);
}

PyObject *mp_rec_template(mp_recorder *rec, PyObject *object)
{ return mp_rec_abandoned(rec) ? NULL : make_template(rec, object, 0); }
