"""Tracing a program into a functional ATen graph, in one pass over fake tensors.

AOTAutograd runs a program twice (once for its metadata) with a Python subclass around every tensor. Here torch's C++
functionalisation turns in-place operators into functional ones above a dispatch mode that only writes down what it
sees; inference.py and joint.py decide what becomes of the functional tensors that the program leaves behind."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    run_fallback_kernel,
)
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from magpy import _C, conditions, decompositions, opaque_tensors, own_kernels, random_ops, steps
from magpy.aten_graph import (
    Graph,
    Node,
    Unsupported,
    Val,
    base_of,
    is_view,
    meta_of,
    normalise,
    opaque_meta,
    tensors_of,
)

aten = torch.ops.aten


class NeedsPythonDispatcher(Exception):
    """An operator whose C++ composite hides a mutation from functionalisation; torch's Python dispatcher knows
    better."""


# -- Fake inputs ------------------------------------------------------------------------------------------------------

PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def fake_of(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """A fake twin with the tensor's metadata; an opaque tensor gets one without elements. Raises Unsupported for
    subclasses."""
    if type(tensor) not in PLAIN_TYPES and not isinstance(tensor, FakeTensor):  # a fake of another mode, from Dynamo
        raise Unsupported(f"an input of type {type(tensor).__name__}")
    if opaque_tensors.is_opaque(tensor):
        return opaque_tensors.twin(mode, tensor.device)
    if tensor.is_conj() or tensor.is_neg():
        return mode.from_tensor(tensor.detach())
    size, stride, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    n = tensor.untyped_storage().nbytes() // tensor.element_size()
    span = 1 + sum((d - 1) * s for d, s in zip(size, stride, strict=True)) if tensor.numel() else 0
    if offset == 0 and n == span:
        meta = torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")
    else:
        meta = torch.empty((n,), dtype=tensor.dtype, device="meta").as_strided(size, stride, offset)
    return FakeTensor(mode, meta, tensor.device)


def twins_of(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors without data that are traced as the inputs are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twins = [fake_of(mode, t) for t in inputs]
    for twin, real in zip(twins, inputs, strict=True):
        if real.requires_grad and not opaque_tensors.is_opaque(real):
            torch._mirror_autograd_meta_to(real, twin)  # type: ignore[attr-defined]
    return twins


# -- The mode ---------------------------------------------------------------------------------------------------------


class _Tracer(TorchDispatchMode):
    """Writes functional ATen operators into a graph. The fake mode lies below it, functionalisation above."""

    def __init__(self, graph: Graph, fake_mode: FakeTensorMode, python_dispatcher: bool):
        super().__init__()
        self.graph = graph
        self.fake_mode = fake_mode
        self.table = decompositions.table()
        self.vals: dict[int, Val] = {}
        self.alive: list[torch.Tensor] = []  # keeps the ids of `vals` valid
        self.python_dispatcher = python_dispatcher

    def bind(self, tensor: torch.Tensor, val: Val) -> None:
        self.vals[id(tensor)] = val
        self.alive.append(tensor)

    def lift(self, tensor: torch.Tensor) -> Val:
        """The value of a tensor; a real one becomes a constant."""
        val = self.vals.get(id(tensor))
        if val is None:
            if isinstance(tensor, FakeTensor):
                raise Unsupported("a tensor without a recorded producer")
            if type(tensor) not in PLAIN_TYPES:
                raise Unsupported(f"a constant of type {type(tensor).__name__}")
            val = self.constant(tensor)
            self.bind(tensor, val)
        return val

    def constant(self, tensor: torch.Tensor) -> Val:
        """A real tensor: a single number becomes a fill, which kernels can absorb; others become further inputs."""
        with no_dispatch():
            meta = meta_of(tensor)
            if tensor.numel() == 1 and tensor.device.type == "cpu":
                args = (list(meta[2]), tensor.item())
                node = Node(
                    aten.full.default, normalise(aten.full.default, args, {"dtype": meta[0], "device": meta[1]})
                )
                node.vals = [Val(node, 0, (*meta[:3], tuple([1] * len(meta[2])), 0))]
                self.graph.nodes.append(node)
                return node.val
            return self.graph.add_constant(tensor.detach().clone())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "magpy_random":
            made = random_ops.fake(func, args)
            self.append(func, normalise(func, args, kwargs), () if made is None else made)
            return made
        if func.namespace != "aten":
            if func.namespace == "prim":
                return func(*args, **kwargs)
            if func.namespace == "prims":  # torch's reference decompositions end in these
                with self:
                    return func._overloadpacket.impl_aten(*args, **kwargs)
        if steps.is_sized(func, args):
            with self:
                return steps.record_sized(func, args, kwargs)
        decomposition = self.table.get(func)
        if decomposition is not None:
            if (
                func is aten.native_batch_norm.default
                and not self.python_dispatcher
                and args[5]
                and args[3] is not None
            ):
                raise NeedsPythonDispatcher
            with self:
                out = decomposition(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if _is_composite(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func in conditions.LOOKS and (usual := self.usual_answer(func, args)) is not None:
            with self:
                steps.check(usual, False, ("lambda v: bool(v)", args[0]))
            return usual
        if func in _IDENTITIES:
            if isinstance(args[0], FakeTensor):
                return args[0]
            out = func(*args, **kwargs)
            self.bind(out, self.lift(args[0]))
            return out
        return self.record(func, args, kwargs)

    def record(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func._schema.is_mutable and func not in _HARMLESS_WRITES:
            raise Unsupported(f"{func} writes to a tensor in a decomposition")
        if func is aten.convolution.default and args[0].dtype is torch.float32:
            own_kernels.expect_convolutions()
        lifted = _lift_all(self, normalise(func, args, kwargs))
        out = self.compute(func, args, kwargs)
        if func is aten._local_scalar_dense.default:
            return out  # a constant's number, taken in place of a number; of a fake tensor it would have raised
        return self.append(func, lifted, out)

    def usual_answer(self, func: Any, args: tuple) -> bool | None:
        """What an operator finds that looks at its arguments before it computes. None if nothing is known."""
        if not isinstance(args[0], FakeTensor) or args[0].numel() != 1 or args[0].dtype is not torch.bool:
            return None
        if func is aten.equal.default and not conditions.is_true(self.lift(args[1])):
            return None
        return conditions.usual_answer(self.lift(args[0]))

    def compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The operator on fake tensors. Some of torch's descriptions refuse what the operator itself does (_grouped_mm
        of float32 on a CPU): then it runs on zeros, and each run of the plan checks that its results look so again."""
        _refusals.silent = True
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise
        except RuntimeError as error:
            if not _can_run_on_zeros(func):
                raise
            leaves, spec = pytree.tree_flatten((args, kwargs))
            try:
                return run_fallback_kernel(self.fake_mode, func, leaves, spec, error)
            except RuntimeError:
                raise error from None
        finally:
            _refusals.silent = False

    def append(self, func: Any, args: tuple, out: Any) -> Any:
        """A node that gives `out`; its arguments may still be tensors."""
        node = Node(func, _lift_all(self, args))
        for i, tensor in enumerate(tensors_of(out) if func._schema.returns else ()):
            if tensor is None:
                node.vals.append(None)
                continue
            val = Val(node, i, opaque_meta(tensor.device) if func is _OPAQUE else meta_of(tensor))
            node.vals.append(val)
            self.bind(tensor, val)
        self.graph.nodes.append(node)
        return out


