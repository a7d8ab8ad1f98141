"""Functional ATen graphs: the form between tracing and csrc/ir, with its text, its description for C, and an
interpreter.

A graph is a list of nodes in program order; every tensor is a `Val`. Arguments are in schema order with defaults
filled in, so that passes, C and the interpreter read them the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

# torch's ScalarType, DeviceType, Layout and MemoryFormat codes (c10/core/*.h).
DTYPE_CODES: dict[torch.dtype, int] = {
    getattr(torch, name): code
    for name, code in {
        "uint8": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4, "float16": 5, "float32": 6, "float64": 7,
        "complex32": 8, "complex64": 9, "complex128": 10, "bool": 11, "qint8": 12, "quint8": 13, "qint32": 14,
        "bfloat16": 15, "uint16": 27, "uint32": 28, "uint64": 29, "float8_e5m2": 23, "float8_e4m3fn": 24,
        "float8_e5m2fnuz": 25, "float8_e4m3fnuz": 26,
    }.items()
    if hasattr(torch, name)
}  # fmt: skip
DEVICE_CODES = {"cpu": 0, "cuda": 1, "xla": 9, "xpu": 12, "mps": 13, "meta": 14, "hpu": 15}
LAYOUT_CODES = {torch.strided: 0, torch.sparse_coo: 1, torch.sparse_csr: 2, torch.jagged: 8}
MEMORY_FORMAT_CODES = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}


class Unsupported(Exception):
    """This program cannot be put into a graph; the message says which part of it."""


# -- Nodes and values -------------------------------------------------------------------------------------------------


class Val:
    """One tensor of a graph. `meta` is (dtype, device, sizes, strides, offset), or opaque_meta."""

    __slots__ = ("node", "position", "meta", "number")

    def __init__(self, node: Node, position: int, meta: tuple):
        self.node = node
        self.position = position
        self.meta = meta
        self.number = -1


class Node:
    """A placeholder (target None) or a call of an OpOverload. `vals` are its tensor results, in order, None where it
    gives none. `form`: the kernel of magpy's own that computes it, where the operator is not to."""

    __slots__ = ("target", "args", "vals", "form")

    def __init__(self, target: Any, args: tuple):
        self.target = target
        self.args = args
        self.vals: list[Val | None] = []
        self.form: str | None = None

    @property
    def val(self) -> Val:
        """The result of a node that gives one tensor."""
        val = self.vals[0]
        assert val is not None
        return val


class Graph:
    """Placeholders first, then `nodes`; `outputs` are Vals or None. `constants` are real tensors for the first
    placeholders."""

    def __init__(self) -> None:
        self.placeholders: list[Node] = []
        self.constants: list[torch.Tensor] = []
        self.nodes: list[Node] = []
        self.outputs: list[Val | None] = []
        self.packing: Any = None  # packing.Packing: of a frozen graph

    def add_placeholder(self, meta: tuple) -> Val:
        node = Node(None, ())
        node.vals = [Val(node, 0, meta)]
        self.placeholders.append(node)
        return node.val

    def add_constant(self, tensor: torch.Tensor) -> Val:
        """A tensor the trace made from Python data: a further input, bound by `compile_graph`. Must precede all
        placeholders."""
        val = self.add_placeholder(meta_of(tensor))
        node = self.placeholders.pop()
        self.placeholders.insert(len(self.constants), node)
        self.constants.append(tensor)
        return val

    def __str__(self) -> str:
        number(self)
        lines = []
        for node in self.placeholders:
            lines.append(f"{_name(node.val)}: {meta_text(node.val.meta)} = placeholder")
        for node in self.nodes:
            names = ", ".join("_" if v is None else f"{_name(v)}: {meta_text(v.meta)}" for v in node.vals) or "_"
            lines.append(f"{names} = {node.target}({', '.join(map(_arg_text, node.args))})")
        lines.append("return " + ", ".join(_name(v) if v is not None else "None" for v in self.outputs))
        return "\n".join(lines)


def meta_of(tensor: torch.Tensor) -> tuple:
    """(dtype, device, sizes, strides, offset) of a strided tensor, fake or real. Raises Unsupported for other
    layouts."""
    if tensor.layout is not torch.strided:
        raise Unsupported(f"a tensor of layout {tensor.layout}")
    try:
        sizes, strides = tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride()))
        return tensor.dtype, tensor.device, sizes, strides, int(tensor.storage_offset())
    except Exception as error:  # a SymInt whose value is not known
        raise Unsupported(f"a size that depends on data: {error}") from error


