"""cumsum and cumprod by vectors: as torch's, for any dim, strides, dtype and number of threads."""

import pytest
import torch

import magpy
from tests.compare import assert_same
from tests.counting import Counted

SHAPES = [(), (7,), (0, 3), (5, 1), (300,), (2, 300, 9), (6, 2, 70), (2, 3, 2, 3, 4)]
DTYPES = [torch.float32, torch.float64, torch.int64]


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same sizes, lying otherwise."""
    if x.dim() == 0:
        return [x]
    wide = torch.cat([x, x], -1)[..., : x.shape[-1]]
    turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
    return [x, wide, turned, x.select(0, 0).expand(x.shape) if len(x) else x]


@pytest.mark.parametrize("scan", [torch.cumsum, torch.cumprod], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_torch(scan, dtype, shape):
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).to(dtype)
    if dtype.is_floating_point and x.numel() > 9:
        x.view(-1)[5], x.view(-1)[-2] = -0.0, float("inf")
    for dim in range(-max(1, x.dim()), max(1, x.dim())):
        for given in layouts(x):
            fast = torch.compile(lambda t, d=dim: scan(t, d), backend="magpy")
            expected = scan(given, dim)
            with Counted() as counted:
                for _ in range(2):
                    actual = fast(given)
                    assert actual.stride() == expected.stride()
                    assert torch.equal(actual.nan_to_num(3), expected.nan_to_num(3))
            assert (counted.fallbacks, counted.hits) == ({}, 1)
    if x.numel():
        assert "mp_scan" in str(magpy.explain(fast))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = torch.compile(lambda x, y: (x.cumsum(0), y.cumsum(1)), backend="magpy")
        for _ in range(3):
            x, y = torch.randn(500, 600), torch.randn(700, 500)
            assert_same(fast(x, y), (x.cumsum(0), y.cumsum(1)), rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_that_torch_keeps(dtype):
    x = (torch.randn(5, 6) * 3).to(dtype)
    for to in (None, torch.float32):
        fast = torch.compile(lambda t, to=to: t.cumsum(0, dtype=to), backend="magpy")
        for _ in range(2):
            assert_same(fast(x), x.cumsum(0, dtype=to))


def test_gradients():
    x = torch.randn(6, 5, requires_grad=True)
    fast = torch.compile(lambda t: t.cumsum(0) * t.cumprod(1), backend="magpy")
    for _ in range(2):
        expected, actual = x.cumsum(0) * x.cumprod(1), fast(x)
        torch.testing.assert_close(actual, expected)
        ours, theirs = (torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected))
        torch.testing.assert_close(ours, theirs)
