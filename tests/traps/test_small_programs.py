"""Whole small programs: output, warnings, results of many kinds, exchanged methods, caches that grow."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import io
import types
import typing
import warnings

import torch
from torch import nn

from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)


def test_output_redirected_inside():
    def scenario(wrap):
        def program(x):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                print("inside", x.shape)
            return x * len(out.getvalue()), out.getvalue()

        fast = wrap(program)
        for _ in range(3):
            yield fast(X)

    same_as_eager(scenario)


def test_output_to_a_python_file():
    def scenario(wrap):
        log = []

        class Out:
            def write(self, s):
                log.append(s)

            def flush(self):
                log.append("flush")

        def program(x):
            print("a", x.shape, file=out)
            return x * len(log)

        out = Out()
        fast = wrap(program)
        for _ in range(3):
            yield fast(X), log

    same_as_eager(scenario)


def test_stdout_exchanged():
    def scenario(wrap):
        def program(x):
            print("a")
            return x * 2

        fast = wrap(program)
        for _ in range(4):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                yield fast(X)
            yield out.getvalue()

    same_as_eager(scenario)


def test_warnings_caught_inside():
    def scenario(wrap):
        def program(x):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.warn("hidden", stacklevel=1)
            return x * len(caught)

        fast = wrap(program)
        with warnings.catch_warnings(record=True) as outer:
            warnings.simplefilter("always")
            for _ in range(5):
                yield fast(X), len(outer)

    same_as_eager(scenario)


def test_hooks_closure_changes_before_backward():
    def scenario(wrap):
        w = torch.ones(4, requires_grad=True)
        box = {"k": 2.0}
        k = 2.0

        def program(x):
            y = x * w
            y.register_hook(lambda g: g * box["k"] + k)
            return y.sum()

        fast = wrap(program)
        for _ in range(3):
            w.grad = None
            y = fast(X)
            box["k"] += 1
            k += 1
            y.backward()
            yield w.grad

    same_as_eager(scenario)


@dataclasses.dataclass
class Out:
    y: torch.Tensor
    n: int = 0
    parts: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Config:
    k: float = 2.0
    flags: frozenset = frozenset({"a"})


class Pair(typing.NamedTuple):
    a: torch.Tensor
    b: int = 3


def test_results_of_many_kinds():
    def scenario(wrap):
        config = Config()

        def program(x, config):
            o = Out(x * config.k, n=len(config.flags), parts=[x, x + 1])
            return (
                o,
                Pair(x + 1),
                collections.OrderedDict(a=x, b=[x * 2]),
                {"s": {1, 2}},
                slice(1, None),
                config,
                dataclasses.asdict(config),
                dataclasses.replace(config, k=7.0),
            )

        fast = wrap(program)
        for c in (config, Config(), Config(3.0), config):
            r = fast(X, c)
            yield r, r[5] is c, r[0].parts[0] is X

    same_as_eager(scenario)


def test_pickled_and_copied_results():
    def scenario(wrap):
        def program(x):
            d = copy.deepcopy({"a": x * 2, "b": [x]})
            d2 = copy.copy(d)
            d2["c"] = 1
            return d, d2, d["b"][0] is x

        fast = wrap(program)
        for _ in range(3):
            yield fast(X)

    same_as_eager(scenario)


def test_methods_exchanged_on_instances_and_modules():
    def scenario(wrap):
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        for p in net.parameters():
            nn.init.constant_(p, 0.5)
        fast = wrap(net)
        yield fast(X), fast(X)
        net[0].forward = lambda x: x * 3
        yield fast(X), fast(X)
        del net[0].forward
        yield fast(X)
        net[1].forward = types.MethodType(lambda self, x: x - 5, net[1])
        yield fast(X), fast(X)
        old = nn.ReLU.forward
        del net[1].forward
        nn.ReLU.forward = lambda self, x: x * 100
        try:
            yield fast(X), fast(X)
        finally:
            nn.ReLU.forward = old
        yield fast(X)
        old = torch.nn.functional.linear
        torch.nn.functional.linear = lambda x, w, b=None: x + 1
        try:
            yield fast(X), fast(X)
        finally:
            torch.nn.functional.linear = old
        yield fast(X)
        net.insert(1, nn.Tanh())
        yield fast(X), fast(X)
        net.train(False)
        yield fast(X)
        with torch.no_grad():
            yield fast(X), fast(X)
        net.requires_grad_(False)
        yield fast(X), fast(X)
        net.to(torch.float64)
        yield attempt(fast, X), attempt(fast, X.double())

    same_as_eager(scenario)


def test_parametrisations_come_and_go():
    def scenario(wrap):
        lin = nn.Linear(4, 4)
        nn.init.constant_(lin.weight, 0.5)
        nn.init.constant_(lin.bias, 0.1)
        fast = wrap(lin)
        yield fast(X), fast(X)
        nn.utils.parametrizations.weight_norm(lin)
        yield fast(X), fast(X)
        nn.utils.parametrize.remove_parametrizations(lin, "weight")
        yield fast(X), fast(X)
        nn.utils.parametrizations.spectral_norm(lin)
        torch.manual_seed(0)
        for _ in range(3):
            yield fast(X), list(lin.buffers())
        lin.eval()
        yield fast(X), fast(X)

    same_as_eager(scenario)


def test_dict_and_list_arguments_changed_between():
    def scenario(wrap):
        def program(batch, extra=None, *rest, flag=False, **kw):
            y = batch["x"] * batch.get("k", 1)
            for r in rest:
                y = y + r
            for name, v in kw.items():
                y = y * v + len(name)
            batch["seen"] = batch.get("seen", 0) + 1
            if extra is not None:
                extra.append(y.shape)
            return -y if flag else y

        fast = wrap(program)
        for kw in ({}, {"a": 2.0}, {"b": 2.0}, {"a": 2.0, "b": 3.0}, {"b": 3.0, "a": 2.0}, {"flag": True}, {}):
            batch, extra = {"x": X, "k": 2}, []
            yield fast(batch, extra, **kw), batch, extra
            yield fast(batch, extra, X, X, **kw), batch, extra
        yield attempt(fast), attempt(fast, {}, bad=1)

    same_as_eager(scenario)


def test_truth_of_data_with_effects_and_exceptions():
    def scenario(wrap):
        log = []

        def program(x):
            log.append("start")
            if not (x >= 0).all():
                raise ValueError("negative")
            if x.max() > 2:
                log.append("big")
            while x.sum() > 10:
                x = x / 2
                log.append("halved")
            return x, int(x.sum()), float(x[1]) > 0.5, x.tolist() if x[0] > 1 else None

        fast = wrap(program)
        for k in (1.0, 0.1, 5.0, -1.0, 1.0, 0.1, 5.0, 20.0, 1.0):
            yield attempt(fast, X * k), log

    same_as_eager(scenario)


def test_custom_setattr_getattr_modules():
    def scenario(wrap):
        class Strange(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = {"a": 1.0}

            def __getattr__(self, name):
                if name == "magic":
                    return self.inner["a"]
                return super().__getattr__(name)

            def __setattr__(self, name, value):
                if name == "magic":
                    self.inner["a"] = value
                else:
                    super().__setattr__(name, value)

            def forward(self, x):
                self.magic = self.magic + 1
                self.w = nn.Parameter(torch.ones(4)) if not hasattr(self, "w") else self.w
                return x * self.magic * self.w

        net = Strange()
        fast = wrap(net)
        for _ in range(4):
            yield fast(X), net.inner, len(list(net.parameters()))

    same_as_eager(scenario)


def test_nonlocal_tensor_state_and_views_of_state():
    def scenario(wrap):
        class Cache(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("k", torch.zeros(8, 4))
                self.pos = 0

            def forward(self, x):
                self.k[self.pos % 8] = x
                self.pos += 1
                return self.k[: self.pos].sum(0), self.k[self.pos - 1]

        net = Cache()
        fast = wrap(net)
        for i in range(10):
            yield attempt(fast, X + i), net.k, net.pos
        with torch.no_grad():
            net.pos = 0
            for i in range(4):
                yield attempt(fast, X + i), net.k, net.pos

    same_as_eager(scenario)


def test_growing_cache_by_cat():
    def scenario(wrap):
        class Cache(nn.Module):
            def __init__(self):
                super().__init__()
                self.past = None
                self.items = []

            def forward(self, x):
                self.past = x[None] if self.past is None else torch.cat([self.past, x[None]])
                self.items.append(x * 2)
                return self.past.mean(0) + sum(self.items)

        net = Cache()
        fast = wrap(net)
        for i in range(8):
            yield fast(X + i), net.past, net.items
        net.past, net.items = None, []
        for i in range(8):
            yield fast(X + i), net.past, net.items

    same_as_eager(scenario)
