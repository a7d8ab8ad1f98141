"""Whole programs under observation: same behaviour as unwatched, nothing kept alive, nothing left behind."""

import asyncio
import functools
import gc
import signal
import sys
import threading
import tracemalloc
import weakref

import pytest

from magpy import _C
from tests.threads import in_threads

LOG = []


class Plain:
    """An object that has weak references."""


def watched(function, *args):
    result, seen = _C._observe(function, *args)
    assert seen["reason"] is None, seen["reason"]
    return result


# -- Control flow ---------------------------------------------------------------------------------------------------


def generators():
    def inner(n):
        received = []
        try:
            for i in range(n):
                received.append((yield i))
        finally:
            received.append("closed")
        return received

    def outer():
        got = yield from inner(3)
        yield got

    sent = []
    generator = outer()
    sent.append(next(generator))
    for value in "ab":
        sent.append(generator.send(value))
    sent.append(next(generator))
    return sent


def generator_throw():
    def inner():
        try:
            yield 1
        except ValueError:
            yield "caught"

    generator = inner()
    next(generator)
    result = generator.throw(ValueError())
    generator.close()
    return result


def exceptions_everywhere():
    seen = []
    for i in range(4):
        try:
            try:
                if i == 0:
                    {}["missing"]
                elif i == 1:
                    raise ValueError(i)
                elif i == 2:
                    continue
                seen.append("fell through")
            except KeyError:
                seen.append("key")
                raise TypeError from None
            finally:
                seen.append(("finally", i))
        except (TypeError, ValueError) as error:
            seen.append(type(error).__name__)
    return seen


def with_statements():
    seen = []

    class Manager:
        def __init__(self, swallow):
            self.swallow = swallow

        def __enter__(self):
            seen.append("enter")
            return self

        def __exit__(self, kind, error, trace):
            seen.append(kind and kind.__name__)
            return self.swallow

    with Manager(True) as manager, Manager(False):
        seen.append(manager.swallow)
        raise LookupError
    return seen


def coroutines():
    async def step(n):
        await asyncio.sleep(0)
        return n

    class Steps:
        def __init__(self):
            self.n = 0

        def __aiter__(self):
            return self

        async def __anext__(self):
            self.n += 1
            if self.n > 3:
                raise StopAsyncIteration
            return self.n

    async def main():
        total = 0
        async for n in Steps():
            total += await step(n)
        return total

    coroutine = main()
    while True:  # an event loop in one line: nothing it awaits needs more
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value


def comprehensions_and_unpacking():
    rows = [(i, j) for i in range(3) for j in range(i)]
    first, *rest = rows
    table = {key: value for key, value in rows}
    (a, b), c = first, {*rest}
    return rows, rest, table, a, b, sorted(c), {**table, 9: 9}, [*rest, *rows]


def classes_made_inside():
    class Base:
        def who(self):
            return "base"

    class Child(Base):
        def who(self):
            return super().who() + "child"

    return Child().who()


def many_locals_and_long_jumps():
    """More than 255 constants and names: EXTENDED_ARG in front of opcodes that matter."""
    source = "def big(x):\n"
    for i in range(300):
        source += f"    v{i} = x + {i + 1000}\n"
    source += "    return [" + ", ".join(f"v{i}" for i in range(300)) + "]\n"
    namespace = {}
    exec(source, namespace)
    return namespace["big"](1)


