"""Computations of numpy with data, as steps of a plan: each run makes the recorded call again.

The operator's source is the call itself, pickled: it has nothing of the program's in it but constants. Arrays are
shown to numpy over the memory of the graph's tensors; what the call changes, it changes in a copy, which the graph
copies back.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import pickle
import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from magpy import _C, replay, steps
from magpy.effects import Unwarned

_TYPES = "float64 float32 float16 int64 int32 int16 int8 uint8 bool complex64 complex128 uint16 uint32 uint64".split()
#: numpy's type -> torch's
DTYPES = {np.dtype(name): getattr(torch, name) for name in _TYPES}

steps._library.define("array(Tensor[] leaves, str source) -> Tensor[]")


class Leaf(NamedTuple):
    """Stands for one of the operator's tensors in the arguments of a call: shown as an array, with these dimensions
    turned around, or as the tensor that it is."""

    number: int
    turned: tuple[int, ...]
    tensor: bool


class Call(NamedTuple):
    func: Any
    args: tuple
    kwargs: dict[str, Any]
    changes: bool  # its first argument, or what is given as out
    strides: tuple[tuple[int, ...], ...]  # of the leaves
    metas: tuple[tuple, ...]  # (position among the results, sizes, strides, torch's type, is it a tensor)
    module: str  # of the program's that makes the call, and the line
    line: int


# -- Recording --------------------------------------------------------------------------------------------------------


def described(func: Any, args: tuple, kwargs: dict, changes: bool, strides: list, metas: tuple) -> str:
    """The operator's source. Raises where the function cannot be named."""
    caller = sys._getframe(1)
    module = str(caller.f_globals.get("__name__"))
    call = Call(func, args, kwargs, changes, tuple(strides), metas, module, caller.f_lineno)
    text = pickle.dumps(tuple(call), 4)
    if pickle.loads(text)[0] != func:
        raise ValueError(f"{func} cannot be named")
    return base64.b85encode(text).decode()


def number_meta(number: Any) -> tuple:
    """What add_result in C is to know of a number: sizes, strides, torch's type. KeyError: there is none."""
    return (), (), DTYPES[np.asarray(number).dtype]


def view(value: torch.Tensor, sizes: tuple, strides: tuple, offset: int) -> torch.Tensor:
    """The elements of `value` at these places, counted from its first one: the recorded operator, a view."""
    if tuple(value.shape) == sizes and value.stride() == strides and not offset:
        return value
    made = _sliced(value, sizes, strides, offset)
    if made is None:
        return value.as_strided(sizes, strides, value.storage_offset() + offset)
    return made


def _sliced(value: torch.Tensor, sizes: tuple, strides: tuple, offset: int) -> torch.Tensor | None:
    """Such a view by slices, where it is one: in-place changes do not pass through as_strided in every chain."""
    dims = [d for d in range(value.dim()) if value.shape[d] > 1]
    wanted = sorted((d for d in range(len(sizes)) if sizes[d] > 1), key=strides.__getitem__, reverse=True)
    if any(value.stride(d) <= 0 for d in dims) or any(strides[d] <= 0 for d in wanted) or 0 in sizes:
        return None
    index: list[Any] = [0] * value.dim()
    places: dict[int, int] = {}  # dimension of the value -> of the view
    rest = offset
    for d in sorted(dims, key=value.stride().__getitem__, reverse=True):
        index[d], rest = divmod(rest, value.stride(d))
        if wanted and strides[wanted[0]] % value.stride(d) == 0:
            places[d] = wanted.pop(0)
            step = strides[places[d]] // value.stride(d)
            index[d] = slice(index[d], index[d] + (sizes[places[d]] - 1) * step + 1, step)
    stops = [(i.stop - 1 if isinstance(i, slice) else i, n) for i, n in zip(index, value.shape, strict=True)]
    if rest or wanted or any(last >= n for last, n in stops):
        return None
    part = value[tuple(index)]
    left = [places[d] for d in sorted(places)]  # of the view, in the order in which they are now
    part = part.permute([left.index(d) for d in sorted(left)])
    for d in range(len(sizes)):
        if sizes[d] == 1:
            part = part.unsqueeze(d)
    same = tuple(part.shape) == sizes and _same_strides(part, strides)
    return part if same and part.storage_offset() == value.storage_offset() + offset else None


