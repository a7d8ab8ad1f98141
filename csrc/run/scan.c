#include "run/scan.h"
#include "run/wide.h"

#include <string.h>

enum {
    BLOCK = 256,
    APART = 4,
    MAX_DIMS = 16,
    GRAIN = 1 << 14
}; /* lanes that lie side by side, others, elements worth a thread */

typedef struct {
    const void *from;
    void *to;
    int64_t n, from_step, to_step;     /* along the scanned dim; strides are in elements */
    int64_t lanes, from_lane, to_lane; /* along another one, that with the smallest stride */
    int64_t blocks, block;             /* of lanes */
    int n_outer;                       /* the rest */
    int64_t outer[MAX_DIMS], from_outer[MAX_DIMS], to_outer[MAX_DIMS];
} scan;

/* One block of lanes, count of them: as many as BLOCK side by side, or as APART, whose sums are in registers, or one after the other. */
#define SCAN(name, type, sum_type, start, operation)                                                                   \
    static INLINED void name##_lanes(const scan *s, const type *from, type *to, int64_t count)                         \
    {                                                                                                                  \
        sum_type sums[BLOCK];                                                                                          \
        for (int64_t l = 0; l < count; l++) sums[l] = start;                                                           \
        for (int64_t i = 0; i < s->n; i++, from += s->from_step, to += s->to_step)                                     \
            for (int64_t l = 0; l < count; l++) to[l] = (type)(sums[l] = sums[l] operation(sum_type) from[l]);         \
    }                                                                                                                  \
    static INLINED void name##_apart(const scan *s, const type *from, type *to)                                        \
    {                                                                                                                  \
        sum_type a = start, b = start, c = start, d = start;                                                           \
        const int64_t x = s->from_lane, y = s->to_lane;                                                                \
        for (int64_t i = 0; i < s->n; i++, from += s->from_step, to += s->to_step) {                                   \
            to[0] = (type)(a = a operation(sum_type) from[0]);                                                         \
            to[y] = (type)(b = b operation(sum_type) from[x]);                                                         \
            to[2 * y] = (type)(c = c operation(sum_type) from[2 * x]);                                                 \
            to[3 * y] = (type)(d = d operation(sum_type) from[3 * x]);                                                 \
        }                                                                                                              \
    }                                                                                                                  \
    static INLINED void name##_one(const scan *s, const type *from, type *to)                                          \
    {                                                                                                                  \
        sum_type sum = start;                                                                                          \
        for (int64_t i = 0; i < s->n; i++, from += s->from_step, to += s->to_step)                                     \
            *to = (type)(sum = sum operation(sum_type) * from);                                                        \
    }                                                                                                                  \
    static INLINED void name(const scan *s, const type *from, type *to, int64_t count)                                 \
    {                                                                                                                  \
        if (s->block == BLOCK)                                                                                         \
            name##_lanes(s, from, to, count);                                                                          \
        else if (count == APART)                                                                                       \
            name##_apart(s, from, to);                                                                                 \
        else                                                                                                           \
            for (int64_t l = 0; l < count; l++) name##_one(s, from + l * s->from_lane, to + l * s->to_lane);           \
    }

SCAN(sum_f32, float, double, 0, +)
SCAN(sum_f64, double, double, 0, +)
SCAN(sum_i64, uint64_t, uint64_t, 0, +)
SCAN(prod_f32, float, double, 1, *)
SCAN(prod_f64, double, double, 1, *)
SCAN(prod_i64, uint64_t, uint64_t, 1, *)

