"""A call is a transaction: what a program does to the world around it, however it ends, is done as in plain Python."""

from __future__ import annotations

import collections
import contextvars
import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)
shared_global: Any = 0
table: dict[str, Any] = {}


# -- Writes ------------------------------------------------------------------------------------------------------------


def test_exception_after_writes_leaves_them():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.n = 0
                self.register_buffer("seen", torch.zeros(4))

            def forward(self, x, limit):
                self.n += 1
                self.seen.add_(x)
                self.last = x * 2
                if self.n > limit:
                    raise ValueError(f"too many: {self.n}")
                return x + self.n

        net = Net()
        fast = wrap(net)
        for limit in (9, 9, 9, 0, 9, 0, 9):
            yield attempt(fast, X, limit)
            yield net.n, net.seen, getattr(net, "last", None)

    same_as_eager(scenario)


def test_exception_in_an_operator_after_writes():
    def scenario(wrap):
        log: list[Any] = []

        def program(x, w):
            log.append(x + 1)
            x = x * 2
            y = x @ w
            log.append("after")
            return y

        fast = wrap(program)
        for width in (4, 4, 3, 4, 3):
            yield attempt(fast, X, torch.ones(width))
            yield log

    same_as_eager(scenario)


def test_caught_exception_after_writes():
    def scenario(wrap):
        state = {"n": 0, "errors": []}

        def inner(x, bad):
            state["n"] += 1
            if bad:
                raise KeyError("bad", state["n"])
            return x * 2

        def program(x, bad):
            try:
                return inner(x, bad)
            except KeyError as error:
                state["errors"].append(error.args)
                return x - 1
            finally:
                state["last"] = x + 5

        fast = wrap(program)
        for bad in (False, True, True, False, True):
            yield fast(X, bad)
            yield state

    same_as_eager(scenario)


def test_globals_written_read_and_deleted():
    def scenario(wrap):
        def program(x):
            global shared_global, gone_global
            shared_global = shared_global + 1
            gone_global = x * shared_global
            y = gone_global + 1
            del gone_global
            return y

        globals()["shared_global"] = 0
        fast = wrap(program)
        for _ in range(4):
            yield fast(X), shared_global, "gone_global" in globals()
        globals()["shared_global"] = 100
        yield fast(X), shared_global

    same_as_eager(scenario)


def test_global_function_replaced_between_and_within_calls():
    def scenario(wrap):
        space: dict[str, Any] = {}
        exec(
            "def helper(x): return x + 1\n"
            "def program(x, swap):\n"
            "    global helper\n"
            "    y = helper(x)\n"
            "    if swap:\n"
            "        helper = lambda x: x * 3\n"
            "    return y + helper(x)\n",
            space,
        )
        fast = wrap(space["program"])
        for swap in (False, False, True, False, False):
            yield fast(X, swap)
        space["helper"] = lambda x: x - 7
        for swap in (False, False, True, False):
            yield fast(X, swap)

    same_as_eager(scenario)


def test_delete_of_an_attribute_moves_it_to_the_end():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = 1
                self.second = 2

            def forward(self, x):
                value = self.first
                del self.first
                self.first = value + 1
                return x * value

        net = Net()
        fast = wrap(net)
        for _ in range(4):
            yield fast(X), {k: v for k, v in vars(net).items() if k in ("first", "second")}
        net.second = net.first = 10
        yield fast(X), {k: v for k, v in vars(net).items() if k in ("first", "second")}

    same_as_eager(scenario)


def test_attribute_deleted_for_good():
    def scenario(wrap):
        class Box:
            pass

        box = Box()

        def program(x):
            if hasattr(box, "mark"):
                del box.mark
                return x + 1
            return x

        fast = wrap(program)
        for mark in (1, 0, 1, 1, 0):
            if mark:
                box.mark = mark
            yield fast(X), vars(box)

    same_as_eager(scenario)


def test_property_setters_run_in_order():
    def scenario(wrap):
        class Box:
            def __init__(self):
                self.log = []
                self._v = 0

            @property
            def v(self):
                self.log.append(("get", self._v))
                return self._v

            @v.setter
            def v(self, value):
                self.log.append(("set", value))
                self._v = value

        box = Box()

        def program(x):
            box.v = box.v + 2
            return x * box.v

        fast = wrap(program)
        for _ in range(4):
            yield fast(X), box
        box._v = 2
        yield fast(X), box

    same_as_eager(scenario)


