/* Making expressions of a kernel: equal ones are one, and what is known is computed at once. */
#include "fuse/builder.h"

#include <math.h>
#include <string.h>

#define MAX_EXPRS 1500

/* The number of an expression equal to *e. */
mp_kid mp_expr_intern(mp_builder *b, const mp_kexpr *e)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i + 8 <= sizeof *e; i += 8) {
        uint64_t word;
        memcpy(&word, (const char *)e + i, 8);
        h = (h ^ word) * 1099511628211u;
        h ^= h >> 29;
    }
    uint32_t at = (uint32_t)(h >> 7) % MP_BUILD_HASH;
    for (; b->hash[at]; at = (at + 1) % MP_BUILD_HASH)
        if (memcmp(&b->kir->exprs[b->hash[at] - 1], e, sizeof *e) == 0) return b->hash[at] - 1u;
    if (b->kir->n_exprs >= MAX_EXPRS) return mp_build_fail(b);
    MP_GROW(b->pool, b->kir->exprs, b->kir->n_exprs, b->cap_exprs);
    b->kir->exprs[b->kir->n_exprs] = *e;
    b->hash[at] = (uint16_t)(b->kir->n_exprs + 1);
    return b->kir->n_exprs++;
}

mp_kexpr mp_expr_blank(mp_kop op, mp_dtype dtype)
{
    mp_kexpr e;
    memset(&e, 0, sizeof e);
    e.op = op;
    e.dtype = dtype;
    e.arg[0] = e.arg[1] = e.arg[2] = MP_NO_KID;
    return e;
}

mp_kid mp_expr_const(mp_builder *b, mp_dtype dtype, double f, int64_t i)
{
    mp_kexpr e = mp_expr_blank(MP_K_CONST, dtype);
    switch (dtype) {
    case MP_F32: e.f = (double)(float)f; break;
    case MP_F64: e.f = f; break;
    case MP_BOOL: e.i = i != 0; break;
    case MP_U8: e.i = (uint8_t)i; break;
    case MP_I8: e.i = (int8_t)i; break;
    case MP_I16: e.i = (int16_t)i; break;
    case MP_I32: e.i = (int32_t)i; break;
    default: e.i = i;
    }
    return mp_expr_intern(b, &e);
}

mp_kid mp_expr_number(mp_builder *b, mp_dtype dtype, const mp_arg *arg)
{
    if (dtype == MP_BOOL) return mp_expr_const(b, dtype, 0, arg->kind == MP_ARG_FLOAT ? arg->f != 0 : arg->i != 0);
    return mp_expr_const(b, dtype, mp_arg_double(arg), mp_arg_int(arg));
}

static bool is_const(const mp_builder *b, mp_kid kid, double number)
{
    const mp_kexpr *e = &b->kir->exprs[kid];
    if (e->op != MP_K_CONST) return false;
    return mp_dtype_float(e->dtype) ? e->f == number : (double)e->i == number;
}

mp_kid mp_expr_op(mp_builder *b, mp_kop op, mp_dtype dtype, const mp_kid *args)
{
    if (b->failed) return 0;
    if (op == MP_K_MUL && dtype != MP_BOOL) { /* exact for all values; alpha=1 is everywhere */
        if (is_const(b, args[1], 1)) return args[0];
        if (is_const(b, args[0], 1)) return args[1];
    }
    mp_kexpr e = mp_expr_blank(op, mp_kops[op].to_bool ? MP_BOOL : dtype);
    uint32_t cost = mp_kops[op].weight;
    for (int i = 0; i < mp_kops[op].arity; i++) {
        const mp_kexpr *arg = &b->kir->exprs[args[i]];
        e.arg[i] = args[i];
        e.deps |= arg->deps;
        if (arg->level > e.level) e.level = arg->level;
        cost += arg->cost;
    }
    e.cost = cost > 60000 ? 60000 : (uint16_t)cost;
    return mp_expr_intern(b, &e);
}

mp_kid mp_expr_op1(mp_builder *b, mp_kop op, mp_kid x)
{ return mp_expr_op(b, op, b->kir->exprs[x].dtype, (mp_kid[]){x}); }
mp_kid mp_expr_op2(mp_builder *b, mp_kop op, mp_kid x, mp_kid y)
{ return mp_expr_op(b, op, b->kir->exprs[x].dtype, (mp_kid[]){x, y}); }

mp_kid mp_expr_cast(mp_builder *b, mp_kid x, mp_dtype dtype)
{
    if (b->failed) return 0;
    const mp_kexpr *e = &b->kir->exprs[x];
    if (e->dtype == dtype) return x;
    if (e->op == MP_K_CONST) {
        if (mp_dtype_float(e->dtype)) {
            if (dtype == MP_BOOL) return mp_expr_const(b, dtype, 0, e->f != 0);
            if (mp_dtype_float(dtype) || fabs(e->f) < 1e9)
                return mp_expr_const(b, dtype, e->f, (int64_t)(fabs(e->f) < 1e9 ? e->f : 0));
        } else {
            return mp_expr_const(b, dtype, (double)e->i, e->i);
        }
    }
    mp_kexpr cast = mp_expr_blank(MP_K_CAST, dtype);
    cast.arg[0] = x;
    cast.deps = e->deps;
    cast.level = e->level;
    cast.cost = (uint16_t)(e->cost + (e->cost < 60000));
    return mp_expr_intern(b, &cast);
}

