"""Layouts of intermediates: what is wanted contiguous is kept contiguous.

Pointwise operators give results that lie as their operands do. Where such a result is turned and somebody copies it
into contiguous memory (a norm of channels behind a transpose), those that use it pointwise take the copy: then only
the copy exists, and what follows along a residual stream is contiguous as well.
"""

from __future__ import annotations

import torch

from magpy.aten_builder import meta_given
from magpy.aten_graph import Graph, Node, Val, each_val, map_vals

aten = torch.ops.aten

Users = dict[Val, list[Node]]


def users_of(graph: Graph) -> Users:
    """The nodes that take each value, once for each time that they do."""
    users: Users = {}
    for node in graph.nodes:
        for val in each_val(node.args):
            users.setdefault(val, []).append(node)
    return users


def is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in node.target.tags and len(node.vals) == 1


def _is_copy_of(val: Val, node: Node) -> bool:
    """Is `node` a copy of `val` into contiguous memory, and `val` not so?"""
    return (
        node.target is aten.clone.default
        and node.args[0] is val
        and node.val.meta[:3] == val.meta[:3]
        and node.val.meta[3] != val.meta[3]
        and torch.empty(node.val.meta[2], device="meta").stride() == node.val.meta[3]
    )


def _metas_after(old: Val, new: Val, users: Users, kept: set[Val]) -> dict[Val, tuple] | None:
    """The metadata that changes where pointwise operators take `new` for `old`; None if someone would see it who counts
    on strides."""
    metas = {old: new.meta}
    todo = [node for node in users[old] if node.val is not new]
    while todo:
        node = todo.pop(0)
        if not is_pointwise(node):
            if node.target is aten.clone.default and node.args[1:] == (torch.contiguous_format,):
                continue
            return None
        meta = meta_given(node, metas)
        if meta == metas.get(node.val, node.val.meta):
            continue
        if node.val in kept or node.val in metas:
            return None
        metas[node.val] = meta
        todo += users.get(node.val, ())
    del metas[old]
    return metas


def straighten(graph: Graph) -> None:
    """Use contiguous copies for the turned results that they are copies of, in place."""
    users = users_of(graph)
    kept = {val for val in graph.outputs if val is not None}
    for node in list(graph.nodes):
        if not is_pointwise(node) or node.val in kept or len(users.get(node.val, ())) < 2:
            continue
        old = node.val
        copy = next((user for user in users[old] if _is_copy_of(old, user)), None)
        metas = None if copy is None or copy.val in kept else _metas_after(old, copy.val, users, kept)
        if copy is None or metas is None:
            continue
        for val, meta in metas.items():
            val.meta = meta
        others = [user for user in users[old] if user is not copy]
        new = {old: copy.val}
        for user in others:
            user.args = map_vals(lambda v: new.get(v, v), user.args)  # noqa: B023  (used at once)
        users.setdefault(copy.val, []).extend(others)
        users[old] = [copy]
        graph.nodes.remove(copy)  # to where all the others find it
        graph.nodes.insert(graph.nodes.index(node) + 1, copy)
