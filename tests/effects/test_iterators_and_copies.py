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
