/* The check: slots, snapshot blocks, and the walk from the roots where a snapshot does not tell.
**
** Order and cost. Block 0 (what target and pins reach) is a run over words; a leaf tensor argument is compared in place; an argument that is
** the same object as last time has a block of its own. Everything else is a walk: of the argument's own reads, or of all reads in
** recorded order if an object was replaced in group 0.
*/
#include "guard/program.h"

#include "guard/torch_state.h"
#include "trace/recorder.h"

/* -- Parts ---------------------------------------------------------------------------------------------------------------- */

static void release_temps(mp_guard_program *prog)
{
    while (prog->n_temps) Py_DECREF(prog->temps[--prog->n_temps]);
}

/* Is something wanted that only the walk keeps alive? Then the values it made live until the next check. */
static bool temps_wanted(const mp_guard_program *prog, PyObject *const *bound)
{
    for (uint32_t i = 0; i < prog->n_temps; i++)
        for (uint32_t j = 0; Py_REFCNT(prog->temps[i]) == 1 && j < prog->n_wanted; j++)
            if (bound[j] == prog->temps[i]) return true;
    return false;
}

static void map_clear(mp_map *map)
{
    if (map->used) memset(map->slots, 0, ((size_t)map->mask + 1) * sizeof *map->slots);
    map->used = 0;
}

static bool fail(mp_guard_program *prog, mp_guard_id id)
{
    prog->failed = id;
    return false;
}

static bool fail_slot(mp_guard_program *prog, uint32_t slot)
{
    uint32_t read = prog->slots[slot].read;
    return fail(prog, read != MP_NO_READ ? read : guard_id_of(prog, GUARD_ID_SLOTS + slot));
}

static bool signature_same(const mp_guard_program *prog, const mp_call *call)
{
    if (call->nargs != prog->n_positional) return false;
    Py_ssize_t given = call->kwnames ? PyTuple_GET_SIZE(call->kwnames) : 0;
    if ((size_t)given + call->nargs != prog->n_slots) return false;
    if (!given || call->kwnames == prog->kwnames) return true;
    for (Py_ssize_t i = 0; i < given; i++) {
        PyObject *a = PyTuple_GET_ITEM(call->kwnames, i), *b = PyTuple_GET_ITEM(prog->kwnames, i);
        if (a != b && PyUnicode_Compare(a, b) != 0) return false;
    }
    return true;
}

/* Scalars and unused arguments: no object below them, nothing to be mistaken for. */
static bool plain_slot_holds(mp_guard_program *prog, const guard_slot *slot, PyObject *value)
{
    if (slot->object != MP_NO_OBJ) prog->now.current[slot->object] = value;
    if (slot->kind == GUARD_SLOT_TYPE) return Py_TYPE(value) == slot->type;
    return value == slot->scalar || (!slot->very && mp_scalar_same(value, slot->scalar));
}

/* -- Walk of everything ------------------------------------------------------------------------------------------------------ */

/* A check failed. Does it expect an int or float by value, whose name is wanted? Then the walk goes on. */
static bool is_other_number(const mp_guard_program *prog, mp_guard_id id, PyObject *numbers)
{
    PyObject *name = numbers ? mp_guard_number_name(prog, id) : NULL;
    bool added = name && PySet_Add(numbers, name) == 0;
    Py_XDECREF(name);
    PyErr_Clear(); /* it stays guarded by value */
    return added;
}

/* numbers: a set for the names of those that are other ones now, or NULL: the first ends the walk. */
static bool bind_roots(mp_guard_program *prog, const mp_call *call, PyObject *numbers)
{
    memset(prog->now.current, 0, prog->rec.n_objects * sizeof *prog->now.current);
    map_clear(&prog->now.held_static);
    map_clear(&prog->now.held_args);
    for (uint32_t i = 0; i < prog->n_fixed; i++) {
        mp_obj_id id = prog->fixed[i];
        PyObject *object = mp_object_get(&prog->rec.objects[id]);
        if (object && Py_TYPE(object) != prog->rec.objects[id].type) object = NULL;
        prog->now.current[id] = object; /* NULL if it died, or is of another class: then whatever needs it fails */
        if (object && mp_map_put(&prog->now.held_static, object, id) < 0) return false;
    }
    if (prog->target != MP_NO_OBJ && !guard_bind(prog, prog->target, call->target))
        return fail(prog, guard_id_of(prog, GUARD_ID_SIGNATURE));
    for (uint32_t i = 0; i < prog->n_slots; i++) {
        const guard_slot *slot = &prog->slots[i];
        PyObject *value = call->args[i];
        bool plain = slot->kind == GUARD_SLOT_SCALAR || slot->kind == GUARD_SLOT_TYPE;
        if (!(plain ? plain_slot_holds(prog, slot, value) : guard_bind(prog, slot->object, value)) &&
            !is_other_number(prog, guard_id_of(prog, GUARD_ID_SLOTS + i), numbers))
            return fail_slot(prog, i);
    }
    return true;
}

