"""A few hundred calls of each program of tests/growth.py leave nothing; `python -m tests.growth` makes 10,000."""

from __future__ import annotations

from typing import Any

import pytest

from tests import growth


@pytest.mark.parametrize("name", list(growth.PROGRAMS))
@pytest.mark.unsanitized  # freed memory stays in quarantine, so that it grows
def test_calls_leave_nothing(name: str) -> None:
    found = growth.growth(name, 20 if name == "callables_made_and_dropped" else 400, warm=150)
    assert found is None, found


@pytest.mark.parametrize("what", ["objects", "references", "memory"])
@pytest.mark.unsanitized  # the sanitizers' allocator does not tell what is in use
def test_growth_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    thing = object()

    def call() -> None:
        kept.append({"objects": [[]], "references": thing, "memory": b"x" * 10_000}[what])

    monkeypatch.setitem(growth.PROGRAMS, "leaking", lambda: (call, [thing]))
    assert growth.growth("leaking", 400, warm=10)
