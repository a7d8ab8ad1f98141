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
_library.define("number(Tensor[] leaves, str source, bool is_float) -> Tensor")
_library.define("clock(str name) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))  # stays in its place
_library.define("check(Tensor[] leaves, str source, str seen, bool value) -> ()")
_library.define("sized(Tensor[] tensors, str source, str metas) -> Tensor[]")

# As they were when magpy was imported: what a program puts in their place later is no part of an expression.
_NAMES = {
    "__builtins__": {},
    "math": types.SimpleNamespace(**{name: getattr(math, name) for name in dir(math)}),
    "aten": torch.ops.aten,
    "torch": torch,
    **{name: getattr(builtins, name) for name in "abs round pow min max sum float int bool".split()},
}


@functools.lru_cache(maxsize=4096)
def _function(source: str) -> Callable[..., Any]:
    """The function of an expression that the recorder has written."""
    return eval(source, _NAMES)


# -- Numbers ----------------------------------------------------------------------------------------------------------


def evaluate(source: str, *leaves: torch.Tensor) -> Any:
    """What Python computes: `source` is a lambda over the numbers that are the only elements of `leaves`."""
    return _function(source)(*[leaf.item() for leaf in leaves])


def compute(source: str, is_float: bool, *leaves: torch.Tensor) -> torch.Tensor:
    """Likewise as a tensor without dimensions, of double or int64: the recorded operator."""
    return torch.ops.magpy.number(list(leaves), source, is_float)


def _number(leaves: list[torch.Tensor], source: str, is_float: bool) -> torch.Tensor:
    number = evaluate(source, *leaves)
    if type(number) is not (float if is_float else int):
        raise _C.OtherData(False)
    return torch.tensor(number, dtype=torch.float64 if is_float else torch.int64)


def _number_meta(leaves: list[torch.Tensor], source: str, is_float: bool) -> torch.Tensor:
    return torch.empty((), dtype=torch.float64 if is_float else torch.int64)


def number_input(number: float) -> torch.Tensor:
    """An int or float from outside as an input of a graph."""
    try:
        return torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.int64)
    except (OverflowError, RuntimeError):  # an int of more than 64 bits
        raise _C.OtherData(True) from None


# -- Checks -----------------------------------------------------------------------------------------------------------


def _text(answer: float) -> str:
    """A bool, int or float as text that is the same for the same type and bits."""
    if isinstance(answer, float):
        return struct.pack("<d", answer).hex()
    return repr(answer)


def check(seen: float, value: bool, args: Sequence[Any]) -> None:
    """The recorded check that evaluate(*args) is `seen`. value: it is one of very many that there may be."""
    source, *leaves = args
    torch.ops.magpy.check(leaves, source, _text(seen), value)


def _check(leaves: list[torch.Tensor], source: str, seen: str, value: bool) -> None:
    if _text(evaluate(source, *leaves)) != seen:
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
    torch.ops.magpy.check([tensor.max().detach()], "lambda v: v + 1", _text(sizes[-1]), False)
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

    def text(arg: Any) -> str:
        if isinstance(arg, torch.Tensor):
            tensors.append(arg)
            return f"t[{len(tensors) - 1}]"
        if isinstance(arg, (list, tuple)):
            return f"[{', '.join(map(text, arg))}]"
        if arg is None or isinstance(arg, (bool, int, float)):
            return repr(arg)
        raise Unsupported(f"an argument of {function}")

    parts = [*map(text, args), *[f"{name}={text(arg)}" for name, arg in kwargs.items()]]
    return torch.ops.magpy.sized(tensors, f"lambda t: {function}({', '.join(parts)})", repr([*metas]))


def _dense(sizes: Sequence[int]) -> Meta:
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
    if name in ("masked_select", "index"):
        return [(*_replayed.metas[0], x.dtype)]
    if name == "bincount":
        weights = args[1] if len(args) > 1 else kwargs.get("weights")
        return [(*_dense(first), long if weights is None else torch.result_type(weights, 1.0))]
    if name == "repeat_interleave":
        given = _replayed.args[2:3] or [_replayed.kwargs.get("dim")]
        return [(*_dense(first[given[0] or 0 : (given[0] or 0) + 1 or None]), long)]
    if name in ("_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique"):
        return _metas_of_unique(target, name, [*args], kwargs, first)
    raise Unsupported(f"{target}: a size that depends on data")


def _metas_of_unique(target: Any, name: str, args: list[Any], kwargs: dict[str, Any], first: tuple) -> list[tuple]:
    given = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    given.update(zip([a.name for a in target._schema.arguments], args, strict=False))
    given.update(kwargs)
    x, dim = given["self"], given.get("dim")
    n = first[0] if dim is None else first[dim]
    metas = [(*_dense(first), x.dtype)]
    whole = x.shape if dim is None else (x.shape[dim],)
    metas.append((*_dense(whole if given["return_inverse"] else (0,)), torch.int64))
    if len(target._schema.returns) == 3:
        metas.append((*_dense((n,) if given["return_counts"] else (0,)), torch.int64))
    return metas


@functools.lru_cache(maxsize=4096)
def _parsed(metas: str) -> list[tuple]:
    return eval(metas, _NAMES)


def _sized(tensors: list[torch.Tensor], source: str, metas: str) -> list[torch.Tensor]:
    results: list[torch.Tensor] = []
    for out, (sizes, strides, dtype) in zip(tensors_of(_function(source)(tensors)), _parsed(metas), strict=True):
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
    return [torch.empty_strided(sizes, strides, dtype=dtype, device=device) for sizes, strides, dtype in _parsed(metas)]


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

for _name, _run, _meta in (
    ("number", _number, _number_meta), ("check", _check, _check_meta), ("sized", _sized, _sized_meta),
    ("clock", _clock, _clock_meta),
):  # fmt: skip
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"magpy::{_name}", _meta, lib=_library)
for _op in (torch.ops.magpy.check, torch.ops.magpy.number, torch.ops.magpy.sized):
    torch.fx.node.has_side_effect(_op.default)
