/* Compiling a plan: schedule -> flat instructions with everything resolved, so that a run is one loop. */
#include "run/plan_inside.h"

#include "run/compiler.h"
#include "run/conv.h"

/* State of one compilation. */
typedef struct {
    mp_plan *plan;
    mp_reason *why;
    int vector_bits;
    mp_insn *draft; /* owned: instructions without releases */
    uint32_t n_draft, draft_size;
    uint8_t *made; /* owned [n_values]: storage or view handle exists at this point of the draft */
} build;

static int no_memory(build *b)
{
    mp_reason_set(b->why, MP_REASON_NO_MEMORY, "while a plan is compiled");
    return -1;
}

/* -- What values need --------------------------------------------------------------------------------------------------- */

typedef void (*visit_value)(mp_plan *plan, mp_val v, void *context);

static void visit_arg(mp_plan *plan, const mp_arg *arg, visit_value visit, void *context)
{
    if (arg->kind == MP_ARG_VALUE) visit(plan, arg->value, context);
    if (arg->kind == MP_ARG_LIST)
        for (uint32_t i = 0; i < arg->list.n; i++) visit_arg(plan, &arg->list.items[i], visit, context);
}

static void visit_node(mp_plan *plan, const mp_gnode *node, visit_value visit, void *context)
{
    for (uint32_t i = 0; i < node->n_args; i++) visit_arg(plan, &node->args[i], visit, context);
}

static mp_home home_of(const mp_plan *plan, mp_val v) { return plan->schedule->places[v].home; }

static void need_handle(mp_plan *plan, mp_val v, void *context)
{
    plan->needs[v] |= MP_NEED_HANDLE | MP_NEED_USED;
    plan->needs[plan->roots[v]] |= MP_NEED_HANDLE | MP_NEED_USED; /* a view's handle is made from its root's */
}

/* Roots of views, and a check of what the schedule promises. */
static int find_roots(build *b)
{
    mp_plan *plan = b->plan;
    for (mp_val v = 0; v < plan->graph->n_values; v++) {
        mp_val root = v;
        for (uint32_t steps = 0; home_of(plan, root) == MP_HOME_VIEW; steps++) {
            root = plan->schedule->places[root].base;
            if (root >= plan->graph->n_values || steps > plan->graph->n_values) {
                mp_reason_set(b->why, MP_REASON_INTERNAL, "value %u is a view of nothing", v);
                return -1;
            }
        }
        plan->roots[v] = root;
    }
    return 0;
}

static bool is_product(const mp_plan *plan, const mp_gnode *node)
{
    mp_gemm gemm;
    int64_t groups, step;
    return mp_gemm_from_node(&gemm, plan->graph, node) == 0 ||
           mp_gemm_from_grouped(&gemm, &groups, &step, plan->graph, node) == 0;
}

static void need_pointer(mp_plan *plan, mp_val v, void *context)
{ plan->needs[plan->roots[v]] |= MP_NEED_POINTER | MP_NEED_USED; }

/* All values of a chain that exist as a whole. */
static void visit_chain(mp_plan *plan, const mp_chain *chain, visit_value visit, void *context)
{
    const mp_kernel *kernel = &plan->schedule->kernels[chain->kernel];
    const mp_gnode *first = &plan->graph->nodes[chain->first], *second = &plan->graph->nodes[chain->second];
    visit_node(plan, first, visit, context);
    visit_arg(plan, &second->args[1], visit, context);
    visit_arg(plan, &second->args[2], visit, context);
    visit(plan, second->first, context);
    for (uint32_t k = 0; k < kernel->n_buffers; k++)
        if (k != chain->in && k != chain->out) visit(plan, kernel->values[k], context);
}

