/* What a step has to do, from the sizes of its tensors. */
#include "run/work.h"

#include <string.h>

static int64_t numel(const mp_meta *meta)
{
    int64_t n = 1;
    for (int d = 0; d < meta->ndim; d++) n *= meta->size[d];
    return n;
}

static int64_t bytes_of(const mp_plan *plan, mp_val v)
{
    const mp_meta *meta = &plan->graph->metas[v];
    if (meta->dtype < 0) return 0; /* left undefined, or opaque */
    int64_t n = (int64_t)mp_torch.element_size(meta->dtype);
    for (int d = 0; d < meta->ndim; d++) /* what is expanded is read once */
        if (meta->stride[d] != 0) n *= meta->size[d];
    return n;
}

static mp_work product_work(const mp_gemm *g)
{
    int64_t many = 1;
    for (int i = 0; i < g->n_batch; i++) many *= g->batch[i];
    return (mp_work){2 * many * g->m * g->n * g->k, 4 * many * (g->m * g->k + g->k * g->n + g->m * g->n)};
}

static int64_t size(const mp_graph *graph, const mp_arg *arg, int dim)
{
    const mp_meta *meta = &graph->metas[arg->value];
    return meta->size[dim < 0 ? meta->ndim + dim : dim];
}

/* Multiplications and additions of a node whose operands are in the order (input, weight) or (bias, input, weight). */
static int64_t node_flops(const mp_graph *graph, const mp_gnode *node)
{
    static const struct {
        const char *name;
        uint8_t operand; /* the left one */
        char kind;       /* m: [.., m, k] x [.., k, n]; l: weight [n, k]; c: convolution; b: its gradients */
    } products[] = {
        {"aten.mm.default", 0, 'm'},
        {"aten.bmm.default", 0, 'm'},
        {"aten.addmm.default", 1, 'm'},
        {"aten.baddbmm.default", 1, 'm'},
        {"mkldnn._linear_pointwise.", 0, 'l'},
        {"aten.convolution.default", 0, 'c'},
        {"aten.convolution_backward.", 0, 'b'},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        if (strncmp(node->op, products[i].name, strlen(products[i].name)) != 0) continue;
        const mp_arg *left = &node->args[products[i].operand];
        const mp_arg *right = &node->args[products[i].kind == 'b' ? 2 : products[i].operand + 1];
        if (left->kind != MP_ARG_VALUE || right->kind != MP_ARG_VALUE || !graph->metas[right->value].ndim) return 0;
        int64_t result = numel(&graph->metas[node->first]), n = 0;
        switch (products[i].kind) {
        case 'm':
        case 'l': return 2 * result * size(graph, left, -1);
        case 'b': { /* as many for each gradient that is asked for as for the sums, which the left operand is like */
            const mp_arg *wanted = &node->args[node->n_args - 1];
            for (uint32_t k = 0; wanted->kind == MP_ARG_LIST && k < wanted->list.n && k < 2; k++)
                n += wanted->list.items[k].i != 0;
            result = n * numel(&graph->metas[left->value]);
        } /* fall through */
        default: { /* each sum has the products of one output channel's weights; a transposed one spreads each input over them */
            bool transposed = node->args[products[i].kind == 'b' ? 7 : 6].i != 0;
            if (transposed)
                result = products[i].kind == 'c' ? numel(&graph->metas[left->value])
                                                 : n * numel(&graph->metas[node->args[1].value]);
            const mp_meta *weight = &graph->metas[right->value];
            return weight->size[0] ? 2 * result * (numel(weight) / weight->size[0]) : 0;
        }
        }
    }
    return 0;
}

static mp_work op_work(const mp_plan *plan, const mp_gnode *node)
{
    mp_work work = {node_flops(plan->graph, node), 0};
    if (!work.flops) return work;
    for (uint32_t i = 0; i < node->n_args; i++)
        if (node->args[i].kind == MP_ARG_VALUE) work.bytes += bytes_of(plan, node->args[i].value);
    for (uint32_t i = 0; i < node->n_values; i++) work.bytes += bytes_of(plan, node->first + i);
    return work;
}

/* Operators that read places which are data, or only a part of an operand. */
static bool gathers(const mp_kernel *kernel)
{
    static const char *const names[] = {"aten.embedding.", "aten.index", "aten._unsafe_index.", "aten.gather."};
    for (const char *const *op = kernel->ops; op && *op; op++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strncmp(*op, names[i], strlen(names[i])) == 0) return true;
    return false;
}

static mp_work kernel_work(const mp_plan *plan, const mp_kernel *kernel)
{
    mp_work work = {0, 0};
    if (gathers(kernel)) return work;
    for (uint32_t i = 0; i < kernel->n_buffers; i++) work.bytes += bytes_of(plan, kernel->values[i]);
    if (kernel->conv) {
        const mp_conv *c = kernel->conv;
        int64_t ci = c->form == MP_CONV_DEPTHWISE ? 1 : c->ci, sums = c->n * c->co * c->oh * c->ow;
        /* each sum of a 2 x 2 convolution in steps of 2 that is transposed has one product for each input channel */
        work.flops = 2 * sums * ci * (c->form == MP_CONV_TRANSPOSED ? 1 : c->kh * c->kw);
    }
    return work;
}

mp_work mp_plan_work(const mp_plan *plan, const mp_insn *insn)
{
    switch (insn->kind) {
    case MP_INSN_KERNEL: return kernel_work(plan, &plan->schedule->kernels[plan->calls[insn->index].number]);
    case MP_INSN_PRODUCT: {
        const mp_product *product = &plan->products[insn->index];
        mp_work work = product_work(&product->gemm);
        if (product->groups) work.bytes += 4 * (product->groups - 1) * product->gemm.k * product->gemm.n;
        return work;
    }
    case MP_INSN_CHAIN: { /* what lies between the products is in no memory */
        const mp_gemm *one = &plan->chains[insn->index].first.gemm, *two = &plan->chains[insn->index].second.gemm;
        mp_work a = product_work(one), b = product_work(two);
        int64_t many = one->m && one->n && one->k ? a.flops / (2 * one->m * one->n * one->k) : 0;
        return (mp_work){a.flops + b.flops, a.bytes + b.bytes - 8 * many * one->m * one->n};
    }
    case MP_INSN_OP: return op_work(plan, plan->ops[insn->index].node);
    default: return (mp_work){0, 0};
    }
}
