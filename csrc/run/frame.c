/* Frames: making, taking and giving back what one call of a plan owns. */
#include "run/plan_inside.h"

#define MAX_IDLE 4 /* frames kept by a plan: one, and some for as many concurrent callers */

/* -- Making ----------------------------------------------------------------------------------------------------------- */

int mp_frame_make_view(const mp_plan *plan, mp_frame *frame, mp_val v)
{
    const mp_place *place = &plan->schedule->places[v];
    mp_val root = plan->roots[v];
    const mp_meta *meta = &place->meta, *of = &plan->schedule->places[root].meta;
    mp_handle from = frame->handles[root];
    int64_t start, item = mp_plan_item(plan, v), from_item = mp_plan_item(plan, root);
    if (!from || mp_torch.get_storage_offset(from, &start)) return 1;
    int64_t bytes = (start - of->offset) * from_item + meta->offset * item; /* of element 0 in the storage */
    if (meta->dtype == of->dtype)
        return mp_torch.reinterpret(from, meta->ndim, meta->size, meta->stride, bytes / item - start,
                                    &frame->handles[v]);
    return mp_torch.alloc_from_pool(from, bytes, meta->dtype, meta->ndim, meta->size, meta->stride, &frame->handles[v]);
}

/* Fill in what does not change between runs: tensors in the arena and views of them. Returns 0, or 1 if torch failed. */
static int fill_arena(const mp_plan *plan, mp_frame *frame)
{
    const mp_schedule *schedule = plan->schedule;
    int64_t bytes = schedule->arena_bytes, one = 1;
    if (bytes <= 0) return 0;
    if (mp_torch.empty_strided(1, &bytes, &one, MP_U8, 0, -1, &frame->arena)) return 1;
    if (mp_torch.get_data_ptr(frame->arena, (void **)&frame->arena_base)) return 1;
    for (mp_val v = 0; v < plan->graph->n_values; v++) {
        const mp_place *place = &schedule->places[v];
        if (place->home != MP_HOME_ARENA) continue;
        frame->pointers[v] = frame->arena_base + place->arena_offset;
        if (!(plan->needs[v] & MP_NEED_HANDLE)) continue;
        if (mp_torch.alloc_from_pool(frame->arena, place->arena_offset, place->meta.dtype, place->meta.ndim,
                                     place->meta.size, place->meta.stride, &frame->handles[v]))
            return 1;
        frame->held[v] = MP_HELD_FRAME;
    }
    for (mp_val v = 0; v < plan->graph->n_values; v++) {
        if (schedule->places[v].home != MP_HOME_VIEW || !(plan->needs[v] & MP_NEED_HANDLE)) continue;
        if (schedule->places[plan->roots[v]].home != MP_HOME_ARENA) continue;
        if (mp_frame_make_view(plan, frame, v)) return 1;
        frame->held[v] = MP_HELD_FRAME;
    }
    return 0;
}

static void fill_words(const mp_plan *plan, mp_frame *frame)
{
    const mp_words *words = &plan->words;
    if (words->n) memcpy(frame->words, words->words, words->n * sizeof *words->words);
    for (uint32_t i = 0; i < words->n_relocations; i++)
        frame->words[words->relocations[i].word] = (uint64_t)(uintptr_t)&frame->words[words->relocations[i].target];
}

void mp_frame_free(mp_plan *plan, mp_frame *frame)
{
    for (mp_val v = 0; v < plan->graph->n_values; v++)
        if (frame->held[v] != MP_HELD_NOT) mp_torch.delete_handle(frame->handles[v]);
    if (frame->arena) mp_torch.delete_handle(frame->arena);
    free(frame);
}

/* Returns an owned frame, or NULL with an exception. */
static mp_frame *frame_new(mp_plan *plan)
{
    size_t n = plan->graph->n_values, words = plan->words.n;
    mp_frame *frame = calloc(1, sizeof *frame + (2 * n + words + 1) * sizeof(void *) + n);
    if (!frame) return (mp_frame *)PyErr_NoMemory();
    frame->handles = (mp_handle *)(frame + 1);
    frame->pointers = (char **)(frame->handles + n);
    frame->words = (uint64_t *)(frame->pointers + n);
    frame->held = (uint8_t *)(frame->words + words + 1);
    frame->n_inputs = plan->graph->n_inputs;
    fill_words(plan, frame);
    if (plan->schedule->arena_bytes <= 0) return frame;
    PyObject *guard = mp_leave_inference_mode(); /* a frame outlives the call */
    int failed = guard ? fill_arena(plan, frame) : -1;
    if (failed > 0) mp_torch_raise();
    if (guard && mp_restore_inference_mode(guard) < 0) failed = -1;
    if (!failed) return frame;
    mp_frame_free(plan, frame);
    return NULL;
}

/* -- Taking and giving ------------------------------------------------------------------------------------------------- */

mp_frame *mp_frame_take(mp_plan *plan)
{
    mp_frame *frame = plan->idle;
    if (!frame) return frame_new(plan);
    plan->idle = frame->next;
    plan->n_idle--;
    return frame;
}

void mp_frame_give(mp_plan *plan, mp_frame *frame)
{
    for (uint32_t i = 0; i < plan->n_run_values; i++) mp_frame_drop(frame, plan->run_values[i]);
    frame->inputs = NULL;
    if (plan->n_idle >= MAX_IDLE) {
        mp_frame_free(plan, frame);
        return;
    }
    frame->next = plan->idle;
    plan->idle = frame;
    plan->n_idle++;
}
