"""torch's modes and random generators, switched and seeded inside of a call: as in eager, and later calls hit."""

import pytest
import torch

from tests.counting import Counted
from tests.models.calls import assert_complete


def inference_inside(x, module):
    with torch.inference_mode():
        y = module(x) * 2
    return y.sum() + 1


def inference_result(x, module):
    with torch.inference_mode():
        y = module(x)
    return y, module(x), x.detach() * 2


def inference_decorator(x, module):
    @torch.inference_mode()
    def inner(x):
        return module(x)

    return inner(x) + 1


def inference_off(x, module):
    with torch.inference_mode(False):
        return module(x)


def inference_nested(x, module):
    with torch.inference_mode():
        a = module(x)
        with torch.enable_grad():
            b = module(x)
        return a + b, torch.is_inference_mode_enabled(), torch.is_grad_enabled()


def grad_switched(x, module):
    torch.set_grad_enabled(False)
    y = module(x)
    torch.set_grad_enabled(True)
    return y + module(x)


def grad_on_inside(x, module):
    with torch.no_grad(), torch.enable_grad():
        return module(x).sin()


def seed_inside(x, module):
    before = torch.randn(4)
    torch.manual_seed(3)
    return module(x) + before + torch.randn(4)


def seed_and_dropout(x, module):
    torch.manual_seed(3)
    a = torch.nn.functional.dropout(module(x), 0.5, True)
    torch.manual_seed(3)
    return a, torch.nn.functional.dropout(module(x), 0.5, True)


def own_generator(x, module):
    generator = torch.Generator()
    generator.manual_seed(5)
    return x + torch.randn(4, 4, generator=generator) * torch.rand(4, 4, generator=generator)


def own_generator_fills(x, module):
    generator = torch.Generator().manual_seed(5)
    noise = torch.empty(4, 4).normal_(generator=generator)
    order = torch.randperm(4, generator=generator)
    return (x + noise)[order], torch.randint(0, 9, (3,), generator=generator)


def own_generator_looked_at(x, module):
    generator = torch.Generator().manual_seed(7)
    count = int(torch.randint(1, 4, (1,), generator=generator))
    return x[:count] * 2


def state_put_back(x, module):
    state = torch.get_rng_state()
    a = torch.randn(4)
    torch.set_rng_state(state)
    return x + a - torch.randn(4)


def forked(x, module):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        r = torch.randn(4)
    return x + r + torch.randn(4)


PROGRAMS = [
    inference_inside, inference_result, inference_decorator, inference_off, inference_nested, grad_switched,
    grad_on_inside, seed_inside, seed_and_dropout, own_generator, own_generator_fills, own_generator_looked_at,
    state_put_back, forked,
]  # fmt: skip


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "leaf"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_same_as_eager_and_hits(program, requires_grad):
    assert_complete(program, requires_grad=requires_grad)


def test_gradients_switched_on_inside_of_a_call_without_them():
    @torch.compile(backend="magpy")
    def program(x, w):
        with torch.enable_grad():
            return (x * w).sin()

    w = torch.randn(4, requires_grad=True)
    for step in range(3):
        x = torch.randn(4)
        w.grad = None
        with torch.no_grad(), Counted() as counted:
            y = program(x, w)
        assert y.requires_grad
        y.sum().backward()
        torch.testing.assert_close(w.grad, (x * w).cos().detach() * x)
        assert counted.fallbacks == {} and counted.hits == (step > 0)


def test_a_given_generator_is_drawn_from_at_every_call():
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]

    def program(x, generator):
        generator.manual_seed(generator_seed)
        return x + torch.randn(4, generator=generator) + torch.randn(4, generator=generator)

    compiled = torch.compile(program, backend="magpy")
    for step in range(4):
        generator_seed = 3 + (step == 3)  # a closure variable: another one misses
        x = torch.randn(4)
        with Counted() as counted:
            actual = compiled(x, generators[0])
        torch.testing.assert_close(actual, program(x, generators[1]))
        assert torch.equal(generators[0].get_state(), generators[1].get_state())
        assert counted.fallbacks == {} and counted.hits == (step in (1, 2))


def test_a_run_thrown_away_puts_given_generators_back():
    def program(x, generator):
        y = x + torch.randn(4, generator=generator)
        return y * 2 if (x.sum() > 0) else y * 3

    compiled = torch.compile(program, backend="magpy")
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    for sign in (1, 1, -1, -1, 1, -1):
        x = sign * torch.rand(4)
        torch.testing.assert_close(compiled(x, generators[0]), program(x, generators[1]))
        assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_a_seed_that_is_no_number_of_the_trace():
    seeds = iter(range(10))

    def program(x):
        torch.manual_seed(int(x[0]))
        return x + torch.randn(4)

    compiled = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.full((4,), float(next(seeds)))
        torch.testing.assert_close(compiled(x), program(x))


def test_seeding_called_from_c_is_not_lost():
    def program(x):
        list(map(torch.manual_seed, [1, 2]))
        return x + torch.randn(4)

    compiled = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(4)
        torch.testing.assert_close(compiled(x), program(x))
