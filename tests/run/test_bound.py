"""Bound plans: constants in front, and what is made of weights behind, for as long as these are the same."""

import gc
import re
import sys
import weakref

import numpy as np
import pytest
import torch
from graphs import Graph
from torch import nn

from magpy import _C
from tests.threads import in_threads

aten = torch.ops.aten


def weighted(make=lambda w: w * 2, n_weights=1):
    """(x, w...) -> x + first + (made of the weights), and how often it was made."""
    x = torch.zeros(3)
    g = Graph(*[x] * (2 + 2 * n_weights))
    first, given, *rest = g.values
    total = g.op(aten.add.Tensor, first, given)
    for value in rest[n_weights:]:
        total = g.op(aten.add.Tensor, total, value)
    calls = []

    def made(inputs):
        calls.append(inputs)
        weights = inputs[1:]
        with torch.no_grad(), torch.inference_mode(False):
            return tuple(make(w) for w in weights), [w.detach() for w in weights]

    plan = g.compile(total)
    return _C.BoundPlan(plan, (torch.full((3,), 10.0),), tuple(range(1, 1 + n_weights)), made), calls


X = torch.arange(3.0)


def test_constants_come_first():
    x = torch.ones(3)
    g = Graph(x, x, x)
    a, b, c = g.values
    plan = g.compile(g.op(aten.sub.Tensor, g.op(aten.sub.Tensor, a, b), c))
    bound = _C.BoundPlan(plan, (torch.full((3,), 10.0), torch.full((3,), 2.0)))
    assert bound([x])[0].tolist() == bound((x,))[0].tolist() == [7.0] * 3
    assert bound.run is plan and [t[0].item() for t in bound.first] == [10.0, 2.0] and bound.made_of == []


CHANGES = {
    "in place": lambda w: w.mul_(3),
    "behind the counter": lambda w: w.data.mul_(3),
    "numpy": lambda w: np.copyto(w.detach().numpy(), 7),
    "other memory": lambda w: setattr(w, "data", torch.full((3,), 8.0)),
    "other memory, same content": lambda w: setattr(w, "data", w.data.clone()),
}


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter, nn.Buffer])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_noticed(name, kind):
    with torch.no_grad():
        w = kind(torch.tensor([1.0, 2.0, 3.0]))
        bound, calls = weighted()
        for n in (1, 2):
            for _ in range(3):
                torch.testing.assert_close(bound([X, w])[0], 10 + X + w * 2)
            assert len(calls) == n and [*map(id, bound.made_of)] == [id(w)]
            CHANGES[name](w)


def test_another_weight_and_forgetting():
    bound, calls = weighted()
    w, v = torch.ones(3), torch.ones(3)
    for weight in (w, v, v, w):
        torch.testing.assert_close(bound([X, weight])[0], 10 + X + weight * 2)
    assert len(calls) == 3
    bound.forget()
    assert bound.made_of == []
    bound([X, w])
    assert len(calls) == 4


def test_inference_tensors_are_not_kept():
    with torch.inference_mode():
        w = torch.ones(3)
    bound, calls = weighted()
    for n in (1, 2, 3):
        torch.testing.assert_close(bound([X, w])[0], 12 + X)
        assert len(calls) == 2 * n - 1 and bound.made_of == []
        with torch.inference_mode():
            assert bound([X, torch.ones(3)])[0].tolist() == [12, 13, 14]
        assert len(calls) == 2 * n and bound.made_of == []


def test_versions_of_subclasses_are_asked():
    class Odd(torch.Tensor):
        asked = 0

        @property
        def _version(self):
            Odd.asked += 1
            return Odd.asked

    w = torch.ones(3).as_subclass(Odd)
    bound, calls = weighted(lambda w: w.as_subclass(torch.Tensor) * 2)
    for n in (1, 2):
        assert bound([X, w])[0].tolist() == [12, 13, 14]
        assert len(calls) == n and Odd.asked


def test_what_is_made_goes_with_its_weight_and_with_the_plan():
    bound, calls = weighted()
    kept = []
    w = torch.ones(3)
    bound([X, w])
    calls.clear()
    kept.append(weakref.ref(w))
    del w
    gc.collect()
    assert kept[0]() is None and bound.made_of == []
    w = torch.ones(3)
    bound([X, w])
    calls.clear()
    mine = weakref.ref(bound)
    del bound
    gc.collect()
    assert mine() is None and sys.getrefcount(w) == 2


