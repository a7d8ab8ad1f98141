/* The table of operators that kernels can compute. */
#include "ir/ops.h"

#include <math.h>
#include <string.h>

#define POINT(name, rule, formula) {name, MP_OP_POINT, rule, formula, 0, false}
#define VIEW(name) {name, MP_OP_VIEW, 0, NULL, 0, false}
#define REDUCE(name, kind) {name, MP_OP_REDUCE, 0, NULL, MP_RED_##kind, false}
#define MEAN(name) {name, MP_OP_REDUCE, 0, NULL, MP_RED_SUM, true}

/* tanh(log1p(e)) = n / (n + 2), where n = e * (e + 2) */
#define MISH(e) "mul(a,div(mul(" e ",add(" e ",2)),add(mul(" e ",add(" e ",2)),2)))"
#define GELU_TANH_INNER(x) "mul(0.7978845608028654,add(" x ",mul(0.044715,mul(" x ",mul(" x "," x ")))))"

static const mp_op table[] = {
    {"placeholder", MP_OP_INPUT, 0, NULL, 0, false},
    /* arithmetic */
    POINT("aten.add.Tensor", 'R', "add(a,mul(b,c))"),
    POINT("aten.add.Scalar", 'R', "add(a,mul(b,c))"),
    POINT("aten.sub.Tensor", 'R', "sub(a,mul(b,c))"),
    POINT("aten.sub.Scalar", 'R', "sub(a,mul(b,c))"),
    POINT("aten.rsub.Tensor", 'R', "sub(b,mul(a,c))"),
    POINT("aten.rsub.Scalar", 'R', "sub(b,mul(a,c))"),
    POINT("aten.mul.Tensor", 'R', "mul(a,b)"),
    POINT("aten.mul.Scalar", 'R', "mul(a,b)"),
    POINT("aten.div.Tensor", 'R', "div(a,b)"),
    POINT("aten.div.Scalar", 'R', "div(a,b)"),
    POINT("aten.div.Tensor_mode", 'R', "floor: floordiv(a,b); trunc: idiv(a,b); div(a,b)"),
    POINT("aten.div.Scalar_mode", 'R', "floor: floordiv(a,b); trunc: idiv(a,b); div(a,b)"),
    POINT("aten.floor_divide.default", 'R', "floordiv(a,b)"),
    POINT("aten.fmod.Tensor", 'R', "fmod(a,b)"),
    POINT("aten.fmod.Scalar", 'R', "fmod(a,b)"),
    POINT("aten.remainder.Tensor", 'R', "remainder(a,b)"),
    POINT("aten.remainder.Scalar", 'R', "remainder(a,b)"),
    POINT("aten.pow.Tensor_Scalar", 'R', "pow(a,b)"),
    POINT("aten.pow.Tensor_Tensor", 'R', "pow(a,b)"),
    POINT("aten.pow.Scalar", 'R', "pow(a,b)"),
    POINT("aten.square.default", 'R', "mul(a,a)"),
    POINT("aten.neg.default", 'R', "neg(a)"),
    POINT("aten.abs.default", 'R', "abs(a)"),
    POINT("aten.sign.default", 'R', "sign(a)"),
    POINT("aten.sgn.default", 'R', "sign(a)"),
    POINT("aten.reciprocal.default", 'R', "div(1,a)"),
    POINT("aten.sqrt.default", 'R', "sqrt(a)"),
    POINT("aten.rsqrt.default", 'R', "div(1,sqrt(a))"),
    POINT("aten.addcmul.default", 'R', "add(a,mul(mul(d,b),c))"),
    POINT("aten.addcdiv.default", 'R', "add(a,div(mul(d,b),c))"),
    POINT("aten.lerp.Scalar", 'R', "where(lt(abs(c),0.5),add(a,mul(c,sub(b,a))),sub(b,mul(sub(b,a),sub(1,c))))"),
    POINT("aten.lerp.Tensor", 'R', "where(lt(abs(c),0.5),add(a,mul(c,sub(b,a))),sub(b,mul(sub(b,a),sub(1,c))))"),
    POINT("prims.fma.default", 'R', "add(mul(a,b),c)"),
    /* functions */
    POINT("aten.exp.default", 'R', "exp(a)"),
    POINT("aten.exp2.default", 'R', "exp2(a)"),
    POINT("aten.expm1.default", 'R', "expm1(a)"),
    POINT("aten.log.default", 'R', "log(a)"),
    POINT("aten.log2.default", 'R', "log2(a)"),
    POINT("aten.log10.default", 'R', "log10(a)"),
    POINT("aten.log1p.default", 'R', "log1p(a)"),
    POINT("aten.tanh.default", 'R', "tanh(a)"),
    POINT("aten.erf.default", 'R', "erf(a)"),
    POINT("aten.erfc.default", 'R', "erfc(a)"),
    POINT("aten.sin.default", 'R', "sin(a)"),
    POINT("aten.cos.default", 'R', "cos(a)"),
    POINT("aten.tan.default", 'R', "tan(a)"),
    POINT("aten.asin.default", 'R', "asin(a)"),
    POINT("aten.acos.default", 'R', "acos(a)"),
    POINT("aten.atan.default", 'R', "atan(a)"),
    POINT("aten.sinh.default", 'R', "sinh(a)"),
    POINT("aten.cosh.default", 'R', "cosh(a)"),
    POINT("aten.asinh.default", 'R', "asinh(a)"),
    POINT("aten.acosh.default", 'R', "acosh(a)"),
    POINT("aten.atanh.default", 'R', "atanh(a)"),
    POINT("aten.atan2.default", 'R', "atan2(a,b)"),
    POINT("aten.hypot.default", 'R', "hypot(a,b)"),
    POINT("aten.floor.default", 'R', "floor(a)"),
    POINT("aten.ceil.default", 'R', "ceil(a)"),
    POINT("aten.round.default", 'R', "round(a)"),
    POINT("aten.trunc.default", 'R', "trunc(a)"),
    POINT("aten.frac.default", 'R', "sub(a,trunc(a))"),
    /* activations */
    POINT("aten.sigmoid.default", 'R', "sigmoid(a)"),
    POINT("aten.relu.default", 'R', "where(le(a,0),0,a)"),
    POINT("aten.gelu.default", 'R', "tanh: mul(mul(0.5,a),add(1,tanh(" GELU_TANH_INNER("a") "))); gelu(a)"),
    POINT("aten.silu.default", 'R', "silu(a)"),
    POINT("aten.mish.default", 'R', MISH("exp(min(a,20))")),
    POINT("aten.hardtanh.default", 'R', "min(max(a,b),c)"),
    POINT("aten.relu6.default", 'R', "min(max(a,0),6)"),
    POINT("aten.leaky_relu.default", 'R', "where(gt(a,0),a,mul(a,b))"),
    POINT("aten.elu.default", 'R', "where(le(a,0),mul(expm1(mul(a,d)),mul(b,c)),mul(a,c))"),
    POINT("aten.softplus.default", 'R', "where(gt(mul(a,b),c),a,div(log1p(exp(mul(a,b))),b))"),
    POINT("aten.hardswish.default", 'R', "div(mul(a,min(max(add(a,3),0),6)),6)"),
    POINT("aten.hardsigmoid.default", 'R', "div(min(max(add(a,3),0),6),6)"),
    /* their gradients: (grad, self or result, ...) */
    POINT("aten.threshold_backward.default", 'R', "where(le(b,c),0,a)"),
    POINT("aten.sigmoid_backward.default", 'R', "mul(mul(a,sub(1,b)),b)"),
    POINT("aten.tanh_backward.default", 'R', "mul(a,sub(1,mul(b,b)))"),
    POINT("aten.silu_backward.default", 'R', "mul(mul(a,sigmoid(b)),add(1,mul(b,sub(1,sigmoid(b)))))"),
    POINT("aten.hardtanh_backward.default", 'R', "where(and(gt(b,c),lt(b,d)),a,0)"),
    POINT("aten.leaky_relu_backward.default", 'R', "where(gt(b,0),a,mul(a,c))"),
    POINT("aten.gelu_backward.default", 'R',
          "tanh: mul(a,add(mul(0.5,add(1,tanh(" GELU_TANH_INNER(
              "b") "))),"
                   "mul(mul(mul(0.5,b),sub(1,mul(tanh(" GELU_TANH_INNER("b") "),tanh(" GELU_TANH_INNER(
                       "b") "))))"
                            ",mul(0.7978845608028654,add(1,mul(0.134145,mul(b,b)))))));"
                            "mul(a,add(ncdf(b),mul(b,mul(exp(mul(mul(b,b),-0.5))"
                            ",0.3989422804014327))))"),
    POINT("aten.native_dropout_backward.default", 'R', "mul(a,mul(b,c))"),
    /* choosing and comparing */
    POINT("aten.minimum.default", 'R', "min(a,b)"),
    POINT("aten.maximum.default", 'R', "max(a,b)"),
    POINT("aten.clamp.default", 'R', "hi(lo(a,b),c)"),
    POINT("aten.clamp.Tensor", 'R', "hi(lo(a,b),c)"),
    POINT("aten.clamp_min.default", 'R', "max(a,b)"),
    POINT("aten.clamp_min.Tensor", 'R', "max(a,b)"),
    POINT("aten.clamp_max.default", 'R', "min(a,b)"),
    POINT("aten.clamp_max.Tensor", 'R', "min(a,b)"),
    POINT("aten.where.self", 'R', "where(?a,b,c)"),
    POINT("aten.where.ScalarSelf", 'R', "where(?a,b,c)"),
    POINT("aten.where.ScalarOther", 'R', "where(?a,b,c)"),
    POINT("aten.masked_fill.Scalar", 'R', "where(?b,c,a)"),
    POINT("aten.masked_fill.Tensor", 'R', "where(?b,c,a)"),
    POINT("aten.eq.Tensor", 'P', "eq(a,b)"),
    POINT("aten.eq.Scalar", 'P', "eq(a,b)"),
    POINT("aten.ne.Tensor", 'P', "ne(a,b)"),
    POINT("aten.ne.Scalar", 'P', "ne(a,b)"),
    POINT("aten.lt.Tensor", 'P', "lt(a,b)"),
    POINT("aten.lt.Scalar", 'P', "lt(a,b)"),
    POINT("aten.le.Tensor", 'P', "le(a,b)"),
    POINT("aten.le.Scalar", 'P', "le(a,b)"),
    POINT("aten.gt.Tensor", 'P', "gt(a,b)"),
    POINT("aten.gt.Scalar", 'P', "gt(a,b)"),
    POINT("aten.ge.Tensor", 'P', "ge(a,b)"),
    POINT("aten.ge.Scalar", 'P', "ge(a,b)"),
    POINT("aten.isnan.default", 'P', "isnan(a)"),
    POINT("aten.isinf.default", 'P', "eq(abs(a),inf)"),
    POINT("aten.logical_and.default", 'R', "and(?a,?b)"),
    POINT("aten.logical_or.default", 'R', "or(?a,?b)"),
    POINT("aten.logical_xor.default", 'R', "xor(?a,?b)"),
    POINT("aten.logical_not.default", 'R', "not(?a)"),
    POINT("aten.bitwise_and.Tensor", 'R', "and(a,b)"),
    POINT("aten.bitwise_and.Scalar", 'R', "and(a,b)"),
    POINT("aten.bitwise_or.Tensor", 'R', "or(a,b)"),
    POINT("aten.bitwise_or.Scalar", 'R', "or(a,b)"),
    POINT("aten.bitwise_xor.Tensor", 'R', "xor(a,b)"),
    POINT("aten.bitwise_xor.Scalar", 'R', "xor(a,b)"),
    POINT("aten.bitwise_left_shift.Tensor", 'R', "shl(a,b)"),
    POINT("aten.bitwise_left_shift.Tensor_Scalar", 'R', "shl(a,b)"),
    POINT("aten.bitwise_right_shift.Tensor", 'R', "shr(a,b)"),
    POINT("aten.bitwise_right_shift.Tensor_Scalar", 'R', "shr(a,b)"),
    POINT("aten.__lshift__.Scalar", 'R', "shl(a,b)"),
    POINT("aten.__lshift__.Tensor", 'R', "shl(a,b)"),
    POINT("aten.__rshift__.Scalar", 'R', "shr(a,b)"),
    POINT("aten.__rshift__.Tensor", 'R', "shr(a,b)"),
    POINT("aten.bitwise_not.default", 'R', "bitnot(a)"),
    /* copies and constants */
    POINT("aten.clone.default", 'R', "a"),
    POINT("aten.lift_fresh_copy.default", 'R', "a"),
    POINT("aten._to_copy.default", 'R', "a"),
    POINT("prims.convert_element_type.default", 'R', "a"),
    POINT("aten.copy.default", 'R', "b"),
    POINT("aten.fill.Scalar", 'R', "b"),
    POINT("aten.fill.Tensor", 'R', "b"),
    POINT("aten.full.default", 'R', "b"),
    POINT("aten.full_like.default", 'R', "b"),
    POINT("aten.new_full.default", 'R', "c"),
    POINT("aten.zeros.default", 'R', "0"),
    POINT("aten.zeros_like.default", 'R', "0"),
    POINT("aten.new_zeros.default", 'R', "0"),
    POINT("aten.ones.default", 'R', "1"),
    POINT("aten.ones_like.default", 'R', "1"),
    POINT("aten.new_ones.default", 'R', "1"),
    POINT("aten.scalar_tensor.default", 'R', "a"),
    POINT("aten.arange.default", 'D', "iota"),
    POINT("aten.arange.start", 'D', "add(iota,a)"),
    POINT("aten.arange.start_step", 'D', "add(mul(iota,c),a)"),
    POINT("prims.iota.default", 'D', "add(mul(iota,c),b)"),
    /* views */
    VIEW("aten.view.default"),
    VIEW("aten._unsafe_view.default"),
    VIEW("aten._reshape_alias.default"),
    VIEW("aten.permute.default"),
    VIEW("aten.transpose.int"),
    VIEW("aten.t.default"),
    VIEW("aten.expand.default"),
    VIEW("aten.unsqueeze.default"),
    VIEW("aten.squeeze.default"),
    VIEW("aten.squeeze.dim"),
    VIEW("aten.squeeze.dims"),
    VIEW("aten.slice.Tensor"),
    VIEW("aten.select.int"),
    VIEW("aten.split.Tensor"),
    VIEW("aten.split_with_sizes.default"),
    VIEW("aten.chunk.default"),
    VIEW("aten.unbind.int"),
    VIEW("aten.alias.default"),
    VIEW("aten.detach.default"),
    VIEW("aten.diagonal.default"),
    VIEW("aten.unfold.default"),
    VIEW("aten.as_strided.default"),
    VIEW("aten.lift_fresh.default"),
    /* reductions: (self, dims, ...) */
    REDUCE("aten.sum.default", SUM),
    REDUCE("aten.sum.dim_IntList", SUM),
    MEAN("aten.mean.default"),
    MEAN("aten.mean.dim"),
    REDUCE("aten.prod.default", PROD),
    REDUCE("aten.prod.dim_int", PROD),
    REDUCE("aten.amax.default", MAX),
    REDUCE("aten.amin.default", MIN),
    REDUCE("aten.max.default", MAX),
    REDUCE("aten.min.default", MIN),
    REDUCE("aten.any.default", ANY),
    REDUCE("aten.any.dim", ANY),
    REDUCE("aten.any.dims", ANY),
    REDUCE("aten.all.default", ALL),
    REDUCE("aten.all.dim", ALL),
    REDUCE("aten.all.dims", ALL),
    {"aten.var.correction", MP_OP_VAR, 0, NULL, 0, false},
    {"aten.var_mean.correction", MP_OP_VAR, 0, NULL, 0, false},
    {"aten.argmax.default", MP_OP_ARG, 0, NULL, MP_RED_MAX, false},
    {"aten.argmin.default", MP_OP_ARG, 0, NULL, MP_RED_MIN, false},
    {"aten.max.dim", MP_OP_ARG, 0, NULL, MP_RED_MAX, false},
    {"aten.min.dim", MP_OP_ARG, 0, NULL, MP_RED_MIN, false},
    /* elements at places that are data */
    {"aten.embedding.default", MP_OP_GATHER, 0, NULL, 0, false},
    {"aten.index_select.default", MP_OP_GATHER, 0, NULL, 0, false},
    {"aten.gather.default", MP_OP_GATHER, 0, NULL, 0, false},
    {"aten.index.Tensor", MP_OP_GATHER, 0, NULL, 0, false},
    {"aten._unsafe_index.Tensor", MP_OP_GATHER, 0, NULL, 0, false},
    /* pieces */
    {"aten.flip.default", MP_OP_FLIP, 0, NULL, 0, false},
    {"aten.scatter.value", MP_OP_SCATTER, 0, NULL, 0, false},
    {"aten.scatter.src", MP_OP_SCATTER, 0, NULL, 0, false},
    {"aten.roll.default", MP_OP_ROLL, 0, NULL, 0, false},
    {"aten.cat.default", MP_OP_CAT, 0, NULL, 0, false},
    {"aten.constant_pad_nd.default", MP_OP_PAD, 0, NULL, 0, false},
    {"aten.convolution.default", MP_OP_CONV, 0, NULL, 0, false},
};

