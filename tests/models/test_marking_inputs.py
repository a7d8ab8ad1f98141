"""requires_grad of tensors from outside, set inside a call; hooks and parametrizations added between calls."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.counting import Counted
from tests.models.calls import assert_complete


def marked(x, module):
    x.requires_grad_()
    return module(x)


def marked_by_attribute(x, module):
    x.requires_grad = True
    return module(x).sin()


def penalty_of_reals(x, module):
    x.requires_grad_(True)
    score = module(x)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return score.mean() + slope.pow(2).sum(1).mean()


def unmarked(x, module):
    module.bias.requires_grad_(False)
    return module(x)


def marked_after_use(x, module):
    y = x * 2
    x.requires_grad_()
    return module(x) + y


def marked_after_use_with_other_data(x, module):
    y = x * 2
    x.data = x.data + 1
    x.requires_grad_()
    return module(x) + y.detach(), y


def marked_after_use_of_other_data(x, module):
    x.data = x.data + 1
    y = x * 2
    x.requires_grad_()
    return module(x) + y.detach(), y


def marked_with_other_data(x, module):
    x.data = x.data + 1
    x.requires_grad_()
    return module(x), x * 2


def marked_for_a_while(x, module):
    module.weight.requires_grad = False
    y = module(x)
    module.weight.requires_grad = True
    return y + module(x)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
@pytest.mark.parametrize(
    "program", [marked, marked_by_attribute, penalty_of_reals], ids=lambda program: program.__name__
)
def test_same_as_eager_and_hits(program, requires_grad):
    assert_complete(program, requires_grad=requires_grad)


def test_a_parameter_that_the_first_call_freezes():
    assert_complete(unmarked, calls=4, hits=2)


@pytest.mark.parametrize(
    "program",
    [
        marked_after_use,
        marked_after_use_with_other_data,
        marked_after_use_of_other_data,
        marked_with_other_data,
        marked_for_a_while,
    ],
    ids=lambda program: program.__name__,
)
def test_same_as_eager(program):
    assert_complete(program, complete=False)


def test_a_run_thrown_away_leaves_the_mark_as_it_was():
    seen = []

    def program(x):
        seen.append(x.requires_grad)
        x.requires_grad_()
        return x.sin() * 2 if x.detach().sum() > 0 else x.cos()

    compiled = torch.compile(program, backend="magpy")
    for sign in (1, 1, -1, -1, 1, -1):
        x = sign * torch.rand(4)
        y = compiled(x)
        assert x.requires_grad and x.is_leaf
        y.sum().backward()
        torch.testing.assert_close(x.grad, 2 * x.detach().cos() if sign > 0 else -x.detach().sin())
    assert not any(seen)


def test_a_run_that_fails_leaves_the_mark_to_the_program():
    def program(x, index):
        x.requires_grad_()
        return x[index]

    compiled = torch.compile(program, backend="magpy")
    for i in (1, 2, 9, 3):
        x, index = torch.rand(4), torch.tensor([i])
        if i > 3:
            with pytest.raises(IndexError):
                compiled(x, index)
        else:
            torch.testing.assert_close(compiled(x, index), x[index])
        assert x.requires_grad


class Double(nn.Module):
    def forward(self, weight):
        return weight * 2


CHANGES = {
    "forward hook": lambda module: module.register_forward_hook(lambda module, args, out: out * 2),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "hook with keywords": lambda module: module.register_forward_hook(
        lambda module, args, kwargs, out: out + 1, with_kwargs=True
    ),
    "full backward hook": lambda module: module.register_full_backward_hook(
        lambda module, grad_in, grad_out: tuple(None if g is None else g * 3 for g in grad_in)
    ),
    "tensor hook": lambda module: module.weight.register_hook(lambda grad: grad * 5),
    "parametrization": lambda module: parametrize.register_parametrization(module, "weight", Double()),
    "weight norm": lambda module: nn.utils.parametrizations.weight_norm(module),
    "old weight norm": lambda module: nn.utils.weight_norm(module),
    "new parameter": lambda module: setattr(module, "weight", nn.Parameter(torch.ones(4, 4))),
    "training": lambda module: module.eval(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_added_between_calls_is_seen(name):
    def between(module, step):
        module.zero_grad()
        if step == 2:
            CHANGES[name](module)

    assert_complete(lambda x, module: module(x), requires_grad=True, calls=5, between=between, complete=False)


def test_hooks_removed_again():
    def between(module, step):
        module.zero_grad()
        if step == 1:
            module.handle = module.register_forward_hook(lambda module, args, out: out * 2)
        if step == 3:
            module.handle.remove()

    assert_complete(lambda x, module: module(x), requires_grad=True, calls=5, between=between, complete=False)


def test_a_hook_of_all_modules():
    module, x = nn.Linear(4, 4), torch.randn(2, 4)
    compiled = torch.compile(lambda x: module(x), backend="magpy")
    plain = compiled(x)
    torch.testing.assert_close(compiled(x), plain)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 2)
    try:
        torch.testing.assert_close(compiled(x), plain * 2)
    finally:
        handle.remove()
    with Counted() as counted:
        torch.testing.assert_close(compiled(x), plain)
    assert counted.hits == 1
