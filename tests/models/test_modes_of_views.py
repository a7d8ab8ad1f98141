"""Results that are views, made with gradients on or off in a call that has them on or off: histories as in eager."""

import itertools

import pytest
import torch

from tests.traps.differential import attempt, same_as_eager

MAKES = {
    "view of the input": lambda x: x.view(-1),
    "part of the input": lambda x: x[0],
    "turned input": lambda x: x.t(),
    "computed": lambda x: x * 2,
    "view of computed": lambda x: (x * 2).view(-1)[1:],
    "both": lambda x: (lambda y: (y, y.view(-1)))(x * 2),
    "detached": lambda x: (lambda y: (y, y.detach()))(x * 2),
}
MODES = {"on": torch.enable_grad, "off": torch.no_grad}


@pytest.mark.parametrize("outer", MODES)
@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(MAKES, 2)))
def test_views_have_the_history_of_the_mode_they_were_made_in(first, second, outer):
    def scenario(wrap):
        def program(x, inner):
            with MODES[inner]():
                a = MAKES[first](x)
            return a, MAKES[second](x), x.detach() + 1

        compiled = wrap(program)
        for inner in ("on", "off", "on", "off"):
            for requires_grad in (True, False):
                x = torch.arange(6.0).view(2, 3).requires_grad_(requires_grad)
                with MODES[outer]():
                    outs = torch.utils._pytree.tree_leaves(compiled(x, inner))
                for out in outs:
                    yield (out.requires_grad, out.is_leaf, out.grad_fn is None, out.detach().clone())
                    total = out.sum()
                    yield attempt(lambda y=total, x=x: torch.autograd.grad(y, x, retain_graph=True)[0].tolist())

    same_as_eager(scenario)
