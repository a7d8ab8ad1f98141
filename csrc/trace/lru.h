/* Looks into functools.lru_cache. No user code runs as long as the arguments hash and compare in C alone; nothing is counted. */
#ifndef MP_TRACE_LRU_H
#define MP_TRACE_LRU_H
#include "magpy.h"

/* Is the layout of the caches the one we know? */
bool mp_lru_ready(void);
/* Does it cache at all (maxsize is not 0)? wrapper: an exact functools._lru_cache_wrapper, here and below. */
bool mp_lru_caches(PyObject *wrapper);
/* What stands in `args` between positional arguments and names and values of keywords, in the call's order. Borrowed; NULL if that cannot be
** looked for. */
PyObject *mp_lru_mark(void);
/* What is cached for these arguments (tuple), borrowed; NULL if nothing is. Keeps a pending exception. */
PyObject *mp_lru_find(PyObject *wrapper, PyObject *args);

#endif