static const mp_op external = {"", MP_OP_EXTERN, 0, NULL, 0, false};

/* -- Arguments ----------------------------------------------------------------------------------------------------- */

double mp_arg_double(const mp_arg *arg) { return arg->kind == MP_ARG_FLOAT ? arg->f : (double)arg->i; }

int64_t mp_arg_int(const mp_arg *arg)
{
    if (arg->kind != MP_ARG_FLOAT) return arg->i;
    return arg->f >= -9.2e18 && arg->f <= 9.2e18 ? (int64_t)arg->f : 0;
}

int64_t mp_meta_numel(const mp_meta *meta)
{
    int64_t n = 1;
    for (int i = 0; i < meta->ndim; i++) n *= meta->size[i];
    return n;
}

/* -- Type promotion ------------------------------------------------------------------------------------------------ */

/* c10's promoteTypes for the types that kernels know. */
static int promote_types(int a, int b)
{
    if (a < 0) return b;
    if (b < 0 || a == b) return a;
    bool fa = mp_dtype_float(a), fb = mp_dtype_float(b);
    if (fa != fb) return fa ? a : b;
    if (fa) return (a == MP_F64 || b == MP_F64) ? MP_F64 : MP_F32; /* F16 with BF16 is F32 too */
    if (a == MP_BOOL) return b;
    if (b == MP_BOOL) return a;
    if (a == MP_U8 || b == MP_U8) {
        int other = a == MP_U8 ? b : a;
        return other == MP_I8 ? MP_I16 : other;
    }
    return a > b ? a : b;
}

