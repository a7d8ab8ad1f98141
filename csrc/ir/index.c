/* Index arithmetic on affine functions of loops. */
#include "ir/index.h"

#include <string.h>

mp_affine mp_affine_const(int64_t value) { return (mp_affine){.base = value}; }

mp_affine mp_affine_loop(uint32_t loop, int64_t coef)
{
    mp_affine at = {0};
    at.coef[loop] = coef;
    return at;
}

void mp_affine_add(mp_affine *into, const mp_affine *what, int64_t times)
{
    into->base += what->base * times;
    for (int i = 0; i < MP_MAX_LOOPS; i++) into->coef[i] += what->coef[i] * times;
}

uint32_t mp_affine_deps(const mp_affine *at)
{
    uint32_t deps = 0;
    for (uint32_t i = 0; i < MP_MAX_LOOPS; i++)
        if (at->coef[i]) deps |= 1u << i;
    return deps;
}

mp_affine mp_loops_linear(const mp_loops *loops, uint32_t which)
{
    mp_affine at = {0};
    int64_t step = 1;
    for (uint32_t i = loops->n; i-- > 0;) {
        if (!(which >> i & 1)) continue;
        if (loops->extent[i] > 1) at.coef[i] = step;
        step *= loops->extent[i];
    }
    return at;
}

bool mp_loops_split(mp_loops *loops)
{
    int at = loops->split;
    loops->split = -1;
    if (at < 0 || loops->n == MP_MAX_LOOPS) return false;
    for (uint32_t i = loops->n; i > (uint32_t)at + 1; i--) loops->extent[i] = loops->extent[i - 1];
    uint32_t low = loops->reduced & ((2u << at) - 1), high = loops->reduced >> (at + 1);
    loops->reduced = low | high << (at + 2) | (loops->reduced >> at & 1) << (at + 1);
    loops->extent[at] /= loops->factor;
    loops->extent[at + 1] = loops->factor;
    loops->n++;
    return true;
}

mp_affine mp_index_position(const mp_index *index, const int64_t *stride)
{
    mp_affine at = {0};
    for (int d = 0; d < index->ndim; d++) mp_affine_add(&at, &index->dim[d], stride[d]);
    return at;
}

/* Dims with more than one element, the largest stride first. */
static int sorted_dims(int ndim, const int64_t *size, const int64_t *stride, int *order)
{
    int n = 0;
    for (int d = 0; d < ndim; d++) {
        if (size[d] <= 1) continue;
        int at = n++;
        while (at > 0 && stride[order[at - 1]] < stride[d]) order[at] = order[at - 1], at--;
        order[at] = d;
    }
    return n;
}

/* Give the term coef * loop to a dim, or to several (a diagonal moves along two). */
static bool place_term(mp_loops *loops, uint32_t loop, int64_t coef, int n, const int *order, const int64_t *size,
                       const int64_t *stride, mp_index *out)
{
    int k = 0;
    while (k < n && stride[order[k]] > coef) k++;
    if (k == n) return false;
    int d = order[k];
    int64_t step = stride[d];
    if (step <= 0) return false;
    int64_t times = coef / step;
    if (coef % step) {
        if (times * (loops->extent[loop] - 1) >= size[d]) return false;
        out->dim[d].coef[loop] += times;
        return place_term(loops, loop, coef % step, n - k - 1, order + k + 1, size, stride, out);
    }
    if (times * (loops->extent[loop] - 1) < size[d]) {
        out->dim[d].coef[loop] += times;
        return true;
    }
    bool next = k > 0 && stride[order[k - 1]] == step * size[d]; /* the rest goes on in the next larger dim */
    if (next && times < size[d] && size[d] % times == 0 && loops->extent[loop] % (size[d] / times) == 0) {
        loops->split = (int)loop;
        loops->factor = size[d] / times;
    }
    return false;
}

bool mp_index_from_position(mp_loops *loops, const mp_affine *at, int ndim, const int64_t *size, const int64_t *stride,
                            mp_index *out)
{
    int order[MP_MAX_DIMS], n = sorted_dims(ndim, size, stride, order);
    memset(out, 0, sizeof *out);
    out->ndim = ndim;
    int64_t base = at->base;
    if (base < 0) return false;
    for (int k = 0; k < n; k++) {
        int d = order[k];
        if (stride[d] <= 0) return false;
        out->dim[d].base = base / stride[d];
        base -= out->dim[d].base * stride[d];
    }
    if (base != 0) return false;
    for (uint32_t i = 0; i < loops->n; i++) {
        if (at->coef[i] == 0 || loops->extent[i] <= 1) continue;
        if (at->coef[i] < 0 || !place_term(loops, i, at->coef[i], n, order, size, stride, out)) return false;
    }
    for (int d = 0; d < ndim; d++) {
        int64_t last = out->dim[d].base;
        for (uint32_t i = 0; i < loops->n; i++) last += out->dim[d].coef[i] * (loops->extent[i] - 1);
        if (last >= size[d] && size[d] > 0) return false;
    }
    return true;
}

bool mp_index_bijective(const mp_loops *loops, const mp_index *index, const int64_t *size, uint32_t which)
{
    uint32_t seen = 0;
    for (int d = 0; d < index->ndim; d++) {
        const mp_affine *at = &index->dim[d];
        if (at->base != 0) return false;
        uint32_t left = mp_affine_deps(at);
        if (left & seen) return false;
        seen |= left;
        int64_t step = 1;
        while (left) { /* mixed radix: coefficients 1, n0, n0*n1, ... */
            uint32_t i = 0;
            while (i < loops->n && !((left >> i & 1) && at->coef[i] == step)) i++;
            if (i == loops->n) return false;
            step *= loops->extent[i];
            left &= ~(1u << i);
        }
        if (step != size[d]) return false;
    }
    for (uint32_t i = 0; i < loops->n; i++)
        if (loops->extent[i] > 1 && (which >> i & 1) != (seen >> i & 1)) return false;
    return true;
}

void mp_contiguous_strides(int ndim, const int64_t *size, int64_t *stride)
{
    int64_t step = 1;
    for (int d = ndim; d-- > 0;) {
        stride[d] = step;
        step *= size[d] > 0 ? size[d] : 1;
    }
}
