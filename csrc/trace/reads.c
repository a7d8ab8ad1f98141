/* Recorder: locations, and what was read from and written to them.
**
** A location is (owner, family, key): kinds that mean the same place share a family. The first access decides: what the call wrote
** first is no read. Reads that show how much there is or in which order (LEN, KEY_AT) are corrected for what the call itself has
** added, so that a recording always speaks of the state before the call.
*/
#include "trace/arrays.h"
#include "trace/recorder_internal.h"

#include "observe/observe.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

/* -- Families ---------------------------------------------------------------------------------------------------------- */

static uint8_t family_of_read(mp_read_kind kind)
{
    switch (kind) {
    case MP_READ_HAS: return MP_READ_KEY;
    case MP_READ_INSTANCE_ATTR:
    case MP_READ_LOCAL_ATTR: return MP_READ_TYPE_ATTR;
    default: return (uint8_t)kind;
    }
}

static const uint8_t family_of_write[MP_WRITE_KIND_COUNT] = {
    [MP_WRITE_KEY] = MP_READ_KEY,
    [MP_WRITE_ITEM] = MP_READ_ITEM,
    [MP_WRITE_CELL] = MP_READ_CELL,
    [MP_WRITE_SLOT] = MP_READ_SLOT,
    [MP_WRITE_ATTR] = MP_READ_TYPE_ATTR,
    [MP_WRITE_TENSOR_ATTR] = MP_READ_TENSOR_ATTR,
    [MP_WRITE_CONTEXT_VAR] = MP_READ_CONTEXT_VAR,
};

/* Kinds that read a container's contents: nothing of them is an outside read once the contents are the call's own. */
static bool is_contents(mp_read_kind kind)
{
    switch (kind) {
    case MP_READ_KEY:
    case MP_READ_HAS:
    case MP_READ_KEY_AT:
    case MP_READ_LEN:
    case MP_READ_ITEM:
    case MP_READ_SET_HAS:
    case MP_READ_SET_ITEMS: return true;
    default: return false;
    }
}

/* -- The table of locations ----------------------------------------------------------------------------------------------- */

static uint32_t hash_location(uint32_t owner, uint8_t family, PyObject *key, uint32_t key_obj)
{
    uint32_t hash = key_obj != MP_NO_OBJ ? key_obj * 0x9E3779B1u : mp_key_hash(key);
    hash ^= owner * 0x85EBCA6Bu + family * 0xC2B2AE35u;
    return hash ^ hash >> 15;
}

static bool is_location(const mp_location *at, uint32_t owner, uint8_t family, PyObject *key, uint32_t key_obj)
{
    if (at->owner != owner || at->family != family || at->key_obj != key_obj) return false;
    return key_obj != MP_NO_OBJ || mp_key_same(at->key, key);
}

/* Index of the location, or UINT32_MAX. */
static uint32_t find_location(const mp_recorder *rec, uint32_t owner, uint8_t family, PyObject *key, uint32_t key_obj)
{
    if (!rec->location_table) return UINT32_MAX;
    uint32_t slot = hash_location(owner, family, key, key_obj) & rec->location_mask;
    for (; rec->location_table[slot]; slot = (slot + 1) & rec->location_mask)
        if (is_location(&rec->locations[rec->location_table[slot] - 1], owner, family, key, key_obj))
            return rec->location_table[slot] - 1;
    return UINT32_MAX;
}

static void enter_location(mp_recorder *rec, uint32_t index)
{
    const mp_location *at = &rec->locations[index];
    uint32_t slot = hash_location(at->owner, at->family, at->key, at->key_obj) & rec->location_mask;
    while (rec->location_table[slot]) slot = (slot + 1) & rec->location_mask;
    rec->location_table[slot] = index + 1;
}

