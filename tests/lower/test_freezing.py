"""Frozen weights: folded once, and made again after every change of a weight that can be noticed; magpy.refresh for
the others."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import magpy
from tests.counting import Counted


class Net(nn.Module):
    """Constants are made of its convolutions, batch norms, a scaled and a tied weight, and a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 3, groups=2)
        self.deep_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)
        self.tail = nn.Linear(4, 4)
        self.tail.weight = self.head.weight
        self.register_buffer("table", torch.randn(4, 4))
        for norm in (self.norm, self.deep_norm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = self.deep_norm(self.deep(x)).mean((2, 3))
        return self.tail(F.linear(x, self.head.weight * 2 + self.table, self.head.bias.exp()))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


def frozen(model, **kwargs):
    return torch.compile(model, backend="magpy", options={"freezing": True}, fullgraph=True, **kwargs)


def same(compiled, model, x=X):
    with torch.no_grad():
        expected = model(x)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def aten_of(compiled):
    (trace,) = magpy.explain(compiled).traces
    return str(trace.info["aten"])


def test_batch_norms_and_computed_weights_are_constants(model):
    compiled = frozen(model)
    same(compiled, model)
    text = aten_of(compiled)
    assert not [op for op in ("rsqrt", "aten.sub", "aten.exp", "aten.div", "aten.add.Tensor") if op in text]
    assert text.count("aten.convolution") == 2


def test_without_the_option_nothing_is_kept(model):
    compiled = torch.compile(model, backend="magpy", fullgraph=True)
    same(compiled, model)
    assert "aten.exp" in aten_of(compiled)


def test_the_mode_for_it(model):
    compiled = torch.compile(model, backend="magpy", mode="max-autotune", fullgraph=True)
    same(compiled, model)
    assert "aten.exp" not in aten_of(compiled)


def test_arguments_are_never_frozen():
    compiled = torch.compile(lambda x, w: x @ (w * 2), backend="magpy", options={"freezing": True}, fullgraph=True)
    x, w = torch.randn(3, 3), torch.randn(3, 3)
    for _ in range(3):
        torch.testing.assert_close(compiled(x, w), x @ (w * 2))
        w.data.add_(1)  # not counted


# -- Changes ----------------------------------------------------------------------------------------------------------


def in_place(model):
    model.conv.weight.mul_(2)
    model.table.add_(1)


def statistics(model):
    model.norm.running_mean.add_(1)
    model.deep_norm.running_var.mul_(3)


def step(model, make):
    with torch.enable_grad():
        optimizer = make(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()


def sgd(model):
    step(model, lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9))


def adam(model):
    step(model, lambda p: torch.optim.Adam(p, 0.01, foreach=True))


def fused(model):
    step(model, lambda p: torch.optim.AdamW(p, 0.01, fused=True))


def train(model):
    model.train()
    with torch.no_grad():
        model(X)
    model.eval()


def load(model):
    model.load_state_dict({k: v + 0.5 for k, v in model.state_dict().items()})


def assign(model):
    model.load_state_dict({k: v + 0.5 for k, v in model.state_dict().items()}, assign=True)


def data(model):
    model.conv.weight.data = torch.randn_like(model.conv.weight)
    model.table.data = model.table * 2


def data_twice(model):
    """The second one may get the memory of the first."""
    for _ in range(2):
        for p in model.parameters():
            p.data = p.data * 1.5


def parameter(model):
    model.deep.weight = nn.Parameter(torch.randn_like(model.deep.weight))


def module(model):
    model.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)


def tie(model):
    model.tail.weight = nn.Parameter(torch.randn(4, 4))


def tie_again(model):
    model.head.weight = nn.Parameter(torch.randn(4, 4))
    model.tail.weight = model.head.weight


def buffer(model):
    model.table = torch.randn(4, 4)


def there_and_back(model):
    model.to(torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.25)
    model.to(torch.float32)


def set_(model):
    model.table.set_(torch.randn(4, 4))


def initialise(model):
    nn.init.orthogonal_(model.head.weight)


def through_a_view(model):
    model.conv.weight.view(-1)[3:9].fill_(7)


def through_an_alias(model):
    alias = model.deep.weight.detach()
    alias.mul_(-1.5)


def requires_grad(model):
    model.requires_grad_(False)
    model.conv.weight.add_(1)


