"""Joint tracing: a differentiable program and its gradients in one graph, then cut into forward and backward.

The program runs under autograd on functional fake tensors, and torch.autograd.grad runs right after it: every operator
of both passes ends in one graph. The cut decides what the forward pass keeps: a value the backward pass reads is kept
only if it cannot be had cheaply, by views and pointwise operators, from what is kept already. Random draws are never
repeated, never dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from magpy import aliases, aten_passes, backward, graph_form
from magpy.aliases import Alias, Aliases, Inexpressible, by_memory, made_without_grad
from magpy.aten_graph import Graph, Node, Unsupported, Val, base_of, each_val, is_impure, is_random, is_view, map_vals
from magpy.aten_trace import Session, apart, clone, resumed, session, share_counter, storage_of

aten = torch.ops.aten


class Joint:
    """The two graphs and how they are wired.

    forward: inputs -> new data of inputs[i] for i in mutated, results, values only kept;
    backward: kept values, kept inputs, tangents -> gradients of inputs (None where there is none);
    wanted: for each wanted output ("input", i), ("result", k), ("alias", a) or ("none", 0);
    aliases: outputs that are made of inputs and results (aliases.py);
    leaves: numbers of the results that are leaves made by the program: further inputs of the autograd function;
    differentiable: numbers of the results that have a tangent, in order; kept_inputs, grad_inputs: input numbers;
    groups: these numbers by what a backward pass lets go in eager, and what a pass comes to, see _groups;
    pure: the program draws no random numbers, writes nothing and looks at no data.

    `backward` is for calls with all tangents; `partial` makes the graph for calls where some are absent."""

    def __init__(self) -> None:
        self.forward, self.backward = Graph(), Graph()
        self.mutated: tuple[int, ...] = ()
        self.wanted: list[tuple[str, int]] = []
        self.aliases: list[Alias] = []
        self.n_results = 0
        self.pure = False
        self.leaves: list[int] = []
        self.differentiable: list[int] = []
        self.groups: list[tuple[list[int], bool, list[int]]] = []
        self.tangents: list[tuple] = []  # meta of each tangent
        self.kept: list[int] = []  # positions among the forward graph's outputs
        # (place in kept, result that shows its memory, does a change of that count?, its own sizes, strides, offset)
        self.shown: list[tuple] = []
        self.kept_inputs: list[int] = []
        self.viewed_inputs: list[int] = []  # those of them of which autograd keeps a view, not the tensor itself
        self.grad_inputs: list[int] = []
        self.partial: Partial | Retraced | None = None  # the backward pass from some of the tangents only
        self.mark: str | None = None  # tells it from all others, by what tracing made; None: it has no form as data

    def set_mark(self) -> None:
        """Before the graphs are rewritten."""
        try:
            self.mark = hashlib.sha256(json.dumps(self.data()).encode()).hexdigest()
        except graph_form.Uncacheable:
            self.mark = None

    def data(self) -> dict[str, Any]:
        """As plain data (graph_form.py), before the backward graph is rewritten."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {
            **plain,
            "forward": graph_form.graph_data(self.forward),
            "backward": graph_form.graph_data(self.backward),
            "tangents": [graph_form.meta_data(meta) for meta in self.tangents],
            "several": self.partial is not None,
            "mark": self.mark,
        }

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Joint:
        """Without `partial`."""
        joint = cls()
        for name, form in _PLAIN.items():
            setattr(joint, name, form(data[name]))
        joint.forward = graph_form.graph_of(data["forward"])
        joint.backward = graph_form.graph_of(data["backward"])
        joint.tangents = [graph_form.meta_of_data(meta) for meta in data["tangents"]]
        joint.mark = data["mark"]
        return joint


def _tupled(rows: list) -> list[tuple]:
    return [tuple([tuple(item) if isinstance(item, list) else item for item in row]) for row in rows]


