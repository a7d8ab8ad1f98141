/* The C printer's second form: the vector loop is kept (print_c.c). */
#include "codegen/half.h"
#include "ir/index.h"

#define LANE_CHUNK 256  /* the same for tiles */
#define LEAST_ROWS 8    /* for which what they have in common is computed before */
#define GATHER_COST 8   /* most additions beside elements that are read one by one */
#define FETCHED_ROWS 2  /* ahead of the one that is stored */
#define LEAST_PLACES 32 /* of a tile for which they are found before */

static void open_lanes(mp_c_kernel *k) { mp_c_open_lanes(k, "c0", "c1"); }

/* Values of the tile known after `level` passes that later passes need: scalars, and arrays over the tile if they are dear. */
static void print_tile_values(mp_c_kernel *k, int level)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
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
        if (!p->live[u] || mp_c_of_row(k, u)) continue;
        for (int a = 0; a < 3; a++) {
            mp_kid i = kir->exprs[u].arg[a];
            if (i == MP_NO_KID || !mp_c_of_row(k, i) || p->at[i] != MP_AT_NOWHERE || kir->exprs[i].level != level)
                continue;
            if (kir->exprs[i].cost < 2 || kir->exprs[i].op == MP_K_CAST) continue;
            wanted[i] = true;
        }
    }
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!wanted[i]) continue;
        mp_print_line(p, "%s r%u[%lld] __attribute__((aligned(64)));", mp_c_type(k, i), i, (long long)k->tile);
        mp_print_need(p, i);
        any = true;
    }
    if (!any) return;
    mp_print_needed(p, bit, 0);
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) mp_print_line(p, "r%u[%s] = t%u;", i, p->lane, i);
    mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) p->at[i] = MP_AT_LANES;
}

/* Arrays `letter`<n> for the reductions of this pass, filled with what they start from. */
static void declare_lanes(mp_c_kernel *k, int pass, char letter)
{
    mp_printer *p = &k->p;
    bool any = false;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (mp_c_reduced_in(k, i, pass)) {
            mp_print_line(p, "%s %c%u[%lld] __attribute__((aligned(64)));", mp_c_type(k, i), letter, i,
                          (long long)k->tile);
            any = true;
        }
    if (!any) return;
    open_lanes(k);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (mp_c_reduced_in(k, i, pass))
            mp_print_line(p, "%c%u[%s] = %s;", letter, i, p->lane, mp_print_identity(p, &k->kir->exprs[i]));
    mp_c_close(k);
}

/* Fetch the lines that the pass stores to two rows of loop `along` later. The CPU's own prefetching does not follow pieces of rows, and what
** is stored to has to be in cache. */
static void print_fetched(mp_c_kernel *k, int pass, int along)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    const bool *stored = mp_c_pass_stores(k, pass);
    for (uint32_t i = 0; i < kir->n_stores; i++) {
        const mp_kstore *store = &kir->stores[i];
        int64_t bytes = mp_dtype_bytes(kir->buffers[store->buffer].dtype);
        mp_affine at = store->at;
        if (!stored[i] || at.coef[kir->vector] != 1 || llabs(at.coef[along]) < kir->extent[kir->vector]) continue;
        at.coef[kir->vector] = 0;
        at.base += FETCHED_ROWS * at.coef[along];
        mp_print_line(p, "for (int64_t s = c0; s < c1; s += %lld) __builtin_prefetch(p%u + (%s + s), 1, 3);",
                      (long long)(MP_LINE / bytes), store->buffer, mp_print_affine(p, &at));
    }
}

