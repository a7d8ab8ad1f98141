"""Programs with autograd: same losses, gradients, statistics and random numbers as eager, over several steps."""

import copy

import pytest
import torch
import torch.nn.functional as F

from magpy import lower
from magpy.lower import LoweringError, Value

from .sketch import Run, Sketch


def train(net, step, steps, opt=torch.optim.SGD, lr=0.05):
    """Losses and final parameters of `steps` steps; step(batch) -> loss."""
    torch.manual_seed(1)
    data = [torch.randn(6, 8) for _ in range(steps)]
    optimizer = opt(net.parameters(), lr=lr)
    losses = []
    for batch in data:
        optimizer.zero_grad()
        loss = step(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().clone())
    return torch.stack(losses), list(net.state_dict().values())


def check(net, loss_of, steps=20, kind="training", **tol):
    twin, recorded = copy.deepcopy(net), copy.deepcopy(net)
    x = torch.randn(6, 8)
    run = Run(lambda x: loss_of(recorded, x), x)
    assert run.info["kind"] == kind and run.info["backward_aten"] is not None
    lookup = {id(t): name for name, t in recorded.state_dict(keep_vars=True).items()}
    state = net.state_dict(keep_vars=True)

    def step(batch):
        return run([state[lookup[id(t)]] if id(t) in lookup else batch for t in run.inputs])[0]

    got = train(net, step, steps)
    want = train(twin, lambda x: loss_of(twin, x), steps)
    torch.testing.assert_close(got, want, **tol)
    return run


NETS = {
    "mlp": lambda: torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)),
    "dropout": lambda: torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Tanh(),
    torch.nn.Linear(16, 3)), "batch norm": lambda: torch.nn.Sequential(torch.nn.Linear(8, 16),
    torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)), "layer norm": lambda:
    torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 4), torch.nn.SiLU(), torch.nn.LayerNorm(4)), "conv":
    lambda: torch.nn.Sequential(torch.nn.Unflatten(1, (2, 2, 2)), torch.nn.Conv2d(2, 4, 3, padding=1),
    torch.nn.BatchNorm2d(4),
                                        torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4,
                                        3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_twenty_steps_equal_eager(name):
    check(NETS[name](), lambda net, x: F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2])), rtol=1e-4, atol=1e-5)


def test_transformer_layer_with_dropout():
    net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    check(net, lambda net, x: net(x[None]).pow(2).mean(), steps=5, rtol=1e-4, atol=1e-5)


def test_lstm():
    net = torch.nn.LSTM(8, 5)
    check(net, lambda net, x: net(x[:, None])[0].pow(2).sum(), steps=5, rtol=1e-4, atol=1e-5)


def test_statistics_are_written_only_by_the_commit():
    net = NETS["batch norm"]()
    x = torch.randn(6, 8)
    run = Run(lambda x: net(x), x)
    before = [b.clone() for b in net.buffers()]
    outs = run.lowered.runner(run.inputs)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    assert len(run.lowered.mutated) == 3 and outs[-1].requires_grad
    assert not any(o.requires_grad for o in outs[:3])


def test_no_grad_regions_cut_the_gradient():
    lin = torch.nn.Linear(8, 8)

    def loss_of(lin, x):
        with torch.no_grad():
            scale = lin(x).abs().mean()
        return (lin(x) / scale).sum()

    check(lin, loss_of, steps=3)


def test_autograd_function_keeps_its_own_gradient():
    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g.clamp(-0.1, 0.1)

    sketch = Sketch()
    w = torch.randn(4, requires_grad=True)
    run = Run(lambda w: (sketch.call(Clip.apply, w * 3) * 5).sum(), w, sketch=sketch)
    (out,) = run()
    out.backward()
    torch.testing.assert_close(w.grad, torch.full((4,), 0.3))


def test_outputs_that_are_inputs_and_views():
    w = torch.randn(4, 4, requires_grad=True)
    run = Run(lambda w: (w, w.view(-1), (w * 2).view(-1)), w)
    same, view, product = run()
    assert same is w
    assert view.data_ptr() == w.data_ptr()
    (view.sum() + product.sum()).backward()
    torch.testing.assert_close(w.grad, torch.full((4, 4), 3.0))


def test_outputs_that_share_an_intermediate():
    w = torch.randn(4, 4, requires_grad=True)

    def fn(w):
        y = w * 2
        return y, y.view(-1), y[1]

    a, b, c = Run(fn, w)()
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() == c.untyped_storage().data_ptr()
    (a.sum() + b.sum() + c.sum()).backward()
    want = torch.full((4, 4), 4.0)
    want[1] += 2
    torch.testing.assert_close(w.grad, want)