_OPAQUE = torch.ops.magpy.opaque.default
_IDENTITIES = frozenset({aten.lift_fresh.default, aten.lift.default})
_HARMLESS_WRITES: frozenset = frozenset()
_composites: dict[Any, bool] = {}


class _Refusals(threading.local, logging.Filter):
    """Keeps torch from logging an error when its description of an operator refuses what we then do otherwise."""

    silent = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.silent


_refusals = _Refusals()
logging.getLogger(FakeTensorMode.__module__).addFilter(_refusals)


def _can_run_on_zeros(func: Any) -> bool:
    return (
        func.namespace == "aten"
        and not func._schema.is_mutable
        and not is_view(func)
        and torch.Tag.nondeterministic_seeded not in func.tags
    )


def _is_composite(func: Any) -> bool:
    """Only made of other operators. (silu_backward has such a definition too, but a kernel of its own.)"""
    known = _composites.get(func)
    if known is None:
        has = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, func.name())
        known = _composites[func] = has("CompositeImplicitAutograd") and not has("CPU")
    return known


def _lift_all(tracer: _Tracer, arg: Any) -> Any:
    if isinstance(arg, torch.Tensor):
        return tracer.lift(arg)
    if isinstance(arg, list):
        return [_lift_all(tracer, a) for a in arg]
    if isinstance(arg, tuple):
        return tuple([_lift_all(tracer, a) for a in arg])
    return arg


