/* What C callables do beyond what the watcher sees: the classes, the table's look-up, and the shape of a call.
**
** The table is keyed by the C function itself (a builtin's or method descriptor's ml_meth, a slot wrapper's slot function, a type), never
** by a name that a program could change. It is filled once per process, torch's part when torch is there; entries are never removed but
** by mp_effects_declare.
*/
#ifndef MP_TRACE_EFFECTS_H
#define MP_TRACE_EFFECTS_H
#include "trace/recorder_internal.h"

/* Classes of effects. Columns: name, what it means. The table effects_table.h uses the names. */
#define MP_EFFECT_CLASSES(X)                                                                                           \
    X(UNKNOWN, "nothing is known: the trace ends")                                                                     \
    X(PURE, "the result depends on the values of the arguments, as deep as they go")                                   \
    X(READS, "the result depends on the arguments and, if they are containers, on what is in them, one level")         \
    X(MAKES, "a new object that holds its arguments; nothing of them is read")                                         \
    X(NOTHING, "no effect that matters, and no result but None, True or the argument")                                 \
    X(ITERATES, "goes through its arguments: now, or later as an iterator or view over them")                          \
    X(KEYS, "as ITERATES, of dicts only over their keys")                                                              \
    X(CALLS, "as ITERATES, and calls those of its arguments that can be called, itself, from C")                       \
    X(STORES, "changes its first argument; the others become part of it unread")                                       \
    X(WRITES, "changes its first argument by the items of the others")                                                 \
    X(COMPARES, "changes its first argument after comparing, hashing or calling what is in it and in the others")      \
    X(TORCH, "a torch function: the mode shows it, else it is recorded from the call")                                 \
    X(STATE, "reads a mode that the guard's torch state covers")                                                       \
    X(STATE_CALL, "reads outside state, a scalar: the guard makes the same call")                                      \
    X(STATE_WRITE, "changes a torch mode: an operator of the graph")                                                   \
    X(OUTPUT, "shows its arguments as text: put off until the commit")                                                 \
    X(EFFECT, "an effect outside that the program does not look at: put off until the commit")                         \
    X(CLOCK, "the time: every run asks for it at that place of its graph")                                             \
    X(OPAQUE, "another result each time: random numbers, files, numpy")                                                \
    X(REFUSED, "known, and not traceable")                                                                             \
    X(SPECIAL, "has a handler of its own")                                                                             \
    /* torch functions as the mode shows them */                                                                       \
    X(OP, "computes tensors: an operator")                                                                             \
    X(SHAPES, "an operator whose size follows from the numbers it is given: a tensor in their place is data")          \
    X(COPIES, "makes a tensor of what it is given: a constant of the trace where that is")                             \
    X(FACTORY, "an operator whose result depends on sizes, types and numbers only: a constant of the trace")           \
    X(LIKE, "an operator that takes from its first tensor only size and type: a constant of the trace")                \
    X(RANDOM, "an operator that draws random numbers or leaves memory uninitialised: never a constant")                \
    X(META, "reads metadata of a tensor, which is guarded")                                                            \
    X(DATA, "reads data of a tensor")                                                                                  \
    X(SIZED, "an operator whose result's size is data")                                                                \
    X(ATTR, "reads state of a tensor that is neither metadata nor data: grad and the like")

typedef enum {
#define MP_EFFECT_CLASS(name, text) MP_EFFECT_##name,
    MP_EFFECT_CLASSES(MP_EFFECT_CLASS)
#undef MP_EFFECT_CLASS
        MP_EFFECT_CLASS_COUNT
} mp_effect_class;

typedef struct
{ /* a call as the effects see it: methods and partials unwrapped, `self` the first argument; all borrowed */
    mp_recorder *rec;
    const mp_frame *frame;
    PyObject *callable;
    PyObject *const *args; /* positional */
    Py_ssize_t nargs;
    PyObject *const *kwvalues;
    PyObject *kwnames; /* tuple or NULL */
    Py_ssize_t nkw;
} mp_call;

typedef void (*mp_effect_handler)(mp_call *call);

#define MP_EFFECT_DECLARED "declared" /* name of what the user has classified */

typedef struct {
    uint8_t effect;            /* mp_effect_class */
    mp_effect_handler handler; /* SPECIAL, or NULL */
    const char *name;          /* of the row, static or owned for ever */
} mp_effect;

/* Fill the table with what can be resolved now. False without memory. Leaves no exception. */
bool mp_effects_ready(void);

/* What the table says of a callable, of calling an instance of its type, or of a torch function that the mode shows. Borrowed or NULL. */
const mp_effect *mp_effect_of(PyObject *callable);
const mp_effect *mp_effect_of_type(PyTypeObject *type);     /* calling the type itself */
const mp_effect *mp_effect_of_instance(PyTypeObject *type); /* calling an instance whose C tp_call is the type's */
const mp_effect *mp_effect_of_torch(PyObject *func);
/* What the table says of a Python function as a whole: by its code, or as declared by the user. NULL: its frame is watched. */
const mp_effect *mp_effect_of_function(PyObject *function);
/* Does the handler of a SPECIAL entry change the first argument? */
bool mp_effect_changes_self(const mp_effect *effect);

/* "module.qualname" for people. Owned str, or NULL without an exception. */
PyObject *mp_callable_name(PyObject *callable);
void mp_call_abandon(mp_call *call, mp_reason_code code, const char *what); /* names the callable; `what` may be NULL */