static int find_needs(build *b)
{
    mp_plan *plan = b->plan;
    const mp_schedule *schedule = plan->schedule;
    for (uint32_t i = 0; i < schedule->n_steps; i++) {
        const mp_step *step = &schedule->steps[i];
        if (step->kind == MP_STEP_OP) {
            const mp_gnode *node = &plan->graph->nodes[step->index];
            if (is_product(plan, node)) {
                visit_node(plan, node, need_pointer, NULL);
                need_pointer(plan, node->first, NULL);
                plan->n_products++;
                continue;
            }
            visit_node(plan, node, need_handle, NULL);
            for (uint32_t k = 0; k < node->n_values; k++) plan->needs[node->first + k] |= MP_NEED_HANDLE;
            plan->has_operators = true;
            plan->n_ops++;
        } else if (step->kind == MP_STEP_CHAIN) {
            visit_chain(plan, &schedule->chains[step->index], need_pointer, NULL);
            plan->n_chains++;
        } else if (step->kind == MP_STEP_KERNEL) {
            const mp_kernel *kernel = &schedule->kernels[step->index];
            for (uint32_t k = 0; k < kernel->n_buffers; k++)
                plan->needs[plan->roots[kernel->values[k]]] |= MP_NEED_POINTER | MP_NEED_USED;
            plan->n_calls++;
        }
    }
    for (uint32_t i = 0; i < plan->graph->n_outputs; i++) {
        mp_val v = plan->graph->outputs[i];
        if (v == MP_NO_VAL) continue;
        if (home_of(plan, v) == MP_HOME_NONE) {
            mp_reason_set(b->why, MP_REASON_INTERNAL, "output %u has no place", i);
            return -1;
        }
        need_handle(plan, v, NULL);
    }
    return 0;
}

/* -- Instructions --------------------------------------------------------------------------------------------------------- */

static int emit(build *b, mp_insn_kind kind, uint32_t index)
{
    if (b->n_draft == b->draft_size) {
        uint32_t size = b->draft_size * 2 + 64;
        mp_insn *grown = realloc(b->draft, size * sizeof *grown);
        if (!grown) return no_memory(b);
        b->draft = grown;
        b->draft_size = size;
    }
    b->draft[b->n_draft++] = (mp_insn){kind, index};
    return 0;
}

/* Storage for value `v`, where a run has to get it from torch. */
static int emit_storage(build *b, mp_val v)
{
    if (b->made[v]) return 0;
    b->made[v] = 1;
    mp_home home = home_of(b->plan, v);
    return home == MP_HOME_INPUT || home == MP_HOME_ARENA ? 0 : emit(b, MP_INSN_ALLOC, v);
}

/* The handle of view `v`, unless it is kept in the frame (views of the arena) or nobody needs it. */
static int emit_view(build *b, mp_val v)
{
    if (b->made[v] || home_of(b->plan, v) != MP_HOME_VIEW || !(b->plan->needs[v] & MP_NEED_HANDLE)) return 0;
    b->made[v] = 1;
    return home_of(b->plan, b->plan->roots[v]) == MP_HOME_ARENA ? 0 : emit(b, MP_INSN_VIEW, v);
}

static void emit_view_visit(mp_plan *plan, mp_val v, void *context)
{
    build *b = context;
    if (plan->graph->metas[v].dtype == MP_UNDEFINED)
        mp_reason_set(b->why, MP_REASON_INTERNAL, "value %u is used but does not exist", v);
    if (b->why->code == MP_REASON_NONE) emit_view(b, v); /* a failure is in *why */
}

static int emit_op(build *b, uint32_t node_number)
{
    mp_plan *plan = b->plan;
    const mp_gnode *node = &plan->graph->nodes[node_number];
    mp_op *op = &plan->ops[plan->n_ops];
    visit_node(plan, node, emit_view_visit, b);
    if (b->why->code != MP_REASON_NONE) return -1;
    if (mp_op_resolve(op, plan->graph, node, &plan->words, &plan->store, b->why) < 0) {
        mp_op_clear(op);
        return -1;
    }
    plan->n_ops++;
    plan->n_python += op->tier == MP_TIER_PYTHON;
    for (uint32_t k = 0; k < node->n_values; k++) {
        mp_home home = home_of(plan, node->first + k);
        if (home == MP_HOME_VIEW || home == MP_HOME_INPUT) {
            mp_reason_set(b->why, MP_REASON_INTERNAL, "result %u of %s is planned as a view", k, node->op);
            return -1;
        }
        if (op->out && emit_storage(b, node->first + k) < 0) return -1;
        b->made[node->first + k] = 1;
    }
    return emit(b, MP_INSN_OP, plan->n_ops - 1);
}

