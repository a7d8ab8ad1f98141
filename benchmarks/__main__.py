"""python -m benchmarks [overhead] [steady] [kernels] [training] [cold] [memory]: figures of one run, tables and JSON.

Everything is interleaved with what it is compared with. "vs_X" is X's time over magpy's: above 1 magpy is faster. A
fraction is magpy's time over the other's. "least_share" is the share of the machine's limit that the slowest of the
large kernels reaches, and which limit it is nearer to; --json has all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import chart, cold_start, kernels, memory, overhead, steady, training
from benchmarks.contenders import CONTENDERS

Row = dict[str, Any]


class Run:
    """Runs measurements under a progress bar, prints tables, and keeps what failed."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.console = Console() if sys.stdout.isatty() else Console(width=140)
        self.failed: list[str] = []

    def rows(self, title: str, names: list[str], measure: Callable[[str], Row]) -> list[Row]:
        """The row of each name; a failure is printed and costs its row only."""
        rows = []
        with Progress(console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=len(names))
            for name in names:
                progress.update(task, description=f"{title}: {name}")
                try:
                    rows.append(measure(name))
                except RuntimeError as error:
                    self.failed.append(f"{title}: {name}")
                    self.say(f"{title}: {name} failed: {error}")
                progress.advance(task)
        return rows

    def table(self, title: str, rows: list[Row], columns: list[str]) -> None:
        """Print the named columns; a figure that a row lacks is a dash."""
        grid = Table(title=title)
        for column in columns:
            grid.add_column(column, justify="left" if column == "model" else "right")
        for row in rows:
            cells = [row.get(column, "-") for column in columns]
            grid.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
        self.console.print(grid)

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(text, highlight=False, markup=False)


def run_overhead(run: Run) -> Any:
    """Overhead of a call beside Dynamo with a backend that does nothing."""
    rows = [{"model": name, **row} for name, row in overhead.run().items()]
    run.table(run_overhead.__doc__ or "", rows, ["model", "dynamo_us", "magpy_us", "fraction", "target"])
    return rows


def run_steady(run: Run) -> Any:
    """Inference of every asked combination of dtype, threads and batch."""
    asked, tables = run.asked, []
    names = [n for n in asked.models if n in steady.CASES]
    for dtype in asked.dtype:
        for threads in asked.threads:
            for batch in asked.batch:
                title = f"Inference, {threads} thread(s), batch {batch or 'default'}, {dtype}"

                def measure(name: str, b: Any = batch, t: int = threads, d: str = dtype) -> Row:
                    return steady.in_process(name, b, t, d, asked.against, asked.rounds)

                rows = run.rows(title, names, measure)
                means = steady.means(rows)
                ends = [
                    {"model": kind, **{k: v[kind] for k, v in means.items()}} for kind in ("geometric_mean", "worst")
                ]
                others = [f"vs_{name}" for name in asked.against if name != "magpy"]
                run.table(title, rows + ends, ["model", "batch", "eager_ms", *others, "least_share"])
                for row in rows:
                    for contender, reason in row["unavailable"].items():
                        run.say(f"{row['model']}: no {contender}: {reason}")
                tables.append({"title": title, "rows": rows, "means": means})
    if asked.chart and tables[0]["rows"]:
        chart.draw(tables[0]["rows"], asked.chart)
    return tables


def run_kernels(run: Run) -> Any:
    """Single operators and small patterns, one thread"""
    names = [n for n in run.asked.models if n in kernels.CASES]
    rows = run.rows("Kernels", names, lambda name: kernels.measure(name, run.asked.rounds))
    run.table(run_kernels.__doc__ or "", rows, ["model", "eager_ms", "vs_eager", "vs_inductor", "least_share", "tiers"])
    return {"rows": rows, "means": steady.means(rows)}


def run_training(run: Run) -> Any:
    """Training steps"""
    names, rows = [n for n in run.asked.models if n in training.CASES], []
    for threads in run.asked.threads:

        def measure(name: str, t: int = threads) -> Row:
            return training.in_process(name, t, run.asked.rounds)

        rows += run.rows(f"Training steps, {threads} thread(s)", names, measure)
    run.table("Training steps", rows, ["model", "threads", "eager_ms", "vs_eager", "vs_inductor"])
    return {"rows": rows, "means": steady.means(rows)}


def run_cold(run: Run) -> Any:
    """Seconds to the end of the second call: with empty caches (cold), and in a second process (warm)"""
    rows = run.rows("Start", [n for n in run.asked.models if n in steady.CASES], cold_start.starts)
    fractions = ["cold_fraction", "warm_fraction"]
    medians = {f: statistics.median(row[f] for row in rows) for f in fractions} if rows else {}
    columns = [f"{start}_{what}" for start in ("cold", "warm") for what in ("inductor_s", "magpy_s", "fraction")]
    run.table(run_cold.__doc__ or "", [*rows, {"model": "median", **medians}], ["model", *columns])
    return {"rows": rows, "medians": medians}


def run_memory(run: Run) -> Any:
    """Peak resident set of a process that calls"""
    rows = run.rows("Memory", [n for n in run.asked.models if n in steady.CASES], memory.compared)
    run.table(run_memory.__doc__ or "", rows, ["model", "eager_mb", "inductor_mb", "magpy_mb", "of_eager"])
    return rows


PARTS = {
    "overhead": run_overhead,
    "steady": run_steady,
    "kernels": run_kernels,
    "training": run_training,
    "cold": run_cold,
    "memory": run_memory,
}


def arguments() -> argparse.Namespace:
    """What was asked for, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = list({**steady.CASES, **training.CASES, **kernels.CASES})

    def names(text: str) -> list[str]:
        return text.split(",")

    def threads(text: str) -> list[int]:
        return [len(os.sched_getaffinity(0)) if t == "all" else int(t) for t in text.split(",")]

    def batches(text: str) -> list[int | None]:
        return [None if b == "default" else int(b) for b in text.split(",")]

    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--models", type=names, default=known, help="comma-separated names (default: all)")
    parser.add_argument("--against", type=names, default=list(steady.USUAL), help=f"of {', '.join(CONTENDERS)}, or all")
    parser.add_argument("--batch", type=batches, default=[None], help="batch sizes, such as default,1,16")
    parser.add_argument("--threads", type=threads, default=[1], help="numbers of threads, such as 1,all")
    parser.add_argument("--dtype", type=names, default=["fp32"], help=f"of {', '.join(steady.DTYPES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--chart", help="draw the first table of the steady state to this .svg or .png file")
    asked = parser.parse_args()
    asked.against = list(CONTENDERS) if asked.against == ["all"] else asked.against
    asked.against = list(dict.fromkeys(["eager", *asked.against, "magpy"]))
    for what, given, allowed in (
        ("part", asked.parts, PARTS),
        ("model", asked.models, known),
        ("contender", asked.against, CONTENDERS),
        ("dtype", asked.dtype, steady.DTYPES),
    ):
        for one in given:
            if one not in allowed:
                parser.error(f"there is no {what} {one}; there are {', '.join(allowed)}")
    return asked


def main() -> int:
    asked = arguments()
    run = Run(asked)
    figures = {part: PARTS[part](run) for part in asked.parts or PARTS}
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(figures, file, indent=1)
    for failure in run.failed:
        run.say(f"failed: {failure}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
