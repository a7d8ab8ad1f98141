/* The door of fuse: classes, groups, kernels, order of steps. */
#include "fuse/region.h"
#include "fuse/memory.h"
#include "codegen/codegen.h"
#include "codegen/conv.h"
#include "gemm/node.h"

#include <stdlib.h>
#include <string.h>

/* The schedule and its memory. */
typedef struct {
    mp_schedule schedule; /* first: an mp_schedule* is an owner* */
    mp_pool pool;
    mp_region region;
    mp_kir **kirs; /* [n_kernels] */
    jmp_buf escape;
} owner;

typedef struct {
    owner *own;
    mp_region *region;
    uint32_t **members, *n_members; /* of each group */
    uint32_t n_groups;
    bool *done_group, *done_node, *done_view;
    mp_step *steps;
    uint32_t n_steps, cap_steps, cap_kernels, cap_bodies, cap_kirs, n_kirs;
    mp_kernel *kernels;
    const char **bodies; /* [n_kernels]: what is printed of each, from its parameters on */
    mp_place *places;
    mp_text source;
    const mp_fuse_options *options;
} scheduler;

/* -- Classes and users --------------------------------------------------------------------------------------------- */

static bool has_value(const mp_arg *args, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_VALUE) return true;
        if (args[i].kind == MP_ARG_LIST && has_value(args[i].list.items, args[i].list.n)) return true;
    }
    return false;
}

static void add_users(mp_region *region, uint32_t node, const mp_arg *args, uint32_t n, uint32_t *caps)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) add_users(region, node, args[i].list.items, args[i].list.n, caps);
        if (args[i].kind != MP_ARG_VALUE) continue;
        mp_val value = region->owner[args[i].value];
        uint32_t count = region->n_users[value];
        if (count && region->users[value][count - 1] == node) continue;
        MP_GROW(region->pool, region->users[value], region->n_users[value], caps[value]);
        region->users[value][region->n_users[value]++] = node;
    }
}

static const mp_op extern_op = {"", MP_OP_EXTERN, 0, NULL, 0, false};

static void find_users(mp_region *region)
{
    const mp_graph *graph = region->graph;
    uint32_t *caps = MP_NEW(region->pool, uint32_t, graph->n_values + 1);
    for (uint32_t i = 0; i < graph->n_nodes; i++) {
        const mp_gnode *node = &graph->nodes[i];
        if (region->ops[i]->class_ != MP_OP_VIEW) add_users(region, i, node->args, node->n_args, caps);
    }
    for (uint32_t i = 0; i < graph->n_outputs; i++)
        if (graph->outputs[i] != MP_NO_VAL) region->is_output[region->owner[graph->outputs[i]]] = true;
}

/* May the operator's results share memory with its operands? Unknown targets may. */
static bool may_alias(const mp_gnode *node)
{
    if (!node->target) return false;
    PyObject *is_view = PyObject_GetAttrString(node->target, "is_view"); /* OpOverload's, from the schema */
    int aliases = is_view ? PyObject_IsTrue(is_view) : 1;
    Py_XDECREF(is_view);
    if (aliases < 0 || !is_view) PyErr_Clear(); /* not an OpOverload: the safe answer */
    return aliases != 0;
}

static void pin_owners(mp_region *region, const mp_arg *args, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) pin_owners(region, args[i].list.items, args[i].list.n);
        if (args[i].kind == MP_ARG_VALUE) region->is_output[region->owner[args[i].value]] = true;
    }
}

/* What an operator may return a view of gets storage of its own, like an output: the arena would be reused under the view. */
static void pin_aliased(mp_region *region)
{
    const mp_graph *graph = region->graph;
    for (uint32_t i = 0; i < graph->n_nodes; i++)
        if (region->ops[i]->class_ == MP_OP_EXTERN && may_alias(&graph->nodes[i]))
            pin_owners(region, graph->nodes[i].args, graph->nodes[i].n_args);
}

