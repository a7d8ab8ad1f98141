"""The runner tells the outcomes apart: a tiny checkout with one case for each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paritybench.checkout import ROOT, case_names, in_half

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

CALLS = [0]  # six by eager, then those of the compiled module

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

class Drifts(nn.Module):
    """Other results from the seventh call on: what a wrong compiler would look like."""
    def forward(self, x):
        CALLS[0] += 1
        return x + (1 if CALLS[0] > 6 else 0)

class DriftsInState(Drifts):
    def forward(self, x):
        self.state = super().forward(x)
        return x

class Dies(nn.Module):
    def forward(self, x):
        CALLS[0] += 1
        if CALLS[0] > 6:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x

class Raises(Dies):
    def forward(self, x):
        CALLS[0] += 1
        if CALLS[0] > 6:
            raise KeyError("seventh")
        return x

TESTCASES = [
    # (nn.Module, init_args, forward_args, jit_compiles)
'''
    + "".join(
        f"    ({name},\n     lambda: ([], {{}}),\n     lambda: ([torch.rand([4, 4])], {{}}),\n     True),\n"
        for name in "Counts Stub Draws Foreign Branches Drifts DriftsInState Dies Raises".split()
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
    command += ["--paritybench", str(tmp_path), "--half", "all", "--paritybench-json", str(found)]
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
        "Branches": "miss",
        "Drifts": "wrong",
        "DriftsInState": "wrong",
        "Dies": "error",
        "Raises": "error",
    }, run.stdout
    reasons = {name: reason for (_, name), (_, reason) in outcomes.items()}
    assert "not deterministic" in reasons["Draws"]
    assert "test_project.py" in reasons["Foreign"]
    assert "result" in reasons["Drifts"] and "module.state" in reasons["DriftsInState"]
    assert "SIGSEGV" in reasons["Dies"] and "KeyError" in reasons["Raises"]
    assert "4 failed" in run.stdout and "ParityBench, backend magpy" in run.stdout


def test_cases_are_listed_without_an_import() -> None:
    assert case_names(CASES)[:2] == ["Counts", "Stub"]
    assert len(case_names(CASES)) == 9


def test_halves_are_disjoint() -> None:
    names = [f"test_{n}.py" for n in range(100)]
    dev = [name for name in names if in_half(name, "dev")]
    assert 20 < len(dev) < 80
    assert [name for name in names if not in_half(name, "dev")] == [name for name in names if in_half(name, "held")]
