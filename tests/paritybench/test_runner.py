"""The runner tells the outcomes apart: a tiny checkout with one case for each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.paritybench.checkout import ROOT, case_names, find_items, in_half
from tests.paritybench.outcomes import MODES, compare_but_for_rounding, compare_calls, run_calls
from tests.paritybench.snapshots import Different, compare, snapshot

HELPERS = """
from paritybench.utils import patch_torch_manual_seed
patch_torch_manual_seed()
def _mock_config(): return {}
"""

CASES = (
    '''
from _paritybench_helpers import _mock_config
import a_library_that_nobody_has.layers as layers
from a_library_that_nobody_has.blocks import Block
from torch.nn import a_name_that_is_gone
try:
    import another_that_is_optional
    OPTIONAL = True
except ImportError:
    OPTIONAL = False
import ctypes, os, signal, torch
from torch import nn

CALLS = [0]  # ten by eager, then those of the compiled module

class Counts(nn.Module):
    """A complete graph; changes an argument, a buffer, an attribute and the random state."""
    def __init__(self):
        super().__init__()
        assert not OPTIONAL
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0
    def forward(self, x):
        self.seen += x.sum(0)
        x.mul_(2)
        return {"x": x, "again": x, "noise": torch.rand(3), "pair": (x.relu(), x.size(0))}

class Stub(Block):
    def forward(self, x):
        return x

class Draws(nn.Module):
    def forward(self, x):
        return x + int.from_bytes(os.urandom(2), "little")

class Foreign(nn.Module):
    def forward(self, x):
        ctypes.CDLL(None).getpid()
        return x + 1

class Branches(nn.Module):
    """Goes another way on other inputs."""
    def forward(self, x):
        return x + 1 if x.sum() > 7.2 else x - 1  # 6.8 in the first calls, 7.7 in the last

class Caches(nn.Module):
    """Makes a table in the first call, which the second one finds."""
    def __init__(self):
        super().__init__()
        self.table = None
    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(4.0)
        return x + self.table

class Diary(nn.Module):
    """Never finds what it found before."""
    def __init__(self):
        super().__init__()
        self.pages = ""
    def forward(self, x):
        self.pages += "x"
        return x + len(self.pages)

class Drifts(nn.Module):
    """Other results in the eleventh to fifteenth call: what a wrong compiler would look like."""
    def forward(self, x):
        CALLS[0] += 1
        return x + (1 if 10 < CALLS[0] <= 15 else 0)

class DriftsInState(Drifts):
    def forward(self, x):
        self.state = super().forward(x)
        return x

class Dies(nn.Module):
    def forward(self, x):
        CALLS[0] += 1
        if CALLS[0] > 10:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x

class Raises(Dies):
    def forward(self, x):
        CALLS[0] += 1
        if CALLS[0] > 10:
            raise KeyError("eleventh")
        return x

TESTCASES = [
    # (nn.Module, init_args, forward_args, jit_compiles)
'''
    + "".join(
        f"    ({name},\n     lambda: ([], {{}}),\n     lambda: ([torch.rand([4, 4])], {{}}),\n     True),\n"
        for name in "Counts Stub Draws Foreign Branches Caches Diary Drifts DriftsInState Dies Raises".split()
    )
    + "]\n"
)


@pytest.mark.unsanitized  # many processes, with limits on address space that the sanitizers exceed
def test_outcomes(tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    generated.mkdir()
    (generated / "_paritybench_helpers.py").write_text(HELPERS)
    (generated / "test_project.py").write_text(CASES)
    (generated / "test_unimportable.py").write_text(CASES.replace("CALLS = [0]", "CALLS = 1 / 0"))
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/paritybench/test_cases.py"]
    command += ["--paritybench", str(tmp_path), "--half", "all", "--json", str(found)]
    command += ["-k", "project or (unimportable and Counts)"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    cases = json.loads(found.read_text())["cases"]
    outcomes = {(case["project"], case["name"]): (case["outcome"], case["reason"]) for case in cases}
    assert outcomes.pop(("test_unimportable", "Counts")) == ("skip", "import: ZeroDivisionError: division by zero")
    assert {name: outcome for (_, name), (outcome, _) in outcomes.items()} == {
        "Counts": "graph",
        "Stub": "skip",
        "Draws": "skip",
        "Foreign": "fallback",
        "Branches": "tree",
        "Caches": "again",
        "Diary": "miss",
        "Drifts": "wrong",
        "DriftsInState": "wrong",
        "Dies": "error",
        "Raises": "error",
    }, run.stdout
    reasons = {name: reason for (_, name), (_, reason) in outcomes.items()}
    assert "not deterministic" in reasons["Draws"]
    assert "test_project.py" in reasons["Foreign"]
    assert "result" in reasons["Drifts"] and "module.state" in reasons["DriftsInState"]
    assert reasons["Branches"] == "call 3 was observed: other data"
    assert "self.table" in reasons["Caches"] and "call 3" not in reasons["Caches"]
    assert "call 5" in reasons["Diary"]
    assert "SIGSEGV" in reasons["Dies"] and "KeyError" in reasons["Raises"]
    assert "4 failed" in run.stdout and "ParityBench, backend magpy, inference" in run.stdout
    listed = tmp_path / "listed.tsv"
    listed.write_text("file\tindex\ntest_project\t5\ntest_project\t0\ntest_project\t900\ntest_gone\t1\n")
    for path, expected in ((listed, ["Counts", "Caches"]), (found, [case["name"] for case in cases])):
        assert [item.name for item in find_items(generated, "all", path, None, 0)][: len(expected)] == expected


class Weighed(torch.nn.Module):
    def __init__(self, modes: set[bool]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3))
        self.modes = modes

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        self.modes.add(self.training)
        return {"y": [x * self.weight]}


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_compared(mode: str) -> None:
    modes: set[bool] = set()
    case = (Weighed, lambda: ([modes], {}), lambda: ([torch.rand(3)], {}), True)

    def halve_gradients(model: Weighed) -> Weighed:
        model.weight.register_hook(lambda gradient: gradient / 2) if model.weight.requires_grad else None
        return model

    with torch.set_grad_enabled(mode != "inference"):
        right = run_calls(case, mode, lambda model: model)
        compare_calls(run_calls(case, mode, lambda model: model), right)
        wrong = run_calls(case, mode, lambda model: halve_gradients(model) and model.forward)
        assert set(modes) == {mode == "training"}
    if mode == "inference":
        compare_calls(wrong, right)
    else:
        with pytest.raises(Different, match="gradients"):
            compare_calls(wrong, right)


def test_rounding_is_allowed_for_as_far_as_eager_shows_it() -> None:
    one, near, off = (snapshot({"y": [torch.tensor([value, 3.0])]}) for value in (2.0, 2.01, 2.02))
    compare(off, one, "result", [one, near])
    for rounded in ((), [one], [snapshot({"y": [torch.ones(3)]})], [snapshot([]), snapshot({"y": []})]):
        with pytest.raises(Different, match="0.02"):
            compare(off, one, "result", rounded)


def test_few_elements_may_be_other_ones_where_rounding_makes_them_so() -> None:
    """An index of a maximum that is one of two nearly equal numbers is neither near nor wrong."""

    def flipped(by: float, places: Iterable[int]) -> tuple[Any, ...]:
        values = torch.zeros(10_000)
        values[list(places)] = by
        return snapshot([values])

    compare(flipped(20, (1, 2)), flipped(0, ()), "result", [flipped(1, (3,))])
    for off, rounded in (((1, 2), ()), (range(1, 10), (11,)), (range(1, 50), range(50, 100))):
        with pytest.raises(Different):
            compare(flipped(20, off), flipped(0, ()), "result", [flipped(1, rounded)])


def test_cases_are_listed_without_an_import() -> None:
    assert case_names(CASES)[:2] == ["Counts", "Stub"]
    assert len(case_names(CASES)) == 11


def test_halves_are_disjoint() -> None:
    names = [f"test_{n}.py" for n in range(100)]
    dev = [name for name in names if in_half(name, "dev")]
    assert 20 < len(dev) < 80
    assert [name for name in names if not in_half(name, "dev")] == [name for name in names if in_half(name, "held")]


class Turning(torch.nn.Module):
    """What it gives depends on the last bits of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.weight > 1)