/* Does the operator draw random numbers, write, or do something unknown? Such operators run in the order of the program. */
static bool has_effect(PyObject *aten_graph, const mp_gnode *node)
{
    PyObject *answer = node->target ? PyObject_CallMethod(aten_graph, "is_impure", "O", node->target) : NULL;
    int effect = answer ? PyObject_IsTrue(answer) : 1;
    Py_XDECREF(answer);
    PyErr_Clear(); /* not an OpOverload: the safe answer */
    return effect != 0;
}

static void order_effects(mp_region *region)
{
    PyObject *aten_graph = PyImport_ImportModule("magpy.aten_graph");
    if (!aten_graph) PyErr_Clear(); /* then all operators keep their order */
    uint32_t last = MP_NO_NODE;
    for (uint32_t i = 0; i < region->graph->n_nodes; i++) {
        region->after[i] = MP_NO_NODE;
        if (region->ops[i]->class_ != MP_OP_EXTERN) continue;
        if (aten_graph && !has_effect(aten_graph, &region->graph->nodes[i])) continue;
        region->after[i] = last;
        last = i;
    }
    Py_XDECREF(aten_graph);
}

/* Drop from every group's wishes what nobody needs: kernels compute only what is used. */
static void drop_unused(mp_region *region)
{
    const mp_graph *graph = region->graph;
    for (uint32_t i = graph->n_nodes; i-- > 0;) {
        if (region->group_of[i] == MP_NO_GROUP) continue;
        const mp_gnode *node = &graph->nodes[i];
        bool used = false;
        for (uint32_t k = 0; k < node->n_values; k++) {
            mp_val value = node->first + k;
            used |= region->is_output[value];
            for (uint32_t u = 0; u < region->n_users[value]; u++) {
                uint32_t user = region->users[value][u];
                bool computes = region->group_of[user] != MP_NO_GROUP;
                /* kernels compute constants by themselves; only operators need them in memory */
                used |= region->ops[user]->class_ == MP_OP_EXTERN || region->ops[user]->class_ == MP_OP_CONV ||
                        (computes && !region->constant[i]);
            }
        }
        if (!used) region->group_of[i] = MP_NO_GROUP;
    }
}

/* Classes of all nodes, owners of all views, users of all values; group_of is 0 for nodes that want a group. */
static void classify(mp_region *region, bool fuse)
{
    const mp_graph *graph = region->graph;
    uint32_t n = graph->n_nodes;
    mp_pool *pool = region->pool;
    region->ops = MP_NEW(pool, const mp_op *, n + 1);
    region->owner = MP_NEW(pool, mp_val, graph->n_values + 1);
    region->constant = MP_NEW(pool, bool, n + 1);
    region->users = MP_NEW(pool, uint32_t *, graph->n_values + 1);
    region->n_users = MP_NEW(pool, uint32_t, graph->n_values + 1);
    region->is_output = MP_NEW(pool, bool, graph->n_values + 1);
    region->group_of = MP_NEW(pool, uint32_t, n + 1);
    region->after = MP_NEW(pool, uint32_t, n + 1);
    region->slot = MP_NEW(pool, uint32_t, n + 1);
    region->slot_stamp = MP_NEW(pool, uint32_t, n + 1);
    for (uint32_t i = 0; i < n; i++) {
        const mp_gnode *node = &graph->nodes[i];
        const mp_op *op = mp_op_find(graph, node);
        if (!fuse && op->class_ != MP_OP_INPUT) op = &extern_op;
        region->ops[i] = op;
        region->group_of[i] = MP_NO_GROUP;
        for (uint32_t k = 0; k < node->n_values; k++)
            region->owner[node->first + k] =
                op->class_ == MP_OP_VIEW ? region->owner[node->args[0].value] : node->first + k;
        region->constant[i] = op->class_ == MP_OP_POINT && !has_value(node->args, node->n_args);
        if (op->class_ < MP_OP_POINT) continue;
        region->group_of[i] = 0;
    }
    /* what no kernel can be built for, even alone, is an operator; users are needed for that, and change by it */
    find_users(region);
    for (uint32_t i = 0; i < n; i++) {
        if (region->group_of[i] == MP_NO_GROUP) continue;
        bool was_output = region->is_output[graph->nodes[i].first];
        region->is_output[graph->nodes[i].first] = true; /* something to store */
        mp_pool_reset(&region->scratch);
        bool built = mp_fuse_build(region, &i, 1, &region->scratch) != NULL;
        region->is_output[graph->nodes[i].first] = was_output;
        if (built) continue;
        region->ops[i] = &extern_op;
        region->constant[i] = false;
        region->group_of[i] = MP_NO_GROUP;
    }
    pin_aliased(region);
    order_effects(region);
    drop_unused(region);
}

