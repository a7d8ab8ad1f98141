"""Steady state: magpy against eager and Inductor on the zoo, inference, one thread, interleaved in one process."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import geometric_mean, interleaved, ratio
from benchmarks.proof import proven
from benchmarks.zoo import CASES


def compared(name: str, calls: dict[str, Callable[[], Any]], rounds: int, need_kernels: bool = True) -> dict[str, Any]:
    """Warm up and time the calls "eager", "inductor" and "magpy" in turn; prints and returns the row of `name`. Raises
    NotCompiled."""
    for call in calls.values():
        for _ in range(3):
            call()
    proven(calls["magpy"], need_kernels)
    samples = interleaved(calls, rounds)
    proven(calls["magpy"], need_kernels)
    row = {
        "eager_ms": min(samples["eager"]) * 1e3,
        "vs_eager": ratio(samples, "eager", "magpy"),
        "vs_inductor": ratio(samples, "inductor", "magpy"),
        "inductor_vs_eager": ratio(samples, "eager", "inductor"),
    }
    print(
        f"{name:14s} eager {row['eager_ms']:8.2f} ms   magpy/eager {row['vs_eager']:5.2f}x   "
        f"magpy/inductor {row['vs_inductor']:5.2f}x   inductor/eager {row['inductor_vs_eager']:5.2f}x",
        file=sys.stderr,
        flush=True,
    )
    return row


def summary(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The rows with their geometric means and the worst one against eager."""
    means = {k: geometric_mean(r[k] for r in table.values()) for k in ("vs_eager", "vs_inductor", "inductor_vs_eager")}
    return {"models": table, "geometric_mean": means, "worst_vs_eager": min(r["vs_eager"] for r in table.values())}


def run(names: list[str] | None = None, rounds: int = 15) -> dict[str, Any]:
    """Speeds relative to eager and Inductor per model, and their geometric means."""
    import magpy.backend  # noqa: F401  (imports are not timed)

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table: dict[str, dict[str, float]] = {}
    for name in names or list(CASES):
        built = CASES[name].build("bench")
        torch.compiler.reset()
        models = {
            "eager": built.model,
            "inductor": torch.compile(copy.deepcopy(built.model)),
            "magpy": torch.compile(copy.deepcopy(built.model), backend="magpy"),
        }
        with torch.no_grad():
            calls = {k: (lambda m=m, b=built: m(*b.args, **b.kwargs)) for k, m in models.items()}
            table[name] = compared(name, calls, rounds)
    return summary(table)
