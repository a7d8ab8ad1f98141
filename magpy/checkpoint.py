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


def reentrant(run_function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
    """Differentiable if one of its own arguments is, whatever else the function uses."""
    check_backward_validity(args)
    if torch.is_grad_enabled() and any(torch.is_tensor(arg) and arg.requires_grad for arg in args):
        return run_function(*args)
    with torch.no_grad():
        return run_function(*args)
