/* Observing a call on CPython 3.11: trace function with opcode events, torch-function mode, garbage collection held off.
**
** The trace function sees each instruction before it runs, with the frame's value stack; most instructions matter to nobody and
** cost one look into a table. What matters goes to the recorder as an mp_frame. When the recording is abandoned, everything is taken away
** again at the next event, so that the rest of the call runs as if nobody had watched.
*/
#define Py_BUILD_CORE 1
#include "observe/observe.h"

#include "guard/guard.h"
#include "guard/torch_state.h"
#include "observe/internal.h"

#include <frameobject.h>
#include <internal/pycore_code.h>
#include <internal/pycore_frame.h>
#define NEED_OPCODE_TABLES
#include <internal/pycore_opcode.h>
#include <opcode.h>

enum { MAX_DEPTH = 10000 }; /* observed frames on the stack at once */

typedef struct { /* one frame that is being observed */
    _PyInterpreterFrame *frame;
    PyFrameObject *object;           /* borrowed: lives while the frame executes */
    int opcode;                      /* of the instruction now running */
    int running;                     /* its offset */
    int offset;                      /* of the instruction whose result is wanted, or -1 */
    bool unseen;                     /* it runs inside a deferred effect: no part of the program */
    char trace_lines, trace_opcodes; /* to be put back */
} observed_frame;

typedef struct {
    mp_recorder *rec;
    PyThreadState *tstate;
    bool attached;              /* our trace function is, or should be, installed */
    bool mode_pushed;           /* our torch-function mode is on torch's stack */
    bool gc_held;               /* garbage collection was on and is off by us */
    int in_op;                  /* torch functions now running under the mode */
    _PyInterpreterFrame *muted; /* frame of torch's dispatch to the mode: nothing is observed inside it */
    bool whole; /* `muted` is a function that is one operator of the recorder: torch functions inside are its own */
    _PyInterpreterFrame *importing; /* first import made inside a torch function: hooks of the import system may run */
    observed_frame *stack;
    uint32_t depth, room;
    PyObject *raised[3]; /* owned: the exception that the instruction now shown must raise, as PyErr_Fetch gives it */
    const void **begun;  /* generators that began in the call, by address; those from before it live at others */
    uint32_t n_begun, begun_room;
    uint64_t n_opcodes;
} observation;

static _Thread_local observation *current;
static uint32_t gc_holders; /* observations of all threads that hold garbage collection off; protected by the GIL */

/* Opcodes: 1 the recorder has a handler. */
static uint8_t matters[256];
/* Opcodes whose instruction may call Python code; a frame that starts anywhere else comes from a finalizer or a signal. */
static uint8_t may_call[256];

bool mp_observe_active(void) { return current != NULL; }

/* -- Frames ------------------------------------------------------------------------------------------------------------ */

static int offset_of(const _PyInterpreterFrame *frame) { return _PyInterpreterFrame_LASTI(frame); }

static void show(mp_frame *shown, _PyInterpreterFrame *frame)
{
    PyCodeObject *code = frame->f_code;
    int depth = frame->stacktop - code->co_nlocalsplus;
    *shown = (mp_frame){
        .id = frame,
        .code = code,
        .func = (PyObject *)frame->f_func,
        .globals = frame->f_globals,
        .builtins = frame->f_builtins,
        .locals = frame->f_locals,
        .localsplus = frame->localsplus,
        .stack = frame->localsplus + code->co_nlocalsplus,
        .depth = depth > 0 ? depth : 0,
        .offset = offset_of(frame),
    };
}

static observed_frame *top_frame(observation *o) { return o->depth ? &o->stack[o->depth - 1] : NULL; }

static void put_flags_back(const observed_frame *entry)
{
    entry->object->f_trace_lines = entry->trace_lines;
    entry->object->f_trace_opcodes = entry->trace_opcodes;
}

static observed_frame *push_frame(observation *o, PyFrameObject *object)
{
    if (o->depth == o->room) {
        uint32_t room = o->room ? o->room * 2 : 64;
        observed_frame *stack = PyMem_RawRealloc(o->stack, room * sizeof *stack);
        if (!stack) {
            mp_rec_abandon(o->rec, MP_REASON_NO_MEMORY, "%s", "");
            return NULL;
        }
        o->stack = stack;
        o->room = room;
    }
    observed_frame *entry = &o->stack[o->depth++];
    *entry = (observed_frame){.frame = object->f_frame,
                              .object = object,
                              .opcode = RESUME,
                              .offset = -1,
                              .trace_lines = object->f_trace_lines,
                              .trace_opcodes = object->f_trace_opcodes};
    object->f_trace_lines = 0;
    object->f_trace_opcodes = 1;
    return entry;
}

