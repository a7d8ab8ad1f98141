"""Graph descriptions for `_C.compile_graph`, written by hand: what magpy.lower makes, without tracing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from magpy import _C

CODES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex64: 9,
    torch.complex128: 10,
    torch.bool: 11,
    torch.bfloat16: 15,
}


class Value:
    """Value `number` of a graph, with the tensor that eager computed for it."""

    def __init__(self, number: int, tensor: torch.Tensor | None) -> None:
        self.number, self.tensor = number, tensor


class Graph:
    """Build a graph operator by operator; each call runs eagerly too: metadata and expected result."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        self.inputs = list(inputs)
        self.nodes: list[tuple] = []
        self.n_values = 0
        self.values = [self._add("placeholder", None, (), [x])[0] for x in inputs]

    def _add(self, op: str, target: Any, args: tuple, tensors: Sequence[torch.Tensor | None]) -> list[Value]:
        metas = tuple(None if t is None else meta(t) for t in tensors)
        self.nodes.append((op, target, args, metas))
        made = [Value(self.n_values + i, t) for i, t in enumerate(tensors)]
        self.n_values += len(made)
        return made

    def op(self, target: Any, *args: Any, shaped_like: Sequence[torch.Tensor] | None = None, **kwargs: Any) -> Any:
        """Append the call `target(*args, **kwargs)`; `shaped_like` replaces eager as the source of metadata."""
        full = fill(target, args, kwargs)
        if shaped_like is None:
            eager = target(*eager_args(args), **{k: eager_args(v) for k, v in kwargs.items()})
            results = list(eager) if isinstance(eager, (tuple, list)) else [eager]
            results = [r for r in results if r is None or isinstance(r, torch.Tensor)]
        else:
            results = list(shaped_like)
        name = f"{target._schema.name.replace('::', '.')}.{target._overloadname}"
        made = self._add(name, target, tuple(encode(a) for a in full), results)
        return made[0] if len(made) == 1 else made

    def compile(self, *outputs: Value | None, fuse: bool = False) -> Any:
        return _C.compile_graph(tuple(self.nodes), tuple(-1 if o is None else o.number for o in outputs), fuse=fuse)


def meta(t: torch.Tensor) -> tuple:
    return (CODES[t.dtype], 0, tuple(t.shape), tuple(t.stride()), t.storage_offset())


def eager_args(x: Any) -> Any:
    if isinstance(x, Value):
        return x.tensor
    return type(x)(eager_args(v) for v in x) if isinstance(x, (list, tuple)) else x


def encode(x: Any) -> Any:
    if isinstance(x, Value):
        return ("v", x.number)
    if isinstance(x, torch.dtype):
        return ("dtype", CODES[x])
    if isinstance(x, torch.layout):
        return ("layout", 0)
    if isinstance(x, torch.device):
        return ("device", 0)
    if isinstance(x, torch.memory_format):
        return ("memory_format", {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2}[x])
    if isinstance(x, (list, tuple)):
        return [encode(v) for v in x]
    if isinstance(x, torch.Generator):
        return ("obj", x)
    return x


def fill(target: Any, args: tuple, kwargs: dict) -> list:
    """All arguments of the schema in order, defaults filled in."""
    arguments = target._schema.arguments
    filled = list(args)
    for argument in arguments[len(args) :]:
        filled.append(kwargs[argument.name] if argument.name in kwargs else argument.default_value)
    return filled


def tiers(plan: Any) -> list[str]:
    return [tier for tier, _, _ in plan.steps if tier in ("kernel", "shim", "dispatcher", "python")]
