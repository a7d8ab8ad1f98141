/* Kernel IR -> C: loops for vector units.
**
** Two forms. Vector loop reduced: each outer iteration is one point of the kept loops; passes over the reduced loops accumulate
** in variables, what is dear and needed again stays in arrays over the row. Vector loop kept: each outer iteration is a tile of
** it; what would be a variable is an array over the tile. A kernel without reductions is the second form without passes; where it loads
** what runs along another loop (turn.h), an outer iteration is a tile of both.
*/
#include "codegen/turn.h"
#include "ir/index.h"

#include <stdio.h>
#include <string.h>

#define TILE_REDUCE 128                     /* lanes of a tile that accumulates over other loops */
#define TILE_POINT (MP_CODEGEN_RUN * 2 / 3) /* elements of a block without reductions, or half as many more */
#define CHUNK 1024                          /* iterations summed up before they are added to the sum of chunks */
#define LANE_CHUNK 256                      /* the same for tiles */
#define ROW_BYTES 32768                     /* of row arrays in one kernel */
#define ROW_COST 8                          /* cost from which a value is kept in a row array */
#define MOST_SPLIT 2048                     /* steps of a loop whose last vector is worth code of its own */
#define MOST_CUTS 6                         /* of a vector loop where conditions turn */
#define CUT_COST 100                        /* most additions of a loop that is printed for what lies between cuts */
#define LEAST_ROWS 8                        /* for which what they have in common is computed before */
#define GATHER_COST 8                       /* most additions beside elements that are read one by one */
#define LEAST_PLACES 32                     /* of a tile for which they are found before */
#define GRAIN_WORK 32768                    /* additions worth a thread */

typedef struct {
    mp_printer p;
    const mp_kir *kir;
    int64_t tile; /* lanes of an outer iteration; 0: the vector loop is reduced, or there is none */
    int64_t n_tiles;
    bool *row_kept; /* [n_exprs]: has a row array */
    mp_turn turn;   /* of a kernel without reductions */
    const char *
        *array; /* [n_exprs]: what a load reads in its place, turned or chosen before the vector loop; NULL elsewhere */
    int64_t lanes;   /* of a vector register, for the smallest elements in memory */
    bool one_by_one; /* the last loop is not for vectors: it does little but read elements from all over */
    uint32_t inner;  /* kept loops that run inside of an outer iteration because the vector loop is short: bit set */
} c_kernel;

static const char *type_of(const c_kernel *k, mp_kid kid)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    if (e->op == MP_K_REDUCE && e->dtype == MP_BOOL) return "int";
    return k->p.target->type[e->dtype];
}

static bool row_space(const c_kernel *k, mp_kid kid) { return (k->p.deps[kid] & k->kir->reduced) == 0; }
static uint32_t vector_bit(const c_kernel *k) { return k->kir->vector < 0 ? 0 : 1u << k->kir->vector; }

static void open_loop(c_kernel *k, uint32_t loop)
{
    mp_print_line(&k->p, "for (int64_t i%u = 0; i%u < %lld; i%u++) {", loop, loop, (long long)k->kir->extent[loop],
                  loop);
    k->p.indent++;
}

static void close_block(c_kernel *k)
{
    k->p.indent--;
    mp_print_line(&k->p, "}");
}

/* The vector loop of a tile. */
static void open_lanes_between(c_kernel *k, const char *begin, const char *end)
{
    int v = k->kir->vector;
    if (!k->one_by_one)
        mp_print_line(&k->p, "#pragma omp simd%s%s", k->kir->checks ? " reduction(|:bad)" : "",
                      k->p.near ? " reduction(|:far)" : "");
    mp_print_line(&k->p, "for (int64_t i%d = %s; i%d < %s; i%d++) {", v, begin, v, end, v);
    k->p.indent++;
}

static void open_lanes(c_kernel *k) { open_lanes_between(k, "c0", "c1"); }

/* -- What a pass does ---------------------------------------------------------------------------------------------- */

static bool reduced_in(const c_kernel *k, mp_kid kid, int pass)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    return k->p.live[kid] && e->op == MP_K_REDUCE && e->level == pass + 1;
}

static bool stored_in(const c_kernel *k, const mp_kstore *store, int pass)
{ return !row_space(k, store->what) && k->kir->exprs[store->what].level == pass; }

/* A value of the kept loops only that is stored at all points of the reduced ones cannot be: stores at row level go last. */
static bool stored_at_row(const c_kernel *k, const mp_kstore *store)
{ return row_space(k, store->what) && (mp_affine_deps(&store->at) & k->kir->reduced) == 0; }

static bool stored_broadcast(const c_kernel *k, const mp_kstore *store)
{ return row_space(k, store->what) && !stored_at_row(k, store); }

