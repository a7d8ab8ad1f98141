"""Types of annotations (int | str, list[int]) that a program looks at: what they hold is guarded."""

from __future__ import annotations

import typing

import pytest
import torch

from tests.counting import Counted


def looks(x: torch.Tensor, wanted: object) -> object:
    parts = typing.get_args(wanted)
    return x + len(parts), typing.get_origin(wanted), parts, getattr(wanted, "__origin__", None)


def checks(x: torch.Tensor, wanted: object) -> torch.Tensor:
    return x + 1 if isinstance(2.0, wanted) else x - 1  # type: ignore[arg-type]


def inherits(x: torch.Tensor, wanted: object) -> object:
    return x + 1, getattr(wanted, "fromkeys", None) is not None, wanted.__doc__, wanted.__module__


KINDS = [
    int | str,
    int | float,
    list[int],
    list[float],
    dict[str, int],
    tuple[int, ...],
    typing.Optional[int],  # noqa: UP045
    typing.Union[int, float],  # noqa: UP007
    list[int] | None,
    type[int],
    int,
    dict,
]


@pytest.mark.parametrize("program", [looks, checks, inherits])
def test_a_trace_serves_the_type_it_was_made_for(program):
    holder = {"wanted": KINDS[0]}

    def call(x: torch.Tensor) -> object:
        return program(x, holder["wanted"])

    fast = torch.compile(call, backend="magpy")
    x = torch.zeros(2)
    for kind in [*KINDS, *KINDS]:
        holder["wanted"] = kind
        results = []
        for each in (fast, call):
            try:
                first, *others = (lambda r: r if isinstance(r, tuple) else (r,))(each(x))
                results.append((first.tolist(), others))
            except (TypeError, AttributeError) as error:
                results.append(str(error))
        assert results[0] == results[1], kind


def test_looking_at_unions_and_aliases_is_part_of_a_trace():
    wanted = {"a": int | float, "b": list[int], "c": dict[str, int] | None}

    def call(x: torch.Tensor) -> torch.Tensor:
        for key, value in (("a", 1), ("b", [1]), ("c", None)):
            kind = wanted[key]
            parts = typing.get_args(kind)
            x = x + len(parts) if isinstance(value, typing.get_origin(kind) or object) else x
        return x

    fast = torch.compile(call, backend="magpy")
    with Counted() as counted:
        assert fast(torch.zeros(2)).tolist() == fast(torch.zeros(2)).tolist() == call(torch.zeros(2)).tolist()
    assert (counted.fallbacks, counted.hits) == ({}, 1)
