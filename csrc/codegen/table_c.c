/* The C target: what types and operations are called, and what every source begins with. */
#include "codegen/half.h"

#define WRAP(op) "($t)(($u)$0 " op " ($u)$1)"

#define FAR_ANGLE "(__builtin_fabsf($0) >= 0x1p+16f) & (__builtin_fabsf($0) < __builtin_inff())"
#define FAR_QUOTIENT "mp_far_quotient($0, $1)"

const mp_target mp_target_c =
    {
        .type = {[MP_U8] = "unsigned char",
                 [MP_I8] = "signed char",
                 [MP_I16] = "short",
                 [MP_I32] = "int",
                 [MP_I64] = "int64_t",
                 [MP_F32] = "float",
                 [MP_F64] = "double",
                 [MP_BOOL] = "_Bool"},
        .unsigned_type = {[MP_U8] = "unsigned",
                          [MP_I8] = "unsigned",
                          [MP_I16] = "unsigned",
                          [MP_I32] = "unsigned",
                          [MP_I64] = "uint64_t",
                          [MP_BOOL] = "unsigned"},
        .memory = {[MP_U8] = "unsigned char",
                   [MP_I8] = "signed char",
                   [MP_I16] = "short",
                   [MP_I32] = "int",
                   [MP_I64] = "int64_t",
                   [MP_F16] = "unsigned short",
                   [MP_F32] = "float",
                   [MP_F64] = "double",
                   [MP_BOOL] = "unsigned char",
                   [MP_BF16] = "unsigned short"},
        .load16 = {[MP_F16] = "mp_from_f16($0)", [MP_BF16] = "mp_from_bf16($0)"},
        .store16 = {[MP_F16] = "mp_to_f16($0)", [MP_BF16] = "mp_to_bf16($0)"},
        .round16 = {[MP_F16] = "mp_from_f16(mp_to_f16($0))", [MP_BF16] = "mp_from_bf16(mp_to_bf16($0))"},
        .check = "bad |= $0;",
        .inf32 = "__builtin_inff()",
        .inf64 = "__builtin_inf()",
        .nan32 = "__builtin_nanf(\"\")",
        .nan64 = "__builtin_nan(\"\")",
        .ops =
            {
                [MP_K_NEG] = {"-$0", NULL, "($t)(0 - ($u)$0)", "$0"},
                [MP_K_ABS] = {"__builtin_fabsf($0)", "__builtin_fabs($0)", "($t)($0 < 0 ? 0 - ($u)$0 : ($u)$0)", "$0"},
                [MP_K_EXP] = {"mp_expf($0)", "exp($0)", NULL, NULL},
                [MP_K_EXP2] = {"mp_exp2f($0)", "exp2($0)", NULL, NULL},
                [MP_K_EXPM1] = {"mp_expm1f($0)", "expm1($0)", NULL, NULL},
                [MP_K_LOG] = {"mp_logf($0)", "log($0)", NULL, NULL},
                [MP_K_LOG2] = {"mp_log2f($0)", "log2($0)", NULL, NULL},
                [MP_K_LOG10] = {"mp_log10f($0)", "log10($0)", NULL, NULL},
                [MP_K_LOG1P] = {"mp_log1pf($0)", "log1p($0)", NULL, NULL},
                [MP_K_SQRT] = {"__builtin_sqrtf($0)", "__builtin_sqrt($0)", NULL, NULL},
                [MP_K_TANH] = {"mp_tanhf($0)", "tanh($0)", NULL, NULL},
                [MP_K_SIGMOID] = {"mp_sigmoidf($0)", "1.0 / (1.0 + exp(-$0))", NULL, NULL},
                [MP_K_SILU] = {"mp_siluf($0)", "$0 / (1.0 + exp(-$0))", NULL, NULL},
                [MP_K_ERF] = {"mp_erff($0)", "erf($0)", NULL, NULL},
                [MP_K_ERFC] = {"mp_erfcf($0)", "erfc($0)", NULL, NULL},
                [MP_K_GELU] = {"mp_geluf($0)", "$0 * (0.5 * (1.0 + erf($0 * 0x1.6a09e667f3bcdp-1)))", NULL, NULL},
                [MP_K_NCDF] = {"mp_ncdff($0)", "0.5 * (1.0 + erf($0 * 0x1.6a09e667f3bcdp-1))", NULL, NULL},
                [MP_K_SIN] = {"mp_sinf($0)", "sin($0)", NULL, NULL},
                [MP_K_COS] = {"mp_cosf($0)", "cos($0)", NULL, NULL},
                [MP_K_TAN] = {"mp_tanf($0)", "tan($0)", NULL, NULL},
                [MP_K_ASIN] = {"mp_asinf($0)", "asin($0)", NULL, NULL},
                [MP_K_ACOS] = {"mp_acosf($0)", "acos($0)", NULL, NULL},
                [MP_K_ATAN] = {"mp_atanf($0)", "atan($0)", NULL, NULL},
                [MP_K_SINH] = {"mp_sinhf($0)", "sinh($0)", NULL, NULL},
                [MP_K_COSH] = {"mp_coshf($0)", "cosh($0)", NULL, NULL},
                [MP_K_ASINH] = {"mp_asinhf($0)", "asinh($0)", NULL, NULL},
                [MP_K_ACOSH] = {"mp_acoshf($0)", "acosh($0)", NULL, NULL},
                [MP_K_ATANH] = {"mp_atanhf($0)", "atanh($0)", NULL, NULL},
                [MP_K_FLOOR] = {"__builtin_floorf($0)", "__builtin_floor($0)", "$0", NULL},
                [MP_K_CEIL] = {"__builtin_ceilf($0)", "__builtin_ceil($0)", "$0", NULL},
                [MP_K_ROUND] = {"__builtin_rintf($0)", "__builtin_rint($0)", "$0", NULL},
                [MP_K_TRUNC] = {"__builtin_truncf($0)", "__builtin_trunc($0)", "$0", NULL},
                [MP_K_SIGN] = {"($t)(($0 > 0) - ($0 < 0))", NULL, NULL, "$0"},
                [MP_K_BITNOT] = {"0", NULL, "($t)~$0", "!$0"},
                [MP_K_NOT] = {"!$0", NULL, NULL, NULL},
                [MP_K_ISNAN] = {"$0 != $0", NULL, "0", NULL},
                [MP_K_ADD] = {"$0 + $1", NULL, WRAP("+"), "$0 | $1"},
                [MP_K_SUB] = {"$0 - $1", NULL, WRAP("-"), "$0 ^ $1"},
                [MP_K_MUL] = {"$0 * $1", NULL, WRAP("*"), "$0 & $1"},
                [MP_K_DIV] = {"$0 / $1", NULL, NULL, NULL},
                [MP_K_IDIV] = {"__builtin_truncf($0 / $1)", "__builtin_trunc($0 / $1)", "($t)($0 / $1)", NULL},
                [MP_K_FLOORDIV] = {"mp_floordivf($0, $1)", "mp_floordivd($0, $1)", "($t)mp_floordivi($0, $1)", NULL},
                [MP_K_FMOD] = {"fmodf($0, $1)", "fmod($0, $1)", "($t)($0 % $1)", NULL},
                [MP_K_REMAINDER] = {"mp_remainderf($0, $1)", "mp_remainderd($0, $1)", "($t)mp_remainderi($0, $1)",
                                    NULL},
                [MP_K_MIN] = {"$1 != $1 ? $1 : ($1 < $0 ? $1 : $0)", NULL, "$1 < $0 ? $1 : $0", "$0 & $1"},
                [MP_K_MAX] = {"$1 != $1 ? $1 : ($1 > $0 ? $1 : $0)", NULL, "$1 > $0 ? $1 : $0", "$0 | $1"},
                [MP_K_POW] = {"mp_powf($0, $1)", "pow($0, $1)", NULL, NULL},
                [MP_K_ATAN2] = {"mp_atan2f($0, $1)", "atan2($0, $1)", NULL, NULL},
                [MP_K_HYPOT] = {"mp_hypotf($0, $1)", "hypot($0, $1)", NULL, NULL},
                [MP_K_AND] = {"0", NULL, "($t)($0 & $1)", "$0 & $1"},
                [MP_K_OR] = {"0", NULL, "($t)($0 | $1)", "$0 | $1"},
                [MP_K_XOR] = {"0", NULL, "($t)($0 ^ $1)", "$0 ^ $1"},
                [MP_K_SHL] = {"0", NULL, "((uint64_t)$1 < sizeof($t) * 8 ? ($t)(($u)$0 << ($1 & 63)) : ($t)0)", NULL},
                [MP_K_SHR] = {"0", NULL, "($t)($0 >> ((uint64_t)$1 < sizeof($t) * 8 ? $1 : ($t)(sizeof($t) * 8 - 1)))",
                              NULL},
                [MP_K_LT] = {"$0 < $1", NULL, NULL, NULL},
                [MP_K_LE] = {"$0 <= $1", NULL, NULL, NULL},
                [MP_K_GT] = {"$0 > $1", NULL, NULL, NULL},
                [MP_K_GE] = {"$0 >= $1", NULL, NULL, NULL},
                [MP_K_EQ] = {"$0 == $1", NULL, NULL, NULL},
                [MP_K_NE] = {"$0 != $1", NULL, NULL, NULL},
                [MP_K_WHERE] = {"$0 ? $1 : $2", NULL, NULL, NULL},
            },
        .near = {[MP_K_SIN] = {"mp_sin_near($0)", FAR_ANGLE},
                 [MP_K_COS] = {"mp_cos_near($0)", FAR_ANGLE},
                 [MP_K_TAN] = {"mp_tan_near($0)", FAR_ANGLE},
                 [MP_K_FMOD] = {"mp_fmod_near($0, $1)", FAR_QUOTIENT},
                 [MP_K_REMAINDER] = {"mp_remainder_near($0, $1)", FAR_QUOTIENT},
                 [MP_K_FLOORDIV] = {"mp_floordiv_near($0, $1)", FAR_QUOTIENT}},
};

void mp_codegen_c_prelude(mp_text *out)
{
    mp_text_add(
        out, "%s",
        MP_CODEGEN_SECTIONS
        "typedef __INT64_TYPE__ int64_t;\n"
        "typedef __UINT64_TYPE__ uint64_t;\n"
        "double exp(double), exp2(double), expm1(double), log(double), log2(double), log10(double), log1p(double);\n"
        "double tanh(double), erf(double), erfc(double), sin(double), cos(double), tan(double), asin(double), "
        "acos(double);\n"
        "double atan(double), sinh(double), cosh(double), asinh(double), acosh(double), atanh(double), atan2(double, "
        "double);\n"
        "double hypot(double, double), pow(double, double), fmod(double, double);\n"
        "float fmodf(float, float);\n");
    mp_text_add(out, "%s%s%s%s", mp_codegen_vecmath, mp_codegen_vecmath_angles, mp_codegen_half_text,
                mp_codegen_turn_text);
    mp_text_add(out, "static double mp_zeros[%d];\n", MP_CODEGEN_RUN);
}
