/* Formulas of pointwise operators (ir/ops.h) -> expressions. */
#include "fuse/builder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Argument `arg` of a node at the node's index, in its own register type. */
static mp_kid eval_operand(mp_builder *b, const mp_gnode *gnode, const mp_index *index, mp_val value)
{
    mp_index *operand = MP_NEW(b->pool, mp_index, 1);
    *operand = mp_build_operand_index(&b->graph->metas[gnode->first], index, &b->graph->metas[value]);
    return mp_build_eval_value(b, value, operand);
}

typedef struct {
    mp_builder *b;
    const mp_gnode *gnode;
    const mp_index *index;
    mp_dtype dtype;   /* of the computation, a register type */
    const char *text; /* what is left of the formula */
} formula;

static mp_kid eval_letter(formula *f, uint32_t number, bool truth)
{
    mp_builder *b = f->b;
    if (number >= f->gnode->n_args) return mp_build_fail(b);
    const mp_arg *arg = &f->gnode->args[number];
    mp_dtype dtype = truth ? MP_BOOL : f->dtype;
    if (mp_arg_number(arg)) return mp_expr_number(b, dtype, arg);
    if (arg->kind == MP_ARG_NONE) return mp_expr_const(b, dtype, 1, 1); /* arange's step, alpha: nothing given is 1 */
    if (arg->kind != MP_ARG_VALUE) return mp_build_fail(b);
    mp_kid x = eval_operand(b, f->gnode, f->index, arg->value);
    return mp_expr_cast(b, x, dtype);
}

static mp_kid eval_call(formula *f);

static mp_kid eval_term(formula *f)
{
    if (*f->text == '?') {
        char letter = f->text[1];
        f->text += 2;
        return eval_letter(f, (uint32_t)(letter - 'a'), true);
    }
    char c = *f->text, after = c ? f->text[1] : 0;
    if (c >= 'a' && c <= 'g' && !(after >= 'a' && after <= 'z')) {
        f->text++;
        return eval_letter(f, (uint32_t)(c - 'a'), false);
    }
    if ((c >= '0' && c <= '9') || c == '-' || strncmp(f->text, "inf", 3) == 0) {
        char *end;
        double number = strtod(f->text, &end); /* formulas hold no locale's points: checked by the tests of every row */
        f->text = end;
        return mp_expr_const(f->b, f->dtype, number, (int64_t)(fabs(number) < 1e9 ? number : 0));
    }
    if (strncmp(f->text, "iota", 4) == 0) {
        f->text += 4;
        return mp_expr_cast(f->b, mp_expr_index(f->b, &f->index->dim[0], MP_I64), f->dtype);
    }
    return eval_call(f);
}

static mp_kid eval_call(formula *f)
{
    mp_builder *b = f->b;
    char name[16];
    size_t n = 0;
    while (((*f->text >= 'a' && *f->text <= 'z') || (*f->text >= '0' && *f->text <= '9')) && n < sizeof name - 1)
        name[n++] = *f->text++;
    name[n] = 0;
    if (*f->text++ != '(') return mp_build_fail(b);
    bool low = strcmp(name, "lo") == 0, high = strcmp(name, "hi") == 0;
    mp_kid args[3] = {0};
    uint32_t n_args = 0;
    while (n_args < 3) {
        uint32_t letter = (uint32_t)(*f->text - 'a');
        if ((low || high) && n_args == 1 &&
            (letter >= f->gnode->n_args || f->gnode->args[letter].kind == MP_ARG_NONE)) {
            f->text += 2;
            return args[0];
        }
        args[n_args++] = eval_term(f);
        if (b->failed) return 0;
        if (*f->text != ',') break;
        f->text++;
    }
    if (*f->text++ != ')') return mp_build_fail(b);
    mp_kop op = low ? MP_K_MAX : high ? MP_K_MIN : MP_K_COUNT;
    for (mp_kop k = MP_K_REDUCE + 1; k < MP_K_COUNT && op == MP_K_COUNT; k++)
        if (strcmp(mp_kops[k].name, name) == 0) op = k;
    if (op == MP_K_COUNT || mp_kops[op].arity != n_args) return mp_build_fail(b);
    if (op == MP_K_POW) {
        mp_kid power = mp_expr_power(b, args[0], args[1]);
        if (power != MP_NO_KID) return power;
        if (!mp_dtype_float(f->dtype)) return mp_build_fail(b);
    }
    mp_dtype dtype = b->kir->exprs[args[op == MP_K_WHERE ? 1 : 0]].dtype;
    return mp_expr_op(b, op, dtype, args);
}

/* The alternative of the formula that the node's string argument chooses. */
static const char *choose_formula(const mp_gnode *gnode, const char *text)
{
    for (;;) {
        const char *colon = strchr(text, ':'), *end = strchr(text, ';');
        if (!colon || (end && end < colon)) return text;
        for (uint32_t i = 0; i < gnode->n_args; i++)
            if (gnode->args[i].kind == MP_ARG_STR && strlen(gnode->args[i].str) == (size_t)(colon - text) &&
                strncmp(gnode->args[i].str, text, (size_t)(colon - text)) == 0)
                return colon + 2;
        if (!end) return text;
        text = end + 1;
        while (*text == ' ') text++;
    }
}

mp_kid mp_build_eval_point(mp_builder *b, const mp_gnode *gnode, const mp_op *op, const mp_index *index)
{
    int dtype = b->graph->metas[gnode->first].dtype;
    mp_dtype compute = mp_dtype_register(dtype);
    if (op->rule == 'P') compute = mp_dtype_register(mp_op_promote(b->graph, gnode, 2));
    if (op->rule == 'D' && mp_dtype_float(dtype)) compute = MP_F64;
    formula f = {b, gnode, index, compute, choose_formula(gnode, op->formula)};
    mp_kid x = eval_term(&f);
    x = mp_expr_cast(b, x, mp_dtype_register(dtype));
    bool copies = strcmp(op->formula, "a") == 0 || strcmp(op->formula, "b") == 0;
    if (copies && !b->failed && (dtype == MP_F16 || dtype == MP_BF16)) { /* a conversion the program asked for */
        mp_kexpr e = mp_expr_blank(MP_K_ROUND16, MP_F32);
        e.arg[0] = x;
        e.aux = (uint32_t)dtype;
        e.deps = b->kir->exprs[x].deps;
        e.level = b->kir->exprs[x].level;
        e.cost = (uint16_t)(b->kir->exprs[x].cost + 3);
        return mp_expr_intern(b, &e);
    }
    return x;
}
