"""Gradients of compiled programs: which exist, what they are, and when hooks see them, as in eager."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.compare import assert_same_state
from tests.counting import Counted


class Several(nn.Module):
    """Outputs that depend on different parameters; one is integer, one is constant, one is an input, one depends on
    nothing that is differentiated."""

    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(5, 3)
        self.frozen = nn.Linear(6, 2).requires_grad_(False)
        self.alone = nn.Parameter(torch.randn(3))
        self.dead = nn.Parameter(torch.randn(3))

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        a, b = self.a(h), self.b(h)
        return {
            "a": a,
            "b": b.relu(),
            "h": h,
            "alone": (self.alone * 2).exp(),
            "sign": torch.sign(self.a.weight),  # differentiable, with a gradient of zeros
            "infinite": torch.sqrt(self.alone * 0),
            "frozen": self.frozen(x.detach()),
            "arg": a.argmax(-1),
            "x": x,
        }


DIFFERENTIABLE = ["a", "b", "h", "alone", "sign", "infinite"]


@pytest.fixture
def several():
    torch.manual_seed(0)
    model = Several()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="magpy")
    x = torch.randn(7, 6, requires_grad=True)
    compiled(x)
    return model, compiled, reference, x


def clear(*modules):
    for module in modules:
        module.zero_grad(set_to_none=True)


SUBSETS = [c for n in (1, 2, 3, 6) for c in itertools.combinations(DIFFERENTIABLE, n)]


def test_each_subset_of_outputs_differentiated(several):
    model, compiled, reference, x = several
    for names in SUBSETS:
        clear(model, reference)
        grads = []
        for call in (reference, compiled):
            own = x.detach().clone().requires_grad_()
            with Counted() as counted:
                outs = call(own)
            if call is compiled:
                counted.assert_hit()
            assert [k for k, v in outs.items() if v.requires_grad] == [*DIFFERENTIABLE, "x"]
            sum(outs[name].square().sum() for name in names).backward(retain_graph=True)
            sum(outs[name].sum() for name in names).backward()
            grads.append(own.grad)
        assert_same_state(model, reference)
        assert (grads[0] is None) == (grads[1] is None), names
        if grads[0] is not None:
            torch.testing.assert_close(grads[1], grads[0])


def test_grad_with_respect_to_some_inputs(several):
    model, compiled, reference, x = several
    for names in (["a"], ["h", "b"], ["alone"]):
        results = []
        for module, call in ((reference, reference), (model, compiled)):
            outs = call(x)
            wanted = [x, module.a.weight, module.b.bias, module.alone, module.dead]
            loss = sum(outs[n].sum() for n in names)
            results.append(torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True))
            results.append(torch.autograd.grad(loss, wanted[:1] if names != ["alone"] else wanted[3:4]))
        for a, b in ((results[0], results[2]), (results[1], results[3])):
            assert [t is None for t in a] == [t is None for t in b]
            torch.testing.assert_close([t for t in b if t is not None], [t for t in a if t is not None])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_backward_under_a_grad_mode(several, mode):
    model, compiled, reference, x = several
    clear(model, reference)
    for call in (reference, compiled):
        loss = call(x.detach())["a"].sum()
        with mode():
            loss.backward()
    assert_same_state(model, reference)


def test_hooks_of_parameters_run_as_often_with_the_same_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    reference = copy.deepcopy(model)
    logs = {}

    def install(module, log):
        for name, p in module.named_parameters():
            p.register_hook(lambda g, n=name: log.append((n, "grad", g.clone())) or g * 2)
            p.register_post_accumulate_grad_hook(lambda p, n=name: log.append((n, "after", p.grad.clone())))

    for module in (model, reference):
        install(module, logs.setdefault(id(module), []))
    compiled = torch.compile(model, backend="magpy")
    x = torch.randn(3, 4)
    for _ in range(3):
        reference(x).sum().backward()
        compiled(x).sum().backward()
    assert_same_state(model, reference)
    order = lambda log: sorted(log, key=lambda row: row[:2])  # noqa: E731  (stable: each parameter's calls in order)
    for a, b in zip(order(logs[id(model)]), order(logs[id(reference)]), strict=True):
        assert a[:2] == b[:2]
        torch.testing.assert_close(a[2], b[2])


def test_parameters_frozen_and_thawed_between_calls():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="magpy")
    x = torch.randn(3, 4)
    for frozen in ((), (0,), (0, 2), (2,), (), (0,)):
        clear(model, reference)
        for module, call in ((reference, reference), (model, compiled)):
            for i in (0, 2):
                module[i].requires_grad_(i not in frozen)
            out = call(x)
            assert out.requires_grad == (len(frozen) < 2)
            if out.requires_grad:
                out.square().sum().backward()
        assert_same_state(model, reference)


def test_gradients_accumulate_scale_and_clip():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="magpy")
    torch.manual_seed(1)
    batches = [torch.randn(3, 4) for _ in range(6)]
    for module, call in ((reference, reference), (model, compiled)):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for step, x in enumerate(batches):
            (call(x).square().mean() * 1024).backward()
            if step % 2:
                for p in module.parameters():
                    p.grad.div_(1024)
                nn.utils.clip_grad_norm_(module.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 4 == 1)
    assert_same_state(model, reference)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.inner = nn.Linear(8, 8)
        self.again = self.inner
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.again(self.inner(self.embed(ids)).tanh()))


def test_shared_parameters():
    torch.manual_seed(0)
    model = Tied()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="magpy")
    ids = torch.tensor([[0, 3, 3, 5], [1, 2, 0, 0]])
    for _ in range(3):
        for call in (reference, compiled):
            F.cross_entropy(call(ids).flatten(0, 1), ids.flatten(), ignore_index=0, label_smoothing=0.1).backward()
    assert_same_state(model, reference)


def test_bfloat16_autocast_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="magpy")
    x, y = torch.randn(8, 16), torch.randint(0, 4, (8,))
    for _ in range(3):
        outs = []
        for module, call in ((reference, reference), (model, compiled)):
            module.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outs.append(call(x))
                loss = F.cross_entropy(outs[-1], y)
            loss.backward()
        assert outs[0].dtype == outs[1].dtype
    assert_same_state(model, reference, rtol=2e-2, atol=2e-2)


def test_double_backward_names_the_reason_and_first_order_still_works():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    compiled = torch.compile(net, backend="magpy")
    x = torch.randn(2, 4, requires_grad=True)
    compiled(x)
    torch.manual_seed(0)
    (g,) = torch.autograd.grad(compiled(x).square().sum(), x, create_graph=True)
    torch.manual_seed(0)
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    torch.testing.assert_close(g.detach(), expected)
    with pytest.raises(RuntimeError, match="double backward through a region compiled by magpy that draws random"):
        g.square().sum().backward()


def test_inputs_that_are_no_leaves_and_retain_their_gradient():
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="magpy")
    w = torch.randn(3, 4, requires_grad=True)
    grads = []
    for call in (model, compiled, compiled):
        h = w * 3
        h.retain_grad()
        w.grad = None
        (call(h).sin().sum() + h.sum()).backward()
        grads.append((w.grad, h.grad))
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


def parts(w, v):
    return (w * 2).chunk(2)


def base_and_views(w, v):
    y = torch.relu(w * v)
    return y, y.t(), y[1], y.view(-1)[3:]


def views_changed_in_place(w, v):
    y = w * v
    y[0] += 1
    y.t().mul_(2)
    return y, y[1:]


def views_of_inputs(w, v):
    return w.t(), w[1], (w * v).sum()


def detached_view(w, v):
    y = w * v
    return y, y.detach()


def reversed_gradient(w, v):
    y = w * v
    return Reverse.apply(w), y, Reverse.apply(y)


@pytest.mark.parametrize(
    "fn",
    [parts, base_and_views, views_changed_in_place, views_of_inputs, detached_view, reversed_gradient],
    ids=lambda f: f.__name__,
)
def test_outputs_that_share_memory(fn):
    compiled = torch.compile(fn, backend="magpy")
    w, v = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    compiled(w, v)
    for k in range(len(fn(w, v))):
        grads = []
        for call in (fn, compiled):
            w.grad = v.grad = None
            outs = call(w, v)
            if outs[k].requires_grad:
                (outs[k].sin() * torch.arange(outs[k].numel()).view(outs[k].shape)).sum().backward()
            grads.append((w.grad, v.grad, *[o.detach() for o in outs]))
            storages = [o.untyped_storage().data_ptr() for o in outs]
            grads[-1] += (torch.tensor([a == b for a in storages for b in storages]),)
        for a, e in zip(grads[1], grads[0], strict=True):
            assert (a is None) == (e is None), k
            if e is not None:
                assert a.stride() == e.stride()
                torch.testing.assert_close(a, e)