static void print_tile_pass(mp_c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    if (!kir->reduced || !mp_c_need_pass(k, pass)) return;
    uint32_t bit = mp_c_vector_bit(k);
    bool reduces = false;
    int last = -1;
    for (uint32_t i = 0; i < kir->n_exprs; i++) reduces |= mp_c_reduced_in(k, i, pass);
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (kir->reduced >> i & 1) last = (int)i;
    bool chunked = reduces && kir->extent[last] >= 32;
    declare_lanes(k, pass, 'r');
    mp_c_need_pass(k, pass);
    mp_print_line(p, "{");
    p->indent++;
    int blocks = 1;
    for (uint32_t i = 0; i < (uint32_t)last; i++)
        if (kir->reduced >> i & 1) mp_c_open_loop(k, i), blocks++;
    if (chunked) {
        mp_print_line(p, "for (int64_t d0 = 0; d0 < %lld; d0 += %d) {", (long long)kir->extent[last], LANE_CHUNK);
        p->indent++, blocks++;
        mp_print_line(p, "const int64_t d1 = d0 + %d < %lld ? d0 + %d : %lld;", LANE_CHUNK,
                      (long long)kir->extent[last], LANE_CHUNK, (long long)kir->extent[last]);
        declare_lanes(k, pass, 'q');
        mp_print_line(p, "for (int64_t i%d = d0; i%d < d1; i%d++) {", last, last, last);
        p->indent++;
    } else {
        mp_c_open_loop(k, (uint32_t)last);
    }
    mp_print_needed(p, bit, 0);
    if (k->n_tiles > 1) print_fetched(k, pass, last);
    bool halves = mp_half_choose(k, mp_c_pass_stores(k, pass));
    if (halves) mp_half_begin(k, "c0", "c1", k->tile);
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        char x[64];
        mp_print_name(p, kir->exprs[i].arg[0], x);
        const char *acc = mp_pool_printf(p->out->pool, "%c%u[%s]", chunked ? 'q' : 'r', i, p->lane);
        mp_print_line(p, "%s = %s;", acc, mp_print_combine(p, &kir->exprs[i], acc, x));
    }
    mp_c_print_pass_stores(k, pass);
    mp_c_close(k);
    if (halves) mp_half_store(k, "c0", "c1"), mp_half_end(k);
    mp_c_close(k);
    if (chunked) {
        open_lanes(k);
        for (uint32_t i = 0; i < kir->n_exprs; i++) {
            if (!mp_c_reduced_in(k, i, pass)) continue;
            const char *r = mp_pool_printf(p->out->pool, "r%u[%s]", i, p->lane);
            const char *q = mp_pool_printf(p->out->pool, "q%u[%s]", i, p->lane);
            mp_print_line(p, "%s = %s;", r, mp_print_combine(p, &kir->exprs[i], r, q));
        }
        mp_c_close(k);
    }
    while (blocks--) mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (mp_c_reduced_in(k, i, pass)) p->at[i] = MP_AT_LANES;
}

/* Is a load's memory (or that of the loads it is one of) of the registers' type? */
static bool same_memory(const mp_c_kernel *k, mp_kid kid, mp_dtype dtype)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    return e->op != MP_K_LOAD || k->kir->buffers[e->aux].dtype == dtype;
}

/* Loads under a condition that is the same for all lanes (pieces of a concatenation, rows of padding) read zeros where it does not
** hold: what is chosen is the address, before the vector loop, so that the loop itself has no condition. */
static void print_chosen(mp_c_kernel *k)
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

static bool has_near(const mp_c_kernel *k)
{
    bool any = false;
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) any |= k->p.live[i] && mp_print_has_near(&k->p, i);
    return any;
}

/* Do lanes read from places of their own, with little to compute? Gathering instructions take longer than single loads, above all where
** memory has to be waited for. */
static bool gathers(const mp_c_kernel *k)
{
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
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
static bool need_stores(mp_c_kernel *k)
{
    bool any = false;
    mp_print_need_none(&k->p);
    for (uint32_t i = 0; i < k->kir->n_stores; i++) {
        if (!mp_c_stored_at_row(k, &k->kir->stores[i])) continue;
        mp_print_need(&k->p, k->kir->stores[i].what);
        any = true;
    }
    return any;
}

/* Where such elements lie, for a tile: in arrays, by a loop of its own that is for vectors. Expects what is needed to be marked. */
static void print_places(mp_c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
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
        mp_print_line(p, "%s r%u[%lld] __attribute__((aligned(64)));", mp_c_type(k, i), i, (long long)k->tile);
        mp_print_need(p, i);
    }
    open_lanes(k);
    mp_print_needed(p, bit, bit);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (place[i]) mp_print_line(p, "r%u[%s] = t%u;", i, p->lane, i);
    mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (place[i]) p->at[i] = MP_AT_LANES;
    need_stores(k);
}

/* The vector loop over [begin, end) that stores. Expects what it needs to be marked. */
static void print_storing_lanes(mp_c_kernel *k, const bool *stored, const char *begin, const char *end, bool halves)
{
    mp_printer *p = &k->p;
    uint32_t bit = mp_c_vector_bit(k);
    if (halves) { /* cut into blocks: their arrays stay in the nearest cache */
        mp_print_line(p, "for (int64_t e0 = %s; e0 < %s; e0 += %d) {", begin, end, MP_HALF_BLOCK);
        p->indent++;
        mp_print_line(p, "const int64_t e1 = e0 + %d < %s ? e0 + %d : %s;", MP_HALF_BLOCK, end, MP_HALF_BLOCK, end);
        begin = "e0", end = "e1";
        mp_half_begin(k, begin, end, MP_HALF_BLOCK);
    }
    mp_c_open_lanes(k, begin, end);
    if (k->one_by_one) mp_print_line(p, "__asm__ volatile(\"\");"); /* compilers leave such loops alone */
    mp_print_needed(p, bit, bit);
    for (uint32_t s = 0; s < k->kir->n_stores; s++)
        if (stored[s]) mp_print_store(p, &k->kir->stores[s]);
    mp_c_close(k);
    if (halves) mp_half_store(k, begin, end), mp_half_end(k), mp_c_close(k);
}

