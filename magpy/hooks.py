"""Hooks of tensors that a call makes: the backward plan hands the gradient to the program's function in a step.

The recorded call gives each run's functions in the order of their registration; a run's autograd function keeps them.
"""

from __future__ import annotations

import threading
import weakref
from ast import literal_eval
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx

from magpy.aten_graph import Unsupported

_library = torch.library.Library("magpy", "FRAGMENT")
_library.define("hooked(Tensor grad, int number) -> Tensor")
_library.define("hooked_node(Tensor[] grads, Tensor[] others, str which, int number) -> Tensor[]")


class Given(dict[int, Callable[[torch.Tensor], Any]]):
    """The functions of one run by number; its autograd function owns them."""


Refusing = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class _Local(threading.local):
    """What this thread does."""

    #: What the program registers in the run that is being made; weakly once its plan has run.
    given: Given | Callable[[], Given | None] | None = None
    #: What belongs to the backward pass that is being made.
    running: Given | None = None
    #: With create_graph=True: makes gradients ones that refuse to be differentiated.
    refusing: Refusing | None = None


_local = _Local()


def in_runs(runner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The runner of a program that registers hooks: the commit behind a run finds where to put its functions."""

    def run(inputs: Any) -> Any:
        own = _local.given = Given()
        try:
            return runner(inputs)
        finally:
            _local.given = weakref.ref(own)

    return run


def given() -> Given | None:
    """What will hold the functions that the program gives in this thread's run."""
    return _local.given if isinstance(_local.given, Given) else None


def give(number: int, function: Callable[[torch.Tensor], Any]) -> None:
    """Called by the commit: hook number `number` of the run that this thread has just made."""
    there = _local.given() if isinstance(_local.given, weakref.ref) else None
    if there is not None:
        there[number] = function


def give_retain(number: int, tensor: torch.Tensor) -> None:
    """Likewise: tensor.retain_grad(), for a result of the run whose gradient comes from inside the graph too.

    The engine keeps the part that comes from outside, before the graph's backward pass; the whole takes its place."""
    there = weakref.ref(tensor)  # it holds its history, which holds these functions
    before: list[torch.Tensor | None] = []

    def note(grad: torch.Tensor) -> None:
        kept = there()
        if kept is not None:
            before.append(kept.grad)

    def keep(grad: torch.Tensor) -> None:
        kept = there()
        if kept is not None:
            old = before.pop() if before else kept.grad
            kept.grad = grad.clone() if old is None else old + grad

    tensor.retain_grad()
    tensor.register_hook(note)
    give(number, keep)


class backward_of:  # noqa: N801
    """Context manager around a backward plan whose steps call the functions in `given`. refusing: where gradients are
    on for them, makes the gradients that they see."""

    def __init__(self, given: Given | None, refusing: Refusing | None):
        self.now = given, refusing

    def __enter__(self) -> None:
        self.before = _local.running, _local.refusing
        _local.running, _local.refusing = self.now

    def __exit__(self, *_: object) -> None:
        _local.running, _local.refusing = self.before


def hook(tensor: torch.Tensor, number: int) -> None:
    """The recorded operator: tensor.register_hook(function `number` of the run)."""
    if tensor.requires_grad:
        tensor.register_hook(lambda grad: torch.ops.magpy.hooked(grad, number))


def node_hook(tensor: torch.Tensor, number: int) -> None:
    """The recorded operator: tensor.grad_fn.register_hook(function `number` of the run)."""
    if tensor.grad_fn is not None:
        tensor.grad_fn.register_hook(lambda inputs, outputs: _through_node(inputs, outputs, number))


def node_prehook(tensor: torch.Tensor, number: int) -> None:
    """Likewise register_prehook."""
    if tensor.grad_fn is not None:
        tensor.grad_fn.register_prehook(lambda outputs: _through_node(outputs, None, number))


Grads = tuple[torch.Tensor | None, ...]


def _through_node(grads: Grads, others: Grads | None, number: int) -> Grads:
    """What the function makes of `grads`, as a step; it also sees `others`, if there are such."""
    which = repr([None if several is None else [g is not None for g in several] for several in (grads, others)])
    here, there = [[g for g in several or () if g is not None] for several in (grads, others)]
    made = iter(torch.ops.magpy.hooked_node(here, there, which, number))
    return tuple([None if g is None else next(made) for g in grads])


def retain(tensor: torch.Tensor, number: int) -> None:
    """The recorded operator tensor.retain_grad(), for a backward pass after the call."""
    hook(tensor, number)


def are_in(ops: Sequence[tuple]) -> bool:
    """Are hooks registered among the recorded operators?"""
    return any(op[0] in (hook, retain, node_hook, node_prehook) for op in ops)


def refuse(ops: Sequence[tuple]) -> None:
    """Raise Unsupported if they are: these operators are not lowered by a joint trace."""
    if are_in(ops):
        raise Unsupported("a hook of a tensor, where gradients are computed inside the call or results share memory")


def _called(number: int, take: Callable[[Any], Any], *args: Any) -> Any:
    """take(function(*args)), the function being that of the backward pass that is made."""
    function = None if _local.running is None else _local.running.get(number)
    if function is None:
        return take(None)
    refusing = _local.refusing
    if refusing is None:
        return take(function(*args))
    with torch.enable_grad():
        result = function(*[_each(lambda grad: refusing([grad.detach()])[0], grads) for grads in args])
    return take(_each(torch.Tensor.detach, result))


def _each(make: Callable[[torch.Tensor], torch.Tensor], grads: Any) -> Any:
    if isinstance(grads, tuple):
        return tuple([_each(make, grad) for grad in grads])
    return make(grads) if isinstance(grads, torch.Tensor) else grads


def _checked(result: Any, grad: torch.Tensor) -> torch.Tensor:
    """What a hook has given, if torch would take it in the place of `grad`."""
    if result is None:
        return grad
    if not isinstance(result, torch.Tensor):
        raise TypeError(f"expected Variable, but hook returned '{torch.typename(result)}'")
    if result.shape != grad.shape or result.dtype != grad.dtype or result.device != grad.device:
        raise RuntimeError(f"hook has changed the size, type or device of a gradient: {result.shape}, {result.dtype}")
    return result if result.stride() == grad.stride() else torch.empty_like(grad).copy_(result)


def _hooked(grad: torch.Tensor, number: int) -> torch.Tensor:
    own = grad.clone()
    return _called(number, lambda result: _checked(result, own), own)


def _hooked_meta(grad: torch.Tensor, number: int) -> torch.Tensor:
    return torch.empty_like(grad)


def _hooked_node(grads: list[torch.Tensor], others: list[torch.Tensor], which: str, number: int) -> list[torch.Tensor]:
    own = [grad.clone() for grad in grads]
    args = []
    for several, there in zip((own, [g.clone() for g in others]), literal_eval(which), strict=True):
        if there is not None:
            rest = iter(several)
            args.append(tuple([next(rest) if present else None for present in there]))
    return _called(number, lambda result: _checked_all(result, args[0]), *args)


def _checked_all(result: Any, grads: Grads) -> list[torch.Tensor]:
    """Likewise of a node's hook: what takes the place of those of `grads` that are there."""
    if result is None:
        return [g for g in grads if g is not None]
    result = result if isinstance(result, tuple) else (result,)
    if len(result) != len(grads):
        got = f"got {len(result)}, expected {len(grads)}"
        raise RuntimeError(f"hook has returned an incorrect number of values ({got})")
    if any(new is None and old is not None for new, old in zip(result, grads, strict=True)):
        raise RuntimeError(
            "a backward hook of a module gave None in the place of a gradient, which a compiled backward pass cannot "
            "leave out: give zeros, or exclude the module by torch.compiler.disable"
        )
    return [_checked(new, old) for new, old in zip(result, grads, strict=True) if old is not None]


def _hooked_node_meta(
    grads: list[torch.Tensor], others: list[torch.Tensor], which: str, number: int
) -> list[torch.Tensor]:
    return [torch.empty_like(grad) for grad in grads]


for _name, _run, _meta in (("hooked", _hooked, _hooked_meta), ("hooked_node", _hooked_node, _hooked_node_meta)):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"magpy::{_name}", _meta, lib=_library)
    torch.fx.node.has_side_effect(getattr(torch.ops.magpy, _name).default)
