"""Progress bars inside a call: what stands in the place of tqdm's classes while a call is watched.

The stand-in goes through what it was given in plain sight; what tqdm shows is an effect of the commit, on a bar that
the commit makes. So a compiled call shows its bars when everything is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any


def make(kind: type, total: int | None, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A bar of tqdm's without an iterable: an effect, whose result only other effects use."""
    if total is not None and len(args) < 2:
        kwargs = {"total": total, **kwargs}
    return kind(None, *args, **kwargs)


def do(bar: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """bar.name(*args, **kwargs), for what it shows."""
    getattr(bar, name)(*args, **kwargs)


def look(bar: Any, name: str) -> Any:
    """What the program learns of the bar: ends the trace."""
    return getattr(bar, name)


class Bar:
    """The stand-in for `real`."""

    real: type

    def __init__(self, iterable: Any = None, *args: Any, **kwargs: Any):
        self.iterable = iterable
        total = len(iterable) if hasattr(iterable, "__len__") else None
        self._bar = make(self.real, total, args, kwargs)

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.iterable:
                yield item
                do(self._bar, "update", (1,), {})
        except Exception:  # where the program leaves the loop, the bar goes with this generator and closes itself
            do(self._bar, "close", (), {})
            raise
        do(self._bar, "close", (), {})

    def __len__(self) -> int:
        return len(self.iterable) if hasattr(self.iterable, "__len__") else look(self._bar, "total")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        do(self._bar, "close", (), {})

    def __bool__(self) -> bool:
        return look(self._bar, "__bool__")() if self.iterable is None else len(self) > 0

    def __getattr__(self, name: str) -> Any:
        return look(self._bar, name)


def _method(name: str) -> Any:
    def method(self: Bar, *args: Any, **kwargs: Any) -> None:
        do(self._bar, name, args, kwargs)

    return method


for _name in ("update", "close", "set_description", "set_description_str", "set_postfix", "set_postfix_str", "refresh",
              "clear", "display", "reset", "unpause"):  # fmt: skip
    setattr(Bar, _name, _method(_name))


@functools.lru_cache(maxsize=64)
def stand_in(kind: type) -> type[Bar]:
    """The class that takes the place of tqdm's class `kind`."""
    return type(kind.__name__, (Bar,), {"real": kind})
