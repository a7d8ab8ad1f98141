"""Exceptions that the program catches and shows with their traceback: logged, printed, as text. What is shown is
eager's, line for line, also where the call is made while another exception is handled; what cannot be is refused."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from magpy.report import find_callable
from tests.counting import Counted

X = torch.arange(3.0)
log = logging.getLogger("tests.tracebacks")
log.propagate = False


class Plain(Exception):
    """Of the program's, without code."""


class Named(Plain, KeyError):
    level = 3


class Coded(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}")


def deep(n: int) -> int:
    return deep(n - 1) if n else int("x")


def caught(raising: Callable[[torch.Tensor], Any], show: Callable[[BaseException], Any]) -> Callable[..., Any]:
    def program(x: torch.Tensor) -> Any:
        y = x + 1
        shown = None
        try:
            raising(y)
        except Exception as error:
            shown = show(error)
        return y * 2, shown

    return program


def raise_error(error: Any) -> Any:
    raise error


def _chained(x: torch.Tensor) -> None:
    try:
        deep(1)
    except ValueError as error:
        raise KeyError("from") from error


def _in_context(x: torch.Tensor) -> None:
    try:
        deep(1)
    except ValueError:
        {}["missing"]  # type: ignore[index]


def _suppressed(x: torch.Tensor) -> None:
    try:
        deep(1)
    except ValueError:
        raise KeyError("alone") from None


def _three(x: torch.Tensor) -> None:
    try:
        _chained(x)
    except KeyError:
        raise Plain(1, "a", None)  # noqa: B904


def _finally(x: torch.Tensor) -> None:
    try:
        deep(0)
    finally:
        x.mul(2)


def _raised_again(x: torch.Tensor) -> None:
    try:
        deep(2)
    except ValueError as error:
        raise error


RAISING: dict[str, Callable[[torch.Tensor], Any]] = {
    "here": lambda x: raise_error(KeyError("here")),
    "class": lambda x: raise_error(RuntimeError),
    "several arguments": lambda x: raise_error(ValueError("a", 1, None, 2.5)),
    "deep": lambda x: deep(4),
    "C": lambda x: [1, 2][7],
    "several positions on one line": lambda x: (len("abc") + {"a": 1}["b"]) * 2,
    "division": lambda x: 1 / (len(x) - 3),
    "attribute": lambda x: x.nothing,  # type: ignore[attr-defined]
    "of the program's class": lambda x: raise_error(Plain("a", 3)),
    "of a class of several": lambda x: raise_error(Named("key")),
    "an operator": lambda x: x @ torch.ones(5, 5),
    "chained": _chained,
    "in a context": _in_context,
    "suppressed": _suppressed,
    "three": _three,
    "finally": _finally,
    "raised again": _raised_again,
    "assertion": lambda x: raise_error(AssertionError("no")),
    "stop": lambda x: next(iter(())),
}
SHOWING: dict[str, Callable[[BaseException], Any]] = {
    "exception": lambda error: log.exception("caught"),
    "arguments": lambda error: log.exception("caught %s in %d", "this", 3),
    "exc_info": lambda error: log.error("caught", exc_info=True),
    "exc_info given": lambda error: log.warning("caught", exc_info=error),
    "exc_info as a number": lambda error: log.critical("caught", exc_info=1),
    "not asked": lambda error: log.exception("caught", exc_info=False),
    "the error for its message": lambda error: log.exception(error),
    "text": lambda error: traceback.format_exc(),
    "text in effects": lambda error: (t := traceback.format_exc(), log.info("%s", t), print(f"<{t}>"))[0],
    "printed": lambda error: traceback.print_exc(),
    "twice": lambda error: (log.exception("first"), log.error("second", exc_info=True))[0],
}


@contextlib.contextmanager
def listening() -> Iterator[io.StringIO]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(filename)s:%(lineno)d %(funcName)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    error, sys.stderr = sys.stderr, out
    try:
        with contextlib.redirect_stdout(out):
            yield out
    finally:
        log.removeHandler(handler)
        sys.stderr = error


