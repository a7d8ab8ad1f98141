"""Traps that the interpreter lays: lives of objects, reused addresses, hidden state of C types, tracers, recursion."""

from __future__ import annotations

import abc
import collections
import decimal
import enum
import gc
import importlib
import itertools
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import magpy
from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)


# -- 2, 3: lives ------------------------------------------------------------------------------------------------------


def test_generators_are_closed_when_dropped():
    def scenario(wrap):
        log: list[Any] = []

        def parts(x):
            try:
                yield x + 1
                yield x + 2
            finally:
                log.append("closed")

        def program(x):
            g = parts(x)
            first = next(g)
            del g
            log.append("after")
            for y in parts(x):  # noqa: B007
                break
            return first + y

        fast = wrap(program)
        for _ in range(3):
            yield fast(X), log

    same_as_eager(scenario)


def test_weak_references_die_inside():
    def scenario(wrap):
        class Node:
            pass

        def program(x):
            n = Node()
            n.t = x * 2
            r = weakref.ref(n)
            t = weakref.ref(n.t)
            alive = r() is not None, t() is not None
            del n
            return x, alive, r() is None, t() is None

        cache: Any = weakref.WeakValueDictionary()

        def cached(x):
            node = cache.get("k")
            if node is None:
                node = cache["k"] = Node()
                node.scale = 2.0
            return x * node.scale, len(cache)

        fast, fast_cached = wrap(program), wrap(cached)
        for _ in range(3):
            yield fast(X), fast_cached(X), len(cache)

    same_as_eager(scenario)


def test_addresses_used_again():
    def scenario(wrap):
        class Part:
            def __init__(self, k):
                self.k = k

        def program(x):
            for k in range(20):
                part = Part(k)
                t = x * part.k
                pair = [part, t]
                x = pair[1] * 0.5 + pair[0].k
                del part, t, pair
            return x

        fast = wrap(program)
        for k in range(4):
            yield fast(X * k)

    same_as_eager(scenario)


# -- 5: C functions with hidden state ---------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Flags(enum.Flag):
    A = 1
    B = 2


local = threading.local()


def test_hidden_state_of_c_functions():
    def scenario(wrap):
        counter, cycle, shared = itertools.count(1), itertools.cycle([1.0, 2.0]), iter([1.0] * 99)
        queue: Any = collections.deque(float(i) for i in range(99))
        rng = random.Random(3)
        local.k = 1.0
        state = {"k": 0}

        class Lazy:
            def __get__(self, owner, cls):
                state["k"] += 1
                return state["k"]

        class Owner:
            lazy = Lazy()

        owner = Owner()
        programs: dict[str, Any] = {
            "count": lambda x: x * next(counter),
            "cycle": lambda x: x * next(cycle),
            "iterator": lambda x: x * next(shared),
            "popleft": lambda x: x * queue.popleft(),
            "rotate": lambda x: (queue.rotate(1), x * queue[0])[1],
            "random": lambda x: x * random.random(),
            "own random": lambda x: x * rng.randint(1, 9),
            "enum": lambda x: x * Color(1 + int(x.shape[0] > 3)).value,
            "flag": lambda x: x * (2 if Flags.A in Flags(3) else 3),
            "logger": lambda x: x * (2 if logging.getLogger("traps.test").isEnabledFor(logging.INFO) else 3),
            "module": lambda x: x * len(importlib.import_module("math").__name__),
            "frame": lambda x: x * len(sys._getframe().f_code.co_name),
            "decimal": lambda x: x * float(decimal.Decimal(1) / decimal.Decimal(3)),
            "environment": lambda x: x * float(os.environ.get("MAGPY_TRAP", "1")),
            "local": lambda x: x * local.k,
            "time": lambda x: x * (time.time() > 0),
            "thread": lambda x: x * len(threading.current_thread().name),
            "descriptor": lambda x: x * owner.lazy,
            "sum of generator": lambda x: x * sum(i * i for i in range(int(x.shape[0]))),
            "sorted by key": lambda x: x * sorted([3, 1, 2], key=lambda v: -v)[0],
            "reduce": lambda x: x * __import__("functools").reduce(lambda a, b: a * b, [1, 2, 3]),
            "locals": lambda x: x * len(locals()),
            "globals": lambda x: x * ("X" in globals()),
            "dir": lambda x: x * len([n for n in dir(owner) if n == "lazy"]),
            "exec": lambda x: x * eval("1 + 1"),
            "types": lambda x: x * len(types.SimpleNamespace(a=1).__dict__),
        }
        changes = [
            lambda: None,
            lambda: logging.getLogger("traps.test").setLevel(logging.INFO),
            lambda: decimal.getcontext().__setattr__("prec", 3),
            lambda: os.environ.__setitem__("MAGPY_TRAP", "4"),
            lambda: setattr(local, "k", 5.0),
            lambda: random.seed(1),
            lambda: (logging.getLogger("traps.test").setLevel(0), os.environ.pop("MAGPY_TRAP")),
            lambda: decimal.getcontext().__setattr__("prec", 28),
        ]
        random.seed(0)
        compiled = {name: wrap(program) for name, program in programs.items()}
        for change in changes:
            change()
            for name, fast in compiled.items():
                yield name, attempt(fast, X), attempt(fast, X)

    same_as_eager(scenario)


