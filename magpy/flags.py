"""Switches of libraries for other devices, which no operator looks at that runs here: a call may set them, if it puts
them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def switched(getter: str, place: tuple, before: Any, value: Any) -> None:
    """The recorded operator: what torch._C's `getter` gives for `place` was `before` and becomes `value`."""


def without(ops: Sequence[tuple]) -> tuple[Sequence[tuple], str]:
    """The operators without those that set switches; the getter and place of one that is not put back, or ""."""
    if not any(op[0] is switched for op in ops):
        return ops, ""
    first: dict[tuple, Any] = {}
    last: dict[tuple, Any] = {}
    for op in ops:
        if op[0] is switched:
            getter, place, before, value = op[1]
            first.setdefault((getter, place), before)
            last[getter, place] = value
    changed = [f"{getter}{place}" for getter, place in first if first[getter, place] != last[getter, place]]
    return tuple([op for op in ops if op[0] is not switched]), "".join(changed[:1])
