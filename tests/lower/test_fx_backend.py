"""Dynamo captures, lowering compiles: many models, inference and training, against eager."""

import copy

import pytest
import torch
import torch.nn.functional as F

from magpy import fx_backend

CALLERS = []


def backend(gm, example_inputs, **kwargs):
    caller = fx_backend.magpy_fx(gm, example_inputs, **kwargs)
    CALLERS.append(caller)
    return caller


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    CALLERS.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def compiled_all():
    return bool(CALLERS) and all(hasattr(c, "lowered") for c in CALLERS)


class LstmLoop(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTMCell(8, 5)

    def forward(self, x):
        h, c = x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)
        for _ in range(4):
            h, c = self.cell(x, (h, c))
        return h


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.BatchNorm2d(3)
        self.out = torch.nn.Linear(3, 4)

    def forward(self, x):
        x = F.max_pool2d(x + self.norm(self.conv(x)).relu(), 2)
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.GELU(), torch.nn.Linear(9, 4))


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    return transformers.BertModel(config)


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, n_positions=64, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


def tokens():
    return torch.randint(0, 99, (2, 7))


MODELS = {
    "mlp": (mlp, lambda: torch.randn(6, 8)),
    "residual": (Residual, lambda: torch.randn(2, 3, 8, 8)),
    "lstm loop": (LstmLoop, lambda: torch.randn(6, 8)),
    "transformer": (lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(2, 5, 8)),
    "bert": (bert, tokens),
    "gpt2": (gpt2, tokens),
}  # fmt: skip


def tensor_of(out):
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("name", MODELS)
def test_inference(name):
    make, data = MODELS[name]
    net, x = make().eval(), data()
    with torch.no_grad():
        want = tensor_of(net(x))
        fn = torch.compile(net, backend=backend)
        for _ in range(2):
            torch.testing.assert_close(tensor_of(fn(x)), want, rtol=1e-5, atol=1e-5)
    assert compiled_all() and CALLERS[0].lowered.info["kind"] == "inference"


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("name", MODELS)
def test_training_steps(name, optimizer):
    make, data = MODELS[name]
    net = make().train()
    twin = copy.deepcopy(net)
    fn = torch.compile(net, backend=backend)
    batches = [data() for _ in range(4)]

    def steps(module, call):
        torch.manual_seed(5)
        opt = getattr(torch.optim, optimizer)(module.parameters(), lr=1e-2)
        losses = []
        for x in batches:
            opt.zero_grad()
            out = tensor_of(call(x))
            loss = (out - torch.linspace(-1, 1, out.numel()).view_as(out)).pow(2).mean()
            loss.backward()
            opt.step()
            losses.append(loss.detach())
        return losses

    got, want = steps(net, fn), steps(twin, twin)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if optimizer == "SGD":  # Adam divides by gradients that are zero but for rounding
        torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-3, atol=1e-5)
    assert compiled_all() and CALLERS[0].lowered.info["kind"] == "training"


def test_symbolic_sizes_run_as_they_are():
    fn = torch.compile(lambda x: x.sin() + x.shape[0], backend=backend, dynamic=True)
    for n in (3, 5):
        x = torch.randn(n)
        torch.testing.assert_close(fn(x), x.sin() + n)
    assert not compiled_all()


def test_sizes_that_are_data_run_as_they_are():
    fn = torch.compile(lambda x: x.nonzero() + 1, backend=backend)
    x = torch.tensor([0, 1, 2])
    torch.testing.assert_close(fn(x), x.nonzero() + 1)


def test_changed_buffers_and_inputs():
    def fn(x, buffer):
        buffer.add_(x.sum())
        return buffer * 2

    got, want = torch.zeros(3), torch.zeros(3)
    compiled = torch.compile(fn, backend=backend)
    x = torch.randn(3)
    for _ in range(3):
        torch.testing.assert_close(compiled(x, got), fn(x, want))
        torch.testing.assert_close(got, want)
    assert compiled_all()


def test_attributes_of_a_graph_module():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.count = torch.nn.Linear(4, 4), torch.nn.Buffer(torch.zeros(()))

        def forward(self, x):
            self.count.add_(1)
            return self.lin(x) + self.count

    gm, x = torch.fx.symbolic_trace(Net()), torch.randn(2, 4)
    fn = fx_backend.magpy_fx(gm, [x])
    out = fn(x)[0]
    torch.testing.assert_close(out, gm.lin(x) + 1)
    assert gm.count == 1
    out.sum().backward()
    assert gm.lin.weight.grad is not None
