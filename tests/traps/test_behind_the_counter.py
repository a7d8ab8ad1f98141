"""Changes of a tensor through `.data`, of which its version counter does not know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.traps.differential import attempt, same_as_eager


def by_copy(w, x):
    w.squeeze().data.copy_(x * 2)
    w.data.mul_(2)
    return x - w


def by_both(w, x):
    d = w.data
    w.add_(1)
    d.mul_(x)
    return w * x


def of_the_calls_own(w, x):
    y = x * w
    z = y.data
    z.add_(1)
    return y + z, z


def of_a_constant(w, x):
    z = torch.zeros(3)
    z.data.add_(w)
    return z, z.data.add_(x), z + z


def beside_data_that_is_still_there(w, x):
    y = x * 2
    data = y.data
    y.add_(1)
    return data * 1, data, y


def part_of_it(w, x):
    w.data[1:] += x[1:]
    return w.sum() * x


@pytest.mark.parametrize(
    "program", [by_copy, by_both, of_the_calls_own, of_a_constant, beside_data_that_is_still_there, part_of_it]
)
@pytest.mark.parametrize("parameter", [False, True])
def test_versions_and_data_without_gradients(program, parameter):
    def scenario(wrap):
        w = torch.ones(3)
        w = nn.Parameter(w) if parameter else w
        other = w.view(3)
        fast = wrap(program)
        with torch.no_grad():
            for _ in range(4):
                yield fast(w, torch.rand(3)), w, w._version, other

    assert same_as_eager(scenario, hits=3).fallbacks == {}


@pytest.mark.parametrize("program", [by_copy, of_the_calls_own, part_of_it])
def test_gradients(program):
    """A gradient that needs the old value finds the new one in eager, and no error: the counter did not move."""

    def scenario(wrap):
        w = nn.Parameter(torch.ones(3))
        fast = wrap(program)
        for _ in range(3):
            saved = (w * w).sum()
            result = fast(w, torch.rand(3))
            first = result[0] if isinstance(result, tuple) else result
            first.sum().backward()
            yield attempt(saved.backward), first, w, w.grad, w._version

    same_as_eager(scenario)


def test_two_views_of_one_memory():
    def scenario(wrap):
        w = nn.Parameter(torch.ones(3))
        other = w.detach()

        def program(x):
            w.data.copy_(x)
            return other * x

        fast = wrap(program)
        for _ in range(3):
            yield fast(torch.rand(3)), w, other, w._version, other._version

    same_as_eager(scenario)


class SetUpByTheFirstCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("ready", torch.tensor(0).byte())

    def forward(self, x):
        if not self.ready:
            self.scale.data.copy_(x.std(0))
            self.ready += 1
        return x / self.scale


def test_set_up_by_the_first_call():
    def scenario(wrap):
        module = SetUpByTheFirstCall()
        fast = wrap(module)
        with torch.no_grad():
            for _ in range(4):
                yield fast(torch.rand(5, 3)), module.scale, module.ready, module.scale._version

    assert same_as_eager(scenario, hits=2).fallbacks == {}


def test_batch_norm_called_again_before_the_backward_pass():
    """Eager changes the statistics, which the first call's backward pass has saved, without counting it."""

    def scenario(wrap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        fast, x = wrap(model), torch.randn(5, 3)
        for _ in range(3):  # the first call is observed, the second is served while the first is still to go backward
            (fast(x) * fast(x + 1)).sum().backward()
            yield [p.grad for p in model.parameters()], [(b.clone(), b._version) for b in model.buffers()]

    same_as_eager(scenario)


def test_fused_optimizer_steps_between_forward_and_backward():
    """Fused optimizers do not count their writes either."""

    def scenario(wrap):
        w = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.5, fused=True)

        def step(g):
            w.grad = g * 1
            optimizer.step()
            return g * 2

        fast = wrap(step)
        for i in range(4):
            kept = (w * w).sum()
            out = fast(torch.full((3,), float(i)))
            yield out, w.detach().clone(), w._version, attempt(kept.backward)

    same_as_eager(scenario)


def polyak(w, v, x):
    v.data.copy_(0.1 * w.data + 0.9 * v.data)


def in_steps(w, v, x):
    v.data.mul_(0.9).add_(w.data * 0.1)


def of_a_part(w, v, x):
    v.data[1:].clamp_(min=0.2)
    v.data[0] = x[0]


def through_detach(w, v, x):
    v.detach().add_(w.detach(), alpha=-0.1)


def then_used(w, v, x):
    v.data.mul_(0.5)
    return (v * w * x).sum()


def used_before(w, v, x):
    y = (v * w * x).sum()
    v.data.mul_(0.5)
    return y


def used_before_and_after(w, v, x):
    y = (w * x).sin()
    w.data.add_(1)
    v.data.sub_(w.data)
    return (y * w).sum()


def a_step_then_an_average(w, v, x):
    (w * x).square().sum().backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
    w.grad = None
    v.data.copy_(0.5 * v.data + 0.5 * w.data)


AVERAGES = (polyak, in_steps, of_a_part, through_detach, a_step_then_an_average)


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("program", [*AVERAGES, then_used, used_before, used_before_and_after])
def test_data_of_what_requires_a_gradient_changes_while_gradients_are_on(program, leaf):
    def scenario(wrap):
        w, v = (torch.rand(3, requires_grad=True) for _ in range(2))
        fast = wrap(program)
        for _ in range(4):
            target = v if leaf else v * 1
            result = fast(w, target, torch.rand(3))
            done = attempt(result.backward) if result is not None else None
            yield result, done, w, target, target.is_leaf, w.grad, v.grad, w._version, target._version
            w.grad = v.grad = None

    assert same_as_eager(scenario, hits=3).fallbacks == {}
