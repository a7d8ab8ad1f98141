"""The vector math of generated C holds its error bounds over all floats: sampled, with every special value."""

import ctypes
import os
import subprocess
import sys

import numpy
import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from harness import Compiled, Description, compile_source, trace  # noqa: E402

from magpy import _C  # noqa: E402

UNFUSED = 1.1  # times as much where compilers may not fuse products and sums, as they may in kernels
# Bounds in units in the last place, as csrc/codegen/vecmath.c states them. MAGPY_VECMATH_STEP=1 tries every float.
BOUNDS = {
    "exp": 1.2,
    "exp2": 1.2,
    "expm1": 1.5,
    "log": 1.0,
    "log2": 1.0,
    "log10": 1.0,
    "log1p": 1.6,
    "tanh": 1.8,
    "sigmoid": 2.0,
    "silu": 2.0,
    "erf": 1.5,
    "erfc": 2.0,
    "gelu": 2.0,
    "ncdf": 2.5,
    "sin": 1.5,
    "cos": 1.5,
    "tan": 2.0,
    "asin": 2.0,
    "acos": 1.5,
    "atan": 1.5,
    "sinh": 2.0,
    "cosh": 2.0,
    "asinh": 1.0,
    "acosh": 1.0,
    "atanh": 1.0,
}
NEAR = ("sin", "cos", "tan")  # those with a cheap way for arguments below 2^16, infinities and NaN
TWO_BOUNDS = {"pow": 1.0, "atan2": 2.0, "hypot": 1.0}
STEP = int(os.environ.get("MAGPY_VECMATH_STEP", "499"))

DRIVER = """
double fabs(double);
static double ncdf(double x) { return 0.5 * erfc(x * -0x1.6a09e667f3bcdp-1); }
static double gelu(double x) { return x * ncdf(x); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x / (1 + exp(-x)); }
static double ulp_error(float got, double want)
{
    if (want != want) return got == got ? 1e30 : 0;
    const float w = (float)want;
    if (got == w) return 0;
    if (got != got) return 1e30;
    if (w == __builtin_inff() || w == -__builtin_inff() || got == __builtin_inff() || got == -__builtin_inff()) {
        const double top = 0x1.ffffffp+127;
        return (fabs(want) >= top * 0.9999999) && (fabs(got) >= 0x1.fffff0p+127) && (got > 0) == (want > 0) ? 1 : 1e30;
    }
    int64_t bits;
    const double size = fabs(want);
    __builtin_memcpy(&bits, &size, 8);
    int e = (int)(bits >> 52) - 1023;
    if (e < -126) e = -126;
    return fabs(got - want) / __builtin_ldexp(1.0, e - 23);
}
"""
ONE = """
void check_NAMESUFFIX(unsigned step, double *worst, float *at)
{
    *worst = 0;
    for (uint64_t block = 0; block < 0x100000000ULL; block += 4096ULL * step) {
        float in[4096], out[4096];
        for (int i = 0; i < 4096; i++) in[i] = mp_float((int)(unsigned)(block + (uint64_t)i * step));
        #pragma omp simd
        for (int i = 0; i < 4096; i++) out[i] = mp_NAMESUFFIX(in[i]);
        for (int i = 0; i < 4096; i++) {
            if (FAR) continue;
            const double error = ulp_error(out[i], NAME((double)in[i]));
            if (error > *worst) *worst = error, *at = in[i];
        }
    }
}
"""
TWO = """
void check_NAME(const float *x, const float *y, int n, double *worst, float *at)
{
    *worst = 0;
    for (int i = 0; i < n; i++) {
        const double error = ulp_error(mp_NAMEf(x[i], y[i]), NAME((double)x[i], (double)y[i]));
        if (error > *worst) *worst = error, at[0] = x[i], at[1] = y[i];
    }
}
"""


@pytest.fixture(scope="module", params=["", "-mno-avx512f", "-ffp-contract=off"], ids=["native", "avx2", "no_fma"])
def library(request) -> ctypes.CDLL:
    """The prelude of a source with all functions, and a driver: for this CPU, without AVX-512, without contraction."""

    def all_functions(x):
        return x**1.3

    description = Description(trace(all_functions, [torch.ones(3)]))
    source = _C._schedule(tuple(description.nodes), description.outputs)["source"]
    checks = [ONE.replace("NAME", name).replace("SUFFIX", "f").replace("FAR", "0") for name in BOUNDS]
    far = "fabs(in[i]) >= 0x1p+16 && fabs(in[i]) < __builtin_inf()"
    checks += [ONE.replace("NAME", name).replace("SUFFIX", "_near").replace("FAR", far) for name in NEAR]
    checks += [TWO.replace("NAME", name) for name in TWO_BOUNDS]
    compiled = compile_source(source + DRIVER + "".join(checks), 512, request.param)
    compiled.slack = UNFUSED if "contract" in request.param else 1.0
    return compiled


