"""What torch's own compiler is known to get wrong: each program's world changes between calls, and calls notice."""

from __future__ import annotations

import collections
import copy
import functools
import os
import random
import traceback
import types
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.traps.differential import attempt, same_as_eager

X = torch.tensor([-1.0, 0.0, 2.0, 3.0])


def module(source: str) -> dict[str, Any]:
    """A namespace in which `source` was executed: its globals are its own."""
    space: dict[str, Any] = {"__name__": "some_module", "torch": torch, "nn": nn}
    exec(source, space)
    return space


def repeated(make: Any, changes: list[Any], min_hits: int = 1) -> None:
    """make() -> (target, call, state): call(compiled target) is made thrice before and after each change(state)."""

    def scenario(wrap):
        target, call, state = make()
        fast = wrap(target)
        for change in (lambda state: None, *changes):
            change(state)
            for _ in range(3):
                yield attempt(call, fast)

    same_as_eager(scenario, min_hits=min_hits)


# -- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["len", "max", "isinstance", "range", "sum", "float", "zip", "print"])
def test_builtin_shadowed_by_a_global_later(name: str) -> None:
    def make():
        space = module(
            "def f(x):\n"
            "    n = len([1, 2]) + max(1, 3) + sum([1, 1]) + float('2') + isinstance(x, torch.Tensor)\n"
            "    for i, j in zip(range(2), range(2)): n = n + i * j\n"
            "    if n > 100: print(n)\n"
            "    return x * n\n"
        )
        return space["f"], lambda f: f(X), space

    def shadow(space):
        space[name] = lambda *args: [(5, 7)] if name in ("zip",) else [4, 5] if name == "range" else 200

    repeated(make, [shadow, lambda space: space.pop(name)], min_hits=4)


def test_global_shadowed_in_the_builtins_themselves() -> None:
    import builtins

    def make():
        return module("def f(x):\n    return x * magpy_test_factor\n")["f"], lambda f: f(X), None

    def put(value):
        return lambda _: setattr(builtins, "magpy_test_factor", value)

    try:
        repeated(make, [put(2.0), put(3), lambda _: delattr(builtins, "magpy_test_factor")], min_hits=2)
    finally:
        vars(builtins).pop("magpy_test_factor", None)


# -- Attributes -----------------------------------------------------------------------------------------------------


def test_attribute_set_over_getattr() -> None:
    class Config:
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return len(name)

    def make():
        config = Config()
        return (lambda x: x * config.scale + getattr(config, "offset", 0)), lambda f: f(X), config

    changes = [
        lambda config: setattr(config, "scale", 2.0),
        lambda config: setattr(config, "scale", -2.0),
        lambda config: vars(config).clear(),
        lambda config: setattr(type(config), "offset", 9),
        lambda config: delattr(type(config), "offset"),
    ]
    repeated(make, changes, min_hits=8)


def test_attribute_set_over_getattr_of_a_module() -> None:
    def make():
        class Net(nn.Module):
            def __getattr__(self, name):
                return 3.0 if name == "scale" else super().__getattr__(name)

            def forward(self, x):
                return x * self.scale

        net = Net()
        return net, lambda f: f(X), net

    changes = [
        lambda net: setattr(net, "scale", 2.0),
        lambda net: delattr(net, "scale"),
        lambda net: net.register_buffer("other", torch.ones(1)),
        lambda net: net.register_parameter("scaled", nn.Parameter(torch.tensor(4.0))),
        lambda net: setattr(
            type(net), "__getattr__", lambda self, name: nn.Module.__getattr__(self, name) if name != "scale" else 5.0
        ),
    ]
    repeated(make, changes, min_hits=4)


def things() -> tuple[type, type]:
    class Thing:
        def __init__(self):
            self.items = [1, 2]

        def scale(self):
            return 2.0

        @property
        def prop(self):
            return 3.0

        def __add__(self, other):
            return other + 1

        def __bool__(self):
            return True

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return self.items[i]

        def __contains__(self, item):
            return item in self.items

        def __eq__(self, other):
            return True

        def __call__(self, x):
            return x * 2

        def __iter__(self):
            return iter(self.items)

        def __enter__(self):
            return 1

        def __exit__(self, *error):
            return False

    class Other(Thing):
        def scale(self):
            return 20.0

        @property
        def prop(self):
            return 30.0

        def __add__(self, other):
            return other - 1

    return Thing, Other