PROGRAMS = [
    generators,
    generator_throw,
    exceptions_everywhere,
    with_statements,
    coroutines,
    comprehensions_and_unpacking,
    classes_made_inside,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_same_result_as_unwatched(program):
    expected = program()
    for _ in range(2):
        result, _seen = _C._observe(program)
        assert result == expected
    assert program() == expected
    assert sys.gettrace() is None and gc.isenabled()


def test_wide_operands_are_decoded():
    source = "def big(x):\n"
    for i in range(300):
        source += f"    x.a{i}\n"
    source += "    return x.last\n"
    namespace = {}
    exec(source, namespace)
    thing = Plain()
    for i in range(300):
        setattr(thing, f"a{i}", i)
    thing.last = "end"
    result, seen = _C._observe(namespace["big"], thing)
    assert result == "end" and seen["reason"] is None
    read = {row[2] for row in seen["reads"] if row[0] in ("KEY", "INSTANCE_ATTR")}
    assert {f"a{i}" for i in range(300)} | {"last"} <= read


def test_deep_recursion():
    def down(n):
        return 0 if n == 0 else 1 + down(n - 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(60_000)
    try:
        assert watched(down, 5000) == 5000
        result, seen = _C._observe(down, 50_000)
    finally:
        sys.setrecursionlimit(limit)
    assert result == 50_000
    assert "deep" in seen["reason"]


def test_recursion_error_is_the_programs():
    def forever(n):
        return forever(n + 1)

    with pytest.raises(RecursionError):
        _C._observe(forever, 0)
    assert sys.gettrace() is None and gc.isenabled()


# -- Lives -----------------------------------------------------------------------------------------------------------


def test_objects_die_when_they_would():
    def program():
        thing = Plain()
        reference = weakref.ref(thing)
        thing.itself = [thing.__class__]
        del thing
        return reference

    reference, _ = _C._observe(program)
    assert reference() is None


def test_outside_objects_die_when_the_program_drops_them():
    holder = [Plain()]
    reference = weakref.ref(holder[0])
    dead = []

    def program():
        holder[0].value = 1
        holder[0] = None
        dead.append(reference() is None)

    _C._observe(program)
    assert dead == [True]


def test_generators_are_finished_when_they_are_dropped():
    order = []

    def numbers():
        try:
            yield 1
        finally:
            order.append("finished")

    def program():
        for _ in numbers():
            break
        order.append("after")

    _C._observe(program)
    assert order == ["finished", "after"]


def test_nothing_is_kept_after_the_call():
    thing = Plain()
    items = [thing]
    before = sys.getrefcount(thing), sys.getrefcount(items)

    def program(items):
        items[0].value = 2
        return items

    _C._observe(program, items)
    assert (sys.getrefcount(thing), sys.getrefcount(items)) == before


def run_all(n):
    box = Plain()
    box.count = 0
    table = {"a": [1, 2, 3], "b": None}

    def program(x, *, scale=2):
        def inner(y):
            return y * scale

        box.count += 1
        table["a"][0] = x
        try:
            table["absent"]
        except KeyError:
            pass
        return [inner(v) for v in table["a"]], f"{x!r}", (i for i in range(2))

    for i in range(n):
        _C._observe(program, i, scale=3)


@pytest.mark.unsanitized  # 10,000 calls, and it counts blocks of pymalloc, which is off
def test_no_growth_over_ten_thousand_calls():
    run_all(200)
    gc.collect()
    tracemalloc.start()
    try:
        blocks, (memory, _) = sys.getallocatedblocks(), tracemalloc.get_traced_memory()
        run_all(10_000)
        gc.collect()
        assert sys.getallocatedblocks() - blocks < 200
        assert tracemalloc.get_traced_memory()[0] - memory < 50_000
    finally:
        tracemalloc.stop()


# -- Interruptions -----------------------------------------------------------------------------------------------------


def test_garbage_collection_waits():
    collected = []

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            collected.append(1)

    threshold = gc.get_threshold()
    Cycle()
    gc.set_threshold(1, 1, 1)
    gc.disable()
    gc.enable()

    def program():
        return [[] for _ in range(1000)]

    try:
        _, seen = _C._observe(program)
    finally:
        gc.set_threshold(*threshold)
    assert seen["reason"] is None
    assert gc.isenabled()


def test_finalizers_end_the_trace():
    class Noisy:
        def __del__(self):
            LOG.append("gone")

    LOG.clear()

    def program():
        noisy = Noisy()
        del noisy
        return len(LOG)

    result, seen = _C._observe(program)
    assert result == 1
    assert "finalizer" in seen["reason"]
    assert seen["reason"].endswith(f"{__file__}:{program.__code__.co_firstlineno + 2})")


def test_weak_callbacks_end_the_trace():
    LOG.clear()

    def called(reference):
        LOG.append("called")

    def program():
        thing = Plain()
        reference = weakref.ref(thing, called)
        del thing
        return reference

    _C._observe(program)
    assert LOG == ["called"]


def test_signal_handlers_end_the_trace():
    LOG.clear()

    def handler(number, frame):
        LOG.append(number)

    old = signal.signal(signal.SIGUSR1, handler)

    def program():
        signal.raise_signal(signal.SIGUSR1)
        for _ in range(10):
            pass
        return list(LOG)

    try:
        result, seen = _C._observe(program)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert result == [signal.SIGUSR1]
    assert seen["reason"] is not None


@pytest.mark.parametrize("leave_it", [False, True], ids=["removed", "left"])
def test_settrace_in_the_program(leave_it):
    events = []

    def tracer(frame, event, arg):
        events.append((event, frame.f_lineno))
        return tracer

    def traced():
        a = 1
        return a

    def program():
        sys.settrace(tracer)
        traced()
        if not leave_it:
            sys.settrace(None)
        return 7

    result, seen = _C._observe(program)
    left = sys.gettrace()
    sys.settrace(None)
    assert result == 7
    assert seen["reason"] is not None
    assert left is (tracer if leave_it else None)
    first = traced.__code__.co_firstlineno
    assert {("call", first), ("line", first + 1), ("line", first + 2), ("return", first + 2)} <= set(events)
    assert not [event for event, _ in events if event == "opcode"]


def test_a_tracer_that_is_removed_behind_c_code_is_noticed():
    remove = functools.partial(sys.settrace, None)

    def program():
        list(map(lambda call: call(), [remove]))
        return 3

    result, seen = _C._observe(program)
    assert result == 3
    assert seen["reason"] is not None
    assert sys.gettrace() is None


def test_threads_started_by_the_program_run_unwatched():
    out = []

    def work():
        out.append(sum(i for i in range(10)))

    def program():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return out[0]

    result, _ = _C._observe(program)
    assert result == 45
    assert sys.gettrace() is None


def test_two_threads_observe_at_the_same_time():
    def program(n):
        total = 0
        for i in range(n):
            total += i
        return total

    results = []

    def work(_):
        for _ in range(50):
            result, seen = _C._observe(program, 200)
            results.append((result, seen["reason"]))

    in_threads(work, n=3, interval=1e-6)
    assert results == [(19900, None)] * 150
    assert gc.isenabled()


def test_frames_that_live_on_have_their_flags_back():
    kept = []

    def program():
        def numbers():
            kept.append(sys._getframe())
            yield 1
            yield 2

        generator = numbers()
        next(generator)
        kept.append(sys._getframe())
        return generator

    _C._observe(program)
    for frame in kept:
        assert frame.f_trace_lines is True
        assert frame.f_trace_opcodes is False


def test_abandoned_calls_name_the_users_line():
    def program():
        value = 1
        import that_is_not_there_either  # noqa: F401

        return value

    with pytest.raises(ImportError):
        _C._observe(program)

    def guarded():
        try:
            import that_is_not_there_either  # noqa: F401
        except ImportError:
            return 1

    _, seen = _C._observe(guarded)
    assert seen["reason"].endswith(f"{__file__}:{guarded.__code__.co_firstlineno + 2})")