static int category(int dtype) { return dtype < 0 ? -1 : dtype == MP_BOOL ? 0 : mp_dtype_float(dtype) ? 2 : 1; }

/* c10's combine_categories: the lower priority counts only if its category is higher. */
static int combine(int higher, int lower)
{
    if (higher < 0) return lower;
    if (category(higher) < category(lower)) return promote_types(higher, lower);
    return higher;
}

mp_dtype mp_op_promote(const mp_graph *graph, const mp_gnode *node, uint32_t n)
{
    int dims = -1, zero = -1, number = -1;
    for (uint32_t i = 0; i < n && i < node->n_args; i++) {
        const mp_arg *arg = &node->args[i];
        if (arg->kind == MP_ARG_VALUE) {
            const mp_meta *meta = &graph->metas[arg->value];
            int *which = meta->ndim ? &dims : &zero;
            *which = promote_types(*which, meta->dtype);
        } else if (mp_arg_number(arg)) {
            int dtype = arg->kind == MP_ARG_BOOL  ? MP_BOOL
                        : arg->kind == MP_ARG_INT ? MP_I64
                                                  : MP_F32; /* default dtype */
            number = promote_types(number, dtype);
        }
    }
    int dtype = combine(dims, combine(zero, number));
    return dtype < 0 ? MP_F32 : (mp_dtype)dtype;
}

