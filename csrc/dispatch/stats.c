/* Counters of the process, and the fallbacks of the process and of each callable. */
#include "dispatch/dispatch.h"

#include <string.h>

#define MAX_ROWS 64 /* reasons with place that a callable remembers; more are only counted for the process */

mp_counters mp_stats;
static uint64_t fallbacks[MP_REASON_COUNT];

static const char *const reason_names[] = {
#define MP_REASON(code, text) #code,
#include "reasons.h"
#undef MP_REASON
};

void mp_stats_fallback(const mp_reason *why)
{
    if ((unsigned)why->code < MP_REASON_COUNT) fallbacks[why->code]++;
}

static bool same_place(const mp_reason *a, const mp_reason *b)
{ return a->code == b->code && a->line == b->line && !strcmp(a->file, b->file) && !strcmp(a->detail, b->detail); }

void mp_fallbacks_count(mp_fallbacks *list, const mp_reason *why)
{
    mp_stats_fallback(why);
    for (uint32_t i = 0; i < list->n; i++)
        if (same_place(&list->rows[i], why)) {
            list->counts[i]++;
            return;
        }
    if (list->n == MAX_ROWS) return;
    if (!list->rows) {
        list->rows = PyMem_Malloc(MAX_ROWS * sizeof *list->rows);
        list->counts = PyMem_Malloc(MAX_ROWS * sizeof *list->counts);
        if (!list->rows || !list->counts) { /* counted for the process at least */
            mp_fallbacks_clear(list);
            return;
        }
    }
    list->rows[list->n] = *why;
    list->counts[list->n++] = 1;
    mp_log("info", "not compiled: %s%s%s (%s:%d)", mp_reason_text(why->code), why->detail[0] ? ": " : "", why->detail,
           why->file[0] ? why->file : "?", why->line);
}

PyObject *mp_fallbacks_list(const mp_fallbacks *list)
{
    PyObject *result = PyList_New(0);
    for (uint32_t i = 0; result && i < list->n; i++) {
        const mp_reason *why = &list->rows[i];
        PyObject *text = mp_reason_describe(why);
        PyObject *row =
            text ? Py_BuildValue("{s:s,s:O,s:s,s:i,s:K}", "reason", reason_names[why->code], "text", text, "file",
                                 why->file, "line", why->line, "count", (unsigned long long)list->counts[i])
                 : NULL;
        Py_XDECREF(text);
        if (!row || PyList_Append(result, row) < 0) Py_CLEAR(result);
        Py_XDECREF(row);
    }
    return result;
}

void mp_fallbacks_clear(mp_fallbacks *list)
{
    PyMem_Free(list->rows);
    PyMem_Free(list->counts);
    *list = (mp_fallbacks){0};
}

/* -- Python ------------------------------------------------------------------------------------------------------ */

/* _C.counters() -> dict of the process's counters; "fallbacks" maps reason names to counts, without those at 0. */
PyObject *mp_stats_counters(PyObject *module, PyObject *unused)
{
    PyObject *reasons = PyDict_New();
    for (int i = 0; reasons && i < MP_REASON_COUNT; i++) {
        if (!fallbacks[i]) continue;
        PyObject *count = PyLong_FromUnsignedLongLong(fallbacks[i]);
        if (!count || PyDict_SetItemString(reasons, reason_names[i], count) < 0) Py_CLEAR(reasons);
        Py_XDECREF(count);
    }
    if (!reasons) return NULL;
#define MP_COUNTER_FORMAT(name) "s:K,"
#define MP_COUNTER_VALUE(name) #name, (unsigned long long)mp_stats.name,
    return Py_BuildValue("{" MP_COUNTERS(MP_COUNTER_FORMAT) "s:N,s:{s:d,s:d,s:d}}",
                         MP_COUNTERS(MP_COUNTER_VALUE) "fallbacks", reasons, "seconds", "observing",
                         mp_stats.seconds_observing, "lowering", mp_stats.seconds_lowering, "compiling",
                         mp_stats.seconds_compiling);
}

/* _C.clear_counters(): set all counters to zero. */
PyObject *mp_stats_clear(PyObject *module, PyObject *unused)
{
    mp_stats = (mp_counters){0};
    memset(fallbacks, 0, sizeof fallbacks);
    Py_RETURN_NONE;
}

/* _C.reasons() -> dict of reason names and their texts. */
PyObject *mp_stats_reasons(PyObject *module, PyObject *unused)
{
    PyObject *result = PyDict_New();
    for (int i = 1; result && i < MP_REASON_COUNT; i++) {
        PyObject *text = PyUnicode_FromString(mp_reason_text(i));
        if (!text || PyDict_SetItemString(result, reason_names[i], text) < 0) Py_CLEAR(result);
        Py_XDECREF(text);
    }
    return result;
}