REPLACED = {
    "scale": lambda self: -2.0,
    "prop": property(lambda self: -3.0),
    "__add__": lambda self, other: other - 5,
    "__bool__": lambda self: False,
    "__len__": lambda self: 7,
    "__getitem__": lambda self, i: 9,
    "__contains__": lambda self, item: False,
    "__eq__": lambda self, other: False,
    "__call__": lambda self, x: x - 2,
    "__iter__": lambda self: iter([5]),
    "__enter__": lambda self: 4,
    "__exit__": lambda self, *error: True,
    "__getattribute__": lambda self, name: 6.0 if name == "prop" else object.__getattribute__(self, name),
}


def uses(thing: Any, x: torch.Tensor) -> Any:
    y = thing + x * thing.scale() + thing.prop
    if thing:
        y = y + len(thing) + thing[0]
    if 2 in thing:
        y = y * 2
    if thing == 1:
        y = y - 1
    for item in thing:
        y = y + item
    with thing as n:
        y = thing(y) * n
        if n == 4:
            raise ValueError("inside")
    return y


@pytest.mark.parametrize("name", list(REPLACED))
def test_method_operator_or_property_replaced_on_a_class(name: str) -> None:
    def make():
        thing = things()[0]()
        return (lambda x: uses(thing, x)), lambda f: f(X), type(thing)

    old: dict[str, Any] = {}

    def replace(kind):
        old["it"] = kind.__dict__.get(name)
        setattr(kind, name, REPLACED[name])

    def restore(kind):
        if old["it"] is None:
            delattr(kind, name)
        else:
            setattr(kind, name, old["it"])

    repeated(make, [replace, restore], min_hits=2)


def test_class_swapped_on_the_instance() -> None:
    def make():
        Thing, Other = things()
        thing = Thing()
        return (lambda x: uses(thing, x)), lambda f: f(X), (thing, Thing, Other)

    def to(i):
        return lambda state: setattr(state[0], "__class__", state[i])

    repeated(make, [to(2), to(1), to(2)], min_hits=6)