CHANGES = [
    in_place, statistics, sgd, adam, fused, train, load, assign, data, data_twice, parameter, module, tie,
    tie_again, buffer, there_and_back, set_, initialise, through_a_view, through_an_alias, requires_grad,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_missed(model, change):
    compiled = frozen(model)
    same(compiled, model)
    before = model(X).detach()
    for _ in range(2):
        with torch.no_grad():
            change(model)
        same(compiled, model)
    assert not torch.equal(before, model(X))


def test_changes_between_all_calls(model):
    compiled = frozen(model)
    with torch.no_grad():
        for i in range(40):
            CHANGES[i * 7 % len(CHANGES)](model)
            torch.testing.assert_close(compiled(X), model(X), rtol=1e-3, atol=1e-4, equal_nan=True)
            load_from = copy.deepcopy(Net().eval().state_dict())
            model.load_state_dict(load_from)


def unseen_data(model):
    model.conv.weight.data.mul_(2)


def unseen_numpy(model):
    model.table.numpy()[:] = 3


@pytest.mark.parametrize("change", [unseen_data, unseen_numpy])
@pytest.mark.parametrize("given", ["model", "compiled", "nothing"])
def test_refresh_after_changes_that_are_not_counted(model, change, given):
    compiled = frozen(model)
    same(compiled, model)
    change(model)
    magpy.refresh(*{"model": [model], "compiled": [compiled], "nothing": []}[given])
    same(compiled, model)


# -- Where it does not hold -------------------------------------------------------------------------------------------


def test_training_is_not_frozen(model):
    compiled = frozen(model)
    expected = torch.autograd.grad(model(X).sum(), list(model.parameters()))
    for _ in range(2):
        got = torch.autograd.grad(compiled(X).sum(), list(model.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        model.conv.weight.data.mul_(2)  # not counted, and needs no refresh here
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-4, atol=1e-5)


def test_weights_without_a_version_counter():
    with torch.inference_mode():
        model = Net().eval()
        compiled = frozen(model)
        for _ in range(3):
            torch.testing.assert_close(compiled(X), model(X), rtol=1e-4, atol=1e-5)
            model.conv.weight.mul_(1.5)


def test_in_inference_mode_and_out_of_it(model):
    compiled = frozen(model)
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(compiled(X), model(X), rtol=1e-4, atol=1e-5)
    same(compiled, model)


def test_results_are_the_callers_own(model):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))

        def forward(self, x):
            doubled = self.w * 2
            return x + doubled, doubled, doubled.view(3, 1)

    model = Constant()
    compiled = frozen(model)
    with torch.no_grad():
        for _ in range(3):
            results, expected = compiled(torch.ones(3)), model(torch.ones(3))
            for got, want in zip(results, expected, strict=True):
                assert torch.equal(got, want)
            for got in results:
                got.zero_()


def test_a_model_that_is_gone_is_not_kept():
    def apply(model, x):
        return model(x)

    compiled = torch.compile(apply, backend="magpy", options={"freezing": True}, fullgraph=True)
    model = Net().eval()
    with torch.no_grad():
        for _ in range(3):
            compiled(model, X)
    weight, memory = weakref.ref(model.conv.weight), weakref.ref(model.conv.weight.untyped_storage())
    del model
    gc.collect()
    assert weight() is None and memory() is None


def test_casts_of_weights_are_frozen(model):
    compiled = frozen(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(X)
        for _ in range(3):
            got = compiled(X)
    torch.testing.assert_close(got, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_affine_operators_behind_convolutions(layout, bias):
    class Affine(nn.Module):
        def __init__(self, dims):
            super().__init__()
            kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
            self.conv = kind(3, 5, 3, bias=bias)
            self.scale = nn.Parameter(torch.randn(5, *[1] * dims))
            self.shift = nn.Parameter(torch.randn(1, 5, *[1] * dims))
            self.one = nn.Parameter(torch.tensor(0.7))
            self.same = nn.Parameter(torch.randn(1))

        def forward(self, x):
            return 3 - self.one * ((self.scale * self.conv(x) - self.shift) / 1.5 + self.same) * 2

    for dims in (1, 2, 3):
        model, x = Affine(dims), torch.randn(2, 3, *[6] * dims)
        if dims == 2:
            x = x.contiguous(memory_format=layout)
        same(frozen(model), model, x)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimizers_do_not_count_what_they_change(kind):
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(200, 200) / 14)

        def forward(self, x):
            return F.linear(x, self.weight.tanh())

    model, x = Large(), torch.randn(2, 200)
    optimizer = kind(model.parameters(), 0.01, fused=True)
    compiled = frozen(model)
    for _ in range(2):
        same(compiled, model, x)
        model(x).square().sum().backward()
        optimizer.step()
    same(compiled, model, x)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_compiled_training_step_beside_a_frozen_model(make):
    """The hook that watches optimizers is no part of the program that steps them."""
    import torch._dynamo  # noqa: F401  (optimizers import it when they first step)

    model = nn.Linear(4, 4)
    optimizer = make(model.parameters(), 0.1)
    frozen = torch.compile(model, backend="magpy", options={"freezing": True})

    def program(x):
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step = torch.compile(program, backend="magpy")
    x = torch.randn(3, 4)
    with Counted() as counted:
        for _ in range(5):
            step(x)
            with torch.no_grad():
                torch.testing.assert_close(frozen(x), x @ model.weight.T + model.bias)
    assert counted.fallbacks == {} and counted.hits >= 5


# -- Steps that stay whatever is computed from weights ---------------------------------------------------------------


class Step(nn.Module):
    """A product with a computed weight, and something that has to happen at every call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        x = x @ (self.weight * 2)
        return x + self.step(x)


class Checked(Step):
    def step(self, x):
        return 1 if (x.sigmoid() >= 0).all() else 2


class CheckedWeight(Step):
    def step(self, x):
        return 1 if (self.weight.sigmoid() * 2 >= 0).all() else 2


class Number(Step):
    def step(self, x):
        return 1 / (1 + x.square().sum().item())


class Sized(Step):
    def step(self, x):
        return x[x.exp() > -1].sum()


class Drawn(Step):
    def step(self, x):
        return torch.rand_like(x.exp())


class Counting(Step):
    def step(self, x):
        self.count.add_(1)
        return self.count


@pytest.mark.parametrize("kind", [Checked, CheckedWeight, Number, Sized, Drawn, Counting])
def test_steps_that_have_to_happen_at_every_call(kind):
    model = kind().eval()
    plain, x = copy.deepcopy(model), torch.randn(3, 6)
    compiled = frozen(model)
    with torch.no_grad(), Counted() as counted:
        for seed in range(4):
            torch.manual_seed(seed)
            expected = plain(x + seed)
            torch.manual_seed(seed)
            torch.testing.assert_close(compiled(x + seed), expected)
    assert counted.fallbacks == {} and counted.hits >= 2
