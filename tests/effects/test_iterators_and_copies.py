"""Iterators as results, deep copies of what holds tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted
from tests.snapshot import Picture, difference

X = torch.tensor([1.0, 2.0, 0.5])


def begun(iterator: Any) -> Any:
    next(iterator)
    return iterator


def one_inside_the_other(x: torch.Tensor) -> Any:
    inner = iter([x, x + 1, x + 2])
    return inner, zip(inner, [1, 2, 3], strict=False)


ITERATORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "list": lambda x: iter([x + 1, x + 2]),
    "list, begun": lambda x: begun(iter([x + 1, x + 2, x + 3])),
    "list, exhausted": lambda x: [x + 1, list(i := iter([x])), i][2],
    "tuple": lambda x: begun(iter((x + 1, x + 2))),
    "range": lambda x: (x + 1, begun(iter(range(0, 10, 3)))),
    "reversed": lambda x: begun(reversed([x + 1, x + 2, x + 3])),
    "reversed, filled later": lambda x: (r := [x + 1, x + 2], begun(reversed(r)), r.append(x))[1],
    "zip": lambda x: zip([x + 1, x + 2], [1, 2], strict=True),
    "zip, begun": lambda x: begun(zip([x + 1, x + 2, x], range(5), strict=False)),
    "map": lambda x: map(lambda t: t * 2, [x + 1, x + 2]),
    "filter": lambda x: filter(lambda n: n % 2, [1, 2, 3, x.shape[0]]),
    "enumerate": lambda x: begun(enumerate([x, x + 1, x + 2], 5)),
    "count": lambda x: (x + 1, itertools.islice(begun(itertools.count(3, 2)), 4)),
    "repeat": lambda x: itertools.repeat(x + 1, 2),
    "chain": lambda x: begun(itertools.chain([x, x + 1], (x + 2,))),
    "starmap": lambda x: itertools.starmap(torch.add, [(x, x), (x, 1)]),
    "shared": one_inside_the_other,
}


def used_up(value: Any) -> Any:
    """What the iterators in it give, and their types."""
    if isinstance(value, tuple | list):
        return [used_up(item) for item in value]
    if hasattr(value, "__next__"):
        return [type(value).__name__, *[used_up(item) for item in value]]
    return value


@pytest.mark.parametrize("name", ITERATORS)
def test_iterators_as_results(name: str) -> None:
    program = ITERATORS[name]
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for k in range(4):
            assert_same(used_up(fast(X + k)), used_up(program(X + k)))
    assert counted.hits == 3 and not counted.fallbacks


CALLS: list[object] = []  # of the classes below


class Items:
    """Goes by __getitem__."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        CALLS.append("len")
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        CALLS.append(index)
        return self.items[index]


class Rows(list[Any]):
    def __iter__(self) -> Any:
        CALLS.append("iter")
        return super().__iter__()


class Places(tuple[Any, ...]):
    def __iter__(self) -> Any:
        CALLS.append("iter")
        return super().__iter__()


class Counting:
    """An iterator in Python."""

    def __init__(self, most: int) -> None:
        self.n, self.most = 0, most

    def __iter__(self) -> Any:
        CALLS.append("iter")
        return self

    def __next__(self) -> int:
        CALLS.append("next")
        self.n += 1
        if self.n > self.most:
            raise StopIteration
        return self.n


OVER: dict[str, Callable[[torch.Tensor], Any]] = {
    "list": lambda x: iter([x, 1, 2]),
    "list from its end": lambda x: reversed([x, 1, 2]),
    "tuple": lambda x: iter((x, 1, 2)),
    "text": lambda x: iter("abc"),
    "text beyond ASCII": lambda x: iter("äbc"),
    "bytes": lambda x: iter(b"abc"),
    "bytearray": lambda x: iter(bytearray(b"abc")),
    "range": lambda x: iter(range(3)),
    "long range": lambda x: iter(range(1 << 70, (1 << 70) + 3)),
    "getitem": lambda x: iter(Items(x, 1, 2)),
    "getitem from its end": lambda x: reversed(Items(x, 1, 2)),
    "tuple from its end": lambda x: reversed((x, 1, 2)),
    "own list": lambda x: iter(Rows([x, 1, 2])),
    "own list from its end": lambda x: reversed(Rows([x, 1, 2])),
    "own tuple": lambda x: iter(Places((x, 1, 2))),
    "zip": lambda x: zip([x, 1, 2], "abc", strict=True),
    "enumerate": lambda x: enumerate([x, 1, 2]),
    "map": lambda x: map(repr, [1, 2, 3]),
    "filter": lambda x: filter(None, [1, 2, 3]),
    "chain": lambda x: itertools.chain([x], (1, 2)),
    "islice": lambda x: itertools.islice([x, 1, 2, 3, 4], 3),
    "islice of all": lambda x: itertools.islice([x, 1, 2], None),
    "starmap": lambda x: itertools.starmap(max, [(1, 2), (3, 4), (5, 6)]),
    "repeat": lambda x: itertools.repeat(x, 3),
    "own iterator": lambda x: Counting(3),
    "zip of own": lambda x: zip(Counting(3), Counting(4), strict=False),
    "enumerate of own": lambda x: enumerate(Counting(3)),
    "map of own": lambda x: map(abs, Counting(3)),
    "filter of own": lambda x: filter(None, Counting(3)),
    "islice of own": lambda x: itertools.islice(Counting(4), 3),
    "chain of own": lambda x: itertools.chain(Counting(2), Counting(1)),
    "starmap of own": lambda x: itertools.starmap(max, zip(Counting(3), Counting(3), strict=True)),
    "repeat of own": lambda x: itertools.repeat(Counting(1), 3),
}


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
@pytest.mark.parametrize("name", OVER)
def test_iterators_are_as_far_as_in_eager_and_ended_ones_stay_so(name: str, steps: int) -> None:
    def program(x: torch.Tensor) -> Any:
        iterator = OVER[name](x + 1)
        for _ in range(steps):
            next(iterator, None) if steps < 4 else [*iterator]
        return iterator, x + 2

    def seen(function: Callable[[torch.Tensor], Any]) -> Any:
        CALLS.clear()
        iterator = function(X)[0]
        reduced = iterator.__reduce__() if not isinstance(iterator, Counting) else None
        picture = Picture().of([list(CALLS), reduced, used_up(iterator)])
        if hasattr(iterator, "__setstate__"):  # those that have ended do not begin again
            iterator.__setstate__((iter([[1]]),) if name.startswith("chain") else 0)
        return picture, Picture().of([used_up(iterator), list(CALLS)])

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            assert not difference(seen(fast), seen(program))
    assert counted.hits == 2 and not counted.fallbacks


