"""Options of magpy: one table with defaults, meanings and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One row of the options table."""

    default: Any
    type: type
    doc: str


#: Every key that ``torch.compile(..., backend="magpy", options={...})`` accepts.
OPTIONS: dict[str, Option] = {
    "verify": Option(
        False, bool, "run the eager program beside every compiled call and raise VerificationError if they differ"
    ),
    "dry_run": Option(
        False, bool, "do everything but run the graph: answer with the observed run's tensors (to measure overhead)"
    ),
    "trace_limit": Option(
        16, int, "traces kept for one callable; further misses run in plain Python, with one warning"
    ),
    "fuse": Option(True, bool, "fuse operators into generated kernels; False runs each operator by itself"),
    "freezing": Option(
        False, bool, "compute what follows from weights once, in inference: folded and cast weights; see magpy.refresh"
    ),
    "frames": Option(True, bool, "where a call cannot be traced, compile the Python functions it calls by themselves"),
}

#: Values of torch.compile's ``mode``. "max-autotune" is freezing; the others choose trade-offs of other backends.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def resolve(options: Mapping[str, Any] | None = None, mode: str | None = None) -> dict[str, Any]:
    """Return all options with their defaults filled in.

    Dashes in names are read as underscores, as torch does. Raises RuntimeError for an unknown option or mode, naming
    the known ones, and for a value of the wrong type.
    """
    if mode is not None and mode not in MODES:
        raise RuntimeError(f"Unrecognized mode={mode}, should be one of: {', '.join(MODES)}")
    result = {name: option.default for name, option in OPTIONS.items()}
    result["freezing"] = mode in ("max-autotune", "max-autotune-no-cudagraphs")
    for key, value in (options or {}).items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            raise RuntimeError(f"Unexpected magpy option {key!r}, known options are: {', '.join(sorted(OPTIONS))}")
        wanted = OPTIONS[name].type
        if type(value) is not wanted:
            raise RuntimeError(f"magpy option {key!r} must be a {wanted.__name__}, got {type(value).__name__}")
        if isinstance(value, int) and value < 0:
            raise RuntimeError(f"magpy option {key!r} must not be negative, got {value}")
        result[name] = value
    return result


def describe() -> str:
    """The options table as text, one line each."""
    return "\n".join(f"{name} = {option.default!r}: {option.doc}" for name, option in OPTIONS.items())
