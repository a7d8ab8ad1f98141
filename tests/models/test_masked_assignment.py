"""x[mask] = value with a value that is learned, as models that hide a part of their input do: masked embeddings, mask
tokens. The number of hidden places is data; one trace serves all masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted

Program = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def token(x, mask, w):
    h = x * 2
    h[mask] = w
    return h.sin()


def token_of_another_type(x, mask, w):
    h = x.double()
    h[mask] = (w * 2).double()
    return h


def one_row(x, mask, w):
    h = x.clone()
    h[mask] = w.unsqueeze(0)
    return h * x


def number(x, mask, w):
    h = x + 1
    h[(mask,)] = w.sum()
    return h


def part_of_the_token(x, mask, w):
    h = x * w
    h[mask] = w[:1]
    return h


def along_channels(x, mask, w):
    h = x * 1
    h[:, mask[0]] = w.mean()
    h[mask] = w
    return h


def rows_of_channels(x, mask, w):
    h = x * 1
    h[0, mask[1]] = w.sin()
    h[:, mask[0]] = w.view(1, 1, 4) * x[:, :1]
    h[1:, 1:, w.detach() > 0] = w[:2].view(1, 2, 1).exp()
    return h


def through_a_view(x, mask, w):
    h = x * 3
    h.view(-1, 4)[mask.view(-1)] = w.cos()
    return h


def every_element(x, mask, w):
    h = x.sin()
    h[mask.unsqueeze(-1) & (x > 0)] = w.prod()
    return h


PROGRAMS = [token, token_of_another_type, one_row, number, part_of_the_token, along_channels, rows_of_channels,
            through_a_view, every_element]  # fmt: skip


@pytest.mark.parametrize("differentiated", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_assignments_and_their_gradients(program: Program, differentiated: bool) -> None:
    w = torch.randn(4, requires_grad=True)
    compiled = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for share in (0.5, 0.2, 0.8, 0.0, 1.0):
            given, mask = torch.randn(2, 3, 4), torch.rand(2, 3) < share
            seen = []
            for call in (program, compiled):
                x = given.clone().requires_grad_(differentiated)
                w.grad = None
                out = call(x, mask, w)
                out.square().sum().backward()
                seen.append((out.detach(), x.grad, w.grad))
            assert_same(seen[1], seen[0])
    assert counted.fallbacks == {}
    assert counted.hits == 4
