"""Operators that raise while a call is watched: does the exception follow from what the guards ask for?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from magpy.effects import Unwarned

_PLAIN = (type(None), bool, int, float, complex, str, type(...), torch.dtype, torch.device, torch.layout,
          torch.memory_format)  # fmt: skip


class _Unknown(Exception):
    """An argument that cannot be had without its data."""


def without_data(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], error: BaseException) -> bool:
    """Does the operator raise such an exception of tensors that have no data, and this very one of zeros? Then so it
    does wherever they look like this: torch words it another way where there is no data."""
    if not all(type(part) is str for part in error.args):
        return False
    with torch._C.DisableTorchFunction(), Unwarned():
        for device in ("meta", "cpu"):
            try:
                bare, named = _bare(args, device), _bare(kwargs, device)
            except Exception:
                return False
            try:
                func(*bare, **named)
            except Exception as other:
                if type(other) is not type(error) or (device == "cpu" and other.args != error.args):
                    return False
            else:
                return False
    return True


def _bare(value: Any, device: str) -> Any:
    kind = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter):
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if not plain or value.is_conj() or value.is_neg():
            raise _Unknown
        reach = sum((n - 1) * step for n, step in zip(value.size(), value.stride(), strict=True))
        span = 1 + reach if value.numel() else 0
        bare = torch.zeros(span, dtype=value.dtype, device=device).as_strided(value.size(), value.stride())
        return bare.requires_grad_(value.requires_grad)
    if kind in (tuple, list):
        return kind(_bare(item, device) for item in value)
    if kind is torch.Size:
        return value
    if kind is dict:
        return {key: _bare(item, device) for key, item in value.items()}
    if kind is slice:
        return slice(_bare(value.start, device), _bare(value.stop, device), _bare(value.step, device))
    if kind in _PLAIN:
        return value
    raise _Unknown
