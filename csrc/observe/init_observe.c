/* The module part of observe: tables, the mode's type, the debug function. */
#include "observe/internal.h"

int mp_observe_module_init(PyObject *module)
{
    mp_observe_init_tables();
    return mp_mode_init(module) < 0 || mp_observe_debug_init(module) < 0 ? -1 : 0;
}
