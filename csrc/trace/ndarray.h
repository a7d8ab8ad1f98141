/* numpy's arrays as C sees them. Their fields are private but fixed by numpy's ABI; they are compared with what an array tells of itself before
** anything relies on them (arrays.c).
*/
#ifndef MP_TRACE_NDARRAY_H
#define MP_TRACE_NDARRAY_H
#include "magpy.h"

typedef struct { /* numpy's PyArrayObject, whose fields are private but fixed by its ABI */
    PyObject_HEAD char *data;
    int nd;
    Py_ssize_t *dimensions, *strides; /* strides in bytes */
    PyObject *base;                   /* what owns the memory, or NULL */
    PyObject *descr;                  /* the dtype */
    int flags;
} mp_array;

enum { MP_ARRAY_OWNS = 4, MP_ARRAY_ALIGNED = 0x100, MP_ARRAY_WRITEABLE = 0x400 };

bool mp_is_array(PyObject *object);       /* exactly numpy.ndarray; never where its layout is not as known */
bool mp_is_array_flags(PyObject *object); /* what array.flags gives: setting them changes the array */
Py_ssize_t mp_array_item_size(PyObject *array);
/* Strides in elements, without their signs: owned tuple, or NULL with an exception. */
PyObject *mp_array_strides(PyObject *array);
/* First element, and the bytes [*begin, *end) that the elements lie in. */
void mp_array_range(PyObject *array, char **first, char **begin, char **end);

#endif
