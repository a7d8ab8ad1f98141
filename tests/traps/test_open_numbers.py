"""Numbers that a program reads from tensor data and computes with: one trace serves them all, and whatever looks at one
is noticed."""

# ruff: noqa: B008, B009, E501, UP031, UP032

from __future__ import annotations

import array
import collections
import copy
import dataclasses
import fractions
import functools
import itertools
import json
import math
import operator
import statistics
import struct
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted

Program = Callable[[torch.Tensor], Any]


def first(x: torch.Tensor) -> float:
    return x[0].item()


def chain(x: torch.Tensor) -> Any:
    f = first(x) / 10
    for _ in range(12):
        f = f * f / 3 + 1
    return x * f, f


def squares(x: torch.Tensor) -> Any:
    total = 0.0
    for t in x:
        total += t.item() ** 2
    return x / (total**0.5 + 1e-6), total


def changed(x: torch.Tensor) -> Any:
    y = x.clone()
    before = y[0].item()
    y.mul_(2)
    return y, before, y[0].item() - before


class Holder:
    def __init__(self, value: float):
        self.value = value

    @property
    def twice(self) -> float:
        return self.value * 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value


def filled(table: dict[str, Any], number: float, text: str) -> Any:
    table.update(a=number, b=text)
    table.update({"c": number})
    table.update([("d", number * 2), ("e", text)])
    return table, table.setdefault("f", number), table.setdefault("a", 1.0), table.pop("c")


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, by: float) -> torch.Tensor:
        ctx.by = by
        return x * by

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * ctx.by, None


class Late(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, by: float, more: float = 1.0) -> torch.Tensor:
        return x * by + more

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.by = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * ctx.by, None, None


class Branching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, by: float) -> Any:
        return (x * by if by > 3 else x, {by: 1}[by], json.dumps(by))[0]


