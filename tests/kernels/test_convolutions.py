"""Convolutions by kernels of magpy's own: against double precision over many geometries, with what is fused behind
them, and where they must leave the work to the operator."""

import itertools
import math
import os
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import magpy
from magpy import _C, aten_rewrites, choices, own_kernels
from magpy.aten_graph import Graph, Node, Val, describe


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Nothing is measured: each convolution takes the first form that there is a kernel for."""
    monkeypatch.setattr(choices, "choose", lambda what, make: next(iter(make())))


@pytest.fixture(params=["direct", "winograd", "winograd2"])
def either(request, monkeypatch):
    """The same with each form that there is."""

    def choose(what, make):
        ways = make()
        return request.param if request.param in ways else next(iter(ways))

    monkeypatch.setattr(choices, "choose", choose)


def plan_of(form, x, w, bias, stride, padding, dilation):
    """A plan that is nothing but the convolution, and what eager gives."""
    groups = x.shape[1] // w.shape[1]
    dims = x.ndim - 2
    args = [[n] * dims if isinstance(n, int) else list(n) for n in (stride, padding, dilation)]
    wanted = torch.ops.aten.convolution.default(x, w, bias, *args, False, [0] * dims, groups)
    graph = Graph()
    operands = [
        t if t is None else graph.add_placeholder((t.dtype, t.device, tuple(t.shape), t.stride(), 0))
        for t in (x, w, bias)
    ]
    node = Node(torch.ops.aten.convolution.default, (*operands, *args, False, [0] * dims, groups))
    node.form = form
    node.vals = [Val(node, 0, (wanted.dtype, wanted.device, tuple(wanted.shape), wanted.stride(), 0))]
    graph.nodes, graph.outputs = [node], [node.val]
    return _C.compile_graph(*describe(graph)), wanted


def check(form, x, w, bias, stride=1, padding=0, dilation=1):
    plan, eager = plan_of(form, x, w, bias, stride, padding, dilation)
    assert [s[0] for s in plan.steps if s[0] != "alloc"] == ["kernel"]
    (got,) = plan([t for t in (x, w, bias) if t is not None])
    conv = F.conv2d if x.ndim == 4 else F.conv1d
    groups = x.shape[1] // w.shape[1]
    exact = conv(x.double(), w.double(), None if bias is None else bias.double(), stride, padding, dilation, groups)
    assert got.shape == exact.shape and got.stride() == eager.stride()
    scale = conv(x.double().abs(), w.double().abs(), None, stride, padding, dilation, groups).max().item() + 1
    limit = 6e-8 * scale * (2 + math.sqrt(w[0].numel()) / 2)
    if form.startswith("winograd"):
        spread = exact.square().mean().sqrt().item()
        assert (got.double() - exact).square().mean().sqrt().item() <= 3e-6 * spread
        limit = 2e-5 * spread
    assert (got.double() - exact).abs().max().item() <= limit


GEOMETRIES = [
    # n, ci, h, w, co, kh, kw, stride, padding, dilation
    (1, 1, 1, 1, 1, 1, 1, 1, 0, 1),
    (3, 1, 5, 7, 1, 3, 3, 1, 1, 1),
    (1, 3, 31, 33, 13, 7, 7, 2, 3, 1),
    (2, 5, 8, 4, 12, 1, 1, 1, 0, 1),
    (3, 17, 4, 4, 16, 3, 3, 1, 1, 1),
    (1, 64, 12, 13, 24, 3, 3, 1, 1, 1),
    (1, 8, 40, 41, 20, 5, 5, 1, 2, 1),
    (2, 7, 23, 19, 9, 3, 5, (2, 1), (1, 2), 1),
    (1, 6, 30, 30, 10, 3, 3, 1, 2, 2),
    (1, 6, 30, 30, 10, 3, 3, 1, 0, 1),
    (1, 6, 30, 30, 10, 3, 3, 1, 2, 1),
    (2, 4, 17, 18, 36, 1, 1, 2, 0, 1),
    (1, 2, 9, 200, 25, 3, 3, 3, 4, 2),
    (1, 4, 16, 25, 8, 1, 1, 1, 1, 1),
    (1, 2, 70, 3, 5, 3, 3, 1, 1, 1),
    (1, 2, 3, 130, 5, 3, 3, 1, 5, 1),
    (1, 3, 20, 20, 70, 20, 20, 1, 0, 1),
    (1, 2, 40, 40, 3, 9, 9, 1, 4, 1),
    (2, 30, 20, 21, 50, 1, 1, 1, 0, 1),
    (1, 600, 14, 14, 12, 3, 3, 1, 1, 1),
    (1, 12, 1, 50, 30, 1, 3, 1, (0, 1), 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_sums_are_as_exact_as_floats_are(geometry, with_bias):
    n, ci, h, w, co, kh, kw, *rest = geometry
    torch.manual_seed(0)
    check(
        "direct", torch.randn(n, ci, h, w), torch.randn(co, ci, kh, kw), torch.randn(co) if with_bias else None, *rest
    )


@pytest.mark.parametrize(
    "n, ci, h, w, co, padding",
    [
        (1, 1, 4, 4, 1, 1),
        (1, 16, 12, 12, 16, 1),
        (2, 5, 13, 17, 7, 2),
        (3, 20, 7, 9, 30, 0),
        (1, 8, 3, 3, 8, (2, 0)),
        (1, 40, 30, 31, 26, 1),
        (2, 3, 70, 10, 13, 1),
        (1, 2, 9, 150, 5, 1),
        (1, 300, 8, 8, 30, 1),
        (1, 7, 500, 300, 5, 1),  # more transformed input than is made before the rest
        (3, 10, 300, 200, 5, 1),  # the same with several images
        (2, 130, 8, 8, 70, 1),  # weights transformed in pieces, blocks of several sizes
        (5, 33, 20, 20, 34, 1),  # several panels of each block
        (2, 20, 14, 80, 33, 1),  # rows that are longer than a panel
    ],
)
@pytest.mark.parametrize("form", ["winograd", "winograd2"])
def test_transformed_tiles_are_nearly_as_exact(form, n, ci, h, w, co, padding):
    torch.manual_seed(0)
    check(form, torch.randn(n, ci, h, w), torch.randn(co, ci, 3, 3), torch.randn(co), 1, padding)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_one_channel_by_one(geometry):
    n, ci, h, w, _, kh, kw, *rest = geometry
    if kh * kw > 64:
        pytest.skip("more taps than the form has")
    torch.manual_seed(0)
    check("depthwise", torch.randn(n, ci, h, w), torch.randn(ci, 1, kh, kw), torch.randn(ci), *rest)


@pytest.mark.parametrize(
    "n, ci, h, w, co", [(1, 1, 4, 8, 1), (2, 20, 7, 9, 13), (1, 33, 40, 31, 26), (3, 8, 100, 5, 4), (1, 5, 3, 500, 3)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_transposed_in_steps_of_its_size(n, ci, h, w, co, with_bias):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, ci, h, w), torch.randn(ci, co, 2, 2), torch.randn(co) if with_bias else None
    steps = same(lambda x: F.conv_transpose2d(x, weight, bias, stride=2).relu(), x, kernels=1)
    assert "convolution" in steps[0][2]


@pytest.mark.parametrize(
    "form, n, ci, h, w, co, k, padding",
    [
        ("direct", 1, 3, 4, 5, 2, 1, 0),
        ("direct", 2, 20, 9, 31, 13, 1, 0),
        *itertools.product(["winograd", "winograd2"], [1], [5], [6], [6], [7], [3], [1]),
        *itertools.product(["winograd", "winograd2"], [2], [70], [8], [8], [50], [3], [1]),
        *itertools.product(["winograd", "winograd2"], [3], [33], [20], [21], [17], [3], [0]),
        *itertools.product(["winograd", "winograd2"], [1], [6], [5], [40], [5], [3], [2]),
    ],
)
def test_transposed_in_steps_of_one(form, n, ci, h, w, co, k, padding):
    torch.manual_seed(0)
    x, weight = torch.randn(n, ci, h, w), torch.randn(ci, co, k, k)
    for value in (None, math.inf, math.nan):
        if value is not None:
            x[-1, 1, 2, 3] = value
        args = (x, weight, None, [1, 1], [padding] * 2, [1, 1], True, [0, 0], 1)
        graph = Graph()
        operands = [graph.add_placeholder((t.dtype, t.device, tuple(t.shape), t.stride(), 0)) for t in (x, weight)]
        node = Node(torch.ops.aten.convolution.default, (*operands, *args[2:]))
        eager = torch.ops.aten.convolution.default(*args)
        exact = torch.ops.aten.convolution.default(x.double(), weight.double(), *args[2:]).float()
        node.form = form
        node.vals = [Val(node, 0, (eager.dtype, eager.device, tuple(eager.shape), eager.stride(), 0))]
        graph.nodes, graph.outputs = [node], [node.val]
        plan = _C.compile_graph(*describe(graph))
        assert [s[0] for s in plan.steps if s[0] != "alloc"] == ["kernel"]
        torch.testing.assert_close(plan([x, weight])[0], exact, rtol=2e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    "k, padding, stride, groups", [(3, 1, 1, 1), (3, 0, 1, 1), (1, 0, 1, 1), (3, 1, 2, 1), (3, 1, 1, 2)]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (1, 2)], ids=str)
def test_gradients_are_those_of_eager(monkeypatch, k, padding, stride, groups, bias, frozen):
    """With a kernel of our own for the input's gradient wherever there is one, and each gradient wanted or not."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, 6, 12, 13), torch.randn(8, 6 // groups, k, k)] + ([torch.randn(8)] if bias else [])
    results = []
    for compiled in (False, True):
        leaves = [t.clone().requires_grad_(i not in frozen) for i, t in enumerate(tensors)]
        wanted = [t for t in leaves if t.requires_grad]
        if not wanted:
            pytest.skip("nothing to differentiate")

        def program(*leaves):
            return F.conv2d(*leaves, *(() if bias else (None,)), stride, padding, 1, groups).tanh()

        if compiled:
            program = torch.compile(program, backend="magpy", fullgraph=True)
        for _ in range(2):
            results.append(torch.autograd.grad(program(*leaves).square().sum(), wanted))
    for got in results[2:]:
        for a, b in zip(got, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
            assert a.stride() == b.stride()


@pytest.mark.parametrize("seed", range(12))
def test_random_geometries(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(6):
        kh, kw, stride, dilation = (rng.choice(c) for c in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 1, 1, 2, 3], [1, 1, 2]))
        padding = (rng.randint(0, kh), rng.randint(0, kw))
        h, w = (rng.randint(max(1, (k - 1) * dilation + 1 - 2 * p), 40) for k, p in zip((kh, kw), padding, strict=True))
        x = torch.randn(rng.randint(1, 3), rng.randint(1, 20), h, w)
        weight = torch.randn(rng.randint(1, 40), x.shape[1], kh, kw)
        bias = torch.randn(weight.shape[0]) if rng.random() < 0.5 else None
        check("direct", x, weight, bias, stride, padding, dilation)
        check("depthwise", x, torch.randn(x.shape[1], 1, kh, kw), None, stride, padding, dilation)
        for form in ("winograd", "winograd2"):
            check(form, x, torch.randn(weight.shape[0], x.shape[1], 3, 3), None, 1, (rng.randint(1, 3), 1))


