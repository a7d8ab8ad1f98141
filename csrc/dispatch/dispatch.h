/* Dispatch: compiled callables, their traces, misses, fallbacks, limits and statistics.
**
** _C.Callable(target, options) is what a user's call reaches. A call tries each trace's guards; on a hit the plan runs, mocks rebuild,
** writes are committed; on a miss the call is observed (its result is the user's result) and a trace is added. Nothing of a compiled run is
** visible before commit, so a run that fails earlier is thrown away and the call made again in plain Python.
**
** Files: callable.c the type and the way of a call; miss.c observation to trace; trace.c one trace's life and run; draws.c what a run draws anew; frames.c fallback by frame;
** state.c stance and reset, read on every call; stats.c counters and fallbacks; optimized.c the base of compiled modules.
*/
#ifndef MP_DISPATCH_H
#define MP_DISPATCH_H
#include "guard/guard.h"
#include "guard/torch_state.h"
#include "mock/mock.h"
#include "run/bound.h"
#include "trace/recorder.h"

/* -- Traces (trace.c) ---------------------------------------------------------------------------------------------- */

#define MP_FAILURES 3

typedef struct {       /* data that the program looked at: func(*args, **kwargs) must give `result` again */
    PyObject *func;    /* owned */
    PyObject *args;    /* owned tuple; items that are a graph output are None */
    PyObject *kwargs;  /* owned dict, or NULL */
    PyObject *result;  /* owned: number or list, as in mp_check */
    PyObject *site;    /* owned str, for people */
    bool in_graph;     /* a step of the graph makes the check; here only for people */
    uint32_t *outputs; /* owned [size of args]: the graph output that is this argument, or MP_NO_VALUE */
    bool
        early; /* all of them are draws: `outputs` numbers the drawn inputs, and it is evaluated before the graph runs */
} mp_trace_check;

typedef struct {        /* a call that every run makes before the graph, as in mp_draw */
    PyObject *func;     /* owned, like the others */
    PyObject *args;     /* tuple */
    PyObject *kwargs;   /* dict */
    PyObject *keeper;   /* (get, set), a random.Random, or None */
    PyObject *result;   /* must be given again; NULL: it is anything of `type` */
    PyTypeObject *type; /* borrowed: a static one */
    PyObject *meta;     /* owned: a numpy array of this meta, or NULL */
    bool input;         /* it is a graph input */
    bool steps;         /* there are _C.Drawn among its arguments */
    bool again;         /* as in mp_draw */
} mp_trace_draw;

/* One trace. Shared by its callable and the runs in progress (`refs`). */
typedef struct {
    uint32_t refs;
    mp_guard_program *guards; /* owned */
    mp_mock_program *mocks;   /* owned */
    PyObject *runner; /* owned: a _C.Plan, or any callable list-of-tensors -> sequence of tensors; NULL: no operators */
    mp_plan *plan;    /* borrowed from runner if it is a _C.Plan, else NULL */
    mp_bound *bound;  /* likewise a _C.BoundPlan */
    uint32_t n_inputs;  /* graph inputs: the first n_inputs of the guards' wanted objects */
    uint32_t n_numbers; /* graph inputs that are ints or floats and become tensors */
    uint32_t n_arrays;  /* those that are numpy arrays, likewise: over their memory */
    uint32_t n_objects; /* what mocks name: the wanted objects after the inputs */
    uint32_t n_mutated; /* outputs [0, n_mutated) are new data for inputs mutated[i], copied at commit */
    uint32_t
        n_outputs; /* graph outputs; those after n_mutated are the mocks' values, in their order, then the checks' */
    uint32_t n_checks;
    mp_trace_check *checks; /* owned [n_checks], evaluated in order between run and commit */
    uint32_t n_draws;
    mp_trace_draw *draws; /* owned [n_draws], in order */
    uint32_t n_drawn;     /* those that are graph inputs, which come after the n_inputs */
    uint32_t *mutated;    /* owned [n_mutated]: input numbers */
    bool *uncounted;      /* owned [n_mutated]: as x.data.copy_, of which x's version counter does not know */
    PyObject **kept;      /* owned [n_outputs] tensors answering instead of a run (option dry_run), or NULL */
    bool decides;         /* some step over what was drawn must give the same again */
    bool values;          /* some check is of a float or a list (mp_answer_is_value), or of an operator's sizes */
    PyObject
        *marks;  /* owned tuple of (input number, bool): inputs whose requires_grad the call changes, before it runs */
    bool random; /* the graph draws random numbers: torch's RNG state is put back if a run is thrown away */
    PyObject *counters; /* owned tuple for mp_counters_arrange, or NULL */
    uint32_t n_ops;     /* operators as recorded */
    uint32_t failures;  /* runs that failed before commit; after MP_FAILURES the trace's calls are made plainly */
    uint64_t hits;
    mp_guard_id missed; /* the guard that failed in the call at hand, or UINT32_MAX */
    PyObject *info;     /* owned dict for explain: fx code, aten code, timings, sources */
} mp_trace;

