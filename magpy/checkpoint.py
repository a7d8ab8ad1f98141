"""What is observed in the place of torch.utils.checkpoint: the function alone.

A compiled graph decides itself what its forward pass keeps and what its backward pass computes again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import check_backward_validity, noop_context_fn


def without_reentrant(
    fn: Callable,
    preserve_rng_state: bool = True,
    context_fn: Callable = noop_context_fn,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Iterator[None]:
    """Around the function: before and after it runs."""
    if context_fn is noop_context_fn:
        yield
        return
    forward, _ = context_fn()
    with forward:
        yield


class _Connected(torch.autograd.Function):
    """A result that depends on nothing differentiable, as torch gives it: it requires grad and passes none on."""

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return result.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None]:  # type: ignore[override]
        return None, None


def reentrant(run_function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
    """Differentiable if one of its own arguments is, whatever else the function uses."""
    check_backward_validity(args)
    differentiable = [arg for arg in args if torch.is_tensor(arg) and arg.requires_grad]
    if not torch.is_grad_enabled() or not differentiable:
        with torch.no_grad():
            return run_function(*args)
    results = run_function(*args)
    if torch.is_tensor(results):
        return _connected(results, differentiable[0])
    if isinstance(results, tuple):
        return tuple([_connected(result, differentiable[0]) for result in results])
    return results


def _connected(result: Any, argument: torch.Tensor) -> Any:
    if not torch.is_tensor(result) or result.requires_grad or not result.is_floating_point():
        return result
    return _Connected.apply(result, argument)
