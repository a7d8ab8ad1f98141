/* The module part of trace: its types and functions. */
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/opaque.h"
#include "trace/tensors.h"

int mp_trace_module_init(PyObject *module)
{
    if (mp_trace_init_ref(module) < 0 || mp_values_module_init(module) < 0) return -1;
    if (mp_numbers_module_init(module) < 0) return -1;
    if (mp_opaque_module_init(module) < 0 || mp_draws_module_init(module) < 0) return -1;
    return mp_ops_module_init(module) < 0 ? -1 : mp_effects_module_init(module);
}
