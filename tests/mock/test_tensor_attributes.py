"""Attributes that a call sets on tensors of its own come back with the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.counting import Counted


def marked(x: torch.Tensor, keep: list) -> Any:
    y = x * 2
    y.note = ("fast", 3)
    y.other = x
    return y


def to_each_other(x: torch.Tensor, keep: list) -> Any:
    y, z = x + 1, x - 1
    y.pair, z.pair = z, y
    y.itself = y
    return [y, y, {"z": z}]


def in_a_cycle(x: torch.Tensor, keep: list) -> Any:
    y = x + 1
    y.holder = [y]
    return y.holder


def kept(x: torch.Tensor, keep: list) -> Any:
    y = x * 7
    y.step = len(keep)
    keep.append(y)
    return y.step


def removed(x: torch.Tensor, keep: list) -> Any:
    y = x * 7
    y.note = 1
    del y.note
    return y, hasattr(y, "note")


def of_a_parameter(x: torch.Tensor, keep: list) -> Any:
    p = torch.nn.Parameter(x.detach() * 3)
    p.no_decay = True
    return p


def data_in_attributes(x: torch.Tensor, keep: list) -> Any:
    y = x * 2
    y.mean_ = x.mean()
    return y


def shape(value: Any, seen: dict[int, int]) -> Any:
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, torch.Tensor):
        seen[id(value)] = len(seen)
        return type(value), value.tolist(), [(k, shape(v, seen)) for k, v in vars(value).items()]
    if isinstance(value, (list, tuple, dict)):
        seen[id(value)] = len(seen)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return type(value), [(k, shape(v, seen)) for k, v in items]
    return value


PROGRAMS: list[Callable] = [
    marked, to_each_other, in_a_cycle, kept, removed, of_a_parameter, data_in_attributes,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_attributes_equal_eagers(program):
    fast = torch.compile(program, backend="magpy")
    ours: list = []
    theirs: list = []
    with Counted() as counted:
        for step in range(4):
            x = torch.arange(3.0) + step
            actual, expected = fast(x, ours), program(x, theirs)
            assert shape([actual, ours, x], {}) == shape([expected, theirs, x], {})
    assert counted.fallbacks == {}
    assert counted.hits >= 2 or program is kept
