/* SHIM tier: operators that torch's C ABI has a function for, called with argument words laid out when the plan was compiled.
**
** The functions have regular C signatures, one letter per schema argument:
**   t  Tensor: handle                       T  Tensor?: pointer to a handle, or NULL
**   s  Scalar: double                       d  float: double              D  float?: pointer to a double, or NULL
**   i  int: int64_t                         I  int?: pointer to an int64_t, or NULL
**   b  bool: int32_t                        B  bool? or ScalarType?: pointer to an int32_t, or NULL
**   l  int[]: pointer, length               m  bool[]: pointer to int32_t, length
**   L  int[]?: pointer to a pointer or NULL, length
**   v  Tensor[]: pointer to handles, length V  Tensor?[]: pointer to pointers to handles or NULL, length
**   c  str: char pointer                    C  str?: pointer to a char pointer, or NULL
**   -  nothing: the argument must be None and is not passed
** then a pointer to a handle for each result; an out-variant takes the handle of its result first instead. Integers, pointers and
** doubles go in registers of their own in the x86-64 and AArch64 (Linux) calling conventions, and at most four doubles occur, so one
** call form, all words first and the doubles after them, passes every signature. On other machines this tier is not used.
*/
#include "run/op.h"
#include "run/random.h"
#include "run/scan.h"
#include "run/scatter.h"

#define MAX_WORDS 32
#define MAX_DOUBLES 4

