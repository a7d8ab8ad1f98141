"""Noise of dropout comes from torch's generator: the same numbers, and the same state after them."""

import pytest
import torch

import magpy
from magpy import _C, random_ops


def pair(seed=3):
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


@pytest.fixture
def as_known():
    if not random_ops.draws_as_known():
        pytest.skip("torch draws by another generator here")


@pytest.mark.parametrize("before", [0, 1, 2, 622, 623, 624, 625])
@pytest.mark.parametrize("p", [0.0, 2.0**-53, 0.1, 0.5, 1 - 2.0**-53, 1.0])
def test_draws_and_state_are_torchs(before, p, as_known):
    """Words taken before: the two of an element may lie in different states."""
    theirs, ours = pair()
    for generator in (theirs, ours):
        torch.empty(before, dtype=torch.int32).random_(generator=generator)
    for n in (0, 1, 7, 8, 9, 311, 312, 313, 2000):
        expected, drawn = torch.empty(n).bernoulli_(p, generator=theirs), torch.full((n,), 7.0)
        assert _C.bernoulli(ours, drawn, p)
        assert torch.equal(drawn, expected)
        assert torch.equal(theirs.get_state(), ours.get_state())


def test_what_is_no_tensor_of_floats_is_refused():
    for tensor, p in ((torch.empty(3, dtype=torch.float64), 0.5), (torch.empty(3), 1.5), (None, 0.5)):
        with pytest.raises(TypeError):
            _C.bernoulli(torch.Generator(), tensor, p)


def test_dropout_in_a_graph_equals_eager(as_known):
    def program(x):
        return torch.dropout(x, 0.3, True) + torch.dropout(x.t(), 0.1, True).t(), torch.rand(3)

    x = torch.randn(33, 47)
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    compiled(x)
    torch.manual_seed(5)
    expected = [program(x) for _ in range(3)]
    torch.manual_seed(5)
    for want, got in zip(expected, [compiled(x) for _ in range(3)], strict=True):
        torch.testing.assert_close(got[0], want[0])
        assert torch.equal(got[1], want[1])
    (trace,) = magpy.explain(compiled).traces
    assert ("shim", "aten.bernoulli.p") in {step[:2] for step in trace.steps}


def test_other_generators_and_types_keep_torchs_operator():
    generator = torch.Generator()
    x = torch.ones(5, 6)

    def program(x):
        return torch.bernoulli(x, 0.5, generator=generator), x.double().bernoulli(0.5)

    compiled = torch.compile(program, backend="magpy")
    compiled(x)
    generator.manual_seed(1), torch.manual_seed(1)
    expected = program(x)
    generator.manual_seed(1), torch.manual_seed(1)
    assert all(map(torch.equal, compiled(x), expected))
