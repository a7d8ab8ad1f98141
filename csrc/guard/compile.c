/* From a recording to a guard program, and a program's life. */
#include "guard/program.h"

#include "trace/recorder.h"

/* -- Life --------------------------------------------------------------------------------------------------------------- */

mp_tensor_meta *guard_meta_copy(const mp_tensor_meta *meta)
{
    size_t n = meta->ndim > 0 ? (size_t)meta->ndim : 0;
    mp_tensor_meta *copy = PyMem_Malloc(sizeof *copy + 2 * n * sizeof(int64_t));
    if (!copy) return NULL;
    *copy = *meta;
    copy->size = (int64_t *)(copy + 1);
    if (n && meta->size) memcpy(copy->size, meta->size, n * sizeof(int64_t));
    copy->stride = meta->stride ? copy->size + n : NULL;
    if (n && meta->stride) memcpy(copy->stride, meta->stride, n * sizeof(int64_t));
    return copy;
}

static void binding_free(struct guard_binding *binding)
{
    PyMem_Free(binding->current);
    mp_map_free(&binding->held_static);
    mp_map_free(&binding->held_args);
}

void mp_guard_free(mp_guard_program *prog)
{
    if (!prog) return;
    for (uint32_t i = 0; prog->rec.objects && i < prog->rec.n_objects; i++) {
        Py_XDECREF(prog->rec.objects[i].watch);
        Py_XDECREF(prog->rec.objects[i].type);
        Py_XDECREF(prog->rec.objects[i].root_name);
    }
    for (uint32_t i = 0; prog->rec.reads && i < prog->rec.n_reads; i++) {
        Py_XDECREF(prog->rec.reads[i].key);
        Py_XDECREF(prog->rec.reads[i].value);
        PyMem_Free(prog->rec.reads[i].meta);
        if (prog->reads) Py_XDECREF(prog->reads[i].dunders);
    }
    for (uint32_t i = 0; prog->rec.sites && i < prog->rec.n_sites; i++) Py_XDECREF(prog->rec.sites[i].code);
    for (uint32_t i = 0; prog->slots && i < prog->n_slots; i++) {
        Py_XDECREF(prog->slots[i].scalar);
        Py_XDECREF(prog->slots[i].type);
    }
    for (uint32_t i = 0; prog->blocks && i <= prog->n_slots; i++) {
        guard_block_clear(&prog->blocks[i]);
        PyMem_Free(prog->blocks[i].words);
        PyMem_Free(prog->blocks[i].origins);
        PyMem_Free(prog->blocks[i].stops);
        PyMem_Free(prog->blocks[i].tensors);
        PyMem_Free(prog->blocks[i].kept);
    }
    while (prog->n_temps) Py_DECREF(prog->temps[--prog->n_temps]);
    guard_overlaps_free(prog->overlaps);
    binding_free(&prog->now);
    binding_free(&prog->spare);
    Py_XDECREF(prog->kwnames);
    Py_XDECREF(prog->torch_state);
    void *arrays[] = {prog->rec.objects, prog->rec.reads,   prog->rec.sites,   prog->objects, prog->reads,
                      prog->group_reads, prog->group_start, prog->arg_objects, prog->slots,   prog->wanted,
                      prog->fixed,       prog->unheld,      prog->blocks,      prog->temps};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) PyMem_Free(arrays[i]);
    PyMem_Free(prog);
}

int mp_guard_traverse(mp_guard_program *prog, visitproc visit, void *arg)
{
    if (!prog) return 0;
    for (uint32_t i = 0; i < prog->rec.n_objects; i++) {
        Py_VISIT(prog->rec.objects[i].watch);
        Py_VISIT(prog->rec.objects[i].type);
    }
    for (uint32_t i = 0; i < prog->rec.n_reads; i++) {
        Py_VISIT(prog->rec.reads[i].key);
        Py_VISIT(prog->rec.reads[i].value);
        Py_VISIT(prog->reads[i].dunders);
    }
    for (uint32_t i = 0; i < prog->rec.n_sites; i++) Py_VISIT(prog->rec.sites[i].code);
    for (uint32_t i = 0; i < prog->n_slots; i++) Py_VISIT(prog->slots[i].type);
    for (uint32_t i = 0; i < prog->n_temps; i++) Py_VISIT(prog->temps[i]);
    return 0;
}

/* -- Copies -------------------------------------------------------------------------------------------------------------- */

/* Zeroed array, never of no bytes. NULL without memory. */
static void *array_new(size_t count, size_t size) { return PyMem_Calloc(count ? count : 1, size); }

