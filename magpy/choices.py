"""Which of several implementations of the same thing: measured once, then remembered in the kernel cache's directory.

A choice is a line of a JSON object, key -> name. It may be deleted at any time; as long as it is there, the same
program gets the same operators, and so the same rounding, in every process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from magpy import _C

FILE = "choices.json"
ROUNDS = 9
SECONDS = 0.2  # of measuring one choice, as far as one round allows
BEHIND = 1.5, 4  # times the best one's time, in how many rounds: such a candidate is not measured any more
GAIN = 0.95  # another candidate must take less than this part of the first one's time

_known: dict[str, str] | None = None
_unsaved: dict[str, str] = {}


class _Open(threading.local):
    """The blocks that are open in this thread."""

    def __init__(self) -> None:
        self.noted: list[dict[str, str]] = []
        self.saved_together = 0


_open = _Open()


@functools.cache
def _place() -> str:
    """What a measurement depends on besides its shapes."""
    info = _C.cpu_info()
    return f"{torch.__version__} {info['model']} {info['vector_bits']}"


def _path() -> str | None:
    directory = _C.cache_dir()
    return os.path.join(directory, FILE) if directory and os.path.isdir(directory) else None


def _load() -> dict[str, str]:
    path = _path()
    with contextlib.suppress(OSError, ValueError):
        if path is not None and os.stat(path).st_uid == os.getuid():
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found, dict):
                return {k: v for k, v in found.items() if isinstance(v, str)}
    return {}


@contextlib.contextmanager
def saved_together() -> Iterator[None]:
    """Choices that are made inside are written to the file at the end, all at once."""
    _open.saved_together += 1
    try:
        yield
    finally:
        _open.saved_together -= 1
        _save()


@contextlib.contextmanager
def noted() -> Iterator[dict[str, str]]:
    """The choices that are asked for inside."""
    made: dict[str, str] = {}
    _open.noted.append(made)
    try:
        yield made
    finally:
        _open.noted.pop()


def agree(made: Mapping[str, str]) -> bool:
    """Are these choices, of another process, the ones that would be made here without measuring?"""
    known = _remembered()
    return all(known.get(key) == name for key, name in made.items())


def _remembered() -> dict[str, str]:
    global _known
    if _known is None:
        _known = _load()
    return _known


def _save() -> None:
    """Add the choices that are not saved yet to the file, whole or not at all. Choices of other processes stay."""
    path = _path()
    if _open.saved_together or not _unsaved or path is None:
        return
    made = dict(_unsaved)
    _unsaved.clear()
    with contextlib.suppress(OSError):
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix="choices.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump({**_load(), **made}, file, indent=0)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _seconds(candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The least time of each, taken in turn so that a busy machine is busy for all. What is clearly behind after
    some rounds, enough that each had a quiet moment, is not run again."""
    best = dict.fromkeys(candidates, float("inf"))
    running = dict(candidates)
    started = time.perf_counter()
    for round_ in range(ROUNDS + 1):
        for name, call in running.items():
            start = time.perf_counter()
            own = call()
            took = own if isinstance(own, float) else time.perf_counter() - start
            if round_:  # the first one warms up
                best[name] = min(best[name], took)
        if round_ >= BEHIND[1]:
            running = {name: call for name, call in running.items() if best[name] < BEHIND[0] * min(best.values())}
        if len(running) == 1 or (round_ >= 2 and time.perf_counter() - started > SECONDS):
            break
    return best


def choose(what: str, make: Callable[[], Mapping[str, Callable[[], Any]]]) -> str:
    """The name of the candidate to use; the first one unless another is clearly faster.

    what: names the choice, with all shapes. make: gives the candidates, by name; called if nothing is remembered. What
    returns a float has measured itself, in seconds."""
    known = _remembered()
    key = f"{what} threads={torch.get_num_threads()} {_place()}"
    name = known.get(key)
    if name is None:
        with torch.no_grad(), torch._C.DisableTorchFunction(), torch._C._DisableAutocast():
            best = _seconds(make())
        first = next(iter(best))
        name = min(best, key=lambda n: best[n])
        name = name if best[name] < GAIN * best[first] else first
        known[key] = _unsaved[key] = name
        _save()
    for made in _open.noted:
        made[key] = name
    return name
