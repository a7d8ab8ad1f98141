"""Traps that torch lays: fast paths, modes, tensors that appear unseen, what autograd keeps, layers with state."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)
pytestmark = pytest.mark.filterwarnings("ignore")


def fixed(module: nn.Module) -> nn.Module:
    """The module with weights that do not depend on what was drawn before."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


# -- 1: a torch-function mode is visible ------------------------------------------------------------------------------


def test_encoder_and_attention_keep_their_fast_path():
    def scenario(wrap):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        encoder = fixed(nn.TransformerEncoder(layer, 2)).eval()
        attention = fixed(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
        x = torch.arange(80.0).view(2, 5, 8).sin()
        mask = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
        fast, fast_attention = wrap(encoder), wrap(attention)
        with torch.no_grad():
            for _ in range(3):
                yield fast(x), fast(x, src_key_padding_mask=mask)
                yield fast_attention(x, x, x), fast_attention(x, x, x, key_padding_mask=mask)

    same_as_eager(scenario)


def test_program_asks_for_torch_functions():
    def scenario(wrap):
        def program(x):
            seen = torch.overrides.has_torch_function((x,)), torch._C._len_torch_function_stack()
            return x * (2 if seen[0] else 3), seen

        fast = wrap(program)
        for _ in range(3):
            yield fast(X)
        with torch.overrides.BaseTorchFunctionMode():
            yield fast(X), fast(X)
        yield fast(X)

    same_as_eager(scenario)


# -- 4: tensors that the mode does not see ----------------------------------------------------------------------------


@torch.jit.script
def scripted(x, n: int):
    return x * n + 1


def _storage(x):
    y = x * 2
    y.untyped_storage()[0] = 3
    return y + 1


def _disabled(x):
    with torch._C.DisableTorchFunction():
        y = x * 2
    return y + 1


def _attributes(x):
    y = x * 2
    y.note = "mine"
    return y + len(y.note)


UNSEEN: dict[str, Any] = {
    "script function": lambda x: scripted(x, 3) * 2,
    "from_numpy": lambda x: torch.from_numpy(np.ones(4, dtype="float32")) + x,
    "frombuffer": lambda x: torch.frombuffer(bytearray(16), dtype=torch.float32) + x,
    "legacy constructor": lambda x: torch.FloatTensor([1.0, 2.0, 3.0, 4.0]) + x,
    "parameter": lambda x: nn.Parameter(torch.ones(4)) * x,
    "new module": lambda x: nn.Identity()(x) * nn.ReLU()(x),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:2]]).to_padded_tensor(0.0),
    "disabled": _disabled,
    "storage": _storage,
    "attributes": _attributes,
    "numpy and back": lambda x: torch.from_numpy(np.tanh(x.numpy())) * 2,
    "array function": lambda x: torch.as_tensor(np.add(x.numpy(), 1)) + x,
    "tensor of list": lambda x: torch.tensor([1.0, 2.0, 3.0, 4.0]) * x,
    "tensor of a number of data": lambda x: torch.tensor(x.sum().item()) * x,
    "sparse": lambda x: torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (4,)).to_dense() * x,
    "dlpack": lambda x: torch.from_dlpack(x) + 1,
    "iteration": lambda x: sum(t * i for i, t in enumerate(x)),
    "builtin sum and max": lambda x: sum([x, x]) + max(x[0], x[1]),
    "new": lambda x: x.new_tensor([1.0]) + x.new_zeros(4),
    "list indexed by a tensor": lambda x: x * [1.0, 2.0, 3.0][torch.tensor(1)],
    "data": lambda x: x.data * 2 + x.detach(),
    "map": lambda x: torch.stack(list(map(torch.neg, [x, x * 2]))),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_tensors_of_other_makers(name):
    def scenario(wrap):
        fast = wrap(UNSEEN[name])
        for k in (1.0, 1.0, 2.0, 3.0):
            yield attempt(fast, torch.arange(4.0) * k)

    same_as_eager(scenario)


def test_gradients_read_inside():
    def scenario(wrap):
        w = torch.ones(4, requires_grad=True)

        def program(x):
            return x if w.grad is None else x * w.grad

        fast = wrap(program)
        yield fast(X), fast(X)
        (w * 3).sum().backward()
        yield fast(X), fast(X)
        w.grad.add_(1)
        yield fast(X)
        w.grad = torch.full((4,), 7.0)
        yield fast(X), fast(X)
        w.grad = None
        yield fast(X)

    same_as_eager(scenario)


# -- 12, 13: in-place -------------------------------------------------------------------------------------------------


def test_input_changed_before_it_is_read():
    def scenario(wrap):
        def transposed(x):
            x.t_()
            return x * 2

        def squeezed(x):
            x.unsqueeze_(0)
            return x.sum(0)

        def multiplied(x):
            x.mul_(2)
            y = x.clone()
            x.add_(1)
            return y, x.sum()

        def resized(x):
            x.resize_(2, 2)
            return x + 1

        for program in (transposed, squeezed, multiplied, resized):
            fast = wrap(program)
            for _ in range(3):
                x = torch.arange(6.0).view(2, 3)
                yield attempt(fast, x), x

    same_as_eager(scenario)


