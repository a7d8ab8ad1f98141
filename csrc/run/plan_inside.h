/* The plan's inside, shared by the files that compile, run and show it. */
#ifndef MP_RUN_PLAN_INSIDE_H
#define MP_RUN_PLAN_INSIDE_H
#include "run/chain.h"
#include "run/code.h"
#include "run/op.h"
#include "run/parallel.h"
#include "run/plan.h"
#include "run/product.h"

/* A buffer of a kernel: words[word] becomes pointers[root] + delta before the call. */
typedef struct {
    uint32_t word;
    mp_val root;
    int64_t delta; /* bytes */
} mp_buffer;

typedef struct {
    mp_kernel_fn function;
    uint32_t number; /* of the schedule's kernel */
    uint32_t first_word,
        n_buffers; /* words from first_word are passed; a convolution's first ones are its mp_conv_call and its workspace */
    bool checks; /* the word behind the buffers' is the address of the frame's `bad`; not of convolutions */
    const mp_buffer *buffers; /* [n_buffers] */
    int64_t extent, grain;
    mp_kernel_fn
        prepare; /* NULL, or to run over [0, prepare_extent) before, with word first_word + 1 at workspace in the arena */
    int64_t prepare_extent, workspace;
} mp_kernel_call;

typedef enum {
    MP_INSN_KERNEL,
    MP_INSN_PRODUCT,
    MP_INSN_CHAIN,
    MP_INSN_OP,
    MP_INSN_ALLOC,
    MP_INSN_VIEW,
    MP_INSN_RELEASE
} mp_insn_kind;

typedef struct {
    mp_insn_kind kind;
    uint32_t index; /* KERNEL: of calls; PRODUCT: of products; CHAIN: of chains; OP: of ops; others: value number */
} mp_insn;

enum {
    MP_NEED_HANDLE = 1,
    MP_NEED_POINTER = 2,
    MP_NEED_USED = 4, /* by an operator, a kernel or as an output: not only made */
};

struct mp_plan {
    mp_graph *graph;       /* owned, but for `borrows_graph` */
    mp_schedule *schedule; /* owned */
    mp_code *code;         /* owned: the loaded kernels, or NULL without kernels */
    mp_store store;        /* owns what is const below */
    mp_words words;
    mp_op *ops;
    mp_kernel_call *calls;
    mp_product *products;
    mp_chain_call *chains;
    mp_insn *insns;
    uint32_t n_ops, n_calls, n_products, n_chains, n_insns;
    uint8_t *needs;     /* [n_values] MP_NEED_* */
    mp_val *roots;      /* [n_values] the value whose storage it lives in: itself, but for views */
    mp_val *run_values; /* values whose handles a run may own, deleted at its end */
    uint32_t n_run_values;
    bool borrows_graph; /* of another plan */
    bool has_operators; /* grad mode and autocast are switched off while it runs */
    uint32_t n_python;  /* operators of the PYTHON tier */
    mp_frame *idle;     /* owned frames that no call uses */
    uint32_t n_idle, n_running;
    bool freed;       /* mp_plan_free was called while running; the last run frees */
    uint32_t n_timed; /* runs timed so far, until it is known whether a run is long */
    int64_t fastest_ns;
    int64_t *timed_ns; /* [n_insns] borrowed while the plan is profiled: the least time of each instruction so far */
};

/* Bytes of an element of value `v` where it lives. */
static inline int64_t mp_plan_item(const mp_plan *plan, mp_val v)
{ return (int64_t)mp_torch.element_size(plan->schedule->places[v].meta.dtype); }

/* Take an idle frame or make one. NULL with an exception. GIL held, like everything here. */
mp_frame *mp_frame_take(mp_plan *plan);
/* Give it back: the run's handles are deleted first. */
void mp_frame_give(mp_plan *plan, mp_frame *frame);
void mp_frame_free(mp_plan *plan, mp_frame *frame);
/* Make the handle of view `v` from its root's. Returns 0, or 1 if torch failed. */
int mp_frame_make_view(const mp_plan *plan, mp_frame *frame, mp_val v);
/* A plan of the same graph, which it borrows, in which every operator runs as an operator; for mp_plan_free. NULL with *why set. */
mp_plan *mp_plan_without_kernels(const mp_plan *plan, mp_reason *why);
/* Give back all memory. */
void mp_plan_destroy(mp_plan *plan);

#endif
