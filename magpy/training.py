"""Training programs: a forward and a backward plan behind one autograd function."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from magpy import aliases, aten_trace, choices, graph_form, hooks, interrupts, second_order
from magpy.aten_graph import Graph, Unsupported, each_val
from magpy.graph_cache import Place
from magpy.joint import Joint, Retraced, trace_joint
from magpy.lower import Lowered, Runner, _Log, changes_layouts, plan_graph, rewrite
from magpy.results import made_leaf

_FORWARD_LEVELS = (torch._C._enter_dual_level, torch._C._functorch._jvp_increment_nesting)


def lower_training(program: Any, inputs: list[torch.Tensor], log: _Log) -> Lowered:
    """Lower a program some of whose outputs are differentiable. Raises LoweringError, and what the program raises."""
    if any(op[0] in _FORWARD_LEVELS for op in getattr(program, "ops", ())):  # torch does not survive it on fakes
        raise Unsupported("forward-mode gradients that are differentiated")
    joint = _traced(program, inputs)
    if torch.is_inference_mode_enabled():
        raise Unsupported("gradients that are switched on inside a call in inference mode")
    rewrite(joint.forward)
    return _lowered(program, inputs, joint, log)


def lower_found(program: Any, inputs: list[torch.Tensor], data: dict[str, Any], log: _Log) -> Lowered:
    """The program from what the cache of lowered graphs kept of it: see Compiled.data."""
    joint = Joint.of_data(data)
    if data["several"]:
        joint.partial = Retraced(joint, _traced_later(program, inputs))
    return _lowered(program, inputs, joint, log)


def _traced(program: Any, inputs: list[torch.Tensor]) -> Joint:
    reset = getattr(program, "reset", None)
    with _recurrent_without_mkldnn(program):
        if reset is not None:
            program.refuse_reset_after_use(inputs=False)
        layouts = changes_layouts(program)
        try:
            joint = trace_joint(program.run, inputs, reset=reset, layouts=layouts)
        except aten_trace.NeedsPythonDispatcher:
            joint = trace_joint(program.run, inputs, python_dispatcher=True, reset=reset, layouts=layouts)
    if reset and any(alias.apart for alias in joint.aliases):
        raise Unsupported("results that share memory, and a tensor whose .data is set")
    joint.set_mark()
    return joint


def _traced_later(program: Any, inputs: list[torch.Tensor]) -> Callable[[], Joint]:
    """Traces the program as it would be now, from inputs that look like these, under the modes of now."""
    twins = aten_trace.twins_of(inputs)
    modes = aten_trace.Modes()

    def trace() -> Joint:
        with modes.again():
            return _traced(program, twins)

    return trace


def _lowered(program: Any, inputs: list[torch.Tensor], joint: Joint, log: _Log) -> Lowered:
    """The lowered program of a joint whose forward graph is rewritten."""
    outputs = getattr(program, "outputs", ())
    classes = {place: output.leaf for place, output in zip(joint.wanted, outputs, strict=False)}
    leaf_classes = [classes.get(("result", k)) or torch.Tensor for k in joint.leaves]
    repeated = second_order.repeated(program, inputs, joint)
    sources = {i for i, t in enumerate(inputs) if t.requires_grad}
    compiled = Compiled(joint, log, sources, leaf_classes, repeated)
    data = None if getattr(program, "reset", None) else compiled.data
    return Lowered(compiled, joint.mutated, log.info("training", program), data)


def _recurrent_without_mkldnn(program: Any) -> Any:
    """oneDNN's fused RNN layer cannot be differentiated by a compiled backward pass: its workspace is not a tensor."""
    return torch.backends.mkldnn.flags(enabled=not program.is_recurrent(), allow_tf32=None)


# -- Running ----------------------------------------------------------------------------------------------------------