def test_input_written_through_views_and_out():
    def scenario(wrap):
        def program(x, buffer):
            buffer[1:3] = x[:2]
            buffer.view(2, 2)[0].add_(1)
            torch.mul(x, 2, out=buffer[2:4].repeat(2))
            a, b = buffer.chunk(2)
            a.copy_(b)
            buffer[buffer > 2] = -1
            return buffer.sum(), buffer[0]

        fast = wrap(program)
        buffer = torch.zeros(4)
        for k in range(4):
            yield attempt(fast, X * k, buffer), buffer

    same_as_eager(scenario)


# -- 15, 16: modes ----------------------------------------------------------------------------------------------------


def test_modes_inside():
    def scenario(wrap):
        w = torch.ones(4, requires_grad=True)
        m = torch.ones(4, 4)

        def program(x):
            with torch.no_grad():
                a = w * x
            with torch.enable_grad():
                b = w * 2
            with torch.autocast("cpu", dtype=torch.bfloat16):
                c = m @ m
                with torch.autocast("cpu", enabled=False):
                    d = m @ m
            return a, b, c, d, torch.is_grad_enabled(), w * a

        fast = wrap(program)
        for _ in range(3):
            yield fast(X), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        with torch.no_grad():
            yield fast(X), fast(X)
        with torch.inference_mode():
            result = fast(X)
            yield [t.is_inference() for t in result if isinstance(t, torch.Tensor)]

    same_as_eager(scenario)


def test_modes_left_behind():
    def scenario(wrap):
        def program(x):
            torch.set_grad_enabled(False)
            return x * 2

        fast = wrap(program)
        for _ in range(3):
            try:
                yield fast(X), torch.is_grad_enabled()
            finally:
                torch.set_grad_enabled(True)

    same_as_eager(scenario)


def test_backward_and_data_inside():
    def scenario(wrap):
        w = torch.ones(4, requires_grad=True)

        def step(x):
            loss = (w * x).sum()
            loss.backward()
            return loss

        def by_grad(x):
            loss = (w * x * x).sum()
            return torch.autograd.grad(loss, w)[0]

        def by_data(x):
            w.data = w.data - 0.1 * x
            return w.sum()

        def by_no_grad(x):
            with torch.no_grad():
                w.sub_(0.1 * x)
            return w * 2

        for program in (step, by_grad, by_data, by_no_grad):
            fast = wrap(program)
            for _ in range(3):
                yield attempt(fast, X), w, w._version > 0

    same_as_eager(scenario)


MODES: dict[str, Any] = {
    "default dtype": lambda: _default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast half": lambda: torch.autocast("cpu", dtype=torch.float16),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": lambda: _deterministic(),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t),
    "mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False),
    "sdp": lambda: torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
}


class _default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error):
        torch.set_default_dtype(torch.float32)


class _deterministic:
    def __enter__(self):
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *error):
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MODES)
def test_modes_outside(name):
    def scenario(wrap):
        w = (torch.eye(4) + 0.1).requires_grad_()

        def program(x):
            y = x @ w
            return torch.softmax(y, 0).sum() + torch.ones(4).sum(), y, torch.arange(4) / 3, torch.empty(2).shape

        fast = wrap(program)

        def step():
            w.grad = None
            results = attempt(fast, X)
            if isinstance(results, tuple) and results[0].requires_grad and results[0].device.type == "cpu":
                results[0].backward()
            return results if name != "default device" else str(type(results)), w.grad

        yield step(), step()
        with MODES[name]():
            yield step(), step()
        yield step()
        with MODES[name]():
            yield step()

    same_as_eager(scenario)


def test_transforms_around():
    def scenario(wrap):
        fast = wrap(lambda x: (x * x).sum() + x.sin().sum())
        yield fast(X), fast(X)
        yield torch.func.grad(fast)(X), torch.func.grad(fast)(X)
        yield torch.vmap(fast)(torch.ones(2, 3)), torch.func.jvp(fast, (X,), (X,))
        yield torch.func.hessian(fast)(X), fast(X)

    same_as_eager(scenario)


# -- 17: sizes --------------------------------------------------------------------------------------------------------


def test_sizes_are_ints():
    def scenario(wrap):
        def program(x):
            n = x.shape[0]
            kind = "none"
            match n:
                case int():
                    kind = "int"
            table = {n: 2.0}
            q, r = divmod(n, 3)
            return x * table[n] + q - r, kind, isinstance(n, int), type(n), f"{n}", x.size(), [0] * n

        fast = wrap(program)
        for n in (4, 4, 5, 6, 7, 1, 0, 5):
            yield fast(torch.ones(n))

    same_as_eager(scenario)


