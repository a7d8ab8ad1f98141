/* Imports inside the call: modules that are there are reads of sys.modules, others run their code, which is no part of the recording. */
#include "trace/opcodes.h"
#include "trace/raw.h"

#include "guard/torch_state.h"

/* sys.modules[name] and the packages above it. False if it is not imported yet. */
static bool read_module(mp_recorder *rec, const char *name)
{
    PyObject *modules = PyImport_GetModuleDict();
    mp_rec_pin(rec, modules, "sys.modules");
    for (const char *end = name; end; end = *end ? end : NULL) {
        end = strchr(end == name ? end : end + 1, '.');
        if (!end) end = name + strlen(name);
        PyObject *key = PyUnicode_FromStringAndSize(name, end - name);
        if (!key) return false;
        PyUnicode_InternInPlace(&key);
        PyObject *module = mp_dict_item(rec, modules, key);
        mp_rec_read(rec, modules, MP_READ_KEY, key, module);
        Py_DECREF(key);
        if (!module) return false;
    }
    return true;
}

/* The absolute name of a relative import. False if the package is not known by __package__. */
static bool absolute_name(mp_recorder *rec, const mp_frame *frame, long level, const char *name, char *out, size_t size)
{
    PyObject *key = mp_intern("__package__");
    if (!key) return false;
    mp_read_global(rec, frame, key);
    PyObject *package = mp_dict_item(rec, frame->globals, key);
    Py_DECREF(key);
    if (!package || !PyUnicode_CheckExact(package)) return false;
    int n = snprintf(out, size, "%s", PyUnicode_AsUTF8(package));
    if (n < 0 || (size_t)n >= size) return false;
    for (; level > 1; level--) {
        char *dot = strrchr(out, '.');
        if (!dot) return false;
        *dot = 0;
    }
    size_t at = strlen(out);
    n = name[0] ? snprintf(out + at, size - at, ".%s", name) : 0;
    return n >= 0 && (size_t)n < size - at;
}

static bool is_imported(const char *name)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), name);
    return module != NULL;
}

/* A module that is imported for the first time: its code runs now and is no part of the recording, for a later call finds it there. That it has
** changed nothing which the call has read before is made sure of. False after abandoning. */
static bool import_first(mp_recorder *rec, const mp_frame *frame, int oparg, const char *absolute, long level)
{
    if (is_imported(absolute)) return true;
    PyObject *hook = PyDict_GetItemString(frame->builtins, "__import__");
    PyObject *before = mp_torch_state_read();
    const char *why = NULL;
    if (!hook || !PyCFunction_Check(hook) || (TOP(1) != Py_None && !PyTuple_CheckExact(TOP(1))))
        why = "by a function of the program's";
    else if (!mp_observe_import(name_of(frame, oparg), frame->globals, TOP(1), (int)level))
        why = "which raised";
    else if (!before || !mp_torch_state_same(before, NULL) || !mp_rec_reads_stay(rec))
        why = "which changed what the call had read";
    Py_XDECREF(before);
    if (why) mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "first import of %s, %s", absolute, why);
    return !why;
}

void mp_import_name(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    const char *name = PyUnicode_AsUTF8(name_of(frame, oparg));
    PyObject *hook = mp_intern("__import__");
    if (!name || !hook) return;
    mp_rec_pin(rec, frame->builtins, "builtins");
    mp_read_key(rec, frame->builtins, hook);
    Py_DECREF(hook);
    long level = PyLong_Check(TOP(2)) ? PyLong_AsLong(TOP(2)) : 0;
    char absolute[512];
    if (level > 0 && !absolute_name(rec, frame, level, name, absolute, sizeof absolute)) {
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "relative import of %s", name);
        return;
    }
    if (import_first(rec, frame, oparg, level > 0 ? absolute : name, level) &&
        !read_module(rec, level > 0 ? absolute : name))
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "first import of %s", name);
}

void mp_import_from(mp_recorder *rec, const mp_frame *frame, int oparg)
{
    PyObject *module = TOP(1), *name = name_of(frame, oparg);
    mp_rec_attr(rec, module, name);
    if (!PyModule_Check(module) || mp_dict_item(rec, PyModule_GetDict(module), name)) return;
    const char *package = PyModule_GetName(module),
               *part = PyUnicode_AsUTF8(name); /* a submodule not (yet) set as attribute */
    char full[512];
    if (package && part && snprintf(full, sizeof full, "%s.%s", package, part) < (int)sizeof full)
        read_module(rec, full);
    PyErr_Clear();
}