/* To add an operator: its name as in the graph, the function, the letters of the schema's arguments, the number of results
** (0: out-variant). Operators whose Scalar may be an integer of meaning are taken only for floating-point tensors (see below). Random
** operators are left to the dispatcher, which takes the generator that eager would take; noise of dropout is drawn here (random.h). */
static const struct {
    const char *op, *symbol, *args;
    uint8_t n_results;
} table[] = {
    {"aten._adaptive_avg_pool2d.default", "aoti_torch_cpu__adaptive_avg_pool2d", "tl", 1},
    {"aten._adaptive_avg_pool2d_backward.default", "aoti_torch_cpu__adaptive_avg_pool2d_backward", "tt", 1},
    {"aten._adaptive_avg_pool3d.default", "aoti_torch_cpu__adaptive_avg_pool3d", "tl", 1},
    {"aten._adaptive_avg_pool3d_backward.default", "aoti_torch_cpu__adaptive_avg_pool3d_backward", "tt", 1},
    {"aten._addmm_activation.default", "aoti_torch_cpu__addmm_activation", "tttssb", 1},
    {"aten._cdist_backward.default", "aoti_torch_cpu__cdist_backward", "tttdt", 1},
    {"aten._cdist_forward.default", "aoti_torch_cpu__cdist_forward", "ttdI", 1},
    {"aten._embedding_bag.default", "aoti_torch_cpu__embedding_bag", "tttbibTbi", 4},
    {"aten._embedding_bag_forward_only.default", "aoti_torch_cpu__embedding_bag_forward_only", "tttbibTbi", 4},
    {"aten._fft_c2c.default", "aoti_torch_cpu__fft_c2c", "tlib", 1},
    {"aten._fft_r2c.default", "aoti_torch_cpu__fft_r2c", "tlib", 1},
    {"aten._int_mm.default", "aoti_torch_cpu__int_mm_out", "tt", 0},
    {"aten._pdist_backward.default", "aoti_torch_cpu__pdist_backward", "ttdt", 1},
    {"aten._pdist_forward.default", "aoti_torch_cpu__pdist_forward", "td", 1},
    {"aten._scaled_dot_product_flash_attention_for_cpu.default",
     "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu", "tttdbTD", 2},
    {"aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
     "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu_backward", "ttttttdbTD", 3},
    {"aten._trilinear.default", "aoti_torch_cpu__trilinear", "tttlllli", 1},
    {"aten.adaptive_max_pool2d.default", "aoti_torch_cpu_adaptive_max_pool2d", "tl", 2},
    {"aten.adaptive_max_pool2d_backward.default", "aoti_torch_cpu_adaptive_max_pool2d_backward", "ttt", 1},
    {"aten.adaptive_max_pool3d.default", "aoti_torch_cpu_adaptive_max_pool3d", "tl", 2},
    {"aten.adaptive_max_pool3d_backward.default", "aoti_torch_cpu_adaptive_max_pool3d_backward", "ttt", 1},
    {"aten.addbmm.default", "aoti_torch_cpu_addbmm", "tttss", 1},
    {"aten.addmm.default", "aoti_torch_cpu_addmm_out", "tttss", 0},
    {"aten.addmv.default", "aoti_torch_cpu_addmv", "tttss", 1},
    {"aten.avg_pool2d.default", "aoti_torch_cpu_avg_pool2d", "tlllbbI", 1},
    {"aten.avg_pool2d_backward.default", "aoti_torch_cpu_avg_pool2d_backward", "ttlllbbI", 1},
    {"aten.avg_pool3d.default", "aoti_torch_cpu_avg_pool3d", "tlllbbI", 1},
    {"aten.avg_pool3d_backward.default", "aoti_torch_cpu_avg_pool3d_backward", "ttlllbbI", 1},
    {"aten.baddbmm.default", "aoti_torch_cpu_baddbmm_out", "tttss", 0},
    {"aten.bernoulli.p", "mp_random_bernoulli", "td-", 0},
    {"aten.bmm.default", "aoti_torch_cpu_bmm_out", "tt", 0},
    {"aten.bucketize.Tensor", "aoti_torch_cpu_bucketize_Tensor", "ttbb", 1},
    {"aten.cat.default", "aoti_torch_cpu_cat", "vi", 1},
    {"aten.cholesky_inverse.default", "aoti_torch_cpu_cholesky_inverse", "tb", 1},
    {"aten.cholesky_solve.default", "aoti_torch_cpu_cholesky_solve", "ttb", 1},
    {"aten.convolution.default", "aoti_torch_cpu_convolution", "ttTlllbli", 1},
    {"aten.convolution_backward.default", "aoti_torch_cpu_convolution_backward", "tttLlllblim", 3},
    {"aten.cummax.default", "aoti_torch_cpu_cummax", "ti", 2},
    {"aten.cummin.default", "aoti_torch_cpu_cummin", "ti", 2},
    {"aten.cumprod.default", "mp_scan_cumprod", "tiB", 0},
    {"aten.cumprod.default", "aoti_torch_cpu_cumprod", "tiB", 1},
    {"aten.cumsum.default", "mp_scan_cumsum", "tiB", 0},
    {"aten.cumsum.default", "aoti_torch_cpu_cumsum", "tiB", 1},
    {"aten.geqrf.default", "aoti_torch_cpu_geqrf", "t", 2},
    {"aten.grid_sampler_2d_backward.default", "aoti_torch_cpu_grid_sampler_2d_backward", "tttiibm", 2},
    {"aten.grid_sampler_3d.default", "aoti_torch_cpu_grid_sampler_3d", "ttiib", 1},
    {"aten.grid_sampler_3d_backward.default", "aoti_torch_cpu_grid_sampler_3d_backward", "tttiibm", 2},
    {"aten.embedding_dense_backward.default", "mp_scatter_embedding", "ttiib", 0},
    {"aten.index.Tensor", "aoti_torch_cpu_index_Tensor", "tV", 1},
    {"aten.index_add.default", "mp_scatter_index_add", "titts", 0},
    {"aten.index_put.default", "mp_scatter_index_put", "tVtb", 0},
    {"aten.index_put.default", "aoti_torch_cpu_index_put", "tVtb", 1},
    {"aten.index_reduce.default", "aoti_torch_cpu_index_reduce", "tittcb", 1},
    {"aten.kthvalue.default", "aoti_torch_cpu_kthvalue", "tiib", 2},
    {"aten.logcumsumexp.default", "aoti_torch_cpu_logcumsumexp", "ti", 1},
    {"aten.masked_scatter.default", "aoti_torch_cpu_masked_scatter", "ttt", 1},
    {"aten.masked_scatter_backward.default", "aoti_torch_cpu_masked_scatter_backward", "ttl", 1},
    {"aten.max_pool2d_with_indices.default", "aoti_torch_cpu_max_pool2d_with_indices", "tllllb", 2},
    {"aten.max_pool2d_with_indices_backward.default", "aoti_torch_cpu_max_pool2d_with_indices_backward", "ttllllbt", 1},
    {"aten.max_pool3d_with_indices.default", "aoti_torch_cpu_max_pool3d_with_indices", "tllllb", 2},
    {"aten.max_pool3d_with_indices_backward.default", "aoti_torch_cpu_max_pool3d_with_indices_backward", "ttllllbt", 1},
    {"aten.max_unpool2d.default", "aoti_torch_cpu_max_unpool2d", "ttl", 1},
    {"aten.max_unpool3d.default", "aoti_torch_cpu_max_unpool3d", "ttlll", 1},
    {"aten.median.default", "aoti_torch_cpu_median", "t", 1},
    {"aten.mm.default", "aoti_torch_cpu_mm_out", "tt", 0},
    {"aten.mode.default", "aoti_torch_cpu_mode", "tib", 2},
    {"aten.nanmedian.default", "aoti_torch_cpu_nanmedian", "t", 1},
    {"aten.ormqr.default", "aoti_torch_cpu_ormqr", "tttbb", 1},
    {"aten.polar.default", "aoti_torch_cpu_polar", "tt", 1},
    {"aten.replication_pad1d_backward.default", "aoti_torch_cpu_replication_pad1d_backward", "ttl", 1},
    {"aten.replication_pad2d_backward.default", "aoti_torch_cpu_replication_pad2d_backward", "ttl", 1},
    {"aten.scatter.src", "aoti_torch_cpu_scatter_src_out", "titt", 0},
    {"aten.scatter.value", "aoti_torch_cpu_scatter_value_out", "tits", 0},
    {"aten.scatter_add.default", "mp_scatter_add", "titt", 0},
    {"aten.scatter_reduce.two", "aoti_torch_cpu_scatter_reduce_two_out", "tittcb", 0},
    {"aten.searchsorted.Tensor", "aoti_torch_cpu_searchsorted_Tensor", "ttbbCT", 1},
    {"aten.soft_margin_loss_backward.default", "aoti_torch_cpu_soft_margin_loss_backward", "ttti", 1},
    {"aten.sort.default", "aoti_torch_cpu_sort", "tib", 2},
    {"aten.sort.stable", "aoti_torch_cpu_sort_stable", "tBib", 2},
    {"aten.topk.default", "aoti_torch_cpu_topk", "tiibb", 2},
    {"aten.triangular_solve.default", "aoti_torch_cpu_triangular_solve", "ttbbb", 2},
    {"aten.upsample_bicubic2d_backward.default", "aoti_torch_cpu_upsample_bicubic2d_backward", "tllbDD", 1},
    {"aten.upsample_linear1d_backward.default", "aoti_torch_cpu_upsample_linear1d_backward", "tllbD", 1},
    {"aten.upsample_trilinear3d_backward.default", "aoti_torch_cpu_upsample_trilinear3d_backward", "tllbDDD", 1},
    {"mkldnn._linear_pointwise.default", "aoti_torch_cpu__linear_pointwise", "ttTclC", 1}, /* l: always empty here */
};

