/* Recorder: turns events of an observed execution into a recording. Used inside trace (and by observe, which feeds it).
**
** All functions are called with the GIL held, at points where the interpreter is between two instructions. They never run user
** code (exact type checks, raw lookups), never raise: a pending exception is kept, and trouble is reported once by mp_rec_abandon, after which
** the observed program goes on undisturbed and every further event is ignored. Object arguments are borrowed.
*/
#ifndef MP_TRACE_RECORDER_H
#define MP_TRACE_RECORDER_H
#include "trace/recording.h"

typedef struct mp_recorder mp_recorder;

/* -- Life (dispatch) ------------------------------------------------------------------------------------------------- */

/* Start a recording of target(*args, **kwargs). kwnames: tuple or NULL; args holds positional then keyword values, vectorcall
** style. Owned; NULL with *why set. */
mp_recorder *mp_rec_new(PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames, mp_reason *why);

/* The caller evaluates the recording's checks (mp_check): where the program looks at numbers or lists of tensor data, record that as a
** check instead of giving up. refuse_values, after it: only of bools and ints. */
void mp_rec_accept_checks(mp_recorder *rec);
void mp_rec_refuse_values(mp_recorder *rec);

/* Before the call: ints and floats from outside that were other ones in earlier calls, by name (mp_recording_number_name). `names`: a set,
** borrowed. Their values are inputs of the graph as far as they are not looked at. Returns the call's arguments, some of which may be
** replaced by equal objects: as given, or the recorder's own. */
PyObject *const *mp_rec_changing(mp_recorder *rec, PyObject *names, PyObject *const *args, size_t n_args);

/* -- What was drawn in vain (draws_kept.c) ---------------------------------------------------------------------------- */

/* A call of the user's begins in this thread, and ends; `outer` is the owned memory of the call that it is part of. */
PyObject *mp_draws_begin(void);
void mp_draws_end(PyObject *outer); /* keeps a pending exception */
/* A run that was thrown away was given this. Leaves no exception. */
void mp_draws_keep(PyObject *func, PyObject *args, PyObject *kwargs, PyObject *result);
/* The first of what such runs were given by this draw, which is forgotten. Owned; NULL without an exception: draw it. */
PyObject *mp_draws_take(PyObject *func, PyObject *args, PyObject *kwargs);

/* Give up: the recording will be thrown away. `site` is taken from the current frame. First reason wins. */
void mp_rec_abandon(mp_recorder *rec, mp_reason_code code, const char *detail, ...)
    __attribute__((format(printf, 3, 4)));
bool mp_rec_abandoned(const mp_recorder *rec);
const mp_reason *mp_rec_reason(const mp_recorder *rec);
PyObject *mp_rec_running(
    const mp_recorder
        *rec); /* codes of the frames that ran when it was abandoned, outermost first: borrowed tuple or NULL */

/* End: the call returned `result` (borrowed). Returns an owned recording, or NULL with *why set. The recorder stays valid (for
** mp_recording_find_*) until mp_rec_free. */
mp_recording *mp_rec_finish(mp_recorder *rec, PyObject *result, mp_reason *why);
void mp_rec_free(mp_recorder *rec);
/* After it was abandoned: drop the objects that it holds, so that those that the program lets go from here on die where they would. May run
** anyone's finalizers. Nothing else may be asked of the recorder afterwards but the reason. */
void mp_rec_let_go(mp_recorder *rec);

/* -- Events from observe ---------------------------------------------------------------------------------------------- */

typedef struct mp_frame { /* what observe shows of an interpreter frame; all borrowed, valid during the event */
    void *id;             /* identity of the frame while it lives */
    PyCodeObject *code;
    PyObject *func;                        /* the function object or NULL */
    PyObject *globals, *builtins, *locals; /* locals NULL in optimised frames */
    PyObject **localsplus;                 /* fast locals, cells, free variables */
    PyObject **stack;                      /* bottom of the value stack */
    int depth;                             /* values on it */
    int offset;                            /* instruction index in code units */
} mp_frame;

void mp_rec_frame_enter(
    mp_recorder *rec, const mp_frame *frame); /* before the first instruction; also on each resumption of a generator */
void mp_rec_frame_exit(mp_recorder *rec, const mp_frame *frame,
                       PyObject *value); /* value NULL: unwinding with an exception */
/* Before an instruction runs. opcode is deoptimised, oparg includes EXTENDED_ARG. */
void mp_rec_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg);
/* The frame's running instruction is at `offset`: for the place of a reason, where the recorder was not shown the instruction. */
void mp_rec_at(mp_recorder *rec, void *frame_id, int offset);
/* A pending operation (see mp_rec_pend) of this frame has completed: `result` is on top of the stack, and may be replaced by storing an
** owned reference to *slot. raised: it did not complete. */
void mp_rec_result(mp_recorder *rec, const mp_frame *frame, PyObject **slot, bool raised);

