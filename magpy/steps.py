"""Steps of a plan that are no operators of torch: they compute with Python numbers that are data, and look at data.

As torch operators (namespace "magpy") they pass through tracing, autograd and plans like any other. A step that finds
data that its trace was not made for raises OtherData: the run is thrown away, and the call is observed again.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
import struct
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx

from magpy import _C
from magpy.aten_graph import Unsupported, tensors_of
from magpy.moments import now_ns

_library = torch.library.Library("magpy", "FRAGMENT")


def define(schema: str, run: Callable[..., Any], meta: Callable[..., Any], tags: Sequence[torch.Tag] = ()) -> None:
    """A step as an operator; meta: the same on tensors without data."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=tags)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"magpy::{name}", meta, lib=_library)
    if not tags:
        torch.fx.node.has_side_effect(getattr(torch.ops.magpy, name).default)


# As they were when magpy was imported: what a program puts in their place later is no part of an expression.
NAMES: dict[str, Any] = {
    "__builtins__": {},
    "math": types.SimpleNamespace(**{name: getattr(math, name) for name in dir(math)}),
    "aten": torch.ops.aten,
    "torch": torch,
    **{name: getattr(builtins, name) for name in "abs round pow min max sum float int bool".split()},
}


@functools.lru_cache(maxsize=4096)
def function_of(source: str) -> Callable[..., Any]:
    """The function of an expression that the recorder has written."""
    return eval(source, NAMES)


# -- Numbers ----------------------------------------------------------------------------------------------------------


def evaluate(source: str, *leaves: torch.Tensor) -> Any:
    """What Python computes: `source` is a lambda over the numbers that are the only elements of `leaves`."""
    return function_of(source)(*[leaf.item() for leaf in leaves])


def compute(source: str, is_float: bool, *leaves: torch.Tensor) -> torch.Tensor:
    """Likewise as a tensor without dimensions, of double or int64: the recorded operator."""
    return torch.ops.magpy.number(list(leaves), source, is_float)


def _number(leaves: list[torch.Tensor], source: str, is_float: bool) -> torch.Tensor:
    number = evaluate(source, *leaves)
    if type(number) is not (float if is_float else int):
        raise _C.OtherData(False)
    return number_input(number)


def _number_meta(leaves: list[torch.Tensor], source: str, is_float: bool) -> torch.Tensor:
    return torch.empty((), dtype=torch.float64 if is_float else torch.int64)


def number_input(number: float) -> torch.Tensor:
    """An int or float as a value of a graph."""
    try:
        return torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.int64)
    except (OverflowError, RuntimeError, ValueError):  # an int of more than 64 bits; which, depends on torch's version
        raise _C.OtherData(True) from None


# -- Checks -----------------------------------------------------------------------------------------------------------


def text_of(answer: float) -> str:
    """A bool, int or float as text that is the same for the same type and bits."""
    if isinstance(answer, float):
        return struct.pack("<d", answer).hex()
    return repr(answer)


def check(seen: float, value: bool, args: Sequence[Any]) -> None:
    """The recorded check that evaluate(*args) is `seen`. value: it is one of very many that there may be."""
    source, *leaves = args
    torch.ops.magpy.check(leaves, source, text_of(seen), value)


def _check(leaves: list[torch.Tensor], source: str, seen: str, value: bool) -> None:
    if text_of(evaluate(source, *leaves)) != seen:
        raise _C.OtherData(value)


def _check_meta(leaves: list[torch.Tensor], source: str, seen: str, value: bool) -> None:
    return None


# -- Text and moments -------------------------------------------------------------------------------------------------

#: What makes text of its operands, by the kinds of csrc/trace/texts.c.
TEXTS = (format, repr, lambda *parts: "".join(parts), operator.mod, str.format)


def answer(tree: tuple[Any, ...], *leaves: Any) -> Any:
    """What Python makes of numbers that are data, by a tree of calls that the recorder has written."""
    kind, what = tree[:2]
    if kind == "constant":
        return what
    if kind == "drawn":
        return leaves[what]
    if kind == "leaf":
        number = leaves[what].item()
        return number if tree[2] is None else tree[2](number)
    parts = [answer(part, *leaves) for part in what[1:]]
    return what[0](*parts) if kind == "call" else tuple(parts)


