"""Peak memory of calls in inference: the largest resident set of a warmed-up process, against eager's (Linux only)."""

from __future__ import annotations

import gc
import json
import sys
import warnings

from benchmarks.child import measured
from benchmarks.contenders import prepared
from benchmarks.steady import CASES


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes: "VmRSS" is the resident set, "VmHWM" its peak (proc(5))."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def measure(name: str, contender: str) -> dict[str, int]:
    """Bytes, in this process: "before" the first call, and the "peak" of five calls after warm-up."""
    import torch._inductor.compile_fx  # noqa: F401  (imports are in every contender's figure)

    import magpy.backend  # noqa: F401

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    built = CASES[name].build("bench")
    before = resident("VmRSS")
    with torch.no_grad():
        call = prepared(contender, built, 1)
        gc.collect()
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")  # the peak starts again from the present resident set (proc(5))
        for _ in range(5):
            call()
    return {"before": before, "peak": resident("VmHWM")}


def compared(name: str) -> dict[str, float | str]:
    """Megabytes of the peaks of eager, Inductor and magpy, each in its own process, and magpy's part of eager's."""
    figures: dict[str, float | str] = {"model": name}
    for contender in ("eager", "inductor", "magpy"):
        figures[f"{contender}_mb"] = measured("benchmarks.memory", name, contender)["peak"] / 1e6
    figures["of_eager"] = float(figures["magpy_mb"]) / float(figures["eager_mb"])
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