# -- 8: types ---------------------------------------------------------------------------------------------------------


def test_metaclasses_and_registered_classes():
    def scenario(wrap):
        class Meta(type):
            scale = 2.0

            def __len__(cls):
                return cls.size

            def __instancecheck__(cls, instance):
                return cls.accepts

        class Thing(metaclass=Meta):
            size, accepts = 3, False

        class Base(abc.ABC):  # noqa: B024
            pass

        class Other:
            pass

        other = Other()

        def program(x):
            y = x * Thing.scale * len(Thing)
            if isinstance(other, Thing):
                y = y + 1
            return y - 1 if isinstance(other, Base) else y

        fast = wrap(program)
        yield fast(X), fast(X)
        Meta.scale = 3.0
        yield fast(X), fast(X)
        Thing.scale = 4.0
        yield fast(X)
        Thing.size = 5
        yield fast(X)
        Thing.accepts = True
        yield fast(X), fast(X)
        Base.register(Other)
        yield fast(X), fast(X)
        Meta.__len__ = lambda cls: 7
        yield fast(X)

    same_as_eager(scenario)


def test_classes_exchanged_and_bases_changed():
    def scenario(wrap):
        class A:
            def f(self, x):
                return x + 1

        class B:
            def f(self, x):
                return x * 10

        class C(A):
            pass

        a, c = A(), C()

        def program(x):
            return a.f(x) + c.f(x)

        fast = wrap(program)
        yield fast(X), fast(X)
        a.__class__ = B
        yield fast(X), fast(X)
        C.__bases__ = (B,)
        yield fast(X), fast(X)
        C.f = lambda self, x: x - 1
        yield fast(X)
        c.f = lambda x: x * 100
        yield fast(X), fast(X)
        del c.f, C.f
        yield fast(X)
        A.__getattribute__ = lambda self, name: object.__getattribute__(self, name)
        a.__class__ = A
        yield fast(X), fast(X)

    same_as_eager(scenario)


def test_special_methods_appear_and_go():
    def scenario(wrap):
        class Box:
            def __init__(self, v):
                self.v = v

        box = Box(2)

        def program(x):
            y = x * 2 if box else x * 3
            y = y + (box == 2)
            return y + hasattr(box, "missing")

        fast = wrap(program)
        yield fast(X), fast(X)
        Box.__bool__ = lambda self: False
        yield fast(X), fast(X)
        Box.__eq__ = lambda self, other: self.v == other
        yield fast(X), fast(X)
        Box.__getattr__ = lambda self, name: 1
        yield fast(X), fast(X)
        del Box.__bool__
        Box.__len__ = lambda self: 0
        yield fast(X), fast(X)
        box.v = 3
        yield fast(X), fast(X)

    same_as_eager(scenario)


# -- 10: exceptions in the middle of C --------------------------------------------------------------------------------


def test_effects_before_an_iterator_raised():
    def scenario(wrap):
        items: list[Any] = []
        table: dict[Any, Any] = {}

        def bad(n):
            yield 1, 1
            yield 2, 2
            if n:
                raise KeyError("bad")

        def program(x, n):
            try:
                items.extend(bad(n))
            except KeyError:
                items.append("caught")
            try:
                table.update(bad(n))
            except KeyError:
                table["caught"] = x
            return x * len(items) + len(table)

        def delegated(x, n):
            def inner():
                try:
                    got = yield x
                    yield x * got
                finally:
                    items.append("inner")
                return 5

            def outer():
                value = yield from inner()
                yield x + value

            g = outer()
            y = next(g) + g.send(3)
            if n:
                g.close()
                return y
            return y + next(g)

        for program_ in (program, delegated):
            fast = wrap(program_)
            for n in (0, 0, 1, 1, 0):
                yield fast(X, n), items, table

    same_as_eager(scenario)


# -- 9, 11, 18: tracers, finalizers, recursion ------------------------------------------------------------------------


def test_user_traces_while_compiled_functions_run():
    def scenario(wrap):
        def program(x):
            y = x * 2
            return y + 1

        fast = wrap(program)
        events: list[Any] = []

        def tracer(frame, event, arg):
            if frame.f_code is program.__code__ and event in ("call", "return"):
                events.append(event)
            return tracer

        yield fast(X), fast(X)
        other = wrap(lambda x: program(x) - 1)
        sys.settrace(tracer)
        try:
            y = other(X)
            still = sys.gettrace() is tracer
        finally:
            sys.settrace(None)
        yield y, still, events, other(X), other(X)

    same_as_eager(scenario)


def test_program_sets_and_removes_tracers():
    def scenario(wrap):
        def program(x, how):
            before = sys.gettrace()
            if how == 1:
                sys.settrace(None)
            if how == 2:
                sys.settrace(lambda *a: None)
                y = x * 3
                sys.settrace(before)
                return y, before
            return x * 2, before

        fast = wrap(program)
        for how in (0, 1, 2, 0, 1, 2):
            yield fast(X, how), sys.gettrace()

    same_as_eager(scenario)