/* -- Steps --------------------------------------------------------------------------------------------------------- */

static void add_step(scheduler *s, mp_step_kind kind, uint32_t index)
{
    MP_GROW(&s->own->pool, s->steps, s->n_steps, s->cap_steps);
    s->steps[s->n_steps++] = (mp_step){kind, index};
}

static void emit_node(scheduler *s, uint32_t node);

static void emit_makers(scheduler *s, const mp_arg *args, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) emit_makers(s, args[i].list.items, args[i].list.n);
        if (args[i].kind == MP_ARG_VALUE) emit_node(s, s->region->graph->node_of[s->region->owner[args[i].value]]);
    }
}

static void emit_view(scheduler *s, mp_val value)
{
    mp_val base = s->region->owner[value];
    if (base == value || s->done_view[value]) return;
    s->done_view[value] = true;
    s->places[value] = (mp_place){.home = MP_HOME_VIEW, .base = base, .meta = s->region->graph->metas[value]};
    add_step(s, MP_STEP_VIEW, value);
}

static void emit_views(scheduler *s, const mp_arg *args, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST) emit_views(s, args[i].list.items, args[i].list.n);
        if (args[i].kind == MP_ARG_VALUE) emit_view(s, args[i].value);
    }
}

/* Print a kernel into the source, or find one with the same text: equal layers of a model share their kernels. Returns the name of
** the function, NULL for a convolution with nothing to do on its sums. */
static const char *print_kernel(scheduler *s, const mp_kir *kir, mp_codegen_launch *launch)
{
    mp_pool *pool = &s->own->pool;
    mp_text text = {.pool = pool};
    bool prints = true;
    if (kir->conv) {
        prints = mp_codegen_conv(kir, &text, launch);
    } else {
        mp_codegen_c(kir, s->options->vector_bits, &text, launch);
    }
    const char *body = prints ? strchr(text.chars, '(') : "";
    uint32_t n = s->own->schedule.n_kernels, same = 0;
    while (same < n && strcmp(s->bodies[same], body) != 0) same++;
    MP_GROW(pool, s->bodies, n, s->cap_bodies);
    s->bodies[n] = body;
    if (!prints) return NULL;
    if (same < n) return s->kernels[same].function;
    mp_text_add(&s->source, "\n#if MP_SECTION(%u)%s#endif\n", s->own->schedule.n_sections++, text.chars);
    return kir->name;
}