/* Index of a new location, or UINT32_MAX after abandoning. */
static uint32_t add_location(mp_recorder *rec, uint32_t owner, uint8_t family, PyObject *key, uint32_t key_obj)
{
    if (!rec->location_table || rec->n_locations * 2 > rec->location_mask) {
        uint32_t size = rec->location_table ? (rec->location_mask + 1) * 2 : 256;
        uint32_t *table = PyMem_RawCalloc(size, sizeof *table);
        if (!table) {
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
            return UINT32_MAX;
        }
        PyMem_RawFree(rec->location_table);
        rec->location_table = table;
        rec->location_mask = size - 1;
        for (uint32_t i = 0; i < rec->n_locations; i++) enter_location(rec, i);
    }
    mp_location *at = mp_rec_grow(rec, &rec->locations, &rec->n_locations, sizeof *at);
    if (!at) return UINT32_MAX;
    uint32_t index = rec->n_locations - 1;
    *at = (mp_location){.owner = owner,
                        .family = family,
                        .key = key_obj == MP_NO_OBJ ? Py_XNewRef(key) : NULL,
                        .key_obj = key_obj,
                        .read = MP_NO_READ,
                        .write = UINT32_MAX,
                        .next = rec->object_places[owner]};
    rec->object_places[owner] = index;
    enter_location(rec, index);
    return index;
}

/* -- Keys --------------------------------------------------------------------------------------------------------------- */

static bool compares_by_identity(PyObject *key)
{
    if (mp_is_exact_tensor(key)) return true; /* its hash is its address */
    return Py_TYPE(key)->tp_richcompare == PyBaseObject_Type.tp_richcompare &&
           Py_TYPE(key)->tp_hash == PyBaseObject_Type.tp_hash;
}

/* How the key is stored: by value (*key_obj none) or as an external object. 0; 1 if the key is of the call's own and can be nowhere
** outside; -1 after abandoning. */
static int place_key(mp_recorder *rec, PyObject *key, bool found, mp_obj_id *key_obj)
{
    *key_obj = MP_NO_OBJ;
    if (!key || mp_is_constant_key(key)) return 0;
    *key_obj = mp_rec_ensure(rec, key);
    if (*key_obj != MP_NO_OBJ) return 0;
    if (!found && compares_by_identity(key)) return 1;
    mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a key of type %s made by the call", Py_TYPE(key)->tp_name);
    return -1;
}

/* Is the key in the dict now? Runs no user code: a key that only that could find counts as absent. */
static bool dict_has(PyObject *dict, PyObject *key)
{
    bool known;
    return PyDict_Check(dict) && mp_raw_dict_item(dict, key, &known) != NULL;
}

/* -- What the call itself changed ------------------------------------------------------------------------------------------- */

static mp_location *written_key(mp_recorder *rec, mp_obj_id owner, PyObject *key)
{
    mp_obj_id key_obj = mp_is_constant_key(key) ? MP_NO_OBJ : mp_rec_find(rec, key);
    uint32_t i = find_location(rec, owner, MP_READ_KEY, key, key_obj);
    return i != UINT32_MAX && rec->locations[i].written ? &rec->locations[i] : NULL;
}

/* A new read of `kind`, to be filled. */
static mp_read *new_read(mp_recorder *rec, mp_obj_id owner, mp_read_kind kind, PyObject *key, mp_obj_id key_obj)
{
    uint32_t site = mp_rec_site(rec);
    mp_read *read = mp_rec_grow(rec, &rec->recording->reads, &rec->recording->n_reads, sizeof *read);
    if (!read) return NULL;
    read->kind = (uint8_t)kind;
    read->was = MP_WAS_ANY;
    read->owner = owner;
    read->key = key_obj == MP_NO_OBJ ? Py_XNewRef(key) : NULL;
    read->key_obj = key_obj;
    read->obj = MP_NO_OBJ;
    read->site = site;
    return read;
}