@pytest.mark.parametrize(
    "n, ci, length, co, k, stride, padding", [(2, 3, 50, 7, 3, 1, 1), (1, 8, 400, 16, 5, 2, 0), (3, 4, 9, 5, 1, 1, 0)]
)
def test_one_dimension(n, ci, length, co, k, stride, padding):
    check("direct", torch.randn(n, ci, length), torch.randn(co, ci, k), torch.randn(co), stride, padding)


@pytest.mark.parametrize("n, size", [(1, 15), (2, 12), (3, 7)])
@pytest.mark.parametrize("k, stride", list(itertools.product([1, 3], [1, 2])))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_reach_what_they_reach_in_eager(n, size, k, stride, value):
    x, w = torch.randn(n, 5, size, size), torch.randn(13, 5, k, k)
    x[0, 2, 4, 5] = value
    x[-1, 0, 0, 0] = value
    w[3] = 0.0
    for form in ["direct", "winograd", "winograd2"] if k == 3 and stride == 1 else ["direct"]:
        plan, eager = plan_of(form, x, w, None, stride, k // 2, 1)
        (got,) = plan([x, w])
        assert torch.equal(got.isnan(), eager.isnan()) and torch.equal(got.isinf(), eager.isinf())
        torch.testing.assert_close(got, eager, rtol=1e-4, atol=1e-4, equal_nan=True)
    w = torch.randn(5, 1, k, k)
    plan, eager = plan_of("depthwise", x, w, None, stride, k // 2, 1)
    torch.testing.assert_close(plan([x, w])[0], eager, rtol=1e-4, atol=1e-4, equal_nan=True)


# -- In programs ------------------------------------------------------------------------------------------------------


def steps_of(compiled):
    return [step for step in magpy.explain(compiled).traces[0].steps if step[0] not in ("alloc", "release", "view")]


def same(program, *args, kernels=None):
    """Compiled gives what eager gives. Returns the steps."""
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        expected = program(*args)
        for _ in range(3):
            got = compiled(*args)
            for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, expected)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
                assert a.stride() == b.stride()
    steps = steps_of(compiled)
    if kernels is not None:
        assert [s[0] for s in steps] == ["kernel"] * kernels, steps
    return steps


def test_what_follows_point_by_point_is_computed_on_the_sums(either):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(20).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    w, shortcut = torch.randn(20, 6, 3, 3), torch.randn(2, 20, 14, 15)
    x = torch.randn(2, 6, 14, 15)
    for act in (F.relu, F.silu, F.hardswish, F.gelu, torch.sigmoid, F.relu6, lambda t: t.clamp(-0.5, 0.7)):
        same(lambda x, s, act=act: act(norm(F.conv2d(x, w, padding=1)) + s), x, shortcut, kernels=1)


@pytest.mark.parametrize("of", ["both", "input", "weight"])
def test_channels_last(either, of):
    last = torch.channels_last
    torch.manual_seed(0)
    x, w = torch.randn(2, 6, 14, 15), torch.randn(20, 6, 3, 3)
    x = x if of == "weight" else x.to(memory_format=last)
    w = w if of == "input" else w.to(memory_format=last)
    steps = same(lambda x: F.conv2d(F.conv2d(x, w, padding=1).relu()[:, :6], w, padding=1), x)
    assert {s[0] for s in steps} <= {"kernel"}, steps

    def gradients(x, w):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        return torch.autograd.grad(F.conv2d(x, w, padding=1).square().sum(), [x, w])

    compiled = torch.compile(gradients, backend="magpy", fullgraph=True)
    for _ in range(2):
        for a, b in zip(compiled(x, w), gradients(x, w), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
            assert a.stride() == b.stride()


def test_sums_that_are_also_wanted_themselves():
    w, b = torch.randn(9, 4, 3, 3), torch.randn(9)

    def program(x):
        y = F.conv2d(x, w, b, padding=1)
        return y, y.relu(), (y * 2).double()

    same(program, torch.randn(2, 4, 13, 13), kernels=1)


def test_a_chain_of_convolutions_and_residuals(either):
    torch.manual_seed(1)
    ws = [torch.randn(16, 16, 3, 3) / 12 for _ in range(4)]

    def program(x):
        y = F.conv2d(x, ws[0], padding=1).relu()
        y = F.conv2d(y, ws[1], padding=1) + x
        return F.conv2d(y.relu(), ws[2], padding=1) + F.conv2d(y, ws[3], padding=1)

    same(program, torch.randn(1, 16, 20, 20), kernels=4)


def test_equal_epilogues_are_one_function():
    ws = [torch.randn(8, 8, 3, 3) for _ in range(3)]

    def program(x):
        for w in ws:
            x = F.conv2d(x, w, padding=1).relu() * 0.1
        return x

    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        compiled(torch.randn(1, 8, 12, 12))
    kernels = magpy.explain(compiled).traces[0].kernels
    assert len(kernels) == 3 and kernels[0]["source"].count("void mp_c") == 1


@pytest.mark.parametrize(
    "program",
    [
        lambda x, w: F.conv2d(x, w, padding=1)[:, :, ::2].relu(),
        lambda x, w: F.pixel_shuffle(F.conv2d(x, w, padding=1), 2).relu(),
        lambda x, w: F.conv2d(x, w, padding=1) + torch.arange(18.0),
        lambda x, w: F.conv2d(x, w, padding=1).transpose(2, 3) + x[:, :1].transpose(2, 3),
        lambda x, w: F.conv2d(x, w, padding=1).mean((2, 3)),
        lambda x, w: F.conv2d(x, w, padding=1).softmax(1),
        lambda x, w: F.max_pool2d(F.conv2d(x, w, padding=1).relu(), 2),
        lambda x, w: torch.cat([F.conv2d(x, w, padding=1), x], 1),
        lambda x, w: F.conv2d(x.flip(0).relu(), w, padding=1).flatten(1).tanh(),
        lambda x, w: F.conv2d(x[:, 2:6], w[:, 2:6].contiguous(), padding=1),
        lambda x, w: F.conv2d(torch.ones_like(x), w, padding=1),
        lambda x, w: F.conv2d(x, torch.full_like(w, 0.5), padding=1),
        lambda x, w: F.conv2d(x, w * 2, w.sum((1, 2, 3)), padding=1),
        lambda x, w: F.conv2d(x, w, padding=1) * x.mean((2, 3), keepdim=True)[:, :1],
        lambda x, w: F.conv2d(x[0], w, padding=1).sin(),
        lambda x, w: F.conv2d(x, w).relu_().add_(1),
        lambda x, w: F.conv2d(x, w, padding="same").view(2, -1) * 2,
        lambda x, w: F.conv2d(x.expand(4, 2, 8, 16, 18)[:, 0], w, padding=1).exp(),
        lambda x, w: F.conv2d(F.conv2d(x, w, padding=1)[:, 4:], w[:, :4].contiguous()),
    ],
)  # fmt: skip
def test_views_broadcasts_and_reductions_around(either, program):
    torch.manual_seed(2)
    same(program, torch.randn(2, 8, 16, 18), torch.randn(8, 8, 3, 3) / 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2],
        lambda x: x.expand(2, 4, 12, 12)[:, :, :, 1:],
    ],
)
def test_other_layouts_are_copied(either, make):
    x, w = make(torch.randn(2, 4, 12, 12)), torch.randn(5, 4, 3, 3)
    steps = same(lambda x: F.conv2d(x, w, padding=1), x)
    assert {s[0] for s in steps} == {"kernel"}, steps


