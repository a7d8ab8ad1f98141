"""Tests of the runtime: a cache of their own, so that no run depends on an earlier one."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
_cache = tempfile.TemporaryDirectory(prefix="magpy-test-")
os.environ["MAGPY_CACHE_DIR"] = _cache.name
