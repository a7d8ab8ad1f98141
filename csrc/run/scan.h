/* Scans: cumsum and cumprod, by vectors over the dims that are not summed. torch's own go element by element.
**
** As in torch, floats are summed in double and rounded once for each element, and whole numbers wrap around.
*/
#ifndef MP_RUN_SCAN_H
#define MP_RUN_SCAN_H
#include "ir/graph.h"
#include "run/torch_abi.h"

/* Is the node, aten.cumsum or aten.cumprod, one that the functions below compute? */
bool mp_scan_covers(const mp_graph *graph, const mp_gnode *node);

/* out = the sums (products) of x along `dim`. The tensors have one dtype, float, double or int64, the same sizes and any strides; elements of
** `out` do not overlap. `dtype` is not looked at. In the form of torch's C ABI. Return 0, or the error code of torch. */
int mp_scan_cumsum(mp_handle out, mp_handle x, int64_t dim, const int32_t *dtype);
int mp_scan_cumprod(mp_handle out, mp_handle x, int64_t dim, const int32_t *dtype);

#endif
