"""Equality of programs' results: same types, structure and identity-free contents; tensors within tolerances."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import torch


def assert_same(actual: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5, where: str = "result") -> None:
    """Raise AssertionError unless `actual` equals `expected` in types, structure, scalars and tensors."""
    assert type(actual) is type(expected), f"{where}: {type(actual)} is not {type(expected)}"
    if isinstance(expected, torch.Tensor):
        assert actual.requires_grad == expected.requires_grad, f"{where}: requires_grad"
        assert actual.stride() == expected.stride(), f"{where}: strides {actual.stride()} != {expected.stride()}"
        torch.testing.assert_close(
            actual, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{where}: {m}"
        )
    elif isinstance(expected, dict):
        assert list(actual.keys()) == list(expected.keys()), f"{where}: keys"
        for key in expected:
            assert_same(actual[key], expected[key], rtol, atol, f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple | deque):
        assert len(actual) == len(expected), f"{where}: length"
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_same(a, e, rtol, atol, f"{where}[{i}]")
    elif dataclasses.is_dataclass(expected):
        for f in dataclasses.fields(expected):
            assert_same(getattr(actual, f.name), getattr(expected, f.name), rtol, atol, f"{where}.{f.name}")
    else:
        assert actual == expected, f"{where}: {actual!r} != {expected!r}"


def assert_same_state(
    actual: torch.nn.Module, expected: torch.nn.Module, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Raise AssertionError unless parameters, buffers and gradients are equal."""
    for (name, a), (_, e) in zip(actual.state_dict().items(), expected.state_dict().items(), strict=True):
        torch.testing.assert_close(a, e, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
    for (name, p), (_, q) in zip(actual.named_parameters(), expected.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), f"{name}.grad"
        if q.grad is not None:
            torch.testing.assert_close(
                p.grad, q.grad, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}.grad: {m}"
            )