/* The length before the call of a dict to which the call wrote keys; whether each was there becomes a read. */
static Py_ssize_t original_length(mp_recorder *rec, mp_obj_id id, PyObject *dict)
{
    Py_ssize_t n = PyDict_Size(dict);
    for (uint32_t i = rec->object_places[id]; i != UINT32_MAX; i = rec->locations[i].next) {
        mp_location *at = &rec->locations[i];
        if (at->family != MP_READ_KEY || !at->written) continue;
        PyObject *key = at->key_obj == MP_NO_OBJ ? at->key : mp_object_get(&rec->recording->objects[at->key_obj]);
        if (!key) continue;
        n += (Py_ssize_t)at->present - (Py_ssize_t)dict_has(dict, key);
        if (at->has || at->read != MP_NO_READ) continue;
        at->has = true;
        mp_read *read = new_read(rec, id, MP_READ_HAS, at->key, at->key_obj);
        if (!read) return n;
        read->was = MP_WAS_SCALAR;
        read->value = PyBool_FromLong(at->present);
    }
    return n;
}

static void void_writes(mp_recorder *rec, mp_obj_id id)
{
    for (uint32_t i = 0; i < rec->recording->n_writes; i++) {
        mp_write *write = &rec->recording->writes[i];
        if (write->owner != id) continue;
        if (write->kind == MP_WRITE_KEY || write->kind == MP_WRITE_ITEM || write->kind == MP_WRITE_LIST_APPEND)
            write->owner = MP_NO_OBJ;
    }
}

/* The forward of an autograd.Function that is differentiated runs once more when the graph is made: what it does outside would be done twice. */
static bool is_run_again(mp_recorder *rec)
{
    if (MP_LIKELY(!rec->op_state || !rec->op_state->muted)) return false;
    mp_rec_abandon(rec, MP_REASON_EFFECT, "%s", "the forward of an autograd.Function changes what is outside");
    return true;
}

static mp_write *new_write(mp_recorder *rec, mp_obj_id owner, mp_write_kind kind, PyObject *key, mp_obj_id key_obj,
                           PyObject *value)
{
    if (is_run_again(rec)) return NULL;
    uint32_t site = mp_rec_site(rec);
    mp_write *write = mp_rec_grow(rec, &rec->recording->writes, &rec->recording->n_writes, sizeof *write);
    if (!write) return NULL;
    write->kind = (uint8_t)kind;
    write->owner = owner;
    write->key = key_obj == MP_NO_OBJ ? Py_XNewRef(key) : NULL;
    write->key_obj = key_obj;
    write->value = Py_XNewRef(value);
    write->site = site;
    if (rec->n_frames) rec->frames[rec->n_frames - 1].wrote = true;
    return write;
}

/* From now on the contents are the call's: committed as a whole. */
static void take_contents(mp_recorder *rec, mp_obj_id id, PyObject *container)
{
    rec->object_state[id] |= MP_STATE_OWNED;
    void_writes(rec, id);
    new_write(rec, id, MP_WRITE_CONTENTS, NULL, MP_NO_OBJ, container);
}

/* A list that was appended to blindly is looked at after all: read what it held before. */
static void settle_appends(mp_recorder *rec, mp_obj_id id, PyObject *list)
{
    uint32_t base = rec->object_base[id];
    rec->object_state[id] &= (uint16_t)~MP_STATE_APPENDED;
    PyObject *n = PyLong_FromUnsignedLong(base);
    if (n) mp_rec_read(rec, list, MP_READ_LEN, NULL, n);
    Py_XDECREF(n);
    for (uint32_t i = 0; i < base && (Py_ssize_t)i < PyList_GET_SIZE(list); i++) {
        PyObject *key = PyLong_FromUnsignedLong(i);
        if (key) mp_rec_read(rec, list, MP_READ_ITEM, key, PyList_GET_ITEM(list, i));
        Py_XDECREF(key);
    }
    take_contents(rec, id, list);
}

/* Instance attributes that were stored before there was a dict are items of the dict that now comes to light. */
static void carry_attrs(mp_recorder *rec, mp_obj_id instance, PyObject *dict)
{
    mp_obj_id id = mp_rec_find(rec, dict);
    if (id == MP_NO_OBJ) return;
    for (uint32_t i = rec->object_places[instance]; i != UINT32_MAX; i = rec->locations[i].next) {
        if (rec->locations[i].family != MP_READ_TYPE_ATTR || !rec->locations[i].written) continue;
        PyObject *key = rec->locations[i].key;
        uint32_t at = find_location(rec, id, MP_READ_KEY, key, MP_NO_OBJ);
        if (at == UINT32_MAX) at = add_location(rec, id, MP_READ_KEY, key, MP_NO_OBJ);
        if (at == UINT32_MAX) return;
        rec->locations[at].written = true;
        rec->locations[at].present = rec->locations[i].present;
        rec->object_state[id] |= MP_STATE_WROTE_KEYS;
    }
}

