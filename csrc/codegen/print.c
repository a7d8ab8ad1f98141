/* Printing expressions of the kernel IR by a target's table. */
#include "codegen/print.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void mp_print_init(mp_printer *p, const mp_kir *kir, const mp_target *target, mp_text *out)
{
    uint32_t n = kir->n_exprs + 1;
    *p = (mp_printer){.kir = kir, .target = target, .out = out, .lane = "0", .row = "0"};
    p->at = MP_NEW(out->pool, uint8_t, n);
    p->live = MP_NEW(out->pool, bool, n);
    p->deps = MP_NEW(out->pool, uint32_t, n);
    p->need = MP_NEW(out->pool, bool, n);
    for (uint32_t i = 0; i < kir->n_stores; i++) p->live[kir->stores[i].what] = true;
    for (uint32_t i = kir->n_exprs; i-- > 0;)
        for (int k = 0; k < 3; k++)
            if (p->live[i] && kir->exprs[i].arg[k] != MP_NO_KID) p->live[kir->exprs[i].arg[k]] = true;
    uint32_t lanes = kir->vector >= 0 && !(kir->reduced >> kir->vector & 1) ? 1u << kir->vector : 0;
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        const mp_kexpr *e = &kir->exprs[i];
        p->deps[i] = e->deps | (e->op == MP_K_REDUCE ? lanes : 0);
        for (int k = 0; k < 3; k++)
            if (e->arg[k] != MP_NO_KID && e->op != MP_K_REDUCE) p->deps[i] |= p->deps[e->arg[k]];
    }
}

void mp_print_line(mp_printer *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *line = mp_pool_get(p->out->pool, (size_t)n + 1);
    vsnprintf(line, (size_t)n + 1, format, again);
    va_end(again);
    mp_text_add(p->out, "%*s%s\n", 4 * p->indent, "", line);
}

const char *mp_print_affine(mp_printer *p, const mp_affine *at)
{
    mp_text text = {.pool = p->out->pool};
    const char *plus = "";
    for (uint32_t i = 0; i < p->kir->n_loops; i++) {
        if (!at->coef[i]) continue;
        mp_text_add(&text, at->coef[i] == 1 ? "%si%u" : "%si%u * %lld", plus, i, (long long)at->coef[i]);
        plus = " + ";
    }
    if (at->base || !*plus) mp_text_add(&text, "%s%lld", plus, (long long)at->base);
    return text.chars;
}

void mp_print_name(const mp_printer *p, mp_kid kid, char *out)
{
    switch ((mp_at)p->at[kid]) {
    case MP_AT_LANES: snprintf(out, 64, "r%u[%s]", kid, p->lane); break;
    case MP_AT_ROW: snprintf(out, 64, "b%u[%s]", kid, p->row); break;
    default: snprintf(out, 64, "t%u", kid);
    }
}

static const char *text_const(mp_printer *p, const mp_kexpr *e)
{
    const mp_target *t = p->target;
    mp_pool *pool = p->out->pool;
    if (mp_dtype_float(e->dtype)) {
        bool single = e->dtype == MP_F32;
        if (isnan(e->f)) return single ? t->nan32 : t->nan64;
        if (isinf(e->f)) return mp_pool_printf(pool, "(%s%s)", e->f < 0 ? "-" : "", single ? t->inf32 : t->inf64);
        return mp_pool_printf(pool, single ? "%af" : "%a", e->f);
    }
    if (e->i == INT64_MIN) return "(-9223372036854775807LL - 1)";
    return mp_pool_printf(pool, "((%s)%lldLL)", t->type[e->dtype], (long long)e->i);
}

/* The text of an operation with $-parts replaced. */
static const char *fill(mp_printer *p, const char *template, mp_dtype dtype, char (*args)[64])
{
    mp_text text = {.pool = p->out->pool};
    for (const char *c = template; *c; c++) {
        if (*c != '$') {
            mp_text_add(&text, "%c", *c);
            continue;
        }
        c++;
        if (*c == 't')
            mp_text_add(&text, "%s", p->target->type[dtype]);
        else if (*c == 'u')
            mp_text_add(&text, "%s", p->target->unsigned_type[dtype]);
        else
            mp_text_add(&text, "%s", args[*c - '0']);
    }
    return text.chars;
}

static const char *op_template(const mp_target *target, mp_kop op, mp_dtype dtype)
{
    const mp_op_text *text = &target->ops[op];
    const char *f64 = text->f64 ? text->f64 : text->f32, *integer = text->integer ? text->integer : text->f32;
    if (dtype == MP_F32) return text->f32;
    if (dtype == MP_F64) return f64;
    if (dtype == MP_BOOL) return text->boolean ? text->boolean : integer;
    return integer;
}

bool mp_print_has_near(const mp_printer *p, mp_kid kid)
{
    const mp_kexpr *e = &p->kir->exprs[kid];
    return e->dtype == MP_F32 && p->target->near[e->op].text != NULL;
}

