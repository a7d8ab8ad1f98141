"""Cached functions of installed libraries that give tensors: where nothing but constants goes in, a call that fills the
cache, or finds it filled, is part of a trace."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.counting import Counted

SOURCE = """
import functools
import torch

OUTSIDE = torch.ones(3)

@functools.lru_cache(maxsize=1)
def table(n, dtype=torch.float32):
    x = torch.arange(n, dtype=dtype)
    return (10000 ** (x / n) - 1).cos()

@functools.lru_cache(maxsize=1)
def places(mask, n, scale=1.0):
    return mask.cumsum(0) * n + scale * table(n).sum()

def decorated(function):
    cached = functools.lru_cache(maxsize=1)(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return cached(*args, **kwargs)

    return wrapper

@decorated
def weighted(x, n):
    return x.exp() / n

@functools.lru_cache(maxsize=4)
def noise(n):
    return torch.rand(n)

@functools.lru_cache(maxsize=4)
def counting(n):
    OUTSIDE.add_(1)
    return torch.ones(n)

@functools.lru_cache(maxsize=4)
def of_outside(n):
    return torch.ones(n) * OUTSIDE

class Model:
    def __init__(self, scale):
        self.scale = scale

    @functools.lru_cache(maxsize=4)
    def positions(self, n):
        return torch.ones(n) * self.scale
"""

X = torch.arange(3.0)


@pytest.fixture
def library(tmp_path: Path) -> Callable[[], ModuleType]:
    path = tmp_path / "site-packages" / "cached_library.py"
    path.parent.mkdir()
    path.write_text(SOURCE)

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("cached_library", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def one(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return x + lib.table(3)


def keywords(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return x + lib.table(n=3, dtype=torch.float64)


def evicting(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return x + lib.table(3) + lib.table(1) + lib.table(n=3)


def changing_size(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return lib.table(3 + k % 2)[:3] * x


def changed_in_place(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return lib.table(3).add_(1) * x


def view_changed_in_place(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    lib.table(3)[1:].mul_(2)
    return lib.table(3) * x


def random_numbers(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return x + lib.noise(3)


def writing_outside(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return x + lib.counting(3) + lib.OUTSIDE


def reading_outside(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    if k == 3:
        lib.OUTSIDE.add_(1)
    return x + lib.of_outside(3)


def methods(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    if not hasattr(lib, "models"):
        lib.models = [lib.Model(2.0), lib.Model(3.0)]
    return x + lib.models[k % 2].positions(3)


def of_own_tensors(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    mask = x > k % 3 - 1
    return lib.places(mask, 3) + lib.places(mask, n=2, scale=0.5) + lib.places(mask=~mask, n=2) * x


def of_own_and_outside_tensors(lib: ModuleType, x: torch.Tensor, k: int) -> Any:
    return lib.weighted(x * k, 2) + lib.weighted(n=3, x=x + 1) * lib.table(3)


PROGRAMS = [of_own_tensors, of_own_and_outside_tensors, one, keywords, evicting, changing_size, changed_in_place,
            view_changed_in_place, random_numbers, writing_outside, reading_outside, methods]  # fmt: skip
IN_GRAPHS = (of_own_tensors, of_own_and_outside_tensors, one, keywords, evicting, changing_size)


@pytest.mark.parametrize("between", ["nothing", "cleared", "changed", "filled"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_equals_eager(library, program, between):
    results: list[list] = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="magpy")):
        lib = library()
        call, seen = wrap(program), []
        torch.manual_seed(0)
        if between == "filled":
            lib.table(3), lib.table(n=3), lib.noise(3), lib.counting(3)
        with Counted() as counted:
            for k in range(7):
                seen.append(call(lib, X, k).tolist())
                if between == "cleared" and k == 3:
                    lib.table.cache_clear(), lib.noise.cache_clear(), lib.counting.cache_clear()
                if between == "changed" and k == 3:
                    lib.table(3).add_(1), lib.noise(3).add_(1)
        results.append([*seen, lib.OUTSIDE.tolist(), torch.rand(1).item()])
    expected, actual = results
    if between == "changed" and program is changing_size:  # runs neither fill nor empty a cache of one place
        actual, expected = actual[:6], expected[:6]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    if program in IN_GRAPHS and between != "changed":
        assert counted.hits >= 3, counted.fallbacks


@pytest.mark.parametrize("kind", ["tensor", "instance", "function", "list"])
def test_cached_results_that_die(tmp_path, kind):
    path = tmp_path / "site-packages" / "dying.py"
    path.parent.mkdir()
    path.write_text("""
import functools
import torch

class Scale:
    def __init__(self, factor):
        self.factor = factor

made = {"tensor": lambda n: torch.tensor([n, n]), "instance": Scale}
made |= {"function": lambda n: (lambda x: x * n), "list": lambda n: [n]}

@functools.lru_cache
def cached(kind, n):
    return made[kind](n)
""")
    spec = importlib.util.spec_from_file_location("dying", path)
    assert spec and spec.loader
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)

    def program(x: torch.Tensor) -> torch.Tensor:
        found = library.cached(kind, 2.0)
        factor = {"instance": lambda: found.factor, "list": lambda: found[0]}.get(kind, lambda: found)()
        return factor(x) if kind == "function" else x * factor

    fast = torch.compile(program, backend="magpy")
    for k in range(8):
        x = torch.ones(2) * k
        assert fast(x).tolist() == program(x).tolist()
        if k % 3 == 2:
            library.cached.cache_clear()
            torch.ones(1000), [torch.ones(2) for _ in range(100)]  # other objects where the dead one was