/* Mark what pass `pass` computes. Returns whether it does anything. */
static bool need_pass(c_kernel *k, int pass)
{
    bool any = false;
    mp_print_need_none(&k->p);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (reduced_in(k, i, pass)) {
            mp_print_need(&k->p, k->kir->exprs[i].arg[0]);
            any = true;
        }
    for (uint32_t i = 0; i < k->kir->n_stores; i++) {
        const mp_kstore *store = &k->kir->stores[i];
        bool here = stored_in(k, store, pass) || (stored_broadcast(k, store) && pass == k->kir->n_passes);
        if (!here) continue;
        mp_print_need(&k->p, store->what);
        any = true;
    }
    return any;
}

static void print_pass_stores(c_kernel *k, int pass)
{
    for (uint32_t i = 0; i < k->kir->n_stores; i++) {
        const mp_kstore *store = &k->kir->stores[i];
        if (stored_in(k, store, pass) || (stored_broadcast(k, store) && pass == k->kir->n_passes))
            mp_print_store(&k->p, store);
    }
}

/* -- Whole vectors --------------------------------------------------------------------------------------------------- */

/* A loop of a known number of steps that does not fill its last vector is printed as two: whole vectors, and one that ends where the loop
** ends and does some elements twice, which compilers would else do one by one. Storing twice is harmless; sums leave out what they have. */
typedef struct {
    int64_t whole; /* steps of the first loop, all if there is no second */
    int64_t again; /* where the second one begins */
    int n;         /* loops */
} vector_parts;

static vector_parts split_vectors(const c_kernel *k, int64_t extent)
{
    int64_t lanes = k->lanes;
    if (k->one_by_one) lanes = 1;
    while (lanes > extent) lanes /= 2;
    vector_parts parts = {.whole = extent, .n = 1};
    if (extent < 4 || extent % lanes == 0 || extent > MOST_SPLIT) return parts;
    return (vector_parts){.whole = extent - extent % lanes, .again = extent - lanes, .n = 2};
}

/* -- Form 1: the vector loop is reduced ---------------------------------------------------------------------------- */

/* Drop the row arrays that no pass would read, since all it computes from them is in row arrays itself. Expects scalars to be marked. */
static void drop_unread_rows(c_kernel *k)
{
    const mp_kir *kir = k->kir;
    mp_printer *p = &k->p;
    bool *read = MP_NEW(p->out->pool, bool, kir->n_exprs + 1);
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        need_pass(k, pass);
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            for (int a = 0; a < 3; a++)
                if ((p->need[i] || reduced_in(k, i, pass)) && kir->exprs[i].arg[a] != MP_NO_KID)
                    read[kir->exprs[i].arg[a]] |= p->at[kir->exprs[i].arg[a]] == MP_AT_ROW;
        for (uint32_t i = 0; i < kir->n_stores; i++) {
            const mp_kstore *store = &kir->stores[i];
            if (stored_in(k, store, pass)) read[store->what] |= p->at[store->what] == MP_AT_ROW;
        }
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (k->row_kept[i] && p->need[i]) p->at[i] = MP_AT_ROW;
    }
    for (uint32_t i = 0; i < kir->n_exprs; i++) k->row_kept[i] &= read[i];
}

/* Choose what stays in row arrays: dear values that two passes need. */
static void choose_rows(c_kernel *k)
{
    const mp_kir *kir = k->kir;
    uint32_t n_reduced = 0;
    for (uint32_t i = 0; i < kir->n_loops; i++) n_reduced += kir->reduced >> i & 1;
    if (n_reduced != 1) return;
    int64_t left = ROW_BYTES;
    uint8_t *needs = MP_NEW(k->p.out->pool, uint8_t, kir->n_exprs + 1);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (row_space(k, i)) k->p.at[i] = MP_AT_SCALAR; /* for marking only; reset below */
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        need_pass(k, pass);
        for (uint32_t i = 0; i < kir->n_exprs; i++) needs[i] = (uint8_t)(needs[i] + (k->p.need[i] && needs[i] < 9));
    }
    for (uint32_t i = kir->n_exprs; i-- > 0;) {
        const mp_kexpr *e = &kir->exprs[i];
        int64_t bytes = kir->extent[kir->vector] * mp_dtype_bytes(e->dtype);
        if (needs[i] < 2 || e->cost < ROW_COST || row_space(k, i) || bytes > left || e->op == MP_K_CAST) continue;
        bool inside = false; /* of another value that is kept and needed as often */
        for (uint32_t u = i + 1; u < kir->n_exprs && !inside; u++)
            for (int a = 0; a < 3; a++) inside |= k->row_kept[u] && kir->exprs[u].arg[a] == i && needs[u] == needs[i];
        if (inside) continue;
        k->row_kept[i] = true;
        left -= bytes;
    }
    drop_unread_rows(k);
    memset(k->p.at, MP_AT_NOWHERE, kir->n_exprs);
}

static bool nan_tracked(const mp_kexpr *e)
{ return mp_dtype_float(e->dtype) && (e->aux == MP_RED_MAX || e->aux == MP_RED_MIN); }

