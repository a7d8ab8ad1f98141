/* Handlers of the C callables that reach other threads and the world outside: locks, warnings, log records.
*/
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

static PyObject *argument(const mp_call *call, Py_ssize_t i) { return i < call->nargs ? call->args[i] : NULL; }

static PyObject *keyword(const mp_call *call, const char *name)
{
    for (Py_ssize_t i = 0; i < call->nkw; i++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, i), name) == 0) return call->kwvalues[i];
    return NULL;
}

/* -- Locks: what the call takes, it gives back (checked at the end) ---------------------------------------------------------------------- */

/* Index of the lock among those that the call holds now, or -1. */
static Py_ssize_t held(const mp_op_state *state, PyObject *lock)
{
    for (Py_ssize_t i = state && state->locks ? PyList_GET_SIZE(state->locks) : 0; i-- > 0;)
        if (PyList_GET_ITEM(state->locks, i) == lock) return i;
    return -1;
}

/* data: the lock, or NULL. That a lock was not to be had is certain only where the call itself holds it. */
static void acquired(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    mp_op_state *state = mp_rec_op_state(rec);
    if (result == Py_True && state && data) {
        if (!state->locks) state->locks = PyList_New(0);
        if (!state->locks || PyList_Append(state->locks, data) < 0) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "locks");
        PyErr_Clear();
    } else if (result && held(state, data) < 0)
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "a lock was not acquired");
    Py_XDECREF(data);
}

void mp_handle_lock_acquire(mp_call *call)
{ mp_rec_pend(call->rec, call->frame, acquired, Py_XNewRef(argument(call, 0))); }

void mp_handle_lock_release(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    Py_ssize_t at = call->nargs ? held(state, call->args[0]) : -1;
    mp_kept kept = mp_keep();
    if (at < 0)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of a lock that the call does not hold");
    else if (PyList_SetSlice(state->locks, at, at + 1, NULL) < 0)
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "locks");
    mp_restore(kept);
}

/* Is it owned, locked? Certain of what the call holds, and of what it has made. */
void mp_handle_lock_owned(mp_call *call)
{
    if (call->nargs && held(mp_rec_op_state(call->rec), call->args[0]) < 0 &&
        mp_rec_find(call->rec, call->args[0]) != MP_NO_OBJ)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of a lock that the call does not hold");
}

/* -- Effects that are put off until the commit ---------------------------------------------------------------------------------------------- */

static bool is_false(PyObject *object) { return !object || object == Py_None || object == Py_False; }

/* May a run make the exception again, and those in whose context it was raised, as far as types and arguments go? */
static bool is_remade(mp_recorder *rec, PyObject *error)
{
    PyObject *context = ((PyBaseExceptionObject *)error)->context;
    if (context && context != rec->handled && !is_remade(rec, context)) return false;
    PyObject *given = ((PyBaseExceptionObject *)error)->args;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++)
        if (!mp_is_scalar(PyTuple_GET_ITEM(given, i)) || mp_number_is(rec, PyTuple_GET_ITEM(given, i))) return false;
    return mp_rec_ensure(rec, (PyObject *)Py_TYPE(error)) != MP_NO_OBJ;
}

/* A function (function, args, kwargs) that calls what it is given while an exception like the one that the call is handling now is handled, with a
** traceback of the same lines. Owned; None: it handles none of its own. NULL after abandoning. */
static PyObject *handling(mp_call *call)
{
    mp_recorder *rec = call->rec;
    PyObject *error = PyErr_GetHandledException();
    if (!error || error == rec->handled) { /* a run finds that itself */
        Py_XDECREF(error);
        return Py_NewRef(Py_None);
    }
    PyObject *made = NULL;
    if (!is_remade(rec, error))
        mp_call_abandon(call, MP_REASON_EFFECT,
                        "the traceback of an exception whose arguments are objects or new each time");
    else if (!(made =
                   mp_call_imported("magpy.effects", "handling", "(OO)", error, rec->handled ? rec->handled : Py_None)))
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "exceptions");
    if (made && PyUnicode_Check(made)) { /* why not */
        mp_call_abandon(call, MP_REASON_EFFECT, PyUnicode_AsUTF8(made));
        Py_CLEAR(made);
    }
    PyErr_Clear();
    Py_XDECREF(error);
    return made;
}

