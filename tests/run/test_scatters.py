"""Scatters that add: as torch's, for any dim, strides, dtype and number of threads, with indices that meet."""

import pytest
import torch
import torch.nn.functional as F

import magpy
from tests.compare import assert_same
from tests.counting import Counted

DTYPES = [torch.float32, torch.float64, torch.int64]
SHAPES = [(7,), (5, 1), (5, 130), (3, 9, 70), (2, 3, 4, 5)]


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same sizes, lying otherwise."""
    wide = torch.cat([x, x], -1)[..., : x.shape[-1]]
    turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
    return [x, wide, turned, x.select(0, 0).expand(x.shape)]


def random(shape, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape) * 5).to(dtype)


def compare(function, *args, own: bool = True) -> None:
    fast = torch.compile(function, backend="magpy")
    expected = function(*args)
    with Counted() as counted:
        for _ in range(2):
            actual = fast(*args)
            assert_same(actual, expected, rtol=1e-5, atol=1e-5)
            assert actual.stride() == expected.stride()
    assert (counted.fallbacks, counted.hits) == ({}, 1)
    assert ("mp_scatter" in str(magpy.explain(fast))) == own


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_index_add(shape, dtype):
    torch.manual_seed(0)
    for dim in range(-len(shape), len(shape)):
        index = torch.randint(0, shape[dim], (11,))
        places = list(shape)
        places[dim] = 11
        for x, source in zip(layouts(random(shape, dtype)), layouts(random(places, dtype)), strict=True):
            compare(lambda x, i, s, d=dim: x.index_add(d, i, s) * 2, x, index, source, own=dtype.is_floating_point)
    if dtype.is_floating_point:
        compare(lambda x, i, s, d=dim: x.index_add(d, i, s, alpha=-0.5), x, index, source)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scatter_add(shape, dtype):
    torch.manual_seed(0)
    for dim in range(-len(shape), len(shape)):
        places = list(shape)
        places[dim] = 6
        spread = torch.randint(0, shape[dim], (6,)).view([6 if d == dim % len(shape) else 1 for d in range(len(shape))])
        larger = [n + 1 for n in places]
        for index in (torch.randint(0, shape[dim], places), spread.expand(places)):
            for x, source in zip(layouts(random(shape, dtype)), layouts(random(larger, dtype)), strict=True):
                compare(lambda x, i, s, d=dim: x.scatter_add(d, i, s) * 2, x, index, source)


def test_an_index_smaller_than_the_result():
    x, index, source = torch.randn(6, 5), torch.randint(0, 6, (4, 3)), torch.randn(4, 4)
    compare(lambda x, i, s: x.scatter_add(0, i, s), x, index, source, own=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("places", [(13,), (3, 4)], ids=str)
def test_index_put_that_accumulates(places, dtype):
    torch.manual_seed(0)
    index = torch.randint(-9, 9, places)  # negative indices count from the end
    for x, values in zip(layouts(random((9, 5, 4), dtype)), layouts(random((*places, 5, 4), dtype)), strict=True):
        own = len(places) == 1 or values.stride(0) == values.stride(1) * values.shape[1]
        compare(lambda x, i, v: x.index_put((i,), v, accumulate=True) * 2, x, index, values, own=own)
    compare(lambda x, i, v: x.index_put((i,), v), x, torch.arange(3), random((3, 5, 4), dtype), own=False)
    compare(lambda x, i, v: x.index_put((i,), v, accumulate=True), x, index, random((4,), dtype), own=False)


@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("places", [(13,), (3, 4)], ids=str)
def test_gradient_of_an_embedding(places, padding):
    torch.manual_seed(0)
    index = torch.randint(0, 9, places)

    def gradient(weight, index):
        weight = weight.detach().requires_grad_()
        return torch.autograd.grad(F.embedding(index, weight, padding_idx=padding).sin().sum(), weight)[0]

    for dtype in (torch.float32, torch.float64):
        compare(gradient, torch.randn(9, 70, dtype=dtype), index)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = torch.compile(lambda x, i, s: x.index_add(0, i, s), backend="magpy")
        for _ in range(3):
            x, index, source = torch.randn(100, 1000), torch.randint(0, 100, (700,)), torch.randn(700, 1000)
            assert_same(fast(x, index, source), x.index_add(0, index, source), rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_that_torch_keeps(dtype):
    compare(
        lambda x, i, s: x.scatter_add(0, i, s),
        random((5, 6), dtype),
        torch.randint(0, 5, (5, 6)),
        random((5, 6), dtype),
        own=False,
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i, s: x.index_add(0, i, s),
        lambda x, i, s: x.scatter_add(0, i[:, None].expand(-1, 4), s),
        lambda x, i, s: x.index_put((i,), s, accumulate=True),
    ],
    ids=["index_add", "scatter_add", "index_put"],
)
@pytest.mark.parametrize("bad", [5, -6, 2**40])
def test_an_index_that_is_out_of_range(function, bad):
    x, index, source = torch.randn(5, 4), torch.tensor([0, 3, 3]), torch.randn(3, 4)
    fast = torch.compile(function, backend="magpy")
    for _ in range(2):
        assert_same(fast(x, index, source), function(x, index, source))
    wrong = torch.tensor([0, bad, 3])
    with pytest.raises(Exception) as expected:
        function(x, wrong, source)
    with pytest.raises(type(expected.value)) as actual:
        fast(x, wrong, source)
    assert str(actual.value) == str(expected.value)
    assert_same(fast(x, index, source), function(x, index, source))


@pytest.mark.parametrize("rows, places", [(3, 0)])
def test_nothing_to_add(rows, places):
    index = torch.zeros(places, dtype=torch.int64)
    compare(lambda x, i, s: x.index_add(0, i, s) * 2, torch.randn(rows, 4), index, torch.randn(places, 4))