# Attributes of a Joint that are numbers and names, and how each is made from the lists that JSON has.
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "mutated": tuple,
    "wanted": _tupled,
    "aliases": aliases.of_data,
    "n_results": int,
    "pure": bool,
    "leaves": list,
    "differentiable": list,
    "groups": _tupled,
    "kept": list,
    "shown": _tupled,
    "kept_inputs": list,
    "viewed_inputs": list,
    "grad_inputs": list,
}


# -- Tracing ----------------------------------------------------------------------------------------------------------


def trace_joint(
    fn: Callable[[list[torch.Tensor]], Sequence[Any]],
    inputs: Sequence[torch.Tensor],
    *,
    python_dispatcher: bool = False,
    reset: dict[int, torch.Tensor] | None = None,
    layouts: bool = False,
) -> Joint:
    """Trace fn, as inference.trace does, with its gradients. reset: filled by fn, inputs whose .data it sets and what
    they then stand for. layouts: as there. Raises Unsupported, and what fn raises."""
    joint = Joint()
    with session(inputs, python_dispatcher) as new, torch.autograd.set_multithreading_enabled(False):
        new.layouts = layouts
        outs = new.run(fn)
        shown = {new.value(t): i for i, t in (reset or {}).items()}
        joint.mutated, values = new.mutations()
        if any(new.wrapped[i].requires_grad and not new.inputs[i].requires_grad for i in joint.mutated):
            raise Unsupported("an input becomes differentiable by an in-place change")
        results = _results(new, joint, outs)
        differentiable = [results[k] for k in joint.differentiable]
        backward.refuse_later_gradients(differentiable, [*new.wrapped, *(results[k] for k in joint.leaves)])
        values += [_fresh(new, t) for t in results]
        starts = _starts(new, [results[k] for k in joint.leaves])
        joint.groups = _groups({k: results[k] for k in joint.differentiable}, starts)
        counted = _counted(results, differentiable)
        reverse = _Reverse(new, differentiable, [results[k] for k in joint.leaves])
        joint.tangents = [v.meta for v in reverse.tangent_values]
        several = len(joint.differentiable) > 1
        joint.grad_inputs, gradients = reverse.trace(range(len(joint.differentiable)), keep=several)
    new.inputs = ()  # a session that lives on keeps no data alive
    graph, mapped = (new.graph, None) if not several else copied(new.graph)
    original = values
    original_shown = shown
    if mapped is not None:
        shown = {mapped[v]: i for v, i in shown.items()}
        values, gradients = [mapped[v] for v in values], [mapped[v] for v in gradients]
    n = len(graph.constants) + len(inputs)
    forward = set(graph.nodes[: reverse.n_forward])
    tangents = [node.val for node in graph.placeholders[n:]]
    graph.outputs = [*values, *gradients]
    replaced = aten_passes.merge(graph, forward)
    aten_passes.remove_dead(graph)
    shown = {replaced.get(val) or val: i for val, i in shown.items()}
    joint.pure = not any(is_impure(node.target) for node in forward)
    cut = _Cut(joint, graph, len(inputs), forward, shown, counted)
    cut.make(values, gradients, tangents)
    if mapped is not None:
        kept = {val: k for k, val in enumerate(cut.kept)}
        now = {old: replaced.get(val, val) for old, val in mapped.items()}
        # What the backward pass computed once more is no part of the graphs that start from the forward pass again.
        own = {*new.graph.placeholders, *new.graph.nodes[: reverse.n_forward]}
        places = {old: kept[val] for old, val in now.items() if val in kept and old.node in own}
        joint.partial = Partial(reverse, joint, original, places, original_shown)
    return joint


