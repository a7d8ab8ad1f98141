"""Measurements in processes of their own: fresh caches, memory and thread pools, and a crash costs one figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def measured(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `python -m module arguments` prints as JSON in its last line. RuntimeError with the end of its errors."""
    command = [sys.executable, "-m", module, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])
