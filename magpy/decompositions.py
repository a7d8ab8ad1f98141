"""Which ATen operators are taken apart before kernels are made, and into what.

Taken apart: what becomes pointwise and reduction loops that fuse (norms, softmax, activations, losses, their
backwards), and what is only another spelling (stack, split, fill, new_zeros). Kept whole: operators with kernels of
their own worth calling (matrix products, convolution, attention, pooling, sort, resampling) and
everything that draws random numbers: a generator must be advanced by the very operator that eager calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from magpy.aten_graph import Unsupported

aten = torch.ops.aten

# -- Taken apart by torch's own decompositions ------------------------------------------------------------------------

# Names of operators of torch.ops.aten; a name stands for all overloads, "name.overload" for one.
TORCH_DECOMPOSITIONS = """
    addr affine_grid_generator alias_copy all aminmax binary_cross_entropy binary_cross_entropy_backward
    binary_cross_entropy_with_logits block_diag celu channel_shuffle count_nonzero linalg_cross deg2rad diag_embed
    diagonal_backward diagonal_copy elu_backward _euclidean_dist.default expand_copy eye glu glu_backward hardshrink
    hardsigmoid_backward hardswish_backward heaviside huber_loss huber_loss_backward isneginf isposinf l1_loss
    logaddexp logaddexp2 logit logit_backward log_sigmoid_backward log_sigmoid_forward _log_softmax
    _log_softmax_backward_data logsumexp.default mish_backward mse_loss mse_loss_backward mvlgamma nan_to_num nansum
    narrow native_group_norm native_group_norm_backward native_layer_norm native_layer_norm_backward
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training native_batch_norm_backward batch_norm_backward
    _batch_norm_with_update_functional _batch_norm_no_update _fused_rms_norm _fused_rms_norm_backward
    nll_loss2d_forward nll_loss2d_backward nll_loss_forward nll_loss_backward norm.ScalarOpt_dtype norm.Scalar
    norm.ScalarOpt_dim_dtype norm.ScalarOpt_dim linalg_vector_norm permute_copy pixel_shuffle pixel_unshuffle
    _prelu_kernel _prelu_kernel_backward _reshape_alias rad2deg _safe_softmax sgn sinc smooth_l1_loss
    smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward _softmax _softmax_backward_data
    softplus_backward softshrink special_entr squeeze_copy stack std.correction std_mean.correction t_copy threshold
    transpose_copy tril triu unsqueeze_copy _weight_norm_interface xlogy
""".split()


# -- Taken apart here -------------------------------------------------------------------------------------------------


def _split(x: torch.Tensor, size: int, dim: int = 0) -> list[torch.Tensor]:
    n = x.shape[dim]
    if size == 0 or n == 0:
        return NotImplemented
    return [aten.slice.Tensor(x, dim, start, min(start + size, n)) for start in range(0, n, size)]


def _split_with_sizes(x: torch.Tensor, sizes: list[int], dim: int = 0) -> list[torch.Tensor]:
    out, start = [], 0
    for size in sizes:
        out.append(aten.slice.Tensor(x, dim, start, start + size))
        start += size
    return out


def _unbind(x: torch.Tensor, dim: int = 0) -> list[torch.Tensor]:
    return [aten.select.int(x, dim, i) for i in range(x.shape[dim])]


def _copy(self: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """The functional copy_: `src` with the size, dtype, device and strides of `self`."""
    if self.dtype != src.dtype or self.device != src.device:
        src = aten._to_copy.default(src, dtype=self.dtype, device=self.device)
    if self.shape != src.shape:
        src = aten.expand.default(src, self.shape)
    if self.stride() == src.stride() and not src.storage_offset():  # as new memory lies
        return src
    if self.is_contiguous():
        return aten.clone.default(src, memory_format=torch.contiguous_format)
    return NotImplemented


def _fill(self: torch.Tensor, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return _copy(self, value)
    return aten.full_like.default(self, value)


def _full_like(
    self: torch.Tensor, value: Any, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None
):
    """A full of plain strides; others keep torch's operator, which knows how to preserve them."""
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format) or pin_memory:
        return NotImplemented
    if memory_format is not torch.contiguous_format and not self.is_contiguous():
        return NotImplemented
    return aten.full.default(
        list(self.shape), value, dtype=dtype or self.dtype, layout=layout, device=device or self.device
    )


