/* The C printer's first form: the vector loop is reduced (print_c.c). */
#include "codegen/half.h"

#include <stdio.h>
#include <string.h>

#define CHUNK_STEPS 64 /* elements that a lane sums up before lanes are added to the sum of chunks */
#define ROW_COST 8     /* cost from which a value is kept in a row array */
#define STEP_COST 24  /* most additions of an element for which waiting for the sum before takes longer than they do, */
#define STEP_WEIGHT 4 /* and most of one operation among them */
#define STEP_VECTORS 4   /* that sum up side by side then */
#define CHECK_VECTORS 16 /* the same where indices are checked on the way, which takes a result of each run of lanes */
#define AHEAD_LEAST (1 << 20) /* bytes of what rows are fetched from ahead: less is in a near cache */
#define AHEAD 4096            /* bytes that are fetched ahead at least */
#define STORE_AHEAD 2048      /* the same of what is stored to */
#define AHEAD_VECTORS 4       /* that a loop stores between fetching */
#define MOST_RUNS 3
#define MOST_HALVES (2 * MP_HALF_BLOCK) /* elements that are converted at once (half.h) */

/* The vector loop of a pass with reductions is printed as runs. Each has steps of so many lanes, and every lane a sum of its own, in arrays
** that compilers keep in registers; at the end halves of lanes are added until one is left. Asked for the sum in one variable, compilers that
** keep the order of additions wait for each before the next. */
typedef struct {
    int64_t begin, end;
    int64_t lanes;
    int64_t left; /* lanes with elements that were not taken already, the last ones; 0: all */
} sum_run;

/* Drop the row arrays that no pass would read, since all it computes from them is in row arrays itself. Expects scalars to be marked. */
static void drop_unread_rows(mp_c_kernel *k)
{
    const mp_kir *kir = k->kir;
    mp_printer *p = &k->p;
    bool *read = MP_NEW(p->out->pool, bool, kir->n_exprs + 1);
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        mp_c_need_pass(k, pass);
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            for (int a = 0; a < 3; a++)
                if ((p->need[i] || mp_c_reduced_in(k, i, pass)) && kir->exprs[i].arg[a] != MP_NO_KID)
                    read[kir->exprs[i].arg[a]] |= p->at[kir->exprs[i].arg[a]] == MP_AT_ROW;
        for (uint32_t i = 0; i < kir->n_stores; i++) {
            const mp_kstore *store = &kir->stores[i];
            if (mp_c_stored_in(k, store, pass)) read[store->what] |= p->at[store->what] == MP_AT_ROW;
        }
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (k->row_kept[i] && p->need[i]) p->at[i] = MP_AT_ROW;
    }
    for (uint32_t i = 0; i < kir->n_exprs; i++) k->row_kept[i] &= read[i];
}

/* Does a load read from places that are not side by side? */
static bool reads_apart(const mp_c_kernel *k, const mp_kexpr *e)
{
    int64_t step = e->op == MP_K_LOAD ? e->at.coef[k->kir->vector] : 0;
    return step < 0 || step > 1;
}