# -- State ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torch_modes_restored() -> Iterator[None]:
    """Put grad mode, autocast and levels of transforms back as they were, whatever a replayed program leaves behind (it
    may fail half way)."""
    grad = torch.is_grad_enabled()
    cache = torch.is_autocast_cache_enabled()
    devices = ("cpu", "cuda")
    autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    nesting = torch.autocast_increment_nesting()
    functorch = torch._C._functorch
    levels = functorch.get_dynamic_layer_stack_depth()
    marking = functorch.get_inplace_requires_grad_allowed()
    saving = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    forward, dual = torch._C._is_fwd_grad_enabled(), _in_dual_level()
    # Casts of fake tensors must not be found later by real ones.
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        if functorch.get_dynamic_layer_stack_depth() > levels:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(levels)
        functorch.set_inplace_requires_grad_allowed(marking)
        if saving and not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
            torch._C._autograd._saved_tensors_hooks_enable()
        torch._C._set_fwd_grad_enabled(forward)
        if _in_dual_level() and not dual:
            torch._C._exit_dual_level(0)
        torch._C._set_grad_enabled(grad)
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        now = torch.autocast_increment_nesting()
        while now > nesting:
            now -= 1
            torch.autocast_decrement_nesting()
        torch.autocast_decrement_nesting()
        torch.set_autocast_cache_enabled(cache)


