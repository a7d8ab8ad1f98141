"""Backward from results one after the other: what autograd frees, and what it can go through again, is as in eager."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import magpy
from magpy import joint
from magpy.report import find_callable, report_of
from tests.counting import Counted

PROGRAMS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "independent": lambda x, w, v: (w.cumsum(-1), x * w),
    "shared trunk": lambda x, w, v: (lambda h: (h * 2 * v, h.exp(), h + 1))((x * w).tanh()),
    "two models": lambda x, w, v: ((x * w).sin(), (x * v).cos(), w + v, x.clone()),
    "nothing saved": lambda x, w, v: (w + x, v - w),
    "one of each": lambda x, w, v: (w * w, v + 1),
    "common part": lambda x, w, v: ((x * w).relu(), torch.relu(x * w) * v),
    "views": lambda x, w, v: (w[1:] + 0, (w * v)[:2], w.view(3, 1) + v),
    "many": lambda x, w, v: tuple((w * i).sin() for i in range(1, 11)),
}
#: (which result, retain_graph) of each backward pass
ORDERS: list[list[tuple[int, bool]]] = [
    [(0, False), (1, False)],
    [(1, False), (0, False)],
    [(0, False), (0, False), (1, False), (0, False)],
    [(1, True), (1, False), (1, False), (0, True), (0, False)],
    [(-1, False), (-1, False), (0, False)],
]


def outcomes(program: Callable[..., Any], order: list[tuple[int, bool]]) -> Any:
    x = torch.arange(3.0)
    w, v = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    results = program(x, w, v)
    seen: list[Any] = []
    for i, retain in order:
        if not results[i].requires_grad:
            continue
        try:
            results[i].sum().backward(retain_graph=retain)
            seen.append([None if p.grad is None else p.grad.clone() for p in (w, v)])
        except RuntimeError as error:
            seen.append(str(error))
            break  # what an error leaves in the gradients is nobody's promise
    return seen


@pytest.mark.parametrize("first", [(0, 1, 2), (0, 1), ()])
def test_a_part_that_cannot_be_made_on_its_own(monkeypatch: pytest.MonkeyPatch, first: tuple[int, ...]) -> None:
    """Zeros stand for the gradients that are absent, whichever passes were made before."""

    def refuse(*_: Any) -> Any:
        raise joint.Unsupported("on purpose")

    def gradients(program: Callable[..., Any], which: tuple[int, ...]) -> Any:
        x = torch.arange(3.0)
        w, v = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
        h = program(x, w, v)
        torch.autograd.backward([h[i].sum() for i in which])
        return w.grad, torch.zeros(3) if v.grad is None else v.grad

    def program(x, w, v):
        return (w * v).floor(), (x * w).exp() * v, (w * v).sin() * x  # of the first, the gradient is not used

    monkeypatch.setattr(joint.Partial, "make", refuse)
    fast = torch.compile(program, backend="magpy")
    for which in [first, (2,), (0, 1), (0, 1, 2)]:
        if which:
            torch.testing.assert_close(gradients(fast, which), gradients(program, which))


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_backward_from_one_result_after_the_other(name: str) -> None:
    if name == "many":  # more groups than are told apart: those are freed together
        fast = torch.compile(PROGRAMS[name], backend="magpy")
        (first, *_), last = outcomes(fast, [(0, False)]), outcomes(fast, [(i, True) for i in range(10)])
        torch.testing.assert_close(last, outcomes(PROGRAMS[name], [(i, True) for i in range(10)]))
        torch.testing.assert_close(first, outcomes(PROGRAMS[name], [(0, False)])[0])
        return
    fast = torch.compile(PROGRAMS[name], backend="magpy")
    for order in ORDERS:
        expected = outcomes(PROGRAMS[name], order)
        for _ in range(2):
            found = outcomes(fast, order)
            assert len(found) == len(expected)
            for mine, eager in zip(found, expected, strict=True):
                if isinstance(eager, str):
                    assert mine == eager
                else:
                    torch.testing.assert_close(mine, eager)


# Not "shared trunk": of results that share what is saved, a pass from one comes to inputs that only another depends on.
@pytest.mark.parametrize("name", [*sorted({*PROGRAMS} - {"many", "shared trunk"}), "one is not used"])
def test_what_inputs_have_saved_before_the_call(name: str) -> None:
    """A backward pass frees it for those inputs only that its results depend on."""
    program = PROGRAMS.get(name, lambda x, w, v: (w * v.detach(), x * 2))
    fast = torch.compile(program, backend="magpy")

    def outcome(call: Callable[..., Any], order: list[int]) -> Any:
        x, (a, b) = torch.arange(3.0), torch.full((2, 3), 0.5, requires_grad=True)
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        w, v = a.exp(), b.sin()
        ends = [w, v, *call(x, w, v)]
        seen: list[Any] = []
        for i in order:
            try:
                if ends[i].requires_grad:
                    ends[i].sum().backward()
            except RuntimeError as error:
                return [*seen, str(error)]
            seen.append([None if p.grad is None else p.grad.clone() for p in (a, b)])
        return seen

    n = 2 + min(2, len(program(*torch.ones(3, 3))))
    for order in itertools.permutations(range(n)):
        for _ in range(2):
            expected, found = outcome(program, [*order]), outcome(fast, [*order])
            assert len(found) == len(expected), order
            for mine, eager in zip(found, expected, strict=True):
                if isinstance(eager, str):
                    assert mine == eager, order
                else:
                    torch.testing.assert_close(mine, eager)
    assert find_callable(fast).hits


UNSEEN: dict[str, Callable[..., Any]] = {
    "of a copied module": lambda x, net: copy.deepcopy(net)(x),
    "of a leaf": lambda x, net: x * x.new_ones(3).requires_grad_(),
    "beside another": lambda x, net: (net(x), copy.deepcopy(net)(x).exp(), x * x.new_ones(3).requires_grad_()),
}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", list(UNSEEN))
def test_results_that_depend_on_leaves_that_nobody_sees(name: str, trained: bool) -> None:
    """They require grad, whatever the inputs do, and a backward pass from them gives nobody a gradient."""
    fast, net = torch.compile(UNSEEN[name], backend="magpy"), torch.nn.Linear(3, 3).requires_grad_(trained)

    def outcome(call: Callable[..., Any]) -> Any:
        net.zero_grad()
        results = call(torch.arange(3.0), net)
        results = results if isinstance(results, tuple) else (results,)
        seen = [(t.requires_grad, t.is_leaf, t.detach().clone()) for t in results]
        if results[-1].requires_grad:
            results[-1].sum().backward()
        return seen, net.weight.grad

    with Counted() as counted:
        for _ in range(3):
            (mine, grad), (eager, expected) = outcome(fast), outcome(UNSEEN[name])
            assert [row[:2] for row in mine] == [row[:2] for row in eager]
            torch.testing.assert_close([row[2] for row in mine], [row[2] for row in eager])
            assert (grad is None) == (expected is None)
    assert counted.hits and not counted.fallbacks


MEAN, VAR = torch.full((3,), 0.1), torch.full((3,), 1.5)


def norm_and_square(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    inner = F.linear(x.expand(2, 3), torch.outer(w, v), w)
    normed = F.batch_norm(torch.relu(inner), MEAN, VAR, v, w)
    out = F.linear(normed, v.view(1, 3), w[:1])
    return (out**2).mean(), out, normed


PARTS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "norm and square": norm_and_square,
    "softmax": lambda x, w, v: (lambda s: (s, (s * v).sum(), s.log()))((x * w).softmax(0)),
    "two trunks": lambda x, w, v: (w.exp() * x, v.exp() * x, w.exp() * v.exp()),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PARTS))
def test_every_part_of_a_backward_pass_after_every_other(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever sets of results were gone backward from before: what has no gradient in eager has none."""
    sets = [parts for n in (1, 2, 3) for parts in itertools.combinations(range(3), n)]
    for first in sets:
        magpy.reset()
        fast = torch.compile(PARTS[name], backend="magpy")
        for parts in (first, first, *sets):
            gradients = []
            for call in (fast, PARTS[name]):
                x = torch.arange(3.0)
                w, v = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
                results = call(x, w, v)
                torch.autograd.backward([results[i].sum() for i in parts])
                gradients.append([w.grad, v.grad])
            assert [g is None for g in gradients[0]] == [g is None for g in gradients[1]], (first, parts)
            torch.testing.assert_close(*gradients)
        assert report_of(find_callable(fast)).hits == len(sets) + 1 and not magpy.stats()["fallbacks"]
    assert not [r for r in caplog.records if "from some of the results" in r.getMessage()]


