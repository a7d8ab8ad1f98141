/* Kernel IR: one kernel as loops over integer boxes, affine accesses, scalar expressions and reductions. Target-neutral.
**
** A kernel runs over `n_loops` loops; some are reduced, the rest are kept. Expressions form a list in which operands come
** first. What an expression depends on (`deps`, a bit for each loop) says where it may be computed; `level` says after which
** pass over the reduced loops it is known. A reduction runs over all reduced loops together: kernels with reductions are
** "for each point of the kept loops: pass 0 over the reduced loops, then what its sums give, pass 1, ...".
** There is no order other than this one; the printers choose what to recompute and what to keep.
*/
#ifndef MP_IR_KERNEL_IR_H
#define MP_IR_KERNEL_IR_H
#include "ir/conv.h"
#include "ir/graph.h"
#include "ir/pool.h"

#define MP_MAX_LOOPS 12
#define MP_MAX_BUFFERS 40

/* base + sum of coef[i] * loop i, in elements. */
typedef struct {
    int64_t base, coef[MP_MAX_LOOPS];
} mp_affine;

typedef enum {
    MP_K_CONST,
    MP_K_LOAD,
    MP_K_INDEX,
    MP_K_CAST,
    MP_K_ROUND16,
    MP_K_TILE, /* the convolution's sum at this point, of kernels that have one */
    MP_K_CHECK,
    MP_K_REDUCE,
#define MP_KOP(code, name, arity, result, weight) MP_K_##code,
#include "ir/kernel_ops.h"
#undef MP_KOP
    MP_K_COUNT
} mp_kop;

typedef struct {
    const char *name;
    uint8_t arity;
    bool to_bool;
    uint8_t weight;
} mp_kop_info;
extern const mp_kop_info mp_kops[MP_K_COUNT];

typedef enum { MP_RED_SUM, MP_RED_PROD, MP_RED_MAX, MP_RED_MIN, MP_RED_ANY, MP_RED_ALL } mp_reduction;

typedef uint32_t mp_kid; /* number of an expression in its kernel */
#define MP_NO_KID UINT32_MAX

typedef struct {
    mp_kop op;
    mp_dtype dtype; /* of registers: never F16 or BF16, which are computed in F32 */
    /* Operands; MP_NO_KID if none. LOAD: [0] the condition under which it may be read, [1] an integer that is added to the position.
    ** CHECK: [0] an index, [1] the condition under which it counts. */
    mp_kid arg[3];
    union {
        double f; /* CONST of a floating type */
        int64_t
            i; /* CONST of another type; CHECK: the index is to be below this, else it is 0 and the kernel says so */
        mp_affine at; /* LOAD: from element 0 of the buffer; INDEX: the value itself */
    };
    uint32_t
        aux; /* LOAD: buffer. REDUCE: mp_reduction. ROUND16: MP_F16 or MP_BF16. CHECK: 1: negative ones count from the end */
    uint32_t deps;  /* loops that it depends on */
    uint16_t level; /* known after this many passes */
    uint16_t cost;  /* of computing it from loads and earlier passes, in additions; saturates */
} mp_kexpr;

typedef struct {
    mp_val value;
    mp_dtype dtype;
    bool written;
    int64_t bytes;
} mp_kbuffer;
typedef struct {
    uint32_t buffer;
    mp_affine at;
    mp_kid what;
} mp_kstore;

typedef struct {
    const char *name;
    uint32_t n_loops;
    int64_t extent[MP_MAX_LOOPS]; /* in nest order, outermost first: kept loops, then reduced ones; none is 1 */
    uint32_t reduced;             /* bit set */
    int vector; /* the loop that runs in vector lanes: the last reduced or the last kept one; -1 for none */
    uint32_t n_exprs, n_buffers, n_stores;
    mp_kexpr *exprs;
    mp_kbuffer *buffers;
    mp_kstore *stores;
    uint16_t n_passes; /* 0 without reductions */
    /* NULL, or the convolution whose sums it works on: loops are image, channel, position; buffers 0 and 1 are its input and weight */
    const mp_conv *conv;
    bool checks; /* has a CHECK: is given one more buffer, an int that it sets if an index is out of range */
} mp_kir;

/* What is 2^k - 1 for the kept loops' bits and the reduced ones'. */
static inline uint32_t mp_kir_kept(const mp_kir *kir) { return ((1u << kir->n_loops) - 1) & ~kir->reduced; }

static inline bool mp_dtype_float(int dtype)
{ return dtype == MP_F32 || dtype == MP_F64 || dtype == MP_F16 || dtype == MP_BF16; }
static inline bool mp_dtype_known(int dtype)
{ return (dtype >= MP_U8 && dtype <= MP_F64) || dtype == MP_BOOL || dtype == MP_BF16; }
static inline mp_dtype mp_dtype_register(int dtype)
{ return dtype == MP_F16 || dtype == MP_BF16 ? MP_F32 : (mp_dtype)dtype; }
int64_t mp_dtype_bytes(int dtype);

/* The kernel as text for people, in the pool of `text`. */
void mp_kir_dump(const mp_kir *kir, mp_text *text);

#endif
