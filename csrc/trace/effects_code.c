/* Handlers of C callables that run code, or look at frames: eval, exec, locals, and the frame that a new class is said to come from. Each
** frame shows what it does itself; what is recorded here is where its names are.
*/
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include "observe/observe.h"

enum { FAST_CELL = 0x40, FAST_FREE = 0x80 }; /* CO_FAST_CELL, CO_FAST_FREE of CPython's pycore_code.h, 3.11 */

/* -- Names of the running frame ------------------------------------------------------------------------------------------- */

/* All its variables at once: those in cells may be outside ones. */
static void read_variables(mp_call *call)
{
    PyCodeObject *code = call->frame->code;
    if (call->frame->locals) { /* of a class or module: the dict itself */
        if (call->frame->locals == call->frame->globals) mp_rec_pin(call->rec, call->frame->globals, "globals");
        return;
    }
    const char *kinds = code ? PyBytes_AS_STRING(code->co_localspluskinds) : NULL;
    for (int i = 0; kinds && i < code->co_nlocalsplus; i++) {
        PyObject *cell = call->frame->localsplus[i];
        if (kinds[i] & (FAST_CELL | FAST_FREE) && cell && PyCell_Check(cell))
            mp_rec_read(call->rec, cell, MP_READ_CELL, NULL, PyCell_GET(cell));
    }
}

void mp_handle_locals(mp_call *call) { read_variables(call); }

void mp_handle_vars(mp_call *call)
{
    if (!call->nargs) {
        read_variables(call);
        return;
    }
    PyObject *object = call->args[0];
    if (call->nargs != 1 || mp_is_scalar(object) || mp_is_tensor(object)) return;
    mp_kept kept = mp_keep();
    PyObject *key = mp_intern("__dict__");
    if (key) mp_rec_attr(call->rec, object, key);
    Py_XDECREF(key);
    mp_restore(kept);
}

/* -- eval, exec ---------------------------------------------------------------------------------------------------------------- */

/* A dict that code will take for its globals. One of the call's own is no outside location, nor are builtins of its own in it; to one
** from outside nothing may be added. */
static void enter_namespace(mp_call *call, PyObject *globals)
{
    mp_kept kept = mp_keep();
    PyObject *key = mp_intern("__builtins__"), *builtins = NULL;
    bool told = key && mp_dict_find_str(globals, key, &builtins) >= 0;
    if (!told)
        mp_rec_abandon(call->rec, MP_REASON_UNGUARDABLE, "a namespace with keys that compare by Python code");
    else if (globals == call->frame->globals || mp_rec_find(call->rec, globals) != MP_NO_OBJ) {
        mp_rec_pin(call->rec, globals, "globals");
        mp_rec_read(call->rec, globals, MP_READ_KEY, key, builtins);
        if (!builtins) mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "in outside globals without __builtins__");
    } else {
        mp_rec_internal(call->rec, globals);
        if (builtins && PyDict_Check(builtins) && builtins != PyEval_GetBuiltins() &&
            builtins != call->frame->builtins && mp_rec_find(call->rec, builtins) == MP_NO_OBJ)
            mp_rec_internal(call->rec, builtins);
    }
    Py_XDECREF(key);
    mp_restore(kept);
}

/* Text, or code, in the namespaces given or in those of the running frame. Compiling has no effect; the code's frame is watched. */
void mp_handle_eval(mp_call *call)
{
    PyObject *source = call->nargs ? call->args[0] : NULL, *namespaces[2] = {NULL, NULL};
    for (Py_ssize_t i = 1; i < call->nargs && i < 3; i++)
        if (call->args[i] != Py_None) namespaces[i - 1] = call->args[i];
    if (!source) return; /* raises */
    if (!(PyUnicode_CheckExact(source) || PyBytes_CheckExact(source) || PyCode_Check(source)) || call->nkw) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of what is neither text nor code");
        return;
    }
    for (int i = 0; i < 2; i++)
        if (namespaces[i] && !PyDict_CheckExact(namespaces[i])) {
            mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "in a namespace that is no dict");
            return;
        }
    if (PyCode_Check(source)) mp_rec_identity(call->rec, source);
    enter_namespace(call, namespaces[0] ? namespaces[0] : call->frame->globals);
    if (!namespaces[0] && !namespaces[1]) read_variables(call);
}

/* -- Frames ------------------------------------------------------------------------------------------------------------------------ */

/* Library functions that make a class and ask for nothing of a frame but its module's name. */
static bool names_a_class(PyCodeObject *code)
{
    static const char *const makers[] = {"namedtuple", "_caller", "_create_"};
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++)
        if (PyUnicode_CompareWithASCIIString(code->co_name, makers[i]) == 0) return mp_is_library_code(code);
    return false;
}

/* sys._getframe(depth), for its globals. */
void mp_handle_getframe(mp_call *call)
{
    mp_kept kept = mp_keep();
    long depth = call->nargs && PyLong_CheckExact(call->args[0]) ? PyLong_AsLong(call->args[0]) : 0;
    PyFrameObject *frame = (PyFrameObject *)Py_XNewRef((PyObject *)PyEval_GetFrame());
    bool seen = call->frame->code && names_a_class(call->frame->code) && depth >= 0 &&
                depth + 1 < (long)call->rec->n_frames; /* frames[0] is whoever called the target */
    for (; seen && frame && depth > 0; depth--) {
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_SETREF(frame, back);
    }
    PyObject *globals = seen && frame ? PyFrame_GetGlobals(frame) : NULL;
    if (globals)
        mp_rec_pin(call->rec, globals, "globals");
    else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "a frame is looked at");
    Py_XDECREF(globals);
    Py_XDECREF(frame);
    mp_restore(kept);
}