/* -- Attaching and detaching ---------------------------------------------------------------------------------------------- */

static int trace_event(PyObject *self, PyFrameObject *frame, int what, PyObject *arg);

static bool tracer_is_ours(const observation *o)
{ return o->tstate->c_tracefunc == trace_event && o->tstate->c_profilefunc == NULL; }

/* Take everything away that can be taken away now. Keeps a pending exception. */
static void detach(observation *o)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (o->attached) {
        o->attached = false;
        if (o->tstate->c_tracefunc == trace_event) {
            for (uint32_t i = 0; i < o->depth; i++) put_flags_back(&o->stack[i]);
            PyEval_SetTrace(NULL, NULL);
        }
        o->depth = 0;
        if (o->gc_held && --gc_holders == 0) PyGC_Enable();
        o->gc_held = false;
        mp_rec_let_go(o->rec);
    }
    if (o->mode_pushed && !o->in_op && mp_mode_pop_if_top()) o->mode_pushed = false;
    mp_error_clear();
    PyErr_Restore(type, value, trace);
}

static void attach(observation *o)
{
    o->mode_pushed = mp_mode_push(o->rec);
    o->gc_held = PyGC_Disable() == 1 || gc_holders > 0;
    gc_holders += o->gc_held;
    o->attached = true;
    PyEval_SetTrace(trace_event, NULL);
    if (!tracer_is_ours(o)) mp_rec_abandon(o->rec, MP_REASON_TRACER_PRESENT, "%s", "an audit hook refused the tracer");
}

int mp_observe_possible(mp_reason *why)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (current) {
        mp_reason_set(why, MP_REASON_TRACER_PRESENT, "%s", "a call is being observed already");
        return -1;
    }
    if (tstate->c_tracefunc || tstate->c_profilefunc || tstate->tracing) {
        mp_reason_set(why, MP_REASON_TRACER_PRESENT, "%s", "");
        return -1;
    }
    return mp_torch_state_traceable(why);
}

/* -- Frames that start and end ----------------------------------------------------------------------------------------------- */

static bool is_dead_reference(PyObject *object)
{ return object && PyWeakref_CheckRef(object) && PyWeakref_GET_OBJECT(object) == Py_None; }

/* A frame of a generator (coroutine and the like) is entered: keep in mind that it began in the call, or tell whether it did. */
static bool began_here(observation *o, const _PyInterpreterFrame *frame)
{
    const _Py_CODEUNIT at = *frame->prev_instr;
    if (_PyOpcode_Deopt[_Py_OPCODE(at)] != RESUME || _Py_OPARG(at) != 0) {
        for (uint32_t i = o->n_begun; i-- > 0;)
            if (o->begun[i] == frame) return true;
        return false;
    }
    if (o->n_begun == o->begun_room) {
        uint32_t room = o->begun_room ? o->begun_room * 2 : 16;
        const void **begun = PyMem_RawRealloc(o->begun, room * sizeof *begun);
        if (!begun) {
            mp_rec_abandon(o->rec, MP_REASON_NO_MEMORY, "%s", "");
            return true;
        }
        o->begun = begun;
        o->begun_room = room;
    }
    o->begun[o->n_begun++] = frame;
    return true;
}

/* Was this frame started by the interpreter on its own: __del__, a weak reference's callback, a signal handler? Generators of the call's
** that are closed because they are dropped are none of these: their end is the program's doing and the same in every call. The end of one
** that began before it is not. */
static bool is_foreign(const observation *o, const _PyInterpreterFrame *frame, bool here)
{
    if (frame->owner == FRAME_OWNED_BY_GENERATOR) return !here;
    const PyCodeObject *code = frame->f_code;
    PyObject *const *locals = frame->localsplus;
    if (o->depth && !may_call[o->stack[o->depth - 1].opcode])
        return true; /* depth 0: the target, or what its end lets go */
    if (PyUnicode_CompareWithASCIIString(code->co_name, "__del__") == 0) return true;
    if (code->co_nlocalsplus == 0) return false;
    if (code->co_argcount == 2 && locals[1] && PyFrame_Check(locals[1]) && locals[0] && PyLong_CheckExact(locals[0]))
        return true;
    return is_dead_reference(locals[0]);
}

