"""Elements at places that are data, places of extremes, and reversed dims: kernels against eager."""

import os
import sys

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(__file__))
from harness import Compiled, trace  # noqa: E402

import magpy  # noqa: E402

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.bool,
)
A = torch.ops.aten


def data(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 5
    return x > 0 if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def places(high, shape, low=0, dtype=torch.int64):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def equal(fn, *inputs, kernels=1, operators=(), strides=True, bound=1e-6):
    c = Compiled(trace(fn, inputs))
    expected = fn(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for number, (r, e) in enumerate(zip(c(*inputs), expected, strict=True)):
        assert r.dtype == e.dtype and r.shape == e.shape, number
        assert r.stride() == e.stride() or not strides, number
        assert torch.equal(r, e) or torch.allclose(r, e, equal_nan=True, rtol=bound, atol=bound), number
    assert tuple(c.ops()) == operators
    assert kernels is None or len(c.kernels) == kernels
    return c


def all_of(table):
    """All functions of a table as one: they are compiled together."""

    def run(*inputs):
        results = [fn(*inputs) for fn in table.values()]
        return tuple(t for r in results for t in (r if isinstance(r, tuple) else (r,)))

    return run


# -- Gathers -----------------------------------------------------------------------------------------------------------

GATHERS = {
    "embedding": lambda x, i: F.embedding(i, x),
    "index_select_0": lambda x, i: x.index_select(0, i[0]),
    "index_select_1": lambda x, i: x.index_select(1, i[1]),
    "index_select_last": lambda x, i: x.index_select(-1, i[1]),
    "gather_0": lambda x, i: x.gather(0, i),
    "gather_1": lambda x, i: x.gather(1, i),
    "index_0": lambda x, i: x[i],
    "index_1": lambda x, i: x[:, i],
    "index_both": lambda x, i: x[i, i[0]],
    "index_column": lambda x, i: x[i[:, :1], i[0]],
    "index_new_axis": lambda x, i: x[:, None][i],
    "index_rows": lambda x, i: x[torch.arange(3), i[0, :3]],
    "source_is_a_view": lambda x, i: x.t()[i],
}


NEGATIVE = {name: fn for name, fn in GATHERS.items() if name.startswith("index_") and "select" not in name}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathers_equal_eager(dtype):
    equal(all_of(GATHERS), data((7, 9), dtype), places(7, (3, 5)), kernels=None)


def test_places_may_be_narrow_integers():
    table = {name: fn for name, fn in GATHERS.items() if "rows" not in name and not name.startswith("gather")}
    equal(all_of(table), data((7, 9), torch.float32), places(7, (3, 5), dtype=torch.int32), kernels=None)


def test_each_gather_is_one_kernel():
    for fn in GATHERS.values():
        equal(fn, data((7, 9), torch.float32), places(7, (3, 5)))


def test_place_that_is_a_number():
    equal(lambda x, i: A.index(x, [None, i]), data((7, 9), torch.float32), torch.tensor(3))
    equal(lambda x, i: x.index_select(0, i), data((7, 9), torch.float32), torch.tensor(3))


def test_negative_places_count_from_the_end():
    equal(all_of(NEGATIVE), data((7, 9), torch.float32), places(7, (3, 5), low=-7), kernels=None)


def test_gather_in_three_dims():
    x, i = data((4, 5, 6), torch.float32), places(4, (2, 3))
    equal(lambda x, i: x[:, i], x, i)
    equal(lambda x, i: x[i, :, i], x, i)  # not neighbours: the places' dims go in front
    equal(lambda x, i: x[:, i, i], x, i)
    equal(lambda x, i: x.gather(2, i.unsqueeze(-1)), x, i)
    equal(lambda x, i: x[:, :, i[0]].sum(-1), x, i)


def test_places_that_are_a_view():
    # fake tensors tell other strides than eager gives
    equal(lambda x, i: x.t()[i.t()[::2]], data((9, 7), torch.float32), places(7, (3, 5)), strides=False)


def test_computed_places_and_users_are_fused():
    x, i = data((40, 16), torch.float32), places(20, (6, 5))
    equal(lambda x, i: torch.relu(x[i * 2 + 1]) * 3, x, i)
    equal(lambda x, i: x[i].sum((1, 2)), x, i, bound=1e-5)
    equal(lambda x, i: x[i].amax(0), x, i)
    equal(lambda x, i: x[i.clamp(max=3)] + x[i], x, i)


def test_source_that_is_computed_is_stored_first():
    equal(lambda x, i: (x * 2)[i] + 1, data((40, 16), torch.float32), places(20, (6, 5)), kernels=2)


def test_wide_and_narrow_rows():
    for width in (1, 2, 17, 300):
        equal(lambda x, i: x[i] + 1, data((50, width), torch.float32), places(50, (200,)))
    equal(lambda x, i: x.gather(1, i), data((3, 5000), torch.float32), places(5000, (3, 4100)))


@pytest.mark.parametrize("n", (5, 17, 40, 700, 9000))
@pytest.mark.parametrize("rows", (2, 11))
def test_places_along_rows_of_any_length(n, rows):
    """Places that all rows share are found before the first, those of a row before its elements are read one by one."""
    x, shared, own = data((rows, 50), torch.float32), places(50, (n,)), places(50, (rows, n))

    def all_ways(x, shared, own):
        picked, gathered = x.index_select(1, shared), x.gather(1, own)
        return picked, gathered * 2, gathered.exp() + picked, x[:, shared].sum(1)

    compiled = Compiled(trace(all_ways, [x, shared, own]))
    for got, want in zip(compiled(x, shared, own), all_ways(x, shared, own), strict=True):
        torch.testing.assert_close(got, want)
    for which in (1, 2):
        wrong = [x, shared.clone(), own.clone()]
        wrong[which][..., -1] = 50
        with pytest.raises(IndexError):
            compiled(*wrong)


def test_gather_inside_a_concatenation():
    x, i = data((9, 4), torch.float32), places(9, (5,))
    equal(lambda x, i: torch.cat([x[:3], x[i], x[i + 0]]), x, i, kernels=None)
    # the second piece's places are out of range where the first piece is written
    equal(lambda x, i: torch.cat([x, x[torch.arange(5) + 4]]), x, i, kernels=None)


def test_empty_results_and_sources_stay_operators():
    equal(lambda x, i: x[i], data((7, 9), torch.float32), places(7, (0,)), kernels=0, operators=("aten.index.Tensor",))
    x = torch.zeros(0, 4)
    equal(lambda x, i: x[i], x, torch.zeros(0, dtype=torch.int64), kernels=0, operators=("aten.index.Tensor",))


def test_masks_stay_operators():
    x = data((7, 9), torch.float32)
    c = Compiled(trace(lambda x, m: A.index_put(x, [m], torch.zeros(())), [x, x > 0]))
    assert c.ops() == ["aten.index_put.default"]


OUT = [
    ("embedding", lambda x, i: F.embedding(i, x), (7, -1)),
    ("index_select", lambda x, i: x.index_select(0, i), (7, -1)),
    ("gather", lambda x, i: x.gather(0, i[:, None]), (7, -1)),
    ("index", lambda x, i: x[i], (7, -8)),
    ("index_last", lambda x, i: x.t()[:, i], (7, -8)),
    ("scatter", lambda x, i: x[:5].scatter(1, i[:, None], 1.0), (9, -1)),
    ("far", lambda x, i: x[i], (2**62, -(2**62))),
]


@pytest.mark.parametrize("name,fn,values", OUT, ids=[o[0] for o in OUT])
def test_place_out_of_range_is_found(name, fn, values):
    x = data((7, 9), torch.float32)
    c = Compiled(trace(fn, [x, places(7, (5,))]))
    for value in values:
        for at in range(5):
            i = places(7, (5,))
            i[at] = value
            with pytest.raises(IndexError):
                c(x, i)
    assert torch.equal(c(x, places(7, (5,)))[0], fn(x, places(7, (5,))))


@pytest.mark.parametrize("name,fn,values", OUT, ids=[o[0] for o in OUT])
def test_compiled_call_raises_what_eager_raises_and_stores_nothing(name, fn, values):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.seen = 0

        def forward(self, x, i):
            self.seen += 1
            self.count += 1
            return fn(x * 2, i)

    def outcome(model, x, i):
        try:
            return model(x, i), model.seen, model.count.item()
        except Exception as error:
            return type(error), str(error), model.seen, model.count.item()

    x = data((7, 9), torch.float32)
    eager, model = Model(), Model()
    compiled = torch.compile(model, backend="magpy", fullgraph=True)
    for value in (None, None, *values, None):
        i = places(7, (5,))
        if value is not None:
            i[2] = value
        got, want = outcome(compiled, x, i), outcome(eager, x, i)
        if isinstance(want[0], torch.Tensor):
            assert torch.equal(got[0], want[0]) and got[1:] == want[1:]
        else:
            assert got == want


# -- Places of extremes ------------------------------------------------------------------------------------------------

ARGS = {
    "argmax": lambda x: x.argmax(),
    "argmax_0": lambda x: x.argmax(0),
    "argmax_1": lambda x: x.argmax(1),
    "argmax_keepdim": lambda x: x.argmax(-1, keepdim=True),
    "argmin": lambda x: x.argmin(),
    "argmin_0": lambda x: x.argmin(0),
    "argmin_1": lambda x: x.argmin(1, keepdim=True),
    "max_0": lambda x: tuple(x.max(0)),
    "max_1": lambda x: tuple(x.max(1)),
    "max_keepdim": lambda x: tuple(x.max(1, keepdim=True)),
    "min_0": lambda x: tuple(x.min(0)),
    "min_1": lambda x: tuple(x.min(1)),
    "fused": lambda x: (x * 2 + 1).argmax(1) * 2,
    "transposed": lambda x: x.t().argmax(1),
}


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_places_of_extremes_equal_eager(dtype):
    for shape in ((6, 37), (300, 3)):
        c = equal(all_of(ARGS), data(shape, dtype), kernels=None)
        x = (data(shape, dtype) * 0).contiguous()  # the first of equal ones
        for r, e in zip(c(x), all_of(ARGS)(x), strict=True):
            assert torch.equal(r, e)


def test_each_extreme_is_one_kernel():
    for fn in ARGS.values():
        equal(fn, data((6, 37), torch.float32))
        equal(fn, data((5, 1), torch.float32), kernels=None)


def test_not_a_number_and_infinities():
    for shape in ((20, 33), (4, 18)):
        c = Compiled(trace(all_of(ARGS), [torch.zeros(shape)]))
        for first, second in (("nan", "nan"), ("inf", "nan"), ("-inf", "inf"), ("-inf", "-inf")):
            x = data(shape, torch.float32)
            x[3, 5] = x[2, 7] = x[3, 12] = float(first)
            x[1, 5] = x[3, 9] = float(second)
            for given in (x, torch.full(shape, float(first))):
                for r, e in zip(c(given), all_of(ARGS)(given), strict=True):
                    assert torch.equal(r, e) or torch.allclose(r, e, equal_nan=True)


def test_extremes_in_three_dims():
    x = data((3, 5, 7), torch.float32)
    for dim in range(3):
        equal(lambda x, d=dim: x.argmax(d), x)
        equal(lambda x, d=dim: x.permute(2, 0, 1).argmax(d), x)
    equal(lambda x: x.permute(2, 0, 1).argmax(), x)
    equal(lambda x: x.argmax(), torch.tensor(3.0))


# -- Reversed dims -----------------------------------------------------------------------------------------------------

FLIPS = {
    "last": lambda x: x.flip(-1) + x,
    "first": lambda x: x.flip(0) * 2,
    "both": lambda x: x.flip(0, 1) + 1,
    "alone": lambda x: x.flip(1),
    "none": lambda x: A.flip(x, []),
    "of_a_sum": lambda x: (x * 2 + x.sum()).flip(1) + x,
    "of_a_view": lambda x: x.t().flip(0) + x.t(),
    "twice": lambda x: x.flip(1).flip(1) + x.flip(1),
    "summed": lambda x: x.flip(1).sum(0),
}


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_flips_equal_eager(dtype):
    table = {name: fn for name, fn in FLIPS.items() if "sum" not in name}
    for shape in ((5, 1), (6, 37)):
        equal(all_of(table), data(shape, dtype), kernels=None)


def test_flips_of_sums():
    for shape in ((1, 1), (5, 1), (6, 37), (3, 300)):
        equal(all_of(FLIPS), data(shape, torch.float32), kernels=None, bound=1e-4)


def test_rolls_equal_eager():
    table = {
        "one": lambda x: x.roll(2, 0) * 2,
        "two": lambda x: x.roll((3, -1), (0, 1)) + 1,
        "around": lambda x: x.roll((8, -15), (0, 1)) + x,
        "twice_in_one_dim": lambda x: x.roll((3, 2), (1, 1)) + 1,
        "not_at_all": lambda x: x.roll((7, 0), (0, 1)) + 1,
        "of_a_view": lambda x: x.permute(1, 2, 0).roll(1, 0) + 1,
        "windows": lambda x: x[:6, :4].roll((-1, -2), (0, 1)).view(3, 2, 2, 2, 9).transpose(1, 2) * 3,
        "of_computed": lambda x: (x * 2).roll(1, 0) + 1,
    }
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8):
        equal(all_of(table), data((7, 5, 9), dtype), kernels=None)


def test_rolls_along_memory_stay_operators():
    equal(lambda x: x.roll(1, -1) * 2, data((7, 9), torch.float32), operators=("aten.roll.default",))
    equal(lambda x: x.roll(1) * 2, data((7, 9), torch.float32), operators=("aten.roll.default",))


# -- Replaced elements -------------------------------------------------------------------------------------------------

SCATTERS = {
    "value": lambda x, i: x.scatter(1, i[:, :1], 3),
    "value_0": lambda x, i: x.scatter(0, i[:1], 2),
    "source": lambda x, i: x.scatter(1, i[:, :1], x[:, 2:4]),
    "source_0": lambda x, i: x.scatter(0, i[:1], x[1:2]),
    "one_hot": lambda x, i: torch.zeros(7, 7, dtype=x.dtype).scatter(-1, i[:, 1:2], 1) + 0,
    "of_computed": lambda x, i: (x * 2).scatter(1, i[:, :1], 1),
}


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_scatters_of_one_element_equal_eager(dtype):
    equal(all_of(SCATTERS), data((7, 7), dtype), places(7, (7, 7)), kernels=None)


def test_each_scatter_is_one_kernel():
    for fn in SCATTERS.values():
        equal(fn, data((7, 7), torch.float32), places(7, (7, 7)))


def test_scatters_of_several_elements_stay_operators():
    x, i = data((7, 9), torch.float32), places(7, (7, 2))
    equal(lambda x, i: x.scatter(1, i, 1), x, i, kernels=0, operators=("aten.scatter.value",))
    equal(lambda x, i: x.scatter(1, i[:3, :1], 1), x, i, kernels=0, operators=("aten.scatter.value",))


def test_one_hot_is_a_kernel_that_checks():
    compiled = torch.compile(lambda i: F.one_hot(i, 7) * 2, backend="magpy", fullgraph=True)
    i = places(7, (3, 5))
    for _ in range(2):
        assert torch.equal(compiled(i), F.one_hot(i, 7) * 2)
    assert set(magpy.explain(compiled).traces[0].tiers) <= {"kernel", "alloc", "view", "release"}
    for wrong in (7, -1):
        i[2, 3] = wrong
        with pytest.raises(RuntimeError, match="Class values must be"):
            compiled(i)