static bool is_named(mp_call *call, const char *text)
{
    PyObject *name = PyFunction_Check(call->callable) ? ((PyFunctionObject *)call->callable)->func_name : NULL;
    return name && PyUnicode_CompareWithASCIIString(name, text) == 0;
}

/* Methods of loggers, and the functions of the module logging; traceback.print_exc. Where they show the exception that is being handled, the commit
** handles one like it. */
void mp_handle_log(mp_call *call)
{
    PyObject *asked = keyword(call, "exc_info");
    bool shows = is_named(call, "print_exc") || (!asked && is_named(call, "exception")) || !is_false(asked);
    if (!shows) {
        mp_defer(call, true, true);
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *error = PyErr_GetHandledException();
    bool own = asked && asked == error; /* exc_info=error */
    Py_XDECREF(error);
    PyObject *around = NULL;
    if (!own && asked && !PyBool_Check(asked) && !PyLong_CheckExact(asked))
        mp_call_abandon(call, MP_REASON_EFFECT, "the traceback of another exception than the one being handled");
    else
        around = handling(call);
    if (around == Py_None && own)
        mp_call_abandon(call, MP_REASON_EFFECT, "the traceback of an exception from before the call");
    else if (around)
        mp_defer_handling(call, around);
    Py_XDECREF(around);
    mp_restore(kept);
}

/* traceback.format_exc(): text that every run makes again, of an exception like the one that is being handled. */
void mp_handle_format_exception(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *around = call->nargs || call->nkw ? NULL : handling(call);
    if (around && around != Py_None)
        mp_draw_within(call, around);
    else
        mp_call_abandon(call, MP_REASON_EFFECT,
                        "the traceback of an exception from before the call, or of a chosen length");
    Py_XDECREF(around);
    mp_restore(kept);
}

/* The import machinery's frames, and those that take such a file name, are nobody's callers for warnings.warn. */
static bool is_internal_frame(PyFrameObject *frame)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    bool internal = file && strstr(file, "importlib") && strstr(file, "_bootstrap");
    if (!file) PyErr_Clear();
    Py_DECREF(code);
    return internal;
}

/* (text, category, module, line) of a warning, as the filters see it: the frame is the one that warnings.warn finds. Owned, or NULL with or
** without an exception. */
static PyObject *warning_row(PyObject *message, PyObject *category, long level)
{
    PyFrameObject *frame = PyEval_GetFrame();
    Py_XINCREF(frame);
    bool all = frame && is_internal_frame(frame);
    for (; frame && level > 1; level--) do
            Py_SETREF(frame, PyFrame_GetBack(frame));
        while (frame && !all && is_internal_frame(frame));
    PyObject *globals = frame ? PyFrame_GetGlobals(frame) : NULL;
    PyObject *module = globals ? PyDict_GetItemString(globals, "__name__") : NULL;
    PyObject *row = NULL;
    if (!frame || (module && PyUnicode_Check(module)))
        row = frame ? Py_BuildValue("(OOOi)", message, category, module, PyFrame_GetLineNumber(frame))
                    : Py_BuildValue("(OOsi)", message, category, "sys", 1);
    Py_XDECREF(frame);
    Py_XDECREF(globals);
    return row;
}