#: Programs that nothing of the number's value shows in: one trace serves all data.
OPEN: dict[str, Program] = {
    "norm": lambda x: x / x.norm().item(),
    "item": lambda x: x * first(x),
    "float": lambda x: x + float(x[1]),
    "given back": lambda x: (x + 1, first(x)),
    "in containers": lambda x: [first(x), {"a": x[1].item()}, (x + 1, slice(first(x), None), [x[2].item()])],
    "arithmetic": lambda x: (x * (1.0 / (x.sum().item() + 30) - 2**0.5), -(first(x) ** 2) % 3, +first(x)),
    "functions": lambda x: (x * math.sqrt(abs(x.sum().item())), math.floor(first(x)), round(x[1].item(), 2), math.pi),
    "exponentials": lambda x: (math.exp(-first(x)) + x, math.cos(first(x) / 100 * math.pi), 0.99 ** first(x)),
    "ints": lambda x: (x * int(first(x)), int(x[1]) + 5, int(x[1]) // 2 - 7, float(int(x[2]))),
    "int tensors": lambda x: (
        x.long() * first(x),
        x.long() + int(x[1]),
        x.long() / int(x[1]),
        x.long().sum().item() + 1,
    ),
    "branch": lambda x: x + 1 if first(x) > -100 else x - 1,
    "comparisons": lambda x: [first(x) < 1e9, first(x) == 77.5, not first(x) > 1e9, x[1].item() != x[2].item() + 900],
    "bounds": lambda x: x * max(min(first(x), 100.0), -100.0),
    "sum": lambda x: x * sum([first(x), x[1].item(), 3]),
    "clamp": lambda x: (x.clamp(x.min().item(), 2.5), torch.clamp(x, max=first(x)), x.clamp_min(first(x))),
    "full": lambda x: (torch.full((2,), first(x)) + x[:2], torch.full_like(x, first(x)), x.new_full((2, 1), first(x))),
    "tensor": lambda x: (torch.tensor([[first(x), 2.0], [1, x[1].item()]]), torch.tensor(int(x[0])), x + 1),
    "where": lambda x: (torch.where(x > 0, x, first(x)), torch.where(x > 0, 1.0, first(x))),
    "masks": lambda x: (x.masked_fill(x > 1, first(x)), x > first(x), first(x) >= x, x == first(x)),
    "item set": lambda x: (y := x.clone()).__setitem__(0, x[1].item()) or y,
    "in place": lambda x: (y := x.clone(), y.add_(first(x)), y.mul_(x[1].item()), y.div_(3 + abs(first(x)))),
    "from the right": lambda x: (first(x) / x, 3 - first(x) + x, first(x) - x, abs(first(x)) ** x, 2 ** (x / first(x))),
    "alpha": lambda x: (
        torch.add(x, x, alpha=first(x)),
        x.sub(x * x, alpha=x[1].item()),
        torch.lerp(x, x * 2, first(x)),
    ),
    "loop": lambda x: functools.reduce(lambda y, _: y * 0.5 + y[0].item(), range(5), x),
    "a long chain": chain,
    "accumulated": squares,
    "changed in place": changed,
    "attributes": lambda x: (Holder(first(x))(x), Holder(first(x)).twice * x, Holder(x[1].item()).value),
    "closures": lambda x: (lambda k=first(x): lambda y: y * k)()(x),
    "dicts": lambda x: (
        dict(a=first(x)),
        dict({"a": first(x)}, b=x[1].item()),
        dict([("a", first(x))]),
        dict((("a", first(x)),)),
    ),
    "dicts that are filled": lambda x: filled({}, first(x), f"{x[1].item()}"),
    "functions of torch": lambda x: (
        Scaled.apply(x, first(x)),
        Scaled.apply(x, 2 * first(x) + 1),
        Late.apply(x, first(x)),
    ),
    "unpacked": lambda x: [x * a + b for a, b in zip([first(x), x[1].item()], [x[2].item(), 1.0], strict=True)],
    "yielded": lambda x: [x * f for f in (t.item() for t in x)],
    "types": lambda x: (x * first(x), isinstance(first(x), float), type(int(x[0])), first(x) is None, len([first(x)])),
    "doubles": lambda x: (x.double() * first(x.double()), x.half() * first(x), x[0] * x.double()[1].item()),
    "no dimensions": lambda x: (
        x[0] * first(x),
        x.long()[0] * first(x),
        x.long()[0] + int(x[1]),
        x.double()[0] * first(x),
    ),
}


def data(k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(k)
    return torch.rand(3, generator=generator) * 6 + 1.5


@pytest.mark.parametrize("name", OPEN)
def test_one_trace_serves_all_numbers(name: str) -> None:
    program = OPEN[name]
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        assert_same(fast(data(0)), program(data(0)))
    counted.assert_observed()
    for k in range(1, 5):
        with Counted() as counted:
            mine = fast(data(k))
        assert_same(mine, program(data(k)))
        counted.assert_hit()


def caught(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except (ZeroDivisionError, OverflowError, ValueError, IndexError) as error:
        return type(error).__name__, str(error)


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


Pair = collections.namedtuple("Pair", "a b")


class Asked:
    def __init__(self, value: Any):
        self.value = value

    def __len__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __float__(self) -> float:
        return self.value

    def __lt__(self, other: Asked) -> bool:
        return self.value < other.value

    def __hash__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Asked) and self.value == other.value


class Typed:
    __slots__ = ("value",)


three = int("3")


def matched(value: Any) -> str:
    match value:
        case 2:
            return "two"
        case 3 | 4:
            return "some"
        case int():
            return "int"
        case _:
            return "other"


class Scale(torch.autograd.Function):
    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, k: float) -> torch.Tensor:
        ctx.k = k
        return x * k

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad * ctx.k, None


def raised(x: torch.Tensor) -> Any:
    try:
        raise ValueError(first(x), "text")
    except ValueError as error:
        return x * error.args[0], str(error)


def sent(x: torch.Tensor) -> Any:
    def run() -> Any:
        got = yield first(x)
        yield got * 2

    generator = run()
    return next(generator) * x, generator.send(x[1].item())


def spread(x: torch.Tensor) -> Any:
    typed = Typed()
    typed.value = first(x)
    return [typed.value * x, getattr(typed, "value"), vars(Holder(first(x)))["value"], copy.copy(Point(first(x))).x]


def count(x: torch.Tensor) -> int:
    return int(x[0])


#: Programs that see something of a number: they may cost a trace or a fallback, never a wrong answer.
SEEN: dict[str, Program] = {
    "keys of dicts": lambda x: (
        dict([(first(x), 1)]),
        dict({first(x): 1}),
        {}.setdefault(first(x), first(x)),
        dict([[first(x), 1]]),
        dict.fromkeys([first(x)]),
    ),
    "functions with gradients": lambda x: (
        Branching.apply(x, first(x)),
        Scaled.apply(x.clone().requires_grad_(), first(x)),
    ),
    "text": lambda x: (
        x,
        str(first(x)),
        repr([first(x)]),
        f"{first(x):.3f}",
        "%s" % (first(x),),
        "{}".format(first(x)),
    ),
    "nested text": lambda x: (x, f"{[{'a': (first(x),)}]}", str(Point(first(x))), "%d%s" % (count(x), [first(x)])),
    "json": lambda x: (x, json.dumps({"a": [first(x), count(x)]})),
    "bytes": lambda x: (x, struct.pack("d", first(x)), bytes(count(x)), array.array("d", [first(x)]).tolist()),
    "keys": lambda x: (
        x * {first(x): 2.0}[first(x)],
        {(count(x), 1): 5},
        {count(x), 2},
        frozenset([first(x)]),
        {(count(x), 1) for _ in "a"},
    ),
    "key of a dict": lambda x: (x, {1: "a", 2: "b", 3: "c", 4: "d"}.get(count(x)), dict([(count(x), 1)])),
    "in": lambda x: (x, count(x) in (1, 2, 3), first(x) in [1.0], [count(x), 2].index(2), [count(x)].count(3)),
    "tuples compared": lambda x: (x, (count(x), 1) < (3, 0), [first(x)] == [2.0], Point(count(x)) == Point(3)),
    "sorted": lambda x: (x, sorted([t.item() for t in x]), sorted(range(3), key=lambda i: x[i].item())),
    "extremes": lambda x: (
        x,
        max(t.item() for t in x),
        min([first(x), x[1].item()]),
        max(range(3), key=lambda i: x[i].item()),
    ),
    "sum of a generator": lambda x: x * sum(t.item() for t in x),
    "map": lambda x: (
        x,
        list(map(abs, [first(x)])),
        list(map(math.sqrt, (t.item() for t in x))),
        list(filter(None, [count(x) - 3])),
    ),
    "any": lambda x: (
        x,
        any(t.item() > 5 for t in x),
        all(t.item() - 2 > 1 for t in x),
        any(count(x) - 3 for _ in "a"),
    ),
    "reduce": lambda x: (x, functools.reduce(operator.add, [first(x), x[1].item()]), operator.mul(first(x), 2)),
    "accumulate": lambda x: (x, list(itertools.accumulate([first(x), 2.0])), statistics.mean([first(x), 4.0])),
    "islice": lambda x: (x, list(itertools.islice(range(10), count(x))), list(itertools.repeat(1, count(x)))),
    "counted": lambda x: (x, next(itertools.count(count(x))), next(itertools.count(first(x)))),
    "methods": lambda x: (
        x,
        first(x).is_integer(),
        first(x).hex(),
        count(x).bit_length(),
        first(x).real,
        count(x).numerator,
    ),
    "hash": lambda x: (x, hash(first(x)), hash((count(x), 1)), divmod(first(x), 2), pow(count(x), 2, 5)),
    "complex": lambda x: (x, complex(first(x), 1), first(x) * 1j, (-first(x)) ** 0.5),
    "fractions": lambda x: (x, str(fractions.Fraction(first(x))), int(fractions.Fraction(count(x), 3))),
    "asked by C": lambda x: (
        x,
        len(Asked(count(x))),
        [5, 6, 7, 8, 9, 1, 2, 3][Asked(count(x))],
        float(Asked(first(x))),
        bool(Asked(abs(count(x) - 3))),
    ),
    "asked in containers": lambda x: (
        x,
        max(Asked(first(x)), Asked(3.0)).value,
        {Asked(count(x)): 1}[Asked(count(x))],
        Asked(count(x)) in [Asked(3)],
    ),
    "repeated": lambda x: (
        x,
        "ab" * count(x),
        [0] * count(x),
        list(range(count(x))),
        (1, 2, 3, 4, 5, 6, 7, 8)[count(x) :],
    ),
    "index": lambda x: (
        x,
        [10, 20, 30, 40, 50, 60, 70, 80][count(x)],
        x[count(x) % 3],
        x[: count(x) - 1],
        "abcdefghi"[count(x)],
    ),
    "identity": lambda x: (x, count(x) is three, count(x) is not (three - 1), first(x) is first(x)),
    "match": lambda x: (x, matched(count(x)), matched(first(x))),
    "truth": lambda x: (x, bool(count(x) - 3), not (count(x) - 3), (count(x) - 3) and 1, 5 if count(x) - 4 else 6),
    "division": lambda x: (
        x,
        caught(lambda: 1 / (count(x) - 3)),
        caught(lambda: 5 % (count(x) - 2)),
        caught(lambda: 1 // (count(x) - 4)),
    ),
    "out of range": lambda x: (
        x,
        caught(lambda: math.sqrt(first(x) - 4)),
        caught(lambda: math.exp(first(x) * 150)),
        caught(lambda: 10.0 ** (first(x) * 60)),
    ),
    "bits": lambda x: (x * (count(x) & 1), count(x) << 2, ~count(x), count(x) ^ 3, count(x) | 4),
    "exceptions": raised,
    "generators": sent,
    "attributes": spread,
    "records": lambda x: (
        x * Point(first(x)).x,
        Pair(first(x), 1),
        Pair(first(x), 2).a * x,
        dataclasses.astuple(Point(first(x))),
    ),
    "copies": lambda x: (x * copy.copy([first(x)])[0], copy.deepcopy({"a": (first(x),)})),
    "big ints": lambda x: (x, int(first(x)) * 10**30, 2 ** (count(x) * 40), (count(x) * 10**30) // 10**29),
    "functions of torch": lambda x: (
        F.leaky_relu(-x, first(x)),
        x.norm(p=count(x)),
        torch.arange(first(x)),
        torch.zeros(count(x)),
    ),
    "sizes": lambda x: (
        x.expand(count(x), 3),
        x.repeat(count(x)),
        torch.linspace(0, first(x), 3),
        torch.ones(2, count(x)).sum(0),
    ),
    "random": lambda x: (F.dropout(x, 1 / first(x)), torch.randn(count(x)), x.clone().uniform_(0, first(x))),
    "own gradients": lambda x: (Scale.apply(x, first(x)), Scale.apply(x * 2, 2.0)),
    "numpy": lambda x: (
        x,
        __import__("numpy").float64(first(x)) + 1,
        __import__("numpy").array([first(x), 2.0]).tolist(),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEEN)
def test_whatever_looks_at_a_number_is_noticed(name: str) -> None:
    program = SEEN[name]
    fast = torch.compile(program, backend="magpy")
    for k in (0, 1, 2, 1, 3, 0):
        torch.manual_seed(k)
        mine, state = fast(data(k)), torch.get_rng_state()
        torch.manual_seed(k)
        assert_same(mine, program(data(k)))
        assert torch.equal(state, torch.get_rng_state())


def test_state_that_follows_data() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.seen = 0.0, []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x.mean().item()
            self.seen.append(self.last * 2)
            return x - self.last

    model, plain = Average(), Average()
    fast = torch.compile(model, backend="magpy")
    for k in range(5):
        with Counted() as counted:
            mine = fast(data(k))
        assert_same(mine, plain(data(k)))
        assert_same((model.last, model.seen), (plain.last, plain.seen))
        assert (counted.hits, counted.fallbacks) == (int(k > 0), {})


def test_momentum_of_cumulative_statistics() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4, momentum=None)).train()

    model, plain = make(), make()
    fast = torch.compile(model, backend="magpy")
    for k in range(5):
        x = data(k)[None, :, None].expand(4, 3, 5) * torch.linspace(0, 1, 5)
        given = [x.clone().requires_grad_() for _ in range(2)]
        with Counted() as counted:
            mine = fast(given[0])
        expected = plain(given[1])
        mine.square().sum().backward()
        expected.square().sum().backward()
        assert_same(mine, expected)
        assert_same(dict(model.state_dict()), dict(plain.state_dict()))
        assert_same(given[0].grad, given[1].grad)
        assert (counted.hits, counted.fallbacks) == (int(k > 0), {})


def test_gradients_through_open_numbers() -> None:
    def program(x: torch.Tensor, w: torch.Tensor) -> Any:
        scale = w.detach().abs().max().item()
        return (x / scale * w).sum() * x.detach().norm().item() + torch.where(x > 2, x, scale).sum()

    fast = torch.compile(program, backend="magpy")
    for k in range(4):
        gradients = []
        for f in (fast, program):
            x, w = data(k).requires_grad_(), data(k + 9).requires_grad_()
            f(x, w).backward()
            gradients.append((x.grad, w.grad))
        assert_same(*gradients)
    assert find_callable(fast).n_traces == 1 and find_callable(fast).hits == 3


def test_a_division_that_fails_is_the_programs_own_error() -> None:
    fast = torch.compile(lambda x: x * (1.0 / x[0].item()), backend="magpy")
    fast(torch.ones(2))
    for _ in range(5):
        with pytest.raises(ZeroDivisionError, match="float division by zero"):
            fast(torch.zeros(2))
        assert_same(fast(torch.full((2,), 2.0)), torch.ones(2))


def test_computations_that_give_back_an_operand_for_some_values() -> None:
    def program(x: torch.Tensor) -> Any:
        n = int(x[0])
        return x * (n % 7), abs(n), n % 7 + abs(n), abs(n) * x, n // 1, n | 0, n >> 0, n**1, round(n), math.trunc(n)

    fast = torch.compile(program, backend="magpy")
    for n in (0, 3, 12, -4, 300, -300, 7, 0):
        x = torch.full((2,), float(n))
        assert_same(fast(x), program(x))
    assert find_callable(fast).hits >= 6


@pytest.mark.parametrize(
    "compute",
    [
        lambda f: 1.0 / f,
        lambda f: 5 % f,
        lambda f: 7 // f,
        lambda f: f**-1,
        lambda f: math.log(f),
        lambda f: math.sqrt(f - 1),
        lambda f: int(1e308 * 10 * f),
        lambda f: round(1e308 * 10 * f),
    ],
)
def test_errors_of_computations_whose_result_is_not_used(compute: Callable) -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        compute(x[0].item())
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for value in (1.0, 2.0, 0.0, 3.0, 0.0, 1.0):
        x = torch.full((2,), value)
        try:
            expected = program(x)
        except (ArithmeticError, ValueError) as error:
            with pytest.raises(type(error)) as mine:
                fast(x)
            assert str(mine.value) == str(error)
            continue
        assert_same(fast(x), expected)


def test_the_tensor_of_a_number_is_let_go() -> None:
    fast = torch.compile(lambda x: (x * x[0].item(), x[1].item()), backend="magpy")
    x = data(0)
    watched = weakref.ref(x)
    fast(x)
    del x
    assert watched() is None