void mp_trace_release(mp_trace *trace); /* NULL is fine */
int mp_trace_traverse(mp_trace *trace, visitproc visit, void *arg);
/* Everything about a trace for explain: owned dict, or NULL with an exception. */
PyObject *mp_trace_describe(const mp_trace *trace);

/* How a compiled run ended. FAILED: an exception is set, nothing is visible, the call can be made again. RAISED: the
** exception set belongs to the call (raised at or after commit, or not an Exception: KeyboardInterrupt). OTHER: the data that the
** program looks at is not what the trace was made for; no exception, nothing is visible: as good as a failed guard. DEATH: a finalizer would run behind
** the stores; as FAILED, without an exception. OTHER_VALUE: it is
** a float or a list (mp_answer_is_value) that differs. */
typedef enum { MP_RUN_DONE, MP_RUN_FAILED, MP_RUN_RAISED, MP_RUN_DEATH, MP_RUN_OTHER, MP_RUN_OTHER_VALUE } mp_run_end;

/* Run, rebuild and commit with `bound` (borrowed; the guards' wanted objects, which the caller keeps alive). DONE: *result is owned. */
mp_run_end mp_trace_run(mp_trace *trace, PyObject *const *bound, PyObject **result);

/* Option verify: run without committing, make the call in plain Python (it is *the* call) and compare. DONE, OTHER, OTHER_VALUE, or RAISED with
** VerificationError or the program's exception. */
mp_run_end mp_trace_verify(mp_trace *trace, PyObject *const *bound, const mp_call *call, PyObject **result);

/* -- Draws (draws.c) -------------------------------------------------------------------------------------------------- */

typedef struct mp_saved mp_saved;
typedef struct {             /* the draws of one run */
    PyObject *const *inputs; /* of the graph: the bound ones, then what was drawn */
    PyObject **made;         /* owned array of them, or NULL: nothing was drawn */
    PyObject **given;        /* owned [n_given]: what each draw gave, or NULL: nothing was drawn */
    mp_saved *saved;         /* owned: states of generators as they were */
    uint32_t n_bound, n_made, n_saved, n_given;
} mp_drawn;

/* Make the draws of a run. 1 done; 0 a result is not the recorded one; 2 nor is it one of few; -1 an exception. mp_drawn_end is due in each case, after mp_drawn_undo if the
** run is thrown away. */
int mp_draw_all(const mp_trace *trace, PyObject *const *bound, mp_drawn *drawn);
/* The run is thrown away for what was drawn or computed: the call's next one gets what this one was given. */
void mp_drawn_keep(const mp_trace *trace, const mp_drawn *drawn);
void mp_drawn_undo(mp_drawn *drawn); /* put all states back; keeps a pending exception */
void mp_drawn_end(mp_drawn *drawn);
/* A drawn number, or array of this meta (else NULL), as a tensor: owned, or NULL with an exception; None for an array of another. */
PyObject *mp_draw_tensor(PyObject *drawn, PyObject *meta);
/* Is it one of very many that a draw may give: no bool, int or None? */
bool mp_draw_is_value(PyObject *result);
/* Is there a _C.Drawn in a draw's arguments? kwargs may be NULL. */
bool mp_draw_steps(PyObject *args, PyObject *kwargs);
void mp_draws_free(mp_trace *trace);

/* -- Fallbacks and statistics (stats.c) --------------------------------------------------------------------------- */

/* Counters of the whole process, shown by magpy.stats(). */
#define MP_COUNTERS(X) X(calls) X(hits) X(misses) X(traces) X(segments) X(observed_opcodes) X(observed_frames)
typedef struct {
#define MP_COUNTER(name) uint64_t name;
    MP_COUNTERS(MP_COUNTER)
#undef MP_COUNTER
    double seconds_observing, seconds_lowering, seconds_compiling;
} mp_counters;
extern mp_counters mp_stats;

/* Count a fallback by reason; kept with file and line for explain. */
void mp_stats_fallback(const mp_reason *why);

typedef struct {      /* a callable's own fallbacks: one row per reason, file and line */
    mp_reason *rows;  /* owned */
    uint64_t *counts; /* owned */
    uint32_t n;
} mp_fallbacks;

void mp_fallbacks_count(mp_fallbacks *list, const mp_reason *why); /* also calls mp_stats_fallback */
PyObject *mp_fallbacks_list(const mp_fallbacks *list);             /* owned list of dicts, or NULL with an exception */
void mp_fallbacks_clear(mp_fallbacks *list);

/* -- What every call reads first (state.c) --------------------------------------------------------------------- */

typedef enum {
    MP_STANCE_DEFAULT,
    MP_STANCE_FORCE_EAGER,
    MP_STANCE_EAGER_ON_RECOMPILE,
    MP_STANCE_FAIL_ON_RECOMPILE,
    MP_STANCE_EAGER_THEN_COMPILE,
    MP_STANCE_FORCE_BACKEND,
} mp_stance;

/* torch.compiler.set_stance as it is now. One compare if nothing changed since the last call. Never fails. */
mp_stance mp_state_stance(void);

