/* Scatters that add: index_add, scatter_add, index_put that accumulates and the gradient of an embedding, by vectors along a dim that is
** not indexed. torch's own make an operator call for each row, or sort first.
**
** Elements that meet are added in the order of the index, as one thread of torch's adds them.
*/
#ifndef MP_RUN_SCATTER_H
#define MP_RUN_SCATTER_H
#include "ir/graph.h"
#include "run/torch_abi.h"

/* The function for the node, one of those below in the form of torch's C ABI, or NULL: it computes other cases. */
void *mp_scatter_function(const mp_graph *graph, const mp_gnode *node);

/* `out`, whose elements do not overlap, is written whole. float, double or int64 (no alpha), an index of int64 and any strides. Return 0,
** the error code of torch, or 1 for an index that is out of range. */
int mp_scatter_index_add(mp_handle out, mp_handle self, int64_t dim, mp_handle index, mp_handle source, double alpha);
int mp_scatter_add(mp_handle out, mp_handle self, int64_t dim, mp_handle index, mp_handle source);
int mp_scatter_index_put(mp_handle out, mp_handle self, mp_handle *const *indices, int64_t n_indices, mp_handle values,
                         int32_t accumulate);
int mp_scatter_embedding(mp_handle out, mp_handle grad, mp_handle indices, int64_t n_weights, int64_t padding,
                         int32_t by_frequency);

#endif
