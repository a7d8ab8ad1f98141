"""Steps of a plan that are no operators of torch: they compute with Python numbers that are data.

As torch operators (namespace "magpy") they pass through tracing, autograd and plans like any other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("magpy", "FRAGMENT")
_library.define("number(Tensor[] leaves, str source, bool is_float) -> Tensor")


@functools.lru_cache(maxsize=4096)
def _function(source: str) -> Callable[..., Any]:
    """The function of an expression that the recorder has written."""
    return eval(source, {"math": math})


def evaluate(source: str, *leaves: torch.Tensor) -> Any:
    """What Python computes: `source` is a lambda over the numbers that are the only elements of `leaves`."""
    return _function(source)(*[leaf.item() for leaf in leaves])


def compute(source: str, is_float: bool, *leaves: torch.Tensor) -> torch.Tensor:
    """Likewise as a tensor without dimensions, of double or int64: the recorded operator."""
    return torch.ops.magpy.number(list(leaves), source, is_float)


def _number(leaves: list[torch.Tensor], source: str, is_float: bool) -> torch.Tensor:
    number = evaluate(source, *leaves)
    if type(number) is not (float if is_float else int):
        raise TypeError(f"{source} gave a {type(number).__name__}")
    return torch.tensor(number, dtype=torch.float64 if is_float else torch.int64)


def _number_meta(leaves: list[torch.Tensor], source: str, is_float: bool) -> torch.Tensor:
    return torch.empty((), dtype=torch.float64 if is_float else torch.int64)


_library.impl("number", _number, "CompositeExplicitAutograd")
torch.library.register_fake("magpy::number", _number_meta, lib=_library)