/* The pragma over the vector loop: which variables its lanes have copies of. */
static void print_simd(c_kernel *k, int pass)
{
    static const char *const ops[] = {"+", "*", "max", "min", "|", "&"};
    mp_text text = {.pool = k->p.out->pool};
    mp_text_add(&text, "#pragma omp simd%s", k->kir->checks ? " reduction(|:bad)" : "");
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!reduced_in(k, i, pass)) continue;
        mp_text_add(&text, " reduction(%s:q%u)", ops[k->kir->exprs[i].aux], i);
        if (nan_tracked(&k->kir->exprs[i])) mp_text_add(&text, " reduction(|:n%u)", i);
    }
    mp_print_line(&k->p, "%s", text.chars);
}

/* Elements before `from` were taken already. */
static void print_accumulate(c_kernel *k, uint32_t i, int64_t from)
{
    const mp_kexpr *e = &k->kir->exprs[i];
    char x[64], q[16];
    mp_print_name(&k->p, e->arg[0], x);
    snprintf(q, sizeof q, "q%u", i);
    if (from && (e->aux == MP_RED_SUM || e->aux == MP_RED_PROD)) {
        mp_print_line(&k->p, "const %s m%u = i%d >= %lld ? %s : %s;", type_of(k, i), i, k->kir->vector, (long long)from,
                      x, mp_print_identity(&k->p, e));
        snprintf(x, sizeof x, "m%u", i);
    }
    if (nan_tracked(e)) {
        mp_print_line(&k->p, "%s = %s %c %s ? %s : %s;", q, x, e->aux == MP_RED_MAX ? '>' : '<', q, x, q);
        mp_print_line(&k->p, "n%u |= %s != %s;", i, x, x);
        return;
    }
    mp_print_line(&k->p, "%s = %s;", q, mp_print_combine(&k->p, e, q, x));
}

/* Variables of the reductions of this pass: a<n> over all of it, q<n> over one run of the vector loop. */
static void declare_sums(c_kernel *k, int pass, char letter)
{
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!reduced_in(k, i, pass)) continue;
        const mp_kexpr *e = &k->kir->exprs[i];
        mp_print_line(&k->p, "%s %c%u = %s;", type_of(k, i), letter, i, mp_print_identity(&k->p, e));
        if (nan_tracked(e) && letter == 'a') mp_print_line(&k->p, "int n%u = 0;", i);
    }
}

static void print_row_pass(c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    if (!need_pass(k, pass)) return;
    declare_sums(k, pass, 'a');
    mp_print_line(p, "{");
    p->indent++;
    int blocks = 1;
    uint32_t v = (uint32_t)kir->vector, bit = 1u << v;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if ((kir->reduced >> i & 1) && i != v) open_loop(k, i), blocks++;
    mp_print_needed(p, bit, 0);
    bool chunked = kir->extent[v] > 2 * CHUNK;
    if (chunked) {
        mp_print_line(p, "for (int64_t c0 = 0; c0 < %lld; c0 += %d) {", (long long)kir->extent[v], CHUNK);
        p->indent++, blocks++;
        mp_print_line(p, "const int64_t c1 = c0 + %d < %lld ? c0 + %d : %lld;", CHUNK, (long long)kir->extent[v], CHUNK,
                      (long long)kir->extent[v]);
    }
    declare_sums(k, pass, 'q');
    vector_parts parts = split_vectors(k, kir->extent[v]);
    for (int part = 0; part < parts.n; part++) {
        print_simd(k, pass);
        if (chunked)
            mp_print_line(p, "for (int64_t i%u = c0; i%u < c1; i%u++) {", v, v, v);
        else
            mp_print_line(p, "for (int64_t i%u = %lld; i%u < %lld; i%u++) {", v, (long long)(part ? parts.again : 0), v,
                          (long long)(part ? kir->extent[v] : parts.whole), v);
        p->indent++;
        mp_print_needed(p, bit, bit);
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (k->row_kept[i] && p->need[i]) mp_print_line(p, "b%u[i%u] = t%u;", i, v, i);
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (reduced_in(k, i, pass)) print_accumulate(k, i, part ? parts.whole : 0);
        print_pass_stores(k, pass);
        close_block(k);
    }
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!reduced_in(k, i, pass)) continue;
        const char *a = mp_pool_printf(p->out->pool, "a%u", i), *q = mp_pool_printf(p->out->pool, "q%u", i);
        mp_print_line(p, "%s = %s;", a, mp_print_combine(p, &kir->exprs[i], a, q));
    }
    while (blocks--) close_block(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (k->row_kept[i] && p->need[i]) p->at[i] = MP_AT_ROW;
        if (!reduced_in(k, i, pass)) continue;
        const mp_kexpr *e = &kir->exprs[i];
        const char *nan = e->dtype == MP_F64 ? p->target->nan64 : p->target->nan32;
        if (nan_tracked(e))
            mp_print_line(p, "const %s t%u = n%u ? %s : a%u;", p->target->type[e->dtype], i, i, nan, i);
        else
            mp_print_line(p, "const %s t%u = a%u;", p->target->type[e->dtype], i, i);
        p->at[i] = MP_AT_SCALAR;
    }
}

