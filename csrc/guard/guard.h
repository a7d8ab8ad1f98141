/* Guards: does what a trace read still hold?
**
** A guard program is made once from a finished recording and then only evaluated. Evaluation runs no user code, allocates nothing
** on the fast path, changes nothing outside, and stops at the first check that fails. Two tiers:
**   snapshot: a flat array of (address, expected word), parents before children: dict and type versions, instance types, function
**             versions, cells, list items. A pointer in it is followed only after its holder has been verified, so none dangles.
**   walk:     on a mismatch, the reads themselves are evaluated from the roots; if they hold, the snapshot is renewed.
** Tensors are checked by metadata in place on every call. The GIL is held throughout.
*/
#ifndef MP_GUARD_H
#define MP_GUARD_H
#include "trace/recording.h"

typedef struct mp_guard_program mp_guard_program;
typedef uint32_t mp_guard_id;

typedef struct { /* the call as the callable received it; borrowed, positional then keyword values */
    PyObject *target;
    PyObject *const *args;
    size_t nargs;      /* positional */
    PyObject *kwnames; /* tuple or NULL */
} mp_call;

/* Compile. `wanted`: external objects whose current counterpart the caller needs on a hit (graph inputs, then what mocks name), in
** order. Copies what it needs: the recording may be freed afterwards. Owned program, or NULL with *why (UNGUARDABLE) set. */
mp_guard_program *mp_guard_compile(const mp_recording *recording, const mp_call *call, const mp_obj_id *wanted,
                                   size_t n_wanted, mp_reason *why);

/* 1: all hold, and bound[i] is the (borrowed) current object of wanted[i]. 0: a miss, *miss names the check. Never fails: what
** cannot be evaluated is a miss. */
int mp_guard_check(mp_guard_program *prog, const mp_call *call, PyObject **bound, mp_guard_id *miss);

/* The name (mp_recording_number_name) of an int or float that a check expects by value. Owned str; NULL without an exception: it expects something
** else, or with one. */
PyObject *mp_guard_number_name(const mp_guard_program *prog, mp_guard_id id);

/* After a miss: add to the set `names` those of all ints and floats that the call has other values of than the checks expect, up to the first
** check that fails for another reason. Leaves no exception. */
void mp_guard_other_numbers(mp_guard_program *prog, const mp_call *call, PyObject *names);

/* One line for people, such as "self.training is False (model.py:41)". Owned str, or NULL with an exception. */
PyObject *mp_guard_describe(const mp_guard_program *prog, mp_guard_id id);
uint32_t mp_guard_count(const mp_guard_program *prog);

/* Metadata for the recorder, read as guards will compare it. prepare: find out once how tensors are laid out; call it where the
** interpreter and torch are in their usual state. read_tensor: fill `meta` (all zero; size and stride owned) but for `version` from an
** ordinary dense tensor on the CPU; false, with nothing owned, for any other and where the layout is not known. No code of torch's
** Python runs. */
void mp_guard_prepare(void);
bool mp_guard_read_tensor(PyObject *tensor, mp_tensor_meta *meta);
/* First element of a strided tensor, and the bytes [*begin, *end) that its elements lie in. False: unknown. */
bool mp_guard_tensor_range(PyObject *tensor, char **first, char **begin, char **end);
/* May two elements of a strided tensor lie at one place (expanded ones, overlapping windows)? False where that is unknown. */
bool mp_guard_tensor_overlaps(PyObject *tensor);

/* Is the tensor sparse, quantised or in another form than strided memory of plain numbers? False also where torch does not tell. */
bool mp_guard_tensor_opaque(PyObject *tensor);

/* Fill `meta` (all zero; size and stride owned by the caller, also where this fails) but for `version` from such a tensor; what is not
** strided gets no strides. False: torch does not tell. */
bool mp_guard_read_opaque(PyObject *tensor, mp_tensor_meta *meta);

int mp_guard_traverse(mp_guard_program *prog, visitproc visit, void *arg);
void mp_guard_free(mp_guard_program *prog); /* NULL is fine */

#endif
