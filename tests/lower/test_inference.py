"""Programs without autograd: same values, same mutations, same aliases as eager."""

import pytest
import torch
import torch.nn.functional as F

from magpy import lower
from magpy.lower import LoweringError, Value

from .sketch import Run, flat


def check(fn, *args, exact=False, **tol):
    """fn lowered on args gives eager's results and leaves eager's inputs."""
    eager_args = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    state = torch.random.get_rng_state()
    want = flat(fn(*eager_args))
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    run = Run(fn, *args)
    assert run.info["kind"] == "inference"
    got = run()
    assert torch.equal(torch.random.get_rng_state(), after), "as many random numbers as eager"
    for g, w in zip(got, want, strict=True):
        assert g.stride() == w.stride() and g.dtype == w.dtype
        torch.testing.assert_close(g, w, **(dict(rtol=0, atol=0) if exact else tol))
    for a, e in zip(args, eager_args, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, e)
    return run, got


def shares(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


# -- Values -----------------------------------------------------------------------------------------------------------

X = torch.randn(4, 8)
PROGRAMS = {
    "pointwise": lambda x: (x.sigmoid() * x.tanh() + x.exp(), F.gelu(x), F.silu(x), F.hardswish(x)),
    "softmax": lambda x: (x.softmax(-1), F.log_softmax(x, 0)),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x.view(1, 4, 8), 2),
    "losses": lambda x: (F.mse_loss(x, x * 2), F.smooth_l1_loss(x, x + 1), F.cross_entropy(x, torch.tensor([0, 3, 7,
    1]))), "matmul": lambda x: (x @ x.T, torch.einsum("ij,kj->ik", x, x), F.linear(x, x), torch.bmm(x[None],
    x.T[None])), "shapes": lambda x: (torch.stack([x, x]), torch.cat([x, x], 1), *x.split(3), *x.unbind(1)[:2],
    x.roll(1, 0), x.flip(1)), "make": lambda x: (torch.arange(8) + x, torch.zeros_like(x), x.new_ones(3),
    torch.full((2,), 7), torch.eye(3)), "index": lambda x: (x[:, 1], x[1:3, ::2], x[torch.tensor([0, 2])], x[...,
    None].expand(-1, -1, 2), x.gather(1, x.argsort(1))), "attention": lambda x:
    F.scaled_dot_product_attention(x.view(1, 2, 2, 8), x.view(1, 2, 2, 8), x.view(1, 2, 2, 8), is_causal=True), "max":
    lambda x: (x.max(1), x.sort(0), x.topk(2), x.argmax()),
    "convolution": lambda x: F.max_pool2d(F.conv2d(x.view(1, 1, 4, 8), x.view(2, 1, 4, 4)[:, :, :2, :2], padding=1), 2),
    "reductions": lambda x: (x.mean(), x.var(0), x.std(), x.norm(), x.logsumexp(1), x.all(), x.any(1), x.cumsum(0),
    x.prod(1)), "masks": lambda x: (x.masked_fill(x > 0, -1), torch.where(x > 0, x, 0), x.tril(), x.clamp(-1, 1)),
    "complex": lambda x: torch.view_as_real(torch.fft.rfft(x)),
    "numbers": lambda x: (torch.div(7, 2), torch.add(x.shape[0], 1), x * torch.mul(2, 3)),
    "half": lambda x: F.softmax(F.layer_norm(x.bfloat16(), (8,)), -1).float(),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_are_those_of_eager(name):
    check(PROGRAMS[name], X.clone(), rtol=2e-6, atol=2e-6)


def test_a_module_whose_parameters_require_grad_runs_under_no_grad():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU()).eval()
    with torch.no_grad():
        run, (got,) = check(net, X.clone())
    assert not got.requires_grad


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_modules(kind):
    net = getattr(torch.nn, kind)(8, 5, num_layers=2, bidirectional=True)
    with torch.no_grad():
        check(lambda x: net(x[None])[0], X.clone())


