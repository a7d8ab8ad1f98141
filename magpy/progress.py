"""Progress bars inside a call: what stands in the place of tqdm's classes while a call is watched.

The stand-in goes through what it was given in plain sight; what tqdm shows is an effect of the commit, on a bar that
the commit makes. So a compiled call shows its bars when everything is computed. A stand-in that the program still has
when a watched call ends (which then is no trace) becomes the bar itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from magpy import _C


def make(kind: type, total: int | None, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A bar of tqdm's without an iterable: an effect, whose result only other effects use."""
    if total is not None and len(args) < 2:
        kwargs = {**kwargs, "total": total}
    elif total is not None:
        args = (args[0], total, *args[2:])
    return kind(None, *args, **kwargs)


def do(bar: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """bar.name(*args, **kwargs), for what it shows."""
    getattr(bar, name)(*args, **kwargs)


def look(bar: Any, name: str) -> Any:
    """What the program learns of the bar: ends the trace."""
    return getattr(bar, name)


def _size(iterable: Any) -> int | None:
    """What tqdm takes for the total where it is not told."""
    try:
        return len(iterable)
    except (TypeError, AttributeError):
        return None


class Bar:
    """The stand-in for `real`."""

    real: type

    def __init__(self, iterable: Any = None, *args: Any, **kwargs: Any):
        told = kwargs.get("total") if len(args) < 2 else args[1]
        total = _size(iterable) if told is None and iterable is not None else None
        object.__setattr__(self, "iterable", iterable)
        object.__setattr__(self, "_bar", make(self.real, total, args, kwargs))
        _C.note_stand_in(self)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what isinstance asks
        return self.real

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.iterable:
                yield item
                self.update(1)  # not the bar's: this may have become one meanwhile
        except Exception:  # where the program leaves the loop, the bar goes with this generator and closes itself
            self.close()
            raise
        self.close()

    def __len__(self) -> int:
        return len(self.iterable) if hasattr(self.iterable, "__len__") else look(self._bar, "total")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __bool__(self) -> bool:
        return look(self._bar, "__bool__")() if self.iterable is None else len(self) > 0

    def __getattr__(self, name: str) -> Any:
        return look(self._bar, name)

    def __setattr__(self, name: str, value: Any) -> None:
        do(self._bar, "__setattr__", (name, value), {})


def become(stand_in: Bar) -> None:
    """The stand-in is the bar from now on, and what was the bar is nothing."""
    held = vars(stand_in)
    bar, iterable, kind = held["_bar"], held["iterable"], type(held["_bar"])
    object.__dict__["__class__"].__set__(stand_in, kind)
    held.clear()
    held.update(vars(bar), iterable=iterable)
    vars(bar).clear()
    bar.disable = True
    instances = getattr(kind, "_instances", None)
    if instances is not None and bar in instances:
        with kind.get_lock():
            instances.discard(bar)
            instances.add(stand_in)


def _method(name: str) -> Any:
    def method(self: Bar, *args: Any, **kwargs: Any) -> None:
        do(self._bar, name, args, kwargs)

    return method


for _name in ("update", "close", "set_description", "set_description_str", "set_postfix", "set_postfix_str", "refresh",
              "clear", "display", "reset", "unpause", "moveto"):  # fmt: skip
    setattr(Bar, _name, _method(_name))


@functools.lru_cache(maxsize=64)
def stand_in(kind: type) -> type[Bar]:
    """The class that takes the place of tqdm's class `kind`."""
    return type(kind.__name__, (Bar,), {"real": kind})
