"""What the commit needs to make effects as the program would have made them."""

from __future__ import annotations

import contextlib
import decimal
import hashlib
import locale
import operator
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cmp_to_key, lru_cache, partial
from types import CodeType, FunctionType, TracebackType
from typing import Any

from magpy import _C

KeyWrapper = type(cmp_to_key(lambda a, b: 0))  # has no name to import it by

_call = (lambda function, args, kwargs: function(*args, **kwargs)).__code__


@lru_cache(4096)
def _code(file: str, name: str, qualname: str, line: int) -> CodeType:
    """Code that calls what it is given, from this file and line."""
    units, table = len(_call.co_code) // 2, b""
    while units:  # see CPython's Objects/locations.md: entries of at most 8 units, form 13 is "no columns"
        span = min(units, 8)
        table += bytes([0x80 | 13 << 3 | span - 1, 0])
        units -= span
    return _call.replace(co_filename=file, co_name=name, co_qualname=qualname, co_firstlineno=line, co_linetable=table)


def frames(rows: Sequence[tuple[CodeType, int, dict[str, Any]]]) -> tuple[FunctionType, ...]:
    """Functions (function, args, kwargs) -> function(*args, **kwargs), each of which looks like a frame of the
    program to those who ask for their caller: rows of its code, line and globals."""
    return tuple(
        FunctionType(_code(code.co_filename, code.co_name, code.co_qualname, line), module)
        for code, line, module in rows
    )


def handling(error: BaseException, outer: BaseException | None) -> Callable[..., Any] | str:
    """A function (function, args, kwargs) -> function(*args, **kwargs) that makes this call while an exception like
    `error` is handled, whose traceback has the same frames and lines; likewise those in whose context it was raised, up
    to `outer`, which was handled when the program began. A text: why there is none."""
    chain, at = [], error
    while at is not None and at is not outer:
        if at.__cause__ is not None and at.__cause__ is not at.__context__:
            return "the traceback of an exception whose cause is another one than was handled there"
        why = _not_remade(at)
        if why:
            return why
        suppressed = at.__suppress_context__ and at.__cause__ is None
        chain.append((type(at), at.args, _rows(at.__traceback__), at.__cause__ is not None, suppressed))
        at = at.__context__  # type: ignore[assignment]

    def handled(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = len(chain) - 1) -> Any:
        kind, given, rows, caused, suppressed = chain[number]
        again, traceback = kind(*given), None
        for code, module, instruction, line in reversed(rows):
            traceback = TracebackType(traceback, _C._frame(code, module), instruction, line)
        try:
            raise again
        except BaseException:  # this one
            again.__traceback__ = traceback
            if caused:
                again.__cause__ = again.__context__
            if suppressed:
                again.__suppress_context__ = True
            return handled(function, args, kwargs, number - 1) if number else function(*args, **kwargs)
        finally:
            del again, traceback

    return handled


def _not_remade(error: BaseException) -> str | None:
    kind = type(error)
    own = [base for base in kind.__mro__ if base.__flags__ & _HEAPTYPE]
    if error.__dict__ or any(name in vars(base) for base in own for name in _OF_EXCEPTIONS):
        return f"the traceback of an exception of a class with code or attributes of its own: {kind.__name__}"
    like = kind(*error.args)
    if (repr(like), str(like), like.args) != (repr(error), str(error), error.args):
        return f"the traceback of an exception that does not follow from its arguments: {kind.__name__}"
    return None


def _rows(traceback: TracebackType | None) -> list[tuple[CodeType, dict[str, Any], int, int]]:
    rows = []
    while traceback is not None:
        frame = traceback.tb_frame
        rows.append((frame.f_code, frame.f_globals, traceback.tb_lasti, traceback.tb_lineno))
        traceback = traceback.tb_next
    return rows


_HEAPTYPE = 1 << 9
_OF_EXCEPTIONS = "__new__ __init__ __str__ __repr__ __getattribute__ __getattr__ __setattr__ __traceback__".split()


def _matches(pattern: Any, text: str) -> bool:
    """The interpreter's own filters have texts, those that were added have compiled patterns."""
    return pattern is None or (pattern == text if isinstance(pattern, str) else bool(pattern.match(text)))


def warning_action(text: str, category: type[Warning], module: str, line: int) -> str:
    """What the filters say of a warning, as warnings.warn_explicit looks it up."""
    for row in warnings.filters:
        action, message, kind, place, number = row
        if isinstance(message, Unwarned):
            continue
        if _matches(message, text) and issubclass(category, kind) and _matches(place, module) and number in (0, line):
            return action
    return getattr(warnings, "defaultaction", "default")


