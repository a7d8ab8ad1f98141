"""What is read without looking like a read: keys with their own equality, caches, identity, aliases, code in torch."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)


class Odd:
    """A key that hashes like a name and counts who compares it."""

    def __init__(self, name, equal):
        self.name, self.equal, self.asked = name, equal, 0

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        self.asked += 1
        return self.equal and other == self.name

    def __repr__(self):
        return "Odd"


# -- Keys -------------------------------------------------------------------------------------------------------------


def test_key_with_the_hash_of_a_name_in_a_dict():
    def scenario(wrap):
        for equal in (False, True):
            odd = Odd("name", equal)
            d: dict[Any, Any] = {odd: 2.0, "other": 3.0}

            def program(x, d=d):
                return x * d.get("name", 5.0) + ("name" in d)

            fast = wrap(program)
            for _ in range(4):
                yield fast(X), odd.asked
            odd.equal = not equal
            for _ in range(3):
                yield fast(X), odd.asked
            d["name"] = 7.0
            yield fast(X), odd.asked, len(d)

    same_as_eager(scenario)


def test_key_with_the_hash_of_a_name_among_attributes_and_globals():
    def scenario(wrap):
        class Box:
            scale = 3.0

        for equal in (False, True):
            box = Box()
            odd = Odd("scale", equal)
            box.__dict__[odd] = 2.0
            space: dict[Any, Any] = {"box": box, Odd("factor", equal): 4.0}
            exec("def program(x):\n try: f = factor\n except NameError: f = 1.5\n return x * box.scale * f", space)
            fast = wrap(space["program"])
            for _ in range(4):
                yield fast(X), odd.asked
            box.__dict__["unrelated"] = 1
            yield fast(X), odd.asked
            odd.equal = not equal
            yield fast(X), odd.asked, fast(X)

    same_as_eager(scenario)


def test_odd_key_comes_later():
    def scenario(wrap):
        d: dict[Any, Any] = {"name": 2.0}
        names: set[Any] = {"name"}

        def program(x):
            return x * d["name"] + ("name" in names)

        fast = wrap(program)
        yield fast(X), fast(X)
        odd = Odd("name", True)
        d.clear()
        d[odd] = 9.0
        names.clear()
        names.add(odd)
        yield fast(X), fast(X), odd.asked

    same_as_eager(scenario)


def test_equality_that_raises():
    def scenario(wrap):
        class Raises:
            def __hash__(self):
                return hash("name")

            def __eq__(self, other):
                raise ValueError("compared")

        d: dict[Any, Any] = {"name": 2.0}

        def program(x):
            return x * d.get("name", 1.0)

        fast = wrap(program)
        yield attempt(fast, X), attempt(fast, X)
        del d["name"]
        d[Raises()] = 1
        yield attempt(fast, X), attempt(fast, X)

    same_as_eager(scenario)


# -- Caches -----------------------------------------------------------------------------------------------------------


def test_cached_function_of_changed_globals():
    def scenario(wrap):
        space = {"factor": 2.0, "functools": functools}
        exec(
            "@functools.lru_cache(None)\ndef scale(n): return n * factor\n"
            "@functools.lru_cache(None)\ndef table(n): return [n * factor, n]\n"
            "def program(x, n): return x * scale(n) + table(n)[0]\n",
            space,
        )
        fast: Any = wrap(space["program"])
        for n in (1, 1, 2, 1):
            yield fast(X, n)
        space["factor"] = 5.0
        yield fast(X, 1), fast(X, 2), fast(X, 3)
        space["scale"].cache_clear()
        yield fast(X, 1), fast(X, 1)
        space["table"].cache_clear()
        yield fast(X, 1), fast(X, 1)
        space["table"](1)[0] = 100.0
        yield fast(X, 1)

    same_as_eager(scenario)


def test_cached_property():
    def scenario(wrap):
        class Box:
            def __init__(self, k):
                self.k = k

            @functools.cached_property
            def double(self):
                return self.k * 2

        box = Box(2)

        def program(x, box):
            return x * box.double

        fast = wrap(program)
        for b in (box, box, Box(3), Box(3), box):
            yield fast(X, b), sorted(vars(b).items())
        del box.double
        box.k = 10
        yield fast(X, box), fast(X, box)

    same_as_eager(scenario)


# -- Identity ---------------------------------------------------------------------------------------------------------


def test_identity_of_tuples_and_strings():
    def scenario(wrap):
        class Box:
            pass

        box = Box()
        box.a = box.b = tuple([1, 2])

        def program(x, box):
            return x * (2 if box.a is box.b else 3)

        fast = wrap(program)
        yield fast(X, box), fast(X, box)
        box.b = tuple([1, 2])
        yield fast(X, box), fast(X, box)
        box.b = box.a
        yield fast(X, box)

        def arguments(x, a, b):
            return x * (2 if a is b else 3) + (5 if a is not b else 0)

        fast = wrap(arguments)
        one, two = tuple([1, 2]), tuple([1, 2])
        for pair in ((one, one), (one, one), (one, two), (two, one), (two, two)):
            yield fast(X, *pair)
        one, two = frozenset([1, 2]), frozenset([1, 2])
        for pair in ((one, one), (one, two), (one, one), (two, one), (two, two)):
            yield fast(X, *pair)
        one, two = "".join(["ab", "cd e"]), "".join(["ab", "cd e"])
        for pair in ((one, one), (one, two), (one, one), (two, one), (two, two)):
            yield fast(X, *pair)
        one, two = float("1.5"), float("1.5")
        for pair in ((one, one), (one, two), (one, one), (two, one), (two, two)):
            yield fast(X, *pair)

    same_as_eager(scenario)


def test_id_and_in_of_tuples():
    def scenario(wrap):
        seen: dict[int, Any] = {}
        one, two = tuple([1, 2]), tuple([1, 2])

        def program(x, t):
            return x * (2 if id(t) in seen else 3)

        fast = wrap(program)
        yield fast(X, one), fast(X, two)
        seen[id(one)] = one
        yield fast(X, one), fast(X, two), fast(X, one)

    same_as_eager(scenario)


def test_nan_is_itself():
    def scenario(wrap):
        nan = float("nan")
        items = [nan]

        def program(x, v):
            return x * (2 if v in items else 3)

        fast = wrap(program)
        yield fast(X, nan), fast(X, float("nan")), fast(X, nan), fast(X, float("nan"))

    same_as_eager(scenario)


# -- Aliases and views ------------------------------------------------------------------------------------------------


def test_written_input_that_became_a_view():
    def scenario(wrap):
        def program(x, state):
            state.add_(x)
            return state * 2

        fast = wrap(program)
        for _ in range(3):
            state = torch.zeros(4)
            yield fast(X, state), state
        base = torch.zeros(3, 4)
        for row in (base[1], base[1], base[2], base.view(-1)[2:6], base[0]):
            yield fast(X, row), base

    same_as_eager(scenario)


def test_written_view_under_autograd():
    def scenario(wrap):
        w = torch.ones(4, requires_grad=True)

        def program(x, state):
            state.mul_(x)
            return state.sum()

        fast = wrap(program)
        for offset in (0, 0, 4, 4):
            base = torch.ones(8) * torch.cat([w, w])
            view = base[offset : offset + 4]
            y = attempt(fast, X, view)
            yield y, base
            if isinstance(y, torch.Tensor):
                (y + base.sum()).backward()
                yield w.grad
                w.grad = None

    same_as_eager(scenario)


def test_view_of_a_written_leaf_made_without_grad():
    """autograd refuses such a view if the leaf was written after the view was made, and not if before."""

    def scenario(wrap):
        def before(x):
            x.mul_(2)
            return x.view(-1)

        def after(x):
            y = x.view(-1)
            x.mul_(2)
            return y

        for program in (before, after):
            fast = wrap(program)
            for _ in range(3):
                x = torch.ones(3, requires_grad=True)
                with torch.no_grad():
                    y = fast(x)
                yield attempt(lambda y=y: y * 2), attempt(lambda y=y: y.is_leaf), x

    same_as_eager(scenario)


def test_inputs_that_share_memory_now():
    def scenario(wrap):
        def program(a, b):
            a.add_(1)
            return b * 2

        fast = wrap(program)
        for _ in range(2):
            yield fast(torch.zeros(4), torch.zeros(4))
        base = torch.zeros(6)
        for a, b in ((base[:4], base[2:]), (base[:4], base[:4]), (base[:2].repeat(2), base[:4]), (base[:4], base[1:5])):
            yield fast(a, b), base

    same_as_eager(scenario)


def test_result_that_is_a_view_of_an_argument():
    def scenario(wrap):
        def program(x):
            return x.view(2, 2), x[1:], x.t() if x.dim() == 2 else x.unsqueeze(0), x.detach()

        fast = wrap(program)
        for _ in range(3):
            x = torch.arange(4.0)
            views = fast(x)
            versions = x._version
            views[0].add_(1)
            yield x, views, x._version - versions, [v._version - versions for v in views]
            yield [v._base is x for v in views], [v._is_view() for v in views]
            x.mul_(2)
            yield x, views, [v.storage_offset() for v in views]

    same_as_eager(scenario)


def test_result_that_is_a_view_of_an_argument_with_gradient():
    def scenario(wrap):
        def program(x):
            return x.view(2, 2)[1]

        fast = wrap(program)
        for _ in range(3):
            w = torch.ones(4, requires_grad=True)
            x = w * 2
            y = fast(x)
            yield y, y._base is x, y._is_view()
            y.mul_(3)
            x.sum().backward()
            yield w.grad, x

    same_as_eager(scenario)


def test_view_written_after_the_call_is_noticed_by_autograd():
    def scenario(wrap):
        def program(x):
            return x[:2]

        fast = wrap(program)
        for _ in range(3):
            w = torch.ones(4, requires_grad=True)
            x = torch.ones(4)
            y = fast(x)
            z = (w * x).sum()
            y.add_(1)
            yield attempt(z.backward), x

    same_as_eager(scenario)


def test_returned_argument_is_the_argument():
    def scenario(wrap):
        def program(x, y):
            return x, y.view_as(y), x.contiguous(), x.to(torch.float32), y.reshape(4)

        fast = wrap(program)
        for _ in range(3):
            x, y = torch.ones(4), torch.ones(4)
            results = fast(x, y)
            yield [r is x for r in results], [r is y for r in results], [r._base is y for r in results]

    same_as_eager(scenario)


def test_numpy_and_data_aliases_of_an_argument():
    def scenario(wrap):
        def by_numpy(x):
            x.numpy()[0] = 7.0
            return x * 2

        def by_data(x):
            x.data.add_(1)
            return x * 2

        def by_detach(x):
            x.detach().add_(1)
            return x * 2

        for program in (by_numpy, by_data, by_detach):
            fast = wrap(program)
            for _ in range(3):
                x = torch.ones(4)
                yield fast(x), x

    same_as_eager(scenario)


# -- Code that torch runs ---------------------------------------------------------------------------------------------


def test_hooks_of_modules_and_tensors():
    def scenario(wrap):
        log: list[Any] = []
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        for p in net.parameters():
            nn.init.constant_(p, 0.5)
        fast = wrap(net)

        def step():
            net.zero_grad()
            y = fast(X)
            y.sum().backward()
            return y, [p.grad for p in net.parameters()], log

        yield step(), step()
        handle = net[0].register_forward_hook(lambda m, i, o: (log.append("hook"), o * 2)[1])
        yield step(), step()
        pre = net.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
        yield step(), step()
        back = net[0].register_full_backward_hook(lambda m, gi, go: log.append("back"))
        yield step(), step()
        for h in (handle, pre, back):
            h.remove()
        yield step(), step()
        th = net[0].weight.register_hook(lambda g: g * 3)
        yield step(), step()
        th.remove()
        yield step()

    same_as_eager(scenario)


def test_hook_on_an_intermediate_tensor():
    def scenario(wrap):
        log: list[Any] = []
        w = torch.ones(4, requires_grad=True)

        def program(x):
            y = x * w
            y.register_hook(lambda g: (log.append("hook"), g * 10)[1])
            return (y * 2).sum()

        fast = wrap(program)
        for _ in range(3):
            w.grad = None
            fast(X).backward()
            yield w.grad, log

    same_as_eager(scenario)


# -- Parameters and buffers -------------------------------------------------------------------------------------------


def test_parameters_changed_in_every_way():
    def scenario(wrap):
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        fast = wrap(net)
        x = torch.arange(12.0).view(3, 4)

        def step():
            net.zero_grad()
            y = fast(x)
            (y * torch.arange(4.0)).sum().backward()
            return y, [p.grad for p in net.parameters()], list(net.buffers())

        yield step(), step()
        net.load_state_dict({k: torch.ones_like(v) for k, v in net.state_dict().items()})
        yield step()
        net.eval()
        yield step(), step()
        net[0].weight = nn.Parameter(torch.full((4, 4), 0.1))
        yield step()
        net[0].weight.data = torch.full((4, 4), 0.3)
        yield step()
        net[0].bias = None
        yield step(), step()
        net[0].weight.requires_grad_(False)
        yield step(), step()
        net[0].weight.requires_grad_(True)
        net.train()
        net[1].momentum = 0.5
        yield step(), step()
        net[1].momentum = None
        yield step(), step(), step()
        net.double()
        yield attempt(fast, x)
        x = x.double()
        yield step(), step()
        net[1] = nn.Identity()
        yield step(), step()
        net.append(nn.Linear(4, 2, dtype=torch.double))
        with torch.no_grad():
            net[2].weight.fill_(1.0)
            net[2].bias.fill_(1.0)
            yield fast(x), fast(x)
        del net[2]
        net[0].register_parameter("bias", nn.Parameter(torch.ones(4, dtype=torch.double)))
        yield step()

    same_as_eager(scenario)


def test_swapped_submodules_and_shared_weights():
    def scenario(wrap):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                return self.b(torch.relu(self.a(x)))

        net = Net()
        for i, p in enumerate(net.parameters()):
            nn.init.constant_(p, 0.1 * (i + 1))
        fast = wrap(net)

        def step():
            net.zero_grad()
            fast(X).sum().backward()
            return [p.grad for p in net.parameters()], fast(X)

        yield step(), step()
        net.a, net.b = net.b, net.a
        yield step()
        net.b.weight = net.a.weight
        yield step(), step()
        net.b = net.a
        yield step(), step()

    same_as_eager(scenario)


def test_cached_function_that_calls_the_compiled_one():
    def scenario(wrap):
        space: dict[str, Any] = {"functools": functools, "torch": torch, "log": []}
        exec(
            "@functools.lru_cache(None)\n"
            "def scale(n):\n"
            "    log.append(n)\n"
            "    if n: return 2.0 + float(fast(torch.ones(3), n - 1, [torch.ones(2)] * n)[0].sum().item() > 0)\n"
            "    return 1.0\n"
            "def program(x, n, parts):\n"
            "    return x * scale(n), [p * 2 for p in parts]\n",
            space,
        )
        fast = space["fast"] = wrap(space["program"])
        for n in (0, 1, 2, 3, 3, 2, 1, 0):
            yield fast(X, n, [X] * 4), space["log"]
        for n in (3, 2, 1, 3, 0):
            space["scale"].cache_clear()
            yield fast(X, n, [X + 1] * 4), space["log"]
            yield fast(X, n, [X + 1] * 4), space["log"]

    same_as_eager(scenario)


# -- Which text it is -------------------------------------------------------------------------------------------------


PRESENT = "present"
TABLE = {"mode": PRESENT, "modes": (PRESENT, "all"), PRESENT: 1}


def by_default(x, box, mode="present"):
    return mode is PRESENT, x + 1 if mode is PRESENT else x - 1


TEXTS: dict[str, Callable[[torch.Tensor, Any], Any]] = {
    "attribute": lambda x, box: x * 2 if box.mode is PRESENT else x * 3,
    "item": lambda x, box: x * 2 if box.modes[0] is PRESENT else x * 3,
    "key": lambda x, box: [x * 2 if key is PRESENT else x * 3 for key in box.table],
    "of a set": lambda x, box: [x * 2 if key is PRESENT else x * 3 for key in box.some],
    "both": lambda x, box: x * 2 if box.mode is box.modes[0] else x * 3,
    "another": lambda x, box: x * 2 if box.mode is not "present" else x * 3,  # noqa: F632
    "default": by_default,
    "global": lambda x, box: x * 2 if TABLE["mode"] is box.mode else x * 3,
    "joined": lambda x, box: x * 2 if "".join([box.mode]) is PRESENT else x * 3,
}


@pytest.mark.filterwarnings("ignore:.* with .* literal:SyntaxWarning")
@pytest.mark.parametrize("name", TEXTS)
def test_equal_texts_that_are_not_the_same(name):
    """An interned text and an equal one that is not: `is` tells them apart, wherever they were found."""
    program, equal = TEXTS[name], "".join(["pre", "sent"])

    def scenario(wrap):
        f = wrap(program)
        box = types.SimpleNamespace()
        for text in (PRESENT, PRESENT, equal, equal, "all", PRESENT, equal):
            box.mode, box.modes, box.table, box.some = text, (text, PRESENT), {text: 1}, {text}
            by_default.__defaults__ = (text,)
            TABLE["mode"] = PRESENT if len(text) > 3 else text
            yield f(torch.ones(2), box)

    same_as_eager(scenario)


def test_texts_compared_by_identity_are_no_fallback():
    def scenario(wrap):
        f = wrap(TEXTS["attribute"])
        for text in (PRESENT, PRESENT, "all", PRESENT, "all"):
            yield f(torch.ones(2), types.SimpleNamespace(mode=text))

    counted = same_as_eager(scenario, hits=3)
    assert counted.fallbacks == {}
