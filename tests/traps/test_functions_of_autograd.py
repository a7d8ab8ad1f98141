"""What an autograd.Function of the program reads and does, in both of its passes: as in eager, each time."""

from __future__ import annotations

import logging
import random
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.traps.differential import same_as_eager

X = torch.arange(4.0)
factor: Any = 2.0


def test_function_of_autograd_reads_module_state():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale, self.back = 2.0, 3.0
                self.w = nn.Parameter(torch.ones(4))

            def forward(self, x):
                return Scale.apply(x * self.w, self)

        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, net):
                ctx.net = net
                return x * net.scale

            @staticmethod
            def backward(ctx, g):
                return g * ctx.net.back, None

        net = Net()
        fast = wrap(net)

        def step():
            net.w.grad = None
            y = fast(X)
            y.sum().backward()
            return y, net.w.grad

        yield step(), step()
        net.scale = 5.0
        yield step(), step()
        net.back = 7.0
        yield step(), step()
        y = fast(X)
        net.back = 11.0
        net.w.grad = None
        y.sum().backward()
        yield net.w.grad

    same_as_eager(scenario)


def test_function_of_autograd_reads_globals_and_counts():
    def scenario(wrap):
        calls = {"forward": 0, "backward": 0}

        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                calls["forward"] += 1
                return x * factor

            @staticmethod
            def backward(ctx, g):
                calls["backward"] += 1
                return g * factor * 10

        w = torch.ones(4, requires_grad=True)
        globals()["factor"] = 2.0

        def program(x):
            return Scale.apply(x * w) + 1

        fast = wrap(program)

        def step():
            w.grad = None
            y = fast(X)
            y.sum().backward()
            return y, w.grad, dict(calls)

        yield step(), step(), step()
        globals()["factor"] = 3.0
        yield step(), step()
        with torch.no_grad():
            yield fast(X), fast(X), calls
        globals()["factor"] = 4.0
        with torch.no_grad():
            yield fast(X), fast(X), calls

    same_as_eager(scenario)


def test_function_of_autograd_without_state():
    def scenario(wrap):
        class Clamp(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, low):
                ctx.save_for_backward(x)
                ctx.low = low
                return x.clamp(min=low)

            @staticmethod
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return g * (x > ctx.low) * 5, None

        w = torch.ones(4, requires_grad=True)

        def program(x, low):
            return (Clamp.apply(x * w, low) * 2).sum()

        fast = wrap(program)
        for low in (1.0, 1.0, 2.0, 1.0, 1.0):
            w.grad = None
            y = fast(X, low)
            y.backward()
            yield y, w.grad

    same_as_eager(scenario)


class Told:
    """What backward passes count, read and say, reached in several ways."""

    times = 0
    scale = 2.0
    said: ClassVar[list] = []
    kept: Any = None


def count_in_class(g):
    Told.times += 1
    return g


def count_in_helper_class(g):
    class_of = Told
    setattr(class_of, "times", class_of.times + 1)  # noqa: B010
    return g


def read_class(g):
    return g * Told.scale


def say(g):
    print("backward")
    return g


def log(g):
    logging.warning("backward")
    return g


def draw(g):
    return g * random.random()


def keep_in_class(g):
    Told.said.append(1)
    return g


def nested(g):
    def inner():
        Told.times += 1
        return g

    return inner()


def read_module(g):
    return g * sys.modules[__name__].Told.scale


def count_in_other_function(g):
    class Maker:
        def __init__(self):
            self.g = count_in_class(g)

    return Maker().g


def count_in_instance(g):
    return CountsWhenMade(g).g


class CountsWhenMade:
    def __init__(self, g):
        Told.times += 1
        self.g = g


BACKWARDS = [count_in_class, count_in_helper_class, read_class, say, log, draw, keep_in_class, nested, read_module,
             count_in_other_function, count_in_instance]  # fmt: skip


@pytest.mark.parametrize("change", BACKWARDS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("decorate", [lambda f: f, torch.autograd.function.once_differentiable], ids=["plain", "once"])
def test_what_a_backward_of_the_program_does_is_done_each_time(change, decorate, capsys):
    def scenario(wrap):
        random.seed(3)
        Told.times, Told.scale = 0, 2.0
        Told.said.clear()

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            @decorate
            def backward(ctx, g):
                return change(g) * 2

        w = torch.ones(4, requires_grad=True)
        fast = wrap(lambda x: Function.apply(x * w).sum())
        for i in range(5):
            w.grad = None
            loss = fast(X)
            if i > 2:
                Told.scale = i
            loss.backward()
            yield w.grad, Told.times, len(Told.said), capsys.readouterr().out

    same_as_eager(scenario)


def keep_tensor(x):
    Told.kept = x.detach()
    return x


FORWARDS = [count_in_class, count_in_helper_class, say, log, draw, keep_in_class, nested, count_in_instance,
            keep_tensor]  # fmt: skip


@pytest.mark.parametrize("change", FORWARDS, ids=lambda function: function.__name__)
def test_what_a_forward_of_the_program_does_is_done_once_in_each_call(change, capsys):
    def scenario(wrap):
        random.seed(3)
        Told.times = 0
        Told.said.clear()

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return change(x) * 2

            @staticmethod
            def backward(ctx, g):
                return g * 2

        w = torch.ones(4, requires_grad=True)
        fast = wrap(lambda x: Function.apply(x * w).sum())
        for _ in range(5):
            w.grad = None
            loss = fast(X)
            loss.backward()
            yield loss, w.grad, Told.times, len(Told.said), capsys.readouterr().out, random.random()

    same_as_eager(scenario)
