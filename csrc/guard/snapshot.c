/* Snapshot: words of the current objects that, unchanged, prove what was read without looking at it again.
**
** Why equal words prove equal reads. Entries are in order, holders before what they hold, and an entry's address lies in an object that the
** entries before it have shown to be alive and of the type whose layout was used:
**   - The program owns types and, where they have no weak references, fixed objects. A fixed object that is watched is compared through
**     its weak reference (which the program owns): a word there tells that it has not died.
**   - A dict's version tag is unique among all dicts and all times. Equal: it is the same dict, it has not changed, and has held the same
**     keys and values all the while. They are *held*: alive throughout, so their addresses were never reused. The same goes for a type's
**     version tag and what its MRO holds, and for a function's version and its code and defaults.
**   - Cells, list items, slots and inline values have no version: the word there only tells the address of the value. A scalar
**     there is kept alive by the block, so an equal address is the same scalar. Any other value may have died and its address have been
**     reused: nothing is believed of it but what further entries show. First its type (so that the layout is known), then every location
**     that was read of it, each by version or by word again. An object of the right type at that address of which every
**     read location is as it was cannot be told from the one that was there, except by identity, and whose identity matters is fixed.
**   - Immutable objects (tuples, bound methods, frozensets) need no entries if held, and entries for each item if not.
**   - `__class__` may be assigned: instances of classes made by a class statement have a type entry even if held.
** When a versioned holder has changed but all that was read of it is the same (renew below), what it holds was not held all the while:
** immutable objects without entries of their own ("frail") are then looked at again.
**
** What has no word (sets, deques, dict order of an OrderedDict, context variables, C getters) is a stop: evaluated in place.
*/
#include "guard/program.h"

#include "observe/observe.h"
#include "trace/recorder.h"

enum {                            /* bits of guard_object.proof, while blocks are built */
       GUARD_PROOF_TYPED = 1,     /* its type is shown */
       GUARD_PROOF_HELD = 2,      /* it cannot have died since the block was built */
       GUARD_PROOF_VERSIONED = 4, /* its version is compared */
       GUARD_PROOF_SIZED = 8,     /* ob_size is compared */
       GUARD_PROOF_ITEMS = 16,    /* ob_item, or the instance's values or dict, is compared */
};

/* -- Growing ------------------------------------------------------------------------------------------------------------- */

/* Make room for one more of `size` bytes. -1 without memory. */
static int grow(void *array_address, uint32_t count, uint32_t *room, size_t size)
{
    void **array = array_address;
    if (count < *room) return 0;
    uint32_t more = *room ? *room * 2 : 16;
    void *bigger = PyMem_Realloc(*array, more * size);
    if (!bigger) return -1;
    *array = bigger;
    *room = more;
    return 0;
}

void guard_block_clear(guard_block *block)
{
    block->valid = false;
    block->n_words = block->n_stops = block->n_tensors = 0;
    while (block->n_kept) Py_DECREF(block->kept[--block->n_kept]);
}

/* -- Building ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    mp_guard_program *prog;
    guard_block *block;
    uint32_t group;
    uint32_t read; /* being proven */
    bool failed;   /* out of memory */
} builder;

static guard_origin *add_word(builder *b, const void *address)
{
    static guard_origin nowhere;
    guard_block *block = b->block;
    uint32_t room = block->room_words, same_room = room;
    if (grow(&block->words, block->n_words, &room, sizeof *block->words) < 0 ||
        grow(&block->origins, block->n_words, &same_room, sizeof *block->origins) < 0) {
        b->failed = true; /* room_words stays: it is what both have at least */
        return &nowhere;
    }
    block->room_words = room;
    block->words[block->n_words] = (guard_word){address, *(const guard_cell *)address};
    guard_origin *origin = &block->origins[block->n_words++];
    *origin = (guard_origin){b->read, UINT32_MAX, false, GUARD_NO_VERSION};
    return origin;
}

static void add_stop(builder *b)
{
    guard_block *block = b->block;
    if (grow(&block->stops, block->n_stops, &block->room_stops, sizeof *block->stops) < 0)
        b->failed = true;
    else
        block->stops[block->n_stops++] = (guard_stop){block->n_words, b->read};
}