class _Reverse:
    """The backward pass of a session, from all of its differentiable results or from some."""

    def __init__(self, new: Session, results: list[torch.Tensor], leaves: list[torch.Tensor]):
        self.session = new
        self.results = results
        self.sources = [*new.wrapped, *leaves]
        self.tangents = [new.add_input(t) for t in results]
        self.tangent_values = [new.value(t) for t in self.tangents]
        self.wanted = [i for i, w in enumerate(self.sources) if w.requires_grad]
        self.n_forward = len(new.graph.nodes)

    def trace(self, present: Iterable[int], keep: bool) -> tuple[list[int], list[Val]]:
        """Numbers of the inputs (behind them, the leaves) that have a gradient, and the gradients, which the graph
        computes from now on."""
        new, present = self.session, list(present)
        if not present or not self.wanted:
            return [], []
        for device in ("cpu", "cuda"):  # the backward pass is called outside of autocast
            torch.set_autocast_enabled(device, False)
        grads = torch.autograd.grad(
            [self.results[k] for k in present],
            [self.sources[i] for i in self.wanted],
            [self.tangents[k] for k in present],
            allow_unused=True,
            retain_graph=keep,
        )
        found = {i: g for i, g in zip(self.wanted, grads, strict=True) if g is not None}
        return list(found), _gradients(new, set(new.graph.nodes[: self.n_forward]), list(found.values()))


def _results(new: Session, joint: Joint, outs: list[Any]) -> list[torch.Tensor]:
    """The distinct computed outputs; what several of them show is computed once, and they are made of it.

    Raises Unsupported if an output shares memory in a way that no Alias describes."""
    results: list[torch.Tensor] = []
    owner = {storage_of(w): i for i, w in enumerate(new.wrapped)}
    shared = Aliases(new)

    def saved() -> list[torch.Tensor]:
        return _saved_by([t for t in outs if isinstance(t, torch.Tensor) and t.grad_fn is not None])

    for storage, members in by_memory(outs).items():
        try:
            if storage in owner:
                i = owner[storage]
                if i in joint.mutated:
                    raise Unsupported("an output shares memory with an input that is changed in place")
                root, place = new.wrapped[i], ("input", i)
            else:
                root, place = shared.root(members, saved), ("result", len(results))
                results.append(root)
            for out in members:
                if out is not root and out.requires_grad and out.is_leaf and not made_without_grad(out):
                    raise Unsupported("a leaf that requires grad, over memory of another result or input")
                if out is not root and getattr(out, "_backward_hooks", None):  # its own gradient goes another way
                    raise Unsupported("a hook of a result that shares memory with another result or an input")
            shared.add(members, root, place)
        except Inexpressible as error:
            raise Unsupported(f"results that share memory: {error}") from error
    for out in outs:
        if out is None or isinstance(out, int):
            joint.wanted.append(("none", 0) if out is None else ("input", out))
        else:
            joint.wanted.append(shared.places[id(out)])
    joint.aliases = shared.rows
    joint.n_results = len(results)
    joint.leaves = [k for k, t in enumerate(results) if t.requires_grad and t.is_leaf]
    joint.differentiable = [k for k, t in enumerate(results) if t.requires_grad and not t.is_leaf]
    return results


MOST_GROUPS = 8


class _Group(NamedTuple):
    """Results: their numbers, the nodes that have saved tensors for them, the starts (_starts) that a pass comes to."""

    numbers: list[int]
    saved: set[Any]
    reached: set[Any]


def _starts(new: Session, leaves: list[torch.Tensor]) -> list[Any]:
    """Autograd's nodes where gradients of the inputs, and of the leaves behind them, come out; None: there is none."""

    def start(tensor: torch.Tensor, history: Any) -> Any:
        if history is not None or not tensor.requires_grad:
            return history
        return torch.autograd.graph.get_gradient_edge(tensor).node

    inputs = [start(w, history) for w, history in zip(new.wrapped, new.histories, strict=True)]
    return inputs + [start(t, t.grad_fn) for t in leaves]