/* Everything of the kept loops that is known after `pass` passes. */
static void print_row_values(c_kernel *k, int level)
{
    mp_printer *p = &k->p;
    mp_print_need_none(p);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (p->live[i] && row_space(k, i) && k->kir->exprs[i].level == level) mp_print_need(p, i);
    mp_print_needed(p, 0, 0);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (p->need[i]) p->at[i] = MP_AT_SCALAR;
}

static void print_rows(c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    choose_rows(k);
    p->row = mp_pool_printf(p->out->pool, "i%d", kir->vector);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (k->row_kept[i])
            mp_print_line(p, "%s b%u[%lld] __attribute__((aligned(64)));", type_of(k, i), i,
                          (long long)kir->extent[kir->vector]);
    mp_print_line(p, "for (int64_t o = begin; o < end; o++) {");
    p->indent++;
    mp_print_decode(p, mp_kir_kept(kir), "o");
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        print_row_values(k, pass);
        print_row_pass(k, pass);
    }
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (stored_at_row(k, &kir->stores[i])) mp_print_store(p, &kir->stores[i]);
    close_block(k);
}

/* -- Form 2: the vector loop is kept ------------------------------------------------------------------------------- */

/* Values of the tile known after `level` passes that later passes need: scalars, and arrays over the tile if they are dear. */
static void print_tile_values(c_kernel *k, int level)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = vector_bit(k);
    mp_print_need_none(p);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (p->live[i] && !(p->deps[i] & (kir->reduced | bit)) && kir->exprs[i].level == level) mp_print_need(p, i);
    mp_print_needed(p, kir->reduced | bit, 0);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (p->need[i]) p->at[i] = MP_AT_SCALAR;
    if (level == kir->n_passes && !kir->reduced) return;
    bool *wanted = MP_NEW(p->out->pool, bool, kir->n_exprs + 1), any = false;
    mp_print_need_none(p);
    for (uint32_t u = 0; u < kir->n_exprs; u++) {
        if (!p->live[u] || row_space(k, u)) continue;
        for (int a = 0; a < 3; a++) {
            mp_kid i = kir->exprs[u].arg[a];
            if (i == MP_NO_KID || !row_space(k, i) || p->at[i] != MP_AT_NOWHERE || kir->exprs[i].level != level)
                continue;
            if (kir->exprs[i].cost < 2 || kir->exprs[i].op == MP_K_CAST) continue;
            wanted[i] = true;
        }
    }
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!wanted[i]) continue;
        mp_print_line(p, "%s r%u[%lld] __attribute__((aligned(64)));", type_of(k, i), i, (long long)k->tile);
        mp_print_need(p, i);
        any = true;
    }
    if (!any) return;
    mp_print_needed(p, bit, 0);
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) mp_print_line(p, "r%u[%s] = t%u;", i, p->lane, i);
    close_block(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) p->at[i] = MP_AT_LANES;
}

/* Arrays `letter`<n> for the reductions of this pass, filled with what they start from. */
static void declare_lanes(c_kernel *k, int pass, char letter)
{
    mp_printer *p = &k->p;
    bool any = false;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (reduced_in(k, i, pass)) {
            mp_print_line(p, "%s %c%u[%lld] __attribute__((aligned(64)));", type_of(k, i), letter, i,
                          (long long)k->tile);
            any = true;
        }
    if (!any) return;
    open_lanes(k);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (reduced_in(k, i, pass))
            mp_print_line(p, "%c%u[%s] = %s;", letter, i, p->lane, mp_print_identity(p, &k->kir->exprs[i]));
    close_block(k);
}

