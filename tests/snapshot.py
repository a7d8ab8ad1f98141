"""What can be seen of values from outside, as plain data that outlives them, and where two such pictures differ.

A picture holds types, structure, order, sharing (of objects, and of memory among tensors), scalars with their signs,
tensors with layout and what autograd says of them, functions with their closures, iterators with their position,
exceptions with their chain and the program's lines in their traceback.
"""

from __future__ import annotations

import collections
import ctypes
import datetime
import decimal
import functools
import inspect
import itertools
import math
import re
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import torch

ADDRESS = re.compile(r"0x[0-9a-f]*")
VIEW = re.compile(r"^Output \d+ of \w+ is a view")  # its function: which one autograd names is nothing that is kept
Part = Callable[["Picture", Any], list[Any]]


def memory_of(dense: torch.Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    return ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size()) if dense.numel() else b""


class Data:
    """A tensor's values. Equal if the bits are."""

    __slots__ = ("bits", "values")

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.to_dense().clone(memory_format=torch.contiguous_format)
        self.bits = memory_of(self.values)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Data) and self.bits == other.bits and self.values.shape == other.values.shape

    def __repr__(self) -> str:
        return str(self.values)

    def close(self, other: Data, rtol: float, atol: float) -> bool:
        a, b = self.values, other.values
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol, atol, equal_nan=True)


class Picture:
    """Takes pictures; what has an identity is numbered in order of appearance, over all pictures taken by one object.

    files: names of files whose lines count in tracebacks."""

    def __init__(self, files: tuple[str, ...] = ()) -> None:
        self.files = files
        self.numbers: dict[int, int] = {}
        self.storages: dict[int, tuple[int, int]] = {}
        self.alive: list[Any] = []  # an identity means something only while its object lives

    def of(self, value: Any) -> Any:
        kind = type(value)
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return scalar(value)
        known = PARTS.get(kind)
        if known is None:
            known = PARTS[kind] = parts_of(kind)
        numbered, parts = known
        if numbered:
            number = self.numbers.get(id(value))
            if number is not None:
                return ("again", number)
            self.numbers[id(value)] = len(self.numbers)
            self.alive.append(value)
        picture: list[Any] = [kind.__qualname__]
        for part in parts:
            picture += part(self, value)
        return picture


# -- Scalars --------------------------------------------------------------------------------------------------------


def text(value: Any) -> Any:
    return ("str", VIEW.sub("Output is a view", ADDRESS.sub("0x", value) if "0x" in value else value))


SCALARS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: None,
    bool: lambda value: ("bool", value),
    int: lambda value: ("int", value),
    bytes: lambda value: ("bytes", value),
    str: text,
    float: lambda value: ("float", value, math.copysign(1.0, value)),
    complex: lambda value: ("complex", value.real, value.imag, math.copysign(1.0, value.real)),
    type(...): lambda value: "...",
    type(NotImplemented): lambda value: "NotImplemented",
    torch.dtype: str,
    torch.device: str,
    torch.layout: str,
    torch.memory_format: str,
    torch.Generator: lambda value: "generator",
    # Values like numbers: which of two equal ones it is, is nothing that is kept.
    datetime.date: repr,
    datetime.datetime: repr,
    datetime.time: repr,
    datetime.timedelta: repr,
    decimal.Decimal: repr,
}


# -- What is in a value of a type -----------------------------------------------------------------------------------


def items(picture: Picture, value: Any) -> list[Any]:
    return [picture.of(item) for item in value]


def mapping(picture: Picture, value: Any) -> list[Any]:
    return [(picture.of(key), picture.of(item)) for key, item in value.items()]


def elements(picture: Picture, value: Any) -> list[Any]:
    if all(isinstance(item, int | float | str | None) for item in value):
        return [picture.of(item) for item in value]
    return sorted(type(item).__qualname__ for item in value)  # its order depends on addresses


def named(picture: Picture, value: Any) -> list[Any]:
    return [getattr(value, "__qualname__", value.__name__)]