def _groups(results: dict[int, torch.Tensor], starts: list[Any]) -> list[tuple[list[int], bool, list[int]]]:
    """Results by what autograd has saved for them: (numbers, is anything saved at all, numbers of the inputs and leaves
    that a backward pass does not come to).

    A backward pass from some results frees what was saved for them; from results of another group one can still go
    backward after it, and from those for which nothing is saved any number of times. What was saved before the call,
    for inputs that the results do not depend on, is not freed."""
    groups: list[_Group] = []
    for k, result in results.items():
        nodes = _nodes(result.grad_fn)
        new = _Group([k], _saving(nodes), nodes.intersection(starts))
        joined = [group for group in groups if _joins(group, new)]
        groups = [*[group for group in groups if not _joins(group, new)], _merged([*joined, new])]
    if len(groups) > MOST_GROUPS:  # a backward graph for each costs more than it is worth
        kinds = [[group for group in groups if bool(group.saved) == saves] for saves in (True, False)]
        groups = [_merged(kind) for kind in kinds if kind]

    def missed(reached: set[Any]) -> list[int]:
        return [i for i, start in enumerate(starts) if start is not None and start not in reached]

    return [(sorted(group.numbers), bool(group.saved), missed(group.reached)) for group in groups]


def _joins(one: _Group, other: _Group) -> bool:
    """Are these results of one group?"""
    if one.saved or other.saved:
        return not one.saved.isdisjoint(other.saved)
    return one.reached == other.reached


def _merged(groups: list[_Group]) -> _Group:
    saved, reached = [set().union(*sets) for sets in zip(*[group[1:] for group in groups], strict=True)]
    return _Group([k for group in groups for k in group.numbers], saved, reached)