static void add_tensor(builder *b, PyObject *tensor, const mp_tensor_meta *meta)
{
    guard_block *block = b->block;
    if (grow(&block->tensors, block->n_tensors, &block->room_tensors, sizeof *block->tensors) < 0)
        b->failed = true;
    else
        block->tensors[block->n_tensors++] = (guard_tensor){tensor, meta, b->read};
}

static uint32_t keep(builder *b, PyObject *scalar)
{
    guard_block *block = b->block;
    if (grow(&block->kept, block->n_kept, &block->room_kept, sizeof *block->kept) < 0) {
        b->failed = true;
        return UINT32_MAX;
    }
    block->kept[block->n_kept] = Py_NewRef(scalar);
    return block->n_kept++;
}

static bool is_mutable_type(PyTypeObject *type)
{ return (type->tp_flags & Py_TPFLAGS_HEAPTYPE) && !(type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE); }

/* Show that the object, at the address where it is expected, is of its type; and if it is fixed, that it never died. An object of
** another group keeps no note of it: that group's block is checked on its own. */
static void prove_object(builder *b, mp_obj_id id, bool held)
{
    mp_guard_program *prog = b->prog;
    guard_object *object = &prog->objects[id];
    const mp_object *recorded = &prog->rec.objects[id];
    PyObject *current = prog->now.current[id];
    uint8_t proof = object->proof | (held ? GUARD_PROOF_HELD : 0);
    if (!current) return; /* nothing was read of it */
    if (object->fixed && !(proof & GUARD_PROOF_HELD)) {
        if (!recorded->owned) add_word(b, &((PyWeakReference *)recorded->watch)->wr_object); /* None when it dies */
        proof |= GUARD_PROOF_HELD;
    }
    if (!(proof & GUARD_PROOF_TYPED) && (is_mutable_type(Py_TYPE(current)) || !(proof & GUARD_PROOF_HELD)))
        add_word(b, &current->ob_type);
    proof |= GUARD_PROOF_TYPED;
    if (object->group == b->group) object->proof = proof;
}

/* What the read found is held by something unchanged. */
static void found_held(builder *b)
{
    const mp_read *read = &b->prog->rec.reads[b->read];
    if (read->was == MP_WAS_OBJECT) prove_object(b, read->obj, true);
}

/* What the read found lies at `address`, where no version tells of a change. */
static void found_at(builder *b, PyObject **address)
{
    const mp_read *read = &b->prog->rec.reads[b->read];
    if (read->was == MP_WAS_ANY) return;
    if (read->was == MP_WAS_NUMBER) { /* whichever it is now is what the caller is given */
        add_stop(b);
        return;
    }
    if (read->was == MP_WAS_OBJECT && b->prog->now.current[read->obj] != *address) { /* an equal tuple */
        add_stop(b);
        return;
    }
    guard_origin *origin = add_word(b, address);
    if (read->was == MP_WAS_SCALAR && *address) {
        uint32_t kept = keep(b, *address);
        if (!b->failed) origin->kept = kept;
    } else if (read->was == MP_WAS_OBJECT) {
        prove_object(b, read->obj, false);
    }
}

static bool version_dict(builder *b, mp_obj_id id)
{
    guard_object *object = &b->prog->objects[id];
    if (!(object->proof & GUARD_PROOF_VERSIONED)) add_word(b, mp_dict_version_address(b->prog->now.current[id]));
    object->proof |= GUARD_PROOF_VERSIONED | GUARD_PROOF_HELD;
    return true;
}

/* A type's version stands for all that a lookup in its MRO gives. False: it cannot have one. */
static bool version_type(builder *b, mp_obj_id id)
{
    guard_object *object = &b->prog->objects[id];
    PyTypeObject *type = (PyTypeObject *)b->prog->now.current[id];
    if (object->proof & GUARD_PROOF_VERSIONED) return true;
    if (is_mutable_type(type)) { /* others never change */
        if (!mp_type_version(type)) return false;
        add_word(b, &type->tp_version_tag)->version =
            GUARD_TYPE_VERSION; /* the padding behind the 32 bits is compared too, and never written */
    }
    object->proof |= GUARD_PROOF_VERSIONED | GUARD_PROOF_HELD;
    return true;
}

