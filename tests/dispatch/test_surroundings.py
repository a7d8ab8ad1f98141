"""Compiled calls in odd places: within each other, in finalizers and signal handlers, in threads and forks."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from magpy import training
from tests.threads import in_threads
from tests.traps.differential import attempt, same_as_eager

X = torch.tensor([-1.0, 0.0, 2.0, 3.0])


def compiled(target: Any, **options: Any) -> Any:
    return torch.compile(target, backend="magpy", **options)


class Net(nn.Module):
    """A model with everything that makes a trace: parameters, a buffer, a counter, a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.arange(p.numel()).sub(i).div(8).view(p.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen += x.detach().reshape(-1, 4).sum(0)
        x = torch.relu(self.a(x))
        return self.b(x) if x.shape[0] > 1 else x


# -- Calls within calls ---------------------------------------------------------------------------------------------


def test_compiled_calls_within_compiled_calls() -> None:
    def scenario(wrap):
        log: list[Any] = []

        def inner(x, n):
            log.append(n)
            return x * n

        fast_inner = wrap(inner)

        def middle(x, n):
            return fast_inner(x, n) + fast_inner(x, n + 1)

        fast_middle = wrap(middle)

        def outer(x, n):
            return fast_middle(fast_inner(x, n), n) + (outer(x, n - 1) if n else 0)

        fast = wrap(outer)
        for n in (0, 2, 2, 2, 1):
            yield fast(X, n), fast_inner(X, n), fast_middle(X, n), log

    same_as_eager(scenario, min_hits=3)


def test_compiling_within_a_compiled_call() -> None:
    def scenario(wrap):
        made: dict[int, Any] = {}

        def program(x, n):
            if n not in made:
                made[n] = wrap(lambda y: y * n)
            return made[n](x) + 1

        fast = wrap(program)
        for n in (1, 1, 2, 1, 2, 3):
            yield fast(X, n), sorted(made), made[n](X)

    same_as_eager(scenario)


def test_reset_and_recompilation_within_a_compiled_call() -> None:
    """All traces go while one of them runs (a hook of the input's tensor), or is being made."""

    def scenario(wrap):
        box: dict[str, Any] = {"n": 0}

        def reset():
            box["n"] += 1
            torch.compiler.reset()

        class Resetting(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                reset()
                return x * 2

            @staticmethod
            def backward(ctx, g):
                reset()
                return g * 2

        def program(x):
            return Resetting.apply(x) + 1

        fast = wrap(program)
        for _ in range(4):
            x = X.clone().requires_grad_()
            y = fast(x)
            y.sum().backward()
            yield y, x.grad, box

    same_as_eager(scenario)


# -- Finalizers, weak references, collector -------------------------------------------------------------------------


class Caller:
    """Calls when it is finalised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


def test_finalizers_that_call_the_compiled_function() -> None:
    def scenario(wrap):
        log: list[Any] = []
        box: dict[str, Any] = {}

        def program(x, again):
            box["value"] = Caller(lambda: log.append(fast(x + 1, False))) if again else None
            return x * 2

        fast = wrap(program)
        for again in (True, True, False, True, True, True):
            yield fast(X, again), len(log), log
        box.clear()
        yield log

    same_as_eager(scenario)


def test_finalizers_that_drop_the_compiled_function_and_its_world() -> None:
    def scenario(wrap):
        log: list[Any] = []

        class Holder:
            pass

        for _ in range(3):
            holder: Any = Holder()
            holder.net = Net()
            holder.fast = wrap(holder.net.forward)
            holder.box = {"value": None}

            def program(x, holder=holder):
                holder.box["value"] = Caller(lambda: log.append("gone"))
                holder.fast = None
                return holder.net(x)

            fast = wrap(program)
            with torch.no_grad():
                yield fast(X), fast(X), fast(X), log
            del holder, program, fast
            gc.collect()
            yield log

    same_as_eager(scenario)


def test_weak_reference_callbacks_that_call_and_reset() -> None:
    def scenario(wrap):
        class Value:
            pass

        log: list[Any] = []
        box: dict[str, Any] = {"value": Value()}

        def program(x):
            box["value"] = Value()
            return x * 2

        fast = wrap(program)
        refs = []
        for i in range(6):

            def called(_, i=i):
                log.append(i)
                if i % 2:
                    torch.compiler.reset()
                else:
                    fast(X)

            refs.append(weakref.ref(box["value"], called))
            yield fast(X), list(log)

    same_as_eager(scenario)


def test_collections_while_compiled_calls_run() -> None:
    def scenario(wrap):
        net = Net()
        fast = wrap(net)
        old = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            for n in (2, 1, 2, 3):
                cycle: list[Any] = [Caller(lambda n=n: fast(torch.ones(n, 4)))]
                cycle.append(cycle)
                del cycle
                yield fast(torch.ones(n, 4)), net.seen
        finally:
            gc.set_threshold(*old)

    same_as_eager(lambda wrap: iter([[v for v in note] for note in scenario(wrap)][-1:]))


# -- Signals --------------------------------------------------------------------------------------------------------


def test_signal_handlers_that_call_the_compiled_function() -> None:
    def scenario(wrap):
        log: list[Any] = []

        def handler(*_):
            log.append(fast(X + 1, False))

        def program(x, interrupt):
            y = x * 2
            if interrupt:
                signal.raise_signal(signal.SIGUSR1)
            return y + 1

        fast = wrap(program)
        old = signal.signal(signal.SIGUSR1, handler)
        try:
            for interrupt in (False, True, False, True, True):
                yield fast(X, interrupt), log
        finally:
            signal.signal(signal.SIGUSR1, old)

    same_as_eager(scenario)


def test_interrupts_at_any_time_leave_a_whole_world() -> None:
    """KeyboardInterrupt from a timer, many times: what a call writes agrees with itself."""
    net = Net()
    fast = compiled(net)
    x = torch.ones(2, 4)
    with torch.no_grad():
        expected = Net()(x)
        interrupted = finished = 0
        fast(x)
        y = fast(x)
        old = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            for i in range(40):
                net.calls = 0
                net.seen.zero_()
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + i * 0.00001)
                    while True:
                        y = fast(x)
                        finished += 1
                except KeyboardInterrupt:
                    interrupted += 1
                torch.testing.assert_close(y, expected)
                assert net.seen[0] / 2 in (net.calls, net.calls - 1), "one write of a call without the other"
        finally:
            signal.signal(signal.SIGALRM, old)
        assert interrupted == 40 and finished and torch.is_grad_enabled() is False
        before = net.calls
        torch.testing.assert_close(fast(x), expected)
        assert net.calls == before + 1 and sys.gettrace() is None and gc.isenabled()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_while_a_trace_is_made_reaches_the_caller(error: type[BaseException], monkeypatch: Any) -> None:
    """The call itself has been made by then: what it wrote stays; the next call is traced as if nothing had been."""
    import magpy.lower

    net = Net()
    fast = compiled(net)

    def interrupted(*_):
        monkeypatch.undo()
        raise error("at a bad time")

    monkeypatch.setattr(magpy.lower, "lower", interrupted)
    x = torch.ones(2, 4)
    with torch.no_grad():
        with pytest.raises(error, match="at a bad time"):
            fast(x)
        assert net.calls == 1
        before = magpy.stats()["traces"]
        torch.testing.assert_close(fast(x), Net()(x))
        assert net.calls == 2 and magpy.stats()["traces"] == before + 1


# -- Callers --------------------------------------------------------------------------------------------------------


def test_generators_and_coroutines_as_callers_and_targets() -> None:
    def scenario(wrap):
        net = Net()
        fast = wrap(net)

        def steps(n):
            for i in range(n):
                got = yield fast(torch.full((2, 4), float(i)))
                if got is not None:
                    yield fast(got)

        with torch.no_grad():
            g, h = steps(3), steps(2)
            yield next(g), next(h), g.send(X.expand(2, 4)), next(h), list(g), list(h), net.calls

        def generating(x):
            for i in range(2):
                yield x * i

        made = wrap(generating)
        yield list(made(X)), list(made(X)), [y for y in zip(made(X), made(X + 1), strict=True)]

        async def awaiting(x):
            await asyncio.sleep(0)
            return fast(x)

        fast_await = wrap(awaiting)

        async def several():
            return await asyncio.gather(*[fast_await(torch.full((n, 4), 1.0)) for n in (1, 2, 1, 2)])

        yield asyncio.run(several()), asyncio.run(several()), net.seen

    same_as_eager(scenario)


def test_callers_that_wait_in_executors() -> None:
    net = Net().eval()
    fast = compiled(lambda x: torch.relu(net.a(x)))

    async def several():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(None, fast, torch.full((n, 4), 1.0)) for n in range(1, 7)])

    for _ in range(2):
        for n, y in enumerate(asyncio.run(several()), 1):
            torch.testing.assert_close(y, torch.relu(net.a(torch.full((n, 4), 1.0))))


# -- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_first_calls_at_the_same_time(training: bool) -> None:
    for _ in range(3):
        net = Net()
        fast = compiled(net)
        inputs = [torch.arange(4.0 * (1 + i % 3)).view(-1, 4) for i in range(4)]
        expected = [Net()(x) for x in inputs]

        def work(i, fast=fast, inputs=inputs, expected=expected):
            with torch.set_grad_enabled(training):
                for _ in range(10):
                    y = fast(inputs[i])
                    torch.testing.assert_close(y, expected[i])
                    assert y.requires_grad == training
                    if training:
                        torch.autograd.grad(y.sum(), [p for p in (fast._orig_mod.a.weight,)])

        in_threads(work)


def test_first_backward_passes_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one changes what it is made from: a thread that comes by then has to wait."""
    rewrite = training.rewrite

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return rewrite(*args)

    monkeypatch.setattr(training, "rewrite", slow)

    def whole(x, w, v):
        return (w.floor() + (x @ w).tanh() @ v + w,)

    def parts(x, w, v):
        return w.floor(), (x @ w).exp(), (x * v).sin()

    def ready(target: Any, i: int) -> Any:
        x = torch.arange(16.0).view(4, 4) / (8 + i)
        w, v = torch.full((4, 4), 0.5, requires_grad=True), torch.full((4, 4), 0.25, requires_grad=True)
        results = target(x, w, v)
        return lambda: torch.autograd.grad(results[-1 - i % len(results)].sum(), [w, v], allow_unused=True)

    for program in (whole, parts):
        fast = compiled(program)
        expected = [ready(program, i)() for i in range(4)]
        passes = [ready(fast, i) for i in range(4)]
        in_threads(lambda i, e=expected, p=passes: torch.testing.assert_close(p[i](), e[i]))
        for i in range(4):
            torch.testing.assert_close(ready(fast, i)(), expected[i])


def test_threads_that_write_what_is_theirs() -> None:
    """Each thread has a state object of its own and one thread-local; nothing is lost and nothing goes astray."""
    local = threading.local()

    class State:
        def __init__(self, k):
            self.k, self.n, self.log, self.last = k, 0, [], None

    def program(x, state):
        state.n += 1
        state.log.append(state.n % 3)
        state.last = x * state.k
        local.seen = getattr(local, "seen", 0) + 1
        return state.last + (1 if state.n % 2 else 2)

    fast = compiled(program)
    states = [State(k) for k in range(4)]

    def work(i):
        for n in range(1, 40):
            y = fast(X, states[i])
            torch.testing.assert_close(y, X * i + (1 if n % 2 else 2))
            assert states[i].n == n == len(states[i].log) == local.seen
            torch.testing.assert_close(states[i].last, X * i)

    in_threads(work)


def test_threads_under_reset_new_shapes_and_grad_modes() -> None:
    net = Net()
    fast = compiled(lambda x, k: net.a(x) * k)

    def work(i):
        for n in range(30):
            x = torch.ones(1 + (n * (i + 1)) % 3, 4)
            with torch.set_grad_enabled(bool((n + i) % 2)):
                y = fast(x, i)
                assert y.requires_grad == bool((n + i) % 2)
                torch.testing.assert_close(y, net.a(x) * i)
            if i == 3 and n % 7 == 0:
                torch.compiler.reset()
            if i == 2 and n % 5 == 0:
                gc.collect()

    in_threads(work)


def test_random_numbers_in_threads_are_all_different() -> None:
    fast = compiled(lambda x: x + torch.rand(4))
    seen: list[torch.Tensor] = []
    in_threads(lambda i: [seen.append(fast(X)) for _ in range(20)] and None)
    assert len({tuple(t.tolist()) for t in seen}) == len(seen) == 80


# -- Processes, copies ----------------------------------------------------------------------------------------------


def test_fork_after_compilation() -> None:
    """A child of a fork calls what was compiled, compiles new shapes, and changes nothing in its parent."""
    net = Net()
    fast = compiled(net)
    x, other = torch.ones(2, 4), torch.ones(3, 4)
    with torch.no_grad():
        expected, expected_other = fast(x), Net()(other)
        fast(x)
        calls = net.calls
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                ok = torch.equal(fast(x), expected) and torch.allclose(fast(other), expected_other)
                ok = ok and torch.allclose(fast(other), expected_other) and net.calls == calls + 3
                os.write(write_end, b"ok" if ok else b"wrong")
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as answer:
            assert answer.read() == b"ok"
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(fast(x), expected) and net.calls == calls + 1


def test_copies_and_pickles_of_compiled_modules() -> None:
    with torch.no_grad():
        net = Net()
        fast = compiled(net)
        x = torch.ones(2, 4)
        fast(x), fast(x)
        for make in (copy.deepcopy, copy.copy):
            other = make(fast)
            torch.testing.assert_close(other(x), fast(x))
        own = copy.deepcopy(fast)
        own._orig_mod.a.weight.zero_()
        calls = fast.calls
        assert not torch.equal(own(x), fast(x)) and not torch.equal(own(x), fast(x))
        assert own.calls == fast.calls == calls + 2
        text = io.BytesIO()
        torch.save(fast.state_dict(), text)
        text.seek(0)
        fresh = compiled(Net())
        fresh.load_state_dict(torch.load(text))
        torch.testing.assert_close(fresh(x), fast(x))
        plain = pickle.loads(pickle.dumps(net))
        torch.testing.assert_close(plain(x), fast(x))


def test_module_compiled_in_place_is_pickled_as_itself() -> None:
    with torch.no_grad():
        net = Net()
        net.compile(backend="magpy")
        x = torch.ones(2, 4)
        expected = net(x)
        net(x)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            torch.testing.assert_close(other(x), expected)
            assert other.calls == net.calls + 1


def test_outcomes_of_a_failed_call_do_not_reach_the_next() -> None:
    def scenario(wrap):
        def program(x, items):
            for item in items:
                x = x * item
            return x.view(2, 2)

        fast = wrap(program)
        for items in ([1.0], [2.0], [torch.ones(3)], [1.0], ["no"], [3.0], [X], None, [X]):
            yield attempt(fast, X, items)
        yield attempt(fast), attempt(fast, X, [1.0], 3), attempt(fast, X, items=[1.0]), attempt(fast, X[:3], [1.0])

    same_as_eager(scenario)