/* -- Argument words --------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t n_words, n_doubles, n_patches, n_relocations;
    uint64_t words[MAX_WORDS];
    double doubles[MAX_DOUBLES];
    struct {
        uint32_t word; /* of words, or counted from 0 in the words after the arguments if `extra` */
        bool extra;
        mp_val value;
    } patches[64];
    struct {
        uint32_t word, target; /* word of the arguments, or an extra one; target: an extra one */
        bool extra;
    } relocations[64];
    uint32_t n_extra;    /* words after the arguments: handles that arguments point to */
    bool integer_scalar; /* a Scalar was given as an int or bool */
    bool no_memory;
    mp_store *store;
} layout;

#define ROOM(array, n) ((n) < sizeof(array) / sizeof *(array))

static bool put_word(layout *out, uint64_t word)
{
    if (!ROOM(out->words, out->n_words)) return false;
    out->words[out->n_words++] = word;
    return true;
}

/* A word that points to a copy of `data`, which lives as long as the plan. */
static bool put_pointer(layout *out, const void *data, size_t size)
{
    void *copy = mp_store_copy(out->store, data, size);
    if (!copy) out->no_memory = true;
    return copy && put_word(out, (uint64_t)(uintptr_t)copy);
}

static bool put_patch(layout *out, uint32_t word, bool extra, mp_val value)
{
    if (!ROOM(out->patches, out->n_patches)) return false;
    out->patches[out->n_patches].word = word;
    out->patches[out->n_patches].extra = extra;
    out->patches[out->n_patches++].value = value;
    return true;
}

