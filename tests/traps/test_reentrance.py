"""Calls that run into each other or into the interpreter's own work: re-entrance, threads, signals, the collector."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import torch
from torch import nn

from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)
shared_global: Any = 0
table: dict[str, Any] = {}


# -- Re-entrance ------------------------------------------------------------------------------------------------------


def test_reentrant_call_through_the_compiled_name():
    def scenario(wrap):
        depth = {"n": 0}

        def program(x, n):
            depth["n"] += 1
            return x if n == 0 else fast(x * 2, n - 1) + n

        fast = wrap(program)
        for n in (0, 3, 3, 2, 3):
            yield fast(X, n), depth

    same_as_eager(scenario)


def test_generators_as_arguments():
    def scenario(wrap):
        def program(x, items):
            for item in items:
                x = x * item
            return x

        fast = wrap(program)

        def make(log):
            for i in (1.0, 2.0, 3.0):
                log.append(i)
                yield i
            log.append("end")

        for _ in range(3):
            log: list[Any] = []
            g = make(log)
            yield fast(X, g), log, attempt(next, g)
        for _ in range(3):
            yield (
                fast(X, iter([2.0, 3.0])),
                fast(X, map(float, (1, 2))),
                fast(X, [1.0]),
            )

    same_as_eager(scenario)


def test_iterators_that_move_between_calls():
    import itertools

    def scenario(wrap):
        count, items = itertools.count(1), iter([2.0, 3.0, 4.0, 5.0])

        def program(x):
            return x * next(count) + next(items)

        fast = wrap(program)
        for _ in range(4):
            yield fast(X)
        yield attempt(fast, X)

    same_as_eager(scenario)


def test_unpacked_generator_arguments():
    def scenario(wrap):
        def add(*parts, **named):
            return sum(parts) + sum(named.values())

        def program(x, n):
            return add(*(x * i for i in range(n)), **{f"k{i}": x for i in range(n)})

        fast = wrap(program)
        for n in (1, 2, 2, 1, 3):
            yield fast(X, n)

    same_as_eager(scenario)


# -- Threads, signals, collector, weak references ---------------------------------------------------------------------


def test_threads_share_one_compiled_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x, k):
            for _ in range(k):
                x = torch.tanh(self.a(x))
            return x

    net = Net()
    fast = torch.compile(net, backend="magpy")
    failures: list[Any] = []
    start = threading.Barrier(4)

    def work(seed):
        try:
            start.wait(20)
            generator = torch.Generator().manual_seed(seed)
            for i in range(40):
                x, k = torch.randn(1 + (i + seed) % 3, 4, generator=generator), 1 + (i * seed) % 4
                with torch.no_grad():
                    torch.testing.assert_close(fast(x, k), net(x, k))
                assert torch.is_grad_enabled()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_thread_changes_state_while_another_is_observed():
    def scenario(wrap):
        go, done = threading.Event(), threading.Event()
        box = {"scale": 1.0}

        def other():
            go.wait(20)
            box["scale"] = box["scale"] + 1
            done.set()

        def program(x):
            y = x * box["scale"]
            go.set()
            done.wait(20)
            return y * box["scale"]

        fast = wrap(program)
        for _ in range(3):
            go.clear()
            done.clear()
            thread = threading.Thread(target=other)
            thread.start()
            yield fast(X), box
            thread.join()

    same_as_eager(scenario)


def test_keyboard_interrupt_reaches_the_caller():
    import signal

    def scenario(wrap):
        log: list[Any] = []

        def program(x, interrupt):
            log.append("before")
            if interrupt:
                signal.raise_signal(signal.SIGINT)
            log.append("after")
            return x + 1

        fast = wrap(program)
        for interrupt in (False, False, True, False, True):
            try:
                yield fast(X, interrupt)
            except KeyboardInterrupt:
                yield "interrupted"
            yield log

    same_as_eager(scenario)


def test_weak_reference_callbacks_of_dropped_values():
    def scenario(wrap):
        class Value:
            pass

        log: list[Any] = []
        box: dict[str, Any] = {}

        def program(x):
            value = Value()
            value.data = x * 2
            box["value"] = value
            return value.data + 1

        fast = wrap(program)
        for i in range(4):
            yield fast(X), sorted(box), log
            box["ref"] = weakref.ref(box["value"], lambda _, i=i: log.append(i))

    same_as_eager(scenario)


def test_finalizers_of_replaced_values_run_once():
    def scenario(wrap):
        log: list[Any] = []

        class Value:
            def __init__(self, n):
                self.n = n

            def __del__(self):
                log.append(self.n)

        box: dict[str, Any] = {"value": Value(0)}

        def program(x, n):
            box["value"] = Value(n)
            return x + n

        fast = wrap(program)
        for n in (1, 1, 2, 2, 1):
            yield fast(X, n), log

    same_as_eager(scenario)


def test_collection_during_the_call():
    def scenario(wrap):
        class Node:
            pass

        log: list[Any] = []

        def program(x):
            a, b = Node(), Node()
            a.other, b.other, a.t = b, a, x * 2
            r = weakref.ref(a)
            y = a.t + 1
            del a, b
            gc.collect()
            return y, r() is None

        fast = wrap(program)
        for _ in range(4):
            yield fast(X), log

    same_as_eager(scenario)


def test_dead_weak_reference_is_dead():
    def scenario(wrap):
        class Node:
            pass

        node: Any = Node()
        node.scale = 2.0
        ref = weakref.ref(node)

        def program(x):
            n = ref()
            return x if n is None else x * n.scale

        fast = wrap(program)
        yield fast(X), fast(X)
        node = None
        yield fast(X), fast(X)

    same_as_eager(scenario)
