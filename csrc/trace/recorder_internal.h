/* The recorder's inside, shared by the files of trace and by nobody else.
**
** Files: record.c (life, reference graph, frames, sites), reads.c (locations, reads, writes), scalars.c, recording.c (the finished thing),
** opcodes.c (instructions), attributes.c, containers.c, calls.c, effects.c, deferred.c, ops*.c, numbers.c, numbers_met.c, counting.c, path.c.
*/
#ifndef MP_TRACE_RECORDER_INTERNAL_H
#define MP_TRACE_RECORDER_INTERNAL_H
#include "trace/map.h"
#include "trace/recorder.h"

typedef struct mp_deferred mp_deferred;

typedef struct mp_rec_frame { /* one frame on the observed stack */
    void *id;                 /* as in mp_frame; the outermost entry is the recorder itself: the caller of the target */
    PyCodeObject *code;       /* borrowed from the frame; NULL in the outermost */
    PyObject *globals;        /* borrowed likewise */
    int offset;               /* of the instruction now running */
    int site_offset;          /* offset that `site` was made for, or -1 */
    uint32_t site;
    bool wrote;        /* the instruction now running writes to an outside location */
    bool in_c;         /* it calls a C function that may use what Python functions give it */
    bool in_unknown_c; /* and may look into instances of the program's classes */
    bool
        converts; /* it is int(x), float(x) or f"{x}": the number or text that a tensor gives is what the program gets */
    bool shows;   /* it asks the program's code for text, which it only passes on: str(object) */
    int opcode;   /* it, as far as instructions are shown to the recorder */
    PyObject *kwnames;  /* borrowed from the code's constants: names given by KW_NAMES for the CALL to come, or NULL */
    mp_pending pending; /* to be called when the instruction now running has completed, or NULL */
    PyObject *pending_data; /* owned, may be NULL */
    bool must;              /* it must complete: that it raises ends the trace */
    bool told;              /* the handler is told, by NULL, that it raised */
} mp_rec_frame;

enum { /* bits of object_state */
       MP_STATE_OWNED =
           1, /* its contents were read whole or are the call's own: nothing of them is an outside read any more */
       MP_STATE_APPENDED = 2,       /* list: blindly appended to */
       MP_STATE_WROTE_KEYS = 4,     /* dict: items were stored */
       MP_STATE_DELETED = 8,        /* dict: an item was deleted, so that order no longer shows what it was */
       MP_STATE_WROTE_ATTRS = 16,   /* instance without a dict: attributes were stored */
       MP_STATE_CALLED = 32,        /* function: what calling it reads has been read */
       MP_STATE_READ_TYPE = 64,     /* its TYPE, */
       MP_STATE_READ_DUNDERS = 128, /* TYPE_DUNDERS */
       MP_STATE_READ_DICT = 256,    /* and DICT have been read */
};

typedef struct { /* a location that was read or written; see reads.c */
    uint32_t owner;
    uint8_t family; /* kinds that mean the same place */
    bool has;       /* a dict key's presence was read */
    bool written;   /* by the call, before it was read */
    bool present;   /* of a written dict key: was it there before the first write? */
    PyObject *key;  /* owned, or NULL */
    uint32_t key_obj;
    uint32_t read;  /* index of the read, or MP_NO_READ */
    uint32_t write; /* index of the write, or UINT32_MAX */
    uint32_t next;  /* next location of the same owner, or UINT32_MAX */
} mp_location;

struct mp_recorder {
    mp_recording *recording; /* owned until mp_rec_finish gives it away; NULL when it was freed */
    mp_reason why;           /* code NONE: not abandoned */
    bool finished;
    bool given_away; /* `recording` belongs to someone else */
    bool engine;     /* torch's autograd engine runs: backward passes of the program's own functions are its business */
    int in_op;       /* depth of torch functions now running */
    PyCodeObject
        *whole; /* borrowed: of the Python function that the running instruction calls as one operator, or NULL */

    /* Reference graph: pointer -> external object. An entry counts only while objects[id].watch still is that object. */
    mp_map objects;
    uint16_t *object_state;  /* [n_objects] MP_STATE_ bits */
    uint32_t *object_places; /* [n_objects] head of the chain of its locations */
    uint32_t *object_base;   /* [n_objects] list: length before the first append */
    uint32_t state_room;     /* allocated length of the three arrays above */

    /* Objects that the call is known to have made and that must not be taken for pins (functions, types, ...). */
    mp_map internals;
    PyObject **internal_watch; /* owned weakrefs or objects */
    uint32_t n_internals;