static bool walk_reads(mp_guard_program *prog, const mp_call *call, PyObject *numbers)
{
    if (!bind_roots(prog, call, numbers)) return false;
    for (uint32_t i = 0; i < prog->rec.n_reads; i++)
        if (!guard_read_holds(prog, i) && !is_other_number(prog, i, numbers)) return fail(prog, i);
    return true;
}

static void swap_bindings(mp_guard_program *prog)
{
    struct guard_binding binding = prog->now;
    prog->now = prog->spare;
    prog->spare = binding;
}

/* Evaluate all reads. If one fails, binding and blocks stay as they were: they may hold again next time. */
static bool walk_all(mp_guard_program *prog, const mp_call *call)
{
    swap_bindings(prog);
    if (!walk_reads(prog, call, NULL)) {
        swap_bindings(prog);
        return false;
    }
    prog->bound = true;
    for (uint32_t i = 0; i <= prog->n_slots; i++) guard_block_clear(&prog->blocks[i]);
    /* A program whose outside objects are new in every call would build its proof for nothing: try less and less often. */
    uint32_t n = prog->walks_in_row++;
    if (n < 4 || (n & 15) == 0) guard_block_build(prog, 0); /* failing only means walking again */
    return true;
}

/* -- Walk of some arguments ---------------------------------------------------------------------------------------------------- */

/* Slot i is to be walked: it is another object than last time, or there is no proof for it yet. */
static bool slot_stale(const mp_guard_program *prog, uint32_t i, PyObject *value)
{
    const guard_slot *slot = &prog->slots[i];
    if (slot->kind == GUARD_SLOT_LEAF) return value != prog->now.current[slot->object];
    return slot->kind == GUARD_SLOT_ROOT && (value != prog->now.current[slot->object] || !prog->blocks[1 + i].valid);
}

/* Bind the arguments anew, keeping what blocks have proven; then evaluate the reads of those that are stale. */
static bool walk_args(mp_guard_program *prog, const mp_call *call)
{
    map_clear(&prog->now.held_args);
    uint8_t stale_room[64], *stale = prog->n_slots <= sizeof stale_room ? stale_room : PyMem_Malloc(prog->n_slots);
    bool *again = (bool *)stale, holds = stale != NULL;
    for (uint32_t i = 0; holds && i < prog->n_slots; i++) again[i] = slot_stale(prog, i, call->args[i]);
    uint32_t repeated = 0; /* bit per slot: the same object as last time, but without proof */
    for (uint32_t i = 0; holds && i < prog->n_slots && i < 32; i++)
        if (again[i] && prog->slots[i].kind == GUARD_SLOT_ROOT &&
            call->args[i] == prog->now.current[prog->slots[i].object])
            repeated |= 1u << i;
    for (uint32_t i = 0; holds && i < prog->n_arg_objects; i++) {
        mp_obj_id id = prog->arg_objects[i];
        PyObject **current = &prog->now.current[id];
        if (again[prog->objects[id].group - 1]) *current = NULL;
        if (*current && !prog->objects[id].noalias) holds = mp_map_put(&prog->now.held_args, *current, id) == 0;
    }
    for (uint32_t i = 0; holds && i < prog->n_slots; i++)
        if (again[i] && !guard_bind(prog, prog->slots[i].object, call->args[i])) holds = fail_slot(prog, i);
    for (uint32_t i = 0; holds && i < prog->n_slots; i++) {
        if (!again[i] || prog->slots[i].kind != GUARD_SLOT_ROOT) continue;
        guard_block_clear(&prog->blocks[1 + i]);
        for (uint32_t j = prog->group_start[1 + i]; holds && j < prog->group_start[2 + i]; j++)
            if (!guard_read_holds(prog, prog->group_reads[j])) holds = fail(prog, prog->group_reads[j]);
        if (holds && i < 32 && repeated & (1u << i)) guard_block_build(prog, 1 + i);
    }
    /* What was bound before the failure must not pass for proven next time. */
    for (uint32_t i = 0; !holds && stale && i < prog->n_slots; i++)
        if (again[i]) {
            prog->now.current[prog->slots[i].object] = NULL;
            guard_block_clear(&prog->blocks[1 + i]);
        }
    if (stale != stale_room) PyMem_Free(stale);
    return holds;
}

/* All arguments that are new are leaf tensors and no argument has objects below it: the way back is a few comparisons. */
static bool bind_leaves(mp_guard_program *prog, const mp_call *call)
{
    for (uint32_t i = 0; i < prog->n_slots; i++) {
        const guard_slot *slot = &prog->slots[i];
        PyObject *value = call->args[i];
        if (slot->kind != GUARD_SLOT_LEAF || value == prog->now.current[slot->object]) continue;
        if (mp_map_get(&prog->now.held_static, value) != MP_MAP_NONE) return fail_slot(prog, i);
        for (uint32_t j = 0; j < prog->n_slots; j++)
            if (j != i && call->args[j] == value && prog->slots[j].kind == GUARD_SLOT_LEAF) return fail_slot(prog, i);
    }
    for (uint32_t i = 0; i < prog->n_slots; i++)
        if (prog->slots[i].kind == GUARD_SLOT_LEAF) prog->now.current[prog->slots[i].object] = call->args[i];
    return true;
}

