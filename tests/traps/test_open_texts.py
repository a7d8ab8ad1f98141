"""Text of numbers that are data: one trace serves all values where text only goes on to effects, results and stored
state, and whatever looks at it is noticed."""

# ruff: noqa: B035, E501, UP030, UP031, UP032, B010

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import io
import json
import logging
import math
import operator
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import magpy
from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted

Program = Callable[[torch.Tensor], Any]
log = logging.getLogger("tests.open_texts")


def caught(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except (ValueError, ArithmeticError, TypeError, LookupError) as error:
        return type(error).__name__, str(error)


def braced(template: str, *items: Any, **named: Any) -> Any:
    return caught(lambda: template.format(*items, **named))


def percent(template: str, items: Any) -> Any:
    return caught(lambda: template % items)


def first(x: torch.Tensor) -> float:
    return x[0].item()


def count(x: torch.Tensor) -> int:
    return int(x[1])


@dataclasses.dataclass
class Note:
    text: str
    more: Any = None


class Slotted:
    __slots__ = ("text",)


def slotted(text: str) -> str:
    note = Slotted()
    note.text = text
    return note.text


def set_by_name(text: str) -> str:
    note = Note("")
    setattr(note, "text", text)
    object.__setattr__(note, "more", text)
    return note.text + note.more


def built(x: torch.Tensor) -> str:
    text = ""
    for i in range(3):
        text += f"{x[i].item():.2f},"
    return text


def grown(x: torch.Tensor) -> Any:
    return "%.2f" % x[0], x.add_(1), "%.2f" % x[0]


def written(text: str) -> str:
    out: list[str] = []
    print(text, end="")
    print(text, [text], {"a": (text,)}, sep="|")
    out.append(text)
    return out[0]


#: A float of any kind first, an int second.
VALUES = [
    (1.5, 2.0, 3.25),
    (float("nan"), 12.0, 0.5),
    (-0.0, -7.0, 1e30),
    (float("-inf"), 0.0, -2.0),
    (123456.789, 5.0, 1e-8),
]

#: Programs that let text go through: one trace serves all of it.
OPEN: dict[str, Program] = {
    "f-strings": lambda x: f"loss {first(x):.3f} at {count(x):>5d} or {count(x)}",
    "pieces": lambda x: (f"{first(x)}", f"{count(x)}", f"{first(x):e}{count(x):+,}", f"{count(x)!r}{first(x)!s}"),
    "digits": lambda x: (f"{count(x)}", f"{count(x)}{count(x)}", str(count(x)), "%d" % count(x), "{}".format(count(x))),
    "percent": lambda x: ("step %d loss %.4f" % (count(x), first(x)), "%s%%" % first(x), "%5.1f|%-8s|%x" % (first(x), "a", count(x))),
    "braces": lambda x: ("{:.2f} {}".format(first(x), count(x)), "{1:>8} {0!r} {{}}".format(first(x), count(x)), "{}{}".format("é", first(x))),
    "str": lambda x: (str(first(x)), str(count(x)), str(count(x) * 2 + 1)),
    "nested": lambda x: (f"{f'{first(x):.2f}':>12}|{f'<{count(x)}>'!r}", "%s-%s" % (f"{first(x)}", str(count(x))), "[{}]".format("%d" % count(x))),
    "joined": lambda x: ("a" + str(first(x)) + "b", built(x)),
    "computed": lambda x: f"{first(x) * 2 + 1:.3f} {math.floor(x[2].item() / 1e15)}",
    "in containers": lambda x: {"a": f"{first(x)}", "b": [f"<{count(x)}>", (str(first(x)), 1)]},
    "in objects": lambda x: (Note(f"{first(x)}!").text, dataclasses.replace(Note("a"), text=str(first(x))).text),
    "in slots": lambda x: slotted(f"{first(x):.1f}"),
    "set by name": lambda x: set_by_name(f"{first(x):.1f}"),
    "truth": lambda x: f"{first(x)}." if f"{count(x)}" else "none",
    "kind": lambda x: (isinstance(str(first(x)), str), str(count(x)) is None, f"{first(x)}"),
    "carried": lambda x: [t for t in [f"{first(x)}:", str(count(x))]],
    "the same twice": lambda x: [f"{first(x)}:"] * 2,
    "printed": lambda x: written(f"{first(x):.3f} {count(x)}"),
    "logged": lambda x: log.warning("%s and %s", f"{first(x):.2f}", "step %d" % count(x)),
    "percent of tensors": lambda x: ("%.3f" % x[0], "%s %.2f|%d%%" % ("a", x[0], x[1]), "%5.1f" % x[:1], "%s %e" % (first(x), x[2])),
    "braces of tensors": lambda x: ("{:.3f}".format(x[0]), "{1:.1f} {0} {1:e}".format(x[0], x[1]), "{} {a:.2f} {b}".format(count(x), a=x[0], b="c")),
    "format of tensors": lambda x: (format(x[0], ".3f"), format(x[0]), str.format("{:>9.2e}", x[0]), "{}".format(x[1].long()), "%+d" % x[1].long()),
    "tensors of other types": lambda x: ("%.2f" % x[1].half(), "{}".format(x[1].bfloat16()), "%.3f" % (x[0] * torch.ones((), requires_grad=True)), "%.1f" % nn.Parameter(x[0].clone())),
    "tensors that change": lambda x: grown(x * 1),
    "tensors in effects": lambda x: (log.warning("loss %.3f" % x[0]), written("{:.2f}".format(x[0]))),
    "format": lambda x: (format(first(x), ".3f"), format(count(x)), repr(first(x)), repr(count(x))),
    "named": lambda x: ("{a:.2f} {b} {}".format("c", a=first(x), b=count(x)), percent("%(a).2f %(b)d%%", {"a": first(x), "b": count(x), "c": 1}), "%(a)e" % {"a": x[0]}, braced("{} {a}", first(x), a=x[1])),
    "containers": lambda x: (str({"a": [first(x), (count(x),)], "b": "{it}"}), str([first(x), None]), repr((f"{count(x)}.", True)), f"{[first(x)]!r}"),
    "generators": lambda x: (", ".join(f"{k}={v:.2f}" for k, v in {"a": x[0], "b": first(x), "c": 1.5}.items()), " ".join(str(v.item()) for v in x), "".join("a" for _ in "")),
    "beside checks": lambda x: f"{first(x)}" if count(x) > -100 else "",
}  # fmt: skip


def run(f: Program, x: torch.Tensor) -> tuple[Any, str]:
    out, records = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(records)
    log.addHandler(handler)
    log.propagate = False
    try:
        with contextlib.redirect_stdout(out):
            result = f(x)
    finally:
        log.removeHandler(handler)
    return result, out.getvalue() + records.getvalue()


@pytest.mark.parametrize("name", OPEN)
def test_one_trace_serves_all_text(name: str) -> None:
    def program(x: torch.Tensor) -> Any:
        return OPEN[name](x), x + 1

    fast = torch.compile(program, backend="magpy")
    for k, values in enumerate(VALUES):
        x = torch.tensor(values, dtype=torch.float64)
        with Counted() as counted:
            mine = run(fast, x)
        expected = run(program, x)
        assert repr(mine[0][0]) == repr(expected[0][0]) and mine[1] == expected[1]
        assert torch.equal(mine[0][1].nan_to_num(), expected[0][1].nan_to_num())
        assert (counted.hits, counted.fallbacks) == (int(k > 0), {})


def text_of(x: torch.Tensor) -> str:
    return f"{count(x)}."


@functools.lru_cache
def cached(text: str) -> int:
    return len(text)


class Shown:
    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __format__(self, spec: str) -> str:
        return self.text + spec

    def __hash__(self) -> int:
        return len(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shown) and self.text == other.text


class Problem(ValueError):
    def __init__(self, text: str):
        super().__init__(text)


class Kind(enum.Enum):
    THREE = "3."
    OTHER = "12."

    @classmethod
    def _missing_(cls, value: object) -> Kind:
        return cls.OTHER


class Text(str):
    def __format__(self, spec: str) -> str:
        return Text("own")


def spread(*letters: str, **named: str) -> Any:
    return letters, named


def unpacked(text: str) -> Any:
    head, *tail = text
    return head, tail, [*text], {*text}, spread(*text), [c for c in text], max(text)


def iterated(text: str) -> Any:
    def letters() -> Any:
        yield from text

    letters_of: list[str] = []
    letters_of.extend(text)
    return (
        list(letters()),
        letters_of,
        list(text),
        tuple(zip(text, text, strict=True)),
        list(enumerate(text)),
        next(iter(text)),
    )


def matched(text: str) -> str:
    match text:
        case "3.":
            return "three"
        case _:
            return "other"


def raised(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError as error:
        return str(error), error.args


def buffered(text: str) -> str:
    out = io.StringIO()
    print(text, file=out)
    out.write(text)
    return out.getvalue()


def keyed(text: str) -> Any:
    table = {"3.": "three", "12.": "twelve"}
    table[text] = table.get(text, "none") + "!"
    return (
        table,
        {text: 1},
        {text: 2 for _ in "a"},
        {text, "3."},
        {(text, 1) for _ in "a"},
        spread(**{text: "a"}),
        text in table,
    )


#: Programs that see something of a text: they may cost a trace or a fallback, never a wrong answer.
SEEN: dict[str, Program] = {
    "compared": lambda x: (text_of(x) == "3.", text_of(x) < "5", text_of(x) in ("3.", "4."), "3" in text_of(x), [text_of(x)] == ["3."]),
    "length": lambda x: (len(text_of(x)), f"{len(text_of(x))}"),
    "keys": lambda x: keyed(text_of(x)),
    "numbers": lambda x: (float(text_of(x)), int(str(count(x))), hash(text_of(x)) == hash("3.")),
    "sliced": lambda x: (text_of(x)[0], text_of(x)[:-1], text_of(x)[::-1]),
    "methods": lambda x: (text_of(x).upper(), text_of(x).split("."), ",".join([text_of(x)] * 2), text_of(x).isdigit(), text_of(x).encode()),
    "repeated": lambda x: (text_of(x) * 2, 2 * text_of(x), "-" * count(x)),
    "as a template": lambda x: (caught(lambda: f"%{count(x)}d" % 7), caught(lambda: ("{:" + str(count(x)) + "d}").format(7))),
    "as a format": lambda x: (caught(lambda: f"{1.5:{count(x)}}"), caught(lambda: f"{first(x):.{count(x)}f}"), caught(lambda: "%.*f" % (count(x), 1.5)), caught(lambda: "{:{}}".format(7, count(x)))),
    "unpacked": lambda x: unpacked(text_of(x)),
    "iterated": lambda x: iterated(text_of(x)),
    "matched": lambda x: matched(text_of(x)),
    "raised": lambda x: raised(text_of(x)),
    "buffered": lambda x: buffered(text_of(x)),
    "identity": lambda x: (str(count(x)) is str(count(x)), f"{count(x):d}" is text_of(x)[0], "%d" % count(x) is f"{count(x):d}", text_of(x) is text_of(x)),  # noqa: F632
    "names": lambda x: (getattr(collections, text_of(x), None), hasattr(collections, text_of(x)), type(text_of(x), (), {}).__name__),
    "shown": lambda x: (f"{Shown(text_of(x))}", str(Shown(text_of(x))), "%s" % Shown(text_of(x)), {Shown(text_of(x)): 1}[Shown(text_of(x))]),
    "own strings": lambda x: f"{Text('a')}{text_of(x)}" + Text("b"),
    "characters": lambda x: (caught(lambda: f"{count(x):c}"), caught(lambda: "%c" % count(x)), caught(lambda: "{:c}".format(count(x))), f"{count(x):n}"),
    "no ints": lambda x: (caught(lambda: "%d" % first(x)), caught(lambda: f"{first(x):d}"), caught(lambda: "%d %d" % count(x))),
    "large ints": lambda x: (f"{count(x) * 10**30}", caught(lambda: len(f"{abs(count(x)) ** 5000:.3f}"))),
    "cut": lambda x: ("%.0s" % first(x), f"{text_of(x):.0}" or "empty", f"{text_of(x):.1}" or "empty"),
    "ascii": lambda x: (f"{f'é{count(x)}'!a}", f"{f'é{count(x)}'!r}", ascii(text_of(x)), repr(text_of(x)), f"{[text_of(x)]}"),
    "arithmetic": lambda x: (caught(lambda: text_of(x) + 1), caught(lambda: 1 + text_of(x)), caught(lambda: text_of(x) + Text("a")), caught(lambda: -text_of(x))),
    "made into others": lambda x: (Text(text_of(x)) + "a", collections.Counter(text_of(x)), pathlib.PurePath(text_of(x)).suffix, str(Problem(text_of(x))), Kind(text_of(x)).name),
    "run": lambda x: (eval(text_of(x)), re.match("3", text_of(x)) is None, io.StringIO(text_of(x)).read(), bytes(text_of(x), "utf8"), logging.getLogger(text_of(x)).name),
    "kept": lambda x: (cached(text_of(x)), functools.partial(len, text_of(x))(), text_of(x).__len__(), operator.itemgetter(0)(text_of(x)), id(text_of(x)) is None),
    "tensors": lambda x: (len("%.1f" % x[0]), "%.1f" % x[0] == "1.5", {"{:.0f}".format(x[0]): 1}, "{:.2f}".format(x[0])[-1]),
    "conversions": lambda x: (caught(lambda: "%d" % x[0]), caught(lambda: "%x" % x[1].long()), caught(lambda: "{!r}".format(x[1].long())), caught(lambda: "%c" % x[1].long())),
    "formats of tensors": lambda x: (caught(lambda: "{:{}}".format(x[0], 7)), caught(lambda: "%.*f" % (2, x[0])), caught(lambda: "{:.2f}".format(x)), caught(lambda: "%.2f" % x), caught(lambda: "{:.2f}".format(x[:1]))),
    "no such fields": lambda x: (braced("{} {}", x[0]), braced("{} {0}", x[0]), braced("{a}", x[0], b=1), percent("%.2f %.2f", x[0]), percent("%(a)s", {"b": first(x)}), percent("%(a)s %s", {"a": first(x)})),
    "other types": lambda x: ("{:d} %d".format(x[1] > 2) % (x[1] > 2), caught(lambda: "{:.1f}".format(x[0] * 1j))),
    "joined": lambda x: (caught(lambda: ",".join(v for v in (text_of(x), count(x)))), caught(lambda: ",".join(1 / count(x) for _ in "ab")), caught(lambda: str.join(text_of(x) for _ in "ab"))),
    "containers": lambda x: (f"{[text_of(x)]}" == "['3.']", str({"a": count(x)})[-2], {str((count(x),)): 1}, f"{[text_of(x), Shown('a').text, {1}]}", f"{[count(x)]!a:>5}"),
    "json": lambda x: json.dumps({"a": text_of(x)}),
    "truth of C": lambda x: (bool(text_of(x)), any([text_of(x)]), sorted([text_of(x), "5"])),
    "empty": lambda x: (text_of(x) + "", "" + text_of(x), "%s" % text_of(x), "{}".format(text_of(x)), str(text_of(x)), format(first(x), ".2f")),
    "beside others": lambda x: ("%s %s" % (first(x), [count(x)]), "{} {}".format(count(x), Note(text_of(x))), f"{Note(text_of(x))}"),
}  # fmt: skip


#: What raises for some numbers alone: that it raised is something that the program has seen of them.
RAISING: dict[str, Program] = {
    "too large to format": lambda x: caught(lambda: f"{abs(count(x)) ** 5000:.3f}"),
    "too large for percent": lambda x: caught(lambda: "%.3f" % abs(count(x)) ** 5000),
    "too large to convert": lambda x: caught(lambda: float(abs(count(x)) ** 5000)),
    "no integer": lambda x: caught(lambda: int(first(x) / count(x))),
    "no character": lambda x: caught(lambda: chr(count(x) - 1)),
    "no digits": lambda x: caught(lambda: int(f"{first(x):.1f}"[:1])),
    "no shift": lambda x: caught(lambda: f"{1 << count(x)}"),
    "no place": lambda x: caught(lambda: "abcdefgh"[count(x)]),
    "too wide": lambda x: caught(lambda: len(f"{1:{count(x)}}")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first_value", [3.0, 0.0, -3.0, 12.0])
@pytest.mark.parametrize("name", RAISING)
def test_what_raises_for_some_numbers_is_no_answer_for_others(name: str, first_value: float) -> None:
    def program(x: torch.Tensor) -> Any:
        return RAISING[name](x), x + 1

    fast = torch.compile(program, backend="magpy")
    for value in (first_value, 0.0, 3.0, 1.0, -3.0, 12.0, 0.0):
        x = torch.tensor([1.5, value])
        assert repr(fast(x)[0]) == repr(program(x)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEEN)
def test_whatever_looks_at_a_text_is_noticed(name: str) -> None:
    def program(x: torch.Tensor) -> Any:
        return SEEN[name](x), x + 1

    fast = torch.compile(program, backend="magpy")
    for values in [
        (1.5, 3.0),
        (-0.5, 12.0),
        (float("nan"), 3.0),
        (float("inf"), 4.0),
        (2.5, -3.0),
        (1.5, 12.0),
        (7.0, 0.0),
    ]:
        x = torch.tensor(values)
        mine, expected = fast(x), program(x)
        assert repr(mine[0]) == repr(expected[0])
        assert torch.equal(mine[1].nan_to_num(), expected[1].nan_to_num())


def test_text_as_state() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.lines, self.by = "", [], {"last": ""}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = f"{x.mean().item():.2f}"
            self.lines.append("%s of %d" % (self.last, int(x[0])))
            self.by["last"] = self.last
            return x * 2

    model, plain = Model(), Model()
    fast = torch.compile(model, backend="magpy")
    for k in range(5):
        x = torch.arange(3.0) + k * 1.5
        with Counted() as counted:
            mine = fast(x)
        assert_same(mine, plain(x))
        assert_same((model.last, model.lines, model.by), (plain.last, plain.lines, plain.by))
        assert (counted.hits, counted.fallbacks) == (int(k > 0), {})


def test_text_of_what_the_program_keeps() -> None:
    """A dict from outside: what it holds beside the number is part of the text as well."""
    programs = []
    for _ in range(2):
        metrics: dict[str, Any] = {"accuracy": 0.5}

        def program(x: torch.Tensor, metrics: dict[str, Any] = metrics) -> Any:
            metrics["loss"] = first(x)
            return f"{metrics}", str(metrics), "%(loss).2f %(accuracy).1f" % metrics, x + 1

        programs.append((program, metrics))
    (program, mine), (plain, expected) = programs
    fast = torch.compile(program, backend="magpy")
    for k in range(10):
        x = torch.tensor([k + 0.5, 1.0])
        for metrics in (mine, expected):
            metrics["accuracy"] = 0.5 if k < 5 else k * 0.25
            if k == 8:
                metrics["new"] = "a"
        assert fast(x)[:3] == plain(x)[:3]
        assert list(mine.items()) == list(expected.items())


def test_text_of_what_is_drawn() -> None:
    ticks = iter(range(100))

    @magpy.opaque
    def clock() -> float:
        return next(ticks) * 0.25

    def program(x: torch.Tensor) -> Any:
        return x + 1, f"at {clock():.2f}"

    fast = torch.compile(program, backend="magpy")
    assert [fast(torch.ones(2))[1] for _ in range(4)] == [f"at {k * 0.25:.2f}" for k in range(4)]
    assert find_callable(fast).hits == 3


def test_text_of_a_counter() -> None:
    fast = torch.compile(lambda x, step: (x + 1, f"step {step}"), backend="magpy")
    assert [fast(torch.ones(2), k)[1] for k in range(8)] == [f"step {k}" for k in range(8)]
    assert find_callable(fast).hits >= 5


def test_text_in_a_file(tmp_path: Any) -> None:
    path = tmp_path / "log.txt"

    def program(x: torch.Tensor, file: Any) -> torch.Tensor:
        file.write(f"{first(x):.1f};")
        print("%d" % count(x), file=file)
        return x + 1

    fast = torch.compile(program, backend="magpy")
    with path.open("w") as file:
        for k in range(4):
            fast(torch.tensor([k + 0.5, k]), file)
    assert path.read_text() == "".join(f"{k + 0.5};{k}\n" for k in range(4))
    assert find_callable(fast).hits == 3


def test_warnings_with_text_of_data() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        warnings.warn(f"loss {count(x)}", stacklevel=1)
        return x + 1

    fast = torch.compile(program, backend="magpy")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for k in (3, 4, 3, 4):
            fast(torch.tensor([0.5, k]))
    assert [str(w.message) for w in seen] == ["loss 3", "loss 4", "loss 3", "loss 4"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "loss 4")
        warnings.filterwarnings("ignore", "loss 3")
        fast(torch.tensor([0.5, 3]))
        with pytest.raises(UserWarning, match="loss 4"):
            fast(torch.tensor([0.5, 4]))