def test_what_is_saved_is_freed_with_the_last_backward_pass() -> None:
    """Results that share what was saved (a loss and its logits) hold nothing of it after the loss's backward pass."""
    import weakref

    w = torch.ones(4, 4, requires_grad=True)

    def program(x, w):
        h = torch.sigmoid(x @ w)
        return (h * h).sum(), h

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.ones(2, 4)
        loss, logits = fast(x, w)
        loss.backward()
        saved = weakref.ref(x)
        del x, loss
        assert saved() is None and logits.requires_grad


CHANGED: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    **{name: PROGRAMS[name] for name in ("shared trunk", "one of each", "common part", "views")},
    "losses": lambda x, w, v: ((x * w).sum(), (w.sin() * v).sum()),
    "what others are computed of": lambda x, w, v: (y := x * w, y.sin(), y.view(1, 3).sin() * v),
    "saved as it comes out": lambda x, w, v: (y := (x * w).exp(), v.sigmoid(), y * v),
    "saved by two": lambda x, w, v: (y := w + v, y.exp(), y * x, y.tanh() * v),
    "norms": lambda x, w, v: (F.layer_norm(w, (3,), v), w.softmax(-1), F.mse_loss(w, v)),
    "pieces": lambda x, w, v: (w * v).split([1, 2]),
}


