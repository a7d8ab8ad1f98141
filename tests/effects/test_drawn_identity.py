"""Which object a drawn value is: `is` among drawn values, functions that give their operand itself, and ints that fit
into no tensor, in every call, also in the one that is observed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.counting import Counted

X = torch.arange(4.0)
CALLS = 6


def _shuffled(n: int) -> list[int]:
    order = list(range(n))
    random.shuffle(order)
    return order


def _text() -> str:
    return random.randbytes(8).hex()


def _same(a: Any, b: Any) -> Any:
    return a is a, a is b, b is not a, b is b


#: Pairs of values: one value of each kind twice, then two values of it, which are equal at some calls.
PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "int": lambda: (a := random.randrange(3), a),
    "two ints": lambda: (random.randrange(2), random.randrange(2)),
    "int of a constant": lambda: (random.randrange(2), 1),
    "large int": lambda: (a := random.getrandbits(80), a),
    "int computed": lambda: (a := int(random.random() * 3), a),
    "int of text": lambda: (a := int(_text()[0], 16), a),
    "item of an order": lambda: ((o := _shuffled(4))[0], o[0]),
    "items of two orders": lambda: (_shuffled(2)[0], _shuffled(2)[0]),
    "float": lambda: (a := random.random(), a),
    "text": lambda: (a := _text(), a),
    "character": lambda: (a := _text()[0], a),
    "two characters": lambda: ((t := _text())[0], t[1]),
    "choice": lambda: (a := random.choice("abc"), a),
    "byte": lambda: (a := random.randbytes(1), a),
    "two bytes": lambda: (random.randbytes(1)[:1], random.randbytes(1)[:1]),
    "int of data and its text": lambda: (a := str(int(X.sum().item()) % 10), a),
}


@pytest.mark.parametrize("name", PAIRS)
def test_is(name: str) -> None:
    make = PAIRS[name]

    def program(x: torch.Tensor) -> Any:
        return x + 1, _same(*make())

    fast = torch.compile(program, backend="magpy")
    for seed in range(CALLS):
        random.seed(seed)
        expected = program(X)
        random.seed(seed)
        y, same = fast(X)
        assert y.equal(expected[0]) and same == expected[1]


#: What functions give of a text of hexadecimal digits, which may be the very text.
GIVERS: dict[str, Callable[[str], Any]] = {
    "split": lambda t: t.split("z"),
    "split at what may be in it": lambda t: t[:3].split("a"),
    "partition": lambda t: (t.partition("z"), t.rpartition("a")),
    "splitlines": lambda t: t.splitlines(),
    "strip": lambda t: [t.strip("z"), t.strip("y").strip("x"), t.lstrip("0")],
    "replace": lambda t: (t.replace("z", "y"), t.replace("a", "b")),
    "slice": lambda t: (t[:], t[0:99], (t,)[0]),
    "format": lambda t: ("{a}".format(a=t), "{}".format(t), f"{t}", format(t, "")),  # noqa: UP030, UP032
    "percent": lambda t: ("%s" % (t,), "%s" % t),  # noqa: UP031
    "join": lambda t: ("".join([t]), "".join((t,)), "".join(["", t])),
    "join of a tuple that is kept": lambda t: ((u := (t,)), "".join(u), (v := ("", t, "")), "".join(v)),
    "sum": lambda t: (t + "", "" + t, t * 1),
    "case and width": lambda t: (t.lower(), t.center(3), t.zfill(3), t.expandtabs(), t.removeprefix("z")),
    "bytes": lambda t: ((b := t.encode()), bytes(b), b[:], b.split(b"z"), b.partition(b"z"), b.strip(b"z"), b + b""),
}


def _pattern(objects: Any, seen: dict[int, int]) -> Any:
    """Values, and which of them are the same object."""
    number = seen.setdefault(id(objects), len(seen))
    if isinstance(objects, (list, tuple)):
        return type(objects), [_pattern(item, seen) for item in objects]
    return number, type(objects), objects


@pytest.mark.parametrize("name", GIVERS)
def test_operands_that_are_given_are_the_same_objects(name: str) -> None:
    give = GIVERS[name]

    def program(x: torch.Tensor) -> Any:
        text = _text()
        return x + 1, text, give(text)

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for seed in range(CALLS):
            random.seed(seed)
            expected = program(X)[1:]
            random.seed(seed)
            y, *made = fast(X)
            assert y.equal(X + 1) and _pattern(tuple(made), {}) == _pattern(expected, {})
    assert not counted.fallbacks and counted.hits >= CALLS - 3


class Counter:
    total = 0


@pytest.mark.parametrize("first", [0, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**100])
def test_ints_from_outside_that_fit_into_no_tensor(first: int) -> None:
    """They are constants of their traces; one that becomes too large in a run ends it: the call is observed again."""
    eager, counter = Counter(), Counter()
    eager.total = counter.total = first

    def program(x: torch.Tensor, own: Counter, step: int) -> Any:
        own.total = own.total * 3 + step
        return x * 2, own.total, own.total % 10, own.total > 2**65

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for step in (1, 2**40, 5, -(2**70), 3, 2**63 - 1, 2, 9):
            expected, made = program(X, eager, step), fast(X, counter, step)
            assert made[0].equal(expected[0]) and made[1:] == expected[1:] and counter.total == eager.total
            if step == 3:
                eager.total = counter.total = first
    assert "LOWERING_FAILED" not in counted.fallbacks and "RUN_FAILED" not in counted.fallbacks
