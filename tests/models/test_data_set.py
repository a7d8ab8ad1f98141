"""tensor.data = other, and changes of what a call was given before its backward pass: as in eager."""

import pytest
import torch
from torch import nn

from tests.models.calls import assert_complete


def of_an_own_tensor(x, module):
    y = x.detach().clone()
    y.data = module(x).detach()
    z = y + 1
    y.mul_(2)
    return z, y


def of_a_parameter(x, module):
    module.weight.data = module.weight.data * 0.9
    return module(x)


def of_a_parameter_twice(x, module):
    module.weight.data = module.weight.data * 0.9
    module.weight.data = module.weight.data.clamp(-0.1, 0.1)
    return module(x)


def after_use(x, module):
    y = module(x)
    module.weight.data = module.weight.data * 0.9
    return y


def after_use_without_gradients(x, module):
    with torch.no_grad():
        y = module(x)
    module.bias.data = module.bias.data + 1
    return y


def shared(x, module):
    fresh = torch.ones(4)
    module.bias.data = fresh
    fresh.add_(1)  # shows in the parameter
    return module(x)


def of_another_parameter(x, module):
    module.bias.data = module.other.data
    y = module(x)
    with torch.no_grad():
        module.other.mul_(2)  # shows in both
    return y.detach() * module.bias


def other_size(x, module):
    module.scratch.data = torch.cat([module.scratch.data, x.detach()[0, :1]])
    return module(x) * module.scratch.sum()


def history_kept(x, module):
    y = module(x)
    z = y * y
    y.data = torch.ones_like(y)
    return z.sum() + y.sum()


class Spectral(nn.Module):
    """Spectral normalisation as many programs write it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        weight = self.layer.weight
        self.layer.register_parameter("weight_u", nn.Parameter(torch.ones(4), requires_grad=False))
        self.layer.register_parameter("weight_v", nn.Parameter(torch.ones(4), requires_grad=False))
        self.layer.register_parameter("weight_bar", nn.Parameter(weight.data))
        del self.layer._parameters["weight"]

    def forward(self, x):
        u, v, w = self.layer.weight_u, self.layer.weight_v, self.layer.weight_bar
        for _ in range(2):
            v.data = nn.functional.normalize(torch.mv(torch.t(w.view(4, -1).data), u.data), dim=0)
            u.data = nn.functional.normalize(torch.mv(w.view(4, -1).data, v.data), dim=0)
        sigma = u.dot(w.view(4, -1).mv(v))
        self.layer.weight = w / sigma.expand_as(w)
        return self.layer(x)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
@pytest.mark.parametrize(
    "program",
    [of_an_own_tensor, of_a_parameter, of_a_parameter_twice, after_use_without_gradients],
    ids=lambda program: program.__name__,
)
def test_same_as_eager_and_hits(program, requires_grad):
    assert_complete(program, requires_grad=requires_grad, calls=4)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
def test_spectral_normalisation_by_hand(requires_grad):
    assert_complete(lambda x, module: module(x), make=Spectral, requires_grad=requires_grad, calls=4)


@pytest.mark.parametrize("program", [after_use, history_kept, shared], ids=lambda program: program.__name__)
def test_same_as_eager(program):
    assert_complete(program, requires_grad=True, complete=False)


def test_data_of_another_parameter():
    def make():
        module = nn.Linear(4, 4)
        module.other = nn.Parameter(torch.ones(4))
        return module

    assert_complete(of_another_parameter, make=make, calls=4, complete=False)


def test_data_of_another_size():
    def make():
        module = nn.Linear(4, 4)
        module.scratch = nn.Parameter(torch.ones(2), requires_grad=False)
        return module

    assert_complete(other_size, make=make, complete=False)


def gradients(call, change):
    torch.manual_seed(0)
    w = torch.randn(4, requires_grad=True)
    seen = []
    for _ in range(3):
        x = torch.randn(4, requires_grad=True)
        y = call(x, w)
        with torch.no_grad():
            change(x, w)
        try:
            y.backward()
            seen += [x.grad.clone(), w.grad.clone()]
        except RuntimeError as error:
            seen.append("modified by an inplace operation" in str(error))
    return seen


@pytest.mark.parametrize(
    "program",
    [
        lambda x, w: (w.exp() * x).sum(),
        lambda x, w: ((w * 2 + 1).exp() + x.tanh()).sum(),
        lambda x, w: (w * x).sum(),
        lambda x, w: (w.sigmoid() + x * x).sum(),
        lambda x, w: (w + x).sum(),
    ],
)
@pytest.mark.parametrize("change", [lambda x, w: w.mul_(2), lambda x, w: x.mul_(2), lambda x, w: None])
def test_what_a_call_was_given_is_changed_before_its_backward_pass(program, change):
    expected = gradients(program, change)
    actual = gradients(torch.compile(program, backend="magpy"), change)
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected, strict=True):
        if isinstance(wanted, bool):
            assert got is wanted
        else:
            torch.testing.assert_close(got, wanted)