# -- 20, 21: autograd -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_train(layer):
    def scenario(wrap):
        net = fixed(layer(4, 4))
        fast = wrap(net)
        x = torch.arange(24.0).view(3, 2, 4).sin()
        for _ in range(3):
            net.zero_grad()
            y = fast(x)[0]
            y.sum().backward()
            yield y, [p.grad for p in net.parameters()]
        with torch.no_grad():
            yield fast(x), fast(x)

    same_as_eager(scenario)


def test_double_backward_of_a_weight():
    w = torch.ones(4, requires_grad=True)

    def program(x):
        return ((w * x) ** 3).sum()

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        (eager,) = torch.autograd.grad(program(X), w, create_graph=True)
        (second,) = torch.autograd.grad(eager.sum(), w)
        (mine,) = torch.autograd.grad(fast(X), w, create_graph=True)
        torch.testing.assert_close(mine, eager)
        (got,) = torch.autograd.grad(mine.sum(), w)
        torch.testing.assert_close(got, second)


def test_backward_twice_and_after_changes():
    def scenario(wrap):
        w = torch.ones(4, requires_grad=True)
        fast = wrap(lambda x: (w * x).exp().sum())
        for _ in range(3):
            w.grad = None
            y = fast(X)
            y.backward(retain_graph=True)
            y.backward()
            yield y, w.grad, attempt(y.backward).__class__
            x = X.clone()
            y = fast(x)
            x.add_(1)
            yield attempt(y.backward).__class__

    same_as_eager(scenario)


def test_gradient_accumulates_and_optimizers_step():
    def scenario(wrap):
        net = fixed(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)))
        fast = wrap(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for k in range(5):
            torch.manual_seed(k)
            loss = F.cross_entropy(fast(torch.randn(6, 4)), torch.tensor([0, 1, 0, 1, 0, 1]))
            loss.backward()
            if k % 2:
                optimizer.step()
                optimizer.zero_grad()
            yield loss, [p.grad for p in net.parameters()], list(net.state_dict().values()), torch.rand(1)

    same_as_eager(scenario, min_hits=3)


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    def scenario(wrap):
        net = fixed(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        for reentrant in (False, True):
            fast = wrap(lambda x, r=reentrant: checkpoint(net, x, use_reentrant=r).sum())
            for _ in range(3):
                net.zero_grad()
                x = torch.arange(4.0).requires_grad_()
                y = fast(x)
                y.backward()
                yield y, x.grad, [p.grad for p in net.parameters()]

    same_as_eager(scenario)


def test_random_numbers_and_seeds():
    def scenario(wrap):
        g = torch.Generator()

        def program(x):
            return x + torch.rand(4), torch.randn(2), F.dropout(x, 0.5), torch.randperm(4), torch.randint(0, 9, (2,))

        def seeded(x):
            torch.manual_seed(5)
            return x + torch.rand(4)

        def own(x):
            return x + torch.rand(4, generator=g)

        fast, fast_seeded, fast_own = wrap(program), wrap(seeded), wrap(own)
        for k in range(3):
            torch.manual_seed(k)
            yield fast(X), torch.rand(1), fast_seeded(X), torch.rand(1)
            g.manual_seed(k)
            yield fast_own(X), fast_own(X)

    same_as_eager(scenario)


# -- 19: others -------------------------------------------------------------------------------------------------------


def test_inside_and_around_other_backends():
    def scenario(wrap):
        def inner(x):
            return x.sin() * 2

        net = fixed(nn.Linear(4, 4))
        fast = wrap(inner)
        around = torch.compile(lambda x: fast(x) + 1, backend="eager")
        within = wrap(lambda x: torch.compile(inner, backend="eager")(x) + net(x))
        for _ in range(3):
            yield around(X), within(X), fast(X)

    same_as_eager(scenario)


def test_dynamo_in_another_thread():
    fast, other = torch.compile(lambda x: x * 2 + 1, backend="magpy"), torch.compile(lambda x: x * 3, backend="eager")
    failures: list[Any] = []

    def work(f, expected):
        try:
            for n in range(1, 30):
                assert torch.equal(f(torch.ones(n % 4 + 1)), torch.full((n % 4 + 1,), expected))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in ((fast, 3.0), (other, 3.0), (fast, 3.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_tensor_subclasses_and_dispatch_modes():
    from torch.utils._python_dispatch import TorchDispatchMode

    def scenario(wrap):
        class Tagged(torch.Tensor):
            pass

        class Count(TorchDispatchMode):
            n = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                self.n += 1
                return func(*args, **(kwargs or {}))

        fast = wrap(lambda x: (x * 2).sin() + 1)
        yield fast(X), fast(X)
        tagged = X.as_subclass(Tagged)
        yield type(fast(tagged)).__name__, type(fast(tagged)).__name__, fast(X)
        with Count() as count:
            yield fast(X), fast(X), count.n
        yield fast(X)

    same_as_eager(scenario)