static bool put_relocation(layout *out, uint32_t word, bool extra, uint32_t target)
{
    if (!ROOM(out->relocations, out->n_relocations)) return false;
    out->relocations[out->n_relocations].word = word;
    out->relocations[out->n_relocations].extra = extra;
    out->relocations[out->n_relocations++].target = target;
    return true;
}

static bool is_integer(const mp_arg *arg)
{
    return arg->kind == MP_ARG_INT || arg->kind == MP_ARG_BOOL || arg->kind == MP_ARG_DTYPE ||
           arg->kind == MP_ARG_LAYOUT || arg->kind == MP_ARG_MEMORY_FORMAT;
}

static bool put_double(layout *out, const mp_arg *arg, bool pointer)
{
    double value = arg->kind == MP_ARG_FLOAT ? arg->f : (double)arg->i;
    if (arg->kind != MP_ARG_FLOAT && arg->kind != MP_ARG_INT && arg->kind != MP_ARG_BOOL) return false;
    if (arg->kind != MP_ARG_FLOAT && (int64_t)value != arg->i) return false;
    if (pointer) return put_pointer(out, &value, sizeof value);
    if (!ROOM(out->doubles, out->n_doubles)) return false;
    out->doubles[out->n_doubles++] = value;
    return true;
}

static bool put_integers(layout *out, const mp_arg *arg, bool wide, bool pointer)
{
    if (arg->kind != MP_ARG_LIST) return false;
    size_t item = wide ? sizeof(int64_t) : sizeof(int32_t);
    char *items = mp_store_alloc(out->store, (arg->list.n + 1) * item);
    if (!items) return !(out->no_memory = true);
    for (uint32_t i = 0; i < arg->list.n; i++) {
        if (!is_integer(&arg->list.items[i])) return false;
        int32_t narrow = (int32_t)arg->list.items[i].i;
        memcpy(items + i * item, wide ? (const void *)&arg->list.items[i].i : (const void *)&narrow, item);
    }
    if (pointer ? !put_pointer(out, &items, sizeof items) : !put_word(out, (uint64_t)(uintptr_t)items)) return false;
    return put_word(out, arg->list.n);
}

/* Handles in extra words, and an argument word that points to them; with `pointers`, through a list of pointers. */
static bool put_tensors(layout *out, const mp_arg *arg, bool pointers)
{
    if (arg->kind != MP_ARG_LIST) return false;
    uint32_t n = arg->list.n, handles = out->n_extra, list = handles + n;
    out->n_extra += pointers ? 2 * n + 1 : n + 1;
    for (uint32_t i = 0; i < n; i++) {
        const mp_arg *item = &arg->list.items[i];
        if (item->kind == MP_ARG_NONE && pointers) continue;
        if (item->kind != MP_ARG_VALUE || !put_patch(out, handles + i, true, item->value)) return false;
        if (pointers && !put_relocation(out, list + i, true, handles + i)) return false;
    }
    return put_relocation(out, out->n_words, false, pointers ? list : handles) && put_word(out, 0) && put_word(out, n);
}