/* -- Finding ------------------------------------------------------------------------------------------------------- */

uint32_t mp_op_reduced_dims(const mp_graph *graph, const mp_gnode *node)
{
    int ndim = graph->metas[node->args[0].value].ndim;
    uint32_t all = (1u << ndim) - 1, dims = 0;
    if (ndim == 0) return 0; /* -1 and 0 are allowed as the dim of a number, and nothing is reduced */
    if (node->n_args < 2 || strcmp(node->op + strlen(node->op) - 8, ".default") == 0) {
        mp_arg_kind kind = node->n_args > 1 ? node->args[1].kind : MP_ARG_NONE; /* amax, amin; argmax, argmin */
        if (kind != MP_ARG_LIST && kind != MP_ARG_INT) return all;
    }
    const mp_arg *arg = &node->args[1];
    if (arg->kind == MP_ARG_INT) return 1u << (arg->i < 0 ? arg->i + ndim : arg->i) & all;
    if (arg->kind != MP_ARG_LIST || arg->list.n == 0) return all;
    for (uint32_t i = 0; i < arg->list.n; i++) {
        int64_t dim = arg->list.items[i].i;
        dims |= 1u << (dim < 0 ? dim + ndim : dim);
    }
    return dims & all;
}

/* Integer divisions raise in eager where the divisor is 0: only constant divisors are for kernels. */
static bool safe_divisor(const mp_gnode *node)
{
    if (node->n_args < 2) return false;
    const mp_arg *arg = &node->args[1];
    return arg->kind == MP_ARG_INT && arg->i != 0 && arg->i != -1;
}

