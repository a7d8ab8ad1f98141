/* Operator graph: functional ATen operators over tensors of known metadata.
**
** Made once from Python's description of an ATen FX graph (magpy/lower.py) and then only read. All memory belongs to the
** graph's arena: pointers into a graph are borrowed and live as long as the graph. Values are numbered in topological
** order; a node with several tensor results owns consecutive values (getitem nodes are resolved away by the builder).
** Sizes, strides and offsets are in elements; strides may be 0 (expanded) but never negative.
*/
#ifndef MP_IR_GRAPH_H
#define MP_IR_GRAPH_H
#include "magpy.h"

/* torch's ScalarType codes, so that no translation is needed at torch's C ABI. */
typedef enum {
    MP_OPAQUE = -2,    /* a sparse or quantised tensor: only the steps of magpy/opaque_tensors.py take and give it */
    MP_UNDEFINED = -1, /* a result that the operator leaves undefined */
    MP_U8 = 0,
    MP_I8 = 1,
    MP_I16 = 2,
    MP_I32 = 3,
    MP_I64 = 4,
    MP_F16 = 5,
    MP_F32 = 6,
    MP_F64 = 7,
    MP_C64 = 9,
    MP_C128 = 10,
    MP_BOOL = 11,
    MP_BF16 = 15,
} mp_dtype;

#define MP_MAX_DIMS 16

typedef struct {
    int16_t dtype;  /* mp_dtype, or another ScalarType code (such values are only passed between extern operators) */
    int8_t ndim;    /* 0..MP_MAX_DIMS */
    int8_t device;  /* torch's DeviceType code: 0 CPU, 1 CUDA */
    int64_t offset; /* storage offset */
    const int64_t *size;   /* [ndim] */
    const int64_t *stride; /* [ndim] */
} mp_meta;

typedef uint32_t mp_val; /* number of a value in its graph */
#define MP_NO_VAL UINT32_MAX

typedef enum {
    MP_ARG_NONE,
    MP_ARG_INT,
    MP_ARG_FLOAT,
    MP_ARG_BOOL,
    MP_ARG_VALUE,
    MP_ARG_LIST,
    MP_ARG_STR,
    MP_ARG_DTYPE,
    MP_ARG_LAYOUT,
    MP_ARG_DEVICE,
    MP_ARG_MEMORY_FORMAT,
    MP_ARG_COMPLEX,
    MP_ARG_OBJECT
} mp_arg_kind;

typedef struct mp_arg {
    mp_arg_kind kind;
    union {
        int64_t
            i; /* INT, BOOL; DTYPE (ScalarType code), LAYOUT and MEMORY_FORMAT (torch's codes), DEVICE (type; index -1) */
        double f;     /* FLOAT */
        mp_val value; /* VALUE */
        struct {
            uint32_t n;
            const struct mp_arg *items;
        } list;
        const char *str;
        double complex_[2];
        PyObject *object; /* OBJECT: borrowed from the graph (a torch.Generator and the like) */
    };
} mp_arg;

typedef struct {
    const char *op;   /* "aten.add.Tensor"; "placeholder" for inputs (one value each, in order) */
    PyObject *target; /* the OpOverload, borrowed from the graph; NULL for placeholders */
    const char *form; /* which of its kernels computes it, as was chosen by measurement ("direct"), or NULL */
    uint32_t n_args;
    const mp_arg *args;       /* in schema order, keyword-only ones included, defaults filled in */
    uint32_t first, n_values; /* values [first, first + n_values) */
} mp_gnode;

typedef struct {
    uint32_t n_inputs, n_nodes, n_values, n_outputs;
    const mp_gnode *nodes;   /* placeholders first */
    const mp_meta *metas;    /* [n_values] */
    const uint32_t *node_of; /* [n_values]: the node that makes it */
    const mp_val *outputs;   /* [n_outputs]; MP_NO_VAL for an output that is None or a number; inputs may be outputs */
} mp_graph;

/* Build from a description: (nodes, outputs), both tuples.
**   nodes:   tuple of (op: str, target: OpOverload | None, args: tuple, metas: tuple) in topological order, placeholders first;
**            a fifth item, a str, is the form of the node's kernel;
**   metas:   one entry per tensor result: (dtype_code: int, device_type: int, sizes: tuple, strides: tuple, offset: int);
**   args:    None, int, float, bool, str, complex, list/tuple of those, ("v", i) for value i, ("dtype", code), ("layout", code),
**            ("device", type), ("memory_format", code), or ("obj", object);
**   outputs: tuple of value numbers, -1 for none.
** Returns an owned graph, or NULL with a Python exception set (TypeError or ValueError naming the node). */
mp_graph *mp_ir_graph_build(PyObject *nodes, PyObject *outputs);
void mp_ir_graph_free(mp_graph *graph); /* NULL is fine */

#endif
