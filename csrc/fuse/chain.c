/* Chains: a product whose rows one kernel turns into the left side of another product, which is what attention is. */
#include "fuse/region.h"
#include "gemm/node.h"

#include <string.h>

#define MIN_ROWS 24 /* of a matrix: fewer do not pay for packing both right sides */

/* -- Rows of kernels -------------------------------------------------------------------------------------------------- */

static bool walks_rows(const mp_kir *kir, const mp_affine *at, int64_t row)
{
    int64_t step = row;
    if (at->base) return false;
    for (uint32_t i = kir->n_loops; i-- > 0;) {
        if (kir->reduced >> i & 1) {
            if (at->coef[i] != 1) return false;
            continue;
        }
        if (at->coef[i] != step) return false;
        step *= kir->extent[i];
    }
    return true;
}

int64_t mp_fuse_row(const mp_kir *kir, uint32_t buffer)
{
    int64_t row = 0;
    if (kir->conv || kir->checks || kir->vector < 0 || kir->reduced != 1u << kir->vector) return 0;
    row = kir->extent[kir->vector];
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        if (e->op != MP_K_LOAD || e->aux != buffer) continue;
        if (e->arg[1] != MP_NO_KID || !walks_rows(kir, &e->at, row)) return 0;
    }
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (kir->stores[i].buffer == buffer && !walks_rows(kir, &kir->stores[i].at, row)) return 0;
    return row;
}

/* -- Finding ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    mp_schedule *schedule;
    const mp_region *region;
    mp_place *places;
    uint32_t *maker; /* [n_values]: step, or UINT32_MAX */
} finder;

static bool is_step(const finder *f, uint32_t step, mp_step_kind kind)
{ return step != UINT32_MAX && f->schedule->steps[step].kind == kind; }

/* Is `value` an intermediate that only step `step` reads? */
static bool only_for(const finder *f, mp_val value, uint32_t step)
{
    const mp_region *region = f->region;
    if (region->is_output[value] || f->places[value].home != MP_HOME_ARENA) return false;
    mp_step at = f->schedule->steps[step];
    for (uint32_t u = 0; u < region->n_users[value]; u++) {
        uint32_t user = region->users[value][u];
        if (at.kind == MP_STEP_OP) {
            if (user != at.index) return false;
            continue;
        }
        uint32_t group = region->group_of[user]; /* the kernel's nodes are a group; it has made its buffers' values */
        const mp_kernel *kernel = &f->schedule->kernels[at.index];
        bool mine = false;
        for (uint32_t k = 0; k < kernel->n_buffers; k++)
            mine |= kernel->written[k] && group != MP_NO_GROUP &&
                    region->group_of[region->graph->node_of[kernel->values[k]]] == group;
        if (!mine) return false;
    }
    return region->n_users[value] > 0;
}

/* Do the rows of a product's matrix, batch after batch, lie one behind the other in memory? */
static bool rows_in_order(const mp_gemm *g, const int64_t *batch_strides, int64_t row, int64_t column, int64_t length)
{
    int64_t step = length;
    if (length > 1 && column != 1) return false;
    if (g->m > 1 && row != step) return false;
    step *= g->m;
    for (int i = g->n_batch; i-- > 0; step *= g->batch[i])
        if (g->batch[i] > 1 && batch_strides[i] != step) return false;
    return true;
}

static int64_t batches(const mp_gemm *g)
{
    int64_t n = 1;
    for (int i = 0; i < g->n_batch; i++) n *= g->batch[i];
    return n;
}

