/* The CUDA target: what types and operations are called, and what every source begins with. */
#include "codegen/print.h"

#define WRAP(op) "($t)(($u)$0 " op " ($u)$1)"

const mp_target mp_target_cuda =
    {
        .type = {[MP_U8] = "unsigned char",
                 [MP_I8] = "signed char",
                 [MP_I16] = "short",
                 [MP_I32] = "int",
                 [MP_I64] = "int64_t",
                 [MP_F32] = "float",
                 [MP_F64] = "double",
                 [MP_BOOL] = "bool"},
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
                   [MP_BOOL] = "bool",
                   [MP_BF16] = "unsigned short"},
        .load16 = {[MP_F16] = "mp_from_f16($0)", [MP_BF16] = "mp_from_bf16($0)"},
        .store16 = {[MP_F16] = "mp_to_f16($0)", [MP_BF16] = "mp_to_bf16($0)"},
        .round16 = {[MP_F16] = "mp_from_f16(mp_to_f16($0))", [MP_BF16] = "mp_from_bf16(mp_to_bf16($0))"},
        .check = "if ($0) *bad = 1;",
        .inf32 = "__int_as_float(0x7f800000)",
        .inf64 = "__longlong_as_double(0x7ff0000000000000LL)",
        .nan32 = "__int_as_float(0x7fc00000)",
        .nan64 = "__longlong_as_double(0x7ff8000000000000LL)",
        .ops =
            {
                [MP_K_NEG] = {"-$0", NULL, "($t)(0 - ($u)$0)", "$0"},
                [MP_K_ABS] = {"fabsf($0)", "fabs($0)", "($t)($0 < 0 ? 0 - ($u)$0 : ($u)$0)", "$0"},
                [MP_K_EXP] = {"expf($0)", "exp($0)", NULL, NULL},
                [MP_K_EXP2] = {"exp2f($0)", "exp2($0)", NULL, NULL},
                [MP_K_EXPM1] = {"expm1f($0)", "expm1($0)", NULL, NULL},
                [MP_K_LOG] = {"logf($0)", "log($0)", NULL, NULL},
                [MP_K_LOG2] = {"log2f($0)", "log2($0)", NULL, NULL},
                [MP_K_LOG10] = {"log10f($0)", "log10($0)", NULL, NULL},
                [MP_K_LOG1P] = {"log1pf($0)", "log1p($0)", NULL, NULL},
                [MP_K_SQRT] = {"sqrtf($0)", "sqrt($0)", NULL, NULL},
                [MP_K_TANH] = {"tanhf($0)", "tanh($0)", NULL, NULL},
                [MP_K_SIGMOID] = {"1.0f / (1.0f + expf(-$0))", "1.0 / (1.0 + exp(-$0))", NULL, NULL},
                [MP_K_SILU] = {"$0 / (1.0f + expf(-$0))", "$0 / (1.0 + exp(-$0))", NULL, NULL},
                [MP_K_ERF] = {"erff($0)", "erf($0)", NULL, NULL},
                [MP_K_ERFC] = {"erfcf($0)", "erfc($0)", NULL, NULL},
                [MP_K_GELU] = {"$0 * normcdff($0)", "$0 * normcdf($0)", NULL, NULL},
                [MP_K_NCDF] = {"normcdff($0)", "normcdf($0)", NULL, NULL},
                [MP_K_SIN] = {"sinf($0)", "sin($0)", NULL, NULL},
                [MP_K_COS] = {"cosf($0)", "cos($0)", NULL, NULL},
                [MP_K_TAN] = {"tanf($0)", "tan($0)", NULL, NULL},
                [MP_K_ASIN] = {"asinf($0)", "asin($0)", NULL, NULL},
                [MP_K_ACOS] = {"acosf($0)", "acos($0)", NULL, NULL},
                [MP_K_ATAN] = {"atanf($0)", "atan($0)", NULL, NULL},
                [MP_K_SINH] = {"sinhf($0)", "sinh($0)", NULL, NULL},
                [MP_K_COSH] = {"coshf($0)", "cosh($0)", NULL, NULL},
                [MP_K_ASINH] = {"asinhf($0)", "asinh($0)", NULL, NULL},
                [MP_K_ACOSH] = {"acoshf($0)", "acosh($0)", NULL, NULL},
                [MP_K_ATANH] = {"atanhf($0)", "atanh($0)", NULL, NULL},
                [MP_K_FLOOR] = {"floorf($0)", "floor($0)", "$0", NULL},
                [MP_K_CEIL] = {"ceilf($0)", "ceil($0)", "$0", NULL},
                [MP_K_ROUND] = {"rintf($0)", "rint($0)", "$0", NULL},
                [MP_K_TRUNC] = {"truncf($0)", "trunc($0)", "$0", NULL},
                [MP_K_SIGN] = {"($t)(($0 > 0) - ($0 < 0))", NULL, NULL, "$0"},
                [MP_K_BITNOT] = {"0", NULL, "($t)~$0", "!$0"},
                [MP_K_NOT] = {"!$0", NULL, NULL, NULL},
                [MP_K_ISNAN] = {"$0 != $0", NULL, "0", NULL},
                [MP_K_ADD] = {"$0 + $1", NULL, WRAP("+"), "$0 | $1"},
                [MP_K_SUB] = {"$0 - $1", NULL, WRAP("-"), "$0 ^ $1"},
                [MP_K_MUL] = {"$0 * $1", NULL, WRAP("*"), "$0 & $1"},
                [MP_K_DIV] = {"$0 / $1", NULL, NULL, NULL},
                [MP_K_IDIV] = {"truncf($0 / $1)", "trunc($0 / $1)", "($t)($0 / $1)", NULL},
                [MP_K_FLOORDIV] = {"mp_floordivf($0, $1)", "mp_floordivd($0, $1)", "($t)mp_floordivi($0, $1)", NULL},
                [MP_K_FMOD] = {"fmodf($0, $1)", "fmod($0, $1)", "($t)($0 % $1)", NULL},
                [MP_K_REMAINDER] = {"mp_remainderf($0, $1)", "mp_remainderd($0, $1)", "($t)mp_remainderi($0, $1)",
                                    NULL},
                [MP_K_MIN] = {"(($1 < $0) | ($1 != $1)) ? $1 : $0", NULL, "$1 < $0 ? $1 : $0", "$0 & $1"},
                [MP_K_MAX] = {"(($1 > $0) | ($1 != $1)) ? $1 : $0", NULL, "$1 > $0 ? $1 : $0", "$0 | $1"},
                [MP_K_POW] = {"powf($0, $1)", "pow($0, $1)", NULL, NULL},
                [MP_K_ATAN2] = {"atan2f($0, $1)", "atan2($0, $1)", NULL, NULL},
                [MP_K_HYPOT] = {"hypotf($0, $1)", "hypot($0, $1)", NULL, NULL},
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
};

