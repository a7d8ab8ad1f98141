"""Code made and run by the call, its namespaces, classes made by the call, filters of warnings."""

from __future__ import annotations

import builtins
import collections
import dataclasses
import typing
import warnings

import pytest
import torch

from tests.traps.differential import attempt, same_as_eager

X = torch.arange(4.0)
FACTOR = 3


def made_namedtuple(x):
    pair = collections.namedtuple("Pair", ["first", "second"])
    made = pair(x + 1, second=x * 2)
    return made, made._fields, made.first + made[1], pair.__module__


def made_typed_tuple(x):
    class Pair(typing.NamedTuple):
        first: torch.Tensor
        second: int = 3

    return Pair(x + 1), Pair(x, 5)._replace(second=7)


def made_dataclass(x):
    @dataclasses.dataclass
    class Pair:
        first: torch.Tensor
        second: int = 3

    return Pair(x + 1).first, Pair(x, 4).second


def evaluated_here(x):
    local = 2  # noqa: F841
    return eval("x * local + FACTOR")


def evaluated_elsewhere(x):
    return eval("x * n", {"n": 5}, {"x": x})


def evaluated_without_builtins(x):
    try:
        return eval("len(x)", {"__builtins__": {}}, {"x": x})
    except NameError as error:
        return x + 1, str(error)


def executed(x):
    names = {"x": x}
    exec("def twice(a):\n    return a * 2\ny = twice(x)", names)
    return names["y"], sorted(name for name in names if not name.startswith("_"))


def executed_code(x):
    code = compile("x * 4", "made up", "eval")
    return eval(code, {"x": x}) + len(code.co_names)


@pytest.mark.parametrize(
    "program",
    [
        made_namedtuple,
        made_typed_tuple,
        made_dataclass,
        evaluated_here,
        evaluated_elsewhere,
        evaluated_without_builtins,
        executed,
        executed_code,
    ],
)
def test_code_and_classes_made_by_the_call(program):
    def scenario(wrap):
        fast = wrap(program)
        for n in range(3):
            result = fast(X + n)
            yield result
            if isinstance(result, tuple) and isinstance(result[0], tuple):
                yield type(result[0]).__name__, [type(item).__name__ for item in result[0]]

    assert same_as_eager(scenario, hits=2).fallbacks == {}


def test_outside_names_of_code_are_guarded(monkeypatch):
    """Globals, a closure's cells through locals(), vars() and eval, and builtins in namespaces of the call's own."""

    def scenario(wrap):
        n, text = 5, "x + n"

        def by_eval(x):
            return eval(text), n

        def by_locals(x):
            return x + locals()["n"], n

        def by_vars(x):
            return x + vars()["n"], n

        def by_globals(x):
            return eval("x * FACTOR"), eval("x + FACTOR", globals(), {"x": x})

        def by_builtins(x):
            return x + eval("len('abc')", {})

        for program in (by_eval, by_locals, by_vars, by_globals, by_builtins):
            n, text = 5, "x + n"
            fast = wrap(program)
            yield fast(X), fast(X)
            n = 6
            yield fast(X)
            text = "x - n"
            yield fast(X)
            with monkeypatch.context() as patch:
                patch.setitem(globals(), "FACTOR", 4)
                yield fast(X)
                patch.setattr(builtins, "len", lambda thing: 40)
                yield fast(X)
            yield fast(X)

    same_as_eager(scenario, min_hits=15)


def test_stores_of_code_to_outside_namespaces():
    def scenario(wrap):
        shared = {"__builtins__": builtins, "count": 0}

        def program(x):
            exec("count += 1; last = count * 2", shared)
            return x + shared["last"]

        bare = {}

        def adds_builtins(x):
            exec("y = 1", bare)
            return x + bare["y"]

        fast, other = wrap(program), wrap(adds_builtins)
        for _ in range(4):
            yield fast(X), {name: value for name, value in shared.items() if name != "__builtins__"}
            yield other(X), sorted(bare)
            bare.clear()

    same_as_eager(scenario)


def test_code_that_raises():
    def scenario(wrap):
        def program(x, text):
            return eval(text)

        fast = wrap(program)
        for text in ("x + 1", "x +", "missing", "x + 1"):
            yield attempt(fast, X, text)

    same_as_eager(scenario, min_hits=1)


def quietly(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("nobody hears this", stacklevel=1)
        return x * 2


def loudly_inside(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.warn("heard", stacklevel=1)
        return x * 2


def before_and_after(x):
    warnings.warn("before", stacklevel=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = x * 2
    warnings.warn("after", stacklevel=1)
    return y


def recorded(x):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("caught", stacklevel=1)
        return x * len(caught)


def for_good(x):
    warnings.filterwarnings("ignore", message="later")
    return x * 2


@pytest.mark.parametrize(
    ("program", "hits"), [(quietly, 3), (loudly_inside, 0), (before_and_after, 0), (recorded, 0), (for_good, 0)]
)
def test_filters_of_warnings_changed_by_the_call(program, hits):
    def scenario(wrap):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            fast = wrap(program)
            for _ in range(4):
                yield fast(X), [str(entry.message) for entry in heard]
                warnings.warn("later", stacklevel=1)
                yield [str(entry.message) for entry in heard], [entry[:3] for entry in warnings.filters]

    same_as_eager(scenario, min_hits=hits)


def test_filters_changed_between_calls():
    """The version of the filters counts up as in eager, so that a warning shown once is shown again."""

    def scenario(wrap):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("default")

            def warn():
                warnings.warn("once a place", stacklevel=1)

            fast = wrap(quietly)
            for _ in range(3):
                warn()
                warn()
                yield fast(X), len(heard)

    same_as_eager(scenario, min_hits=2)