/* torch's own weak reference callbacks (Dynamo's weak dictionaries): they keep torch's books about objects that are gone, which no program
** sees. What the program's own callbacks do is part of the program, and ends the trace. */
static bool is_bookkeeping(const _PyInterpreterFrame *frame)
{
    const PyCodeObject *code =
        frame->f_code; /* a progress bar, which an effect has made, closes itself: as the commit's will */
    if (PyUnicode_CompareWithASCIIString(code->co_qualname, "tqdm.__del__") == 0) return true;
    return frame->f_code->co_nlocalsplus && is_dead_reference(frame->localsplus[0]) &&
           mp_rec_is_torch_code(frame->f_code);
}

/* Once Dynamo has been used in a process, every new nn.Module is noted in a weak dictionary of Dynamo's, by a patched __init__. A module
** that the call makes need not be noted again when the trace makes it. */
static bool is_generation_tag(PyCodeObject *code)
{
    return PyUnicode_CompareWithASCIIString(code->co_qualname, "GenerationTracker.tag") == 0 &&
           mp_rec_is_torch_code(code);
}

static bool is_import(const PyCodeObject *code)
{
    return PyUnicode_CompareWithASCIIString(code->co_name, "_find_and_load") == 0 &&
           PyUnicode_CompareWithASCIIString(code->co_filename, "<frozen importlib._bootstrap>") == 0;
}

static void enter_frame(observation *o, PyFrameObject *object)
{
    _PyInterpreterFrame *frame = object->f_frame;
    bool here = frame->owner == FRAME_OWNED_BY_GENERATOR && began_here(o, frame);
    if (o->in_op || o->muted) {
        if (o->importing || mp_rec_deferring(o->rec)) return;
        if (is_import(frame->f_code))
            o->importing = frame;
        else if (!mp_rec_op_may_run(o->rec, frame->f_code))
            mp_rec_abandon(o->rec, MP_REASON_USER_CODE_IN_TORCH_OP, "%s", PyUnicode_AsUTF8(frame->f_code->co_qualname));
        return;
    }
    o->whole = mp_rec_is_whole(o->rec, frame->f_code);
    if (mp_mode_is_dispatch(frame->f_code) || is_generation_tag(frame->f_code) || o->whole) {
        o->muted = frame;
        return;
    }
    if (is_foreign(o, frame, here)) {
        if (is_bookkeeping(frame) || mp_rec_deferring(o->rec)) { /* what an effect lets go of is its own business */
            o->muted = frame;
            return;
        }
        if (o->depth) mp_rec_at(o->rec, top_frame(o)->frame, top_frame(o)->running);
        mp_rec_abandon(o->rec, MP_REASON_FOREIGN_FRAME, "%s", PyUnicode_AsUTF8(frame->f_code->co_qualname));
        return;
    }
    if (o->depth >= MAX_DEPTH) {
        mp_rec_abandon(o->rec, MP_REASON_TOO_DEEP, "%s", "");
        return;
    }
    observed_frame *entry = push_frame(o, object);
    if (!entry) return;
    if ((entry->unseen = mp_rec_deferring(o->rec))) return;
    mp_frame shown;
    show(&shown, frame);
    mp_rec_frame_enter(o->rec, &shown);
}

static void leave_frame(observation *o, PyFrameObject *object, PyObject *value)
{
    if (o->importing == object->f_frame) {
        o->importing = NULL;
        return;
    }
    if (o->muted == object->f_frame) {
        o->muted = NULL;
        o->whole = false;
        return;
    }
    observed_frame *top = top_frame(o);
    if (!top || top->frame != object->f_frame) return; /* inside a torch operator */
    put_flags_back(top);
    o->depth--;
    if (top->unseen) return;
    mp_frame shown;
    show(&shown, object->f_frame);
    mp_rec_frame_exit(o->rec, &shown, value);
}

/* -- Instructions -------------------------------------------------------------------------------------------------------------- */

/* The instruction at top->offset has ended: by falling through to the next, or by an exception that a handler caught. */
static void tell_result(observation *o, observed_frame *top, mp_frame *shown)
{
    const _Py_CODEUNIT *code = _PyCode_CODE(shown->code);
    int next = top->offset + 1 + _PyOpcode_Caches[_PyOpcode_Deopt[_Py_OPCODE(code[top->offset])]];
    top->offset = -1;
    mp_rec_result(o->rec, shown, shown->depth ? &shown->stack[shown->depth - 1] : NULL, shown->offset != next);
}

