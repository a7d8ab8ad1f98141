"""C code that asks a tensor for its number computes with it unseen: the number is looked at, or the call falls back."""

# ruff: noqa: UP030, UP031, UP032
from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.counting import Counted

EXPRESSIONS: dict[str, Callable[[Any], Any]] = {
    "%d": lambda n: "%d" % n,
    "%f": lambda n: "%.2f" % n,
    "% of a tuple": lambda n: "%s %.1f" % ("loss", n),
    "% of a dict": lambda n: "%(a).1f" % {"a": n},
    "str.__mod__": lambda n: "%.2f".__mod__(n),
    "operator.mod": lambda n: operator.mod("%.2f", n),
    "bytes %": lambda n: b"%.2f" % n,
    "f-string": lambda n: f"{n}",
    "f-string with a format": lambda n: f"loss {n:.2f} of {n + 1:>8}",
    "f-string that fails for some": lambda n: f"{n:d}" if n.dtype is torch.int64 else f"{n:g}",
    "f-string of a condition": lambda n: f"{n > 1}",
    "f-string as a key": lambda n: {"0": "a", "1": "b", "2": "c"}.get(f"{n:.0f}" if n.is_floating_point() else f"{n}"),
    "format": lambda n: format(n, ".2f"),
    "str.format": lambda n: "{:.2f} {}".format(n, n),
    "__format__": lambda n: n.__format__(".1f") + f"{n.__format__('')}",
    "exp": math.exp,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "ceil": math.ceil,
    "pow": lambda n: math.pow(n, 2),
    "hypot": lambda n: math.hypot(n, 1),
    "isclose": lambda n: math.isclose(n, 1.0),
    "isnan": math.isnan,
    "copysign": lambda n: math.copysign(1, n),
    "fsum": lambda n: math.fsum([n, 1]),
    "dist": lambda n: math.dist([n], [1]),
    "pack": lambda n: struct.pack("f", n),
    "complex": complex,
    "float": float,
    "int": int,
    "float(int)": lambda n: float(int(n)),
    "computed with": lambda n: float(n) * 2 + int(n),
    "method": lambda n: n.__float__() + n.__int__(),
    "item": lambda n: n.item() * 2,
    "in a comprehension": lambda n: [math.exp(q) for q in (n, n + 1)],
    "mapped": lambda n: list(map(math.exp, [n])),
    "sorted": lambda n: sorted([1.0, 0.25], key=lambda q: math.fabs(q - float(n))),
}


@pytest.mark.parametrize("where", ["input", "value"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_numbers_that_c_code_asks_for(name: str, dtype: torch.dtype, where: str) -> None:
    expression = EXPRESSIONS[name]

    def program(x: torch.Tensor, n: torch.Tensor) -> Any:
        return x * 2, expression(n if where == "input" else (n + 1).sum())

    fast = torch.compile(program, backend="magpy")
    for number in (0, 1, 2, 0, 1, 3, 0.5, 0.25):
        x, n = torch.ones(3), torch.tensor(number, dtype=dtype)
        assert repr(fast(x, n)) == repr(program(x, n))


OPEN = ["float", "int", "computed with", "item", "f-string", "f-string with a format", "%f", "format", "str.format"]


@pytest.mark.parametrize("name", OPEN)
def test_numbers_that_the_program_gets_stay_open(name: str) -> None:
    expression = EXPRESSIONS[name]
    fast = torch.compile(lambda x, n: (x * 2, expression(n)), backend="magpy")
    with Counted() as counted:
        for number in (0.5, 1.5, 2.25, 3.0):
            assert fast(torch.ones(3), torch.tensor(number))[1] == expression(torch.tensor(number))
    assert counted.hits == 3 and not counted.fallbacks


@pytest.mark.parametrize("name", ["__format__", "exp", "floor", "pack"])
def test_numbers_that_c_code_asks_for_are_checked(name: str) -> None:
    expression = EXPRESSIONS[name]
    fast = torch.compile(lambda x, n: (x * 2, expression(n)), backend="magpy")
    with Counted() as counted:
        for number in (1, 2, 1, 2):
            assert fast(torch.ones(3), torch.tensor(float(number)))[1] == expression(torch.tensor(float(number)))
    assert counted.hits == 2 and not counted.fallbacks
