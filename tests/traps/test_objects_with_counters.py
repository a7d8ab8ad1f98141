"""Numbers that change with each call (a counter of calls) stay open in an object of the program's own classes that C
code is given: it hashes, compares, sorts, copies the reference, calls its methods, but does not look into it."""

from __future__ import annotations

import collections
import functools
import itertools
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.compare import assert_same
from tests.counting import Counted
from tests.traps.differential import attempt

X = torch.linspace(-1, 1, 6)


class Block(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.calls = name, 0
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.weight + self.calls


class Slotted:
    __slots__ = ("calls", "__weakref__")

    def __init__(self) -> None:
        self.calls = 0


class Net(nn.Module):
    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block("first"), Block("second")])
        self.use, self.calls, self.slotted = use, 0, Slotted()
        self.table = {block: i for i, block in enumerate(self.blocks)}

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        self.slotted.calls += 2
        for block in self.blocks:
            x = block(x)
        return x, self.use(self, self.blocks[0]), self.slotted.calls


def names(blocks: Any) -> list[str]:
    return [getattr(block, "name", "net") for block in blocks]


def in_a_generator(s: Net, b: Block) -> list[str]:
    kept = s.calls  # in the generator's frame, and not given

    def each() -> Any:
        for block in s.blocks:
            yield block.name
        del kept_too[:]

    kept_too = [kept]
    return sorted(each())