static void emit_kernel(scheduler *s, uint32_t group)
{
    mp_pool *pool = &s->own->pool;
    mp_region *region = s->region;
    mp_kir *kir = mp_fuse_build(region, s->members[group], s->n_members[group], pool);
    if (!kir) longjmp(s->own->escape, 2); /* it could be built when the group was made */
    kir->name = mp_pool_printf(pool, kir->conv ? "mp_c%u" : "mp_k%u", s->own->schedule.n_kernels);
    mp_val *values = MP_NEW(pool, mp_val, kir->n_buffers + 1);
    bool *written = MP_NEW(pool, bool, kir->n_buffers + 1);
    int64_t *row = MP_NEW(pool, int64_t, kir->n_buffers + 1);
    for (uint32_t i = 0; i < kir->n_buffers; i++) {
        mp_val value = kir->buffers[i].value;
        values[i] = value;
        written[i] = kir->buffers[i].written;
        row[i] = mp_fuse_row(kir, i);
        if (!written[i]) continue;
        s->places[value] = (mp_place){.home = region->is_output[value] ? MP_HOME_OUTPUT : MP_HOME_ARENA,
                                      .index = UINT32_MAX,
                                      .meta = region->graph->metas[value]};
    }
    const char **ops = MP_NEW(pool, const char *, s->n_members[group] + 1);
    for (uint32_t i = 0; i < s->n_members[group]; i++) ops[i] = region->graph->nodes[s->members[group][i]].op;
    mp_codegen_launch launch, cuda_launch;
    const char *function = print_kernel(s, kir, &launch);
    if (function) kir->name = function;
    mp_text cuda = {.pool = pool};
    bool covered = !kir->conv && mp_codegen_cuda(kir, &cuda, &cuda_launch);
    MP_GROW(pool, s->own->kirs, s->n_kirs, s->cap_kirs);
    s->own->kirs[s->n_kirs++] = kir;
    MP_GROW(pool, s->kernels, s->own->schedule.n_kernels, s->cap_kernels);
    s->kernels[s->own->schedule.n_kernels] = (mp_kernel){.name = kir->name,
                                                         .function = function,
                                                         .conv = kir->conv,
                                                         .workspace = kir->conv ? kir->conv->workspace * 4 : 0,
                                                         .n_buffers = kir->n_buffers,
                                                         .values = values,
                                                         .written = written,
                                                         .row = row,
                                                         .checks = kir->checks,
                                                         .extent = launch.extent,
                                                         .grain = launch.grain,
                                                         .ops = ops,
                                                         .cuda_source = covered ? cuda.chars : NULL,
                                                         .cuda_grid = covered ? cuda_launch.extent : 0,
                                                         .cuda_block = covered ? (int)cuda_launch.grain : 0};
    add_step(s, MP_STEP_KERNEL, s->own->schedule.n_kernels++);
}

static void emit_node(scheduler *s, uint32_t node)
{
    mp_region *region = s->region;
    const mp_gnode *gnode = &region->graph->nodes[node];
    uint32_t group = region->group_of[node];
    if (group != MP_NO_GROUP) {
        if (s->done_group[group]) return;
        s->done_group[group] = true;
        for (uint32_t i = 0; i < s->n_members[group]; i++) {
            const mp_gnode *member = &region->graph->nodes[s->members[group][i]];
            emit_makers(s, member->args, member->n_args);
        }
        emit_kernel(s, group);
        return;
    }
    if (region->ops[node]->class_ != MP_OP_EXTERN || s->done_node[node]) return;
    s->done_node[node] = true;
    if (region->after[node] != MP_NO_NODE) emit_node(s, region->after[node]);
    emit_makers(s, gnode->args, gnode->n_args);
    emit_views(s, gnode->args, gnode->n_args);
    mp_gemm gemm;
    bool planned = mp_gemm_from_node(&gemm, region->graph, gnode) == 0; /* writes where it is told, like a kernel */
    for (uint32_t i = 0; i < gnode->n_values; i++) {
        mp_val value = gnode->first + i;
        mp_home home = !planned ? MP_HOME_EXTERN : region->is_output[value] ? MP_HOME_OUTPUT : MP_HOME_ARENA;
        s->places[value] = (mp_place){.home = home, .index = UINT32_MAX, .meta = region->graph->metas[value]};
    }
    add_step(s, MP_STEP_OP, node);
}

static void collect_members(scheduler *s)
{
    mp_region *region = s->region;
    s->members = MP_NEW(&s->own->pool, uint32_t *, s->n_groups + 1);
    s->n_members = MP_NEW(&s->own->pool, uint32_t, s->n_groups + 1);
    uint32_t *caps = MP_NEW(&s->own->pool, uint32_t, s->n_groups + 1);
    for (uint32_t i = 0; i < region->graph->n_nodes; i++) {
        uint32_t group = region->group_of[i];
        if (group == MP_NO_GROUP) continue;
        MP_GROW(&s->own->pool, s->members[group], s->n_members[group], caps[group]);
        s->members[group][s->n_members[group]++] = i;
    }
}

