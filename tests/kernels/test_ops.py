"""Every operator that kernels compute, against eager in double precision; one line each.

To add an operator: one Case. `fn` takes the tensors that `shapes` describe and is compared on each of `dtypes`.
`bound` is the error allowed beyond eager's own, in units of the dtype's epsilon relative to the result (absolute below
`floor`).
`extern` lists the operators that are expected to stay operators; anything else not in a kernel fails the test.
"""

import dataclasses
import os
import sys
import zlib
from collections.abc import Callable

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from harness import Compiled, trace  # noqa: E402

F32 = (torch.float32,)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTS = (torch.int64, torch.int32, torch.uint8)
ALL = FLOATS + INTS + (torch.bool,)
BOOL = (torch.bool,)
A = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    fn: Callable
    shapes: tuple = ((5, 37),)
    dtypes: tuple = FLOATS
    bound: float = 4.0
    floor: float = 1e-6
    low: float = -4.0
    high: float = 4.0
    extern: tuple = ()
    kernels: int | None = 1
    specials: bool = True  # inf, nan, zeros of both signs among the inputs


def unary(name, fn=None, **kw):
    return Case(name, fn or getattr(torch, name), **kw)


def binary(name, fn=None, **kw):
    return Case(name, fn or getattr(torch, name), shapes=((5, 37), (5, 37)), **kw)


