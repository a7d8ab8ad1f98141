"""Each case of a ParityBench checkout: `pytest tests/paritybench --paritybench DIR`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.paritybench.checkout import Item, Record, Runner
from tests.paritybench.outcomes import COMPLETE


def test_case(
    paritybench_item: Item,
    paritybench_runner: Runner,
    record_outcome: Callable[[Record], None],
    pytestconfig: pytest.Config,
) -> None:
    record = paritybench_runner.run(paritybench_item)
    record_outcome(record)
    if record.outcome == "skip":
        pytest.skip(record.reason)
    strict = pytestconfig.getoption("paritybench_strict")
    if record.outcome in ("wrong", "error") or (strict and record.outcome not in COMPLETE):
        pytest.fail(f"{record.outcome}: {record.reason}", pytrace=False)