def function(picture: Picture, value: Any) -> list[Any]:
    return [value.__qualname__, *(picture.of(v) for v in (value.__defaults__, value.__kwdefaults__, value.__closure__))]


def cell(picture: Picture, value: Any) -> list[Any]:
    try:
        return [picture.of(value.cell_contents)]
    except ValueError:
        return ["empty"]


def generator(picture: Picture, value: Any) -> list[Any]:
    return [value.__qualname__, inspect.getgeneratorstate(value), value.gi_frame and value.gi_frame.f_lineno]


def exception(picture: Picture, value: Any) -> list[Any]:
    lines, trace = [], value.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in picture.files:
            lines.append(("line", trace.tb_frame.f_code.co_name, trace.tb_lineno))
        trace = trace.tb_next
    chain = [value.__suppress_context__, *(picture.of(each) for each in (value.__cause__, value.__context__))]
    return [picture.of(value.args), lines, *chain]


def array(picture: Picture, value: Any) -> list[Any]:
    if value.dtype == object:
        return [value.shape]
    return [str(value.dtype), value.shape, value.strides, Data(torch.from_numpy(value.copy()))]


def tensor(picture: Picture, value: torch.Tensor) -> list[Any]:
    data = value.detach()
    try:
        leaf: Any = value.is_leaf
    except RuntimeError as error:  # a view whose base was changed under another grad mode
        leaf = text(str(error))
    facts = (str(data.layout), str(data.dtype), tuple(data.shape), value.requires_grad, leaf, value.is_inference())
    memory: Any = None
    if data.layout == torch.strided:
        memory = (data.stride(),)
        storage = data.untyped_storage()
        picture.alive.append(storage)
        start = storage.data_ptr()
        if start and data.numel():
            number, first = picture.storages.setdefault(start, (len(picture.storages), data.storage_offset()))
            memory = (data.stride(), "memory", number, data.storage_offset() - first)
    return [facts, memory, Data(data), picture.of(value.grad) if leaf is True else None]


def instance(picture: Picture, value: Any) -> list[Any]:
    try:
        inside = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return []
    # A hook's key is a number that the process counts up.
    return [
        (
            key,
            [picture.of(v) for v in item.values()]
            if key[-6:] == "_hooks" and isinstance(item, dict)
            else picture.of(item),
        )
        for key, item in list(inside.items())
    ]


def slots(names: tuple[str, ...]) -> Part:
    def part(picture: Picture, value: Any) -> list[Any]:
        found: list[Any] = []
        for name in names:
            try:
                found.append((name, picture.of(object.__getattribute__(value, name))))
            except AttributeError:
                found.append((name, "unset"))
        return found

    return part


KINDS: list[tuple[tuple[type, ...], Part]] = [
    ((torch.Tensor,), tensor),
    ((numpy.ndarray,), array),
    ((numpy.generic,), lambda picture, value: [repr(value)]),
    ((BaseException,), exception),
    ((type, types.BuiltinFunctionType, types.ModuleType), named),
    ((types.FunctionType,), function),
    ((types.CellType,), cell),
    ((types.MethodType,), lambda picture, value: [picture.of(value.__func__), picture.of(value.__self__)]),
    ((functools.partial,), lambda picture, value: [picture.of(v) for v in (value.func, value.args, value.keywords)]),
    ((functools._lru_cache_wrapper,), lambda picture, value: [tuple(value.cache_info())]),
    ((types.GeneratorType,), generator),
    ((weakref.ref,), lambda picture, value: [picture.of(value())]),
    ((slice, range, bytearray), lambda picture, value: [repr(value)]),
    ((collections.defaultdict,), lambda picture, value: [picture.of(value.default_factory), *mapping(picture, value)]),
    ((dict, types.MappingProxyType, collections.ChainMap), mapping),
    ((collections.deque,), lambda picture, value: [value.maxlen, *items(picture, value)]),
    ((list, tuple), items),
    ((set, frozenset), elements),
    ((int,), lambda picture, value: [int.__repr__(value)]),
    ((float,), lambda picture, value: [float.__repr__(value)]),
    ((str,), lambda picture, value: [str.__str__(value)]),
]
WHOLE = (torch.Tensor, types.FunctionType, functools.partial, functools._lru_cache_wrapper, types.ModuleType, type)
ITERATORS = {
    type(iter(each))
    for each in ([], (), "", "ä", b"", bytearray(), range(0), {}, {}.values(), {}.items(), set(), range(1 << 70))
}
ITERATORS |= {type(reversed([])), reversed, enumerate, zip, map, filter}
ITERATORS |= {itertools.chain, itertools.count, itertools.islice, itertools.repeat, itertools.starmap}
PARTS: dict[type, tuple[bool, list[Part]]] = {}


