/* Marks of weights: _C._weight_marks and _C._weights_hold, which magpy/freezing.py uses. */
#ifndef MP_RUN_WEIGHTS_H
#define MP_RUN_WEIGHTS_H
#include "magpy.h"

/* Add the functions to the module. Returns 0, or -1 with an exception. */
int mp_weights_init(PyObject *module);

#endif
