"""Backward from results one after the other: what autograd frees, and what it can go through again, is as in eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

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
