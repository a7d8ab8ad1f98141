"""magpy: a torch.compile backend that watches one real execution and compiles it to fused C kernels.

    import torch

    model = torch.compile(model, backend="magpy")

No import of magpy is needed for that. This package holds what looks inside: ``stats``, ``explain``, ``reset``; what
tells it of changes that it cannot see, ``refresh``; and ``pure``, ``effect`` and ``opaque``, which classify functions
for the recorder. It logs through the logger ``"magpy"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from magpy._C import FullgraphError, VerificationError

if TYPE_CHECKING:
    from magpy.report import Report

__version__ = "0.1.0"
__all__ = [
    "FullgraphError",
    "VerificationError",
    "__version__",
    "effect",
    "explain",
    "opaque",
    "pure",
    "refresh",
    "reset",
    "stats",
]

F = TypeVar("F", bound=Callable[..., Any])


def stats() -> dict[str, Any]:
    """Counters since the process started or ``reset()``.

    Keys: ``calls``, ``hits``, ``misses``, ``traces``, ``segments`` (compiled graphs), ``observed_opcodes``,
    ``observed_frames``: ints; ``fallbacks``: reason -> count, empty when nothing fell back (``magpy._C.reasons()``
    tells what a reason means); ``kernels``: generated kernels of living traces; ``plan_steps``: tier -> steps of
    living plans; ``seconds``: ``observing``, ``lowering``, ``compiling``; ``graph_cache``: lowered graphs kept on disk,
    ``hits``, ``misses``, ``kept`` (written), ``uncacheable`` (reason -> count).
    """
    from magpy import report

    return report.stats()


def reset() -> None:
    """Forget all traces and set the counters to zero. ``torch.compiler.reset()`` forgets the traces as well."""
    from magpy import _C
    from magpy.graph_counts import counts

    _C.reset()
    _C.clear_counters()
    counts.clear()


def refresh(model: Any = None) -> None:
    """Have the weights of `model` read again where they were frozen (option ``freezing``).

    Changes that PyTorch counts are noticed without it. It is needed after writes that bypass the version counter of a
    parameter or buffer: through ``.data``, a numpy array, or memory shared with another library. Without a model, and
    at present also with one, all frozen weights are read again at the next call.
    """
    from magpy import freezing

    freezing.refresh(model)


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """Report what magpy does with `fn`; print it. See ``magpy.report.explain`` for when `fn` is called."""
    from magpy import report

    return report.explain(fn, *args, **kwargs)


def pure(fn: F) -> F:
    """Declare that the C function `fn` depends on its arguments' values alone and changes nothing. Usable as a
    decorator.

    Python functions need no declaration: they are watched. A wrong declaration gives wrong results.
    """
    from magpy import _C

    _C.declare(fn, "pure")
    return fn


def effect(fn: F) -> F:
    """Declare that the function `fn`, in C or in Python, is called for an effect outside that the rest of the call does
    not look at: it writes to a file, a progress bar, a metrics logger. Usable as a decorator.

    Its calls are put off: a compiled run makes them when everything is computed, in their order, with their arguments
    as they were, and from frames that show the program's file, line and globals. `fn` must give nothing (None). What
    it does inside is not compiled.
    """
    from magpy import _C

    _C.declare(fn, "effect")
    return fn


def opaque(fn: F) -> F:
    """Declare that the function `fn`, in C or in Python, gives another number each time: a sensor, a random generator.
    Usable as a decorator.

    Every run calls it again, with the same arguments (constants, or the very same objects), before anything else and
    perhaps more often than eager would; what it does inside is not compiled. An int or float that it gives may flow
    into tensors and decide branches, anything else must be what it was.
    """
    from magpy import _C

    _C.declare(fn, "opaque")
    return fn