def test_cycles_are_collected():
    class Maker:
        def __call__(self, inputs):
            return (inputs[0],), inputs

    maker = Maker()
    maker.plan = _C.BoundPlan(lambda inputs: inputs, (), (0,), maker)
    assert [t is X for t in maker.plan([X])] == [True, True]
    gone = weakref.ref(maker)
    del maker
    gc.collect()
    assert gone() is None


def test_other_runners():
    def sums(inputs):
        return [t.sum() for t in inputs]

    bound = _C.BoundPlan(sums, (torch.ones(2),), (0,), lambda inputs: ((inputs[0] * 2,), None))
    assert [t.item() for t in bound([X])] == [2.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([X], "number 1 is a weight"),
        ([X, torch.ones(3), X, X], "4 inputs given"),
        ([X, torch.ones(4)], "not the size, strides, dtype or device"),
        ([X, "weight"], "input 2 is a str, not a tensor"),
        (3, "not iterable"),
    ],
)
def test_bad_inputs_are_clear_errors(given, error):
    bound, _ = weighted()
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        bound(given)


def test_what_is_made_badly_is_an_error():
    w = torch.ones(3)
    for answer in ((), ((), None), ((w, w), None), ((torch.ones(4),), None), (("w",), None), None, ([w], None)):
        bound, _ = weighted()
        bound = _C.BoundPlan(bound.run, bound.first, (1,), lambda inputs, answer=answer: answer)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            bound([X, w])
        assert bound.made_of == []

    def fails(inputs):
        raise KeyError("mine")

    bound = _C.BoundPlan(bound.run, bound.first, (1,), fails)
    with pytest.raises(KeyError, match="mine"):
        bound([X, w])


def test_bad_constants_are_clear_errors():
    bound, _ = weighted()
    for first in ((torch.ones(4),), ("w",), (X,) * 5):
        with pytest.raises((TypeError, ValueError)):
            _C.BoundPlan(bound.run, first)
    for weights in (("a",), (-1,), (2**70,)):
        with pytest.raises((TypeError, OverflowError)):
            _C.BoundPlan(bound.run, (X,), weights, lambda i: None)


def test_made_again_while_it_is_made():
    """What is forgotten, or made by a call within, meanwhile is not kept in the place of what is newer."""
    bound, calls = weighted()
    inner, w = [], torch.ones(3)

    def make(inputs):
        calls.append(1)
        if len(calls) == 1:
            inner.append(plan([X, w])[0])
        if len(calls) == 3:
            plan.forget()
        return (w * 2,), None

    plan = _C.BoundPlan(bound.run, bound.first, (1,), make)
    assert plan([X, w])[0].equal(inner[0]) and len(calls) == 2
    assert plan([X, w])[0].equal(inner[0]) and len(calls) == 2
    plan.forget()
    assert plan([X, w])[0].equal(inner[0]) and len(calls) == 3 and plan.made_of == []
    assert plan([X, w])[0].equal(inner[0]) and len(calls) == 4 and len(plan.made_of) == 1


def test_threads_with_weights_of_their_own():
    bound, _ = weighted(n_weights=2)
    failures = []

    def work(i):
        w, v = torch.full((3,), float(i)), torch.full((3,), float(10 * i))
        for n in range(200):
            if not bound([X, w, v])[0].equal(10 + X + 2 * w + 2 * v):
                failures.append((i, n))
            if n % 50 == 0:
                w += 1

    in_threads(work, interval=1e-6)
    assert not failures


def test_constants_of_the_program_need_no_python():
    """A graph with tensors made from numbers runs from C, too: no list of inputs is made for it."""

    def program(x):
        return x * torch.tensor([1.0, 2.0, 3.0]) + 1

    from magpy.report import find_callable

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        assert fast(X).tolist() == [1.0, 3.0, 7.0]
    (trace,) = find_callable(fast).describe()["traces"]
    assert isinstance(trace["runner"], (_C.Plan, _C.BoundPlan))