/* Choose what stays in row arrays: dear values that two passes need, and those that are read from all over. */
static void choose_rows(mp_c_kernel *k)
{
    const mp_kir *kir = k->kir;
    uint32_t n_reduced = 0;
    for (uint32_t i = 0; i < kir->n_loops; i++) n_reduced += kir->reduced >> i & 1;
    if (n_reduced != 1) return;
    int64_t left = ROW_BYTES;
    uint8_t *needs = MP_NEW(k->p.out->pool, uint8_t, kir->n_exprs + 1);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (mp_c_of_row(k, i)) k->p.at[i] = MP_AT_SCALAR; /* for marking only; reset below */
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        mp_c_need_pass(k, pass);
        for (uint32_t i = 0; i < kir->n_exprs; i++) needs[i] = (uint8_t)(needs[i] + (k->p.need[i] && needs[i] < 9));
    }
    for (uint32_t i = kir->n_exprs; i-- > 0;) {
        const mp_kexpr *e = &kir->exprs[i];
        int64_t bytes = kir->extent[kir->vector] * mp_dtype_bytes(e->dtype);
        bool dear = e->cost >= ROW_COST || reads_apart(k, e);
        if (needs[i] < 2 || !dear || mp_c_of_row(k, i) || bytes > left || e->op == MP_K_CAST) continue;
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

/* Is an index checked in the vector loop of this pass? */
static bool checks_lanes(const mp_c_kernel *k)
{
    bool any = false;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        any |= k->p.need[i] && k->kir->exprs[i].op == MP_K_CHECK && (k->p.deps[i] & mp_c_vector_bit(k));
    return any;
}

static void print_simd(mp_c_kernel *k)
{ mp_print_line(&k->p, "#pragma omp simd%s", checks_lanes(k) ? " reduction(|:bad)" : ""); }

/* What says that a NaN was met has elements as wide as what it goes with, for vectors of both to have as many. */
static const char *flag_type(const mp_kexpr *e) { return e->dtype == MP_F64 ? "int64_t" : "int"; }

/* `lane` is the element's in q<n>. The last `left` lanes of a run that has a number of them have elements that were not taken already: a bit
** says so, since compilers would cut the loop where a comparison turns, and do the pieces one by one. */
static void print_accumulate(mp_c_kernel *k, uint32_t i, const char *lane, const sum_run *run)
{
    const mp_kexpr *e = &k->kir->exprs[i];
    char x[64];
    mp_print_name(&k->p, e->arg[0], x);
    const char *q = mp_pool_printf(k->p.out->pool, "q%u[%s]", i, lane);
    if (run->left && (e->aux == MP_RED_SUM || e->aux == MP_RED_PROD)) {
        mp_print_line(&k->p, "const %s m%u = (%s + %lld) & %lld ? %s : %s;", mp_c_type(k, i), i, lane,
                      (long long)run->left, (long long)run->lanes, x, mp_print_identity(&k->p, e));
        snprintf(x, sizeof x, "m%u", i);
    }
    if (nan_tracked(e)) {
        mp_print_line(&k->p, "%s = %s %c %s ? %s : %s;", q, x, e->aux == MP_RED_MAX ? '>' : '<', q, x, q);
        mp_print_line(&k->p, "n%u[%s] |= %s != %s;", i, lane, x, x);
        return;
    }
    mp_print_line(&k->p, "%s = %s;", q, mp_print_combine(&k->p, e, q, x));
}

/* Variables a<n> of the reductions of this pass, over all of it. */
static void declare_sums(mp_c_kernel *k, int pass)
{
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        const mp_kexpr *e = &k->kir->exprs[i];
        mp_print_line(&k->p, "%s a%u = %s;", mp_c_type(k, i), i, mp_print_identity(&k->p, e));
        if (nan_tracked(e)) mp_print_line(&k->p, "int y%u = 0;", i);
    }
}

/* The sums of lanes, q<n>, and whether they met NaN, n<n>. */
static void declare_lane_sums(mp_c_kernel *k, int pass, int64_t lanes)
{
    mp_printer *p = &k->p;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        const mp_kexpr *e = &k->kir->exprs[i];
        mp_print_line(p, "%s q%u[%lld] __attribute__((aligned(64)));", mp_c_type(k, i), i, (long long)lanes);
        if (nan_tracked(e))
            mp_print_line(p, "%s n%u[%lld] __attribute__((aligned(64)));", flag_type(e), i, (long long)lanes);
    }
    mp_print_line(p, "#pragma omp simd");
    mp_print_line(p, "for (int l = 0; l < %lld; l++) {", (long long)lanes);
    p->indent++;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        mp_print_line(p, "q%u[l] = %s;", i, mp_print_identity(p, &k->kir->exprs[i]));
        if (nan_tracked(&k->kir->exprs[i])) mp_print_line(p, "n%u[l] = 0;", i);
    }
    mp_c_close(k);
}