/* Does the recorder want to see this opcode? */
bool mp_rec_opcode_matters(int opcode);
/* The call of the target itself: before it, and with what it returned (NULL: it raised) while still observing. */
void mp_rec_call_target(mp_recorder *rec, PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames);
void mp_rec_target_returned(mp_recorder *rec, PyObject *result);
void mp_rec_count(mp_recorder *rec, uint64_t opcodes); /* events seen, for statistics */
/* May this code run inside a torch operator without being noticed? */
bool mp_rec_op_may_run(mp_recorder *rec, PyCodeObject *code);
/* Is this torch's own Python code, by its file? Keeps a pending exception only if the file's name is valid text, as it always is. */
bool mp_rec_is_torch_code(PyCodeObject *code);

/* Does the frame that is about to start belong to a call of a Python function that is recorded as one operator? Asked once a call. */
bool mp_rec_is_whole(mp_recorder *rec, PyCodeObject *code);

/* torch function seen by the mode: before and after the real call. op_begin returns a token for op_end. While a torch function runs,
** observe sends no instruction events. *out NULL: it raised; else it is owned, and may be replaced by an equal object. */
void *mp_rec_op_begin(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs);
void mp_rec_op_end(mp_recorder *rec, void *token, PyObject **out);
/* Before op_end, where it raised `error`, with no exception pending. Runs Python code, which observe must not show. */
void mp_rec_op_raised(mp_recorder *rec, void *token, PyObject *error);

/* -- The reference graph (record.c; used by opcodes, attributes, containers, effects, ops) ----------------------------- */

bool mp_is_type_alias(
    PyObject *object); /* list[int], int | str: types in all but name, immutable, read as a whole by isinstance */
bool mp_is_scalar(
    PyObject *value); /* immutable by exact type: None, bool, int, float, complex, str, bytes, Ellipsis, NotImplemented,
    dtype, device, layout, memory_format, torch.Size, range, slice of scalars, numpy scalars,
    dates and durations, Decimal; tuples are containers, not scalars */
/* A weak reference that equals another exactly where both refer to the same type or function: a key like its referent. */
bool mp_is_constant_ref(PyObject *key);
bool mp_scalar_same(PyObject *a,
                    PyObject *b); /* same exact type and value; 0.0 and -0.0 differ, NaN equals itself bitwise */

mp_obj_id mp_rec_find(mp_recorder *rec, PyObject *object); /* external object's id or MP_NO_OBJ */
mp_obj_id mp_rec_ensure(mp_recorder *rec,
                        PyObject *object); /* as find; types, modules, functions and builtins become pins */
/* A constant of the trace, from outside by whatever way; MP_NO_OBJ if the call is known to have made it, or after abandoning. */
mp_obj_id mp_rec_pin(mp_recorder *rec, PyObject *object, const char *name);
void mp_rec_identity(mp_recorder *rec, PyObject *object); /* the program saw which object this is */

/* Record that location (owner, kind, key) held `value` (NULL: missing). No effect if owner is not external, or the location was read or
** written before. Objects found become external. */
void mp_rec_read(mp_recorder *rec, PyObject *owner, mp_read_kind kind, PyObject *key, PyObject *value);
/* Do dicts, types and containers' lengths still hold what was read of them? After code that was not watched. */
bool mp_rec_reads_stay(mp_recorder *rec);
/* Record a write about to happen; value NULL: delete. No effect if owner is not external. */
void mp_rec_write(mp_recorder *rec, PyObject *owner, mp_write_kind kind, PyObject *key, PyObject *value);
void mp_rec_own(mp_recorder *rec,
                PyObject *container); /* contents about to change in bulk: read the whole, then CONTENTS write */
void mp_rec_append(mp_recorder *rec, PyObject *list, PyObject *value);
void mp_rec_effect(mp_recorder *rec, PyObject *callable, PyObject *args); /* deferred call; args as in a CALL write */
/* The recording holds only where func(*args), of constants, gives `result` again before the commit. No effect where checks are not accepted. */
void mp_rec_check_call(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *result);

/* -- Reads of Python's data model (attributes.c, containers.c) -------------------------------------------------------- */

