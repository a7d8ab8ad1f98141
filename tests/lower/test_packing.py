"""Packed weights of matrix products: the packed format, products by it, and when frozen graphs make and drop it."""

import functools
import gc
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import magpy
from magpy import _C, choices, packing, products
from tests.counting import Counted
from tests.kernels.test_products import WIDTHS, by_any_threads, check, matrix
from tests.lower import test_freezing
from tests.lower.test_freezing import frozen


@pytest.fixture(params=WIDTHS)
def bits(request):
    _C._product_bits(request.param)
    yield request.param
    _C._product_bits(0)


def by_packed(a, b, bias=None, strides=None):
    size = [*a.shape[:-1], b.shape[-1]]
    (out,) = products._plan(a, packing.pack(b), bias, strides or products.contiguous(size), b.shape[-1])()
    return out


@pytest.mark.parametrize("seed", range(4))
def test_products_by_packed_matrices_of_random_sizes_and_strides(bits, seed):
    rng = random.Random(seed)
    for _ in range(60):
        m, n, k = (rng.choice([rng.randint(1, 5), rng.randint(1, 20), rng.randint(1, 130)]) for _ in range(3))
        if rng.random() < 0.05:
            k = rng.randint(1000, 2100)
        batch = [rng.randint(1, 3) for _ in range(rng.choice([0, 0, 1, 2]))]
        a, b = matrix(rng, batch, m, k), matrix(rng, [], k, n)
        bias = torch.randn(n) if rng.random() < 0.5 else None
        assert torch.equal(packing.unpacked(packing.pack(b), k, n), b)
        check(by_packed(a, b, bias), a, b, bias)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 11, 12, 13, 48, 49, 100])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 300])
def test_every_edge(bits, m, n):
    a, b, bias = torch.randn(m, 70), torch.randn(n, 70).t(), torch.randn(n)
    check(by_packed(a, b, bias), a, b, bias)


def test_many_blocks_and_threads_do_not_change_a_bit():
    a, b = torch.randn(3, 90, 1500), torch.randn(900, 1500).t()
    check(by_any_threads(lambda: by_packed(a, b)), a, b, None)


def test_the_operator_itself_computes_the_same(bits):
    a, b, bias = torch.randn(2, 5, 7), torch.randn(7, 45), torch.randn(45)
    out = packing.PACKED(a, packing.pack(b), bias, [225, 45, 1], 45)
    check(out, a, b, bias)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError):
        _C._packed_size(-1, 3)
    with pytest.raises(ValueError):
        _C._pack_weight(0, (-1, 3), (1, 1), 0)


# -- In frozen graphs -------------------------------------------------------------------------------------------------


@pytest.fixture
def always_packed(monkeypatch):
    def choose(what, make):
        names = list(make())
        return "packed" if "packed" in names else names[0]

    monkeypatch.setattr(choices, "choose", choose)


class Net(nn.Module):
    """Weights as they are, scaled (a constant), in heads, two products by one weight, and one by what is no weight."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.out, self.last = nn.Linear(32, 24, bias=False), nn.Linear(24, 5)
        self.scale = nn.Parameter(torch.rand(24, 24))

    def forward(self, x):
        heads = [layer(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        x = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = F.gelu(self.out(x)) @ (self.scale * 2)
        return self.last(x), self.last(x.relu()), x @ x.mT


X = torch.randn(3, 10, 32)


same = functools.partial(test_freezing.same, x=X)


def test_products_of_a_frozen_model_are_packed(always_packed):
    model = Net().eval()
    compiled = frozen(model)
    with Counted() as counted:
        same(compiled, model)
    assert counted.hits == 2 and not counted.fallbacks
    assert str(magpy.explain(compiled)).count("kernel magpy.packed_matmul.default") == 7


def test_without_freezing_nothing_is_packed(always_packed):
    model = Net().eval()
    compiled = torch.compile(model, backend="magpy", fullgraph=True)
    same(compiled, model)
    assert "packed_matmul" not in str(magpy.explain(compiled))


CHANGES = {
    "in place": lambda model: model.q.weight.mul_(2),
    "a part": lambda model: model.last.weight[1, 2:].zero_(),
    "the source of a constant": lambda model: model.scale.add_(1),
    "another parameter": lambda model: setattr(model.out, "weight", nn.Parameter(torch.randn(24, 32))),
    "other memory": lambda model: setattr(model.k.weight, "data", torch.randn(32, 32)),
    "loaded": lambda model: model.load_state_dict({n: torch.randn_like(t) for n, t in model.state_dict().items()}),
    "a layer": lambda model: setattr(model, "last", nn.Linear(24, 5)),
    "a bias": lambda model: model.v.bias.fill_(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_packed_is_packed_again_after_a_change(always_packed, change):
    model = Net().eval()
    compiled = frozen(model)
    same(compiled, model)
    with torch.no_grad():
        CHANGES[change](model)
    same(compiled, model)
    assert "packed_matmul" in str(magpy.explain(compiled))


def test_a_write_that_is_not_counted_is_announced(always_packed):
    model = Net().eval()
    compiled = frozen(model)
    same(compiled, model)
    model.q.weight.data.numpy()[:] = 1
    magpy.refresh(model)
    same(compiled, model)


def test_after_a_step_of_a_fused_optimizer(always_packed):
    model = Net().eval()
    compiled = frozen(model)
    same(compiled, model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(X)[0].sum().backward()
    optimizer.step()
    same(compiled, model)


def test_a_weight_that_has_gone_is_not_kept_packed(always_packed):
    model = Net().eval()
    compiled = frozen(model)
    same(compiled, model)
    old = weakref.ref(model.out.weight)
    model.out.weight = nn.Parameter(torch.randn(24, 32))
    same(compiled, model)
    gc.collect()
    assert old() is None
    same(compiled, model)


def test_weights_that_are_parts_of_a_larger_one(always_packed):
    whole = nn.Parameter(torch.randn(64, 40))

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = whole

        def forward(self, x):
            first, second = self.whole[:, 3:35].chunk(2)
            return (
                F.linear(x, first),
                x @ second[:, :].t() + 1,
                torch.bmm(x, self.whole[None, :32, :].expand(3, -1, -1)),
            )

    model = Parts().eval()
    compiled = frozen(model)
    same(compiled, model)
    with torch.no_grad():
        whole[40].mul_(3)
    same(compiled, model)
    assert "packed_matmul" in str(magpy.explain(compiled))