def opaque_meta(device: torch.device) -> tuple:
    """Of a sparse or quantised tensor, of which a graph knows no more (opaque_tensors.py)."""
    return None, device, (), (), 0


def meta_text(meta: tuple) -> str:
    if meta[0] is None:
        return "opaque"
    return f"{str(meta[0])[6:]}[{', '.join(map(str, meta[2]))}]"


def _name(val: Val) -> str:
    return f"v{val.number}"


def _arg_text(arg: Any) -> str:
    if isinstance(arg, Val):
        return _name(arg)
    if isinstance(arg, (list, tuple)):
        return f"[{', '.join(map(_arg_text, arg))}]"
    return str(arg)


def map_vals(fn: Callable[[Val], Any], arg: Any) -> Any:
    """`arg` with fn applied to every Val in it; lists stay lists."""
    if isinstance(arg, Val):
        return fn(arg)
    if isinstance(arg, list):
        return [map_vals(fn, a) for a in arg]
    if isinstance(arg, tuple):
        return tuple([map_vals(fn, a) for a in arg])
    return arg


def each_val(arg: Any) -> Iterable[Val]:
    if isinstance(arg, Val):
        yield arg
    elif isinstance(arg, (list, tuple)):
        for a in arg:
            yield from each_val(a)


# -- Arguments --------------------------------------------------------------------------------------------------------

_schemas: dict[Any, tuple[tuple[str, bool, Any, int], ...]] = {}


def _schema_of(target: Any) -> tuple:
    """(name, keyword-only, default, repeat) of each argument; repeat n: an int stands for a list of n."""
    known = _schemas.get(target)
    if known is None:
        rows = []
        for arg in target._schema.arguments:
            default = arg.default_value if arg.has_default_value() else None
            kind = arg.type
            repeat = arg.N if isinstance(kind, torch._C.ListType) and arg.N else 0
            rows.append((arg.name, arg.kwarg_only, default, repeat))
        known = _schemas[target] = tuple(rows)
    return known


