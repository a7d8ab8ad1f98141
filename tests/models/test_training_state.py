"""Training programs with state: statistics, tied and averaged weights, recurrent layers, whole steps, shared memory."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.compare import assert_same, assert_same_state
from tests.counting import Counted

STEPS = 4


def both(model, data, loss_of, lr=0.05):
    """A few steps of eager and compiled training under one seed: same losses, state and random numbers.
    Returns what was counted."""
    model.train()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="magpy")
    ends = []
    for module, call in ((reference, reference), (model, compiled)):
        optimizer = torch.optim.SGD(module.parameters(), lr)
        torch.manual_seed(1)
        losses = []
        with Counted() as counted:
            for step in range(STEPS):
                optimizer.zero_grad()
                loss = loss_of(call, data(step))
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        ends.append((torch.stack(losses), torch.get_rng_state()))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(ends[1][1], ends[0][1])
    assert_same_state(model, reference, rtol=1e-3, atol=1e-4)
    return counted


def hits(counted):
    assert counted.fallbacks == {}
    assert counted.hits >= STEPS - 2


# -- Hugging Face, with dropout ---------------------------------------------------------------------------------------


def hf(name):
    import transformers as t

    small = dict(vocab_size=100, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    if name == "bert":
        config = t.BertConfig(**small, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        return t.BertForMaskedLM(config)
    if name == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=32))
    if name == "t5":
        return t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
        )
    if name == "bart":
        layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
        return t.BartForConditionalGeneration(
            t.BartConfig(vocab_size=100, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, **layers)
        )
    config = t.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        hidden_dropout_prob=0.1, num_labels=10,
    )  # fmt: skip
    return t.ViTForImageClassification(config)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "vit"])
def test_transformers_with_dropout_and_their_own_loss(name):
    pytest.importorskip("transformers")
    model = hf(name)
    if name == "vit":
        batches = [dict(pixel_values=torch.randn(2, 3, 16, 16), labels=torch.randint(0, 10, (2,))) for _ in range(4)]
    else:
        ids = [torch.randint(3, 100, (2, 8)) for _ in range(4)]
        batches = [dict(input_ids=i, labels=i.masked_fill(i < 30, -100)) for i in ids]
    counted = both(model, lambda step: batches[step], lambda call, batch: call(**batch).loss)
    if name != "t5":  # copies its configuration in each call, and compares strings by identity on the way
        hits(counted)


# -- Layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(6, 5, num_layers=2, batch_first=True, dropout=0.2, bidirectional=True)
            self.head = nn.Linear(10, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0].mean(1))

    xs = torch.randn(STEPS, 4, 7, 6)
    hits(both(Net(), lambda step: xs[step], lambda call, x: call(x).square().mean()))


NORMS = {
    "momentum": dict(momentum=0.3),
    "no statistics": dict(track_running_stats=False),
    "cumulative average": dict(momentum=None),
    "plain": dict(affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm(name):
    conv = nn.Conv2d(3, 6, 3, bias=False)
    model = nn.Sequential(conv, nn.BatchNorm2d(6, **NORMS[name]), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
    xs = torch.randn(STEPS, 4, 3, 8, 8)
    counted = both(model, lambda step: xs[step], lambda call, x: F.cross_entropy(call(x), torch.tensor([0, 1, 2, 0])))
    if name != "cumulative average":  # its factor is a number read from a counter
        hits(counted)


class Averaged(nn.Module):
    """Keeps a moving average of its weight, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(5, 5)
        self.register_buffer("mean", torch.zeros(5, 5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(self.lin.weight, alpha=0.1)
            self.calls += 1
        return self.lin(x) @ self.mean


def test_moving_averages_inside_forward():
    xs = torch.randn(STEPS, 4, 5)
    hits(both(Averaged(), lambda step: xs[step], lambda call, x: call(x).square().mean()))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_inside(smoothing, weighted):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 8, padding_idx=1)
            self.head = nn.Linear(8, 6)
            weight = torch.rand(6) if weighted else None
            self.loss = nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=smoothing)

        def forward(self, ids, y):
            return self.loss(self.head(self.embed(ids)), y)

    data = [(torch.randint(0, 30, (16,)), torch.randint(0, 6, (16,))) for _ in range(STEPS)]
    hits(both(Net(), lambda step: data[step], lambda call, batch: call(*batch)))


# -- Whole steps ------------------------------------------------------------------------------------------------------


def test_a_whole_training_step_as_the_compiled_function():
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    reference = copy.deepcopy(model)

    def make(module):
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    data = [(torch.randn(6, 5), torch.randint(0, 3, (6,))) for _ in range(STEPS)]
    expected = [step(*batch) for step in [make(reference)] for batch in data]
    actual = [step(*batch) for step in [torch.compile(make(model), backend="magpy")] for batch in data]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for a, e in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


# -- Changes in place -------------------------------------------------------------------------------------------------


def inplace_then_use(h, w):
    h.mul_(2)
    return h.sin() * w


def inplace_on_view(h, w):
    h[0].mul_(w[0])
    return (h * w).sum()


def data_of_parameter(h, w):
    w.data.mul_(0.5)
    return h * w


def no_grad_update(h, w):
    with torch.no_grad():
        w.add_(1)
    return h.sum() * 2


def returns_changed(h, w):
    return h.add_(w)


def other_name(h, w):
    v = h.view(-1)
    v.mul_(3)
    return h * w


def relu_inside(h, w):
    y = h * w
    F.relu_(y)
    y[1] = 0
    return y, y.t()


@pytest.mark.parametrize(
    "fn",
    [inplace_then_use, inplace_on_view, data_of_parameter, no_grad_update, returns_changed, other_name, relu_inside],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("leaf", [True, False])
def test_changes_in_place_of_what_is_differentiated(fn, leaf):
    ends = []
    for call in (fn, torch.compile(fn, backend="magpy")):
        torch.manual_seed(0)
        results = []
        for _ in range(3):
            start = torch.randn(4, 4, requires_grad=not leaf)
            w = torch.randn(4, 4, requires_grad=True)
            h = start * 1
            try:
                out = call(h, w)
                outs = out if isinstance(out, tuple) else (out,)
                sum(o.square().sum() for o in outs).backward()
            except RuntimeError as error:
                results.append(("raised", str(error)[:30], h.detach(), w.detach()))
                continue
            results.append((out, h.detach(), w.detach(), start.grad, w.grad))
        ends.append(results)
    for actual, expected in zip(ends[1], ends[0], strict=True):
        for a, e in zip(actual, expected, strict=True):
            if e is None or isinstance(e, str):
                assert a == e
            else:
                assert_same(a, e)


@pytest.mark.parametrize("grad", [True, False])
def test_changed_inputs_that_share_memory_with_another(grad):
    def fn(a, b, w):
        a.add_(1)
        return b * w + a

    compiled = torch.compile(fn, backend="magpy")
    ends = []
    for call in (fn, compiled):
        torch.manual_seed(0)
        w = torch.randn(4, requires_grad=grad)
        results = []
        for kind in ("apart", "same", "overlap", "view", "apart", "overlap"):
            base = torch.randn(8)
            a = base[:4]
            b = {"apart": base[4:], "same": a, "overlap": base[2:6], "view": a.view(2, 2).view(4)}[kind]
            out = call(a, b, w)
            if grad:
                out.sum().backward()
            results += [out.detach(), base, w.grad.clone() if grad else w]
        ends.append(results)
    torch.testing.assert_close(ends[1], ends[0])
