"""Proof that what was timed took the compiled path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import magpy


class NotCompiled(RuntimeError):
    """A timing would not have been of compiled code."""


def proven(call: Callable[[], Any], need_kernels: bool = True) -> Any:
    """Make one call of a magpy-compiled program and raise NotCompiled unless a trace served it."""
    before = magpy.stats()
    result = call()
    after = magpy.stats()
    if after["hits"] != before["hits"] + 1 or after["fallbacks"] != before["fallbacks"]:
        raise NotCompiled(f"hits {before['hits']} -> {after['hits']}, fallbacks {after['fallbacks']}")
    if need_kernels and not after["kernels"]:
        raise NotCompiled("no kernel was generated")
    return result
