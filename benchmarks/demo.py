"""make demo: compile a real model, show its speed against eager and Inductor, then its graph, guards and kernels."""

from __future__ import annotations

import argparse

import torch

import magpy
from benchmarks import cold_start, steady
from benchmarks.zoo import CASES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("model", nargs="?", default="bert", choices=list(CASES))
    name = parser.parse_args().model
    print(f"== {name}: time to the end of the second call, empty caches")
    cold_start.run([name])
    print(f"== {name}: speed of a call, one thread")
    steady.run([name])
    print(f"== {name}: what magpy saw and made")
    built = CASES[name].build("bench")
    with torch.no_grad():
        print(magpy.explain(built.model, *built.args, **built.kwargs))


if __name__ == "__main__":
    main()