static void print_tile_pass(c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    if (!kir->reduced || !need_pass(k, pass)) return;
    uint32_t bit = vector_bit(k);
    bool reduces = false;
    int last = -1;
    for (uint32_t i = 0; i < kir->n_exprs; i++) reduces |= reduced_in(k, i, pass);
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (kir->reduced >> i & 1) last = (int)i;
    bool chunked = reduces && kir->extent[last] >= 32;
    declare_lanes(k, pass, 'r');
    need_pass(k, pass);
    mp_print_line(p, "{");
    p->indent++;
    int blocks = 1;
    for (uint32_t i = 0; i < (uint32_t)last; i++)
        if (kir->reduced >> i & 1) open_loop(k, i), blocks++;
    if (chunked) {
        mp_print_line(p, "for (int64_t d0 = 0; d0 < %lld; d0 += %d) {", (long long)kir->extent[last], LANE_CHUNK);
        p->indent++, blocks++;
        mp_print_line(p, "const int64_t d1 = d0 + %d < %lld ? d0 + %d : %lld;", LANE_CHUNK,
                      (long long)kir->extent[last], LANE_CHUNK, (long long)kir->extent[last]);
        declare_lanes(k, pass, 'q');
        mp_print_line(p, "for (int64_t i%d = d0; i%d < d1; i%d++) {", last, last, last);
        p->indent++;
    } else {
        open_loop(k, (uint32_t)last);
    }
    mp_print_needed(p, bit, 0);
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!reduced_in(k, i, pass)) continue;
        char x[64];
        mp_print_name(p, kir->exprs[i].arg[0], x);
        const char *acc = mp_pool_printf(p->out->pool, "%c%u[%s]", chunked ? 'q' : 'r', i, p->lane);
        mp_print_line(p, "%s = %s;", acc, mp_print_combine(p, &kir->exprs[i], acc, x));
    }
    print_pass_stores(k, pass);
    close_block(k);
    close_block(k);
    if (chunked) {
        open_lanes(k);
        for (uint32_t i = 0; i < kir->n_exprs; i++) {
            if (!reduced_in(k, i, pass)) continue;
            const char *r = mp_pool_printf(p->out->pool, "r%u[%s]", i, p->lane);
            const char *q = mp_pool_printf(p->out->pool, "q%u[%s]", i, p->lane);
            mp_print_line(p, "%s = %s;", r, mp_print_combine(p, &kir->exprs[i], r, q));
        }
        close_block(k);
    }
    while (blocks--) close_block(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (reduced_in(k, i, pass)) p->at[i] = MP_AT_LANES;
}

/* Is a load's memory (or that of the loads it is one of) of the registers' type? */
static bool same_memory(const c_kernel *k, mp_kid kid, mp_dtype dtype)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    return e->op != MP_K_LOAD || k->kir->buffers[e->aux].dtype == dtype;
}

/* Loads under a condition that is the same for all lanes (pieces of a concatenation, rows of padding) read zeros where it does not
** hold: what is chosen is the address, before the vector loop, so that the loop itself has no condition. */
static void print_chosen(c_kernel *k)
{
    mp_printer *p = &k->p;
    uint32_t v = (uint32_t)k->kir->vector, bit = 1u << v;
    const char **chosen = MP_NEW(p->out->pool, const char *, k->kir->n_exprs + 1);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        const mp_kexpr *e = &k->kir->exprs[i];
        if (!p->need[i] || e->op != MP_K_LOAD || e->arg[0] == MP_NO_KID || e->arg[1] != MP_NO_KID || k->array[i])
            continue;
        if (e->at.coef[v] != 1 || (p->deps[e->arg[0]] & bit) || p->at[e->arg[0]] == MP_AT_LANES) continue;
        mp_affine at = e->at;
        at.coef[v] = 0;
        mp_print_line(p, "const %s *restrict h%u = t%u ? p%u + (%s + c0) : (const void *)mp_zeros;",
                      p->target->memory[k->kir->buffers[e->aux].dtype], i, e->arg[0], e->aux, mp_print_affine(p, &at));
        k->array[i] = mp_pool_printf(p->out->pool, "h%u[%s]", i, p->lane);
        chosen[i] = mp_pool_printf(p->out->pool, "h%u", i);
    }
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) { /* of two that are chosen by such a condition, one is read */
        const mp_kexpr *e = &k->kir->exprs[i];
        if (!p->need[i] || e->op != MP_K_WHERE || (p->deps[e->arg[0]] & bit) || p->at[e->arg[0]] == MP_AT_LANES)
            continue;
        const char *yes = chosen[e->arg[1]], *no = chosen[e->arg[2]];
        if (!yes || !no || k->kir->exprs[e->arg[1]].dtype != e->dtype || e->dtype == MP_BOOL) continue;
        if (!same_memory(k, e->arg[1], e->dtype) || !same_memory(k, e->arg[2], e->dtype)) continue;
        mp_print_line(p, "const %s *restrict h%u = t%u ? %s : %s;", p->target->memory[e->dtype], i, e->arg[0], yes, no);
        k->array[i] = mp_pool_printf(p->out->pool, "h%u[%s]", i, p->lane);
        chosen[i] = mp_pool_printf(p->out->pool, "h%u", i);
    }
}

static bool has_near(const c_kernel *k)
{
    bool any = false;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) any |= k->p.live[i] && mp_print_has_near(&k->p, i);
    return any;
}

