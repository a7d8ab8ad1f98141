"""Attention written in every way against eager and against double precision: masks, rows without any key, strides of
heads, grouped heads, blocks of rows; and that its scores never exist as a whole."""

import math

import pytest
import torch
import torch.nn.functional as F

import magpy
from magpy import _C, choices

INF = float("inf")


@pytest.fixture(autouse=True)
def always_own(monkeypatch):
    def take(what, make):
        return "own" if "own" in make() else next(iter(make()))

    monkeypatch.setattr(choices, "choose", take)


def heads(batch, n, length, width):
    """As projections give them: transposed, nothing copied."""
    return torch.randn(batch, length, n, width).transpose(1, 2)


def operands(batch=2, n=3, rows=40, columns=50, width=16, values=None):
    torch.manual_seed(rows)
    return heads(batch, n, rows, width), heads(batch, n, columns, width), heads(batch, n, columns, values or width)


def merged(x):
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def by_hand(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -INF)
    elif mask is not None:
        scores = scores + mask
    return merged(F.dropout(F.softmax(scores, dim=-1), 0.1, training=False) @ v)


def by_where(q, k, v, mask=None):
    scores = torch.matmul(q * 0.3, k.mT)
    if mask is not None:
        scores = torch.where(mask if mask.dtype is torch.bool else mask == 0, scores, torch.finfo(q.dtype).min)
    return torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()


def by_einsum(q, k, v, mask=None):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    if mask is not None:
        scores = scores + (mask if mask.dtype is not torch.bool else mask.logical_not() * -1e4)
    scores = scores - scores.amax(-1, keepdim=True)
    weights = scores.exp()
    return torch.einsum("bhqk,bhkd->bqhd", weights / weights.sum(-1, keepdim=True), v)


def by_operator(q, k, v, mask=None):
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def causal(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.2)


WRITTEN = [by_hand, by_where, by_einsum, by_operator]


def compiled_and_compared(program, *given, chained=True):
    """Run compiled, compare with eager and with double precision. Returns the report of the only trace."""
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        expected = program(*given)
        exact = program(*[t.double() if t is not None and t.is_floating_point() else t for t in given])
        got = [compiled(*given) for _ in range(3)][-1]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5, equal_nan=True)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=2e-5, equal_nan=True)
    assert got.stride() == expected.stride()
    (trace,) = magpy.explain(compiled).traces
    assert ("magpy.chain" in [step[1] for step in trace.steps]) is chained
    return trace


def masks(rows, columns):
    torch.manual_seed(1)
    bool_mask = torch.rand(2, 1, rows, columns) < 0.7
    bool_mask[..., 0] = True
    return {
        "none": None,
        "bool": bool_mask,
        "keys": bool_mask[:, :, :1],
        "plane": bool_mask[0, 0],
        "bias": torch.randn(2, 3, rows, columns),
        "one bias": torch.randn(rows, columns),
        "infinite": torch.zeros(2, 1, rows, columns).masked_fill(~bool_mask, -INF),
    }


@pytest.mark.parametrize("kind", masks(1, 1))
@pytest.mark.parametrize("program", WRITTEN)
def test_masks_of_every_kind(program, kind):
    q, k, v = operands()
    compiled_and_compared(program, q, k, v, masks(40, 50)[kind])


@pytest.mark.parametrize("program", [by_hand, by_operator])
@pytest.mark.parametrize("kind", ["bool", "infinite"])
def test_rows_without_any_key_are_as_in_eager(program, kind):
    q, k, v = operands()
    mask = masks(40, 50)[kind].clone()
    mask[0, 0, 3] = False if kind == "bool" else -INF
    mask[1] = mask[0, 0, 3]
    trace_result = by_hand(q, k, v, mask)
    assert trace_result[0, 3].isnan().all() and trace_result[1].isnan().all()
    compiled_and_compared(program, q, k, v, mask)


