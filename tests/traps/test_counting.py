"""Numbers that the program counts on with (self.n += 1) are open from the first observation on."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.compare import assert_same
from tests.counting import Counted
from tests.traps.differential import attempt

X = torch.linspace(-1, 1, 6)
TOTAL = 7


class Slots:
    __slots__ = ("n",)
    n: Any


class Counter:
    """Places of all kinds that hold a number."""

    kept: Any = 0
    n: Any
    mean: Any
    large: Any

    def __init__(self) -> None:
        self.n, self.mean, self._step, self.large = 0, 0.5, 3, 2**40
        self.table: dict[str, float] = {"a": 0, "b": 0.25}
        self.each: Any = defaultdict(int, {0: 5})
        self.rows: list[Any] = [1, 2, [3]]
        self.slots = Slots()
        self.slots.n = 1
        self.inner: Any = None

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = value

    def next(self) -> int:
        self.n += 1
        return self.n

    def state(self) -> Any:
        return (
            self.n,
            self.mean,
            self._step,
            self.large,
            self.table,
            dict(self.each),
            self.rows,
            self.slots.n,
            self.kept,
        )


def attribute(s: Counter, x: torch.Tensor) -> Any:
    s.n += 1
    return x


def spelled_out(s: Counter, x: torch.Tensor) -> Any:
    s.n = s.n + 1
    s.n = 2 + s.n
    return x * s.n


def of_floats(s: Counter, x: torch.Tensor) -> Any:
    s.mean = 0.9 * s.mean + 0.1 * 4
    return x - s.mean


def items(s: Counter, x: torch.Tensor) -> Any:
    s.table["a"] += 1
    s.table["b"] *= 2
    s.each[0] += 2
    return x + s.table["b"]


def items_of_lists(s: Counter, x: torch.Tensor) -> Any:
    s.rows[0] += 3
    s.rows[-1][0] -= 1
    s.rows[1] = s.rows[1] * 2
    return x / s.rows[0]


def by_a_property(s: Counter, x: torch.Tensor) -> Any:
    s.step += 2
    return x + s.step


def in_slots(s: Counter, x: torch.Tensor) -> Any:
    s.slots.n += 2
    return x


def by_a_method(s: Counter, x: torch.Tensor) -> Any:
    return x * s.next() + s.next()


def in_a_loop(s: Counter, x: torch.Tensor) -> Any:
    for k in range(3):
        s.n += k
    return x * s.n, s.n


def large(s: Counter, x: torch.Tensor) -> Any:
    s.large += 2**33
    return x, s.large


def of_a_global(s: Counter, x: torch.Tensor) -> Any:
    global TOTAL
    TOTAL += 1
    return x + TOTAL


def of_the_class_first(s: Counter, x: torch.Tensor) -> Any:
    s.kept += 1
    return x + s.kept


def read_before(s: Counter, x: torch.Tensor) -> Any:
    y = x * s.n
    s.n += 1
    return y, s.n


SERVED = (
    [attribute, spelled_out, of_floats, items, items_of_lists, by_a_property, in_slots, by_a_method, in_a_loop]
    + [large, of_a_global, read_before]
)  # fmt: skip


def told(function: Callable[..., Any], s: Counter, x: torch.Tensor) -> Any:
    outcome = attempt(function, s, x)
    return (type(outcome), str(outcome)) if isinstance(outcome, Exception) else outcome


def run(program: Callable[..., Any], before: Callable[[Counter, int], None] | None = None, calls: int = 8) -> list[int]:
    """Hits of each call; results and states are eager's."""
    global TOTAL
    mine, eager, hits, total = Counter(), Counter(), [], TOTAL
    fast = torch.compile(program, backend="magpy")
    totals = [total, total]
    for k in range(calls):
        for s in (mine, eager):
            if before:
                before(s, k)
        TOTAL = totals[0]
        with Counted() as counted:
            one = told(fast, mine, X + k)
        totals[0], TOTAL = TOTAL, totals[1]
        assert_same(one, told(program, eager, X + k))
        totals[1] = TOTAL
        assert totals[0] == totals[1]
        assert_same(mine.state(), eager.state())
        hits.append(counted.hits)
    TOTAL = total
    return hits


