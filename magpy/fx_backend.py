"""The backend "magpy_fx": Dynamo captures, magpy compiles the FX graph.

The same lowering as for recorded programs, from a graph that someone else captured: it separates what capture gains
from what kernels gain, and is the widest test bench for lowering there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import lower

log = logging.getLogger("magpy")


class FxProgram:
    """An FX graph module as a program for lowering: its parameters and buffers are the first inputs."""

    def __init__(self, gm: torch.fx.GraphModule):
        self.gm = gm
        state = {**dict(gm.named_parameters(remove_duplicate=False)), **dict(gm.named_buffers(remove_duplicate=False))}
        self.names, self.tensors = list(state), list(state.values())

    def run(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        n = len(self.names)
        if n:
            state = dict(zip(self.names, inputs[:n], strict=True))
            outs = torch.func.functional_call(self.gm, state, tuple(inputs[n:]))
        else:
            outs = self.gm.forward(*inputs)
        number = {id(t): i for i, t in enumerate(inputs)}
        result: list[Any] = []
        for out in outs if isinstance(outs, (list, tuple)) else [outs]:
            if out is not None and not isinstance(out, torch.Tensor):
                raise lower.LoweringError(f"an output that is a {type(out).__name__}")
            result.append(number.get(id(out), out))
        return result

    def wants_grad(self, inputs: Sequence[torch.Tensor]) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)

    def is_recurrent(self) -> bool:
        return any(getattr(n.target, "__name__", "") in ("lstm", "lstm_cell") for n in self.gm.graph.nodes)

    def __str__(self) -> str:
        return str(self.gm.graph)


def magpy_fx(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """Compile `gm` for inputs like `example_inputs`: a Dynamo backend.

    Returns a callable with gm.forward's signature. Whatever cannot be compiled (symbolic sizes, operators whose
    result's size is data) runs as gm.forward, with one line in the log.
    """
    try:
        if not all(isinstance(t, torch.Tensor) for t in example_inputs):
            raise lower.LoweringError("an input that is no tensor (dynamic shapes are not compiled by magpy_fx)")
        program = FxProgram(gm)
        lowered = lower.lower_program(program, [*program.tensors, *example_inputs])
    except lower.LoweringError as error:
        log.warning("magpy_fx: a graph runs uncompiled: %s", error)
        return gm.forward
    return _caller(lowered, program.tensors)


def _caller(lowered: lower.Lowered, tensors: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """Run and commit: what dispatch does for recorded programs."""
    runner, mutated, n = lowered.runner, lowered.mutated, len(lowered.mutated)

    def compiled(*args: torch.Tensor) -> tuple:
        inputs = [*tensors, *args]
        outs = runner(inputs)
        if n:
            with torch.no_grad():
                for i, new in zip(mutated, outs, strict=False):
                    inputs[i].copy_(new)
        return tuple(outs[n:])

    compiled.lowered = lowered  # type: ignore[attr-defined]
    return compiled
