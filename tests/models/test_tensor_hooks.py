"""Hooks of tensors: registered inside the call, they see and change what eager's see, in every backward pass after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import magpy
from tests.traps.differential import Wrap, attempt, same_as_eager

X = torch.arange(6.0).reshape(2, 3) / 4 - 0.5


class World:
    """Weights, and what the hooks have seen."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.seen: list[Any] = []
        self.gradient: Any = None
        self.factor = 2.0

    def save(self, grad: torch.Tensor) -> None:
        self.gradient = grad

    def change(self, grad: torch.Tensor) -> torch.Tensor:
        return grad * self.factor


def scales(w: World, x: torch.Tensor) -> torch.Tensor:
    h = x @ w.weight
    h.register_hook(lambda grad: grad * 2)
    return h.relu() * 3


def stores(w: World, x: torch.Tensor) -> torch.Tensor:
    h = x @ w.weight
    h.register_hook(w.save)
    h.register_hook(lambda grad: w.seen.append(round(float(grad.sum()), 2)))
    return h.tanh()


def is_method(w: World, x: torch.Tensor) -> torch.Tensor:
    h = (x @ w.weight).tanh()
    h.register_hook(w.change)
    return h * h


def several(w: World, x: torch.Tensor) -> torch.Tensor:
    a = x @ w.weight
    b = a.sin()
    for k, t in enumerate((a, b, a)):
        t.register_hook(lambda grad, k=k: (w.seen.append((k, round(float(grad.sum()), 2))), grad + k)[1])
    return a * b


def in_place(w: World, x: torch.Tensor) -> torch.Tensor:
    h = x @ w.weight
    h.register_hook(lambda grad: grad.mul_(3) if w.factor > 100 else None)
    h.register_hook(lambda grad: [grad.mul_(3)].clear())
    return h.exp()


def of_a_result(w: World, x: torch.Tensor) -> Any:
    h = x @ w.weight
    h.register_hook(lambda grad: grad * 5)
    return h, h.relu()


def of_an_input(w: World, x: torch.Tensor) -> torch.Tensor:
    x.register_hook(lambda grad: w.seen.append(grad.clone()))
    return (x @ w.weight).relu()


def of_data(w: World, x: torch.Tensor) -> torch.Tensor:
    h = x @ w.weight
    scale = h.detach().abs().mean()
    h.register_hook(lambda grad: grad * scale)
    return h.tanh()


def where_nobody_goes(w: World, x: torch.Tensor) -> Any:
    h = x @ w.weight
    other = h.exp()
    other.register_hook(lambda grad: w.seen.append("never"))
    return h * 2, other.detach()


def retains(w: World, x: torch.Tensor) -> Any:
    h = x @ w.weight
    h.retain_grad()
    w.h = h
    return h.relu() * 3


def retains_a_result(w: World, x: torch.Tensor) -> Any:
    h = x @ w.weight
    h.register_hook(lambda grad: grad + 1)
    h.retain_grad()
    w.h = h
    return h.relu(), h


def handle_kept(w: World, x: torch.Tensor) -> torch.Tensor:
    h = x @ w.weight
    handle = h.register_hook(lambda grad: grad * 2)
    h.register_hook(lambda grad: grad + 1)
    handle.remove()
    return h.relu()


def hooked_then_changed(w: World, x: torch.Tensor) -> torch.Tensor:
    h = x @ w.weight
    h.register_hook(lambda grad: grad * 2)
    h.mul_(3)
    h.register_hook(lambda grad: grad + 1)
    return h.relu()


def of_a_view(w: World, x: torch.Tensor) -> Any:
    h = x @ w.weight
    v = h[0]
    v.register_hook(lambda grad: grad * 2)
    return v, h * 2


Program = Callable[[World, torch.Tensor], Any]

# the program, and the hits in 4 calls
PROGRAMS: list[tuple[Program, int]] = [
    (scales, 3),
    (stores, 3),
    (is_method, 3),
    (several, 3),
    (in_place, 3),
    (of_a_result, 3),
    (of_an_input, 3),
    (of_data, 3),
    (where_nobody_goes, 3),
    (retains, 3),
    (retains_a_result, 3),
    (handle_kept, 0),
    (hooked_then_changed, 3),
    (of_a_view, 0),
]


