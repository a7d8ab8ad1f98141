"""Fused patterns of real models, forward and backward: equal to eager, and in as few kernels as they should be."""

import os
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._functorch.aot_autograd import aot_function
from torch._inductor.decomposition import select_decomp_table

sys.path.insert(0, os.path.dirname(__file__))
from harness import Compiled, trace  # noqa: E402


def run_both(fn, *inputs, bound=1e-5):
    """Forward and backward through kernels and through eager; returns the compiled graphs in order of compilation."""
    graphs = []

    def compiler(gm, _):
        compiled = Compiled(gm)
        graphs.append(compiled)

        def run(args):
            copies = list(args)
            args.clear()
            return compiled(*copies)

        run._boxed_call = True
        return run

    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    eager = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    result = aot_function(fn, fw_compiler=compiler, bw_compiler=compiler, decompositions=select_decomp_table())(*leaves)
    expected = fn(*eager)
    close(result, expected, bound)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(expected.shape, generator=generator).to(expected.dtype)
    result.backward(grad)
    expected.backward(grad)
    for a, b in zip(leaves, eager, strict=True):
        if a.is_floating_point():
            close(a.grad, b.grad, bound)
    return graphs


def close(a, b, bound):
    assert a.shape == b.shape and a.dtype == b.dtype
    scale = b.detach().double().abs().max().clamp(min=1.0)
    assert (a.detach().double() - b.detach().double()).abs().max() <= bound * scale


def kernel_counts(graphs):
    return [len(g.kernels) for g in graphs]


def test_softmax_is_one_kernel_each_way():
    graphs = run_both(lambda x: F.softmax(x, -1), torch.randn(6, 5, 33))
    assert kernel_counts(graphs) == [1, 1] and not graphs[0].ops() and not graphs[1].ops()


def test_softmax_over_a_leading_dim():
    graphs = run_both(lambda x: F.softmax(x, 1), torch.randn(6, 5, 133))
    assert kernel_counts(graphs) == [1, 1]


def test_log_softmax_and_loss():
    target = torch.randint(0, 33, (17,))
    run_both(lambda x, t: F.cross_entropy(x, t), torch.randn(17, 33), target)


def test_layer_norm_rows_are_one_kernel_forward():
    graphs = run_both(
        lambda x, w, b: F.layer_norm(x, (64,), w, b), torch.randn(4, 7, 64), torch.randn(64), torch.randn(64)
    )
    assert kernel_counts(graphs)[0] == 1 and not graphs[0].ops()


def test_rms_norm():
    def rms(x, w):
        return w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    graphs = run_both(rms, torch.randn(4, 7, 64), torch.randn(64))
    assert kernel_counts(graphs)[0] == 1


def test_transformer_layer_with_its_gradients():
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    names = list(dict(layer.named_parameters()))

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    graphs = run_both(run, torch.randn(2, 9, 32), *[p.detach() for p in layer.parameters()], bound=1e-4)
    assert kernel_counts(graphs)[0] <= 6


def test_gradients_of_scale_and_shift_are_one_kernel():
    c = equal(lambda g, x: ((g * x).sum(0), g.sum(0)), torch.randn(40, 24), torch.randn(40, 24))
    assert len(c.kernels) == 1


def test_long_reduction_does_not_take_a_parallel_kernel_with_it():
    c = equal(lambda x: (x * 2, (x * 2).square().mean()), torch.randn(300, 300))
    assert len(c.kernels) == 2 and max(k["extent"] for k in c.kernels) > 1


def test_operators_that_alias_kernel_results_do_not_see_memory_reused():
    def fn(x):
        y = x * 2
        z = torch.ops.aten.view.dtype(y, torch.int32)  # an alias that is no index arithmetic
        for _ in range(3):
            x = (x + 1) @ x
        return z, x

    c = compiled(fn, torch.randn(8, 8))
    assert "aten.view.dtype" in c.ops()
    x = torch.randn(8, 8)
    assert torch.equal(c(x)[0], fn(x)[0])


def test_batch_norm_training_and_channels_last():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 8, 5, 6).to(memory_format=memory_format)
        run_both(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), x, torch.randn(8), torch.randn(8), bound=1e-4)


def test_mlp_with_gelu_and_residual():
    def mlp(x, w1, b1, w2, b2):
        return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    run_both(
        mlp, torch.randn(10, 16), torch.randn(32, 16), torch.randn(32), torch.randn(16, 32), torch.randn(16), bound=1e-4
    )


