"""Sets come out of a run as they come out of eager, in all that can be seen of them: their order follows from their
history (what was there and is gone, how large the set once was), and so does the order after the next change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.counting import Counted

X = torch.ones(2)
KEYS = [0, 1, 2, 9, 17, 33, 64, -1, -2, 0.5, "a", "b", "k1", None, True, (1, "a"), (64, (9,))]


def grown(n: int, left: int) -> set[Any]:
    """A set that once had n elements."""
    out = set(range(n))
    for i in range(left, n):
        out.discard(i)
    return out


def popped() -> set[Any]:
    out = {3, 11, 19, 27, 5}
    out.pop()
    return out


def changed_back() -> set[Any]:
    out = {1, 2}
    for _ in range(3):
        out.add(9)
        out.discard(9)
    return out


HISTORIES: dict[str, Callable[[], set[Any]]] = {
    "plain": lambda: {1, 2},
    "empty": set,
    "emptied": lambda: grown(40, 0),
    "shrunk": lambda: grown(40, 3),
    "collides": lambda: {17, 9, 1, 33},
    "popped": popped,
    "changed back": changed_back,
    "mixed": lambda: set(KEYS),
    "large": lambda: set(range(0, 3000, 7)),
}


def toggled(s: set[Any]) -> Any:
    s ^= {1, 17}


def added(s: set[Any]) -> Any:
    s.add(33)
    s.add("a")


def removed(s: set[Any]) -> Any:
    s.discard(1)
    s.discard(9)


def there_and_back(s: set[Any]) -> Any:
    s.add(41)
    s.remove(41)


def united(s: set[Any]) -> Any:
    s |= {7, 15, 23}
    s.update([31, 39], (47,))


def cut(s: set[Any]) -> Any:
    s &= {1, 17, 33, 2, "a"}


def subtracted(s: set[Any]) -> Any:
    s -= {2, 9}


def taken(s: set[Any]) -> Any:
    return s.pop() if s else None


def cleared(s: set[Any]) -> Any:
    s.clear()
    s.add(9)
    s.add(1)


def copied(s: set[Any]) -> Any:
    return s.copy(), set(s), frozenset(s), s | {5, 13}, s - {1}, s & {1, 2, 9}, {*s, 21}, {q for q in s}  # noqa: C416


def made(s: set[Any]) -> Any:
    fresh = {9, 1, 17}
    fresh.discard(9)
    frozen = frozenset([33, 1, 9])
    return fresh, frozen, frozen - {1}, {frozen}, {"set": set(s) ^ {1, 64}}


OPERATIONS = [toggled, added, removed, there_and_back, united, cut, subtracted, taken, cleared, copied, made]


def seen(value: Any) -> Any:
    """All that can be seen of sets: their order, now and after changes, and what they give away."""
    if isinstance(value, dict):
        return [seen(item) for item in value.values()]
    if isinstance(value, tuple | list):
        return [seen(item) for item in value]
    if not isinstance(value, set | frozenset):
        return repr(value)
    out: list[Any] = [type(value).__name__, list(map(repr, value)), repr(value), list(map(repr, set(value)))]
    if isinstance(value, set):
        for key in [9, 1, 73, 81, "z"]:
            value.add(key)
            out.append(list(map(repr, value)))
        value.discard(73)
        out.append(list(map(repr, value | {89})))
        out.append([repr(value.pop()) for _ in range(min(3, len(value)))])
    return out


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_a_set_is_eagers_in_every_order(operation: Callable[[set[Any]], Any], history: str) -> None:
    def program(x: torch.Tensor, s: set[Any]) -> Any:
        return x + 1, operation(s)

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            mine, eagers = HISTORIES[history](), HISTORIES[history]()
            actual, expected = fast(X, mine)[1], program(X, eagers)[1]
            assert [seen(actual), seen(mine)] == [seen(expected), seen(eagers)]
    assert counted.hits == 2 and not counted.fallbacks


def test_a_set_with_another_history_is_another_one() -> None:
    def program(x: torch.Tensor, s: set[Any]) -> Any:
        s.add(64)
        return x + 1, list(s)

    fast = torch.compile(program, backend="magpy")
    for _ in range(2):
        for make in HISTORIES.values():
            mine, eagers = make(), make()
            assert fast(X, mine)[1] == program(X, eagers)[1]
            assert seen(mine) == seen(eagers)


def test_sets_through_many_calls() -> None:
    """What one call leaves is what the next one finds."""

    def program(x: torch.Tensor, s: set[Any], key: Any) -> Any:
        s ^= {key}
        s.discard(2)
        return x + 1, [*s], s & {key, 1}

    fast = torch.compile(program, backend="magpy")
    mine, eagers = {1, 2}, {1, 2}
    for i in range(60):
        key = (9, 17, "a")[i % 3]
        assert seen(fast(X, mine, key)[1:]) == seen(program(X, eagers, key)[1:])
        assert list(mine) == list(eagers)