@pytest.mark.parametrize(("program", "hits"), PROGRAMS, ids=[program.__name__ for program, _ in PROGRAMS])
def test_backward_after_the_call(program: Program, hits: int) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        w = World()
        function = wrap(lambda x: program(w, x))
        for i in range(4):
            x = (X + i / 2).requires_grad_()
            result = function(x)
            w.factor = i
            outs = [r for r in (result if isinstance(result, tuple) else (result,)) if r.requires_grad]
            sum((out * (k + 1)).sum() for k, out in enumerate(outs)).backward()
            yield result, x.grad, w.weight.grad, w.seen, w.gradient, getattr(getattr(w, "h", None), "grad", None)

    same_as_eager(scenario, min_hits=hits)


@pytest.mark.parametrize("program", [of_a_result, several, retains_a_result])
def test_backward_from_some_results_and_twice(program: Program) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        w = World()
        function = wrap(lambda x: program(w, x))
        for i in range(3):
            x = (X + i / 2).requires_grad_()
            result = function(x)
            out = result[i % 2] if isinstance(result, tuple) else result
            out.sum().backward(retain_graph=True)
            yield x.grad.clone(), w.seen, getattr(getattr(w, "h", None), "grad", None)
            out.sum().backward()
            yield x.grad.clone(), w.seen, getattr(getattr(w, "h", None), "grad", None)

    same_as_eager(scenario, min_hits=2)


def test_runs_do_not_share_their_functions() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        seen: list[Any] = []

        def program(x: torch.Tensor, name: Any) -> torch.Tensor:
            h = x * 2
            h.register_hook(lambda grad: seen.append((name, round(float(grad.sum()), 2))))
            return h.exp()

        function = wrap(program)
        names = [object() for _ in range(4)]
        x = X.clone().requires_grad_()
        outs = [function(x, name) for name in names]
        for k in (2, 0, 3):
            outs[k].sum().backward()
            yield [(names.index(name), value) for name, value in seen], x.grad

    same_as_eager(scenario, min_hits=3)


@pytest.mark.parametrize("bad", ["raises", "shape", "number"])
def test_hooks_that_fail(bad: str) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        ran: list[int] = []

        def failing(grad: torch.Tensor) -> Any:
            ran.append(1)
            if bad == "raises":
                raise KeyError("stop")
            return grad[0] if bad == "shape" else 3

        def program(x: torch.Tensor) -> torch.Tensor:
            h = x * 2
            h.register_hook(failing)
            return h.exp()

        function = wrap(program)
        for _ in range(3):
            x = X.clone().requires_grad_()
            error = attempt(function(x).sum().backward)
            yield type(error), x.grad, len(ran)

    same_as_eager(scenario)


def test_no_gradients_no_hooks() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        w = World()
        function = wrap(lambda x: of_a_result(w, x) if x.requires_grad else (x @ w.weight.detach()))
        with torch.no_grad():
            for i in range(3):
                yield function(X + i)

    same_as_eager(scenario, min_hits=2)


