/* Frame fallback on CPython 3.11: an eval hook (PEP 523) that offers every Python function called to dispatch.
**
** The hook belongs to the interpreter, not to us: it is chained to the one that was there, installed only while some thread is in a
** region, and taken away only if it is still ours. Where it is found in place without a region (someone who had chained to it put it
** back), it takes itself away. With any hook a Python call uses the C stack, so deep recursion steps aside (see step_aside).
*/
#define Py_BUILD_CORE 1
#include "observe/internal.h"

#include <internal/pycore_frame.h>
#include <internal/pycore_interp.h>
#include <pthread.h>

/* -- State -------------------------------------------------------------------------------------------------------------- */

typedef struct region { /* one mp_observe_frames on a thread's C stack */
    mp_frame_offer offer;
    void *context;
    const char *floor; /* C stack address below which calls step aside */
    bool aside;        /* stepped aside: nothing is offered */
} region;

static _Thread_local region *here;                  /* innermost region of this thread, or NULL */
static _Thread_local _PyInterpreterFrame *chaining; /* frame that was handed to the chained hook */
static _PyFrameEvalFunction chained;                /* hook that was there, valid while ours is in place */
static uint32_t n_regions;                          /* of all threads; protected by the GIL */

static PyObject *eval_frame(PyThreadState *tstate, _PyInterpreterFrame *frame, int throwing);

static _PyFrameEvalFunction installed(void) { return _PyInterpreterState_GetEvalFrameFunc(PyInterpreterState_Get()); }

bool mp_observe_hook_installed(void) { return installed() == eval_frame; }

static void install(void)
{
    _PyFrameEvalFunction present = installed();
    if (present == eval_frame) return;
    chained = present;
    _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), eval_frame);
}

static void uninstall(void)
{
    if (installed() == eval_frame) _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), chained);
}

/* -- The hook -------------------------------------------------------------------------------------------------------------- */

/* Run the frame by the hook that was there. If that one leads back to us with the same frame, the default does it. */
static PyObject *run_chained(PyThreadState *tstate, _PyInterpreterFrame *frame, int throwing)
{
    if (!chained || chained == eval_frame || chaining == frame)
        return _PyEval_EvalFrameDefault(tstate, frame, throwing);
    if (chained == _PyEval_EvalFrameDefault) return chained(tstate, frame, throwing);
    _PyInterpreterFrame *outer = chaining;
    chaining = frame;
    PyObject *result = chained(tstate, frame, throwing);
    chaining = outer;
    return result;
}

/* Deep in recursion: without the hook Python calls stay in one C frame, as they do in plain Python. The hook comes back when this frame
** has returned. */
static PyObject *step_aside(region *r, PyThreadState *tstate, _PyInterpreterFrame *frame, int throwing)
{
    r->aside = true;
    bool removed = installed() == eval_frame;
    uninstall();
    PyObject *result = run_chained(tstate, frame, throwing);
    if (removed) install();
    r->aside = false;
    return result;
}

/* A plain function's frame before its first instruction: arguments are bound, nothing else is there. */
static bool is_offerable(const _PyInterpreterFrame *frame)
{
    const int unusual = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR | CO_ITERABLE_COROUTINE;
    return frame->f_func && PyFunction_Check((PyObject *)frame->f_func) && !(frame->f_code->co_flags & unusual) &&
           frame->f_code->co_flags & CO_OPTIMIZED && frame->owner == FRAME_OWNED_BY_THREAD &&
           frame->prev_instr == _PyCode_CODE(frame->f_code) - 1;
}

static PyObject *eval_frame(PyThreadState *tstate, _PyInterpreterFrame *frame, int throwing)
{
    char on_stack;
    region *r = here;
    if (MP_UNLIKELY(n_regions == 0)) uninstall();
    if (!r || r->aside || chaining == frame) return run_chained(tstate, frame, throwing);
    if (MP_UNLIKELY(&on_stack < r->floor)) return step_aside(r, tstate, frame, throwing);
    if (throwing || mp_observe_active() || !is_offerable(frame)) return run_chained(tstate, frame, throwing);
    PyObject *result = NULL;
    here = NULL; /* what answering calls is not offered, unless it opens a region of its own */
    int answered = r->offer(r->context, frame->f_func, frame->localsplus, &result);
    here = r;
    if (answered) return result; /* the caller clears the frame and drops it, executed or not */
    return run_chained(tstate, frame, throwing);
}

/* -- The region -------------------------------------------------------------------------------------------------------------- */

/* Half of this thread's C stack is for calls under the hook. NULL: unknown, no limit but Python's own. */
static const char *stack_floor(void)
{
    static _Thread_local const char *floor;
    pthread_attr_t attributes;
    if (floor || pthread_getattr_np(pthread_self(), &attributes) != 0) return floor;
    void *low;
    size_t size;
    if (pthread_attr_getstack(&attributes, &low, &size) == 0) floor = (const char *)low + size / 2;
    pthread_attr_destroy(&attributes);
    return floor;
}

PyObject *mp_observe_frames(PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames,
                            mp_frame_offer offer, void *context)
{
    region *outer = here;
    region r = {.offer = offer, .context = context, .floor = stack_floor(), .aside = outer && outer->aside};
    here = &r;
    n_regions++;
    if (!r.aside) install();
    PyObject *result = PyObject_Vectorcall(target, args, nargs, kwnames);
    here = outer;
    if (--n_regions == 0) uninstall();
    return result;
}