@pytest.mark.parametrize("make", [lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x[:0]])
def test_other_types_are_left_to_the_operator(make):
    x = make(torch.randn(2, 4, 12, 12))
    w = torch.randn(5, 4, 3, 3).to(x.dtype)
    steps = same(lambda x: F.conv2d(x, w, padding=1), x)
    assert x.numel() == 0 or steps[0][0] != "kernel"


@pytest.mark.parametrize(
    "program",
    [
        lambda x, w: F.conv2d(x, w[:, :4].contiguous(), groups=2),
        lambda x, w: F.conv_transpose2d(x, w),
        lambda x, w: F.conv3d(x.unsqueeze(2), w.unsqueeze(2)),
    ],
)
def test_other_convolutions_are_left_to_the_operator(program):
    steps = same(program, torch.randn(2, 8, 12, 12), torch.randn(8, 8, 3, 3))
    assert "kernel" not in [s[0] for s in steps if "convolution" in s[1]]


@pytest.mark.parametrize("form", ["direct", "winograd"])
def test_many_threads_give_the_same_bits(form):
    x, w = torch.randn(3, 20, 30, 30), torch.randn(70, 20, 3, 3)
    plan, _ = plan_of(form, x, w, None, 1, 1, 1)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(plan([x, w])[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], r) for r in results)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "part"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1,), (3,), (1, 1), (2, 2), (3, 1)], ids=str)