def gradients_after_change(program: Callable[..., Any], changed: int, place: int, before: bool) -> Any:
    """Of w and v, backward from result `place`, when the `changed`th of x, w, v and the results is another by then."""
    x = torch.arange(3.0)
    w, v = torch.tensor([0.5, -1.0, 2.0], requires_grad=True), torch.tensor([2.0, 0.25, -1.0], requires_grad=True)
    results = program(x, w, v)
    if before:
        results[place - 1].sum().backward(retain_graph=True)
    try:
        with torch.no_grad():
            (x, w, v, *results)[changed].mul_(2)
        results[place].sum().backward()
    except RuntimeError as error:
        return re.sub(r"Output . of \w+|\[.*", "", str(error))
    return w.grad, v.grad


@pytest.mark.parametrize("before", [False, True], ids=["alone", "second"])
@pytest.mark.parametrize("name", list(CHANGED))
def test_only_what_a_pass_needs_may_not_change(name: str, before: bool) -> None:
    program = CHANGED[name]
    fast = torch.compile(program, backend="magpy")
    n = len(program(torch.ones(3), *torch.ones(2, 3, requires_grad=True)))
    for changed, place in itertools.product(range(3 + n), range(n)):
        expected = gradients_after_change(program, changed, place, before)
        for _ in range(2):
            actual = gradients_after_change(fast, changed, place, before)
            if isinstance(expected, str):
                assert actual == expected, (changed, place)
            else:
                torch.testing.assert_close(actual, expected, msg=lambda text: f"{changed}, {place}: {text}")  # noqa: B023
    assert find_callable(fast).hits
