"""What is observed in place of functions under caches, and of autograd.Function.apply where no argument is
differentiated: the forward alone.

Its operators are then the graph's own: data that they look at becomes checks, and they are fused like any other. What
torch does around forward is in torch/csrc/autograd/python_function.cpp and custom_function.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import _is_setup_context_defined


def uncached(cached: Any, *args: Any, **kwargs: Any) -> Any:
    """What a function under functools.lru_cache gives for a tensor that the call has made: it is a key by its identity,
    for which the cache holds nothing."""
    return cached.__wrapped__(*args, **kwargs)


def undifferentiated(cls: Any, *args: Any) -> Any:
    """cls.apply(*args), where gradients are off or no tensor among the arguments requires one."""
    context = cls._backward_cls()
    context.needs_input_grad = tuple([torch.is_tensor(arg) and arg.requires_grad for arg in args])
    with torch.no_grad():
        if _is_setup_context_defined(cls.setup_context):
            result = cls.forward(*args)
            cls.setup_context(context, args, result)
        else:
            result = cls.forward(context, *args)
        if isinstance(result, tuple):
            return tuple([_wrapped(item, context, args) for item in result])
        return _wrapped(result, context, args)


def _wrapped(item: Any, context: Any, args: tuple[Any, ...]) -> Any:
    """An argument comes back as itself only where it is marked as changed; no result requires a gradient."""
    if not torch.is_tensor(item):
        return item
    argument = _among(item, args)
    if item.requires_grad:
        return item.detach() if argument else item if item._is_view() else item.detach_()
    return item.view_as(item) if argument and not _among(item, context.dirty_tensors or ()) else item


def _among(item: torch.Tensor, tensors: tuple[Any, ...]) -> bool:
    return any([tensor is item for tensor in tensors])
