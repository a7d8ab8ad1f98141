"""What the machine can do at most, and the share of it that each large kernel reaches, measured in one process.

Operations: fused multiplications and additions on registers. What Winograd saves counts, so its share may be above 1.
Bytes: one array read and another written, both together about as large as what the kernel touches, so that what stays
in a cache is compared with that cache.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from magpy import _C
from magpy.report import find_callable, plans_of

LARGE, SECONDS = 0.05, 5e-6
"""The part of a plan's time, and the time, from which a kernel is a large one."""

SOURCE = """
typedef float vec __attribute__((vector_size(%(bytes)d)));
enum { LANES = %(bytes)d / 4, CHAINS = 12 };

float operations(long n)
{
    vec sums[CHAINS], x, y;
    for (int l = 0; l < LANES; l++) x[l] = 0.999f + l * 1e-6f, y[l] = 1e-3f;
    for (int c = 0; c < CHAINS; c++) sums[c] = y + (float)c;
    for (long i = 0; i < n; i++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) sums[c] = sums[c] * x + y;
    }
    vec all = sums[0];
    for (int c = 1; c < CHAINS; c++) all += sums[c];
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += all[l];
    return sum;
}

void bytes(const float *restrict from, float *restrict to, long n, long times)
{
    for (long t = 0; t < times; t++) {
        for (long i = 0; i < n; i++) to[i] = from[i] + (float)t;
        __asm__ volatile("" ::: "memory");
    }
}
"""


@functools.cache
def _library() -> ctypes.CDLL:
    bits = _C.cpu_info()["vector_bits"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "limits.c", Path(folder) / "limits.so"
        source.write_text(SOURCE % {"bytes": bits // 8})
        flags = ["-O3", "-march=native", "-ffp-contract=fast", f"-mprefer-vector-width={bits}", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True, capture_output=True)
        loaded = ctypes.CDLL(str(library))
    loaded.operations.restype = ctypes.c_float
    loaded.operations.argtypes = [ctypes.c_long]
    loaded.bytes.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    return loaded


def _rate(work: float, calls: list[Any]) -> float:
    """Work of all calls at the same time, per second; the most of some attempts."""
    best = float("inf")
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(5):
            start = time.perf_counter()
            for done in [pool.submit(call) for call in calls]:
                done.result()
            best = min(best, time.perf_counter() - start)
    return work * len(calls) / best


@functools.cache
def flops(threads: int) -> float:
    """Operations of float32 per second."""
    n, lanes = 1_000_000, _C.cpu_info()["vector_bits"] // 32
    return _rate(2.0 * 12 * lanes * n, [functools.partial(_library().operations, n)] * threads)


@functools.cache
def _bandwidth(size: int, threads: int) -> float:
    times = max(1, 2**25 // size)
    calls, arrays = [], []
    for _ in range(threads):
        pair = torch.ones(2, max(16, size // 8 // threads))
        arrays.append(pair)
        pointers = [row.data_ptr() for row in pair]
        calls.append(functools.partial(_library().bytes, *pointers, pair.shape[1], times))
    return _rate(8.0 * arrays[0].shape[1] * times, calls)


def bandwidth(touched: int, threads: int) -> float:
    """Bytes per second where `touched` of them are read and written again and again."""
    size = 2 ** min(28, max(14, touched.bit_length() - 1))
    return _bandwidth(size, threads)


def shares(fn: Any, call: Callable[[], Any], threads: int) -> list[dict[str, Any]]:
    """The large kernels of the plans of `fn` that `call` runs: name, microseconds, part of the plan's time,
    share of the limit that it is nearer to, and which one that is. Kernels of what data says are left out."""
    found = []
    for plan in _plans(fn):
        try:
            rows = plan.profile(call, 20)
        except ValueError:  # of another trace
            continue
        whole = sum(row[3] for row in rows)
        for (tier, name, detail, seconds), (operations, touched) in zip(rows, plan.work, strict=True):
            if seconds < max(LARGE * whole, SECONDS) or not touched:
                continue
            of = {"flop/s": operations / seconds / flops(threads)}
            of["bytes/s"] = touched / seconds / bandwidth(touched, threads)
            limit = max(of, key=lambda k: of[k])
            part = {"tier": tier, "kernel": name, "detail": detail[:80], "us": seconds * 1e6, "part": seconds / whole}
            found.append({**part, "share": of[limit], "limit": limit})
    return found


def least(rows: list[dict[str, Any]]) -> str:
    """The share of the kernel that is farthest from the limit, for a table; a dash where there is none."""
    if not rows:
        return "-"
    worst = min(rows, key=lambda row: row["share"])
    return f"{worst['share']:.2f} {worst['limit']}"


def _plans(fn: Any) -> list[Any]:
    callable_ = find_callable(fn)
    traces = callable_.describe()["traces"] if callable_ is not None else []
    plans = [plan for raw in traces for plan in plans_of(raw["runner"], raw["info"])]
    return [plan for plan in plans if hasattr(plan, "work")]
