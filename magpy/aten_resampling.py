"""Resampling as gathers: places and weights are arithmetic on the output's indices, as torch computes them
(aten/src/ATen/native/UpSample.h), one dim after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from magpy.aten_builder import Builder, Keep
from magpy.aten_graph import Node, Val

aten = torch.ops.aten


def _scale(n: int, out: int, given: float | None, dtype: torch.dtype) -> float:
    """Input elements per output element, rounded as torch has it."""
    if given is not None and given > 0:
        return torch.tensor(1.0 / given, dtype=dtype).item()
    return (torch.tensor(n, dtype=dtype) / torch.tensor(out, dtype=dtype)).item()


def _take(build: Builder, x: Val, dim: int, places: Val) -> Val:
    """x at `places` of `dim`, in x's memory format."""
    dims: list[Val | None] = [None] * dim
    taken = build(aten._unsafe_index.Tensor, x, [*dims, places])
    last = _channels_last(x)
    return build(aten.clone.default, taken, memory_format=torch.channels_last) if last else taken


def _channels_last(x: Val) -> bool:
    if len(x.meta[2]) != 4:
        return False
    n, c, h, w = x.meta[2]
    return x.meta[3] == (h * w * c, 1, w * c, c) and (c > 1 and h * w > 1)


def _sides(node: Node, x: Val, size: list[int], scales: list[float | None]) -> list[tuple[int, int, int, float | None]]:
    """(dim, input size, output size, scale) of each resampled dim."""
    first = len(x.meta[2]) - len(size)
    if first != 2:
        raise Keep
    sides = zip(range(first, len(x.meta[2])), x.meta[2][first:], size, scales, strict=True)
    return [side for side in sides]


# -- Nearest ----------------------------------------------------------------------------------------------------------


def _nearest(build: Builder, node: Node) -> Val:
    x, size, *scales = node.args
    sides = _sides(node, x, size, scales)
    if len(sides) == 2:
        powers = [o // n for _, n, o, _ in sides]
        if all(
            n * power == out and not power & (power - 1) and given in (None, float(power))
            for (_, n, out, given), power in zip(sides, powers, strict=True)
        ):
            return _repeated(build, x, powers)
    for dim, n, out, given in sides:
        scale = _scale(n, out, given, torch.float32)
        place = build(aten.mul.Tensor, build.iota(out, torch.float32), scale)
        place = build(aten.clamp.default, build(aten.floor.default, place), None, n - 1)
        x = _take(build, x, dim, build(aten._to_copy.default, place, dtype=torch.int64))
    return x


def _repeated(build: Builder, x: Val, factors: list[int]) -> Val:
    """By powers of two, which torch's arithmetic in floats computes without rounding."""
    n, c, h, w = x.meta[2]
    wide = build(aten.unsqueeze.default, build(aten.unsqueeze.default, x, 3), 5)
    wide = build(aten.expand.default, wide, [n, c, h, factors[0], w, factors[1]])
    wide = build(aten.clone.default, wide, memory_format=torch.contiguous_format)
    return build(aten.view.default, wide, [n, c, h * factors[0], w * factors[1]])


# -- Linear -----------------------------------------------------------------------------------------------------------


def _linear(build: Builder, node: Node) -> Val:
    x, size, align, *scales = node.args
    dtype = x.meta[0]
    if not dtype.is_floating_point:
        raise Keep
    wide = dtype if dtype is torch.float64 else torch.float32
    for dim, n, out, given in _sides(node, x, size, scales):
        if n == out:  # places are whole numbers: torch copies
            continue
        at = build.iota(out, wide)
        if align:
            scale = 0.0 if out == 1 else _scale(n - 1, out - 1, None, wide)
            at = build(aten.mul.Tensor, at, scale)
        else:
            at = build(aten.mul.Tensor, build(aten.add.Tensor, at, 0.5), _scale(n, out, given, wide))
            at = build(aten.clamp.default, build(aten.sub.Tensor, at, 0.5), 0.0)
        low = build(aten.clamp.default, build(aten.floor.default, at), None, n - 1)
        high = build(aten.clamp.default, build(aten.add.Tensor, low, 1.0), None, n - 1)
        weight = build(aten.clamp.default, build(aten.sub.Tensor, at, low), 0.0, 1.0)
        shape = [out] + [1] * (len(x.meta[2]) - 1 - dim)
        weight = build(aten.view.default, weight, shape)
        parts = []
        for place, factor in ((low, build(aten.rsub.Scalar, weight, 1.0)), (high, weight)):
            part = _take(build, x, dim, build(aten._to_copy.default, place, dtype=torch.int64))
            if part.meta[0] is not wide:
                part = build(aten._to_copy.default, part, dtype=wide)
            parts.append(build(aten.mul.Tensor, part, factor))
        x = build(aten.add.Tensor, parts[0], parts[1])
    if x.meta[0] is not dtype or not build.nodes:
        x = build(aten._to_copy.default, x, dtype=dtype)
    return x


RULES: dict[Any, Callable[[Builder, Node], Val]] = {
    aten.upsample_nearest1d.default: _nearest,
    aten.upsample_nearest2d.default: _nearest,
    aten.upsample_nearest3d.default: _nearest,
    aten.upsample_linear1d.default: _linear,
    aten.upsample_bilinear2d.default: _linear,
    aten.upsample_trilinear3d.default: _linear,
}
