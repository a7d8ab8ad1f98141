/* From a node's sizes and strides to a product. */
#include "gemm/node.h"

#include <string.h>

int mp_gemm_bits;

static bool is_float(const mp_graph *graph, const mp_arg *arg)
{
    if (arg->kind != MP_ARG_VALUE) return false;
    const mp_meta *meta = &graph->metas[arg->value];
    return meta->dtype == MP_F32 && meta->device == 0;
}

/* Strides of a dimension that has no second element do not matter and may be anything. */
static int64_t stride_of(const mp_meta *meta, int dim) { return meta->size[dim] > 1 ? meta->stride[dim] : 0; }

int mp_gemm_from_grouped(mp_gemm *g, int64_t *groups, int64_t *step, const mp_graph *graph, const mp_gnode *node)
{
    if (strcmp(node->op, "magpy.grouped.default") != 0 || node->n_args < 3 || node->n_values != 1) return -1;
    if (!is_float(graph, &node->args[0]) || !is_float(graph, &node->args[1]) || node->args[2].kind != MP_ARG_VALUE)
        return -1;
    const mp_meta *a = &graph->metas[node->args[0].value], *b = &graph->metas[node->args[1].value];
    const mp_meta *ends = &graph->metas[node->args[2].value], *c = &graph->metas[node->first];
    if (a->ndim != 2 || b->ndim != 3 || ends->ndim != 1 || c->ndim != 2 || c->dtype != MP_F32 || c->device) return -1;
    if (ends->dtype != MP_I32 || ends->device || ends->size[0] != b->size[0] || stride_of(ends, 0) > 1) return -1;
    int64_t m = a->size[0], k = a->size[1], n = b->size[2];
    if (!m || !k || !n || !b->size[0] || b->size[1] != k || c->size[0] != m || c->size[1] != n) return -1;
    if ((n > 1 && c->stride[1] != 1) || (m > 1 && c->stride[0] != n)) return -1;
    *g = (mp_gemm){.m = m, .n = n, .k = k, .a_row = stride_of(a, 0), .c_row = n};
    g->a_col = k > 1 ? a->stride[1] : 1;
    g->b_row = k > 1 ? b->stride[1] : 1;
    g->b_col = n == 1 && g->b_row != 1 ? 1 : stride_of(b, 2);
    *groups = b->size[0];
    *step = stride_of(b, 0);
    return mp_gemm_prepare(g, mp_gemm_bits);
}

int mp_gemm_from_node(mp_gemm *g, const mp_graph *graph, const mp_gnode *node)
{
    bool packed = strcmp(node->op, "magpy.packed_matmul.default") == 0;
    if (!packed && strcmp(node->op, "magpy.matmul.default") != 0) return -1;
    if (node->n_args < 3 || node->n_values != 1 || !is_float(graph, &node->args[0]) || !is_float(graph, &node->args[1]))
        return -1;
    const mp_meta *a = &graph->metas[node->args[0].value], *b = &graph->metas[node->args[1].value];
    const mp_meta *c = &graph->metas[node->first];
    int n = a->ndim - 2;
    if (n < 0 || n > MP_GEMM_MAX_BATCH || b->ndim != (packed ? 1 : n + 2) || c->ndim != n + 2 || c->dtype != MP_F32 ||
        c->device)
        return -1;
    int64_t m = a->size[n], k = a->size[n + 1], columns = c->size[n + 1];
    if (c->size[n] != m || !m || !columns) return -1;
    if (packed ? b->size[0] != mp_gemm_packed_size(k, columns, mp_gemm_bits) || stride_of(b, 0) > 1
               : b->size[n] != k || b->size[n + 1] != columns)
        return -1;
    if (columns > 1 && c->stride[n + 1] != 1) return -1;
    *g = (mp_gemm){.m = m, .n = columns, .k = k, .packed = packed, .n_batch = n};
    g->a_row = stride_of(a, n);
    g->a_col = k > 1 ? a->stride[n + 1] : 1;
    g->b_row = packed || k <= 1 ? 1 : b->stride[n];
    g->b_col = packed ? 1 : stride_of(b, n + 1);
    g->c_row = stride_of(c, n);
    if (columns == 1 && g->b_row != 1) g->b_col = 1;
    for (int i = 0; i < n; i++) {
        if (a->size[i] != c->size[i] || (!packed && b->size[i] != c->size[i]) || !c->size[i]) return -1;
        g->batch[i] = c->size[i];
        g->a_batch[i] = stride_of(a, i);
        g->b_batch[i] = packed ? 0 : stride_of(b, i);
        g->c_batch[i] = stride_of(c, i);
    }
    if (node->args[2].kind != MP_ARG_NONE) {
        if (!is_float(graph, &node->args[2])) return -1;
        const mp_meta *bias = &graph->metas[node->args[2].value];
        if (bias->ndim != 1 || bias->size[0] != columns || (columns > 1 && bias->stride[0] != 1)) return -1;
    }
    return mp_gemm_prepare(g, mp_gemm_bits);
}