/* -- Places read again and again ------------------------------------------------------------------------------------------ */

/* Kinds that nearly every instruction reads, without a key and never written: one bit of the owner says that it was done. */
static uint16_t read_bit(mp_read_kind kind)
{
    switch (kind) {
    case MP_READ_TYPE: return MP_STATE_READ_TYPE;
    case MP_READ_TYPE_DUNDERS: return MP_STATE_READ_DUNDERS;
    case MP_READ_DICT: return MP_STATE_READ_DICT;
    default: return 0;
    }
}

/* -- Reads ------------------------------------------------------------------------------------------------------------------- */

/* Is this item of a list that the call has only appended to where it was before, or one that the call has appended (*own)? */
static bool is_in_place(mp_recorder *rec, mp_obj_id id, PyObject *list, PyObject *key, bool *own)
{
    Py_ssize_t at = key ? PyLong_AsSsize_t(key) : 0, base = (Py_ssize_t)rec->object_base[id];
    *own = at < 0 && base <= at + PyList_GET_SIZE(list);
    if (at == -1) PyErr_Clear();
    return key && (*own || (at >= 0 && at < base));
}

/* Does the call's own change of the container make this no read of the state before? */
static bool hidden_by_changes(mp_recorder *rec, mp_obj_id id, PyObject *owner, mp_read_kind kind, PyObject *key,
                              PyObject *value)
{
    uint16_t state = rec->object_state[id];
    if (!is_contents(kind)) return false;
    if (state & MP_STATE_OWNED) return true;
    bool own = false;
    if (state & MP_STATE_APPENDED && kind == MP_READ_ITEM && is_in_place(rec, id, owner, key, &own)) return own;
    if (state & MP_STATE_APPENDED && (kind == MP_READ_LEN || kind == MP_READ_ITEM)) {
        settle_appends(rec, id, owner);
        return true;
    }
    if (kind == MP_READ_KEY_AT && state & (MP_STATE_WROTE_KEYS | MP_STATE_DELETED) && value) {
        if (state & MP_STATE_DELETED) {
            mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "%s", "the order of a dict is read after an item was deleted");
            return true;
        }
        const mp_location *at = written_key(rec, id, value);
        return at && !at->present; /* added by the call, after all that was there */
    }
    return false;
}

/* Register the location: the new read, or NULL if there is nothing to record. */
static mp_read *register_read(mp_recorder *rec, mp_obj_id owner, mp_read_kind kind, PyObject *key, bool found)
{
    mp_obj_id key_obj;
    if (place_key(rec, key, found, &key_obj) != 0) return NULL;
    uint8_t family = family_of_read(kind);
    uint32_t i = find_location(rec, owner, family, key, key_obj);
    if (i == UINT32_MAX) i = add_location(rec, owner, family, key, key_obj);
    if (i == UINT32_MAX) return NULL;
    mp_location *at = &rec->locations[i];
    if (at->written || at->read != MP_NO_READ) return NULL;
    if (kind == MP_READ_HAS) {
        if (at->has) return NULL;
        at->has = true;
    } else
        at->read = rec->recording->n_reads;
    return new_read(rec, owner, kind, key, key_obj);
}

mp_read *mp_rec_read_entry(mp_recorder *rec, PyObject *owner, mp_read_kind kind, PyObject *key)
{
    if (rec->why.code) return NULL;
    mp_obj_id id = mp_rec_ensure(rec, owner);
    if (id == MP_NO_OBJ || hidden_by_changes(rec, id, owner, kind, key, NULL)) return NULL;
    return register_read(rec, id, kind, key, true);
}

