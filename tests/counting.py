"""What magpy counted during a block of a test."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import magpy


class Counted:
    """Context manager: after the block, `calls`, `hits`, `misses`, `traces` and `fallbacks` counted inside it."""

    calls: int
    hits: int
    misses: int
    traces: int
    fallbacks: dict[str, int]

    def __enter__(self) -> Counted:
        self._before = magpy.stats()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        after: dict[str, Any] = magpy.stats()
        for name in ("calls", "hits", "misses", "traces"):
            setattr(self, name, after[name] - self._before[name])
        old = self._before["fallbacks"]
        self.fallbacks = {k: n - old.get(k, 0) for k, n in after["fallbacks"].items() if n != old.get(k, 0)}

    def assert_observed(self) -> None:
        """One call was observed and gave one trace, with no fallback."""
        assert (self.fallbacks, self.traces, self.hits) == ({}, 1, 0)

    def assert_hit(self, hits: int = 1) -> None:
        """Every call was served by a trace."""
        assert (self.fallbacks, self.traces, self.misses, self.hits) == ({}, 0, 0, hits)
