"""Results that show one memory. One of them is computed; the others are made of it, so that autograd sees what it sees
in eager: which is a view of which, which only shares the memory, and which counts changes together with which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from magpy.aten_graph import Unsupported, base_of
from magpy.aten_trace import Session, share_counter, storage_of

CreationMeta = torch._C._autograd.CreationMeta  # type: ignore[attr-defined]
_WAYS = {
    CreationMeta.DEFAULT: "view",
    CreationMeta.NO_GRAD_MODE: "view without grad",
    CreationMeta.MULTI_OUTPUT_NODE: "one of several views",
}


class Alias(NamedTuple):
    """How a tensor is made of another one: of an "input", a "result" or an earlier "alias".

    way: "detach"; "data" (which counts its changes alone); or one of _WAYS. sizes, strides: its own; offset: from the
    other's; moved: are they others than the other's?"""

    source: str
    number: int
    way: str
    moved: bool
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def apart(self) -> bool:
        """Is it no view to autograd?"""
        return self.way in ("detach", "data")


def of_data(rows: Iterable[Sequence]) -> list[Alias]:
    """From the lists that JSON has."""
    return [Alias._make(tuple(item) if isinstance(item, list) else item for item in row) for row in rows]


class Inexpressible(Exception):
    """A result shares memory in a way that no Alias describes."""


def make(
    aliases: Sequence[Alias], inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The tensors that the aliases describe."""
    made: list[torch.Tensor] = []
    for source, number, way, moved, sizes, strides, offset in aliases:
        of = inputs[number] if source == "input" else results[number] if source == "result" else made[number]
        if way == "detach" or way == "data":
            tensor = of.detach() if way == "detach" else of.data
            if moved:
                tensor = tensor.as_strided(sizes, strides, tensor.storage_offset() + offset).detach()
        else:  # in the mode that it had in the program, whatever the call's is
            with torch.set_grad_enabled(way != "view without grad"):
                tensor = of.as_strided(sizes, strides, of.storage_offset() + offset)
            if way == "one of several views":
                torch._C._autograd._set_creation_meta(tensor, CreationMeta.MULTI_OUTPUT_NODE)  # type: ignore[attr-defined]
        made.append(tensor)
    return made


def by_memory(outs: Iterable[object]) -> dict[int, list[torch.Tensor]]:
    """The distinct tensors among a program's outputs, by storage."""
    found: dict[int, list[torch.Tensor]] = {}
    for out in outs:
        if isinstance(out, torch.Tensor):
            group = found.setdefault(storage_of(out), [])
            if all(out is not other for other in group):
                group.append(out)
    return found


class Aliases:
    """Those of a trace. places: how each result is had, by id: ("input", i), ("result", k) or ("alias", number)."""

    def __init__(self, new: Session) -> None:
        self.new = new
        self.rows: list[Alias] = []
        self.places: dict[int, tuple[str, int]] = {}

    def root(self, members: list[torch.Tensor], saved: Callable[[], Sequence[torch.Tensor]]) -> torch.Tensor:
        """The tensor to compute where the program made what the members show. saved: what autograd keeps, one of which
        it may be. Raises Inexpressible."""
        if len(members) == 1:
            return members[0]
        bases = list({id(base): base for base in map(_base_of, members)}.values())
        if len(bases) == 1:
            return bases[0]
        differentiable = [t for t in bases if t.requires_grad]
        if len(differentiable) > 1:
            raise Inexpressible("two tensors with a history of their own")
        if differentiable:
            root = differentiable[0]
        else:
            kept = saved()
            root = next((t for t in bases if any(share_counter(t, other) for other in kept)), bases[0])
        base = base_of(self.new.value(root)).meta
        if self._layout(root) == base[2:]:
            return root
        if differentiable or base[0] != root.dtype:
            raise Inexpressible("a part of the memory that others show more of")
        return root.detach().as_strided(*base[2:])

    def add(self, members: list[torch.Tensor], root: torch.Tensor, place: tuple[str, int]) -> None:
        """All members are made of the root, which is had at `place`. Raises Inexpressible, and changes nothing then."""
        rows, places = list(self.rows), dict(self.places)
        apart = [(root, place)]  # those that are no views
        places[id(root)] = place
        for out in members:
            if id(out) in places:
                continue
            base = _base_of(out)
            at = next((p for t, p in apart if t is base), None)
            if at is None:
                if base.requires_grad:
                    raise Inexpressible("two tensors with a history of their own")
                source, of = next(((t, p) for t, p in apart if share_counter(t, base)), apart[0])
                rows.append(self._row(of, "detach" if share_counter(source, base) else "data", base, source))
                at = "alias", len(rows) - 1
                apart.append((base, at))
            if out is not base:
                _refuse_odd_history(out, base)
                way = _WAYS.get(torch._C._autograd._get_creation_meta(out))  # type: ignore[attr-defined]
                if way is None:
                    raise Inexpressible("a view of another mode")
                rows.append(self._row(at, way, out, base))
                at = "alias", len(rows) - 1
            places[id(out)] = at
        self.rows, self.places = rows, places

    def _row(self, at: tuple[str, int], way: str, tensor: torch.Tensor, source: torch.Tensor) -> Alias:
        if tensor.dtype != source.dtype or tensor.is_complex() or tensor.is_neg() or source.is_neg():
            raise Inexpressible("a view of another type")
        sizes, strides, offset = self._layout(tensor)
        # An input is found as it is before the commit, which may change its sizes and strides.
        given = self.new.placeholder(at[1]).meta[2:] if at[0] == "input" else self._layout(source)
        return Alias(*at, way, (sizes, strides, offset) != given, sizes, strides, offset - given[2])

    def _layout(self, tensor: torch.Tensor) -> tuple:
        """Sizes, strides, offset, which must be what the operators behind the tensor have left."""
        torch._sync(tensor)
        layout = (tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())
        if self.new.value(tensor).meta[2:] != layout:
            raise Inexpressible("a result that is laid out otherwise than its memory")
        return layout


def _base_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._base if tensor._is_view() else tensor  # type: ignore[return-value]


def made_without_grad(out: torch.Tensor) -> bool:
    """Is it a view that was made without grad? One of a tensor that requires grad is a leaf."""
    return (
        out._is_view()
        and torch._C._autograd._get_creation_meta(out) == CreationMeta.NO_GRAD_MODE  # type: ignore[attr-defined]
        and out.grad_fn is None
    )


def _refuse_odd_history(out: torch.Tensor, base: torch.Tensor) -> None:
    """Raise Inexpressible unless the view's history is that of its base, and views alone."""
    if out.requires_grad != base.requires_grad:
        raise Inexpressible("a view that is differentiated otherwise than its base")
    if not out.requires_grad or made_without_grad(out):
        return
    origin, node = base.grad_fn, out.grad_fn
    for _ in range(100):
        if node is None or node is origin or getattr(node, "variable", None) is base:
            break
        if isinstance(node, torch.autograd.function.BackwardCFunction):  # its gradient is the program's own
            raise Unsupported("an output of an autograd.Function that is a view")
        if len(node.next_functions) != 1:
            raise Inexpressible("a view that is changed in place")
        node = node.next_functions[0][0]
    else:
        raise Inexpressible("a long chain of views")
    if node is None:
        raise Inexpressible("a view without its base's history")
