"""ctc_loss in a replay: torch's own operator gives, beside the losses, what its backward pass needs in a form whose
size depends on the target lengths, which are data. Here one operator gives the losses and their gradients, with which
a backward pass multiplies as eager's does."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn._reduction

from magpy.aten_graph import Unsupported

_library = torch.library.Library("magpy", "FRAGMENT")
_library.define(
    "ctc(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank, bool zero_infinity) "
    "-> (Tensor, Tensor)"
)


def _ctc(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of a batch, and the gradient of their sum by log_probs."""
    lengths = input_lengths.tolist(), target_lengths.tolist(), blank
    with torch.no_grad():
        losses, alpha = torch.ops.aten._ctc_loss(log_probs, targets, *lengths, zero_infinity)
        gradient = torch.ops.aten._ctc_loss_backward(
            torch.ones_like(losses), log_probs, targets, *lengths[:2], losses, alpha, blank, zero_infinity
        )
    return losses, gradient


def _ctc_meta(log_probs: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.empty_like(log_probs, memory_format=torch.contiguous_format)
    return log_probs.new_empty(log_probs.shape[1]), gradient


_library.impl("ctc", _ctc, "CompositeExplicitAutograd")
torch.library.register_fake("magpy::ctc", _ctc_meta, lib=_library)


class _Ctc(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: torch.Tensor, *rest: Any) -> torch.Tensor:  # type: ignore[override]
        losses, gradient = torch.ops.magpy.ctc(log_probs, *rest)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grad.unsqueeze(-1), None, None, None, None, None


def ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> torch.Tensor:
    """torch.ctc_loss; reduction: 0 none, 1 mean, 2 sum, as torch numbers them."""
    if log_probs.device.type != "cpu" or torch._C._functorch.peek_interpreter_stack() is not None:
        raise Unsupported("ctc_loss on another device, or transformed")
    batched = log_probs.dim() == 3
    rows = log_probs if batched else log_probs.unsqueeze(1)
    lengths = [_lengths(given) for given in (input_lengths, target_lengths)]
    losses = _Ctc.apply(rows, targets.to(torch.int64), *lengths, blank, zero_infinity)
    if zero_infinity:
        losses = torch.where(losses == float("inf"), torch.zeros((), dtype=losses.dtype), losses)
    if reduction == 1:
        return (losses / lengths[1].to(losses.dtype).clamp_min(1)).mean()
    if reduction == 2:
        return losses.sum()
    return losses if batched else losses.squeeze(0)


def functional_ctc_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
    """torch.nn.functional.ctc_loss, whose reduction has a name."""
    given = inspect.signature(torch.nn.functional.ctc_loss).bind(*args, **kwargs)
    given.apply_defaults()
    given.arguments["reduction"] = torch.nn._reduction.get_enum(given.arguments["reduction"])
    return ctc_loss(**given.arguments)


def _lengths(given: Any) -> torch.Tensor:
    return given.to(torch.int64) if isinstance(given, torch.Tensor) else torch.tensor(list(given), dtype=torch.int64)
