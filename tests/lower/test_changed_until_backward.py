"""What the backward pass reads of inputs: their data as it is by then, where eager keeps the tensor itself; as it was,
where eager keeps what was computed of it. The difference shows when data is changed behind the version counter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.counting import Counted

Program = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PROGRAMS: dict[str, Program] = {
    "mul": lambda x, w: x * w,
    "div": lambda x, w: x / w,
    "add then mul": lambda x, w: (x + w) * w,
    "of a result": lambda x, w: x.exp() * (w * 2 + 1),
    "linear": lambda x, w: F.linear(x, w),
    "linear of a result": lambda x, w: F.linear(x.sin(), w.cos()),
    "matmul": lambda x, w: x @ w.t(),
    "silu": lambda x, w: F.silu(x) + F.silu(w),
    "gelu": lambda x, w: F.gelu(x) * F.gelu(w),
    "tanh": lambda x, w: torch.tanh(x) * torch.tanh(w),
    "exp": lambda x, w: x.exp() * w.exp(),
    "log": lambda x, w: x.abs().log() + w.pow(2).log(),
    "pow": lambda x, w: x.pow(3) + w**2,
    "sqrt": lambda x, w: (x * x + 1).sqrt() * w.abs().sqrt(),
    "sin": lambda x, w: x.sin() * w.sin(),
    "clamp": lambda x, w: x.clamp(-0.5, 0.5) * w.clamp(min=0),
    "relu": lambda x, w: F.relu(x) * F.relu(w),
    "where": lambda x, w: torch.where(x > 0, x * 2, w),
    "maximum": lambda x, w: torch.maximum(x, w) + torch.minimum(x * 2, w),
    "softmax": lambda x, w: x.softmax(-1) * w.log_softmax(-1),
    "layer norm": lambda x, w: F.layer_norm(x, (3,), w[0], w[1]),
    "norm": lambda x, w: x.norm() * w.norm(dim=-1, keepdim=True),
    "mse": lambda x, w: F.mse_loss(x, w) + F.smooth_l1_loss(x, w * 2),
    "amax": lambda x, w: x.amax(-1, keepdim=True) * w.amax(0),
    "std": lambda x, w: x.std(-1, keepdim=True) * w.var(),
    "cumprod": lambda x, w: x.cumprod(-1) * w.cumsum(0),
    "copies": lambda x, w: (
        (x * 1).sin() * w.clone().exp() + x.to(torch.float32, copy=True).cos() + w.repeat(1, 1).sin()
    ),
    "copies and themselves": lambda x, w: x.clone() * x + (w.clone() * w.clone()).view(-1)[2] / w,
    "copies of results": lambda x, w: (x * w).clone().sin() * (y := x + w) * y.clone().cos(),
    "prod": lambda x, w: x.prod() + torch.prod(w * 1),
    "prod along": lambda x, w: x.prod(-1, keepdim=True) * w.prod(0) + torch.prod(x + 1, dim=1),
    "prod of another type": lambda x, w: x.prod(dtype=torch.float64) + w.prod(1, dtype=torch.float64),
    "atan2": lambda x, w: torch.atan2(x, w),
    "gather": lambda x, w: x.gather(1, torch.tensor([[0, 2], [1, 1], [0, 0]])) * w[:, :2],
    "double": lambda x, w: x.double() * w.double(),
    "two of them": lambda x, w: (x * w).sin() + (x * w).cos() + x / (w + 3),
}


def gradients(call: Program, change: Callable[[torch.Tensor], Any]) -> list[Any]:
    x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5], [-2.0, 1.0, 0.75]], requires_grad=True)
    w = torch.tensor([[1.0, -0.5, 0.25], [2.0, 0.5, -1.5], [0.75, 1.25, -0.25]], requires_grad=True)
    out = call(x, w)
    for t in (x, w):
        change(t)
    out.sum().backward()
    return [x.grad, w.grad]


def added(t: torch.Tensor) -> None:
    t.data.add_(0.3)


def turned(t: torch.Tensor) -> None:
    t.data.neg_()


@pytest.mark.parametrize("change", [added, turned], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", PROGRAMS)
def test_data_changed_behind_the_counter(name: str, change: Callable[[torch.Tensor], Any]) -> None:
    program = PROGRAMS[name]
    fast = torch.compile(program, backend="magpy")
    expected = gradients(program, change)
    gradients(fast, lambda t: None)
    with Counted() as counted:
        actual = gradients(fast, change)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert counted.hits == 1


COPIES = {
    "clone": lambda x: (x.clone(), x.clone().sin()),
    "times one": lambda x: (x * 2, (x * 1).exp() * x.detach()),
    "contiguous": lambda x: (x * 2, x.t().contiguous().t().contiguous().sin()),
    "clone of a result": lambda x: (y := x * 2, y.clone().sin()),
    "clone of a detached result": lambda x: (y := x.exp(), y.detach().clone() * y.sin()),
    "clone of a view": lambda x: (y := x * 2, y[0].clone().sin().sum()),
}


@pytest.mark.parametrize("changed", ["input", "result"])
@pytest.mark.parametrize("name", COPIES)
def test_changes_of_what_was_copied(name: str, changed: str) -> None:
    """They are nothing to the copy: with the counter moved, too."""

    def run(call: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | str | None:
        x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], requires_grad=True)
        first, second = call(x)
        with torch.no_grad():
            (x if changed == "input" else first).add_(1)
        try:
            second.sum().backward()
        except RuntimeError as error:
            return str(error)[:40]
        return x.grad

    fast = torch.compile(COPIES[name], backend="magpy")
    expected = run(COPIES[name])
    with Counted() as counted:
        for _ in range(3):
            torch.testing.assert_close(run(fast), expected) if isinstance(expected, torch.Tensor) else None
            assert isinstance(expected, torch.Tensor) or run(fast) == expected
    assert counted.hits >= 2


class Returning(nn.Module):
    """Also gives a view that has no gradient: the results share memory."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        return y, y.detach()


