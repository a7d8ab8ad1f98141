"""Steady state: calls in inference against eager, Inductor and the others, interleaved in one process.

One configuration (model, batch, threads, dtype) is one process, which prints its row as JSON.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch

from benchmarks import limits, parts, zoo
from benchmarks.cases import Built, Case
from benchmarks.child import measured
from benchmarks.contenders import Call, Unavailable, prepared
from benchmarks.measure import geometric_mean, interleaved, ratio
from benchmarks.proof import proven

CASES: dict[str, Case] = {**zoo.CASES, **parts.CASES}
USUAL = ("eager", "inductor", "magpy")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def in_dtype(built: Built, dtype: torch.dtype) -> Built:
    """The model and its floating point arguments in `dtype`."""

    def converted(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.to(dtype) if x.is_floating_point() else x
        return type(x)(converted(i) for i in x) if isinstance(x, (tuple, list)) else x

    args, kwargs = converted(built.args), {k: converted(v) for k, v in built.kwargs.items()}
    return Built(built.model.to(dtype), args, kwargs)


def row(calls: dict[str, Call], rounds: int, need_kernels: bool = True) -> dict[str, float]:
    """Milliseconds of each warmed-up call, least of the rounds, and "vs_X": how many times faster magpy is than X.

    Raises NotCompiled where a call of magpy was not served by a trace.
    """
    ours = [name for name in calls if name.startswith("magpy")]
    for name in ours:
        proven(calls[name], need_kernels)
    samples = interleaved(calls, rounds)
    for name in ours:
        proven(calls[name], need_kernels)
    figures = {f"{name}_ms": min(times) * 1e3 for name, times in samples.items()}
    figures |= {f"vs_{name}": ratio(samples, name, "magpy") for name in calls if name != "magpy"}
    return figures


def measure(name: str, batch: int | None, threads: int, dtype: str, against: list[str], rounds: int) -> dict[str, Any]:
    """The row of one configuration, in this process; "unavailable" has reasons by contender."""
    import magpy.backend  # noqa: F401  (imports are not timed)

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    case = CASES[name]
    built = in_dtype(case.build("bench", batch), DTYPES[dtype])
    calls: dict[str, Call] = {}
    unavailable: dict[str, str] = {}
    with torch.no_grad():
        for contender in against:
            try:
                calls[contender] = prepared(contender, built, threads)
            except Unavailable as error:
                unavailable[contender] = str(error)
        if "magpy" not in calls or "eager" not in calls:
            raise RuntimeError(f"{name}: {unavailable}")
        figures = row(calls, rounds)
        kernels = limits.shares(calls["magpy"].func, calls["magpy"], threads)
    return {"model": name, "group": case.group, "batch": batch or case.batch, "threads": threads, "dtype": dtype,
            **figures, "least_share": limits.least(kernels), "kernels": kernels,
            "unavailable": unavailable}  # fmt: skip


def in_process(
    name: str, batch: int | None, threads: int, dtype: str, against: list[str], rounds: int
) -> dict[str, Any]:
    """`measure` in a process of its own. RuntimeError with the end of what it printed where it failed."""
    options = ["--threads", str(threads), "--dtype", dtype, "--against", ",".join(against), "--rounds", str(rounds)]
    options += ["--batch", str(batch)] if batch else []
    return measured("benchmarks.steady", name, *options, OMP_NUM_THREADS=str(threads))


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each "vs_X": geometric mean, worst, and the number of rows that have it."""
    names = sorted({key for r in rows for key in r if key.startswith("vs_")})
    table = {}
    for key in names:
        values = [r[key] for r in rows if key in r]
        table[key] = {"geometric_mean": geometric_mean(values), "worst": min(values), "models": len(values)}
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--against", default=",".join(USUAL))
    parser.add_argument("--rounds", type=int, default=15)
    a = parser.parse_args()
    print(json.dumps(measure(a.name, a.batch, a.threads, a.dtype, a.against.split(","), a.rounds)))