def test_one_by_one_at_few_positions_is_a_product(size, bias, layout):
    conv = (torch.nn.Conv1d, torch.nn.Conv2d)[len(size) - 1](6, 5, 1, bias=bias)
    x = torch.randn(2, 6, *size) if layout != "part" else torch.randn(2, 8, *size)[:, 1:7]
    if layout == "channels last" and len(size) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    steps = same(lambda x: conv(x).relu() + 1, x)
    assert not [s for s in steps if "convolution" in s[1] or "convolution" in s[2]]
    same(conv, x)
    many = torch.randn(2, 6, *(n + aten_rewrites.MAX_ROWS for n in size))
    assert [s for s in same(conv, many) if "convolution" in s[1] or "convolution" in s[2]]


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "part", "turned"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "size, taps",
    [((12,), (4,)), ((8, 12), (4, 4)), ((9, 13), (2, 5)), ((4, 4), (4, 4)), ((5, 4, 6), (2, 2, 3))],
    ids=str,
)
def test_patches_that_do_not_overlap_are_a_product(size, taps, bias, layout):
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[len(size) - 1](3, 5, taps, stride=taps, bias=bias)
    x = torch.randn(2, 3, *size) if layout != "part" else torch.randn(2, 8, *size)[:, 1:4]
    if layout == "channels last" and len(size) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "turned":
        x = torch.randn(2, 3, *size[::-1]).permute(0, 1, *range(len(size) + 1, 1, -1))
    steps = same(lambda x: conv(x).flatten(2).transpose(1, 2) + 1, x)
    if len(size) < 3:
        assert not [s for s in steps if "convolution" in s[1] or "convolution" in s[2]]
    same(lambda x: conv(x).relu(), x)
    same(conv, x)


