"""Copies of what a call left behind (result, arguments, module state, random state), which outlive the call, and
their comparison: types, structure, sharing, values."""

from __future__ import annotations

import math
import random
import types
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import Mock

import numpy
import torch

RTOL = ATOL = 1e-3
ROUNDINGS = 8  # as many times the difference that rounding makes in eager, or the share of elements that differ
FLIPPED = 1e-3  # of the elements may be quite other ones where so they are by rounding: a softmax over large numbers
DEPTH = 60


class Different(Exception):
    """Where and how two snapshots differ."""


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    numpy.random.seed(value % 2**32)


def random_state() -> tuple[Any, ...]:
    kind, keys, *rest = numpy.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (kind, keys.tobytes(), *rest)


def snapshot(value: Any) -> tuple[Any, ...]:
    """A copy of `value` as nested tuples whose first item is a kind. Generators are consumed."""
    return Snapshot().of(value, 0)


class Snapshot:
    """Numbers what has an identity in order of appearance: the same object twice is a reference to its number."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.alive: list[Any] = []  # an identity means something only while its object lives

    def of(self, value: Any, depth: int) -> tuple[Any, ...]:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(value, Mock) or depth > DEPTH:
            return ("opaque", "")
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType):
            return ("opaque", getattr(value, "__qualname__", ""))
        if isinstance(value, types.ModuleType):
            return ("opaque", value.__name__)
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | numpy.generic):
            return ("scalar", name, value)
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            return ("scalar", name, value)
        if isinstance(value, tuple):
            return ("sequence", name, tuple(self.of(item, depth + 1) for item in value))
        if id(value) in self.numbers:
            return ("same", self.numbers[id(value)])
        self.numbers[id(value)] = len(self.numbers)
        self.alive.append(value)
        if isinstance(value, torch.Tensor):
            return ("tensor", name, *tensor_facts(value))
        if isinstance(value, numpy.ndarray):
            return ("array", name, value.dtype, value.shape, value.copy())
        if isinstance(value, list | deque):
            return ("sequence", name, tuple(self.of(item, depth + 1) for item in value))
        if isinstance(value, types.GeneratorType | map | filter | zip | enumerate):
            return ("sequence", name, tuple(self.of(item, depth + 1) for item in value))
        if isinstance(value, set | frozenset):
            scalars = sorted(repr(item) for item in value if isinstance(item, int | float | str))
            return ("scalar", name, (len(value), *scalars))
        if isinstance(value, Mapping):
            try:
                items = list(value.items())
            except Exception:  # a user's mapping may fail or need arguments
                return ("opaque", name)
            return ("mapping", name, tuple((repr_of(key), self.of(item, depth + 1)) for key, item in items))
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict) or kind.__module__ in ("logging", "threading"):
            return ("opaque", name)
        # A hook's key is a number that the process counts up.
        parts = (
            (key, hooks(v) if str(key).endswith("_hooks") else v)
            for key, v in attributes.items()
            if key != "_is_torch_compile"  # set by torch.compile on what it compiles
        )
        return ("object", name, tuple((str(key), self.of(item, depth + 1)) for key, item in parts))


def hooks(value: Any) -> Any:
    return list(value.values()) if isinstance(value, dict) else value


def repr_of(key: Any) -> str:
    """A mapping's key as text that does not hold an address."""
    return repr(key) if isinstance(key, int | float | str | bytes | tuple | None) else type(key).__qualname__


def tensor_facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    """((name, fact), ...) and a copy of the values, dense."""
    data = tensor.detach()
    facts = [("shape", tuple(data.shape)), ("dtype", data.dtype), ("layout", data.layout), ("device", data.device)]
    facts += [("requires_grad", tensor.requires_grad)]
    if data.layout != torch.strided:
        return tuple(facts), data.to_dense().clone()
    facts.append(("stride", data.stride()))
    return tuple(facts), data.dequantize() if data.is_quantized else data.clone()