/* Where value `v` begins: its root's storage and bytes from there. Returns 0, or -1 with b->why set. */
static int locate(build *b, mp_val v, mp_product_operand *operand)
{
    mp_plan *plan = b->plan;
    mp_val root = plan->roots[v];
    const mp_place *places = plan->schedule->places;
    if (home_of(plan, root) == MP_HOME_NONE) {
        mp_reason_set(b->why, MP_REASON_INTERNAL, "value %u of a product has no place", v);
        return -1;
    }
    int64_t offset = places[v].meta.offset * mp_plan_item(plan, v);
    *operand = (mp_product_operand){root, offset - places[root].meta.offset * mp_plan_item(plan, root)};
    return 0;
}

/* Fill `product`; without its left side or its result where a chain keeps these. Returns 0, or -1 with b->why set. */
static int resolve_product(build *b, const mp_gnode *node, mp_product *product, bool left, bool result)
{
    const mp_product_operand none = {.root = MP_NO_VAL};
    *product = (mp_product){.node = node, .a = none, .c = none, .ends = none};
    if (mp_gemm_from_grouped(&product->gemm, &product->groups, &product->step, b->plan->graph, node) < 0) {
        if (mp_gemm_from_node(&product->gemm, b->plan->graph, node) < 0) {
            mp_reason_set(b->why, MP_REASON_INTERNAL, "%s is no product", node->op);
            return -1;
        }
        product->has_bias = node->args[2].kind == MP_ARG_VALUE;
    } else if (locate(b, node->args[2].value, &product->ends) < 0)
        return -1;
    if (left && locate(b, node->args[0].value, &product->a) < 0) return -1;
    if (result && (locate(b, node->first, &product->c) < 0 || emit_storage(b, product->c.root) < 0)) return -1;
    if (product->has_bias && locate(b, node->args[2].value, &product->bias) < 0) return -1;
    return locate(b, node->args[1].value, &product->b);
}

static int emit_chain(build *b, uint32_t number)
{
    mp_plan *plan = b->plan;
    const mp_chain *chain = &plan->schedule->chains[number];
    const mp_kernel *kernel = &plan->schedule->kernels[chain->kernel];
    mp_chain_call *call = &plan->chains[plan->n_chains];
    *call =
        (mp_chain_call){.kernel = chain->kernel, .n_buffers = kernel->n_buffers, .in = chain->in, .out = chain->out};
    call->buffers = mp_store_alloc(&plan->store, (kernel->n_buffers + 1) * sizeof *call->buffers);
    if (!call->buffers) return no_memory(b);
    if (resolve_product(b, &plan->graph->nodes[chain->first], &call->first, true, false) < 0 ||
        resolve_product(b, &plan->graph->nodes[chain->second], &call->second, false, true) < 0)
        return -1;
    for (uint32_t k = 0; k < kernel->n_buffers; k++)
        if (k != chain->in && k != chain->out && locate(b, kernel->values[k], &call->buffers[k]) < 0) return -1;
    void *function = kernel->function ? mp_code_symbol(plan->code, kernel->function) : NULL;
    if (!function || mp_chain_prepare(call) < 0) {
        mp_reason_set(b->why, MP_REASON_COMPILE_FAILED, "kernel %s is missing", kernel->name);
        return -1;
    }
    memcpy(&call->function, &function, sizeof function);
    plan->n_chains++;
    return emit(b, MP_INSN_CHAIN, plan->n_chains - 1);
}

static int emit_product(build *b, const mp_gnode *node)
{
    mp_plan *plan = b->plan;
    if (resolve_product(b, node, &plan->products[plan->n_products], true, true) < 0) return -1;
    plan->n_products++;
    return emit(b, MP_INSN_PRODUCT, plan->n_products - 1);
}

