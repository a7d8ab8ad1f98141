/* Common ground of all rooms: Python, the one way to give up, per-module state, logging.
**
** Rooms (data flows down, never back up): observe, trace, guard, mock, dispatch, ir, fuse, codegen, run.
** Exported names are mp_<room>_<verb>. Every pointer is said to be borrowed or owned where it is declared.
** Functions that can fail return -1/NULL; whether a Python exception is then set is said at each declaration.
*/
#ifndef MAGPY_H
#define MAGPY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030C0000
#error "magpy observes CPython 3.11 only"
#endif

#define MP_COLD __attribute__((cold))
#define MP_LIKELY(x) __builtin_expect(!!(x), 1)
#define MP_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* -- Giving up --------------------------------------------------------------------------------------------------- */

/* Every reason for not tracing, not compiling or falling back is one row of reasons.h. A reason travels as this value:
** what kind, what it was about, and where in the user's program. */
typedef enum {
#define MP_REASON(code, text) MP_REASON_##code,
#include "reasons.h"
#undef MP_REASON
    MP_REASON_COUNT
} mp_reason_code;

typedef struct {
    mp_reason_code code; /* MP_REASON_NONE: nothing went wrong */
    char detail[200];    /* what it was about, such as a callable's name; NUL-terminated, may be empty */
    char file[256];      /* the user's file, or empty */
    int line;            /* the user's line, or 0 */
} mp_reason;

/* Fill `why` (first reason wins: a set reason stays). `detail` is printf-style. Never fails. */
void mp_reason_set(mp_reason *why, mp_reason_code code, const char *detail, ...) __attribute__((format(printf, 3, 4)));

/* Turn the pending Python exception into the detail of `why` and clear it, as mp_error_clear does. */
void mp_reason_set_exception(mp_reason *why, mp_reason_code code);

/* Clear the pending exception, if any. What a signal handler of the program's raised, and what ends the program (KeyboardInterrupt, SystemExit:
** no Exception), is not ours to lose: it is kept for this thread until mp_error_resume. To be used instead of PyErr_Clear wherever Python code may have run. */
void mp_error_clear(void);
/* At the end of a compiled call: `result` (owned, or NULL with an exception) as it is, or NULL with the exception that was kept. */
PyObject *mp_error_resume(PyObject *result);
/* Is an exception being kept? */
bool mp_error_kept(void);

/* The reason's fixed text, without detail. Static storage. */
const char *mp_reason_text(mp_reason_code code);

/* One line for people: "text: detail (file:line)". Returns an owned str, or NULL with an exception. */
PyObject *mp_reason_describe(const mp_reason *why);

/* -- Python's modules --------------------------------------------------------------------------------------------- */

/* `name` of `module`, which is imported if need be. Owned, or NULL with an exception. */
PyObject *mp_import(const char *module, const char *name);
/* What that gives when it is called with a tuple of arguments (`format` of Py_BuildValue, in parentheses). Owned, or NULL with an exception. */
PyObject *mp_call_imported(const char *module, const char *name, const char *format, ...);

/* -- Rooms' module parts ------------------------------------------------------------------------------------------ */

/* Each room adds its types and functions to the module. Return 0, or -1 with an exception set. */
int mp_observe_module_init(PyObject *module);
int mp_trace_module_init(PyObject *module);
int mp_guard_module_init(PyObject *module);
int mp_mock_module_init(PyObject *module);
int mp_dispatch_module_init(PyObject *module);
int mp_ir_module_init(PyObject *module);
int mp_run_module_init(PyObject *module);

/* Log through the Python logger "magpy" at `level` ("debug", "info", "warning"). Keeps a pending exception; never fails. */
void mp_log(const char *level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