class _Backward(NamedTuple):
    """The backward pass from some of the tangents."""

    runner: Runner  # some of (kept values, kept inputs, tangents) -> gradients
    taken: Sequence[int]  # numbers of the tangents
    uses: Sequence[int]  # numbers of those that the runner wants
    numbers: Sequence[int]  # inputs that the gradients are of


def _without_unused_inputs(graph: Graph) -> list[int]:
    """Take inputs that nothing uses out of the graph; the numbers of those that stay."""
    n = len(graph.constants)
    used = {val.node for node in graph.nodes for val in each_val(node.args)}
    used |= {val.node for val in graph.outputs if val is not None}
    inputs = graph.placeholders[n:]
    stay = [i for i, node in enumerate(inputs) if node in used]
    graph.placeholders[n:] = [inputs[i] for i in stay]
    return stay


class Compiled:
    """The runner: list of inputs -> new data of mutated inputs, wanted outputs.

    The backward plan is made when it is first needed."""

    def __init__(
        self,
        joint: Joint,
        log: _Log,
        sources: set[int],
        leaf_classes: Sequence[type],
        repeated: second_order.Repeated | None,
    ):
        self.joint = joint
        self.repeated = repeated
        self.log = log
        self.place = log.place
        self.forward: Runner = plan_graph(joint.forward, log)
        self._backward: dict[tuple[int, ...], _Backward] = {}  # by present tangents
        self._making = threading.RLock()  # of backward passes: making one changes the joint's graph
        first = len(joint.mutated)
        self.n_forward = first + joint.n_results
        self.silent = [
            k for k in range(self.n_forward) if k - first not in joint.differentiable and k - first not in joint.leaves
        ]
        self.leaves = [first + k for k in joint.leaves]
        self.leaf_classes = leaf_classes
        self.viewed = frozenset(joint.viewed_inputs)
        self.tangents = [(first + k, meta) for k, meta in zip(joint.differentiable, joint.tangents, strict=True)]
        self.groups = [({first + k for k in numbers}, saves, set(apart)) for numbers, saves, apart in joint.groups]
        self.groups = self.groups or [(set(), True, set())]
        # Does the autograd function see all that it depends on among its inputs, in the grad mode that it needs?
        self.alone = bool(
            joint.differentiable and sources - self.groups[0][2] and not joint.leaves and torch.is_grad_enabled()
        )
        self.plain = joint.wanted == [("result", k) for k in range(joint.n_results)]

    def kept_inputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What is kept of the inputs: where autograd keeps a view, tensor.data = other does not reach it."""
        viewed = self.viewed
        kept = [inputs[i].detach() if i in viewed else inputs[i] for i in self.joint.kept_inputs]
        return kept + self.repeated.saved_of(inputs) if self.repeated else kept

    def backward_from(self, present: tuple[int, ...]) -> _Backward:
        """The backward pass of a call with the tangents `present`."""
        known = self._backward.get(present)
        if known is not None:
            return known
        with self._making:
            known = self._backward.get(present)  # another thread may have made it by now
            if known is None:
                with choices.noted() as made:
                    mark = self.joint.mark  # the backward graph reads what this forward graph keeps
                    place = Place(None, "") if mark is None else self.place.within("backward", mark, *present)
                    known = self._found_backward(place) or self._made_backward(present, place, made)
                self._backward[present] = known
        return known

    def _made_backward(self, present: tuple[int, ...], place: Place, made: dict[str, str]) -> _Backward:
        joint = self.joint
        everything = tuple(range(len(joint.tangents)))
        if present == everything:
            numbers, graph = joint.grad_inputs, joint.backward
        elif joint.partial is None:
            return self.backward_from(everything)
        else:
            try:
                numbers, graph = joint.partial.make(present)
            except Exception as error:  # zeros for the absent ones: right unless a derivative is infinite
                interrupts.pass_on(error)
                logging.getLogger("magpy").warning("backward pass from some of the results: %s", error)
                return self.backward_from(everything)
        uses = _without_unused_inputs(graph)
        rewrite(graph)
        place.keep(
            lambda: {"graph": graph_form.graph_data(graph), "taken": [*present], "uses": uses, "numbers": [*numbers]},
            made,
        )
        return _Backward(plan_graph(graph, self.log), present, uses, numbers)

    def _found_backward(self, place: Place) -> _Backward | None:
        data = place.find()
        if data is None:
            return None
        try:
            graph = graph_form.graph_of(data["graph"])
            reverse = _Backward(plan_graph(graph, self.log), data["taken"], data["uses"], data["numbers"])
        except Exception as error:
            interrupts.pass_on(error)
            place.spoiled(error)
            return None
        place.found()
        return reverse

    def data(self) -> dict[str, Any]:
        """What the cache of lowered graphs keeps, before the backward graph is rewritten."""
        return {"kind": "training", **self.joint.data()}

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        if self.alone and len(self.groups) == 1:
            outs = _Function.apply(self, None, 0, *self._seen_by(0, inputs))
        else:
            outs = self._with_leaves(inputs)
        if self.plain:
            return outs
        n = len(self.joint.mutated)
        wanted: list[Any] = []
        made = aliases.make(self.joint.aliases, inputs, outs[n:])
        for kind, i in self.joint.wanted:
            if kind == "result":
                wanted.append(outs[n + i])
            elif kind == "input":
                wanted.append(inputs[i])
            elif kind == "alias":
                wanted.append(made[i])
            else:
                wanted.append(None)
        return [*outs[:n], *wanted]

    def _seen_by(self, number: int, given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Inputs and leaves of a group's function: what its results do not depend on is seen without its history, which
        a backward pass would else go through, and free."""
        apart = self.groups[number][2]
        if not apart:
            return given
        return [t.detach() if i in apart and t.requires_grad else t for i, t in enumerate(given)]

    def _with_leaves(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """Leaves that the program makes exist before the autograd function, as inputs of it. Where
        nothing that its results depend on requires grad, a leaf that nobody sees makes them differentiable."""
        with torch.no_grad():
            made = list(self.forward(inputs))
        for k, cls in zip(self.leaves, self.leaf_classes, strict=True):
            made[k] = made_leaf(made[k], cls)
        leaves = [made[k] for k in self.leaves]
        if not self.joint.differentiable:
            return made[: self.n_forward]
        outs: list[Any] = [None] * self.n_forward
        with torch.enable_grad():
            for number in range(len(self.groups)):
                seen = [*self._seen_by(number, [*inputs, *leaves])]
                if not any(t.requires_grad for t in seen):
                    seen.append(torch.empty(0, requires_grad=True))
                given = _Function.apply(self, made, number, *seen)
                outs = [new if new is not None else old for old, new in zip(outs, given, strict=True)]
        for k, leaf in zip(self.leaves, leaves, strict=True):
            outs[k] = leaf
        return outs


DOUBLE_BACKWARD = (
    b"double backward through a region compiled by magpy that draws random numbers, writes or looks at data is not "
    b"supported: keep what is differentiated twice out of it, with torch.compiler.disable"
)


class _Function(torch.autograd.Function):
    """apply(compiled, what its forward plan made or None, number of a group, *inputs, *leaves) -> the results of the
    group, in their places; for the first group also the new data of mutated inputs and what is not differentiable."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, compiled: Compiled, made: Any, number: int, *inputs: torch.Tensor
    ) -> tuple:
        joint, (own, ctx.saves, _) = compiled.joint, compiled.groups[number]
        outs = [t.data if t._is_view() else t for t in (compiled.forward(inputs) if made is None else made)]
        ctx.compiled = compiled
        ctx.hooks = hooks.given()
        ctx.set_materialize_grads(False)
        silent = [] if number else compiled.silent
        ctx.mark_non_differentiable(*[outs[k] for k in silent])
        # what has a history by then is saved without it: a single value can then be asked for, see _saved
        kept = [outs[k] if k in silent or k >= compiled.n_forward else outs[k].detach() for k in joint.kept]
        for place, k, counted, *_ in joint.shown:
            kept[place] = outs[k].data if not counted else outs[k] if k in silent else outs[k].detach()
        ctx.save_for_backward(*kept, *compiled.kept_inputs(inputs))
        ctx.versions = compiled.repeated.versions_of(inputs) if compiled.repeated else ()
        ctx.n_inputs = len(inputs)
        return tuple([outs[k] if k in own or k in silent else None for k in range(compiled.n_forward)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple:
        compiled, joint = ctx.compiled, ctx.compiled.joint
        result: list[torch.Tensor | None] = [None] * (ctx.n_inputs + 3)
        present = tuple([i for i, (k, _) in enumerate(compiled.tangents) if grads[k] is not None])
        if not present:
            return tuple(result)
        if torch.is_grad_enabled() and compiled.repeated and not ctx.hooks:
            given = [grads[compiled.tangents[i][0]] for i in present]
            for i, grad in compiled.repeated.gradients(ctx, present, given).items():
                result[i + 3] = grad
            return tuple(result)
        reverse = compiled.backward_from(present)
        n_saved = len(joint.kept) + len(joint.kept_inputs)
        used = {i for i in reverse.uses if i < n_saved}
        values: list[Any] = _saved(ctx, used)[:n_saved] if ctx.saves or used else [None] * n_saved
        for place, _, _, *layout in joint.shown:
            if values[place] is not None:
                values[place] = values[place].as_strided(*layout)
        values += [_laid_out(grads[k], meta) for k, meta in (compiled.tangents[i] for i in reverse.taken)]
        refusing = None
        if torch.is_grad_enabled():  # create_graph=True: the gradients would look like constants
            given = [g for g in grads if g is not None and g.requires_grad]
            refusing = functools.partial(_refusing_double_backward, ctx, given)
        with torch.no_grad(), hooks.backward_of(ctx.hooks, refusing):
            outs = reverse.runner([values[i] for i in reverse.uses])
        if refusing:
            outs = refusing(outs)
        for i, grad in zip(reverse.numbers, outs, strict=True):
            result[i + 3] = grad
        return tuple(result)


def _saved(ctx: Any, used: set[int]) -> list[torch.Tensor | None]:
    """The saved tensors, at least those of the numbers `used`. Raises, as in eager, if they were freed or one of those
    was changed in place; what another pass needs may change."""
    try:
        return [*ctx.saved_tensors]
    except RuntimeError:
        return [saved.unpack() if i in used else None for i, saved in enumerate(ctx._raw_saved_tensors)]


def _refusing_double_backward(ctx: Any, grads: list[torch.Tensor], outs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients that raise when they are differentiated, with respect to whatever the forward pass was made from: were
    they connected to nothing, allow_unused=True would hide the error."""
    seen, stack, leaves = set(), [ctx], list(grads)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
                if hasattr(node, "variable"):
                    leaves.append(node.variable)
    refuse = torch._C._functions.DelayedError
    results = []
    for t in outs:
        made = refuse(DOUBLE_BACKWARD, 1 + len(leaves))(t.requires_grad_(), *leaves)
        results.append(made[0] if isinstance(made, (tuple, list)) else made)
    return results


def _laid_out(grad: torch.Tensor | None, meta: tuple) -> torch.Tensor:
    """The tangent with the layout that the backward graph was made for; zeros in the place of None."""
    dtype, device, size, stride, _ = meta
    if grad is None:
        return torch.empty_strided(size, stride, dtype=dtype, device=device).zero_()
    if grad.stride() == stride and type(grad) is torch.Tensor and grad.storage_offset() == 0:
        return grad
    return torch.empty_strided(size, stride, dtype=dtype, device=device).copy_(grad)