static int copy_recording(mp_guard_program *prog, const mp_recording *recording)
{
    mp_recording *rec = &prog->rec;
    rec->objects = array_new(recording->n_objects, sizeof *rec->objects);
    rec->reads = array_new(recording->n_reads, sizeof *rec->reads);
    rec->sites = array_new(recording->n_sites, sizeof *rec->sites);
    prog->objects = array_new(recording->n_objects, sizeof *prog->objects);
    prog->reads = array_new(recording->n_reads, sizeof *prog->reads);
    prog->now.current = array_new(recording->n_objects, sizeof(PyObject *));
    prog->spare.current = array_new(recording->n_objects, sizeof(PyObject *));
    if (!rec->objects || !rec->reads || !rec->sites || !prog->objects || !prog->reads || !prog->now.current ||
        !prog->spare.current)
        return -1;
    for (uint32_t i = 0; i < recording->n_objects; i++) {
        rec->objects[i] = recording->objects[i];
        PyObject *object = mp_object_get(&recording->objects[i]);
        if (!rec->objects[i].identity && rec->objects[i].root != MP_ROOT_PIN &&
            (rec->objects[i].owned || (object && mp_is_tensor(object))))
            rec->objects[i].watch =
                NULL; /* only what must be itself is kept; torch swaps no tensors that are watched */
        Py_XINCREF(rec->objects[i].watch);
        Py_XINCREF(rec->objects[i].type);
        Py_XINCREF(rec->objects[i].root_name);
        rec->n_objects = i + 1;
    }
    for (uint32_t i = 0; i < recording->n_reads; i++) {
        mp_read *read = &rec->reads[i];
        *read = recording->reads[i];
        Py_XINCREF(read->key);
        Py_XINCREF(read->value);
        rec->n_reads = i + 1;
        if (read->meta && !(read->meta = guard_meta_copy(read->meta))) return -1;
    }
    for (uint32_t i = 0; i < recording->n_sites; i++) {
        rec->sites[i] = recording->sites[i];
        Py_XINCREF(rec->sites[i].code);
        rec->n_sites = i + 1;
    }
    return 0;
}

/* -- Objects ---------------------------------------------------------------------------------------------------------------- */

static bool is_noalias_type(PyTypeObject *type)
{
    return PyType_IsSubtype(type, &PyTuple_Type) || PyType_IsSubtype(type, &PyFrozenSet_Type) ||
           type == &PyMethod_Type || type == &PyLong_Type || type == &PyFloat_Type;
}

/* The argument slot of an ARG or KWARG root, or -1. */
static int64_t slot_of_root(const mp_guard_program *prog, const mp_object *object)
{
    bool root = object->root == MP_ROOT_ARG || object->root == MP_ROOT_KWARG;
    return root && object->root_index < prog->n_slots ? (int64_t)object->root_index : -1;
}

static int sort_objects(mp_guard_program *prog)
{
    prog->fixed = array_new(prog->rec.n_objects, sizeof *prog->fixed);
    prog->arg_objects = array_new(prog->rec.n_objects, sizeof *prog->arg_objects);
    if (!prog->fixed || !prog->arg_objects) return -1;
    prog->target = MP_NO_OBJ;
    for (uint32_t i = 0; i < prog->rec.n_objects; i++) {
        const mp_object *recorded = &prog->rec.objects[i];
        guard_object *object = &prog->objects[i];
        object->first_read = object->last_read = MP_NO_READ;
        object->fixed = recorded->root == MP_ROOT_PIN || recorded->identity;
        object->noalias = is_noalias_type(recorded->type);
        if (recorded->root == MP_ROOT_TARGET) prog->target = i;
        if (object->fixed) {
            prog->fixed[prog->n_fixed++] = i;
            continue; /* group 0 */
        }
        int64_t slot = slot_of_root(prog, recorded);
        if (slot >= 0)
            object->group = 1 + (uint32_t)slot;
        else if (recorded->found_by < prog->rec.n_reads) /* its owner has a smaller number: it was external before */
            object->group = prog->objects[prog->rec.reads[recorded->found_by].owner].group;
        if (object->group) prog->arg_objects[prog->n_arg_objects++] = i;
    }
    return 0;
}

/* -- Reads --------------------------------------------------------------------------------------------------------------------- */

/* Hash of a key whose hashing runs no user code, else -1: it is then looked for by identity. */
static Py_hash_t key_hash(PyObject *key)
{
    bool safe = mp_is_scalar(key) || Py_TYPE(key)->tp_hash == PyBaseObject_Type.tp_hash || mp_is_constant_ref(key);
    if (PyTuple_CheckExact(key)) {
        safe = true;
        for (Py_ssize_t i = 0; safe && i < PyTuple_GET_SIZE(key); i++) safe = key_hash(PyTuple_GET_ITEM(key, i)) != -1;
    }
    Py_hash_t hash = safe ? PyObject_Hash(key) : -1;
    if (hash == -1) PyErr_Clear();
    return hash;
}