def _same_strides(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), strides, strict=True))


def step(source: str, *leaves: torch.Tensor) -> list[torch.Tensor]:
    """The recorded operator."""
    return torch.ops.magpy.array([leaf.detach() for leaf in leaves], source)


def converted(data: Any, dtype: torch.dtype) -> torch.Tensor:
    """What a legacy constructor makes of an array, or of a list of them."""
    return replay.stacked(data, dtype, torch.device("cpu")).clone()


# -- Running ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _call_of(source: str) -> Call:
    """Only what `described` has written."""
    call = Call(*pickle.loads(base64.b85decode(source)))
    for array in _constants_in((call.args, call.kwargs)):
        array.flags.writeable = False  # nor are results given out that show its memory
    return call


def _constants_in(template: Any) -> list[np.ndarray]:
    if isinstance(template, np.ndarray):
        return [template]
    if type(template) in (tuple, list):
        return [array for t in template for array in _constants_in(t)]
    if type(template) is dict:
        return [array for t in template.values() for array in _constants_in(t)]
    return []


def _shown(leaf: torch.Tensor, strides: tuple[int, ...], how: Leaf, copy: bool) -> Any:
    """A leaf as the call finds it."""
    if leaf.numel() > 1 and not _same_strides(leaf, strides):
        leaf = _laid(leaf, strides)
    if how.tensor:
        return leaf
    array = leaf.numpy()
    if copy:
        array = np.array(array, order="K", copy=True)
    return np.flip(array, how.turned) if how.turned else array