def test_a_transformer_layer():
    net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train()
    with torch.no_grad():
        check(lambda x: net(x[None]), X.clone())


# -- Random numbers ---------------------------------------------------------------------------------------------------

RANDOM = {
    "dropout": lambda x: (F.dropout(x), F.dropout(x, 0.2), F.dropout(x, 0.0), F.dropout(x, 1.0)),
    "other dropouts": lambda x: (F.alpha_dropout(x, 0.3, True), F.dropout1d(x, 0.5, True), F.feature_alpha_dropout(x,
    0.3, True)), "makers": lambda x: (torch.rand(3), torch.randn_like(x), torch.randint(9, (4,)), torch.randperm(5),
    torch.rand_like(x)), "in place": lambda x: (x.clone().uniform_(), x.clone().normal_(1, 2),
    x.clone().bernoulli_(0.3), x.clone().exponential_()), "bernoulli": lambda x: (torch.bernoulli(x.sigmoid()),
    torch.multinomial(x.softmax(1), 2), torch.normal(x, 1.0)), "rrelu": lambda x: F.rrelu(x, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.4),
    "not transposed": lambda x: F.dropout(x.t()),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_those_of_eager(name):
    check(RANDOM[name], X.clone())


def test_unused_random_numbers_are_still_drawn():
    def fn(x):
        torch.rand(3), F.dropout(x)
        return x + torch.rand(8)

    check(fn, X.clone(), exact=True)


def test_equal_draws_are_not_merged():
    run, (a, b) = check(lambda x: (F.dropout(x), F.dropout(x)), X.clone())
    assert not torch.equal(a, b)


# -- Mutation ---------------------------------------------------------------------------------------------------------


def test_an_input_is_written_only_by_the_commit():
    x = X.clone()
    run = Run(lambda x: x.mul_(2).add(1), x)
    before = x.clone()
    outs = run.lowered.runner([x])
    assert run.lowered.mutated == (0,) and torch.equal(x, before)
    assert torch.equal(outs[0], before * 2) and torch.equal(outs[1], before * 2 + 1)


def assign(x, y):
    x[0] = y[1]
    x[1:3, ::2] = 5
    x[:, 3] += y[:, 0]
    y.copy_(x)
    return x.sum()


def swap(x, y):
    old = x.clone()
    x.copy_(y)
    y.copy_(old)
    return old


@pytest.mark.parametrize("fn", [assign, swap])
def test_mutations_of_two_inputs(fn):
    check(fn, X.clone(), torch.randn(4, 8))


def test_view_of_an_intermediate_sees_later_writes():
    def fn(x):
        y = x + 1
        v = y.view(-1)
        y[0] = 0
        v[9:12] = 7
        return y, v

    run, (y, v) = check(fn, X.clone(), exact=True)
    assert shares(y, v)


def test_batch_norm_statistics_are_committed_last():
    net, twin = torch.nn.BatchNorm1d(8), torch.nn.BatchNorm1d(8)
    x = X.clone()
    with torch.no_grad():
        start = [b.clone() for b in net.buffers()]
        run = Run(net, x)
        for b, s in zip(net.buffers(), start, strict=True):
            b.copy_(s)
        outs = run.lowered.runner(run.inputs)
        assert all(torch.equal(b, s) for b, s in zip(net.buffers(), start, strict=True))
        got, want = run(), twin(x)
    assert len(run.lowered.mutated) == 3 and len(outs) == 4
    torch.testing.assert_close(got[0], want)
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


# -- Aliases ----------------------------------------------------------------------------------------------------------


def test_an_output_that_is_an_input_is_that_object():
    x = X.clone()
    run, got = check(lambda x: (x, x.add_(1), F.dropout(x, training=False)), x)
    assert all(g is x for g in got)


def test_views_of_an_input_share_its_memory():
    x = X.clone()
    run, got = check(lambda x: (x.view(-1), x[1:, ::2], x.T, x.detach(), x.expand(2, 4, 8)), x)
    assert all(shares(g, x) and g is not x for g in got)


def test_a_view_of_a_changed_input_shares_its_memory():
    x = X.clone()

    def fn(x):
        v = x[1]
        x.add_(1)
        return v, x.view(-1)

    run, (v, w) = check(fn, x)
    assert shares(v, x) and shares(w, x)


def test_a_copy_of_an_input_shares_nothing():
    x = X.clone()
    run, got = check(lambda x: (x.clone(), x.clone().view(-1), x.contiguous().clone()), x)
    assert not any(shares(g, x) for g in got)
    assert not shares(got[0], got[1])


def test_equal_outputs_are_different_tensors():
    run, (a, b) = check(lambda x: (x + 1, x + 1), X.clone(), exact=True)
    assert not shares(a, b)


def test_dropout_that_drops_nothing_returns_its_input_where_eager_does():
    x = X.clone()
    run, (got,) = check(lambda x: F.dropout(x * 1, 0.0), x)
    assert not shares(got, x)


def test_a_view_of_a_parameter_requires_grad_as_in_eager():
    w = torch.nn.Parameter(X.clone())
    with torch.no_grad():
        run = Run(lambda w: (w.view(-1), w.detach()), w)
        view, detached = run()
        assert view.requires_grad == w.view(-1).requires_grad and not detached.requires_grad
    assert shares(view, w) and shares(detached, w)


# -- Modes ------------------------------------------------------------------------------------------------------------


def test_grad_mode_regions_are_put_back():
    def fn(x):
        with torch.no_grad():
            y = x * 2
            with torch.enable_grad():
                z = y + 1
        return z

    check(fn, X.clone())
    assert torch.is_grad_enabled()


def test_failure_in_a_grad_mode_region_restores_grad_mode():
    ops = (
        (torch._C._set_grad_enabled, (False,), None, None, True, "a"),
        (torch.nonzero, (Value(0),), None, Value(1), False, "b"),
    )
    with pytest.raises(LoweringError, match="nonzero"):
        lower.lower(ops, [X], [0], [1], {})
    assert torch.is_grad_enabled()


def test_autocast_calls_as_operators():
    set_on = (torch.set_autocast_enabled, ("cpu", True), None, None, True, "")
    set_off = (torch.set_autocast_enabled, ("cpu", False), None, None, True, "")
    product = lambda out: (torch.mm, (Value(0), Value(0)), None, Value(out), False, "")  # noqa: E731
    x = torch.randn(4, 4)
    low = lower.lower((set_on, product(1), set_off, product(2)), [x], [0], [1, 2], {})
    a, b = low.runner([x])
    assert (a.dtype, b.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(b, x @ x)
    assert not torch.is_autocast_enabled("cpu")


def test_inference_mode_gives_inference_tensors():
    x = X.clone()
    with torch.inference_mode():
        run = Run(lambda x: x.sin() + 1, x)
        (got,) = run()
        torch.testing.assert_close(got, x.sin() + 1)


# -- Constants and functions ------------------------------------------------------------------------------------------


def test_tensors_made_from_data():
    check(
        lambda x: (x + torch.tensor([1.0] * 8), x * torch.tensor(2.5), torch.tensor([[1, 2], [3, 4]])),
        X.clone(),
        exact=True,
    )


def test_a_constant_is_not_changed_by_a_run():
    run = Run(lambda x: torch.tensor([1.0, 2.0]).add_(x), torch.ones(2))
    first, second = run()[0].clone(), run()[0]
    assert torch.equal(first, second)


def test_autograd_function_is_one_operator():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    ops = ((Double.apply, (Value(0),), None, Value(1), False, ""), (torch.sin, (Value(1),), None, Value(2), False, ""))
    low = lower.lower(ops, [X], [0], [2], {})
    torch.testing.assert_close(low.runner([X])[0], (X * 2).sin())


def test_script_function():
    @torch.jit.script
    def f(x):
        return x.relu() + 1

    ops = ((f, (Value(0),), None, Value(1), False, ""),)
    assert torch.equal(lower.lower(ops, [X], [0], [1], {}).runner([X])[0], X.relu() + 1)


def test_getters_and_slices():
    ops = (
        (torch.Tensor.T.__get__, (Value(0),), None, Value(1), False, ""),
        (torch.Tensor.shape.__get__, (Value(0),), None, (4, 8), False, ""),
        (torch.Tensor.data.__get__, (Value(1),), None, Value(2), False, ""),
        (torch.Tensor.__getitem__, (Value(2), (slice(1, None), None)), None, Value(3), False, ""),
        (torch.Tensor.item, (Value(3),), None, 1.0, False, ""),
    )
    (got,) = lower.lower(ops, [X], [0], [3], {}).runner([X])
    assert torch.equal(got, X.T[1:, None])


# -- Refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "size is data": ((torch.nonzero, (Value(0),), None, Value(1), False, "here"),),
    "metadata and data of an input": ((torch.Tensor.t_, (Value(0),), None, Value(0), False, "here"), (torch.Tensor.add_,
    (Value(0), 1), None, Value(0), False, ""), (torch.sin, (Value(0),), None, Value(1), False, "")),
    "hook": ((torch.Tensor.register_hook, (Value(0), print), None, None, False, "here"),
    (torch.sin, (Value(0),), None, Value(1), False, "")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_an_error(name):
    with pytest.raises(LoweringError):
        lower.lower(REFUSED[name], [X.clone()], [0], [1], {})


def test_inputs_that_share_changed_memory_are_refused():
    base = torch.randn(8)
    ops = ((torch.Tensor.add_, (Value(0), Value(1)), None, Value(0), False, ""),)
    with pytest.raises(LoweringError, match="shares memory"):
        lower.lower(ops, [base[:4], base[4:]], [0, 1], [0], {})


def test_texts():
    run = Run(lambda x: x.sin(), X.clone())
    assert "sin" in str(run.info["fx"]) and "aten.sin.default" in str(run.info["aten"])


def test_a_view_of_a_changed_input_that_lies_elsewhere_in_memory():
    for make in (lambda: torch.randn(12)[4:], lambda: torch.randn(4, 2).T, lambda: torch.randn(9, 4)[::2]):
        x = make()

        def fn(x):
            x.add_(1)
            return x[1:], x

        before = x.clone()
        try:
            run = Run(fn, x)
        except LoweringError:
            continue
        view, same = run()
        assert same is x and shares(view, x)
        assert torch.equal(x, before + 1) and torch.equal(view, x[1:])


# -- Copies that are left out -----------------------------------------------------------------------------------------


def _assigned(x):
    made = torch.zeros(2, 4, 5)
    made[:] = x
    return made


COPIES = {
    "clone": torch.clone,
    "contiguous": lambda x: x.contiguous().clone(),
    "times one": lambda x: x * 1.0,
    "cast": lambda x: x.double().float(),
    "assigned": _assigned,
    "padded": lambda x: F.pad(x, (0, 0)),
}


@pytest.mark.parametrize("name", COPIES)
def test_views_of_copies_of_a_part_of_something(name):
    copy = COPIES[name]

    def program(x):
        results = []
        for part in (x[1:], x.view(3, 5, 4).transpose(1, 2)[1:], x[2:].expand(2, 4, 5), x.flip(0)[1:]):
            y = copy(part)
            views = (
                y[None],
                y.reshape(-1, 2),
                y[1, 1:],
                y.mT,
                y[:1, 2],
                y.flatten()[9:].as_strided((2, 3), (2, 3), 7),
                y.unbind(1)[2],
            )
            results += [v + 1 for v in views]
            z = torch.zeros(3, 5)
            z[:1, 2] = y[1, :1, 0]
            results.append(z)
        return tuple(results)

    check(program, torch.randn(3, 4, 5), exact=True)