def compare(
    actual: tuple[Any, ...], expected: tuple[Any, ...], where: str, rounded: Sequence[tuple[Any, ...]] = ()
) -> None:
    """Raise Different unless the snapshots are equal within tolerances. rounded: what is expected with other rounding
    errors; how far apart they are is what rounding does to these values."""
    rounded = [one for one in rounded if same_shape(one, expected)]  # else the program has gone another way
    if actual[0] != expected[0]:
        raise Different(f"{where}: {actual[:2]} is not {expected[:2]}")
    if actual[0] in ("opaque", "same"):
        if actual[1] != expected[1]:
            raise Different(f"{where}: {actual} is not {expected}")
        return
    if actual[1] != expected[1]:
        raise Different(f"{where}: {actual[1]} is not {expected[1]}")
    if actual[0] == "tensor":
        for (fact, a), (_, e) in zip(actual[2], expected[2], strict=False):
            if a != e:
                raise Different(f"{where}: {fact} {a} is not {e}")
        compare_values(actual[3], expected[3], where, [one[3] for one in rounded])
    elif actual[0] == "array":
        if actual[2:4] != expected[2:4]:
            raise Different(f"{where}: array {actual[2:4]} is not {expected[2:4]}")
        if actual[2].kind in "biufc":
            compare_values(torch.from_numpy(actual[4]), torch.from_numpy(expected[4]), where)
    elif actual[0] == "scalar":
        if not same_scalar(actual[2], expected[2]):
            raise Different(f"{where}: {actual[2]!r:.80} is not {expected[2]!r:.80}")
    else:
        if len(actual[2]) != len(expected[2]):
            raise Different(f"{where}: length {len(actual[2])} is not {len(expected[2])}")
        for i, (a, e) in enumerate(zip(actual[2], expected[2], strict=True)):
            r = [one[2][i] for one in rounded]
            if actual[0] == "sequence":
                compare(a, e, f"{where}[{i}]", r)
                continue
            if a[0] != e[0]:
                raise Different(f"{where}: key {a[0]} is not {e[0]}")
            compare(a[1], e[1], f"{where}.{a[0]}", [one[1] for one in r])


def same_shape(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    if one[:2] != other[:2]:
        return False
    if one[0] == "tensor":
        return one[3].shape == other[3].shape
    return one[0] in ("opaque", "same", "array", "scalar") or len(one[2]) == len(other[2])


def same_scalar(actual: Any, expected: Any) -> bool:
    if isinstance(expected, float | numpy.floating):
        if math.isnan(expected):
            return math.isnan(actual)
        return math.isclose(actual, expected, rel_tol=RTOL, abs_tol=ATOL)
    try:
        return bool(actual == expected)
    except Exception:  # numpy's and users' scalars
        return False


def share_off(a: torch.Tensor, e: torch.Tensor) -> float:
    """The share of elements that are not within tolerances."""
    return 1 - float(torch.isclose(a, e, rtol=RTOL, atol=ATOL, equal_nan=True).double().mean())


def compare_values(
    actual: torch.Tensor, expected: torch.Tensor, where: str, rounded: Sequence[torch.Tensor] = ()
) -> None:
    if expected.dtype.is_floating_point or expected.dtype.is_complex:
        wide = torch.complex128 if expected.dtype.is_complex else torch.float64
        a, e = actual.to(wide), expected.to(wide)
        others = [one.to(wide) for one in rounded] if e.numel() else []
        noise = max((float((one - e).abs().nan_to_num(0, 0).max()) for one in others), default=0.0)
        near = torch.allclose(a, e, rtol=RTOL, atol=ATOL + ROUNDINGS * noise, equal_nan=True)
        usual = max((share_off(one, e) for one in others), default=0.0)
        if not near and not share_off(a, e) <= min(FLIPPED, ROUNDINGS * usual):
            off = torch.nan_to_num((a - e).abs(), nan=math.inf).max()
            raise Different(f"{where}: values differ by up to {float(off):.3g}")
    elif not torch.equal(actual, expected):
        raise Different(f"{where}: values differ")