static bool put_argument(layout *out, char letter, const mp_arg *arg)
{
    bool none = arg->kind == MP_ARG_NONE;
    int32_t narrow = (int32_t)arg->i;
    switch (letter) {
    case '-': return none;
    case 't': return arg->kind == MP_ARG_VALUE && put_patch(out, out->n_words, false, arg->value) && put_word(out, 0);
    case 'T':
        if (none) return put_word(out, 0);
        return arg->kind == MP_ARG_VALUE && put_patch(out, out->n_extra, true, arg->value) &&
               put_relocation(out, out->n_words, false, out->n_extra++) && put_word(out, 0);
    case 's': out->integer_scalar |= arg->kind != MP_ARG_FLOAT; return put_double(out, arg, false);
    case 'd': return put_double(out, arg, false);
    case 'D': return none ? put_word(out, 0) : put_double(out, arg, true);
    case 'i': return is_integer(arg) && put_word(out, (uint64_t)arg->i);
    case 'I': return none ? put_word(out, 0) : is_integer(arg) && put_pointer(out, &arg->i, sizeof arg->i);
    case 'b': return is_integer(arg) && put_word(out, (uint64_t)arg->i);
    case 'B': return none ? put_word(out, 0) : is_integer(arg) && put_pointer(out, &narrow, sizeof narrow);
    case 'l': return put_integers(out, arg, true, false);
    case 'L': return none ? put_word(out, 0) && put_word(out, 0) : put_integers(out, arg, true, true);
    case 'm': return put_integers(out, arg, false, false);
    case 'v': return put_tensors(out, arg, false);
    case 'V': return put_tensors(out, arg, true);
    case 'c': return arg->kind == MP_ARG_STR && put_pointer(out, arg->str, strlen(arg->str) + 1);
    case 'C': {
        if (none) return put_word(out, 0);
        char *text = arg->kind == MP_ARG_STR ? mp_store_copy(out->store, arg->str, strlen(arg->str) + 1) : NULL;
        return text && put_pointer(out, &text, sizeof text);
    }
    }
    return false;
}

/* -- Resolving -------------------------------------------------------------------------------------------------------- */

/* The function of a row of the table, or NULL. */
static void *function_of(const char *symbol, const mp_graph *graph, const mp_gnode *node)
{
    union {
        int (*scan)(mp_handle, mp_handle, int64_t, const int32_t *);
        int (*bernoulli)(mp_handle, mp_handle, double);
        void *address;
    } own = {.address = NULL};
    if (strncmp(symbol, "mp_", 3) != 0) return mp_torch_symbol(symbol);
    if (strncmp(symbol, "mp_scatter", 10) == 0) return mp_scatter_function(graph, node);
    if (strncmp(symbol, "mp_scan", 7) == 0) {
        own.scan = strcmp(symbol, "mp_scan_cumsum") == 0 ? mp_scan_cumsum : mp_scan_cumprod;
        return mp_scan_covers(graph, node) ? own.address : NULL;
    }
    const mp_meta *meta = &graph->metas[node->first];
    const mp_arg *p = &node->args[1];
    int64_t dense = 1;
    for (int d = meta->ndim; d-- > 0; dense *= meta->size[d])
        if (meta->size[d] != 1 && meta->stride[d] != dense) return NULL;
    bool taken = meta->dtype == MP_F32 && dense > 0 && p->kind == MP_ARG_FLOAT && p->f >= 0 && p->f <= 1;
    own.bernoulli = mp_random_bernoulli;
    return taken && mp_random_usable() ? own.address : NULL;
}

/* Copy the finished layout into the plan's words and `op`. Returns 1, or -1 on no memory. */
static int keep(layout *from, mp_op *op, mp_words *words, mp_store *store)
{
    uint32_t first = mp_words_add(words, from->n_words + from->n_extra), extra = first + from->n_words;
    mp_patch *patches = mp_store_alloc(store, (from->n_patches + 1) * sizeof *patches);
    if (first == UINT32_MAX || !patches) return -1;
    memcpy(words->words + first, from->words, from->n_words * sizeof *from->words);
    for (uint32_t i = 0; i < from->n_patches; i++)
        patches[i] =
            (mp_patch){(from->patches[i].extra ? extra : first) + from->patches[i].word, from->patches[i].value};
    for (uint32_t i = 0; i < from->n_relocations; i++) {
        uint32_t word = (from->relocations[i].extra ? extra : first) + from->relocations[i].word;
        if (mp_words_relocate(words, word, extra + from->relocations[i].target) < 0) return -1;
    }
    op->first_word = first;
    op->n_args = from->n_words;
    op->n_patches = from->n_patches;
    op->patches = patches;
    op->result_word = extra; /* the first extra words are the results, see below */
    memcpy(op->doubles, from->doubles, sizeof op->doubles);
    return 1;
}

