"""Exceptions that the program's signal handlers raise while magpy works: they are the program's, whatever magpy was
doing, and must reach it."""

from __future__ import annotations

import functools
import signal
import sys
from types import CodeType
from typing import Any


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    code = getattr(function, "__code__", None)
    return code or getattr(getattr(type(handler), "__call__", None), "__code__", None)  # noqa: B004


def interrupt_of(error: BaseException, also_behind: bool = True) -> BaseException | None:
    """The exception that a signal handler raised: `error`, or one that it was raised from. None: there is none.

    also_behind: also one that was being handled when `error` was raised, unless the program is handling it now."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    mine = sys.exc_info()[1] if also_behind else None
    found: BaseException | None = error
    while handlers and found is not None and found is not mine:
        trace = found.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in handlers:
                return found
            trace = trace.tb_next
        found = found.__cause__ or (found.__context__ if also_behind else None)
    return None


def pass_on(error: Exception) -> None:
    """Raise again what a signal handler has raised: to be called first where any exception is taken for a failure."""
    if interrupt_of(error, also_behind=False) is not None:
        raise error
