"""What became of lowered graphs in this process; without torch, so that magpy.stats() can be asked at any time."""

from __future__ import annotations

from typing import Any


class Counts:
    """Of this process: programs whose graphs were found, not found, written, and by reason, those that have no key."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.hits = self.misses = self.kept = 0
        self.uncacheable: dict[str, int] = {}

    def show(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "kept": self.kept,
            "uncacheable": dict(self.uncacheable),
        }


counts = Counts()