def attention(q, k, v):
    b, s, e = q.shape
    q, k, v = (x.view(b, s, 4, e // 4).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / 2.0
    mask = torch.arange(s)[:, None] >= torch.arange(s)[None, :]
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, e)


def test_attention_with_causal_mask():
    run_both(attention, *[torch.randn(2, 9, 16) for _ in range(3)], bound=1e-4)


def test_rotary_embedding():
    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    graphs = run_both(rotate, torch.randn(2, 4, 9, 16), torch.randn(9, 16), torch.randn(9, 16))
    assert kernel_counts(graphs)[0] == 1


def test_group_norm():
    run_both(
        lambda x, w, b: F.group_norm(x, 4, w, b), torch.randn(3, 8, 5, 6), torch.randn(8), torch.randn(8), bound=1e-4
    )


def test_lstm_cell_gates():
    def cell(gates, c):
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c)

    graphs = run_both(cell, torch.randn(5, 44), torch.randn(5, 11))
    assert kernel_counts(graphs)[0] == 1


def test_convolution_block():
    def block(x, w, g, b):
        y = F.conv2d(x, w, padding=1)
        return F.relu(F.batch_norm(y, None, None, g, b, True)) + x

    run_both(block, torch.randn(2, 6, 7, 7), torch.randn(6, 6, 3, 3), torch.randn(6), torch.randn(6), bound=1e-4)


def test_bfloat16_layer():
    def layer(x, w):
        return F.layer_norm(x, (64,)).to(torch.bfloat16) * w

    run_both(layer, torch.randn(4, 64, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16), bound=0.05)


def test_embedding_is_fused_with_what_follows():
    graphs = run_both(lambda i, w: F.embedding(i, w) * 2, torch.randint(0, 9, (4, 5)), torch.randn(9, 8))
    assert graphs[0].ops() == [] and len(graphs[0].kernels) == 1


def test_embeddings_and_their_norm_are_one_kernel():
    def embed(tokens, words, places):
        at = torch.arange(tokens.shape[1])
        return F.layer_norm(words[tokens] + places[at], (8,))

    c = equal(embed, torch.randint(0, 9, (4, 5)), torch.randn(9, 8), torch.randn(7, 8), decompositions=True)
    assert c.ops() == [] and len(c.kernels) == 1


def test_pooling_and_upsampling_operators_between_kernels():
    def net(x):
        return F.interpolate(F.avg_pool2d(F.relu(x) * 2, 2), scale_factor=2.0) + x

    run_both(net, torch.randn(2, 3, 8, 8))


# -- Structure ---------------------------------------------------------------------------------------------------------


def compiled(fn, *inputs, decompositions=False, **options):
    return Compiled(trace(fn, inputs, select_decomp_table() if decompositions else None), **options)


def equal(fn, *inputs, **options):
    c = compiled(fn, *inputs, **options)
    expected = fn(*inputs)
    expected = expected if isinstance(expected, (tuple, list)) else [expected]
    for r, e in zip(c(*inputs), expected, strict=True):
        assert r.shape == e.shape and r.dtype == e.dtype and r.stride() == e.stride()
        assert torch.allclose(r, e, rtol=1e-5, atol=1e-5, equal_nan=True)
    return c


def test_without_fusion_every_node_is_an_operator():
    c = equal(lambda x: (x * 2).t().exp(), torch.randn(3, 4), fuse=False)
    assert not c.kernels and len(c.ops()) == 3


def test_no_cycle_through_an_operator():
    # exp and add cannot be one kernel: a matmul lies between them
    c = equal(lambda x: (lambda y: y + y @ y)(x.exp()), torch.randn(4, 4))
    assert len(c.kernels) == 2


def test_no_cycle_through_two_operators_of_siblings():
    def fn(x, y):
        a, b = x.exp(), y.exp()
        return a + (b @ b), b + (a @ a)

    equal(fn, torch.randn(4, 4), torch.randn(4, 4))


def test_outputs_that_are_views_have_their_own_storage():
    c = equal(lambda x: (x * 2).permute(1, 0), torch.randn(3, 4))
    assert c.schedule["arena_bytes"] == 0


def test_inputs_and_repeated_values_as_outputs():
    c = equal(lambda x: (x, x * 2, x.t(), (x * 2)), torch.randn(3, 4))
    assert c.schedule["steps"][0][0] in ("kernel", "view")


def test_expanded_output():
    equal(lambda x: (x * 2).expand(5, 3, 4), torch.randn(3, 4))