    /* Tensors: pointer -> value. An entry counts only while value_watch[i] still is that tensor. */
    mp_map tensors;
    struct {
        PyObject *watch;
        mp_value_id value;
    } *bound; /* watch owned */
    uint32_t n_bound;

    mp_location *locations;
    uint32_t n_locations;
    uint32_t *location_table; /* open addressing: index + 1 into locations, 0 free */
    uint32_t location_mask;

    mp_rec_frame *frames; /* [0] is the caller of the target */
    uint32_t n_frames, frames_room;
    mp_map site_of; /* hash of (code, offset, caller) -> chain of sites */
    uint32_t *site_next;
    int *site_offset; /* [n_sites] until finish turns them into lines */

    uint32_t copied;   /* the first external object whose address the module copy asked for, its number + 1 */
    PyObject *running; /* owned tuple of the codes on the stack when abandoned, or NULL */
    PyObject *target;  /* owned */
    PyObject *handled; /* owned: the exception that was being handled when the call began, or NULL */
    double started;

    struct mp_oracle *oracle; /* owned, NULL but in tests: see oracle.c */
    mp_deferred *deferred;    /* owned by deferred.c, NULL until an effect is put off */
    PyObject *changing;       /* owned set of names, or NULL: see mp_rec_changing */
    PyObject **own_args;      /* owned array of owned: the call's arguments as the program is given them, or NULL */
    size_t n_own_args;
    bool in_instruction;      /* an instruction's handler runs */
    bool gives_read;          /* the instruction gives the very object that its handler reads */
    uint32_t number_reads[2]; /* reads of changing numbers that it has met */
    int n_number_reads;
    struct mp_numbers *numbers;   /* owned by numbers.c, NULL while there are none */
    struct mp_arrays *arrays;     /* owned by arrays.c, NULL while there are none */
    struct mp_op_state *op_state; /* owned by ops.c: allocated at first use, freed by mp_rec_free_op_state */
};

/* -- Growing arrays (record.c) -------------------------------------------------------------------------------------------- */

/* A zeroed new last element of *array (elements of `size` bytes, *count of them, always grown by this function), or NULL after having
** abandoned for lack of memory. */
void *mp_rec_grow(mp_recorder *rec, void *array_address, uint32_t *count, size_t size);

/* -- Reference graph (record.c) ------------------------------------------------------------------------------------------- */

/* Make `object` external, found by read `found_by` (or MP_NO_READ). Its id, or MP_NO_OBJ after abandoning. */
mp_obj_id mp_rec_new_object(mp_recorder *rec, PyObject *object, mp_root root, uint32_t found_by);
/* The call made this object (a function, a type, a module, a dict of globals): it is never a pin. */
void mp_rec_internal(mp_recorder *rec, PyObject *object);
bool mp_rec_is_internal(mp_recorder *rec, PyObject *object);
/* Is it one of those whose identity is what the program sees: types, modules, C functions, descriptors, code? */
bool mp_is_identity_type(PyObject *object);
/* A new weak reference to `object`, or the object itself where it has none. Owned; NULL without exception if out of memory. */
PyObject *mp_watch(PyObject *object);
/* What is watched, or NULL if it is gone. Borrowed. */
PyObject *mp_watched(PyObject *watch);

/* Tensor `tensor` is value `value` from now on (rebinding is allowed). */
void mp_rec_bind_value(mp_recorder *rec, PyObject *tensor, mp_value_id value);
mp_value_id mp_rec_find_value(mp_recorder *rec, PyObject *tensor); /* or MP_NO_VALUE */

/* -- Locations, reads, writes (reads.c) ------------------------------------------------------------------------------------- */

/* Register the read of a location and return the new entry for the caller to fill (was = ANY; key is set), or NULL if the owner is not
** external, the location is known, or the recording was abandoned. For kinds that mp_rec_read cannot fill, such as TENSOR_META. */
mp_read *mp_rec_read_entry(mp_recorder *rec, PyObject *owner, mp_read_kind kind, PyObject *key);
/* The BASE_VALUE read of a new external object, if it is an instance of a subclass of a scalar type: C code may look at the value at any time. */
void mp_rec_read_base_value(mp_recorder *rec, PyObject *object);
/* The VALUE read of a scalar argument, object `id`. */
void mp_rec_read_argument(mp_recorder *rec, mp_obj_id id, PyObject *value);
/* The read of how many items an outside list held before the call, and how many more the call has appended; MP_NO_READ: it is none that was only
** appended to. first: nothing was told of it before. */
uint32_t mp_rec_length(mp_recorder *rec, PyObject *list, Py_ssize_t *more, bool *first);
/* Take that back, before anything else was read. */
void mp_rec_forget_argument(mp_recorder *rec, mp_obj_id id);
/* Drop the writes that later ones made void. */
void mp_rec_finish_writes(mp_recorder *rec);
/* Was the location read or written before? */
bool mp_rec_known(mp_recorder *rec, PyObject *owner, mp_read_kind kind, PyObject *key);

