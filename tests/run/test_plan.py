"""Plans: outputs, errors in the middle, memory, threads, re-entrancy, and what a plan leaves behind."""

import gc
import resource
import sys
import threading
import weakref

import pytest
import torch
from graphs import Graph, tiers

aten = torch.ops.aten


def rand(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def chain(x):
    """Kernels and operators in turn, with intermediates in the arena and outside of it."""
    g = Graph(x)
    v = g.values[0]
    for _ in range(3):
        v = g.op(aten.mm.default, g.op(aten.relu.default, v), g.op(aten.sigmoid.default, v))
    return g, g.op(aten.tanh.default, v)


# -- Outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [False, True])
def test_an_input_comes_back_as_itself(fuse):
    x, y = rand(3), rand(4)
    g = Graph(x, y)
    plan = g.compile(g.values[1], None, g.values[0], g.values[1], fuse=fuse)
    a, nothing, b, c = plan([x, y])
    assert a is y and b is x and c is y and nothing is None


@pytest.mark.parametrize("fuse", [False, True])
def test_one_value_at_two_outputs_is_one_object(fuse):
    x = rand(3)
    g = Graph(x)
    y = g.op(aten.relu.default, g.values[0])
    a, b = g.compile(y, y, fuse=fuse)([x])
    assert a is b


def test_views_of_inputs_and_of_outputs_share_memory():
    x = rand(4, 6)
    g = Graph(x)
    v = g.op(aten.slice.Tensor, g.values[0], 1, 2, 5)
    t = g.op(aten.t.default, v)
    y = g.op(aten.relu.default, g.values[0])
    yt = g.op(aten.select.int, y, 0, 1)
    for fuse in (False, True):
        a, b, c, d = g.compile(v, t, y, yt, fuse=fuse)([x])
        for actual, value in zip((a, b, c, d), (v, t, y, yt), strict=True):
            assert torch.equal(actual, value.tensor) and actual.stride() == value.tensor.stride()
        assert a.data_ptr() == x[:, 2:].data_ptr() and b.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert d.data_ptr() == c[1].data_ptr()
        assert a.storage_offset() == 2 and d.storage_offset() == 6


def test_views_are_taken_from_where_the_input_is():
    """The input's own place in its storage may be another one than the compiled graph saw."""
    big = rand(10, 6)
    g = Graph(big[:4])
    v = g.op(aten.slice.Tensor, g.values[0], 0, 1, 3)
    s = g.op(aten.mm.default, v, g.op(aten.t.default, v))
    for fuse in (False, True):
        plan = g.compile(v, s, fuse=fuse)
        a, b = plan([big[5:9]])
        assert torch.equal(a, big[6:8]) and a.data_ptr() == big[6:].data_ptr()
        torch.testing.assert_close(b, big[6:8] @ big[6:8].t())


STRIDES = [((2, 3, 4), (12, 4, 1)), ((2, 3, 4), (1, 2, 6)), ((2, 3, 4, 5), (60, 1, 15, 3)), ((5, 1, 2), (2, 2, 1))]


@pytest.mark.parametrize("size, strides", STRIDES)
def test_outputs_have_exact_strides(size, strides):
    x = torch.empty_strided(size, strides).copy_(rand(*size))
    g = Graph(x)
    y = g.op(aten.exp.default, g.values[0])
    for fuse in (False, True):
        out = g.compile(y, fuse=fuse)([x])[0]
        torch.testing.assert_close(out, y.tensor)
        assert out.stride() == y.tensor.stride()


def test_results_with_other_strides_than_announced_are_brought_in_order():
    x = rand(4, 6)
    g = Graph(x)
    y = g.op(aten.digamma.default, g.values[0], shaped_like=[torch.empty(6, 4).t()])
    z = g.op(aten.relu.default, y, shaped_like=[torch.empty(6, 4).t()])
    for fuse in (False, True):
        a, b = g.compile(y, z, fuse=fuse)([x])
        assert a.stride() == b.stride() == (1, 4)
        assert torch.equal(a, x.digamma()) and torch.equal(b, x.digamma().relu())


def test_results_of_another_size_are_an_error():
    x = rand(4)
    g = Graph(x)
    y = g.op(aten.digamma.default, g.values[0], shaped_like=[torch.empty(5)])
    for fuse in (False, True):
        plan = g.compile(g.op(aten.neg.default, y), fuse=fuse)
        with pytest.raises(RuntimeError, match="aten.digamma.default returned a tensor of unexpected size"):
            plan([x])


@pytest.mark.parametrize("fuse", [False, True])
def test_empty_tensors(fuse):
    x, y = torch.empty(0, 4), torch.empty(3, 0)
    g = Graph(x, y)
    vx, vy = g.values
    outs = [
        g.op(aten.exp.default, vx),
        g.op(aten.mm.default, vy, vx),
        g.op(aten.cat.default, [vx, vx], 0),
        g.op(aten.sum.dim_IntList, vx, [0]),
        g.op(aten.t.default, g.op(aten.relu.default, vx)),
    ]
    for actual, value in zip(g.compile(*outs, fuse=fuse)([x, y]), outs, strict=True):
        assert torch.equal(actual, value.tensor) and actual.shape == value.tensor.shape


def test_scalars_and_many_outputs():
    x = torch.tensor(2.5)
    g = Graph(x)
    outs = [g.op(aten.mul.Tensor, g.values[0], float(i)) for i in range(40)]
    for fuse in (False, True):
        assert [o.item() for o in g.compile(*outs, fuse=fuse)([x])] == [2.5 * i for i in range(40)]


def test_what_leaves_the_plan_is_never_overwritten():
    x = rand(16, 16)
    g, y = chain(x)
    for fuse in (False, True):
        plan = g.compile(y, fuse=fuse)
        first = plan([x])[0]
        kept = first.clone()
        plan([rand(16, 16) * 2])
        assert torch.equal(first, kept)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("mask", [[True, False, True], [False, True, False]])
def test_results_that_are_absent_or_unused(mask, fuse):
    dy, x, w = rand(2, 4, 6, 6), rand(2, 3, 8, 8), rand(4, 3, 3, 3)
    g = Graph(dy, x, w)
    op = aten.convolution_backward.default
    made = g.op(op, *g.values, [4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask)
    for outs in (made, made[2:], [m if k else None for m, k in zip(made, mask, strict=True)]):
        for actual, value in zip(g.compile(*outs, fuse=fuse)([dy, x, w]), outs, strict=True):
            if value is None or value.tensor is None:
                assert actual is None
            else:
                torch.testing.assert_close(actual, value.tensor)


# -- Inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, error",
    [
        ([], TypeError),
        ([1], TypeError),
        ([torch.zeros(3, 4, dtype=torch.float64)], ValueError),
        ([torch.zeros(3, 5)], ValueError),
        ([torch.zeros(3, 4, 1)], ValueError),
        ([torch.zeros(4, 3).t()], ValueError),
        ([torch.zeros(3, 4, device="meta")], ValueError),
        ([torch.zeros(3, 4).to_sparse()], ValueError),
        (3, TypeError),
    ],
)
def test_inputs_from_python_are_checked(bad, error):
    g = Graph(torch.zeros(3, 4))
    plan = g.compile(g.op(aten.relu.default, g.values[0]), fuse=True)
    with pytest.raises(error):
        plan(bad)


def test_subclasses_and_parameters_are_inputs():
    x = rand(3)
    g = Graph(x)
    plan = g.compile(g.op(aten.relu.default, g.values[0]), fuse=True)
    out = plan((torch.nn.Parameter(x),))[0]
    assert torch.equal(out, x.relu()) and not out.requires_grad and type(out) is torch.Tensor


# -- Errors ------------------------------------------------------------------------------------------------------------


def failing_graphs():
    x, i = rand(4, 4), torch.tensor([0, 9])

    def mm(g):
        return g.op(aten.mm.default, g.op(aten.relu.default, g.values[0]), g.values[2], shaped_like=[torch.empty(4, 4)])

    def index(g):
        return g.op(
            aten.index.Tensor, g.op(aten.relu.default, g.values[0]), [g.values[1]], shaped_like=[torch.empty(2, 4)]
        )

    def cholesky(g):
        return g.op(
            aten.linalg_cholesky_ex.default,
            g.op(aten.relu.default, g.values[0]),
            upper=False,
            check_errors=True,
            shaped_like=[torch.empty(4, 4), torch.empty((), dtype=torch.int32)],
        )[0]

    def renorm(g):
        return g.op(
            aten.renorm.default, g.op(aten.relu.default, g.values[0]), -1, 0, 1, shaped_like=[torch.empty(4, 4)]
        )

    relu, w = x.relu(), rand(5, 4)
    return {
        "shim": (mm, lambda: relu @ w),
        "index": (index, lambda: relu[i]),
        "dispatcher": (cholesky, lambda: torch.linalg.cholesky_ex(-torch.eye(4), check_errors=True)),
        "python": (renorm, lambda: relu.renorm(-1, 0, 1)),
    }, (x, i, w)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", ["shim", "index", "dispatcher", "python"])
def test_errors_in_the_middle_are_eagers(name, fuse):
    cases, inputs = failing_graphs()
    make, eager = cases[name]
    g = Graph(*inputs)
    before = [g.op(aten.exp.default, g.values[0]), g.op(aten.digamma.default, g.values[0])]
    after = g.op(aten.exp.default, make(g))
    plan = g.compile(*before, after, fuse=fuse)
    if name == "dispatcher":
        inputs = (-torch.eye(4), *inputs[1:])
        cases, _ = failing_graphs()
        inputs[0].copy_(torch.full((4, 4), -1.0))
        with pytest.raises(RuntimeError) as wanted:
            torch.linalg.cholesky_ex(torch.zeros(4, 4), check_errors=True)
    else:
        with pytest.raises((RuntimeError, IndexError)) as wanted:
            eager()
    for _ in range(3):
        with pytest.raises(wanted.type) as got:
            plan(list(inputs))
        assert type(got.value) is wanted.type
        assert str(got.value).split("\n")[0] == str(wanted.value).split("\n")[0]


def test_a_plan_works_after_an_error():
    x = torch.eye(3)
    g = Graph(x)
    y, info = g.op(aten.linalg_cholesky_ex.default, g.values[0], upper=False, check_errors=True)
    plan = g.compile(g.op(aten.relu.default, y), fuse=True)
    with pytest.raises(RuntimeError):
        plan([-x])
    assert torch.equal(plan([x])[0], x)


def test_graphs_that_cannot_be_compiled_say_why():
    g = Graph(rand(3))
    g.nodes.append(("aten.relu.default", aten.relu.default, (("v", 0), 1), ((6, 0, (3,), (1,), 0),)))
    with pytest.raises(RuntimeError, match="an operator cannot be run by the plan: aten.relu.default"):
        from magpy import _C

        _C.compile_graph(tuple(g.nodes), (1,), fuse=False)


# -- Modes -------------------------------------------------------------------------------------------------------------


def test_no_gradients_are_recorded_and_modes_come_back():
    x = rand(4, 4).requires_grad_()
    g, y = chain(x.detach())
    for fuse in (False, True):
        plan = g.compile(y, fuse=fuse)
        with torch.enable_grad():
            assert not plan([x])[0].requires_grad
            assert torch.is_grad_enabled()
        with torch.no_grad():
            plan([x])
            assert not torch.is_grad_enabled()


def test_autocast_does_not_reach_the_operators():
    x = rand(4, 4)
    g = Graph(x)
    y = g.op(aten.bmm.default, g.op(aten.stack.default, [g.values[0]]), g.op(aten.stack.default, [g.values[0]]))
    plan = g.compile(y)
    with torch.autocast("cpu", torch.bfloat16):
        out = plan([x])[0]
        assert torch.is_autocast_enabled("cpu")
    assert out.dtype is torch.float32 and torch.equal(out, y.tensor)


@pytest.mark.parametrize("fuse", [False, True])
def test_inference_mode_in_any_order(fuse):
    x = rand(4, 4)
    g, y = chain(x)
    for first in (True, False):
        plan = g.compile(y, fuse=fuse)
        for inference in (first, not first, first):
            with torch.inference_mode(inference):
                out = plan([x])[0]
            assert out.is_inference() == inference
            torch.testing.assert_close(out, y.tensor)


# -- Python in the middle ----------------------------------------------------------------------------------------------


@pytest.fixture
def python_op():
    """A custom operator whose body is `state.body(x)`."""

    class State:
        body = staticmethod(torch.clone)

    with torch.library._scoped_library("magpy_run_test", "FRAGMENT") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", lambda x: State.body(x), "CPU")
        State.op = torch.ops.magpy_run_test.op.default
        yield State


def test_a_plan_may_be_entered_again(python_op):
    x = rand(8, 8)
    g = Graph(x)
    v = g.op(aten.mm.default, g.op(aten.relu.default, g.values[0]), g.values[0])
    y = g.op(aten.add.Tensor, g.op(python_op.op, v), g.op(aten.relu.default, v))
    for fuse in (False, True):
        python_op.body = staticmethod(torch.clone)
        plan = g.compile(y, fuse=fuse)
        expected = plan([x])[0]
        depth = 0

        def again(t, plan=plan):
            nonlocal depth
            depth += 1
            if depth < 4:
                plan([x * depth])
            return t.clone()

        python_op.body = staticmethod(again)
        torch.testing.assert_close(plan([x])[0], expected)
        assert depth == 4


def test_tensors_that_an_operator_keeps_stay_as_they_were(python_op):
    kept = []
    python_op.body = staticmethod(lambda t: kept.append(t) or t.clone())
    x = rand(8, 8)
    g = Graph(x)
    y = g.op(python_op.op, g.op(aten.relu.default, g.values[0]))
    plan = g.compile(y, fuse=True)
    kept.clear()
    for scale in (1, 2):
        plan([x * scale])
    assert torch.equal(kept[0], x.relu()) and torch.equal(kept[1], (2 * x).relu())


def test_exceptions_of_python_operators_pass_through(python_op):
    class Odd(Exception):
        pass

    def fail(t):
        raise Odd("by hand")

    x = rand(3)
    g = Graph(x)
    plan = g.compile(g.op(aten.relu.default, g.op(python_op.op, g.values[0])), fuse=True)
    python_op.body = staticmethod(fail)
    with pytest.raises(Odd, match="by hand"):
        plan([x])


def test_a_plan_dropped_while_it_runs(python_op):
    x = rand(4, 4)
    g = Graph(x)
    y = g.op(aten.relu.default, g.op(python_op.op, g.op(aten.relu.default, g.values[0])))
    holder = [g.compile(y, fuse=True)]
    python_op.body = staticmethod(lambda t: (holder.clear(), gc.collect(), t.clone())[2])
    assert torch.equal(holder.pop()([x])[0], x.relu())


# -- Threads and lifetimes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [False, True])
def test_threads_share_a_plan(fuse):
    x = rand(96, 96)
    g, y = chain(x)
    plan = g.compile(y, fuse=fuse)
    inputs = [x * (i + 1) for i in range(4)]
    expected = [plan([i])[0] for i in inputs]
    wrong = []

    def work(k):
        for _ in range(40):
            if not torch.allclose(plan([inputs[k]])[0], expected[k], atol=1e-5):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_nothing_is_kept_alive():
    x = rand(32, 32)
    g, y = chain(x)
    for fuse in (False, True):
        plan = g.compile(y, g.values[0], fuse=fuse)
        fresh = rand(32, 32)
        references = sys.getrefcount(fresh)
        out, same = plan([fresh])
        assert same is fresh
        del same
        assert sys.getrefcount(fresh) == references
        gone = [weakref.ref(fresh), weakref.ref(out)]
        del fresh, out
        assert [r() for r in gone] == [None, None]


@pytest.mark.unsanitized  # freed memory stays in quarantine, so that it grows
def test_memory_is_stable_over_many_calls():
    x = rand(16, 16)
    g, y = chain(x)
    w = g.op(aten.digamma.default, y)
    s, i = g.op(aten.sort.default, w, 1, False)
    k = g.op(aten.clamp.default, s, 0, 1)
    bad = Graph(x, torch.tensor([99]))
    rows = [torch.empty(1, 16)]
    v = bad.op(aten.index.Tensor, bad.op(aten.relu.default, bad.values[0]), [bad.values[1]], shaped_like=rows)
    failing = bad.compile(bad.op(aten.exp.default, v), fuse=True)
    plans = [g.compile(k, i, y, fuse=f) for f in (False, True)]

    def calls(n):
        for _ in range(n):
            for plan in plans:
                plan([x])
        for _ in range(n // 10):
            with pytest.raises(IndexError):
                failing([x, bad.inputs[1]])

    calls(1000)
    gc.collect()
    blocks, before = sys.getallocatedblocks(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls(5000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


def test_plans_are_freed_with_their_graphs():
    x = rand(8, 8)
    g, y = chain(x)
    targets = [n[1] for n in g.nodes if n[1] is not None]
    g.compile(y, fuse=True)([x])
    gc.collect()
    before = [sys.getrefcount(t) for t in targets]
    for _ in range(20):
        g.compile(y, fuse=True)([x])
    assert [sys.getrefcount(t) for t in targets] == before


# -- What a plan shows -------------------------------------------------------------------------------------------------


def test_a_plan_shows_its_steps_and_kernels():
    x = rand(8, 8)
    g, y = chain(x)
    plan = g.compile(y, fuse=True)
    assert set(tiers(plan)) == {"kernel", "shim"} and plan.arena_bytes > 0
    kernel = plan.kernels[0]
    assert kernel["name"] in kernel["source"] and kernel["ops"] and kernel["ir"]
    with open(kernel["source_path"]) as file:
        assert file.read() == kernel["source"]
    assert g.compile(y, fuse=False).kernels == []


def test_profile_has_seconds_for_each_step():
    inputs = [rand(8, 8)]
    g, out = chain(*inputs)
    plan = g.compile(out)
    calls = []
    rows = plan.profile(lambda: calls.append(plan(inputs)), 3)
    assert len(calls) == 3
    assert [tuple(row[:3]) for row in rows] == [tuple(step) for step in plan.steps]
    assert all(0 <= row[3] < 10 for row in rows) and sum(row[3] for row in rows) > 0
    with pytest.raises(TypeError):
        plan.profile(lambda: plan(inputs[:-1]))
    with pytest.raises(ValueError, match="does not run this plan"):
        plan.profile(lambda: None)
    with pytest.raises(RuntimeError, match="being profiled"):
        plan.profile(lambda: plan.profile(lambda: plan(inputs)))


def _work(target, *args):
    """Work of each step of a plan of this operator."""
    inputs = [a for a in args if isinstance(a, torch.Tensor)]
    g = Graph(*inputs)
    values = iter(g.values)
    result = g.op(target, *[next(values) if isinstance(a, torch.Tensor) else a for a in args])
    plan = g.compile(*[v for v in (result if isinstance(result, list) else [result]) if v.tensor is not None])
    return [work for work in plan.work if work != (0, 0)]


def test_work_of_products_is_their_multiplications_and_additions():
    a, b, bias = torch.randn(3, 5), torch.randn(5, 7), torch.randn(7)
    assert _work(torch.ops.aten.mm.default, a, b) == [(2 * 3 * 5 * 7, 4 * (15 + 35 + 21))]
    assert _work(torch.ops.aten.addmm.default, bias, a, b) == [(2 * 3 * 5 * 7, 4 * (7 + 15 + 35 + 21))]
    assert _work(torch.ops.aten.add.Tensor, a, a) == []


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("wanted", [(True, True, False), (False, True, False), (True, False, True)])
def test_work_of_convolutions_and_their_gradients(transposed, wanted):
    x, w = torch.randn(2, 6, 8, 8), torch.randn(6, 3, 3, 3) if transposed else torch.randn(4, 3, 3, 3)
    rest = ([1, 1], [0, 0], [1, 1], transposed, [0, 0], 2)
    out = torch.ops.aten.convolution.default(x, w, None, *rest)
    flops = 2 * (x if transposed else out).numel() * 3 * 9
    assert _work(torch.ops.aten.convolution.default, x, w, None, *rest)[0][0] == flops
    backward = (out, x, w, [0], *rest, list(wanted))
    assert _work(torch.ops.aten.convolution_backward.default, *backward)[0][0] == flops * sum(wanted[:2])