def normalise(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple:
    """Arguments in schema order with defaults filled in."""
    out = []
    for i, (name, kwarg_only, default, repeat) in enumerate(_schema_of(target)):
        if i < len(args) and not kwarg_only:
            value = args[i]
        else:
            value = kwargs.get(name, default)
        if repeat and isinstance(value, int) and not isinstance(value, bool):
            value = [value] * repeat
        out.append(value)
    return tuple(out)


def call(target: Any, args: Sequence[Any]) -> Any:
    """Call `target` with arguments in schema order."""
    rows = _schema_of(target)
    positional = [a for a, row in zip(args, rows, strict=True) if not row[1]]
    return target(*positional, **{row[0]: a for a, row in zip(args, rows, strict=True) if row[1]})


def tensors_of(out: Any) -> list[torch.Tensor | None]:
    """An operator's results as a flat list: tensors, None where there is none."""
    if isinstance(out, (tuple, list)):
        flat: list[torch.Tensor | None] = []
        for item in out:
            flat.extend(tensors_of(item))
        return flat
    return [out if isinstance(out, torch.Tensor) else None]


# -- Facts about operators --------------------------------------------------------------------------------------------


def is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags


def is_impure(target: Any) -> bool:
    """Must stay, once, in its place: draws random numbers, writes, has no result, or raises where data is other."""
    if target.namespace == "magpy":  # the steps
        return True
    return is_random(target) or target._schema.is_mutable or not target._schema.returns


def is_view(target: Any) -> bool:
    """Its results share memory with its first argument."""
    returns = target._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def base_of(val: Val) -> Val:
    """The value whose memory `val` shows: follow views to what made it."""
    while val.node.target is not None and is_view(val.node.target):
        val = val.node.args[0]
    return val


@functools.lru_cache(maxsize=4096)
def name_of_op(target: Any) -> str:
    """ "aten.add.Tensor"."""
    return str(target)


# -- For C ------------------------------------------------------------------------------------------------------------


def number(graph: Graph) -> int:
    """Number all values in order; returns how many. None results get a number too (C counts results)."""
    n = 0
    for node in [*graph.placeholders, *graph.nodes]:
        for val in node.vals:
            if val is not None:
                val.number = n
            n += 1
    return n


def describe(graph: Graph) -> tuple[tuple, tuple]:
    """(nodes, outputs) as csrc/ir/graph.h wants them. Raises Unsupported for what that form has no place for."""
    number(graph)
    nodes: list[tuple] = []
    for node in graph.placeholders:
        nodes.append(("placeholder", None, (), (_meta_code(node.val.meta),)))
    for node in graph.nodes:
        metas = tuple([_NO_META if v is None else _meta_code(v.meta) for v in node.vals])
        described = (name_of_op(node.target), node.target, tuple([_arg_code(a) for a in node.args]), metas)
        nodes.append(described if node.form is None else (*described, node.form))
    return tuple(nodes), tuple([-1 if v is None else v.number for v in graph.outputs])


_NO_META = (-1, 0, (), (), 0)  # a result that the operator leaves undefined
_OPAQUE = -2
_QUANTISED = frozenset(
    {torch.qint8, torch.quint8, torch.qint32, getattr(torch, "quint4x2", None), getattr(torch, "quint2x4", None)}
)


def _meta_code(meta: tuple) -> tuple:
    dtype, device, sizes, strides, offset = meta
    if dtype is None:
        return _OPAQUE, DEVICE_CODES[device.type], (), (), 0
    if dtype in _QUANTISED:
        raise Unsupported(f"a tensor of {dtype} outside of the steps for such")
    if device.type not in ("cpu", "cuda") or dtype not in DTYPE_CODES:  # memory of others (meta) is not there to read
        raise Unsupported(f"a tensor of {dtype} on {device}")
    if len(sizes) > 16:
        raise Unsupported(f"a tensor of {len(sizes)} dimensions")
    return DTYPE_CODES[dtype], DEVICE_CODES[device.type], sizes, strides, offset


def _arg_code(arg: Any) -> Any:
    if arg is None or isinstance(arg, (bool, float, str, complex)):
        return arg
    if isinstance(arg, Val):
        return ("v", arg.number)
    if isinstance(arg, (list, tuple)):
        return [_arg_code(a) for a in arg]
    if isinstance(arg, int):
        return int(arg)
    if isinstance(arg, torch.dtype):
        return ("dtype", DTYPE_CODES[arg])
    if isinstance(arg, torch.device):
        return ("device", DEVICE_CODES[arg.type])
    if isinstance(arg, torch.layout):
        return ("layout", LAYOUT_CODES[arg])
    if isinstance(arg, torch.memory_format):
        return ("memory_format", MEMORY_FORMAT_CODES[arg])
    if isinstance(arg, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise Unsupported("a symbolic number")
    return ("obj", arg)


# -- One operator at a time -------------------------------------------------------------------------------------------


class Interpreter:
    """Runs a graph's operators one by one: the fallback when it cannot be compiled. Called like a _C.Plan: list ->
    tuple."""

    def __init__(self, graph: Graph):
        n = number(graph)
        last: dict[int, int] = {}
        for i, node in enumerate(graph.nodes):
            for val in each_val(node.args):
                last[val.number] = i
        kept = {v.number for v in graph.outputs if v is not None}
        self._n = n
        self._n_inputs = len(graph.placeholders)
        self._outputs = [-1 if v is None else v.number for v in graph.outputs]
        self._steps = []
        for i, node in enumerate(graph.nodes):
            dead = [k for k in {v.number for v in each_val(node.args)} if last[k] == i and k not in kept]
            results = [None if v is None else v.number for v in node.vals]
            args = map_vals(lambda v: _Slot(v.number), node.args)
            self._steps.append((node.target, args, results, dead))

    @property
    def steps(self) -> list[tuple[str, str, str]]:
        return [("python", str(target), "") for target, *_ in self._steps]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple:
        env: list[Any] = [None] * self._n
        env[: self._n_inputs] = inputs
        with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
            for target, args, results, dead in self._steps:
                out = call(target, [_fill_slots(a, env) for a in args])
                for slot, tensor in zip(results, tensors_of(out), strict=False):
                    if slot is not None:
                        env[slot] = tensor
                for slot in dead:
                    env[slot] = None
        return tuple([None if k < 0 else env[k] for k in self._outputs])


class _Slot(int):
    __slots__ = ()


def _fill_slots(arg: Any, env: list) -> Any:
    if type(arg) is _Slot:
        return env[arg]
    if isinstance(arg, (list, tuple)):
        return [_fill_slots(a, env) for a in arg]
    return arg
