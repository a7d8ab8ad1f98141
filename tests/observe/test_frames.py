"""Frame fallback: every frame is offered, an answered one is not executed, the hook does not outlive its region."""

import sys
import threading

import pytest

from magpy import _C


def leaf(value):
    return value + 1


def middle(value):
    return leaf(value) * 2


def test_offers_every_function_called():
    names = []

    def offer(function, arguments):
        names.append((function.__name__, arguments))

    assert _C._offer_frames(offer, middle, 3) == 8
    assert names == [("middle", (3,)), ("leaf", (3,))]
    assert not _C._hook_installed()


def test_answered_frame_is_not_executed():
    def offer(function, arguments):
        return (100,) if function is leaf else None

    assert _C._offer_frames(offer, middle, 3) == 200


def test_answer_may_be_an_exception():
    def offer(function, arguments):
        if function is leaf:
            raise LookupError("answered")

    with pytest.raises(LookupError, match="answered"):
        _C._offer_frames(offer, middle, 3)
    assert not _C._hook_installed()


def test_answered_frames_keep_no_arguments_alive():
    class Thing:
        pass

    def offer(function, arguments):
        return (None,)

    thing = Thing()
    before = sys.getrefcount(thing)
    for _ in range(100):
        _C._offer_frames(offer, lambda thing: thing, thing)
    assert sys.getrefcount(thing) == before


def test_generators_run_themselves():
    offered = []

    def numbers():
        yield 1
        yield 2

    def offer(function, arguments):
        offered.append(function.__name__)

    assert _C._offer_frames(offer, lambda: list(numbers())) == [1, 2]
    assert "numbers" not in offered


def test_what_answering_calls_is_not_offered():
    offered = []

    def offer(function, arguments):
        offered.append(function)
        return (leaf(arguments[0]),) if function is leaf else None

    assert _C._offer_frames(offer, middle, 3) == 8
    assert offered == [middle, leaf]


def test_regions_nest():
    outer, inner = [], []

    def program():
        leaf(1)
        _C._offer_frames(lambda function, arguments: inner.append(function), leaf, 2)
        leaf(3)

    _C._offer_frames(lambda function, arguments: outer.append(function), program)
    assert inner == [leaf]
    assert outer == [program, leaf, leaf]
    assert not _C._hook_installed()


def test_deep_recursion_steps_aside():
    """50,000 frames: with a hook each would take C stack, and the process would crash."""

    def down(n):
        return 0 if n == 0 else 1 + down(n - 1)

    offered = []

    def offer(function, arguments):
        offered.append(function)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        assert _C._offer_frames(offer, down, 50_000) == 50_000
    finally:
        sys.setrecursionlimit(limit)
    assert 100 < len(offered) < 50_000
    assert not _C._hook_installed()


def test_other_threads_are_not_offered():
    offered = []

    def program():
        thread = threading.Thread(target=leaf, args=(1,))
        thread.start()
        thread.join()

    _C._offer_frames(lambda function, arguments: offered.append(function), program)
    assert leaf not in offered


def test_threads_that_leave_in_another_order():
    """The last region to end takes the hook away, whoever installed it."""
    entered, leave = threading.Event(), threading.Event()

    def waits():
        entered.set()
        leave.wait(10)

    def body():
        _C._offer_frames(lambda function, arguments: None, waits)

    thread = threading.Thread(target=body)
    thread.start()
    entered.wait(10)
    _C._offer_frames(lambda function, arguments: None, leaf, 1)
    assert _C._hook_installed()
    leave.set()
    thread.join(10)
    leaf(1)
    assert not _C._hook_installed()


def test_dynamo_and_the_hook_leave_each_other_alone():
    torch = pytest.importorskip("torch")
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    offered = []

    def offer(function, arguments):
        offered.append(function)

    def program(x):
        return leaf(compiled(compiled(x)))

    x = torch.ones(2)
    for _ in range(3):
        assert _C._offer_frames(offer, program, x).tolist() == [4.0, 4.0]
        assert compiled(x).tolist() == [2.0, 2.0]
    leaf(1)
    assert not _C._hook_installed()
    assert program in offered and leaf in offered
    torch._dynamo.reset()