/* warnings.warn: given at the commit, unless it would raise there. Under filters that the call has set itself (warnings.catch_warnings) it
** cannot be put off; then it must be one that is not shown. */
void mp_handle_warn(mp_call *call)
{
    PyObject *message = argument(call, 0), *category = argument(call, 1), *level = argument(call, 2);
    if (!message) message = keyword(call, "message");
    if (!category) category = keyword(call, "category");
    if (!level) level = keyword(call, "stacklevel");
    bool given = category && category != Py_None;
    if (!message || !PyUnicode_CheckExact(message) || (given && !PyType_Check(category)) ||
        (level && !PyLong_CheckExact(level))) {
        mp_call_abandon(call, MP_REASON_EFFECT, "a warning that is an object");
        return;
    }
    mp_kept kept = mp_keep();
    mp_number_settle(call->rec, message); /* filters look at it */
    PyObject *row = warning_row(message, given ? category : PyExc_UserWarning, level ? PyLong_AsLong(level) : 1);
    if (row && mp_deferred_filters_changed(call->rec)) {
        PyObject *function = mp_import("magpy.effects", "warning_action");
        PyObject *action = function ? PyObject_Call(function, row, NULL) : NULL;
        if (!action || !PyUnicode_Check(action) || PyUnicode_CompareWithASCIIString(action, "ignore"))
            mp_call_abandon(call, MP_REASON_EFFECT, "a warning, while the call has filters of its own");
        Py_XDECREF(function);
        Py_XDECREF(action);
    } else if (row) {
        PyObject *raises = mp_import("magpy.effects", "warning_raises");
        if (raises) mp_rec_check_call(call->rec, raises, row, Py_False);
        Py_XDECREF(raises);
        mp_defer(call, true, true);
        mp_deferred_warned(call->rec);
    } else
        mp_call_abandon(call, MP_REASON_EFFECT, "a warning from a frame that cannot be told");
    Py_XDECREF(row);
    mp_restore(kept);
}

/* -- Files ------------------------------------------------------------------------------------------------------------------------------------ */

/* The name that a path stands for: owned str, or NULL without an exception. Code of pathlib may run: what it reads of an outside path is seen
** when open() itself asks. */
static PyObject *name_of(PyObject *path)
{
    PyObject *name = path && !PyLong_Check(path) ? PyOS_FSPath(path) : NULL;
    if (name && !PyUnicode_CheckExact(name)) Py_CLEAR(name);
    PyErr_Clear();
    return name;
}

/* A file that is only read is a constant as long as its content is: that is asked again by every run. False after abandoning. */
static bool witness_content(mp_call *call, PyObject *path, bool by_locale)
{
    PyObject *name = name_of(path), *args = name ? PyTuple_Pack(2, name, by_locale ? Py_True : Py_False) : NULL;
    bool plain = name != NULL;
    for (Py_ssize_t i = 0; i < call->nargs; i++)
        plain = plain && (mp_is_scalar(call->args[i]) || call->args[i] == path);
    for (Py_ssize_t i = 0; i < call->nkw; i++)
        plain = plain && (mp_is_scalar(call->kwvalues[i]) || call->kwvalues[i] == path);
    if (plain)
        mp_draw_witness(call, "content", args);
    else
        mp_call_abandon(
            call, MP_REASON_UNKNOWN_C_CALLABLE,
            "a file without a name is read; read it before the call, or declare the function that does with "
            "magpy.opaque");
    mp_effect_check_result(call);
    Py_XDECREF(name);
    Py_XDECREF(args);
    return !mp_rec_abandoned(call->rec);
}

/* numpy.load and the like: the array is as constant as the file. */
void mp_handle_read_array(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *path = argument(call, 0);
    if (keyword(call, "mmap_mode") || call->nargs != 1)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of a mapped file, or with many arguments");
    else if (witness_content(call, path, true))
        mp_deferred_silent(call->rec, call->frame);
    mp_restore(kept);
}

/* open(): a file that is only written is opened at the commit, if a check before it says that it can be. */
void mp_handle_open(mp_call *call)
{
    PyObject *path = argument(call, 0), *mode = argument(call, 1);
    mp_op_state *state = mp_rec_op_state(call->rec);
    if (!path) path = keyword(call, "file");
    if (!mode) mode = keyword(call, "mode");
    mp_kept kept = mp_keep();
    const char *how = mode && PyUnicode_CheckExact(mode) ? PyUnicode_AsUTF8(mode) : "r";
    bool special = !how || strpbrk(how, "x+") || keyword(call, "opener") || call->nargs > 7;
    if (special)
        mp_call_abandon(
            call, MP_REASON_UNKNOWN_C_CALLABLE,
            "a file is read and written; do it before the call, or declare the function that does with magpy.opaque");
    else if (!strpbrk(how, "wa"))
        (void)witness_content(call, path, !strchr(how, 'b'));
    else if (!path || !PyUnicode_CheckExact(path))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "the file's name is no str; pass str(path)");
    else if (!state || !state->accept_checks)
        mp_call_abandon(call, MP_REASON_EFFECT, "a file is written");
    else {
        PyObject *args = PyTuple_Pack(1, path), *check = mp_import("magpy.effects", "can_write");
        if (check && args) {
            mp_rec_check_call(call->rec, check, args, Py_True);
            mp_defer_making(call);
        } else
            mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "files");
        Py_XDECREF(args);
        Py_XDECREF(check);
    }
    mp_restore(kept);
}

