"""Timing that can be trusted on a noisy machine: interleaved rounds, ratios round by round, medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Mean seconds of one of `repeats` consecutive calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int = 15, round_seconds: float = 0.1
) -> dict[str, list[float]]:
    """Seconds per call, `rounds` samples each, taken in turn (A B C A B C ...) so that drift hits all alike."""
    repeats = {name: max(1, math.ceil(round_seconds / max(seconds_of(call, 2), 1e-9))) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds_of(call, repeats[name]))
    return samples


def ratio(samples: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of time(slow) / time(fast): the speed of `fast` relative to `slow`."""
    return statistics.median(a / b for a, b in zip(samples[slow], samples[fast], strict=True))


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
    return math.exp(statistics.fmean(math.log(v) for v in values))
