"""Lowering: the operators of one recorded execution become something that runs.

    recorded operators -> a callable that replays them -> functional ATen graph(s) -> _C.compile_graph -> runner

Inference (inference.py) gives one graph, whose plan is the runner; what autograd must see gives two (joint.py), behind
an autograd function (training.py). Replaying calls the recorded functions themselves: nothing is printed to source and
read back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

import magpy.packed  # noqa: F401 (registers)
from magpy import (
    _C,
    aten_layouts,
    aten_passes,
    aten_rewrites,
    aten_trace,
    backward,
    choices,
    flags,
    graph_cache,
    hooks,
    inference,
    interrupts,
    opaque_tensors,
    products,
    results,
    steps,
    symbols,
)
from magpy.aten_graph import Graph, Interpreter, Unsupported, describe, is_random
from magpy.effects import Unwarned
from magpy.random_ops import generators_of
from magpy.replay import is_getter, name_of, replayed

Runner = Callable[[Sequence[torch.Tensor]], Sequence[Any]]


class LoweringError(Exception):
    """The recorded program cannot be lowered; the message says why. The caller runs it eagerly.

    file and line: where in the user's program, or None."""

    def __init__(self, message: str, site: str = ""):
        super().__init__(message)
        file, colon, line = site.rpartition(":")
        known = bool(colon) and line.isdigit()
        self.file = file if known else None
        self.line = int(line) if known else None


class Lowered:
    """An executable program.

    runner: a _C.Plan or a callable, list of input tensors -> sequence of tensors: first the new data of inputs[i] for i
        in `mutated`, which the caller copies when it commits, then the wanted outputs. It writes to no input.
    mutated: numbers of inputs that the program changes in place.
    info: kind ("inference", "training"), fx, aten, backward_aten (str() prints them), plans,
        seconds_lowering, seconds_compiling, random (draws random numbers), uncompiled (why a graph runs operator by
        operator, or None), kept (what became of it in the cache of lowered graphs), counters (note_counters).
    data: gives what the cache of lowered graphs keeps of it, or None where it keeps nothing.
    """

    __slots__ = ("runner", "mutated", "info", "data")

    def __init__(
        self,
        runner: Runner,
        mutated: tuple[int, ...],
        info: dict[str, Any],
        data: Callable[[], dict[str, Any]] | None = None,
    ):
        self.runner = runner
        self.mutated = mutated
        self.info = info
        self.data = data

    def note_counters(self, counters: list[list[list[int]]]) -> None:
        """Outputs that share memory have version counters in common as aten_trace.counters_of says, in every run."""
        n = len(self.mutated)
        self.info["counters"] = tuple(
            tuple(tuple(k + n if k >= 0 else k for k in group) for group in groups) for groups in counters
        )


class Text:
    """Text that is made when someone looks at it."""

    def __init__(self, make: Callable[[], str]):
        self._make = make

    def __str__(self) -> str:
        return self._make()


# -- Recorded operators -----------------------------------------------------------------------------------------------


class Value:
    """Stand-in for _C.Value in templates written by hand: tensor number `index` of a recording."""

    __slots__ = ("index",)

    def __init__(self, index: int):
        self.index = index

    def __repr__(self) -> str:
        return f"v{self.index}"


def _value_types() -> tuple[type, ...]:
    native = getattr(_C, "Value", None)
    return (Value,) if native is None else (Value, native)


# Reads of a tensor's data: guarded by the trace, and impossible on a tensor without data.
READS = frozenset(
    "item __bool__ __int__ __float__ __index__ __complex__ tolist __len__ __format__ __repr__ __str__ is_nonzero equal "
    "allclose __contains__ data_ptr".split()
)

# What autograd or the surroundings would notice, and a graph cannot express.
REFUSED = frozenset(
    "backward __set__ __delete__ register_hook retain_grad register_post_accumulate_grad_hook numpy "
    "__array__ share_memory_ pin_memory apply_ map_ map2_ seed set_rng_state untyped_storage storage "
    "_typed_storage".split()
)


