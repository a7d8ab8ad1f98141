"""Tensors that a call makes and that require grad: leaves, parameters, whole modules. As in eager, with hits."""

import pytest
import torch
from torch import nn

from tests.models.calls import assert_complete
from tests.traps.differential import attempt, same_as_eager


def variable(x, module):
    return module(torch.autograd.Variable(x.detach(), requires_grad=True))


def variable_of_data(x, module):
    v = torch.autograd.Variable(x.data, volatile=False)
    return module(v) * v


def factory(x, module):
    return module(x + torch.zeros(4, requires_grad=True))


def factory_alone(x, module):
    return x.detach() * torch.ones(4, requires_grad=True)


def factory_returned(x, module):
    z = torch.ones(4, requires_grad=True)
    return z, module(x * z), z.view(2, 2)


def two_leaves_returned(x, module):
    a, b = torch.ones(4, requires_grad=True), torch.full((4,), 2.0, requires_grad=True)
    return a, (a * b).sin() + module(x), b, module(x).detach()


def leaf_alone(x, module):
    return torch.ones(4, requires_grad=True), x.detach().clone().requires_grad_()


def marked(x, module):
    y = x.detach().clone().requires_grad_()
    return module(y), y


def marked_by_attribute(x, module):
    y = x.detach() * 2
    y.requires_grad = True
    return module(y), y


def unmarked(x, module):
    y = x.detach().clone().requires_grad_()
    return module(y.requires_grad_(False))


def detached_in_place(x, module):
    y = module(x)
    y.detach_()
    return y * module(x)


def parameter(x, module):
    return module(nn.Parameter(x.detach().clone()))


def parameter_returned(x, module):
    p = nn.Parameter(x.detach() * 2)
    return p, module(p), nn.Parameter(torch.ones(3), requires_grad=False)


def module_inside(x, module):
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())(x) + module(x)


def module_returned(x, module):
    made = nn.Linear(4, 4)
    return made, made(x)


def lazily(x, module):
    if not hasattr(module, "extra"):
        module.extra = nn.Parameter(torch.full((4,), 2.0))
    return module(x) * module.extra


def tensor_of_tensors(x, module):
    y = module(x)
    return torch.tensor([y.sum(), y.mean(), 1.0]) + y.sum(), torch.tensor([[x[0, 0], x[1, 1]], [0, 1]])


PROGRAMS = [
    variable, variable_of_data, factory, factory_alone, factory_returned, two_leaves_returned, leaf_alone, marked,
    marked_by_attribute, unmarked, detached_in_place, parameter, parameter_returned, module_inside, module_returned,
    tensor_of_tensors,
]  # fmt: skip


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_same_as_eager_and_hits(program, requires_grad):
    assert_complete(program, requires_grad=requires_grad)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
def test_a_parameter_that_the_first_call_adds(requires_grad):
    assert_complete(lazily, requires_grad=requires_grad, calls=4, hits=2)


def gradient_and_result(leaf, module):
    y = module(leaf).sum()
    y.backward(retain_graph=True)
    return leaf.grad, y * 2


def gradient_and_another_pass(leaf, module):
    module(leaf).sum().backward()
    return leaf.grad, (module(leaf) * leaf).sum()


def gradient_seen_by_a_view(leaf, module):
    module(leaf).sum().backward()
    return leaf.grad[1:], (leaf * leaf).sum()


def gradient_stored(leaf, module):
    module(leaf).sum().backward()
    module.seen = leaf.grad
    return module.seen, (leaf * leaf).sum()


def gradient_of_a_leaf_given_back(leaf, module):
    module(leaf).sum().backward()
    return leaf.grad, (leaf * leaf).sum(), leaf


def gradient_and_a_spent_result(leaf, module):
    y = module(leaf).sum()
    y.backward()
    return leaf.grad, y


def gradient_apart(leaf, module):
    module(leaf).sum().backward()
    return leaf.grad, module(leaf.detach()).sum()


@pytest.mark.parametrize(
    "program",
    [
        gradient_and_result,
        gradient_and_another_pass,
        gradient_seen_by_a_view,
        gradient_stored,
        gradient_of_a_leaf_given_back,
        gradient_and_a_spent_result,
        gradient_apart,
    ],
    ids=lambda f: f.__name__,
)
def test_a_backward_pass_after_the_call_adds_to_gradients_of_its_leaves_as_in_eager(program):
    def scenario(wrap):
        torch.manual_seed(3)
        module = nn.Linear(4, 4)

        def whole(x):
            return program((x * 2).detach().requires_grad_(), module)

        compiled = wrap(whole)
        for _ in range(3):
            gradient, result, *_ = compiled(torch.randn(4))
            yield gradient.clone()
            for _ in range(2):
                yield attempt(lambda result=result: result.backward(retain_graph=True))
            yield gradient, [p.grad for p in module.parameters()]

    same_as_eager(scenario)
