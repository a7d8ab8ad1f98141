/* Loop order of a kernel: memory order for stores, joined where all accesses allow, one loop for vector lanes. */
#include "fuse/region.h"

#include <string.h>

typedef struct {
    uint64_t weight;
    int score;
} loop_info;

static uint64_t magnitude(int64_t x) { return (uint64_t)(x < 0 ? -x : x); }

/* How a loop looks from memory. In reductions what moves with the reduced loops is what matters, stores count double; without them
** stores decide, since loads can be turned (codegen/turn.h). */
static void look(const mp_kir *kir, loop_info *info)
{
    memset(info, 0, sizeof *info * MP_MAX_LOOPS);
    for (uint32_t i = 0; i < kir->n_exprs + kir->n_stores; i++) {
        bool store = i >= kir->n_exprs;
        if (!store && kir->exprs[i].op != MP_K_LOAD) continue;
        const mp_affine *at = store ? &kir->stores[i - kir->n_exprs].at : &kir->exprs[i].at;
        bool counts = !kir->reduced;
        for (uint32_t k = 0; k < kir->n_loops; k++) counts |= at->coef[k] && (kir->reduced >> k & 1);
        for (uint32_t k = 0; k < kir->n_loops; k++) {
            int64_t coef = at->coef[k];
            info[k].weight += magnitude(coef) * (store ? 1024 : 1);
            if (counts) info[k].score += (coef == 1 ? 2 : coef ? -1 : 0) * (!store ? 1 : kir->reduced ? 2 : 64);
        }
    }
}

static void permute_affine(mp_affine *at, const uint32_t *order, uint32_t n)
{
    mp_affine was = *at;
    memset(at->coef, 0, sizeof at->coef);
    for (uint32_t i = 0; i < n; i++) at->coef[i] = was.coef[order[i]];
}

static uint32_t permute_bits(uint32_t bits, const uint32_t *order, uint32_t n)
{
    uint32_t out = 0;
    for (uint32_t i = 0; i < n; i++) out |= (bits >> order[i] & 1) << i;
    return out;
}

/* Loop i of the result is loop order[i] of before. Loops that are left out must be unused. */
static void permute(mp_kir *kir, const uint32_t *order, uint32_t n)
{
    int64_t extent[MP_MAX_LOOPS];
    memcpy(extent, kir->extent, sizeof extent);
    for (uint32_t i = 0; i < n; i++) kir->extent[i] = extent[order[i]];
    kir->reduced = permute_bits(kir->reduced, order, n);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        mp_kexpr *e = &kir->exprs[i];
        if (e->op == MP_K_LOAD || e->op == MP_K_INDEX) permute_affine(&e->at, order, n);
        e->deps = permute_bits(e->deps, order, n);
    }
    for (uint32_t i = 0; i < kir->n_stores; i++) permute_affine(&kir->stores[i].at, order, n);
    kir->n_loops = n;
}

/* Do n steps of loop `inner` go as far as one of loop `outer`, wherever something is read or written? */
static bool continues(const mp_kir *kir, uint32_t outer, uint32_t inner, int64_t n)
{
    if ((kir->reduced >> outer & 1) != (kir->reduced >> inner & 1)) return false;
    for (uint32_t i = 0; i < kir->n_exprs + kir->n_stores; i++) {
        bool store = i >= kir->n_exprs;
        if (!store && kir->exprs[i].op != MP_K_LOAD && kir->exprs[i].op != MP_K_INDEX) continue;
        const mp_affine *at = store ? &kir->stores[i - kir->n_exprs].at : &kir->exprs[i].at;
        if (at->coef[outer] != at->coef[inner] * n) return false;
    }
    return true;
}

/* Can loop k and its inner neighbour run as one? */
static bool joinable(const mp_kir *kir, uint32_t k) { return continues(kir, k, k + 1, kir->extent[k + 1]); }

/* Steps of loop k together with the loops that can be joined to it from outside. */
static int64_t joined_extent(const mp_kir *kir, uint32_t k)
{
    int64_t n = kir->extent[k];
    uint32_t joined = 1u << k;
    for (uint32_t i = 0; i < kir->n_loops; i++) {
        if (joined >> i & 1 || !continues(kir, i, k, n)) continue;
        joined |= 1u << i;
        n *= kir->extent[i];
        i = (uint32_t)-1; /* a loop that was passed over may continue the longer run */
    }
    return n;
}

static void join(mp_kir *kir, uint32_t k)
{
    int64_t extent = kir->extent[k] * kir->extent[k + 1];
    uint32_t order[MP_MAX_LOOPS], n = 0;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (i != k) order[n++] = i;
    for (uint32_t i = 0; i < kir->n_exprs; i++) /* whatever depended on the outer one depends on the joined loop */
        if (kir->exprs[i].deps >> k & 1) kir->exprs[i].deps |= 1u << (k + 1);
    permute(kir, order, n);
    kir->extent[k] = extent;
}

void mp_fuse_order_loops(mp_kir *kir)
{
    uint32_t order[MP_MAX_LOOPS] = {0}, n = 0;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (kir->extent[i] > 1) order[n++] = i;
    permute(kir, order, n);
    loop_info info[MP_MAX_LOOPS];
    look(kir, info);
    int vector = -1;
    for (uint32_t i = 0; i < n; i++) {
        int score = 4 * info[i].score + (kir->reduced >> i & 1 ? 1 : 0) - (joined_extent(kir, i) < 8 ? 1000 : 0);
        info[i].score = score;
        if (vector < 0 || score >= info[vector].score) vector = (int)i;
    }
    n = 0;
    for (uint32_t i = 0; i < kir->n_loops; i++) { /* insertion: kept before reduced, large strides first, vector last */
        uint32_t at = n++;
        for (; at > 0; at--) {
            uint32_t before = order[at - 1];
            bool kind_i = kir->reduced >> i & 1, kind_b = kir->reduced >> before & 1;
            if (kind_i != kind_b ? kind_i
                                 : (int)before != vector && ((int)i == vector || info[before].weight >= info[i].weight))
                break;
            order[at] = before;
        }
        order[at] = i;
    }
    bool vector_reduced = vector >= 0 && (kir->reduced >> vector & 1);
    permute(kir, order, n);
    for (uint32_t k = kir->n_loops; k-- > 1;)
        if (joinable(kir, k - 1)) join(kir, k - 1);
    kir->vector = -1;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if ((kir->reduced >> i & 1) == vector_reduced) kir->vector = (int)i;
}

/* Let the dims of space run as one loop. */
static bool join_space(const mp_kir *kir, mp_affine *at)
{
    int64_t rows = kir->conv->oh, columns = kir->conv->ow;
    bool two = kir->n_loops == 4;
    int64_t row = two ? at->coef[2] : 0, column = at->coef[two ? 3 : 2];
    if (rows > 1 && columns > 1 && row != column * columns) return false;
    at->coef[2] = columns > 1 ? column : row;
    at->coef[3] = 0;
    return true;
}

bool mp_fuse_conv_loops(mp_kir *kir)
{
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        mp_kexpr *e = &kir->exprs[i];
        if ((e->op == MP_K_LOAD || e->op == MP_K_INDEX) && !join_space(kir, &e->at)) return false;
        if (e->deps & 8) e->deps = (e->deps & 7) | 4;
    }
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (!join_space(kir, &kir->stores[i].at)) return false;
    kir->n_loops = 3;
    kir->extent[2] = kir->conv->oh * kir->conv->ow;
    kir->extent[3] = 0;
    kir->vector = 2;
    return true;
}