static int emit_kernel(build *b, uint32_t number)
{
    mp_plan *plan = b->plan;
    const mp_schedule *schedule = plan->schedule;
    const mp_kernel *kernel = &schedule->kernels[number];
    mp_kernel_call *call = &plan->calls[plan->n_calls];
    mp_buffer *buffers = mp_store_alloc(&plan->store, (kernel->n_buffers + 1) * sizeof *buffers);
    uint32_t lead = kernel->conv ? 2 : 0;
    uint32_t first = mp_words_add(&plan->words, lead + kernel->n_buffers + kernel->checks);
    if (!buffers || first == UINT32_MAX) return no_memory(b);
    void *function = kernel->function ? mp_code_symbol(plan->code, kernel->function) : NULL;
    void *prepare = NULL;
    if (!function && kernel->function) {
        mp_reason_set(b->why, MP_REASON_COMPILE_FAILED, "kernel %s is missing", kernel->function);
        return -1;
    }
    if (kernel->conv) {
        mp_conv_call *conv = mp_store_alloc(&plan->store, sizeof *conv);
        if (!conv) return no_memory(b);
        conv->conv = *kernel->conv;
        memcpy(&conv->epilogue, &function, sizeof function);
        conv->scratch = mp_conv_scratch;
        plan->words.words[first] = (uint64_t)(uintptr_t)conv;
        if (!(function = mp_conv_function("mp_conv_run", b->vector_bits, b->why))) return -1;
        if (kernel->workspace && !(prepare = mp_conv_function("mp_conv_prepare", b->vector_bits, b->why))) return -1;
    }
    *call = (mp_kernel_call){.number = number,
                             .first_word = first,
                             .n_buffers = kernel->n_buffers,
                             .checks = kernel->checks,
                             .buffers = buffers,
                             .extent = kernel->extent,
                             .grain = kernel->grain,
                             .prepare_extent = kernel->conv ? kernel->conv->n_prepare : 0,
                             .workspace = kernel->workspace_offset};
    memcpy(&call->function, &function, sizeof function);
    memcpy(&call->prepare, &prepare, sizeof prepare);
    for (uint32_t k = 0; k < kernel->n_buffers; k++) {
        mp_val v = kernel->values[k], root = plan->roots[v];
        int64_t offset = schedule->places[v].meta.offset * mp_plan_item(plan, v);
        int64_t root_offset = schedule->places[root].meta.offset * mp_plan_item(plan, root);
        if (home_of(plan, root) == MP_HOME_NONE) {
            mp_reason_set(b->why, MP_REASON_INTERNAL, "buffer %u of %s has no place", k, kernel->name);
            return -1;
        }
        buffers[k] = (mp_buffer){first + lead + k, root, offset - root_offset};
        if (kernel->written[k] && emit_storage(b, root) < 0) return -1;
    }
    plan->n_calls++;
    return emit(b, MP_INSN_KERNEL, plan->n_calls - 1);
}

static int emit_steps(build *b)
{
    mp_plan *plan = b->plan;
    const mp_schedule *schedule = plan->schedule;
    plan->ops = mp_store_alloc(&plan->store, (plan->n_ops + 1) * sizeof *plan->ops);
    plan->calls = mp_store_alloc(&plan->store, (plan->n_calls + 1) * sizeof *plan->calls);
    plan->products = mp_store_alloc(&plan->store, (plan->n_products + 1) * sizeof *plan->products);
    plan->chains = mp_store_alloc(&plan->store, (plan->n_chains + 1) * sizeof *plan->chains);
    if (!plan->ops || !plan->calls || !plan->products || !plan->chains) return no_memory(b);
    plan->n_ops = plan->n_calls = plan->n_products = plan->n_chains = 0; /* from here on: how many are made */
    for (uint32_t i = 0; i < schedule->n_steps; i++) {
        const mp_step *step = &schedule->steps[i];
        int failed = 0;
        switch (step->kind) {
        case MP_STEP_KERNEL: failed = emit_kernel(b, step->index); break;
        case MP_STEP_OP: {
            const mp_gnode *node = &plan->graph->nodes[step->index];
            failed = is_product(plan, node) ? emit_product(b, node) : emit_op(b, step->index);
            break;
        }
        case MP_STEP_CHAIN: failed = emit_chain(b, step->index); break;
        case MP_STEP_VIEW: failed = emit_view(b, step->index); break;
        case MP_STEP_RELEASE: break; /* lifetimes are found below, from the instructions themselves */
        }
        if (failed) return -1;
    }
    for (uint32_t i = 0; i < plan->graph->n_outputs; i++)
        if (plan->graph->outputs[i] != MP_NO_VAL && emit_view(b, plan->graph->outputs[i]) < 0) return -1;
    return 0;
}