def test_dict_order_is_read_and_written():
    def scenario(wrap):
        weights = {"a": 1.0, "b": 2.0}

        def program(x, key):
            weights[key] = weights.pop(key, 0.0) + 1.0
            y = x
            for k, v in weights.items():
                y = y * v + len(k)
            return y

        fast = wrap(program)
        for key in "abbacaab":
            yield fast(X, key), weights
        weights.clear()
        weights.update(b=1.0, a=1.0)
        yield fast(X, "a"), weights

    same_as_eager(scenario)


def test_ordered_dict_moved_by_others():
    def scenario(wrap):
        layers = collections.OrderedDict(a=lambda x: x + 1, b=lambda x: x * 2)

        def program(x):
            for f in layers.values():
                x = f(x)
            return x

        fast = wrap(program)
        yield fast(X), fast(X)
        layers.move_to_end("a")
        yield fast(X), fast(X)
        layers.move_to_end("a", last=False)
        yield fast(X)

    same_as_eager(scenario)


def test_defaultdict_factory_exchanged():
    def scenario(wrap):
        d: Any = collections.defaultdict(lambda: 2.0)

        def program(x):
            return x * d["missing"]

        fast = wrap(program)
        yield fast(X), dict(d), fast(X)
        d.clear()
        yield fast(X), dict(d)
        d.clear()
        d.default_factory = lambda: 5.0
        yield fast(X), dict(d)
        d.clear()
        d.default_factory = None
        yield attempt(fast, X)

    same_as_eager(scenario)


def test_two_names_for_one_list():
    def scenario(wrap):
        def program(x, a, b):
            a.append(x + 1)
            b.insert(0, x * len(a))
            a[0] = a[0] + 1
            return len(a), a is b, a[-1]

        fast = wrap(program)
        one: list[Any] = [X]
        two: list[Any] = [X]
        for _ in range(2):
            yield fast(X, one, one), one
            yield fast(X, one, two), one, two
            del one[1:], two[1:]

    same_as_eager(scenario)


def test_list_within_itself():
    def scenario(wrap):
        def program(x, items):
            items.append(items)
            items[0] = x + 1
            return items

        fast = wrap(program)
        for _ in range(3):
            items = [1]
            result = fast(X, items)
            yield result is items, items[-1] is items, items[0]

    same_as_eager(scenario)


def test_mutable_default_argument():
    def scenario(wrap):
        def program(x, seen=[]):  # noqa: B006
            seen.append(x.shape[0])
            return x * len(seen)

        fast = wrap(program)
        for n in (2, 2, 3, 2):
            yield fast(torch.ones(n)), program.__defaults__
        program.__defaults__ = ([0] * 7,)
        yield fast(torch.ones(2)), program.__defaults__

    same_as_eager(scenario)


def test_keyword_defaults_exchanged():
    def scenario(wrap):
        def program(x, *, scale=2.0):
            return x * scale

        fast = wrap(program)
        yield fast(X), fast(X)
        program.__kwdefaults__["scale"] = 3.0
        yield fast(X)
        program.__kwdefaults__ = {"scale": 4.0}
        yield fast(X), fast(X)

    same_as_eager(scenario)


def test_code_exchanged():
    def scenario(wrap):
        def helper(x):
            return x + 1

        def other(x):
            return x * 10

        def program(x):
            return helper(x)

        fast = wrap(program)
        yield fast(X), fast(X)
        helper.__code__ = other.__code__
        yield fast(X), fast(X)
        yield fast(X)

    same_as_eager(scenario)


def test_closure_shared_by_two_compiled_functions():
    def scenario(wrap):
        def make():
            count, last = 0, None

            def add(x):
                nonlocal count, last
                count += 1
                last = x * count
                return last

            def look(x):
                nonlocal count
                y = x if last is None else x + last
                count = count * 2
                return y

            return add, look

        add, look = make()
        fast_add, fast_look = wrap(add), wrap(look)
        for _ in range(3):
            yield fast_look(X), fast_add(X), fast_add(X), fast_look(X)
            yield [c.cell_contents for c in add.__closure__]

    same_as_eager(scenario)


def test_slots_and_class_attributes_written():
    def scenario(wrap):
        class Slotted:
            __slots__ = ("a", "b")
            total = 0

        s = Slotted()
        s.a = 1

        def program(x):
            s.b = x * s.a
            s.a = s.a * 2
            Slotted.total = Slotted.total + s.a
            del s.b
            return x + Slotted.total

        fast = wrap(program)
        for _ in range(4):
            yield fast(X), s.a, hasattr(s, "b"), Slotted.total

    same_as_eager(scenario)


