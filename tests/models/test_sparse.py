"""Sparse and quantised tensors inside calls: their data are read by every run, whatever became of them by then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import magpy
from tests.compare import assert_same
from tests.counting import Counted
from tests.models.matrices import (
    FORMATS,
    MADE,
    PRODUCTS,
    N,
    dense,
    edges,
    has,
    matrix,
    plain,
    run_both,
    uncoalesced,
    version_of,
)


def changes() -> list[Callable[[torch.Tensor], Any]]:
    """In-place changes of what is kept of a sparse tensor."""

    def values(a: torch.Tensor) -> torch.Tensor:
        return a._values() if a.layout is torch.sparse_coo else a.values()

    def indices(a: torch.Tensor) -> torch.Tensor:
        parts = {torch.sparse_coo: "_indices", torch.sparse_csr: "col_indices", torch.sparse_csc: "row_indices"}
        return getattr(a, parts[a.layout])()

    def flipped(a: torch.Tensor) -> None:
        if a.layout is torch.sparse_coo:  # others must stay sorted
            indices(a).copy_(indices(a).flip(0).clone())

    return [
        lambda a: values(a).mul_(2),
        lambda a: values(a).data.add_(1),
        flipped,
        lambda a: values(a).zero_(),
        lambda a: a.mul_(3) if a.layout is torch.sparse_coo else values(a).fill_(1.5),
    ]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_other_data_at_each_call(name: str, form: str) -> None:
    program, make = PRODUCTS[name], FORMATS[form]
    if not has(program, make(0), dense()):
        pytest.skip("eager has none")
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    run_both(program, fast, make(0), dense(0))
    with Counted() as counted:
        for k in range(1, 5):  # other objects with other numbers of elements
            run_both(program, fast, make(k), dense(k))
        kept = make(0)
        for change in changes():
            change(kept)
            run_both(program, fast, kept, dense(0))
    counted.assert_hit(9)


@pytest.mark.parametrize("form", ["coo", "csr"])
def test_empty_matrices_and_such_without_rows(form: str) -> None:
    torch.compiler.reset()
    turn = torch.Tensor.to_sparse if form == "coo" else torch.Tensor.to_sparse_csr
    program = PRODUCTS["@"]
    fast = torch.compile(program, backend="magpy")
    run_both(program, fast, turn(matrix(0)), dense())
    with Counted() as counted:
        run_both(program, fast, turn(matrix(0) * 0), dense())
        run_both(program, fast, turn(matrix(1)), dense())
    counted.assert_hit(2)
    for rows, columns in [(0, N), (3, N), (0, N), (3, N)]:  # sizes are guarded
        run_both(program, fast, turn(matrix(0, rows, columns)), dense())
    with Counted() as counted:
        run_both(program, fast, turn(matrix(4, 3, N)), dense())
        run_both(program, fast, turn(matrix(4)), dense())
    counted.assert_hit(2)


def test_layout_dtype_and_requires_grad_are_guarded() -> None:
    torch.compiler.reset()
    program = PRODUCTS["@"]
    fast = torch.compile(program, backend="magpy")
    full = matrix(0)
    variants = [
        full.to_sparse(),
        full.to_sparse_csr(),
        full,
        full.double().to_sparse(),
        full.to_sparse().requires_grad_(),
        nn.Parameter(full.to_sparse(), requires_grad=False),
    ]
    with torch.no_grad():
        for _ in range(2):
            for a in variants:
                run_both(program, fast, a, dense().to(a.dtype))
        with Counted() as counted:
            for a in variants:
                run_both(program, fast, a, dense().to(a.dtype))
        counted.assert_hit(len(variants))


class Holder(nn.Module):
    def __init__(self, adj: torch.Tensor):
        super().__init__()
        self.register_buffer("adj", adj)
        self.lin = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.sparse.mm(self.adj, self.lin(x)))


def holders() -> dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], Any]]]:
    """Programs of x that find the matrix somewhere, each with what puts another one there."""
    module, plain = Holder(FORMATS["coo"](0)), Holder(FORMATS["coo"](0))
    del plain.adj
    plain.adj = FORMATS["coo"](0)
    closed, kept, several = FORMATS["coo"](0), {"adj": FORMATS["coo"](0)}, [FORMATS["coo"](0)]

    def close(a: torch.Tensor) -> None:
        nonlocal closed
        closed = a

    return {
        "buffer": (module, lambda a: setattr(module, "adj", a)),
        "attribute": (plain, lambda a: setattr(plain, "adj", a)),
        "closure": (lambda x: closed @ x, close),
        "dict": (lambda x: kept["adj"] @ x, lambda a: kept.update(adj=a)),
        "list": (lambda x: several[0] @ x, lambda a: several.__setitem__(0, a)),
    }


@pytest.mark.parametrize("place", holders())
def test_what_is_put_in_its_place_is_taken_by_the_next_call(place: str) -> None:
    torch.compiler.reset()
    program, put = holders()[place]
    fast = torch.compile(program, backend="magpy")
    with torch.no_grad():
        run_both(program, fast, dense())
        with Counted() as counted:
            for k in range(1, 4):
                put(FORMATS["coo"](k))
                run_both(program, fast, dense(k))
                put(uncoalesced(k))
                run_both(program, fast, dense(k))
        counted.assert_hit(6)


@pytest.mark.parametrize("name", MADE)
def test_sparse_tensors_that_the_call_makes(name: str) -> None:
    program = MADE[name]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    with torch.no_grad():
        run_both(program, fast, *edges(0), dense(0))
        with Counted() as counted:
            for k in range(1, 5):
                run_both(program, fast, *edges(k), dense(k))
        counted.assert_hit(4)


@pytest.mark.parametrize("name", ["product", "to dense", "coalesced", "values", "csr"])
def test_graphs_that_run_operator_by_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(magpy._C, "compile_graph", refused)
    test_sparse_tensors_that_the_call_makes(name)


def test_places_out_of_range_raise_as_in_eager() -> None:
    program = MADE["product"]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in range(3):
        run_both(program, fast, *edges(k), dense(k))
    (i, w), x = edges(0), dense(0)
    i[0, 2] = N + 2
    with pytest.raises(RuntimeError) as expected:
        program(i, w, x)
    with pytest.raises(RuntimeError) as raised:
        fast(i, w, x)
    assert str(raised.value) == str(expected.value)


def test_changes_of_memory_that_is_shared_inside_the_call() -> None:
    def before(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        w = w * 1
        a = torch.sparse_coo_tensor(i, w, (N, N))
        w.mul_(2)  # which the matrix shows
        return a @ x

    def through_data(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        w = w * 1
        a = torch.sparse_coo_tensor(i, w, (N, N))
        w.data.mul_(2)
        return a @ x

    def outside(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        a = torch.sparse_coo_tensor(i, w, (N, N))
        w.mul_(2)
        return a @ x

    def through_values(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        a = torch.sparse_coo_tensor(i, w * 1, (N, N))
        a._values().mul_(2)
        return a @ x

    def copied(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        x = x * 1
        a = x.to_sparse()
        x.mul_(2)  # which it does not show
        return a.to_dense() + x

    def given_back(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        return torch.sparse_coo_tensor(i, w, (N, N))._values()  # w's memory

    for program in (before, through_data, outside, through_values, copied, given_back):
        torch.compiler.reset()
        fast = torch.compile(program, backend="magpy")
        with torch.no_grad():
            for k in range(4):
                (i, w), (_, v) = edges(k), edges(k)
                x, y = dense(k), dense(k)
                expected, mine = program(i, w, x), fast(i, v, y)
                assert_same(mine, expected)
                assert_same(v, w)
                expected.add_(1)
                mine.add_(1)
                assert_same(v, w)


def test_changes_of_outside_matrices_inside_the_call() -> None:
    def values(a: torch.Tensor, x: torch.Tensor) -> Any:
        a.values().mul_(2)
        return a @ x

    def whole(a: torch.Tensor, x: torch.Tensor) -> Any:
        a.mul_(2)
        return a @ x

    def after(a: torch.Tensor, x: torch.Tensor) -> Any:
        y = a @ x
        a._values().add_(1)
        return y

    def view(a: torch.Tensor, x: torch.Tensor) -> Any:
        return a.values()

    def views(a: torch.Tensor, x: torch.Tensor) -> Any:
        return a.values()[1:], x + 1

    for program in (values, whole, after, view, views):
        torch.compiler.reset()
        fast = torch.compile(program, backend="magpy")
        a, b = FORMATS["coo"](0).coalesce(), FORMATS["coo"](0).coalesce()
        for k in range(4):
            expected, mine = program(a, dense(k)), fast(b, dense(k))
            assert_same(mine, expected)
            assert_same(b.to_dense(), a.to_dense())
            for out in (expected, mine):
                (out[0] if isinstance(out, tuple) else out).add_(1)
            assert_same(b.to_dense(), a.to_dense())


def test_values_in_memory_that_the_plan_uses_again() -> None:
    """The matrix lives longer than what it was made of."""

    def program(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        a = torch.sparse_coo_tensor(i, w.exp().cumsum(0) * 2, (N, N))
        for _ in range(6):
            w = (w @ w[:, None] * w.sin()).softmax(0)
        y = a @ x
        return y.tanh() @ y.t() + w.sum(), a.to_dense() - w.mean()

    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    run_both(program, fast, *edges(0), dense(0))
    with Counted() as counted:
        for k in range(1, 5):
            run_both(program, fast, *edges(k), dense(k))
    counted.assert_hit(4)


ASKED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "coalesced": lambda a, x: a @ x if a.is_coalesced() else x,
    "coalesce": lambda a, x: (a.coalesce() is a, a.coalesce() @ x),
    "values of coalesce": lambda a, x: a.coalesce()._values().sum() + x,
    "nnz": lambda a, x: x * a._nnz(),
    "dims": lambda a, x: x * a.sparse_dim() + a.dense_dim(),
    "values": lambda a, x: a._values().sum() + x,
    "indices": lambda a, x: x.index_add(0, a._indices()[0], a._values()[:, None] * x[a._indices()[1]]),
    "metadata": lambda a, x: x + a.shape[0] + a.is_sparse + a.dim() + len(a) + a.numel() + a.requires_grad,
}


@pytest.mark.parametrize("name", ASKED)
def test_what_the_program_asks_of_a_matrix(name: str) -> None:
    program = ASKED[name]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    matrices = [uncoalesced(0), uncoalesced(0).coalesce(), uncoalesced(1, 6), uncoalesced(1), uncoalesced(2).coalesce()]
    for a in [*matrices, *matrices]:
        run_both(program, fast, a, dense())
    with Counted() as counted:
        run_both(program, fast, matrices[-1], dense(1))
    if name != "nnz" and "values" not in name and name != "indices":
        counted.assert_hit()


def test_the_number_of_elements_may_be_another_at_each_call() -> None:
    program = ASKED["values"]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in range(12):
        run_both(program, fast, uncoalesced(k, 3 + k), dense())


# -- Refused ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "a view that is a result": lambda a, x: a.t(),
    "a result that shares memory": lambda a, x: _beside_its_values(x),
    "autocast": lambda a, x: _under_autocast(a, x),
    "unknown function": lambda a, x: torch.sin(a.asin()).to_dense() + x,
    "text": lambda a, x: (x + 1, str(a)),
}


def _beside_its_values(x: torch.Tensor) -> Any:
    w = x[:, 0] * 2
    return torch.sparse_coo_tensor(torch.arange(N).expand(2, N), w), w.view(1, -1)


def _under_autocast(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu"):
        return a @ x


@pytest.mark.parametrize("name", REFUSED)
def test_what_falls_back(name: str) -> None:
    program = REFUSED[name]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for k in range(3):
            a, x = FORMATS["coo"](k), dense(k)
            if not has(program, a, x):
                return
            assert_same(plain(fast(a, x)), plain(program(a, x)))
    assert counted.hits == 0 and sum(counted.fallbacks.values()) >= 3


# -- Results ---------------------------------------------------------------------------------------------------------


RESULTS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]] = {
    "scaled": lambda a, w, x: a * 2,
    "from dense": lambda a, w, x: (x + 1).relu().to_sparse(),
    "rows from dense": lambda a, w, x: (x + 1).relu().to_sparse_csr(),
    "coalesced": lambda a, w, x: (a + a).coalesce(),
    "given": lambda a, w, x: (a, x + 1),
    "of an input": lambda a, w, x: torch.sparse_coo_tensor(torch.arange(N).expand(2, N), w),
    "of an input and that": lambda a, w, x: (torch.sparse_coo_tensor(torch.arange(N).expand(2, N), w), w),
    "computed": lambda a, w, x: torch.sparse_coo_tensor(torch.arange(N).expand(2, N), w.exp() * 2),
    "twice": lambda a, w, x: [b := torch.sparse.mm(a, a), b, b @ x],
    "kept": lambda a, w, x: {"adj": a + a, "x": a @ x}["adj"],
    "quantised": lambda a, w, x: torch.quantize_per_tensor(x * 2, 0.1, 0, torch.qint8),
    "with gradients": lambda a, w, x: (a @ x, a.mul(2)),
}


@pytest.mark.parametrize("mode", ["grad", "no grad", "inference"])
@pytest.mark.parametrize("name", RESULTS)
def test_sparse_results(name: str, mode: str) -> None:
    program = RESULTS[name]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")

    def both(k: int) -> None:
        found = []
        for f in (program, fast):
            a, w, x = uncoalesced(k), dense(k, N), dense(k)
            x.requires_grad_(name == "with gradients")
            out = f(a, w, x)
            found.append([plain(out), plain(a), w])
            first = out[0] if isinstance(out, (tuple, list)) else out
            if first.is_sparse:
                first._values().mul_(2)  # shows in the arguments where it does in eager
                found[-1] += [plain(out), plain(a), w, version_of(w)]
        assert_same(found[1], found[0])

    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "grad"):
        both(0)
        with Counted() as counted:
            for k in range(1, 4):
                both(k)
        counted.assert_hit(3)


# -- Quantised --------------------------------------------------------------------------------------------------------


def quantised(k: int, scale: float = 0.1) -> torch.Tensor:
    return torch.quantize_per_tensor(dense(k), scale, 0, torch.qint8)


QUANTISED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "dequantize": lambda q, x: q.dequantize() + x,
    "function": lambda q, x: torch.dequantize(q) * 2,
    "whole numbers": lambda q, x: q.int_repr() + 1,
    "inside": lambda q, x: torch.quantize_per_tensor(x, 0.05, 3, torch.quint8).dequantize() + 1,
    "of a tensor": lambda q, x: torch.quantize_per_tensor(
        x, x.abs().max() / 127, torch.tensor(0), torch.qint8
    ).int_repr(),
    "channels": lambda q, x: torch.quantize_per_channel(
        x, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int64), 1, torch.qint8
    ).int_repr() * 2,
    "there and back": lambda q, x: torch.quantize_per_tensor(q.dequantize() * x, 0.1, 0, torch.qint32).dequantize() + x,
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_tensors(name: str) -> None:
    program = QUANTISED[name]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    run_both(program, fast, quantised(0), dense(0))
    with Counted() as counted:
        for k in range(1, 4):
            run_both(program, fast, quantised(k, 0.1 * k), dense(k))
        kept = quantised(0)
        kept.copy_(dense(4))
        run_both(program, fast, kept, dense(4))
    counted.assert_hit(4)
    run_both(program, fast, torch.quantize_per_tensor(dense(0, 3, N).t(), 0.1, 0, torch.qint8), dense(0, 3, N).t())
    run_both(program, fast, torch.quantize_per_tensor(dense(), 0.1, 0, torch.quint8), dense())


def test_scales_that_the_program_asks_for() -> None:
    def program(q: torch.Tensor) -> torch.Tensor:
        return (q.int_repr() - q.q_zero_point()) * q.q_scale()

    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in (1, 1, 2, 2, 1, 3):
        run_both(program, fast, quantised(k, 0.1 * k))
