/* Kernel IR -> C: loops for vector units.
**
** Two forms. Vector loop reduced: each outer iteration is one point of the kept loops; passes over the reduced loops accumulate
** in variables, what is dear and needed again stays in arrays over the row. Vector loop kept: each outer iteration is a tile of
** it; what would be a variable is an array over the tile. A kernel without reductions is the second form without passes; where it loads
** what runs along another loop (turn.h), an outer iteration is a tile of both.
*/
#include "codegen/c_kernel.h"
#include "ir/index.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TILE_REDUCE 128                     /* lanes of a tile that accumulates over other loops */
#define TILE_POINT (MP_CODEGEN_RUN * 2 / 3) /* elements of a block without reductions, or half as many more */
#define MOST_GAP 4                          /* elements from one that is loaded to the next */
#define MOST_SPLIT 2048                     /* steps of a loop whose last vector is worth code of its own */
#define GRAIN_WORK 32768                    /* additions worth a thread */

const char *mp_c_type(const mp_c_kernel *k, mp_kid kid)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    if (e->op == MP_K_REDUCE && e->dtype == MP_BOOL) return "int";
    return k->p.target->type[e->dtype];
}

bool mp_c_of_row(const mp_c_kernel *k, mp_kid kid) { return (k->p.deps[kid] & k->kir->reduced) == 0; }
uint32_t mp_c_vector_bit(const mp_c_kernel *k) { return k->kir->vector < 0 ? 0 : 1u << k->kir->vector; }

void mp_c_open_loop(mp_c_kernel *k, uint32_t loop)
{
    mp_print_line(&k->p, "for (int64_t i%u = 0; i%u < %lld; i%u++) {", loop, loop, (long long)k->kir->extent[loop],
                  loop);
    k->p.indent++;
}

void mp_c_close(mp_c_kernel *k)
{
    k->p.indent--;
    mp_print_line(&k->p, "}");
}

/* The vector loop of a tile. */
void mp_c_open_lanes(mp_c_kernel *k, const char *begin, const char *end)
{
    int v = k->kir->vector;
    if (!k->one_by_one)
        mp_print_line(&k->p, "#pragma omp simd%s%s", k->kir->checks ? " reduction(|:bad)" : "",
                      k->p.near ? " reduction(|:far)" : "");
    mp_print_line(&k->p, "for (int64_t i%d = %s; i%d < %s; i%d++) {", v, begin, v, end, v);
    k->p.indent++;
}

/* -- What a pass does ---------------------------------------------------------------------------------------------- */

bool mp_c_reduced_in(const mp_c_kernel *k, mp_kid kid, int pass)
{
    const mp_kexpr *e = &k->kir->exprs[kid];
    return k->p.live[kid] && e->op == MP_K_REDUCE && e->level == pass + 1;
}

bool mp_c_stored_in(const mp_c_kernel *k, const mp_kstore *store, int pass)
{ return !mp_c_of_row(k, store->what) && k->kir->exprs[store->what].level == pass; }

/* A value of the kept loops only that is stored at all points of the reduced ones cannot be: stores at row level go last. */
bool mp_c_stored_at_row(const mp_c_kernel *k, const mp_kstore *store)
{ return mp_c_of_row(k, store->what) && (mp_affine_deps(&store->at) & k->kir->reduced) == 0; }

static bool stored_broadcast(const mp_c_kernel *k, const mp_kstore *store)
{ return mp_c_of_row(k, store->what) && !mp_c_stored_at_row(k, store); }

/* Mark what pass `pass` computes. Returns whether it does anything. */
bool mp_c_need_pass(mp_c_kernel *k, int pass)
{
    bool any = false;
    mp_print_need_none(&k->p);
    for (uint32_t i = 0; i < k->kir->n_exprs; i++)
        if (mp_c_reduced_in(k, i, pass)) {
            mp_print_need(&k->p, k->kir->exprs[i].arg[0]);
            any = true;
        }
    for (uint32_t i = 0; i < k->kir->n_stores; i++) {
        const mp_kstore *store = &k->kir->stores[i];
        bool here = mp_c_stored_in(k, store, pass) || (stored_broadcast(k, store) && pass == k->kir->n_passes);
        if (!here) continue;
        mp_print_need(&k->p, store->what);
        any = true;
    }
    return any;
}

bool *mp_c_pass_stores(const mp_c_kernel *k, int pass)
{
    bool *stored = MP_NEW(k->p.out->pool, bool, k->kir->n_stores + 1);
    for (uint32_t i = 0; i < k->kir->n_stores; i++) {
        const mp_kstore *store = &k->kir->stores[i];
        stored[i] = mp_c_stored_in(k, store, pass) || (stored_broadcast(k, store) && pass == k->kir->n_passes);
    }
    return stored;
}