/* -- Scalars and keys (scalars.c) ------------------------------------------------------------------------------------------------ */

bool mp_is_decimal(PyObject *value); /* its arithmetic reads the thread's decimal context */
void mp_rec_decimal(mp_recorder *rec,
                    PyObject *value); /* the scalar is computed with: what else that reads (containers.c) */
void mp_scalars_prepare(void);        /* find torch's and numpy's scalar types; called when a recording starts */
/* A key whose meaning is fixed: a scalar, a type, module or C callable, or a tuple of those. */
bool mp_is_constant_key(PyObject *key);
bool mp_key_same(PyObject *a, PyObject *b); /* constant keys, NULL for none */
uint32_t mp_key_hash(PyObject *key);        /* equal for the same keys */

/* -- Frames and sites (record.c) ---------------------------------------------------------------------------------------------- */

uint32_t mp_rec_site(mp_recorder *rec); /* of the instruction now running; UINT32_MAX outside any */
mp_rec_frame *mp_rec_frame_of(mp_recorder *rec, const mp_frame *frame); /* its entry, or NULL */
bool mp_is_library_code(PyCodeObject *code);   /* torch's or the standard library's, or frozen */
bool mp_is_installed_code(PyCodeObject *code); /* such, or an installed package's */
bool mp_is_installed_file(const char *file);   /* likewise, of a module's file */
bool mp_is_copy_code(PyCodeObject *code);      /* of the standard library's module copy */
mp_rec_frame *mp_rec_push_frame(mp_recorder *rec, const mp_frame *frame); /* NULL after abandoning */
void mp_rec_pop_frame(mp_recorder *rec, const mp_frame *frame);           /* and everything above it */

/* -- The oracle (oracle.c), for tests ----------------------------------------------------------------------------------------- */

int mp_oracle_start(mp_recorder *rec); /* 0, or -1 with an exception */
void mp_oracle_look(mp_recorder *rec, const mp_frame *frame, int opcode);
PyObject *mp_oracle_holes(const mp_recorder *rec); /* owned list of str, or NULL */
void mp_oracle_free(mp_recorder *rec);

/* -- Deferred effects (deferred.c) -------------------------------------------------------------------------------------------- */

/* The instruction of `frame` is a call whose inside is no part of the recording. early: later runs make it before everything else. */
void mp_deferred_begin(mp_recorder *rec, const mp_frame *frame, bool early);
/* Likewise, and nothing is asked of what it looks at: it has been recorded, or every run makes the same call at that place. */
void mp_deferred_silent(mp_recorder *rec, const mp_frame *frame);
/* The instruction of this frame has ended, or the frame has: so has the deferred call that it made, if it made one. */
void mp_deferred_ended(mp_recorder *rec, void *frame, bool raised);
/* The program is about to read or write (owner, key), key NULL for all of it: abandons if that shows that an effect is late. Only to be called
** where rec->deferred. */
void mp_deferred_conflict(mp_recorder *rec, PyObject *owner, PyObject *key, bool write);
bool mp_deferred_filters_changed(mp_recorder *rec); /* has the call stored warnings.filters? */
void mp_deferred_warned(mp_recorder *rec);
/* Was the object made by an effect of this call, so that only effects may use it? */
bool mp_deferred_made(mp_recorder *rec, PyObject *object);
bool mp_deferred_files(const mp_recorder *rec);            /* has the call written files? */
void mp_deferred_changed(mp_recorder *rec, void *storage); /* the data of tensors there is another from now on */
void mp_rec_finish_deferred(mp_recorder *rec);             /* last checks; may abandon */
void mp_rec_free_deferred(mp_recorder *rec);

/* -- Others' ------------------------------------------------------------------------------------------------------------------ */

void mp_rec_finish_ops(mp_recorder *rec);    /* ops.c: last checks when the call has returned; may abandon */
void mp_rec_free_op_state(mp_recorder *rec); /* ops.c */
int mp_trace_init_ref(PyObject *module);     /* recording.c: _C.Ref */

#endif