/* A function's version stands for its code and defaults, and being unique, for the function. */
static bool version_function(builder *b, mp_obj_id id)
{
    guard_object *object = &b->prog->objects[id];
    PyObject *function = b->prog->now.current[id];
    if (object->proof & GUARD_PROOF_VERSIONED) return true;
    if (!mp_function_version(function)) return false;
    add_word(b, mp_function_version_address(function))->version = GUARD_FUNCTION_VERSION;
    object->proof |= GUARD_PROOF_VERSIONED | GUARD_PROOF_HELD;
    return true;
}

static void prove_size(builder *b, mp_obj_id id)
{
    guard_object *object = &b->prog->objects[id];
    if (!(object->proof & GUARD_PROOF_SIZED)) add_word(b, &((PyVarObject *)b->prog->now.current[id])->ob_size);
    object->proof |= GUARD_PROOF_SIZED;
}

/* -- Building: kinds -------------------------------------------------------------------------------------------------------- */

/* May words inside `owner` be read by its type's layout? Not where the place depends on its length, which another one of the
** type at the same address need not have. */
static bool fixed_layout(builder *b, mp_obj_id id) { return !Py_TYPE(b->prog->now.current[id])->tp_itemsize; }

static void prove_type(builder *b, const mp_read *read)
{
    guard_object *object = &b->prog->objects[read->owner];
    PyObject *owner = b->prog->now.current[read->owner];
    if (!(object->proof & GUARD_PROOF_TYPED)) add_word(b, &owner->ob_type);
    object->proof |= GUARD_PROOF_TYPED;            /* (prove_object has, unless it was of no use) */
    if (read->was == MP_WAS_OBJECT) found_held(b); /* an instance holds its type; static types live on */
}

static void prove_dict(builder *b, const mp_read *read)
{
    PyObject *owner = b->prog->now.current[read->owner];
    PyObject **slot = mp_instance_dict_slot(owner);
    if (PyType_Check(owner)) {
        found_held(b);
    } else if (slot) {
        if (!fixed_layout(b, read->owner)) {
            add_stop(b);
        } else if (*slot) {
            found_at(b, slot);
        } else {
            add_word(b, slot)->structural = true;
            if (guard_values_pointer(owner)) add_word(b, guard_values_pointer(owner))->structural = true;
        }
    } /* else its type gives it none, and that is shown */
}

/* An attribute that the instance itself holds, wherever that is now. */
static void prove_instance_attr(builder *b, const mp_read *read)
{
    guard_object *object = &b->prog->objects[read->owner];
    PyObject *owner = b->prog->now.current[read->owner];
    PyObject **slot = mp_instance_dict_slot(owner), **values = guard_values_pointer(owner);
    if (!slot) return;
    if (!fixed_layout(b, read->owner) || (*slot && !PyDict_Check(*slot))) {
        add_stop(b);
        return;
    }
    if (!(object->proof & GUARD_PROOF_ITEMS)) {
        add_word(b, slot)->structural = true;
        if (*slot)
            add_word(b, mp_dict_version_address(*slot));
        else if (values)
            add_word(b, values)->structural = true;
        object->proof |= GUARD_PROOF_ITEMS;
    }
    if (*slot) {
        found_held(b);
        return;
    }
    PyObject **value = mp_instance_value_slot(owner, read->key);
    if (value) {
        found_at(b, value);
    } else if (values &&
               *values) { /* no instance of the type has had such a name: it can only get one by a new shared name */
        const Py_ssize_t *names = guard_shared_names(Py_TYPE(owner));
        if (names)
            add_word(b, names)->structural = true;
        else
            add_stop(b);
    }
}