/* An exact copy of the immutable value inside an instance of a subclass of a scalar type. Owned, or NULL if it is none. */
static PyObject *base_value(PyObject *object)
{
    if (PyLong_Check(object)) return _PyLong_Copy((PyLongObject *)object);
    if (PyFloat_Check(object)) return PyFloat_FromDouble(PyFloat_AS_DOUBLE(object));
    if (PyUnicode_Check(object)) return PyUnicode_FromObject(object);
    if (PyBytes_Check(object)) return PyBytes_FromStringAndSize(PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object));
    if (PyComplex_Check(object)) return PyComplex_FromCComplex(((PyComplexObject *)object)->cval);
    return NULL;
}

void mp_rec_read_base_value(mp_recorder *rec, PyObject *object)
{
    PyObject *base = base_value(object);
    if (base) mp_rec_read(rec, object, MP_READ_BASE_VALUE, NULL, base);
    Py_XDECREF(base);
}

/* SET_ITEMS: `held`, (elements, layout), with external objects as references to them. Owned, or NULL after abandoning. */
static PyObject *items_of(mp_recorder *rec, PyObject *held, uint32_t found_by)
{
    PyObject *elements = PyTuple_GET_ITEM(held, 0), *items = PyTuple_New(PyTuple_GET_SIZE(elements));
    for (Py_ssize_t i = 0; items && i < PyTuple_GET_SIZE(elements); i++) {
        PyObject *element = PyTuple_GET_ITEM(elements, i), *item;
        if (mp_is_scalar(element))
            item = Py_NewRef(element);
        else {
            mp_obj_id id = mp_rec_find(rec, element);
            if (id == MP_NO_OBJ) id = mp_rec_new_object(rec, element, MP_ROOT_NONE, found_by);
            item = id == MP_NO_OBJ ? NULL : mp_ref_new(id);
        }
        if (!item) Py_CLEAR(items);
        if (item) PyTuple_SET_ITEM(items, i, item);
    }
    PyObject *kept = items ? PyTuple_Pack(2, items, PyTuple_GET_ITEM(held, 1)) : NULL;
    Py_XDECREF(items);
    if (!kept) {
        PyErr_Clear();
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
    }
    return kept;
}

/* Fill in what the location held. */
static void fill_read(mp_recorder *rec, uint32_t index, PyObject *value)
{
    mp_read *read = &rec->recording->reads[index];
    mp_read_kind kind = (mp_read_kind)read->kind;
    if (kind == MP_READ_TYPE_DUNDERS || kind == MP_READ_NO_DATA_DESCR || kind == MP_READ_SAME_ARG) return;
    if (!value) {
        read->was = MP_WAS_MISSING;
        return;
    }
    if (kind == MP_READ_SET_ITEMS && PyTuple_CheckExact(value)) {
        PyObject *items = items_of(rec, value, index);
        read = &rec->recording->reads[index];
        read->was = MP_WAS_ITEMS;
        read->value = items;
        return;
    }
    if (mp_is_scalar(value)) {
        read->was = MP_WAS_SCALAR;
        read->value = Py_NewRef(value);
        return;
    }
    mp_obj_id id = mp_rec_find(rec, value);
    if (id == MP_NO_OBJ) {
        if (mp_rec_is_internal(rec, value)) return; /* stays ANY */
        id = mp_rec_new_object(rec, value, MP_ROOT_NONE, index);
        if (id == MP_NO_OBJ) return;
        read = &rec->recording->reads[index];
    }
    read->was = MP_WAS_OBJECT;
    read->obj = id;
}

/* Does the location still hold `value` (borrowed, NULL: nothing)? */
static bool held_still(const mp_recorder *rec, const mp_read *read, PyObject *value)
{
    switch ((mp_was)read->was) {
    case MP_WAS_MISSING: return !value;
    case MP_WAS_OBJECT: return value && value == mp_object_get(&rec->recording->objects[read->obj]);
    case MP_WAS_SCALAR:
        if (read->kind == MP_READ_HAS) return (value != NULL) == (read->value == Py_True);
        return value && mp_scalar_same(value, read->value);
    default: return true; /* the call's own, or a number that is open */
    }
}

