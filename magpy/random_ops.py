"""Operators on torch's random generators: seeds and states, in their place among the operators that draw.

They count as drawing themselves: never dropped, repeated or moved, and undone where a run is thrown away.
"""

from __future__ import annotations

from typing import Any

import torch

_library = torch.library.Library("magpy_random", "DEF")
_TAGS = (torch.Tag.nondeterministic_seeded,)

_library.define("seed(int seed) -> ()", tags=_TAGS)
_library.define("generator_seed(Generator generator, int seed) -> ()", tags=_TAGS)
_library.define("generator_state(Generator generator) -> Tensor", tags=_TAGS)
_library.define("generator_set_state(Generator generator, Tensor state) -> ()", tags=_TAGS)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)


def _generator_seed(generator: torch.Generator, seed: int) -> None:
    generator.manual_seed(seed)


def _generator_state(generator: torch.Generator) -> torch.Tensor:
    return generator.get_state()


def _generator_set_state(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)


_library.impl("seed", _seed, "CompositeExplicitAutograd")
_library.impl("generator_seed", _generator_seed, "CompositeExplicitAutograd")
_library.impl("generator_state", _generator_state, "CompositeExplicitAutograd")
_library.impl("generator_set_state", _generator_set_state, "CompositeExplicitAutograd")

OPS = torch.ops.magpy_random


def fake(func: Any, args: tuple) -> Any:
    """What the operator gives on fake tensors: it must not touch a generator while it is traced."""
    if func is OPS.generator_state.default:
        state = args[0].get_state()
        return torch.empty(state.shape, dtype=state.dtype)
    return None


def generators_of(nodes: Any) -> tuple[torch.Generator, ...]:
    """The generators besides torch's own that operators draw from."""
    found: dict[int, torch.Generator] = {}
    for node in nodes:
        for arg in node.args:
            if isinstance(arg, torch.Generator) and arg is not torch.default_generator:
                found[id(arg)] = arg
    return tuple(found.values())
