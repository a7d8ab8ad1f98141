"""float16 in memory: converted by blocks with the CPU's instructions, or by integers, to the same bits as torch."""

import os
import sys

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(__file__))
from harness import Compiled, compile_source, trace  # noqa: E402

# vector width, and what the compiler may not use
MACHINES = [(512, ""), (256, "-mno-avx512f"), (512, "-mno-avx512f -mno-f16c"), (128, "")]
MACHINES = MACHINES if os.uname().machine == "x86_64" else [(512, ""), (128, "")]


def compiled(fn, inputs, bits, flags):
    c = Compiled(trace(fn, inputs), bits=bits)
    c.library = compile_source(c.schedule["source"], bits, flags)
    return c


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    bits = {torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}[want.dtype]
    nan = want.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got.view(bits)[~nan], want.view(bits)[~nan])


def every_half():
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)


def floats_around_halves():
    """Every half, the middles between neighbours, the floats next to both, and floats of random bits."""
    half = every_half()
    exact = half[half.isfinite()].float().sort().values.unique()
    edge = torch.tensor(
        [65504.0, 65519.996, 65520.0, 65536.0, 1e30, float("inf"), 2**-25, 2**-24, 1e-30, 0.0, float("nan")]
    )
    middle = (exact[1:] + exact[:-1]) / 2
    near = [x.view(torch.int32) + step for x in (exact, middle, edge) for step in (-1, 0, 1)]
    drawn = torch.randint(-(2**31), 2**31 - 1, (50000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    return torch.cat([x.view(torch.float32) for x in [*near, drawn]] + [-edge])


@pytest.mark.parametrize("bits, flags", MACHINES)
def test_every_value_is_converted_as_torch_does(bits, flags):
    def both(h, x):
        half = x.to(torch.float16)
        return h.to(torch.float32), h.to(torch.float64), -h, half, half.float() * 3, h + half[: 2**16], (x * 0.5).half()

    inputs = every_half(), floats_around_halves()
    c = compiled(both, inputs, bits, flags)
    for pieces in (1, 3):
        for got, want in zip(c(*inputs, pieces=pieces), both(*inputs), strict=True):
            same(got, want)


@pytest.mark.parametrize("bits, flags", MACHINES)
def test_loops_of_any_length(bits, flags):
    """Blocks end with a vector that overlaps the one before; loops are short, or longer than a block."""
    lengths = (7, 17, 33, 1030, 2050)
    inputs = [torch.randn(3, n, generator=torch.Generator().manual_seed(n)).half() for n in lengths]

    def all_ways(*inputs):
        ways = []
        for x in inputs:
            ways += [
                x + x[:1],
                x.float(),
                x[1].float().half(),
                x.view(-1) * 2,
                x.amax(1),
                x[:, 1:] - x[:, :-1],
                x.max(0).values,
            ]
        return tuple(ways)

    c = compiled(all_ways, inputs, bits, flags)
    for got, want in zip(c(*inputs, pieces=2), all_ways(*inputs), strict=True):
        same(got, want)


@pytest.mark.parametrize("bits, flags", MACHINES)
def test_rows_functions_and_pieces(bits, flags):
    x, y = (torch.randn(5, 130, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def layers(x, y, w):
        z = torch.cat([x, y[:, 3:40], x], 1)
        ways = [F.softmax(x, 1), F.layer_norm(x, (130,), w), F.silu(x) * y, F.gelu(z), x.sin().float(), z + 1]
        ways += [x.sum(0), (x.float() + y).sum(0), x.t().contiguous() + 1, F.pad(x, (3, 2)), x.var(1), x > y]
        return (*ways, y.softmax(0).half(), x.mean((0, 1)), y.half().float())

    inputs = x.half(), y, torch.linspace(-2, 2, 130).half()
    c = compiled(layers, inputs, bits, flags)
    for pieces in (1, 3):
        for got, want in zip(c(*inputs, pieces=pieces), layers(*inputs), strict=True):
            torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)  # kernels round less often than eager


@pytest.mark.parametrize("bits, flags", MACHINES)
def test_rows_that_are_passed_over_several_times(bits, flags):
    """They are converted once, also where they are taken in parts; long ones are converted for each pass."""
    inputs = [torch.randn(2, n, generator=torch.Generator().manual_seed(n)).half() for n in (9, 33, 1100, 2100, 9000)]

    def passes(*inputs):
        rows = [x * (x.float() - x.float().mean(1, keepdim=True)).square().sum(1, keepdim=True) for x in inputs]
        return (
            *rows,
            *(x.float() - x.float().amax(1, keepdim=True) for x in inputs),
            *(F.softmax(x, 1) for x in inputs),
        )

    c = compiled(passes, inputs, bits, flags)
    for got, want in zip(c(*inputs, pieces=2), passes(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


def test_conversions_go_straight_from_memory_to_memory():
    x = torch.randn(3000)
    c = Compiled(trace(lambda x, h: (x.half(), h.float()), (x, x.half())), bits=256)
    source = c.schedule["source"].split("\nvoid mp_k", 1)[1]
    if os.uname().machine == "x86_64":
        assert "mp_half_to(p" in source and "mp_half_from(p" in source
        assert " f0[" not in source and " g0[" not in source
