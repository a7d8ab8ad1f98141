"""Option ``verify``: is what a compiled run computed what the eager call computed?"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch

from magpy import _C

#: Relative and absolute tolerance by dtype: what another order of summation and other vector functions may cost in a
#: whole model.
TOLERANCES = {
    torch.float64: (1e-6, 1e-8),
    torch.float32: (1e-3, 1e-4),
    torch.complex64: (1e-3, 1e-4),
    torch.complex128: (1e-6, 1e-8),
    torch.bfloat16: (5e-2, 5e-2),
    torch.float16: (1e-2, 1e-2),
}


def compare(
    compiled: Any,
    eager: Any,
    mutated: list[tuple[torch.Tensor, torch.Tensor]] | None,
    stores: list[tuple] | None,
    error: Any,
) -> None:
    """Raise VerificationError if the results, the inputs written in place, or what is stored outside differ.

    `compiled` and `eager` are whole results; `mutated` pairs each input that eager has now written with its compiled
    new data; `stores` is what the compiled run would have stored, (kind of place, owner, key) and the value unless it
    is deleted; `error` is the exception of the compiled run, which eager did not raise.
    """
    if error is not None:
        raise _C.VerificationError(f"the compiled run raised {error!r}, the eager call did not") from error
    _compare("result", compiled, eager, {})
    for number, (tensor, data) in enumerate(mutated or ()):
        if data is not None:
            _tensor(f"mutated input {number}", data, tensor.detach(), strides=False)
    appended = Counter(id(owner) for kind, owner, *_ in stores or () if kind == "LIST_APPEND")
    for kind, owner, key, *value in stores or ():
        if kind == "LIST_APPEND":
            key = -appended[id(owner)]
            appended[id(owner)] -= 1
        where = f"{type(owner).__name__} {getattr(key, '__name__', key)!r}"
        found = _held(kind, owner, key)
        if len(found) != len(value):
            _differ(where, "compiled stores it, eager does not" if value else "eager stores it, compiled does not")
        if value:
            _compare(where, value[0], found[0], {})


MISSING = object()


def _held(kind: str, owner: Any, key: Any) -> list[Any]:
    """What a place holds now: [value], or [] where there is nothing."""
    look: dict[str, Callable[[], Any]] = {
        "KEY": lambda: dict.get(owner, key, MISSING),
        "ITEM": lambda: list.__getitem__(owner, key),
        "LIST_APPEND": lambda: list.__getitem__(owner, key),
        "CELL": lambda: owner.cell_contents,
        "SLOT": lambda: key.__get__(owner),
        "CONTENTS": lambda: list(owner) if isinstance(owner, deque) else owner,
        "CONTEXT_VAR": lambda: owner.get(MISSING),
        "ATTR": lambda: vars(owner).get(key, MISSING) if isinstance(owner, type) else getattr(owner, key),
    }
    try:
        value = look.get(kind, lambda: getattr(owner, key))()
    except (AttributeError, IndexError, ValueError):
        return []
    return [] if value is MISSING else [value]


def _differ(where: str, what: str) -> None:
    raise _C.VerificationError(f"{where}: {what}")


def _tensor(where: str, a: torch.Tensor, b: torch.Tensor, strides: bool = True) -> None:
    for name in ("dtype", "device", "shape"):
        if getattr(a, name) != getattr(b, name):
            _differ(where, f"compiled {name} is {getattr(a, name)}, eager's {getattr(b, name)}")
    if a.layout != torch.strided or a.is_quantized:
        return
    if strides and a.stride() != b.stride() and a.numel() > 1:
        _differ(where, f"compiled strides are {a.stride()}, eager's {b.stride()}")
    rtol, atol = TOLERANCES.get(a.dtype, (0.0, 0.0))
    if not torch.allclose(a.detach(), b.detach(), rtol=rtol, atol=atol, equal_nan=True):
        worst = (
            (a.detach().to(torch.float64) - b.detach().to(torch.float64)).abs().max().item()
            if not a.is_complex()
            else "?"
        )
        _differ(where, f"compiled values differ from eager's by up to {worst}")


def _compare(where: str, a: Any, b: Any, seen: dict[int, int]) -> None:
    if a is b or seen.get(id(a)) == id(b):
        return
    seen[id(a)] = id(b)
    base = next((base for base in (dict, list, set) if isinstance(b, base) and type(a) is base), None)
    if type(a) is not type(b) and base is None:
        _differ(where, f"compiled type is {type(a).__name__}, eager's {type(b).__name__}")
    if isinstance(a, torch.Tensor):
        _tensor(where, a, b)
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            _differ(where, f"compiled length is {len(a)}, eager's {len(b)}")
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(f"{where}[{index}]", x, y, seen)
    elif isinstance(a, dict):
        if list(a) != list(b):
            _differ(where, f"compiled keys are {list(a)}, eager's {list(b)}")
        for key in a:
            _compare(f"{where}[{key!r}]", a[key], b[key], seen)
    elif isinstance(a, (set, frozenset)):
        if list(map(repr, a)) != list(map(repr, b)) and a != b:
            _differ(where, f"compiled set is {a}, eager's {b}")
    elif isinstance(a, float):
        if a != b and not (math.isnan(a) and math.isnan(b)):
            _differ(where, f"compiled value is {a}, eager's {b}")
    elif isinstance(a, (int, str, bytes, complex, torch.dtype, torch.device)) or a is None:
        if a != b:
            _differ(where, f"compiled value is {a!r}, eager's {b!r}")
    elif hasattr(a, "__dict__") and not callable(a):
        _compare(f"{where}.__dict__", vars(a), vars(b), seen)