void mp_c_print_pass_stores(mp_c_kernel *k, int pass)
{
    const bool *stored = mp_c_pass_stores(k, pass);
    for (uint32_t i = 0; i < k->kir->n_stores; i++)
        if (stored[i]) mp_print_store(&k->p, &k->kir->stores[i]);
}

static int by_base(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Are there loads of every second or third element, and not of all those between? A compiler that reads whole vectors of such must not read
** behind the last element, and does the last vector's lanes one by one. */
static bool has_gaps(const mp_c_kernel *k)
{
    const mp_kir *kir = k->kir;
    int v = kir->vector;
    int64_t *bases = MP_NEW(k->p.out->pool, int64_t, kir->n_exprs + 1);
    for (uint32_t i = 0; v >= 0 && i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        if (!k->p.live[i] || e->op != MP_K_LOAD || e->at.coef[v] < 2 || e->at.coef[v] > MOST_GAP) continue;
        size_t n = 0;
        for (uint32_t j = 0; j < kir->n_exprs; j++) {
            const mp_kexpr *other = &kir->exprs[j];
            if (!k->p.live[j] || other->op != MP_K_LOAD || other->aux != e->aux || other->arg[1] != e->arg[1]) continue;
            if (!memcmp(other->at.coef, e->at.coef, sizeof e->at.coef)) bases[n++] = other->at.base;
        }
        qsort(bases, n, sizeof *bases, by_base);
        for (size_t at = 0, next; at < n; at = next) {
            for (next = at + 1; next < n && bases[next] < bases[at] + e->at.coef[v];) next++;
            if ((int64_t)(next - at) < e->at.coef[v]) return true;
        }
    }
    return false;
}

mp_c_parts mp_c_split(const mp_c_kernel *k, int64_t extent)
{
    int64_t lanes = k->lanes;
    if (k->one_by_one) lanes = 1;
    if (k->gaps && !k->one_by_one && extent > 4 &&
        extent <= MOST_SPLIT) { /* one lane behind whole vectors is done by itself */
        while (lanes >= extent) lanes /= 2;
        int64_t whole = (extent - 1) / lanes * lanes + 1;
        return (mp_c_parts){.whole = whole, .again = extent - lanes - 1, .n = whole == extent ? 1 : 2};
    }
    while (lanes > extent) lanes /= 2;
    mp_c_parts parts = {.whole = extent, .n = 1};
    if (extent < 4 || extent % lanes == 0 || extent > MOST_SPLIT) return parts;
    return (mp_c_parts){.whole = extent - extent % lanes, .again = extent - lanes, .n = 2};
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
static void choose_inner(mp_c_kernel *k)
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
    mp_c_kernel k = {.kir = kir};
    mp_print_init(&k.p, kir, &mp_target_c, out);
    int64_t element = 8;
#if defined(__x86_64__) || defined(__i386__)
    k.converts = vector_bits >= 256;
#endif
    for (uint32_t i = 0; i < kir->n_buffers; i++) {
        mp_dtype dtype = kir->buffers[i].dtype;
        int64_t bytes = mp_dtype_bytes(k.converts && dtype == MP_F16 ? MP_F32 : dtype);
        if (bytes < element) element = bytes;
    }
    k.lanes = vector_bits / 8 / element;
    k.row_kept = MP_NEW(out->pool, bool, kir->n_exprs + 1);
    bool lanes = kir->vector >= 0 && !(kir->reduced >> kir->vector & 1);
    int64_t outer = 1, inner = 1;
    k.n_tiles = 1;
    k.turn = mp_turn_choose(kir, out->pool);
    k.array = MP_NEW(out->pool, const char *, kir->n_exprs + 1);
    if (k.turn.array) memcpy(k.array, k.turn.array, kir->n_exprs * sizeof *k.array);
    k.p.array = k.array;
    k.gaps = has_gaps(&k);
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
        mp_c_print_row_values(&k, 0);
        for (uint32_t i = 0; i < kir->n_stores; i++) mp_print_store(&k.p, &kir->stores[i]);
        mp_c_close(&k);
    } else if (lanes) {
        mp_c_print_tiles(&k);
    } else {
        mp_c_print_rows(&k);
    }
    if (kir->checks) /* several threads may say so */
        mp_print_line(&k.p, "if (bad) __atomic_store_n((int *)buffers[%u], 1, __ATOMIC_RELAXED);", kir->n_buffers);
    mp_text_add(out, "}\n");
}