def parts_of(kind: type) -> tuple[bool, list[Part]]:
    """Has a value of this type an identity that matters, and what is in it."""
    parts: list[Part] = []
    if kind in ITERATORS:
        return True, [lambda picture, value: [picture.of(value.__reduce__())]]
    for bases, part in KINDS:
        if issubclass(kind, bases):
            parts.append(part)
            break
    if not issubclass(kind, WHOLE):
        names: list[str] = []
        for base in kind.__mro__:
            own = base.__dict__.get("__slots__", ()) if base.__module__ not in ("typing", "torch") else ()
            names += [name for name in ((own,) if isinstance(own, str) else own) if not name.startswith("__")]
        if names:
            parts.append(slots(tuple(names)))
        if kind not in (list, dict, tuple, set, frozenset, collections.deque):
            parts.append(instance)
    # Which tuples, slices and functions of C are one object is the interpreter's business.
    unseen = (tuple, slice, range, type, types.ModuleType, types.BuiltinFunctionType, numpy.generic)
    return not issubclass(kind, unseen), parts


# -- Comparison -----------------------------------------------------------------------------------------------------


LONG_NUMBER = re.compile(r"-?\d+\.\d{5,}(?:e[+-]?\d+)?")


def rounds_to(mine: str, eager: str) -> bool:
    """Are two texts the same but for the last digits of long numbers, which kernels may round otherwise?"""
    if LONG_NUMBER.sub("#", mine) != LONG_NUMBER.sub("#", eager):
        return False
    pairs = zip(LONG_NUMBER.findall(mine), LONG_NUMBER.findall(eager), strict=True)
    return all(math.isclose(float(a), float(e), rel_tol=1e-5, abs_tol=1e-6) for a, e in pairs)


def difference(mine: Any, eager: Any, where: str = "", rtol: float = 1e-4, atol: float = 1e-5) -> str | None:
    """Where and how two pictures differ, or None."""
    if mine == eager:
        return None
    if isinstance(eager, list | tuple) and type(mine) is type(eager) and len(mine) == len(eager):
        if isinstance(eager, tuple) and eager[:1] == ("float",) and mine[0] == "float":
            same = (
                math.isclose(mine[1], eager[1], rel_tol=rtol, abs_tol=atol)
                or mine[1] != mine[1]
                and eager[1] != eager[1]
            )
            same = same and (mine[2] == eager[2] or eager[1] != 0 or mine[1] != 0)
            return None if same else f"{where}: {mine[1]!r} is not eager's {eager[1]!r}"
        if isinstance(eager, tuple) and eager[:1] == ("str",) and mine[0] == "str" and rounds_to(mine[1], eager[1]):
            return None
        if isinstance(eager, tuple) and eager[:1] == ("line",) and mine[:2] == eager[:2]:
            # An instruction that CPython has joined to the one before it (superinstructions) raises at that one's line.
            return None if abs(mine[2] - eager[2]) <= 1 else f"{where}: line {mine[2]} is not eager's {eager[2]}"
        for i, (a, b) in enumerate(zip(mine, eager, strict=True)):
            step = eager[0] if i and isinstance(eager[0], str) else ""
            found = difference(a, b, f"{where}/{step}{i}", rtol, atol)
            if found:
                return found
        return None
    if isinstance(mine, Data) and isinstance(eager, Data) and mine.close(eager, rtol, atol):
        return None
    return f"{where}: {mine!r:.300} is not eager's {eager!r:.300}"