/* Where on the vector loop a condition turns that says on which side of a number its variable is (pieces side by side, borders), in order.
** Loops that are printed for what lies between have no such conditions. Returns how many there are. */
static int find_cuts(const c_kernel *k, int64_t *cuts)
{
    const mp_kir *kir = k->kir;
    int n = 0, cost = 0;
    for (uint32_t i = 0; i < kir->n_stores; i++) cost += kir->exprs[kir->stores[i].what].cost;
    if (cost > CUT_COST) return 0; /* much text for little */
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        if (!k->p.need[i] || (e->op != MP_K_LT && e->op != MP_K_GE)) continue;
        const mp_kexpr *x = &kir->exprs[e->arg[0]], *bound = &kir->exprs[e->arg[1]];
        if (x->op != MP_K_INDEX || bound->op != MP_K_CONST || mp_affine_deps(&x->at) != vector_bit(k)) continue;
        int64_t step = x->at.coef[kir->vector];
        if (step != 1 && step != -1) continue;
        int64_t cut = step == 1 ? bound->i - x->at.base : x->at.base - bound->i + 1;
        int at = 0;
        while (at < n && cuts[at] < cut) at++;
        if (cut <= 0 || cut >= kir->extent[kir->vector] || (at < n && cuts[at] == cut)) continue;
        if (n == MOST_CUTS) return 0;
        for (int m = n++; m > at; m--) cuts[m] = cuts[m - 1];
        cuts[at] = cut;
    }
    return n;
}

/* The vector loop of a tile that has all of it, as loops with known ends. */
static int split_lanes(const c_kernel *k, int64_t (*part)[2])
{
    int64_t cuts[MOST_CUTS + 1], begin = 0;
    int n_cuts = find_cuts(k, cuts), n = 0;
    cuts[n_cuts] = k->kir->extent[k->kir->vector];
    for (int c = 0; c <= n_cuts; begin = cuts[c++]) {
        vector_parts parts = split_vectors(k, cuts[c] - begin);
        part[n][0] = begin, part[n++][1] = begin + parts.whole;
        if (parts.n == 2) part[n][0] = begin + parts.again, part[n++][1] = cuts[c];
    }
    return n;
}

/* Do lanes read from places of their own, with little to compute? Gathering instructions take longer than single loads, above all where
** memory has to be waited for. */
static bool gathers(const c_kernel *k)
{
    const mp_kir *kir = k->kir;
    uint32_t bit = vector_bit(k);
    int cost = 0;
    bool any = false;
    for (uint32_t i = 0; i < kir->n_stores; i++) cost += kir->exprs[kir->stores[i].what].cost;
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        any |= k->p.live[i] && e->op == MP_K_LOAD && e->arg[1] != MP_NO_KID && (k->p.deps[e->arg[1]] & bit);
    }
    return any && !kir->reduced && cost <= GATHER_COST;
}

/* Mark what is stored after all passes. Returns whether anything is. */
static bool need_stores(c_kernel *k)
{
    bool any = false;
    mp_print_need_none(&k->p);
    for (uint32_t i = 0; i < k->kir->n_stores; i++) {
        if (!stored_at_row(k, &k->kir->stores[i])) continue;
        mp_print_need(&k->p, k->kir->stores[i].what);
        any = true;
    }
    return any;
}

/* Where such elements lie, for a tile: in arrays, by a loop of its own that is for vectors. Expects what is needed to be marked. */
static void print_places(c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = vector_bit(k);
    bool *place = MP_NEW(p->out->pool, bool, kir->n_exprs + 1), any = false;
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        if (p->need[i] && e->op == MP_K_LOAD && e->arg[1] != MP_NO_KID && p->need[e->arg[1]] &&
            (p->deps[e->arg[1]] & bit))
            place[e->arg[1]] = any = true;
    }
    if (!any) return;
    mp_print_need_none(p);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!place[i]) continue;
        mp_print_line(p, "%s r%u[%lld] __attribute__((aligned(64)));", type_of(k, i), i, (long long)k->tile);
        mp_print_need(p, i);
    }
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (place[i]) mp_print_line(p, "r%u[%s] = t%u;", i, p->lane, i);
    close_block(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (place[i]) p->at[i] = MP_AT_LANES;
    need_stores(k);
}

/* What a tile stores after all passes. With operations that have a cheap way all of it is done the cheap way first, and done again
** where that did not hold: buffers that are written are not read, so nothing is lost. */
static void print_tile_stores(c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = vector_bit(k);
    bool near = false;
    int64_t part[2 * (MOST_CUTS + 1)][2];
    if (!need_stores(k)) return;
    bool known = k->n_tiles == 1 && k->turn.loop < 0 && kir->n_loops > 1;
    mp_print_needed(p, bit, 0);
    if (gathers(k)) {
        if (k->tile >= LEAST_PLACES) print_places(k);
        k->one_by_one = true;
    }
    int n_parts = known ? split_lanes(k, part) : 1;
    print_chosen(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++) near |= p->need[i] && (p->deps[i] & bit) && mp_print_has_near(p, i);
    if (near) mp_print_line(p, "int far = 0;");
    for (int way = near ? 0 : 1; way < 2; way++) {
        p->near = way == 0;
        if (near && way == 1) mp_print_line(p, "if (far) {"), p->indent++;
        for (int i = 0; i < n_parts; i++) {
            const char *begin = known ? mp_pool_printf(p->out->pool, "%lld", (long long)part[i][0]) : "c0";
            const char *end = known ? mp_pool_printf(p->out->pool, "%lld", (long long)part[i][1]) : "c1";
            open_lanes_between(k, begin, end);
            if (k->one_by_one) mp_print_line(p, "__asm__ volatile(\"\");"); /* compilers leave such loops alone */
            mp_print_needed(p, bit, bit);
            for (uint32_t s = 0; s < kir->n_stores; s++)
                if (stored_at_row(k, &kir->stores[s])) mp_print_store(p, &kir->stores[s]);
            close_block(k);
        }
        if (near && way == 1) p->indent--, mp_print_line(p, "}");
    }
    k->one_by_one = false;
}

