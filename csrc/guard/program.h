/* The guard room's inside: what a guard program is made of, shared by its files and by nobody else.
**
** Files: compile.c (recording -> program, life), read.c (evaluate one read), walk.c (bind objects, evaluate all reads, the check itself),
** snapshot.c (words that prove the reads without evaluating them), tensor.c (tensor metadata in place), torch_state.c, describe.c,
** internals.c (layouts of interpreter objects that no header shows), debug.c (_C._guards).
**
** Terms. *Current*: the object that stands for a recorded object in the call being checked. *Fixed*: an object for which only itself will
** do (pins, types, whatever the program saw the identity of). *Group*: the objects found from the same root; group 0 is what the target
** and the pins reach, group 1 + i what argument slot i reaches. *Slot*: an argument, positional then keyword.
*/
#ifndef MP_GUARD_PROGRAM_H
#define MP_GUARD_PROGRAM_H
#include "guard/guard.h"
#include "trace/map.h"

typedef struct {
    uint32_t group;
    uint32_t
        first_read; /* chain of the reads that this object owns, in recorded order (guard_read_info.next) or MP_NO_READ */
    uint32_t last_read;
    bool fixed;
    bool noalias;  /* tuples, frozensets, bound methods, scalars: two recorded objects may be the same one now */
    uint8_t proof; /* GUARD_PROOF_ bits, see snapshot.c */
} guard_object;

typedef struct {
    uint32_t next;     /* next read of the same owner, or MP_NO_READ */
    Py_hash_t hash;    /* of key; -1: look for the key by identity */
    PyObject *dunders; /* owned: TYPE_DUNDERS, what the special methods were at compile */
} guard_read_info;

typedef enum {
    GUARD_SLOT_SCALAR, /* the same value */
    GUARD_SLOT_TYPE,   /* never used, or only as a symbol: the same type */
    GUARD_SLOT_LEAF,   /* a tensor of which nothing but metadata was read: checked directly, whichever object it is */
    GUARD_SLOT_ROOT,   /* the root of group 1 + slot */
    GUARD_SLOT_OTHER,  /* an object that belongs to another group: the same argument twice, a fixed object, ... */
} guard_slot_kind;

typedef struct {        /* one argument */
    uint8_t kind;       /* guard_slot_kind */
    mp_obj_id object;   /* LEAF, ROOT, OTHER */
    uint32_t read;      /* of SCALAR or LEAF: the read that is checked, or MP_NO_READ */
    PyObject *scalar;   /* owned: SCALAR */
    bool very;          /* SCALAR: this very object, not an equal one */
    PyTypeObject *type; /* owned */
} guard_slot;

/* -- Snapshot ---------------------------------------------------------------------------------------------------------- */

typedef uint64_t __attribute__((may_alias)) guard_cell; /* a word of some object: a pointer, a size, a version */

typedef struct {
    const guard_cell *address; /* into the current objects */
    uint64_t expected;
} guard_word;

enum { GUARD_NO_VERSION, GUARD_TYPE_VERSION, GUARD_FUNCTION_VERSION };

typedef struct {     /* what a word stands for: for renewal and for people */
    uint32_t read;   /* the read it proves */
    uint32_t kept;   /* index into `kept` of the scalar it expects, or UINT32_MAX */
    bool structural; /* other words' addresses depend on it: if it differs, the block must be made again */
    uint8_t version; /* a version that is not always there: GUARD_NO_VERSION, ... */
} guard_origin;

typedef struct { /* a read that no words can prove: evaluated when the words before `position` have been compared */
    uint32_t position, read;
} guard_stop;

typedef struct {
    PyObject *tensor; /* borrowed: current */
    const mp_tensor_meta *meta;
    uint32_t read;
} guard_tensor;

typedef struct { /* proof for one group */
    guard_word *words;
    guard_origin *origins; /* parallel to words */
    guard_stop *stops;
    guard_tensor *tensors;
    PyObject **kept; /* owned: scalars that words compare by address, so that such an address cannot be reused */
    uint32_t n_words, room_words, n_stops, room_stops, n_tensors, room_tensors, n_kept, room_kept;
    bool valid;
} guard_block;

/* -- Program ------------------------------------------------------------------------------------------------------------- */

struct mp_guard_program {
    mp_recording rec; /* owned copies of objects, reads and sites; everything else zero */
    guard_object *objects;
    guard_read_info *reads;
    uint32_t *group_reads; /* read numbers sorted by group, in recorded order within each */
    uint32_t *group_start; /* [groups + 1] into group_reads */
    uint32_t *arg_objects; /* the objects of groups other than 0 */
    uint32_t n_arg_objects;
    guard_slot *slots;
    uint32_t n_slots, n_positional;
    PyObject *kwnames; /* owned tuple or NULL */
    mp_obj_id target;  /* or MP_NO_OBJ */
    mp_obj_id *wanted;
    uint32_t n_wanted;
    mp_obj_id *fixed; /* the fixed objects, for binding them at the start of a walk */
    uint32_t n_fixed;
    mp_obj_id *unheld; /* fixed objects in group 0 that nothing looked at need hold: they may have died */
    uint32_t n_unheld;
    struct guard_overlaps *overlaps; /* owned; NULL: nothing is written in place */
    PyObject *torch_state;           /* owned or NULL */
    bool crossed; /* groups depend on each other's objects: only ever walk them all, in recorded order */
    bool roots;   /* there are ROOT slots */