static bool point_covered(const mp_graph *graph, const mp_gnode *node, const mp_op *row)
{
    int dtype = graph->metas[node->first].dtype;
    bool whole = !mp_dtype_float(dtype);
    const char *formula = row->formula;
    if (strncmp(formula, "sh", 2) == 0 && (!whole || dtype == MP_BOOL)) return false;
    if (!whole || row->rule == 'P') return true;
    if (strncmp(formula, "fmod", 4) == 0 || strncmp(formula, "remainder", 9) == 0 || strncmp(formula, "floor", 5) == 0)
        return dtype != MP_BOOL && safe_divisor(node);
    if (strncmp(formula, "pow", 3) == 0)
        return node->args[0].kind == MP_ARG_VALUE && node->args[1].kind == MP_ARG_INT && node->args[1].i >= 0 &&
               node->args[1].i <= 8;
    return true;
}

static bool args_known(const mp_graph *graph, const mp_arg *args, uint32_t n, int device)
{
    for (uint32_t i = 0; i < n; i++) {
        if (args[i].kind == MP_ARG_LIST && !args_known(graph, args[i].list.items, args[i].list.n, device)) return false;
        if (args[i].kind == MP_ARG_COMPLEX || args[i].kind == MP_ARG_OBJECT) return false;
        if (args[i].kind != MP_ARG_VALUE) continue;
        const mp_meta *meta = &graph->metas[args[i].value];
        if (!mp_dtype_known(meta->dtype) || meta->device != device || mp_meta_numel(meta) == 0) return false;
    }
    return true;
}

