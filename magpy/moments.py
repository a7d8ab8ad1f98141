"""Moments: the objects that datetime.now() and the like give, made again of the time that a run has read."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType
from typing import Any

now_ns = time.time_ns  # as datetime.now() reads it: whatever takes the place of time.time_ns later


def called_time() -> float:
    """What date.today() asks: the function that is time.time at the moment."""
    return time.time()


def _now(zone: datetime.timezone | None, ns: int) -> datetime.datetime:
    seconds, ns = divmod(ns, 1_000_000_000)
    return datetime.datetime.fromtimestamp(seconds, zone).replace(microsecond=ns // 1000)


def _utcnow(ns: int) -> datetime.datetime:
    seconds, ns = divmod(ns, 1_000_000_000)
    return datetime.datetime.utcfromtimestamp(seconds).replace(microsecond=ns // 1000)


def draw_of(method: str, kind: type, zone: Any) -> tuple[Any, ...] | None:
    """How a run makes what kind.method(zone) gives: (function, args, kwargs, keeper) of a draw that reads the clock,
    then the clock's name in a graph, a number as it gives, and what makes the object of it.

    None: it cannot, for the class or zone may have code of its own."""
    make: Callable[[Any], Any]
    if method == "today":
        if kind not in (datetime.date, datetime.datetime) or not isinstance(time.time, BuiltinFunctionType):
            return None
        return called_time, (), {}, None, "time", 1.0, kind.fromtimestamp  # type: ignore[attr-defined]
    if kind is not datetime.datetime or (zone is not None and type(zone) is not datetime.timezone):
        return None
    make = _utcnow if method == "utcnow" else partial(_now, zone)
    return now_ns, (), {}, None, "now_ns", 1, make