/* os.listdir */
void mp_handle_listdir(mp_call *call)
{
    mp_kept kept = mp_keep();
    PyObject *path = argument(call, 0), *name = path || call->nkw ? name_of(path) : PyUnicode_FromString(".");
    PyObject *args = name ? PyTuple_Pack(1, name) : NULL;
    if (name)
        mp_draw_witness(call, "listing", args);
    else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of what has no name");
    mp_effect_check_result(call);
    Py_XDECREF(name);
    Py_XDECREF(args);
    mp_restore(kept);
}

/* Has the call opened the file to read it? What it does with it is its own business. */
static bool read_file(mp_call *call)
{
    return call->nargs && mp_rec_find(call->rec, call->args[0]) == MP_NO_OBJ &&
           !mp_deferred_made(call->rec, call->args[0]);
}

static bool own_file(mp_call *call)
{
    if (call->nargs && mp_deferred_made(call->rec, call->args[0])) return true;
    mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of a file that the call has not opened for writing");
    return false;
}

/* with file: gives the file itself. */
void mp_handle_file_enter(mp_call *call)
{
    if (!read_file(call)) (void)own_file(call);
}

void mp_handle_file_close(mp_call *call)
{
    if (!read_file(call) && own_file(call)) mp_defer(call, false, false);
}

/* csv.writer(file) */
void mp_handle_csv_writer(mp_call *call)
{
    if (own_file(call)) mp_defer_making(call);
}

/* -- Progress bars ---------------------------------------------------------------------------------------------------------------------------- */

void mp_handle_make_bar(mp_call *call) { mp_defer_making(call); }

/* One of tqdm's own classes? */
static bool is_bar_type(PyTypeObject *type)
{
    if (strncmp(type->tp_name, "tqdm", 4) != 0 || !PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) return false;
    PyObject *module = PyDict_GetItemString(type->tp_dict, "__module__");
    const char *name = module && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
    PyErr_Clear();
    return name && strncmp(name, "tqdm.", 5) == 0;
}

/* The stack's reference to what the instruction is about to call, or NULL where it calls by another way. */
static PyObject **called_slot(const mp_call *call)
{
    const mp_frame *frame = call->frame;
    Py_ssize_t reach = call->nargs + call->nkw + 2;
    if (!frame || !frame->stack) return NULL;
    if (reach < 3) reach = 3; /* CALL_FUNCTION_EX: callable, tuple, dict */
    if (reach > frame->depth) reach = frame->depth;
    for (; reach > 0; reach--)
        if (frame->stack[frame->depth - reach] == call->callable) return &frame->stack[frame->depth - reach];
    return NULL;
}

void mp_stand_in_for_bar(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    if (!is_bar_type((PyTypeObject *)call->callable) || !state || !state->accept_checks) return;
    PyObject **slot = called_slot(call);
    if (!slot) return;
    mp_kept kept = mp_keep();
    mp_rec_ensure(call->rec, call->callable);
    PyObject *type = mp_call_imported("magpy.progress", "stand_in", "(O)", call->callable);
    if (type) {
        Py_INCREF(type);
        Py_SETREF(*slot, type);
        call->callable = type; /* kept by the stack */
    }
    Py_XDECREF(type);
    mp_restore(kept);
}

/* -- Classes and exceptions from outside ------------------------------------------------------------------------------------ */

/* callable(object): does its class have __call__? */
void mp_handle_callable(mp_call *call)
{
    if (call->nargs == 1 && !mp_is_scalar(call->args[0])) mp_rec_type(call->rec, call->args[0]);
}

/* What an exception of the call's own is made of is seen when it is rebuilt; one from outside would have to be changed at the commit. */
void mp_handle_change_exception(mp_call *call)
{
    PyObject *error = call->nargs ? call->args[0] : NULL;
    if (error && mp_rec_find(call->rec, error) != MP_NO_OBJ)
        mp_call_abandon(call, MP_REASON_EFFECT, "changes an exception from outside the call");
}
