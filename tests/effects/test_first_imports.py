"""A module that a call is the first to import: its code runs once, as in eager, and the call is traced all the same."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.counting import Counted

X = torch.ones(3)
seen: list[str] = []
state: dict[str, Any] = {"scale": 1}

MODULES = {
    "first_plain": "VALUE = 2",
    "first_tensors": "import torch\nTABLE = torch.arange(3.0) * 2\nwith torch.no_grad():\n    TABLE += 1",
    "first_package/__init__": "",
    "first_package/inner": "VALUE = 3",
    "first_noisy": "from tests.effects.test_first_imports import seen\nseen.append('imported')\nVALUE = 1",
    "first_raising": "from tests.effects.test_first_imports import seen\nseen.append('began')\nraise ValueError('no')",
    "first_changing": "from tests.effects.test_first_imports import state\nstate['scale'] = 5\nVALUE = 1",
    "first_dtype": "import torch\ntorch.set_default_dtype(torch.float64)\nVALUE = 1",
    "first_class": "from tests.effects.test_first_imports import Scaled\nScaled.factor = 7\nVALUE = 1",
}


class Scaled:
    factor = 2


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, source in MODULES.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("first_")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    seen.clear()
    state["scale"], Scaled.factor = 1, 2
    torch.set_default_dtype(torch.float32)


def plain(x: torch.Tensor) -> Any:
    import first_plain

    return x * first_plain.VALUE


def tensors(x: torch.Tensor) -> Any:
    from first_tensors import TABLE

    return x + TABLE


def inner(x: torch.Tensor) -> Any:
    from first_package import inner

    return x * inner.VALUE


def dotted(x: torch.Tensor) -> Any:
    import first_package.inner as module

    return x * module.VALUE


def noisy(x: torch.Tensor) -> Any:
    seen.append("before")
    import first_noisy

    return x + first_noisy.VALUE, list(seen)


def raising(x: torch.Tensor) -> Any:
    try:
        import first_raising  # noqa: F401
    except ValueError as error:
        seen.append(str(error))
    return x + 1, list(seen)


def missing(x: torch.Tensor) -> Any:
    try:
        import first_missing  # noqa: F401
    except ImportError:
        return x + 1
    return x


def changing(x: torch.Tensor) -> Any:
    before = state["scale"]
    import first_changing

    return x * state["scale"] + first_changing.VALUE, before


def dtype(x: torch.Tensor) -> Any:
    import first_dtype

    return x + first_dtype.VALUE, torch.ones(2)


def of_class(x: torch.Tensor) -> Any:
    before = Scaled.factor
    import first_class

    return x * Scaled.factor + first_class.VALUE, before


PROGRAMS = [plain, tensors, inner, dotted, noisy, raising, missing, changing, dtype, of_class]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_first_imports(program: Callable[[torch.Tensor], Any]) -> None:
    def calls(function: Callable[[torch.Tensor], Any]) -> list[str]:
        forget()
        out = []
        for k in range(4):
            if k == 3:
                state["scale"], Scaled.factor = 1, 2  # as they were before the import
                torch.set_default_dtype(torch.float32)
            out.append(repr(function(X)))
        return [*out, repr(seen)]

    expected = calls(program)
    with Counted() as counted:
        assert calls(torch.compile(program, backend="magpy")) == expected
    if program in (plain, tensors, inner, dotted):
        assert counted.hits == 3 and not counted.fallbacks


def test_an_import_function_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    real, names = builtins.__import__, []

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        names.append(name)
        return real(name, *args, **kwargs)

    forget()
    fast = torch.compile(plain, backend="magpy")
    monkeypatch.setattr(builtins, "__import__", importing)
    for _ in range(2):
        assert torch.equal(fast(X), X * 2)
    assert names.count("first_plain") == 2