@pytest.mark.parametrize("bits", [512, 256, 128])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 24, 8, 4),
        (2, 2, 33, 17, 5),
        (1, 2, 300, 70, 32),
        (1, 1, 70, 1100, 24),
        (1, 1, 30, 2100, 8),
        (3, 1, 64, 64, 64),
    ],
)
def test_sizes_and_vector_widths(bits, shape):
    _C._product_bits(bits)
    try:
        for program in (by_hand, by_operator, causal):
            compiled_and_compared(program, *operands(*shape))
    finally:
        _C._product_bits(0)


def test_values_of_another_width():
    compiled_and_compared(by_hand, *operands(values=24))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_are_done_step_by_step(rows):
    for program in (by_hand, by_operator):
        compiled_and_compared(program, *operands(rows=rows), chained=False)


def grouped(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    k, v = (t[:, :, None].expand(-1, -1, n, -1, -1).reshape(q.shape[0], q.shape[1], -1, q.shape[-1]) for t in (k, v))
    return by_hand(q, k, v, mask)


def interleaved(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    return by_operator(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), mask)


@pytest.mark.parametrize("program", [grouped, interleaved])
def test_grouped_heads(program):
    q, k, v = operands(n=6)
    trace = compiled_and_compared(program, q, k[:, :2], v[:, :2])
    if program is grouped:
        assert not [op for kernel in trace.kernels for op in kernel["ops"] if "clone" in op]


def test_the_scores_are_never_in_memory_as_a_whole():
    q, k, v = operands(1, 2, 700, 600, 16)
    compiled = torch.compile(by_hand, backend="magpy", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            compiled(q, k, v)
    (trace,) = magpy.explain(compiled).traces
    assert all(plan.arena_bytes < 700 * 600 * 4 for plan in trace.info["plans"])


def test_weights_that_are_wanted_too():
    def program(q, k, v):
        weights = torch.softmax(q @ k.mT, -1)
        return weights @ v, weights

    q, k, v = operands()
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            results = compiled(q, k, v)
    for got, want in zip(results, program(q, k, v), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_scores_that_are_used_twice():
    def program(q, k, v):
        scores = q @ k.mT
        return torch.softmax(scores, -1) @ v + scores.mean(-1, keepdim=True)

    compiled_and_compared(program, *operands(), chained=False)


def test_an_attention_whose_values_are_its_scores():
    def program(q, k, v):
        weights = torch.softmax(q @ k.mT, -1)
        return weights @ weights

    compiled_and_compared(program, *operands(columns=40), chained=False)


def test_two_attentions_one_behind_the_other():
    def program(q, k, v):
        first = torch.softmax(q @ k.mT, -1) @ v
        return torch.softmax(first @ k.mT, -1) @ v

    trace = compiled_and_compared(program, *operands())
    assert [step[1] for step in trace.steps].count("magpy.chain") == 2


def test_rows_normalised_otherwise_are_chained_too():
    def program(q, k, v):
        scores = (q @ k.mT).relu()
        return (scores / (scores.sum(-1, keepdim=True) + 1)) @ v

    compiled_and_compared(program, *operands())


def test_nan_and_infinities():
    q, k, v = operands(rows=30)
    k[0, 0, 3, 2], v[1, 1, 4, 5] = float("nan"), INF
    compiled = torch.compile(by_hand, backend="magpy", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            got = compiled(q, k, v)
    torch.testing.assert_close(got, by_hand(q, k, v), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_threads_do_not_change_a_bit():
    q, k, v = operands(2, 3, 200, 150, 32)
    before, results = torch.get_num_threads(), []
    compiled = torch.compile(by_hand, backend="magpy", fullgraph=True)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append([compiled(q, k, v) for _ in range(2)][-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("program", [by_hand, by_operator])
def test_gradients(program):
    given = [t.detach().requires_grad_() for t in operands()]
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    expected = torch.autograd.grad(program(*given).square().sum(), given)
    for _ in range(2):
        got = torch.autograd.grad(compiled(*given).square().sum(), given)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_dropout_that_is_on_stays_eagers():
    def program(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    q, k, v = operands()
    compiled = torch.compile(program, backend="magpy")
    for _ in range(2):
        torch.manual_seed(3)
        expected = program(q, k, v)
        torch.manual_seed(3)
        torch.testing.assert_close(compiled(q, k, v), expected, rtol=1e-4, atol=1e-5)
