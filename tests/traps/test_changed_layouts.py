"""In-place changes of how a tensor from outside lies in memory: its sizes and strides are stored by the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.traps.differential import Wrap, attempt, same_as_eager

Change = Callable[[torch.Tensor], Any]

# the change, and the hits in 4 calls with a tensor of sizes (2, 1, 3)
CHANGES: list[tuple[str, Change, int]] = [
    ("unsqueeze_", lambda x: x.unsqueeze_(0), 3),
    ("squeeze_", lambda x: x.squeeze_(), 3),
    ("squeeze_(dim)", lambda x: x.squeeze_(1), 3),
    ("transpose_", lambda x: x.transpose_(0, 2), 3),
    ("swapaxes_", lambda x: x.swapaxes_(0, 1), 3),
    ("two", lambda x: x.squeeze_(1).t_(), 3),
    ("back", lambda x: x.unsqueeze_(0).squeeze_(0), 3),
    ("resize_ to the same", lambda x: x.resize_(6), 3),
    ("resize_ to less", lambda x: x.resize_(4), 0),
    ("resize_ to more", lambda x: x.resize_(10).fill_(1), 0),
    ("as_strided_", lambda x: x.as_strided_((3, 2), (1, 3)), 0),
    ("as_strided_ elsewhere", lambda x: x.as_strided_((2,), (1,), 3), 0),
    ("and its data", lambda x: x.unsqueeze_(0).mul_(2), 0),
    ("its data before", lambda x: x.mul_(2).unsqueeze_(0), 0),
    (".data", lambda x: setattr(x, "data", x.data.reshape(3, 2)), 3),
    ("through .data", lambda x: x.data.unsqueeze_(0), 3),
    (".data, then the layout", lambda x: (setattr(x, "data", x.data), x.unsqueeze_(0)), 0),
    (".data of another, then the layout", lambda x: (setattr(x, "data", torch.ones(2, 3)), x.t_()), 0),
    ("the layout, then .data", lambda x: (x.unsqueeze_(0), setattr(x, "data", x.data[0] * 2)), 0),
    (".data twice", lambda x: (setattr(x, "data", x.data), setattr(x, "data", x.data.reshape(6))), 3),
    (".data, whose layout changes", lambda x: (d := torch.ones(2, 3), setattr(x, "data", d), d.t_()), 0),
]


SHOWN: dict[str, Change] = {
    "computed": lambda x: x * 2,
    "itself": lambda x: x,
    "view": lambda x: x[0],
    "whole view": lambda x: x.view(x.shape),
    "detached": lambda x: x.detach(),
    "part of the detached": lambda x: x.detach()[..., :1],
    "data": lambda x: x.data,
}


@pytest.mark.parametrize(("change", "hits"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
@pytest.mark.parametrize("result", SHOWN)
def test_an_argument(change: Change, hits: int, result: str) -> None:
    def program(x: torch.Tensor) -> Any:
        before = x * 1
        change(x)
        shape = tuple(x.shape)
        return before, SHOWN[result](x), shape

    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for i in range(4):
            x = torch.arange(6.0).reshape(2, 1, 3) + i
            other = x[1]
            computed, shown, shape = function(x)
            yield x, x.shape, x.stride(), shape, computed, shown, shown is x, other
            other.add_(1)
            yield x, shown

    same_as_eager(scenario, min_hits=hits if result == "computed" else 0)


def test_a_part_of_another_tensor() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(lambda x: (x.transpose_(0, 1) * 2, x.storage_offset()))
        for i in range(4):
            whole = torch.arange(24.0).reshape(4, 6) + i
            part = whole[i % 2 :, 1:3]
            yield function(part), part, part.stride(), whole

    same_as_eager(scenario)


def test_a_buffer_that_is_shaped_once() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.arange(1.0, 4.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.scale.dim() == 1:
                self.scale.unsqueeze_(0)
            return x * self.scale

    def scenario(wrap: Wrap) -> Iterator[Any]:
        model = Scaled()
        function = wrap(model)
        for i in range(5):
            yield function(torch.ones(2, 3) * i), model.scale
        model.scale.squeeze_(0)
        yield function(torch.ones(2, 3)), model.scale

    same_as_eager(scenario, min_hits=3)


@pytest.mark.parametrize("grad", [True, False])
def test_what_autograd_has_an_eye_on(grad: bool) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(lambda x: (x.unsqueeze_(0) * 2).sum())
        with torch.set_grad_enabled(grad):
            for i in range(3):
                leaf = (torch.ones(2, 3) + i).requires_grad_()
                yield type(attempt(function, leaf)), leaf.shape
                computed = leaf.detach().requires_grad_() * 3
                yield attempt(function, computed), computed.shape

    same_as_eager(scenario)


def test_the_version_counts_as_in_eager() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(lambda x: x.unsqueeze_(0) * 2)
        for _ in range(3):
            x = torch.ones(2, 3)
            yield function(x), x._version

    same_as_eager(scenario, min_hits=2)


def test_data_of_another_type():
    def scenario(wrap):
        def program(a, y):
            before = a + 1
            a.data = y.data
            return before, a * 2

        compiled = wrap(program)
        for i in range(4):
            a = torch.ones(2, 3, dtype=torch.bfloat16)
            yield compiled(a, torch.full((2, 3), float(i), dtype=torch.float64)), a

    counted = same_as_eager(scenario, hits=3)
    assert not counted.fallbacks


def test_parameters_of_another_type():
    def scenario(wrap):
        net = nn.Linear(3, 3)

        def program(x):
            y = net(x)
            for p in net.parameters():
                p.data = p.data.half()
            return y

        compiled = wrap(program)
        for _ in range(4):
            yield compiled(torch.ones(2, 3)), net.weight
            net.float()

    counted = same_as_eager(scenario, hits=3)
    assert not counted.fallbacks