def _like(value: int, self: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    out = _full_like(self, value, **kwargs)
    return aten.full_like.default(self, value, **kwargs) if out is NotImplemented else out


def _unsafe_view(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    return aten.view.default(x, size)


def _slice_range(n: int, start: int | None, end: int | None) -> tuple[int, int]:
    start, end, _ = slice(start, end).indices(n)
    return start, max(start, end)


def _slice_scatter(self, src, dim=0, start=None, end=None, step=1):
    """What x[a:b] = y becomes: pieces side by side, which kernels read by index arithmetic."""
    if step != 1 or not self.is_contiguous():
        return NotImplemented
    start, end = _slice_range(self.shape[dim], start, end)
    if src.dtype != self.dtype or end == start:
        return NotImplemented
    pieces = [aten.slice.Tensor(self, dim, 0, start), src, aten.slice.Tensor(self, dim, end, self.shape[dim])]
    return aten.cat.default([p for p in pieces if p.shape[dim]], dim)


def _select_scatter(self, src, dim, index):
    index %= self.shape[dim]
    return _slice_scatter(self, aten.unsqueeze.default(src, dim % self.ndim), dim % self.ndim, index, index + 1)


def _slice_backward(grad, sizes, dim, start, end, step):
    """The gradient of x[a:b]: zeros around."""
    if step != 1:
        return aten.slice_scatter.default(grad.new_zeros(sizes), grad, dim, start, end, step)
    dim %= len(sizes)
    start, end = _slice_range(sizes[dim], start, end)
    return aten.constant_pad_nd.default(grad, [0, 0] * (len(sizes) - 1 - dim) + [start, sizes[dim] - end], 0)


def _select_backward(grad, sizes, dim, index):
    dim, index = dim % len(sizes), index % sizes[dim]
    return _slice_backward(aten.unsqueeze.default(grad, dim), sizes, dim, index, index + 1, 1)


def _as_strided_scatter(self, src, size, stride, storage_offset=None):
    """Numbers of places in memory mean what they say only in memory that is the tensor's alone, as new memory is; a
    plan puts values side by side in one."""
    offset = self.storage_offset() if storage_offset is None else storage_offset
    whole = self.untyped_storage().nbytes() == self.numel() * self.element_size()
    if not (whole and self.is_contiguous()):
        raise Unsupported("as_strided_scatter into a part of another tensor's memory")
    if src.dtype != self.dtype:
        src = aten._to_copy.default(src, dtype=self.dtype)
    order = sorted((dim for dim in range(len(size)) if size[dim] != 1), key=lambda dim: -stride[dim])
    order += [dim for dim in range(len(size)) if size[dim] == 1]
    dense = 1
    for dim in reversed(order):
        if size[dim] != 1 and stride[dim] != dense:
            break
        dense *= size[dim]
    else:
        if offset == 0 and dense == self.numel():  # all of it, in some order
            ordered = aten.clone.default(aten.permute.default(src, order), memory_format=torch.contiguous_format)
            return aten.view.default(ordered, list(self.shape))
    places = aten.full.default([], offset, dtype=torch.int64, device=self.device)
    for dim, (n, step) in enumerate(zip(size, stride, strict=True)):
        along = aten.mul.Tensor(aten.arange.default(n, device=self.device), step)
        places = aten.add.Tensor(places, aten.view.default(along, [n] + [1] * (len(size) - 1 - dim)))
    flat = aten.view.default(self, [-1])
    places, src = aten.view.default(places, [-1]), aten.reshape.default(src, [-1])
    return aten.view.default(aten.index_put.default(flat, [places], src), list(self.shape))


def _repeat(x: torch.Tensor, repeats: list[int]) -> torch.Tensor:
    """Copies side by side: an expanded view that is made contiguous."""
    if 0 in repeats or x.numel() == 0 or len(repeats) < x.ndim:
        return NotImplemented
    sizes = [1] * (len(repeats) - x.ndim) + list(x.shape)
    pairs = list(zip(repeats, sizes, strict=True))
    wide = aten.view.default(
        aten.clone.default(x, memory_format=torch.contiguous_format), [n for _, s in pairs for n in (1, s)]
    )
    wide = aten.expand.default(wide, [n for pair in pairs for n in pair])
    wide = aten.clone.default(wide, memory_format=torch.contiguous_format)
    return aten.view.default(wide, [r * s for r, s in pairs])


def _native_dropout(x: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What eager does on a CPU (aten/src/ATen/native/Dropout.cpp): noise is drawn in the input's dtype, so the
    numbers are eager's. Python-dispatched tracing puts native_dropout in its place, which draws others."""
    if x.device.type != "cpu" or not train or p == 0 or x.numel() == 0:
        return NotImplemented
    if p == 1:
        return x * aten.zeros.default([], dtype=x.dtype, device=x.device), aten.zeros_like.default(x, dtype=torch.bool)
    noise = aten.bernoulli.p(aten.empty_like.default(x), 1 - p)
    return x * aten.div.Tensor(noise, 1 - p), aten.ne.Scalar(noise, 0)


def _bernoulli(x: torch.Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """bernoulli.p makes a contiguous result, but the bernoulli_ it stands for fills `x` in the order of its memory."""
    if x.is_contiguous():
        return NotImplemented
    order = sorted(range(x.ndim), key=lambda d: (-x.stride()[d], d))
    back = sorted(range(x.ndim), key=order.__getitem__)
    inner = aten.permute.default(x, order)
    if not inner.is_contiguous():
        inner = aten.clone.default(inner, memory_format=torch.contiguous_format)
    return aten.permute.default(aten.bernoulli.p(inner, p, generator=generator), back)


OWN_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unsafe_split.Tensor: _split,
    aten.unsafe_split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.as_strided_scatter.default: _as_strided_scatter,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.copy.default: _copy,
    aten.fill.Scalar: _fill,
    aten.fill.Tensor: _fill,
    aten.full_like.default: _full_like,
    aten.zeros_like.default: functools.partial(_like, 0),
    aten.ones_like.default: functools.partial(_like, 1),
    aten._unsafe_view.default: _unsafe_view,
    aten.repeat.default: _repeat,
    aten.native_dropout.default: _native_dropout,
    aten.bernoulli.p: _bernoulli,
    aten._efficientzerotensor.default: aten.zeros.default,  # it has no memory, which kernels would read
}


# -- The table --------------------------------------------------------------------------------------------------------


@functools.cache
def table() -> dict[Any, Callable[..., Any]]:
    """OpOverload -> decomposition. Do not change it: it is shared."""
    from torch._decomp import get_decompositions

    wanted = []
    for name in TORCH_DECOMPOSITIONS:
        packet, _, overload = name.partition(".")
        found = getattr(aten, packet, None)
        if found is not None and (not overload or overload in found.overloads()):
            wanted.append(getattr(found, overload) if overload else found)
    found = get_decompositions(wanted)
    return {**{op: fn for op, fn in found.items() if not _kept_whole(op)}, **OWN_DECOMPOSITIONS}


def _kept_whole(op: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in op.tags or op._schema.is_mutable
