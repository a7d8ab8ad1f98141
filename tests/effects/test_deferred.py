"""Effects outside: what is printed, logged, warned of and written is eager's, in order, once for each call, from the
same lines; also where loggers, filters and streams change between calls. What cannot be put off until the commit ends
the trace."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import magpy
from tests.compare import assert_same
from tests.counting import Counted

X = torch.tensor([1.0, 2.0, 0.5])
log = logging.getLogger("tests.effects")


class Notes(logging.Handler):
    """What a record says, and from where; messages are formatted when the record comes."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.pathname, record.lineno, record.funcName, record.module)
        self.records.append(
            (record.name, record.levelname, record.getMessage(), *place, getattr(record, "extra", None))
        )


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], list[Any]]]:
    """A function that gives all that came out: on both streams (as one, so that the order shows), as records, as
    warnings."""
    out, notes, caught = io.StringIO(), Notes(), []
    level, propagate = log.level, log.propagate
    log.addHandler(notes)
    log.propagate = False
    log.setLevel(logging.INFO)

    def show(message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        caught.append((str(message), category, filename, lineno))

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            yield lambda: [out.getvalue(), list(notes.records), list(caught)]
        finally:
            log.removeHandler(notes)
            log.setLevel(level)
            log.propagate = propagate


def helper(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)
    log.info("%s", text, stacklevel=2)


class Config:
    def __init__(self) -> None:
        self.width, self.names = 3, ["a", "b"]

    def __repr__(self) -> str:
        return f"Config({self.width}, {self.names})"


config = Config()
table = {"a": [1, 2], "b": (3.5, None)}
adapter = logging.LoggerAdapter(log, {"extra": "adapted"})


def written_in_order(x: torch.Tensor) -> torch.Tensor:
    print("one", x.shape, sep="|")
    sys.stdout.write("two\n")
    log.warning("three %d", 3)
    warnings.warn("four", stacklevel=1)
    sys.stderr.write("five\n")
    sys.stderr.flush()
    print("six", file=sys.stderr, end=".\n", flush=True)
    return x + 1


def changed_afterwards(x: torch.Tensor) -> Any:
    values = [1, 2]
    print(values, {"v": values}, (values,))
    values.append(3)
    log.info("%s", values)
    values.clear()
    return x + 1, values


def shown_tensors(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    print(x, y.sum(), [y])
    log.info("%s of %s", y.mean(), x)
    return y + 1


def in_a_branch(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 3:
        print("large")
        return x - 1
    print("small")
    return x + 1


def before_an_exception_inside(x: torch.Tensor) -> torch.Tensor:
    try:
        print("before")
        raise KeyError("inside")
    except KeyError as error:
        print("caught", error.args[0])
    finally:
        log.error("finally")
    return x + 1


def with_own_filters(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("hidden", stacklevel=1)
        y = x + 1
    warnings.warn("shown", stacklevel=1)
    return y


class Loud(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.log = logging.getLogger("tests.effects")
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.log.info("call %d of %s", self.calls, type(self).__name__, extra={"extra": self.calls})
        helper(f"call {self.calls}")
        return self.inner(x)


PROGRAMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "in order": written_in_order,
    "arguments changed afterwards": changed_afterwards,
    "tensors": shown_tensors,
    "a branch on data": in_a_branch,
    "an exception inside": before_an_exception_inside,
    "own filters": with_own_filters,
    "stack levels": lambda x: [helper("from a lambda"), x + 1][1],
    "module functions": lambda x: [logging.getLogger("tests.effects").critical("%s", x.shape), x + 1][1],
    "an adapter": lambda x: [adapter.warning("adapted %s", "text"), x + 1][1],
    "a level that is off": lambda x: [log.debug("nothing %s", x), x + 1][1],
    "a level by number": lambda x: [log.log(25, "twenty-five"), x + 1][1],
    "an object from outside": lambda x: [print(config, table), log.info(config), x + config.width][2],
    "asked whether it is on": lambda x: [log.isEnabledFor(20) and log.info("on"), x + 1][1],
    "deprecation": lambda x: [(lambda: warnings.warn("old", DeprecationWarning, 2))(), x + 1][1],
    "numbers that are data": lambda x: (
        [print(x.sum().item(), x[0].item() * 2), log.info("%.2f", x.mean().item()), x][2] + 1
    ),
    "from a generator": lambda x: sum(print(i) or x * i for i in range(3)),
    "a buffer of the call's own": lambda x: [
        b := io.StringIO(),
        print("a", x.shape, file=b),
        b.write("b"),
        print(b.getvalue()),
        x + len(b.getvalue()),
    ][-1],
    "many": lambda x: [[print(i, end=",") for i in range(20)], x + 1][1],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_comes_out_is_eagers(name: str) -> None:
    program = PROGRAMS[name]
    fast = torch.compile(program, backend="magpy")
    with noted() as seen:
        expected = [program(X + k % 2) for k in range(6)]
        eager = seen()
    with noted() as seen, Counted() as counted:
        mine = [fast(X + k % 2) for k in range(6)]
        compiled = seen()
    assert compiled == eager
    assert_same(mine, expected)
    assert counted.hits >= 4 and not counted.fallbacks


def test_a_module_with_state_logs_its_state() -> None:
    """The counter is a constant of each trace; what is logged is never the number of another call."""
    net = Loud().eval()
    fast = torch.compile(net, backend="magpy")
    with noted() as seen, torch.no_grad():
        for _ in range(3):
            net(X)
        eager = seen()
    net.calls = 0
    with noted() as seen, torch.no_grad():
        for _ in range(3):
            fast(X)
        compiled = seen()
    assert compiled == eager
    net.calls = 0
    with noted() as seen, torch.no_grad(), Counted() as counted:
        for _ in range(3):
            fast(X)
        assert seen() == eager
    counted.assert_hit(3)


def test_levels_handlers_and_filters_are_asked_when_the_effect_is_made() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        log.info("info")
        log.debug("debug")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    other = Notes()

    def calls(function: Any) -> None:
        for change in (
            lambda: log.setLevel(logging.DEBUG),
            lambda: log.setLevel(logging.ERROR),
            lambda: log.setLevel(logging.INFO),
            lambda: log.addHandler(other),
            lambda: log.removeHandler(other),
            lambda: log.addFilter(lambda record: record.levelno != logging.INFO),
            lambda: log.filters.clear(),
            lambda: logging.disable(logging.CRITICAL),
            lambda: logging.disable(logging.NOTSET),
        ):
            change()
            function(X)

    with noted() as seen:
        calls(program)
        eager = seen()
    others = list(other.records)
    other.records.clear()
    fast(X)
    with noted() as seen, Counted() as counted:
        calls(fast)
        assert seen() == eager
    assert other.records == others
    counted.assert_hit(9)


def test_a_warning_is_shown_as_often_as_the_registry_says() -> None:
    def scenario(function: Any) -> list[Any]:
        with noted() as seen:
            for action in ("default", "default", "always", "ignore", "once", "once", "default"):
                with warnings.catch_warnings():
                    warnings.simplefilter(action)  # type: ignore[arg-type]
                    warnings.showwarning = lambda m, c, f, n, *rest: print(m, f, n)
                    function(X)
            return seen()

    def program(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("again and again", stacklevel=1)
        return x + 1

    eager = scenario(program)
    fast = torch.compile(program, backend="magpy")
    scenario(fast)
    with Counted() as counted:
        assert scenario(fast)[0] == eager[0]
    counted.assert_hit(7)


def test_a_warning_that_is_an_error_leaves_what_eager_leaves() -> None:
    class Net(nn.Module):
        before = after = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.before = 1
            warnings.warn("now an error", stacklevel=1)
            self.after = 1
            return x + 1

    net = Net()
    fast = torch.compile(net, backend="magpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            fast(X)
        net.before = net.after = 0
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="now an error"):
            fast(X)
    assert (net.before, net.after) == (1, 0)


def test_streams_that_are_replaced_between_calls_are_found_anew() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        print("printed")
        sys.stdout.write("written\n")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for k in range(4):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), Counted() as counted:
            fast(X)
        assert out.getvalue() == "printed\nwritten\n"
        assert counted.hits == (k > 0)


def test_a_stream_written_in_python() -> None:
    class Tee:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def write(self, text: str) -> int:
            self.lines.append(text)
            return len(text)

        def flush(self) -> None:
            pass

    def program(x: torch.Tensor) -> torch.Tensor:
        print("a", x.shape)
        return x + 1

    fast, lines = torch.compile(program, backend="magpy"), []
    with Counted() as counted:
        for _ in range(4):
            with contextlib.redirect_stdout(Tee()) as tee:  # type: ignore[type-var]
                fast(X)
            lines.append(tee.lines)
    assert lines == [["a", " ", "torch.Size([3])", "\n"]] * 4
    assert counted.hits == 3


def test_effects_of_a_run_that_is_thrown_away_are_not_made() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        print("computed")
        return x * x[0].item()

    fast = torch.compile(program, backend="magpy")
    for k in (1, 2, 1, 2, 3):
        with noted() as seen:
            fast(torch.full((2,), float(k)))
            assert seen()[0] == "computed\n"


def test_an_effect_that_raises_is_the_calls_error() -> None:
    stream = io.StringIO()

    def program(x: torch.Tensor) -> torch.Tensor:
        stream.write("text")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    fast(X), fast(X)
    assert stream.getvalue() == "texttext"
    stream.close()
    with pytest.raises(ValueError, match="closed file"):
        fast(X)


# -- What cannot be put off --------------------------------------------------------------------------------------------


def refused(program: Callable[..., Any], *args: Any) -> str:
    """Call it compiled and plain; the reason why there is no trace."""
    fast = torch.compile(program, backend="magpy", options={"frames": False})
    with noted() as seen, Counted() as counted:
        mine = fast(*args)
        out = seen()
    with noted() as seen:
        expected = program(*args)
        assert out == seen()
    assert_same(mine, expected)
    assert counted.traces == 0
    [(reason, count)] = counted.fallbacks.items()
    assert count == 1
    return reason


class Listening(logging.Handler):
    """A handler with which the program shares state."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.step = 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += 1
        print(record.getMessage(), "at", self.step)


@pytest.fixture
def listening() -> Iterator[Listening]:
    handler = Listening()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def test_state_that_a_handler_changes_is_not_read_before_its_time(listening: Listening) -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        listening.heard = 0
        log.info("one")
        return x * listening.heard

    assert refused(program, X) == "EFFECT"


def test_state_that_a_handler_reads_is_not_changed_after_it(listening: Listening) -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        listening.step = 1
        log.info("one")
        listening.step = 2
        return x + 1

    assert refused(program, X) == "EFFECT"


def test_state_that_a_handler_reads_may_be_changed_before_it(listening: Listening) -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        listening.step = 3
        log.info("one")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    outs = []
    for _ in range(3):
        listening.step = 0
        with noted() as seen, Counted() as counted:
            fast(X)
            outs.append(seen()[0])
    assert outs == ["one at 3\n"] * 3
    counted.assert_hit()


def test_a_level_that_the_call_sets_for_a_while() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        log.setLevel(logging.DEBUG)
        log.debug("for a while")
        log.setLevel(logging.INFO)
        return x + 1

    refused(program, X)


def test_tensors_that_are_shown_and_changed() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        print(y)
        y.add_(1)
        return y

    assert refused(program, X) == "EFFECT"


CHANGED_AFTER: dict[str, Callable[[torch.Tensor], Any]] = {
    "in place": lambda x: x.add_(1),
    "through a view": lambda x: x[1:].mul_(3),
    "through .data": lambda x: x.data.add_(1),
    "through a view of .data": lambda x: x.data[:1].zero_(),
    "through detach": lambda x: x.detach().add_(1),
    "other data": lambda x: setattr(x, "data", x.data * 2),
    "by out=": lambda x: torch.neg(x, out=x),
    "by item": lambda x: x.__setitem__(0, 9.0),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", list(CHANGED_AFTER))
def test_what_is_shown_is_what_the_tensor_held(how: str, inside: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """However it is changed behind the print: of an argument, and of a tensor that the call made."""

    def program(x: torch.Tensor) -> torch.Tensor:
        y = x + 0 if inside else x
        print(y)
        CHANGED_AFTER[how](y)
        print("then")
        return y + 1

    outputs = []
    for target in (program, torch.compile(program, backend="magpy")):
        x = X.clone()
        results = [target(x).tolist() for _ in range(4)]
        outputs.append((results, x.tolist(), capsys.readouterr().out))
    assert outputs[1] == outputs[0]


def test_the_text_of_a_tensor_with_a_gradient_function() -> None:
    assert refused(lambda x: [y := x * 2, print(y)][0], X.clone().requires_grad_()) == "EFFECT"


def test_an_object_of_the_calls_own() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        mine = Config()
        log.info(mine)
        mine.width = 4
        return x + mine.width

    assert refused(program, X) == "EFFECT"


def test_output_while_streams_are_replaced() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        with contextlib.redirect_stdout(None):
            print("unseen")
        return x + 1

    assert refused(program, X) == "EFFECT"


def test_filters_that_stay() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("shown", stacklevel=1)
        warnings.simplefilter("ignore")
        return x + 1

    refused(program, X)


# -- Declared by the user ----------------------------------------------------------------------------------------------


class Writer:
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def add(self, name: str, value: Any, step: int = 0) -> None:
        frame = sys._getframe(1)
        self.rows.append((name, float(value), step, frame.f_code.co_name, frame.f_lineno, __name__))


def test_declared_effects() -> None:
    magpy.effect(Writer.add)
    writer = Writer()

    def program(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        writer.add("mean", y.mean(), step=len(x))
        writer.add("first", 1.5)
        return y

    fast = torch.compile(program, backend="magpy")
    for k in range(4):
        program(X + k)
    eager, writer.rows = writer.rows, []
    with Counted() as counted:
        for k in range(4):
            fast(X + k)
    assert writer.rows == eager
    assert counted.hits == 3 and not counted.fallbacks


def test_declared_effects_as_decorators_and_for_c_callables() -> None:
    rows: list[Any] = []
    note = magpy.effect(functools.partial(rows.append))

    @magpy.effect
    def remember(value: Any) -> None:
        rows.append(("remembered", value))

    def program(x: torch.Tensor) -> torch.Tensor:
        remember(tuple(x.shape))
        note(3)
        return x + 1

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            fast(X)
    assert rows == [("remembered", (3,)), 3] * 3
    assert counted.hits == 2


def test_a_declared_effect_gives_nothing() -> None:
    @magpy.effect
    def count(x: Any) -> list[int]:
        return [1]

    assert refused(lambda x: x + len(count([x])), X) == "EFFECT"


def test_nothing_is_kept_alive_and_nothing_grows() -> None:
    import gc
    import weakref

    def program(x: torch.Tensor, owner: Config) -> torch.Tensor:
        log.info("%s", x.sum())
        warnings.warn(str(owner.width), stacklevel=1)
        return x + 1

    fast = torch.compile(program, backend="magpy")
    with noted():
        owner = Config()
        for _ in range(3):
            fast(X, owner)
        ref, before = weakref.ref(owner), sys.getrefcount(log)
        for _ in range(20):
            fast(X, owner)
        assert sys.getrefcount(log) == before
    del owner
    gc.collect()
    assert ref() is None


class Own(ValueError):
    def __str__(self) -> str:
        return f"own {len(self.args)}"


EXCEPTIONS: dict[str, tuple[Callable[[], Any], int]] = {
    "plain": (lambda: ValueError("bad", 1), 3),
    "a missing key": (lambda: KeyError("k"), 3),
    "without arguments": (lambda: RuntimeError(), 3),
    "with a field in C": (lambda: StopIteration(3), 0),
    "of the system": (lambda: OSError(2, "no file"), 0),
    "of the system, with a name": (lambda: OSError(2, "no file", "name"), 0),
    "with an object": (lambda: ValueError([1]), 0),
    "of the program's class": (lambda: Own("x"), 0),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_that_are_shown_as_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, hits = EXCEPTIONS[name]

    def program(x: torch.Tensor) -> torch.Tensor:
        try:
            raise make()
        except Exception as error:
            print("caught", error, repr(error), [error])
            log.warning("caught %s", error)
        return x * 2

    with noted() as seen:
        for _ in range(2):
            program(X)
        text, records, _ = seen()
    fast = torch.compile(program, backend="magpy")
    with noted() as seen, Counted() as counted:
        for i in range(4):
            assert_same(fast(X + i), (X + i) * 2)
        mine, logged, _ = seen()
    assert mine == text * 2
    assert logged == records * 2
    assert counted.hits == hits


def ends(ended: list[str]) -> Iterator[int]:
    try:
        yield 1
    finally:
        ended.append("closed")


@pytest.mark.parametrize(
    "effect",
    [
        lambda text: log.info(text),
        lambda text: warnings.warn(text, stacklevel=1),
        lambda text: print(text),
        lambda text: log.info("%s", [text], stacklevel=2),
        lambda text: adapter.warning(text),
    ],
    ids=["info", "warn", "print", "stacklevel", "adapter"],
)
def test_what_lives_in_the_callers_of_an_effect_dies_as_in_eager(effect: Callable[[str], None]) -> None:
    """Effects ask for frames: those must not live on, for what they hold ends within the call."""
    ended: list[str] = []

    def inner(x: torch.Tensor) -> torch.Tensor:
        generator = ends(ended)
        next(generator)
        effect("inner")
        return x + 1

    def program(x: torch.Tensor) -> Any:
        generator = ends(ended)
        next(generator)
        y = inner(x)
        effect("outer")
        return y * 2, len(ended)

    fast = torch.compile(program, backend="magpy")
    with noted() as shown:
        for i in range(3):
            assert fast(X)[1] == 2 * i + 1
            assert ended == ["closed"] * (2 * i + 2)
        mine = shown()
    with noted() as shown:
        for _ in range(3):
            program(X)
        assert mine == shown()


def test_an_effect_that_looks_at_a_callers_variables() -> None:
    class Spying(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            frame: Any = sys._getframe()
            while frame.f_code.co_name != "program":
                frame = frame.f_back
            told.append(frame.f_locals["secret"])

    told: list[int] = []
    handler = Spying()

    def program(x: torch.Tensor, secret: int) -> torch.Tensor:
        secret += 1
        log.info("look")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    with noted():
        log.addHandler(handler)
        try:
            for i in range(3):
                fast(X, i)
        finally:
            log.removeHandler(handler)
    assert told == [1, 2, 3]
