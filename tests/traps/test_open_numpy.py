"""Floats of numpy that follow from data: those that are only formatted, converted, kept or given back are made again by
every run, and whatever looks at one is noticed."""

# ruff: noqa: E501, UP031, UP032

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted

Program = Callable[[np.ndarray], Any]


class Meter:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}


def kept(a: np.ndarray) -> Any:
    meter = Meter()
    meter.values["mean"] = a.mean()
    meter.values.update(std=a.std())
    return meter.values, [a[0], (a.max(),)]


#: Programs that nothing of the float's value shows in: one trace serves all data.
OPEN: dict[str, Program] = {
    "given back": lambda a: (a.mean(), np.mean(a), a[1], a.sum()),
    "of other types": lambda a: (a.astype(np.float64).mean(), a.astype(np.float16).max(), np.median(a)),
    "floats": lambda a: (float(np.mean(a)), a[0].item(), float(a.std()) * 2 + 1, round(float(a.max()), 3)),
    "text": lambda a: (f"{a.mean():.2f}", f"{np.mean(a)}", f"{a[0]!r}", f"{float(a.sum()):.3f}", str(a[1]), repr(a[1])),
    "other text": lambda a: ("%.3f" % np.mean(a), "{:.3f} {}".format(a.mean(), "a"), format(a[0], ".1e"), "%s|%d" % (a[0], 3)),
    "kept": kept,
    "for tensors": lambda a: torch.ones(2) * float(a.mean()) + a[0].item(),
    "printed": lambda a: print("mean", a.mean(), [a[0]], f"{a.std():.2f}"),
}  # fmt: skip


def caught(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except (ValueError, ArithmeticError, TypeError) as error:
        return type(error).__name__, str(error)


def matched(value: Any) -> str:
    match value:
        case 2.5:
            return "found"
        case float():
            return "a float"
        case _:
            return "other"


#: Programs that see something of it: they may cost a trace or a fallback, never a wrong answer.
SEEN: dict[str, Program] = {
    "truth": lambda a: (1 if a[0] else 2, not a[0], bool(a[0]), a[0] and 3, any([a[0]])),
    "compared": lambda a: (a[0] > 2, a[0] == 2.5, 2.5 in [a[0]], a[0] < a[1], min(a[0], 3.0), sorted([a[0], 3.0])),
    "identity": lambda a: (a[0] is a[0], (v := a[0]) is v, a[0] is None),
    "arithmetic": lambda a: (a[0] * 2, 2 - a[0], -a[0], abs(a[0]), a[0] // 1, a[0] + a[1], divmod(a[0], 2)),
    "with tensors": lambda a: (torch.ones(2) * a[0], torch.ones(2) + a.mean(), torch.tensor(a[0]), torch.full((2,), float(a[0]))),
    "with arrays": lambda a: (a * a[0], a[0] * a, np.sqrt(a[0]), np.array([a[0], 1]), np.maximum(a[0], 2.0), [a[0]] * 2),
    "functions": lambda a: (math.sqrt(abs(a[0])), caught(lambda: int(a[0])), caught(lambda: round(a[0])), round(a[0], 1), caught(lambda: math.floor(a[1]))),
    "attributes": lambda a: (a[0].dtype, a[0].shape, a[0].ndim, a[0].real, a[0].T, a[0].nbytes),
    "methods": lambda a: (a[0].astype(np.float64), a[0].round(1), a[0].tolist(), a[0].is_integer(), a[0].tobytes(), a[0].item, a[0].hex() if isinstance(a[0], float) else 0),
    "keys": lambda a: ({a[0]: 1}, {a[0], 2.5}, hash(a[0]), {2.5: "a"}.get(a[0])),
    "types": lambda a: (isinstance(a[0], float), isinstance(a[0], np.floating), type(a[0]).__name__, matched(a[0])),
    "json": lambda a: caught(lambda: json.dumps({"a": a.astype(np.float64)[0]})),
    "looked at text": lambda a: (len(f"{a[0]:.1f}"), f"{a[0]}" == "2.5", "%d" % a[1], f"{a[0]:.0f}"[0]),
    "changed": lambda a: (a[0], a.__setitem__(0, 7.0), a[0], float(a[0])),
    "as an index": lambda a: (caught(lambda: [1, 2][a[0]]), caught(lambda: range(a[0])), "ab" * int(abs(a[0]) > 2)),
    "ints": lambda a: (a.argmax(), int(np.argmax(a)), a.astype(np.int64)[0], f"{a.astype(np.int32)[0]:d}"),
}  # fmt: skip

DATA = [(2.5, 1.0), (3.25, -2.0), (2.5, 1.0), (0.0, 4.0), (-0.0, 4.0), (1e3, 0.1), (2.5, 1.5)]


def once(call: Callable[[torch.Tensor], Any], values: tuple, kind: torch.dtype) -> Any:
    return call(torch.tensor(values, dtype=kind) * 1)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPEN)
def test_one_trace_serves_all_floats_of_numpy(name: str, kind: torch.dtype, capsys: Any) -> None:
    def program(x: torch.Tensor) -> Any:
        return OPEN[name]((x * 2).numpy()), x + 1

    fast = torch.compile(program, backend="magpy")
    for k, values in enumerate(DATA):
        with Counted() as counted:
            mine = once(fast, values, kind)
        out = capsys.readouterr()
        expected = once(program, values, kind)
        assert out == capsys.readouterr()
        assert repr(mine) == repr(expected)
        assert_same(mine[1], expected[1])
        assert (counted.hits, counted.fallbacks) == (int(k > 0), {})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SEEN)
def test_whatever_looks_at_a_float_of_numpy_is_noticed(name: str, kind: torch.dtype) -> None:
    def program(x: torch.Tensor) -> Any:
        return SEEN[name]((x * 1).numpy()), x + 1

    fast = torch.compile(program, backend="magpy")
    for values in DATA:
        mine, expected = once(fast, values, kind), once(program, values, kind)
        if name != "methods":
            assert repr(mine) == repr(expected)
        else:  # one of them is bound, which shows where it lies
            assert [repr(m) for m in mine[0] if not callable(m)] == [repr(m) for m in expected[0] if not callable(m)]
