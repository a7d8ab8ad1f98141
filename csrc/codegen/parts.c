/* Parts of a vector loop, between the places where conditions along it turn: pieces side by side (concatenation), borders. */
#include "codegen/c_kernel.h"
#include "ir/index.h"

#include <string.h>

#define CUT_COST 100 /* most additions of a loop that is printed for what lies between cuts */

/* Does expression `i` say on which side of a number the vector loop's variable is? It is `before` for lanes below *cut, and not for
** others. */
static bool is_side(const mp_c_kernel *k, uint32_t i, int64_t *cut, bool *before)
{
    const mp_kir *kir = k->kir;
    const mp_kexpr *e = &kir->exprs[i];
    if (e->op != MP_K_LT && e->op != MP_K_GE) return false;
    const mp_kexpr *x = &kir->exprs[e->arg[0]], *bound = &kir->exprs[e->arg[1]];
    if (x->op != MP_K_INDEX || bound->op != MP_K_CONST || mp_affine_deps(&x->at) != mp_c_vector_bit(k)) return false;
    int64_t step = x->at.coef[kir->vector];
    if (step != 1 && step != -1) return false;
    *cut = step == 1 ? bound->i - x->at.base : x->at.base - bound->i + 1;
    *before = (e->op == MP_K_LT) == (step == 1);
    return true;
}

/* Where such conditions turn, in order. Returns how many there are. */
static int find_cuts(const mp_c_kernel *k, int64_t *cuts)
{
    const mp_kir *kir = k->kir;
    int n = 0, cost = 0;
    for (uint32_t i = 0; i < kir->n_stores; i++) cost += kir->exprs[kir->stores[i].what].cost;
    if (cost > CUT_COST) return 0; /* much text for little */
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        int64_t cut;
        bool before;
        if (!k->p.need[i] || !is_side(k, i, &cut, &before)) continue;
        int at = 0;
        while (at < n && cuts[at] < cut) at++;
        if (cut <= 0 || cut >= kir->extent[kir->vector] || (at < n && cuts[at] == cut)) continue;
        if (n == MP_C_MOST_CUTS) return 0;
        for (int m = n++; m > at; m--) cuts[m] = cuts[m - 1];
        cuts[at] = cut;
    }
    return n;
}

int mp_c_find_parts(const mp_c_kernel *k, int64_t (*part)[2])
{
    int64_t cuts[MP_C_MOST_CUTS + 1], begin = 0;
    int n_cuts = find_cuts(k, cuts), n = 0;
    cuts[n_cuts] = k->kir->extent[k->kir->vector];
    for (int c = 0; c <= n_cuts; begin = cuts[c++]) {
        mp_c_parts parts = mp_c_split(k, cuts[c] - begin);
        part[n][0] = begin, part[n++][1] = begin + parts.whole;
        if (parts.n == 2) part[n][0] = begin + parts.again, part[n++][1] = cuts[c];
    }
    return n;
}

/* What condition `i` is for all lanes from `begin` to `end`; conditions before it are known already. */
static int8_t condition(const mp_c_kernel *k, const int8_t *known, uint32_t i, int64_t begin, int64_t end)
{
    const mp_kexpr *e = &k->kir->exprs[i];
    int64_t cut;
    bool before;
    if (e->dtype != MP_BOOL) return -1;
    if (is_side(k, i, &cut, &before)) return end <= cut ? before : begin >= cut ? !before : -1;
    if (e->op != MP_K_AND && e->op != MP_K_OR && e->op != MP_K_NOT) return -1;
    int8_t a = known[e->arg[0]], b = e->op == MP_K_NOT ? -1 : known[e->arg[1]], decides = e->op == MP_K_OR;
    if (e->op == MP_K_NOT) return a < 0 ? -1 : !a;
    if (a == decides || b == decides) return decides;
    return a < 0 || b < 0 ? -1 : !decides;
}

void mp_c_know_part(mp_c_kernel *k, int64_t begin, int64_t end)
{
    mp_printer *p = &k->p;
    uint32_t n = k->kir->n_exprs;
    int8_t *known = MP_NEW(p->out->pool, int8_t, n + 1);
    uint32_t *deps = MP_NEW(p->out->pool, uint32_t, n + 1), bit = mp_c_vector_bit(k);
    for (uint32_t i = 0; i < n; i++) {
        const mp_kexpr *e = &k->kir->exprs[i];
        known[i] = p->at[i] == MP_AT_NOWHERE ? condition(k, known, i, begin, end) : -1;
        deps[i] = known[i] >= 0 ? 0 : p->deps[i];
        if (known[i] >= 0 || e->op == MP_K_REDUCE || p->at[i] != MP_AT_NOWHERE) continue;
        bool along = (e->op == MP_K_LOAD || e->op == MP_K_INDEX) && (mp_affine_deps(&e->at) & bit);
        for (int a = 0; a < 3; a++) along |= e->arg[a] != MP_NO_KID && (deps[e->arg[a]] & bit);
        if (!along) deps[i] &= ~bit;
    }
    p->known = known;
    p->deps = deps;
}
