"""Making nodes of an ATen graph in place of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from magpy.aten_graph import Node, Val, call, each_val, map_vals, meta_of, normalise, tensors_of

aten = torch.ops.aten


class Keep(Exception):
    """The operator stays as it is."""


class Builder:
    """Makes nodes before a place in a graph, with the metadata that the operators give."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Val:
        """Append a call of an operator that gives one tensor."""
        node = Node(target, normalise(target, args, kwargs))
        (out,) = tensors_of(call(target, map_vals(stand_in, node.args)))
        assert out is not None
        dtype, _, *rest = meta_of(out)
        device = next((v.meta[1] for v in each_val(node.args)), out.device)
        node.vals = [Val(node, 0, (dtype, device, *rest))]
        self.nodes.append(node)
        return node.val

    def cut(self, x: Val, dim: int, start: int, stop: int, step: int = 1) -> Val:
        """x[start:stop:step] along `dim`, a view."""
        if (start, stop, step) == (0, x.meta[2][dim], 1):
            return x
        return self(aten.slice.Tensor, x, dim, start, stop, step)

    def iota(self, n: int, dtype: torch.dtype) -> Val:
        """0, 1 .. n - 1."""
        whole = self(aten.arange.default, n, dtype=torch.int64, device=torch.device("cpu"))
        return self(aten._to_copy.default, whole, dtype=dtype)


def meta_given(node: Node, metas: Mapping[Val, tuple]) -> tuple:
    """The metadata of the one result of `node` if values have other `metas` than their own."""

    def other(val: Val) -> torch.Tensor:
        return stand_in(Val(val.node, val.position, metas[val]) if val in metas else val)

    (out,) = tensors_of(call(node.target, map_vals(other, node.args)))
    assert out is not None
    dtype, _, *rest = meta_of(out)
    return (dtype, node.val.meta[1], *rest)


def stand_in(val: Val, device: str = "meta") -> torch.Tensor:
    dtype, _, sizes, strides, offset = val.meta
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) if all(sizes) else offset
    return torch.empty(last + 1, dtype=dtype, device=device).as_strided(sizes, strides, offset)