static int sort_reads(mp_guard_program *prog, mp_reason *why)
{
    uint32_t groups = 1 + prog->n_slots;
    prog->group_start = array_new(groups + 2, sizeof *prog->group_start);
    prog->group_reads = array_new(prog->rec.n_reads, sizeof *prog->group_reads);
    if (!prog->group_start || !prog->group_reads) return -1;
    for (uint32_t i = 0; i < prog->rec.n_reads; i++) {
        const mp_read *read = &prog->rec.reads[i];
        guard_read_info *info = &prog->reads[i];
        guard_object *owner = &prog->objects[read->owner];
        uint32_t *link = owner->last_read == MP_NO_READ ? &owner->first_read : &prog->reads[owner->last_read].next;
        *link = owner->last_read = i;
        info->next = MP_NO_READ;
        info->hash = read->key ? key_hash(read->key) : -1;
        if (read->kind == MP_READ_VALUE) owner->noalias = true;
        if (read->kind == MP_READ_TYPE_DUNDERS) {
            PyObject *type = mp_object_get(&prog->rec.objects[read->owner]);
            if (!type || !PyType_Check(type) || !(info->dunders = guard_type_dunders((PyTypeObject *)type))) {
                mp_reason_set(why, MP_REASON_UNGUARDABLE, "the special methods of a type that is gone");
                return -1;
            }
        }
        /* Groups are evaluated apart only if none needs what another one binds; group 0 always comes first. */
        mp_obj_id needs[] = {read->was == MP_WAS_OBJECT ? read->obj : MP_NO_OBJ, read->key_obj};
        for (int k = 0; k < 2; k++)
            if (needs[k] != MP_NO_OBJ && prog->objects[needs[k]].group && prog->objects[needs[k]].group != owner->group)
                prog->crossed = true;
        if (read->kind == MP_READ_CACHED || read->kind == MP_READ_CACHED_TENSOR)
            prog->crossed = true; /* its key may name any object */
        prog->group_start[owner->group + 2]++;
    }
    prog->unheld = array_new(prog->n_fixed, sizeof *prog->unheld);
    if (!prog->unheld) return -1;
    for (uint32_t i = 0; i < prog->n_fixed; i++) {
        mp_obj_id id = prog->fixed[i];
        const mp_object *object = &prog->rec.objects[id];
        if (object->owned || prog->objects[id].first_read == MP_NO_READ) continue;
        bool pin = object->found_by >= prog->rec.n_reads; /* nothing that is looked at need hold it */
        if (pin || prog->objects[prog->rec.reads[object->found_by].owner].group) prog->unheld[prog->n_unheld++] = id;
    }
    for (uint32_t g = 2; g <= groups + 1; g++) prog->group_start[g] += prog->group_start[g - 1];
    for (uint32_t i = 0; i < prog->rec.n_reads; i++)
        prog->group_reads[prog->group_start[prog->objects[prog->rec.reads[i].owner].group + 1]++] = i;
    return 0;
}

/* -- Arguments ------------------------------------------------------------------------------------------------------------------ */

/* An argument that is no root of its own: the same object as an earlier one, or one that was known by another path. */
static mp_obj_id find_elsewhere(const mp_guard_program *prog, const mp_recording *recording, const mp_call *call,
                                uint32_t slot)
{
    for (uint32_t j = 0; j < slot; j++)
        if (call->args[j] == call->args[slot] && prog->slots[j].object != MP_NO_OBJ) return prog->slots[j].object;
    for (uint32_t i = 0; i < recording->n_objects; i++)
        if (mp_object_get(&recording->objects[i]) == call->args[slot]) return i;
    return MP_NO_OBJ;
}

/* Is metadata all that was read of this tensor? Then *meta is that read, or MP_NO_READ. */
static bool is_leaf(const mp_guard_program *prog, mp_obj_id id, uint32_t *meta)
{
    *meta = MP_NO_READ;
    PyObject *type = (PyObject *)prog->rec.objects[id].type;
    for (uint32_t r = prog->objects[id].first_read; r != MP_NO_READ; r = prog->reads[r].next) {
        const mp_read *read = &prog->rec.reads[r];
        if (read->kind == MP_READ_TENSOR_META)
            *meta = r;
        else if (read->kind != MP_READ_TYPE || read->was != MP_WAS_OBJECT ||
                 mp_object_get(&prog->rec.objects[read->obj]) != type)
            return false;
    }
    return *meta != MP_NO_READ;
}

