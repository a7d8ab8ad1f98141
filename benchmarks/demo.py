"""make demo: compile a real model, show its speed against eager and Inductor, then its graph, guards and kernels."""

from __future__ import annotations

import argparse

import torch

import magpy
from benchmarks import cold_start, steady
from benchmarks.steady import CASES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("model", nargs="?", default="bert", choices=list(CASES))
    name = parser.parse_args().model
    print(f"== {name}: time to the end of the second call, empty caches")
    start = cold_start.starts(name)
    print(f"Inductor {start['cold_inductor_s']:.2f} s, magpy {start['cold_magpy_s']:.2f} s")
    print(f"== {name}: speed of a call, one thread")
    speed = steady.in_process(name, None, 1, "fp32", list(steady.USUAL), 15)
    print(f"{speed['vs_eager']:.2f}x eager, {speed['vs_inductor']:.2f}x Inductor")
    print(f"== {name}: what magpy saw and made")
    built = CASES[name].build("bench")
    with torch.no_grad():
        print(magpy.explain(built.model, *built.args, **built.kwargs))


if __name__ == "__main__":
    main()
