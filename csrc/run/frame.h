/* Frame: what one running call of a plan owns. Handles and addresses of all values, the arena, and the argument words of calls.
**
** A plan keeps a few idle frames; a call takes one and gives it back, so that concurrent and re-entrant calls never share one.
** Frames are taken and given back with the GIL held; between, a frame belongs to its call alone.
*/
#ifndef MP_RUN_FRAME_H
#define MP_RUN_FRAME_H
#include "run/torch_abi.h"
#include "fuse/schedule.h"

typedef enum {
    MP_HELD_NOT,   /* borrowed (an input's) or absent */
    MP_HELD_RUN,   /* owned, deleted at the latest when the run ends */
    MP_HELD_FRAME, /* owned, deleted with the frame (tensors in the arena) */
} mp_held;

typedef struct mp_frame {
    struct mp_frame *next; /* idle frames of the plan */
    mp_handle arena;  /* owned uint8 tensor, or NULL: its storage is shared by the tensors in it, so none can dangle */
    char *arena_base; /* its first byte, 64-byte aligned */
    mp_handle *handles;      /* [n_values] NULL where there is none */
    uint8_t *held;           /* [n_values] mp_held */
    char **pointers;         /* [n_values] address of element 0, for values that kernels use */
    uint64_t *words;         /* argument words of all calls: a copy of the plan's template, with addresses filled in */
    int bad;                 /* a kernel found an index out of range */
    uint32_t n_inputs;       /* values [0, n_inputs) are the inputs */
    PyObject *const *inputs; /* borrowed for the run */
} mp_frame;

/* Delete the handle of value `v` if the run owns it. */
static inline void mp_frame_drop(mp_frame *frame, mp_val v)
{
    if (frame->held[v] != MP_HELD_RUN) return;
    mp_torch.delete_handle(frame->handles[v]);
    frame->handles[v] = NULL;
    frame->held[v] = MP_HELD_NOT;
}

/* Is the memory of `handle` in the frame's arena? */
static inline bool mp_frame_in_arena(const mp_frame *frame, mp_handle handle, int64_t arena_bytes)
{
    void *data = NULL;
    if (!frame->arena || mp_torch.get_data_ptr(handle, &data) || !data) return false;
    return (char *)data >= frame->arena_base && (char *)data < frame->arena_base + arena_bytes;
}

#endif