static void instruction(observation *o, PyFrameObject *object)
{
    o->n_opcodes++;
    observed_frame *top = top_frame(o);
    _PyInterpreterFrame *frame = object->f_frame;
    if (MP_UNLIKELY(!top || top->frame != frame)) return; /* inside a torch operator, or one of its callers */
    const _Py_CODEUNIT *at = frame->prev_instr;
    int opcode = _PyOpcode_Deopt[_Py_OPCODE(*at)], oparg = _Py_OPARG(*at);
    while (MP_UNLIKELY(opcode == EXTENDED_ARG)) { /* what it extends has no event of its own */
        at++;
        opcode = _PyOpcode_Deopt[_Py_OPCODE(*at)];
        oparg = oparg << 8 | _Py_OPARG(*at);
    }
    top->opcode = opcode;
    top->running = (int)(at - _PyCode_CODE(frame->f_code));
    if (MP_UNLIKELY(top->unseen)) {
        mp_frame shown;
        show(&shown, frame);
        mp_rec_unseen(o->rec, &shown, opcode, oparg);
        return;
    }
    if (MP_LIKELY(!matters[opcode] && top->offset < 0)) return;
    mp_frame shown;
    show(&shown, frame);
    if (top->offset >= 0) tell_result(o, top, &shown);
    if (!matters[opcode]) return;
    shown.offset = top->running;
    mp_rec_instruction(o->rec, &shown, opcode, oparg);
    top = top_frame(o); /* frames may have run, and observation may have ended */
    if (top && mp_rec_wants_result(o->rec, &shown)) top->offset = shown.offset;
}

bool mp_observe_gather(PyObject **slot)
{
    observation *o = current;
    PyThreadState_LeaveTracing(o->tstate);
    PyObject *items = PySequence_Tuple(*slot);
    if (items)
        Py_SETREF(*slot, items);
    else
        PyErr_Fetch(&o->raised[0], &o->raised[1], &o->raised[2]);
    PyThreadState_EnterTracing(o->tstate);
    return items != NULL;
}

bool mp_observe_import(PyObject *name, PyObject *globals, PyObject *fromlist, int level)
{
    observation *o = current;
    o->in_op++; /* torch functions inside are nobody's; frames are not shown to a trace function that is running */
    PyObject *module = PyImport_ImportModuleLevelObject(name, globals, NULL, fromlist, level);
    o->in_op--;
    if (!module) PyErr_Fetch(&o->raised[0], &o->raised[1], &o->raised[2]);
    Py_XDECREF(module);
    return module != NULL;
}

static int trace_event(PyObject *self, PyFrameObject *frame, int what, PyObject *arg)
{
    observation *o = current;
    if (!o || !o->attached) return 0;
    if (what == PyTrace_OPCODE) {
        if (MP_LIKELY(!o->in_op && !o->muted)) instruction(o, frame);
    } else if (what == PyTrace_CALL)
        enter_frame(o, frame);
    else if (what == PyTrace_RETURN)
        leave_frame(o, frame, arg);
    else
        return 0;
    if (MP_UNLIKELY(mp_rec_abandoned(o->rec)) && !o->in_op && !o->muted) detach(o);
    if (MP_LIKELY(!o->raised[0])) return 0;
    PyErr_Restore(o->raised[0], o->raised[1], o->raised[2]);
    o->raised[0] = NULL;
    return -1;
}

/* -- Torch functions -------------------------------------------------------------------------------------------------------------- */

PyObject *mp_observe_torch_function(PyObject *func, PyObject *args, PyObject *kwargs)
{
    observation *o = current;
    if (!o || !o->attached || o->in_op || o->whole || mp_rec_abandoned(o->rec) || mp_rec_deferring(o->rec))
        return PyObject_Call(func, args, kwargs);
    if (!tracer_is_ours(o)) mp_rec_abandon(o->rec, MP_REASON_TRACER_REMOVED, "%s", "");
    o->in_op++;
    void *token = mp_rec_op_begin(o->rec, func, args, kwargs);
    PyObject *out = PyObject_Call(func, args, kwargs);
    o->in_op--;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (!out && token) {
        PyErr_NormalizeException(&type, &value, &trace);
        PyThreadState_EnterTracing(o->tstate);
        mp_rec_op_raised(o->rec, token, value);
        PyThreadState_LeaveTracing(o->tstate);
    }
    mp_rec_op_end(o->rec, token, &out);
    PyErr_Restore(type, value, trace);
    return out;
}