NETS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.BatchNorm1d(3),
    "norm without weights": lambda: nn.BatchNorm1d(3, affine=False),
    "behind a layer": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()),
    "two": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3)),
    "instance norm": lambda: nn.InstanceNorm1d(3, track_running_stats=True, affine=True),
    "results that share memory": lambda: Returning(nn.BatchNorm1d(3)),
}


@pytest.mark.parametrize("modes", [(False, True), (True, False), (False, True, True, False)], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_statistics_that_a_later_call_changes(name: str, modes: tuple[bool, ...]) -> None:
    def run(wrap: Callable[[nn.Module], Any]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = NETS[name]()
        call = wrap(net)
        seen: list[torch.Tensor] = []
        for _ in range(3):
            inputs = [torch.randn(4, 3, 5).add(2).requires_grad_() for _ in modes]
            if name == "behind a layer":
                inputs = [torch.randn(6, 3).add(2).requires_grad_() for _ in modes]
            results = []
            for x, mode in zip(inputs, modes, strict=True):
                net.train(mode)
                out = call(x)
                results.append(out[0] if isinstance(out, tuple) else out)
            net.zero_grad()
            for out in results:
                out.pow(2).sum().backward()
            seen += [x.grad for x in inputs if x.grad is not None]
            seen += [p.grad.clone() for p in net.parameters() if p.grad is not None]
            seen += [b.clone() for b in net.buffers()]
        return seen

    expected = run(lambda net: net)
    actual = run(lambda net: torch.compile(net, backend="magpy"))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)


RESULTS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "used again": lambda x: (x.exp(), x.exp().sin()),
    "used twice": lambda x: (y := x.exp(), y.sin() * y.cos()),
    "used by several": lambda x: (y := x * 2, torch.sigmoid(y) * (y * 2).exp()),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_changed_behind_the_counter(name: str) -> None:
    def run(call: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        for _ in range(2):
            x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], requires_grad=True)
            first, second = call(x)
            first.data.add_(0.5)
            (first.sum() + second.sum()).backward()
        assert x.grad is not None
        return x.grad

    expected = run(RESULTS[name])
    torch.testing.assert_close(run(torch.compile(RESULTS[name], backend="magpy")), expected)


# Results that show memory which the backward pass reads, under another name than it has there.
SHOWN: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "view alone": lambda x: (x.exp().view(-1),),
    "transposed": lambda x: (x.sigmoid().t(), x.sum()),
    "part": lambda x: (y := x.exp(), (y[0], (y * y).sum()))[1],
    "part in the middle": lambda x: (y := x.tanh(), (y[:, 1:], y.sum() * 2))[1],
    "detached": lambda x: (y := x.sigmoid(), (y.detach(), y * 3))[1],
    "part of a detached": lambda x: (y := x.exp(), (y.detach()[1], y.sin()))[1],
    "data": lambda x: (y := x.sigmoid(), (y.data, y * y))[1],
    "view of data": lambda x: (y := x.exp(), (y.data.view(-1), y.cos()))[1],
    "data of a view": lambda x: (y := x.exp(), (y.view(-1).data, y.cos()))[1],
    "base and view": lambda x: (y := x.exp(), (y, y.view(-1)))[1],
    "two views": lambda x: (y := x.exp(), (y.view(-1), y.t()))[1],
    "not saved": lambda x: (y := x * 2, (y.view(-1), y + 1))[1],
    "saved by another": lambda x: (y := x * 2, (y.detach(), y.sin()))[1],
    "expanded": lambda x: (y := x[:1].exp(), (y.expand(2, 3), y * 2))[1],
    "of two": lambda x: (y := x.exp(), z := y.sin(), (y.detach(), z.view(-1), (y * z).sum()))[2],
}


def no_grad(change: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def changed(t: torch.Tensor) -> None:
        with torch.no_grad():
            change(t)

    return changed


CHANGED: dict[str, Callable[[torch.Tensor], Any]] = {
    "nothing": lambda t: None,
    "added to": no_grad(lambda t: t.add_(1)),
    "a part": no_grad(lambda t: t.view(-1)[:1].mul_(2) if t.is_contiguous() else t[:1].mul_(2)),
    "with its gradient": lambda t: t.mul_(2),
    "behind the counter": lambda t: t.data.mul_(2),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("name", SHOWN)
def test_changed_results_that_show_what_is_saved(name: str, change: str) -> None:
    """Eager raises where autograd saved what is changed, or sees the new data where the change is not counted."""

    def run(call: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> list[Any]:
        seen: list[Any] = []
        for which in range(3):
            for _ in range(2):
                x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], requires_grad=True)
                results = call(x)
                changed = results[which % len(results)]
                try:
                    CHANGED[change](changed)
                    sum(t.sum() * 1.5 for t in results if t.requires_grad).backward()  # type: ignore[union-attr]
                except RuntimeError as error:
                    seen.append(re.sub(r"(?s)[:\[].*", "", str(error)))
                    continue
                seen += [x.grad, *[t.detach().clone() for t in results]]
        return seen

    expected = run(SHOWN[name])
    with Counted() as counted:
        actual = run(torch.compile(SHOWN[name], backend="magpy"))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert type(a) is type(e), (a, e)
        if isinstance(e, str):
            assert a == e
        else:
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
    assert counted.hits == 5
