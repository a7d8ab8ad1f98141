"""What tests and benchmarks run: named builders of a model and the arguments of one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Built:
    """A model in eval mode and the arguments of one call."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A named model of a `group`; `batch` is the batch that it is measured with where none is asked for."""

    name: str
    group: str
    batch: int
    function: Callable[[str, int], Built]

    def build(self, size: str, batch: int | None = None) -> Built:
        """The model in eval mode with its arguments, made under seed 0.

        `size`: "small" for tests, "bench" for benchmarks (the same structure with realistic widths).
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            built = self.function(size, batch or self.batch)
        built.model.eval()
        return built


class Cases(dict[str, Case]):
    """Cases by name."""

    def register(self, group: str, batch: int) -> Callable[[Callable[[str, int], Built]], Callable[[str, int], Built]]:
        """Decorates a builder `(size, batch) -> Built`: a case of the function's name."""

        def register(function: Callable[[str, int], Built]) -> Callable[[str, int], Built]:
            self[function.__name__] = Case(function.__name__, group, batch, function)
            return function

        return register
