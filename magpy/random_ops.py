"""Operators on torch's random generators: seeds and states, in their place among the operators that draw.

They count as drawing themselves: never dropped, repeated or moved, and undone where a run is thrown away.
"""

from __future__ import annotations

from typing import Any

import torch

from magpy import _C

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


def draws_as_known() -> bool:
    """Does torch draw bernoulli_ of floats here as magpy does, leaving its generator in the same state?"""
    theirs, ours = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    with torch.no_grad(), torch._C.DisableTorchFunction():
        for n, p in ((700, 0.3), (1, 0.5), (333, 0.9)):
            expected = torch.empty(n, dtype=torch.float32).bernoulli_(p, generator=theirs)
            drawn = torch.empty(n, dtype=torch.float32)
            if not _C.bernoulli(ours, drawn, p) or not torch.equal(drawn, expected):
                return False
        return torch.equal(theirs.get_state(), ours.get_state())
