"""Freezing: what follows from a module's parameters and buffers alone is computed once and kept as constants.

Convolutions take the affine operators behind them (batch norm) into their weights. A constant is used as long as the
tensors it was made from are the same objects with the same memory and version counter; otherwise all are made again.
Writes that the counter does not see (through ``.data``, through numpy) are announced by ``magpy.refresh``. Inference
only: where gradients may be wanted, nothing is frozen.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from magpy import _C, aten_passes, packing
from magpy.aten_graph import Graph, Interpreter, Node, Val, base_of, each_val, is_impure, map_vals
from magpy.aten_rewrites import Builder

aten = torch.ops.aten


def refresh(model: Any = None) -> None:
    """Have frozen weights read again at the next call of each compiled function.

    Needed after writes to a parameter or buffer that its version counter does not count: through ``.data``, a numpy
    array, or memory shared with another library. `model` says whose weights changed; at present all are read again.
    """
    for runner in list(_all):
        runner.forget()


# -- Affine operators into convolutions -------------------------------------------------------------------------------


def _per_channel(val: Any, of: Val) -> bool:
    """Is it a number, or a value with one element for each channel of `of`?"""
    if not isinstance(val, Val):
        return isinstance(val, (int, float)) and not isinstance(val, bool)
    dims = len(of.meta[2])
    sizes = (1,) * (dims - len(val.meta[2])) + tuple(val.meta[2])
    if val.meta[0] != of.meta[0] or len(sizes) != dims:
        return False
    return all(n == 1 or (d == 1 and n == of.meta[2][1]) for d, n in enumerate(sizes))


class _Affine:
    """x * scale + shift of what a convolution gives."""

    def __init__(self, conv: Node):
        self.conv, self.last = conv, conv.val
        self.steps: list[tuple[str, Any]] = []  # "scale", "divide", "shift", "lower" by a value

    def take(self, node: Node, constant: Callable[[Val], bool]) -> bool:
        """Continue with `node`, the only user of what there is so far, if it is affine."""
        kinds = {
            aten.mul.Tensor: "scale", aten.div.Tensor: "divide", aten.add.Tensor: "shift", aten.sub.Tensor: "lower"
        }  # fmt: skip
        kind = kinds.get(node.target)
        if kind is None or node.val.meta != self.last.meta or (len(node.args) > 2 and node.args[2] != 1):
            return False
        a, b = node.args[:2]
        if b is self.last and kind in ("scale", "shift"):
            a, b = b, a
        if a is not self.last or b is self.last or not _per_channel(b, self.last):
            return False
        if isinstance(b, Val) and not constant(b):
            return False
        self.steps.append((kind, b))
        self.last = node.val
        return True

    def build(self, build: Builder) -> Val:
        """The convolution with all steps in its weight and bias."""
        x, weight, bias, *rest = self.conv.args
        channels = weight.meta[2][0]

        dims = len(self.last.meta[2])

        def flat(value: Any) -> Any:
            if not isinstance(value, Val):
                return value
            wide = build(aten.expand.default, value, [1, channels, *[1] * (dims - 2)])
            copy = build(aten.clone.default, wide, memory_format=torch.contiguous_format)
            return build(aten.view.default, copy, [channels])

        for kind, value in self.steps:
            value = flat(value)
            if kind in ("scale", "divide"):
                target = aten.mul.Tensor if kind == "scale" else aten.div.Tensor
                by = value
                if isinstance(value, Val):
                    by = build(aten.view.default, value, [channels] + [1] * (len(weight.meta[2]) - 1))
                weight = build(target, weight, by)
                bias = None if bias is None else build(target, bias, value)
            else:
                if bias is None:
                    bias = build(aten.full.default, [channels], 0.0, dtype=weight.meta[0], device=weight.meta[1])
                bias = build(aten.add.Tensor if kind == "shift" else aten.sub.Tensor, bias, value)
        made = Node(self.conv.target, (x, weight, bias, *rest))
        made.vals = [Val(made, 0, self.conv.val.meta)]
        build.nodes.append(made)
        return made.val


def fold_affine(graph: Graph, frozen: set[Val]) -> None:
    """Take affine operators by constants into the convolutions before them, in place."""
    known, _ = _known(graph, frozen)
    users: dict[Val, list[Node]] = {}
    for node in graph.nodes:
        for val in each_val(node.args):
            users.setdefault(val, []).append(node)
    outputs = {v for v in graph.outputs if v is not None}
    at_end: dict[Node, _Affine] = {}
    gone: set[Node] = set()
    for node in graph.nodes:
        if node.target is not aten.convolution.default or node.args[6] or node.args[1] not in known:
            continue
        if node.args[2] is not None and node.args[2] not in known:
            continue
        affine, chain = _Affine(node), [node]
        while affine.last not in outputs and len(users.get(affine.last, ())) == 1:
            (user,) = users[affine.last]
            if not affine.take(user, known.__contains__):
                break
            chain.append(user)
        if affine.steps:
            gone.update(chain)
            at_end[chain[-1]] = affine
    new: dict[Val, Val] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node.args = map_vals(lambda v: new.get(v, v), node.args)
        if node in at_end:
            affine, build = at_end[node], Builder()
            last = affine.last
            new[last] = affine.build(build)
            kept += build.nodes
        elif node not in gone:
            kept.append(node)
    graph.nodes = kept
    graph.outputs = [new.get(v, v) if v is not None else None for v in graph.outputs]


# -- Constants --------------------------------------------------------------------------------------------------------


def _known(graph: Graph, frozen: set[Val]) -> tuple[set[Val], set[Val]]:
    """All values that follow from frozen inputs and constants alone; and those that numbers alone do not give, which
    kernels would make where they need them."""
    derived = set(frozen) | {node.val for node in graph.placeholders[: len(graph.constants)]}
    known = set(derived)
    for node in graph.nodes:
        given = list(each_val(node.args))
        if is_impure(node.target) or not all(v in known for v in given):
            continue
        results = [v for v in node.vals if v is not None]
        known.update(results)
        if any(v in derived for v in given):
            derived.update(results)
    return known, derived


def _makers(graph: Graph, wanted: list[Val], given: set[Val], stay: Sequence[Node] = ()) -> list[Node]:
    """The nodes that `wanted` and the nodes that `stay` need if `given` is there, and those nodes."""
    needed: set[Node] = set(stay)
    todo = [*wanted, *(v for node in stay for v in each_val(node.args))]
    while todo:
        val = todo.pop()
        if val.node.target is not None and val not in given and val.node not in needed:
            needed.add(val.node)
            todo += each_val(val.node.args)
    return [node for node in graph.nodes if node in needed]


def _constants(graph: Graph, frozen: set[Val]) -> list[Val]:
    """What is made from weights and used by the rest of the graph."""
    known, derived = _known(graph, frozen)
    inputs = {node.val for node in graph.placeholders}
    outputs = {base_of(v) for v in graph.outputs if v is not None}  # are new tensors at each call
    used = [v for node in graph.nodes if not any(r in known for r in node.vals) for v in each_val(node.args)]
    # what is only a view of an input costs nothing and stays
    return [v for v in dict.fromkeys(used) if v in derived and base_of(v) not in inputs | outputs]


def freeze(graph: Graph, frozen: Sequence[int], compile_rest: Callable[[Graph], Callable]) -> Callable:
    """A runner for `graph`, like compile_rest(graph), that makes what follows from the inputs `frozen` only once."""
    first = len(graph.constants)
    numbers = {graph.placeholders[first + i].val: i for i in frozen}
    aten_passes.simplify(graph)
    fold_affine(graph, set(numbers))
    aten_passes.simplify(graph)
    constants = _constants(graph, set(numbers))
    makes = Graph()
    makes.nodes, makes.outputs = _makers(graph, list(constants), set()), list(constants)
    used = {v for node in makes.nodes for v in each_val(node.args)}
    makes.placeholders = [node for node in graph.placeholders if node.val in used]
    fixed = {node.val: t for node, t in zip(graph.placeholders, graph.constants, strict=False)}
    sources = [fixed.get(node.val, numbers.get(node.val)) for node in makes.placeholders]

    rest = Graph()
    rest.outputs, rest.constants = graph.outputs, graph.constants
    rest.placeholders = list(graph.placeholders)
    stay = [node for node in graph.nodes if is_impure(node.target)]
    rest.nodes = _makers(graph, [v for v in graph.outputs if v is not None], set(constants), stay)
    new = {val: rest.add_placeholder(val.meta) for val in constants}
    make = Interpreter(_copied(makes))  # before the rest is changed in place
    for node in rest.nodes:
        node.args = map_vals(lambda v: new.get(v, v), node.args)
    rest.packing = packing.Packing(rest, {*numbers, *new.values()})
    runner = compile_rest(rest)
    places = {node.val: i - first for i, node in enumerate(rest.placeholders)}
    packs = [(places[pack.source], pack) for pack in rest.packing.packs]
    if not constants and not packs:
        return runner
    made_of = [*(s for s in sources if isinstance(s, int)), *(i for i, pack in packs if pack.source in numbers)]
    weights = tuple(dict.fromkeys(made_of))
    maker = _Maker(make, sources, [val.meta for val in constants], packs, weights)
    run, fixed_first = (runner.run, runner.first) if isinstance(runner, _C.BoundPlan) else (runner, ())
    bound = _C.BoundPlan(run, fixed_first, weights, maker)
    _watch()
    _all.add(bound)
    return bound


def _copied(graph: Graph) -> Graph:
    """The graph with nodes of its own."""
    copy, new = Graph(), {}
    for node in graph.placeholders:
        new[node.val] = copy.add_placeholder(node.val.meta)
    for node in graph.nodes:
        made = Node(node.target, map_vals(new.__getitem__, node.args))
        made.vals = [None if v is None else Val(made, v.position, v.meta) for v in node.vals]
        new.update({old: v for old, v in zip(node.vals, made.vals, strict=True) if old is not None and v is not None})
        copy.nodes.append(made)
    copy.outputs = [None if v is None else new[v] for v in graph.outputs]
    return copy


# -- Running ----------------------------------------------------------------------------------------------------------


_all: weakref.WeakSet[_C.BoundPlan] = weakref.WeakSet()


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Fused optimizers change parameters without counting it."""
    changed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for runner in list(_all):
        if any(id(weight) in changed for weight in runner.made_of):
            runner.forget()


