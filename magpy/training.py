"""Training programs: a forward and a backward plan behind one autograd function.

Programs whose differentiable outputs share memory in other ways than as plain views go to AOTAutograd (aot.py), whose
wrappers rebuild such aliases.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from magpy import aten_trace
from magpy.aten_graph import Unsupported
from magpy.joint import Joint, NeedsWrappers, trace_joint
from magpy.lower import Lowered, Runner, _Log, compile_graph
from magpy.results import made_leaf


def lower_training(program: Any, inputs: list[torch.Tensor], log: _Log) -> Lowered:
    """Lower a program some of whose outputs are differentiable. Raises LoweringError, and what the program raises."""
    try:
        with _recurrent_without_mkldnn(program):
            try:
                joint = trace_joint(program.run, inputs)
            except aten_trace.NeedsPythonDispatcher:
                joint = trace_joint(program.run, inputs, python_dispatcher=True)
    except NeedsWrappers:
        from magpy import aot

        with _recurrent_without_mkldnn(program):
            return aot.lower_with_wrappers(program, inputs, log)
    if torch.is_inference_mode_enabled():
        raise Unsupported("gradients that are switched on inside a call in inference mode")
    outputs = getattr(program, "outputs", ())
    classes = {place: output.leaf for place, output in zip(joint.wanted, outputs, strict=False)}
    leaf_classes = [classes.get(("result", k)) or torch.Tensor for k in joint.leaves]
    compiled = Compiled(joint, log, any(t.requires_grad for t in inputs), leaf_classes)
    return Lowered(compiled, joint.mutated, log.info("training", program))


def _recurrent_without_mkldnn(program: Any) -> Any:
    """oneDNN's fused RNN layer cannot be differentiated by a compiled backward pass: its workspace is not a tensor."""
    return torch.backends.mkldnn.flags(enabled=not program.is_recurrent(), allow_tf32=None)


# -- Running ----------------------------------------------------------------------------------------------------------


class Compiled:
    """The runner: list of inputs -> new data of mutated inputs, wanted outputs.

    The backward plan is made when it is first needed."""

    def __init__(self, joint: Joint, log: _Log, differentiable_inputs: bool, leaf_classes: Sequence[type]):
        self.joint = joint
        self.log = log
        self.forward: Runner = compile_graph(joint.forward, log)
        self._backward: dict[tuple[int, ...], tuple[Runner, Sequence[int], Sequence[int]]] = {}  # by present tangents
        first = len(joint.mutated)
        self.n_forward = first + joint.n_results
        self.silent = [
            k for k in range(self.n_forward) if k - first not in joint.differentiable and k - first not in joint.leaves
        ]
        self.leaves = [first + k for k in joint.leaves]
        self.leaf_classes = leaf_classes
        # Does the autograd function see all that it depends on among its inputs, in the grad mode that it needs?
        self.alone = differentiable_inputs and not joint.leaves and torch.is_grad_enabled()
        self.tangents = [(first + k, meta) for k, meta in zip(joint.differentiable, joint.tangents, strict=True)]
        self.plain = joint.wanted == [("result", k) for k in range(joint.n_results)]

    def backward_from(self, present: tuple[int, ...]) -> tuple[Runner, Sequence[int], Sequence[int]]:
        """For a call with the tangents `present`: kept values, tangents -> gradients; which tangents it takes; and
        which inputs' gradients it gives."""
        known = self._backward.get(present)
        if known is not None:
            return known
        joint = self.joint
        taken: Sequence[int] = range(len(joint.tangents))
        numbers, graph = joint.grad_inputs, joint.backward
        if len(present) < len(taken) and joint.partial is not None:
            try:
                numbers, graph = joint.partial.make(present)
                taken = present
            except Exception as error:  # zeros for the absent ones: right unless a derivative is infinite
                logging.getLogger("magpy").warning("backward pass from some of the results: %s", error)
        made = self._backward[present] = compile_graph(graph, self.log), taken, numbers
        return made

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        if self.alone:
            outs = _Function.apply(self, None, *inputs)
        else:
            outs = self._with_leaves(inputs)
        if self.plain:
            return outs
        n = len(self.joint.mutated)
        wanted: list[Any] = []
        for kind, i in self.joint.wanted:
            if kind == "result":
                wanted.append(outs[n + i])
            elif kind == "input":
                wanted.append(inputs[i])
            elif kind == "view":
                source, k, sizes, strides, offset = self.joint.views[i]
                root = inputs[k] if source == "input" else outs[n + k]
                wanted.append(root.as_strided(sizes, strides, root.storage_offset() + offset))
            else:
                wanted.append(None)
        return [*outs[:n], *wanted]

    def _with_leaves(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """Leaves that the program makes exist before the autograd function, as inputs of it. Where it has none and no
        input requires grad, a leaf that nobody sees makes its results differentiable."""
        with torch.no_grad():
            made = list(self.forward(inputs))
        for k, cls in zip(self.leaves, self.leaf_classes, strict=True):
            made[k] = made_leaf(made[k], cls)
        leaves = [made[k] for k in self.leaves]
        if not self.joint.differentiable:
            return made[: self.n_forward]
        unseen = [] if leaves else [torch.empty(0, requires_grad=True)]
        with torch.enable_grad():
            outs = list(_Function.apply(self, made, *inputs, *leaves, *unseen))
        for k, leaf in zip(self.leaves, leaves, strict=True):
            outs[k] = leaf
        return outs


DOUBLE_BACKWARD = (
    b"double backward through a region compiled by magpy is not supported: "
    b"keep what is differentiated twice out of it, with torch.compiler.disable"
)


class _Function(torch.autograd.Function):
    """apply(compiled, what its forward plan made or None, *inputs, *leaves) -> new data of mutated inputs, results."""

    @staticmethod
    def forward(ctx: Any, compiled: Compiled, made: Any, *inputs: torch.Tensor) -> tuple:  # type: ignore[override]
        joint = compiled.joint
        outs = [t.data if t._is_view() else t for t in (compiled.forward(inputs) if made is None else made)]
        ctx.compiled = compiled
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[outs[k] for k in compiled.silent])
        ctx.save_for_backward(*[outs[k] for k in joint.kept], *[inputs[i] for i in joint.kept_inputs])
        ctx.n_inputs = len(inputs)
        for k in compiled.leaves:
            outs[k] = None  # type: ignore[call-overload]
        return tuple(outs[: compiled.n_forward])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple:
        compiled = ctx.compiled
        result: list[torch.Tensor | None] = [None] * (ctx.n_inputs + 2)
        present = tuple([i for i, (k, _) in enumerate(compiled.tangents) if grads[k] is not None])
        if not present:
            return tuple(result)
        runner, taken, numbers = compiled.backward_from(present)
        tangents = [compiled.tangents[i] for i in taken]
        values = [*ctx.saved_tensors, *[_laid_out(grads[k], meta) for k, meta in tangents]]
        with torch.no_grad():
            outs = runner(values)
        if torch.is_grad_enabled():  # create_graph=True: the gradients would look like constants
            outs = _refusing_double_backward(ctx, [g for g in grads if g is not None and g.requires_grad], outs)
        for i, grad in zip(numbers, outs, strict=True):
            result[i + 2] = grad
        return tuple(result)


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
