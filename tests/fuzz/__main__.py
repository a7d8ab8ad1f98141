"""Random programs, compiled beside eager: `python -m tests.fuzz --count 20000 --seed 0`.

Programs run in forked workers, one after the other, so that one that dies or hangs costs no more than itself. Each
failure is made small and printed with its seed; `--seed S --count 1 --show` shows a program.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

SECONDS = 60  # for one program
MEMORY = 6 << 30


def in_child(work: Callable[[Callable[[Any], None]], None], seconds: float) -> tuple[list[Any], str]:
    """What `work` reports from a process of its own, and how that ended: "", or a signal, or that it hung."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        status = 1
        try:
            work(lambda value: os.write(write_end, json.dumps(value).encode() + b"\n") and None)
            status = 0
        except BaseException as error:
            print(f"worker: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    os.close(write_end)
    said, ending = b"", ""
    while True:
        if not select.select([read_end], [], [], seconds)[0]:
            ending = f"more than {seconds:g} seconds"
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(read_end, 1 << 16)
        if not piece:
            break
        said += piece
    os.close(read_end)
    status = os.waitpid(child, 0)[1]
    if not ending and status:
        ending = (
            signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        )
    return [json.loads(line) for line in said.split(b"\n") if line], ending


def run_batch(seeds: range, without_compiler: bool) -> tuple[dict[int, str], int, Counter[str]]:
    """Failures by seed, number of programs that were begun, and what magpy counted."""
    from tests.fuzz.programs import draw, failure

    def work(report: Callable[[Any], None]) -> None:
        import magpy

        if without_compiler:
            logging.getLogger("magpy").setLevel(logging.ERROR)  # it says that there is no compiler
            os.environ["PATH"] = ""
            os.environ.pop("CC", None)
        for seed in seeds:
            report([seed])
            found = failure(draw(seed))
            if found:
                report([seed, found])
        stats = magpy.stats()
        report({k: stats[k] for k in ("calls", "hits", "traces")} | stats["fallbacks"])

    said, ending = in_child(work, SECONDS)
    failures = {answer[0]: answer[1] for answer in said if isinstance(answer, list) and len(answer) == 2}
    begun = [answer[0] for answer in said if isinstance(answer, list)]
    if ending and begun:
        if not ending.startswith("more than") or not hangs_in_eager(begun[-1]):
            failures[begun[-1]] = f"the process ended: {ending}"
    return failures, len(set(begun)), Counter(said[-1] if said and isinstance(said[-1], dict) else {})


def hangs_in_eager(seed: int) -> bool:
    from tests.fuzz.programs import differs, draw

    return bool(in_child(lambda report: report([differs(draw(seed), lambda target: target)]), SECONDS)[1])


def fails_again(program: Any) -> bool:
    from tests.fuzz.programs import failure

    def work(report: Callable[[Any], None]) -> None:
        report([failure(program)])

    said, ending = in_child(work, SECONDS)
    return bool(ending) or bool(said and said[0][0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=20_000, help="programs")
    parser.add_argument("--seed", type=int, default=0, help="the first program's; the others follow")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop earlier")
    parser.add_argument("--batch", type=int, default=50, help="programs for each worker")
    parser.add_argument("--kernels", type=float, default=0.1, help="part of the batches for which kernels are compiled")
    parser.add_argument("--shrink", type=float, default=120, metavar="SECONDS", help="for making a failure small")
    parser.add_argument("--show", action="store_true", help="print the programs")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # noqa: F401

    import magpy.backend
    import magpy.lower  # noqa: F401
    from tests.fuzz.programs import draw
    from tests.fuzz.shrink import shrink

    started = time.monotonic()
    done, failed, counts = 0, 0, Counter[str]()
    first, end = options.seed, options.seed + options.count
    while first < end and time.monotonic() - started < options.minutes * 60:
        seeds = range(first, min(first + options.batch, end))
        if options.show:
            for seed in seeds:
                print(draw(seed).text(), flush=True)
        plain = (first // options.batch) * options.kernels % 1 + options.kernels < 1
        failures, begun, counted = run_batch(seeds, plain)
        first += begun or len(seeds)
        done += begun
        counts += counted
        for seed, text in failures.items():
            failed += 1
            print(f"\nseed {seed}: {text}\n", flush=True)
            if options.shrink:
                small = shrink(draw(seed), fails_again, options.shrink)
                print(small.text(), flush=True)
        if (first - options.seed) // options.batch % 20 == 0:
            print(f"{done} programs, {failed} failed, {done / (time.monotonic() - started):.1f} a second", flush=True)
    seconds = time.monotonic() - started
    print(f"\n{done} programs in {seconds:.0f} s ({done / seconds:.1f} a second), {failed} failed")
    print(", ".join(f"{name} {n}" for name, n in counts.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