static bool is_floating(int dtype) { return dtype == MP_F16 || dtype == MP_F32 || dtype == MP_F64 || dtype == MP_BF16; }

int mp_shim_resolve(mp_op *op, const mp_graph *graph, mp_words *words, mp_store *store, mp_reason *why)
{
#if !(defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__)))
    return 0;
#endif
    size_t row = 0, n = sizeof table / sizeof *table;
    void *function = NULL;
    for (; row < n; row++) { /* the first of its rows whose function there is */
        if (strcmp(table[row].op, op->node->op) != 0 || strlen(table[row].args) != op->node->n_args) continue;
        function = function_of(table[row].symbol, graph, op->node);
        if (function) break;
    }
    if (!function) return 0;
    layout out = {.store = store};
    op->out = table[row].n_results == 0;
    op->n_results = table[row].n_results;
    if (op->out ? op->node->n_values != 1 : op->node->n_values > op->n_results) return 0;
    if (op->out) put_word(&out, 0); /* the result's handle is set at each call */
    out.n_extra = op->n_results;
    bool fits = true;
    for (uint32_t i = 0; fits && i < op->node->n_args; i++)
        fits = put_argument(&out, table[row].args[i], &op->node->args[i]);
    for (uint32_t i = 0; fits && i < op->n_results; i++)
        fits = put_relocation(&out, out.n_words, false, i) && put_word(&out, 0);
    /* the ABI passes a Scalar as a double: of meaning only where it is converted to a floating-point type anyway */
    if (out.integer_scalar && !is_floating(graph->metas[op->node->first].dtype)) fits = false;
    if (fits && keep(&out, op, words, store) < 0) out.no_memory = true;
    if (out.no_memory) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", op->node->op);
        return -1;
    }
    op->function = function;
    op->symbol = table[row].symbol;
    if (!fits) op->out = false;
    return fits;
}

/* -- Calling ---------------------------------------------------------------------------------------------------------- */

typedef uint64_t W;
typedef int (*call6)(W, W, W, W, W, W, double, double, double, double);
typedef int (*call14)(W, W, W, W, W, W, W, W, W, W, W, W, W, W, double, double, double, double);
typedef int (*call32)(W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W,
                      double, double, double, double);

static int call(void *function, uint32_t n, const uint64_t *w, const double *d)
{
    union {
        void *address;
        call6 six;
        call14 fourteen;
        call32 thirty_two;
    } f = {function};
    if (n <= 6) {
        uint64_t v[6] = {0};
        memcpy(v, w, n * sizeof *w);
        return f.six(v[0], v[1], v[2], v[3], v[4], v[5], d[0], d[1], d[2], d[3]);
    }
    uint64_t v[MAX_WORDS] = {0};
    memcpy(v, w, n * sizeof *w);
    if (n <= 14)
        return f.fourteen(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], d[0],
                          d[1], d[2], d[3]);
    return f.thirty_two(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], v[14],
                        v[15], v[16], v[17], v[18], v[19], v[20], v[21], v[22], v[23], v[24], v[25], v[26], v[27],
                        v[28], v[29], v[30], v[31], d[0], d[1], d[2], d[3]);
}

int mp_shim_call(const mp_op *op, mp_frame *frame, mp_handle *results)
{
    uint64_t *words = frame->words;
    for (uint32_t i = 0; i < op->n_patches; i++)
        words[op->patches[i].word] = (uint64_t)(uintptr_t)frame->handles[op->patches[i].value];
    if (op->out) {
        words[op->first_word] = (uint64_t)(uintptr_t)frame->handles[op->node->first];
        return call(op->function, op->n_args, words + op->first_word, op->doubles) != 0;
    }
    memset(words + op->result_word, 0, op->n_results * sizeof *words);
    if (call(op->function, op->n_args, words + op->first_word, op->doubles)) return 1;
    for (uint32_t i = 0; i < op->node->n_values; i++) results[i] = (mp_handle)(uintptr_t)words[op->result_word + i];
    for (uint32_t i = op->node->n_values; i < op->n_results; i++)
        if (words[op->result_word + i]) mp_torch.delete_handle((mp_handle)(uintptr_t)words[op->result_word + i]);
    return 0;
}