# -- Sizes that are data ----------------------------------------------------------------------------------------------

Meta = tuple[tuple[int, ...], tuple[int, ...]]  # sizes, strides


class _Replayed(threading.local):
    """The recorded operator that this thread replays: its results' metas, its arguments."""

    metas: Sequence[Meta] = ()
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012


_replayed = _Replayed()


#: Operators that are replayed by functions of their own, (metas, *args, **kwargs) -> results.
REPLAYED: dict[Any, Callable[..., Any]] = {}


def sized(func: Any, metas: Sequence[Meta], args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
    """Replay an operator whose results' sizes are data, with results as they were when it was recorded."""
    kwargs = kwargs or {}
    if func in REPLAYED:
        return REPLAYED[func](metas, *args, **kwargs)
    if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and not args[1].dim():
        args = [t.unsqueeze(0) for t in args]  # a mask of one element, of which torch would take a look
    before = _replayed.__dict__.copy()
    _replayed.metas, _replayed.args, _replayed.kwargs = metas, args, kwargs
    try:
        return func(*args, **kwargs)
    finally:
        _replayed.__dict__.clear()
        _replayed.__dict__.update(before)


def _one_hot(metas: Sequence[Meta], tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    sizes, _ = metas[0]
    torch.ops.magpy.check([tensor.max().detach()], "lambda v: v + 1", text_of(sizes[-1]), False)
    return torch.zeros(sizes, dtype=torch.int64).scatter(-1, tensor.unsqueeze(-1), 1)


REPLAYED[torch._C._nn.one_hot] = _one_hot


def is_sized(target: Any, args: Sequence[Any]) -> bool:
    """Do the sizes of this operator's results follow from data, while an operator is replayed by `sized`?"""
    if not _replayed.metas or torch.Tag.dynamic_output_shape not in target.tags:
        return False
    if target is torch.ops.aten.index.Tensor:
        return any(isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return True


def record_sized(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operator as a step that has the recorded sizes or raises."""
    outs = as_step(str(target), args, kwargs, _metas_of(target, args, kwargs))
    return outs[0] if len(target._schema.returns) == 1 else tuple(outs)


def as_step(function: str, args: Sequence[Any], kwargs: dict[str, Any], metas: Sequence[tuple]) -> list[torch.Tensor]:
    """A step that calls the operator of this name, whose results must have these sizes and get these strides and
    dtypes: (sizes, strides, dtype) of each."""
    tensors: list[torch.Tensor] = []
    given = arguments_text(tensors, args, kwargs, function)
    return torch.ops.magpy.sized(tensors, f"lambda t: {function}({given})", repr([*metas]))


def arguments_text(tensors: list[torch.Tensor], args: Sequence[Any], kwargs: dict[str, Any], function: str) -> str:
    """Source of a call's arguments, in which t[i] stands for tensors[i]; they are added there."""

    def text(arg: Any) -> str:
        if isinstance(arg, torch.Tensor):
            tensors.append(arg)
            return f"t[{len(tensors) - 1}]"
        if isinstance(arg, (list, tuple)):
            return f"[{', '.join(map(text, arg))}]"
        if type(arg) is float and not math.isfinite(arg):
            return f"float('{arg}')"
        if arg is None or type(arg) in (bool, int, float, torch.dtype, torch.layout):
            return repr(arg)
        if isinstance(arg, torch.device):
            return f"torch.device({str(arg)!r})"
        raise Unsupported(f"an argument of {function}")

    return ", ".join([*map(text, args), *[f"{name}={text(arg)}" for name, arg in kwargs.items()]])


def dense_meta(sizes: Sequence[int]) -> Meta:
    strides, n = [], 1
    for size in reversed(sizes):
        strides.append(n)
        n *= max(size, 1)
    return tuple(sizes), tuple(reversed(strides))


def _metas_of(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple]:
    """Sizes, strides and dtype of the operator's results, from those of the recorded operator that it is part of. A
    result that nobody asked for has no elements."""
    name, x = target._schema.name.removeprefix("aten::"), args[0]
    first = tuple(_replayed.metas[0][0])
    long = torch.int64
    if name in ("nonzero", "argwhere"):
        n, dims = first[0], x.dim()
        if first == (n, dims):
            return [(*_replayed.metas[0], long)]
        return [((n, dims), (1, max(n, 1)), long)]
    if name == "linalg_lstsq":
        types = (x.dtype, x.dtype, long, x.real.dtype if x.is_complex() else x.dtype)
        return [(*meta, dtype) for meta, dtype in zip(_replayed.metas, types, strict=True)]
    if name in ("masked_select", "index"):
        return [(*_replayed.metas[0], x.dtype)]
    if name == "bincount":
        weights = args[1] if len(args) > 1 else kwargs.get("weights")
        return [(*dense_meta(first), long if weights is None else torch.result_type(weights, 1.0))]
    if name == "repeat_interleave":
        given = _replayed.args[2:3] or [_replayed.kwargs.get("dim")]
        return [(*dense_meta(first[given[0] or 0 : (given[0] or 0) + 1 or None]), long)]
    if name in ("_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique"):
        return _metas_of_unique(target, name, [*args], kwargs, first)
    raise Unsupported(f"{target}: a size that depends on data")


def _metas_of_unique(target: Any, name: str, args: list[Any], kwargs: dict[str, Any], first: tuple) -> list[tuple]:
    given = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    given.update(zip([a.name for a in target._schema.arguments], args, strict=False))
    given.update(kwargs)
    x, dim = given["self"], given.get("dim")
    n = first[0] if dim is None else first[dim]
    metas = [(*dense_meta(first), x.dtype)]
    whole = x.shape if dim is None else (x.shape[dim],)
    metas.append((*dense_meta(whole if given["return_inverse"] else (0,)), torch.int64))
    if len(target._schema.returns) == 3:
        metas.append((*dense_meta((n,) if given["return_counts"] else (0,)), torch.int64))
    return metas


@functools.lru_cache(maxsize=4096)
def parsed(metas: str) -> list[tuple]:
    return eval(metas, NAMES)


def _sized(tensors: list[torch.Tensor], source: str, metas: str) -> list[torch.Tensor]:
    results: list[torch.Tensor] = []
    for out, (sizes, strides, dtype) in zip(tensors_of(function_of(source)(tensors)), parsed(metas), strict=True):
        if sizes == (0,) and results:  # nobody asked for it
            results.append(torch.empty(0, dtype=dtype))
            continue
        if out is None or tuple(out.shape) != sizes or out.dtype != dtype:
            raise _C.OtherData(True)
        if out.stride() != strides:
            out = torch.empty_strided(sizes, strides, dtype=dtype, device=out.device).copy_(out)
        results.append(out)
    return results


def _sized_meta(tensors: list[torch.Tensor], source: str, metas: str) -> list[torch.Tensor]:
    device = tensors[0].device
    return [torch.empty_strided(sizes, strides, dtype=dtype, device=device) for sizes, strides, dtype in parsed(metas)]


# -- The time ---------------------------------------------------------------------------------------------------------


def clock(name: str) -> torch.Tensor:
    """The time as a tensor without dimensions, by the function `name` of the module time or by now_ns: the recorded
    operator."""
    return torch.ops.magpy.clock(name)


def _clock(name: str) -> torch.Tensor:
    return torch.tensor(now_ns() if name == "now_ns" else getattr(time, name)(), dtype=_clock_type(name))


def _clock_meta(name: str) -> torch.Tensor:
    return torch.empty((), dtype=_clock_type(name))


def _clock_type(name: str) -> torch.dtype:
    return torch.int64 if name.endswith("_ns") else torch.float64


# -- Registration -----------------------------------------------------------------------------------------------------

define("number(Tensor[] leaves, str source, bool is_float) -> Tensor", _number, _number_meta)
define("check(Tensor[] leaves, str source, str seen, bool value) -> ()", _check, _check_meta)
define("sized(Tensor[] tensors, str source, str metas) -> Tensor[]", _sized, _sized_meta)
define("clock(str name) -> Tensor", _clock, _clock_meta, (torch.Tag.nondeterministic_seeded,))  # stays in its place