def test_class_of_a_module_swapped() -> None:
    class A(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    def make():
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        return net, lambda f: f(X), net

    changes = [lambda net: setattr(net[0], "__class__", A), lambda net: setattr(net[0], "__class__", nn.Linear)]
    repeated(make, changes, min_hits=4)


# -- Values that are equal and not the same -------------------------------------------------------------------------


def test_equal_scalars_that_differ() -> None:
    def make():
        box: dict[str, Any] = {"v": 1}
        return (lambda x: (x / box["v"], x * box["v"], box["v"], isinstance(box["v"], int))), lambda f: f(X), box

    def put(value):
        return lambda box: box.update(v=value)

    values = [0.0, -0.0, 0, False, 1.0, True, 1, float("nan"), -1, 1 + 0j]
    repeated(make, [put(value) for value in values], min_hits=8)


def test_equal_scalars_as_arguments() -> None:
    def scenario(wrap):
        fast = wrap(lambda x, v: (x / v, [v], type(v).__name__))
        for value in (0.0, -0.0, 0.0, 1, 1.0, True, 1, -0.0, True, 1.0):
            yield attempt(fast, X, value)

    same_as_eager(scenario, min_hits=4)


class Number(int):
    def __add__(self, other):
        return Number(int(self) * 10 + int(other))

    def __mul__(self, other):
        return "times"

    def __index__(self):
        return 1


class Name(str):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 5

    def __add__(self, other):
        return "joined"


def test_subclasses_of_int_and_str_with_operators_of_their_own() -> None:
    def scenario(wrap):
        def f(x, n, name):
            table = {"a": 1.0}
            y = x * int(n + 1) + (1 if name == "b" else 2)
            return y, n * 2, name + "c", name in ["z"], list(range(40))[n], table.get(name)

        fast = wrap(f)
        for n in (2, Number(2), 2, Number(2), Number(3)):
            for name in ("a", Name("a")):
                yield attempt(fast, X, n if n != 3 else Number(1), name)
        Number.__add__ = lambda self, other: 4  # type: ignore[method-assign]
        yield fast(X, Number(2), "a")
        Number.__add__ = lambda self, other: Number(int(self) * 10 + int(other))  # type: ignore[method-assign]
        yield fast(X, Number(2), "a")

    same_as_eager(scenario, min_hits=1)


# -- Surroundings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["get", "item", "getenv", "in"])
def test_environment_read(how: str) -> None:
    def f(x):
        if how == "get":
            return x * float(os.environ.get("MAGPY_TEST_FACTOR", "2"))
        if how == "item":
            return x * float(os.environ["MAGPY_TEST_FACTOR"])
        if how == "getenv":
            return x * float(os.getenv("MAGPY_TEST_FACTOR", "3"))
        return x + ("MAGPY_TEST_FACTOR" in os.environ)

    def put(value):
        return lambda _: os.environ.__setitem__("MAGPY_TEST_FACTOR", value)

    def drop(_):
        os.environ.pop("MAGPY_TEST_FACTOR", None)

    repeated(lambda: (f, lambda f: f(X), None), [put("4"), put("5"), drop, put("4"), drop], min_hits=6)


def test_hooks_added_later() -> None:
    def make():
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        with torch.no_grad():
            net[0].weight.copy_(torch.eye(4))

        def call(f):
            x = X.clone().requires_grad_()
            y = f(x)
            y.sum().backward()
            return y, x.grad, net[0].weight.grad.clone()

        return (lambda x: net(x)), call, net  # torch.compile(net) documents that global hooks fire once more

    handles: list[Any] = []

    def add(register, hook):
        return lambda net: handles.append(register(net)(hook))

    changes = [
        add(lambda net: net.register_forward_hook, lambda m, args, out: out * 2),
        add(lambda net: net[0].register_forward_pre_hook, lambda m, args: (args[0] + 1,)),
        add(lambda net: net[0].register_full_backward_hook, lambda m, gi, go: (gi[0] * 3,)),
        add(lambda net: net[0].weight.register_hook, lambda g: g * 5),
        lambda net: [handle.remove() for handle in handles] and handles.clear(),
        add(lambda net: nn.modules.module.register_module_forward_hook, lambda m, args, out: out + 1),
        lambda net: [handle.remove() for handle in handles] and handles.clear(),
    ]
    repeated(make, changes, min_hits=6)


def test_torch_modes_added_later() -> None:
    log: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            log.append(getattr(func, "__name__", "?"))
            out = func(*args, **(kwargs or {}))
            return out * 10 if getattr(func, "__name__", "") == "relu" else out

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            log.append(str(func))
            return func(*args, **(kwargs or {}))

    def scenario(wrap):
        log.clear()
        fast = wrap(lambda x: torch.relu(x) + 1)
        yield fast(X), fast(X), fast(X)
        for mode in (Functions, Operators):
            with mode():
                yield fast(X), fast(X)
            yield fast(X), list(log)

    same_as_eager(scenario, min_hits=4)  # under the modes the calls are plain


def test_weights_tied_anew() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            with torch.no_grad():
                self.a.weight.copy_(torch.eye(4))
                self.b.weight.copy_(torch.arange(16.0).view(4, 4))

        def forward(self, x):
            return self.b(self.a(x)), self.a.weight is self.b.weight

    def make():
        net = Net()

        def call(f):
            net.zero_grad()
            out = f(X)
            out[0].sum().backward()
            return out, [p.grad for p in net.parameters()]

        return net, call, net

    changes = [
        lambda net: setattr(net.b, "weight", net.a.weight),
        lambda net: setattr(net.a, "weight", nn.Parameter(torch.ones(4, 4))),
        lambda net: setattr(net.a, "weight", net.b.weight),
        lambda net: setattr(net, "a", net.b),
    ]
    repeated(make, changes, min_hits=8)


# -- Tensors --------------------------------------------------------------------------------------------------------


def test_tensors_as_keys() -> None:
    def scenario(wrap):
        a, b = X.clone(), X.clone()
        table: dict[Any, float] = {a: 2.0}

        def f(x, key):
            seen = {x: 1, key: 2}
            return x * table.get(key, 5.0) + len(seen) + seen[x]

        fast = wrap(f)
        for x, key in ((a, a), (a, b), (b, a), (b, b), (a, a), (a, b)):
            yield fast(x, key)
        table[b] = 3.0
        yield fast(a, b), fast(a, a), fast(X, X.clone())
        del table[a]
        yield fast(a, b), fast(a, a)

    same_as_eager(scenario)


def test_grad_fn_is_none() -> None:
    def scenario(wrap):
        def f(x):
            y = x * 2
            return y + (1 if x.grad_fn is None else 10) + (100 if y.grad_fn is None else 1000), x.is_leaf, y.is_leaf

        fast = wrap(f)
        leaf = X.clone().requires_grad_()
        for x in (X, leaf, leaf * 1, X, leaf, leaf * 1, leaf.detach()):
            yield fast(x)
        with torch.no_grad():
            yield fast(leaf), fast(leaf * 1), fast(X)
        leaf.requires_grad_(False)
        yield fast(leaf)

    same_as_eager(scenario, min_hits=4)


def test_numpy_that_shares_memory_with_a_result() -> None:
    def scenario(wrap):
        def f(x):
            y = x * 2
            return y, y.numpy()

        def g(x):
            view = x.numpy()
            view[0] = 7.0
            return x + 1

        def h(x):
            y = torch.from_numpy(numpy.ones(4, dtype=numpy.float32))
            return y.add_(x), y.numpy()

        fast, fast_g, fast_h = wrap(f), wrap(g), wrap(h)
        for _ in range(3):
            y, array = fast(X)
            array[1] = 40.0
            yield y, array.tolist()
            y[2] = 50.0
            yield y, array.tolist()
            mine = X.clone()
            yield fast_g(mine), mine
            y, array = fast_h(X)
            y.zero_()
            yield array.tolist()

    same_as_eager(scenario)


# -- State of C objects ---------------------------------------------------------------------------------------------


def test_deque_with_and_without_a_limit() -> None:
    def scenario(wrap):
        box = types.SimpleNamespace(recent=collections.deque(maxlen=2))

        def f(x):
            box.recent.append(x.sum())
            box.recent.appendleft(1.0)
            return x * len(box.recent) + sum(box.recent), box.recent.maxlen

        fast = wrap(f)
        for maxlen in (2, 3, None, 2, 0, 1):
            box.recent = collections.deque(box.recent, maxlen)
            yield fast(X), fast(X), list(box.recent), fast(X), list(box.recent), box.recent.maxlen

    same_as_eager(scenario)


def test_statistics_of_cached_functions() -> None:
    def scenario(wrap):
        @functools.lru_cache(maxsize=2)
        def cached(n):
            return n * 2

        def f(x, n):
            return x * cached(n) + cached(n)

        fast = wrap(f)
        for n in (1, 1, 2, 2, 3, 1, 1, 1):
            yield fast(X, n), tuple(cached.cache_info())
        cached.cache_clear()
        yield fast(X, 1), tuple(cached.cache_info()), fast(X, 1), tuple(cached.cache_info())

        def g(x):
            info = cached.cache_info()
            return x + info.hits * 10 + info.misses

        fast_g = wrap(g)
        yield fast_g(X), fast_g(X)
        cached(5), cached(5)
        yield fast_g(X), fast_g(X)

    same_as_eager(scenario)


# -- Exceptions and what is left behind -----------------------------------------------------------------------------


class Refused(ValueError):
    def __init__(self, n, left):
        super().__init__(f"refused {n}")
        self.n, self.left = n, left


def test_partial_writes_before_an_exception() -> None:
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("total", torch.zeros(4))
                self.steps, self.names = 0, []

            def forward(self, x, fail):
                self.steps += 1
                self.names.append(self.steps)
                self.total += x
                self.early = x * 2
                if fail == "raise":
                    raise Refused(self.steps, {"left": list(self.names)})
                if fail == "index":
                    self.names[99] = 1
                if fail == "shape":
                    x = x @ torch.ones(3, 3)
                if fail == "data" and (x > 100).any():
                    raise ArithmeticError(f"{x.max().item()}")
                self.late = x * 3
                return x + self.total

        net = Net()
        fast = wrap(net)
        for fail in ("", "", "raise", "", "index", "raise", "", "shape", "data", "data", "shape", ""):
            yield attempt(fast, X, fail)
            yield (
                net.steps,
                net.names,
                net.total,
                [k for k in vars(net) if k != "_is_torch_compile"],
                net.early,
                getattr(net, "late", None),
            )
            net.__dict__.pop("late", None)
        yield attempt(fast, X * 1000, "data"), attempt(fast, X, "data"), attempt(fast, X * 1000, "data"), net.total

    same_as_eager(scenario)


def lines(error: BaseException) -> list[tuple[str, str | None]]:
    found = traceback.extract_tb(error.__traceback__)
    return [(frame.name, frame.line) for frame in found if frame.filename == __file__ and frame.name != "outcome"]


def test_type_message_and_lines_of_an_exception() -> None:
    def scenario(wrap):
        def inner(x, n):
            if n == 1:
                raise Refused(n, x.shape)
            if n == 2:
                return x @ torch.ones(3)
            if n == 3:
                return {}["missing"]
            if n == 4:
                try:
                    return 1 // 0
                except ZeroDivisionError as error:
                    raise Refused(n, []) from error
            return x.nothing

        def f(x, n):
            y = x * 2
            if n:
                y = inner(y, n)
            return y + 1

        fast = wrap(f)

        def outcome(n):
            try:
                return fast(X, n)
            except Exception as error:
                cause = error.__cause__ and (repr(error.__cause__), lines(error.__cause__))
                return type(error), str(error), error.args, getattr(error, "n", None), lines(error), cause

        for n in (0, 0, 1, 1, 0, 2, 2, 3, 3, 0, 4, 4, 5, 5, 0):
            yield outcome(n)

    same_as_eager(scenario, min_hits=2)


def test_exception_that_data_decides_is_raised_where_eager_does() -> None:
    def scenario(wrap):
        def f(x):
            if x.sum() < 0:
                raise ValueError(f"sum {x.sum().item():.1f}")
            index = int(x[0])
            return x[index] * 2

        fast = wrap(f)

        def outcome(x):
            try:
                return fast(x)
            except Exception as error:
                return type(error), str(error), lines(error)

        for x in (X + 1, X + 1, -X, -X - 1, X + 1, torch.full((4,), 9.0), X + 2, X + 3):
            yield outcome(x)

    same_as_eager(scenario)


def test_random_state_at_the_end() -> None:
    def state():
        return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy.random.get_state()[1].tobytes()

    def f(x, n):
        y = x + torch.rand(4)
        if n == 1:
            y = nn.functional.dropout(y, 0.5)
        if n == 2:
            y = y + random.random()
        if n == 3:
            y = y + float(numpy.random.rand())
        if n == 4 and (y > 0.5).any():
            y = y + torch.randn(4)
        if n == 5:
            raise ValueError("after a draw")
        return y * torch.randint(1, 5, (4,))

    def scenario(wrap):
        fast = wrap(f)
        for n in (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 0, 1):
            torch.manual_seed(n)
            random.seed(n)
            numpy.random.seed(n)
            yield attempt(fast, X, n), state()
            yield attempt(fast, X, n), state()

    same_as_eager(scenario, min_hits=6)


@pytest.mark.parametrize("where", ["attribute", "item", "key", "closure"])
def test_another_class_of_an_object_whose_identity_was_seen(where):
    """`is` and id() hold an object itself to be the same: its class may be another all the same."""

    class One:
        number = 1

    class Two(One):
        number = 2

    def scenario(wrap):
        one = One()
        box = types.SimpleNamespace(one=one, many=[one, One()], table={"one": one})
        found = {
            "attribute": lambda: box.one,
            "item": lambda: box.many[0],
            "key": lambda: box.table["one"],
            "closure": lambda: one,
        }[where]

        def program(x):
            thing = found()
            memo = {id(thing): thing}
            copied = copy.deepcopy([thing, thing])
            return x * thing.number, type(thing).__name__, type(copied[0]).__name__, len(memo), thing is box.many[1]

        f = wrap(program)
        for k in range(6):
            if k == 3:
                one.__class__ = Two
            yield f(torch.ones(2))

    same_as_eager(scenario)