@pytest.mark.parametrize("mode", MODES)
def test_what_turns_by_rounding_is_seen_in_nudged_runs(mode: str) -> None:
    case = (Turning, lambda: ([], {}), lambda: ([torch.ones(64)], {}), True)
    plain, turned = (run_calls(case, mode, wrap) for wrap in (lambda model: model, lambda model: lambda x: x * 0.5))
    with pytest.raises(Different):
        compare_calls(turned, plain)
    compare_but_for_rounding(case, mode, turned, plain)
    wrong = run_calls(case, mode, lambda model: lambda x: x * 100)
    with pytest.raises(Different):
        compare_but_for_rounding(case, mode, wrong, plain)


class Cancelling(torch.nn.Module):
    """Little remains of large numbers, and rounding takes the same of it in every run."""

    draws = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(64, dtype=x.dtype) if self.draws else 0
        return (x * 131072 + 0.3) - x * 131072 + noise


def exactly(x: torch.Tensor) -> torch.Tensor:
    return x * 0 + 0.3


@pytest.mark.parametrize("mode", MODES)
def test_what_float64_gives_tells_errors_that_eager_always_has(mode: str) -> None:
    case = (Cancelling, lambda: ([], {}), lambda: ([torch.full((64,), 0.7)], {}), True)
    plain, exact = (run_calls(case, mode, wrap) for wrap in (lambda model: model, lambda model: exactly))
    with pytest.raises(Different):
        compare_calls(exact, plain)
    compare_but_for_rounding(case, mode, exact, plain)
    wrong = run_calls(case, mode, lambda model: lambda x: x)
    with pytest.raises(Different):
        compare_but_for_rounding(case, mode, wrong, plain)


def test_other_random_numbers_in_float64_excuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cancelling, "draws", True)
    case = (Cancelling, lambda: ([], {}), lambda: ([torch.full((64,), 0.7)], {}), True)
    plain = run_calls(case, "inference", lambda model: model)
    wrong = run_calls(case, "inference", lambda model: lambda x: model(x) * 1.5)
    with pytest.raises(Different):
        compare_but_for_rounding(case, "inference", wrong, plain)
