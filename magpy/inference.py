"""Tracing what autograd does not see: one functional graph, and results that show memory of inputs or of each other.

What a program does to its surroundings is decided here, from the functional tensors it leaves behind: inputs changed in
place become leading outputs, outputs that share memory with an input or with each other do so in every run, and no
others do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import aliases, backward, graph_form
from magpy.aliases import Alias, Aliases, Inexpressible, by_memory
from magpy.aten_graph import Graph, Node, Unsupported, Val, base_of, call, each_val, is_view
from magpy.aten_trace import Session, apart, counters_of, session, storage_of

aten = torch.ops.aten


class NeedsAutograd(Exception):
    """An output is differentiable: this is a program for joint.py."""


class View:
    """How an output is made from input number `source`: view operators, each with its arguments after the first and
    the number of its result. For what no Alias describes."""

    def __init__(self, source: int, steps: list[tuple[Any, tuple, int]], hidden: bool):
        self.source = source
        self.steps = steps
        self.hidden = hidden  # from autograd, which the program had switched off

    @property
    def detached(self) -> bool:
        return any(target is aten.detach.default for target, *_ in self.steps)

    def make(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        tensor: Any = inputs[self.source]
        with torch.no_grad() if self.hidden else contextlib.nullcontext():
            for target, args, position in self.steps:
                tensor = call(target, (tensor, *args))
                if isinstance(tensor, (tuple, list)):
                    tensor = tensor[position]
        return tensor

    def data(self) -> list:
        """As plain data (graph_form.py)."""
        steps = [[graph_form.op_data(op), [*map(graph_form.arg_data, args)], k] for op, args, k in self.steps]
        return [self.source, steps, self.hidden]

    @classmethod
    def of_data(cls, data: list) -> View:
        source, steps, hidden = data
        made = [(graph_form.op_of(op), tuple([graph_form.arg_of(a, []) for a in args]), k) for op, args, k in steps]
        return cls(source, made, hidden)


class Traced:
    """A functional graph whose outputs are [new data of inputs[i] for i in mutated] + the wanted outputs + further
    results, of which only others are made.

    aliased: wanted output number -> number of the alias that it is, and views: -> View. Version counter, base and what
    autograd sees of it are right only if the caller makes them; the graph's output is None.
    spent: wanted outputs whose history a backward pass of the program's has freed. counters: see counters_of."""

    def __init__(
        self,
        graph: Graph,
        mutated: tuple[int, ...],
        n_wanted: int,
        aliases: list[Alias],
        aliased: dict[int, int],
        views: dict[int, View],
        spent: list[int],
        counters: list[list[list[int]]],
    ):
        self.graph = graph
        self.mutated = mutated
        self.n_wanted = n_wanted
        self.aliases = aliases
        self.aliased = aliased
        self.views = views
        self.spent = spent
        self.counters = counters

    def data(self) -> dict[str, Any]:
        """As plain data (graph_form.py)."""
        return {
            "kind": "inference",
            "graph": graph_form.graph_data(self.graph),
            "mutated": self.mutated,
            "n_wanted": self.n_wanted,
            "aliases": self.aliases,
            "aliased": [*self.aliased.items()],
            "views": [[position, view.data()] for position, view in self.views.items()],
            "spent": self.spent,
            "counters": self.counters,
        }

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Traced:
        return cls(
            graph_form.graph_of(data["graph"]),
            tuple(data["mutated"]),
            data["n_wanted"],
            aliases.of_data(data["aliases"]),
            dict(data["aliased"]),
            {position: View.of_data(view) for position, view in data["views"]},
            data["spent"],
            data["counters"],
        )

    def shown(self) -> list[tuple[int, int, bool]]:
        """(wanted output number, number of the input whose memory it shows, is it detached) for each that does."""
        found = [(position, view.source, view.detached) for position, view in self.views.items()]
        for position, number in self.aliased.items():
            detached, at = False, ("alias", number)
            while at[0] == "alias":
                alias = self.aliases[at[1]]
                detached, at = detached or alias.apart, (alias.source, alias.number)
            if at[0] == "input":
                found.append((position, at[1], detached))
        return found

    def with_shared_memory(self, runner: Callable[[Sequence[torch.Tensor]], Sequence[Any]]) -> Callable:
        """The runner of the graph, with the outputs that are made of inputs and other results."""
        if not self.aliased and not self.views:
            return runner
        first = len(self.mutated)

        def run(inputs: Sequence[torch.Tensor]) -> list[Any]:
            outs = list(runner(inputs))
            made = aliases.make(self.aliases, inputs, outs[first:])
            for position, number in self.aliased.items():
                outs[first + position] = made[number]
            for position, view in self.views.items():
                outs[first + position] = view.make(inputs)
            return outs[: first + self.n_wanted]

        return run


# -- Tracing ----------------------------------------------------------------------------------------------------------


def trace(
    fn: Callable[[list[torch.Tensor]], Sequence[Any]],
    inputs: Sequence[torch.Tensor],
    *,
    python_dispatcher: bool = False,
    own_gradients: bool = False,
    layouts: bool = False,
) -> Traced:
    """Trace fn(list of tensors) -> sequence of tensors (or None, or an input's number: that very input).

    Raises NeedsAutograd if an output other than a view of an input requires grad, Unsupported for what cannot be put
    into a graph, and whatever fn raises on fake tensors. own_gradients: fn computes gradients itself. layouts: the
    caller changes sizes and strides of inputs as fn does."""
    tracked = not torch.is_inference_mode_enabled()
    with session(inputs, python_dispatcher) as new:
        new.layouts = layouts
        return _finish(new, new.run(fn), own_gradients, tracked)