/* -- The check ---------------------------------------------------------------------------------------------------------------- */

/* 1 holds, 0 a miss, -1 walk everything. */
static int check_slots(mp_guard_program *prog, const mp_call *call)
{
    bool stale = false;
    for (uint32_t i = 0; i < prog->n_slots; i++) {
        const guard_slot *slot = &prog->slots[i];
        PyObject *value = call->args[i];
        switch ((guard_slot_kind)slot->kind) {
        case GUARD_SLOT_SCALAR:
        case GUARD_SLOT_TYPE:
            if (!plain_slot_holds(prog, slot, value)) return fail_slot(prog, i);
            break;
        case GUARD_SLOT_LEAF:
            if (Py_TYPE(value) != slot->type) return fail_slot(prog, i);
            if (slot->read != MP_NO_READ && !guard_tensor_same(value, prog->rec.reads[slot->read].meta))
                return fail_slot(prog, i);
            if (value != prog->now.current[slot->object]) stale = true;
            break;
        case GUARD_SLOT_ROOT: {
            if (Py_TYPE(value) != slot->type) return fail_slot(prog, i);
            int same = slot_stale(prog, i, value) ? -1 : guard_block_check(prog, 1 + i);
            if (!same) return 0;
            if (same < 0) {
                guard_block_clear(&prog->blocks[1 + i]);
                stale = true;
            }
            break;
        }
        case GUARD_SLOT_OTHER: break; /* below: the object it must be may not be bound yet */
        }
    }
    if (stale && prog->crossed) return -1;
    if (stale && !(prog->roots ? walk_args(prog, call) : bind_leaves(prog, call))) return 0;
    for (uint32_t i = 0; i < prog->n_slots; i++)
        if (prog->slots[i].kind == GUARD_SLOT_OTHER && !guard_bind(prog, prog->slots[i].object, call->args[i]))
            return prog->crossed ? -1 : fail_slot(prog, i);
    return 1;
}

/* Group 0 is looked at before the arguments that hold these objects: do they live? */
static bool unheld_live(const mp_guard_program *prog)
{
    for (uint32_t i = 0; i < prog->n_unheld; i++)
        if (mp_object_get(&prog->rec.objects[prog->unheld[i]]) != prog->now.current[prog->unheld[i]]) return false;
    return true;
}

static int check_reads(mp_guard_program *prog, const mp_call *call)
{
    if (prog->bound && prog->blocks[0].valid && unheld_live(prog) &&
        (prog->target == MP_NO_OBJ || call->target == prog->now.current[prog->target])) {
        int same = guard_block_check(prog, 0);
        if (!same) return 0;
        if (same > 0) {
            prog->walks_in_row = 0;
            same = check_slots(prog, call);
            if (same >= 0) return same;
        }
    }
    return walk_all(prog, call);
}

int mp_guard_check(mp_guard_program *prog, const mp_call *call, PyObject **bound, mp_guard_id *miss)
{
    int holds = 0;
    if (prog->n_temps) release_temps(prog);
    if (!signature_same(prog, call))
        prog->failed = guard_id_of(prog, GUARD_ID_SIGNATURE);
    else if (prog->torch_state && !mp_torch_state_same(prog->torch_state, NULL))
        prog->failed = guard_id_of(prog, GUARD_ID_TORCH_STATE);
    else
        holds = check_reads(prog, call);
    if (holds && prog->overlaps && !guard_overlaps_hold(prog, prog->now.current))
        holds = fail(prog, guard_id_of(prog, GUARD_ID_OVERLAP));
    for (uint32_t i = 0; holds && i < prog->n_wanted; i++) {
        const mp_object *object = &prog->rec.objects[prog->wanted[i]];
        PyObject *current = prog->now.current[prog->wanted[i]];
        if (prog->objects[prog->wanted[i]].fixed && !object->owned && mp_object_get(object) != current) current = NULL;
        if (!current) holds = fail(prog, object->found_by != MP_NO_READ ? object->found_by : guard_id_of(prog, 0));
        bound[i] = current;
    }
    prog->order_of = NULL;
    if (prog->n_temps && !(holds && temps_wanted(prog, bound))) release_temps(prog);
    if (!holds && miss) *miss = prog->failed;
    return holds;
}

void mp_guard_other_numbers(mp_guard_program *prog, const mp_call *call, PyObject *names)
{
    if (!signature_same(prog, call)) return;
    if (prog->n_temps) release_temps(prog);
    swap_bindings(prog);
    walk_reads(prog, call, names);
    swap_bindings(prog);
    prog->order_of = NULL;
    if (prog->n_temps) release_temps(prog);
}