/* -- The call ---------------------------------------------------------------------------------------------------------------------- */

/* The call has returned: put back what is still there. */
static void end(observation *o, bool raised)
{
    if (o->attached && !tracer_is_ours(o)) mp_rec_abandon(o->rec, MP_REASON_TRACER_REMOVED, "%s", "");
    if (raised) mp_rec_abandon(o->rec, MP_REASON_EXCEPTION, "%s", "");
    detach(o);
    if (o->mode_pushed) mp_mode_remove(); /* the program left modes of its own above it */
    current = NULL;
    PyMem_RawFree(o->stack);
    PyMem_RawFree(o->begun);
}

PyObject *mp_observe_call(mp_recorder *rec, PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames)
{
    mp_reason why = {0};
    if (mp_observe_possible(&why) < 0) mp_rec_abandon(rec, why.code, "%s", why.detail);
    if (mp_rec_abandoned(rec)) return PyObject_Vectorcall(target, args, nargs, kwnames);
    mp_guard_prepare();
    observation o = {.rec = rec, .tstate = PyThreadState_Get()};
    current = &o;
    mp_rec_call_target(rec, target, args, nargs, kwnames);
    attach(&o);
    PyObject *result = PyObject_Vectorcall(target, args, nargs, kwnames);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (o.attached) mp_rec_target_returned(rec, result);
    end(&o, result == NULL);
    mp_rec_count(rec, o.n_opcodes);
    PyErr_Restore(type, value, trace);
    return result;
}

/* -- Tables -------------------------------------------------------------------------------------------------------------------------- */

static const uint8_t calling_opcodes[] = {
    CALL,
    CALL_FUNCTION_EX,
    LOAD_ATTR,
    LOAD_METHOD,
    STORE_ATTR,
    DELETE_ATTR,
    BINARY_SUBSCR,
    STORE_SUBSCR,
    DELETE_SUBSCR,
    BINARY_OP,
    COMPARE_OP,
    CONTAINS_OP,
    UNARY_NOT,
    UNARY_NEGATIVE,
    UNARY_POSITIVE,
    UNARY_INVERT,
    POP_JUMP_FORWARD_IF_TRUE,
    POP_JUMP_FORWARD_IF_FALSE,
    POP_JUMP_BACKWARD_IF_TRUE,
    POP_JUMP_BACKWARD_IF_FALSE,
    JUMP_IF_TRUE_OR_POP,
    JUMP_IF_FALSE_OR_POP,
    GET_ITER,
    FOR_ITER,
    UNPACK_SEQUENCE,
    UNPACK_EX,
    LIST_EXTEND,
    DICT_UPDATE,
    DICT_MERGE,
    SET_UPDATE,
    SET_ADD,
    MAP_ADD,
    BUILD_MAP,
    BUILD_SET,
    BUILD_CONST_KEY_MAP,
    FORMAT_VALUE,
    IMPORT_NAME,
    IMPORT_FROM,
    IMPORT_STAR,
    BEFORE_WITH,
    BEFORE_ASYNC_WITH,
    WITH_EXCEPT_START,
    MATCH_MAPPING,
    MATCH_SEQUENCE,
    MATCH_KEYS,
    MATCH_CLASS,
    GET_LEN,
    CHECK_EXC_MATCH,
    CHECK_EG_MATCH,
    SEND,
    GET_AWAITABLE,
    GET_AITER,
    GET_ANEXT,
    GET_YIELD_FROM_ITER,
    LOAD_GLOBAL,
    LOAD_NAME,
    STORE_NAME,
    DELETE_NAME,
    LOAD_CLASSDEREF,
    LOAD_BUILD_CLASS,
    PRINT_EXPR,
    RAISE_VARARGS,
    END_ASYNC_FOR,
};

void mp_observe_init_tables(void)
{
    for (size_t i = 0; i < sizeof calling_opcodes; i++) may_call[calling_opcodes[i]] = 1;
    for (int opcode = 0; opcode < 256; opcode++) matters[opcode] = mp_rec_opcode_matters(opcode);
}
