"""Attention as products and a kernel: torch's flash operator is spelled as the scores, their softmax and the weighted
sum, which plans run by blocks of rows (csrc/run/chain.h), where that was measured to be faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from magpy import _C, choices, own_kernels
from magpy.aten_builder import Builder
from magpy.aten_graph import Graph, Node, Val, call, describe, each_val, map_vals
from magpy.products import MATMUL, contiguous, plain

aten = torch.ops.aten
FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default


def rewrite(graph: Graph) -> None:
    """Spell attention whose logarithms nobody wants, in place."""
    wanted = {v for node in graph.nodes for v in each_val(node.args)} | {v for v in graph.outputs if v is not None}
    new: dict[Val, Val] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node.args = map_vals(lambda v: new.get(v, v), node.args)
        made = _spelled(node) if node.target is FLASH and node.vals[1] not in wanted else None
        if made is None:
            kept.append(node)
        else:
            kept += made.nodes
            new[node.val] = made.nodes[-1].val
    graph.nodes = kept
    graph.outputs = [new.get(v, v) if v is not None else None for v in graph.outputs]


def _covered(node: Node) -> bool:
    q, k, v, dropout, _, mask, _ = node.args
    if dropout or not own_kernels.usable() or not all(plain(val) for val in (*each_val(node.args), node.val)):
        return False
    if any(len(val.meta[2]) != 4 for val in (q, k, v)) or (mask is not None and len(mask.meta[2]) not in (2, 4)):
        return False
    return q.meta[2][:2] == k.meta[2][:2] == v.meta[2][:2] and node.val.meta[3][3] == 1


def _spelled(node: Node) -> Builder | None:
    if not _covered(node):
        return None
    text = " ".join(_text(v) for v in each_val(node.args))
    name = f"attention float32 {text}{' causal' if node.args[4] else ''}"
    if choices.choose(name, lambda: _ways(node)) != "own":
        return None
    build = Builder()
    spell(build, node.args, node.val.meta[3])
    return build


def spell(build: Builder, args: tuple, strides: tuple) -> Val:
    """softmax(q @ k^T * scale + mask) @ v in a result of the strides given. As in torch's operator, a row that is
    masked as a whole gives zeros."""
    q, k, v, _, causal, mask, scale = args
    *batch, rows, depth = q.meta[2]
    columns = k.meta[2][2]
    turned = build(aten.permute.default, k, [0, 1, 3, 2])
    scores = build(MATMUL, q, turned, None, contiguous([*batch, rows, columns]))
    scores = build(aten.mul.Tensor, scores, 1 / math.sqrt(depth) if scale is None else scale)
    if mask is not None:
        scores = build(aten.add.Tensor, scores, mask)
    if causal:
        down = build(aten.unsqueeze.default, build(aten.arange.default, rows, device=torch.device("cpu")), 1)
        right = build(aten.arange.default, columns, device=torch.device("cpu"))
        scores = build(aten.where.ScalarOther, build(aten.ge.Tensor, down, right), scores, float("-inf"))
    top = build(aten.amax.default, scores, [-1], True)
    if mask is not None:
        top = build(aten.where.ScalarSelf, build(aten.eq.Scalar, top, float("-inf")), 0.0, top)
    weights = build(aten.exp.default, build(aten.sub.Tensor, scores, top))
    total = build(aten.sum.dim_IntList, weights, [-1], True)
    if mask is not None:
        total = build(aten.where.ScalarSelf, build(aten.eq.Scalar, total, 0.0), 1.0, total)
    weights = build(aten.div.Tensor, weights, total)
    return build(MATMUL, weights, v, None, list(strides))


def _text(val: Val) -> str:
    return f"{'x'.join(map(str, val.meta[2]))}/{'/'.join(map(str, val.meta[3]))}"


def _ways(node: Node) -> dict[str, Callable[[], Any]]:
    """The operator and the plan of its parts, as calls on tensors like the node's."""
    vals = list(dict.fromkeys(each_val(node.args)))
    graph = Graph()
    inputs = {val: graph.add_placeholder((*val.meta[:4], 0)) for val in vals}
    build = Builder()
    graph.outputs = [spell(build, map_vals(inputs.__getitem__, node.args), node.val.meta[3])]
    graph.nodes = build.nodes
    tensors = {val: torch.empty_strided(*val.meta[2:4], device="cpu").fill_(0.1) for val in vals}
    given = tuple(tensors.values())
    arguments = map_vals(tensors.__getitem__, node.args)
    ways: dict[str, Callable[[], Any]] = {"flash": lambda: call(FLASH, arguments)}
    try:
        plan = _C.compile_graph(*describe(graph))
    except RuntimeError:
        return ways
    return {**ways, "own": lambda: plan(given)}