def test_kept_gradients_of_a_pass_inside_the_call() -> None:
    class Cam(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.conv(x).relu()
            h.retain_grad()
            self.head(h.mean((2, 3)))[:, 0].sum().backward()
            return h.grad * h.detach()

    def scenario(wrap: Wrap) -> Iterator[Any]:
        torch.manual_seed(2)
        model = Cam()
        function = wrap(model)
        for i in range(4):
            yield function(torch.ones(2, 1, 5, 5) * i), [p.grad for p in model.parameters()]

    same_as_eager(scenario, min_hits=2)


def test_a_hook_and_a_backward_pass_inside_the_call_fall_back() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        w = World()

        def program(x: torch.Tensor) -> torch.Tensor:
            h = x @ w.weight
            h.register_hook(lambda grad: grad * 2)
            h.sum().backward()
            return w.weight.grad * 1

        function = wrap(program)
        for i in range(3):
            yield function(X + i)

    same_as_eager(scenario)


def test_what_hooks_hold_is_let_go() -> None:
    import gc
    import weakref

    class Thing:
        pass

    alive: list[Any] = []

    def program(x: torch.Tensor, thing: Thing) -> torch.Tensor:
        h = x * 2
        h.register_hook(lambda grad: setattr(thing, "grad", grad))
        return h.exp()

    function = torch.compile(program, backend="magpy", fullgraph=True)
    for _ in range(4):
        thing = Thing()
        out = function(X.clone().requires_grad_(), thing)
        out.sum().backward()
        assert thing.grad is not None
        alive.append(weakref.ref(thing))
        del thing, out
    gc.collect()
    assert [ref() for ref in alive[1:]] == [None] * 3
    assert magpy.stats()["traces"] >= 1


# -- Backward hooks of modules ---------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
        return a * b * scale, a + b


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.two, self.last = nn.Linear(3, 3), TwoInputs(), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        a, b = self.two(h.relu(), h.tanh())
        return self.last(a + b) * 2


def sums(grads: Any) -> list[Any]:
    return [None if g is None else round(float(g.sum()), 2) for g in grads]


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("kind", ["full", "pre", "both", "changing", "later"])
@pytest.mark.parametrize("where", ["first", "two", "last"])
def test_backward_hooks_of_modules(where: str, kind: str, requires_grad: bool) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        torch.manual_seed(3)
        net = Net()
        seen: list[Any] = []
        module = getattr(net, where)

        def add() -> None:
            if kind in ("full", "both", "later"):
                module.register_full_backward_hook(lambda m, i, o: seen.append((m is module, sums(i), sums(o))))
            if kind in ("pre", "both"):
                module.register_full_backward_pre_hook(lambda m, o: tuple(g * 2 for g in o))
            if kind == "changing":
                module.register_full_backward_hook(lambda m, i, o: tuple(None if g is None else g * 3 for g in i))

        if kind != "later":
            add()
        function = wrap(net)
        for k in range(5):
            if k == 2 and kind == "later":
                add()
            x = (X + k / 4).requires_grad_(requires_grad)
            function(x).sum().backward()
            yield seen, x.grad, [p.grad for p in net.parameters()]

    same_as_eager(scenario, min_hits=2 if where == "two" or requires_grad else 0)


def test_a_model_whose_result_comes_from_a_hooked_module() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        seen: list[Any] = []
        for module in model:
            module.register_full_backward_hook(lambda m, i, o: seen.append((type(m).__name__, sums(i), sums(o))))
        function = wrap(model)
        for k in range(4):
            x = (X + k / 4).requires_grad_()
            function(x).sum().backward()
            yield seen, x.grad

    same_as_eager(scenario)


def test_a_hook_that_leaves_a_gradient_out_is_told_so() -> None:
    """Zeros in its place would be another result than eager's, which has no gradient behind."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].register_full_backward_hook(lambda module, inputs, outputs: (None,))
    compiled = torch.compile(model, backend="magpy")
    compiled(X)
    with pytest.raises(RuntimeError, match="gave None in the place of a gradient"):
        compiled(X).sum().backward()
    assert model[0].weight.grad is None


def notes_the_mode(w: World, x: torch.Tensor) -> torch.Tensor:
    h = (x @ w.weight).tanh()
    h.register_hook(lambda grad: w.seen.append((torch.is_grad_enabled(), grad.requires_grad)))
    h.register_hook(lambda grad: (w.seen.append(grad.requires_grad), grad * w.factor)[1])
    return h * h


def changes_in_place(w: World, x: torch.Tensor) -> torch.Tensor:
    h = (x @ w.weight).sin()
    h.register_hook(lambda grad: (w.seen.append(torch.is_grad_enabled()), grad.mul_(3))[1])
    return h * h


def computes_with_it(w: World, x: torch.Tensor) -> torch.Tensor:
    h = (x @ w.weight).sin()
    h.register_hook(lambda grad: w.seen.append((grad * w.weight.sum()).requires_grad))
    return h * h


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def of_a_module(w: World, x: torch.Tensor) -> torch.Tensor:
    square = Square()
    square.register_full_backward_hook(lambda module, inside, out: w.seen.append(torch.is_grad_enabled()))
    return square((x @ w.weight).sin())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("program", [notes_the_mode, changes_in_place, computes_with_it, of_a_module])
def test_gradients_are_on_where_a_graph_of_them_is_made(program: Callable[..., Any], create_graph: bool) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        w = World()
        function = wrap(lambda x: program(w, x))
        for _ in range(3):
            out = function(X).sum()
            yield torch.autograd.grad(out, w.weight, create_graph=create_graph)[0].detach(), list(w.seen)

    counted = same_as_eager(scenario, min_hits=0 if program is of_a_module else 2)
    assert counted.fallbacks == {}


def test_a_gradient_that_a_hook_keeps_is_no_constant() -> None:
    w = World()
    function = torch.compile(lambda x: stores(w, x), backend="magpy")
    for _ in range(2):
        torch.autograd.grad(function(X).sum(), w.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        w.gradient.sum().backward()
