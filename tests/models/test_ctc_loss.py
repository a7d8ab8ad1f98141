"""CTC loss, with lengths as numbers and as tensors, and the switch of cuDNN around it, as speech models compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.compare import assert_same
from tests.counting import Counted

Made = Callable[[int], tuple]


def padded(i: int) -> tuple:
    return torch.randint(1, 5, (3, 4)), torch.tensor([7, 6, 7 - i % 3]), torch.tensor([4, 1 + i % 3, 2])


def joined(i: int) -> tuple:
    return torch.randint(1, 5, (6,), dtype=torch.int32), (7, 6, 5), (3, 1, 2)


def too_long(i: int) -> tuple:
    return torch.ones(3, 4, dtype=torch.int64), torch.tensor([7, 2, 7]), torch.tensor([4, 4, 1])


@pytest.mark.parametrize(
    ("made", "reduction"), [(padded, "mean"), (padded, "none"), (joined, "sum"), (joined, "mean"), (too_long, "none")]
)
def test_losses_and_gradients(made: Made, reduction: str) -> None:
    linear = nn.Linear(6, 5)

    def loss(x: torch.Tensor, targets: Any, input_lengths: Any, target_lengths: Any) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return F.ctc_loss(
                linear(x).log_softmax(-1), targets, input_lengths, target_lengths, 0, reduction, made is too_long
            )

    compiled = torch.compile(loss, backend="magpy")
    with Counted() as counted:
        for i in range(6):
            x, args = torch.randn(7, 3, 6), made(i)
            grads = []
            for call in (loss, compiled):
                own = x.clone().requires_grad_()
                result = call(own, *args)
                (result * torch.arange(1.0, result.numel() + 1).view(result.shape)).sum().backward()
                grads.append((result.detach(), own.grad, [p.grad for p in linear.parameters()]))
                linear.zero_grad()
            assert_same(grads[1], grads[0])
    assert counted.hits >= 4 and "LOWERING_FAILED" not in counted.fallbacks
    with torch.no_grad():
        assert_same(compiled(x, *args), loss(x, *args))
        assert_same(compiled(x, *args), loss(x, *args))


def test_one_sequence_and_what_torch_refuses() -> None:
    def loss(x: torch.Tensor, n: int) -> torch.Tensor:
        return F.ctc_loss(x.log_softmax(-1), torch.tensor([1, 2, 3]), (n,), (3,), reduction="sum")

    compiled, x = torch.compile(loss, backend="magpy"), torch.randn(6, 4)
    for n in (6, 6, 5, 4):
        assert_same(compiled(x, n), loss(x, n))
    for call in (loss, compiled, compiled):
        with pytest.raises(RuntimeError, match="input_lengths"):
            call(x, 7)


def enabled_again(x: torch.Tensor) -> Any:
    was = torch.backends.cudnn.enabled
    with torch.backends.cudnn.flags(enabled=False, benchmark=True):
        inside = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
    return x * 2, was, inside, torch.backends.cudnn.benchmark


def left_changed(x: torch.Tensor) -> Any:
    torch.backends.cudnn.benchmark = True
    return x * 2, torch.backends.cudnn.benchmark


def set_and_reset(x: torch.Tensor) -> Any:
    torch.backends.cudnn.benchmark = True
    y = x * 2
    torch.backends.cudnn.benchmark = False
    return y, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("program", [enabled_again, left_changed, set_and_reset])
def test_switches_of_cudnn(program: Callable[[torch.Tensor], Any]) -> None:
    states = []
    try:
        for call in (program, torch.compile(program, backend="magpy")):
            notes = []
            for before in (False, False, False, True, True, False, True):
                torch.backends.cudnn.benchmark = before
                notes.append((call(torch.ones(3)), torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled))
            states.append(notes)
    finally:
        torch.backends.cudnn.benchmark = False
    assert_same(states[1], states[0])


def test_a_switch_that_is_put_back_is_no_reason_to_fall_back() -> None:
    compiled = torch.compile(enabled_again, backend="magpy")
    compiled(torch.ones(3))  # torch spells its precisions out when they are first put back
    with Counted() as counted:
        for _ in range(3):
            compiled(torch.ones(3))
    assert counted.fallbacks == {} and counted.hits >= 2
