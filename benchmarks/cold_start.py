"""Cold start: from the first call to the end of the second, without imports, a process per measurement.

Each contender starts with empty caches, and then again in a second process with the caches that the first one left.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from benchmarks.child import measured
from benchmarks.steady import CASES


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
        result["graphs_found"] = after["graph_cache"]["hits"] - before["graph_cache"]["hits"]
    return result


def starts(name: str) -> dict[str, Any]:
    """Cold and warm starts of both contenders, and magpy's fractions of Inductor's times."""
    figures: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as cache:
        for start in ("cold", "warm"):
            for backend in ("inductor", "magpy"):
                seconds = measured("benchmarks.cold_start", name, backend, MAGPY_CACHE_DIR=cache + "/magpy",
                                   TORCHINDUCTOR_CACHE_DIR=cache + "/inductor")  # fmt: skip
                figures[f"{start}_{backend}"] = seconds
                figures[f"{start}_{backend}_s"] = seconds["both"]
            figures[f"{start}_fraction"] = figures[f"{start}_magpy_s"] / figures[f"{start}_inductor_s"]
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