@functools.cache
def _watch() -> None:
    _C.declare(_after_step, "effect")  # in a step that is compiled it is no part of the program
    register_optimizer_step_post_hook(_after_step)


class _Maker:
    """Makes what is kept: list of inputs -> (constants and packs, what keeps the weights' memory).

    make: weights -> constants, of the metadata `metas`; sources: for each of make's inputs the number of an input, or a
    tensor that is constant anyway; packs: what is packed besides, with the number of the input or, behind these, of the
    constant that it is made of; numbers: the inputs that anything is made of."""

    def __init__(
        self,
        make: Callable,
        sources: Sequence[Any],
        metas: list[tuple],
        packs: Sequence[tuple[int, packing.Pack]],
        numbers: Sequence[int],
    ):
        self._make, self._sources, self._metas, self._packs, self._numbers = make, sources, metas, packs, numbers

    def __call__(self, inputs: list[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
        with torch.inference_mode(False), torch.no_grad():
            made = self._make([inputs[s] if isinstance(s, int) else s for s in self._sources])
            constants = tuple([_laid_out(t, meta) for t, meta in zip(made, self._metas, strict=True)])
            of = [*inputs, *constants]
            constants += tuple([pack.of(of[i]) for i, pack in self._packs])
            return constants, [inputs[i].detach() for i in self._numbers]


def _laid_out(tensor: torch.Tensor, meta: tuple) -> torch.Tensor:
    """The tensor with the strides that the rest of the graph was made for."""
    dtype, device, sizes, strides, _ = meta
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(sizes, strides, dtype=dtype, device=device).copy_(tensor)