/* The same for a part of the loop, with what is known there: what is one value for all its lanes stands before them. */
static void print_part(mp_c_kernel *k, const bool *stored, int64_t begin, int64_t end)
{
    mp_printer *p = &k->p, outside = *p;
    const char **array = k->array;
    uint32_t n = k->kir->n_exprs, bit = mp_c_vector_bit(k);
    mp_pool *pool = p->out->pool;
    p->at = memcpy(mp_pool_get(pool, n + 1), p->at, n);
    k->array = memcpy(MP_NEW(pool, const char *, n + 1), array, n * sizeof *array);
    p->array = k->array;
    mp_c_know_part(k, begin, end);
    mp_print_line(p, "{");
    p->indent++;
    need_stores(k);
    mp_print_needed(p, bit, 0);
    for (uint32_t i = 0; i < n; i++)
        if (p->need[i] && !(p->deps[i] & bit) && k->kir->exprs[i].op != MP_K_REDUCE) p->at[i] = MP_AT_SCALAR;
    print_chosen(k);
    print_storing_lanes(k, stored, mp_pool_printf(pool, "%lld", (long long)begin),
                        mp_pool_printf(pool, "%lld", (long long)end), false);
    mp_c_close(k);
    k->array = array;
    k->p = outside;
}

/* What a tile stores after all passes. With operations that have a cheap way all of it is done the cheap way first, and done again
** where that did not hold: buffers that are written are not read, so nothing is lost. */
static void print_tile_stores(mp_c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
    bool near = false;
    int64_t part[MP_C_MOST_PARTS][2];
    if (!need_stores(k)) return;
    bool known = k->n_tiles == 1 && k->turn.loop < 0 && kir->n_loops > 1;
    mp_print_needed(p, bit, 0);
    if (gathers(k)) {
        if (k->tile >= LEAST_PLACES) print_places(k);
        k->one_by_one = true;
    }
    int n_parts = known ? mp_c_find_parts(k, part) : 1;
    for (uint32_t i = 0; i < kir->n_exprs; i++) near |= p->need[i] && (p->deps[i] & bit) && mp_print_has_near(p, i);
    if (near) mp_print_line(p, "int far = 0;");
    bool *stored = MP_NEW(p->out->pool, bool, kir->n_stores + 1);
    for (uint32_t s = 0; s < kir->n_stores; s++) stored[s] = mp_c_stored_at_row(k, &kir->stores[s]);
    bool halves = mp_half_choose(k, stored);
    if (!known || halves) print_chosen(k);
    for (int way = near ? 0 : 1; way < 2; way++) {
        p->near = way == 0;
        if (near && way == 1) mp_print_line(p, "if (far) {"), p->indent++;
        for (int i = 0; i < n_parts; i++) {
            const char *begin = known ? mp_pool_printf(p->out->pool, "%lld", (long long)part[i][0]) : "c0";
            const char *end = known ? mp_pool_printf(p->out->pool, "%lld", (long long)part[i][1]) : "c1";
            if (known && !halves)
                print_part(k, stored, part[i][0], part[i][1]);
            else
                print_storing_lanes(k, stored, begin, end, halves);
        }
        if (near && way == 1) p->indent--, mp_print_line(p, "}");
    }
    k->one_by_one = false;
}

/* Values that are the same for every outer iteration, and dearer than reading them: in arrays over the tile, before the first one. An index
** that is data is checked there once and not again for each row. Conditions stay where loops can be cut at them. */
static void print_hoisted(mp_c_kernel *k)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    uint32_t bit = mp_c_vector_bit(k);
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
        mp_print_line(p, "%s r%u[%lld] __attribute__((aligned(64)));", mp_c_type(k, i), i, (long long)k->tile);
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
    mp_c_close(k);
    mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (wanted[i]) p->at[i] = MP_AT_LANES;
}

void mp_c_print_tiles(mp_c_kernel *k)
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
        if (k->inner >> i & 1) mp_c_open_loop(k, i);
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        print_tile_values(k, pass);
        print_tile_pass(k, pass);
    }
    print_tile_stores(k);
    if (turn->loop >= 0) mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (k->inner >> i & 1) mp_c_close(k);
    mp_c_close(k);
}
