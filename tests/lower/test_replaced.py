"""Functions that look into the memory of tensors, which lowering spells otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.traps.differential import attempt, same_as_eager


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
def test_one_hot(shape):
    def scenario(wrap):
        fast = wrap(lambda t: F.one_hot(t, num_classes=4) * 2)
        for _ in range(3):
            yield fast(torch.randint(0, 4, shape))

    assert same_as_eager(scenario, hits=2).fallbacks == {}


@pytest.mark.parametrize("bad", [4, -1])
def test_one_hot_of_other_classes_raises(bad):
    def scenario(wrap):
        seen = []

        def program(t):
            out = F.one_hot(t, 4)
            seen.append(len(seen))
            return out

        fast = wrap(program)
        for first in (0, 1, bad, 2):
            yield attempt(fast, torch.tensor([first, 3])), seen

    same_as_eager(scenario)


def test_shape_as_tensor_is_a_constant():
    def scenario(wrap):
        def program(x):
            shape = torch._shape_as_tensor(x)
            return x.sum() + shape, x.reshape([1, *shape.tolist()]), x[: shape[0] - 1]

        fast = wrap(program)
        for n in (3, 3, 4, 4):
            yield fast(torch.rand(n, 2))

    assert same_as_eager(scenario, hits=2).fallbacks == {}