PyObject *mp_raw_type_lookup(PyTypeObject *type, PyObject *name); /* MRO lookup, borrowed or NULL, no exception */
PyObject *mp_raw_dict(PyObject *object); /* instance dict, borrowed or NULL; see observe for unmaterialised ones */
void mp_rec_type(mp_recorder *rec, PyObject *object);           /* its exact type matters */
void mp_rec_type_dunders(mp_recorder *rec, PyTypeObject *type); /* C code may call its special methods */
void mp_rec_type_attr(mp_recorder *rec, PyTypeObject *type, PyObject *name);
void mp_rec_attr(mp_recorder *rec, PyObject *object, PyObject *name); /* getattr(object, name) is about to run */
void mp_rec_generic_attr(mp_recorder *rec, PyObject *object, PyObject *name);
void mp_rec_shown(mp_recorder *rec, PyObject *object); /* C code makes a text of it: the names in that */
void mp_rec_store_attr(mp_recorder *rec, PyObject *object, PyObject *name, PyObject *value); /* value NULL: delattr */
void mp_rec_generic_store(mp_recorder *rec, PyObject *object, PyObject *name, PyObject *value);
void mp_rec_subscript(mp_recorder *rec, PyObject *container, PyObject *key);
void mp_rec_raw_subscript(mp_recorder *rec, PyObject *container, PyObject *key);
void mp_rec_store_subscript(mp_recorder *rec, PyObject *container, PyObject *key, PyObject *value); /* NULL: delete */
void mp_rec_raw_store_subscript(mp_recorder *rec, PyObject *container, PyObject *key, PyObject *value);
void mp_rec_iterate(mp_recorder *rec, PyObject *object); /* iter(object): of a dict only the keys */
void mp_rec_contains(mp_recorder *rec, PyObject *container, PyObject *key);
void mp_rec_truth(mp_recorder *rec, PyObject *object);              /* bool(object), len(object) */
void mp_rec_whole(mp_recorder *rec, PyObject *container);           /* all of a container, one level */
void mp_rec_keys(mp_recorder *rec, PyObject *dict);                 /* a dict's keys, in order */
void mp_rec_deep(mp_recorder *rec, PyObject *object);               /* all of it, as far as C code may look */
void mp_rec_operand(mp_recorder *rec, PyObject *object, bool deep); /* operand of a binary operation or comparison */

/* -- Calls (calls.c, effects.c) ----------------------------------------------------------------------------------------- */

/* A call is about to run: reads what calling reads (methods unwrapped, type's __call__/__new__/__init__), classifies C callables by
** the effects table. kwnames: tuple or NULL, vectorcall style. Python functions need nothing here: they are frames. */
void mp_rec_call(mp_recorder *rec, const mp_frame *frame, PyObject *callable, PyObject *const *args, size_t nargs,
                 PyObject *kwnames);

/* Ask for mp_rec_result when the instruction now about to run in `frame` has completed. handler gets the result and may replace
** *slot. data is owned by the pending operation and released by handler or, if it raised, by free_data. */
typedef void (*mp_pending)(mp_recorder *rec, PyObject *data, PyObject **slot);
void mp_rec_pend(mp_recorder *rec, const mp_frame *frame, mp_pending handler, PyObject *data);
/* Likewise, for what has changed outside state that the recording says nothing of where it raises: then the trace ends. */
void mp_rec_pend_must(mp_recorder *rec, const mp_frame *frame, mp_pending handler, PyObject *data);
/* Likewise, and the handler is called with NULL where it raises. */
void mp_rec_pend_told(mp_recorder *rec, const mp_frame *frame, mp_pending handler, PyObject *data);
/* Does this frame's running instruction have a pending operation or store, so that mp_rec_result must be told of its end? */
bool mp_rec_wants_result(const mp_recorder *rec, const mp_frame *frame);

/* Is a call running that is an effect put off until the commit? What it does is no part of the program: observe tells of its frames only by
** mp_rec_unseen, before each instruction, and of its torch functions not at all. */
bool mp_rec_deferring(const mp_recorder *rec);
void mp_rec_unseen(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg);

/* -- Tensors (ops.c) -------------------------------------------------------------------------------------------------------- */

bool mp_is_tensor(PyObject *object); /* torch.Tensor or a subclass, by MRO, no user code */
void mp_rec_touch(mp_recorder *rec,
                  PyObject *tensor); /* a tensor is used: external ones become graph inputs, metadata is read */
mp_value_id mp_rec_value(mp_recorder *rec,
                         PyObject *tensor); /* its value, touching it; abandons (UNKNOWN_TENSOR) if unknown */
/* Record an operator seen at a CALL instruction rather than by the mode. `args`/`kwargs` real objects; out real result. */
bool mp_value_check(PyObject *object);  /* is it a _C.Value? */
uint32_t mp_index_of(PyObject *object); /* its number */
void mp_rec_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs, PyObject *out, bool state);
/* Owned template of `object` with tensors replaced by _C.Value, or NULL after mp_rec_abandon. */
PyObject *mp_rec_template(mp_recorder *rec, PyObject *object);

#endif
