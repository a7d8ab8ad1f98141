"""Ints and floats from outside that are other ones at each call (counters, schedules, arguments): inputs of the graph
from the second observation on, as far as the program only computes with them."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted

X = torch.linspace(-2, 3, 12).reshape(4, 3)


def counts(fast: Callable, program: Callable, calls: list[tuple]) -> list[int]:
    """Hits of each call; every result is eager's, nothing falls back."""
    hits = []
    for args in calls:
        with Counted() as counted:
            mine = fast(*args)
        assert_same(mine, program(*args))
        assert counted.fallbacks == {}
        hits.append(counted.hits)
    return hits


class Batch(NamedTuple):
    x: torch.Tensor
    rate: float


@dataclasses.dataclass(frozen=True)
class Settings:
    x: torch.Tensor
    rate: float


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, by: float) -> torch.Tensor:
        ctx.by = by
        return x.view_as(x) * -by

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return -ctx.by * gradients[0], None


SERVED: dict[str, tuple[Callable, list[tuple]]] = {
    "a float": (lambda x, t: x / t, [(X, 0.5 + k) for k in range(6)]),
    "an int": (lambda x, n: (x * n + n, x.long() + n, n, -n, n / 3), [(X, 3 * k - 7) for k in range(6)]),
    "a schedule": (
        lambda x, step, lr: (x * lr * math.cos(step / 10), step + 1, lr * 0.9**step),
        [(X, k, 0.1 / (k + 1)) for k in range(8)],
    ),
    "given twice": (lambda x, n: (x * n, n + n, (n, [n])), [(X, k) for k in range(300, 306)]),
    "by name": (lambda x, *, n: x * n, []),
    "handed on": (lambda x, n: (lambda y, m=1.0: y * m)(x, m=n) + (lambda: n * x)(), [(X, k / 4) for k in range(6)]),
    "a field of a namedtuple": (
        lambda t: (t.x * t.rate, t.rate * 2, t[1] - t.rate),
        [(Batch(X, k / 4),) for k in range(6)],
    ),
    "a field of a dataclass": (
        lambda t: t.x * t.rate + dataclasses.replace(t, rate=t.rate * 2).rate,
        [(Settings(X, k / 4),) for k in range(6)],
    ),
    "of a function of torch": (lambda x, t: Reversed.apply(x, t) + 1, [(X, k / 4) for k in range(6)]),
    "special floats": (lambda x, t: x * t, [(X, t) for t in (1.0, 2.0, math.inf, -0.0, 0.0, math.nan, 1e300)]),
}


@pytest.mark.parametrize("name", [n for n in SERVED if SERVED[n][1]])
def test_arguments_that_change(name: str) -> None:
    program, calls = SERVED[name]
    fast = torch.compile(program, backend="magpy")
    assert counts(fast, program, calls)[3:] == [1] * (len(calls) - 3)


def test_arguments_by_name() -> None:
    def program(x: torch.Tensor, *, n: float) -> torch.Tensor:
        return x * n

    fast = torch.compile(program, backend="magpy")
    for k in range(6):
        with Counted() as counted:
            assert_same(fast(X, n=k / 2), program(X, n=k / 2))
        assert counted.hits == int(k > 1)


def test_the_same_number_by_two_ways() -> None:
    class Pair:
        a = b = 300

    pair = Pair()
    pair.a = pair.b = 300

    def program(x: torch.Tensor, n: int) -> Any:
        return x * pair.a + n, pair.b, pair.a - pair.b

    fast = torch.compile(program, backend="magpy")
    for a, b, n in [
        (300, 300, 300),
        (301, 300, 300),
        (302, 300, 302),
        (302, 302, 302),
        (5, 6, 7),
        (5, 5, 5),
        (6, 5, 5),
    ]:
        pair.a, pair.b = a, b
        assert_same(fast(X, n), program(X, n))
    assert find_callable(fast).describe()["fallbacks"] == []


def test_dicts_from_outside_that_are_filled_with_numbers() -> None:
    tables: list[dict[str, Any]] = [{"n": 0, "step": 1}, {"n": 0, "step": 1}]

    def program(x: torch.Tensor, table: dict[str, Any]) -> torch.Tensor:
        table.update(loss=x.sum().item(), text=f"{x[0, 0].item()}")
        table.update({"n": table["n"] + 1})
        table.setdefault("first", x[0, 0].item())
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for k in range(6):
        assert_same(fast(X + k, tables[0]), program(X + k, tables[1]))
        assert list(tables[0].items()) == list(tables[1].items())


