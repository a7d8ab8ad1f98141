"""Gradients that a call computes itself: autograd.grad, backward(), .grad of parameters, whole steps of training.

As in eager, with what accumulates and what stays; and later calls hit."""

import pytest
import torch
import torch._dynamo  # optimizers import it when they first step
from torch import nn

from tests.counting import Counted
from tests.models.calls import Cube, assert_complete

# -- torch.autograd.grad ----------------------------------------------------------------------------------------------


def of_an_own_leaf(x, module):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).pow(2).sum(), x)
    return gradient


def of_parameters(x, module):
    return torch.autograd.grad(module(x).pow(2).sum(), list(module.parameters()))


def of_a_middle(x, module):
    h = module(x)
    return torch.autograd.grad(h.sin().sum(), h)[0] * 2


def with_grad_outputs(x, module):
    y = module(x)
    return torch.autograd.grad(y.sin(), module.weight, torch.ones_like(y) * 2, retain_graph=True)[0], y


def unused(x, module):
    other = torch.ones(3, requires_grad=True)
    grads = torch.autograd.grad(module(x).sum(), [module.weight, other], allow_unused=True)
    return grads[0], grads[1] is None


def penalty(x, module):
    x = torch.autograd.Variable(x.detach(), requires_grad=True)
    y = module(x).pow(2).sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True, retain_graph=True, only_inputs=True)
    return y + (gradient.norm(2, dim=1) - 1).pow(2).mean()


def twice(x, module):
    (first,) = torch.autograd.grad(module(x).pow(3).sum(), module.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), module.weight)
    return second


# -- backward ---------------------------------------------------------------------------------------------------------


def backward(x, module):
    loss = module(x).pow(2).sum()
    loss.backward()
    return loss.detach()


def backward_of_the_result(x, module):
    loss = module(x).pow(2).sum()
    loss.backward()
    return loss


def backward_that_saves_nothing(x, module):
    loss = (module(x) + 1).sum()
    loss.backward(retain_graph=True)
    return loss


def backward_with_gradient(x, module):
    y = module(x)
    torch.autograd.backward([y, y.sin()], [torch.ones_like(y), y.detach()])
    return module.weight.grad * 2


def backward_into_own_leaf(x, module):
    x = x.detach().requires_grad_()
    module(x).pow(2).sum().backward()
    return x.grad


def backward_for_some(x, module):
    module(x).pow(2).sum().backward(inputs=[module.bias])
    return module.bias.grad.clone()


def backward_twice(x, module):
    loss = module(x).pow(2).sum()
    loss.backward(retain_graph=True)
    first = module.weight.grad.clone()
    loss.backward()
    return first, module.weight.grad


def shared_gradient(x, module):
    (module.bias + module.weight[0]).sum().backward()
    module.bias.grad.mul_(3)  # gradients of different leaves are different memory
    return x.detach() * 2


def gradient_set(x, module):
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    module(x).sum().backward()
    return [p.grad.mean() for p in module.parameters()]


def gradient_dropped(x, module):
    module(x).sum().backward()
    del module.weight.grad
    module.bias.grad = None
    return module.weight.grad is None, module(x).detach()


PROGRAMS = [
    of_an_own_leaf, of_parameters, of_a_middle, with_grad_outputs, unused, penalty, twice, backward,
    backward_of_the_result, backward_that_saves_nothing, backward_with_gradient, backward_into_own_leaf,
    backward_for_some, backward_twice, shared_gradient, gradient_set, gradient_dropped,
]  # fmt: skip


def cleared(module, step):
    """Gradients are there in the second and third call, and gone in the others."""
    if step in (0, 3):
        module.zero_grad()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_same_as_eager_and_hits(program):
    torch.compiler.reset()
    accumulates = program not in PROGRAMS[:7] and program not in (gradient_set, gradient_dropped)
    assert_complete(program, calls=5, between=cleared, hits=3 if accumulates else None)


def test_gradients_of_differentiable_inputs():
    assert_complete(penalty, requires_grad=True)
    assert_complete(backward_into_own_leaf, requires_grad=True, hits=1)
    assert_complete(backward, requires_grad=True, hits=1)


# -- Steps of training ------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


class Trained(nn.Module):
    def __init__(self, optimizer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())


def step_of_training(x, module):
    loss = nn.functional.cross_entropy(module.net(x), torch.tensor([0, 1, 0, 1]))
    loss.backward()
    module.optimizer.step()
    module.optimizer.zero_grad()
    return loss.detach()


def step_that_clears_first(x, module):
    module.optimizer.zero_grad()
    loss = nn.functional.cross_entropy(module.net(x), torch.tensor([0, 1, 0, 1]))
    loss.backward()
    nn.utils.clip_grad_norm_(module.net.parameters(), 1.0)
    module.optimizer.step()
    return loss


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_training_is_one_graph(optimizer):
    # the optimiser's state is made by the first step
    assert_complete(
        step_of_training, make=lambda: Trained(optimizer), calls=5, hits=3 if optimizer not in ("sgd", "adagrad") else 4
    )


