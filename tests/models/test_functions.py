"""autograd.Function: where nothing is differentiated it is its forward, and what is given back is as in eager."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from tests.traps.differential import same_as_eager

Pair = namedtuple("Pair", "first second")
WEIGHT = nn.Parameter(torch.full((4,), 2.0))


class Own(torch.autograd.Function):
    """Its subclasses have a forward of their own."""

    @staticmethod
    def backward(ctx, *grads):
        return grads


class Argument(Own):
    @staticmethod
    def forward(ctx, x, y):
        return x


class ArgumentAndMore(Own):
    @staticmethod
    def forward(ctx, x, y):
        return x, x + y, None, 5, y


class View(Own):
    @staticmethod
    def forward(ctx, x, y):
        return x.view(2, 2), y


class Marked(Own):
    @staticmethod
    def forward(ctx, x, y):
        x.add_(y)
        ctx.mark_dirty(x)
        return x, y


class Unmarked(Own):
    @staticmethod
    def forward(ctx, x, y):
        return x.add_(y)


class Kept(Own):
    @staticmethod
    def forward(ctx, x, y, factor=3):
        ctx.save_for_backward(x)
        ctx.factor, ctx.needed = factor, ctx.needs_input_grad
        ctx.mark_non_differentiable(y)
        return x * ctx.factor + len(ctx.needed) + sum(ctx.needed) + len(ctx.saved_tensors)


class Setup(Own):
    @staticmethod
    def forward(x, y, factor=3):
        return x * factor, y.view(2, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.factor = inputs[2]


class Lists(Own):
    @staticmethod
    def forward(ctx, x, y):
        return [x, x * y]


class Named(Own):
    @staticmethod
    def forward(ctx, x, y):
        return Pair(x * y, y)


class Masked(Own):
    @staticmethod
    def forward(ctx, x, y):
        out = x.clone()
        mask = x <= 0.5
        out[mask] = (x * y)[mask]
        out[~mask] = (x - y)[~mask]
        return out, torch.nonzero(mask)


class Branch(Own):
    @staticmethod
    def forward(ctx, x, y):
        return x + y if x.sum() > 0 else x - y


class WithGradients(Own):
    @staticmethod
    def forward(ctx, x, y):
        with torch.enable_grad():
            inside = (x * WEIGHT).sum()
        return torch.autograd.grad(inside, WEIGHT)[0] + y


class Differentiable(Own):
    @staticmethod
    def forward(ctx, x, y):
        with torch.enable_grad():
            return x * WEIGHT, (x * WEIGHT).view(2, 2)


class Inner(Own):
    @staticmethod
    def forward(ctx, x, y):
        return Argument.apply(x, y), Branch.apply(y, x), torch.is_grad_enabled()


FUNCTIONS = [Argument, ArgumentAndMore, View, Marked, Unmarked, Kept, Setup, Lists, Named, Masked, Branch]
FUNCTIONS += [WithGradients, Differentiable, Inner]


def seen_of(result, *arguments):
    """What a result is, and what it shares with the arguments."""
    items = list(result) if isinstance(result, list | tuple) else [result]
    for item in items:
        if not torch.is_tensor(item):
            yield item
            continue
        yield item.requires_grad, item.is_leaf, item.detach().clone()
        for other in (*arguments, *items, WEIGHT):
            if torch.is_tensor(other):
                same = item is other, item._base is other
                yield *same, item.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("required, grad_mode", [(False, False), (True, False), (False, True)])
def test_where_nothing_is_differentiated(function, required, grad_mode):
    def scenario(wrap):
        f = wrap(lambda x, y: function.apply(x, y))
        for seed in (0, 0, 1, 0):
            torch.manual_seed(seed)
            x, y = torch.randn(4).requires_grad_(required), torch.randn(4)
            with torch.set_grad_enabled(grad_mode):
                result = f(x, y)
            yield type(result), result
            yield list(seen_of(result, x, y))
            yield x.detach().clone(), y

    counted = same_as_eager(scenario)
    if not (required and function in (Marked, Unmarked)):  # a leaf that is changed, and given back detached
        assert counted.fallbacks == {}
        assert counted.hits >= 2


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, shift=None):
        ctx.factor = factor
        return x * factor if shift is None else x * factor + shift

    @staticmethod
    def backward(ctx, grad):
        return (grad * ctx.factor, None, grad)[: len(ctx.needs_input_grad)]


@pytest.mark.parametrize("required", [False, True])
def test_keywords_of_apply(required):
    def scenario(wrap):
        f = wrap(lambda x, y: (Scaled.apply(x, factor=5), Scaled.apply(x, 2, shift=y), Scaled.apply(x=x, factor=7)))
        for _ in range(3):
            x, y = torch.ones(3, requires_grad=required), torch.full((3,), 2.0, requires_grad=required)
            results = f(x, y)
            yield results
            if required:
                sum(result.sum() for result in results).backward()
                yield x.grad, y.grad

    counted = same_as_eager(scenario)
    assert counted.fallbacks == {}
