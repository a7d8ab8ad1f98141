/* The extension's own build ID: a hash of its content that the linker writes into it. */
#ifndef MP_RUN_BUILD_ID_H
#define MP_RUN_BUILD_ID_H
#include "magpy.h"

/* Owned bytes, or None where the linker wrote none. NULL with an exception on no memory. */
PyObject *mp_build_id(void);

#endif
