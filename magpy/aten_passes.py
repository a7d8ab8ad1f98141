"""Passes over a functional ATen graph, each one walk: no-ops out, common subexpressions merged, dead code out.

What they must keep: outputs are different tensors unless the program's were, and share memory exactly where the
program's do; operators that draw random numbers stay, once each, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch

from magpy.aten_graph import Graph, Node, Val, base_of, each_val, is_impure, is_view, map_vals, normalise

aten = torch.ops.aten


def simplify(graph: Graph) -> Graph:
    """All passes, in place. Returns `graph`."""
    merge(graph)
    remove_dead(graph)
    return graph


# -- No-ops and common subexpressions ---------------------------------------------------------------------------------


def _same_layout(a: tuple, b: tuple) -> bool:
    """Same dtype, device, sizes; same strides where they matter."""
    return a[:3] == b[:3] and all(s == t for d, s, t in zip(a[2], a[3], b[3], strict=True) if d != 1)


def _noop_view(node: Node) -> bool:
    src = node.args[0]
    return _same_layout(src.meta, node.val.meta) and src.meta[3:] == node.val.meta[3:]


def _noop_copy(node: Node) -> bool:
    return _same_layout(node.args[0].meta, node.val.meta)


def _times_one(node: Node) -> bool:
    a, b = node.args
    one = not isinstance(b, Val) and b == 1 and a.meta[0].is_floating_point
    return one and _same_layout(a.meta, node.val.meta)


NOOPS: dict[Any, Callable[[Node], bool]] = {
    **dict.fromkeys(
        (
            aten.view.default, aten.expand.default, aten.permute.default, aten.alias.default, aten.detach.default,
            aten.slice.Tensor, aten.as_strided.default, aten.unsqueeze.default, aten.squeeze.dims,
        ),
        _noop_view,
    ),
    aten.clone.default: _noop_copy,
    aten._to_copy.default: _noop_copy,
    aten.mul.Tensor: _times_one,
}  # fmt: skip


def reachable(graph: Graph) -> set[Val]:
    """The values whose memory others than the graph can change: inputs and outputs."""
    inputs = {node.val for node in graph.placeholders[len(graph.constants) :]}
    return inputs | {base_of(v) for v in graph.outputs if v is not None}


def merge(graph: Graph, forward: Container[Node] | None = None) -> dict[Val | None, Val | None]:
    """Replace no-op copies and views by what they show, and repeated computations by the first. Returns what was
    replaced by what.

    forward: the nodes of a joint graph's forward pass. What the others compute of an input's or output's data stays
    theirs: by then it may be another, without its version counter saying so (batch norm's statistics)."""
    open_to_all = reachable(graph) if forward is not None else set()
    outputs = {v for v in graph.outputs if v is not None}
    escaping = {base_of(v).node for v in outputs}  # memory that outputs show
    # A view says where its elements lie in the memory of what it shows: only its own source stands for that.
    shown = {v for node in graph.nodes if is_view(node.target) for v in each_val(node.args[:1])}
    new: dict[Val | None, Val | None] = {}
    seen: dict[Any, Node] = {}
    kept = []

    def current(val: Val) -> Val | None:
        return new.get(val, val)

    def needed(copy: Node) -> bool:
        """Do others see its memory, or may they change what it was copied from until the backward pass, for which eager
        keeps the copy?"""
        early = forward is not None and copy in forward
        return copy in escaping or (early and base_of(copy.args[0]) in open_to_all)

    for node in graph.nodes:
        node.args = map_vals(current, node.args)
        out = node.val if len(node.vals) == 1 else None
        noop = NOOPS.get(node.target)
        if noop is not None and out not in outputs and noop(node) and (is_view(node.target) or not needed(node)):
            if out not in shown or node.args[0].meta[4] == out.meta[4]:
                new[out] = node.args[0]
                continue
        if is_impure(node.target) or any(v in outputs for v in node.vals) or node in escaping:
            kept.append(node)
            continue
        late = forward is not None and node not in forward and not is_view(node.target)
        key = (node.target, _key(node.args), late and any(base_of(v) in open_to_all for v in each_val(node.args)))
        first = seen.setdefault(key, node)
        if first is node:
            kept.append(node)
        else:
            new.update({a: b for a, b in zip(node.vals, first.vals, strict=True) if a is not None})
    graph.nodes = kept
    return new


def _key(arg: Any) -> Any:
    """Hashable, and different for 1, 1.0 and True, for 0.0 and -0.0."""
    if isinstance(arg, (list, tuple)):
        return tuple([_key(a) for a in arg])
    if isinstance(arg, float):
        return float, arg.hex()
    if isinstance(arg, (Val, torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return arg
    if arg is None or isinstance(arg, (int, str)):
        return type(arg), arg
    return object, id(arg)


# -- Tensors without elements -----------------------------------------------------------------------------------------


def make_empty(graph: Graph) -> None:
    """Results without elements are allocated, as they were traced: eager's operators lay them out in other ways than
    fake tensors tell, and otherwise where they are given memory (`out=`)."""
    for node in graph.nodes:
        plain = len(node.vals) == 1 and node.vals[0] is not None and 0 in node.val.meta[2] and node.val.meta[4] == 0
        if not plain or is_impure(node.target) or is_view(node.target):
            continue
        dtype, device, sizes, strides, _ = node.val.meta
        node.target = aten.empty_strided.default
        node.args = normalise(node.target, (list(sizes), list(strides)), {"dtype": dtype, "device": device})


# -- Dead code --------------------------------------------------------------------------------------------------------


def remove_dead(graph: Graph) -> None:
    used = {v for v in graph.outputs if v is not None}
    kept = []
    for node in reversed(graph.nodes):
        if is_impure(node.target) or any(v in used for v in node.vals):
            used.update(each_val(node.args))
            kept.append(node)
    graph.nodes = kept[::-1]
