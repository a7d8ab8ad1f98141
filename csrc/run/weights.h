/* Marks of weights: by what one knows that a tensor is the same and holds the same numbers. And how weights are packed (magpy/packing.py). */
#ifndef MP_RUN_WEIGHTS_H
#define MP_RUN_WEIGHTS_H
#include "magpy.h"

typedef struct {
    PyObject *reference; /* owned: a weak one to the tensor */
    uint32_t version;
    void *data;
    int64_t bytes; /* from the first to behind the last element */
    char *content; /* owned copy of these, or NULL: there are too many to be compared */
} mp_weight_mark;

/* Mark `tensor`; gone(reference) is called when it has gone. Returns 0, 1 where it cannot be marked (it is an inference tensor, which has no
** version), or -1 with an exception; *mark is to be freed in any case. */
int mp_weight_mark_take(mp_weight_mark *mark, PyObject *tensor, PyObject *gone);

/* Is `tensor` that of the mark, with nothing changed that could be noticed? 1, 0, or -1 with an exception. */
int mp_weight_mark_holds(const mp_weight_mark *mark, PyObject *tensor);

void mp_weight_mark_free(mp_weight_mark *mark);

/* Add the functions to the module. Returns 0, or -1 with an exception. */
int mp_weights_init(PyObject *module);

#endif
