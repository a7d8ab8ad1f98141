"""Lists that a program appends to at each call: how long they are is a number like any other that changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.traps.differential import Wrap, attempt, same_as_eager

Program = Callable[[list, torch.Tensor], Any]


def windowed(h: list, x: torch.Tensor) -> Any:
    h.append(x.mean())
    if len(h) > 6:
        h.pop(0)
    return x * 2


def every_third(h: list, x: torch.Tensor) -> Any:
    h.append(x.sum())
    return x + 1 if len(h) % 3 == 0 else x - 1


def numbered(h: list, x: torch.Tensor) -> Any:
    n = len(h)
    h.append(x.mean().item())
    return x * n, f"{n + 1} of {len(h)}: {h[-1]:.3f}"


def appended_twice(h: list, x: torch.Tensor) -> Any:
    first = len(h)
    h.append(1)
    second = len(h)
    h.append(x)
    return x * first + second - len(h), h[-1] is x, h[-2]


class Log:
    """Rows that know their number."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    @property
    def step(self) -> int:
        return len(self.rows)

    def add(self, **row: Any) -> None:
        self.rows.append({**row, "step": self.step})


def logged(h: list, x: torch.Tensor) -> Any:
    log = Log(h)
    log.add(loss=x.sum().item())
    return x / log.step


#: Programs of which one trace serves calls of every length that does not decide anything.
OPEN: dict[str, tuple[Program, int]] = {
    "windowed": (windowed, 6),
    "every third": (every_third, 6),
    "numbered": (numbered, 7),
    "twice": (appended_twice, 7),
    "logged": (logged, 6),
    "length first": (lambda h, x: (x * len(h), h.append(x)), 6),
    "length alone": (lambda h, x: (h.append(x), len(h))[1], 7),
    "stored": (lambda h, x: (h.append(len(h)), x * 2), 6),
}


@pytest.mark.parametrize("name", OPEN)
def test_one_trace_serves_lists_as_they_grow(name: str) -> None:
    program, hits = OPEN[name]

    def scenario(wrap: Wrap) -> Iterator[Any]:
        h: list = []
        compiled = wrap(lambda x: program(h, x))
        for i in range(9):
            yield compiled(torch.arange(3.0) + i), list(h)

    same_as_eager(scenario, min_hits=hits)


def around(h: list, x: torch.Tensor) -> Any:
    h.append(x.sum())
    return x, h[0], h[1], h[-2], h[len(h) - 1], h[-1:]


def iterated(h: list, x: torch.Tensor) -> Any:
    n = len(h)
    h.append(1)
    return x + n, [v for v in h], list(range(len(h))), sum(h), h.index(1), 1 in h


#: Programs that see more than that.
SEEN: dict[str, Program] = {
    "around": around,
    "iterated": iterated,
    "identity": lambda h, x: (h.append(2), len(h) is len(h), len(h) == 3, x),
    "items like lengths": lambda h, x: (h.append(len(h)), x * h[1], h[2] + x, h[len(h) - 2]),
    "key": lambda h, x: (h.append(1), {len(h): x}, "abcdefghijklmno"[len(h)], [0] * len(h)),
    "sizes": lambda h, x: (h.append(1), x.expand(len(h), 3), torch.zeros(len(h))),
    "by value before": lambda h, x: (x + 1 if h else x, x if len(h) > 2 else -x, h.append(1), x * len(h)),
    "truth": lambda h, x: (x if h else x + 1, h.append(1), x if h else x + 1, bool(len(h)), not len(h)),
    "taken away": lambda h, x: (h.append(1), len(h), h.pop(), len(h), h.append(2), len(h), x * len(h)),
    "cleared": lambda h, x: (len(h), h.append(1), h.clear(), len(h), h.append(x), len(h)),
    "extended": lambda h, x: (h.append(1), h.extend([2, 3]), len(h), x * len(h)),
    "replaced": lambda h, x: (h.append(5), h.__setitem__(0, len(h)), len(h), h[0], x),
    "sorted": lambda h, x: (h.append(-len(h)), h.sort(), h[-1], h[0], len(h), x),
    "far outside": lambda h, x: (h.append(1), attempt(lambda: h[100]), attempt(lambda: h[-100]), len(h), x),
    "asked by C": lambda h, x: (h.append(1), list(map(len, [h, h])), max([h], key=len) is h, h.__len__(), x),
}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("length", [3, 300])
def test_what_sees_more_of_a_growing_list_is_as_in_eager(name: str, length: int) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        h = list(range(length))
        compiled = wrap(lambda h, x: SEEN[name](h, x))
        for i in range(6):
            yield attempt(compiled, h, torch.arange(3.0) + i)
            yield list(h)
            if i == 2:
                del h[1:3]
            if i == 3:
                h.extend([7, 7, 7])
            if i == 4:
                h = [1, 2]

    same_as_eager(scenario)


@pytest.mark.parametrize("function", [sum, min, max])
@pytest.mark.parametrize("put", [list.append, lambda h, v: h.insert(0, v), lambda h, v: h.extend([v])])
@pytest.mark.parametrize("items", [[], [1.0], [9.5, -2.0]])
def test_what_a_list_held_before_counts_beside_numbers_of_data(function: Any, put: Any, items: list) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        h = list(items)

        def program(x: torch.Tensor) -> Any:
            put(h, x.mean().item())
            return x - function(h)

        compiled = wrap(program)
        for i in range(6):
            yield compiled(torch.arange(3.0) - i * i), list(h)

    same_as_eager(scenario)


def test_two_names_of_one_list() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        def program(a: list, b: list, x: torch.Tensor) -> Any:
            a.append(1)
            return x * len(b), len(a)

        compiled = wrap(program)
        a, b = [1, 2], [3]
        for pair in [(a, b), (a, b), (a, a), (b, b), (a, b), (b, a)]:
            yield compiled(*pair, torch.ones(2)), list(a), list(b)

    same_as_eager(scenario)