    /* The binding: current objects and the way back. `spare` is what a walk builds; a walk that succeeds swaps them. */
    struct guard_binding {
        PyObject **current;            /* [n_objects] borrowed; valid as far as the blocks are; NULL: not bound */
        mp_map held_static, held_args; /* current pointer -> object, of group 0 and of the other groups */
    } now, spare;
    guard_block *blocks;   /* [1 + n_slots] by group */
    bool strict;           /* see guard_read_same */
    bool bound;            /* a walk has succeeded: `now` is meaningful as far as blocks are valid */
    uint32_t walks_in_row; /* whole walks without a hit of block 0 between them */

    PyObject **temps; /* owned: values that a walk made, released at the end of the check */
    uint32_t n_temps, room_temps;
    PyObject *order_of; /* KEY_AT: the dict that order_next belongs to. Borrowed, within one check */
    Py_ssize_t order_position, order_next;
    mp_guard_id failed; /* what failed last */
};

/* Guard ids: reads by their number, then these. */
enum { GUARD_ID_SIGNATURE, GUARD_ID_TORCH_STATE, GUARD_ID_OVERLAP, GUARD_ID_SLOTS };
static inline mp_guard_id guard_id_of(const mp_guard_program *prog, uint32_t which)
{ return prog->rec.n_reads + which; }

/* -- read.c ---------------------------------------------------------------------------------------------------------------- */

/* Does this read hold for the current objects? Binds what it finds if that is not bound yet. Never raises. */
bool guard_read_holds(mp_guard_program *prog, uint32_t read);
/* As it, but an object that was found must be the current one itself, not one that could stand for it. */
bool guard_read_same(mp_guard_program *prog, uint32_t read);
PyObject *guard_type_dunders(PyTypeObject *type); /* owned tuple, or NULL without exception */
/* Bind `value` (borrowed) to recorded object `object`, or compare if it is bound. */
bool guard_bind(mp_guard_program *prog, mp_obj_id object, PyObject *value);
/* Field of a C object that a member descriptor or a known struct gives, or NULL if it has no address. */
PyObject **guard_member_address(PyObject *owner, PyObject *name);
PyObject **guard_slot_address(PyObject *owner, PyObject *descriptor);
PyTypeObject *guard_builtin_base(PyTypeObject *type); /* nearest base that no class statement made */

/* -- snapshot.c ---------------------------------------------------------------------------------------------------------- */

void guard_block_clear(guard_block *block);
/* Make the block of `group` from the current objects, all of whose reads have just been found to hold. -1 (no exception) if it cannot be. */
int guard_block_build(mp_guard_program *prog, uint32_t group);
/* 1 holds; 0 something that was read has changed; -1 another object is in the place of a recorded one, only a walk can tell. */
int guard_block_check(mp_guard_program *prog, uint32_t group);

/* -- tensor.c ------------------------------------------------------------------------------------------------------------ */

int guard_tensor_load(void); /* 0, or -1 with an exception: torch not there. Idempotent */
bool guard_tensor_same(PyObject *tensor,
                       const mp_tensor_meta *meta); /* `tensor` is a tensor; its Python type is checked elsewhere */
bool guard_tensor_in_place(void);                   /* are flags read in place rather than asked of torch? */
bool guard_tensor_is(PyObject *object);             /* torch.Tensor or a subclass */
mp_tensor_meta *guard_meta_copy(const mp_tensor_meta *meta); /* one block, PyMem_Free; NULL without memory */
/* Strided and its elements' place in memory known: first byte and bytes [*begin, *end) they lie in. */
bool guard_tensor_range(PyObject *tensor, char **first, char **begin, char **end);
/* Of how many tensors a sparse one consists (values and where they belong); 0: it is another one. And the memory of number `part` of them,
** from 1; of 0: of the tensor itself. False: unknown. */
enum { GUARD_MOST_PARTS = 3 };
int guard_tensor_parts(PyObject *tensor);
bool guard_tensor_part_range(PyObject *tensor, int part, char **first, char **begin, char **end);
const char *guard_tensor_difference(PyObject *tensor,
                                    const mp_tensor_meta *meta); /* what differs first; static; NULL: nothing */

/* -- symbols.c ------------------------------------------------------------------------------------------------------------- */

/* An exported symbol of a library that is already mapped, such as ("libc10.", "_Z..."). NULL: not there. */
void *guard_symbol(const char *library, const char *name);

/* -- overlap.c: memory that must not or must overlap as it did, where an input is written to -------------------------------- */

/* 0 and *out (NULL if no input is written to), or -1 with *why set. */
int guard_overlaps_new(const mp_recording *recording, struct guard_overlaps **out, mp_reason *why);
bool guard_overlaps_hold(mp_guard_program *prog, PyObject *const *current);
void guard_overlaps_free(struct guard_overlaps *overlaps);

/* -- internals.c ------------------------------------------------------------------------------------------------------------- */

/* Of a type with managed dicts: where an instance points to its inline values, and the number of names its type shares. NULL: it has none. */
PyObject **guard_values_pointer(PyObject *object);
const Py_ssize_t *guard_shared_names(PyTypeObject *type);

#endif
