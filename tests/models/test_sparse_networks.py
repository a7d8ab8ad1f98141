"""Networks with sparse matrices: inference and training, gradients through the dense operands of products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from tests.compare import assert_same
from tests.counting import Counted
from tests.models.matrices import FORMATS, MADE, PRODUCTS, N, dense, edges, has, uncoalesced

# -- Gradients --------------------------------------------------------------------------------------------------------

DIFFERENTIABLE = ["sparse.mm", "@", "matmul", "mm", "method mm", "method matmul", "vector", "twice", "dense first"]


@pytest.mark.parametrize("form", ["coo", "csr", "uncoalesced"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_through_the_dense_operand(name: str, form: str) -> None:
    program, make = PRODUCTS[name], FORMATS[form]

    def both(x: torch.Tensor, a: torch.Tensor, f: Callable) -> Any:
        x = x.clone().requires_grad_()
        out = f(a, x)
        (out * out.detach().cos()).sum().backward()
        return out, x.grad

    if not has(both, dense(), make(0), program):
        pytest.skip("eager has none")
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    both(dense(), make(0), fast)
    with Counted() as counted:
        for k in range(1, 5):
            assert_same(both(dense(k), make(k), fast), both(dense(k), make(k), program))
    counted.assert_hit(4)


def test_a_matrix_that_requires_grad() -> None:
    program = PRODUCTS["@"]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in range(4):
        found = []
        for f in (program, fast):
            a = FORMATS["coo"](k).requires_grad_()
            x = dense(k).requires_grad_()
            f(a, x).sum().backward()
            found.append([a.grad.to_dense(), x.grad])
        assert_same(found[1], found[0])


def test_values_that_require_grad() -> None:
    program = MADE["product"]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in range(4):
        found = []
        for f in (program, fast):
            (i, w), x = edges(k), dense(k).requires_grad_()
            w.requires_grad_()
            f(i, w, x).sum().backward()
            found.append([w.grad, x.grad])
        assert_same(found[1], found[0])


LATER: dict[str, Callable[[torch.Tensor], Any]] = {
    "counted": lambda a: a.values().mul_(3),
    "through its values": lambda a: a._values().mul_(3) if a.is_sparse else a.values().mul_(3),
    "uncounted": lambda a: (a._values() if a.is_sparse else a.values()).data.mul_(3),
    "not at all": lambda a: None,
}


@pytest.mark.parametrize("form", ["coo", "csr"])
@pytest.mark.parametrize("how", LATER)
def test_matrices_that_are_changed_until_the_backward_pass(how: str, form: str) -> None:
    program = PRODUCTS["@"]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")

    def seen(f: Callable, k: int) -> Any:
        a, x = FORMATS[form](k), dense(k).requires_grad_()
        a = a.coalesce() if a.is_sparse else a
        out = f(a, x).sum()
        LATER[how](a)
        for _ in range(2):
            try:
                out.backward()
            except RuntimeError as error:
                return x.grad, str(error)[:40]
        return x.grad, None

    with Counted() as counted:
        for k in range(4):
            assert_same(seen(fast, k), seen(program, k))
    assert (counted.fallbacks, counted.hits) == ({}, 3)


def test_values_that_are_changed_until_the_backward_pass() -> None:
    program = MADE["product"]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in range(4):
        found = []
        for f in (program, fast):
            (i, w), x = edges(k), dense(k).requires_grad_()
            out = f(i, w, x).sum()
            w.mul_(3)
            out.backward()
            found.append(x.grad)
        assert_same(found[1], found[0])


# -- Modules ----------------------------------------------------------------------------------------------------------


class GraphConvolution(nn.Module):
    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, generator=torch.Generator().manual_seed(n_in)))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        return torch.spmm(adj, torch.mm(x, self.weight)) + self.bias


class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(3, 8), GraphConvolution(8, 4)

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x, adj))
        x = nn.functional.dropout(x, 0.5, training=self.training)
        return nn.functional.log_softmax(self.second(x, adj), dim=1)


class FromEdges(nn.Module):
    """Normalises the adjacency of the edges that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        n = x.size(0)
        loops = torch.arange(n).repeat(2, 1)
        edge_index = torch.cat([edge_index, loops], dim=1)
        degree = torch.zeros(n).index_add_(0, edge_index[0], torch.ones(edge_index.size(1)))
        weight = degree.pow(-0.5)[edge_index[0]] * degree.pow(-0.5)[edge_index[1]]
        adj = torch.sparse_coo_tensor(edge_index, weight, (n, n))
        return torch.relu(torch.sparse.mm(adj, self.lin(x)))


class SparseAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.relu(self.encode(x))
        code = torch.where(h > h.mean(), h, torch.zeros_like(h)).to_sparse()
        return torch.sparse.mm(code, self.decode.weight.t()) + self.decode.bias, code.to_dense().sum()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("form", ["coo", "csr", "uncoalesced"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_graph_network(form: str, grad: bool) -> None:
    torch.compiler.reset()
    models = [seeded(GCN).eval(), seeded(GCN).eval()]
    run = [models[0], torch.compile(models[1], backend="magpy")]
    with torch.set_grad_enabled(grad), Counted() as counted:
        for k in range(5):
            outs = [f(dense(k), FORMATS[form](k)) for f in run]
            assert_same(outs[1], outs[0])
            if grad:
                for out in outs:
                    nn.functional.nll_loss(out, torch.tensor([0, 1, 2, 3, 0])).backward()
                for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
                    assert_same(q.grad, p.grad)
    assert (counted.fallbacks, counted.hits) == ({}, 4)


def test_training_a_graph_network() -> None:
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        model = seeded(GCN)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        f = torch.compile(model, backend="magpy") if compiled else model
        torch.manual_seed(1)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = nn.functional.nll_loss(f(dense(), FORMATS["csr"](0)), torch.tensor([0, 1, 2, 3, 0]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_statistics_that_are_changed_beside_a_matrix(form: str) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = GraphConvolution(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x, adj)).relu()

    if not has(seeded(Normed), dense(), FORMATS[form](0)):
        pytest.skip("eager has none")
    torch.compiler.reset()
    models = [seeded(Normed), seeded(Normed)]
    run = [models[0], torch.compile(models[1], backend="magpy")]
    with Counted() as counted:
        for k in range(5):
            outs = [f(dense(k), FORMATS[form](k)) for f in run]
            assert_same(outs[1], outs[0])
            for out in outs:
                out.square().sum().backward()
            for (_, p), (_, q) in zip(*[m.state_dict().items() for m in models], strict=True):
                assert_same(q, p)
    assert (counted.fallbacks, counted.hits) == ({}, 4)


def test_changed_inputs_that_come_to_share_memory_with_a_matrix() -> None:
    def program(w: torch.Tensor, a: torch.Tensor, x: torch.Tensor) -> Any:
        w.mul_(2)
        return a @ x

    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for k, shared in enumerate([False, False, True, False, True, True, False]):
            found = []
            for f in (program, fast):
                i, w = edges(k)
                a = torch.sparse_coo_tensor(i, w if shared else w.clone(), (N, N))
                found.append([f(w, a, dense(k)), w, a.to_dense()])
            assert_same(found[1], found[0])
    assert counted.hits >= 3


def test_a_network_that_makes_its_matrix_of_edges() -> None:
    torch.compiler.reset()
    model = seeded(FromEdges)
    fast = torch.compile(model, backend="magpy")
    with Counted() as counted:
        for k in range(5):
            assert_same(fast(dense(k), edges(k)[0]), model(dense(k), edges(k)[0]))
    assert (counted.fallbacks, counted.hits) == ({}, 4)


@pytest.mark.parametrize("form", ["coo", "csr", "uncoalesced"])
def test_whole_steps_of_training(form: str) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, adj: torch.Tensor) -> Any:
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(model(x, adj), torch.tensor([0, 1, 2, 3, 0]))
        loss.backward()
        optimizer.step()
        return loss.detach()

    torch.compiler.reset()
    models = [seeded(GCN).eval(), seeded(GCN).eval()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    run = [step, torch.compile(step, backend="magpy")]
    with Counted() as counted:
        for k in range(6):
            rows = zip(run, models, optimizers, strict=True)
            outs = [f(m, o, dense(k), FORMATS[form](k)) for f, m, o in rows]
            assert_same(outs[1], outs[0])
            for (_, p), (_, q) in zip(*[m.state_dict().items() for m in models], strict=True):
                assert_same(q, p)
    assert counted.fallbacks == {} and counted.hits >= 3


class FromBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", edges(0)[0])
        self.register_buffer("weights", edges(0)[1])
        self.register_buffer("adj", uncoalesced(0))
        self.lin = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.adj @ self.lin(x)
        return torch.sparse_coo_tensor(self.places, self.weights, (N, N)) @ x


def test_frozen_weights_beside_matrices_that_are_not_frozen() -> None:
    torch.compiler.reset()
    model = seeded(FromBuffers)
    fast = torch.compile(model, backend="magpy", options={"freezing": True})
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: model.weights.mul_(2),
        lambda: model.adj._values().mul_(2),
        lambda: setattr(model, "adj", uncoalesced(3)),
        lambda: model.places.copy_(edges(5)[0]),
        lambda: model.lin.weight.mul_(2),
    ]
    with torch.no_grad():
        for change in changes:
            change()
            for k in range(2):
                assert_same(fast(dense(k)), model(dense(k)))


PARTS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "detached": lambda a, x: (a @ x).detach() * x,
    "without grad": lambda a, x: _without_grad(a, x) + a @ x,
    "gradient inside": lambda a, x: torch.autograd.grad((a @ x).square().sum(), x)[0] + x,
    "checkpoint": lambda a, x: torch.utils.checkpoint.checkpoint(lambda y: (a @ y).exp(), x, use_reentrant=False),
    "several results": lambda a, x: (y := a @ x, y[1:], y.detach()),
}


def _without_grad(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return a @ x


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_differentiated(name: str) -> None:
    program = PARTS[name]
    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for k in range(4):
            found = []
            for f in (program, fast):
                x = dense(k).requires_grad_()
                out = f(FORMATS["coo"](k), x)
                first = out[0] if isinstance(out, tuple) else out
                first.square().sum().backward()
                found.append([out, x.grad])
            assert_same(found[1], found[0])
    assert (counted.fallbacks, counted.hits) == ({}, 3)


def test_an_autoencoder_with_a_sparse_code() -> None:
    torch.compiler.reset()
    model = seeded(SparseAutoencoder)
    fast = torch.compile(model, backend="magpy")
    with torch.no_grad(), Counted() as counted:
        for k in range(5):
            assert_same(fast(dense(k)), model(dense(k)))
    assert (counted.fallbacks, counted.hits) == ({}, 4)
