"""Moments: the objects that datetime.now() and the like give, made again of the time that a run has read."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType
from typing import Any

now_ns = time.time_ns  # as datetime.now() reads it: whatever takes the place of time.time_ns later


def _now(zone: datetime.timezone | None, ns: int) -> datetime.datetime:
    seconds, ns = divmod(ns, 1_000_000_000)
    return datetime.datetime.fromtimestamp(seconds, zone).replace(microsecond=ns // 1000)


def _utcnow(ns: int) -> datetime.datetime:
    seconds, ns = divmod(ns, 1_000_000_000)
    return datetime.datetime.utcfromtimestamp(seconds).replace(microsecond=ns // 1000)


def way_of(method: str, kind: type, zone: Any) -> tuple[str, Callable[[Any], Any]] | None:
    """How a graph makes what kind.method(zone) gives: the name of the clock that it reads, and what makes the object of
    that number. Before a graph a run calls the method itself.

    None: neither can be, for the class or zone may have code of its own."""
    if method == "today":
        if kind not in (datetime.date, datetime.datetime) or not isinstance(time.time, BuiltinFunctionType):
            return None
        return "time", kind.fromtimestamp  # type: ignore[attr-defined]
    if kind is not datetime.datetime or (zone is not None and type(zone) is not datetime.timezone):
        return None
    return "now_ns", _utcnow if method == "utcnow" else partial(_now, zone)
