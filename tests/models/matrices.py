"""Sparse matrices, and programs of them, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.compare import assert_same

N = 5


def generator(k: int) -> torch.Generator:
    return torch.Generator().manual_seed(k)


def dense(k: int = 0, *size: int) -> torch.Tensor:
    return torch.randn(*(size or (N, 3)), generator=generator(100 + k))


def matrix(k: int = 0, rows: int = N, columns: int = N, kept: float = 0.4) -> torch.Tensor:
    """A dense matrix of which about so many elements are not zero."""
    full = torch.randn(rows, columns, generator=generator(k))
    return full * (torch.rand(rows, columns, generator=generator(k + 50)) < kept)


def uncoalesced(k: int = 0, nnz: int = 9) -> torch.Tensor:
    indices = torch.randint(N, (2, nnz), generator=generator(k))
    return torch.sparse_coo_tensor(indices, torch.randn(nnz, generator=generator(k + 7)), (N, N))


FORMATS: dict[str, Callable[[int], torch.Tensor]] = {
    "coo": lambda k: matrix(k).to_sparse(),
    "csr": lambda k: matrix(k).to_sparse_csr(),
    "csc": lambda k: matrix(k).to_sparse_csc(),
    "uncoalesced": uncoalesced,
}

PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "sparse.mm": lambda a, x: torch.sparse.mm(a, x) + 1,
    "@": lambda a, x: (a @ x) * 2,
    "matmul": lambda a, x: torch.matmul(a, x.relu()),
    "mm": lambda a, x: torch.mm(a, x * 2).relu(),
    "method mm": lambda a, x: a.mm(x) - x,
    "method matmul": lambda a, x: a.matmul(x).sum(0),
    "vector": lambda a, x: a @ x[:, 0] + 1,
    "twice": lambda a, x: a @ (a @ x).tanh(),
    "dense first": lambda a, x: (x.t() @ a).exp(),
    "to dense": lambda a, x: a.to_dense() @ x,
    "transposed": lambda a, x: a.t() @ x,
    "scaled": lambda a, x: (a * 0.5) @ x,
    "addmm": lambda a, x: torch.addmm(x, a, x, beta=0.5, alpha=2.0),
}


def run_both(program: Callable, fast: Callable, *args: Any) -> None:
    try:
        expected = program(*args)
    except (RuntimeError, IndexError, NotImplementedError) as error:
        with pytest.raises(type(error)):
            fast(*args)
        return
    assert_same(fast(*args), expected)


def has(program: Callable, *args: Any) -> bool:
    try:
        program(*args)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def edges(k: int, nnz: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(N, (2, nnz), generator=generator(k)), torch.randn(nnz, generator=generator(k + 1))


def compressed(i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    rows = torch.tensor([0, 2, 4, 5, 6, 7])
    return torch.sparse_csr_tensor(rows, torch.tensor([0, 1, 1, 2, 3, 4, 0]), w, (N, N))


MADE: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]] = {
    "to dense": lambda i, w, x: torch.sparse_coo_tensor(i, w, (N, N)).to_dense() * 2,
    "product": lambda i, w, x: torch.sparse_coo_tensor(i, w, (N, N)) @ x,
    "computed values": lambda i, w, x: torch.sparse_coo_tensor(i, w.exp() * 2, (N, N)) @ (x + 1),
    "several uses": lambda i, w, x: [torch.sparse_coo_tensor(i, w * 2, (N, N)) @ x, w * 2],
    "coalesced": lambda i, w, x: torch.sparse_coo_tensor(i, w + 1, (N, N)).coalesce() @ x,
    "kept": lambda i, w, x: [(a := torch.sparse_coo_tensor(i, w, (N, N)).coalesce()) @ x.relu(), a.t() @ x],
    "csr": lambda i, w, x: compressed(i, w * 2) @ x,
    "added": lambda i, w, x: (torch.sparse_coo_tensor(i, w, (N, N)) + torch.eye(N).to_sparse()).to_dense() @ x,
    "product of sparse": lambda i, w, x: (a := torch.sparse_coo_tensor(i, w, (N, N))).mm(a.t()).to_dense() + x[0, 0],
    "sum": lambda i, w, x: torch.sparse.sum(torch.sparse_coo_tensor(i, w, (N, N)), 1).to_dense() + x[:, 0],
    "whole sum": lambda i, w, x: torch.sparse.sum(torch.sparse_coo_tensor(i, w, (N, N))) + x,
    "softmax": lambda i, w, x: torch.sparse.softmax(torch.sparse_coo_tensor(i, w, (N, N)), 1) @ x,
    "from dense": lambda i, w, x: x.to_sparse().to_dense() + 1,
    "csr from dense": lambda i, w, x: x.t().relu().to_sparse_csr() @ x,
    "selected": lambda i, w, x: torch.sparse_coo_tensor(i, w, (N, N)).index_select(0, i[0]).to_dense() + 1,
    "joined": lambda i, w, x: torch.cat([a := torch.sparse_coo_tensor(i, w, (N, N)), a]).to_dense() + 1,
    "stacked": lambda i, w, x: torch.bmm(torch.stack([torch.sparse_coo_tensor(i, w, (N, N))] * 2), torch.stack([x, x])),
    "turned": lambda i, w, x: torch.sparse_coo_tensor(i, w, (N, N)).T.cpu().float() @ x,
    "thresholded": lambda i, w, x: torch.where(x > 0.3, x, 0.0).to_sparse().to_dense() * x,
    "values": lambda i, w, x: torch.sparse_coo_tensor(i, w, (N, N))._values() * 2 + 1,
    "doubled": lambda i, w, x: torch.sparse_coo_tensor(i, w, (N, N)).double() @ x.double(),
    "lists": lambda i, w, x: torch.sparse_coo_tensor([[0, 1], [2, 3]], [1.5, -2.0], (N, N)) @ x,
    "hybrid": lambda i, w, x: torch.sparse_coo_tensor(i[:1], w[:, None] * 2, (N, 1)).to_dense() * x,
    "keywords": lambda i, w, x: torch.sparse_coo_tensor(i, w, size=(N, N), dtype=torch.float64).to_dense() + 1,
    "identity": lambda i, w, x: torch.sparse_coo_tensor(torch.arange(N).expand(2, N), x[:, 0] * 2) @ x,
}


def plain(value: Any) -> Any:
    """What is in the results, for assert_same."""
    if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
        parts = ["_indices", "_values"] if value.is_sparse else ["values", "to_dense"]
        state = (
            value.is_coalesced() if value.is_sparse else None,
            value.layout,
            value.is_inference(),
            version_of(value),
        )
        return [*[getattr(value, part)() for part in parts], value.requires_grad, value.is_leaf, state]
    if isinstance(value, torch.Tensor) and value.is_quantized:
        return [value.int_repr(), value.q_scale(), value.q_zero_point(), value.is_inference()]
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def version_of(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
