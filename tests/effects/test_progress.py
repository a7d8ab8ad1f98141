"""Progress bars of tqdm inside a call: what they go through is the program, what they show an effect of the commit."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.traps.differential import Wrap, attempt, same_as_eager

tqdm = pytest.importorskip("tqdm")

X = torch.arange(6.0).reshape(2, 3)
OUT = io.StringIO()
FORM = "{desc}{n_fmt}/{total_fmt}{postfix}"
SHOWN: dict[str, Any] = {"file": OUT, "mininterval": 0, "ascii": True, "bar_format": FORM}
LAYERS = [nn.Linear(3, 3) for _ in range(3)]


def over_layers(x: torch.Tensor) -> Any:
    for layer in tqdm.tqdm(LAYERS, **SHOWN):
        x = layer(x)
    return x


def over_a_range(x: torch.Tensor) -> Any:
    for i in tqdm.trange(4, desc="steps", **SHOWN):
        x = x + i
    return x


def of_a_submodule(x: torch.Tensor) -> Any:
    from tqdm.auto import tqdm as bar

    return sum(x * i for i in bar(range(1, 3), file=OUT, disable=True))


def around_and_inside(x: torch.Tensor) -> Any:
    parts = []
    for k, part in enumerate(tqdm.tqdm(x, total=2, **SHOWN)):
        parts.append(part * k)
    for a, b in tqdm.tqdm(zip(list(parts), [1, 2], strict=True), **SHOWN):
        parts.append(a * b)
    return torch.stack(parts)


def of_a_generator(x: torch.Tensor) -> Any:
    def halves() -> Iterator[torch.Tensor]:
        for i in range(3):
            yield x / (i + 1)

    return [t.sum() for t in tqdm.tqdm(halves(), **SHOWN)]


def nested(x: torch.Tensor) -> Any:
    for _ in tqdm.tqdm([1, 2], desc="outer ", **SHOWN):
        for _ in tqdm.tqdm([1, 2, 3], desc="inner ", leave=False, **SHOWN):
            x = x * 1.5
    return x


def by_hand(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm(total=3, **SHOWN)
    for i in range(3):
        x = x * 2
        bar.set_description(f"step {i} ")
        bar.update(1)
    bar.close()
    return x


def with_numbers(x: torch.Tensor) -> Any:
    with tqdm.tqdm([1.0, 2.0], **SHOWN) as bar:
        for factor in bar:
            x = x * factor
            bar.set_postfix(loss=x.sum().item(), shape=tuple(x.shape))
    return x


def of_data(x: torch.Tensor) -> Any:
    for _ in tqdm.tqdm(range(int(x[0, 1])), **SHOWN):
        x = x * 2
    return x


def left_early(x: torch.Tensor) -> Any:
    for i in tqdm.tqdm(range(5), **SHOWN):
        x = x + i
        if i == 2:
            break
    return x


def raises(x: torch.Tensor) -> Any:
    try:
        for i in tqdm.tqdm(range(5), **SHOWN):
            if i == 2:
                raise KeyError(i)
    except KeyError:
        x = x * 2
    return x


def raises_inside(x: torch.Tensor) -> Any:
    parts = [x]
    for a, b in tqdm.tqdm(zip(parts, [1], strict=True), **SHOWN):
        parts.append(a * b)
    return parts


def looked_at(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm([1, 2], **SHOWN)
    return [x * i for i in bar], len(bar), bar.n, bar.total


# the program, and the hits in 4 calls
PROGRAMS: list[tuple[Callable[[torch.Tensor], Any], int]] = [
    (over_layers, 3),
    (over_a_range, 3),
    (of_a_submodule, 3),
    (around_and_inside, 3),
    (of_a_generator, 3),
    (nested, 3),
    (by_hand, 3),
    (with_numbers, 3),
    (of_data, 1),
    (left_early, 3),
    (raises, 0),
    (raises_inside, 0),
    (looked_at, 0),
]


@pytest.mark.parametrize(("program", "hits"), PROGRAMS, ids=[program.__name__ for program, _ in PROGRAMS])
def test_what_is_shown(program: Callable[[torch.Tensor], Any], hits: int) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for i in (1, 2, 1, 2):
            OUT.seek(0)
            OUT.truncate()
            result = attempt(function, X * i)
            yield result, OUT.getvalue() if program is not left_early else OUT.getvalue().strip("\n\r ")

    same_as_eager(scenario, min_hits=hits)


def whole(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm([1, 2], **SHOWN)
    return x * 2, bar


def in_the_loop(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm([1, 2, 3], **SHOWN)
    loop = iter(bar)
    return x * next(loop), bar, loop


def by_hand_and_kept(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm(total=4, desc="kept", **SHOWN)
    bar.update(2)
    return x * 2, bar


def after_the_end(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm([1, 2], **SHOWN)
    return [x * i for i in bar], bar


def given_up_before(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm([1, 2], **SHOWN)
    threading.active_count()
    x.numpy().tofile("/dev/null")
    bar.total = 7
    return x * 2, bar


@pytest.mark.parametrize("program", [whole, in_the_loop, by_hand_and_kept, after_the_end, given_up_before])
def test_a_bar_that_the_program_keeps(program: Callable[[torch.Tensor], Any]) -> None:
    """It is one of tqdm's in all that can be seen."""

    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for _ in range(3):
            OUT.seek(0)
            OUT.truncate()
            known = len(tqdm.tqdm._instances)
            result, bar, *loop = function(X)
            yield result, type(bar), isinstance(bar, tqdm.tqdm), bar.n, bar.total, len(tqdm.tqdm._instances) - known
            bar.total = 9
            bar.set_description("now")
            bar.refresh()
            yield list(loop[0] if loop else bar if bar.iterable is not None else ()), bar.n, bar.format_dict["total"]
            bar.close()
            yield OUT.getvalue(), len(tqdm.tqdm._instances) - known, sorted(vars(bar))
            del bar, loop

    same_as_eager(scenario)


