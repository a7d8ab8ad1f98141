"""Several calls of a program, eager or compiled, with everything that they leave behind: for comparing the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.compare import assert_same
from tests.counting import Counted


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0]  # not the gradient of x * x: the user's own must be the one that runs


def tensors_in(value: Any) -> list[torch.Tensor]:
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [t for item in value for t in tensors_in(item)] if isinstance(value, (list, tuple)) else []


def traits(tensor: torch.Tensor) -> tuple:
    return type(tensor), tensor.requires_grad, tensor.is_leaf, tensor.is_inference()


def value_of(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def seen_in(call: Callable, make: Callable[[], nn.Module], requires_grad: bool, calls: int, between: Callable) -> list:
    """What is seen of each call: results, what they are, gradients, parameters, the random state."""
    torch.manual_seed(0)
    module = make()
    seen: list[Any] = []
    for step in range(calls):
        between(module, step)
        torch.manual_seed(step)
        x = torch.randn(4, 4, requires_grad=requires_grad)
        results = tensors_in(call(x, module))
        seen += [traits(t) for t in results] + [value_of(t) for t in results]
        differentiable = [t for t in results if t.requires_grad and not t.is_inference()]
        if differentiable:
            try:
                sum(t.sum() for t in differentiable).backward()
            except RuntimeError as error:
                seen.append(str(error)[:60])
        seen += [value_of(t.grad) for t in results if t.is_leaf and not t.is_inference()]
        seen += [traits(x), value_of(x), value_of(x.grad)]
        seen += [value_of(t) for p in module.parameters() for t in (p, p.grad)]
        seen += [value_of(b) for b in module.buffers()] + [torch.get_rng_state()]
    return seen


def assert_complete(
    program: Callable[[torch.Tensor, nn.Module], Any],
    *,
    requires_grad: bool = False,
    make: Callable[[], nn.Module] = lambda: nn.Linear(4, 4),
    calls: int = 3,
    hits: int | None = None,
    between: Callable[[nn.Module, int], Any] = lambda module, step: None,
    complete: bool = True,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """The same as eager in every call; unless `complete` is false without a fallback, and all calls but the first (or
    `hits` of them) are hits."""
    torch.compiler.reset()
    expected = seen_in(program, make, requires_grad, calls, between)
    with Counted() as counted:
        actual = seen_in(torch.compile(program, backend="magpy"), make, requires_grad, calls, between)
    assert len(actual) == len(expected)
    for i, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_same(got, wanted, rtol, atol, where=f"item {i}")
    if not complete:
        return
    assert counted.fallbacks == {}
    assert counted.hits == (calls - 1 if hits is None else hits)
