/* The C printer's first form: the vector loop is reduced (print_c.c). */
#include "codegen/half.h"

#include <stdio.h>
#include <string.h>

#define CHUNK 1024 /* iterations summed up before they are added to the sum of chunks */
#define ROW_COST 8 /* cost from which a value is kept in a row array */

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

/* Choose what stays in row arrays: dear values that two passes need. */
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
        if (needs[i] < 2 || e->cost < ROW_COST || mp_c_of_row(k, i) || bytes > left || e->op == MP_K_CAST) continue;
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
static void print_simd(mp_c_kernel *k, int pass)
{
    static const char *const ops[] = {"+", "*", "max", "min", "|", "&"};
    mp_text text = {.pool = k->p.out->pool};
    mp_text_add(&text, "#pragma omp simd%s", k->kir->checks ? " reduction(|:bad)" : "");
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        mp_text_add(&text, " reduction(%s:q%u)", ops[k->kir->exprs[i].aux], i);
        if (nan_tracked(&k->kir->exprs[i])) mp_text_add(&text, " reduction(|:n%u)", i);
    }
    mp_print_line(&k->p, "%s", text.chars);
}

/* Elements before `from` were taken already. */
static void print_accumulate(mp_c_kernel *k, uint32_t i, int64_t from)
{
    const mp_kexpr *e = &k->kir->exprs[i];
    char x[64], q[16];
    mp_print_name(&k->p, e->arg[0], x);
    snprintf(q, sizeof q, "q%u", i);
    if (from && (e->aux == MP_RED_SUM || e->aux == MP_RED_PROD)) {
        mp_print_line(&k->p, "const %s m%u = i%d >= %lld ? %s : %s;", mp_c_type(k, i), i, k->kir->vector,
                      (long long)from, x, mp_print_identity(&k->p, e));
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
static void declare_sums(mp_c_kernel *k, int pass, char letter)
{
    for (uint32_t i = 0; i < k->kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        const mp_kexpr *e = &k->kir->exprs[i];
        mp_print_line(&k->p, "%s %c%u = %s;", mp_c_type(k, i), letter, i, mp_print_identity(&k->p, e));
        if (nan_tracked(e) && letter == 'a') mp_print_line(&k->p, "int n%u = 0;", i);
    }
}

static void print_row_pass(mp_c_kernel *k, int pass)
{
    mp_printer *p = &k->p;
    const mp_kir *kir = k->kir;
    if (!mp_c_need_pass(k, pass)) return;
    declare_sums(k, pass, 'a');
    mp_print_line(p, "{");
    p->indent++;
    int blocks = 1;
    uint32_t v = (uint32_t)kir->vector, bit = 1u << v;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if ((kir->reduced >> i & 1) && i != v) mp_c_open_loop(k, i), blocks++;
    mp_print_needed(p, bit, 0);
    bool chunked = kir->extent[v] > 2 * CHUNK;
    if (chunked) {
        mp_print_line(p, "for (int64_t c0 = 0; c0 < %lld; c0 += %d) {", (long long)kir->extent[v], CHUNK);
        p->indent++, blocks++;
        mp_print_line(p, "const int64_t c1 = c0 + %d < %lld ? c0 + %d : %lld;", CHUNK, (long long)kir->extent[v], CHUNK,
                      (long long)kir->extent[v]);
    }
    declare_sums(k, pass, 'q');
    mp_c_parts parts = mp_c_split(k, kir->extent[v]);
    const char *begin = chunked ? "c0" : "0",
               *end = chunked ? "c1" : mp_pool_printf(p->out->pool, "%lld", (long long)kir->extent[v]);
    bool halves = mp_half_choose(k, mp_c_pass_stores(k, pass));
    if (halves) mp_half_begin(k, begin, end, chunked ? CHUNK : kir->extent[v]);
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
            if (mp_c_reduced_in(k, i, pass)) print_accumulate(k, i, part ? parts.whole : 0);
        mp_c_print_pass_stores(k, pass);
        mp_c_close(k);
    }
    if (halves) mp_half_store(k, begin, end), mp_half_end(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!mp_c_reduced_in(k, i, pass)) continue;
        const char *a = mp_pool_printf(p->out->pool, "a%u", i), *q = mp_pool_printf(p->out->pool, "q%u", i);
        mp_print_line(p, "%s = %s;", a, mp_print_combine(p, &kir->exprs[i], a, q));
    }
    while (blocks--) mp_c_close(k);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (k->row_kept[i] && p->need[i]) p->at[i] = MP_AT_ROW;
        if (!mp_c_reduced_in(k, i, pass)) continue;
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
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        mp_c_print_row_values(k, pass);
        print_row_pass(k, pass);
    }
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (mp_c_stored_at_row(k, &kir->stores[i])) mp_print_store(p, &kir->stores[i]);
    mp_c_close(k);
}
