"""What lowering depends on, as text: two programs with the same text become the same graphs.

    recorded operators and their constants, what the inputs and the first run's outputs look like, torch's modes,
    options, the sources of magpy, the versions of torch and Python, the C compiler, the CPU

Sites in the user's files are no part of it: they are only named in errors, which are not cached. What has no text that
means the same in every process (objects, functions of the program's, operators of others, anything of
torch's or magpy's that was replaced) makes a program uncacheable.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import math
import os
import platform
import struct
import sys
import time
import types
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch._functorch.config
import torch.backends.opt_einsum
import torch.nn.functional as F
from torch._functorch import predispatch

from magpy import _C
from magpy.aten_graph import Unsupported
from magpy.opaque_tensors import is_opaque

MAX_CONSTANTS = 1 << 20  # bytes of constant tensors in one program


class Uncacheable(Exception):
    """The program has a part without a text; the message says which. Parts of one kind have the same message."""


# -- Values -----------------------------------------------------------------------------------------------------------

# repr() of these says type and value, bit by bit; floats that are not numbers are told apart below.
_PLAIN = frozenset({int, str, bool, bytes, type(None), type(Ellipsis)})
_NAMED = (torch.dtype, torch.layout, torch.memory_format, torch.device)  # repr() names them


def _text_of(value: Any) -> Any:
    """Nested tuples of strings and numbers whose repr() tells `value` from all others. Tuples begin with what they
    stand for, so that none is mistaken for another."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is _C.Value:
        return ("v", value.index)
    if kind is float:
        return value if not math.isnan(value) else ("nan", _bits(value))
    if kind is tuple:
        return ("tuple", *map(_text_of, value))
    if kind is list:
        return ("list", *map(_text_of, value))
    if kind is dict:
        return ("dict", *[(_text_of(k), _text_of(v)) for k, v in value.items()])
    if kind is torch.Size:
        return ("size", *value)
    if kind is slice:
        return ("slice", _text_of(value.start), _text_of(value.stop), _text_of(value.step))
    if kind is _C.Number:
        return ("number", value.index)
    if kind in _NAMED:
        return ("torch", repr(value))
    if kind is complex:
        return ("complex", _text_of(value.real), _text_of(value.imag))
    if kind is torch.Tensor:
        return ("tensor", *_meta_of(value), hashlib.sha256(bytes_of(value)).hexdigest())
    if kind is type and value in (bool, int, float, complex):
        return ("type", value.__name__)
    if kind is torch.jit.ScriptFunction:
        return ("script", _script_text(value))
    if callable(value):
        return ("func", _name_of(value))
    raise Uncacheable(f"a constant of type {kind.__name__}")


def _bits(number: float) -> str:
    return struct.pack("<d", number).hex()


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The elements of a constant, in order."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise Uncacheable("a constant tensor that is not strided or not on the CPU")
    if tensor.is_conj() or tensor.is_neg() or tensor.requires_grad:
        raise Uncacheable("a constant tensor that is differentiated or a lazy conjugate")
    if tensor.numel() * tensor.element_size() > MAX_CONSTANTS:
        raise Uncacheable("a large constant tensor")
    flat = tensor.detach().contiguous()
    return ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size()) if flat.numel() else b""


# -- TorchScript ------------------------------------------------------------------------------------------------------


_scripts: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _script_text(function: Any) -> str:
    known = _scripts.get(function)
    if known is None:
        known = _scripts[function] = _hashed(tuple(_script_of(function)))
    return known


def _script_of(function: Any) -> Iterator[Any]:
    """A compiled function as its instructions, bit by bit; printed, it would lack the data of its constants."""
    for argument in function.schema.arguments:
        default = _text_of(argument.default_value) if argument.has_default_value() else "no default"
        yield (argument.name, str(argument.type), default)
    graph = function.inlined_graph
    yield tuple(_named_value(v) for v in graph.inputs())
    yield from _block_of(graph)


def _named_value(value: Any) -> tuple[str, str]:
    return value.debugName(), value.type().annotation_str


_SCRIPT_CALLS = ("prim::PythonOp", "prim::CallFunction", "prim::CallMethod", "prim::GetAttr")


