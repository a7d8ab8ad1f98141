/* Interned names: strings of the source by their address, so that a name that is asked for at every instruction is made once. */
#include "trace/raw.h"

enum { NAMES = 512 }; /* slots; a power of two, a few times as many as there are names */

static struct {
    const char *text;
    PyObject *name; /* owned by the process, as interned strings are */
} names[NAMES];     /* protected by the GIL */

PyObject *mp_intern(const char *text)
{
    size_t slot = (uintptr_t)text * 0x9E3779B97F4A7C15u >> 55;
    if (MP_LIKELY(names[slot].text == text) && strcmp(PyUnicode_AsUTF8(names[slot].name), text) == 0)
        return Py_NewRef(names[slot].name); /* compared, as not every text lives for ever at its address */
    PyObject *name = PyUnicode_InternFromString(text);
    if (!name) return NULL;
    Py_XSETREF(names[slot].name, Py_NewRef(name));
    names[slot].text = text;
    return name;
}