/* Are the operands of a gathering operator what kernels expect: indices of integers, a dim that is known? */
static bool gather_covered(const mp_graph *graph, const mp_gnode *node)
{
    bool listed = strstr(node->op, "index.Tensor") != NULL; /* (self, list of indices or nothing) */
    bool first = strcmp(node->op, "aten.embedding.default") == 0;
    if (node->n_args < 2 || node->args[0].kind != MP_ARG_VALUE) return false;
    if (graph->metas[node->args[0].value].dtype != graph->metas[node->first].dtype) return false;
    const mp_arg *indices = listed ? node->args[1].list.items : &node->args[first ? 1 : 2];
    uint32_t n = 1, found = 0;
    if (listed) {
        if (node->args[1].kind != MP_ARG_LIST) return false;
        n = node->args[1].list.n;
    } else if (!first && (node->n_args < 3 || node->args[1].kind != MP_ARG_INT)) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (indices[i].kind == MP_ARG_NONE) continue;
        if (indices[i].kind != MP_ARG_VALUE) return false;
        int dtype = graph->metas[indices[i].value].dtype;
        if (dtype != MP_I64 && dtype != MP_I32) return false;
        found++;
    }
    return found > 0 && graph->metas[node->args[0].value].ndim > 0;
}

/* scatter(self, dim, index, value or src): does it replace one element along dim everywhere? */
static bool scatter_covered(const mp_graph *graph, const mp_gnode *node)
{
    if (node->n_args < 4 || node->args[0].kind != MP_ARG_VALUE || node->args[1].kind != MP_ARG_INT ||
        node->args[2].kind != MP_ARG_VALUE || (node->args[3].kind != MP_ARG_VALUE && !mp_arg_number(&node->args[3])))
        return false;
    const mp_meta *self = &graph->metas[node->args[0].value], *index = &graph->metas[node->args[2].value];
    int64_t dim = node->args[1].i < 0 ? node->args[1].i + self->ndim : node->args[1].i;
    if (dim < 0 || dim >= self->ndim || index->ndim != self->ndim) return false;
    if (index->dtype != MP_I64 && index->dtype != MP_I32) return false;
    for (int d = 0; d < self->ndim; d++)
        if (index->size[d] != (d == dim ? 1 : self->size[d])) return false;
    return node->args[3].kind != MP_ARG_VALUE || graph->metas[node->args[3].value].ndim == self->ndim;
}