/* Values that are the same for every outer iteration, and dearer than reading them: in arrays over the tile, before the first one. An index
** that is data is checked there once and not again for each row. Conditions stay where loops can be cut at them. */
static void print_hoisted(c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = vector_bit(k);
    int64_t rows = 1, left = ROW_BYTES;
    for (uint32_t i = 0; i < kir->n_loops; i++) rows *= bit >> i & 1 ? 1 : kir->extent[i];
    if (k->n_tiles != 1 || k->turn.loop >= 0 || rows < LEAST_ROWS) return;
    bool *wanted = MP_NEW(p->out->pool, bool, kir->n_exprs + 1), any = false;
    for (uint32_t u = 0; u < kir->n_exprs; u++) {
        if (!p->live[u] || p->deps[u] == bit || kir->exprs[u].op == MP_K_REDUCE) continue;
        for (int a = 0; a < 3; a++) {
            mp_kid i = kir->exprs[u].arg[a];
            if (i == MP_NO_KID || wanted[i] || p->deps[i] != bit || kir->exprs[i].level) continue;
            const mp_kexpr *e = &kir->exprs[i];
            int64_t bytes = k->tile * mp_dtype_bytes(e->dtype);
            if (e->cost < 2 || e->dtype == MP_BOOL || e->op == MP_K_LOAD || bytes > left) continue;
            wanted[i] = any = true;
            left -= bytes;
        }
    }
    if (!any) return;
    mp_print_need_none(p);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!wanted[i]) continue;
        mp_print_line(p, "%s r%u[%lld] __attribute__((aligned(64)));", type_of(k, i), i, (long long)k->tile);
        mp_print_need(p, i);
    }
    mp_print_line(p, "{");
    p->indent++;
    mp_print_line(p, "const int64_t c0 = 0, c1 = %lld;", (long long)k->tile);
    mp_print_needed(p, bit, 0);
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) mp_print_line(p, "r%u[%s] = t%u;", i, p->lane, i);
    close_block(k);
    close_block(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) p->at[i] = MP_AT_LANES;
}

static void print_tiles(c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t v = (uint32_t)kir->vector, bit = 1u << v, outer = mp_kir_kept(kir) & ~bit & ~k->inner;
    const mp_turn *turn = &k->turn;
    const char *number = "w"; /* of the outer loops' iteration */
    p->lane = mp_pool_printf(p->out->pool, "i%u - c0", v);
    bool flat = !outer && !kir->reduced && !k->inner && !has_near(k) &&
                !gathers(k); /* one loop: a range of iterations is one run */
    mp_turn_print_arrays(p, turn);
    if (!flat) print_hoisted(k);
    if (flat) {
        mp_print_line(p, "const int64_t c0 = begin * %lld;", (long long)k->tile);
        mp_print_line(p, "const int64_t c1 = end * %lld < %lld ? end * %lld : %lld;", (long long)k->tile,
                      (long long)kir->extent[v], (long long)k->tile, (long long)kir->extent[v]);
        mp_print_line(p, "{");
    } else {
        mp_print_line(p, "for (int64_t o = begin; o < end; o++) {");
    }
    p->indent++;
    if (!flat && k->n_tiles > 1) {
        mp_print_line(p, "const int64_t c0 = o %% %lld * %lld;", (long long)k->n_tiles, (long long)k->tile);
        mp_print_line(p, "const int64_t c1 = c0 + %lld < %lld ? c0 + %lld : %lld;", (long long)k->tile,
                      (long long)kir->extent[v], (long long)k->tile, (long long)kir->extent[v]);
        if (outer) mp_print_line(p, "const int64_t w = o / %lld;", (long long)k->n_tiles);
    } else if (!flat) {
        mp_print_line(p, "const int64_t c0 = 0, c1 = %lld;", (long long)kir->extent[v]);
        if (outer) mp_print_line(p, "const int64_t w = o;");
    }
    if (turn->loop >= 0) {
        outer &= ~(1u << turn->loop);
        mp_print_line(p, "const int64_t j0 = w %% %lld * %lld;", (long long)turn->n_tiles, (long long)turn->rows);
        mp_print_line(p, "const int64_t j1 = j0 + %lld < %lld ? j0 + %lld : %lld;", (long long)turn->rows,
                      (long long)kir->extent[turn->loop], (long long)turn->rows, (long long)kir->extent[turn->loop]);
        if (outer) mp_print_line(p, "const int64_t u = w / %lld;", (long long)turn->n_tiles);
        number = "u";
    }
    mp_print_decode(p, outer, number);
    mp_turn_print_fill(p, turn);
    if (turn->loop >= 0) {
        mp_print_line(p, "for (int64_t i%d = j0; i%d < j1; i%d++) {", turn->loop, turn->loop, turn->loop);
        p->indent++;
    }
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (k->inner >> i & 1) open_loop(k, i);
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        print_tile_values(k, pass);
        print_tile_pass(k, pass);
    }
    print_tile_stores(k);
    if (turn->loop >= 0) close_block(k);
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (k->inner >> i & 1) close_block(k);
    close_block(k);
}

