"""What a signal handler of the program's raises reaches the program, whatever magpy was doing when the signal came."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from magpy import arrays, aten_passes
from tests.counting import Counted

X = torch.ones(3)


class Deadline(Exception):
    """As a program's handler raises it: an ordinary exception."""


class Stop(BaseException):
    pass


def raises(kind: type[BaseException], number: int, frame: Any) -> None:
    raise kind("the signal came")


class Handler:
    def __call__(self, number: int, frame: Any) -> None:
        raise Deadline("the signal came")

    def method(self, number: int, frame: Any) -> None:
        raise Deadline("the signal came")


HANDLERS: dict[str, tuple[Any, type[BaseException]]] = {
    "function": (lambda number, frame: raises(Deadline, number, frame), Deadline),
    "method": (Handler().method, Deadline),
    "object": (Handler(), Deadline),
    "partial": (functools.partial(raises, Deadline), Deadline),
    "no Exception": (functools.partial(raises, Stop), Stop),
    "interrupt": (signal.default_int_handler, KeyboardInterrupt),
}


@contextlib.contextmanager
def handled(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


armed: list[str] = []


def come(where: str) -> None:
    if where in armed:
        armed.remove(where)
        signal.raise_signal(signal.SIGUSR1)


def coming(where: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        come(where)
        return function(*args)

    return wrapped


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place inside lowering and one inside a run where the signal may come."""
    monkeypatch.setattr(aten_passes, "simplify", coming("lowering", aten_passes.simplify))
    monkeypatch.setattr(arrays, "_made", coming("run", arrays._made))


def program(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(x.numpy())) + 1


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("where", ["lowering", "run"])
def test_a_handlers_exception_reaches_the_program(where: str, name: str) -> None:
    handler, kind = HANDLERS[name]
    fast = torch.compile(program, backend="magpy")
    with handled(handler):
        if where == "run":
            fast(X)
        armed.append(where)
        with Counted() as counted, pytest.raises(kind) as caught:
            fast(X)
        assert type(caught.value) is kind and not armed and not counted.fallbacks
        torch.testing.assert_close(fast(X), program(X))
        with Counted() as counted:
            torch.testing.assert_close(fast(X), program(X))
        counted.assert_hit()


def test_an_interrupt_that_the_program_is_handling_is_none_of_the_lowerings(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: Any) -> Any:
        raise ValueError("of magpy's own")

    monkeypatch.setattr(aten_passes, "simplify", fails)
    fast = torch.compile(program, backend="magpy")
    with handled(functools.partial(raises, Deadline)):
        try:
            signal.raise_signal(signal.SIGUSR1)
        except Deadline:
            with Counted() as counted:
                torch.testing.assert_close(fast(X), program(X))
    assert counted.fallbacks == {"LOWERING_FAILED": 1}
