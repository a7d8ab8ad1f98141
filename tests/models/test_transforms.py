"""torch.func's transforms inside a call: as in eager; vmap and grad are part of the graph."""

import pytest
import torch
import torch._dynamo  # torch.func imports it when it is first used
import torch.autograd.forward_ad as fwAD
from torch import nn
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from tests.counting import Counted
from tests.models.calls import assert_complete


def mapped(x, module):
    return vmap(lambda row: (module.weight @ row).sin())(x)


def mapped_over_two(x, module):
    return vmap(lambda a, b, c: (a * b).sum() + c, in_dims=(0, 1, None), out_dims=0)(x, x * 2, module.bias.sum())


def mapped_twice(x, module):
    return vmap(vmap(lambda a, b: a.exp() * b, in_dims=(0, None)), in_dims=(None, 0))(x[0], x)


def mapped_module(x, module):
    return vmap(module)(x.unsqueeze(0)), vmap(torch.linalg.vecdot)(x, x)


def gradient(x, module):
    return grad(lambda row: (module.weight @ row).sin().sum())(x[0])


def gradient_and_value(x, module):
    slope, value = grad_and_value(lambda w: nn.functional.linear(x.detach(), w).pow(2).mean())(module.weight.detach())
    return slope, value


def per_sample(x, module):
    params = {k: v.detach() for k, v in module.named_parameters()}

    def loss(params, row):
        return functional_call(module, params, (row.unsqueeze(0),)).pow(2).sum()

    slopes = vmap(grad(loss), in_dims=(None, 0))(params, x.detach())
    return slopes["weight"], slopes["bias"]


def pulled_back(x, module):
    out, pull = vjp(lambda t: module(t).sin(), x)
    return out, pull(torch.ones_like(out))[0]


def replaced_parameters(x, module):
    return functional_call(module, {k: v * 2 for k, v in module.named_parameters()}, (x,))


def jacobians(x, module):
    f = lambda row: (module.weight @ row).sin()  # noqa: E731
    return jacrev(f)(x[0]), jacfwd(f)(x[0]), hessian(lambda row: f(row).sum())(x[0])


def pushed_forward(x, module):
    return list(jvp(lambda t: module(t).sin(), (x,), (torch.ones_like(x),)))


def pushed_forward_with_more(x, module):
    out, slope, more = jvp(lambda t, u: (module(t) * u, t), (x, x.detach()), (x.detach(), x.detach()), has_aux=True)
    return out, slope, more * 2


def hessian_by_both(x, module):
    f = lambda row: (module.weight @ row).sin().sum()  # noqa: E731
    product = jvp(grad(f), (x[0].detach(),), (x[1].detach(),))[1]
    return product, vmap(hessian(f))(x.detach()), jacfwd(jacrev(f))(x[0].detach())


def dual_numbers(x, module):
    with fwAD.dual_level():
        dual = fwAD.make_dual(x, torch.ones_like(x))
        out = fwAD.unpack_dual(module(dual).tanh())
        return out.primal * 1, out.tangent * 2, dual.sin()


def functional_api(x, module):
    f = lambda t: (module(t).sin() ** 2).sum()  # noqa: E731
    x = x.detach()
    return torch.autograd.functional.hvp(f, x, torch.ones_like(x))[1], torch.autograd.functional.vhp(f, x, x)[1]


PROGRAMS = [
    mapped, mapped_over_two, mapped_twice, mapped_module, gradient, gradient_and_value, per_sample, replaced_parameters,
]  # fmt: skip


FORWARD_MODE = [
    jacobians, pushed_forward, pushed_forward_with_more, hessian_by_both, dual_numbers, functional_api,
]  # fmt: skip


@pytest.mark.parametrize("program", FORWARD_MODE, ids=lambda program: program.__name__)
def test_forward_mode(program):
    """Where the results are to be differentiated, it falls back."""
    frozen = nn.Linear(4, 4).requires_grad_(False)
    assert_complete(lambda x, module: program(x, frozen), requires_grad=False)
    assert_complete(program, requires_grad=True, complete=False)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_same_as_eager_and_hits(program, requires_grad):
    assert_complete(program, requires_grad=requires_grad)


def ensemble(x, module):
    models = [nn.Linear(4, 4) for _ in range(2)]
    params, buffers = stack_module_state(models)
    return vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(params, buffers)


def randomness(x, module):
    return vmap(lambda row: row + torch.randn(4), randomness="different")(x)


@pytest.mark.parametrize("program", [ensemble, randomness, pulled_back], ids=lambda program: program.__name__)
def test_same_as_eager(program):
    assert_complete(program, requires_grad=True, complete=False)


def test_an_exception_inside_of_a_transform_leaves_no_level():
    def program(x):
        try:
            vmap(lambda row: row.reshape(3, 3))(x)
        except RuntimeError:
            return x + 1

    compiled = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(4, 4)
        torch.testing.assert_close(compiled(x), x + 1)
        assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0


def test_a_graph_that_cannot_be_lowered_leaves_no_level():
    def program(x):
        return vmap(lambda row: torch.linalg.eig(row.reshape(2, 2))[0].real * torch.special.airy_ai(row[:2]))(x)

    compiled = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(3, 4)
        torch.testing.assert_close(compiled(x), program(x))
        assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
        assert torch._C._autograd._saved_tensors_hooks_is_enabled()


def test_inside_of_a_transform_nothing_is_compiled():
    compiled = torch.compile(lambda row: row.sin() * 2, backend="magpy")
    x = torch.randn(3, 4)
    with Counted() as counted:
        for _ in range(2):
            torch.testing.assert_close(vmap(compiled)(x), x.sin() * 2)
    assert counted.hits == 0


class TestDualLevels:
    """Forward-mode gradients: levels are left as they were found, and calls inside of one are not compiled."""

    def test_a_graph_that_cannot_be_lowered(self):
        def program(x):
            with fwAD.dual_level():
                dual = fwAD.make_dual(x, torch.ones_like(x))
                torch.linalg.eig(x.reshape(2, 2))
                torch.special.airy_ai(x.to_sparse().to_dense())
                return fwAD.unpack_dual(dual.sin()).tangent

        compiled = torch.compile(program, backend="magpy")
        for _ in range(3):
            x = torch.randn(4)
            torch.testing.assert_close(compiled(x), x.cos())
            with fwAD.dual_level():  # raises where one is open
                pass

    def test_an_exception_inside(self):
        def program(x):
            with fwAD.dual_level():
                return fwAD.make_dual(x, torch.ones(3)).sin()

        compiled = torch.compile(program, backend="magpy")
        for _ in range(3):
            with pytest.raises(RuntimeError):
                compiled(torch.randn(4))
            assert fwAD._current_level == -1

    def test_calls_on_dual_numbers(self):
        compiled = torch.compile(lambda x: x.sin() * 2, backend="magpy")
        x = torch.randn(4)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), x.sin() * 2)
            with fwAD.dual_level():
                dual = compiled(fwAD.make_dual(x, torch.ones(4)))
                torch.testing.assert_close(fwAD.unpack_dual(dual).tangent, x.cos() * 2)
            torch.testing.assert_close(jvp(compiled, (x,), (x,))[1], x.cos() * 2 * x)