def warning_raises(text: str, category: type[Warning], module: str, line: int) -> bool:
    """Would this warning be an exception?"""
    return warning_action(text, category, module, line) == "error"


class Told(Exception):
    """A run would warn the program, which plain Python is to do."""


class Unwarned:
    """Context manager in which nothing is shown that this thread would be warned of: it raises Told.

    A warning that comes from module `here` is asked for as if it came from `module` and `line`, and what the program's
    filters ignore there is ignored; without `here` all is. It stands first among the filters, sees what the interpreter
    asks of each, and leaves the interpreter's count of changed filters alone, by which it forgets what was shown."""

    def __init__(self, here: str = "", module: str = "", line: int = 0):
        self.here, self.module, self.line = here, module, line
        self.thread: int | None = threading.get_ident()
        self.asked: list[str] = []
        self.row = ("ignore", self, self, self, 0)

    def __enter__(self) -> None:
        warnings.filters.insert(0, self.row)  # type: ignore[attr-defined]

    def __exit__(self, *error: Any) -> None:
        self.thread = None  # a copy of the filters that another thread has made may still hold the row
        with contextlib.suppress(ValueError):
            warnings.filters.remove(self.row)  # type: ignore[attr-defined]

    def match(self, text: str) -> bool:
        """As the pattern of the message, then as that of the module."""
        self.asked.append(text)
        return True

    def __subclasscheck__(self, category: type[Warning]) -> bool:
        text, module = self.asked[-2:]
        self.asked.clear()
        if threading.get_ident() != self.thread:
            return False
        module = self.module if module == self.here else module
        if self.here and warning_action(text, category, module, self.line) != "ignore":
            raise Told(text)
        return True


def can_write(path: str) -> bool:
    """Can the file be opened for writing, as far as one can tell without doing it?"""
    if os.path.exists(path):
        return not os.path.isdir(path) and os.access(path, os.W_OK)
    return os.access(os.path.dirname(path) or os.curdir, os.W_OK | os.X_OK)


def decimal_context() -> str:
    """What the thread's context says about the results of decimal arithmetic."""
    now = decimal.getcontext()
    traps = [signal.__name__ for signal, on in now.traps.items() if on]
    return repr((now.prec, now.rounding, now.Emin, now.Emax, now.capitals, now.clamp, traps))


def content(path: str, by_locale: bool) -> str | None:
    """What says of a plain file that its content is the same (by_locale: and means the same text); None: unreadable."""
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    encoding = locale.getencoding() if by_locale else ""
    return f"{hashlib.sha256(data).hexdigest()} {len(data)} {encoding}"


def listing(path: str) -> str | None:
    """The names in a directory, in the order in which they are listed."""
    try:
        return "/".join(os.listdir(path))
    except OSError:
        return None


def keeper(function: Any, first: Any) -> Any:
    """What puts back the state that a call of `function`, whose first argument is `first`, moves: (get, set), or a
    random.Random, whose state is known in C; None if nothing is to be put back."""
    if isinstance(first, random.SystemRandom):
        return None
    if isinstance(first, random.Random):
        return first
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    if function is numpy_random.seed:
        first = numpy_random.mtrand._rand
    if isinstance(first, numpy_random.RandomState):
        return partial(first.get_state, legacy=False), first.set_state
    if isinstance(first, numpy_random.Generator):
        bits = first.bit_generator
        return partial(getattr, bits, "state"), partial(setattr, bits, "state")
    return None


class Ended:
    """What an iterator gives that has come to its end: nothing that a program can have put into one."""


ENDED = Ended()


def advanced(iterator: Any) -> Any:
    """The draw that next(iterator) is; ENDED at the end, where the program is to see the exception itself."""
    return next(iterator, ENDED)


def at_end(iterator: Any) -> bool:
    """The draw at the end of a loop over an iterator over a range, tuple or list: is it there?"""
    return operator.length_hint(iterator) == 0


def end(iterator: Any) -> None:
    """Have such an iterator notice that it is at its end, however long its list is by now."""
    iterator.__setstate__(sys.maxsize)
    next(iterator, None)


def place_in(iterator: Any) -> Any:
    """What puts back an iterator of C: (get, set)."""
    return partial(_C._iterator_state, iterator), partial(_C._set_iterator_state, iterator)


def reordered(shuffle: Any, generator: Any, items: tuple[Any, ...]) -> list[Any]:
    """The draw that shuffle(generator, list) is: the list shuffled."""
    values = list(items)
    shuffle(generator, values)
    return values


def number_tensor(number: int | float) -> Any:
    """The number as an input of a graph: a tensor without dimensions, of double or int64."""
    import torch

    kind = torch.float64 if isinstance(number, float) else torch.int64
    return torch.scalar_tensor(number, dtype=kind, device="cpu")