void mp_codegen_cuda_prelude(mp_text *out)
{
    mp_text_add(
        out, "%s",
        "typedef long long int64_t;\n"
        "typedef unsigned long long uint64_t;\n"
        "#define MP_F static __device__ __forceinline__\n"
        "MP_F float mp_floordivf(float a, float b)\n"
        "{\n"
        "    float m = fmodf(a, b), d = (a - m) / b;\n"
        "    if (b == 0.0f) return a / b;\n"
        "    if (m != 0.0f && (b < 0.0f) != (m < 0.0f)) d -= 1.0f;\n"
        "    if (d == 0.0f) return copysignf(0.0f, a / b);\n"
        "    const float f = floorf(d);\n"
        "    return d - f > 0.5f ? f + 1.0f : f;\n"
        "}\n"
        "MP_F double mp_floordivd(double a, double b)\n"
        "{\n"
        "    double m = fmod(a, b), d = (a - m) / b;\n"
        "    if (b == 0.0) return a / b;\n"
        "    if (m != 0.0 && (b < 0.0) != (m < 0.0)) d -= 1.0;\n"
        "    if (d == 0.0) return copysign(0.0, a / b);\n"
        "    const double f = floor(d);\n"
        "    return d - f > 0.5 ? f + 1.0 : f;\n"
        "}\n"
        "MP_F float mp_remainderf(float a, float b)\n"
        "{\n"
        "    const float m = fmodf(a, b);\n"
        "    return m != 0.0f && (b < 0.0f) != (m < 0.0f) ? m + b : m;\n"
        "}\n"
        "MP_F double mp_remainderd(double a, double b)\n"
        "{\n"
        "    const double m = fmod(a, b);\n"
        "    return m != 0.0 && (b < 0.0) != (m < 0.0) ? m + b : m;\n"
        "}\n"
        "MP_F int64_t mp_floordivi(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }\n"
        "MP_F int64_t mp_remainderi(int64_t a, int64_t b)\n"
        "{\n"
        "    const int64_t m = a % b;\n"
        "    return m != 0 && (m < 0) != (b < 0) ? m + b : m;\n"
        "}\n"
        "MP_F float mp_from_bf16(unsigned short h) { return __int_as_float((int)((unsigned)h << 16)); }\n"
        "MP_F unsigned short mp_to_bf16(float x)\n"
        "{\n"
        "    const unsigned i = (unsigned)__float_as_int(x);\n"
        "    return (unsigned short)(x != x ? 0x7fc0u : (i + 0x7fffu + (i >> 16 & 1u)) >> 16);\n"
        "}\n"
        "MP_F float mp_from_f16(unsigned short h)\n"
        "{\n"
        "    float x;\n"
        "    asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(x) : \"h\"(h));\n"
        "    return x;\n"
        "}\n"
        "MP_F unsigned short mp_to_f16(float x)\n"
        "{\n"
        "    unsigned short h;\n"
        "    asm(\"cvt.rn.f16.f32 %0, %1;\" : \"=h\"(h) : \"f\"(x));\n"
        "    return h;\n"
        "}\n"
        "template <typename T, typename F> MP_F T mp_block(T x, F f)\n"
        "{\n"
        "    __shared__ double raw[256];\n"
        "    T *part = (T *)raw;\n"
        "    __syncthreads();\n"
        "    part[threadIdx.x] = x;\n"
        "    __syncthreads();\n"
        "    for (unsigned k = 128; k; k >>= 1) {\n"
        "        if (threadIdx.x < k) part[threadIdx.x] = f(part[threadIdx.x], part[threadIdx.x + k]);\n"
        "        __syncthreads();\n"
        "    }\n"
        "    return part[0];\n"
        "}\n");
}
