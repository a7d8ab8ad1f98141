"""Gradients that a program computes itself: what the recorder asks about a backward pass, and how one is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from magpy.aten_graph import Unsupported

FREED = "magpy: freed"  # in the metadata of a node that a backward pass has gone through and freed
ACCUMULATED = "magpy: accumulated"  # likewise of a leaf's node: one has put a gradient into its .grad


def sources(
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    outside: Sequence[torch.Tensor],
    accumulate: bool,
    retained: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor] | str:
    """The tensors whose gradients a run of the engine computes: `inputs`, or without any all leaves that it reaches.

    outside: tensors with a history from before the call; if the run goes into it, the answer is the reason why it
    cannot be traced. accumulate: the gradients go into .grad. retained: others that keep theirs if the run comes to
    them."""
    if not all(isinstance(t, torch.Tensor) for t in (*outputs, *inputs)):
        return "a gradient edge in the place of a tensor"
    if accumulate and any(not t.is_leaf for t in inputs):
        return "backward(inputs=...) of tensors that are no leaves"
    stop = {t.grad_fn for t in inputs}
    before = {t.grad_fn for t in outside} - stop
    found: dict[int, torch.Tensor] = {}
    stack, seen = [], set()
    for t in outputs:
        if t.grad_fn is not None:
            stack.append(t.grad_fn)
        elif t.requires_grad:
            found[id(t)] = t
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in before:
            return "a backward pass into what was computed before the call"
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            found[id(leaf)] = leaf
        stack += [following for following, _ in node.next_functions if following is not None]
    if inputs and retained:
        return "backward(inputs=...) where tensors retain their gradients"
    kept = [t for t in retained or () if t.grad_fn in seen and id(t) not in found]
    return list(inputs) if inputs else [*found.values(), *{id(t): t for t in kept}.values()]


class _WithData(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return data.view_as(data)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


def with_data(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """What `tensor` is after tensor.data = data."""
    if not tensor.requires_grad:
        return data.detach()
    if tensor.shape != data.shape:
        raise Unsupported("a tensor that is differentiated gets data of another size")
    with torch.enable_grad():
        return _WithData.apply(tensor, data.detach())


def gradients(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    grad_outputs: Sequence[torch.Tensor | None],
    retain_graph: bool,
    create_graph: bool,
) -> Sequence[torch.Tensor | None]:
    """The engine's run, for a replay on one thread."""
    with torch.autograd.set_multithreading_enabled(False):
        made = torch.autograd.grad(
            outputs, inputs, grad_outputs, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
    if not retain_graph:
        _note_freed(outputs, inputs)
    return made


def _note_freed(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Note the nodes that the run has gone through: those between outputs and inputs."""
    ends = {t.grad_fn for t in inputs} - {None}
    leaves = {id(t) for t in inputs if t.grad_fn is None}
    through: dict[Any, bool] = {}
    stack = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while stack:
        node = stack[-1]
        following = [n for n, _ in node.next_functions if n is not None]
        new = [n for n in following if n not in through] if node not in through else []
        if new:
            through[node] = False
            stack += new
            continue
        stack.pop()
        found = node in ends or id(getattr(node, "variable", None)) in leaves or any(through[n] for n in following)
        through[node] = found
        if found:
            node.metadata[FREED] = True  # type: ignore[index]


def accumulated(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    grad_outputs: Sequence[torch.Tensor | None],
    retain_graph: bool,
    create_graph: bool,
) -> list[torch.Tensor | None]:
    """As gradients, each in memory of its own, as leaves that had none keep them."""
    made: list[torch.Tensor | None] = []
    taken = {t.untyped_storage()._cdata for t in (*outputs, *inputs, *grad_outputs) if t is not None}
    for grad in gradients(outputs, inputs, grad_outputs, retain_graph, create_graph):
        if grad is not None:
            storage = grad.untyped_storage()._cdata
            if create_graph or storage in taken or grad._is_view():
                grad = grad.clone(memory_format=torch.contiguous_format)
            taken.add(storage)
        made.append(grad)
    for t, grad in zip(inputs, made, strict=True):
        if grad is not None and t.is_leaf:
            torch.autograd.graph.get_gradient_edge(t).node.metadata[ACCUMULATED] = True  # type: ignore[index]
    return made


def refuse_later_gradients(results: Sequence[torch.Tensor], known: Sequence[torch.Tensor]) -> None:
    """Raises Unsupported if a later backward pass from one of `results` would add to the .grad of a leaf that the
    program has made and that already has one: that tensor may be seen, while the leaf is none of `known`."""
    ids = {id(t) for t in known}
    leaves = sources(results, [], [], False)
    for t in leaves if isinstance(leaves, list) else ():
        notes: Any = torch.autograd.graph.get_gradient_edge(t).node.metadata
        if t.is_leaf and id(t) not in ids and ACCUMULATED in notes:
            raise Unsupported("a result that leads on to a leaf of the call's own whose gradient it has accumulated")