SUMS = {"bound": 40, "floor": 1, "specials": False}
CONTIGUOUS = torch.contiguous_format
POSITIVE = {"low": 1e-3, "high": 50.0}
CASES = [
    # arithmetic
    binary("add", dtypes=ALL),
    binary("add_alpha", lambda x, y: torch.add(x, y, alpha=3), dtypes=FLOATS + INTS),
    binary("sub", dtypes=FLOATS + INTS),
    Case("rsub", lambda x: torch.rsub(x, 2), dtypes=FLOATS + INTS),
    binary("mul", dtypes=ALL),
    binary("div", dtypes=ALL),
    unary("div_scalar", lambda x: x / 3),
    binary("div_floor", lambda x, y: torch.div(x, y, rounding_mode="floor"), dtypes=(torch.float32, torch.float64)),
    binary("div_trunc", lambda x, y: torch.div(x, y, rounding_mode="trunc"), dtypes=(torch.float32, torch.float64)),
    unary("div_floor_int", lambda x: torch.div(x, 3, rounding_mode="floor"), dtypes=INTS),
    unary("div_trunc_int", lambda x: torch.div(x, 3, rounding_mode="trunc"), dtypes=INTS),
    binary("fmod", dtypes=(torch.float32, torch.float64)),
    binary("remainder", dtypes=(torch.float32, torch.float64)),
    unary("remainder_int", lambda x: torch.remainder(x, 3), dtypes=INTS),
    unary("fmod_int", lambda x: torch.fmod(x, 3), dtypes=INTS),
    unary("shifts", lambda x: (x << 2) ^ (x >> 3) ^ (x >> 1), dtypes=INTS),
    unary("shifts_beyond", lambda x: (x << 70) + (x >> 70) + (x >> -1) + (x << -1), dtypes=(torch.int64, torch.int32)),
    binary("shift_tensor", lambda x, y: torch.bitwise_left_shift(x, y.abs()) >> y.abs(), dtypes=INTS),
    unary("neg", dtypes=FLOATS + INTS),
    unary("abs", dtypes=FLOATS + INTS),
    unary("sign", dtypes=ALL),
    unary("square", lambda x: x * x, dtypes=FLOATS + INTS),
    unary("reciprocal"),
    unary("sqrt", **POSITIVE),
    unary("rsqrt", **POSITIVE),
    binary("addcmul", lambda x, y: torch.addcmul(x, y, x, value=0.5), bound=8),
    binary("addcdiv", lambda x, y: torch.addcdiv(x, y, x, value=0.5), bound=8),
    binary("lerp", lambda x, y: torch.lerp(x, y, 0.3), bound=8, dtypes=(torch.float32, torch.float64)),
    # powers
    *[unary(f"pow_{p}", lambda x, p=p: torch.pow(x, p), bound=6) for p in (0, 1, 2, 3, 4, -1, -2)],
    *[unary(f"pow_{p}", lambda x, p=p: torch.pow(x, p), low=0.1, specials=False) for p in (0.5, -0.5)],
    unary("pow_1.7", lambda x: torch.pow(x, 1.7), **POSITIVE),
    unary("pow_5", lambda x: torch.pow(x, 5)),
    binary("pow_tensor", lambda x, y: torch.pow(x, y), dtypes=(torch.float32, torch.float64)),
    unary("pow_base", lambda x: torch.pow(2.5, x)),
    unary("pow_int", lambda x: torch.pow(x, 3), dtypes=INTS),
    # functions
    unary("exp", dtypes=ALL),
    unary("exp2"),
    unary("expm1"),
    unary("log", **POSITIVE),
    unary("log2", **POSITIVE),
    unary("log10", **POSITIVE),
    unary("log1p", low=-0.9, high=10),
    unary("tanh"),
    unary("erf"),
    unary("erfc"),
    unary("asin", low=-1, high=1),
    unary("acos", low=-1, high=1),
    unary("atan"),
    unary("sinh"),
    unary("cosh"),
    unary("asinh"),
    unary("acosh", low=1, high=100),
    unary("atanh", low=-1, high=1),
    binary("atan2", dtypes=(torch.float32, torch.float64)),
    binary("hypot", dtypes=(torch.float32, torch.float64)),
    unary("sin"),
    unary("cos"),
    unary("tan", bound=8, low=-1.5, high=1.5),
    unary("sigmoid", dtypes=ALL),
    unary("floor"),
    unary("ceil"),
    unary("round"),
    unary("trunc"),
    unary("frac"),
    # activations
    unary("relu", dtypes=FLOATS + INTS),
    unary("gelu", torch.nn.functional.gelu, bound=8, low=-5),
    unary("gelu_tanh", lambda x: A.gelu(x, approximate="tanh"), bound=16),
    unary("silu", torch.nn.functional.silu),
    unary("mish", torch.nn.functional.mish),
    unary("hardtanh", lambda x: A.hardtanh(x, -1.0, 1.0)),
    unary("relu6", torch.nn.functional.relu6),
    unary("leaky_relu", lambda x: torch.nn.functional.leaky_relu(x, 0.1)),
    unary("elu", lambda x: A.elu(x, 1.3), bound=6),
    unary("softplus", lambda x: A.softplus(x, 1.5, 3.0), bound=8),
    unary("hardswish", torch.nn.functional.hardswish, bound=6),
    unary("hardsigmoid", torch.nn.functional.hardsigmoid),
    # gradients
    binary("threshold_backward", lambda g, x: A.threshold_backward(g, x, 0.0)),
    binary("sigmoid_backward", lambda g, x: A.sigmoid_backward(g, x), bound=8),
    binary("tanh_backward", lambda g, x: A.tanh_backward(g, x), bound=8),
    binary("silu_backward", lambda g, x: A.silu_backward(g, x), bound=16),
    binary("gelu_backward", lambda g, x: A.gelu_backward(g, x), bound=32, floor=1),
    binary("gelu_tanh_backward", lambda g, x: A.gelu_backward(g, x, approximate="tanh"), bound=64, floor=1),
    binary("hardtanh_backward", lambda g, x: A.hardtanh_backward(g, x, -1.0, 1.0), specials=False),
    binary("leaky_relu_backward", lambda g, x: A.leaky_relu_backward(g, x, 0.1, False)),
    # choosing and comparing
    *[binary(name, dtypes=ALL) for name in ("eq", "ne", "lt", "le", "gt", "ge")],
    *[unary(f"{name}_scalar", lambda x, name=name: getattr(torch, name)(x, 1.5), dtypes=ALL) for name in ("eq", "lt")],
    binary("minimum", dtypes=FLOATS + INTS),
    binary("maximum", dtypes=FLOATS + INTS),
    unary("clamp", lambda x: torch.clamp(x, -1, 2), dtypes=FLOATS + (torch.int64, torch.int32)),
    unary("clamp_min", lambda x: torch.clamp(x, min=0.5)),
    unary("clamp_max", lambda x: torch.clamp(x, max=0.5)),
    binary("clamp_tensor", lambda x, y: torch.clamp(x, min=y)),
    binary("where", lambda x, y: torch.where(x > y, x, y), dtypes=ALL),
    binary("where_scalar", lambda x, y: torch.where(x > y, x, 0.0)),
    binary("masked_fill", lambda x, y: x.masked_fill(y > 0, -1e9), dtypes=(torch.float32, torch.float64)),
    unary("isnan", dtypes=FLOATS + INTS),
    unary("isinf", dtypes=FLOATS),
    binary("logical_and", dtypes=ALL),
    binary("logical_or", dtypes=ALL),
    binary("logical_xor", dtypes=ALL),
    unary("logical_not", dtypes=ALL),
    binary("bitwise_and", dtypes=INTS + BOOL),
    binary("bitwise_or", dtypes=INTS + BOOL),
    binary("bitwise_xor", dtypes=INTS + BOOL),
    unary("bitwise_not", dtypes=INTS + BOOL),
    # types
    *[
        unary(f"to_{str(d)[6:]}", lambda x, d=d: A._to_copy(x, dtype=d), dtypes=ALL, specials=False, low=0, high=100)
        for d in ALL
    ],
    unary("round_to_bf16", lambda x: x.to(torch.bfloat16).to(torch.float32) * 3, dtypes=F32),
    unary("round_to_f16", lambda x: x.to(torch.float16).to(torch.float32) * 3, dtypes=F32),
    Case("mixed_int_float", lambda x: x + torch.ops.aten._to_copy(x, dtype=torch.int64), specials=False, dtypes=F32),
    Case("int_times_float_scalar", lambda x: x * 1.5, dtypes=INTS + BOOL),
    Case("zero_dim", lambda x, y: x * y, shapes=((5, 37), ()), dtypes=FLOATS),
    Case("zero_dim_double", lambda x: x * torch.full((), 0.1, dtype=torch.float64), dtypes=F32),
    Case("int_zero_dim", lambda x: x + torch.full((), 3, dtype=torch.int64), dtypes=FLOATS + INTS),
    # constants
    Case("full", lambda x: x + torch.full((37,), 2.5), dtypes=F32),
    Case(
        "full_only", lambda x: (torch.full((3, 4), 2.5), torch.zeros(5), torch.ones(2, 2, dtype=torch.int64)), kernels=3
    ),
    Case("arange", lambda x: x + torch.arange(37), dtypes=F32 + (torch.int64,)),
    Case("arange_step", lambda x: torch.arange(1, 12, 2.5), dtypes=F32),
    Case("causal_mask", lambda x: x.masked_fill(torch.arange(5)[:, None] < torch.arange(37), -1e9), dtypes=F32),
    Case("full_like", lambda x: torch.full_like(x, 3) + x, dtypes=FLOATS),
    # reductions
    *[
        Case(
            f"sum_{i}",
            lambda x, d=d, k=k: x.sum(d, keepdim=k),
            shapes=((4, 5, 37),),
            dtypes=ALL,
            bound=40,
            floor=1,
            specials=False,
        )
        for i, (d, k) in enumerate([((-1,), False), ((0,), False), ((1,), True), ((0, 2), False), ((0, 1, 2), False)])
    ],
    Case("sum_all", lambda x: x.sum(), dtypes=ALL, **SUMS),
    Case("sum_of_a_number", lambda x: x.sum().sum(-1) + x.sum().amax(0), dtypes=F32, **SUMS),
    Case("sum_as_double", lambda x: x.sum(-1, dtype=torch.float64), dtypes=F32, specials=False),
    *[Case(f"mean_{d}", lambda x, d=d: x.mean(d), bound=16, floor=1, specials=False) for d in (0, 1, -1)],
    *[Case(f"amax_{d}", lambda x, d=d: x.amax(d), dtypes=ALL) for d in (0, 1)],
    *[Case(f"amin_{d}", lambda x, d=d: x.amin(d), dtypes=ALL) for d in (0, 1)],
    Case("max_all", lambda x: x.max(), dtypes=FLOATS + INTS),
    *[Case(f"any_{d}", lambda x, d=d: (x > 3.5).any(d)) for d in (0, 1)],
    *[Case(f"all_{d}", lambda x, d=d: (x < 3.5).all(d)) for d in (0, 1)],
    Case("any_value", lambda x: x.any(), dtypes=ALL),
    *[Case(f"prod_{d}", lambda x, d=d: x.prod(d), low=0.8, high=1.2, bound=64, specials=False) for d in (0, 1)],
    *[Case(f"var_{d}", lambda x, d=d: x.var(d), bound=32, specials=False) for d in (0, 1)],
    Case("var_mean", lambda x: torch.var_mean(x, [1], correction=0, keepdim=True), bound=32, floor=1, specials=False),
    Case("var_one", lambda x: x.var(1), shapes=((5, 1),), dtypes=F32),
    *[Case(f"argmax_{d}", lambda x, d=d: x.argmax(d), dtypes=FLOATS + INTS) for d in (None, 0, 1)],
    Case("min_indices", lambda x: tuple(x.min(1)), dtypes=FLOATS + INTS),
    # places that are data (more of them in test_gather.py)
    Case(
        "index",
        lambda x, y: x[A._to_copy(A.clamp(y, -5, 4), dtype=torch.int64)] * 2,
        shapes=((5, 37), (3, 4)),
        dtypes=FLOATS + (torch.int64,),
        specials=False,
    ),
    Case("flip", lambda x: x.flip(1) + x, dtypes=FLOATS + INTS),
    # pieces
    Case("cat_0", lambda x, y: torch.cat([x, y], 0), shapes=((5, 37), (3, 37)), dtypes=FLOATS + INTS),
    Case("cat_1", lambda x, y: torch.cat([x, y * 2, x], 1), shapes=((5, 7), (5, 30)), dtypes=FLOATS),
    Case("pad", lambda x: A.constant_pad_nd(x, [1, 2, 0, 3], 1.5), dtypes=FLOATS + INTS),
    Case("pad_crop", lambda x: A.constant_pad_nd(x, [-1, 2, 1, -2], 0.0), dtypes=FLOATS),
    # views inside kernels
    Case("view", lambda x: (x * 2).view(-1) + 1, dtypes=FLOATS),
    Case("permute", lambda x: (x * 2).permute(2, 0, 1) + 1, shapes=((3, 4, 5),), dtypes=F32),
    Case("transpose_clone", lambda x: (x * 2).t().clone(memory_format=CONTIGUOUS), dtypes=FLOATS),
    Case(
        "heads",
        lambda x: (x * 2).view(2, 6, 4, 8).transpose(1, 2).clone(memory_format=CONTIGUOUS) + 1,
        shapes=((2, 6, 32),),
        dtypes=F32,
    ),
    Case("expand", lambda x, y: x + y.expand(5, 37), shapes=((5, 37), (5, 1)), dtypes=F32),
    Case("slice", lambda x: (x * 2)[:, 3:30:3] + 1, dtypes=F32),
    Case("select", lambda x: (x * 2)[:, 3] + 1, dtypes=F32),
    Case("split", lambda x: [a * b for a, b in [torch.split(x * 3, 12, 1)[:2]]][0], shapes=((5, 24),), dtypes=F32),
    Case("chunk_glu", lambda x: (lambda a, b: a * torch.sigmoid(b))(*x.chunk(2, 1)), shapes=((5, 24),), dtypes=F32),
    Case("squeeze", lambda x: (x.unsqueeze(1) * 2).squeeze(1), dtypes=F32),
    Case("diagonal", lambda x: (x * 2).diagonal() + 1, dtypes=F32),
    Case("unbind", lambda x: (lambda p: p[0] + p[1] * p[2])(x.unbind(0)), shapes=((3, 37),), dtypes=F32),
]


