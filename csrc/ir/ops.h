/* Operators: what fuse knows of each ATen operator. One table, read like a page of documentation. */
#ifndef MP_IR_OPS_H
#define MP_IR_OPS_H
#include "ir/kernel_ir.h"

typedef enum {
    MP_OP_EXTERN,  /* anything not in the table: run by torch */
    MP_OP_INPUT,   /* a placeholder */
    MP_OP_VIEW,    /* other metadata over its first argument's storage: index arithmetic */
    MP_OP_POINT,   /* element by element, by formula */
    MP_OP_REDUCE,  /* over the dims in argument 1 */
    MP_OP_VAR,     /* variance, and variance with mean, by two passes */
    MP_OP_ARG,     /* place of the greatest or least element, alone or behind the element itself */
    MP_OP_GATHER,  /* elements at places that are data */
    MP_OP_SCATTER, /* one element along a dim replaced, at a place that is data (one_hot, the gradient of a gather) */
    MP_OP_ROLL,    /* moved around along the dims in argument 2 */
    MP_OP_FLIP,    /* backwards along the dims in argument 1 */
    MP_OP_CAT,     /* pieces along a dim */
    MP_OP_PAD,     /* a constant around */
    MP_OP_CONV,    /* a convolution of which node->form says that a kernel computes it */
} mp_op_class;

typedef struct {
    const char *name; /* "aten.add.Tensor" */
    mp_op_class class_;
    char rule;              /* POINT: 'R' compute in the result's type, 'P' in the promoted type of the first two
                         ** arguments, 'D' in double if the result is floating */
    const char *formula;    /* POINT: see below */
    mp_reduction reduction; /* REDUCE */
    bool mean;              /* REDUCE: divide by the number of elements */
} mp_op;

/* Formulas: function calls by the names of kernel_ops.h over numbers (exact, in the type of the computation) and
**   a, b, c ...   the node's arguments, tensors or numbers, converted to the type of the computation
**   ?a            the argument as a truth value
**   lo(x, b)      max(x, b), or x if argument b is None; hi(x, b) the same with min
**   iota          the index along dim 0 (int64)
** Alternatives are separated by ';': "tanh: F; G" is F if a string argument of the node is "tanh", otherwise G.
*/

/* The operator's row, never NULL: a row of class EXTERN if there is none, or if this node's types, sizes or arguments are
** ones that kernels do not cover. */
const mp_op *mp_op_find(const mp_graph *graph, const mp_gnode *node);

/* The type ATen computes arguments [0, n) of `node` in (tensors with dims, then tensors without, then numbers). */
mp_dtype mp_op_promote(const mp_graph *graph, const mp_gnode *node, uint32_t n);

/* Does it reduce dims? */
static inline bool mp_op_reduces(const mp_op *op)
{ return op->class_ == MP_OP_REDUCE || op->class_ == MP_OP_VAR || op->class_ == MP_OP_ARG; }

/* Which dims of the first argument a node that reduces does: a bit for each. */
uint32_t mp_op_reduced_dims(const mp_graph *graph, const mp_gnode *node);

/* The argument's number as a double / as an int64. */
double mp_arg_double(const mp_arg *arg);
int64_t mp_arg_int(const mp_arg *arg);
static inline bool mp_arg_number(const mp_arg *arg)
{ return arg->kind == MP_ARG_INT || arg->kind == MP_ARG_FLOAT || arg->kind == MP_ARG_BOOL; }

int64_t mp_meta_numel(const mp_meta *meta);

#endif
