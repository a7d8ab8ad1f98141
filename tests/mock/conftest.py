"""Recording once makes torch's scalar types known to tests that compile mocks from tables."""

from __future__ import annotations

import pytest
import torch  # noqa: F401  (loaded first, so that its types are found)

from magpy import _C


@pytest.fixture(autouse=True, scope="session")
def _recorded_once() -> None:
    _C._mocks(lambda: None)