static const char *text_cast(mp_printer *p, const mp_kexpr *e, char (*args)[64])
{
    mp_dtype from = p->kir->exprs[e->arg[0]].dtype;
    if (e->dtype == MP_BOOL) return mp_pool_printf(p->out->pool, "(%s != 0)", args[0]);
    if (from == MP_BOOL) /* compilers vectorise a choice, not every conversion of _Bool */
        return mp_pool_printf(p->out->pool, "%s ? (%s)1 : (%s)0", args[0], p->target->type[e->dtype],
                              p->target->type[e->dtype]);
    bool narrow = mp_dtype_float(from) && !mp_dtype_float(e->dtype) && mp_dtype_bytes(e->dtype) < 4;
    return mp_pool_printf(p->out->pool, narrow ? "(%s)(long long)%s" : "(%s)%s", p->target->type[e->dtype], args[0]);
}

static const char *text_load(mp_printer *p, const mp_kexpr *e, char (*args)[64])
{
    mp_pool *pool = p->out->pool;
    mp_dtype memory = p->kir->buffers[e->aux].dtype;
    char element[1][64];
    const char *at = mp_print_affine(p, &e->at);
    if (e->arg[1] != MP_NO_KID) at = mp_pool_printf(pool, "%s + %s", at, args[1]);
    const char *array = p->array ? p->array[e - p->kir->exprs] : NULL;
    const char *text = array ? array : mp_pool_printf(pool, "p%u[%s]", e->aux, at);
    bool wide = array && p->wide && p->wide[e - p->kir->exprs];
    if (p->target->load16[memory] && !wide) {
        snprintf(element[0], sizeof element[0], "%s", text);
        if (strlen(text) < sizeof element[0]) {
            text = fill(p, p->target->load16[memory], e->dtype, element);
        } else { /* the rare long one: by a variable of its own */
            const char *name = mp_pool_printf(pool, "x%u_%u", e->aux, (unsigned)p->out->n);
            mp_print_line(p, "const %s %s = %s;", p->target->memory[memory], name, text);
            snprintf(element[0], sizeof element[0], "%s", name);
            text = fill(p, p->target->load16[memory], e->dtype, element);
        }
    }
    if (e->arg[0] != MP_NO_KID && !array)
        text = mp_pool_printf(pool, "%s ? %s : (%s)0", args[0], text, p->target->type[e->dtype]);
    return text;
}

static const char *text_expr(mp_printer *p, mp_kid kid)
{
    const mp_kexpr *e = &p->kir->exprs[kid];
    char args[3][64] = {"", "", ""};
    for (int k = 0; k < 3; k++)
        if (e->arg[k] != MP_NO_KID) mp_print_name(p, e->arg[k], args[k]);
    if (e->op == MP_K_WHERE && p->array && p->array[kid]) return p->array[kid];
    switch (e->op) {
    case MP_K_CONST: return text_const(p, e);
    case MP_K_LOAD: return text_load(p, e, args);
    case MP_K_TILE: return "tile[i2 - q0]";
    case MP_K_INDEX:
        return mp_pool_printf(p->out->pool, "(%s)(%s)", p->target->type[e->dtype], mp_print_affine(p, &e->at));
    case MP_K_CAST: return text_cast(p, e, args);
    case MP_K_ROUND16: return fill(p, p->target->round16[e->aux], e->dtype, args);
    default: break;
    }
    /* comparisons are written for the type of what is compared */
    mp_dtype dtype = mp_kops[e->op].to_bool ? p->kir->exprs[e->arg[0]].dtype : e->dtype;
    if (p->near && mp_print_has_near(p, kid)) {
        mp_print_line(p, "far |= %s;", fill(p, p->target->near[e->op].far, dtype, args));
        return fill(p, p->target->near[e->op].text, dtype, args);
    }
    const char *template = op_template(p->target, e->op, dtype);
    return template ? fill(p, template, dtype, args) : "0";
}

/* An index that must be in range: what a negative one means, what happens if it is not, and what is used then. */
static const char *text_check(mp_printer *p, mp_kid kid)
{
    const mp_kexpr *e = &p->kir->exprs[kid];
    mp_pool *pool = p->out->pool;
    char x[64], condition[64], out[1][64];
    mp_print_name(p, e->arg[0], x);
    if (e->aux) {
        mp_print_line(p, "const %s w%u = %s < 0 ? %s + %lld : %s;", p->target->type[e->dtype], kid, x, x,
                      (long long)e->i, x);
        snprintf(x, sizeof x, "w%u", kid);
    }
    const char *in = mp_pool_printf(pool, "(%s >= 0) & (%s < %lld)", x, x, (long long)e->i);
    mp_print_line(p, "const int o%u = !(%s);", kid, in);
    snprintf(out[0], sizeof out[0], "o%u", kid);
    if (e->arg[1] != MP_NO_KID) {
        mp_print_name(p, e->arg[1], condition);
        snprintf(out[0], sizeof out[0], "(o%u & %.40s)", kid, condition);
    }
    mp_print_line(p, "%s", fill(p, p->target->check, e->dtype, out));
    return mp_pool_printf(pool, "o%u ? 0 : %s", kid, x);
}

