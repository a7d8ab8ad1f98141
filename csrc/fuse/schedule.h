/* Schedule: which operators become one kernel, in which order everything runs, and where every value lives.
**
** Made once per graph from mp_graph by fuse (and codegen for the sources), then only read; run/plan.c turns it into an executable
** plan. Target-neutral except for the printed source. All memory belongs to the schedule.
*/
#ifndef MP_FUSE_SCHEDULE_H
#define MP_FUSE_SCHEDULE_H
#include "ir/conv.h"
#include "ir/graph.h"

/* Where a value lives while the plan runs. */
typedef enum {
    MP_HOME_NONE,  /* fused away: exists only inside a kernel, or is never used */
    MP_HOME_INPUT, /* the caller's tensor, input number `index` */
    MP_HOME_OUTPUT, /* a fresh tensor of torch's allocator, graph output number `index` (first position it appears in), or with
                    ** index UINT32_MAX no output itself, but storage of a MP_HOME_VIEW that is one */
    MP_HOME_ARENA,  /* at byte `arena_offset` of the plan's arena */
    MP_HOME_EXTERN, /* the operator that makes it allocates it; released by its MP_STEP_RELEASE */
    MP_HOME_VIEW,   /* other metadata over the storage of value `base` (its meta.offset is absolute in that storage) */
} mp_home;

typedef struct {
    mp_home home;
    uint32_t index;
    mp_val base;
    int64_t arena_offset; /* a multiple of 64 */
    mp_meta meta;         /* may differ from the graph's strides for values that nobody outside sees */
} mp_place;

/* A generated kernel: void FUNCTION(void *const *buffers, int64_t begin, int64_t end). buffers[i] points at element 0 of the
** storage view of value `values[i]` (offset applied). It computes the outer iterations [begin, end) of [0, extent); disjoint
** ranges may run on different threads. It never allocates and reads nothing it was not given. If `checks`, there is one more buffer,
** an int that it sets to 1 when an index among the data is out of range; then what it wrote is of no use. */
typedef struct {
    const char *name, *function;
    uint32_t n_buffers;
    const mp_val *values; /* [n_buffers] */
    const bool *written;  /* [n_buffers] */
    const int64_t *row; /* [n_buffers] r > 0: iteration i touches exactly elements [i * r, (i + 1) * r) of the buffer */
    bool checks;        /* may find an index out of range */
    int64_t extent;     /* outer iterations */
    int64_t grain;      /* fewest outer iterations worth a thread */
    const mp_conv *conv; /* NULL, or: the library's convolution of values 0 and 1, which calls FUNCTION (an
                               ** mp_conv_epilogue) with its sums, or, if that is NULL, stores them to value 2 */
    int64_t workspace, workspace_offset; /* bytes of the arena that are the kernel's own while it runs */
    const char *const *ops;              /* NULL-terminated: names of the operators in it, for people */
    const char *cuda_source; /* the same kernel as CUDA C, or NULL where the CUDA printer does not cover its form:
                               ** __global__ void NAME(buffer 0, buffer 1, ...), each a pointer; at last int * if it checks */
    int64_t cuda_grid;       /* blocks to launch */
    int cuda_block;          /* threads in a block */
} mp_kernel;

/* Product, kernel, product: done by blocks of rows, so that what lies between exists for one block at a time (attention). The first
** product's result is buffer `in` of the kernel and nothing else, the kernel's result is its buffer `out` and the left side of the second. */
typedef struct {
    uint32_t first, second; /* nodes */
    uint32_t kernel;        /* its iterations are the rows of both products, in order */
    uint32_t in, out;       /* its buffers */
} mp_chain;

typedef enum { MP_STEP_KERNEL, MP_STEP_OP, MP_STEP_CHAIN, MP_STEP_VIEW, MP_STEP_RELEASE } mp_step_kind;

typedef struct {
    mp_step_kind kind;
    uint32_t index; /* KERNEL: kernel number. OP: node number. CHAIN: chain number. VIEW, RELEASE: value number */
} mp_step;

typedef struct {
    const mp_graph *graph; /* borrowed; outlives the schedule */
    const char *source;    /* one C translation unit with all kernels, no #include; "" if there are no kernels */
    uint32_t n_sections;   /* of it: one for each function */
    uint32_t n_kernels, n_steps, n_chains;
    const mp_kernel *kernels;
    const mp_chain *chains;
    const mp_step *steps;
    const mp_place *places; /* [graph->n_values] */
    int64_t arena_bytes;
} mp_schedule;

typedef struct {
    int vector_bits; /* 512, 256 or 128: what the CPU at hand does well */
    bool fuse;       /* false: no kernels at all, every operator is a MP_STEP_OP (fallbacks (b), (c)) */
} mp_fuse_options;

/* Returns an owned schedule, or NULL with *why set (no Python exception). An operator fuse has no kernel for is never a
** failure: it becomes a MP_STEP_OP. */
mp_schedule *mp_fuse_schedule(const mp_graph *graph, const mp_fuse_options *options, mp_reason *why);
void mp_fuse_free(mp_schedule *schedule);

/* The loop-level IR of kernel `index` as text for people. Returns an owned malloc'ed string, NULL on no memory. */
char *mp_fuse_dump(const mp_schedule *schedule, uint32_t index);

#endif
