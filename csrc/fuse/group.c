/* Which nodes become one kernel: greedy merging of groups along edges, checked for cycles and by building the kernel. */
#include "fuse/region.h"

#include <stdlib.h>
#include <string.h>

#define MAX_GROUP 96

typedef struct {
    uint32_t *nodes, n;
} group; /* ascending; n 0: merged away */

typedef struct {
    mp_region *region;
    group *groups;
    uint32_t n_groups;
    uint32_t *seen; /* [n_nodes]: stamp of the last search that met the node */
    uint32_t stamp;
    uint32_t *stack;
} grouper;

bool mp_region_stored(const mp_region *region, mp_val value)
{
    if (region->is_output[value]) return true;
    for (uint32_t i = 0; i < region->n_users[value]; i++)
        if (region->slot_stamp[region->users[value][i]] != region->stamp) return true;
    return false;
}

/* -- Cycles -------------------------------------------------------------------------------------------------------- */

static uint32_t push_operands(grouper *g, const mp_arg *args, uint32_t n, uint32_t top)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) top = push_operands(g, args[i].list.items, args[i].list.n, top);
        if (args[i].kind != MP_ARG_VALUE) continue;
        uint32_t maker = g->region->graph->node_of[g->region->owner[args[i].value]];
        if (g->seen[maker] == g->stamp) continue;
        g->seen[maker] = g->stamp;
        g->stack[top++] = maker;
    }
    return top;
}

/* What must run before a node: the makers of its operands, and the effect before its own. */
static uint32_t push_needs(grouper *g, uint32_t node, uint32_t top)
{
    const mp_gnode *gnode = &g->region->graph->nodes[node];
    uint32_t after = g->region->after[node];
    if (after != MP_NO_NODE && g->seen[after] != g->stamp) {
        g->seen[after] = g->stamp;
        g->stack[top++] = after;
    }
    return push_operands(g, gnode->args, gnode->n_args, top);
}

/* Does group `late` need a result of `early` by way of anything outside both? */
static bool detour(grouper *g, uint32_t late, uint32_t early)
{
    mp_region *region = g->region;
    uint32_t top = 0;
    g->stamp++;
    for (int round = 0; round < 2; round++) { /* both groups' nodes are no steps of a detour */
        const group *grp = &g->groups[round ? early : late];
        for (uint32_t i = 0; i < grp->n; i++) g->seen[grp->nodes[i]] = g->stamp;
    }
    for (uint32_t i = 0; i < g->groups[late].n; i++) { top = push_needs(g, g->groups[late].nodes[i], top); }
    while (top) {
        uint32_t node = g->stack[--top], own = region->group_of[node];
        if (own != MP_NO_GROUP) { /* all of a group runs together: so do its needs */
            for (uint32_t i = 0; i < g->groups[own].n; i++) {
                uint32_t other = g->groups[own].nodes[i];
                if (g->seen[other] != g->stamp) g->seen[other] = g->stamp, g->stack[top++] = other;
            }
        }
        const mp_gnode *gnode = &region->graph->nodes[node];
        uint32_t before = top;
        /* an operand in `early` was marked seen at the start: look for it by hand */
        for (uint32_t i = 0; i < gnode->n_args; i++) {
            const mp_arg *args = &gnode->args[i];
            uint32_t n = 1;
            if (args->kind == MP_ARG_LIST) n = args->list.n, args = args->list.items;
            for (uint32_t k = 0; k < n; k++)
                if (args[k].kind == MP_ARG_VALUE &&
                    region->group_of[region->graph->node_of[region->owner[args[k].value]]] == early)
                    return true;
        }
        top = push_needs(g, node, before);
    }
    return false;
}

/* -- Merging ------------------------------------------------------------------------------------------------------- */

static bool try_merge(grouper *g, uint32_t a, uint32_t b)
{
    mp_region *region = g->region;
    uint32_t n = g->groups[a].n + g->groups[b].n;
    if (a == b || n > MAX_GROUP || !g->groups[a].n || !g->groups[b].n) return false;
    if (detour(g, a, b) || detour(g, b, a)) return false;
    uint32_t *nodes = MP_NEW(region->pool, uint32_t, n), i = 0, k = 0;
    for (uint32_t at = 0; at < n; at++) {
        bool from_a = k == g->groups[b].n || (i < g->groups[a].n && g->groups[a].nodes[i] < g->groups[b].nodes[k]);
        nodes[at] = from_a ? g->groups[a].nodes[i++] : g->groups[b].nodes[k++];
    }
    mp_pool_reset(&region->scratch);
    if (!mp_fuse_build(region, nodes, n, &region->scratch)) return false;
    for (uint32_t at = 0; at < n; at++) region->group_of[nodes[at]] = a;
    g->groups[a] = (group){nodes, n};
    g->groups[b].n = 0;
    return true;
}

static bool merge_with_makers(grouper *g, uint32_t node, const mp_arg *args, uint32_t n)
{
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) any |= merge_with_makers(g, node, args[i].list.items, args[i].list.n);
        if (args[i].kind != MP_ARG_VALUE) continue;
        uint32_t maker = g->region->graph->node_of[g->region->owner[args[i].value]];
        uint32_t group = g->region->group_of[maker];
        if (group != MP_NO_GROUP) any |= try_merge(g, group, g->region->group_of[node]);
    }
    return any;
}

/* Groups that read the same value and run over the same loops: one pass over it instead of two. */
static void merge_siblings(grouper *g)
{
    const mp_region *region = g->region;
    for (mp_val v = 0; v < region->graph->n_values; v++) {
        if (mp_meta_numel(&region->graph->metas[v]) < 2) continue;
        uint32_t tries = 0;
        for (uint32_t i = 0; i + 1 < region->n_users[v] && tries < 16; i++)
            for (uint32_t k = i + 1; k < region->n_users[v] && k < i + 8; k++) {
                uint32_t a = region->group_of[region->users[v][i]], b = region->group_of[region->users[v][k]];
                if (a == MP_NO_GROUP || b == MP_NO_GROUP || a == b) continue;
                tries++;
                try_merge(g, a, b);
            }
    }
}

uint32_t mp_fuse_group(mp_region *region)
{
    const mp_graph *graph = region->graph;
    uint32_t n = graph->n_nodes;
    grouper g = {.region = region,
                 .groups = MP_NEW(region->pool, group, n + 1),
                 .seen = MP_NEW(region->pool, uint32_t, n + 1),
                 .stack = MP_NEW(region->pool, uint32_t, 2 * n + 2)};
    for (uint32_t i = 0; i < n; i++) {
        if (region->group_of[i] == MP_NO_GROUP) continue; /* set to anything else: wants a group */
        g.groups[g.n_groups] = (group){MP_NEW(region->pool, uint32_t, 1), 1};
        g.groups[g.n_groups].nodes[0] = i;
        region->group_of[i] = g.n_groups++;
    }
    for (uint32_t i = 0; i < n; i++)
        if (region->group_of[i] != MP_NO_GROUP && !region->constant[i])
            merge_with_makers(&g, i, graph->nodes[i].args, graph->nodes[i].n_args);
    merge_siblings(&g);
    return g.n_groups;
}