bool mp_rec_reads_stay(mp_recorder *rec)
{
    const mp_recording *recording = rec->recording;
    for (uint32_t i = 0; i < recording->n_reads; i++) {
        const mp_read *read = &recording->reads[i];
        PyObject *owner = mp_object_get(&recording->objects[read->owner]), *key = read->key;
        if (read->key_obj != MP_NO_OBJ) key = mp_object_get(&recording->objects[read->key_obj]);
        bool known = true, stays = true;
        if (!owner) continue;
        if ((read->kind == MP_READ_KEY || read->kind == MP_READ_HAS) && key && PyDict_Check(owner))
            stays = held_still(rec, read, mp_raw_dict_item(owner, key, &known)) && known;
        else if (read->kind == MP_READ_TYPE_ATTR && PyType_Check(owner) && key)
            stays = held_still(rec, read, mp_raw_type_lookup((PyTypeObject *)owner, key));
        else if (read->kind == MP_READ_LEN && read->was == MP_WAS_SCALAR && mp_is_container(owner))
            stays = PyLong_AsSsize_t(read->value) == mp_raw_length(owner);
        if (!stays) return false;
    }
    return true;
}

/* The read by which the location became a number, or MP_NO_READ. */
static uint32_t known_number(mp_recorder *rec, mp_obj_id id, mp_read_kind kind, PyObject *key)
{
    mp_obj_id key_obj = !key || mp_is_constant_key(key) ? MP_NO_OBJ : mp_rec_find(rec, key);
    uint32_t i = find_location(rec, id, family_of_read(kind), key, key_obj);
    uint32_t read = i == UINT32_MAX || rec->locations[i].written ? MP_NO_READ : rec->locations[i].read;
    return read != MP_NO_READ && rec->recording->reads[read].was == MP_WAS_NUMBER ? read : MP_NO_READ;
}

void mp_rec_read(mp_recorder *rec, PyObject *owner, mp_read_kind kind, PyObject *key, PyObject *value)
{
    if (rec->why.code) return;
    if (MP_UNLIKELY(rec->deferred != NULL) && kind != MP_READ_TYPE && kind != MP_READ_DICT &&
        kind != MP_READ_TYPE_DUNDERS)
        mp_deferred_conflict(rec, owner, key, false);
    mp_obj_id id = mp_rec_ensure(rec, owner);
    uint16_t bit = read_bit(kind);
    if (id == MP_NO_OBJ || rec->object_state[id] & bit || hidden_by_changes(rec, id, owner, kind, key, value)) return;
    rec->object_state[id] |= bit;
    mp_kept kept = mp_keep();
    PyObject *length = NULL;
    if (kind == MP_READ_LEN && rec->object_state[id] & MP_STATE_WROTE_KEYS && PyDict_Check(owner))
        value = length = PyLong_FromSsize_t(original_length(rec, id, owner));
    uint32_t known = rec->changing && value ? known_number(rec, id, kind, key) : MP_NO_READ;
    if (known != MP_NO_READ)
        mp_number_met(rec, known);
    else if (register_read(rec, id, kind, key, value != NULL)) {
        fill_read(rec, rec->recording->n_reads - 1, value);
        if (value && (PyLong_CheckExact(value) || PyFloat_CheckExact(value)))
            mp_number_counted(rec, rec->recording->n_reads - 1);
        if (rec->changing && value) mp_number_met(rec, rec->recording->n_reads - 1);
        if (kind == MP_READ_DICT && value && rec->object_state[id] & MP_STATE_WROTE_ATTRS) carry_attrs(rec, id, value);
    }
    Py_XDECREF(length);
    mp_restore(kept);
}