def _laid(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The elements in memory of their own with these strides; those that share memory are one."""
    one = tensor[tuple([slice(0, 1) if stride == 0 else slice(None) for stride in strides])]
    return torch.empty_strided(one.shape, strides, dtype=one.dtype).copy_(one).expand(tensor.shape)


def _filled(template: Any, leaves: list[Any]) -> Any:
    kind = type(template)
    if kind is Leaf:
        return leaves[template.number]
    if kind in (tuple, list):
        return kind([_filled(t, leaves) for t in template])
    if kind is dict:
        return {k: _filled(t, leaves) for k, t in template.items()}
    if kind is slice:
        return slice(*[_filled(t, leaves) for t in (template.start, template.stop, template.step)])
    return template


def _leaves_in(template: Any) -> list[Leaf]:
    if type(template) is Leaf:
        return [template]
    if type(template) in (tuple, list):
        return [leaf for t in template for leaf in _leaves_in(t)]
    if type(template) is dict:
        return [leaf for t in template.values() for leaf in _leaves_in(t)]
    if type(template) is slice:
        return _leaves_in((template.start, template.stop, template.step))
    return []


def _flat(result: Any) -> list[Any]:
    if isinstance(result, (tuple, list)):
        return [item for r in result for item in _flat(r)]
    return [result]


def _target(call: Call) -> Any:
    """The argument that is changed."""
    out = call.kwargs.get("out")
    if out is not None:
        return out[0] if type(out) is tuple else out
    nin = call.func.nin if isinstance(call.func, np.ufunc) else 0
    return call.args[nin]


#: Functions that warn where a slice holds too few numbers that are not NaN -> where their argument `axis` stands.
_WARNING: dict[Any, int] = {
    np.nanmax: 1,
    np.nanmin: 1,
    np.nanmean: 1,
    np.nanstd: 1,
    np.nanvar: 1,
    np.nanmedian: 1,
    np.nanpercentile: 2,
    np.nanquantile: 2,
}


def _would_warn(func: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    array = args[0] if args else kwargs["a"]
    place = _WARNING[func]
    axis = kwargs.get("axis", args[place] if len(args) > place else None)
    least = kwargs.get("ddof", args[4] if len(args) > 4 and func in (np.nanstd, np.nanvar) else 0)
    counts = (~np.isnan(array)).sum(axis=tuple(axis) if isinstance(axis, list) else axis)
    return bool(np.any(counts <= least))


def _array(leaves: list[torch.Tensor], source: str) -> list[torch.Tensor]:
    call = _call_of(source)
    target = _target(call).number if call.changes else None
    arrays: list[Any] = [None] * len(leaves)
    for how in _leaves_in((call.args, call.kwargs)):
        i = how.number
        arrays[i] = _shown(leaves[i], call.strides[i], how, i == target)
    # What numpy warns of, the program is to be warned of: the run is thrown away, and the call made in plain Python.
    warned = {kind: "raise" for kind, what in np.geterr().items() if what != "ignore"}
    args, kwargs = _filled(call.args, arrays), _filled(call.kwargs, arrays)
    if call.func in _WARNING and _would_warn(call.func, args, kwargs):
        raise _C.OtherData(False)
    with np.errstate(**warned), Unwarned(__name__, call.module, call.line):  # type: ignore[arg-type]
        results = _flat(call.func(*args, **kwargs))
    outs = []
    for position, sizes, strides, dtype, is_tensor in call.metas:
        if position >= len(results):
            raise _C.OtherData(True)
        result = arrays[target] if position < 0 and target is not None else results[position]
        outs.append(_made(result, sizes, strides, dtype, is_tensor, leaves))
    return outs


def _made(
    result: Any, sizes: tuple, strides: tuple, dtype: torch.dtype, is_tensor: bool, leaves: list[torch.Tensor]
) -> torch.Tensor:
    """A result as a tensor with memory of its own, which lies as the recorded one."""
    if is_tensor:
        tensor = result
    else:
        array = np.asarray(result)
        if DTYPES.get(array.dtype) is not dtype:
            raise _C.OtherData(True)
        alone = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        tensor = torch.from_numpy(array if alone else array.copy())
    if tuple(tensor.shape) != sizes or tensor.dtype is not dtype:
        raise _C.OtherData(True)
    shared = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    if (tensor.stride() != strides and tensor.numel() > 1) or tensor.untyped_storage().data_ptr() in shared:
        tensor = _laid(tensor, strides)
    return tensor


def _array_meta(leaves: list[torch.Tensor], source: str) -> list[torch.Tensor]:
    return [torch.empty_strided(sizes, strides, dtype=dtype) for _, sizes, strides, dtype, _ in _call_of(source).metas]


steps._library.impl("array", _array, "CompositeExplicitAutograd")
torch.library.register_fake("magpy::array", _array_meta, lib=steps._library)
torch.fx.node.has_side_effect(torch.ops.magpy.array.default)


# -- Random elements --------------------------------------------------------------------------------------------------


def kept(value: Any) -> Any:
    """A copy of a constant argument of a draw: lists, tuples and arrays of numbers and text. None: it is no such."""
    if isinstance(value, np.ndarray):
        return value.copy("K") if value.dtype != object else None
    if type(value) in (list, tuple):
        items = [kept(item) for item in value]
        return None if any(item is None for item in items) else type(value)(items)
    return value if isinstance(value, (bool, int, float, complex, str, bytes, np.generic)) else None


def drawn(array: Any, meta: tuple) -> torch.Tensor | None:
    """What a run has drawn, as an input of the graph. None: it is not laid out as the recorded array."""
    sizes, strides, dtype = meta
    if type(array) is not np.ndarray or DTYPES.get(array.dtype) is not dtype:
        return None
    tensor = torch.from_numpy(array)
    return tensor if tuple(tensor.shape) == sizes and _same_strides(tensor, strides) else None


def shuffled(shuffle: Any, generator: Any, array: np.ndarray) -> np.ndarray:
    """The draw that generator.shuffle(array) is: the array shuffled."""
    array = array.copy("K")
    shuffle(generator, array)
    return array


# -- Inputs and results -----------------------------------------------------------------------------------------------


def array_input(array: np.ndarray) -> torch.Tensor:
    """An array from outside as an input of a graph: over its memory, where that may be written to."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    reach = array.itemsize + sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    if array.size == 0:
        return torch.from_numpy(array.copy())
    memory = bytearray(ctypes.string_at(array.ctypes.data, reach))  # it lies there as in the array
    strides = [stride // array.itemsize for stride in array.strides]
    return torch.frombuffer(memory, dtype=DTYPES[array.dtype]).as_strided(array.shape, strides)


def array_result(tensor: torch.Tensor, owns: bool, writeable: bool) -> np.ndarray:
    """An array of the program's over a result of a graph. owns: with memory of its own."""
    array = tensor.detach().numpy()
    if owns:
        array = np.array(array, order="K", copy=True)
    if not writeable:
        array.flags.writeable = False
    return array
