/* Memory plan: liveness over the steps, first fit in the arena. */
#include "fuse/memory.h"

#include <string.h>

#define ALIGNMENT 64

typedef struct {
    mp_val value;
    int64_t offset, bytes;
} occupied; /* sorted by offset */

typedef struct {
    const mp_schedule *schedule;
    const mp_region *region;
    mp_place *places;
    uint32_t *last;  /* [n_values]: last step that needs the value; UINT32_MAX: none */
    bool *is_output; /* [n_values]: the value itself is an output */
} planner;

static void touch(planner *p, mp_val value, uint32_t step)
{
    p->last[value] = step;
    p->last[p->region->owner[value]] = step;
}

static void touch_args(planner *p, const mp_arg *args, uint32_t n, uint32_t step)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) touch_args(p, args[i].list.items, args[i].list.n, step);
        if (args[i].kind == MP_ARG_VALUE) touch(p, args[i].value, step);
    }
}

static void find_last_uses(planner *p)
{
    const mp_graph *graph = p->schedule->graph;
    for (uint32_t i = 0; i < p->schedule->n_steps; i++) {
        mp_step step = p->schedule->steps[i];
        if (step.kind == MP_STEP_KERNEL) {
            const mp_kernel *kernel = &p->schedule->kernels[step.index];
            for (uint32_t k = 0; k < kernel->n_buffers; k++) touch(p, kernel->values[k], i);
        } else if (step.kind == MP_STEP_CHAIN) {
            const mp_chain *chain = &p->schedule->chains[step.index];
            const mp_kernel *kernel = &p->schedule->kernels[chain->kernel];
            const mp_gnode *first = &graph->nodes[chain->first], *second = &graph->nodes[chain->second];
            for (uint32_t k = 0; k < kernel->n_buffers; k++) touch(p, kernel->values[k], i);
            touch_args(p, first->args, first->n_args, i);
            touch_args(p, second->args, second->n_args, i);
            touch(p, second->first, i);
        } else if (step.kind == MP_STEP_OP) {
            const mp_gnode *node = &graph->nodes[step.index];
            touch_args(p, node->args, node->n_args, i);
            for (uint32_t k = 0; k < node->n_values; k++) touch(p, node->first + k, i);
        } else {
            touch(p, step.index, i);
        }
    }
}

static int64_t storage_bytes(const mp_meta *meta)
{
    int64_t last = meta->offset;
    for (int d = 0; d < meta->ndim; d++) {
        if (meta->size[d] == 0) return ALIGNMENT;
        last += (meta->size[d] - 1) * meta->stride[d];
    }
    int64_t bytes = (last + 1) * mp_dtype_bytes(meta->dtype);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* First gap that is large enough. */
static int64_t occupy(occupied *list, uint32_t *n, mp_val value, int64_t bytes)
{
    int64_t at = 0;
    uint32_t k = 0;
    while (k < *n && list[k].offset - at < bytes) {
        at = list[k].offset + list[k].bytes;
        k++;
    }
    memmove(&list[k + 1], &list[k], (*n - k) * sizeof *list);
    list[k] = (occupied){value, at, bytes};
    ++*n;
    return at;
}

static void vacate(occupied *list, uint32_t *n, mp_val value)
{
    for (uint32_t k = 0; k < *n; k++) {
        if (list[k].value != value) continue;
        memmove(&list[k], &list[k + 1], (*n - k - 1) * sizeof *list);
        --*n;
        return;
    }
}

/* If the value, which is written now, lives in the arena, say where. */
static void give_place(planner *p, mp_schedule *schedule, mp_val value, occupied *list, uint32_t *n)
{
    mp_place *place = &p->places[value];
    if (place->home != MP_HOME_ARENA) return;
    int64_t bytes = storage_bytes(&place->meta);
    place->arena_offset = occupy(list, n, value, bytes);
    if (place->arena_offset + bytes > schedule->arena_bytes) schedule->arena_bytes = place->arena_offset + bytes;
}

void mp_fuse_place(mp_schedule *schedule, const mp_region *region, mp_kernel *kernels, mp_place *places, mp_pool *pool)
{
    const mp_graph *graph = schedule->graph;
    uint32_t n = graph->n_values;
    planner p = {schedule, region, places, MP_NEW(pool, uint32_t, n + 1), MP_NEW(pool, bool, n + 1)};
    memset(p.last, 0xff, sizeof *p.last * (n + 1));
    find_last_uses(&p);
    for (uint32_t i = 0; i < graph->n_outputs; i++)
        if (graph->outputs[i] != MP_NO_VAL) p.is_output[graph->outputs[i]] = true;
    /* values by the step after which they are dead: a linked list for each step */
    uint32_t *first = MP_NEW(pool, uint32_t, schedule->n_steps + 1), *next = MP_NEW(pool, uint32_t, n + 1),
             n_released = 0;
    for (mp_val v = 0; v < n; v++) {
        mp_home home = places[v].home;
        if (p.last[v] == UINT32_MAX || p.is_output[v]) continue;
        if (home != MP_HOME_ARENA && home != MP_HOME_EXTERN && home != MP_HOME_VIEW) continue;
        next[v] = first[p.last[v]];
        first[p.last[v]] = v + 1;
        n_released++;
    }
    mp_step *steps = MP_NEW(pool, mp_step, schedule->n_steps + n_released + 1);
    occupied *list = MP_NEW(pool, occupied, n + 2);
    uint32_t n_steps = 0, n_list = 0;
    for (uint32_t i = 0; i < schedule->n_steps; i++) {
        mp_step step = schedule->steps[i];
        steps[n_steps++] = step;
        if (step.kind == MP_STEP_KERNEL) {
            const mp_kernel *kernel = &schedule->kernels[step.index];
            for (uint32_t k = 0; k < kernel->n_buffers; k++)
                if (kernel->written[k]) give_place(&p, schedule, kernel->values[k], list, &n_list);
        } else if (step.kind == MP_STEP_CHAIN) {
            give_place(&p, schedule, graph->nodes[schedule->chains[step.index].second].first, list, &n_list);
        } else if (step.kind == MP_STEP_OP) {
            const mp_gnode *node = &graph->nodes[step.index];
            for (uint32_t k = 0; k < node->n_values; k++) give_place(&p, schedule, node->first + k, list, &n_list);
        }
        if (step.kind == MP_STEP_KERNEL && kernels[step.index].workspace) {
            mp_kernel *kernel = &kernels[step.index];
            int64_t bytes = (kernel->workspace + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            kernel->workspace_offset = occupy(list, &n_list, MP_NO_VAL, bytes);
            if (kernel->workspace_offset + bytes > schedule->arena_bytes)
                schedule->arena_bytes = kernel->workspace_offset + bytes;
            vacate(list, &n_list, MP_NO_VAL);
        }
        for (int views = 1; views >= 0; views--) /* views before what they look at */
            for (uint32_t v = first[i]; v; v = next[v - 1]) {
                if ((places[v - 1].home == MP_HOME_VIEW) != views) continue;
                steps[n_steps++] = (mp_step){MP_STEP_RELEASE, v - 1};
                if (places[v - 1].home == MP_HOME_ARENA) vacate(list, &n_list, v - 1);
            }
    }
    schedule->steps = steps;
    schedule->n_steps = n_steps;
}
