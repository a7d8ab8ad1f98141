"""Modules whose forward torch itself changes (hooks, norms of weights, recurrent kernels, gradients of the user's own).

Results, gradients, buffers and RNG state are those of eager over several calls, and later calls hit.
"""

import pytest
import torch
from torch import nn
from torch.nn import utils

import magpy
from tests.models.calls import Cube


class OwnGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return Cube.apply(self.linear(x))


class Functional(OwnGradient):
    def forward(self, x):
        return torch.func.functional_call(self.linear, dict(self.linear.named_parameters()), (x,))


def hooked():
    module = nn.Linear(4, 4)
    module.register_forward_hook(lambda module, inputs, result: result * 2)
    return module


MODULES = {
    "forward hook": hooked,
    "weight_norm": lambda: utils.weight_norm(nn.Linear(4, 4)),
    "parametrized weight_norm": lambda: utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral_norm": lambda: utils.spectral_norm(nn.Linear(4, 4)),
    "parametrized spectral_norm": lambda: utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "lstm": lambda: nn.LSTM(4, 4),
    "gru": lambda: nn.GRU(4, 4),
    "rnn": lambda: nn.RNN(4, 4),
    "autograd.Function": OwnGradient,
    "functional_call": Functional,
}


def flat(value):
    return [value] if torch.is_tensor(value) else [tensor for item in value for tensor in flat(item)]


def three_calls(make, training, compiled):
    torch.manual_seed(0)
    module = make().train(training)
    call = torch.compile(module, backend="magpy") if compiled else module
    seen = []
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(4, 4, requires_grad=training)
        with torch.set_grad_enabled(training):
            results = flat(call(x))
            if training:
                results[0].sum().backward()
                seen += [x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
        seen += [result.detach().clone() for result in results]
        seen += [buffer.clone() for buffer in module.buffers()]
        seen.append(torch.get_rng_state())
    return seen


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", MODULES)
def test_same_as_eager_and_hits(name, training):
    expected = three_calls(MODULES[name], training, compiled=False)
    hits = magpy.stats()["hits"]
    actual = three_calls(MODULES[name], training, compiled=True)
    assert magpy.stats()["hits"] - hits == 2
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