def _needs_memory(graph: Any) -> bool:
    """Does a TorchScript graph fill or read memory without an operator? It would crash on tensors without memory."""
    return any(
        node.kind() == "aten::_tensor_to_list" or node.schema().partition("(")[2].startswith("t[]")
        for kind in ("aten::tensor", "aten::as_tensor", "aten::_tensor_to_list")
        for node in graph.findAllNodes(kind, True)
    )


class Output(NamedTuple):
    """What the first run's tensor was, as far as a graph does not tell."""

    strides: tuple[int, ...] | None
    inference: bool
    leaf: type | None  # the class of a leaf that requires grad, or of a parameter
    requires_grad: bool


class Program:
    """Recorded operators as a callable: list of input tensors -> list of the wanted outputs (an int for "input
    number i itself")."""

    def __init__(
        self,
        ops: Sequence[tuple],
        input_values: Sequence[int],
        output_values: Sequence[int],
        outputs: Sequence[tuple] = (),
    ):
        self.outputs = [Output(*output) for output in outputs]
        self.input_values = list(input_values)
        self.output_values = list(output_values)
        self.reset: dict[
            int, torch.Tensor
        ] = {}  # input number -> what it stands for after the last tensor.data = value
        self.opaque: frozenset[int] = frozenset()  # numbers of inputs that are sparse or quantised
        self.inference = torch.is_inference_mode_enabled()
        self._types = _value_types()
        self.ops, switched = flags.without(ops)
        if switched:
            raise LoweringError(f"the call leaves a switch of torch's changed: {switched}")
        for op in ops:
            name = name_of(op[0])
            if name in REFUSED:
                raise LoweringError(f"{name} cannot be part of a graph", op[5])
            if isinstance(op[0], torch.jit.ScriptFunction) and _needs_memory(op[0].inlined_graph):
                raise LoweringError(f"TorchScript function {name} touches the memory of tensors", op[5])

    def run(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        outs: list[Any] = []
        with opaque_tensors.watching(outs):
            outs += self._run(inputs)
        return [out.token if isinstance(out, opaque_tensors.Opaque) else out for out in outs]

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        env: dict[int, Any] = dict(zip(self.input_values, inputs, strict=True))
        for i in self.opaque:
            env[self.input_values[i]] = opaque_tensors.Opaque(inputs[i])
        own = {index: i for i, index in enumerate(self.input_values)}
        self.reset.clear()
        for func, op_args, kwargs, out, _state, site in self.ops:
            if name_of(func) in READS:
                continue
            try:
                args = self._fill(op_args, env)
                given = self._fill(kwargs, env) if kwargs else {}
                named = symbols.read_as_numbers(func, given) if given else given
                if named is not given or self._has_number(op_args) or self._has_number(kwargs):
                    result = symbols.call(func, list(args), named)
                else:
                    result = replayed(func)(*args, **given)
                if func is backward.with_data and op_args[0].index in own:
                    self.reset[own[op_args[0].index]] = result
                self._bind(out, result, env)
            except Exception as error:
                if not hasattr(error, "magpy_site"):
                    error.magpy_site = (name_of(func), site)  # type: ignore[attr-defined]
                raise
        outs = [own[k] if k in own else env[k] for k in self.output_values]
        for i, (out, (strides, in_inference, leaf, _)) in enumerate(zip(outs, self.outputs, strict=False)):
            if isinstance(out, opaque_tensors.Opaque) and (in_inference != self.inference or leaf is not None):
                raise Unsupported("a sparse or quantised leaf, or one that is made in another inference mode")
            if not isinstance(out, torch.Tensor) or strides is None:
                continue
            if torch._is_functional_tensor(out):
                torch._sync(out)  # a changed value may lie otherwise
            if out.stride() != strides:
                if leaf is not None:
                    raise Unsupported("a leaf that is laid out otherwise than fake tensors tell")
                outs[i] = _laid_out(out, strides, [*inputs, *outs[:i], *outs[i + 1 :]])
        return outs

    def _fill(self, template: Any, env: dict[int, Any]) -> Any:
        kind = type(template)
        if kind in self._types:
            return env[template.index]
        if kind is _C.Number:
            return symbols.Number(env[template.index])
        if kind is tuple:
            return tuple([self._fill(t, env) for t in template])
        if kind is list:
            return [self._fill(t, env) for t in template]
        if kind is dict:
            return {k: self._fill(t, env) for k, t in template.items()}
        if kind is slice:
            return slice(
                self._fill(template.start, env), self._fill(template.stop, env), self._fill(template.step, env)
            )
        if kind is torch.Tensor:  # a constant of the recorder's
            return torch.ops.aten.lift_fresh.default(template)
        return template

    def _has_number(self, template: Any) -> bool:
        kind = type(template)
        if kind in (tuple, list):
            return any(self._has_number(t) for t in template)
        if kind is dict:
            return any(self._has_number(t) for t in template.values())
        return kind is _C.Number

    def _bind(self, template: Any, result: Any, env: dict[int, Any]) -> None:
        """Name the tensors of a result. In-place operators give a value that has a name already: it stays that
        tensor."""
        kind = type(template)
        if kind in self._types:
            if template.index not in env:
                env[template.index] = result
        elif kind in (tuple, list):
            if isinstance(result, dict):
                result = list(result.values())
            for t, r in zip(template, result, strict=False):
                self._bind(t, r, env)
        elif kind is dict and isinstance(result, dict):
            for k, t in template.items():
                self._bind(t, result[k], env)

    def values_in(self, template: Any) -> list[int]:
        kind = type(template)
        if kind in self._types:
            return [template.index]
        if kind in (tuple, list):
            return [i for t in template for i in self.values_in(t)]
        if kind is dict:
            return [i for t in template.values() for i in self.values_in(t)]
        if kind is slice:
            return self.values_in((template.start, template.stop, template.step))
        return []

    def wants_grad(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Could an output be differentiable? Follows grad mode and requires_grad through the operators, erring on
        the side of yes. Not asked of what the call itself makes differentiable: tracing tells."""
        grad = torch.is_grad_enabled()
        marked = {k for k, t in zip(self.input_values, inputs, strict=True) if t.requires_grad}
        if not marked:
            return False
        for func, args, kwargs, out, _state, _site in self.ops:
            if func is torch._C._set_grad_enabled:
                grad = bool(args[0])
                continue
            if grad and name_of(func) not in ("detach",) and not is_getter(func, "data"):
                if any(i in marked for i in self.values_in(args) + self.values_in(kwargs)):
                    marked.update(self.values_in(out))
                    if name_of(func) in ("__setitem__", "copy_"):
                        marked.update(self.values_in(args[0]))
        own = set(self.input_values)
        return any(k in marked and k not in own for k in self.output_values)

    def unset(self, numbers: Sequence[int]) -> list[int]:
        """Those of the inputs whose .data the program does not set."""
        values = {op[1][0].index for op in self.ops if op[0] is backward.with_data}
        return [i for i in numbers if self.input_values[i] not in values]

    def refuse_marks_after_use(self, marks: Sequence[tuple[int, bool]]) -> None:
        """Raise Unsupported if an input whose requires_grad the program changes was used before: it is lowered, and
        runs, as if it had been changed at the start."""
        marked = {self.input_values[i] for i, _ in marks}
        used: set[int] = set()
        for func, args, kwargs, out, *_ in self.ops if marked else ():
            if func is backward.with_data and args[0].index in marked:  # the same tensor from here on
                marked.update(self.values_in(out))
                used.update(self.values_in(out) if args[0].index in used else ())
                continue
            if func is torch.Tensor.requires_grad_ and args[0].index in marked & used:
                raise Unsupported("requires_grad of a tensor from outside is set after the tensor was used")
            if not is_getter(func, "data") and name_of(func) != "detach":
                used.update(self.values_in(args) + self.values_in(kwargs))

    def refuse_reset_after_use(self, inputs: bool) -> None:
        """Raise Unsupported if a tensor's .data is set after the tensor was used: where autograd has kept it, eager's
        backward pass sees the new data. inputs: of inputs too."""
        for k, op in enumerate(self.ops):
            if op[0] is not backward.with_data or (not inputs and op[1][0].index in self.input_values):
                continue
            value = op[1][0].index
            for func, args, kwargs, *_ in self.ops[:k]:
                harmless = is_getter(func, "data") or func is backward.with_data or name_of(func) == "detach"
                if not harmless and value in self.values_in(args) + self.values_in(kwargs):
                    raise Unsupported("a tensor's .data is set after the tensor was used where gradients are computed")

    @property
    def computes_gradients(self) -> bool:
        return any(op[0] in (backward.gradients, backward.accumulated) for op in self.ops)

    def is_recurrent(self) -> bool:
        functions = [args[0] if func is steps.sized else func for func, args, *_ in self.ops]
        return any(name_of(func) in ("lstm", "lstm_cell") for func in functions)

    def __str__(self) -> str:
        lines = ["inputs " + ", ".join(f"v{k}" for k in self.input_values)]
        for func, args, kwargs, out, _state, site in self.ops:
            inside = [self._text(a) for a in args] + [f"{k}={self._text(a)}" for k, a in (kwargs or {}).items()]
            lines.append(f"{self._text(out)} = {name_of(func)}({', '.join(inside)})  # {site}")
        return "\n".join([*lines, "return " + ", ".join(f"v{k}" for k in self.output_values)])

    def _text(self, template: Any) -> str:
        kind = type(template)
        if kind in self._types or kind is _C.Number:
            return f"v{template.index}"
        if kind in (tuple, list):
            return f"[{', '.join(map(self._text, template))}]"
        try:
            return repr(template)[:80]
        except Exception:
            return f"<{kind.__name__}>"


def _laid_out(tensor: torch.Tensor, strides: tuple[int, ...], others: Sequence[Any]) -> torch.Tensor:
    """The tensor with the strides that its operator really gives: fake tensors do not always tell the right ones."""
    sizes = tuple(tensor.shape)
    if len(sizes) == len(strides) and all(
        size == 1 or told == real or 0 in sizes
        for size, told, real in zip(sizes, tensor.stride(), strides, strict=True)
    ):  # where a size is 1 any stride shows the same elements, where one is 0 there are none
        return tensor.as_strided(sizes, strides, tensor.storage_offset())
    shared = tensor.untyped_storage()._cdata
    alone = all(not isinstance(t, torch.Tensor) or t.untyped_storage()._cdata != shared for t in others)
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    if alone and tensor.dim() == len(strides):
        back = [order.index(dim) for dim in range(len(order))]
        tensor = tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
    if tensor.stride() != strides:
        raise Unsupported("a result that is laid out otherwise than fake tensors tell")
    return tensor


# -- Compiling a graph ------------------------------------------------------------------------------------------------


class _Log:
    """What is gathered for Lowered.info while graphs are made."""

    def __init__(self, place: graph_cache.Place | None = None) -> None:
        self.place = place or graph_cache.Place(None, "")
        self.started = time.perf_counter()
        self.compiling = 0.0
        self.graphs: list[Graph] = []
        self.plans: list[Any] = []
        self.uncompiled: str | None = None

    def info(self, kind: str, program: Any) -> dict[str, Any]:
        graphs = self.graphs  # the backward graph joins them when it is first needed
        return {
            "kind": kind,
            "fx": Text(program.__str__),
            "aten": Text(lambda: str(graphs[0]) if graphs else ""),
            "backward_aten": None
            if kind == "inference"
            else Text(lambda: str(graphs[1]) if graphs[1:] else "not made yet"),
            "plans": self.plans,
            "seconds_lowering": time.perf_counter() - self.started - self.compiling,
            "seconds_compiling": self.compiling,
            "uncompiled": self.uncompiled,
            "random": any(is_random(node.target) for graph in graphs for node in graph.nodes),
            "generators": generators_of(node for graph in graphs for node in graph.nodes),
        }


def compile_graph(graph: Graph, log: _Log) -> Runner:
    """Rewrite the graph for kernels, in place, and make what runs it."""
    rewrite(graph)
    return plan_graph(graph, log)


def rewrite(graph: Graph) -> None:
    """All that is done to a graph before it is described to C, in place."""
    aten_passes.make_empty(graph)
    aten_passes.remove_dead(graph)  # so that it is known which results nobody wants
    with choices.saved_together():
        aten_rewrites.rewrite(graph)
        aten_passes.simplify(graph)
        aten_layouts.straighten(graph)
        aten_passes.simplify(graph)  # copies of what is contiguous now
        products.rewrite(graph)
    aten_passes.simplify(graph)


def plan_graph(graph: Graph, log: _Log) -> Runner:
    """A _C.Plan for a rewritten graph, or an interpreter of its operators if it cannot be compiled."""
    log.graphs.append(graph)
    started = time.perf_counter()
    try:
        if not hasattr(_C, "compile_graph"):
            raise Unsupported("this build has no kernel compiler")
        nodes, outputs = describe(graph)
        plan = _C.compile_graph(nodes, outputs)
    except Exception as error:  # whatever it is, the operators can still be run
        interrupts.pass_on(error)
        log.uncompiled = f"{type(error).__name__}: {error}"
        plan = Interpreter(graph)
    finally:
        log.compiling += time.perf_counter() - started
    log.plans.append(plan)
    if not graph.constants:
        return plan
    return _C.BoundPlan(plan, tuple(graph.constants))


# -- Lowering ---------------------------------------------------------------------------------------------------------


def lower(
    ops: Sequence[tuple],
    inputs: Sequence[torch.Tensor],
    input_values: Sequence[int],
    output_values: Sequence[int],
    options: dict[str, Any] | None = None,
    outputs: Sequence[tuple] | None = None,
    state: Sequence[int] = (),
    marks: Sequence[tuple[int, bool]] = (),
) -> Lowered:
    """Make recorded operators executable.

    ops: (func, args, kwargs or None, out, state, site) in program order; in args, kwargs and out tensors are
    _C.Value(index). inputs: the tensors of the first run (metadata is what counts); input_values, output_values:
    their and the wanted indices; outputs: what the first run's outputs were (Output), as far as known;
    state: which inputs are parameters and buffers of modules; marks: inputs whose requires_grad the program changes, to
    what. Raises LoweringError."""
    program = Program(ops, input_values, output_values, outputs or ())
    program.opaque = frozenset(i for i, t in enumerate(inputs) if opaque_tensors.is_opaque(t))
    frozen = program.unset(state) if (options or {}).get("freezing") else ()
    frozen = [i for i in frozen if i not in program.opaque]
    place = graph_cache.place_of(program, inputs, marks, options or {})
    with Unwarned():  # of what the observed call has been warned of already
        lowered = _found(place, program, inputs)
        if lowered is None:
            with choices.noted() as made:
                lowered = lower_program(program, inputs, frozen, marks, place)
            place.keep(lowered.data, made)
    lowered.data = None  # it holds graphs
    lowered.info["kept"] = place.outcome
    lowered.runner = results.as_observed(lowered, program.outputs)
    if hooks.are_in(ops):
        lowered.runner = hooks.in_runs(lowered.runner)
    return lowered


def _found(place: graph_cache.Place, program: Program, inputs: Sequence[torch.Tensor]) -> Lowered | None:
    """The program as it was lowered before, by this process or another."""
    data = place.find()
    if data is None:
        return None
    try:
        log = _Log(place)
        if data["kind"] == "training":
            from magpy import training

            lowered = training.lower_found(program, list(inputs), data, log)
        else:
            traced = inference.Traced.of_data(data)
            lowered = _inference(program, inputs, log, traced, plan_graph(traced.graph, log))
    except Exception as error:
        interrupts.pass_on(error)
        place.spoiled(error)
        return None
    place.found()
    return lowered


def lower_program(
    program: Any,
    inputs: Sequence[torch.Tensor],
    frozen: Sequence[int] = (),
    marks: Sequence[tuple[int, bool]] = (),
    place: graph_cache.Place | None = None,
) -> Lowered:
    """Lower anything with run(list of tensors) -> list of outputs, and wants_grad(inputs). frozen: inputs from which
    constants may be made. place: where backward graphs that are made later are kept. Raises LoweringError."""
    log = _Log(place)
    inputs = list(inputs)
    try:
        if any(map(opaque_tensors.is_opaque, inputs)) and not getattr(program, "opaque", ()):
            raise Unsupported("an input that is sparse or quantised")
        if marks:
            program.refuse_marks_after_use(marks)
        own_gradients = getattr(program, "computes_gradients", False)
        if own_gradients:
            program.refuse_reset_after_use(inputs=True)
            retains = any(op[0] is hooks.retain for op in program.ops)
            program.ops = [op for op in program.ops if op[0] is not hooks.retain]  # those passes give what is kept
            hooks.refuse(program.ops)
        if own_gradients or not program.wants_grad(inputs):
            with contextlib.suppress(inference.NeedsAutograd):
                frozen = () if own_gradients else frozen
                return _checked(_lower_inference(program, inputs, log, own_gradients, frozen), inputs)
            if own_gradients and retains:
                raise Unsupported("retain_grad() for backward passes inside the call and after it")
        from magpy import training

        return _checked(training.lower_training(program, inputs, log), inputs)
    except LoweringError:
        raise
    except Exception as error:
        name, site = getattr(error, "magpy_site", ("", ""))
        reason = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
        raise LoweringError(f"{name}: {reason}"[:500].removeprefix(": "), site) from error


def _checked(lowered: Lowered, inputs: Sequence[torch.Tensor]) -> Lowered:
    """New data can be copied into a changed input only if none of its elements share memory. Raises Unsupported."""
    for i in lowered.mutated:
        if _overlaps_itself(inputs[i]):
            raise Unsupported("an input is changed in place whose elements share memory, such as an expanded one")
    return lowered


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """May two elements lie at the same place? Each stride must step over all that the smaller ones reach."""
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _lower_inference(
    program: Any, inputs: list[torch.Tensor], log: _Log, own_gradients: bool, frozen: Sequence[int]
) -> Lowered:
    layouts = changes_layouts(program)
    with _recurrent_for_gradients(program, own_gradients):
        try:
            traced = inference.trace(program.run, inputs, own_gradients=own_gradients, layouts=layouts)
        except aten_trace.NeedsPythonDispatcher:
            traced = inference.trace(
                program.run, inputs, python_dispatcher=True, own_gradients=own_gradients, layouts=layouts
            )
    frozen = [i for i in frozen if i not in traced.mutated]
    if frozen:
        from magpy import freezing

        runner = freezing.freeze(traced.graph, frozen, lambda graph: compile_graph(graph, log))
    else:
        runner = compile_graph(traced.graph, log)
    return _inference(program, inputs, log, traced, runner)


def changes_layouts(program: Any) -> bool:
    """Is it a recorded program, whose commit changes the sizes and strides of inputs that the program changes?"""
    return isinstance(program, Program)


def _inference(
    program: Any, inputs: Sequence[torch.Tensor], log: _Log, traced: inference.Traced, runner: Runner
) -> Lowered:
    """The lowered program around the runner of its graph."""
    told = getattr(program, "outputs", ())
    for position, source, detached in traced.shown():
        inference = inputs[source].is_inference()
        if position < len(told) and told[position].inference != inference:  # from_numpy of an input's array
            raise Unsupported("a result that shows an input's memory, of another inference mode")
        if detached and inference and not torch.is_inference_mode_enabled():
            raise Unsupported("an inference tensor, detached outside of inference mode: it counts its changes")
    runner = traced.with_shared_memory(runner)
    lowered = Lowered(runner, traced.mutated, log.info("inference", program), traced.data)
    lowered.info["spent"] = [len(traced.mutated) + position for position in traced.spent]
    lowered.note_counters(traced.counters)
    return lowered


def _recurrent_for_gradients(program: Any, own_gradients: bool) -> contextlib.AbstractContextManager:
    """oneDNN's fused RNN layer cannot be differentiated by a compiled backward pass: its workspace is not a tensor."""
    if not own_gradients or not program.is_recurrent():
        return contextlib.nullcontext()
    return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