extern _Thread_local uint32_t
    mp_state_busy; /* > 0: this thread observes, runs or lowers; callables run their targets plainly */

/* -- Callables (callable.c) ---------------------------------------------------------------------------------------- */

#define MP_DATA_LOST 24  /* data_lost at which nothing of data is checked any more */
#define MP_VALUES_LOST 4 /* values_lost at which floats and lists of data are no longer checked */
#define MP_CHANGING 64   /* names that a callable keeps of numbers from outside that change */
#define MP_SHAPES 32     /* call shapes of which a callable remembers that they cannot be traced */

typedef struct { /* calls of one shape (count, types, sizes of arguments) that were observed in vain */
    uint64_t shape;
    uint32_t count;
    mp_reason why; /* the last one */
} mp_vain;

typedef struct mp_callable {
    PyObject_HEAD vectorcallfunc vectorcall;
    struct mp_callable *previous, *next; /* borrowed: ring of all callables, for reset */
    PyObject *target;                    /* owned; NULL in a frame's callable: every call brings its function */
    PyObject *options; /* owned dict: all of magpy.config.OPTIONS, fullgraph, dynamic; handed to lowering */
    PyObject *dict, *weakrefs;
    mp_trace **traces; /* owned [n_traces], most recently hit first */
    uint32_t n_traces, trace_limit;
    uint64_t generation; /* the reset that last cleared it */
    PyObject *callees;   /* owned dict: code object -> Callable of the frames under this one, or NULL */
    mp_vain *vain;       /* owned [n_vain] */
    uint32_t n_vain;
    mp_fallbacks fallbacks;
    mp_reason last_fallback; /* what the last call fell back for */
    uint64_t calls, hits, misses;
    PyObject *last_miss; /* owned str: the guard that failed last, or NULL */
    PyObject *changing;  /* owned set: names of ints and floats from outside that were others in later calls, or NULL */
    uint32_t quiet;      /* calls in a row in which fallback by frame had nothing to serve */
    bool fullgraph, verify, dry_run, frames;
    uint32_t
        values_lost; /* misses because a float or list of data was another one, less the hits of traces with such checks */
    uint32_t data_lost; /* misses because data was other than in all traces, less the hits of traces with checks */
    bool value_missed;  /* the call at hand has missed so */
    bool data_missed;   /* the same of any data */
    bool
        refuse_checks; /* the tree of traces has more branches than it can hold: looking at any data ends a trace again */
    bool refuse_values; /* such data is another one at nearly every call: looking at it ends a trace again */
    bool warned;        /* about the trace limit */
    bool compiling;     /* an observation or lowering of this callable is under way, on whatever thread */
    bool met;           /* was called under eager_then_compile */
    bool plain;         /* frame's callable: something in the frame cannot be traced; only its callees are served */
    bool leaf_alone;    /* frame's callable: computes no tensors, left alone from now on */
} mp_callable;

extern PyTypeObject *mp_callable_type;
extern PyObject *mp_fullgraph_error, *mp_verification_error;
/* Raised by steps of a graph, with a bool: data is other than the trace was made for. True: one of very many values (mp_answer_is_value). */
extern PyObject *mp_other_data;

/* Call self with a target of its own. The way of every call: stance, traces, miss. */
PyObject *mp_callable_call(mp_callable *self, const mp_call *call);
/* Make the call in plain Python. Owned result or NULL with the program's exception. */
PyObject *mp_call_plain(const mp_call *call);
/* A callable with self's options and no target, for a frame. Owned, or NULL with an exception. */
mp_callable *mp_callable_for_frame(const mp_callable *root);
void mp_callable_forget(mp_callable *self); /* drop all traces and memories */
void mp_callable_reset_all(void);           /* the same for every callable of the process */

/* -- Misses (miss.c) ------------------------------------------------------------------------------------------------- */

/* No trace holds: observe the call, whose result is the user's, and add a trace. Owned result or NULL with the program's exception (or
** FullgraphError). */
PyObject *mp_miss_observe(mp_callable *self, const mp_call *call);
uint64_t mp_miss_shape(const mp_call *call);
/* Is a call of this shape known not to be traceable? Its reason (borrowed), or NULL. */
const mp_reason *mp_miss_in_vain(const mp_callable *self, uint64_t shape);

/* -- Fallback by frame (frames.c) ------------------------------------------------------------------------------------- */

/* Make the call plainly; the Python functions it calls are served by callables of their own, kept in root->callees. */
PyObject *mp_frames_call(mp_callable *root, const mp_call *call);
/* An observation of self was abandoned while frames of these codes (tuple, borrowed; may be NULL) were running: none of them can be traced,
** so that fallback by frame need not find out one by one. Never fails. */
void mp_frames_running(mp_callable *self, PyObject *codes);

int mp_optimized_module_init(PyObject *module);
/* An observed call has ended: does anything that stands in for one of tqdm's bars outlive it? */
bool mp_stand_ins_left(void);
/* Likewise: what stands in for progress bars and is still there becomes the bars. Runs tqdm's code; keeps a pending exception. */
void mp_stand_ins_end(void);

#endif
