/* Reasons for giving up, and logging. */
#include "magpy.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const reason_texts[] = {
#define MP_REASON(code, text) text,
#include "reasons.h"
#undef MP_REASON
};

const char *mp_reason_text(mp_reason_code code) { return (unsigned)code < MP_REASON_COUNT ? reason_texts[code] : "?"; }

void mp_reason_set(mp_reason *why, mp_reason_code code, const char *detail, ...)
{
    if (!why || why->code != MP_REASON_NONE) return;
    why->code = code;
    va_list args;
    va_start(args, detail);
    vsnprintf(why->detail, sizeof why->detail, detail, args);
    va_end(args);
}

static _Thread_local PyObject *kept; /* owned: an exception that is to be raised when the call ends, or NULL */

/* What a signal handler of the program's raised, if the exception comes from that. Owned, or NULL without an exception. */
static PyObject *interrupt_of(PyObject *value)
{
    PyObject *found = mp_call_imported("magpy.interrupts", "interrupt_of", "(O)", value);
    if (found == Py_None) Py_CLEAR(found);
    PyErr_Clear();
    return found;
}

static void keep(PyObject *value)
{
    if (!value || kept || !PyExceptionInstance_Check(value)) return;
    if (!PyObject_TypeCheck(value, (PyTypeObject *)PyExc_Exception))
        kept = Py_NewRef(value);
    else if (((PyBaseExceptionObject *)value)->traceback) /* it passed through Python code */
        kept = interrupt_of(value);
}

bool mp_error_kept(void) { return kept != NULL; }

void mp_error_clear(void)
{
    if (!PyErr_Occurred()) return;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (trace || !PyErr_GivenExceptionMatches(type, PyExc_Exception)) {
        PyErr_NormalizeException(&type, &value, &trace);
        if (value && trace) PyException_SetTraceback(value, trace);
        keep(value);
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

PyObject *mp_error_resume(PyObject *result)
{
    if (MP_LIKELY(!kept)) return result;
    PyObject *value = kept;
    kept = NULL;
    Py_CLEAR(result); /* may run the program's code, which finds nothing kept any more */
    PyErr_SetObject((PyObject *)Py_TYPE(value),
                    value); /* chained to what was raised instead of a result, if anything */
    Py_DECREF(value);
    return NULL;
}

void mp_reason_set_exception(mp_reason *why, mp_reason_code code)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (value && trace) PyException_SetTraceback(value, trace);
    keep(value);
    PyObject *text = value ? PyObject_Str(value) : NULL;
    const char *chars = text ? PyUnicode_AsUTF8(text) : NULL;
    mp_error_clear(); /* a message that cannot be printed is no reason to fail */
    mp_reason_set(why, code, "%s: %s", type ? ((PyTypeObject *)type)->tp_name : "?", chars ? chars : "");
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

PyObject *mp_reason_describe(const mp_reason *why)
{
    char where[300] = "";
    if (why->file[0]) snprintf(where, sizeof where, " (%s:%d)", why->file, why->line);
    return PyUnicode_FromFormat("%s%s%s%s", mp_reason_text(why->code), why->detail[0] ? ": " : "", why->detail, where);
}

void mp_log(const char *level, const char *format, ...)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    PyObject *logging = PyImport_ImportModule("logging");
    PyObject *logger = logging ? PyObject_CallMethod(logging, "getLogger", "s", "magpy") : NULL;
    PyObject *done = logger ? PyObject_CallMethod(logger, level, "ss", "%s", text) : NULL;
    if (!done) mp_error_clear(); /* logging must never change the outcome of a call */
    Py_XDECREF(done);
    Py_XDECREF(logger);
    Py_XDECREF(logging);
    PyErr_Restore(type, value, trace);
}