def test_gradients_of_inputs_that_are_no_leaves():
    w = torch.randn(4, requires_grad=True)
    h = w * 2
    run = Run(lambda h: h.sin(), h)
    run()[0].sum().backward()
    torch.testing.assert_close(w.grad, 2 * (2 * w.detach()).cos())


def test_unused_random_numbers_are_refused_or_drawn():
    w = torch.randn(4, requires_grad=True)

    def fn(w):
        torch.rand(3)
        return w * torch.rand(4)

    try:
        run = Run(fn, w)
    except LoweringError as error:
        assert "random" in str(error)
        return
    torch.manual_seed(3)
    (got,) = run()
    torch.manual_seed(3)
    torch.testing.assert_close(got, fn(w))


def test_a_differentiated_input_changed_in_place_is_refused():
    h = torch.randn(4, requires_grad=True) * 1
    w = torch.randn(4)
    ops = (
        (torch.Tensor.mul_, (Value(0), Value(1)), None, Value(0), False, ""),
        (torch.sin, (Value(0),), None, Value(2), False, ""),
    )
    with pytest.raises(LoweringError):
        lower.lower(ops, [h, w], [0, 1], [2], {})


def test_no_value_that_an_output_shows_is_kept_unguarded():
    """A result changed in place after the call must not change gradients silently."""
    w = torch.randn(4, 4, requires_grad=True)
    (out,) = Run(lambda w: w.exp().view(-1), w)()
    want = w.detach().exp()
    try:
        with torch.no_grad():
            out.mul_(0)
        out.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(w.grad, want)


def test_an_output_that_is_kept_is_guarded_by_its_version():
    w = torch.randn(4, 4, requires_grad=True)

    def fn(w):
        product = w @ w
        return product, product.sin()

    product, sin = Run(fn, w)()
    with torch.no_grad():
        product.mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sin.sum().backward()


def test_outputs_may_be_changed_in_place_like_eager_ones():
    w = torch.randn(4, 4, requires_grad=True)
    (out,) = Run(lambda w: (w * 2).view(-1), w)()
    out += 1
    out.sum().backward()
    torch.testing.assert_close(w.grad, torch.full((4, 4), 2.0))


def test_outputs_without_gradient_and_tangents_of_any_layout():
    w = torch.randn(4, 3, requires_grad=True)
    run = Run(lambda w: (w.sin(), w.cos(), w.argmax(1), w.detach() * 2), w)
    sin, cos, arg, plain = run()
    assert not arg.requires_grad and not plain.requires_grad
    tangent = torch.randn(3, 4).T
    sin.backward(tangent)
    torch.testing.assert_close(w.grad, w.detach().cos() * tangent)
    w.grad = None
    sin, cos, *_ = run()
    torch.autograd.backward([sin, cos], [torch.ones(()).expand(4, 3), torch.ones(3, 4).T])
    torch.testing.assert_close(w.grad, w.detach().cos() - w.detach().sin())


def test_a_kept_graph_can_be_used_twice():
    w = torch.randn(4, requires_grad=True)
    (out,) = Run(lambda w: w.sin().exp(), w)()
    out.sum().backward(retain_graph=True)
    first = w.grad.clone()
    out.sum().backward()
    torch.testing.assert_close(w.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


def test_ambient_autocast():
    lin = torch.nn.Linear(8, 8)

    def step(fn):
        lin.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = fn()
        out.float().sum().backward()
        return out, lin.weight.grad.clone()

    x = torch.randn(4, 8)
    want = step(lambda: lin(x).relu())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run = Run(lambda x: lin(x).relu(), x)
    got = step(lambda: run()[0])
    torch.testing.assert_close(got, want)


def test_few_values_are_kept():
    """Pointwise chains are computed again in the backward pass; what matrix products give is kept."""
    a, b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    run = Run(lambda x: b(F.gelu(a(x)) * 2 + 1).sum(), torch.randn(6, 8))
    joint = run.lowered.runner.joint
    kept = [joint.forward.outputs[k].node.target for k in joint.kept]
    assert [str(target) in ("aten.addmm.default", "magpy.matmul.default") for target in kept] == [True]
    assert len(joint.kept_inputs) == 2  # x and the second weight


def test_random_draws_are_never_repeated():
    run = Run(lambda w: F.dropout(w, 0.5).sin().sum(), torch.randn(64, requires_grad=True))
    joint = run.lowered.runner.joint
    draws = [sum("bernoulli" in str(n.target) for n in g.nodes) for g in (joint.forward, joint.backward)]
    assert draws == [1, 0]


def test_outputs_that_share_memory_but_no_gradient():
    w = torch.randn(4, 4, requires_grad=True)

    def fn(w):
        y = w * 2
        return y, y.detach()

    run = Run(fn, w)
    y, shown = run()
    assert run.info["kind"] == "training" and y.data_ptr() == shown.data_ptr() and not shown.requires_grad