/* Add the sums of lanes to those over all. */
static void fold_lane_sums(mp_c_kernel *k, int pass, int64_t lanes)
{
    mp_printer *p = &k->p;
    for (int64_t half = lanes / 2; half; half /= 2) {
        mp_print_line(p, "#pragma omp simd");
        mp_print_line(p, "for (int l = 0; l < %lld; l++) {", (long long)half);
        p->indent++;
        for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
            if (!mp_c_reduced_in(k, i, pass)) continue;
            const mp_kexpr *e = &k->kir->exprs[i];
            const char *to = mp_pool_printf(p->out->pool, "q%u[l]", i);
            const char *from = mp_pool_printf(p->out->pool, "q%u[l + %lld]", i, (long long)half);
            if (nan_tracked(e)) {
                mp_print_line(p, "%s = %s %c %s ? %s : %s;", to, from, e->aux == MP_RED_MAX ? '>' : '<', to, from, to);
                mp_print_line(p, "n%u[l] |= n%u[l + %lld];", i, i, (long long)half);
            } else {
                mp_print_line(p, "%s = %s;", to, mp_print_combine(p, e, to, from));
            }
        }
        mp_c_close(k);
    }
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        const char *a = mp_pool_printf(p->out->pool, "a%u", i), *q = mp_pool_printf(p->out->pool, "q%u[0]", i);
        mp_print_line(p, "%s = %s;", a, mp_print_combine(p, &k->kir->exprs[i], a, q));
        if (nan_tracked(&k->kir->exprs[i])) mp_print_line(p, "y%u |= n%u[0] != 0;", i, i);
    }
}

/* A loop over chunks of the vector loop, from c0 to c1. */
static void open_chunks(mp_c_kernel *k, int64_t extent, int64_t chunk)
{
    long long n = extent, step = chunk;
    mp_print_line(&k->p, "for (int64_t c0 = 0; c0 < %lld; c0 += %lld) {", n, step);
    k->p.indent++;
    mp_print_line(&k->p, "const int64_t c1 = c0 + %lld < %lld ? c0 + %lld : %lld;", step, n, step, n);
}

/* What a pass does for an element. */
static void print_element(mp_c_kernel *k, int pass, const char *lane, const sum_run *run)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (k->row_kept[i] && p->need[i]) mp_print_line(p, "b%u[%s] = t%u;", i, p->row, i);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (mp_c_reduced_in(k, i, pass)) print_accumulate(k, i, lane, run);
    mp_c_print_pass_stores(k, pass);
}

/* -- Fetching ahead ------------------------------------------------------------------------------------------------- */

/* While the last pass computes from a row that is in cache, the memory has nothing to do: it brings what the first pass of the next rows
** reads, and what the next row is stored to, which has to be in cache as well. The CPU's own prefetching does not see that far, and stops at
** pages. */

/* Elements from the place `at` to the one in a later row, `least` bytes behind at least, that is to be fetched; 0: the buffer's memory is not
** fetched ahead. */
static int64_t ahead(const mp_c_kernel *k, const mp_affine *at, uint32_t buffer, int64_t least)
{
    const mp_kir *kir = k->kir;
    if (at->coef[kir->vector] != 1) return 0;
    int64_t bytes = mp_dtype_bytes(kir->buffers[buffer].dtype), row = 0, touched = bytes;
    for (uint32_t i = 0; i < kir->n_loops; i++) {
        if (at->coef[i]) touched *= kir->extent[i];
        if (!(kir->reduced >> i & 1)) row = at->coef[i] < 0 ? 0 : at->coef[i]; /* of the last one, which runs first */
    }
    if (!row || touched < AHEAD_LEAST) return 0;
    int64_t rows = (least + row * bytes - 1) / (row * bytes);
    return rows * row;
}

static int64_t load_ahead(const mp_c_kernel *k, const mp_kexpr *e)
{
    bool plain = e->op == MP_K_LOAD && e->arg[0] == MP_NO_KID && e->arg[1] == MP_NO_KID;
    return plain ? ahead(k, &e->at, e->aux, AHEAD) : 0;
}

static int64_t store_ahead(const mp_c_kernel *k, const mp_kstore *store)
{ return ahead(k, &store->at, store->buffer, STORE_AHEAD); }

