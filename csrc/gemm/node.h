/* Products as nodes of a graph: magpy::matmul(Tensor a, Tensor b, Tensor? bias, int[] strides) -> Tensor.
**
** a [*batch, m, k] times b [*batch, k, n] plus bias [n], for float operands of any strides; the result has the strides that are given.
** magpy/products.py puts such nodes into graphs.
**
** magpy::packed_matmul(Tensor a, Tensor b, Tensor? bias, int[] strides, int n) -> Tensor: the same with one b for all batches, [k, n], packed
** (mp_gemm_pack) into a tensor of one dimension.
**
** magpy::grouped(Tensor a, Tensor b, Tensor ends) -> Tensor: rows ends[g - 1] to ends[g] of a [m, k] times b[g] [k, n], for int32 `ends` [groups];
** the result is contiguous.
*/
#ifndef MP_GEMM_NODE_H
#define MP_GEMM_NODE_H
#include "gemm/gemm.h"
#include "ir/graph.h"

/* The prepared product that computes `node`. Returns 0, or -1 if the node is none or has to be run as an operator. */
int mp_gemm_from_node(mp_gemm *gemm, const mp_graph *graph, const mp_gnode *node);

/* A product of groups of rows: *gemm is that of all rows with the first matrix of b, *groups how many matrices there are, *step the elements
** from one to the next. Returns 0, or -1 if the node is none. */
int mp_gemm_from_grouped(mp_gemm *gemm, int64_t *groups, int64_t *step, const mp_graph *graph, const mp_gnode *node);

/* Test hook: width of the vectors that products made from now on use; 0 for the CPU's. */
extern int mp_gemm_bits;

#endif
