"""Operators that name places in memory (as_strided and what differentiates or writes through it), where a plan has put
many values side by side in one piece of memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.counting import Counted


def busy(x: torch.Tensor) -> torch.Tensor:
    """A value that a plan keeps in its own memory, behind others: matrix products cut kernels."""
    y = torch.softmax(x @ x.mT, -1)
    return torch.softmax(y @ x, -1) + torch.softmax(y.mT @ x, -1)


WINDOWS = {
    "whole": ((4, 6), (6, 1), 0),
    "transposed": ((6, 4), (1, 6), 0),
    "ones": ((4, 1, 6, 1), (6, 1, 1, 24), 0),
    "part": ((2, 3), (6, 1), 7),
    "every other": ((4, 3), (6, 2), 1),
    "overlapping": ((5, 4), (1, 1), 2),
    "one element": ((), (), 5),
}


def read(size: tuple, stride: tuple, offset: int) -> Callable:
    def program(x: torch.Tensor) -> torch.Tensor:
        y = busy(x)
        window = torch.as_strided(y.contiguous(), size, stride, offset)
        return busy(x * 2).sum() + (window * window).sum() + busy(y).sum() * window.mean()

    return program


def write(size: tuple, stride: tuple, offset: int) -> Callable:
    def program(x: torch.Tensor) -> torch.Tensor:
        y = busy(x).clone()
        torch.as_strided(y, size, stride, offset).mul_(3)
        z = busy(y)
        torch.as_strided(z, size, stride, offset).zero_()
        return busy(z) + y

    return program


def scatter(size: tuple, stride: tuple, offset: int) -> Callable:
    def program(x: torch.Tensor) -> torch.Tensor:
        y = busy(x).contiguous()
        src = busy(x * 3).flatten()[: max(1, int(torch.tensor(size).prod()))].reshape(size)
        return busy(torch.as_strided_scatter(y, src, size, stride, offset)) + y

    return program


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("make", [read, write, scatter], ids=lambda f: f.__name__)
@pytest.mark.parametrize("grad", [False, True])
def test_windows(make, window, grad):
    if make is not read and window == "overlapping":
        window = "part"  # which of two writes to a place wins is nobody's promise
    program = make(*WINDOWS[window])
    fast = torch.compile(program, backend="magpy")
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4, 6, requires_grad=grad)
        actual, expected = fast(x), program(x)
        torch.testing.assert_close(actual, expected)
        if grad:
            ours, theirs = (torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # sums of about a hundred products of ten


PLACED: dict[str, Callable] = {
    "window": lambda x: busy(torch.as_strided(x, (4, 6), (6, 1), 0)) + busy(x),
    "window of a view": lambda x: x[1:].as_strided((3, 6), (6, 1), 6) + x[:, 1:].as_strided((3, 6), (1, 1)),
    "offset": lambda x: x * x.storage_offset() + x[1:].storage_offset(),
    "offset in a branch": lambda x: x + 1 if x[2:].storage_offset() == 12 else x - 1,
    "more than the tensor": lambda x: torch.as_strided(input=x, size=(7, 6), stride=(6, 1)) * 2,
    "copy": lambda x: torch.as_strided_copy(x, (4, 6), (6, 1), 0) + 1,
    "scatter": lambda x: torch.as_strided_scatter(x, x[0] * 2, (6,), (1,), 12) + 1,
    "written": lambda x: torch.as_strided(x, (6,), (1,), 6).mul_(2) + 1,
}


@pytest.mark.parametrize("program", PLACED)
def test_inputs_that_lie_elsewhere_in_their_memory(program):
    fast, slow = torch.compile(PLACED[program], backend="magpy"), PLACED[program]

    def call(function: Callable, offset: int, length: int) -> object:
        memory = torch.arange(float(length))
        x = memory[offset : offset + 24].view(4, 6)
        try:
            return function(x), memory
        except RuntimeError as error:
            return str(error)[:60]

    for offset, length in ((0, 100), (0, 100), (24, 100), (24, 100), (30, 100), (0, 100), (0, 24), (24, 48), (24, 100)):
        actual, expected = call(fast, offset, length), call(slow, offset, length)
        if isinstance(expected, str):
            assert actual == expected
        else:
            torch.testing.assert_close(actual, expected)


class Block(nn.Module):
    """A residual block whose last map is 1x1: the strides that fake tensors tell for it are not eager's."""

    def __init__(self, channels: int):
        super().__init__()
        self.down = nn.Conv2d(channels // 2, channels, 2, 2)
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        return x + self.narrow(torch.nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)


def test_gradients_of_a_network_that_ends_in_one_place():
    torch.manual_seed(0)
    net = nn.Sequential(Block(8), Block(16), Block(32))
    fast = torch.compile(net, backend="magpy")
    with Counted() as counted:
        for seed in range(3):
            x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            ours, theirs = (torch.autograd.grad(f(x).square().mean(), net.parameters()) for f in (fast, net))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (counted.fallbacks, counted.hits) == ({}, 2)