@pytest.mark.parametrize("name", list(BOUNDS))
def test_error_is_within_bound(library, name):
    worst, at = ctypes.c_double(), ctypes.c_float()
    getattr(library, f"check_{name}f")(STEP, ctypes.byref(worst), ctypes.byref(at))
    assert worst.value <= BOUNDS[name] * library.slack, f"{worst.value} units at {at.value.hex()}"


@pytest.mark.parametrize("name", NEAR)
def test_error_of_the_cheap_way_is_within_bound(library, name):
    worst, at = ctypes.c_double(), ctypes.c_float()
    getattr(library, f"check_{name}_near")(STEP, ctypes.byref(worst), ctypes.byref(at))
    assert worst.value <= BOUNDS[name] * library.slack, f"{worst.value} units at {at.value.hex()}"


def wild_floats(n: int, seed: int) -> torch.Tensor:
    """Floats of any bits, moderate ones, and whole ones."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31 - 1, (n,), dtype=torch.int64, generator=generator).to(torch.int32)
    moderate = torch.randn(n, generator=generator) * 100
    return torch.cat([bits.view(torch.float32), moderate, moderate.round()])


SPECIAL = torch.tensor([0.0, -0.0, 1, -1, 2, -3, 0.5, 1e-40, -1e-45, 3e38, float("inf"), -float("inf"), float("nan")])


def division_operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dividends, divisors, and where their quotient is one that the cheap way does not cover."""
    x, y = wild_floats(3000, 0), wild_floats(3000, 1).roll(1)
    x = torch.cat([x, x * y, SPECIAL.repeat_interleave(len(SPECIAL))])
    y = torch.cat([y, y, SPECIAL.repeat(len(SPECIAL))])
    quotient = (x.double() / y.double()).abs()
    return x, y, (quotient >= 2.0**28) & quotient.isfinite()


def assert_same_floats(got: torch.Tensor, want: torch.Tensor) -> None:
    same = (got == want) & (got.signbit() == want.signbit()) | (got.isnan() & want.isnan())
    assert same.all(), (got[~same][:5], want[~same][:5], same.logical_not().nonzero()[:5])


@pytest.mark.parametrize("fn", [torch.fmod, torch.remainder, torch.floor_divide])
def test_divisions_with_remainder_are_those_of_eager(fn):
    x, y, far = division_operands()
    x, y = x[~far], y[~far]
    assert_same_floats(Compiled(trace(fn, [x, y]))(x, y)[0], fn(x, y))


def test_remainders_of_large_quotients_are_exact():
    """In blocks with others; eager's vector code loses them."""
    x, y, far = division_operands()
    assert 0.05 < far.float().mean() < 0.9
    with numpy.errstate(invalid="ignore"):
        want = torch.from_numpy(numpy.fmod(x.numpy(), y.numpy()))
    assert_same_floats(Compiled(trace(torch.fmod, [x, y]))(x, y)[0], want)
    want = torch.where((want != 0) & (want.signbit() != y.signbit()) & ~want.isnan(), want + y, want)
    assert_same_floats(Compiled(trace(torch.remainder, [x, y]))(x, y)[0], want)


def test_angles_beyond_the_cheap_way_are_reduced_exactly():
    x = torch.cat([torch.randn(5000), torch.randn(500) * 1e30, torch.randn(5000) * 1e6, SPECIAL])
    compiled = Compiled(trace(lambda x: (x.sin(), x.cos(), x.tan()), [x]))
    for got, fn in zip(compiled(x), (torch.sin, torch.cos, torch.tan), strict=True):
        torch.testing.assert_close(got, fn(x.double()).float(), rtol=3e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", list(TWO_BOUNDS))
def test_error_of_two_operands_is_within_bound(library, name):
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor(
        [0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, float("inf"), -float("inf"), float("nan"), 1e-40, 1e38]
    )
    bits = torch.randint(-(2**31), 2**31 - 1, (400_000,), dtype=torch.int64, generator=generator).to(torch.int32)
    wild = bits.view(torch.float32)
    x = torch.cat([torch.rand(200_000, generator=generator) * 20, wild, special.repeat_interleave(len(special))])
    y = torch.cat([torch.rand(200_000, generator=generator) * 40 - 20, wild.roll(1), special.repeat(len(special))])
    y[100_000:300_000] = y[100_000:300_000].round()
    worst, at = ctypes.c_double(), (ctypes.c_float * 2)()
    check = getattr(library, f"check_{name}")
    check(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), len(x), ctypes.byref(worst), at)
    assert worst.value <= TWO_BOUNDS[name], f"{worst.value} units at {at[0]}, {at[1]}"