static void emit_all(scheduler *s)
{
    const mp_graph *graph = s->region->graph;
    for (uint32_t i = 0; i < graph->n_values; i++) {
        s->places[i].meta = graph->metas[i];
        if (s->region->ops[graph->node_of[i]]->class_ == MP_OP_INPUT)
            s->places[i] = (mp_place){.home = MP_HOME_INPUT, .index = graph->node_of[i], .meta = graph->metas[i]};
    }
    for (uint32_t i = 0; i < graph->n_nodes; i++) emit_node(s, i);
    for (uint32_t i = graph->n_outputs; i-- > 0;) {
        mp_val value = graph->outputs[i];
        if (value == MP_NO_VAL) continue;
        if (s->places[value].home == MP_HOME_OUTPUT) s->places[value].index = i;
    }
    for (uint32_t i = 0; i < graph->n_outputs; i++)
        if (graph->outputs[i] != MP_NO_VAL) emit_view(s, graph->outputs[i]);
}

/* -- The door ------------------------------------------------------------------------------------------------------ */

static void schedule_all(owner *own, const mp_fuse_options *options)
{
    mp_pool *pool = &own->pool;
    mp_region *region = &own->region;
    const mp_graph *graph = own->schedule.graph;
    classify(region, options->fuse);
    scheduler s = {.own = own, .region = region, .options = options, .source = {.pool = pool}};
    s.n_groups = mp_fuse_group(region);
    collect_members(&s);
    s.done_group = MP_NEW(pool, bool, s.n_groups + 1);
    s.done_node = MP_NEW(pool, bool, graph->n_nodes + 1);
    s.done_view = MP_NEW(pool, bool, graph->n_values + 1);
    s.places = MP_NEW(pool, mp_place, graph->n_values + 1);
    mp_codegen_c_prelude(&s.source);
    size_t prelude = s.source.n;
    emit_all(&s);
    mp_schedule *schedule = &own->schedule;
    schedule->source = s.source.n > prelude ? s.source.chars : "";
    schedule->kernels = s.kernels;
    schedule->steps = s.steps;
    schedule->n_steps = s.n_steps;
    schedule->places = s.places;
    mp_fuse_chain(schedule, region, s.places, pool);
    mp_fuse_place(schedule, region, s.kernels, s.places, pool);
}

mp_schedule *mp_fuse_schedule(const mp_graph *graph, const mp_fuse_options *options, mp_reason *why)
{
    owner *own = calloc(1, sizeof *own);
    if (!own) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "schedule");
        return NULL;
    }
    own->schedule.graph = graph;
    own->pool.escape = &own->escape;
    own->region = (mp_region){.graph = graph, .pool = &own->pool, .scratch = {.escape = &own->escape}};
    int left = setjmp(own->escape);
    if (left == 0) {
        schedule_all(own, options);
        mp_pool_free(&own->region.scratch);
        return &own->schedule;
    }
    mp_reason_set(why, left == 1 ? MP_REASON_NO_MEMORY : MP_REASON_INTERNAL, "schedule");
    mp_fuse_free(&own->schedule);
    return NULL;
}

void mp_fuse_free(mp_schedule *schedule)
{
    if (!schedule) return;
    owner *own = (owner *)schedule;
    mp_pool_free(&own->region.scratch);
    mp_pool_free(&own->pool);
    free(own);
}

char *mp_fuse_dump(const mp_schedule *schedule, uint32_t index)
{
    const owner *own = (const owner *)schedule;
    if (index >= schedule->n_kernels) return NULL;
    jmp_buf escape;
    mp_pool pool = {.escape = &escape};
    char *volatile copy = NULL;
    if (setjmp(escape) == 0) {
        mp_text text = {.pool = &pool};
        mp_kir_dump(own->kirs[index], &text);
        copy = strdup(text.chars);
    }
    mp_pool_free(&pool);
    return copy;
}