mp_kid mp_expr_index(mp_builder *b, const mp_affine *at, mp_dtype dtype)
{
    if (!mp_affine_deps(at)) return mp_expr_const(b, dtype, 0, at->base);
    mp_kexpr e = mp_expr_blank(MP_K_INDEX, dtype);
    e.at = *at;
    e.deps = mp_affine_deps(at);
    e.cost = 1;
    return mp_expr_intern(b, &e);
}

uint32_t mp_expr_buffer(mp_builder *b, mp_val value)
{
    mp_kir *kir = b->kir;
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        if (kir->buffers[i].value == value) return i;
    if (kir->n_buffers >= MP_MAX_BUFFERS) return mp_build_fail(b);
    MP_GROW(b->pool, kir->buffers, kir->n_buffers, b->cap_buffers);
    const mp_meta *meta = &b->graph->metas[value];
    int64_t bytes = mp_meta_numel(meta) * mp_dtype_bytes(meta->dtype);
    kir->buffers[kir->n_buffers] = (mp_kbuffer){.value = value, .dtype = (mp_dtype)meta->dtype, .bytes = bytes};
    return kir->n_buffers++;
}

mp_kid mp_expr_load(mp_builder *b, mp_val value, const mp_affine *at, mp_kid offset)
{
    uint32_t buffer = mp_expr_buffer(b, value);
    if (b->failed) return 0;
    mp_kexpr e = mp_expr_blank(MP_K_LOAD, mp_dtype_register(b->graph->metas[value].dtype));
    e.aux = buffer;
    e.at = *at;
    e.arg[0] = b->pred;
    e.deps = mp_affine_deps(at);
    if (b->pred != MP_NO_KID) {
        e.deps |= b->kir->exprs[b->pred].deps;
        e.level = b->kir->exprs[b->pred].level;
    }
    e.cost = 1;
    if (offset != MP_NO_KID) {
        const mp_kexpr *more = &b->kir->exprs[offset];
        e.arg[1] = offset;
        e.deps |= more->deps;
        if (more->level > e.level) e.level = more->level;
        e.cost = (uint16_t)(more->cost + (more->cost < 60000));
    }
    return mp_expr_intern(b, &e);
}

mp_kid mp_expr_check(mp_builder *b, mp_kid x, int64_t size, bool wrap)
{
    if (b->failed) return 0;
    mp_kexpr e = mp_expr_blank(MP_K_CHECK, b->kir->exprs[x].dtype);
    e.arg[0] = x;
    e.arg[1] = b->pred;
    e.i = size;
    e.aux = wrap;
    uint32_t cost = 2;
    for (int k = 0; k < 2; k++) {
        if (e.arg[k] == MP_NO_KID) continue;
        const mp_kexpr *arg = &b->kir->exprs[e.arg[k]];
        e.deps |= arg->deps;
        if (arg->level > e.level) e.level = arg->level;
        cost += arg->cost;
    }
    e.cost = cost > 60000 ? 60000 : (uint16_t)cost;
    b->kir->checks = true;
    return mp_expr_intern(b, &e);
}

/* Sum and the like of x over the reduced loops. */
mp_kid mp_expr_reduce(mp_builder *b, mp_reduction kind, mp_kid x)
{
    if (b->failed) return 0;
    mp_kexpr e = mp_expr_blank(MP_K_REDUCE, b->kir->exprs[x].dtype);
    if (e.dtype == MP_BOOL && kind == MP_RED_MAX) kind = MP_RED_ANY;
    if (e.dtype == MP_BOOL && kind == MP_RED_MIN) kind = MP_RED_ALL;
    e.arg[0] = x;
    e.aux = kind;
    e.deps = b->kir->exprs[x].deps & ~b->loops.reduced;
    e.level = b->kir->exprs[x].level + 1;
    if (e.level > b->kir->n_passes) b->kir->n_passes = e.level;
    return mp_expr_intern(b, &e);
}

/* x to the power of a known number, as ATen special-cases it. Returns MP_NO_KID if it is no special case. */
mp_kid mp_expr_power(mp_builder *b, mp_kid x, mp_kid y)
{
    const mp_kexpr *e = &b->kir->exprs[y];
    mp_dtype dtype = b->kir->exprs[x].dtype;
    if (e->op != MP_K_CONST) return MP_NO_KID;
    double power = mp_dtype_float(dtype) ? e->f : (double)e->i;
    mp_kid one = mp_expr_const(b, dtype, 1, 1);
    if (power == 0) return one;
    if (mp_dtype_float(dtype)) {
        if (power == 0.5) return mp_expr_op1(b, MP_K_SQRT, x);
        if (power == -0.5) return mp_expr_op2(b, MP_K_DIV, one, mp_expr_op1(b, MP_K_SQRT, x));
        if (power == -1) return mp_expr_op2(b, MP_K_DIV, one, x);
        if (power == -2) return mp_expr_op2(b, MP_K_DIV, one, mp_expr_op2(b, MP_K_MUL, x, x));
        if (power != 1 && power != 2 && power != 3 && power != 4) return MP_NO_KID;
    }
    if (power < 0 || power > 8) return MP_NO_KID;
    mp_kid result = MP_NO_KID;
    for (int left = (int)power; left; left >>= 1, x = left ? mp_expr_op2(b, MP_K_MUL, x, x) : x)
        if (left & 1) result = result == MP_NO_KID ? x : mp_expr_op2(b, MP_K_MUL, result, x);
    return result;
}
