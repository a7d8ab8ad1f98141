"""Going through a dict reads its keys and their order, and values only where the program looks at them."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.traps.differential import Wrap, attempt, same_as_eager


class Backwards(dict):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().__iter__())[::-1])


class Named(dict):  # type: ignore[type-arg]
    def __missing__(self, key: Any) -> int:
        return len(key)


KINDS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "Counter": collections.Counter,
    "defaultdict": lambda *items: collections.defaultdict(int, *items),
    "OrderedDict": collections.OrderedDict,
    "its own iterator": Backwards,
    "a subclass": Named,
}


def counts(x: torch.Tensor, d: Any) -> Any:
    for key in d:
        d[key] += 1
    return x * 2


def counts_some(x: torch.Tensor, d: Any) -> Any:
    for key in list(d):
        if key != "b":
            d[key] = d[key] + 0.5
    return x * d["a"]


def counts_keys(x: torch.Tensor, d: Any) -> Any:
    for i, key in enumerate(sorted(d.keys() & {"a", "b"})):
        d[key] += i
    return x


def overwrites(x: torch.Tensor, d: Any) -> Any:
    for key in d:
        d[key] = 7
    return x + 1


def keys_alone(x: torch.Tensor, d: Any) -> Any:
    return x, list(d), tuple(d), set(d), [*d], dict.fromkeys(d, 1), list(reversed(d)), list(zip(d, d, strict=True))


def keys_of_the_base(x: torch.Tensor, d: Any) -> Any:
    return x, list(dict.keys(d)), list(dict.__iter__(d)), list(d.keys()), d.keys()


def values_later(x: torch.Tensor, d: Any) -> Any:
    keys = d.keys()
    total = sum(d[k] for k in keys)
    return x * total, list(d.values()), list(d.items()), sorted(d.items())


def mappings(x: torch.Tensor, d: Any) -> Any:
    for _ in d:
        break
    return x, dict(d), {**d}, d.copy(), list(itertools.chain(d, d.values())), dict(zip(d, d.values(), strict=True))


def grows(x: torch.Tensor, d: Any) -> Any:
    for key in list(d):
        d[key * 2] = d.pop(key)
        if len(d) > 4 or len(key) > 8:
            d.clear()
            d["a"] = 1
    return x * len(d), list(d)


def changes_while_it_goes(x: torch.Tensor, d: Any) -> Any:
    for key in d:
        d[key + "?"] = 1
    return x


CHANGES: list[Callable[[Any], Any]] = [
    lambda d: None,
    lambda d: None,
    lambda d: None,
    lambda d: d.update(b=d.get("b", 0) + 3),
    lambda d: d.update(c=1),
    lambda d: d.update(a=d.pop("a", 0)),
    lambda d: d.pop("b", None),
    lambda d: d.update(b=2.5),
    lambda d: None,
    lambda d: (d.clear(), d.update(b=5, a=6)),
    lambda d: None,
]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "program",
    [
        counts,
        counts_some,
        counts_keys,
        overwrites,
        keys_alone,
        keys_of_the_base,
        values_later,
        mappings,
        grows,
        changes_while_it_goes,
    ],
)
def test_what_is_seen_of_a_dict(program: Callable[..., Any], kind: str) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function, d = wrap(program), KINDS[kind]({"a": 1, "b": 2})
        for change in CHANGES:
            change(d)
            result = attempt(function, torch.ones(2), d)
            yield (
                [list(r) if isinstance(r, type({}.keys())) else r for r in result]
                if isinstance(result, tuple)
                else result
            )
            yield list(dict.items(d)), list(d)

    same_as_eager(scenario)


@pytest.mark.parametrize("kind", ["dict", "Counter", "defaultdict", "OrderedDict"])
@pytest.mark.parametrize("program", [counts, counts_some, overwrites, keys_alone])
def test_counters_are_served(program: Callable[..., Any], kind: str) -> None:
    """The values are other ones at each call."""

    def scenario(wrap: Wrap) -> Iterator[Any]:
        function, d = wrap(program), KINDS[kind]({"a": 1, "b": 2, "c": 3})
        for _ in range(6):
            yield function(torch.ones(2), d), list(d.items())

    same_as_eager(scenario, min_hits=4)