@pytest.mark.parametrize("program", SERVED, ids=lambda f: f.__name__)
def test_the_second_call_is_served(program: Callable[..., Any]) -> None:
    assert run(program) == [0] + [1] * 7


def test_a_number_of_the_class_is_one_of_the_instance_after_the_first_call() -> None:
    assert run(of_the_class_first)[2:] == [1] * 6


def test_cells() -> None:
    def make() -> Callable[..., Any]:
        n, rate = 0, 1.0

        def program(x: torch.Tensor) -> Any:
            nonlocal n, rate
            n += 1
            rate = rate * 0.5
            return x * n + rate

        return program

    fast, eager = torch.compile(make(), backend="magpy"), make()
    for k in range(5):
        with Counted() as counted:
            assert_same(fast(X + k), eager(X + k))
        assert counted.hits == int(k > 0)


def looked_at(s: Counter, x: torch.Tensor) -> Any:
    s.n += 1
    return (x + 1 if s.n % 3 == 1 else x * 2), f"{s.n}"


def as_a_size(s: Counter, x: torch.Tensor) -> Any:
    s.n = (s.n + 1) % 3
    return x[: s.n + 1] * s.rows[s.n % 2]


def as_a_key(s: Counter, x: torch.Tensor) -> Any:
    s.n = s.n % 2 + 1
    s.each[s.n] += 1
    return x, {s.n: 1}, s.n in (1, 3)


def which_object(s: Counter, x: torch.Tensor) -> Any:
    old = s.n
    s.n += 0
    return x, s.n is old, old is s.n, s.n is s.each[9]


def stops_in_between(s: Counter, x: torch.Tensor) -> Any:
    s.n += 1
    if s.n % 3 == 0:
        raise ValueError(s.n)
    s.table["a"] += s.n
    return x / s.n


def makes_another_type(s: Counter, x: torch.Tensor) -> Any:
    s.n = s.n / 2 if s.n > 5 else s.n + 2
    return x * s.n, type(s.n).__name__


def overflows(s: Counter, x: torch.Tensor) -> Any:
    s.large = s.large * 4096
    return x, s.large


def divides(s: Counter, x: torch.Tensor) -> Any:
    s.n -= 1
    s.mean = 1 / (s.n + 3)
    return x * s.mean


def becomes_a_tensor(s: Counter, x: torch.Tensor) -> Any:
    s.inner = 0 if s.inner is None else s.inner
    s.inner = s.inner + x.sum()
    return x + s.inner


def conditions(s: Counter, x: torch.Tensor) -> Any:
    if s.n:
        s.n += 1
    else:
        s.n = 4
    return x + s.n if s.n < 7 else x


LOOKS = [looked_at, as_a_size, as_a_key, which_object, stops_in_between, makes_another_type, overflows, divides]
LOOKS += [becomes_a_tensor, conditions]


@pytest.mark.parametrize("program", LOOKS, ids=lambda f: f.__name__)
def test_what_the_program_learns_of_it_is_noticed(program: Callable[..., Any]) -> None:
    run(program, calls=14)


OTHERS: dict[str, Any] = {"float": 2.5, "bool": True, "large": 2**70, "negative": -3, "text": "n", "none": None}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("program", [spelled_out, read_before, by_a_method], ids=lambda f: f.__name__)
def test_another_number_is_put_in_its_place(program: Callable[..., Any], name: str) -> None:
    def before(s: Counter, k: int) -> None:
        if k in (2, 5):
            s.n = OTHERS[name]
        if k == 4:
            s.n = 100

    run(program, before)


def test_modules_that_are_trained() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.steps, self.average = nn.Linear(6, 6), 0, 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            self.average = self.average * 0.9 + 0.1
            return self.linear(x) * self.average / self.steps

    torch.manual_seed(0)
    nets = [Net()]
    nets.append(copy.deepcopy(nets[0]))
    fast = torch.compile(nets[0], backend="magpy")
    for k in range(5):
        with Counted() as counted:
            mine = fast(X + k)
        eager = nets[1](X + k)
        assert_same(mine, eager)
        mine.sum().backward()
        eager.sum().backward()
        assert_same(nets[0].linear.weight.grad, nets[1].linear.weight.grad)
        assert (nets[0].steps, nets[0].average) == (nets[1].steps, nets[1].average)
        assert counted.hits == int(k > 0)