def shown_by(function: Callable[..., Any], handled: bool) -> tuple[str, str]:
    with listening() as out:
        if handled:
            try:
                raise OSError("outside")
            except OSError:
                result = function(X)
                assert isinstance(sys.exc_info()[1], OSError)
        else:
            result = function(X)
            assert sys.exc_info() == (None, None, None)
    return out.getvalue(), repr(result)


def same(program: Callable[..., Any], first: bool = False) -> Any:
    """Compare eight calls; first: is the call observed while an exception is handled?"""
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for handled in (first, False, True, True, False, False, True, first):
            assert shown_by(fast, handled) == shown_by(program, handled)
    return counted


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("raising", RAISING)
def test_what_was_raised_is_logged(raising: str, first: bool) -> None:
    counted = same(caught(RAISING[raising], SHOWING["exception"]), first)
    assert counted.hits == 7 and not counted.fallbacks


@pytest.mark.parametrize("raising", ["deep", "chained", "an operator"])
@pytest.mark.parametrize("show", SHOWING)
def test_ways_of_showing(show: str, raising: str) -> None:
    counted = same(caught(RAISING[raising], SHOWING[show]))
    assert counted.hits == 7 and not counted.fallbacks


def test_the_text_is_a_value() -> None:
    def program(x: torch.Tensor) -> Any:
        try:
            deep(2)
        except ValueError:
            text = traceback.format_exc()
        last = text.splitlines()[-1] if "invalid" in text else "?"
        return x + 1, last, len(text), f"<{text[-12:]!r}>"

    counted = same(program)  # how many lines there are is learned: with and without an exception outside
    assert counted.hits == 6 and counted.traces == 2 and not counted.fallbacks


def test_nothing_is_handled() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        try:
            deep(1)
        except ValueError:
            pass
        log.exception("nothing to show")
        log.error("nor here", exc_info=True)
        return x + 1

    assert same(program).hits == 7


def test_one_inside_of_another() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        try:
            deep(1)
        except ValueError:
            log.exception("outer, before")
            try:
                raise Plain("inner")
            except Plain:
                log.exception("inner")
            log.exception("outer, after")
        log.exception("none")
        return x + 1

    counted = same(program)
    assert counted.hits == 7 and not counted.fallbacks


def test_a_branch_decides_whether_it_is_raised() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        try:
            if x.sum() > 0:
                raise ValueError("positive")
        except ValueError:
            log.exception("caught")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for x in (X, -X, X, -X, -X, X):
        with listening() as mine:
            fast(x)
        with listening() as expected:
            program(x)
        assert mine.getvalue() == expected.getvalue()
    assert find_callable(fast).hits == 4


def _coded(x: torch.Tensor) -> None:
    raise Coded(3)


def _with_a_note(x: torch.Tensor) -> None:
    error = ValueError("noted")
    error.add_note("by the program")
    raise error


def _of_another_cause(x: torch.Tensor) -> None:
    raise ValueError("caused") from KeyError("never raised")


REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "code": _coded,
    "note": _with_a_note,
    "cause": _of_another_cause,
    "new each time": lambda x: raise_error(ValueError(uuid.UUID(int=len(x)).hex, object)),
    "data": lambda x: raise_error(ValueError(f"sum {x.sum().item()}")),
    "file": lambda x: open("/does/not/exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_again_is_plain(name: str) -> None:
    program = caught(REFUSED[name], SHOWING["exception"])
    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        assert shown_by(fast, False) == shown_by(program, False)
    assert find_callable(fast).hits == 0


def test_another_exception_than_the_one_handled() -> None:
    kept = ValueError("kept")

    def program(x: torch.Tensor) -> torch.Tensor:
        log.error("kept", exc_info=kept)
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        assert shown_by(fast, False) == shown_by(program, False)