/* Mark the loads of the first pass and the stores that are to be fetched ahead. */
static void choose_ahead(mp_c_kernel *k)
{
    const mp_kir *kir = k->kir;
    k->ahead = NULL;
    bool *chosen = MP_NEW(k->p.out->pool, bool, kir->n_exprs + 1), any = false;
    if (mp_c_need_pass(k, 0))
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (k->p.need[i] && load_ahead(k, &kir->exprs[i])) chosen[i] = any = true;
    for (uint32_t i = 0; i < kir->n_stores; i++) any |= store_ahead(k, &kir->stores[i]) != 0;
    int last = -1, vector_passes = 0;
    for (int pass = 0; pass <= kir->n_passes; pass++)
        if (mp_c_need_pass(k, pass)) last = pass, vector_passes++;
    if (!any || vector_passes < 2) return;
    k->ahead = chosen;
    k->ahead_pass = last;
}

/* Fetch what lies `elements` behind the places of `lanes` elements from `from` on. */
static void print_fetches(mp_c_kernel *k, mp_affine at, uint32_t buffer, int64_t elements, const char *from,
                          int64_t lanes, const char *how)
{
    at.coef[k->kir->vector] = 0;
    at.base += elements;
    for (int64_t l = 0; l < lanes; l += MP_LINE / mp_dtype_bytes(k->kir->buffers[buffer].dtype))
        mp_print_line(&k->p, "__builtin_prefetch(p%u + (%s + %s + %lld), %s);", buffer, mp_print_affine(&k->p, &at),
                      from, (long long)l, how);
}

/* Fetch what lies ahead of the `lanes` elements of the vector loop from `from` on. */
static void print_ahead(mp_c_kernel *k, const char *from, int64_t lanes)
{
    const mp_kir *kir = k->kir;
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        if (k->ahead[i]) print_fetches(k, e->at, e->aux, load_ahead(k, e), from, lanes, "0, 2");
    }
    for (uint32_t i = 0; i < kir->n_stores; i++) {
        const mp_kstore *store = &kir->stores[i];
        int64_t elements = store_ahead(k, store);
        if (elements) print_fetches(k, store->at, store->buffer, elements, from, lanes, "1, 3");
    }
}

/* Elements that the storing loop of `pass`, of `whole` ones, does between fetching; 0 if it fetches nothing. */
static int64_t fetching_lanes(const mp_c_kernel *k, int pass, int64_t whole)
{
    if (!k->ahead || pass != k->ahead_pass || whole % k->lanes) return 0;
    int64_t lanes = k->lanes * AHEAD_VECTORS;
    while (whole % lanes) lanes /= 2;
    return lanes;
}

/* The vector loop of a pass that only stores; by chunks where what is converted for it would be long. */
static void print_storing_loop(mp_c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    int v = k->kir->vector;
    int64_t extent = k->kir->extent[v];
    mp_c_parts parts = mp_c_split(k, extent);
    bool halves = mp_half_choose(k, mp_c_pass_stores(k, pass)), chunked = halves && extent > MOST_HALVES;
    const char *begin = "0", *end = mp_pool_printf(p->out->pool, "%lld", (long long)extent);
    if (chunked) open_chunks(k, extent, MP_HALF_BLOCK), begin = "c0", end = "c1";
    if (halves) mp_half_begin(k, begin, end, chunked ? MP_HALF_BLOCK : extent);
    for (int part = 0; part < parts.n; part++) {
        const char *from = part ? mp_pool_printf(p->out->pool, "%lld", (long long)parts.again) : begin;
        const char *to = parts.n == 2 && !part ? mp_pool_printf(p->out->pool, "%lld", (long long)parts.whole) : end;
        int64_t lanes = halves || part ? 0 : fetching_lanes(k, pass, parts.whole);
        if (lanes) {
            mp_print_line(p, "for (int64_t s = %s; s < %s; s += %lld) {", from, to, (long long)lanes);
            p->indent++;
            print_ahead(k, "s", lanes);
            from = "s", to = mp_pool_printf(p->out->pool, "s + %lld", (long long)lanes);
        }
        print_simd(k);
        mp_print_line(p, "for (int64_t i%d = %s; i%d < %s; i%d++) {", v, from, v, to, v);
        p->indent++;
        print_element(k, pass, NULL, NULL);
        mp_c_close(k);
        if (lanes) mp_c_close(k);
    }
    if (halves) mp_half_store(k, begin, end), mp_half_end(k);
    if (chunked) mp_c_close(k);
}

