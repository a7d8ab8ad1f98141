"""Every tier computes what eager computes, with eager's strides."""

import pytest
import torch
from graphs import Graph, tiers

aten = torch.ops.aten


def same(actual, expected):
    assert torch.equal(actual, expected) or (
        actual.is_floating_point() and torch.equal(actual.nan_to_num(), expected.nan_to_num())
    )
    assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
    assert type(actual) is torch.Tensor and not actual.requires_grad


def rand(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def ints(high, *size):
    return torch.randint(high, size, generator=torch.Generator().manual_seed(0))


SHIM = {
    "mm": lambda g, a, b: g.op(aten.mm.default, a, b),
    "addmm": lambda g, a, b: g.op(aten.addmm.default, g.op(aten.mm.default, a, b), a, b, beta=2, alpha=0.5),
    "cat": lambda g, a, b: g.op(aten.cat.default, [a, b, a], 1),
    "cumsum": lambda g, a, b: g.op(aten.cumsum.default, a, 1, dtype=torch.float64),
    "sort": lambda g, a, b: g.op(aten.sort.default, a, 0, True),
    "topk": lambda g, a, b: g.op(aten.topk.default, a, 3, -1, True, True),
    "cdist": lambda g, a, b: g.op(aten._cdist_forward.default, a, b, 2.0, None),
    "median": lambda g, a, b: g.op(aten.median.default, a),
}


@pytest.mark.parametrize("name", SHIM)
def test_functions_of_the_c_abi(name):
    a, b = rand(6, 6), rand(6, 6).t()
    g = Graph(a, b)
    made = SHIM[name](g, *g.values)
    values = made if isinstance(made, list) else [made]
    plan = g.compile(*values)
    assert set(tiers(plan)) == {"shim"}
    for actual, value in zip(plan([a, b]), values, strict=True):
        same(actual, value.tensor)


def test_convolution_with_and_without_bias():
    x, w, b = rand(2, 4, 9, 9), rand(6, 2, 3, 3), rand(6)
    for bias in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            xi = x.to(memory_format=layout)
            g = Graph(xi, w, b)
            vx, vw, vb = g.values
            y = g.op(aten.convolution.default, vx, vw, vb if bias else None, [2, 1], [1, 1], [1, 1], False, [0, 0], 2)
            plan = g.compile(y)
            assert tiers(plan) == ["shim"]
            same(plan([xi, w, b])[0], y.tensor)


def test_results_that_do_not_exist():
    x, w, dy = rand(2, 3, 8, 8), rand(4, 3, 3, 3), rand(2, 4, 6, 6)
    g = Graph(dy, x, w)
    made = g.op(
        aten.convolution_backward.default, *g.values, [4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True]
    )
    plan = g.compile(None, made[1], made[2])
    nothing, dw, db = plan([dy, x, w])
    assert nothing is None
    torch.testing.assert_close(dw, made[1].tensor)
    torch.testing.assert_close(db, made[2].tensor)


def test_attention_and_its_optional_arguments():
    q, k, v = rand(2, 3, 5, 8), rand(2, 3, 7, 8), rand(2, 3, 7, 8)
    mask = rand(2, 1, 5, 7)
    op = aten._scaled_dot_product_flash_attention_for_cpu.default
    for kwargs in ({}, {"scale": 0.3}, {"attn_mask": True}):
        g = Graph(q, k, v, mask)
        if "attn_mask" in kwargs:
            kwargs = {"attn_mask": g.values[3]}
        out, lse = g.op(op, *g.values[:3], 0.0, False, **kwargs)
        plan = g.compile(out, lse)
        assert tiers(plan) == ["shim"]
        same(plan([q, k, v, mask])[0], out.tensor)


def test_lists_of_optional_tensors():
    x, i = rand(5, 6, 7), ints(5, 3)
    g = Graph(x, i)
    y = g.op(aten.index.Tensor, g.values[0], [None, g.values[1]])
    z = g.op(
        aten.index_put.default, g.values[0], [g.values[1]], g.op(aten.index.Tensor, g.values[0], [g.values[1]]), True
    )
    plan = g.compile(y, z)
    assert set(tiers(plan)) == {"shim"}
    for actual, value in zip(plan([x, i]), (y, z), strict=True):
        same(actual, value.tensor)


def test_integer_scalars_keep_their_type():
    a = torch.full((3, 3), 2**60 + 1)
    g = Graph(a)
    y = g.op(aten.addmm.default, g.values[0], g.values[0], g.values[0], beta=1, alpha=0)
    plan = g.compile(y)
    assert tiers(plan) == ["python"]  # the C ABI has doubles only
    same(plan([a])[0], y.tensor)


DISPATCHER = {
    "unary": lambda g, x, w: g.op(aten.digamma.default, x),
    "list of ints": lambda g, x, w: g.op(aten.roll.default, x, [1, 2], [0, 1]),
    "optional int list": lambda g, x, w: g.op(aten.sum.dim_IntList, x, [1], True, dtype=torch.float64),
    "absent list": lambda g, x, w: g.op(aten.amax.default, x),
    "optional tensor": lambda g, x, w: g.op(aten.native_layer_norm.default, x, [6], w, None, 1e-5),
    "str": lambda g, x, w: g.op(aten.gelu.default, x, approximate="tanh"),
    "optional float": lambda g, x, w: g.op(aten.logit.default, x, 0.1),
    "dtype, layout, device": lambda g, x, w: g.op(
        aten._to_copy.default, x, dtype=torch.float64, device=torch.device("cpu"), memory_format=torch.contiguous_format
    ),
    "factory": lambda g, x, w: g.op(
        aten.eye.default, 4, dtype=torch.int32, layout=torch.strided, device=torch.device("cpu")
    ),
    "tensor list result": lambda g, x, w: g.op(aten.split_with_sizes_copy.default, x, [1, 2, 3], 0),
    "tensor list argument": lambda g, x, w: g.op(aten.stack.default, [x, x], 1),
    "bool": lambda g, x, w: g.op(aten.all.dims, x, None, True),
}


@pytest.mark.parametrize("name", DISPATCHER)
def test_operators_by_name(name):
    x, w = rand(6, 6), rand(6)
    g = Graph(x, w)
    made = DISPATCHER[name](g, *g.values)
    values = made if isinstance(made, list) else [made]
    plan = g.compile(*values)
    assert set(tiers(plan)) == {"dispatcher"}
    for actual, value in zip(plan((x, w)), values, strict=True):
        same(actual, value.tensor)


def test_operators_called_in_python():
    x = rand(4, 5)
    generator = torch.Generator()
    g = Graph(x)
    y = g.op(aten.clamp.default, g.values[0], -0.5, 1)
    z = g.op(aten.bernoulli.default, g.op(aten.sigmoid.default, y), generator=generator)
    plan = g.compile(y, z)
    assert tiers(plan) == ["python", "dispatcher", "python"]
    generator.manual_seed(7)
    expected = aten.bernoulli.default(aten.sigmoid.default(y.tensor), generator=generator)
    generator.manual_seed(7)
    actual = plan([x])
    same(actual[0], y.tensor)
    same(actual[1], expected)


def test_random_numbers_are_eagers():
    x = rand(64)
    g = Graph(x)
    y, mask = g.op(aten.native_dropout.default, g.values[0], 0.5, True)
    z = g.op(aten.rand.default, [8], dtype=torch.float32, device=torch.device("cpu"))
    plan = g.compile(y, mask, z)
    torch.manual_seed(3)
    expected = (*aten.native_dropout.default(x, 0.5, True), aten.rand.default([8]))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    for actual, wanted in zip(plan([x]), expected, strict=True):
        same(actual, wanted)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int64])
def test_matrix_products_of_every_type(dtype):
    a, b = (rand(5, 6) * 4).to(dtype), (rand(6, 7) * 4).to(dtype)
    g = Graph(a, b)
    y = g.op(aten.mm.default, *g.values)
    same(g.compile(y)([a, b])[0], y.tensor)
