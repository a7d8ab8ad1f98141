"""Functions that are replayed on fake tensors by others: those that look into memory, or go past tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import aten_trace, fused_optimizers
from magpy.aten_graph import Unsupported
from magpy.ctc import ctc_loss, functional_ctc_loss
from magpy.product_gradient import prod
from magpy.random_ops import OPS


def name_of(func: Any) -> str:
    return getattr(func, "__name__", None) or type(func).__name__


def is_getter(func: Any, *names: str) -> bool:
    """Is func `Tensor.<name>.__get__` for one of these names?"""
    return name_of(func) == "__get__" and getattr(getattr(func, "__self__", None), "__name__", None) in names


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """one_hot as torch computes it, after a look at the data, for which the scatter's own check stands in."""
    if num_classes <= 0:
        return torch._C._nn.one_hot(tensor, num_classes)
    zeros = torch.zeros((*tensor.shape, num_classes), dtype=torch.int64, device=tensor.device)
    return zeros.scatter(-1, tensor.unsqueeze(-1), 1)


def _shape_as_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(tensor.shape, dtype=torch.int64)


def _make_leaf(cls: type, data: torch.Tensor, requires_grad: bool = False) -> torch.Tensor:
    """Tensor._make_subclass, which tracing would not see: which class it is matters to the results alone."""
    return data.detach().requires_grad_(requires_grad)


def _tensor(data: Any, **kwargs: Any) -> torch.Tensor:
    """torch.tensor of numbers and arrays, some of which are tensors of the graph: their data stay data."""
    if isinstance(data, torch.Tensor):
        made = stacked(data, kwargs.get("dtype") or data.dtype, kwargs.get("device") or data.device).clone()
        return made.requires_grad_(kwargs.get("requires_grad", False))
    if not _holds_tensors(data):
        return torch.tensor(data, **kwargs)
    requires_grad = kwargs.pop("requires_grad", False)
    with aten_trace.outside():
        like = torch.tensor(_as_numbers(data), **kwargs)
    made = stacked(data, like.dtype, like.device)
    return made.requires_grad_(requires_grad)


def _as_tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.as_tensor(data, *args, **kwargs) if not _holds_tensors(data) or args else _tensor(data, **kwargs)


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and any(isinstance(d, torch.Tensor) or _holds_tensors(d) for d in data)


def _as_numbers(data: Any) -> Any:
    """The same with real tensors, for the type that torch makes of them."""
    if isinstance(data, (list, tuple)):
        return [_as_numbers(d) for d in data]
    if isinstance(data, torch.Tensor):
        zeros = torch.zeros(tuple(data.shape), dtype=data.dtype)
        return zeros.numpy() if data.dim() else zeros
    return data


def stacked(data: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if isinstance(data, (list, tuple)):
        if not data:
            return torch.empty(0, dtype=dtype, device=device)
        return torch.stack([stacked(d, dtype, device) for d in data])
    if isinstance(data, torch.Tensor):
        return data.detach().to(device=device, dtype=dtype)
    return torch.tensor(data, dtype=dtype, device=device)


_COUNTED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutogradFunctionality
)


def _data(tensor: torch.Tensor) -> torch.Tensor:
    """tensor.data, with a version counter of its own: that itself would leave functionalisation."""
    with torch._C._ExcludeDispatchKeyGuard(_COUNTED):
        return tensor.detach()


def _set_item(tensor: torch.Tensor, index: Any, value: Any) -> None:
    """tensor[..., mask] = value, where the value is differentiated and the same at all places of the mask: how many
    they are, which index_put's gradient would ask for, does not matter."""
    *before, mask = index if type(index) is tuple and index else (index,)
    if (
        not isinstance(mask, torch.Tensor)
        or mask.dtype is not torch.bool
        or mask.dim() == 0
        or not all(isinstance(item, (int, slice)) for item in before)
        or not isinstance(value, torch.Tensor)
        or not value.requires_grad
        or not torch.is_grad_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        tensor[index] = value
        return
    part = tensor[tuple(before)] if before else tensor
    first = sum(isinstance(item, slice) for item in before)  # of the mask's dimensions
    rest = part.dim() - first - mask.dim()
    places = value.dim() - rest - 1  # the value's dimension that goes along the places
    if places >= 0:
        if value.shape[places] != 1:
            tensor[index] = value
            return
        value = value.reshape(*value.shape[:places], *[1] * mask.dim(), *value.shape[places + 1 :])
    where = mask.view(*mask.shape, *[1] * rest)
    part.copy_(torch.where(where, value.to(tensor.dtype), part))


class _Padded:
    """A nested tensor of the fast path of torch's TransformerEncoder, which is computed padded: one matrix for each
    item, of which rows are its own where `own` says so. Nothing but the functions below takes it."""

    __slots__ = ("own", "rows")

    def __init__(self, rows: torch.Tensor, own: torch.Tensor):
        self.rows = rows
        self.own = own


def _nested_from_mask(rows: torch.Tensor, mask: torch.Tensor, mask_check: bool = True) -> _Padded:
    if mask_check:
        raise Unsupported("a nested tensor of a mask that is looked at")
    count = mask.sum(1, keepdim=True)  # as many of the first rows, wherever in the mask they are
    return _Padded(rows, torch.arange(rows.shape[1], device=rows.device) < count)


_layer: Any = torch._transformer_encoder_layer_fwd


def _encoder_layer(src: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(src, _Padded):
        return _layer(src, *args, **kwargs)
    *weights, mask, mask_type = args
    if mask is not None or mask_type is not None or kwargs:
        raise Unsupported("a nested tensor with a mask")
    return _Padded(_layer(src.rows, *weights, ~src.own, 1), src.own)


def _to_padded(tensor: Any, padding: float, output_size: Sequence[int] | None = None) -> Any:
    if not isinstance(tensor, _Padded):
        return torch.Tensor.to_padded_tensor(tensor, padding, output_size)
    if output_size is None or tuple(output_size) != tuple(tensor.rows.shape):
        raise Unsupported("a nested tensor padded to its longest item")
    if not tensor.rows.numel():
        raise Unsupported("a nested tensor without elements")
    torch.ops.magpy.check([tensor.own.any()], "lambda some: some", "True", False)  # else torch raises
    return tensor.rows.masked_fill(~tensor.own.unsqueeze(-1), padding)


REPLAYED: dict[Any, Callable[..., Any]] = {
    torch._C._nn.one_hot: _one_hot,
    torch._shape_as_tensor: _shape_as_tensor,
    torch.Tensor._make_subclass: _make_leaf,
    torch.ctc_loss: ctc_loss,
    torch.nn.functional.ctc_loss: functional_ctc_loss,
    torch.Tensor.__setitem__: _set_item,
    torch.prod: prod,
    torch.Tensor.prod: prod,
    torch.tensor: _tensor,
    torch.as_tensor: _as_tensor,
    torch._nested_tensor_from_mask: _nested_from_mask,
    _layer: _encoder_layer,
    torch.Tensor.to_padded_tensor: _to_padded,
    torch.random.manual_seed: OPS.seed,
    torch.Generator.manual_seed: OPS.generator_seed,
    torch.Generator.get_state: OPS.generator_state,
    torch.Generator.set_state: OPS.generator_set_state,
    **fused_optimizers.REPLAYED,
}


def replayed(func: Any) -> Callable[..., Any]:
    """What is called in the place of a recorded function: itself, or what does the same on tensors without memory."""
    if is_getter(func, "data"):
        return _data
    try:
        return REPLAYED.get(func, func)
    except TypeError:  # it has no hash
        return func
