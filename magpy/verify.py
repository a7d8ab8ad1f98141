"""Option ``verify``: is what a compiled run computed what the eager call computed?"""

from __future__ import annotations

import math
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


def compare(compiled: Any, eager: Any, mutated: list[tuple[torch.Tensor, torch.Tensor]] | None, error: Any) -> None:
    """Raise VerificationError if the results, or the inputs written in place, differ.

    `compiled` and `eager` are whole results; `mutated` pairs each input that eager has now written with its compiled
    new data; `error` is the exception of the compiled run, which eager did not raise.
    """
    if error is not None:
        raise _C.VerificationError(f"the compiled run raised {error!r}, the eager call did not") from error
    _compare("result", compiled, eager, {})
    for number, (tensor, data) in enumerate(mutated or ()):
        if data is not None:
            _tensor(f"mutated input {number}", data, tensor.detach(), strides=False)


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
    if type(a) is not type(b):
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
    elif isinstance(a, float):
        if a != b and not (math.isnan(a) and math.isnan(b)):
            _differ(where, f"compiled value is {a}, eager's {b}")
    elif isinstance(a, (int, str, bytes, complex, torch.dtype, torch.device)) or a is None:
        if a != b:
            _differ(where, f"compiled value is {a!r}, eager's {b!r}")
    elif hasattr(a, "__dict__") and not callable(a):
        _compare(f"{where}.__dict__", vars(a), vars(b), seen)
