"""Training programs with aliases that must be rebuilt: AOTAutograd splits them, and its wrappers run the two graphs.

Two things are kept away from AOTAutograd. Inputs that the program changes in place (BatchNorm's statistics) are
copied first, and the copies' last state is returned: the runner writes to nothing, the commit does. And operators
that draw random numbers must come out of the partitioner as they went in: once each, in order, in the forward graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo  # before _functorch.aot_autograd, which needs it half way through its own import
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from magpy import aten_trace, decompositions
from magpy.aten_graph import Graph, Node, Unsupported, Val, is_random, meta_of, normalise
from magpy.lower import Lowered, LoweringError, _Log, compile_graph


class _Changed(Exception):
    """Inputs that the program changes in place, found while it was traced."""

    def __init__(self, inputs: set[int]):
        self.inputs = inputs


class _Module(torch.nn.Module):
    """What AOTAutograd is given: the program as a function of tensors only, its in-place changes of inputs turned
    into outputs."""

    def __init__(self, program: Any, mutated: Sequence[int]):
        super().__init__()
        self.program = program
        self.mutated = list(mutated)
        self.positions: list[int] = []  # of the wanted outputs that are computed (the others are inputs or None)
        self.given: dict[int, int | None] = {}  # output position -> input number, or None

    def forward(self, *inputs: torch.Tensor) -> tuple:
        mine = list(inputs)
        for i in self.mutated:
            mine[i] = inputs[i].clone()
        histories = [mine[i].grad_fn for i in self.mutated]
        outs = self.program.run(mine)
        self._check(inputs, mine, outs)
        if any(mine[i].grad_fn is not history for i, history in zip(self.mutated, histories, strict=True)):
            raise LoweringError("an in-place change of an input that is differentiated")
        self.given = {p: o for p, o in enumerate(outs) if o is None or isinstance(o, int)}
        self.positions = [p for p in range(len(outs)) if p not in self.given]
        return tuple([mine[i] for i in self.mutated] + [outs[p] for p in self.positions])

    def _check(self, inputs: Sequence[torch.Tensor], mine: list[torch.Tensor], outs: list[Any]) -> None:
        changed = {i for i, t in enumerate(inputs) if isinstance(t, FunctionalTensor) and _is_changed(t)}
        if changed:
            raise _Changed(changed)
        copies = {mine[i].untyped_storage()._cdata for i in self.mutated}
        for out in outs:
            if isinstance(out, torch.Tensor) and out.requires_grad and out.is_leaf and out not in mine:
                raise LoweringError("a leaf that requires grad, made by the call, among results that share memory")
            if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata in copies:
                raise LoweringError("an output is a view of an input that was changed in place")


def _is_changed(tensor: FunctionalTensor) -> bool:
    elem = tensor.elem
    if torch._functionalize_has_metadata_mutation(elem) or torch._functionalize_was_storage_changed(elem):
        raise LoweringError("an in-place change of an input's shape or storage")
    return torch._functionalize_has_data_mutation(elem)  # type: ignore[attr-defined]


# -- FX graphs from AOTAutograd ---------------------------------------------------------------------------------------


def graph_of(gm: torch.fx.GraphModule) -> Graph:
    """AOTAutograd's FX graph in our form. Raises Unsupported for anything but ATen operators over plain tensors."""
    graph = Graph()
    made: dict[torch.fx.Node, Any] = {}

    def value(arg: Any) -> Any:
        if isinstance(arg, torch.fx.Node):
            return made[arg]
        if isinstance(arg, (list, tuple)):
            return [value(a) for a in arg]
        if isinstance(arg, torch.fx.immutable_collections.immutable_dict):
            raise Unsupported("a dict argument")
        return arg

    for fx in gm.graph.nodes:
        if fx.op == "placeholder":
            val = fx.meta.get("val")
            if not isinstance(val, torch.Tensor):
                raise Unsupported(f"an input that is a {type(val).__name__}")
            made[fx] = graph.add_placeholder(meta_of(val))
    for fx in gm.graph.nodes:
        if fx.op == "get_attr":
            tensor = operator.attrgetter(fx.target)(gm)
            if not isinstance(tensor, torch.Tensor):
                raise Unsupported(f"an attribute that is a {type(tensor).__name__}")
            made[fx] = graph.add_constant(tensor)
        elif fx.op == "call_function":
            made[fx] = _convert(graph, fx, value)
        elif fx.op == "output":
            graph.outputs = [o if isinstance(o, Val) else None for o in value(list(fx.args[0]))]
    return graph