/* The chain that ends in the product of step `last`. */
static bool find(const finder *f, uint32_t last, mp_chain *chain)
{
    const mp_graph *graph = f->region->graph;
    const mp_schedule *schedule = f->schedule;
    mp_gemm first, second;
    chain->second = schedule->steps[last].index;
    const mp_gnode *node = &graph->nodes[chain->second];
    if (mp_gemm_from_node(&second, graph, node) < 0 || second.m < MIN_ROWS) return false;
    mp_val out = f->region->owner[node->args[0].value], right = f->region->owner[node->args[1].value];
    uint32_t middle = f->maker[out];
    if (right == out || !is_step(f, middle, MP_STEP_KERNEL) || !only_for(f, out, last)) return false;
    chain->kernel = schedule->steps[middle].index;
    const mp_kernel *kernel = &schedule->kernels[chain->kernel];
    uint32_t n_written = 0;
    for (uint32_t k = 0; k < kernel->n_buffers; k++) {
        n_written += kernel->written[k];
        if (kernel->values[k] == out) chain->out = k;
    }
    if (n_written != 1 || kernel->row[chain->out] != second.k) return false;
    if (graph->metas[node->args[0].value].offset != f->places[out].meta.offset) return false;
    if (!rows_in_order(&second, second.a_batch, second.a_row, second.a_col, second.k)) return false;
    for (chain->in = 0; chain->in < kernel->n_buffers; chain->in++) {
        mp_val in = kernel->values[chain->in];
        uint32_t maker = f->maker[in];
        if (kernel->written[chain->in] || kernel->row[chain->in] != second.k || !is_step(f, maker, MP_STEP_OP))
            continue;
        chain->first = schedule->steps[maker].index;
        if (mp_gemm_from_node(&first, graph, &graph->nodes[chain->first]) < 0 || !only_for(f, in, middle)) continue;
        if (first.m == second.m && first.n == second.k && batches(&first) == batches(&second) &&
            kernel->extent == first.m * batches(&first) &&
            rows_in_order(&first, first.c_batch, first.c_row, 1, first.n))
            return true;
    }
    return false;
}

static void note_makers(finder *f)
{
    const mp_schedule *schedule = f->schedule;
    for (uint32_t i = 0; i < schedule->n_steps; i++) {
        mp_step step = schedule->steps[i];
        if (step.kind == MP_STEP_KERNEL) {
            const mp_kernel *kernel = &schedule->kernels[step.index];
            for (uint32_t k = 0; k < kernel->n_buffers; k++)
                if (kernel->written[k]) f->maker[kernel->values[k]] = i;
        } else if (step.kind == MP_STEP_OP) {
            const mp_gnode *node = &f->region->graph->nodes[step.index];
            for (uint32_t k = 0; k < node->n_values; k++) f->maker[node->first + k] = i;
        }
    }
}

void mp_fuse_chain(mp_schedule *schedule, const mp_region *region, mp_place *places, mp_pool *pool)
{
    uint32_t n_values = region->graph->n_values, n = schedule->n_steps;
    finder f = {schedule, region, places, MP_NEW(pool, uint32_t, n_values + 1)};
    memset(f.maker, 0xff, (n_values + 1) * sizeof *f.maker);
    note_makers(&f);
    mp_chain *chains = MP_NEW(pool, mp_chain, n + 1);
    mp_step *steps = MP_NEW(pool, mp_step, n + 1);
    bool *gone = MP_NEW(pool, bool, n + 1);
    if (n) memcpy(steps, schedule->steps, n * sizeof *steps);
    for (uint32_t i = 0; i < n; i++) {
        mp_chain *chain = &chains[schedule->n_chains];
        if (steps[i].kind != MP_STEP_OP || !find(&f, i, chain)) continue;
        const mp_kernel *kernel = &schedule->kernels[chain->kernel];
        mp_val in = kernel->values[chain->in], out = kernel->values[chain->out];
        gone[f.maker[in]] = gone[f.maker[out]] = true;
        places[in].home = places[out].home = MP_HOME_NONE; /* a block at a time, in scratch memory */
        steps[i] = (mp_step){MP_STEP_CHAIN, schedule->n_chains++};
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!gone[i]) steps[kept++] = steps[i];
    schedule->steps = steps;
    schedule->n_steps = kept;
    schedule->chains = chains;
}