uint32_t mp_rec_length(mp_recorder *rec, PyObject *list, Py_ssize_t *more, bool *first)
{
    mp_obj_id id = rec->why.code ? MP_NO_OBJ : mp_rec_ensure(rec, list);
    if (id == MP_NO_OBJ || rec->object_state[id] & MP_STATE_OWNED) return MP_NO_READ;
    if (MP_UNLIKELY(rec->deferred != NULL)) mp_deferred_conflict(rec, list, NULL, false);
    uint16_t appended = rec->object_state[id] & MP_STATE_APPENDED;
    Py_ssize_t base = appended ? (Py_ssize_t)rec->object_base[id] : PyList_GET_SIZE(list);
    uint32_t at = find_location(rec, id, MP_READ_LEN, NULL, MP_NO_OBJ);
    *first = at == UINT32_MAX;
    if (*first) {
        PyObject *n = PyLong_FromSsize_t(base);
        rec->object_state[id] &= (uint16_t)~MP_STATE_APPENDED; /* what it was before is read */
        if (n)
            mp_rec_read(rec, list, MP_READ_LEN, NULL, n);
        else
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "reading a container");
        rec->object_state[id] |= appended;
        Py_XDECREF(n);
        at = find_location(rec, id, MP_READ_LEN, NULL, MP_NO_OBJ);
    }
    *more = PyList_GET_SIZE(list) - base;
    return at == UINT32_MAX ? MP_NO_READ : rec->locations[at].read;
}

void mp_rec_read_argument(mp_recorder *rec, mp_obj_id id, PyObject *value)
{
    mp_read *read = rec->why.code ? NULL : new_read(rec, id, MP_READ_VALUE, NULL, MP_NO_OBJ);
    if (!read) return;
    read->was = MP_WAS_SCALAR;
    read->value = Py_NewRef(value);
}

void mp_rec_forget_argument(mp_recorder *rec, mp_obj_id id)
{
    mp_recording *recording = rec->recording;
    for (uint32_t i = 0; i < recording->n_reads; i++) {
        if (recording->reads[i].kind != MP_READ_VALUE || recording->reads[i].owner != id) continue;
        Py_XDECREF(recording->reads[i].key);
        Py_XDECREF(recording->reads[i].value);
        memmove(&recording->reads[i], &recording->reads[i + 1], (recording->n_reads - i - 1) * sizeof(mp_read));
        recording->n_reads--;
        for (uint32_t k = 0; k < rec->n_locations; k++) /* that two arguments are the same object */
            if (rec->locations[k].read != MP_NO_READ && rec->locations[k].read > i) rec->locations[k].read--;
        return;
    }
}

bool mp_rec_known(mp_recorder *rec, PyObject *owner, mp_read_kind kind, PyObject *key)
{
    mp_obj_id id = mp_rec_find(rec, owner);
    if (id == MP_NO_OBJ) return false;
    mp_obj_id key_obj = !key || mp_is_constant_key(key) ? MP_NO_OBJ : mp_rec_find(rec, key);
    uint32_t i = find_location(rec, id, family_of_read(kind), key, key_obj);
    return i != UINT32_MAX && (rec->locations[i].written || rec->locations[i].read != MP_NO_READ ||
                               (kind == MP_READ_HAS && rec->locations[i].has));
}

/* -- Writes ------------------------------------------------------------------------------------------------------------------ */

/* Before the first write of a location: what later reads of the whole need to know. */
static void note_first_write(mp_recorder *rec, mp_obj_id id, PyObject *owner, mp_write_kind kind, PyObject *key,
                             bool *present)
{
    *present = false;
    if (kind == MP_WRITE_KEY) {
        *present = dict_has(owner, key);
        rec->object_state[id] |= MP_STATE_WROTE_KEYS;
    } else if (kind == MP_WRITE_ATTR && !PyType_Check(owner)) {
        PyObject **slot = mp_instance_value_slot(owner, key);
        *present = slot && *slot;
        rec->object_state[id] |= MP_STATE_WROTE_ATTRS;
    }
}

