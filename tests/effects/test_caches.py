"""functools.lru_cache: results, which object they are, statistics and the order of eviction are eager's."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.counting import Counted
from tests.traps.differential import same_as_eager

X = torch.tensor([1.0, 2.0, 0.5])


def test_results_and_statistics() -> None:
    def scenario(wrap: Any) -> Any:
        ran: list[Any] = []

        @functools.lru_cache(maxsize=3)
        def scale(n: Any) -> Any:
            ran.append(n)
            return n * 2 + 1

        def program(x: torch.Tensor, n: Any) -> Any:
            return x * scale(n) + scale(2)

        fast = wrap(program)
        for n in (1, 1, 1, 1, 2, 2, 1.0, True, 3, 3, 4, 1, 5, 2, 2, 2):
            yield fast(X, n), scale.cache_info(), list(ran)
            scale(2)

    same_as_eager(scenario, min_hits=3)


def test_a_second_run_of_the_function_is_seen() -> None:
    def scenario(wrap: Any) -> Any:
        factor = 2

        @functools.lru_cache(None)
        def scale(n: int) -> int:
            return n * factor

        fast = wrap(lambda x: x * scale(3))
        for _ in range(3):
            yield fast(X), scale.cache_info()
        factor = 5
        yield fast(X), scale.cache_info()
        scale.cache_clear()
        for _ in range(3):
            yield fast(X), scale.cache_info()
        scale.cache_clear()
        scale(4)
        for _ in range(3):
            yield fast(X), scale.cache_info()

    same_as_eager(scenario, min_hits=4)


def test_cached_tensors_and_lists_are_the_objects_themselves() -> None:
    def scenario(wrap: Any) -> Any:
        @functools.lru_cache
        def table(n: int) -> torch.Tensor:
            return torch.arange(float(n))

        @functools.cache
        def names(n: int) -> list[int]:
            return list(range(n))

        def program(x: torch.Tensor) -> Any:
            return x + table(3), names(2), table(3)

        fast = wrap(program)
        for k in range(6):
            result = fast(X)
            yield result[0], result[1] is names(2), result[2] is table(3), list(result[1])
            if k == 2:
                table(3).add_(1)
                names(2).append(7)
            if k == 4:
                table.cache_clear()

    same_as_eager(scenario, min_hits=3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.made = 0

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def mask(self, n: int, kind: str) -> torch.Tensor:
        return torch.ones(n) * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.mask(x.shape[-1], "ones")


def test_cached_methods_of_modules() -> None:
    net = Net()
    fast = torch.compile(net, backend="magpy")
    Net.mask.cache_clear()
    with torch.no_grad():
        fast(X), fast(X)
        before = Net.mask.cache_info()
        with Counted() as counted:
            fast(X), fast(X)
    counted.assert_hit(2)
    assert (Net.mask.cache_info().hits, Net.mask.cache_info().misses) == (before.hits + 2, before.misses)
    Net.mask.cache_clear()
    ref = weakref.ref(net)
    del net, fast
    gc.collect()
    assert ref() is None


def test_eviction_goes_by_the_last_use() -> None:
    def scenario(wrap: Any) -> Any:
        ran: list[int] = []

        @functools.lru_cache(maxsize=2)
        def scale(n: int) -> int:
            ran.append(n)
            return n

        fast = wrap(lambda x: x * scale(1))
        for k in range(2, 8):
            yield fast(X)
            yield scale(k), list(ran)  # evicts the last but one, never 1

    same_as_eager(scenario, min_hits=3)


def test_a_cached_function_that_raises() -> None:
    def scenario(wrap: Any) -> Any:
        @functools.lru_cache
        def check(n: int) -> int:
            if n > 2:
                raise ValueError("too large")
            return n

        def program(x: torch.Tensor) -> torch.Tensor:
            try:
                return x * check(3)
            except ValueError:
                return x - 1

        fast = wrap(program)
        for _ in range(4):
            yield fast(X), check.cache_info()

    same_as_eager(scenario, hits=0)


@pytest.mark.parametrize("typed", [False, True])
def test_equal_arguments_of_other_types(typed: bool) -> None:
    def scenario(wrap: Any) -> Any:
        @functools.lru_cache(maxsize=None, typed=typed)
        def text(n: Any) -> str:
            return repr(n)

        def program(x: torch.Tensor, n: Any) -> Any:
            return x + len(text(n)), text(n)

        fast = wrap(program)
        for n in (1, 1, 1.0, 1.0, True, True, "1", "1", -0.0, 0.0, 0, None, None, (1, 2.0)):
            yield fast(X, n), text.cache_info()
            yield fast(X, n), text.cache_info()

    same_as_eager(scenario, min_hits=3)


def test_a_cache_without_entries() -> None:
    def scenario(wrap: Any) -> Any:
        @functools.lru_cache(maxsize=0)
        def scale(n: int) -> int:
            return n

        fast = wrap(lambda x: x * scale(3))
        for _ in range(3):
            yield fast(X), scale.cache_info()

    same_as_eager(scenario)


@pytest.mark.parametrize("typed", [False, True])
def test_keywords_and_tuples(typed: bool) -> None:
    def scenario(wrap: Any) -> Any:
        ran: list[Any] = []

        @functools.lru_cache(maxsize=4, typed=typed)
        def table(shape: tuple[int, ...], *, fill: Any = 1, names: Any = ()) -> torch.Tensor:
            ran.append((shape, fill, names))
            return torch.full(shape, fill)

        def program(x: torch.Tensor, fill: Any) -> Any:
            first = table((3,), fill=fill)
            return x * first * table(shape=(1, 3), names=("a", 2)), first is table((3,), fill=fill)

        fast = wrap(program)
        for fill in (2, 2, 2, 2.0, 2.0, 3, 3, True, 1, 2, 2):
            yield fast(X, fill), table.cache_info(), list(ran)
        table.cache_clear()
        for _ in range(3):
            yield fast(X, 2), table.cache_info(), list(ran)

    same_as_eager(scenario, min_hits=3)
