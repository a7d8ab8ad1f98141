/* Observe's inside: between its files only. */
#ifndef MP_OBSERVE_INTERNAL_H
#define MP_OBSERVE_INTERNAL_H
#include "observe/observe.h"

/* -- mode.c: the torch-function mode ------------------------------------------------------------------------------------ */

int mp_mode_init(PyObject *module); /* 0, or -1 with an exception */
/* Push the mode on torch's stack. False if torch is not imported, or after having abandoned `rec`. */
bool mp_mode_push(mp_recorder *rec);
bool mp_mode_pop_if_top(void); /* true: it was on top and is gone. May leave an exception */
void mp_mode_remove(void);     /* take it out from under the modes above it. Keeps no exception */
/* Is this the code with which torch hands a call to the mode? */
bool mp_mode_is_dispatch(PyCodeObject *code);

/* -- observe_311.c --------------------------------------------------------------------------------------------------------- */

void mp_observe_init_tables(void);
/* A torch function arrived at the mode: call it, observed. Owned result, or NULL with its exception. */
PyObject *mp_observe_torch_function(PyObject *func, PyObject *args, PyObject *kwargs);

/* -- frames_311.c, debug.c --------------------------------------------------------------------------------------------------- */

bool mp_observe_hook_installed(void); /* is the eval hook ours? */
int mp_observe_debug_init(PyObject *module);

#endif