def _block_of(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        if not node.kind().startswith(("aten::", "prim::")) or node.kind() in _SCRIPT_CALLS:
            raise Uncacheable("TorchScript that calls what is not in it")
        attributes = [(name, node.kindOf(name)) for name in node.attributeNames()]
        if any(kind not in ("i", "f", "s", "is", "fs", "ss") for _, kind in attributes):
            raise Uncacheable("TorchScript with constants that are objects")
        yield (
            node.kind(),
            tuple(v.debugName() for v in node.inputs()),
            tuple(map(_named_value, node.outputs())),
            tuple((name, kind, _text_of(getattr(node, kind)(name))) for name, kind in attributes),
        )
        for inner in node.blocks():
            yield ("block", tuple(map(_named_value, inner.inputs())), tuple(_block_of(inner)))
    yield ("gives", tuple(v.debugName() for v in block.outputs()))


# -- Functions --------------------------------------------------------------------------------------------------------

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(__file__) + os.sep

# Where recorded functions are looked up by their names. (Not in modules of the program's, whatever they are called.)
_PLACES: dict[str, Any] = {
    "torch": torch, "F": F, "nn": torch._C._nn, "Tensor": torch.Tensor, "special": torch.special,
    "linalg": torch.linalg, "fft": torch.fft, "_C": torch._C, "functional": torch.functional,
    "random": torch.random,
}  # fmt: skip

# Code of these modules runs when functions are replayed.
_REPLAYING = (torch, F, torch.functional, torch._tensor)

# What lowers, all of it: modules of magpy's that are imported later would make another key.
_LOWERING = (
    "aten_builder", "aten_graph", "aten_layouts", "aten_passes", "aten_resampling", "aten_rewrites", "aten_trace",
    "attention", "backward", "choices", "decompositions", "graph_cache", "graph_form", "graph_key", "hooks", "joint",
    "lower",
    "packed", "products", "random_ops", "replay", "results", "steps", "symbols", "training",
)  # fmt: skip


def _is_own(value: Any) -> bool:
    """Is what would be called torch's or magpy's own code, Python's library or C of theirs, and all that it wraps?"""
    kind = type(value)
    check = _OWNERS.get(kind)
    if check is not None:
        return check(value)
    if isinstance(value, type):
        return _is_own_module(value.__module__)
    if isinstance(value, (torch.jit.ScriptFunction, torch.jit.ScriptModule, torch.library.CustomOpDef)):
        return False
    wrapped = getattr(value, "__wrapped__", None)
    return _is_own_module(kind.__module__) and (wrapped is None or _is_own(wrapped))


def _is_own_function(function: types.FunctionType) -> bool:
    file = function.__code__.co_filename
    if not file.startswith(_OWN_FILES) and not (file.startswith(_PYTHON) and "-packages" not in file):
        return False
    wrapped = function.__dict__.get("__wrapped__")
    held = [wrapped] if wrapped is not None else []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # it is empty
            continue
    return all(_is_own(value) for value in held if callable(value) and value is not function)


def _is_own_builtin(function: types.BuiltinFunctionType) -> bool:
    owner: Any = function.__self__  # a module, a class or an object of one; what pybind makes says its module itself
    if isinstance(function.__module__, str):
        return _is_own_module(function.__module__)
    return _is_own_module((owner if isinstance(owner, type) else type(owner)).__module__)


def _is_own_descriptor(descriptor: Any) -> bool:
    return _is_own_module(descriptor.__objclass__.__module__)


@functools.lru_cache(maxsize=4096)
def _is_own_module(name: str) -> bool:
    return name.partition(".")[0] in _OWN_MODULES and name != "unittest.mock"


_OWNERS: dict[type, Any] = {
    types.FunctionType: _is_own_function,
    types.BuiltinFunctionType: _is_own_builtin,
    type: lambda cls: _is_own_module(cls.__module__),
    types.MethodType: lambda method: _is_own(method.__func__) and _is_own(type(method.__self__)),
    functools.partial: lambda partial: _is_own(partial.func),
    staticmethod: lambda method: _is_own(method.__func__),
    classmethod: lambda method: _is_own(method.__func__),
    property: lambda p: all(part is None or _is_own(part) for part in (p.fget, p.fset, p.fdel)),
    **dict.fromkeys(
        (
            types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType,
            types.MemberDescriptorType, types.ClassMethodDescriptorType, types.MethodWrapperType,
        ),
        _is_own_descriptor,
    ),
}  # fmt: skip

# Python's own library and typing_extensions are torch's tools.
_OWN_MODULES = frozenset({"torch", "torchgen", "magpy", "typing_extensions", *sys.stdlib_module_names})
_PYTHON = os.path.dirname(os.__file__) + os.sep
_OWN_FILES = (_TORCH, _OWN, os.path.join(os.path.dirname(_TORCH[:-1]), "typing_extensions.py"))


def _name_of(function: Any) -> Any:
    """Where torch or magpy has the function. Raises Uncacheable for those of others."""
    found = _names.get(id(function))
    if found is None:
        found = _names[id(function)] = (function, _found(function))
        if len(_names) > 10000:
            _names.clear()
    known = found[1]
    if isinstance(function, types.FunctionType):  # these can be changed in place
        if not _is_own(function):
            raise Uncacheable("a function of the program's")
        known = (*known, _text_of(function.__defaults__), _text_of(function.__kwdefaults__))
    return known


_names: dict[int, tuple[Any, tuple]] = {}  # by id: (function, which keeps the id, its name)


def _found(function: Any) -> tuple:
    name = getattr(function, "__name__", None)
    owner = getattr(function, "__self__", None)
    attribute = getattr(owner, "__name__", None)
    if name in ("__get__", "__set__") and type(owner) is types.GetSetDescriptorType:  # a method-wrapper
        if getattr(torch.Tensor, str(attribute), None) is owner:
            return ("Tensor", attribute, name)
    elif isinstance(function, torch._ops.OpOverload):
        if op_named(str(function)) is function:
            return ("op", str(function))
    elif isinstance(name, str):
        for place, holder in _PLACES.items():
            if getattr(holder, name, None) is function and _is_own(function):
                return (place, name)
        module = str(getattr(function, "__module__", None))
        if module.startswith("magpy.") and getattr(sys.modules.get(module), name, None) is function:
            return (module, name)
    for name, value in vars(torch.Tensor).items():  # "__pow__" is called pow
        if value is function and _is_own(function):
            return ("Tensor", name)
    raise Uncacheable(f"a call of {type(function).__name__} {getattr(function, '__qualname__', '')}".rstrip())


#: Operators of these namespaces mean the same wherever torch and magpy are the same.
NAMESPACES = frozenset({"aten", "prims", "mkldnn", "magpy", "magpy_random"})


@functools.lru_cache(maxsize=4096)
def op_named(text: str) -> Any:
    """The OpOverload "namespace.packet.overload", or None."""
    namespace, _, rest = text.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace not in NAMESPACES:
        return None
    return getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)


