"""Shared by all tests: a private kernel cache, one thread, and helpers that say what a compiled call must do."""

from __future__ import annotations

import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MAGPY_CACHE_DIR", tempfile.mkdtemp(prefix="magpy-test-cache-"))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_state():
    """Every test starts without traces and under one seed, and must leave torch's modes as it found them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    assert torch.is_grad_enabled(), "a test left grad mode off"
    assert sys.gettrace() is None, "a test left a tracer behind"