class Modes:
    """torch's modes as they are when this is made."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
        self._cache = torch.is_autocast_cache_enabled()
        self._state = _C._torch_state_read()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """They are on inside. Raises Unsupported where others than grad mode and autocast have changed."""
        with torch_modes_restored():
            torch._C._set_grad_enabled(self._grad)
            for device, enabled, dtype in self._autocast:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_cache_enabled(self._cache)
            if _C._torch_state_read() != self._state:
                raise Unsupported("torch's modes have changed since the forward pass")
            yield


def _in_dual_level() -> bool:
    """Is a level of forward-mode gradients open? There is one at most."""
    try:
        torch._C._exit_dual_level(torch._C._enter_dual_level())
    except RuntimeError:
        return True
    return False


@contextlib.contextmanager
def _functionalisation() -> Iterator[None]:
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


# -- Tracing ----------------------------------------------------------------------------------------------------------


class Session:
    """A trace in progress: inputs wrapped for functionalisation, and the graph that grows under `tracer`."""

    layouts = False  # may the program change sizes and strides of inputs in place?

    def __init__(self, inputs: Sequence[torch.Tensor], python_dispatcher: bool):
        self.inputs = inputs
        self.graph = Graph()
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.tracer = _Tracer(self.graph, self.fake_mode, python_dispatcher)
        self.fakes = [fake_of(self.fake_mode, t) for t in inputs]
        self.wrapped = [_wrap(fake, real) for fake, real in zip(self.fakes, inputs, strict=True)]
        self.histories = [wrapper.grad_fn for wrapper in self.wrapped]
        for fake in self.fakes:
            meta = opaque_meta(fake.device) if opaque_tensors.is_opaque(fake) else meta_of(fake)
            self.tracer.bind(fake, self.graph.add_placeholder(meta))

    @contextlib.contextmanager
    def modes(self) -> Iterator[None]:
        """The fake mode, the tracer over it, functionalisation over both."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.fake_mode)
            stack.enter_context(self.tracer)
            if self.tracer.python_dispatcher:
                from torch._dispatch.python import enable_python_dispatcher

                stack.enter_context(enable_python_dispatcher())
            stack.enter_context(_functionalisation())
            yield

    def value(self, wrapper: torch.Tensor) -> Val:
        return self.tracer.lift(torch._from_functional_tensor(wrapper))

    def placeholder(self, i: int) -> Val:
        return self.graph.placeholders[len(self.graph.constants) + i].val

    def add_input(self, like: torch.Tensor) -> torch.Tensor:
        """A further input with the size and dtype of `like`, dense. Returns its wrapper."""
        with outside():
            meta = torch.empty_strided(
                like.shape, _dense_strides(like.shape, like.stride()), dtype=like.dtype, device="meta"
            )
            fake = FakeTensor(self.fake_mode, meta, like.device)
        self.tracer.bind(fake, self.graph.add_placeholder(meta_of(fake)))
        return torch._to_functional_tensor(fake)

    def run(self, fn: Callable[[list[torch.Tensor]], Sequence[Any]]) -> list[Any]:
        """fn's outputs, with all pending in-place changes written into the graph."""
        grad = torch.is_grad_enabled()
        outs = list(fn(list(self.wrapped)))
        if torch.is_grad_enabled() != grad:
            raise Unsupported("grad mode is different after the call")
        for i, out in enumerate(outs):  # what TorchScript makes of numbers alone is real
            if isinstance(out, torch.Tensor) and not torch._is_functional_tensor(out):
                outs[i] = torch._to_functional_tensor(out)
        for tensor in (*self.wrapped, *outs):
            if isinstance(tensor, torch.Tensor):
                torch._sync(tensor)
        return outs

    def mutations(self) -> tuple[tuple[int, ...], list[Val]]:
        """Which inputs were changed in place, and their new data."""
        mutated = []
        for i, w in enumerate(self.wrapped):
            moved = torch._functionalize_has_metadata_mutation(w)
            changed = torch._functionalize_has_data_mutation(w)  # type: ignore[attr-defined]
            if torch._functionalize_was_storage_changed(w) or (moved and (changed or not self.layouts)):
                raise Unsupported("an in-place change of an input's storage, or of its shape and its data")
            if changed:
                hidden = torch._functionalize_are_all_mutations_under_no_grad_or_inference_mode(w)
                if w.requires_grad and w.grad_fn is not self.histories[i] and not hidden:  # else as through .data
                    raise Unsupported("an in-place change of an input that is differentiated")
                mutated.append(i)
        if mutated:
            refuse_shared_memory(self.inputs, mutated)
        values = []
        for i in mutated:
            val = self.value(self.wrapped[i])
            if base_of(val).node in {self.placeholder(k).node for k in mutated}:
                # The commit writes inputs one after the other: new data must not lie in one of them.
                val = clone(self.graph, val)
            values.append(val)
        return tuple(mutated), values


@contextlib.contextmanager
def session(inputs: Sequence[torch.Tensor], python_dispatcher: bool) -> Iterator[Session]:
    """A Session with its modes on. Leaves torch as it was."""
    with _own_modes():
        new = Session(inputs, python_dispatcher)
        with new.modes():
            yield new


@contextlib.contextmanager
def resumed(old: Session) -> Iterator[None]:
    """The modes of an earlier session on again."""
    with _own_modes(), old.modes():
        yield


@contextlib.contextmanager
def _own_modes() -> Iterator[None]:
    """torch's modes put back at the end; no inference mode, whose tensors cannot be functionalised."""
    with torch_modes_restored(), contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            torch._C._set_grad_enabled(False)
        yield