void mp_rec_write(mp_recorder *rec, PyObject *owner, mp_write_kind kind, PyObject *key, PyObject *value)
{
    if (rec->why.code) return;
    if (MP_UNLIKELY(rec->deferred != NULL)) mp_deferred_conflict(rec, owner, key, true);
    if (kind == MP_WRITE_CONTENTS) {
        mp_rec_own(rec, owner);
        return;
    }
    mp_obj_id id = mp_rec_ensure(rec, owner), key_obj;
    if (id == MP_NO_OBJ) return;
    if (kind == MP_WRITE_LIST_APPEND) {
        mp_rec_append(rec, owner, value);
        return;
    }
    bool contents = kind == MP_WRITE_KEY || kind == MP_WRITE_ITEM;
    if (contents && rec->object_state[id] & MP_STATE_OWNED) return;
    if (kind == MP_WRITE_ITEM && rec->object_state[id] & MP_STATE_APPENDED) {
        settle_appends(rec, id, owner);
        return;
    }
    if (kind == MP_WRITE_KEY && !value) { /* that it is there is read, for deleting nothing raises */
        mp_rec_read(rec, owner, MP_READ_HAS, key, dict_has(owner, key) ? Py_True : Py_False);
        rec->object_state[id] |= MP_STATE_DELETED;
    }
    if (place_key(rec, key, true, &key_obj) != 0) return;
    uint8_t family = family_of_write[kind];
    uint32_t i = find_location(rec, id, family, key, key_obj);
    if (i == UINT32_MAX) i = add_location(rec, id, family, key, key_obj);
    if (i == UINT32_MAX) return;
    if (!rec->locations[i].written) {
        bool present;
        note_first_write(rec, id, owner, kind, key, &present);
        rec->locations[i].present = present;
        rec->locations[i].written = true;
    }
    if (rec->locations[i].write == UINT32_MAX) {
        rec->locations[i].write = rec->recording->n_writes;
        new_write(rec, id, kind, key, key_obj, value);
    } else if (!is_run_again(rec)) {
        Py_XSETREF(rec->recording->writes[rec->locations[i].write].value, Py_XNewRef(value));
        if (rec->n_frames) rec->frames[rec->n_frames - 1].wrote = true;
    }
}

void mp_rec_own(mp_recorder *rec, PyObject *container)
{
    if (MP_UNLIKELY(rec->deferred != NULL)) mp_deferred_conflict(rec, container, NULL, true);
    if (mp_is_array(container) && mp_array_is_data(rec, container))
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "a numpy array that C code changes");
    mp_obj_id id = rec->why.code ? MP_NO_OBJ : mp_rec_find(rec, container);
    if (id == MP_NO_OBJ || rec->object_state[id] & MP_STATE_OWNED) return;
    mp_rec_whole(rec, container);
    if (!rec->why.code && !(rec->object_state[id] & MP_STATE_OWNED)) take_contents(rec, id, container);
}

void mp_rec_append(mp_recorder *rec, PyObject *list, PyObject *value)
{
    if (MP_UNLIKELY(rec->deferred != NULL)) mp_deferred_conflict(rec, list, NULL, true);
    mp_obj_id id = rec->why.code ? MP_NO_OBJ : mp_rec_find(rec, list);
    if (id == MP_NO_OBJ || rec->object_state[id] & MP_STATE_OWNED) return;
    if (!(rec->object_state[id] & MP_STATE_APPENDED)) {
        if (!PyList_Check(list)) {
            mp_rec_own(rec, list);
            return;
        }
        rec->object_base[id] = (uint32_t)PyList_GET_SIZE(list);
        rec->object_state[id] |= MP_STATE_APPENDED;
    }
    new_write(rec, id, MP_WRITE_LIST_APPEND, NULL, MP_NO_OBJ, value);
}

void mp_rec_effect(mp_recorder *rec, PyObject *callable, PyObject *args)
{
    if (!rec->why.code) new_write(rec, MP_NO_OBJ, MP_WRITE_CALL, callable, MP_NO_OBJ, args);
}

void mp_rec_finish_writes(mp_recorder *rec)
{
    mp_recording *recording = rec->recording;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < recording->n_writes; i++) {
        mp_write *write = &recording->writes[i];
        if (write->kind != MP_WRITE_CALL && write->owner == MP_NO_OBJ) {
            Py_XDECREF(write->key);
            Py_XDECREF(write->value);
        } else
            recording->writes[kept++] = *write;
    }
    recording->n_writes = kept;
}