@pytest.mark.parametrize("kwargs", [{"padding": 1}, {"groups": 3}, {"dilation": 2}, {"stride": (2, 1)}], ids=str)
def test_what_is_no_patch_is_no_product(kwargs):
    conv = torch.nn.Conv2d(3, 6, 2, **{"stride": 2, **kwargs})
    steps = same(lambda x: conv(x).relu(), torch.randn(2, 3, 8, 8))
    assert [s for s in steps if "convolution" in s[1] or "convolution" in s[2]]


def test_training_uses_the_kernels_in_its_forward_pass():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    compiled = torch.compile(model, backend="magpy", fullgraph=True)
    for _ in range(2):
        grads = []
        for f in (model, compiled):
            out = f(x)
            grads.append([out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_without_a_compiler_nothing_is_chosen(monkeypatch):
    monkeypatch.setattr(own_kernels, "convolutions_usable", lambda: False)
    w = torch.randn(5, 4, 3, 3)
    steps = same(lambda x: F.conv2d(x, w, padding=1), torch.randn(2, 4, 12, 12))
    assert [s[0] for s in steps] == ["shim"]


def test_a_compiler_that_cannot_compile_them_leaves_them_to_the_operator(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\nfor a; do case "$a" in *.c) grep -q mp_conv_run "$a" && exit 1;; esac; done\nexec cc "$@"\n'
    )
    compiler.chmod(0o700)
    program = """
import torch, magpy
w = torch.randn(5, 4, 3, 3)
f = torch.compile(lambda x: torch.conv2d(x, w).relu(), backend="magpy", fullgraph=True)
x = torch.randn(1, 4, 9, 9)
with torch.no_grad():
    for _ in range(2):
        torch.testing.assert_close(f(x), torch.conv2d(x, w).relu())
print([step[0] for step in magpy.explain(f).traces[0].steps if step[0] != "alloc"])
"""
    env = {**os.environ, "CC": str(compiler), "MAGPY_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "shim" in done.stdout and "kernel" in done.stdout


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "size"), [(1, (50,)), (3, (50,)), (2, (7, 9)), (1, (1, 1))])
@pytest.mark.parametrize(("groups", "ins", "outs"), [(4, 32, 64), (3, 6, 9), (2, 10, 2)])
def test_groups_of_one_by_one_are_products(n, size, groups, ins, outs, bias, turned, monkeypatch):
    monkeypatch.setattr(choices, "choose", lambda what, make: "product" if "product" in make() else next(iter(make())))
    kind = torch.nn.Conv1d if len(size) == 1 else torch.nn.Conv2d
    conv = kind(ins, outs, 1, groups=groups, bias=bias)
    fast = torch.compile(lambda x: conv(x * 2).relu(), backend="magpy")
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(n, *size, ins).movedim(-1, 1) if turned else torch.randn(n, ins, *size)
            actual, expected = fast(x), conv(x * 2).relu()
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            assert actual.stride() == expected.stride()
    assert "aten.convolution" not in str(magpy.explain(fast)).split("shim")[-1].split("\n")[0]