LEFT_OPEN: dict[str, Callable[[Net, Block], Any]] = {
    "id": lambda s, b: id(b) == id(s),
    "hash": lambda s, b: hash(b) == hash(s),
    "an abstract class": lambda s, b: isinstance(b, Mapping) or isinstance(s.slotted, collections.abc.Sized),
    "key of a dict": lambda s, b: (s.table[b], s.table.get(b), b in s.table, s in s.table, {s: 3}.pop(s)),
    "key that is stored": lambda s, b: len({b: 1, s: 2} | {m: 1 for m in (s, b)} | dict.fromkeys([s, b])),
    "setdefault": lambda s, b: {}.setdefault(b, 4),
    "element of a set": lambda s, b: (len({s, b} | {m for m in (b, s)}), s in {b}, s in frozenset([s]) & {b}),
    "set.add": lambda s, b: [seen.add(m) for seen in [set()] for m in s.modules()],
    "in a list": lambda s, b: (b in [s, b], s in (b,), [s, b].index(b), [s, b].count(s), b in s.blocks),
    "list.remove": lambda s, b: [names(both) for both in [[s, b]] if not both.remove(s)],
    "lists compared": lambda s, b: ([s, b] == [s, b], (s,) != (b,)),
    "sorted by a key": lambda s, b: names(sorted(s.modules(), key=lambda m: -len(list(m.parameters())))),
    "max by a key": lambda s, b: max(s.blocks, key=lambda m: m.name).name,
    "map and filter": lambda s, b: names(filter(None, map(lambda m: m, [s, b]))),
    "any and all": lambda s, b: (any([s, b]), all([b])),
    "itertools": lambda s, b: names(itertools.chain([s], itertools.islice(s.blocks, 1))),
    "reduce": lambda s, b: functools.reduce(lambda a, m: m, [s, b]).name,
    "partial": lambda s, b: functools.partial(lambda m: m.name, b)(),
    "dict and deque": lambda s, b: (dict(a=b)["a"].name, len(collections.deque([s, b])), len(dict([(b, 1)]))),
    "OrderedDict": lambda s, b: len(collections.OrderedDict([(b, 1)])),
    "defaultdict": lambda s, b: len(collections.defaultdict(list)[b]),
    "Counter": lambda s, b: collections.Counter([s, b, b])[b],
    "weak reference": lambda s, b: weakref.ref(b)() is b,
    "all modules": lambda s, b: (len(dict(s.named_modules())), names(s.apply(lambda m: None).blocks)),
    "attrgetter": lambda s, b: operator.attrgetter("name")(b),
    "text of its own": lambda s, b: len("%s and %r" % (type(b).__name__, [b])) > 3,  # noqa: UP031
    "an object array": lambda s, b: np.array([s.slotted, s.slotted], dtype=object).shape,
    "a generator": in_a_generator,
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_c_code_is_given_an_object_with_a_counter(name: str) -> None:
    nets = [Net(LEFT_OPEN[name]), Net(LEFT_OPEN[name])]
    fast = torch.compile(nets[0], backend="magpy")
    for k in range(6):
        with Counted() as counted, torch.no_grad():
            mine = fast(X + k)
        with torch.no_grad():
            assert_same(mine, nets[1](X + k))
        assert counted.fallbacks == {}
        assert counted.hits == int(k > 0)
        assert [m.calls for m in [nets[0], *nets[0].blocks]] == [m.calls for m in [nets[1], *nets[1].blocks]]


class Sized:
    """Its methods look at its counter, by names that do not tell."""

    def __init__(self) -> None:
        self.calls, self.reads = 0, 0

    def _number(self) -> int:
        self.reads += 1
        return self.calls % 3

    __index__ = __hash__ = __len__ = _number

    def _truth(self) -> bool:
        return self.calls % 2 == 0

    __bool__ = _truth

    def _same(self, other: Any) -> bool:
        return isinstance(other, Sized) and self.calls % 2 == 1

    __eq__ = _same

    def _text(self) -> str:
        return f"<{self.calls}>"

    __str__ = __repr__ = _text

    def __contains__(self, item: Any) -> bool:
        return self.calls % 2  # type: ignore[return-value]

    def each(self) -> Any:
        for k in range(3):
            yield self.calls + k


LOOKED_AT: dict[str, Callable[[Sized], Any]] = {
    "an index": lambda s: [10, 20, 30][s],
    "an index that is stored": lambda s: [row for row in [[1, 2, 3]] if row.__setitem__(s, 9) is None],
    "a hash": lambda s: hash(s),
    "a key": lambda s: {0: "a", 1: "b", 2: "c", s: "d"}[s],
    "a key of another dict": lambda s: s in {Sized(): 1},
    "an element": lambda s: (s in [Sized()], [Sized()].count(s), {s} == {Sized()}),
    "a length": lambda s: len(s),
    "truth": lambda s: (bool(s), not s, 1 if s else 2),
    "filtered": lambda s: len(list(filter(None, [s, s]))),
    "compared": lambda s: ([s] == [Sized()], s == Sized()),
    "text": lambda s: (str(s), "%s" % s, f"{s}", "{}".format(s), repr([s]), "%s %s" % (s, 1)),  # noqa: UP031, UP032
    "contained": lambda s: 3 in s,
    "sorted": lambda s: sorted([0, 1, 2], key=lambda k: (k + s.calls) % 3),
    "the greatest": lambda s: max([0, 1, 2], key=lambda k: (k + s.calls) % 3),
    "given to sorted": lambda s: sorted([s.calls % 3, 1]),
    "a generator": lambda s: (sum(s.each()), 3 in s.each(), [k for k in s.each() if k in (4, 6)]),
    "sets of numbers": lambda s: len({s.calls % 2, 0} | set(s.each()) | {k % 3 for k in s.each()}),
    "attrgetter": lambda s: range(operator.attrgetter("calls")(s) % 3),
    "sorted by attrgetter": lambda s: [m is s for m in sorted([s, Sized()], key=operator.attrgetter("calls"))],
    "map": lambda s: list(map(lambda k: "ab"[k % 2], s.each())),
    "an array": lambda s: np.arange(s.calls % 3 + 1).tolist(),
    "partial": lambda s: [1, 2, 3][functools.partial(s._number)()],
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_what_its_methods_give_to_c_code_is_noticed(name: str) -> None:
    def program(x: torch.Tensor, s: Sized) -> Any:
        s.calls += 1
        return x + s.calls, LOOKED_AT[name](s), s.calls

    fast, mine, eager = torch.compile(program, backend="magpy"), Sized(), Sized()
    for k in range(14):
        assert_same(attempt(fast, X + k, mine), attempt(program, X + k, eager))
        assert (mine.calls, mine.reads) == (eager.calls, eager.reads)