def test_profilers_see_their_calls():
    def scenario(wrap):
        def helper(x):
            return x + 1

        def program(x):
            seen: list[Any] = []
            sys.setprofile(lambda f, e, a: seen.append(e) if f.f_code is helper.__code__ else None)
            y = helper(x)
            sys.setprofile(None)
            return y, seen

        fast = wrap(program)
        for _ in range(3):
            yield fast(X), sys.getprofile()

    same_as_eager(scenario)


def test_collector_settings_are_the_programs():
    def scenario(wrap):
        def program(x, on):
            was = gc.isenabled()
            (gc.enable if on else gc.disable)()
            return x * 2, was

        fast = wrap(program)
        try:
            for on in (1, 0, 0, 1, 1):
                yield fast(X, on)[0], gc.isenabled()
        finally:
            gc.enable()

    same_as_eager(scenario)


def test_deep_recursion_does_not_crash():
    code = textwrap.dedent(
        """
        import sys, threading, torch
        sys.setrecursionlimit(10**6)
        def down(x, n): return x + 1 if n == 0 else down(x, n - 1)
        fast = torch.compile(down, backend="magpy")
        x = torch.ones(2)
        for n in (10, 10, 3000, 20000, 50000, 10):
            assert torch.equal(fast(x, n), x + 1), n
        sys.setrecursionlimit(500)
        for _ in range(3):
            try:
                fast(x, 5000)
            except RecursionError:
                print("limited")
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["limited"] * 3


# -- 24, 25: scripts, warnings, output --------------------------------------------------------------------------------


def test_script_whose_globals_change_at_every_statement():
    def scenario(wrap):
        space: dict[str, Any] = {"torch": torch, "wrap": wrap, "X": X, "out": []}
        exec(
            "scale = 1.0\n"
            "def program(x): return x * scale + offset\n"
            "offset = 1\n"
            "fast = wrap(program)\n"
            "for i in range(6):\n"
            "    y = fast(X); out.append(y); z = y + 1; last = i\n"
            "scale = 3.0\n"
            "out.append(fast(X)); out.append(fast(X))\n"
            "del offset\n"
            "import builtins; builtins.offset = 50\n"
            "out.append(fast(X)); out.append(fast(X))\n"
            "offset = 2\n"
            "out.append(fast(X))\n"
            "del builtins.offset\n",
            space,
        )
        yield space["out"]

    assert same_as_eager(scenario).hits >= 5


def test_warnings_are_shown_once_for_each_place():
    def scenario(wrap):
        def program(x):
            warnings.warn("from the program", UserWarning, stacklevel=1)
            return x * 2

        fast = wrap(program)
        for mode in ("always", "default", "error", "ignore", "once"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter(mode)
                for _ in range(3):
                    yield attempt(fast, X)
                yield mode, [(str(w.message), w.lineno, os.path.basename(w.filename)) for w in caught]

    same_as_eager(scenario)


def test_log_records_name_their_place():
    def scenario(wrap):
        logger = logging.getLogger("traps.records")
        records: list[Any] = []

        class Keep(logging.Handler):
            def emit(self, record):
                records.append((record.getMessage(), record.lineno, record.funcName, record.levelname))

        handler = Keep()
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

        def program(x):
            logger.info("shape %s", tuple(x.shape))
            logger.debug("not shown")
            return x * 2

        fast = wrap(program)
        for n in (2, 2, 3, 2):
            yield fast(torch.ones(n)), records
        logger.setLevel(logging.DEBUG)
        yield fast(torch.ones(2)), records
        logger.removeHandler(handler)
        yield fast(torch.ones(2)), records

    same_as_eager(scenario)


def test_printed_output(capsys):
    outputs = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="magpy")):
        log: list[int] = []

        def program(x, log=log):
            print("before", x.shape, len(log))
            log.append(1)
            print(f"after {len(log)}", end="!\n", flush=True)
            return x * 2

        fast = wrap(program)
        for _ in range(4):
            fast(X)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].count("before") == 4


# -- Life and limits --------------------------------------------------------------------------------------------------


def test_traces_come_and_go_without_growth():
    def cycle():
        net = nn.Linear(4, 4)
        fast = torch.compile(net, backend="magpy")
        with torch.no_grad():
            for _ in range(3):
                fast(X)
        return weakref.ref(net), weakref.ref(fast), weakref.ref(net.weight)

    for _ in range(3):
        cycle()
    gc.collect()
    objects, callables = len(gc.get_objects()), len(magpy._C.callables())
    for _ in range(10):
        refs = cycle()
        gc.collect()
        assert [r() for r in refs] == [None, None, None]
    assert len(magpy._C.callables()) == callables
    assert len(gc.get_objects()) - objects < 200


def test_failed_calls_keep_nothing():
    def program(x, y):
        z = x @ y
        return z

    fast = torch.compile(program, backend="magpy")
    for _ in range(4):
        x = torch.ones(2, 3)
        watched = weakref.ref(x)
        with pytest.raises(RuntimeError):
            fast(x, torch.ones(2, 2))
        del x
        gc.collect()
        assert watched() is None