def _finish(new: Session, outs: list[Any], own_gradients: bool, tracked: bool) -> Traced:
    """Work out mutations and aliases, and set the graph's outputs. tracked: autograd sees what the call makes."""
    graph = new.graph
    owner = {storage_of(w): i for i, w in enumerate(new.wrapped)}
    mutated, values = new.mutations()
    for out in outs:
        if isinstance(out, torch.Tensor) and storage_of(out) in owner and torch.is_grad_enabled():
            if out.requires_grad and out.grad_fn is not None:
                raise NeedsAutograd
    shared = Aliases(new)
    further = _share(new, shared, outs, {storage: i for storage, i in owner.items() if i not in mutated}, tracked)
    outputs: list[Val | None] = list(values)
    aliased: dict[int, int] = {}
    views: dict[int, View] = {}
    spent: list[int] = []
    makers: dict[Node, int] = {}  # base node in the graph -> storage in the program
    for position, out in enumerate([*outs, *further]):
        if out is None or isinstance(out, int):
            outputs.append(None if out is None else new.placeholder(out))
            continue
        kind, number = shared.places.get(id(out), ("", 0))
        if kind == "alias":
            aliased[position] = number
            outputs.append(None)
            continue
        source = owner.get(storage_of(out))
        if source is not None:
            views[position] = _view(new, out, source, source in mutated)
            outputs.append(None)
            continue
        if out.requires_grad and not out.is_leaf:
            if not own_gradients or not is_spent(new, out):
                raise NeedsAutograd
            spent.append(position)
        val = new.value(out)
        base = base_of(val).node
        if base.target is None or makers.setdefault(base, storage_of(out)) != storage_of(out):
            val = apart(graph, val)  # a decomposition gave an alias where the operator gives new memory
        outputs.append(val)
    graph.outputs = outputs
    return Traced(graph, mutated, len(outs), shared.rows, aliased, views, spent, counters_of(new, outs))


def _share(
    new: Session, shared: Aliases, outs: list[Any], unchanged: dict[int, int], tracked: bool
) -> list[torch.Tensor]:
    """Find out which results are made of inputs (of `unchanged`, by storage) and of other results. Returns results that
    the program does not give back, of which others are made."""
    further: list[torch.Tensor] = []
    inputs = {storage_of(w) for w in new.wrapped}
    for storage, members in by_memory(outs).items():
        with contextlib.suppress(Inexpressible):
            if storage in unchanged:
                i = unchanged[storage]
                shared.add(members, new.wrapped[i], ("input", i))
            elif storage not in inputs and len(members) > 1 and tracked and not any(t.requires_grad for t in members):
                root = shared.root(members, list)
                last = len(outs) + len(further)
                number = next((k for k, out in enumerate(outs) if out is root), last)
                shared.add(members, root, ("result", number))
                if number == last:
                    further.append(root)
    return further


def _view(new: Session, out: torch.Tensor, source: int, changed: bool) -> View:
    """How a result that shows an input is made by view operators."""
    val, shown = new.value(out), new.placeholder(source)
    if changed and base_of(val).meta[2:] != shown.meta[2:]:  # offsets in new data must be offsets in the input
        raise Unsupported("an output is a view of an input that was changed in place")
    if changed and new.inputs[source].requires_grad:  # autograd knows which of the two came first
        raise Unsupported("an output is a view, made without grad, of an input that was changed in place")
    steps = None if changed else _view_steps(val, shown)
    if steps is None:  # new data of a changed input, or a view through operators that are none: by its geometry
        if val.meta[0] != shown.meta[0]:
            raise Unsupported("an output is an input's memory as another dtype")
        steps = [(aten.as_strided.default, (*map(list, val.meta[2:4]), val.meta[4]), 0)]
    elif not steps:  # another tensor than the input, with the input's memory
        steps = [(aten.alias.default, (), 0)]
    if not _follows(out, new.wrapped[source]) and all(target is not aten.detach.default for target, *_ in steps):
        cut = (aten.detach.default, (), 0)  # what happens to the input later is nothing to it
        steps = [cut, *steps] if out._is_view() else [*steps, cut]
    return View(source, steps, new.inputs[source].requires_grad)


def _view_steps(val: Val, source: Val) -> list[tuple[Any, tuple, int]] | None:
    """The view operators that lead from source to val, or None if there are others between."""
    steps: list[tuple[Any, tuple, int]] = []
    while val is not source:
        target, args = val.node.target, val.node.args
        if target is None or not is_view(target) or any(True for _ in each_val(args[1:])):
            return None
        steps.insert(0, (target, args[1:], val.position))
        val = args[0]
    return steps


def _follows(out: torch.Tensor, source: torch.Tensor) -> bool:
    """Does autograd see `out` as a view of `source`, or of what source is a view of?"""
    return source.is_inference() or (out._is_view() and out._base is (source._base if source._is_view() else source))


def is_spent(new: Session, out: torch.Tensor) -> bool:
    """Has a backward pass freed what this result would be differentiated by?"""
    n = len(new.graph.nodes)
    leaves = backward.sources([out], [], [], False)
    if isinstance(leaves, str):
        return False
    leaves += [w for w in new.wrapped if w.requires_grad]
    if not leaves:
        return False
    try:
        torch.autograd.grad([out], leaves, [torch.ones_like(out)], retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            return False
        if out.grad_fn is None or not out.grad_fn.metadata.get(backward.FREED):  # type: ignore[attr-defined]
            raise Unsupported("a result of whose history a backward pass has freed a part") from error
        return True
    finally:
        del new.graph.nodes[n:]
    return False