ODD = [torch.sin, torch.tan, torch.asin, torch.atan, torch.sinh, torch.asinh, torch.tanh, torch.atanh, torch.erf]


@pytest.mark.parametrize("fn", [*ODD, torch.nn.functional.gelu, torch.nn.functional.silu, torch.log1p])
def test_zeros_keep_their_sign(fn):
    x = torch.tensor([0.0, -0.0] * 20)
    with torch.backends.mkldnn.flags(enabled=False):  # whose gelu of -0.0 is 0.0 on CPUs without AVX-512
        expected = fn(x)
    assert_same_floats(Compiled(trace(fn, [x]))(x)[0], expected)


DIVISIONS = ("fmod", "remainder", "floordiv")
UNDEFINED = """
int main(void)
{
    volatile float sink;
    for (uint64_t bits = 0; bits < 0x100000000ULL; bits += 50021) {
        const float x = mp_float((int)(unsigned)bits);
        CALLS
    }
    return 0;
}
"""


def test_no_function_depends_on_undefined_behaviour(tmp_path):
    """Overflow of signed numbers, shifts too far and the like trap, whatever the argument."""
    description = Description(trace(lambda x: x**1.3, [torch.ones(3)]))
    source = _C._schedule(tuple(description.nodes), description.outputs)["source"]
    calls = "".join(f"sink = mp_{name}f(x);\n" for name in BOUNDS)
    calls += "".join(f"sink = mp_{name}_near(x);\n" for name in NEAR)
    calls += "".join(f"sink = mp_{name}_near(x, 3.0f); sink = mp_{name}_near(3.0f, x);\n" for name in DIVISIONS)
    calls += "".join(f"sink = mp_{name}f(x, 1.7f); sink = mp_{name}f(2.5f, x);\n" for name in TWO_BOUNDS)
    calls += "sink = mp_from_bf16(mp_to_bf16(x));\n"
    calls += "sink = mp_from_f16(mp_to_f16(x));\n"
    path = tmp_path / "undefined.c"
    path.write_text(source + UNDEFINED.replace("CALLS", calls))
    checks = "-fsanitize=undefined -fno-sanitize=float-divide-by-zero -fsanitize-undefined-trap-on-error"
    command = f"cc -O1 -w -ffp-contract=off {checks} -o {path}.out {path} -lm"
    subprocess.run(command.split(), check=True)
    assert subprocess.run([f"{path}.out"]).returncode == 0


def test_gelu_is_accurate_in_its_negative_tail():
    """x * (1 + erf(x / sqrt(2))) / 2 keeps its digits where the sum cancels; where it underflows it is exactly 0."""
    ends = [float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 1e-40, -1e-40, 1e6, -1e6, 3e38, -3e38]
    x = torch.cat([torch.linspace(-16, 16, 400_001), torch.logspace(-30, 4, 2001), torch.tensor(ends)])
    compiled = torch.compile(torch.nn.functional.gelu, backend="magpy", fullgraph=True)
    compiled(x)
    got, wide = compiled(x).double(), x.double()
    want = wide * (0.5 * torch.special.erfc(wide * -(0.5**0.5)))
    finite = x.isfinite()
    assert ((got - want).abs() <= 2 * 2.0**-23 * want.abs() + 2 * 2.0**-149)[finite].all()
    assert (got[finite & (x < -15)] == 0).all() and (got == wide)[finite & (x > 6)].all()
    odd = got[~finite].tolist()
    assert odd[0] == float("inf") and all(y != y for y in odd[1:])  # -inf * 0 is NaN


def test_gradient_of_gelu_is_accurate_in_its_negative_tail():
    """ncdf(x) + x * density(x): a few units of the larger of both terms, however far out."""
    x = torch.linspace(-9, 9, 40_001)

    def gradient(x):
        return torch.ops.aten.gelu_backward(torch.ones_like(x), x)

    got, wide = Compiled(trace(gradient, [x]))(x)[0].double(), x.double()
    density = wide * torch.exp(wide * wide * -0.5) * (2 * torch.pi) ** -0.5
    below = 0.5 * torch.special.erfc(wide * -(0.5**0.5))
    # exp sees x * x rounded to a float: half a unit of it is the exponential's relative error
    size = below + density.abs() * (2 + wide * wide / 2)
    assert ((got - (below + density)).abs() <= 4 * 2.0**-23 * size).all()
