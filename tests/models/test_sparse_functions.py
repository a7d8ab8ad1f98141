"""Every function that may meet a sparse or quantised tensor in a graph gives there what it gives in eager, whatever the
tensors hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from magpy.opaque_tensors import FUNCTIONS
from tests.compare import assert_same
from tests.counting import Counted
from tests.models.matrices import FORMATS, N, dense, matrix, plain


class World(NamedTuple):
    """What functions are given."""

    a: torch.Tensor  # sparse
    b: torch.Tensor  # sparse, of the same form
    x: torch.Tensor  # dense, as many rows
    s: torch.Tensor  # dense and square
    i: torch.Tensor  # places
    q: torch.Tensor  # quantised


def world(form: str, k: int) -> World:
    places = torch.randint(N, (N,), generator=torch.Generator().manual_seed(k))
    quantised = torch.quantize_per_tensor(dense(k), 0.05 * (k + 1), 0, torch.qint8)
    return World(FORMATS[form](k), FORMATS[form](k + 20), dense(k), dense(k, N, N), places, quantised)


Given = Callable[[World], tuple]
OPERANDS: list[Given] = [
    lambda w: (w.a, w.b),
    lambda w: (w.a, 2.5),
    lambda w: (w.a, w.s),
    lambda w: (w.s, w.a),
    lambda w: (w.a, w.s[0]),
]
PRODUCTS: list[Given] = [
    lambda w: (w.a, w.x),
    lambda w: (w.a, w.b),
    lambda w: (w.x.t(), w.a),
    lambda w: (w.a, w.x[:, 0]),
    lambda w: (w.a, w.x[:, :0]),
    lambda w: (w.a, w.s.t()),
]
UNARY: list[Given] = [lambda w: (w.a,), lambda w: (w.q,)]
SUMS: list[Given] = [lambda w: (w.x, w.a, w.x), lambda w: (w.s[0, :3], w.a, w.x)]

SOFTMAXES: list[Given] = [lambda w: (w.a, 1), lambda w: (w.a, 0), lambda w: (w.a, 1, torch.float64)]
ROWS: Given = lambda w: (torch.arange(N + 1), w.i, w.x[:, 1] * 2, (N, N))  # noqa: E731
# What follows from more than sizes and dtypes.
DATA = {"values", "indices", "_values", "_indices", "crow_indices", "col_indices", "ccol_indices", "row_indices",
        "_nnz", "is_coalesced", "q_scale", "q_zero_point"}  # fmt: skip

ARGUMENTS: dict[str, list[Given]] = {
    **dict.fromkeys("mm matmul __matmul__ mv spmm smm hspmm".split(), PRODUCTS),
    **dict.fromkeys("add sub mul div __add__ __radd__ __sub__ __mul__ __rmul__ __truediv__".split(), OPERANDS),
    **dict.fromkeys("abs sqrt square sign sin tanh expm1 log1p relu neg __neg__ t T clone detach".split(), UNARY),
    **dict.fromkeys("coalesce to_dense to_sparse to_sparse_coo to_sparse_csr to_sparse_csc".split(), UNARY),
    **dict.fromkeys("float double half bfloat16 cpu dequantize int_repr".split(), UNARY),
    **dict.fromkeys(DATA, UNARY),
    **dict.fromkeys(["sparse_dim", "dense_dim"], UNARY),
    **dict.fromkeys(["softmax", "log_softmax"], SOFTMAXES),
    "addmm": SUMS,
    "pow": [lambda w: (w.a, 2), lambda w: (w.a, 3.0)],
    "sum": [lambda w: (w.a,), lambda w: (w.a, 0), lambda w: (w.a, (0, 1))],
    "_sparse_sum": [lambda w: (w.a,), lambda w: (w.a, [0]), lambda w: (w.a, [1])],
    "transpose": [lambda w: (w.a, 0, 1), lambda w: (w.q, 0, 1)],
    "to": [lambda w: (w.a, torch.float64), lambda w: (w.a, torch.float32), lambda w: (w.a, torch.device("cpu"))],
    "reshape": [lambda w: (w.q, (-1,)), lambda w: (w.q, (3, N))],
    "view": [lambda w: (w.q, (-1,)), lambda w: (w.q, (3, N))],
    "flatten": [lambda w: (w.q,)],
    "index_select": [lambda w: (w.a, 0, w.i), lambda w: (w.a, 1, w.i[:2])],
    "bmm": [lambda w: (torch.stack([w.a, w.b]), torch.stack([w.x, w.x]))],
    "cat": [lambda w: ([w.a, w.b],), lambda w: ([w.a, w.b], 1)],
    "stack": [lambda w: ([w.a, w.b],)],
    "sspaddmm": [lambda w: (w.a, w.b, w.s)],
    "sparse_mask": [lambda w: (w.s, w.a)],
    "to_mkldnn": [lambda w: (w.x,)],
    "spdiags": [lambda w: (w.s[:2], torch.tensor([0, 1]), (N, N))],
    "sampled_addmm": [lambda w: (w.a, w.x, w.x.t())],
    "linear": [lambda w: (w.x.t(), w.a), lambda w: (w.x.t(), w.a, w.x[:, 0])],
    "sparse_coo_tensor": [
        lambda w: (torch.stack([w.i, w.i.flip(0)]), w.x[:, 0], (N, N)),
        lambda w: (torch.stack([w.i, w.i.flip(0)]), w.x * 2, (N, N, 3)),
        lambda w: ([[0, 1], [1, 0]], [1.0, float("inf")], (N, N)),
    ],
    **dict.fromkeys(["sparse_csr_tensor", "sparse_csc_tensor", "sparse_compressed_tensor"], [ROWS]),
    "quantize_per_tensor": [lambda w: (w.x, 0.1, 3, torch.quint8), lambda w: (w.x, w.x.amax(), w.i[0], torch.qint8)],
    "quantize_per_channel": [lambda w: (w.x, w.x[0].abs(), torch.zeros(3, dtype=torch.int64), 1, torch.qint8)],
    "quantize_per_tensor_dynamic": [lambda w: (w.x, torch.qint8, False)],
}  # fmt: skip

NAMED: dict[str, dict[str, Any]] = {"sparse_compressed_tensor": {"layout": torch.sparse_csr}}


def as_dense(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return torch.tensor(float(value))
    if value.is_quantized:
        return value.dequantize() + 1
    if value.layout is not torch.strided:
        return value.to_dense() * 2
    return value.to(torch.float64) * 2


def works(program: Callable, given: World) -> bool:
    try:
        program(given)
    except (RuntimeError, NotImplementedError, TypeError, IndexError, AttributeError):
        return False
    return True


def short(name: str) -> str:
    return name.rpartition(".")[2]


def test_there_are_arguments_for_the_functions_and_for_no_others() -> None:
    known = {short(name) for name, _ in FUNCTIONS.values()}
    assert known == ARGUMENTS.keys() - {"__neg__", "spmm"}  # other names of neg and mm


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("func", FUNCTIONS, ids=[name for name, _ in FUNCTIONS.values()])
def test_a_function_gives_what_it_gives_in_eager(func: Any) -> None:
    name = short(FUNCTIONS[func][0])
    cases, named, found = ARGUMENTS[name], NAMED.get(name, {}), 0
    called = (lambda a: a.T) if name == "T" else func
    for form in FORMATS:
        for case in cases:

            def program(w: World, case: Given = case) -> Any:
                return as_dense(called(*case(w), **named))

            if not works(program, world(form, 0)):
                continue
            found += 1
            torch.compiler.reset()
            fast = torch.compile(program, backend="magpy")
            same(fast, program, world(form, 0))
            with Counted() as counted:
                for k in range(1, 4):
                    same(fast, program, world(form, k))
            if name not in DATA:
                counted.assert_hit(3)
            assert counted.fallbacks == {} or name in DATA
            kept = world(form, 4)
            same(fast, program, kept)
            (kept.a._values() if kept.a.is_sparse else kept.a.values()).mul_(2)
            kept.q.copy_(kept.x * 3)
            same(fast, program, kept)
    assert found, "no case for it"


def same(fast: Callable, program: Callable, given: World) -> None:
    expected = program(given)
    assert_same(plain(fast(given)), plain(expected))


@pytest.mark.parametrize("blocks", ["bsr", "bsc", "hybrid"])
def test_other_forms(blocks: str) -> None:
    def form(k: int) -> torch.Tensor:
        full = matrix(k, 6, 4)
        if blocks == "hybrid":
            return full.to_sparse(1)
        return full.to_sparse_bsr((2, 2)) if blocks == "bsr" else full.to_sparse_bsc((2, 2))

    def program(a: torch.Tensor, x: torch.Tensor) -> Any:
        return a.to_dense() @ x, a.dim() + x

    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    assert_same(fast(form(0), dense(0, 4, 3)), program(form(0), dense(0, 4, 3)))
    with Counted() as counted:
        for k in range(1, 4):
            assert_same(fast(form(k), dense(k, 4, 3)), program(form(k), dense(k, 4, 3)))
    counted.assert_hit(3)


def test_sizes_that_follow_from_data() -> None:
    def program(i: torch.Tensor, w: torch.Tensor) -> Any:
        a = torch.sparse_coo_tensor(i, w)
        return a.to_dense() + 1, a.shape

    torch.compiler.reset()
    fast = torch.compile(program, backend="magpy")
    for k in (0, 1, 2, 0, 3, 4, 5, 0):
        i, w = torch.tensor([[0, 0, k % 3, 3], [0, k % 2, 1, k % 4]]), dense(k, 4)
        assert_same(fast(i, w), program(i, w))
    with Counted() as counted:
        assert_same(fast(i, w * 2), program(i, w * 2))
    counted.assert_hit()