/* Tasks [begin, end): blocks of lanes of the outer places. */
#define TASKS(kind, type)                                                                                              \
    static INLINED void kind##_tasks(const scan *s, int64_t begin, int64_t end)                                        \
    {                                                                                                                  \
        for (int64_t task = begin; task < end; task++) {                                                               \
            int64_t lane = task % s->blocks * s->block, place = task / s->blocks;                                      \
            int64_t from = lane * s->from_lane, to = lane * s->to_lane;                                                \
            for (int d = s->n_outer; d-- > 0; place /= s->outer[d]) {                                                  \
                from += place % s->outer[d] * s->from_outer[d];                                                        \
                to += place % s->outer[d] * s->to_outer[d];                                                            \
            }                                                                                                          \
            int64_t count = s->lanes - lane < s->block ? s->lanes - lane : s->block;                                   \
            kind(s, (const type *)s->from + from, (type *)s->to + to, count);                                          \
        }                                                                                                              \
    }                                                                                                                  \
    WIDE(kind, const scan)

TASKS(sum_f32, float)
TASKS(sum_f64, double)
TASKS(sum_i64, uint64_t)
TASKS(prod_f32, float)
TASKS(prod_f64, double)
TASKS(prod_i64, uint64_t)

static int run(mp_handle out, mp_handle x, int64_t dim, const mp_kernel_fn functions[3])
{
    int64_t n_dims, *sizes, *from, *to;
    int32_t dtype;
    int failed;
    scan s = {.n = 1, .lanes = 1, .from_lane = 1, .to_lane = 1};
    if ((failed = mp_torch.get_dim(x, &n_dims)) || (failed = mp_torch.get_sizes(x, &sizes)) ||
        (failed = mp_torch.get_strides(x, &from)) || (failed = mp_torch.get_strides(out, &to)) ||
        (failed = mp_torch.get_dtype(x, &dtype)) || (failed = mp_torch.get_data_ptr(x, (void **)&s.from)) ||
        (failed = mp_torch.get_data_ptr(out, &s.to)))
        return failed;
    if (dim < 0) dim += n_dims;
    int64_t lane = -1, tasks = 1;
    for (int64_t d = 0; d < n_dims; d++) {
        if (sizes[d] == 0) return 0;
        if (d != dim && sizes[d] > 1 && (lane < 0 || to[d] < to[lane])) lane = d;
    }
    for (int64_t d = 0; d < n_dims; d++) {
        if (d == dim)
            s.n = sizes[d], s.from_step = from[d], s.to_step = to[d];
        else if (d == lane)
            s.lanes = sizes[d], s.from_lane = from[d], s.to_lane = to[d];
        else if (sizes[d] > 1) {
            s.outer[s.n_outer] = sizes[d];
            s.from_outer[s.n_outer] = from[d];
            s.to_outer[s.n_outer++] = to[d];
            tasks *= sizes[d];
        }
    }
    s.block = s.lanes > 1 && s.from_lane == 1 && s.to_lane == 1 ? BLOCK : APART;
    s.blocks = (s.lanes + s.block - 1) / s.block;
    void *const buffers[] = {&s};
    int64_t work = s.n * (s.lanes < s.block ? s.lanes : s.block);
    mp_parallel_run(functions[dtype == MP_F32 ? 0 : dtype == MP_F64 ? 1 : 2], buffers, tasks * s.blocks, GRAIN / work);
    return 0;
}

int mp_scan_cumsum(mp_handle out, mp_handle x, int64_t dim, const int32_t *dtype)
{
    static const mp_kernel_fn functions[] = {sum_f32_run, sum_f64_run, sum_i64_run};
    return run(out, x, dim, functions);
}

int mp_scan_cumprod(mp_handle out, mp_handle x, int64_t dim, const int32_t *dtype)
{
    static const mp_kernel_fn functions[] = {prod_f32_run, prod_f64_run, prod_i64_run};
    return run(out, x, dim, functions);
}

bool mp_scan_covers(const mp_graph *graph, const mp_gnode *node)
{
    if (node->args[0].kind != MP_ARG_VALUE) return false;
    const mp_meta *x = &graph->metas[node->args[0].value], *out = &graph->metas[node->first];
    bool dtype = x->dtype == MP_F32 || x->dtype == MP_F64 || x->dtype == MP_I64;
    return dtype && x->dtype == out->dtype && !x->device && !out->device && x->ndim <= MAX_DIMS;
}
