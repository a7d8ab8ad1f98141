"""Operators that torch's fake tensors refuse, though they run: they stay part of a graph, by their results on zeros."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted


def grouped(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grouped_mm(x * 2, weight, offs=ends).relu() + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_grouped_products_of_every_dtype(dtype, grad, caplog):
    torch.manual_seed(0)
    x = torch.randn(7, 8, dtype=dtype)
    weight = torch.randn(3, 8, 8, dtype=dtype, requires_grad=grad)
    fast = torch.compile(grouped, backend="magpy")
    with caplog.at_level(logging.ERROR), Counted() as counted:
        for ends in ([2, 4, 7], [0, 7, 7], [1, 5, 7]):
            given = x, weight, torch.tensor(ends, dtype=torch.int32)
            actual, expected = fast(*given), grouped(*given)
            assert_same(actual, expected)
            assert actual.stride() == expected.stride()
            if grad:
                ours, theirs = (torch.autograd.grad(y.square().sum(), weight)[0] for y in (actual, expected))
                torch.testing.assert_close(ours, theirs)
    assert (counted.fallbacks, counted.hits) == ({}, 2)
    assert not caplog.records  # what torch logs about its refusal is not the user's concern


def test_an_error_of_the_operator_itself_stays_the_users():
    fast = torch.compile(grouped, backend="magpy")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="contraction"):
            fast(torch.randn(7, 8), torch.randn(3, 9, 8), torch.tensor([2, 4, 7], dtype=torch.int32))


@pytest.mark.parametrize("grad", [False, True])
def test_tensors_without_data_are_no_operands_of_kernels(grad):
    without = torch.ones(3, device="meta")

    def program(x):
        made = torch.empty(2, 3, device="meta")
        return x * 2 + 1, without.clone(), (without * 2).sum(), made + without, x.to("meta") + 1

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(3, requires_grad=grad)
        actual, expected = fast(x), program(x)
        assert_same(actual[0], expected[0])
        for a, b in zip(actual[1:], expected[1:], strict=True):
            assert (a.device, a.shape, a.stride(), a.dtype) == (b.device, b.shape, b.stride(), b.dtype)