/* The steps of a run, from `begin` to `end`, which is whole steps later. */
static void print_steps(mp_c_kernel *k, int pass, const sum_run *run, const char *begin, const char *end)
{
    mp_printer *p = &k->p;
    int v = k->kir->vector;
    long long lanes = run->lanes;
    mp_print_line(p, "for (int64_t s = %s; s < %s; s += %lld) {", begin, end, lanes);
    p->indent++;
    if (k->ahead && pass == k->ahead_pass && !run->left) print_ahead(k, "s", lanes);
    print_simd(k);
    mp_print_line(p, "for (int64_t i%d = s; i%d < s + %lld; i%d++) {", v, v, lanes, v);
    p->indent++;
    print_element(k, pass, mp_pool_printf(p->out->pool, "i%d - s", v), run);
    mp_c_close(k);
    mp_c_close(k);
}

/* Cut the vector loop of a pass into runs: of many lanes, if elements are cheap, of one vector, and the vector at the end, of which some
** elements were taken. Returns how many. */
static int find_runs(const mp_c_kernel *k, int pass, sum_run *run)
{
    int64_t extent = k->kir->extent[k->kir->vector], lanes = extent < 4 ? 1 : k->lanes, done = 0;
    int cost = 0, n = 0;
    bool apart = false; /* one after the other, or long enough: nothing to gain from more of them at once */
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        apart |=
            k->p.need[i] && (reads_apart(k, &k->kir->exprs[i]) || mp_kops[k->kir->exprs[i].op].weight > STEP_WEIGHT);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (mp_c_reduced_in(k, i, pass)) cost += 1 + k->kir->exprs[k->kir->exprs[i].arg[0]].cost;
    if (!extent) return 0;
    while (lanes > extent) lanes /= 2;
    int64_t many = lanes * (checks_lanes(k) ? CHECK_VECTORS : cost <= STEP_COST && !apart ? STEP_VECTORS : 1);
    while (many > extent) many /= 2;
    for (int64_t width = many;; width = lanes) {
        int64_t end = extent - extent % width;
        if (end > done) run[n++] = (sum_run){.begin = done, .end = end, .lanes = width}, done = end;
        if (width == lanes) break;
    }
    int64_t left = extent - done;
    if (left == 1) /* compilers find out that a vector has one element that counts, and do not make it one */
        run[n++] = (sum_run){.begin = done, .end = extent, .lanes = 1};
    else if (left)
        run[n++] = (sum_run){.begin = extent - lanes, .end = extent, .lanes = lanes, .left = left};
    return n;
}

/* The vector loop of a pass with reductions. A long run is summed up by chunks. */
static void print_summing_loop(mp_c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    sum_run run[MOST_RUNS];
    int n = find_runs(k, pass, run), first = 0;
    if (!n) return;
    bool halves = mp_half_choose(k, mp_c_pass_stores(k, pass));
    int64_t chunk = run[0].lanes * CHUNK_STEPS;
    if (halves || chunk < MP_HALF_BLOCK) chunk = MP_HALF_BLOCK;
    if (run[0].end > 2 * chunk) {
        open_chunks(k, run[0].end, chunk);
        if (halves) mp_half_begin(k, "c0", "c1", chunk);
        declare_lane_sums(k, pass, run[0].lanes);
        print_steps(k, pass, &run[0], "c0", "c1");
        fold_lane_sums(k, pass, run[0].lanes);
        if (halves) mp_half_store(k, "c0", "c1"), mp_half_end(k);
        mp_c_close(k);
        first = 1;
    }
    for (int r = first, next; r < n; r = next) { /* one lane has nothing to do with the others' memory */
        for (next = r + 1; next < n && run[next].lanes > 1;) next++;
        const char *begin = mp_pool_printf(p->out->pool, "%lld", (long long)run[r].begin);
        const char *end = mp_pool_printf(p->out->pool, "%lld", (long long)run[next - 1].end);
        mp_print_line(p, "{");
        p->indent++;
        halves = mp_half_choose(k, mp_c_pass_stores(k, pass));
        if (halves) mp_half_begin(k, begin, end, run[next - 1].end - run[r].begin);
        declare_lane_sums(k, pass, run[r].lanes);
        for (int i = r; i < next; i++)
            print_steps(k, pass, &run[i], mp_pool_printf(p->out->pool, "%lld", (long long)run[i].begin),
                        mp_pool_printf(p->out->pool, "%lld", (long long)run[i].end));
        fold_lane_sums(k, pass, run[r].lanes);
        if (halves) mp_half_store(k, begin, end), mp_half_end(k);
        mp_c_close(k);
    }
}

