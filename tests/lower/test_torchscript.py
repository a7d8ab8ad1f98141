"""TorchScript functions in a graph: numbers they make tensors of, and memory they touch without an operator."""

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def scripted(source: str, name: str):
    return getattr(torch.jit.CompilationUnit(source), name)


SPAN = "def span(x, n: int):\n    return torch.tensor(min(x.size(0), n))\n"
ROOT = "def root(x):\n    return torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float)) * x\n"
PAIR = "def pair(x, n: int):\n    return torch.tensor([x.size(0), n])\n"
ITEMS = "def items(x):\n    y: List[float] = x.tolist()\n    return torch.tensor(y)\n"


def test_number_made_a_tensor_bounds_slices_and_clamps():
    span, root = scripted(SPAN, "span"), scripted(ROOT, "root")

    def program(x):
        k = span(x, 2)
        return root(x)[:k], torch.clamp(x + k, 0, k * 2 - 1), k, k + 1, x[5 - k : k + 3]

    fast = torch.compile(program, backend="magpy")
    with Counted() as first:
        fast(torch.randn(6, 4))
    first.assert_observed()
    for _ in range(3):
        x = torch.randn(6, 4)
        with Counted() as hit:
            actual = fast(x)
        hit.assert_hit()
        assert_same(actual, program(x))
        actual[2].add_(5)  # the caller's own: the next call's is new
    x = torch.randn(1, 4)
    assert_same(fast(x), program(x))


@pytest.mark.parametrize("name, source", [("pair", PAIR), ("items", ITEMS)])
def test_memory_touched_without_an_operator_is_left_to_eager(name, source):
    function = scripted(source, name)

    def program(x):
        return function(x, 3) + 1 if name == "pair" else function(x) + x

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(4)
        assert_same(fast(x), program(x))
