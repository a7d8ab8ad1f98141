"""The gradient of prod as eager computes it: from the result, unless the input has zeros by then.

torch asks the data which of its formulas to take, and on tensors without data takes the one for zeros. The two are the
same as long as nothing has changed the input or the result behind its version counter."""

from __future__ import annotations

from typing import Any

import torch


def prod(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.prod, in a replay."""
    dim = args[0] if args else kwargs.get("dim")
    plain = (
        isinstance(tensor, torch.Tensor)
        and tensor.requires_grad
        and torch.is_grad_enabled()
        and tensor.dtype.is_floating_point
        and tensor.dim() > 0
        and tensor.numel() > 0
        and (dim is None or isinstance(dim, int))
        and torch._C._functorch.peek_interpreter_stack() is None
    )
    if not plain:
        return torch.prod(tensor, *args, **kwargs)
    keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
    return _Prod.apply(tensor, dim, keepdim, kwargs.get("dtype"))


class _Prod(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, dim: int | None, keepdim: bool, dtype: torch.dtype | None) -> Any:  # type: ignore[override]
        result = torch.prod(tensor, dtype=dtype) if dim is None else torch.prod(tensor, dim, keepdim, dtype=dtype)
        ctx.dim, ctx.keepdim = dim, keepdim
        ctx.save_for_backward(tensor, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:  # type: ignore[override]
        given, result = ctx.saved_tensors
        tensor, dim = given.to(grad.dtype), ctx.dim
        if dim is not None and not ctx.keepdim:
            grad, result = grad.unsqueeze(dim), result.unsqueeze(dim)
        if dim is None:
            by_parts = grad * _others(tensor.reshape(-1), 0).view(tensor.shape)
        else:
            by_parts = grad * _others(tensor, dim)
        if not torch.is_grad_enabled():  # derivatives of both formulas at once would be not a number
            zeros = (tensor == 0).sum()
            if dim is None:
                by_parts = torch.where(zeros > 1, torch.zeros_like(by_parts), by_parts)
            by_parts = torch.where(zeros == 0, grad * (result / tensor), by_parts)
        return by_parts.to(given.dtype), None, None, None


def _others(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The product of the other elements along the dim."""
    n = tensor.shape[dim]
    one = torch.ones_like(tensor.narrow(dim, 0, 1))
    before = torch.cat([one, tensor.narrow(dim, 0, n - 1)], dim).cumprod(dim)
    behind = torch.cat([one, tensor.narrow(dim, 1, n - 1).flip(dim)], dim).cumprod(dim).flip(dim)
    return before * behind