def test_arena_is_reused():
    def chain(x):
        for _ in range(6):
            x = (x * 2) @ x
        return x

    c = equal(chain, torch.eye(16) * 0.5)
    assert c.schedule["arena_bytes"] <= 2 * 16 * 16 * 4


def test_long_chains_are_cut_into_kernels():
    def chain(x):
        for _ in range(400):
            x = x * 0.5 + 1.0
        return x

    c = equal(chain, torch.randn(50))
    assert 1 <= len(c.kernels) <= 20


def test_equal_layers_share_their_kernels():
    def layers(x):
        for _ in range(5):
            x = torch.tanh(x) @ x
        return x * 3

    c = equal(layers, torch.eye(16))
    names = [kernel["name"] for kernel in c.kernels]
    assert len(names) == 6 and len(set(names)) == 2
    assert c.schedule["source"].count("\nvoid mp_k") == 2


def test_bad_descriptions_raise():
    from magpy import _C

    meta = (6, 0, (2,), (1,), 0)
    with pytest.raises(ValueError, match="node 0"):
        _C._schedule((("aten.exp.default", torch.ops.aten.exp.default, (("v", 3),), (meta,)),), ())
    with pytest.raises(TypeError, match="node 0"):
        _C._schedule((("aten.exp.default", torch.ops.aten.exp.default, (object(),), (meta,)),), ())
    with pytest.raises(ValueError):
        _C._schedule((("placeholder", None, (), (meta,)),), (7,))
    with pytest.raises(ValueError, match="negative"):
        _C._schedule((("placeholder", None, (), ((6, 0, (2,), (-1,), 0),)),), (0,))


# -- Odd shapes and layouts --------------------------------------------------------------------------------------------

SHAPES = [
    (),
    (1,),
    (0,),
    (3, 0),
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 1, 3),
    (5, 17),
    (3, 4, 5),
    (2, 3, 4, 5),
    (1, 4100),
    (9000,),
    (3, 5000),
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x,
    "sliced": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "expanded": lambda x: x.narrow(0, 0, 1).expand(x.shape) if x.dim() and x.shape[0] else x,
    "offset": lambda x: torch.cat([torch.zeros(3), x.flatten()])[3:].view(x.shape),
}
FUNCTIONS = {
    "pointwise": lambda x: torch.exp(x) * 2 + x,
    "row": lambda x: x - x.mean(-1, keepdim=True) if x.dim() else x * 1,
    "column": lambda x: (x * x).sum(0) if x.dim() else x * 1,
    "all": lambda x: (x * 2).sum(),
    "softmax_first": lambda x: (lambda e: e / e.sum(0, keepdim=True))(x.exp()) if x.dim() else x.exp(),
    "broadcast": lambda x: x + x.sum(-1, keepdim=True) * x.flatten()[:1].sum() if x.numel() else x + 1,
    "reshape": lambda x: (x * 2).reshape(-1) + 1,
    "permuted": lambda x: (x + 1).permute(*reversed(range(x.dim()))).contiguous() * 2 if x.dim() else x + 1,
    "several": lambda x: (x * 2, (x * 2).sum(-1) if x.dim() else x, x.exp()),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_odd_shapes_and_layouts(name, layout):
    generator = torch.Generator().manual_seed(3)
    for shape in SHAPES:
        x = LAYOUTS[layout](torch.randn(shape, generator=generator))
        c = compiled(FUNCTIONS[name], x)
        expected = FUNCTIONS[name](x)
        expected = expected if isinstance(expected, (tuple, list)) else [expected]
        for r, e in zip(c(x), expected, strict=True):
            assert r.shape == e.shape, shape
            moving = [d for d in range(r.dim()) if r.shape[d] > 1]  # fake tensors and eager differ in strides of size 1
            assert [r.stride(d) for d in moving] == [e.stride(d) for d in moving] or not r.numel(), shape
            assert torch.allclose(r, e, rtol=1e-4, atol=1e-4), shape


@pytest.mark.parametrize("bits", [128, 256, 512])
def test_vector_widths(bits):
    equal(lambda x: F.gelu(x).sum(-1), torch.randn(33, 65), bits=bits)


def test_pieces_may_be_any():
    x = torch.randn(50, 301)
    for fn in FUNCTIONS.values():
        c = compiled(fn, x)
        one = c(x, pieces=1)
        for pieces in (2, 7, 100):
            for a, b in zip(one, c(x, pieces=pieces), strict=True):
                assert torch.equal(a, b)


def test_long_sums_are_no_worse_than_eager():
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(1 << 22, generator=generator)
    for fn, y in (
        (lambda t: t.sum(), x),
        (lambda t: t.sum(0), x.view(1 << 18, 16)),
        (lambda t: t.sum(-1), x.view(4, -1)),
    ):
        result, exact = compiled(fn, y)(y)[0].double(), fn(y.double())
        assert ((result - exact).abs() <= 2e-6 * exact).all()


def test_concatenations_of_many_pieces():
    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.float64):
        for shape in ((2, 3, 7, 9), (3, 5, 33)):
            pieces = [(torch.randn(shape) * 9).abs().to(dtype) for _ in range(7)]
            pieces[2] = pieces[2][:, :1].contiguous()
            equal(lambda *p: torch.cat(p, 1) + torch.ones((), dtype=p[0].dtype), *pieces)
            equal(lambda *p: torch.cat([p[0], p[1], p[3] + p[4], p[5], p[6]], 0), *pieces)
            equal(lambda *p: torch.cat([p[0], p[1], p[3], p[4], p[5], p[6]], -1), *pieces)
            equal(lambda *p: F.pad(torch.cat([p[0], p[1]], 1), (1, 2, 3, 1)) * 2, *pieces)
            if dtype.is_floating_point:
                equal(lambda *p: torch.cat([p[0], p[1], p[3], p[4], p[5]], 1).float().mean((0, 1)), *pieces)


