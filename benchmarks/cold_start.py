"""Cold start: from the first call to the end of the second, empty caches, no imports. A process per measurement."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.zoo import CASES


def measure(name: str, backend: str) -> dict[str, float]:
    """In a fresh process: seconds of an eager call, of the first compiled call, and of first and second together."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    built = CASES[name].build("bench")
    if backend == "magpy":
        import magpy
        import magpy.backend  # imports are excluded, for both
    # Compiling a tiny program first imports whatever the backend imports lazily.
    tiny = torch.compile(lambda x: x + 1, backend=backend)
    with torch.no_grad():
        tiny(torch.ones(3)), tiny(torch.ones(3))
        built.model(*built.args, **built.kwargs)
        start = time.perf_counter()
        built.model(*built.args, **built.kwargs)
        eager = time.perf_counter() - start
        torch.compiler.reset()
        before = magpy.stats() if backend == "magpy" else None
        compiled = torch.compile(built.model, backend=backend)
        start = time.perf_counter()
        compiled(*built.args, **built.kwargs)
        first = time.perf_counter() - start
        compiled(*built.args, **built.kwargs)
        both = time.perf_counter() - start
    result = {"eager": eager, "first": first, "both": both}
    if before is not None:
        after = magpy.stats()
        if after["hits"] != before["hits"] + 1 or after["fallbacks"] != before["fallbacks"]:
            raise RuntimeError(f"{name} was not compiled: {after['fallbacks']}")
        for part in ("observing", "lowering", "compiling"):
            result[part] = after["seconds"][part] - before["seconds"][part]
    return result


def in_process(name: str, backend: str) -> dict[str, float]:
    """`measure` in a process of its own with empty caches."""
    with tempfile.TemporaryDirectory() as cache:
        places = {"MAGPY_CACHE_DIR": os.path.join(cache, "m"), "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "i")}
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.cold_start", name, backend],
            env={**os.environ, **places},
            capture_output=True,
            text=True,
        )
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])


def run(names: list[str] | None = None) -> dict[str, Any]:
    """Cold starts per model, Inductor's and magpy's in turn, and the median of magpy's fraction."""
    table = {}
    for name in names or list(CASES):
        inductor, magpy = in_process(name, "inductor"), in_process(name, "magpy")
        table[name] = {"inductor": inductor, "magpy": magpy, "fraction": magpy["both"] / inductor["both"]}
        print(
            f"{name:14s} inductor {inductor['both']:6.2f} s   magpy {magpy['both']:6.2f} s   "
            f"fraction {table[name]['fraction']:.3f}   eager {magpy['eager'] * 1e3:.0f} ms   "
            f"observing {magpy['observing'] * 1e3:.0f} ms   "
            f"lowering {magpy['lowering']:.2f} s   compiling {magpy['compiling']:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    return {"models": table, "median_fraction": statistics.median(r["fraction"] for r in table.values())}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
