"""Results that show one memory are to autograd what they are in eager: views, with the mode they were made in, or
apart; what a later change of one does to the others, and what may not be changed; and absent gradients stay absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.counting import Counted

Program = Callable[..., tuple[torch.Tensor, ...]]


def without_grad(make: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Program:
    def program(x, w):
        y = x * w
        with torch.no_grad():
            return y, *make(y)

    return program


def of_inputs_without_grad(x, w):
    with torch.no_grad():
        return (w * x, x.view(-1), *x.unbind(0))


def changed_parameter(x, w):
    with torch.no_grad():
        w.mul_(0.5)
    return x + 1, x.detach()


def part_of_hidden(x, w):
    y = (x * w).detach()
    return y[0], y[1:]


def parts_of_detached(x, w):
    y = (x * w).exp()
    return y[0].detach(), y[1].detach(), y * y


PROGRAMS: dict[str, Program] = {
    "views": lambda x, w: (y := x * w, y.view(-1), y[0]),
    "views alone": lambda x, w: (y := x * w, (y.view(-1), y[0]))[1],
    "unbound": lambda x, w: (x * w).unbind(0),
    "chunks": lambda x, w: (y := x * w, *y.chunk(2)),
    "parts of an input": lambda x, w: (x * w, *x.split(1)),
    "views of an input": lambda x, w: (x.view(-1), x[0]),
    "views of two inputs": lambda x, w: (x.view(-1), w[0], x.detach()),
    "without grad": without_grad(lambda y: (y[0], y.view(-1))),
    "parts without grad": without_grad(lambda y: y.unbind(0)),
    "detached without grad": without_grad(lambda y: (y.detach()[0],)),
    "inputs without grad": of_inputs_without_grad,
    "detached": lambda x, w: (y := x * w, y.detach()),
    "detached first": lambda x, w: (y := x * w, (y.detach(), y))[1],
    "views of detached": lambda x, w: (y := x * w, d := y.detach(), d[0], d.view(-1)),
    "views of detached alone": lambda x, w: (y := x.exp(), d := y.detach(), (d[0], d.view(-1), y * y))[2],
    "detached twice": lambda x, w: (y := x.exp(), (y.detach(), y.detach()[0], y * y))[1],
    "parts of detached": parts_of_detached,
    "parts of what is hidden": part_of_hidden,
    "data": lambda x, w: (y := x * w, y.data, y.data[0]),
    "detached data": lambda x, w: (y := x * w, d := y.data, d.detach(), d.detach()[1]),
    "detached input": lambda x, w: (x * w, x.detach(), w.detach()[0]),
    "detached input alone": lambda x, w: (x.detach(), w.data[0]),
    "two results": lambda x, w: (x + 1, w * 2, x.detach()),
    "a changed parameter": changed_parameter,
    "transposed": lambda x, w: (y := (x * w).t(), y[1], y.detach()),
}


def told(tensor: torch.Tensor) -> list[Any]:
    mode = str(torch._C._autograd._get_creation_meta(tensor)) if tensor._is_view() else None
    layout = tensor.shape, tensor.stride(), tensor.storage_offset()
    return [layout, tensor.requires_grad, tensor.is_leaf, mode, tensor.detach().clone()]


def attempted(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except RuntimeError as error:
        return "raised " + str(error).split(" is ")[-1][:60]


def what_follows(call: Program, grad: bool, changed: int | None, by: str, differentiated: tuple[int, ...]) -> list[Any]:
    """What is seen of the results when one of them is changed and some are differentiated."""
    x = torch.arange(6.0).reshape(2, 3).div(8).requires_grad_(grad)
    w = torch.linspace(0.5, 1, 6).reshape(2, 3).requires_grad_(grad)
    other = torch.full((), 3.0, requires_grad=True)
    results = call(x * 1, w)
    seen = [told(t) for t in results]
    if changed is not None and changed < len(results):
        amount = other if by == "differentiable" else 3.0
        with torch.set_grad_enabled(by != "without grad"):
            seen.append(attempted(lambda: [results[changed].mul_(amount)] and None))
        for t in results:
            seen.append(attempted(lambda t=t: told(t)))
    chosen = [results[k] for k in differentiated if k < len(results)]
    chosen = [t for t in chosen if attempted(lambda t=t: t.requires_grad) is True]
    if chosen:
        seen.append(attempted(lambda: torch.autograd.backward([t.sum() for t in chosen])))
    return [*seen, x.grad, w.grad, other.grad]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.allclose(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(s, t) for s, t in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("grad", [False, True], ids=["constants", "leaves"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_becomes_of_results_that_share_memory(name: str, grad: bool) -> None:
    program = PROGRAMS[name]
    fast = torch.compile(program, backend="magpy")
    what_follows(fast, grad, None, "", ())
    cases = [(None, "", some) for some in ((0,), (1,), (0, 1), (2,), (0, 1, 2))]
    cases += [(k, by, (0, 1)) for k in range(3) for by in ("number", "differentiable", "without grad")]
    with Counted() as counted:
        for changed, by, differentiated in cases:
            expected = what_follows(program, grad, changed, by, differentiated)
            actual = what_follows(fast, grad, changed, by, differentiated)
            assert same(actual, expected), f"{changed} {by} {differentiated}:\n{actual}\nis not\n{expected}"
    assert counted.hits == len(cases), counted.fallbacks


def test_views_of_another_type_are_made_by_the_program() -> None:
    def program(x):
        y = x * 2
        return y, y.detach().view(torch.int32), torch.view_as_complex(y)

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.ones(3, 2, requires_grad=True)
        results = fast(x)
        assert len({t.data_ptr() for t in results}) == 1
        results[0].sum().backward()
        assert x.grad is not None and x.grad.unique().tolist() == [2]
