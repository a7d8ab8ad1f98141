"""Lowered programs across processes: what lowering made of a recorded program is kept in the kernel cache's directory.

A file's name is a hash of all that lowering depends on (graph_key.py), its content plain data (graph_form.py), with the
choices that were measured for it: it serves as long as these are what is remembered. Files are private, whole and
verified, as csrc/run/cache.h says. Whatever goes wrong here is a miss, or is not kept: the program is lowered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import _C, choices, graph_key, interrupts
from magpy.graph_counts import counts
from magpy.graph_key import Uncacheable


class Place:
    """Where a program's lowered form is kept. `outcome` is for people."""

    def __init__(self, key: str | None, outcome: str):
        self.key = key
        self.outcome = outcome

    def find(self) -> dict[str, Any] | None:
        """The data that was kept, if its choices are those that would be made now."""
        if self.key is None:
            return None
        try:
            content = _C.cached_graph(self.key)
            data = None if content is None else json.loads(content)
            if data is not None and not choices.agree(data["choices"]):
                data = None
        except Exception as error:
            interrupts.pass_on(error)
            data = None
            _note("a lowered graph was not read", error)
        if data is None:
            counts.misses += 1
        return data

    def within(self, *parts: Any) -> Place:
        """The place of what is made from this program later, under the modes of that moment. Never fails."""
        if self.key is None:
            return self
        return _placed(lambda: graph_key.derived(self.key or "", *parts))

    def found(self) -> None:
        counts.hits += 1
        self.outcome = "found in the cache"

    def spoiled(self, error: Exception) -> None:
        """What was found cannot be used after all."""
        counts.misses += 1
        _note("a lowered graph was not used", error)

    def keep(self, make: Callable[[], dict[str, Any]] | None, made: dict[str, str]) -> None:
        """Write what `make` gives, with the choices that were asked for."""
        if self.key is None:
            return
        try:
            if make is None:
                raise Uncacheable("a tensor whose .data is set where gradients are computed")
            content = json.dumps({**make(), "choices": made}, separators=(",", ":")).encode()
            kept = _C.keep_graph(self.key, content)
        except Uncacheable as error:
            self.key, self.outcome = None, _uncacheable(error)
        except Exception as error:
            interrupts.pass_on(error)
            self.key = None
            _note("a lowered graph was not kept", error)
        else:
            counts.kept += kept
            self.outcome = "kept in the cache" if kept else "not kept: no private directory"


def place_of(
    program: Any, inputs: Sequence[torch.Tensor], marks: Sequence[tuple[int, bool]], options: dict[str, Any]
) -> Place:
    """The place of a recorded program. Never fails."""

    def key() -> str:
        if options.get("freezing"):
            raise Uncacheable("freezing: constants are made of weights")
        return graph_key.key_of(program, inputs, marks, options)

    return _placed(key)


def _placed(key: Callable[[], str]) -> Place:
    try:
        return Place(key(), "not kept")
    except Uncacheable as error:
        return Place(None, _uncacheable(error))
    except Exception as error:
        interrupts.pass_on(error)
        _note("a program has no key", error)
        return Place(None, _uncacheable(Uncacheable(type(error).__name__)))


def _uncacheable(error: Uncacheable) -> str:
    reason = str(error)
    counts.uncacheable[reason] = counts.uncacheable.get(reason, 0) + 1
    return f"not kept: {reason}"


def _note(what: str, error: Exception) -> None:
    logging.getLogger("magpy").debug("%s: %s: %s", what, type(error).__name__, error)