def test_gradients_cleared_at_the_start_and_clipped():
    assert_complete(step_that_clears_first, make=lambda: Trained("sgd"), calls=5, hits=3)


def test_a_switch_of_the_learning_rate_is_seen():
    def slower(module, step):
        if step == 2:
            module.optimizer.param_groups[0]["lr"] = 0.01

    assert_complete(step_of_training, make=lambda: Trained("sgd"), calls=5, hits=3, between=slower)


# -- What ends the trace, with eager's results ------------------------------------------------------------------------


def same_but_not_compiled(program, make=lambda: nn.Linear(4, 4), between=lambda module, step: None):
    from tests.models.calls import seen_in

    expected = seen_in(program, make, False, 3, between)
    actual = seen_in(torch.compile(program, backend="magpy"), make, False, 3, between)
    for got, wanted in zip(actual, expected, strict=True):
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(got, wanted)
        else:
            assert got == wanted


def hooked():
    module = nn.Linear(4, 4)
    module.weight.register_hook(lambda grad: grad * 2)
    return module


def post_hooked():
    module = nn.Linear(4, 4)

    def step(p):
        with torch.no_grad():
            p -= p.grad
        p.grad = None

    module.weight.register_post_accumulate_grad_hook(step)
    return module


@pytest.mark.parametrize("make", [hooked, post_hooked])
def test_hooks_of_parameters_run(make):
    same_but_not_compiled(backward, make)
    same_but_not_compiled(lambda x, module: torch.autograd.grad(module(x).sum(), module.weight)[0], make)


def test_a_hook_added_later_is_seen():
    def between(module, step):
        if step == 2:
            module.weight.register_hook(lambda grad: grad * 2)

    same_but_not_compiled(backward, between=between)


def test_a_history_before_the_call():
    w = torch.ones(4, requires_grad=True)

    def run(call):
        w.grad = None
        for _ in range(3):
            call(w * 2)
        return w.grad.clone()

    def program(y):
        y.sin().sum().backward()
        return 1

    torch.testing.assert_close(run(torch.compile(program, backend="magpy")), run(program))


def test_a_second_backward_pass_raises_as_in_eager():
    module = nn.Linear(4, 4)
    compiled = torch.compile(backward_of_the_result, backend="magpy")
    x = torch.randn(4, 4)
    for call in range(3):
        module.zero_grad()
        with Counted() as counted:
            loss = compiled(x, module)
        assert counted.fallbacks == {} and counted.hits == (call > 0)
        before = module.weight.grad.clone()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
        assert torch.equal(module.weight.grad, before)


def test_a_history_of_which_a_part_is_freed():
    def program(x, module):
        h = module[0](x).tanh()
        h.sum().backward()
        return module[1](h)  # differentiated, its own layer gets a gradient before the rest raises

    same_but_not_compiled(program, lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


def test_a_middle_of_a_freed_history():
    def program(x, module):
        prediction = module(x)
        loss = prediction.pow(2).sum()
        loss.backward()
        return prediction, loss

    assert_complete(program, between=lambda module, step: module.zero_grad())


def test_a_result_with_a_freed_history_beside_inference_tensors():
    def program(x, module):
        with torch.inference_mode():
            y = module(x)
        loss = module(x).pow(2).sum()
        loss.backward()
        return y, loss

    assert_complete(program, between=lambda module, step: module.zero_grad())


def test_the_gradient_is_a_new_tensor_where_there_was_none_and_the_same_where_there_was_one():
    module = nn.Linear(4, 4)
    compiled = torch.compile(backward, backend="magpy")
    for _ in range(2):
        module.zero_grad()
        compiled(torch.randn(4, 4), module)
        first = module.weight.grad
        compiled(torch.randn(4, 4), module)
        assert module.weight.grad is first
        version = first._version
        compiled(torch.randn(4, 4), module)
        assert module.weight.grad is first and first._version > version


def test_an_exception_in_the_backward_pass_leaves_what_eager_leaves():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("no")

    def program(x, module):
        y = module(x).sum() + Fails.apply(module.bias).sum()
        try:
            y.backward()
        except ValueError:
            return module(x).detach() + 1
        return y

    same_but_not_compiled(program)


def test_a_backward_pass_through_a_function_of_the_programs_own():
    def program(x, module):
        Cube.apply(module(x)).sum().backward()
        return module.weight.grad.clone()

    assert_complete(program, between=lambda module, step: module.zero_grad())


def test_recurrent_modules_learn():
    def program(x, module):
        module(x.unsqueeze(0))[0].pow(2).sum().backward()
        return x.detach()

    assert_complete(program, make=lambda: nn.LSTM(4, 4), between=lambda module, step: module.zero_grad())