def attributes_set(x: torch.Tensor) -> Any:
    bar = tqdm.tqdm([1, 2], **SHOWN)
    bar.total = 5
    bar.unit = "piece"
    bar.refresh()
    for i in bar:
        x = x * i
    return x, isinstance(bar, tqdm.tqdm), isinstance(bar, list)


def total_is_none(x: torch.Tensor) -> Any:
    return [x * i for i in tqdm.tqdm([1, 2], total=None, **SHOWN)], [i for i in tqdm.tqdm([3], "text", None, **SHOWN)]


class Unsized:
    def __len__(self) -> int:
        raise TypeError("no length")

    def __iter__(self) -> Iterator[int]:
        return iter((1, 2, 3))


def without_a_length(x: torch.Tensor) -> Any:
    return [x * i for i in tqdm.tqdm(Unsized(), **SHOWN)], [x * i for i in tqdm.tqdm(Unsized(), total=3, **SHOWN)]


@pytest.mark.parametrize("program", [attributes_set, total_is_none, without_a_length])
def test_what_is_told_of_a_bar(program: Callable[[torch.Tensor], Any]) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for _ in range(4):
            OUT.seek(0)
            OUT.truncate()
            yield attempt(function, X), OUT.getvalue()

    same_as_eager(scenario)


def test_a_bar_from_outside() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        bar = tqdm.tqdm(total=10, **SHOWN)

        def program(x: torch.Tensor) -> torch.Tensor:
            bar.update(2)
            return x * 2

        function = wrap(program)
        for _ in range(3):
            yield function(X), bar.n

    same_as_eager(scenario)


def test_an_exception_of_a_later_call() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        def program(x: torch.Tensor, rows: list[int]) -> torch.Tensor:
            for row in tqdm.tqdm(rows, **SHOWN):
                x = x + x[row]
            return x

        function = wrap(program)
        for rows in ([0, 1], [0, 1], [0, 7]):
            OUT.seek(0)
            OUT.truncate()
            yield attempt(function, X, rows), OUT.getvalue()

    same_as_eager(scenario)
