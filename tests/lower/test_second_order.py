"""Gradients that are differentiated again: those of the program's own operators, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magpy.report import find_callable
from tests.compare import assert_same
from tests.lower.test_changed_until_backward import PROGRAMS

MORE: dict[str, Callable[..., Any]] = {
    "several results": lambda x, w: ((x * w).sin(), x.exp() @ w, w.cumsum(0)),
    "results of which one has no gradient": lambda x, w: (x * w, x > 0, (x.detach() * w).cos()),
    "results that share memory": lambda x, w: (y := x * w, y.t(), y[0].exp()),
    "a result that is an input": lambda x, w: (w, (x * w * w).tanh()),
    "nothing of an input": lambda x, w: x.sin() * 2,
}


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    return x.requires_grad_(), w.requires_grad_()


def second_order(program: Callable[..., Any], x: torch.Tensor, w: torch.Tensor) -> list[Any]:
    """Gradients of all results, and those of their squares, of x, w and of what the results' gradients were."""
    results = program(x, w)
    results = [r for r in (results if isinstance(results, tuple) else (results,)) if r.requires_grad]
    given = [torch.full_like(r, 0.5 + k).requires_grad_() for k, r in enumerate(results)]
    first = torch.autograd.grad(results, [x, w], given, create_graph=True, allow_unused=True)
    again = [g.square().sum() for g in first if g is not None and g.requires_grad]
    if not again:
        return [*first]
    second = torch.autograd.grad(sum(again), [x, w, *given], allow_unused=True)
    return [*first, *second[:2], *[g if g is None else g.contiguous() for g in second[2:]]]


@pytest.mark.parametrize("name", [*PROGRAMS, *MORE])
def test_as_in_eager(name: str, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    program = {**PROGRAMS, **MORE}[name]
    fast = torch.compile(program, backend="magpy")
    expected = second_order(program, *inputs)
    for _ in range(3):
        assert_same(second_order(fast, *inputs), expected)
    assert find_callable(fast).hits == 2


@pytest.mark.parametrize("of", [lambda w: w * 2, lambda w: w[:2], lambda w: w.t(), lambda w: w])
def test_inputs_that_follow_from_each_other(of: Callable, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Each has the gradient of its own uses: what comes through the other is added once."""
    x, w = inputs
    fast = torch.compile(lambda a, b: a.sin().sum() * b.exp().sum() * x.sum(), backend="magpy")

    def program(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.sin().sum() * b.exp().sum() * x.sum()

    for _ in range(3):
        mine, eager = (second_order(lambda x, w, call=call: call(w, of(w)), x, w) for call in (fast, program))
        assert_same(mine, eager)


def of_norms(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The penalty of gradients in training of Wasserstein GANs."""
    x = x.detach().requires_grad_()
    out = net(x)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    return ((gradient.norm(2, dim=1) - 1) ** 2).mean() + out.mean()


def of_curvature(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The residual of a differential equation, third order in all."""
    x = x.detach().requires_grad_()
    u = net(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return (second.sum(1) + u.sin()).square().mean()


def of_a_step(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The loss after a step of learning (MAML), through the weights that the step gives."""
    weights = dict(net.named_parameters())
    gradients = torch.autograd.grad(net(x).square().mean(), list(weights.values()), create_graph=True)
    stepped = {n: w - 0.1 * g for (n, w), g in zip(weights.items(), gradients, strict=True)}
    return torch.func.functional_call(net, stepped, (x,)).square().mean()


@pytest.mark.parametrize("loss", [of_norms, of_curvature, of_a_step], ids=lambda f: f.__name__)
def test_training_with_gradients_of_gradients(loss: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    trained = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        call = torch.compile(net, backend="magpy") if compiled else net
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            value = loss(call, torch.randn(5, 4))
            value.backward()
            optimizer.step()
            losses.append(value.detach())
        trained.append([*losses, *net.parameters()])
    assert_same(trained[1], trained[0])
    assert find_callable(call).hits >= 2


def test_inputs_that_have_changed(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Between the passes and before the first: as in eager, what is needed may not change."""

    def run(program: Callable[..., Any], early: bool) -> Any:
        x, w = (t.detach().clone().requires_grad_() for t in inputs)
        out = program(x, w)
        with torch.no_grad():
            w.add_(1) if early else None
        try:
            (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            with torch.no_grad():
                w.add_(0 if early else 1)
            return torch.autograd.grad(first.sum(), w)
        except RuntimeError as error:
            return str(error).split("[")[0]

    def program(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x * w).exp()

    fast = torch.compile(program, backend="magpy")
    for early in (True, False):
        for _ in range(3):
            assert run(fast, early) == run(program, early)
            assert "modified by an inplace operation" in run(fast, early)


def test_passes_that_free_what_was_saved(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    fast = torch.compile(lambda x, w: (x * w).sin(), backend="magpy")
    for _ in range(2):
        out = fast(*inputs).sum()
        torch.autograd.grad(out, inputs)
        with pytest.raises(RuntimeError, match="a second time"):
            torch.autograd.grad(out, inputs, create_graph=True)


def test_inputs_that_cannot_be_saved(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The first backward pass does not need them."""
    with torch.inference_mode():
        x = torch.ones(3, 3, dtype=torch.float64)
    fast = torch.compile(lambda x, w: (x + w).sin(), backend="magpy")
    for _ in range(3):
        (mine,) = torch.autograd.grad(fast(x, inputs[1]).sum(), inputs[1])
        torch.testing.assert_close(mine, (x + inputs[1]).cos().detach())
    assert find_callable(fast).hits == 2


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


REFUSED: dict[str, Callable[..., Any]] = {
    "random numbers": lambda x, w: F.dropout(x * w, 0.5).sin(),
    "a function of the program's": lambda x, w: Doubled.apply(x * w).sin(),
    "data that is looked at": lambda x, w: (x * w).sin() if x.sum() > 0 else x,
    "an input that is changed": lambda x, w: (x.detach().add_(0), (x * w).sin())[1],
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_right_or_refused(name: str, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """First gradients are there in any case."""
    fast = torch.compile(REFUSED[name], backend="magpy")
    for _ in range(3):
        torch.manual_seed(0)
        expected = second_order(REFUSED[name], *inputs)
        torch.manual_seed(0)
        out = fast(*inputs).sum()
        first = torch.autograd.grad(out, inputs, torch.tensor(0.5, dtype=torch.float64), create_graph=True)
        torch.testing.assert_close(list(first), expected[:2])
        try:
            second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        except RuntimeError as error:
            assert "double backward" in str(error)
        else:
            torch.testing.assert_close(list(second), expected[2:4])
