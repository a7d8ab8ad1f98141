"""Memory that runs along another loop than the stores: transposed by tiles, equal to eager for all sizes and types."""

import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from harness import Compiled, trace  # noqa: E402

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
)
CONTIGUOUS = torch.contiguous_format


def copy(x):
    return x.clone(memory_format=CONTIGUOUS)


def data(shape, dtype, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 20
    return x > 0 if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def check(fn, *inputs, turned=True):
    c = Compiled(trace(fn, inputs))
    assert ("mp_turn" in c.schedule["source"].split("\nvoid mp_k")[1]) == turned
    expected = fn(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for pieces in (1, 3):
        for r, e in zip(c(*inputs, pieces=pieces), expected, strict=True):
            assert r.dtype == e.dtype and r.stride() == e.stride()
            assert torch.equal(r, e) or torch.allclose(r, e, rtol=1e-6, atol=1e-4)
    return c


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed_copies(dtype):
    sizes = ((8, 8), (8, 200), (200, 8), (63, 65), (64, 64), (17, 129), (100, 96), (97, 101))
    inputs = [data(size, dtype, i) for i, size in enumerate(sizes)]
    check(lambda *xs: tuple(copy(x.t()) for x in xs), *inputs)


def test_strided_rows_and_other_dims():
    x = data((12, 70, 90), torch.float32)
    check(lambda x: copy(x.transpose(1, 2)), x)
    check(lambda x: copy(x.permute(2, 0, 1)), x)
    check(lambda x: copy(x.permute(2, 1, 0)), x)
    check(lambda x: copy(x[:, 3:66, 5:80].transpose(1, 2)), x)
    check(lambda x: copy(x[:, ::2].transpose(1, 2)), x)
    check(lambda x: copy(x.view(12, 7, 10, 9, 10).permute(0, 3, 4, 1, 2)) + 1, x)


def test_with_other_operators_and_loads():
    x, y = data((70, 90), torch.float32), data((90, 70), torch.float32, 1)
    row, column = data((70,), torch.float32, 2), data((90, 1), torch.float32, 3)
    check(lambda x, y, r, c: torch.relu(x.t() * 2 - y) + r * c, x, y, row, column)
    check(lambda x, y, r, c: (x.t() + r, y * c + x.t()[:, :1]), x, y, row, column, turned=False)
    check(lambda x, y: x.to(torch.bfloat16).t() + y, data((70, 90), torch.float32), y)
    check(lambda x, m: copy(x.masked_fill(m.t(), 0.5).t()), x, data((90, 70), torch.bool))


def test_many_turned_loads_share_what_fits():
    inputs = [data((70, 90), torch.float64, i) for i in range(9)]
    check(lambda *xs: copy(sum(x.t() for x in xs)), *inputs)


def test_short_loops_and_conditions_are_left_alone():
    check(lambda x: copy(x.t()), data((90, 3), torch.float32), turned=False)
    check(lambda x: copy(x.t()), data((3, 90), torch.float32), turned=False)


def test_channels_last_both_ways():
    x = data((2, 33, 9, 11), torch.float32)
    check(lambda x: x.to(memory_format=torch.channels_last) * 2, x)
    check(lambda x: copy(x) * 2, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2", "-O1"])
def test_other_vector_units(flags, monkeypatch):
    import harness

    monkeypatch.setattr(harness, "FLAGS", f"{harness.FLAGS} {flags}")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.uint8):
        check(lambda x: copy(x.t()), data((100, 99), dtype))


@pytest.mark.parametrize("side", (2, 5, 7))
def test_short_loops_that_are_one_longer_loop_are_no_reason_to_turn(side):
    """Small images with something for each channel: all positions together are the vector loop."""
    x, scale = data((3, 64, side, side), torch.float32), data((64, 1, 1), torch.float32, 1)
    check(lambda x, scale: x * scale + 1, x, scale, turned=False)
    check(lambda x, y: torch.cat([x, y], 1) * 2, x, data((3, 8, side, side), torch.float32, 2), turned=False)


ALONG = {
    "rows": lambda x: x - x.mean(-1, keepdim=True),
    "points": lambda x: x * 2 + 1,
    "norms": lambda x: x * x.square().mean(-1, keepdim=True).rsqrt(),
}


@pytest.mark.parametrize("name", ALONG)
def test_results_along_and_across_memory_are_not_one_kernel(name):
    """Each element that is stored across lies in another line."""
    fn = ALONG[name]
    c = check(lambda x: (copy(x.transpose(-1, -2)), fn(x)), data((3, 40, 64), torch.float32))
    assert len(c.kernels) == 2
    c = check(lambda x: (copy(x.transpose(-1, -2)), fn(x)), data((3, 4, 64), torch.float32), turned=False)
    assert len(c.kernels) == 1
