"""torch.utils.checkpoint: results, gradients and random numbers are eager's, and later calls hit."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

from tests.models.calls import assert_complete


class Blocks(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh()) for _ in range(2)])

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) + 1
        return x


def whole(x, module):
    return module(x)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_same_as_eager_and_hits(reentrant, requires_grad):
    assert_complete(whole, make=lambda: Blocks(reentrant), requires_grad=requires_grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_several_arguments_and_results(reentrant):
    def program(x, module):
        def inner(a, b, scale):
            return module(a) * scale, a + b.sin()

        first, second = checkpoint(inner, x, x * 2, 3, use_reentrant=reentrant)
        return first, second

    assert_complete(program, requires_grad=True)


def test_keywords_and_contexts():

    def program(x, module):
        a = checkpoint(lambda x, scale: module(x) * scale, x, scale=2, use_reentrant=False)
        return a, checkpoint(
            module, x, use_reentrant=False, context_fn=lambda: (torch.enable_grad(), torch.enable_grad())
        )

    assert_complete(program, requires_grad=True)


def test_sequential():
    def program(x, module):
        return checkpoint_sequential(module, 2, x, use_reentrant=False)

    assert_complete(
        program, make=lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), requires_grad=True
    )


def test_an_exception_inside():
    def program(x, module):
        def fails(x):
            raise ValueError("inside")

        try:
            checkpoint(fails, x, use_reentrant=False)
        except ValueError as error:
            assert "inside" in str(error)
        return module(x)

    assert_complete(program, complete=False)


def test_gradients_inside():
    def program(x, module):
        module(x).pow(2).sum().backward()
        return x.detach()

    assert_complete(program, make=lambda: Blocks(False), between=lambda module, step: module.zero_grad())


def test_early_stop_is_as_it_was():
    def program(x, module):
        with set_checkpoint_early_stop(False):
            return checkpoint(module, x, use_reentrant=False)

    assert_complete(program, requires_grad=True, complete=False)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
def test_results_that_depend_on_nothing_differentiable(requires_grad):
    def program(x, module):
        def inner(a):
            return module(a), (a.detach() > 0).float(), a.argmax(0)

        first, mask, places = checkpoint(inner, x, use_reentrant=True)
        return first, mask, places

    assert_complete(program, requires_grad=requires_grad, complete=False)