void mp_print_need_none(mp_printer *p) { memset(p->need, 0, p->kir->n_exprs * sizeof *p->need); }

void mp_print_need(mp_printer *p, mp_kid kid)
{
    if (p->need[kid] || p->at[kid] != MP_AT_NOWHERE) return;
    p->need[kid] = true;
    const mp_kexpr *e = &p->kir->exprs[kid];
    for (int k = 0; k < 3; k++)
        if (e->arg[k] != MP_NO_KID && e->op != MP_K_REDUCE) mp_print_need(p, e->arg[k]);
}

void mp_print_needed(mp_printer *p, uint32_t mask, uint32_t want)
{
    for (uint32_t i = 0; i < p->kir->n_exprs; i++) {
        const mp_kexpr *e = &p->kir->exprs[i];
        if (!p->need[i] || e->op == MP_K_REDUCE || (p->deps[i] & mask) != want) continue;
        const char *text = e->op == MP_K_CHECK ? text_check(p, i) : text_expr(p, i);
        if (p->known && p->known[i] >= 0) text = p->known[i] ? "1" : "0";
        mp_print_line(p, "const %s t%u = %s;", p->target->type[e->dtype], i, text);
    }
}

void mp_print_store(mp_printer *p, const mp_kstore *store)
{
    mp_dtype memory = p->kir->buffers[store->buffer].dtype;
    const mp_kexpr *e = &p->kir->exprs[store->what];
    char value[1][64];
    bool rounds = e->op == MP_K_ROUND16 && e->aux == (uint32_t)memory && p->at[store->what] == MP_AT_NOWHERE;
    mp_print_name(p, rounds ? e->arg[0] : store->what, value[0]); /* the store itself rounds */
    const char *stored = p->stored ? p->stored[store - p->kir->stores] : NULL;
    if (stored) {
        if (*stored) mp_print_line(p, "%s = %s;", stored, value[0]);
        return;
    }
    const char *text = p->target->store16[memory] ? fill(p, p->target->store16[memory], memory, value) : value[0];
    mp_print_line(p, "p%u[%s] = %s;", store->buffer, mp_print_affine(p, &store->at), text);
}

const char *mp_print_identity(mp_printer *p, const mp_kexpr *reduce)
{
    static const int64_t lowest[] = {[MP_U8] = 0,          [MP_I8] = INT8_MIN,   [MP_I16] = INT16_MIN,
                                     [MP_I32] = INT32_MIN, [MP_I64] = INT64_MIN, [MP_BOOL] = 0};
    static const int64_t highest[] = {[MP_U8] = 255,        [MP_I8] = INT8_MAX,   [MP_I16] = INT16_MAX,
                                      [MP_I32] = INT32_MAX, [MP_I64] = INT64_MAX, [MP_BOOL] = 1};
    mp_kexpr e = {.op = MP_K_CONST, .dtype = reduce->dtype};
    bool real = mp_dtype_float(e.dtype);
    switch ((mp_reduction)reduce->aux) {
    case MP_RED_PROD:
    case MP_RED_ALL: real ? (e.f = 1) : (double)(e.i = 1); break;
    case MP_RED_MAX: real ? (e.f = -INFINITY) : (double)(e.i = lowest[e.dtype]); break;
    case MP_RED_MIN: real ? (e.f = INFINITY) : (double)(e.i = highest[e.dtype]); break;
    default: break;
    }
    return text_const(p, &e);
}

const char *mp_print_combine(mp_printer *p, const mp_kexpr *reduce, const char *acc, const char *x)
{
    static const mp_kop ops[] = {[MP_RED_SUM] = MP_K_ADD, [MP_RED_PROD] = MP_K_MUL, [MP_RED_MAX] = MP_K_MAX,
                                 [MP_RED_MIN] = MP_K_MIN, [MP_RED_ANY] = MP_K_OR,   [MP_RED_ALL] = MP_K_AND};
    char args[3][64];
    snprintf(args[0], 64, "%s", acc);
    snprintf(args[1], 64, "%s", x);
    return fill(p, op_template(p->target, ops[reduce->aux], reduce->dtype), reduce->dtype, args);
}

void mp_print_decode(mp_printer *p, uint32_t which, const char *from)
{
    int64_t step = 1, total = 1;
    for (uint32_t i = 0; i < p->kir->n_loops; i++)
        if (which >> i & 1) total *= p->kir->extent[i];
    for (uint32_t i = p->kir->n_loops; i-- > 0;) {
        if (!(which >> i & 1)) continue;
        const char *div = step == 1 ? from : mp_pool_printf(p->out->pool, "%s / %lld", from, (long long)step);
        step *= p->kir->extent[i];
        if (step == total)
            mp_print_line(p, "const int64_t i%u = %s;", i, div);
        else
            mp_print_line(p, "const int64_t i%u = %s %% %lld;", i, div, (long long)p->kir->extent[i]);
    }
}
