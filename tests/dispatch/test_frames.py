"""Fallback by frame: what cannot be traced runs plainly, and the functions it calls are compiled by themselves."""

import os
import sys

import torch
from torch import nn

import magpy
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


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_magpys_own_code_is_not_served():
    """Backward passes of compiled functions run inside the frame that falls back, with hooks of the program's."""
    net, reference = Inner(), Inner()
    reference.load_state_dict(net.state_dict())
    inner = torch.compile(lambda x: net(x) * 2, backend="magpy")
    seen = []

    def step(call, x):
        out = Doubled.apply(call(x))
        out.register_hook(lambda grad: seen.append(grad.sum()))
        len(repr(out))  # cannot be traced
        out.square().sum().backward()
        return out.detach()

    def compiled_step(x):
        return step(inner, x)

    def frames_step(x):
        return step(net, x) * 2

    for program in (compiled_step, frames_step):
        compiled = torch.compile(program, backend="magpy")
        for _ in range(8):
            net.zero_grad()
            reference.zero_grad()
            x = torch.randn(2, 4)
            got, count = compiled(x), len(seen)
            scale = 2 if program is compiled_step else 1
            expected = step(lambda x, scale=scale: reference(x) * scale, x)
            assert_same(got, expected if program is compiled_step else expected * 2)
            torch.testing.assert_close(seen[count - 1], seen[count])
            for p, q in zip(net.parameters(), reference.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad)
        served = find_callable(compiled).describe()["callees"]
        own = [code for code in served if code.co_filename.startswith(os.path.dirname(magpy.__file__))]
        assert [code for code in own if served[code].calls] == []
        assert max(each.hits for each in served.values()) >= 4
