"""Results that share memory count changes together exactly where eager's do: x.data has a version counter of its own,
views and what is detached have not. Without a compiler, too, where operators make views themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.counting import Counted

ROOT = Path(__file__).parents[2]
Program = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
PROGRAMS: dict[str, Program] = {
    "data": lambda x, w: (y := x * w, y.data),
    "detached": lambda x, w: (y := x * w, y.detach()),
    "both": lambda x, w: (y := x * w, y.detach(), y.data),
    "detached alone": lambda x, w: ((x * w).detach(),),
    "view of detached": lambda x, w: (y := x * w, y.detach().view(-1)),
    "part of detached": lambda x, w: (y := x * w, y.detach()[..., :1], y.view(-1)),
    "view of data": lambda x, w: (y := x * w, y.data.view(-1)),
    "data twice": lambda x, w: (y := x * w, y.data, y.data),
    "data and its view": lambda x, w: (y := x * w, d := y.data, d.view(-1)),
    "views of data": lambda x, w: (d := (x * w).data, (d.view(-1), d[0]))[1],
    "two detached": lambda x, w: (y := x.exp(), (y.detach(), y.detach()[0], y * y))[1],
    "detached and data": lambda x, w: (y := x.exp(), (y.detach(), y.data, y * y))[1],
    "views": lambda x, w: (y := x * w, y.view(-1), y[0]),
    "chunks": lambda x, w: (x * w).chunk(2),
    "chunks and more": lambda x, w: (y := x * w, (*y.chunk(2), y.t(), y.data[0]))[1],
    "input's data": lambda x, w: (x, x.data),
    "input detached": lambda x, w: (x, x.detach()),
    "input's data alone": lambda x, w: (x.data,),
    "input detached alone": lambda x, w: (x.detach(),),
    "input's both": lambda x, w: (w.detach(), w.data),
    "input's views": lambda x, w: (x.view(-1), x.data.view(-1), x.detach().view(-1)),
    "data of views": lambda x, w: (x.view(-1).data, (x * w).view(-1).data),
    "input's data and a view of it": lambda x, w: (d := x.data, d[0], x * w),
    "inputs as parameters": lambda x, w: (torch.nn.Parameter(x.data, False), torch.nn.Parameter(w, False), x.data[0]),
    "changed": lambda x, w: (y := x * w, d := y.data, d.add_(1), y.view(-1)),
}


def sharing(tensors: list[torch.Tensor]) -> list[list[bool]]:
    """Which of the tensors count a change of each."""
    rows = []
    for tensor in tensors:
        before = [t._version for t in tensors]
        with torch.no_grad():
            tensor.add_(1)
        rows.append([t._version != n for t, n in zip(tensors, before, strict=True)])
    return rows


def seen(call: Program, grad: bool, around: Callable[[], Any]) -> list[Any]:
    found = []
    for _ in range(3):
        x = torch.arange(6.0).reshape(2, 3).div(8).requires_grad_(grad)
        w = torch.ones(2, 3, requires_grad=grad)
        with around():
            results = call(x, w)
        rows = sharing([*results, x, w])
        found.append((rows, [t.requires_grad for t in results], [t.detach().clone() for t in results]))
    return found


def differing(name: str, grad: bool, around: Callable[[], Any]) -> str:
    expected = seen(PROGRAMS[name], grad, around)
    with Counted() as counted:
        actual = seen(torch.compile(PROGRAMS[name], backend="magpy"), grad, around)
    for a, e in zip(actual, expected, strict=True):
        if a[:2] != e[:2] or not all(torch.allclose(s, t) for s, t in zip(a[2], e[2], strict=True)):
            return f"{name}, grad {grad}, {around.__name__}: {a} is not {e}"
    return "" if counted.hits == 2 else f"{name}: {counted.hits} hits, {counted.fallbacks}"


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad], ids=lambda a: a.__name__)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_who_counts_together(name: str, grad: bool, around: Callable[[], Any]) -> None:
    assert not differing(name, grad, around)


def test_without_a_compiler() -> None:
    code = (
        "import torch; from tests.lower.test_version_counters import *\n"
        "for name in PROGRAMS:\n    for grad in (False, True):\n        print(differing(name, grad, torch.enable_grad))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "", "CC": "UNSET"}
    made = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert not made.stdout.strip(), made.stdout


def test_inference_tensors_have_none() -> None:
    program = torch.compile(lambda x: (y := x * 2, y.view(-1), y.data), backend="magpy")
    for _ in range(3):
        with torch.inference_mode():
            results = program(torch.ones(2, 2))
        assert all(t.is_inference() for t in results)


OF_INPUTS = [name for name in PROGRAMS if name.startswith("input")]


def counted_together(tensors: list[torch.Tensor]) -> list[Any]:
    """Which of the tensors count a change of each; what it says where it counts none, or cannot be changed."""

    def version(tensor: torch.Tensor) -> Any:
        try:
            return tensor._version
        except RuntimeError as error:
            return str(error)

    rows: list[Any] = []
    for tensor in tensors:
        before = [version(t) for t in tensors]
        try:
            with torch.no_grad():
                tensor.mul_(1)
                tensor.unbind(0)
        except RuntimeError as error:
            rows.append(str(error))
        rows.append([isinstance(n, str) or version(t) != n for t, n in zip(tensors, before, strict=True)])
    return rows


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad, torch.inference_mode], ids=lambda a: a.__name__)
@pytest.mark.parametrize("made", [torch.inference_mode, torch.enable_grad], ids=lambda m: f"of {m.__name__}")
@pytest.mark.parametrize("name", OF_INPUTS)
def test_inputs_of_one_mode_in_calls_of_another(name: str, made: Callable[[], Any], around: Callable[[], Any]) -> None:
    """What shows their memory: in inference mode x.data of a plain tensor counts, outside x.detach() of one that
    does not."""
    fast = torch.compile(PROGRAMS[name], backend="magpy")
    for _ in range(3):
        found = []
        for call in (PROGRAMS[name], fast):
            with made():
                x, w = torch.ones(2, 3), torch.ones(2, 3)
            with around():
                results = [*call(x, w), x, w]
            found.append(([t.is_inference() for t in results], counted_together(results)))
        assert found[0] == found[1]
