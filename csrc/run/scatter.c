#include "run/scatter.h"
#include "run/wide.h"

#include <stdatomic.h>
#include <string.h>

enum { BLOCK = 64, GRAIN = 1 << 14 }; /* lanes that one task adds side by side; elements worth a thread */

/* Steps are in elements. `row` steps along the indexed dim, `lane` along another one, that with out's smallest stride. */
typedef struct {
    int64_t row, lane, outer[MP_MAX_DIMS];
} steps;

typedef struct {
    void *to;
    const void *self, *from; /* self NULL: zeros */
    const int64_t *index;
    steps to_step, self_step, from_step, index_step;
    int64_t rows, n;              /* of out, and of the index, along the indexed dim */
    int64_t lanes, blocks, block; /* blocks of lanes */
    int n_outer;                  /* the other dims */
    int64_t outer[MP_MAX_DIMS];
    double alpha;
    bool wraps;      /* negative indices count from the end */
    int64_t skipped; /* an index whose elements are not added, or -1 */
    atomic_bool out_of_range;
} scatter;

/* The row that index `i` names, or -1: none. */
static INLINED int64_t row_of(scatter *s, int64_t i)
{
    if (i < 0 && s->wraps) i += s->rows;
    if (i >= 0 && i < s->rows) return i == s->skipped ? -1 : i;
    atomic_store_explicit(&s->out_of_range, true, memory_order_relaxed);
    return -1;
}