static void prove_dict_item(builder *b, const mp_read *read)
{
    PyObject *owner = b->prog->now.current[read->owner];
    if (!PyDict_Check(owner)) {
        add_stop(b);
        return;
    }
    version_dict(b, read->owner);
    if (read->kind == MP_READ_KEY_AT && PyODict_Check(owner)) add_stop(b); /* its order changes without its version */
    found_held(b);
}

static void prove_len(builder *b, const mp_read *read)
{
    PyObject *owner = b->prog->now.current[read->owner];
    guard_object *object = &b->prog->objects[read->owner];
    if (read->was == MP_WAS_NUMBER) /* whichever it is now is what the caller is given */
        add_stop(b);
    else if (PyDict_Check(owner))
        version_dict(b, read->owner);
    else if (PyList_Check(owner) || (PyTuple_Check(owner) && !(object->proof & GUARD_PROOF_HELD)))
        prove_size(b, read->owner);
    else if (!PyTuple_Check(owner) && !(PyFrozenSet_CheckExact(owner) && object->proof & GUARD_PROOF_HELD))
        add_stop(b);
}

static void prove_item(builder *b, const mp_read *read)
{
    PyObject *owner = b->prog->now.current[read->owner];
    guard_object *object = &b->prog->objects[read->owner];
    if (PyTuple_Check(owner) && object->proof & GUARD_PROOF_HELD) {
        found_held(b);
        return;
    }
    if (!PyTuple_Check(owner) && !PyList_Check(owner)) {
        add_stop(b);
        return;
    }
    prove_size(b, read->owner);
    Py_ssize_t index = PyLong_AsSsize_t(read->key);
    if (index < 0) index += Py_SIZE(owner);
    if (index < 0 || index >= Py_SIZE(owner)) return; /* MISSING, and that is its size */
    if (PyTuple_Check(owner)) {
        found_at(b, &((PyTupleObject *)owner)->ob_item[index]);
        return;
    }
    if (!(object->proof & GUARD_PROOF_ITEMS)) add_word(b, &((PyListObject *)owner)->ob_item)->structural = true;
    object->proof |= GUARD_PROOF_ITEMS;
    found_at(b, &((PyListObject *)owner)->ob_item[index]);
}

static void prove_set(builder *b, const mp_read *read)
{
    PyObject *owner = b->prog->now.current[read->owner];
    if (PyFrozenSet_CheckExact(owner) && b->prog->objects[read->owner].proof & GUARD_PROOF_HELD) return;
    add_stop(b);
}

static void prove_type_lookup(builder *b, const mp_read *read)
{
    PyTypeObject *type = (PyTypeObject *)b->prog->now.current[read->owner];
    if (!version_type(b, read->owner)) {
        add_stop(b);
        return;
    }
    if (read->kind == MP_READ_NO_DATA_DESCR) { /* what was found may become a data descriptor by its own class */
        PyObject *found = _PyType_Lookup(type, read->key);
        if (found && is_mutable_type(Py_TYPE(found))) add_stop(b);
    }
    found_held(b);
}

static void prove_cell(builder *b, const mp_read *read)
{ found_at(b, &((PyCellObject *)b->prog->now.current[read->owner])->ob_ref); }

static void prove_member(builder *b, const mp_read *read)
{
    PyObject *owner = b->prog->now.current[read->owner];
    PyObject **address = guard_member_address(owner, read->key);
    bool function = PyFunction_Check(owner), held = b->prog->objects[read->owner].proof & GUARD_PROOF_HELD;
    bool named = function && (address == &((PyFunctionObject *)owner)->func_name ||
                              address == &((PyFunctionObject *)owner)->func_qualname); /* no version tells of these */
    if (function && !named && address && version_function(b, read->owner))
        found_held(b);
    else if (held && (Py_TYPE(owner) == &PyMethod_Type || Py_TYPE(owner) == &PyCFunction_Type))
        found_held(b); /* immutable */
    else if (address)
        found_at(b, address);
    else
        add_stop(b);
}

