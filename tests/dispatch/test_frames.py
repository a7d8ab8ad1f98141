"""Fallback by frame: what cannot be traced runs plainly, and the functions it calls are compiled by themselves."""

import sys

import torch
from torch import nn

from magpy.report import find_callable
from tests.compare import assert_same


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, *rest, scale=1.0, **more):
        return torch.relu(self.linear(x)) * scale + sum(rest) + more.get("shift", 0)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Inner(), Inner()

    def forward(self, x):
        y = self.first(x)
        count = len(repr(y))  # cannot be traced
        return self.second(y, 1, 2, scale=count, shift=3)


def by_name(compiled):
    return {code.co_qualname: inner for code, inner in find_callable(compiled).describe()["callees"].items()}


def test_callees_are_compiled():
    net, x = Outer(), torch.randn(2, 4)
    compiled = torch.compile(net, backend="magpy")
    with torch.no_grad():
        for _ in range(8):
            assert_same(compiled(x), net(x))
    inner = by_name(compiled)["Inner.forward"]
    assert inner.n_traces == 2 and inner.hits >= 6
    assert by_name(compiled)["Outer.forward"].n_traces == 0


def test_option_frames_switches_it_off():
    net, x = Outer(), torch.randn(2, 4)
    compiled = torch.compile(net, backend="magpy", options={"frames": False})
    for _ in range(6):
        assert_same(compiled(x), net(x))
    assert all(inner.calls == 0 for inner in by_name(compiled).values())


def test_functions_without_tensors_are_left_alone():
    def count(values):
        return len(values) + 1

    def program(x):
        return x * count([sys.getrefcount(x)])

    compiled, x = torch.compile(program, backend="magpy"), torch.ones(3)
    for _ in range(8):
        assert_same(compiled(x), program(x))
    assert all(inner.n_traces == 0 for inner in by_name(compiled).values())


def test_exceptions_of_callees_pass_through():
    def inner(x):
        raise KeyError("inner")

    def program(x):
        try:
            repr(x)
            return inner(x)
        except KeyError:
            return x + 1

    compiled, x = torch.compile(program, backend="magpy"), torch.ones(3)
    for _ in range(12):
        assert_same(compiled(x), x + 1)