/* Record what the call does. */
void mp_effect_apply(mp_call *call, const mp_effect *effect);
/* A callable that C code is about to call with things it has: Python functions are frames; C functions must be harmless. */
void mp_effect_callback(mp_call *call, PyObject *callable);
/* Reads of an argument: all of it, or that it is gone through. */
void mp_effect_read(mp_call *call, PyObject *argument, bool deep);
/* All arguments from number `from` on, and keyword arguments. */
void mp_effect_read_all(mp_call *call, Py_ssize_t from, bool deep);
/* Has the call set what this getter of a switch gives, for these arguments? (effects_flags.c) */
bool mp_flag_is_set(const mp_recorder *rec, PyObject *getter, PyObject *place);
/* The result must be a scalar, known, fresh, or from an argument of the call's own. */
void mp_effect_check_result(mp_call *call);

/* Handlers of effects_special.c, by the names the table uses. */
#define FUNCTIONS(effect, where, names)
#define TYPES(effect, where, names)
#define INSTANCES(effect, where, names)
#define SEEN(effect, where, names)
#define SEEN_MEMBERS(effect, where, names)
#define HANDLED(handler, where, names) void mp_handle_##handler(mp_call *call);
#define HANDLED_TYPES(handler, where, names) void mp_handle_##handler(mp_call *call);
#define HANDLED_INSTANCES(handler, where, names) void mp_handle_##handler(mp_call *call);
#include "trace/effects_table.h"
#undef FUNCTIONS
#undef TYPES
#undef INSTANCES
#undef SEEN
#undef SEEN_MEMBERS
#undef HANDLED
#undef HANDLED_TYPES
#undef HANDLED_INSTANCES

/* The positional arguments as a tuple, the others as a dict (effects.c). Owned, or NULL with an exception. */
PyObject *mp_call_args(mp_call *call);
PyObject *mp_call_kwargs(mp_call *call);
/* Calling a type, `skip_metaclass` when type.__call__ itself was called (calls.c). */
void mp_call_type(mp_call *call, bool skip_metaclass);
/* mp_rec_type_attr by a C string (calls.c). */
void mp_type_attr_named(mp_recorder *rec, PyTypeObject *type, const char *name);
/* Which code a Python function has is read (calls.c). */
void mp_function_code(mp_recorder *rec, PyObject *function);
/* Any call, methods and partials not yet unwrapped (calls.c). */
void mp_call_any(mp_call *call);

/* What an autograd.Function's `function` (backward and the like) reads when a gradient is computed, and does: it is read, or the trace ends
** (effects_backward.c). */
void mp_backward_reads(mp_call *call, PyObject *function);

/* Is the next instruction one that drops the call's result (deferred.c)? */
bool mp_result_unused(const mp_frame *frame);
bool mp_applies_forward(
    mp_call *call); /* of autograd.Function.apply: will the forward run in its place, as any other Python function? */
void mp_handle_lru_cache(mp_call *call); /* a function under a cache that may hold its result */
/* Does the function under a functools.lru_cache belong to an installed library, whose caches nobody clears? The program's own may be cleared,
** and a guard that asked them would run the program's code. */
bool mp_caches_installed(PyObject *wrapper);
/* If the call makes one of tqdm's progress bars: call magpy's stand-in instead, on the interpreter's stack and in `call` (effects_outside.c). */
void mp_stand_in_for_bar(mp_call *call);
/* The call is an effect that is put off until the commit (deferred.c). text: it shows its arguments as text; at_frames: it may look at the
** frames of its callers. */
void mp_defer(mp_call *call, bool text, bool at_frames);
/* Likewise mp_defer(call, true, true), within a call of `around` (function, args, kwargs) or None. */
void mp_defer_handling(mp_call *call, PyObject *around);
/* Likewise, and its result is an object that only other effects use: a file that is written. */
void mp_defer_making(mp_call *call);
/* The call gives another result each time: every run makes it again (draws.c). */
void mp_draw_call(mp_call *call);
/* next(iterator) of an outside iterator over a range, tuple or list, or of a count, which every run advances. False if it is none such. */
bool mp_draw_next(mp_call *call, PyObject *iterator);
/* Can a loop go over this outside iterator? And: the loop is about to take its next item, or to end. False: it cannot. */
bool mp_draw_walks(mp_recorder *rec, PyObject *iterator);
bool mp_draw_loop(mp_recorder *rec, const mp_frame *frame, PyObject *iterator);
int mp_draws_module_init(PyObject *module);
/* Does it take drawn values among its arguments? */
bool mp_draw_takes(mp_call *call, const mp_effect *effect);
void mp_clock_call(mp_call *call);
/* A call without arguments that every run makes within around(function, args, kwargs), and from which text is drawn (draws.c). */
void mp_draw_within(mp_call *call, PyObject *around);
/* What the call gives follows from what lies on disk: every run asks magpy.effects.<witness>(*args), which must say the same again (draws.c).
** args: borrowed tuple of constants; NULL: no memory. */
void mp_draw_witness(mp_call *call, const char *witness, PyObject *args);
/* A C function of Python or (numpy) of numpy that computes with arrays is about to be called. True: it meets data, and is recorded
** (arrays_met.c). */
bool mp_array_call(mp_call *call, bool numpy);
/* Is it numpy's own code that runs inside the call, of constants, and none of the program's? */
bool mp_array_call_is_plain(mp_call *call);
/* What the call looks at of numbers that are data (numbers.c). True: it computes a number from numbers, and nothing is left to record. */
bool mp_number_call(mp_call *call, const mp_effect *effect);

/* User's classification; class_name as in `magpy.declare`. 0, or -1 with an exception. */
int mp_effects_declare(PyObject *callable, const char *class_name);

int mp_effects_module_init(PyObject *module);

#endif