static void prove_slot(builder *b, const mp_read *read)
{
    /* a descriptor that is itself an outside object is looked up by the walk */
    PyObject **address = read->key ? guard_slot_address(b->prog->now.current[read->owner], read->key) : NULL;
    if (address && fixed_layout(b, read->owner))
        found_at(b, address);
    else
        add_stop(b);
}

static void prove_deref(builder *b, const mp_read *read)
{
    PyObject **address = &((PyWeakReference *)b->prog->now.current[read->owner])->wr_object;
    if (read->was == MP_WAS_OBJECT)
        found_at(b, address);
    else
        add_stop(b);
}

static void prove_base_value(builder *b, const mp_read *read)
{
    if (!(b->prog->objects[read->owner].proof & GUARD_PROOF_HELD)) add_stop(b);
}

static void prove_tensor(builder *b, const mp_read *read)
{ add_tensor(b, b->prog->now.current[read->owner], read->meta); }

static void prove_nothing(builder *b, const mp_read *read) {}

static void prove_by_looking(builder *b, const mp_read *read)
{
    add_stop(b);
    if (read->was == MP_WAS_OBJECT) prove_object(b, read->obj, false);
}

static void (*const prove[MP_READ_KIND_COUNT])(builder *, const mp_read *) = {
    [MP_READ_VALUE] = prove_nothing, /* a slot, as SAME_ARG */
    [MP_READ_SAME_ARG] = prove_nothing,
    [MP_READ_TYPE] = prove_type,
    [MP_READ_DICT] = prove_dict,
    [MP_READ_INSTANCE_ATTR] = prove_instance_attr,
    [MP_READ_LOCAL_ATTR] = prove_by_looking,
    [MP_READ_KEY] = prove_dict_item,
    [MP_READ_HAS] = prove_dict_item,
    [MP_READ_KEY_AT] = prove_dict_item,
    [MP_READ_LEN] = prove_len,
    [MP_READ_ITEM] = prove_item,
    [MP_READ_SET_HAS] = prove_set,
    [MP_READ_SET_ITEMS] = prove_set,
    [MP_READ_TYPE_ATTR] = prove_type_lookup,
    [MP_READ_TYPE_DUNDERS] = prove_type_lookup,
    [MP_READ_NO_DATA_DESCR] = prove_type_lookup,
    [MP_READ_SUPER_ATTR] = prove_type_lookup,
    [MP_READ_CELL] = prove_cell,
    [MP_READ_MEMBER] = prove_member,
    [MP_READ_SLOT] = prove_slot,
    [MP_READ_TENSOR_META] = prove_tensor,
    [MP_READ_ARRAY_META] = prove_by_looking,
    [MP_READ_TENSOR_ATTR] = prove_by_looking,
    [MP_READ_DEREF] = prove_deref,
    [MP_READ_CONTEXT_VAR] = prove_by_looking,
    [MP_READ_STATE_CALL] = prove_by_looking,
    [MP_READ_CACHED] = prove_by_looking,
    [MP_READ_CACHED_TENSOR] = prove_by_looking,
    [MP_READ_BASE_VALUE] = prove_base_value,
};

int guard_block_build(mp_guard_program *prog, uint32_t group)
{
    builder b = {prog, &prog->blocks[group], group, MP_NO_READ, false};
    guard_block_clear(b.block);
    for (uint32_t i = 0; i < prog->rec.n_objects; i++)
        if (prog->objects[i].group == group) prog->objects[i].proof = 0;
    for (uint32_t i = prog->group_start[group]; i < prog->group_start[group + 1] && !b.failed; i++) {
        b.read = prog->group_reads[i];
        const mp_read *read = &prog->rec.reads[b.read];
        prove_object(&b, read->owner, false);
        prove[read->kind](&b, read);
        /* Where a stop stands for a read that found an object, what is known of that object starts with its type. */
        if (read->was == MP_WAS_OBJECT && b.block->n_stops && b.block->stops[b.block->n_stops - 1].read == b.read)
            prove_object(&b, read->obj, false);
    }
    b.block->valid = !b.failed;
    if (b.failed) guard_block_clear(b.block);
    return b.failed ? -1 : 0;
}

/* -- Checking --------------------------------------------------------------------------------------------------------------- */

