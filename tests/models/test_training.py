"""Twenty training steps (forward, loss, backward, optimizer) end in eager's parameters, statistics and random state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.zoo import BasicBlock, ResNet, bert_config
from tests.compare import assert_same_state
from tests.counting import Counted

STEPS = 20


def mlp():
    # No bias before BatchNorm: its gradient is zero but for rounding, which Adam would turn into whole steps.
    first = [nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)]
    model = nn.Sequential(*first, nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    return model, lambda step: (torch.randn(8, 16), torch.randint(0, 4, (8,)))


def small_resnet():
    return ResNet(BasicBlock, [1, 1], 8, 4), lambda step: (torch.randn(4, 3, 32, 32), torch.randint(0, 4, (4,)))


class BertClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel(bert_config("small"))
        self.head = nn.Linear(64, 4)

    def forward(self, ids):
        return self.head(self.bert(input_ids=ids).pooler_output)


def bert():
    return BertClassifier(), lambda step: (torch.randint(2, 1000, (4, 16)), torch.randint(0, 4, (4,)))


def train(model, call, data, optimizer):
    """Run STEPS steps under one seed; returns the losses and torch's random state at the end."""
    torch.manual_seed(1)
    losses = []
    for step in range(STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(call(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.get_rng_state()


OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, 0.05, 0.9), "adam": lambda p: torch.optim.Adam(p, 1e-3)}


@pytest.mark.parametrize("make", [mlp, small_resnet, bert], ids=lambda m: m.__name__)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_equal_eager(make, optimizer):
    torch.manual_seed(0)
    model, data = make()
    model.train()
    reference = copy.deepcopy(model)
    expected, expected_rng = train(reference, reference, data, OPTIMIZERS[optimizer](reference.parameters()))
    with Counted() as counted:
        compiled = torch.compile(model, backend="magpy")
        losses, rng = train(model, compiled, data, OPTIMIZERS[optimizer](model.parameters()))
    assert counted.fallbacks == {}
    assert counted.hits >= STEPS - 2
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    assert_same_state(model, reference, rtol=1e-4, atol=1e-4)
    assert torch.equal(rng, expected_rng)


def test_dropout_masks_equal_eager_under_a_seed():
    model = nn.Dropout(0.5)
    compiled = torch.compile(model, backend="magpy")
    x = torch.ones(64, 64)
    for seed in range(4):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        assert torch.equal(compiled(x), expected)
