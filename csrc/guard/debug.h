/* Guards from Python, for tests and for people. */
#ifndef MP_GUARD_DEBUG_H
#define MP_GUARD_DEBUG_H
#include "magpy.h"

/* Add _C._guards. 0, or -1 with an exception. */
int mp_guard_debug_init(PyObject *module);

#endif