# -- Tensors ----------------------------------------------------------------------------------------------------------


def _meta_of(tensor: torch.Tensor) -> tuple:
    if tensor.layout is not torch.strided:
        raise Unsupported(f"a tensor of layout {tensor.layout}")
    return (str(tensor.dtype), str(tensor.device), tuple(tensor.shape), tensor.stride(), tensor.storage_offset())


_CLASSES: dict[type, str] = {torch.Tensor: "Tensor", torch.nn.Parameter: "Parameter", torch.nn.Buffer: "Buffer"}


def _class_name(cls: type) -> str:
    name = _CLASSES.get(cls)
    if name is None:
        raise Uncacheable("a tensor of a class of its own")
    return name


def _input_texts(inputs: Sequence[torch.Tensor]) -> Iterator[tuple]:
    storages: dict[int, int] = {}
    for number, t in enumerate(inputs):
        name = _class_name(type(t))
        if is_opaque(t):
            yield (name, "opaque", *map(str, (t.dtype, t.device, t.layout)), tuple(t.shape), t.requires_grad, t.is_leaf)
            continue
        storage = t.untyped_storage()
        flags = (t.requires_grad, t.is_leaf, t.is_inference(), t.is_conj(), t.is_neg(), t.is_quantized)
        # which of the inputs share memory
        yield (name, *_meta_of(t), storage.nbytes(), *flags, storages.setdefault(storage._cdata, number))


# -- Surroundings -----------------------------------------------------------------------------------------------------

_started = time.time()