def test_set_and_deque_written():
    def scenario(wrap):
        names: set[str] = set()
        recent: Any = collections.deque(maxlen=2)

        def program(x, name):
            new = name not in names
            names.add(name)
            recent.append(x.sum())
            names.discard("gone")
            return x * (2 if new else 3), len(recent), len(names)

        fast = wrap(program)
        for name in ("a", "a", "gone", "gone", "b", "a"):
            yield fast(X, name), names, list(recent)

    same_as_eager(scenario)


def test_context_variable_set_and_reset():
    def scenario(wrap):
        var = contextvars.ContextVar("var", default=1.0)

        def program(x):
            token = var.set(var.get() * 2)
            y = x * var.get()
            var.reset(token)
            return y

        def keep(x):
            var.set(var.get() + 1)
            return x * var.get()

        fast, fast_keep = wrap(program), wrap(keep)
        for _ in range(3):
            yield fast(X), var.get(), fast_keep(X), var.get()

    def isolated(wrap):
        return iter(contextvars.copy_context().run(lambda: list(scenario(wrap))))

    same_as_eager(isolated)


def test_global_of_another_module_written():
    import types

    def scenario(wrap):
        other = types.ModuleType("other_module_of_a_test")
        other.scale = 2.0

        def program(x):
            y = x * other.scale
            other.scale = other.scale + 1
            other.last = y
            return y

        fast = wrap(program)
        for _ in range(3):
            yield fast(X), other.scale, other.last
        other.scale = 2.0
        yield fast(X), other.scale

    same_as_eager(scenario)


# -- Counters ---------------------------------------------------------------------------------------------------------


def test_counter_of_calls_used_in_a_branch():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.n = 0

            def forward(self, x):
                self.n += 1
                return x * 2 if self.n % 3 else x - 1

        net = Net()
        fast = wrap(net)
        for _ in range(14):
            yield fast(X), net.n

    same_as_eager(scenario)


def test_counter_of_calls_not_used_is_served_by_traces():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.n = 0

            def forward(self, x):
                self.n += 1
                return x * 2

        net = Net()
        fast = wrap(net)
        for _ in range(20):
            yield fast(X), net.n
        net.n = True
        yield fast(X), net.n
        net.n = 2.5
        yield fast(X), net.n
        net.n = 2**62
        for _ in range(3):
            yield fast(X), net.n
        net.n = 2**63 - 1
        for _ in range(3):
            yield fast(X), net.n

    same_as_eager(scenario)


def test_counter_in_tensor_arithmetic():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.n, self.rate = 0, 1.0

            def forward(self, x):
                self.n += 1
                self.rate *= 0.5
                return x * self.n + self.rate

        net = Net()
        fast = wrap(net)
        for _ in range(30):
            yield fast(X), net.n, net.rate

    same_as_eager(scenario)


# -- Copies -----------------------------------------------------------------------------------------------------------


def test_deepcopy_of_a_compiled_module_is_independent():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(4, 4)
                self.calls = []

            def forward(self, x):
                self.calls.append(1)
                return self.a(x) * len(self.calls)

        net = Net()
        fast = wrap(net)
        yield fast(X)
        other = copy.deepcopy(fast)
        with torch.no_grad():
            other.a.weight.zero_()
        yield fast(X), other(X), fast(X), other(X), len(net.calls), list(other.state_dict())[-1].split(".")[-1]

    same_as_eager(scenario)


def test_partial_and_bound_methods():
    def scenario(wrap):
        class Box:
            def __init__(self, k):
                self.k = k

            def apply(self, x, power=1):
                self.k += 1
                return x * self.k**power

            @classmethod
            def make(cls, x):
                return x + len(cls.__name__)

            @staticmethod
            def still(x):
                return x - 1

        one, two = Box(1), Box(10)
        fast, part = wrap(one.apply), wrap(functools.partial(one.apply, power=2))
        other = wrap(two.apply)
        for _ in range(3):
            yield fast(X), other(X), part(X), one.k, two.k
        yield wrap(Box.make)(X), wrap(Box.still)(X)

    same_as_eager(scenario)


@pytest.mark.parametrize("length", [1, 5])
def test_same_function_compiled_for_many_objects(length):
    def scenario(wrap):
        class Layer:
            def __init__(self, k):
                self.k = k

            def __call__(self, x):
                return x * self.k

        layers = [Layer(k) for k in range(1, length + 1)]

        def program(x, layers):
            for layer in layers:
                x = layer(x)
            return x

        fast = wrap(program)
        for _ in range(3):
            yield fast(X, layers), fast(X, layers[::-1]), fast(X, layers[:1] * length)
        layers[-1].k = 100
        yield fast(X, layers)

    same_as_eager(scenario)
