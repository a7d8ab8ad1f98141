"""python -m benchmarks [overhead|steady|training|kernels|cold ...] [--models a,b] [--json FILE]: all in one run."""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks import cold_start, kernels, overhead, steady, training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=["overhead", "steady", "training", "kernels", "cold", []], default=[]
    )
    parser.add_argument("--models", help="comma-separated names of the zoo (default: all)")
    parser.add_argument("--json", help="write all figures to this file")
    arguments = parser.parse_args()
    parts = arguments.parts or ["overhead", "steady", "training", "kernels", "cold"]
    names = arguments.models.split(",") if arguments.models else None
    figures: dict[str, Any] = {}
    if "overhead" in parts:
        figures["overhead"] = overhead.run()
    if "steady" in parts:
        figures["steady"] = steady.run(names)
        mean = figures["steady"]["geometric_mean"]
        print(
            f"steady state, geometric mean: {mean['vs_eager']:.2f}x eager, {mean['vs_inductor']:.2f}x Inductor "
            f"(Inductor {mean['inductor_vs_eager']:.2f}x eager); worst {figures['steady']['worst_vs_eager']:.2f}x eager"
        )
    if "training" in parts:
        figures["training"] = training.run(names)
        if figures["training"]["models"]:
            mean = figures["training"]["geometric_mean"]
            print(
                f"training steps, geometric mean: {mean['vs_eager']:.2f}x eager, {mean['vs_inductor']:.2f}x Inductor; "
                f"worst {figures['training']['worst_vs_eager']:.2f}x eager"
            )
    if "kernels" in parts:
        figures["kernels"] = kernels.run([name for name in names if name in kernels.CASES] if names else None)
        mean = figures["kernels"]["geometric_mean"]
        print(f"kernels, geometric mean: {mean['vs_eager']:.2f}x eager, {mean['vs_inductor']:.2f}x Inductor")
    if "cold" in parts:
        figures["cold_start"] = cold_start.run(names)
        print(f"cold start, median fraction of Inductor's: {figures['cold_start']['median_fraction']:.3f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