def test_iterators_beyond_a_list_that_was_made_shorter_go_on_where_it_grows_again() -> None:
    def program(x: torch.Tensor) -> Any:
        rows = [x, x + 1, x + 2, x + 3]
        iterator, backwards = iter(rows), reversed(rows)
        next(iterator), next(iterator), next(iterator)
        rows.clear()
        return rows, iterator, backwards

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            (rows, iterator, backwards), (others, other, other_backwards) = fast(X), program(X)
            for each in (rows, others):
                each.extend("abcdef")
            assert list(iterator) == list(other) == list("def")
            assert list(backwards) == list(other_backwards) == list("dcba")
    assert counted.hits == 2 and not counted.fallbacks


def test_iterators_over_lists_from_outside_that_the_call_makes_longer() -> None:
    def program(x: torch.Tensor, rows: list[int]) -> Any:
        rows.append(1)
        rows.append(2)
        iterator = iter(rows)
        return x + next(iterator) + next(iterator), iterator, reversed(rows)

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            rows, others = [0], [0]
            assert_same(used_up(fast(X, rows)), used_up(program(X, others)))
            assert rows == others
    assert counted.hits == 2 and not counted.fallbacks


def test_iterators_over_lists_from_outside_go_over_them() -> None:
    rows = [X, X + 1]
    fast = torch.compile(lambda x: (x + 1, iter(rows), zip(rows, [1, 2], strict=False)), backend="magpy")
    fast(X)
    with Counted() as counted:
        _, first, second = fast(X)
    counted.assert_hit()
    rows.append(X + 2)
    assert [item is row for item, row in zip(first, rows, strict=True)] == [True] * 3
    assert len(list(second)) == 2


def test_a_live_generator_says_what_to_do() -> None:
    fast = torch.compile(lambda x: (x + k for k in range(2)), backend="magpy", fullgraph=True)
    with pytest.raises(Exception, match="return a list instead"):
        fast(X)


COPIES: dict[str, Callable[[torch.Tensor], Any]] = {
    "a tensor": lambda x: copy.deepcopy(x) + 1,
    "a tensor that is changed": lambda x: copy.deepcopy(x).mul_(2) + x,
    "a view": lambda x: copy.deepcopy(x[1:]) * 2,
    "a state": lambda x: [s := {"a": [x, x * 2], "n": 3}, c := copy.deepcopy(s), c["a"][0].add_(1), (s, c)][3],
    "shared": lambda x: [c := copy.deepcopy([x, x]), c[0].add_(1), c][2],
    "a copy": lambda x: copy.copy([x, x + 1]),
}


def test_copies_of_several_objects_are_as_shared_as_these() -> None:
    def program(rows: list[torch.Tensor]) -> Any:
        copies = copy.deepcopy(rows)
        copies[0].add_(1)
        return copies, copies[0] is copies[1]

    fast, a, b = torch.compile(program, backend="magpy"), X.clone(), X.clone()
    for rows in ([a, b], [a, b], [a, a], [b, b], [b, a], [a, b]):
        assert_same(fast(rows), program(rows))


@pytest.mark.parametrize("name", COPIES)
def test_deep_copies(name: str) -> None:
    program = COPIES[name]
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for k in range(4):
            x, y = X + k, X + k
            assert_same(fast(x), program(y))
            assert_same(x, y)
    assert counted.hits == 3 and not counted.fallbacks