def test_short_dims_that_lie_side_by_side_are_one_loop_along_memory():
    """Rows of 4 in planes of 4 rows: as long as the batch, and one after the other in memory."""
    x, mean = torch.randn(16, 8, 4, 4), torch.randn(1, 8, 1, 1)
    c = equal(lambda x, m: (x - m) * (x - m).mean((0, 2, 3), keepdim=True), x, mean)
    source = c.schedule["source"]
    assert "i2 * 128]" not in source and "i2]" in source


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8], ids=str
)
def test_rows_of_any_length_are_taken_once(dtype):
    """The last vector of a row overlaps the one before: no element is missed, and none is counted twice."""
    lengths = (3, 4, 5, 7, 9, 15, 17, 31, 33, 49, 63, 65, 100)
    rows = [torch.randn(3, n, generator=torch.Generator().manual_seed(n)) for n in lengths]
    rows = [r.to(dtype) if dtype.is_floating_point else (r * 3).abs().to(dtype) for r in rows]

    def all_ways(*rows):
        ways = []
        for x in rows:
            ways += [x.sum(1), x.amax(1), x.argmax(1), (x + 1) * x[:, :1]]
            ways += [x.softmax(1), x.var(1)] if x.is_floating_point() else [(x % 3 + 1).prod(1), (x > 2).any(1)]
        return tuple(ways)

    compiled = Compiled(trace(all_ways, rows))
    exact = not dtype.is_floating_point
    for got, want in zip(compiled(*rows, pieces=2), all_ways(*rows), strict=True):
        torch.testing.assert_close(got, want, **({"rtol": 0, "atol": 0} if exact else {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool], ids=str)
def test_pieces_along_rows_and_across_them(dtype):
    """Loops are cut where pieces and borders meet; pieces of whole rows are chosen by address."""
    lengths = (1, 2, 5, 16, 33, 130)
    pieces = [torch.randn(6, n, generator=torch.Generator().manual_seed(n)) * 3 for n in lengths]
    pieces = [p > 0 if dtype == torch.bool else p.abs().to(dtype) for p in pieces]

    def all_ways(*pieces):
        two, three, all_of_them = torch.cat(pieces[3:5], 1), torch.cat(pieces[:3], 1), torch.cat(pieces, 1)
        rows = torch.cat([pieces[5], pieces[5][:2], pieces[5][1:4]], 0)
        mixed = torch.cat([torch.cat([pieces[4][:, :17], pieces[3]], 1), pieces[4]], 0)
        ways = [two, three, all_of_them, rows, mixed, F.pad(pieces[4], (3, 1, 1, 2))]
        if dtype.is_floating_point:
            reflected = F.pad(two.view(6, 7, 7), (2, 2), mode="reflect")
            ways += [reflected, rows + rows.flip(1), F.gelu(all_of_them)]
        return tuple(ways)

    compiled = Compiled(trace(all_ways, pieces))
    for parts in (1, 3):
        for got, want in zip(compiled(*pieces, pieces=parts), all_ways(*pieces), strict=True):
            torch.testing.assert_close(got, want)