/* -- Lifetimes ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    uint32_t *last; /* [n_values] by root: the last instruction that touches its storage */
    uint32_t now;
} lifetimes;

static void touch(mp_plan *plan, mp_val v, void *context)
{
    lifetimes *life = context;
    life->last[plan->roots[v]] = life->now;
}

static void touch_insn(mp_plan *plan, const mp_insn *insn, lifetimes *life)
{
    if (insn->kind == MP_INSN_OP) {
        const mp_gnode *node = plan->ops[insn->index].node;
        visit_node(plan, node, touch, life);
        for (uint32_t k = 0; k < node->n_values; k++) touch(plan, node->first + k, life);
    } else if (insn->kind == MP_INSN_CHAIN) {
        visit_chain(plan, &plan->schedule->chains[insn->index], touch,
                    life); /* chains are made in the schedule's order */
    } else if (insn->kind == MP_INSN_PRODUCT) {
        const mp_gnode *node = plan->products[insn->index].node;
        visit_node(plan, node, touch, life);
        touch(plan, node->first, life);
    } else if (insn->kind == MP_INSN_KERNEL) {
        const mp_kernel_call *call = &plan->calls[insn->index];
        for (uint32_t k = 0; k < call->n_buffers; k++) touch(plan, call->buffers[k].root, life);
    } else {
        touch(plan, insn->index, life);
    }
}

/* Does a run own a handle of `v` that can go before the run ends? */
static bool releasable(const mp_plan *plan, mp_val v)
{
    mp_home home = home_of(plan, v), root = home_of(plan, plan->roots[v]);
    if (!(plan->needs[v] & (MP_NEED_HANDLE | MP_NEED_POINTER))) return false;
    if (home == MP_HOME_VIEW) return root == MP_HOME_EXTERN;
    return home == MP_HOME_EXTERN || home == MP_HOME_NONE;
}

/* Draft + releases -> the plan's instructions, in the store. */
static int finish(build *b)
{
    mp_plan *plan = b->plan;
    uint32_t n_values = plan->graph->n_values;
    lifetimes life = {.last = calloc(n_values + 1, sizeof *life.last)};
    plan->insns = mp_store_alloc(&plan->store, (b->n_draft + n_values + 1) * sizeof *plan->insns);
    plan->run_values = mp_store_alloc(&plan->store, (n_values + 1) * sizeof *plan->run_values);
    /* releases by the instruction they follow: chains of values */
    mp_val *chain = calloc(n_values + 1, sizeof *chain), *head = malloc((b->n_draft + 1) * sizeof *head);
    int result = -1;
    if (!life.last || !plan->insns || !plan->run_values || !chain || !head) {
        no_memory(b);
        goto done;
    }
    memset(head, 0xff, (b->n_draft + 1) * sizeof *head);
    for (life.now = 0; life.now < b->n_draft; life.now++) touch_insn(plan, &b->draft[life.now], &life);
    for (uint32_t i = 0; i < plan->graph->n_outputs; i++)
        if (plan->graph->outputs[i] != MP_NO_VAL) life.last[plan->roots[plan->graph->outputs[i]]] = UINT32_MAX;
    for (mp_val v = 0; v < n_values; v++) {
        uint32_t last = life.last[plan->roots[v]];
        mp_home home = home_of(plan, v);
        if (home != MP_HOME_INPUT && home != MP_HOME_ARENA && b->made[v]) plan->run_values[plan->n_run_values++] = v;
        if (!b->made[v] || !releasable(plan, v) || last == UINT32_MAX || last >= b->n_draft) continue;
        chain[v] = head[last];
        head[last] = v;
    }
    for (uint32_t i = 0; i < b->n_draft; i++) {
        plan->insns[plan->n_insns++] = b->draft[i];
        for (mp_val v = head[i]; v != MP_NO_VAL; v = chain[v])
            plan->insns[plan->n_insns++] = (mp_insn){MP_INSN_RELEASE, v};
    }
    result = 0;
done:
    free(life.last);
    free(chain);
    free(head);
    return result;
}

/* -- The door -------------------------------------------------------------------------------------------------------------- */