/* Tasks [begin, end): `count` lanes at an outer place, all their rows. Lanes side by side are added by vectors. */
#define SCATTER(kind, type)                                                                                            \
    typedef type kind##_vector __attribute__((vector_size(64)));                                                       \
    static INLINED void kind##_add(type *to, const type *from, int64_t count, type alpha)                              \
    {                                                                                                                  \
        const int64_t step = 64 / (int64_t)sizeof(type);                                                               \
        int64_t l = 0;                                                                                                 \
        for (; l + step <= count; l += step) {                                                                         \
            kind##_vector a, b;                                                                                        \
            memcpy(&a, to + l, sizeof a);                                                                              \
            memcpy(&b, from + l, sizeof b);                                                                            \
            a += alpha * b;                                                                                            \
            memcpy(to + l, &a, sizeof a);                                                                              \
        }                                                                                                              \
        for (; l < count; l++) to[l] += alpha * from[l];                                                               \
    }                                                                                                                  \
    static INLINED void kind##_begin(const scatter *s, type *to, const type *self, int64_t count)                      \
    {                                                                                                                  \
        const int64_t x = s->to_step.lane, y = s->self_step.lane;                                                      \
        for (int64_t r = 0; r < s->rows; r++, to += s->to_step.row) {                                                  \
            if (x == 1 && !self)                                                                                       \
                memset(to, 0, (size_t)count * sizeof *to);                                                             \
            else if (x == 1 && y == 1)                                                                                 \
                memcpy(to, self, (size_t)count * sizeof *to);                                                          \
            else                                                                                                       \
                for (int64_t l = 0; l < count; l++) to[l * x] = self ? self[l * y] : (type)0;                          \
            if (self) self += s->self_step.row;                                                                        \
        }                                                                                                              \
    }                                                                                                                  \
    static INLINED void kind##_lanes(scatter *s, type *to, const type *from, const int64_t *index, int64_t count)      \
    {                                                                                                                  \
        const int64_t x = s->to_step.lane, y = s->from_step.lane, to_row = s->to_step.row;                             \
        const type alpha = (type)s->alpha;                                                                             \
        for (int64_t i = 0; i < s->n; i++, from += s->from_step.row, index += s->index_step.row) {                     \
            int64_t row = row_of(s, *index);                                                                           \
            if (s->index_step.lane == 0 && row >= 0) {                                                                 \
                if (x == 1 && y == 1)                                                                                  \
                    kind##_add(to + row * to_row, from, count, alpha);                                                 \
                else                                                                                                   \
                    for (int64_t l = 0; l < count; l++) to[row * to_row + l * x] += alpha * from[l * y];               \
            }                                                                                                          \
            for (int64_t l = 0; s->index_step.lane && l < count; l++) {                                                \
                row = row_of(s, index[l * s->index_step.lane]);                                                        \
                if (row >= 0) to[row * to_row + l * x] += alpha * from[l * y];                                         \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static INLINED void kind##_tasks(scatter *s, int64_t begin, int64_t end)                                           \
    {                                                                                                                  \
        for (int64_t task = begin; task < end; task++) {                                                               \
            int64_t lane = task % s->blocks * s->block, place = task / s->blocks;                                      \
            int64_t to = lane * s->to_step.lane, self = lane * s->self_step.lane, from = lane * s->from_step.lane;     \
            int64_t index = lane * s->index_step.lane;                                                                 \
            for (int d = s->n_outer; d-- > 0; place /= s->outer[d]) {                                                  \
                int64_t at = place % s->outer[d];                                                                      \
                to += at * s->to_step.outer[d];                                                                        \
                self += at * s->self_step.outer[d];                                                                    \
                from += at * s->from_step.outer[d];                                                                    \
                index += at * s->index_step.outer[d];                                                                  \
            }                                                                                                          \
            int64_t count = s->lanes - lane < s->block ? s->lanes - lane : s->block;                                   \
            kind##_begin(s, (type *)s->to + to, s->self ? (const type *)s->self + self : NULL, count);                 \
            kind##_lanes(s, (type *)s->to + to, (const type *)s->from + from, s->index + index, count);                \
        }                                                                                                              \
    }                                                                                                                  \
    WIDE(kind, scatter)

SCATTER(f32, float)
SCATTER(f64, double)
SCATTER(i64, uint64_t) /* wraps around, as torch's */

typedef struct {
    int64_t n_dims, *sizes, *strides;
} shape;

/* Where a tensor lies. Returns 0, or the error code of torch. */
static int look(mp_handle tensor, shape *is, const void **data)
{
    int failed = mp_torch.get_dim(tensor, &is->n_dims);
    if (!failed) failed = mp_torch.get_sizes(tensor, &is->sizes);
    if (!failed) failed = mp_torch.get_strides(tensor, &is->strides);
    return failed ? failed : mp_torch.get_data_ptr(tensor, (void **)data);
}

/* Add to out = `self` (NULL: zeros). The index's dims stand in the place of `dim` in `source`, one after the other in memory, or it has all
** dims of `source` if `whole`. `s` has alpha, wraps and skipped set. */
static int add(scatter *s, mp_handle out, mp_handle self, int64_t dim, mp_handle index, mp_handle source, bool whole)
{
    shape to, from, at, old = {0};
    int32_t dtype;
    const void *data;
    int failed = look(out, &to, &data);
    s->to = (void *)data;
    if (failed || (failed = look(source, &from, &s->from)) || (failed = look(index, &at, (const void **)&s->index)) ||
        (self && (failed = look(self, &old, &s->self))) || (failed = mp_torch.get_dtype(out, &dtype)))
        return failed;
    if (dim < 0) dim += to.n_dims;
    int64_t lane = -1, tasks = 1, last = whole ? dim : dim + at.n_dims - 1; /* of source's dims that are indexed */
    s->n = s->lanes = s->rows = 1;
    for (int64_t d = 0; d < to.n_dims; d++) {
        if (to.sizes[d] == 0) return 0;
        if (d != dim && to.sizes[d] > 1 && (lane < 0 || to.strides[d] < to.strides[lane])) lane = d;
    }
    for (int64_t d = 0; d < at.n_dims; d++)
        if (!whole || d == dim) s->n *= at.sizes[d];
    for (int64_t d = 0; d < to.n_dims; d++) {
        int64_t in_source = d < dim ? d : d == dim ? last : d - dim + last;
        int64_t places[] = {to.strides[d], self ? old.strides[d] : 0, from.strides[in_source],
                            whole ? at.strides[d] : 0};
        if (d == dim) {
            s->rows = to.sizes[d];
            if (!whole && at.n_dims) places[3] = at.strides[at.n_dims - 1];
        }
        steps *of[] = {&s->to_step, &s->self_step, &s->from_step, &s->index_step};
        for (int k = 0; k < 4; k++) {
            if (d == dim)
                of[k]->row = places[k];
            else if (d == lane)
                of[k]->lane = places[k];
            else
                of[k]->outer[s->n_outer] = places[k];
        }
        if (d == lane)
            s->lanes = to.sizes[d];
        else if (d != dim && to.sizes[d] > 1) {
            s->outer[s->n_outer++] = to.sizes[d];
            tasks *= to.sizes[d];
        }
    }
    s->block = s->to_step.lane == 1 ? BLOCK : 1;
    s->blocks = (s->lanes + s->block - 1) / s->block;
    static const mp_kernel_fn functions[] = {f32_run, f64_run, i64_run};
    void *const buffers[] = {s};
    int64_t work = (s->n + s->rows) * (s->lanes < s->block ? s->lanes : s->block);
    mp_parallel_run(functions[dtype == MP_F32 ? 0 : dtype == MP_F64 ? 1 : 2], buffers, tasks * s->blocks, GRAIN / work);
    return s->out_of_range;
}

int mp_scatter_index_add(mp_handle out, mp_handle self, int64_t dim, mp_handle index, mp_handle source, double alpha)
{
    scatter s = {.alpha = alpha, .skipped = -1};
    return add(&s, out, self, dim, index, source, false);
}

int mp_scatter_add(mp_handle out, mp_handle self, int64_t dim, mp_handle index, mp_handle source)
{
    scatter s = {.alpha = 1, .skipped = -1};
    return add(&s, out, self, dim, index, source, true);
}

int mp_scatter_index_put(mp_handle out, mp_handle self, mp_handle *const *indices, int64_t n_indices, mp_handle values,
                         int32_t accumulate)
{
    scatter s = {.alpha = 1, .skipped = -1, .wraps = true};
    return add(&s, out, self, 0, *indices[0], values, false);
}

int mp_scatter_embedding(mp_handle out, mp_handle grad, mp_handle indices, int64_t n_weights, int64_t padding,
                         int32_t by_frequency)
{
    scatter s = {.alpha = 1, .skipped = padding};
    return add(&s, out, NULL, 0, indices, grad, false);
}

/* -- What is covered ------------------------------------------------------------------------------------------------------ */

static const mp_meta *meta_of(const mp_graph *graph, const mp_arg *arg)
{ return arg->kind == MP_ARG_VALUE ? &graph->metas[arg->value] : NULL; }

/* Do the first `n` dims from `first` on lie one after the other, so that they are as one dim with the last one's stride? */
static bool one_dim(const mp_meta *meta, int first, int n)
{
    for (int d = first + n - 1; d-- > first;)
        if (meta->stride[d] != meta->stride[d + 1] * meta->size[d + 1]) return false;
    return true;
}

/* Is every dim of `source` that is not indexed as large as out's? `source` has index's dims in the place of `dim`. */
static bool in_place_of(const mp_meta *out, int dim, const mp_meta *index, const mp_meta *source)
{
    if (source->ndim != out->ndim - 1 + index->ndim || index->ndim == 0) return false;
    for (int d = 0; d < source->ndim; d++) {
        int64_t wanted = d < dim                 ? out->size[d]
                         : d < dim + index->ndim ? index->size[d - dim]
                                                 : out->size[d - index->ndim + 1];
        if (source->size[d] != wanted) return false;
    }
    return one_dim(source, dim, index->ndim) && one_dim(index, 0, index->ndim);
}

/* scatter_add's: index and source have out's dims; the index is as large as out but along `dim`, and not larger than the source. */
static bool whole_index(const mp_meta *out, int dim, const mp_meta *index, const mp_meta *source)
{
    if (index->ndim != out->ndim || source->ndim != out->ndim) return false;
    for (int d = 0; d < out->ndim; d++)
        if ((d != dim && index->size[d] != out->size[d]) || index->size[d] > source->size[d]) return false;
    return true;
}

void *mp_scatter_function(const mp_graph *graph, const mp_gnode *node)
{
    union {
        int (*index_add)(mp_handle, mp_handle, int64_t, mp_handle, mp_handle, double);
        int (*add)(mp_handle, mp_handle, int64_t, mp_handle, mp_handle);
        int (*put)(mp_handle, mp_handle, mp_handle *const *, int64_t, mp_handle, int32_t);
        int (*embedding)(mp_handle, mp_handle, mp_handle, int64_t, int64_t, int32_t);
        void *address;
    } own = {.address = NULL};
    const mp_meta *out = &graph->metas[node->first], *first = meta_of(graph, &node->args[0]), *index = NULL, *source;
    int64_t dim = 0;
    bool covered;
    if (!first) return NULL;
    if (strcmp(node->op, "aten.embedding_dense_backward.default") == 0) {
        own.embedding = mp_scatter_embedding;
        index = meta_of(graph, &node->args[1]);
        source = first;
        covered = !node->args[4].i; /* gradients are not scaled */
    } else if (strcmp(node->op, "aten.index_put.default") == 0) {
        own.put = mp_scatter_index_put;
        const mp_arg *indices = &node->args[1];
        if (indices->kind == MP_ARG_LIST && indices->list.n == 1) index = meta_of(graph, indices->list.items);
        source = meta_of(graph, &node->args[2]);
        covered = node->args[3].i; /* accumulates */
    } else {
        bool indexed = strcmp(node->op, "aten.index_add.default") == 0;
        if (indexed)
            own.index_add = mp_scatter_index_add;
        else
            own.add = mp_scatter_add;
        index = meta_of(graph, &node->args[2]);
        source = meta_of(graph, &node->args[3]);
        dim = node->args[1].i + (node->args[1].i < 0 ? out->ndim : 0);
        covered = indexed || (index && source && whole_index(out, (int)dim, index, source));
    }
    if (!covered || !index || !source || out->ndim == 0 || dim < 0 || dim >= out->ndim) return NULL;
    if (own.add != mp_scatter_add && !in_place_of(out, (int)dim, index, source)) return NULL;
    bool dtype = out->dtype == MP_F32 || out->dtype == MP_F64 || out->dtype == MP_I64;
    dtype &= source->dtype == out->dtype && first->dtype == out->dtype && index->dtype == MP_I64;
    return dtype && !(out->device | index->device | source->device) ? own.address : NULL;
}