/* -- The door ------------------------------------------------------------------------------------------------------ */

static int64_t work_of(const mp_kir *kir)
{
    int64_t work = 1, inner = 1;
    for (uint32_t i = 0; i < kir->n_stores; i++) work += kir->exprs[kir->stores[i].what].cost;
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (kir->exprs[i].op == MP_K_REDUCE) work += 1 + kir->exprs[kir->exprs[i].arg[0]].cost;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (kir->reduced >> i & 1) inner *= kir->extent[i];
    return work * inner;
}

/* With a short vector loop an outer iteration takes more than one run of it: finding the loops' places again and again would cost as
** much as the work. */
static void choose_inner(c_kernel *k)
{
    const mp_kir *kir = k->kir;
    int64_t n = kir->extent[kir->vector];
    for (uint32_t i = kir->n_loops; i-- > 0;) {
        if ((int)i == kir->vector) continue;
        if (n * kir->extent[i] > TILE_POINT) return;
        n *= kir->extent[i];
        k->inner |= 1u << i;
    }
}

void mp_codegen_c(const mp_kir *kir, int vector_bits, mp_text *out, mp_codegen_launch *launch)
{
    c_kernel k = {.kir = kir};
    mp_print_init(&k.p, kir, &mp_target_c, out);
    int64_t element = 8;
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        if (mp_dtype_bytes(kir->buffers[i].dtype) < element) element = mp_dtype_bytes(kir->buffers[i].dtype);
    k.lanes = vector_bits / 8 / element;
    k.row_kept = MP_NEW(out->pool, bool, kir->n_exprs + 1);
    bool lanes = kir->vector >= 0 && !(kir->reduced >> kir->vector & 1);
    int64_t outer = 1, inner = 1;
    k.n_tiles = 1;
    k.turn = mp_turn_choose(kir, out->pool);
    k.array = MP_NEW(out->pool, const char *, kir->n_exprs + 1);
    if (k.turn.array) memcpy(k.array, k.turn.array, kir->n_exprs * sizeof *k.array);
    k.p.array = k.array;
    bool turned = k.turn.loop >= 0;
    if (lanes) {
        int64_t extent = kir->extent[kir->vector];
        int64_t tile = turned ? MP_TURN_LANES : kir->reduced ? TILE_REDUCE : TILE_POINT;
        bool whole = extent <= tile + (turned ? 0 : tile / 2) && (kir->reduced || kir->n_loops > 1);
        k.tile = whole ? extent : tile;
        k.n_tiles = (extent + k.tile - 1) / k.tile;
        if (k.n_tiles == 1 && !turned && !kir->reduced) choose_inner(&k);
    }
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (!(kir->reduced >> i & 1) && !(lanes && (int)i == kir->vector) && (int)i != k.turn.loop)
            *(k.inner >> i & 1 ? &inner : &outer) *= kir->extent[i];
    launch->extent = outer * k.n_tiles * (turned ? k.turn.n_tiles : 1);
    int64_t work = work_of(kir) * (lanes ? k.tile : 1) * (turned ? k.turn.rows : inner);
    launch->grain = work >= GRAIN_WORK ? 1 : GRAIN_WORK / (work > 0 ? work : 1);
    mp_text_add(out, "\nvoid %s(void *const *restrict buffers, int64_t begin, int64_t end)\n{\n", kir->name);
    k.p.indent = 1;
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        mp_print_line(&k.p, "%s%s *restrict p%u = buffers[%u];", kir->buffers[i].written ? "" : "const ",
                      mp_target_c.memory[kir->buffers[i].dtype], i, i);
    if (kir->checks) mp_print_line(&k.p, "int bad = 0;");
    if (kir->vector < 0) {
        mp_print_line(&k.p, "for (int64_t o = begin; o < end; o++) {");
        k.p.indent++;
        print_row_values(&k, 0);
        for (uint32_t i = 0; i < kir->n_stores; i++) mp_print_store(&k.p, &kir->stores[i]);
        close_block(&k);
    } else if (lanes) {
        print_tiles(&k);
    } else {
        print_rows(&k);
    }
    if (kir->checks) /* several threads may say so */
        mp_print_line(&k.p, "if (bad) __atomic_store_n((int *)buffers[%u], 1, __ATOMIC_RELAXED);", kir->n_buffers);
    mp_text_add(out, "}\n");
}