def _nodes(root: Any) -> set[Any]:
    """The nodes of autograd that a backward pass from `root` comes to."""
    seen, stack = {root}, [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def _saving(nodes: set[Any]) -> set[Any]:
    """Those of the nodes that keep tensors for the backward pass."""

    def saves(node: Any) -> bool:
        names = [name for name in dir(node) if name.startswith("_raw_saved_")]
        return isinstance(node, torch.autograd.function.BackwardCFunction) or any(
            getattr(node, name.replace("_raw", "", 1), None) is not None for name in names
        )

    return {node for node in nodes if saves(node)}


def _saved_by(differentiable: list[torch.Tensor]) -> list[torch.Tensor]:
    """What autograd has saved for the backward pass of these."""
    found: list[torch.Tensor] = []
    for node in set().union(*[_saving(_nodes(t.grad_fn)) for t in differentiable]):
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                saved = getattr(node, name.replace("_raw", "", 1), None)
                found += [t for t in (saved if isinstance(saved, (tuple, list)) else (saved,)) if torch.is_tensor(t)]
    return found


def _counted(results: list[torch.Tensor], differentiable: list[torch.Tensor]) -> set[int]:
    """Results that have a version counter in common with what autograd has saved of them, which x.data has not."""
    storages = {storage_of(t): k for k, t in enumerate(results)}
    places = [(storages.get(storage_of(tensor)), tensor) for tensor in _saved_by(differentiable)]
    return {k for k, tensor in places if k is not None and share_counter(results[k], tensor)}


def _fresh(new: Session, tensor: torch.Tensor) -> Val:
    """A result's value; a copy where a decomposition made it an alias of an input."""
    val = new.value(tensor)
    return apart(new.graph, val) if base_of(val).node.target is None else val


def _gradients(new: Session, forward: set[Node], grads: list[torch.Tensor]) -> list[Val]:
    """Values of the gradients; each in memory of its own, apart from tangents and from what the forward pass kept."""
    values: list[Val] = []
    taken = set(forward)
    for g in grads:
        torch._sync(g)
        val = new.value(g)
        base = base_of(val).node
        if base in taken or base.target is None:
            val = clone(new.graph, val)
            base = val.node
        taken.add(base)
        values.append(val)
    return values


# -- The cut ----------------------------------------------------------------------------------------------------------

RECOMPUTE_BUDGET = 10  # operators repeated in the backward pass to save keeping one value

CHEAP = frozenset(
    {
        aten._to_copy.default, aten.full.default, aten.arange.start_step, aten.arange.start, aten.arange.default,
        aten.zeros.default, aten.ones.default, aten.full_like.default, aten.clone.default, aten.scalar_tensor.default,
        aten.where.self,
    }
)  # fmt: skip


def _is_cheap(target: Any) -> bool:
    if target is None or is_impure(target):
        return False
    return is_view(target) or target in CHEAP or torch.Tag.pointwise in target.tags


class _Cut:
    """Splits a joint graph."""

    def __init__(
        self,
        joint: Joint,
        graph: Graph,
        n_inputs: int,
        forward: set[Node],
        shown: dict[Val, int],
        counted: set[int],
    ):
        self.joint = joint
        self.counted = counted  # results whose changes are counted by what autograd has saved
        self.graph = graph
        self.forward = forward
        n = len(graph.constants)
        self.inputs = {node: i for i, node in enumerate(graph.placeholders[n : n + n_inputs])}
        self.constants = dict(zip(graph.placeholders[:n], graph.constants, strict=True))
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        # Their data is another when the backward pass runs: what follows from it is kept. If the data itself is needed
        # there, autograd says so as it does in eager.
        self.changed = {node for node, i in self.inputs.items() if i in joint.mutated}
        # Inputs whose .data the program sets, and the values they have from then on. Autograd keeps such a tensor
        # itself where it needs it, so that the backward pass sees what it holds by then.
        numbers = {i: node for node, i in self.inputs.items()}
        self.shown = {val: numbers[i] for val, i in shown.items()}
        self.reset = set(self.shown.values())
        self.kept: dict[Val, None] = {}
        self.again: set[Node] = set()
        self.open = aten_passes.reachable(graph)
        self.direct: set[Val] = set()  # what the backward pass reads, with the memory that it shows

    def make(self, values: list[Val], gradients: list[Val], tangents: list[Val]) -> None:
        later = [node for node in self.graph.nodes if node not in self.forward]
        if any(is_random(node.target) for node in later):
            raise Unsupported("random numbers drawn in the backward pass")
        needed = {v for node in later for v in each_val(node.args)}
        self.direct = needed | {base_of(v) for v in needed}
        self._choose(needed)
        self._make_forward(values)
        self._make_backward(later, gradients, tangents)

    def _available(self, val: Val) -> bool:
        node = val.node
        return node.target is None or node not in self.forward or val in self.kept or node in self.again

    def _chain(self, val: Val, found: dict[Node, None]) -> bool:
        """Add the operators that compute `val` from what is available to `found`, if they are few and cheap."""
        if val.node in self.changed or val.node in self.reset or val in self.shown:
            return False
        if val.node in self.inputs and val not in self.direct:
            return False  # eager does not keep it: it may be changed in place until the backward pass
        if self._available(val) or val.node in found:
            return True
        if len(found) >= RECOMPUTE_BUDGET or not _is_cheap(val.node.target) or val in self.open:
            return False
        args = list(each_val(val.node.args))
        if not is_view(val.node.target) and any(base_of(v) in self.open for v in args):
            return False  # eager keeps what was computed, whatever becomes of what it was computed from
        found[val.node] = None
        return all(self._chain(v, found) for v in args)

    def _choose(self, needed: set[Val]) -> None:
        """What to keep and what to compute again, in program order: what is kept early serves what is needed later."""
        wanted = [v for v in needed if v.node in self.forward]
        for val in sorted(wanted, key=lambda v: (self.order[v.node], v.position)):
            if val in self.shown:
                continue
            found: dict[Node, None] = {}
            if self._chain(val, found):
                self.again.update(found)
                continue
            while val.node.target is not None and is_view(val.node.target):  # keep the memory, view it again
                self.again.add(val.node)
                val = val.node.args[0]
            if val.node in self.reset:
                raise Unsupported("a view of a tensor whose .data is set later is needed by the backward pass")
            if not self._available(val):
                self.kept[val] = None

    def _make_forward(self, values: list[Val]) -> None:
        graph, mapped = Graph(), dict[Val, Val]()
        self._bind_inputs(graph, mapped, [*self.constants, *self.inputs])
        _copy(graph, mapped, [node for node in self.graph.nodes if node in self.forward])
        places = {val: k for k, val in enumerate(self.kept)}
        bases = {val.node for val in self.kept}
        for number, val in enumerate(values):
            # A result that shows kept memory is kept in its place: where it is changed, autograd notices as in eager.
            shown = val not in self.kept and base_of(val).node in bases
            kept = base_of(val) if shown else val
            k = number - len(self.joint.mutated)
            if shown and k >= 0 and kept in places and val.meta[:2] == kept.meta[:2]:
                self.joint.shown.append((places.pop(kept), number, k in self.counted, *kept.meta[2:]))
                shown = False
            graph.outputs.append(apart(graph, mapped[val]) if shown else mapped[val])
        extra = [val for val in self.kept if val not in values]
        graph.outputs += [mapped[val] for val in extra]
        position = {val: k for k, val in enumerate([*values, *extra])}
        self.joint.kept = [position[val] for val in self.kept]
        aten_passes.remove_dead(graph)
        self.joint.forward = graph

    def _make_backward(self, later: list[Node], gradients: list[Val], tangents: list[Val]) -> None:
        nodes = [node for node in self.graph.nodes if node in self.again] + later
        used = {v.node for node in nodes for v in each_val(node.args)}
        shown = {v: self.shown[v] for node in nodes for v in each_val(node.args) if v in self.shown}
        kept_inputs = [node for node in self.inputs if node in used or node in shown.values()]
        graph, mapped = Graph(), dict[Val, Val]()
        self._bind_inputs(graph, mapped, [node for node in self.constants if node in used])
        for val in [*self.kept, *[node.val for node in kept_inputs], *tangents]:
            mapped[val] = graph.add_placeholder(val.meta)
        for val, node in shown.items():
            if val.meta != node.val.meta:
                raise Unsupported("a tensor that is differentiated gets data of another layout")
            mapped[val] = mapped[node.val]
        _copy(graph, mapped, nodes)
        graph.outputs = [mapped[val] for val in gradients]
        aten_passes.remove_dead(graph)
        self.joint.viewed_inputs = [self.inputs[node] for node in kept_inputs if not self._needed_itself(node, nodes)]
        self.joint.kept_inputs = [self.inputs[node] for node in kept_inputs]
        self.joint.backward = graph

    def _needed_itself(self, node: Node, nodes: list[Node]) -> bool:
        """Does the backward pass read the input other than by views that autograd keeps?"""
        return (
            any(
                node.val in each_val(later.args) and not (later in self.again and is_view(later.target))
                for later in nodes
            )
            or node in self.reset
        )

    def _bind_inputs(self, graph: Graph, mapped: dict[Val, Val], nodes: list[Node]) -> None:
        for node in nodes:
            if node in self.constants:
                mapped[node.val] = graph.add_constant(self.constants[node])
            else:
                mapped[node.val] = graph.add_placeholder(node.val.meta)


def _copy(graph: Graph, mapped: dict[Val, Val], nodes: Iterable[Node]) -> None:
    for node in nodes:
        copy = Node(node.target, map_vals(mapped.__getitem__, node.args))
        copy.form = node.form
        for val in node.vals:
            copy.vals.append(None if val is None else Val(copy, val.position, val.meta))
        graph.nodes.append(copy)
        mapped.update({a: b for a, b in zip(node.vals, copy.vals, strict=True) if a is not None and b is not None})


def copied(graph: Graph) -> tuple[Graph, dict[Val, Val]]:
    """A graph of its own with the same constants, and which value of it stands for which."""
    new, mapped = Graph(), dict[Val, Val]()
    for node in graph.placeholders:
        mapped[node.val] = new.add_placeholder(node.val.meta)
    new.constants = list(graph.constants)
    _copy(new, mapped, graph.nodes)
    return new, mapped


# -- Some tangents only -----------------------------------------------------------------------------------------------


class Retraced:
    """Partial of a joint that was not traced here: `trace` gives one that was, when it is first needed."""

    def __init__(self, joint: Joint, trace: Callable[[], Joint]):
        self.joint = joint
        self.trace = trace
        self.partial: Any = None

    def make(self, present: Sequence[int]) -> tuple[list[int], Graph]:
        if self.partial is None:
            traced = self.trace()
            if traced.mark is None or traced.mark != self.joint.mark:
                raise Unsupported("the program is traced in another way than before")
            self.partial = traced.partial
        return self.partial.make(present)


class Partial:
    """Backward graphs for calls where the gradient of some results is absent.

    Absent is not zero: what depends on absent gradients alone has no gradient, and nothing is multiplied by zero (that
    would be NaN where a derivative is infinite). So torch itself differentiates the traced program again, from the
    tangents that are there, and the graph starts from what the forward graph kept for all of them."""

    def __init__(self, reverse: _Reverse, joint: Joint, values: list[Val], kept: dict[Val, int], shown: dict[Val, int]):
        self.reverse = reverse
        self.joint = joint
        self.values = values  # what the forward graph gives
        self.kept = kept  # value -> place among the kept values
        self.shown = shown  # values of inputs whose .data the program sets -> the input's number

    def make(self, present: Sequence[int]) -> tuple[list[int], Graph]:
        """Input numbers and the graph: kept values, kept inputs, tangents that are `present` -> their gradients."""
        new, n = self.reverse.session, self.reverse.n_forward
        with resumed(new), torch.autograd.set_multithreading_enabled(False):
            try:
                grad_inputs, gradients = self.reverse.trace(present, keep=True)
                whole, mapped = copied(new.graph)
            finally:
                del new.graph.nodes[n:]
        # Merged as the joint graph was, so that what was kept there stands for the same computations here.
        gradients = [mapped[val] for val in gradients]
        whole.outputs = [*[mapped[val] for val in self.values], *gradients]
        replaced = aten_passes.merge(whole, set(whole.nodes[:n]))
        now = {val: replaced.get(mapped[val]) or mapped[val] for val in self.kept}
        places = {now[val]: k for val, k in self.kept.items()}
        tangents = [mapped[self.reverse.tangent_values[k]] for k in present]
        shown = {replaced.get(mapped[val]) or mapped[val]: i for val, i in self.shown.items()}
        return grad_inputs, self._graph(whole, places, tangents, gradients, shown)

    def _graph(
        self, whole: Graph, places: dict[Val, int], tangents: list[Val], gradients: list[Val], shown: dict[Val, int]
    ) -> Graph:
        joint = self.joint
        graph, mapped = Graph(), dict[Val, Val]()
        for node, tensor in zip(whole.placeholders, whole.constants, strict=False):
            mapped[node.val] = graph.add_constant(tensor)
        given = [joint.forward.outputs[k] for k in joint.kept]
        kept = [graph.add_placeholder(val.meta) for val in given if val is not None]
        mapped.update({val: kept[k] for val, k in places.items()})
        inputs = [whole.placeholders[len(whole.constants) + i].val for i in joint.kept_inputs]
        for val in [*inputs, *tangents]:
            mapped[val] = graph.add_placeholder(val.meta)
        for val, i in shown.items():
            if i in joint.kept_inputs:
                mapped[val] = mapped[whole.placeholders[len(whole.constants) + i].val]
        needed: set[Node] = set()
        todo = list(gradients)
        while todo:
            val = todo.pop()
            if val in mapped or val.node in needed:
                continue
            if val.node.target is None or val in shown or is_random(val.node.target):
                raise Unsupported("the forward pass kept too little for a backward pass from some of its results")
            needed.add(val.node)
            todo += each_val(val.node.args)
        _copy(graph, mapped, [node for node in whole.nodes if node in needed])
        graph.outputs = [mapped[val] for val in gradients]
        return graph
