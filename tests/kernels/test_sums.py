"""Reductions of rows of any length: every element is taken once, whatever vectors and chunks a row is cut into."""

import pytest
import torch

from tests.kernels.harness import Compiled, trace

SHORT = (1, 2, 3, 4, 7, 9, 17, 18, 31, 33, 49, 65, 66, 100, 129)
LONG = (2049, 8193, 8211)


def equal(fn, inputs, bits):
    compiled = Compiled(trace(fn, inputs), bits=bits)
    assert compiled.ops() == []
    for result, eager in zip(compiled(*inputs), fn(*inputs), strict=True):
        assert result.dtype == eager.dtype and torch.equal(result.nan_to_num(7.25), eager.nan_to_num(7.25))


def whole_numbers(shape, dtype):
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(shape[1])).to(dtype)


@pytest.mark.parametrize("bits", [512, 256])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)
def test_every_element_is_taken_once(dtype, bits):
    exact = torch.float32 if dtype in (torch.bfloat16, torch.float16) else None

    def fn(*rows):
        sums = [x.sum(1, dtype=exact) for x in rows]
        return sums + [x.to(exact or dtype).square().sum(1) for x in rows]

    equal(fn, [whole_numbers((3, n), dtype) for n in SHORT + LONG], bits)


@pytest.mark.parametrize("bits", [512, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_and_products_at_every_place(dtype, bits):
    """Row i has a number of its own at place i: a greatest one, a least one, a factor or NaN."""

    def fn(*rows):
        return [y for x in rows for y in (x.amax(1), x.amin(1), x.prod(1), (x < -1).any(1), (x < 2).all(1))]

    inputs = []
    for n in SHORT:
        for special in (2.0, -2.0, float("nan")):
            inputs.append(torch.ones(n, n, dtype=dtype) + torch.diag(torch.full((n,), special - 1, dtype=dtype)))
            inputs[-1][torch.eye(n, dtype=torch.bool)] = special
    equal(fn, inputs, bits)


@pytest.mark.parametrize("bits", [512, 256])
def test_passes_and_their_stores(bits):
    inputs = [torch.randn(5, n, generator=torch.Generator().manual_seed(n)) for n in SHORT + LONG]

    def fn(*rows):
        return [torch.log_softmax(x, 1) for x in rows] + [(x - x.mean(1, keepdim=True)).exp() for x in rows]

    results = Compiled(trace(fn, inputs), bits=bits)(*inputs)
    for result, exact in zip(results, fn(*[x.double() for x in inputs]), strict=True):
        assert torch.allclose(result.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bits", [512, 256])
def test_long_sums_do_not_lose_digits(bits):
    x = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0))
    (result,) = Compiled(trace(lambda x: x.sum(), [x]), bits=bits)(x)
    exact = x.double().sum()
    assert abs(result.double() - exact) <= 2e-6 * exact


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_rows(rows):
    def fn(x, y):
        return x.sum(1), x.prod(1), (x > 0).any(1), (x > 0).all(1), x.sum(), torch.log_softmax(y, 1), y.sum(0)

    inputs = torch.ones(rows, 0), torch.ones(rows, 0)
    compiled = torch.compile(fn, backend="magpy")
    for _ in range(3):
        for result, eager in zip(compiled(*inputs), fn(*inputs), strict=True):
            assert result.dtype == eager.dtype and torch.equal(result, eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_read_along_columns(dtype):
    inputs = [torch.randn(n, 19, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (3, 17, 50, 129)]
    inputs += [torch.randn(7, 3 * n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (5, 33)]
    inputs[1][4, 5] = float("nan")

    def fn(*xs):
        rows = [x.t() if x.shape[1] == 19 else x[:, ::3] for x in xs]
        return [torch.softmax(x, 1) for x in rows] + [x.flip(1) - x.amax(1, keepdim=True) for x in rows]

    bound = 8 * torch.finfo(dtype).eps
    results = Compiled(trace(fn, inputs))(*inputs)
    for result, exact in zip(results, fn(*[x.double() for x in inputs]), strict=True):
        assert torch.allclose(result.double(), exact, rtol=bound, atol=bound, equal_nan=True)
