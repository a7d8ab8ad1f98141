"""Observing a call changes nothing about the call, and leaves the interpreter as it was."""

import gc
import sys
import threading
import traceback

import pytest

from magpy import _C


def observed(function, *args, **kwargs):
    """Result of an observed call that must not have been abandoned, and what was seen of it."""
    result, seen = _C._observe(function, *args, **kwargs)
    assert seen["reason"] is None, seen["reason"]
    return result, seen


def test_result_is_the_programs_own():
    marker = [1]
    result, seen = observed(lambda value: value, marker)
    assert result is marker
    assert seen["frames"] == 1


def test_tracer_and_garbage_collection_are_put_back():
    assert gc.isenabled()
    observed(lambda: None)
    assert sys.gettrace() is None
    assert gc.isenabled()
    gc.disable()
    try:
        observed(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_tracer_is_not_visible_to_the_program():
    seen = []

    def program():
        frame = None
        return frame, seen

    observed(program)
    assert sys.gettrace() is None


def test_keyword_and_default_arguments_arrive():
    def program(a, b=2, *rest, c, d=4, **more):
        return a, b, rest, c, d, more

    result, _ = observed(program, 1, c=3, e=5)
    assert result == (1, 2, (), 3, 4, {"e": 5})


def test_exception_passes_with_eagers_traceback():
    def inner():
        raise ValueError("boom")

    def program():
        try:
            inner()
        finally:
            pass

    def trace_of(call):
        with pytest.raises(ValueError, match="boom") as caught:
            call()
        return [(entry.name, entry.lineno) for entry in traceback.extract_tb(caught.value.__traceback__)][1:]

    assert trace_of(lambda: program())[1:] == trace_of(lambda: _C._observe(program))[1:]
    assert sys.gettrace() is None
    assert gc.isenabled()


def test_caught_exceptions_keep_context_and_cause():
    def program():
        try:
            try:
                {}["missing"]
            except KeyError as error:
                raise ValueError("outer") from error
        except ValueError as error:
            return error

    error, _ = observed(program)
    assert isinstance(error.__cause__, KeyError)


def test_another_tracer_is_respected():
    lines = []

    def tracer(frame, event, arg):
        lines.append(event)
        return tracer

    sys.settrace(tracer)
    try:
        result, seen = _C._observe(lambda: 5)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(None)
    assert result == 5
    assert "tracer" in seen["reason"]
    assert "line" in lines


def test_other_threads_are_not_observed():
    def program():
        return 1

    ready, go = threading.Event(), threading.Event()

    def other():
        ready.set()
        go.wait(10)
        total = 0
        for i in range(100):
            total += i
        return total

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(10)
    go.set()
    _, seen = observed(program)
    thread.join(10)
    assert seen["frames"] == 1