void mp_plan_destroy(mp_plan *plan)
{
    for (mp_frame *frame = plan->idle, *next; frame; frame = next) {
        next = frame->next;
        mp_frame_free(plan, frame);
    }
    for (uint32_t i = 0; i < plan->n_ops && plan->ops; i++) mp_op_clear(&plan->ops[i]);
    mp_store_free(&plan->store);
    free(plan->words.words);
    free(plan->words.relocations);
    mp_code_free(plan->code);
    if (plan->schedule) mp_fuse_free(plan->schedule);
    if (!plan->borrows_graph) mp_ir_graph_free(plan->graph);
    free(plan);
}

void mp_plan_free(mp_plan *plan)
{
    if (!plan) return;
    plan->freed = true;
    if (!plan->n_running) mp_plan_destroy(plan);
}

/* Everything after the schedule is known. On failure the plan is left for mp_plan_destroy. */
static int plan_build(mp_plan *plan, int vector_bits, mp_reason *why)
{
    uint32_t n = plan->graph->n_values;
    build b = {.plan = plan, .why = why, .vector_bits = vector_bits, .made = calloc(n + 1, 1)};
    plan->needs = mp_store_alloc(&plan->store, n + 1);
    plan->roots = mp_store_alloc(&plan->store, (n + 1) * sizeof *plan->roots);
    int result = b.made && plan->needs && plan->roots ? 0 : no_memory(&b);
    if (!result) result = find_roots(&b);
    if (!result) result = find_needs(&b);
    if (result < 0) plan->n_ops = 0; /* counted, but not made */
    if (!result) result = emit_steps(&b);
    if (!result) result = finish(&b);
    free(b.draft);
    free(b.made);
    return result;
}

/* One attempt; `graph` stays the caller's on failure. */
static mp_plan *plan_try(mp_graph *graph, const mp_fuse_options *options, mp_reason *why)
{
    mp_plan *plan = calloc(1, sizeof *plan);
    if (!plan) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "a plan");
        return NULL;
    }
    plan->graph = graph;
    plan->schedule = mp_fuse_schedule(graph, options, why);
    if (plan->schedule &&
        (!*plan->schedule->source ||
         (plan->code = mp_code_load(plan->schedule->source, plan->schedule->n_sections, options->vector_bits, why))) &&
        plan_build(plan, options->vector_bits, why) == 0)
        return plan;
    if (why->code == MP_REASON_NONE) mp_reason_set(why, MP_REASON_INTERNAL, "no schedule");
    plan->graph = NULL;
    mp_plan_destroy(plan);
    return NULL;
}

mp_plan *mp_plan_without_kernels(const mp_plan *plan, mp_reason *why)
{
    mp_fuse_options options = {.vector_bits = 128, .fuse = false};
    mp_plan *slow = plan_try(plan->graph, &options, why);
    if (slow) slow->borrows_graph = true;
    return slow;
}

mp_plan *mp_plan_compile(mp_graph *graph, const mp_fuse_options *options, mp_reason *why)
{
    mp_reason local = {0};
    mp_fuse_options use = *options;
    mp_plan *plan = NULL;
    if (mp_torch_load() < 0) {
        mp_reason_set_exception(why, MP_REASON_OPERATOR);
        mp_ir_graph_free(graph);
        return NULL;
    }
    if (!mp_torch.layout_verified) {
        mp_reason_set(why, MP_REASON_OPERATOR, "this torch lays tensors out in an unknown way");
        mp_ir_graph_free(graph);
        return NULL;
    }
    if (use.fuse && !mp_compiler_usable()) use.fuse = false;
    plan = plan_try(graph, &use, &local);
    if (!plan && use.fuse) {
        mp_log("warning", "%s: %s; the operators of this graph run one by one", mp_reason_text(local.code),
               local.detail);
        local = (mp_reason){0};
        use.fuse = false;
        plan = plan_try(graph, &use, &local);
    }
    if (plan) return plan;
    if (why->code == MP_REASON_NONE) *why = local;
    mp_ir_graph_free(graph);
    return NULL;
}

uint32_t mp_plan_n_inputs(const mp_plan *plan) { return plan->graph->n_inputs; }
uint32_t mp_plan_n_outputs(const mp_plan *plan) { return plan->graph->n_outputs; }