def make_input(shape, dtype, case, generator):
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if not dtype.is_floating_point:
        low = 0 if dtype == torch.uint8 else int(case.low)
        return torch.randint(low, max(int(case.high), low + 2), shape, generator=generator).to(dtype)
    x = (torch.rand(shape, generator=generator) * (case.high - case.low) + case.low).to(dtype)
    if case.specials and x.numel() > 60:
        flat = x.view(-1)
        flat[1::11][:5] = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0], dtype=dtype)
    return x


def check(results, expected, references, case):
    assert len(results) == len(expected)
    for result, eager, exact in zip(results, expected, references, strict=True):
        assert result.dtype == eager.dtype and result.shape == eager.shape
        assert result.stride() == eager.stride()
        if not eager.dtype.is_floating_point:
            assert torch.equal(result, eager)
            continue
        r, e, x = result.double(), eager.double(), exact.double()
        same = (r == e) | (r == x) | (r.isnan() & e.isnan())
        eps = torch.finfo(eager.dtype).eps
        scale = x.abs().clamp(min=max(case.floor, torch.finfo(eager.dtype).tiny / eps))
        wrong = ~same & ~((r - x).abs() <= (e - x).abs() + case.bound * eps * scale)
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            at = tuple(at)
            raise AssertionError(f"at {at}: {r[at].item()!r}, eager {e[at].item()!r}, exact {x[at].item()!r}")


def as_list(x):
    return list(x) if isinstance(x, (tuple, list)) else [x]


def to_double(x):
    return x.double() if x.dtype.is_floating_point else x


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_operator_equals_eager(case):
    for dtype in case.dtypes:
        generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
        inputs = [make_input(shape, dtype, case, generator) for shape in case.shapes]
        compiled = Compiled(trace(case.fn, inputs))
        assert sorted(set(compiled.ops()) - set(case.extern)) == [], f"not in a kernel, {dtype}"
        if case.kernels is not None:
            assert len(compiled.kernels) == case.kernels
        expected = as_list(case.fn(*inputs))
        references = as_list(case.fn(*[to_double(i) for i in inputs]))
        check(compiled(*inputs), expected, references, case)
