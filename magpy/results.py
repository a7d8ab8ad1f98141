"""Results as the program made them, where a graph gives plain tensors: inference tensors, leaves, parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from magpy.lower import Lowered, Output


def as_observed(lowered: Lowered, outputs: Sequence[Output]) -> Callable[[Sequence[torch.Tensor]], Sequence[Any]]:
    """The runner, with its results turned into what they were when the call was observed."""
    runner = lowered.runner
    first = len(lowered.mutated)
    ambient = torch.is_inference_mode_enabled()
    turned = {first + i for i, out in enumerate(outputs) if out.inference != ambient}
    if turned:
        runner = _in_modes(runner, first, turned, not ambient and lowered.info["kind"] == "inference")
    if lowered.info.get("spent"):
        runner = _with_spent(runner, lowered.info["spent"])
    leaves = [(first + i, out.leaf, out.requires_grad) for i, out in enumerate(outputs) if out.leaf is not None]
    return _with_leaves(runner, leaves) if leaves else runner


def _in_modes(runner: Callable, first: int, turned: set[int], inside: bool) -> Callable:
    """Results `turned` are inference tensors where the call is made outside of inference mode, and the other way round.

    first: number of the first result. inside: run all of it in inference mode, which spares most of them a copy."""

    def run(inputs: Sequence[torch.Tensor]) -> list[Any]:
        ambient = torch.is_inference_mode_enabled()
        if inside:
            with torch.inference_mode():
                outs = list(runner(inputs))
        else:
            outs = list(runner(inputs))
        for i, out in enumerate(outs[first:], first):
            wanted = ambient != (i in turned)
            if isinstance(out, torch.Tensor) and out.is_inference() != wanted:
                with torch.inference_mode(wanted), torch.no_grad():
                    outs[i] = out.clone()
        return outs

    return run


def _with_leaves(runner: Callable, leaves: list[tuple[int, type, bool]]) -> Callable:
    def run(inputs: Sequence[torch.Tensor]) -> list[Any]:
        outs = list(runner(inputs))
        for i, cls, requires_grad in leaves:
            outs[i] = made_leaf(outs[i], cls, requires_grad)
        return outs

    return run


SPENT = (
    b"Trying to backward through the graph a second time (or directly access saved tensors after they have already "
    b"been freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). "
    b"Specify retain_graph=True if you need to backward through the graph a second time or if you need to access saved "
    b"tensors after calling backward."
)


def _with_spent(runner: Callable, spent: list[int]) -> Callable[[Sequence[torch.Tensor]], list[Any]]:
    """Results whose history the program's own backward pass has freed: differentiating them raises, as in eager."""

    def run(inputs: Sequence[torch.Tensor]) -> list[Any]:
        outs = list(runner(inputs))
        with torch.enable_grad():
            for i in spent:
                made = torch._C._functions.DelayedError(SPENT, 1)(outs[i].detach().requires_grad_())
                outs[i] = made[0] if isinstance(made, (tuple, list)) else made
        return outs

    return run


def made_leaf(tensor: torch.Tensor, cls: type = torch.Tensor, requires_grad: bool = True) -> torch.Tensor:
    """A leaf of the class over the tensor's memory, unless it is one."""
    if tensor.requires_grad == requires_grad and tensor.is_leaf:
        if type(tensor) is cls:
            return tensor
    if cls is torch.Tensor:
        return tensor.detach().requires_grad_(requires_grad)
    return torch.Tensor._make_subclass(cls, tensor.detach(), requires_grad)
