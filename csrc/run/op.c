/* Operator calls: choice of the tier, argument words, and what all tiers share. */
#include "run/op.h"

/* -- Words ----------------------------------------------------------------------------------------------------------- */

uint32_t mp_words_add(mp_words *words, uint32_t n)
{
    if (words->size - words->n < n) {
        uint32_t size = words->size * 2 > words->n + n ? words->size * 2 : words->n + n + 64;
        uint64_t *grown = realloc(words->words, size * sizeof *grown);
        if (!grown) return UINT32_MAX;
        words->words = grown;
        words->size = size;
    }
    memset(words->words + words->n, 0, n * sizeof *words->words);
    words->n += n;
    return words->n - n;
}

int mp_words_relocate(mp_words *words, uint32_t word, uint32_t target)
{
    if (words->n_relocations == words->relocations_size) {
        uint32_t size = words->relocations_size * 2 + 32;
        void *grown = realloc(words->relocations, size * sizeof *words->relocations);
        if (!grown) return -1;
        words->relocations = grown;
        words->relocations_size = size;
    }
    words->relocations[words->n_relocations].word = word;
    words->relocations[words->n_relocations++].target = target;
    return 0;
}

/* -- Resolving and calling -------------------------------------------------------------------------------------------- */

static bool arg_on_cpu(const mp_graph *graph, const mp_arg *arg)
{
    if (arg->kind == MP_ARG_VALUE) return graph->metas[arg->value].device == 0;
    if (arg->kind == MP_ARG_DEVICE) return arg->i == 0;
    if (arg->kind != MP_ARG_LIST) return true;
    for (uint32_t i = 0; i < arg->list.n; i++)
        if (!arg_on_cpu(graph, &arg->list.items[i])) return false;
    return true;
}

/* One of magpy/steps.py, written in Python. */
static bool is_own_step(const char *name)
{
    return !strncmp(name, "magpy.number.", 13) || !strncmp(name, "magpy.check.", 12) ||
           !strncmp(name, "magpy.sized.", 12);
}

int mp_op_resolve(mp_op *op, const mp_graph *graph, const mp_gnode *node, mp_words *words, mp_store *store,
                  mp_reason *why)
{
    *op = (mp_op){.node = node, .tier = MP_TIER_PYTHON};
    if (!node->target) {
        mp_reason_set(why, MP_REASON_OPERATOR, "%s has no operator", node->op);
        return -1;
    }
    if (mp_python_resolve(op, graph, store, why) < 0) return -1;
    if (is_own_step(node->op)) return 0; /* keeps nothing */
    op->keeps_args = true;
    if (!strncmp(node->op, "magpy.", 6)) return 0; /* written in Python: the dispatcher would lose what it raises */
    bool cpu = true;
    for (uint32_t i = 0; i < node->n_args; i++) cpu = cpu && arg_on_cpu(graph, &node->args[i]);
    int taken = cpu ? mp_shim_resolve(op, graph, words, store, why) : 0;
    if (taken > 0) op->tier = MP_TIER_SHIM;
    if (!taken && (taken = mp_dispatch_resolve(op, graph, store, why)) > 0) op->tier = MP_TIER_DISPATCHER;
    /* kernels of torch's own operators do not keep their arguments; Python and foreign ones may */
    op->keeps_args = op->tier == MP_TIER_PYTHON || strncmp(node->op, "aten.", 5) != 0;
    return taken < 0 ? -1 : 0;
}

int mp_op_call(const mp_op *op, mp_frame *frame, mp_handle *results)
{
    switch (op->tier) {
    case MP_TIER_SHIM: return mp_shim_call(op, frame, results);
    case MP_TIER_DISPATCHER: return mp_dispatch_call(op, frame, results);
    default: return mp_op_call_python(op, frame, results);
    }
}

mp_handle mp_op_argument(const mp_op *op, mp_frame *frame, mp_val v)
{
    mp_handle from = frame->handles[v], to = NULL;
    if (!op->keeps_args || frame->held[v] != MP_HELD_FRAME) return mp_torch.new_handle(from, &to) ? NULL : to;
    return mp_torch.clone_preserve_strides(from, &to) ? NULL : to;
}