/* A read does not hold: a miss for certain, or might another object stand for the recorded one? */
static int differs(mp_guard_program *prog, uint32_t read)
{
    const mp_read *r = &prog->rec.reads[read];
    prog->failed = read;
    bool other = (r->was == MP_WAS_OBJECT && !prog->objects[r->obj].fixed) || r->was == MP_WAS_ITEMS;
    return other ? -1 : 0;
}

/* Immutable objects have no entries of their own while they are held. */
static bool is_frail(const mp_guard_program *prog, mp_obj_id id)
{
    PyTypeObject *type = prog->rec.objects[id].type;
    return !prog->objects[id].fixed &&
           (prog->objects[id].noalias ||
            type->tp_flags & (Py_TPFLAGS_LONG_SUBCLASS | Py_TPFLAGS_BYTES_SUBCLASS | Py_TPFLAGS_UNICODE_SUBCLASS) ||
            PyType_IsSubtype(type, &PyFloat_Type) || PyType_IsSubtype(type, &PyComplex_Type));
}

/* Look at all that was read of `owner` again, and at the frail ones among what it holds. 1, 0, -1 as guard_block_check. */
static int look_again(mp_guard_program *prog, mp_obj_id owner, int depth)
{
    if (depth > 64) return -1;
    for (uint32_t r = prog->objects[owner].first_read; r != MP_NO_READ; r = prog->reads[r].next) {
        const mp_read *read = &prog->rec.reads[r];
        if (!guard_read_same(prog, r)) return differs(prog, r);
        if (read->was != MP_WAS_OBJECT || !is_frail(prog, read->obj)) continue;
        int same = look_again(prog, read->obj, depth + 1);
        if (same <= 0) return same;
    }
    return 1;
}

/* Word `i` differs. If all reads of its owner hold all the same, expect the new word from now on. */
static MP_COLD int renew(mp_guard_program *prog, guard_block *block, uint32_t i)
{
    const guard_origin *origin = &block->origins[i];
    const mp_read *read = &prog->rec.reads[origin->read];
    guard_word *word = &block->words[i];
    if (origin->structural) {
        prog->failed = origin->read;
        return -1;
    }
    int same = look_again(prog, read->owner, 0);
    if (same <= 0) return same;
    if (origin->version != GUARD_NO_VERSION) { /* dropped by a change, it must be given anew; 0 would tell nothing */
        PyObject *owner = prog->now.current[read->owner];
        bool type = origin->version == GUARD_TYPE_VERSION;
        if (!(type ? mp_type_version((PyTypeObject *)owner) : mp_function_version(owner))) return -1;
    }
    uint64_t now = *word->address;
    if (origin->kept != UINT32_MAX) {
        PyObject *scalar = (PyObject *)(uintptr_t)now;
        if (!scalar) return -1;
        Py_INCREF(scalar);
        Py_SETREF(block->kept[origin->kept], scalar);
    }
    word->expected = now;
    return 1;
}

static inline int words_hold(mp_guard_program *prog, guard_block *block, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        const guard_word *word = &block->words[i];
        if (MP_LIKELY(*word->address == word->expected)) continue;
        int same = renew(prog, block, i);
        if (same <= 0) return same;
    }
    return 1;
}

int guard_block_check(mp_guard_program *prog, uint32_t group)
{
    guard_block *block = &prog->blocks[group];
    uint32_t at = 0;
    for (uint32_t s = 0; s < block->n_stops; s++) {
        const guard_stop *stop = &block->stops[s];
        int same = words_hold(prog, block, at, stop->position);
        if (same <= 0) return same;
        at = stop->position;
        if (!guard_read_same(prog, stop->read)) return differs(prog, stop->read);
    }
    int same = words_hold(prog, block, at, block->n_words);
    if (same <= 0) return same;
    for (uint32_t t = 0; t < block->n_tensors; t++)
        if (!guard_tensor_same(block->tensors[t].tensor, block->tensors[t].meta)) {
            prog->failed = block->tensors[t].read;
            return 0;
        }
    return 1;
}
