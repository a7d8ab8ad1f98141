/* The guard room's part of the module. */
#include "guard/debug.h"

int mp_guard_module_init(PyObject *module) { return mp_guard_debug_init(module); }
