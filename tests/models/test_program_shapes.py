"""Shapes of program that TorchScript and tracing are known to fail on."""

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.compare import assert_same
from tests.counting import Counted

Pair = namedtuple("Pair", "first second")


class Base(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.activate(self.proj(x))

    def activate(self, x):
        return x.relu()


class Derived(Base):
    def __init__(self):
        super().__init__(8)
        self.extra = Base()

    def forward(self, x):
        return self.extra(super().forward(x)) + 1

    def activate(self, x):
        return super().activate(x).tanh()


class SplitBySelf(nn.Module):
    def __init__(self):
        super().__init__()
        self.dims = [2, 3, 3]

    def forward(self, x):
        a, b, c = x.split(self.dims, 1)
        return a.sum(1, keepdim=True) * b + c


class CallsThroughSelf(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
        self.order = ["b", "a"]

    def forward(self, x):
        for name in self.order:
            x = self.layers[name](x)
        return x


class TensorAndState(nn.Module):
    def forward(self, x, state):
        h, c = state
        return x + h, (h * 2, c - x)


class ListsAndDicts(nn.Module):
    def forward(self, xs, table):
        total = xs[0] * 0
        for i in range(len(xs)):
            total = total + xs[i]
        return {"sum": total, "scaled": [total * table["scale"], xs[-1]], "n": len(xs)}


class LoopOverSize(nn.Module):
    def forward(self, xs):
        out = []
        for i in range(xs.size(0)):
            out.append(xs[i] * i)
        return torch.stack(out)


@dataclass
class Output:
    value: torch.Tensor
    parts: list
    count: int = 0


class NestedOutputs(nn.Module):
    def forward(self, x):
        shared = [x + 1]
        return Output(x * 2, [shared, shared, Pair(x, 3)], 2), OrderedDict(a=x - 1, b={"c": (x.sum(), None, "text")})


class Defaults(nn.Module):
    def forward(self, x, scale=2.0, *rest, bias=None, **options):
        x = x * scale
        for r in rest:
            x = x + r
        if bias is not None:
            x = x + bias
        return x - options.get("offset", 0)


def x():
    return torch.randn(4, 8)


PROGRAMS = {
    "inheritance and super": (Derived, lambda: ((x(),), {})),
    "split by dimensions in self": (SplitBySelf, lambda: ((x(),), {})),
    "submodules through self": (CallsThroughSelf, lambda: ((x(),), {})),
    "tensor and tuple of tensors": (TensorAndState, lambda: ((x(), (x(), x())), {})),
    "lists and dicts of tensors": (ListsAndDicts, lambda: (([x(), x(), x()], {"scale": x()}), {})),
    "loop over a size": (LoopOverSize, lambda: ((x(),), {})),
    "nested outputs": (NestedOutputs, lambda: ((x(),), {})),
    "default arguments": (Defaults, lambda: ((x(),), {})),
    "keyword arguments": (Defaults, lambda: ((x(), 3.0, x()), {"bias": x(), "offset": 1})),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_is_one_trace_and_equals_eager(name):
    make, data = PROGRAMS[name]
    model = make().eval()
    compiled = torch.compile(model, backend="magpy")
    with torch.no_grad():
        for call in range(3):
            args, kwargs = data()
            expected = copy.deepcopy(model)(*args, **kwargs)
            with Counted() as counted:
                actual = compiled(*args, **kwargs)
            assert_same(actual, expected)
            counted.assert_hit() if call else counted.assert_observed()


def test_results_share_what_eager_shares():
    compiled = torch.compile(NestedOutputs(), backend="magpy")
    data = x()
    for _ in range(2):
        out, table = compiled(data)
        assert out.parts[0] is out.parts[1]
        assert out.parts[2].first is data


def test_gate_on_data_is_right_on_both_sides():
    def gate(x):
        return x if x.sum() > 0 else -x

    compiled = torch.compile(gate, backend="magpy")
    for sign in (1, -1, 1, -1):
        data = sign * torch.ones(4)
        assert_same(compiled(data), gate(data))
