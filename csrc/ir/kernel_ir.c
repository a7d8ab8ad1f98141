/* Kernel IR: tables and dump. */
#include "ir/kernel_ir.h"

const mp_kop_info mp_kops[MP_K_COUNT] = {
    [MP_K_CONST] = {"const", 0, false, 0},     [MP_K_LOAD] = {"load", 0, false, 1},
    [MP_K_INDEX] = {"index", 0, false, 1},     [MP_K_CAST] = {"cast", 1, false, 1},
    [MP_K_ROUND16] = {"round16", 1, false, 3}, [MP_K_TILE] = {"tile", 0, false, 1},
    [MP_K_CHECK] = {"check", 1, false, 2},     [MP_K_REDUCE] = {"reduce", 1, false, 0},
#define RESULT_SAME false
#define RESULT_BOOL true
#define MP_KOP(code, name, arity, result, weight) [MP_K_##code] = {name, arity, RESULT_##result, weight},
#include "ir/kernel_ops.h"
#undef MP_KOP
};

static const char *const reductions[] = {"sum", "prod", "max", "min", "any", "all"};

int64_t mp_dtype_bytes(int dtype)
{
    static const int8_t bytes[] = {[MP_U8] = 1,  [MP_I8] = 1,    [MP_I16] = 2,  [MP_I32] = 4,
                                   [MP_I64] = 8, [MP_F16] = 2,   [MP_F32] = 4,  [MP_F64] = 8,
                                   [MP_C64] = 8, [MP_C128] = 16, [MP_BOOL] = 1, [MP_BF16] = 2};
    if (dtype < 0 || dtype >= (int)sizeof bytes || !bytes[dtype]) return 16; /* unknown: enough */
    return bytes[dtype];
}

static const char *dtype_name(int dtype)
{
    static const char *const names[] = {[MP_U8] = "u8",   [MP_I8] = "i8",     [MP_I16] = "i16",   [MP_I32] = "i32",
                                        [MP_I64] = "i64", [MP_F16] = "f16",   [MP_F32] = "f32",   [MP_F64] = "f64",
                                        [MP_C64] = "c64", [MP_C128] = "c128", [MP_BOOL] = "bool", [MP_BF16] = "bf16"};
    return dtype >= 0 && dtype < (int)(sizeof names / sizeof *names) && names[dtype] ? names[dtype] : "?";
}

static void dump_affine(const mp_kir *kir, const mp_affine *at, mp_text *text)
{
    bool any = false;
    for (uint32_t i = 0; i < kir->n_loops; i++) {
        if (!at->coef[i]) continue;
        mp_text_add(text, at->coef[i] == 1 ? "%si%u" : "%si%u*%lld", any ? " + " : "", i, (long long)at->coef[i]);
        any = true;
    }
    if (at->base || !any) mp_text_add(text, "%s%lld", any ? " + " : "", (long long)at->base);
}

void mp_kir_dump(const mp_kir *kir, mp_text *text)
{
    mp_text_add(text, "kernel %s\n", kir->name);
    if (kir->conv) mp_conv_dump(kir->conv, text);
    for (uint32_t i = 0; i < kir->n_loops; i++)
        mp_text_add(text, "  loop i%u < %lld%s%s\n", i, (long long)kir->extent[i],
                    kir->reduced >> i & 1 ? " reduced" : "", (int)i == kir->vector ? " vector" : "");
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        mp_text_add(text, "  buffer b%u = value %u %s%s\n", i, kir->buffers[i].value, dtype_name(kir->buffers[i].dtype),
                    kir->buffers[i].written ? " written" : "");
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        mp_text_add(text, "  t%u:%s = %s", i, dtype_name(e->dtype), mp_kops[e->op].name);
        if (e->op == MP_K_CONST && mp_dtype_float(e->dtype)) mp_text_add(text, " %.17g", e->f);
        if (e->op == MP_K_CONST && !mp_dtype_float(e->dtype)) mp_text_add(text, " %lld", (long long)e->i);
        if (e->op == MP_K_REDUCE) mp_text_add(text, " %s", reductions[e->aux]);
        if (e->op == MP_K_ROUND16) mp_text_add(text, " %s", dtype_name((int)e->aux));
        if (e->op == MP_K_LOAD) {
            mp_text_add(text, " b%u[", e->aux);
            dump_affine(kir, &e->at, text);
            mp_text_add(text, "]");
            if (e->arg[1] != MP_NO_KID) mp_text_add(text, " + t%u", e->arg[1]);
            if (e->arg[0] != MP_NO_KID) mp_text_add(text, " if t%u", e->arg[0]);
        } else {
            for (int k = 0; k < mp_kops[e->op].arity; k++) mp_text_add(text, " t%u", e->arg[k]);
        }
        if (e->op == MP_K_CHECK) mp_text_add(text, " %s %lld", e->aux ? "wrapped <" : "<", (long long)e->i);
        if (e->op == MP_K_INDEX) mp_text_add(text, " "), dump_affine(kir, &e->at, text);
        mp_text_add(text, e->level ? "  (after pass %u)\n" : "\n", e->level - 1);
    }
    for (uint32_t i = 0; i < kir->n_stores; i++) {
        mp_text_add(text, "  b%u[", kir->stores[i].buffer);
        dump_affine(kir, &kir->stores[i].at, text);
        mp_text_add(text, "] = t%u\n", kir->stores[i].what);
    }
}