static void sort_slots(mp_guard_program *prog, const mp_recording *recording, const mp_call *call)
{
    for (uint32_t i = 0; i < prog->n_slots; i++) {
        prog->slots[i].object = MP_NO_OBJ;
        prog->slots[i].read = MP_NO_READ;
    }
    for (uint32_t i = 0; i < prog->rec.n_objects; i++) {
        int64_t slot = slot_of_root(prog, &prog->rec.objects[i]);
        if (slot >= 0) prog->slots[slot].object = i;
    }
    for (uint32_t i = 0; i < prog->n_slots; i++) {
        guard_slot *slot = &prog->slots[i];
        PyObject *value = call->args[i];
        slot->type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(value));
        if (mp_is_scalar(value)) { /* a scalar that is external but whose value was not read is a symbol */
            mp_obj_id id = slot->object;
            bool symbol = id != MP_NO_OBJ && prog->objects[id].first_read == MP_NO_READ;
            slot->kind = symbol ? GUARD_SLOT_TYPE : GUARD_SLOT_SCALAR;
            if (!symbol) slot->scalar = Py_NewRef(value);
            if (id == MP_NO_OBJ) continue;
            slot->read = prog->objects[id].first_read;
            slot->very = slot->read != MP_NO_READ && prog->rec.reads[slot->read].very;
            prog->objects[id].noalias = true;
            continue;
        }
        bool own = slot->object != MP_NO_OBJ && prog->objects[slot->object].group == 1 + i;
        if (!own) {
            if (slot->object == MP_NO_OBJ) slot->object = find_elsewhere(prog, recording, call, i);
            slot->kind = slot->object == MP_NO_OBJ ? GUARD_SLOT_TYPE : GUARD_SLOT_OTHER;
            continue;
        }
        Py_SETREF(slot->type, (PyTypeObject *)Py_NewRef((PyObject *)prog->rec.objects[slot->object].type));
        slot->kind = GUARD_SLOT_ROOT;
        if (is_leaf(prog, slot->object, &slot->read)) slot->kind = GUARD_SLOT_LEAF;
    }
    for (uint32_t i = 0; i < prog->n_arg_objects; i++) { /* what has objects below it is no leaf */
        mp_obj_id id = prog->arg_objects[i];
        guard_slot *slot = &prog->slots[prog->objects[id].group - 1];
        if (slot->kind == GUARD_SLOT_LEAF && slot->object != id) slot->kind = GUARD_SLOT_ROOT;
    }
    for (uint32_t i = 0; i < prog->n_slots; i++) prog->roots = prog->roots || prog->slots[i].kind == GUARD_SLOT_ROOT;
}

/* -- The whole ------------------------------------------------------------------------------------------------------------------ */

mp_guard_program *mp_guard_compile(const mp_recording *recording, const mp_call *call, const mp_obj_id *wanted,
                                   size_t n_wanted, mp_reason *why)
{
    mp_guard_program *prog = PyMem_Calloc(1, sizeof *prog);
    if (!prog) goto no_memory;
    prog->n_positional = (uint32_t)call->nargs;
    prog->n_slots = prog->n_positional + (call->kwnames ? (uint32_t)PyTuple_GET_SIZE(call->kwnames) : 0);
    prog->kwnames = Py_XNewRef(call->kwnames);
    prog->torch_state = Py_XNewRef(recording->torch_state);
    prog->slots = array_new(prog->n_slots, sizeof *prog->slots);
    prog->blocks = array_new(1 + prog->n_slots, sizeof *prog->blocks);
    prog->wanted = array_new(n_wanted, sizeof *prog->wanted);
    if (!prog->slots || !prog->blocks || !prog->wanted) goto no_memory;
    if (n_wanted) memcpy(prog->wanted, wanted, n_wanted * sizeof *wanted);
    prog->n_wanted = (uint32_t)n_wanted;
    for (size_t i = 0; i < n_wanted; i++)
        if (wanted[i] >= recording->n_objects) {
            mp_reason_set(why, MP_REASON_INTERNAL, "an object without a number is wanted of the guards");
            goto failed;
        }
    if (guard_tensor_load() < 0) {
        mp_reason_set_exception(why, MP_REASON_UNGUARDABLE);
        goto failed;
    }
    if (copy_recording(prog, recording) < 0 || sort_objects(prog) < 0) goto no_memory;
    if (sort_reads(prog, why) < 0) goto no_memory; /* a reason that is set stays */
    sort_slots(prog, recording, call);
    if (guard_overlaps_new(recording, &prog->overlaps, why) < 0) goto failed;
    return prog;
no_memory:
    mp_reason_set(why, MP_REASON_NO_MEMORY, "compiling guards");
failed:
    mp_guard_free(prog);
    return NULL;
}
