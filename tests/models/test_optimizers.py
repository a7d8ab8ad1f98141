"""Whole steps of training by torch's optimizers, one tensor after the other, over lists, and fused: one graph each once
the optimizer's state is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo  # optimizers import it when they first step
from torch import nn, optim

from tests.counting import Counted

Make = Callable[[list[torch.Tensor]], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "asgd": lambda p: optim.ASGD(p, 0.01, t0=100, foreach=False),
    "adam, a tensor for a learning rate": lambda p: optim.Adam(p, torch.tensor(0.01), foreach=False),
    "nadam": lambda p: optim.NAdam(p, 0.01, foreach=True),
    "adamax": lambda p: optim.Adamax(p, 0.01, foreach=True, weight_decay=0.1),
    "adam over lists": lambda p: optim.Adam(p, 0.01, foreach=True, amsgrad=True, weight_decay=0.1, maximize=True),
    "adamw over lists": lambda p: optim.AdamW(p, 0.01, foreach=True),
    "adagrad over lists": lambda p: optim.Adagrad(p, 0.01, foreach=True, lr_decay=0.1),
    "rmsprop over lists": lambda p: optim.RMSprop(p, 0.01, foreach=True, momentum=0.9, centered=True),
    "asgd over lists": lambda p: optim.ASGD(p, 0.01, t0=100, foreach=True),
    "adam, fused": lambda p: optim.Adam(p, 0.01, fused=True, amsgrad=True, weight_decay=0.1, maximize=True),
    "adamw, fused": lambda p: optim.AdamW(p, 0.01, fused=True, weight_decay=0.1),
    "sgd, fused": lambda p: optim.SGD(p, 0.1, fused=True, weight_decay=0.1, maximize=True),
    "sgd with momentum, fused": lambda p: optim.SGD(p, 0.1, fused=True, momentum=0.9, nesterov=True),
    "sgd with damped momentum, fused": lambda p: optim.SGD(p, 0.1, fused=True, momentum=0.9, dampening=0.5),
    "adagrad, fused": lambda p: optim.Adagrad(p, 0.1, fused=True, lr_decay=0.1, weight_decay=0.1),
}


def made(make: Make) -> tuple[nn.Module, optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, make(list(model.parameters()))


def train(model: nn.Module, optimizer: optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_one_graph(name: str) -> None:
    fast = torch.compile(train, backend="magpy")
    expected, actual = made(OPTIMIZERS[name]), made(OPTIMIZERS[name])
    hits = 0
    for step in range(6):
        torch.manual_seed(step)
        x = torch.randn(5, 4)
        loss = train(*expected, x)
        with Counted() as counted:
            assert torch.allclose(fast(*actual, x), loss, rtol=1e-4)
        hits += counted.hits
        assert not counted.fallbacks
        for one, other in zip(state_of(*actual), state_of(*expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert hits >= 3


def state_of(model: nn.Module, optimizer: optim.Optimizer) -> list[Any]:
    return [*model.parameters(), *[v for state in optimizer.state.values() for v in state.values()]]


def test_tensors_that_an_operator_reads_as_numbers() -> None:
    def program(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            torch.add(x, x, alpha=scale),
            x.sub(2, alpha=scale),
            torch.addcmul(x, x, x, value=scale),
            x.clone().addcdiv_(x, x + 5, value=scale * 2),
        )

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for scale in (torch.tensor(0.5), torch.tensor(2.0), torch.tensor(-1.25)):
            x = torch.rand(3)
            torch.testing.assert_close(fast(x, scale), program(x, scale))
    assert counted.hits == 2 and not counted.fallbacks


def test_operators_over_lists_take_open_numbers() -> None:
    def program(x: torch.Tensor, y: torch.Tensor) -> Any:
        n = x.sum().item()
        tensors, others = [x, y], [y.abs(), x.abs()]
        changed = [x.clone(), y.clone()]
        torch._foreach_addcdiv_(changed, tensors, [o + 1 for o in others], [n, 2.0])
        return (
            torch._foreach_add(tensors, n),
            torch._foreach_add(tensors, others, alpha=n),
            torch._foreach_mul(tensors, [n, 3.0]),
            torch._foreach_pow(others, abs(n)),
            torch._foreach_lerp(tensors, others, n),
            torch._foreach_addcmul(tensors, others, others, value=n),
            changed,
        )

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            x, y = torch.randn(3), torch.randn(3)
            torch.testing.assert_close(fast(x, y), program(x, y), rtol=1e-4, atol=1e-5)
    assert counted.hits == 2 and not counted.fallbacks