def _wrap(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    wrapper = torch._to_functional_tensor(fake)
    if real.requires_grad and not opaque_tensors.is_opaque(real):
        torch._mirror_autograd_meta_to(real, wrapper)  # type: ignore[attr-defined]
    return wrapper


def storage_of(wrapper: torch.Tensor) -> int:
    return wrapper.untyped_storage()._cdata


def share_counter(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Have they one version counter?"""
    if a.is_inference() or b.is_inference():
        return False
    version = a._version
    if b._version != version:
        return False
    torch._C._autograd._unsafe_set_version_counter((a,), (version + 1,))
    try:
        return b._version != version
    finally:
        torch._C._autograd._unsafe_set_version_counter((a,), (version,))


def counters_of(new: Session, outs: Sequence[Any]) -> list[list[list[int]]]:
    """Which outputs that share memory share a version counter, too: for each memory the groups that do, as numbers of
    outputs, and of inputs counted back from -1. First in a group comes what autograd may have saved."""
    members: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for k, out in enumerate(outs):
        if isinstance(out, torch.Tensor):
            members.setdefault(storage_of(out), []).append((k, out))
    for i, w in enumerate(new.wrapped):
        if storage_of(w) in members:
            members[storage_of(w)].insert(0, (-1 - i, w))
    found: list[list[list[int]]] = []
    for tensors in members.values():
        groups: list[list[tuple[int, torch.Tensor]]] = []
        for k, tensor in tensors:
            group = next((g for g in groups if share_counter(g[0][1], tensor)), None)
            groups.append([(k, tensor)]) if group is None else group.append((k, tensor))
        if len(tensors) > 1 and not any(t.is_inference() for _, t in tensors):
            for group in groups:
                group.sort(key=lambda row: (row[0] >= 0, not row[1].requires_grad))
            found.append([[k for k, _ in group] for group in groups])
    return found


def _append(graph: Graph, target: Any, args: tuple, meta: tuple) -> Val:
    node = Node(target, normalise(target, args, {}))
    node.vals = [Val(node, 0, meta)]
    graph.nodes.append(node)
    return node.val


def clone(graph: Graph, val: Val) -> Val:
    dtype, device, sizes, strides, _ = val.meta
    dense = _dense_strides(sizes, strides)
    # where a size is 1 any stride is dense: the result keeps the one it has
    kept = tuple(own if size == 1 else new for size, own, new in zip(sizes, strides, dense, strict=True))
    return _append(graph, aten.clone.default, (val,), (dtype, device, sizes, kept, 0))


def apart(graph: Graph, val: Val) -> Val:
    """The value in memory of its own, laid out as it is: where its copy would be denser, what it shows is copied."""
    copy, base = clone(graph, val), base_of(val)
    if copy.meta[3] == val.meta[3] or base is val:
        return copy
    views = list[Val]()
    while val is not base:
        views.append(val)
        val = val.node.args[0]
    made = clone(graph, base)
    if made.meta[2:] != base.meta[2:]:  # views would show other elements of it
        raise Unsupported("a part of an input that is laid out otherwise than a copy of it")
    for view in reversed(views):
        node = Node(view.node.target, (made, *view.node.args[1:]))
        made = Val(node, view.position, view.meta)
        node.vals = [
            made if other is view else other and Val(node, other.position, other.meta) for other in view.node.vals
        ]
        graph.nodes.append(node)
    return made


def _dense_strides(sizes: tuple, strides: tuple) -> tuple:
    """Strides of clone(memory_format=preserve): kept if dense without overlap, else in the order of the strides."""
    with outside():
        return tuple(torch.empty_like(torch.empty_strided(sizes, strides, device="meta")).stride())


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Real tensors while a session is on: neither functionalised nor traced."""
    functional = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
    with torch._C._ExcludeDispatchKeyGuard(functional), no_dispatch():
        yield


def refuse_shared_memory(inputs: Sequence[torch.Tensor], mutated: list[int]) -> None:
    """A change of one input must not show in another: the graph treats them as apart."""
    users: dict[int, int] = {}
    with outside():
        parts = [part for t in inputs for part in opaque_tensors.parts_of(t)]
    for t in parts:
        if t.numel():
            users[storage_of(t)] = users.get(storage_of(t), 0) + 1
    if any(users.get(storage_of(inputs[i]), 0) > 1 for i in mutated):
        raise Unsupported("an input changed in place shares memory with another input")