def test_counters_in_modules() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.epoch = 0, 0
            self.register_buffer("mean", torch.zeros(3))
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.step += 1
            decay = min(0.9, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                self.mean.mul_(decay).add_(x.mean(0), alpha=1 - decay)
            return self.linear(x - self.mean) / (1 + self.epoch)

    torch.manual_seed(0)
    nets = [Average(), Average()]
    nets[1].load_state_dict(nets[0].state_dict())
    fast = torch.compile(nets[0], backend="magpy")
    hits = []
    for k in range(14):
        for net in nets:
            net.epoch = k // 4
            net.zero_grad()
        with Counted() as counted:
            mine = fast(X + k)
        expected = nets[1](X + k)
        assert_same(mine, expected)
        mine.sum().backward()
        expected.sum().backward()
        assert_same([p.grad for p in nets[0].parameters()], [p.grad for p in nets[1].parameters()])
        assert_same((nets[0].step, nets[0].mean), (nets[1].step, nets[1].mean))
        assert type(nets[0].step) is int and counted.fallbacks == {}
        hits.append(counted.hits)
    assert sum(hits) >= 10


total = 0


def test_globals_cells_and_containers() -> None:
    cell, table = 0.0, {"rate": 1.0, "inner": [0, 5]}

    def program(x: torch.Tensor) -> Any:
        global total
        nonlocal cell
        total += 1
        cell = cell + 0.5
        table["rate"] *= 0.9
        return x * total + cell, x * table["rate"], table["inner"][0] * x

    fast = torch.compile(program, backend="magpy")
    hits = []
    for k in range(10):
        before = total, cell, dict(table)
        expected = program(X)
        after = total, cell, dict(table)
        total_, cell, rates = before
        globals()["total"] = total_
        table.update(rates)
        with Counted() as counted:
            mine = fast(X)
        assert_same(mine, expected)
        assert_same((total, cell, dict(table)), after)
        table["inner"][0] = k
        assert counted.fallbacks == {}
        hits.append(counted.hits)
    assert sum(hits[6:]) == 4


class Watched:
    """An object whose attribute and item are the same number; reading goes through Python and C."""

    def __init__(self) -> None:
        self.hidden: Any = 0

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    shown = property(lambda self: getattr(self, "hidden"))  # noqa: B009

    @shown.setter
    def shown(self, value: Any) -> None:
        self.__dict__["hidden"] = value


READ_BY_C: dict[str, Callable[[Any], Any]] = {
    "getattr": lambda o: getattr(o, "hidden"),  # noqa: B009
    "getattr with another": lambda o: getattr(o, "hidden", -1),
    "of a property": lambda o: o.shown,
    "object.__getattribute__": lambda o: object.__getattribute__(o, "hidden"),
    "dict.get": lambda o: vars(o).get("hidden"),
    "dict.get with another": lambda o: vars(o).get("hidden", -1),
    "dict.__getitem__": lambda o: vars(o).__getitem__("hidden"),
    "what is missing": lambda o: getattr(o, "absent", 5) + vars(o).get("absent", 7) + getattr(o, "hidden"),  # noqa: B009
    "and looked at": lambda o: (getattr(o, "hidden") % 3, str(vars(o).get("hidden")), hasattr(o, "hidden")),  # noqa: B009
}


@pytest.mark.parametrize("name", READ_BY_C)
def test_numbers_that_c_functions_read(name: str) -> None:
    read = READ_BY_C[name]
    things = Watched(), Watched()

    def program(x: torch.Tensor, thing: Watched) -> Any:
        thing.shown += 2
        seen = read(thing)
        return x * (seen if isinstance(seen, int) else seen[0]), seen, thing.shown

    fast = torch.compile(program, backend="magpy")
    hits = []
    for k in range(9):
        if k == 6:
            for thing in things:
                thing.hidden = 300
        with Counted() as counted:
            mine = fast(X, things[0])
        assert_same(mine, program(X, things[1]))
        assert things[0].hidden == things[1].hidden and counted.fallbacks == {}
        hits.append(counted.hits)
    assert name in ("and looked at", "dict.__getitem__") or sum(hits) == 7


def test_many_numbers_that_change_at_once_take_one_more_observation() -> None:
    class Meters:
        def __init__(self) -> None:
            self.sums = dict.fromkeys(range(6), 0.0)
            self.counts, self.step, self.flag = [0] * 4, 0, True

    meters = Meters(), Meters()

    def program(x: torch.Tensor, m: Meters, rate: float, n: int = 1) -> Any:
        for i in range(6):
            m.sums[i] += i + rate
        for i in range(4):
            m.counts[i] += n
        m.step += 1
        return x * m.sums[0] + m.sums[5] * m.counts[3] if m.flag else x - m.step

    fast = torch.compile(program, backend="magpy")
    hits = []
    for k in range(12):
        for m in meters:
            m.flag = k != 8
            m.step = 1.5 if k == 10 else m.step
        with Counted() as counted:
            mine = fast(X, meters[0], k + 0.25, n=k + 1)
        assert_same(mine, program(X, meters[1], k + 0.25, n=k + 1))
        assert vars(meters[0]) == vars(meters[1]) and counted.fallbacks == {}
        hits.append(counted.hits)
    assert hits == [0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1]


class Log(list):
    """A list of the program's own, which says what it has."""

    kept = 0

    def last(self) -> Any:
        return self[-1]


LOGGING: dict[str, tuple[int, Callable[[Any, torch.Tensor], Any]]] = {
    "blindly": (1, lambda log, x: log.append(1)),
    "tensors": (1, lambda log, x: log.append((x.sum(), {"x": x + 1}))),
    "several": (1, lambda log, x: (log.append(1), list.append(log, 2), log.append(x))[0]),
    "with an attribute": (1, lambda log, x: (log.append(1), setattr(log, "kept", log.kept + 1))[0]),
    "its length": (0, lambda log, x: (log.append(1), len(log))[1]),
    "its items": (0, lambda log, x: (log.append(1), [item for item in log], log.last())[1:]),
    "before it": (0, lambda log, x: (len(log), log.append(1), 1 in log)[::2]),
    "and taken": (0, lambda log, x: (log.append(3), log.append(4), log.pop(0), list(log))[2:]),
}


def test_fields_of_a_namedtuple_are_guarded_where_they_are_looked_at() -> None:
    class Short(Batch):
        pass

    def program(t: Any) -> Any:
        rate = t.rate
        return t.x * rate, rate > 1, rate is t[1], {rate: 1} if rate == 0.5 else t.rate

    fast = torch.compile(program, backend="magpy")
    for kind in (Batch, Short):
        for rate in (0.25, 0.5, 0.5, 2.0, 0.5, 300, 300.0, math.nan, 0.25):
            t = kind(X, rate)
            mine, expected = fast(t), program(t)
            assert_same(mine[0], expected[0])
            assert repr(mine[1:]) == repr(expected[1:])


@pytest.mark.parametrize("kind", [list, Log])
@pytest.mark.parametrize("name", LOGGING)
def test_lists_that_grow(name: str, kind: type) -> None:
    blind, log_in = LOGGING[name]
    if kind is list and name in ("with an attribute", "its items"):
        pytest.skip("lists have no attributes")
    logs = kind([0]), kind([0])

    def program(x: torch.Tensor, log: Any) -> Any:
        return x + 1, log_in(log, x)

    fast = torch.compile(program, backend="magpy")
    hits = 0
    for k in range(6):
        with Counted() as counted:
            mine = fast(X + k, logs[0])
        assert_same(mine, program(X + k, logs[1]))
        assert_same(list(logs[0]), list(logs[1]))
        assert getattr(logs[0], "kept", None) == getattr(logs[1], "kept", None)
        assert counted.fallbacks == {}
        hits += counted.hits
    assert not blind or hits >= 3


def looked(x: torch.Tensor, n: Any) -> Any:
    return x * n, str(n), [1, 2, 3, 4, 5, 6, 7, 8, 9][n] if type(n) is int else None


def sized(x: torch.Tensor, n: Any) -> Any:
    return x.repeat(n, 1), x[: n - 1], [x + i for i in range(n)], torch.zeros(n)


def branched(x: torch.Tensor, n: Any) -> Any:
    return x + n if n > 3 else x - n, n % 2 == 0, "odd" if n % 2 else "even"


def typed(x: torch.Tensor, n: Any) -> Any:
    return x.long() + n, isinstance(n, int), type(n), n is True, n


def failing(x: torch.Tensor, n: Any) -> Any:
    try:
        return x / (1 / (n - 3))
    except ZeroDivisionError as error:
        return x, str(error)


def unsupported(x: torch.Tensor, n: Any) -> Any:
    return F.leaky_relu(x, float(n)), x.norm(p=n), F.dropout(x, 1 / (n + 1), training=False)


def kept(x: torch.Tensor, n: Any, memory: list[Any] = []) -> Any:  # noqa: B006
    memory.append(n)
    del memory[:-3]
    return x * n, {"n": n, (1, 2): [n]}, {n: 1}, {n}


@pytest.mark.parametrize("program", [looked, sized, branched, typed, failing, unsupported])
def test_whatever_looks_at_a_number_is_guarded(program: Callable) -> None:
    fast = torch.compile(program, backend="magpy")
    values = [1, 2, 3, 4, 3, 2, 1, 6, 3, 8, 5, 7, 7, 4]
    if program in (typed, branched, failing):
        values += [2.0, 4.5, True, False, 10**30, -(2**63), 2**63 - 1, 2**64, 3.0, 3]
    for n in values:
        try:
            expected = program(X, n)
        except Exception as error:
            with pytest.raises(type(error)):
                fast(X, n)
            continue
        assert_same(fast(X, n), expected)


def test_numbers_in_keys_and_containers() -> None:
    fast = torch.compile(kept, backend="magpy")
    for n in [1, 2, 3, 2, 5, 6, 5, 1.5, 2.5, 2.0]:
        memory: list[Any] = [0]
        other: list[Any] = [0]
        assert_same(fast(X, n, memory), kept(X, n, other))
        assert_same(memory, other)


def test_a_location_read_in_several_ways() -> None:
    class Holder:
        def __init__(self) -> None:
            self.n = 300

    holder = Holder()

    def program(x: torch.Tensor) -> Any:
        first = holder.n
        again = holder.n
        return x * first + again, first - again, first is again, getattr(holder, "n") + first  # noqa: B009

    def whole(x: torch.Tensor) -> Any:
        n = holder.n
        return x * n, dict(vars(holder)), sorted(vars(holder).values()), holder.n

    for run in (program, whole):
        fast = torch.compile(run, backend="magpy")
        for n in (300, 301, 302, 1000, 1, 2, 3.5, 4.5, 301):
            holder.n = n
            assert_same(fast(X), run(X))


def test_many_calls_keep_few_traces() -> None:
    fast = torch.compile(lambda x, k: (x * k, k + 1), backend="magpy")
    for k in range(200):
        assert_same(fast(X, k), (X * k, k + 1))
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 198


def test_how_much_a_deque_keeps_is_no_open_number() -> None:
    box: dict[str, Any] = {}

    def full(x: torch.Tensor) -> Any:
        box["recent"].append(x.sum())
        box["recent"].appendleft(1.0)
        return x * len(box["recent"]) + sum(box["recent"])

    def shown(x: torch.Tensor) -> Any:
        limit = box["recent"].maxlen
        return full(x), limit, collections.deque([1, 2, 3], limit)

    for program in (full, shown):
        fast = torch.compile(program, backend="magpy")
        items: list[Any] = []
        for maxlen in (2, 3, None, 2, 0, 1, 4):
            for _ in range(3):
                results = []
                for run in (fast, program):
                    box["recent"] = collections.deque(items, maxlen)
                    results.append((run(X), list(box["recent"])))
                assert_same(*results)
                items = results[1][1]


#: Ways of looking at a number that was computed from one from outside.
LOOKS: dict[str, Callable[[Any], Any]] = {
    "as a key": lambda n: {n: 1} and 0,
    "its hash": lambda n: hash((n, 1)) * 0,
    "in a set": lambda n: len({n, 1}),
    "its type and value": lambda n: isinstance(n, int) and n == 3,
    "as an index": lambda n: [7, 8, 9, 10, 11, 12, 13, 14, 15][n],
    "as a branch": lambda n: "more" if n > 4 else "less",
    "its text": lambda n: len(repr([n])),
    "how often": lambda n: sum(1 for _ in range(n)),
}


@pytest.mark.parametrize("name", list(LOOKS))
@pytest.mark.parametrize("computes", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_looks_at_what_follows_from_a_number(name: str, computes: bool, shown: bool) -> None:
    """Whatever else the call computes: where it computes no tensors, what it saw of the number is still checked."""
    look = LOOKS[name]

    def program(x: torch.Tensor, box: dict[str, int]) -> Any:
        box["n"] += 1
        seen = look(box["n"])
        return (x * 2 if computes else 1), (seen if shown else None)

    fast = torch.compile(program, backend="magpy")
    mine, plain = {"n": 0}, {"n": 0}
    for n in (None, None, None, None, 2, None, 2, None, 5, 2):
        if n is not None:
            mine["n"] = plain["n"] = n
        assert_same(fast(X, mine), program(X, plain))
        assert mine == plain
