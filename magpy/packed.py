"""Packed sequences: how packing, padding and recurrent layers over packed data are replayed.

How many rows a packed sequence has follows from the lengths, which are data. Packing and padding move rows about: the
real operator is a step that moves row numbers and has the recorded sizes, and a gather, which is compiled and
differentiated like any other, moves the rows themselves. A recurrent layer is a step as a whole; where it is
differentiated or draws random numbers it is spelled out for the batch sizes that it was recorded with, which are then
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import aten_trace, steps
from magpy.steps import Meta


def _pack(
    metas: Sequence[Meta], input: torch.Tensor, lengths: torch.Tensor, batch_first: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    total, n_steps = metas[0][0][0], metas[1][0][0]
    rows = torch.arange(input.shape[0] * input.shape[1]).view(input.shape[:2])
    packed = [((total,), (1,), torch.int64), ((n_steps,), (1,), torch.int64)]
    rows, batch_sizes = steps.as_step("aten._pack_padded_sequence.default", (rows, lengths, batch_first), {}, packed)
    return input.flatten(0, 1).index_select(0, rows), batch_sizes


def _pad(
    metas: Sequence[Meta],
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    batch_first: bool,
    padding_value: float,
    total_length: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = metas[0][0]
    n_steps, n_sequences = (sizes[1], sizes[0]) if batch_first else sizes[:2]
    total = data.shape[0]  # the number that stands for padding
    padded = [((n_steps, n_sequences), (n_sequences, 1), torch.int64), ((n_sequences,), (1,), torch.int64)]
    args = (torch.arange(total), batch_sizes, False, total, total_length)
    rows, lengths = steps.as_step("aten._pad_packed_sequence.default", args, {}, padded)
    gathered = data.index_select(0, rows.flatten().clamp(max=total - 1))
    padding = torch.full((), padding_value, dtype=data.dtype)
    is_padding = (rows == total).view(-1, *[1] * (data.dim() - 1))
    out = torch.where(is_padding, padding, gathered).view(n_steps, n_sequences, *data.shape[1:])
    return out.transpose(0, 1) if batch_first else out, lengths


def _recurrent(func: Callable[..., Any]) -> Callable[..., Any]:
    name = f"aten.{func.__name__}.data"

    def replay(
        metas: Sequence[Any], data: torch.Tensor, batch_sizes: torch.Tensor, state: Any, weights: Any, *rest: Any
    ) -> Any:
        _, _, dropout, train, _ = rest
        *metas, recorded = metas
        states = [state] if isinstance(state, torch.Tensor) else state
        differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (data, *states, *weights))
        draws = train and dropout > 0
        if not differentiated and not draws and not torch.is_autocast_enabled("cpu"):
            args = (data, batch_sizes, state, weights, *rest)
            return tuple(steps.as_step(name, args, {}, [(*meta, data.dtype) for meta in metas]))
        same = (batch_sizes == torch.tensor(recorded)).all()
        torch.ops.magpy.check([same], "lambda v: v", "True", True)
        with aten_trace.outside():
            known = torch.tensor(recorded)
        with torch._C._DisablePythonDispatcher():  # torch's Python version would ask fake tensors for the batch sizes
            return func(data, known, state, weights, *rest)

    return replay


def register() -> None:
    """Tell magpy.steps."""
    functions = torch._C._VariableFunctions  # type: ignore[attr-defined]
    steps.REPLAYED[functions._pack_padded_sequence] = _pack
    steps.REPLAYED[functions._pad_packed_sequence] = _pad
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        steps.REPLAYED[getattr(functions, name)] = _recurrent(getattr(functions, name))


register()
