"""Gradients that are differentiated again (create_graph=True): the program's operators run once more under autograd, on
the inputs that autograd has saved, and its own backward pass from them is what the gradients are made of."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch

from magpy import aten_trace
from magpy.joint import Joint


class Repeated:
    """A program that computes the same once more: no random numbers, nothing written, nothing that looks at data."""

    def __init__(self, program: Any, inputs: Sequence[torch.Tensor], joint: Joint, places: dict[int, int]):
        self.program = program
        self.places = places  # number of a differentiable result -> which of the program's outputs it is
        self.differentiable = joint.differentiable
        self.sources = joint.grad_inputs
        own = {i: len(joint.kept) + k for k, i in enumerate(joint.kept_inputs) if i not in joint.viewed_inputs}
        others = [i for i in range(len(inputs)) if i not in own]
        # Leaves are found again at autograd's graph: a program may rely on nothing else holding a weight that the
        # backward pass does not need. Of tensors without a gradient the memory is saved, all others are saved.
        self.leaves = [i for i in others if inputs[i].requires_grad and inputs[i].is_leaf]
        self.saved = [i for i in others if i not in self.leaves]
        behind = len(joint.kept) + len(joint.kept_inputs)
        self.saved_at = own | {i: behind + k for k, i in enumerate(self.saved)}
        self.modes = aten_trace.Modes()

    def saved_of(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What is saved of the inputs, behind all that the backward pass keeps."""
        return [inputs[i] if inputs[i].requires_grad else inputs[i].detach() for i in self.saved]

    def versions_of(self, inputs: Sequence[torch.Tensor]) -> list[int]:
        """Of the leaves."""
        return [inputs[i]._version for i in self.leaves]

    def gradients(
        self, ctx: Any, present: Sequence[int], grads: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor | None]:
        """By input: the gradients of the results with the tangents of numbers `present`, differentiable by all that
        they were computed from. ctx: of the autograd function, with the leaves' `versions` in the forward pass. Raises
        what autograd raises."""
        saved = [tensor.unpack() for tensor in ctx._raw_saved_tensors]
        sources = {i: saved[k] for i, k in self.saved_at.items()}
        for i, version in zip(self.leaves, ctx.versions, strict=True):
            sources[i] = leaf = ctx.next_functions[i][0].variable
            if leaf._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{leaf.type()} {[*leaf.shape]}] is at version {leaf._version}; expected version {version} instead"
                )
        with torch.enable_grad():
            # What an input was computed of may be an input, too: the gradient of each is that of its own uses.
            ordered = [sources[i] for i in range(len(sources))]
            inputs = [t.view_as(t) if t.requires_grad else t for t in ordered]
        with self.modes.again():
            outs = self.program.run(inputs)
        results = [outs[self.places[self.differentiable[i]]] for i in present]
        wanted = [i for i in self.sources if inputs[i].requires_grad]
        found = torch.autograd.grad(
            results, [inputs[i] for i in wanted], grads, create_graph=True, allow_unused=True, materialize_grads=False
        )
        return dict(zip(wanted, found, strict=True))


def repeated(program: Any, inputs: Sequence[torch.Tensor], joint: Joint) -> Repeated | None:
    """The program as one that can be repeated, under the modes of now; None if it may compute something else then, or
    its inputs cannot be saved. `inputs` are such as it will have."""
    if not joint.pure or joint.mutated or joint.leaves or getattr(program, "ops", None) is None:
        return None
    if any(t.is_inference() for t in inputs):
        return None
    if program.reset or program.opaque or not all(_is_torch(func) for func, *_ in program.ops):
        return None
    places = {k: p for p, (kind, k) in enumerate(joint.wanted) if kind == "result"}
    return Repeated(program, inputs, joint, places) if all(k in places for k in joint.differentiable) else None


def _is_torch(func: Any) -> bool:
    """Not a function with Python code of the program's or magpy's, and not a class's."""
    if isinstance(func, (types.FunctionType, types.MethodType, type)):
        return (getattr(func, "__module__", None) or "").partition(".")[0] == "torch" and not isinstance(
            getattr(func, "__self__", None), type
        )
    return True