/* One pass over the reduced loops. */
static void print_row_pass(mp_c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    if (!mp_c_need_pass(k, pass)) return;
    bool reduces = false;
    for (uint32_t i = 0; i < kir->n_exprs; i++) reduces |= mp_c_reduced_in(k, i, pass);
    declare_sums(k, pass);
    mp_print_line(p, "{");
    p->indent++;
    int blocks = 1;
    uint32_t v = (uint32_t)kir->vector;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if ((kir->reduced >> i & 1) && i != v) mp_c_open_loop(k, i), blocks++;
    mp_print_needed(p, mp_c_vector_bit(k), 0);
    if (reduces)
        print_summing_loop(k, pass);
    else
        print_storing_loop(k, pass);
    while (blocks--) mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (k->row_kept[i] && p->need[i]) p->at[i] = MP_AT_ROW;
        if (!mp_c_reduced_in(k, i, pass)) continue;
        const mp_kexpr *e = &kir->exprs[i];
        const char *nan = e->dtype == MP_F64 ? p->target->nan64 : p->target->nan32;
        if (nan_tracked(e))
            mp_print_line(p, "const %s t%u = y%u ? %s : a%u;", p->target->type[e->dtype], i, i, nan, i);
        else
            mp_print_line(p, "const %s t%u = a%u;", p->target->type[e->dtype], i, i);
        p->at[i] = MP_AT_SCALAR;
    }
}

/* Everything of the kept loops that is known after `pass` passes. */
void mp_c_print_row_values(mp_c_kernel *k, int level)
{
    mp_printer *p = &k->p;
    mp_print_need_none(p);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (p->live[i] && mp_c_of_row(k, i) && k->kir->exprs[i].level == level) mp_print_need(p, i);
    mp_print_needed(p, 0, 0);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (p->need[i]) p->at[i] = MP_AT_SCALAR;
}

/* Loads into row arrays from places that are not side by side, before the passes: a loop that computes with them would not be for vectors. */
static void print_gathered_rows(mp_c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
    bool *gathered = MP_NEW(p->out->pool, bool, kir->n_exprs + 1), any = false;
    mp_print_need_none(p);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        if (!k->row_kept[i] || !reads_apart(k, e) || e->arg[0] != MP_NO_KID || e->arg[1] != MP_NO_KID) continue;
        gathered[i] = any = true;
        mp_print_need(p, i);
    }
    if (!any) return;
    mp_c_open_loop(k, (uint32_t)kir->vector);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (gathered[i]) mp_print_line(p, "b%u[%s] = t%u;", i, p->row, i);
    mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (gathered[i]) p->at[i] = MP_AT_ROW;
}

void mp_c_print_rows(mp_c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    choose_rows(k);
    p->row = mp_pool_printf(p->out->pool, "i%d", kir->vector);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (k->row_kept[i])
            mp_print_line(p, "%s b%u[%lld] __attribute__((aligned(64)));", mp_c_type(k, i), i,
                          (long long)kir->extent[kir->vector]);
    mp_print_line(p, "for (int64_t o = begin; o < end; o++) {");
    p->indent++;
    mp_print_decode(p, mp_kir_kept(kir), "o");
    mp_half_rows(k);
    choose_ahead(k);
    print_gathered_rows(k);
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        mp_c_print_row_values(k, pass);
        print_row_pass(k, pass);
    }
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (mp_c_stored_at_row(k, &kir->stores[i])) mp_print_store(p, &kir->stores[i]);
    mp_c_close(k);
}
