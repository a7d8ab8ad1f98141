"""Scenarios run twice from nothing, in plain Python and compiled: everything a scenario notes must be the same.

A scenario is a generator function of one argument, `wrap`, which compiles (or does not). It builds its own world,
calls, and yields what can be seen from outside: results, state, exceptions. What is yielded is frozen at once, so that
later changes do not reach it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

import magpy
from tests.counting import Counted

Wrap = Callable[..., Any]
Scenario = Callable[[Wrap], Iterator[Any]]


def frozen(value: Any, seen: dict[int, int] | None = None) -> Any:
    """`value` as plain data: types, structure, sharing, tensors as data with what autograd says of them."""
    seen = {} if seen is None else seen
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | type):
        return (type(value).__name__, repr(value))
    if isinstance(value, tuple):  # which tuples are one object is the interpreter's business
        return (type(value).__name__, [frozen(item, seen) for item in value])
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, torch.Tensor):
        about = (tuple(value.shape), value.stride(), value.dtype, value.requires_grad, value.is_leaf)
        grad = frozen(value.grad, seen) if value.is_leaf else None
        return ("tensor", type(value).__name__, about, value.detach().clone(), grad)
    if isinstance(value, dict | OrderedDict):
        return (type(value).__name__, [(frozen(k, seen), frozen(v, seen)) for k, v in value.items()])
    if isinstance(value, list | deque):
        return (type(value).__name__, [frozen(item, seen) for item in value])
    if isinstance(value, set | frozenset):
        return (type(value).__name__, sorted(map(repr, value)))
    if isinstance(value, BaseException):
        return (type(value).__name__, str(value))
    if isinstance(value, torch.nn.Module):
        return (type(value).__name__, frozen({k: v for k, v in vars(value).items()}, seen))
    if hasattr(value, "__dict__") and not callable(value):
        return (type(value).__name__, frozen(vars(value), seen))
    return type(value).__name__


def difference(mine: Any, eager: Any, where: str) -> str | None:
    """Where two frozen values differ, or None."""
    if isinstance(eager, torch.Tensor):
        try:
            torch.testing.assert_close(mine, eager, equal_nan=True, rtol=1e-4, atol=1e-5)
        except AssertionError as error:
            return f"{where}: {error}"
        return None
    if isinstance(eager, list | tuple) and isinstance(mine, list | tuple) and len(mine) == len(eager):
        for i, (a, b) in enumerate(zip(mine, eager, strict=True)):
            found = difference(a, b, f"{where}.{i}")
            if found:
                return found
        return None
    return None if mine == eager else f"{where}: {mine!r} is not eager's {eager!r}"


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result, or the exception that was raised."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def same_as_eager(scenario: Scenario, hits: int | None = None, min_hits: int | None = None, **options: Any) -> Counted:
    """Run `scenario` plain and compiled; what is yielded must agree. hits: calls that traces must have served."""

    def compile_it(target: Any) -> Any:
        return torch.compile(target, backend="magpy", options=options or None)

    torch.manual_seed(0)
    eager = [frozen(value) for value in scenario(lambda target: target)]
    torch.manual_seed(0)
    with Counted() as counted:
        mine = [frozen(value) for value in scenario(compile_it)]
    assert len(mine) == len(eager)
    for i, (a, b) in enumerate(zip(mine, eager, strict=True)):
        found = difference(a, b, f"note {i}")
        assert not found, f"{found}\n{vars(counted)}\n{magpy.stats()['fallbacks']}"
    if hits is not None:
        assert counted.hits == hits, vars(counted)
    if min_hits is not None:
        assert counted.hits >= min_hits, vars(counted)
    return counted