@functools.cache
def _sources() -> str:
    """A hash of magpy's sources and its extension. Raises Uncacheable if one was changed after it was loaded."""
    built = _C.build_id()
    digest = hashlib.sha256(built or b"")
    files = [os.path.join(_OWN, name) for name in sorted(os.listdir(_OWN)) if name.endswith(".py")]
    for path in files if built else [*files, _C.__file__]:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mtime >= _started:
                raise Uncacheable("sources of magpy that change")
            content = file.read()
        digest.update(f"{os.path.basename(path)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def _versions() -> tuple:
    info = _C.cpu_info()
    return (
        1,  # of the stored form
        _sources(),
        sys.version,
        platform.machine(),
        getattr(sys.modules.get("numpy"), "__version__", None),
        torch.__version__,
        torch.version.git_version,
        torch.version.cuda,
        torch.backends.cpu.get_cpu_capability(),
        torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        info["model"],
        info["vector_bits"],
    )


def _state() -> tuple:
    """Modes and switches of the moment."""
    config, einsum = torch._functorch.config, torch.backends.opt_einsum
    fake = [(name, repr(getattr(config, name))) for name in _fake_options()]
    return (
        _C._torch_state_read().hex(),
        torch.get_num_threads(),
        _C.compiler_identity(),
        (einsum.enabled, einsum.strategy, einsum.is_available()),
        fake,
        _registered(),
    )


_registrations: tuple[set[str], str] = (set(), "")  # as last seen, and their hash
_TORCHS_OWN = ("Meta", "MPS", "CUDA")  # keys for which torch itself has implementations of aten's operators in Python


def _registered() -> str:
    """Which operators of torch have implementations in Python. Raises Uncacheable where some are the program's: their
    names do not say what they do."""
    global _registrations
    now = torch.library._impls
    if now != _registrations[0]:
        vmaps = predispatch.VMAP_DECOMPOSITIONS_LIB  # torch makes it at the first vmap
        names = sorted(now - vmaps._op_impls if vmaps is not None else now)
        names = [name for name in names if name.startswith(("aten/", "prims/"))]
        if any(name.startswith("aten/") and not name.endswith(_TORCHS_OWN) for name in names):
            raise Uncacheable("an operator of torch's that the program has replaced")
        _registrations = (set(now), hashlib.sha256("\n".join(names).encode()).hexdigest())
    return _registrations[1]


@functools.cache
def _fake_options() -> tuple[str, ...]:
    options: dict[str, Any] = torch._functorch.config._config  # type: ignore[attr-defined]
    return tuple(sorted(name for name in options if name.startswith("fake_tensor")))


# -- What was replaced ------------------------------------------------------------------------------------------------


class _Watched:
    """A namespace of torch's or magpy's: are all functions in it their own? Asked again when one is another object."""

    def __init__(self, name: str, names: Any):
        self.name, self.names = name, names
        self.seen: list[Any] = []
        self.ids: tuple[int, ...] = ()
        self.constants: tuple = ()

    def check(self) -> tuple:
        """The numbers and texts that are its constants. Raises Uncacheable."""
        ids = tuple(map(id, self.names.values()))
        if ids != self.ids:
            values = list(self.names.values())  # kept, so that no other object gets one of the ids
            for key, value in self.names.items():
                if (callable(value) or type(value) in _OWNERS) and not _is_own(value):
                    raise Uncacheable(f"{self.name}.{key} is replaced")
            self.constants = tuple(
                (key, value)
                for key, value in self.names.items()
                if key.strip("_").isupper() and type(value) in (int, float, str, bool)
            )
            self.seen, self.ids = values, ids
        return self.constants


_watched: dict[str, _Watched] = {}


def _unreplaced() -> list[tuple]:
    """Constants of magpy's modules. Raises Uncacheable where functions that lowering may call are not torch's own or
    magpy's own."""
    for module in _REPLAYING:
        _watch(module.__name__, vars(module)).check()
    _watch("torch.Tensor", vars(torch.Tensor)).check()
    modules = [importlib.import_module(f"magpy.{name}") for name in _LOWERING]
    return [(module.__name__, _watch(module.__name__, vars(module)).check()) for module in modules]


def _watch(name: str, names: Any) -> _Watched:
    known = _watched.get(name)
    if known is None:
        known = _watched[name] = _Watched(name, names)
    known.names = names
    return known


# -- The key ----------------------------------------------------------------------------------------------------------


def key_of(
    program: Any, inputs: Sequence[torch.Tensor], marks: Sequence[tuple[int, bool]], options: dict[str, Any]
) -> str:
    """The name under which the lowered program is kept: 32 hex digits. Raises Uncacheable."""
    ops = [
        (_text_of(func), _text_of(args), _text_of(kwargs), _text_of(out))
        for func, args, kwargs, out, _state, _site in program.ops
    ]
    outputs = [(o.strides, o.inference, o.leaf and _class_name(o.leaf), o.requires_grad) for o in program.outputs]
    parts = (
        _versions(),
        _state(),
        _unreplaced(),
        sorted(options.items()),
        ops,
        list(_input_texts(inputs)),
        program.input_values,
        program.output_values,
        outputs,
        list(map(tuple, marks)),
    )
    return _hashed(parts)


def derived(key: str, *parts: Any) -> str:
    """The name of what is made later from the program of `key`. Raises Uncacheable."""
    return _hashed((key, _versions(), _state(), _unreplaced(), parts))


def _hashed(parts: tuple) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
