"""Own matrix products against sums in double precision: sizes, strides, batches, vector widths, threads; and which
copies a graph does without because of them."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

import magpy
from magpy import _C, choices, products
from tests.counting import Counted

WIDTHS = [512, 256, 128]


@pytest.fixture(params=WIDTHS)
def bits(request):
    """Products are made for vectors of this width (or of the CPU's, if that has less)."""
    _C._product_bits(request.param)
    yield request.param
    _C._product_bits(0)


def matrix(rng, batch, rows, columns):
    """A tensor of random strides: padded, turned, batch dims outside, inside or repeated."""
    pad = rng.choice([0, 0, 3])
    dims = [*batch, rows, columns]
    order = list(range(len(dims)))
    if rng.random() < 0.5:
        rng.shuffle(order)
    t = torch.randn([dims[d] + pad for d in order])
    t = t.permute([order.index(d) for d in range(len(dims))])
    for d, n in enumerate(dims):
        t = t.narrow(d, rng.randint(0, pad), n)
    if batch and rng.random() < 0.3:
        t = t.select(0, 0).unsqueeze(0).expand(dims)
    return t


def own(a, b, bias=None, strides=None):
    size = [*a.shape[:-1], b.shape[-1]]
    run = products._plan(a, b, bias, strides or products.contiguous(size))
    (out,) = run()
    return out


def check(out, a, b, bias):
    exact = a.double() @ b.double() + (0 if bias is None else bias.double())
    bound = (a.double().abs() @ b.double().abs()).add(1) * (2e-7 * math.sqrt(a.shape[-1]) + 1e-6)
    assert out.shape == exact.shape
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("seed", range(4))
def test_products_of_random_sizes_and_strides(bits, seed):
    rng = random.Random(seed)
    for _ in range(60):
        m, n, k = (rng.choice([rng.randint(1, 5), rng.randint(1, 20), rng.randint(1, 130)]) for _ in range(3))
        if rng.random() < 0.05:
            k = rng.randint(1000, 2100)
        batch = [rng.randint(1, 3) for _ in range(rng.choice([0, 0, 1, 2]))]
        a, b = matrix(rng, batch, m, k), matrix(rng, batch, k, n)
        bias = torch.randn(n) if rng.random() < 0.5 else None
        check(own(a, b, bias), a, b, bias)


@pytest.mark.parametrize("m", [*range(1, 34), 47, 96, 97])
def test_every_number_of_rows(bits, m):
    for n, k, turned in [(37, 40, True), (37, 33, False), (300, 21, False), (3, 64, True), (1, 17, False)]:
        a = torch.randn(m, k)
        b = torch.randn(n, k).t() if turned else torch.randn(k, n)
        check(own(a, b, torch.ones(n)), a, b, torch.ones(n))


@pytest.mark.parametrize("m, n, k", [(300, 500, 64), (64, 700, 1500), (1, 3000, 64), (400, 30, 2500)])
def test_products_that_are_cut_into_blocks(bits, m, n, k):
    a, b = torch.randn(m, k), torch.randn(n, k).t()
    check(own(a, b), a, b, None)
    b = torch.randn(k, n)
    check(own(a, b), a, b, None)


def test_elements_between_the_rows_of_the_result_stay(bits):
    a, b = torch.randn(2, 5, 7), torch.randn(2, 7, 6)
    strides = [6, 20, 1]  # rows of the two matrices in turn, with a gap behind each pair
    out = own(a, b, None, strides)
    assert out.stride() == tuple(strides)
    check(out, a, b, None)


def test_infinities_and_nan_stay_where_they_belong(bits):
    a, b = torch.randn(20, 35), torch.randn(30, 35).t()
    a[3, 4], b[7, 9], a[19, 34] = math.inf, math.nan, -math.inf
    torch.testing.assert_close(own(a, b), a @ b, equal_nan=True, rtol=1e-4, atol=1e-4)


def by_any_threads(run):
    """What run() gives, which must be the same to the last bit by one, two and three threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    return results[0]


def test_threads_do_not_change_a_bit():
    a, b = torch.randn(3, 200, 300), torch.randn(3, 500, 300).mT
    by_any_threads(lambda: own(a, b))


def test_the_operator_itself_computes_the_same():
    a, b, bias = torch.randn(2, 5, 7), torch.randn(2, 7, 6), torch.randn(6)
    out = products.MATMUL(a, b, bias, [6, 12, 1])
    assert out.stride() == (6, 12, 1)
    check(out, a, b, bias)


# -- In graphs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def always_own(monkeypatch):
    def take(what, make):
        return "own" if "own" in make() else next(iter(make()))

    monkeypatch.setattr(choices, "choose", take)


def heads(x, n, width):
    return x.view(x.shape[0], x.shape[1], n, width).transpose(1, 2)


def attention(x, w, o):
    q, k, v = (heads(t, 4, 8) for t in (x @ w).chunk(3, -1))
    scores = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
    return (scores @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 32) @ o


def grouped(x, w, o):
    q, k, v = (x @ w).split([64, 16, 16], -1)
    k, v = (t.view(2, 6, 2, 8).transpose(1, 2)[:, :, None].expand(2, 2, 2, 6, 8).reshape(2, 4, 6, 8) for t in (k, v))
    scores = torch.softmax(heads(q[..., :32], 4, 8) @ k.transpose(-2, -1), -1)
    return (scores @ v).transpose(1, 2).contiguous().view(2, 6, 32)


def einsum(x, w, o):
    q, k = (x @ w)[..., :32].view(2, 6, 4, 8), (x @ w)[..., 32:64].view(2, 6, 4, 8)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
    return torch.einsum("bhqk,bkhd->bqhd", scores, k).reshape(2, 6, 32)


def two_users(x, w, o):
    q = heads((x @ w)[..., :32], 4, 8)
    y = q @ q.mT @ q
    return y.transpose(1, 2).reshape(2, 6, 32), y.sum()


def broadcast(x, w, o):
    return x[:, None] @ torch.stack([o, o + 1, o + 2])


@pytest.mark.parametrize("program", [attention, grouped, einsum, two_users, broadcast])
def test_operands_and_results_are_not_copied(program, always_own):
    torch.manual_seed(0)
    given = torch.randn(2, 6, 32), torch.randn(32, 96), torch.randn(32, 32)
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        expected = program(*given)
        results = [compiled(*given) for _ in range(3)][-1]
    pairs = zip(expected, results, strict=True) if isinstance(expected, tuple) else [(expected, results)]
    for want, got in pairs:
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4)
        assert got.stride() == want.stride()
    (trace,) = magpy.explain(compiled).traces
    copies = [op for kernel in trace.kernels for op in kernel["ops"] if "clone" in op]
    assert len(copies) == (1 if program is two_users else 0)
    assert not [step for step in trace.steps if "mm" in step[1] and step[0] != "kernel"]


# -- Turned operands and results ---------------------------------------------------------------------------------------


def tokens_mixed(x, w, v, b, c):
    y = F.layer_norm(x, x.shape[-1:])
    return x + F.linear(F.gelu(F.linear(y.transpose(1, 2), w, b)), v, c).transpose(1, 2)


def tokens_mixed_twice(x, w, v, b, c):
    x = tokens_mixed(x, w, v, b, c)
    return F.layer_norm(tokens_mixed(x, w, v, None, None).transpose(1, 2), x.shape[1:2])


def channels_first(x, w, v, b, c):
    x = x.unflatten(2, (2, -1)).permute(0, 2, 3, 1)  # images [n, h, w, channels] from channels-first memory
    return F.linear(F.linear(x, w, b).relu(), v, c).permute(0, 3, 1, 2).sigmoid()


def channels_first_residual(x, w, v, b, c):
    return x.unflatten(2, (2, -1)) * 2 + channels_first(x, w, v, b, c)


def both_orders(x, w, v, b, c):
    y = F.linear(x.transpose(1, 2), w, b)
    return y.transpose(1, 2) + 1, y * 2


def turned_result_is_returned(x, w, v, b, c):
    y = F.linear(x.transpose(1, 2), w, b).transpose(1, 2)
    return y, y + 1


def batches_turned(x, w, v, b, c):
    return torch.einsum("bij,kj->kbi", x.transpose(1, 2), w).exp() + 1


def residual_stream_is_turned(x, w, v, b, c):
    stream = x.transpose(1, 2) + 1
    for _ in range(2):
        stream = stream + F.layer_norm(stream, stream.shape[-1:]).tanh()
    return stream, stream.transpose(1, 2) * 2


TURNED = [
    tokens_mixed, tokens_mixed_twice, channels_first, channels_first_residual, both_orders, turned_result_is_returned,
    batches_turned, residual_stream_is_turned,
]  # fmt: skip


@pytest.mark.parametrize("sizes", [(2, 6, 10, 5), (3, 40, 34, 33), (2, 1, 2, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("program", TURNED)
def test_turned_operands_and_results(program, sizes, bias, always_own):
    torch.manual_seed(0)
    batch, tokens, width, hidden = sizes
    x, w, v = torch.randn(batch, tokens, width), torch.randn(hidden, tokens), torch.randn(tokens, hidden)
    given = (x, w, v, torch.randn(hidden) if bias else None, torch.randn(tokens) if bias else None)
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        expected = program(*given)
        exact = program(*(None if t is None else t.double() for t in given))
        results = [compiled(*given) for _ in range(3)][-1]
    if not isinstance(expected, tuple):
        expected, exact, results = (expected,), (exact,), (results,)
    for want, right, got in zip(expected, exact, results, strict=True):
        error, eager = (got - right).abs().max(), (want - right).abs().max()
        assert error <= 4 * eager + 1e-5
        assert got.stride() == want.stride()


def test_a_turned_stream_is_not_copied(always_own):
    x, w, v = torch.randn(2, 16, 24), torch.randn(8, 16), torch.randn(16, 8)
    compiled = torch.compile(tokens_mixed_twice, backend="magpy", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            compiled(x, w, v, None, None)
    (trace,) = magpy.explain(compiled).traces
    copies = [op for kernel in trace.kernels for op in kernel["ops"] if "clone" in op]
    assert len(copies) <= 1  # the result's


@pytest.mark.parametrize("program", TURNED)
def test_gradients_through_turned_products(program, always_own):
    torch.manual_seed(0)
    x, w, v, b, c = (torch.randn(s).requires_grad_() for s in [(2, 6, 10), (5, 6), (6, 5), (5,), (6,)])
    compiled = torch.compile(program, backend="magpy", fullgraph=True)

    def gradients(f):
        out = f(x, w, v, b, c)
        total = sum(t.sin().sum() for t in (out if isinstance(out, tuple) else (out,)))
        return torch.autograd.grad(total, (x, w, v, b, c), allow_unused=True)

    expected = gradients(program)
    for _ in range(2):
        got = gradients(compiled)
    for a, want in zip(got, expected, strict=True):
        assert (a is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(a, want, rtol=1e-3, atol=1e-4)


def test_training_through_own_products(always_own):
    torch.manual_seed(0)
    x, w, o = (t.requires_grad_() for t in (torch.randn(2, 6, 32), torch.randn(32, 96) / 6, torch.randn(32, 32)))
    compiled = torch.compile(attention, backend="magpy", fullgraph=True)
    expected = torch.autograd.grad(attention(x, w, o).square().sum(), (x, w, o))
    for _ in range(2):
        got = torch.autograd.grad(compiled(x, w, o).square().sum(), (x, w, o))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_other_types_and_empty_products_stay_operators(always_own):
    def program(x):
        return x.double() @ x.double().t(), x[:0] @ x.t(), x.bfloat16() @ x.bfloat16().t(), F.linear(x[:, :0], x[:, :0])

    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    x = torch.randn(5, 5)
    for _ in range(2):
        for got, want in zip(compiled(x), program(x), strict=True):
            torch.testing.assert_close(got, want)


# -- Groups of rows ---------------------------------------------------------------------------------------------------


def groups(x, w, ends):
    return torch.nn.functional.grouped_mm(x * 2, w, offs=ends).relu() + 1


ENDS = [[10, 10, 25, 40], [0, 1, 2, 40], [40, 40, 40, 40], [0, 0, 0, 0]]
ENDS += [[5, 17, 30, 33], [5, 17, 30, 90], [9, 4, 20, 40]]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_groups_of_rows_are_products_of_their_own(bits, turned, threads, always_own, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = torch.compile(groups, backend="magpy")
        with torch.no_grad(), Counted() as counted:
            for ends in ENDS:
                x, w = torch.randn(40, 24), torch.randn(4, 24, 20)
                w = w.transpose(1, 2).contiguous().transpose(1, 2) if turned else w
                out = fast(x, w, torch.tensor(ends, dtype=torch.int32))
                expected, begin = out.clone(), 0  # rows of no group may be anything
                for g, end in enumerate(ends):
                    expected[begin:end] = (2 * x[begin:end] @ w[g]).relu() + 1
                    begin = end
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert (counted.fallbacks, counted.hits) == ({}, len(ENDS) - 1)
        assert "magpy.grouped" in str(magpy.explain(fast))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_groups_that_torch_keeps(dtype, always_own):
    def columns(x, w, ends):  # groups of columns, whose products are a batch
        return torch._grouped_mm(x, w, ends) * 2

    fast = torch.compile(columns, backend="magpy")
    given = torch.randn(8, 16, dtype=dtype), torch.randn(16, 8, dtype=dtype), torch.tensor([8, 16], dtype=torch.int32)
    for _ in range(2):
        try:
            expected = columns(*given)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=str(error)[:20]):
                fast(*given)
        else:
            torch.testing.assert_close(fast(*given), expected)
