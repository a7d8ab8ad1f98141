"""Steps of torch's fused optimizers (`fused=True`), spelled as operators on each parameter: torch has no form of them
without changes in place, and the kernels that these become are as few.

Formulas: torch's aten/src/ATen/native/cpu/Fused{Adam,SGD,Adagrad}Kernel.cpp. Step sizes are computed in double.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from magpy.aten_graph import Unsupported

Tensors = Sequence[torch.Tensor]


def _adam(decoupled: bool) -> Any:
    """_fused_adam_ or, decoupled, _fused_adamw_."""

    def step(
        params: Tensors, grads: Tensors, averages: Tensors, squares: Tensors, largest: Tensors, steps: Tensors,
        *, lr: Any, beta1: float, beta2: float, weight_decay: float, eps: float, amsgrad: bool, maximize: bool,
        grad_scale: Any = None, found_inf: Any = None,
    ) -> None:  # fmt: skip
        lr = _checked(params, lr, grad_scale, found_inf)
        for i, (param, grad, average, square) in enumerate(zip(params, grads, averages, squares, strict=True)):
            count = steps[i].double()
            if weight_decay and decoupled:
                param.mul_(1 - lr * weight_decay)
            grad = _descending(param, grad, maximize, 0.0 if decoupled else weight_decay)
            average.lerp_(grad, 1 - beta1)
            square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            variance = square
            if amsgrad:
                variance = largest[i].copy_(torch.maximum(largest[i], square))
            scale = (1 - beta2**count).sqrt()
            size = lr / (1 - beta1**count)
            param.sub_(average / (variance.sqrt() / scale + eps) * size)

    return step


def _sgd(
    params: Tensors, grads: Tensors, buffers: Tensors,
    *, weight_decay: float, momentum: float, lr: Any, dampening: float, nesterov: bool, maximize: bool,
    is_first_step: bool, grad_scale: Any = None, found_inf: Any = None,
) -> None:  # fmt: skip
    lr = _checked(params, lr, grad_scale, found_inf)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        grad = _descending(param, grad, maximize, weight_decay)
        if momentum:
            if is_first_step:
                buffers[i].copy_(grad)
            else:
                buffers[i].mul_(momentum).add_(grad, alpha=1 - dampening)
            grad = grad.add(buffers[i], alpha=momentum) if nesterov else buffers[i]
        param.sub_(grad * lr)


def _adagrad(
    params: Tensors, grads: Tensors, sums: Tensors, steps: Tensors,
    *, lr: Any, lr_decay: float, weight_decay: float, eps: float, maximize: bool,
    grad_scale: Any = None, found_inf: Any = None,
) -> None:  # fmt: skip
    lr = _checked(params, lr, grad_scale, found_inf)
    for param, grad, total, count in zip(params, grads, sums, steps, strict=True):
        grad = _descending(param, grad, maximize, weight_decay)
        total.addcmul_(grad, grad)
        param.sub_(grad / (total.sqrt() + eps) * (lr / (1 + (count.double() - 1) * lr_decay)))


def _descending(param: torch.Tensor, grad: torch.Tensor, maximize: bool, weight_decay: float) -> torch.Tensor:
    """The gradient to descend along, that of the penalty `weight_decay` included."""
    grad = -grad if maximize else grad
    return grad.add(param, alpha=weight_decay) if weight_decay else grad


def _checked(params: Tensors, lr: Any, grad_scale: Any, found_inf: Any) -> Any:
    """The learning rate as a number or a tensor of double. Raises Unsupported for what is computed otherwise."""
    if grad_scale is not None or found_inf is not None:
        raise Unsupported("a fused optimizer's step on scaled gradients")
    if any(param.dtype not in (torch.float32, torch.float64) for param in params):
        raise Unsupported("a fused optimizer's step in a type of 16 bits")
    return lr.double() if isinstance(lr, torch.Tensor) else lr


REPLAYED = {
    torch._fused_adam_: _adam(decoupled=False),
    torch._fused_adamw_: _adam(decoupled=True),
    torch._fused_sgd_: _sgd,
    torch._fused_adagrad_: _adagrad,
}