const mp_op *mp_op_find(const mp_graph *graph, const mp_gnode *node)
{
    const mp_op *row = NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table && !row; i++)
        if (strcmp(table[i].name, node->op) == 0) row = &table[i];
    if (!row) return &external;
    if (row->class_ == MP_OP_INPUT) return row;
    if (node->n_values == 0) return &external;
    const mp_meta *first = &graph->metas[node->first];
    if (row->class_ == MP_OP_VIEW) {
        if (node->n_args == 0 || node->args[0].kind != MP_ARG_VALUE) return &external;
        return row; /* a view needs nothing of its types */
    }
    for (uint32_t i = 0; i < node->n_values; i++) {
        const mp_meta *meta = &graph->metas[node->first + i];
        if (!mp_dtype_known(meta->dtype) || mp_meta_numel(meta) == 0 || meta->device != first->device) return &external;
        for (int d = 0; d < meta->ndim; d++) /* kernels write every element once */
            if (meta->size[d] > 1 && meta->stride[d] == 0) return &external;
    }
    if (!args_known(graph, node->args, node->n_args, first->device)) return &external;
    mp_conv conv;
    if (row->class_ == MP_OP_CONV) return mp_conv_describe(graph, node, &conv) ? row : &external;
    if (row->class_ == MP_OP_POINT) return point_covered(graph, node, row) ? row : &external;
    if (row->class_ == MP_OP_PAD || row->class_ == MP_OP_CAT) return row;
    if (row->class_ == MP_OP_SCATTER) return scatter_covered(graph, node) ? row : &external;
    if (row->class_ == MP_OP_GATHER) return gather_covered(graph, node) ? row : &external;
    if (node->args[0].kind != MP_ARG_VALUE) return &external;
    if (row->class_ == MP_OP_VAR && !mp_dtype_float(first->dtype)) return &external;
    if (row->class_ == MP_OP_ARG && graph->metas[node->args[0].value].dtype == MP_BOOL) return &external;
    return row;
}