def _convert(graph: Graph, fx: torch.fx.Node, value: Callable[[Any], Any]) -> Any:
    """The Val, or nested list of Vals, that an FX node gives."""
    if fx.target is operator.getitem:
        return value(fx.args[0])[fx.args[1]]
    if not isinstance(fx.target, torch._ops.OpOverload):
        raise Unsupported(f"{fx.target}")
    args = normalise(fx.target, [value(a) for a in fx.args], {k: value(a) for k, a in fx.kwargs.items()})
    node = Node(fx.target, args)

    def results(val: Any) -> Any:
        if isinstance(val, (list, tuple)):
            return [results(v) for v in val]
        if isinstance(val, torch.Tensor):
            node.vals.append(Val(node, len(node.vals), meta_of(val)))
        elif val is None:
            node.vals.append(None)
        else:
            raise Unsupported(f"{fx.target} gives a {type(val).__name__}")
        return node.vals[-1]

    out = results(fx.meta.get("val")) if fx.target._schema.returns else None
    graph.nodes.append(node)
    return out


# -- Compilers for AOTAutograd ----------------------------------------------------------------------------------------


def _compiler(log: _Log) -> Callable:
    def compile_fx(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable:
        try:
            runner = compile_graph(graph_of(gm), log)
        except Unsupported as error:
            log.uncompiled = str(error)
            forward = gm.forward

            def runner(args: Sequence[Any]) -> Any:
                return forward(*args)

        def boxed(args: list) -> Any:
            given, out = {id(t) for t in args}, runner(args)
            args.clear()
            return [_apart_for_autograd(t) if id(t) not in given else t for t in out]

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    return compile_fx


def _apart_for_autograd(out: Any) -> Any:
    """Autograd takes what an operator has noted as a view of a differentiable output for differentiable."""
    return out.data if isinstance(out, torch.Tensor) and out._is_view() else out


def _draws(graph: torch.fx.Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload) and is_random(n.target)]


def _partition(joint: torch.fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> tuple:
    """Min-cut partitioning, checked: recomputation must neither drop nor repeat nor reorder a random draw."""
    wanted = _draws(joint.graph)
    forward, backward = min_cut_rematerialization_partition(joint, inputs, **kwargs)
    if _draws(forward.graph) != wanted or _draws(backward.graph):
        raise LoweringError("random numbers that are drawn in the backward pass, or drawn and not used")
    return forward, backward


# -- Lowering ---------------------------------------------------------------------------------------------------------


def lower_with_wrappers(program: Any, inputs: list[torch.Tensor], log: _Log) -> Lowered:
    """Lower a program some of whose outputs are differentiable. Raises LoweringError, and what the program raises on
    fake tensors."""
    for t in inputs:
        if type(t) not in aten_trace.PLAIN_TYPES and not isinstance(t, FakeTensor):
            raise LoweringError(f"an input of type {type(t).__name__}")
    mutated: set[int] = set()
    while True:
        module = _Module(program, sorted(mutated))
        try:
            with aten_trace.torch_modes_restored():
                compiled = aot_module_simplified(
                    module,  # type: ignore[arg-type]
                    inputs,
                    fw_compiler=_compiler(log),
                    bw_compiler=_compiler(log),
                    partition_fn=_partition,
                    decompositions=decompositions.table(),
                    keep_inference_input_mutations=False,
                )
            break
        except _Changed as found:
            if found.inputs <= mutated:
                raise LoweringError("an in-place change that does not go away") from None
            mutated |= found.inputs
    if mutated:
        aten_trace.refuse_shared_memory(inputs, sorted(mutated))
    return Lowered(_runner(compiled, module), tuple(module.mutated), log.info("wrapped", program))


def _runner(compiled: Callable, module: _Module) -> Callable[[Sequence[torch.Tensor]], Sequence[Any]]:
    if not module.given:
        return lambda inputs: compiled(*inputs)
    n, given, positions = len(module.mutated), dict(module.given), list(module.positions)

    def run(inputs: Sequence[torch.Tensor]) -> list[Any]:
        outs = compiled(*inputs)
        wanted: list[Any] = [None] * (len(given) + len(positions))
        for p, out in zip(positions, outs[n:], strict=True):
            wanted[p] = out
        for p, i in given.items():
            wanted[p] = None if i is None else inputs[i]
        return [*outs[:n], *wanted]

    return run
