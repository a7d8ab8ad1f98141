"""Operators whose results' sizes are data, and sizes that the program reads from data: a trace for each size, found
again, and no other size is ever served by it."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted
from tests.traps.differential import same_as_eager


def count(x: torch.Tensor) -> int:
    return int((x > 0).sum())


def filled(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[x > 0] = x[x > 0] * 2
    y[y < -1] += x[y < -1]
    return y


def placed(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[x[:, 0].argmax()] = x[0] * 2
    y[0, x[0].argmin()] += 1
    y[x[:, 1].argmax(), torch.tensor([0, 2])] = 3
    row = y[x[:, 2].argmin().int() - 4]
    row += 5  # of y
    return y


def reshaped(x: torch.Tensor) -> torch.Tensor:
    sizes = torch.cat([(x[0, :1] > 0).long() * 2 + 2, torch.tensor([-1])])
    y = torch.onnx.operators.reshape_from_tensor_shape(x, sizes)
    return torch.onnx.operators.reshape_from_tensor_shape(y, torch.onnx.operators.shape_as_tensor(x)) * y.shape[0]


def rows(x: torch.Tensor) -> Any:
    kept = [row for row in x if row.sum() > 0]
    return torch.stack(kept) if kept else x[:0]


def halved(x: torch.Tensor) -> torch.Tensor:
    while x.abs().max() > 0.5:
        x = x / 2
    return x


PROGRAMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "mask": lambda x: (x[x > 0] * 2, x[x[:, 0] > 0], x[x[:, 0] > 0, 1:], x[None][:, x > 0], x[x[:, 0] > 0][:, :2]),
    "statistics of a mask": lambda x: x[x > 0].sum() + x[(x > 0) & (x < 1)].mean(),
    "mask of bytes": lambda x: x[(x > 0).to(torch.uint8)],
    "mask of one": lambda x: (x[(x > 1).any()] * 2, x[(x[0, 0] > 0).to(torch.uint8)], x[x[0, 1] < 0].sum()),
    "item set": filled,
    "nonzero": lambda x: (torch.nonzero(x > 0), (x > 0).nonzero() + 1, torch.nonzero(x > 0, as_tuple=True)),
    "where": lambda x: (x[torch.where(x > 0)] + 1, torch.argwhere(x > 0) + 1),
    "masked_select": lambda x: x.masked_select(x > 0) * 3 + torch.masked_select(x, x > 0),
    "unique": lambda x: (torch.unique((x * 2).long()), (x * 2).long().unique(return_inverse=True)),
    "unique with counts": lambda x: torch.unique((x * 2).long(), return_inverse=True, return_counts=True),
    "unique counts": lambda x: torch.unique((x * 2).long(), return_counts=True),
    "unique rows": lambda x: torch.unique((x > 0).long(), dim=0, return_inverse=True),
    "unique in a row": lambda x: torch.unique_consecutive((x * 2).long().flatten(), return_counts=True),
    "repeated": lambda x: torch.repeat_interleave(x, (x[:, 0].abs() * 3).long(), dim=0),
    "repeated columns": lambda x: x.repeat_interleave((x[0].abs() * 3).long(), 1),
    "counted": lambda x: (torch.bincount((x.abs() * 3).long().flatten()), torch.bincount((x > 0).long().flatten(), x.flatten())),
    "one_hot": lambda x: F.one_hot((x.abs() * 3).long()),
    "slices": lambda x: (x[: count(x) // 2] * 2, x.flatten()[(x > 0).sum() :], x[:, : (x[0] > 0).sum()]),
    "index": lambda x: x[count(x) % 4] * 2,
    "places": lambda x: (x[x[:, 0].argmax()], x[:, x[0].argmax()] * 2, x[x[:, 0].argmin(), None, x[0].argmin() - 3]),
    "places that are set": placed,
    "reshaped by data": reshaped,
    "split": lambda x: torch.split(x.flatten(), [count(x), x.numel() - count(x)]),
    "sizes from tensors": lambda x: (torch.zeros((x > 0).sum()), x.expand((x > 0).sum(), *x.shape), torch.arange((x > 0).sum())),
    "sizes from constant tensors": lambda x: (
        x.repeat(torch.arange(3).max() + 1, torch.tensor(2)),
        x.expand(torch.tensor([2, 4]).sum(), *x.shape),
        x.new_zeros((torch.tensor(2), (x > 0).sum())),
        torch.full((torch.tensor([2, 1]).max(),), x.sum()),
        torch.topk(x, k=torch.tensor(2), dim=1),
    ),
    "least squares": lambda x: (torch.linalg.lstsq(x, x[:, :2] + 1), torch.linalg.lstsq(x, x * 2).solution + 1),
    "loop": lambda x: [x[i % 4] * i for i in range(count(x))],
    "loop over rows": rows,
    "loop until": halved,
    "sizes looked at": lambda x: x[x > 0].numel() + len(x[x < 0]) + x.sum(),
    "random after sizes": lambda x: torch.rand_like(x[x > 0]) + F.dropout(x[x > 0], 0.5),
}  # fmt: skip


def data(k: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(k))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_trace_for_each_size(name: str) -> None:
    program = PROGRAMS[name]
    fast = torch.compile(program, backend="magpy")
    for k in (0, 0, 1, 1, 2, 2, 0, 1, 2):
        torch.manual_seed(k)
        with Counted() as counted:
            mine = fast(data(k))
        state = torch.get_rng_state()
        torch.manual_seed(k)
        assert_same(mine, program(data(k)))
        assert torch.equal(state, torch.get_rng_state())
        assert counted.fallbacks == {} and counted.hits + counted.traces == 1
    mine = find_callable(fast)
    assert mine.hits >= 6 and mine.n_traces <= 3


@pytest.mark.parametrize("size", [lambda t: len(t), lambda t: t.shape[0] % 3, lambda t: t.numel()])
def test_sizes_of_results_that_are_not_used(size: Callable) -> None:
    def program(x: torch.Tensor) -> Any:
        return x + 1, size(torch.nonzero(x > 0)), size(x[x < 0.5]), size(torch.unique(x.long()))

    for grad in (False, True):
        fast = torch.compile(program, backend="magpy")
        for k in (0, 1, 2, 3, 0, 1, 2):
            assert_same(fast(data(k).requires_grad_(grad)), program(data(k).requires_grad_(grad)))


def test_gradients_of_least_squares() -> None:
    def program(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.linalg.lstsq(x, y).solution * 2

    fast = torch.compile(program, backend="magpy")
    for k in (0, 1, 2):
        found = []
        for call in (program, fast):
            x, y = data(k).requires_grad_(), data(k + 5).requires_grad_()
            result = call(x, y)
            found.append((result, *torch.autograd.grad(result.square().sum(), (x, y))))
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert find_callable(fast).hits == 2


def test_nothing_and_everything() -> None:
    fast = torch.compile(lambda x: (x[x > 0], torch.nonzero(x), x[x > 0].sum()), backend="magpy")
    for x in (torch.zeros(3), torch.ones(3), torch.zeros(3), torch.ones(3)):
        assert_same(fast(x), (x[x > 0], torch.nonzero(x), x[x > 0].sum()))
    assert find_callable(fast).hits == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_places_of_every_type_and_out_of_range(dtype: torch.dtype) -> None:
    def program(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[place] = 0
        return y[place] + y[0]

    fast = torch.compile(program, backend="magpy")
    for k in (1, 0, 3, 1, 0, 3, 2):
        x, place = data(k), torch.tensor(k).to(dtype)
        assert_same(fast(x, place), program(x, place))
    if dtype not in (torch.int64, torch.int8):
        return
    assert find_callable(fast).hits == 3
    assert_same(fast(x, place - 4), program(x, place - 4))
    with pytest.raises(IndexError, match="out of bounds|out of range"):
        fast(x, place + 4)


def test_gradients_of_selected_elements() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.linear(x))
            chosen = y[y > 0]
            scores = torch.masked_select(y * 2, y < 0.3).sum()
            return (chosen * chosen.detach().mean()).sum() + scores + y[torch.nonzero(x[:, 0] > 0).flatten()].sum()

    torch.manual_seed(0)
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    fast = torch.compile(nets[0], backend="magpy")
    hits = 0
    for k in (0, 0, 1, 1, 0):
        gradients = []
        with Counted() as counted:
            for run, net in ((fast, nets[0]), (nets[1], nets[1])):
                net.zero_grad()
                x = data(k).requires_grad_()
                run(x).backward()
                gradients.append([x.grad, *[p.grad for p in net.parameters()], *[b.clone() for b in net.buffers()]])
        assert_same(*gradients)
        assert counted.fallbacks == {}
        hits += counted.hits
    assert hits >= 1


def test_a_check_holds_where_results_share_memory_under_autograd() -> None:
    def program(x: torch.Tensor) -> Any:
        y = x * 2
        if y.detach().sum() > 0:
            y = y + 1
        a, b = y.chunk(2)
        return a, b, y.T, a.detach()

    fast = torch.compile(program, backend="magpy")
    for k in range(6):
        given = [data(k).requires_grad_() for _ in range(2)]
        mine, expected = fast(given[0]), program(given[1])
        assert_same(mine, expected)
        for outs in (mine, expected):
            sum(t.square().sum() for t in outs if t.requires_grad).backward()
        assert_same(given[0].grad, given[1].grad)
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 4


def test_a_run_that_is_thrown_away_changes_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(()))
            self.calls, self.seen = 0, []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total += x.sum()
            self.calls = self.calls * 0 + 1
            noise = torch.rand(2)
            if x.sum() > 0:
                self.seen = ["positive"]
            return x[x > 0].sum() + noise

    net, plain = Net(), Net()
    fast = torch.compile(net, backend="magpy")
    for k in (0, 1, 2, 3, 0, 1, 2, 3):
        torch.manual_seed(k)
        mine, state = fast(data(k)), torch.get_rng_state()
        torch.manual_seed(k)
        assert_same(mine, plain(data(k)))
        assert torch.equal(state, torch.get_rng_state())
        assert_same((net.total, net.calls, net.seen), (plain.total, plain.calls, plain.seen))


def test_a_run_stops_where_data_is_other() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = x + 1
        return torch.linalg.inv(x)  # raises where x is singular

    fast = torch.compile(program, backend="magpy")
    fast(torch.eye(2))
    with Counted() as counted:
        mine = fast(torch.eye(2) * -1.0)  # with 1 added it would be fine, and inverted in vain
    assert_same(mine, program(torch.eye(2) * -1.0))
    assert (counted.traces, counted.fallbacks) == (1, {})
    with Counted() as counted, pytest.raises(RuntimeError, match="singular"):
        fast(torch.ones(2, 2) * -1.0)


def test_sizes_that_never_come_back() -> None:
    def program(x: torch.Tensor) -> Any:
        return x[x > 0] * 2

    fast = torch.compile(program, backend="magpy")
    for k in range(40):
        x = torch.arange(40.0) - k
        assert_same(fast(x), program(x))
    assert find_callable(fast).n_traces <= 4


def test_more_branches_than_traces_are_cut_back() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 2 + 1

    def program(x: torch.Tensor) -> torch.Tensor:
        y = inner(x)
        for k in range(8):
            if x[k] > 0:
                y = y + k
        return y

    fast = torch.compile(program, backend="magpy")
    torch.manual_seed(0)
    with Counted() as counted:
        for _ in range(120):
            x = torch.randn(8)
            assert_same(fast(x), program(x))
    mine = find_callable(fast)
    assert mine.n_traces == 0 and "DATA_READ" in counted.fallbacks
    assert any(each.hits > 40 for each in mine.describe()["callees"].values())  # the rest is compiled


def test_branches_that_fit_stay() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        for k in range(3):
            x = x + 1 if x[k] > 0 else x * 2
        return x

    fast = torch.compile(program, backend="magpy")
    torch.manual_seed(0)
    for _ in range(100):
        x = torch.randn(3)
        assert_same(fast(x), program(x))
    assert find_callable(fast).n_traces <= 8 and find_callable(fast).hits >= 92


def left_out(x, y):
    """The places but that of a number from the data: sizes of constants."""
    kept = torch.ones(4, dtype=torch.bool)
    kept[int(y[0])] = False
    places = torch.arange(4)[kept]
    drawn = places[torch.randint(0, places.size(0), (1,))]
    kept[drawn] = False
    return x[places], x[torch.arange(4)[kept]], drawn, places


def of_constants(x, y):
    mask = torch.tensor([True, False, True, True])
    once = torch.nonzero(mask)[:, 0]
    unique, counts = torch.unique(torch.tensor([3, 1, 3]), return_counts=True)
    return x[once], x[unique], torch.repeat_interleave(counts) + y[0], once.tolist(), mask.masked_select(mask).numel()


@pytest.mark.parametrize("program", [left_out, of_constants])
@pytest.mark.parametrize("required", [False, True])
def test_sizes_that_follow_from_constants(program, required):
    def scenario(wrap):
        f = wrap(program)
        for step in (0, 0, 1, 2, 0, 1, 2, 3):
            torch.manual_seed(7)
            x = torch.linspace(0, 3, 4).requires_grad_(required)
            results = f(x, torch.tensor([step, 5]))
            yield results
            if required:
                sum(r.sum() for r in results if torch.is_tensor(r) and r.requires_grad).backward()
                yield x.grad

    counted = same_as_eager(scenario)
    assert counted.fallbacks == {}
    assert counted.hits >= (4 if program is left_out else 7)
