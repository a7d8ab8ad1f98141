"""Random programs over values that are new each time, drawn before the graph or computed in it: text, bytes, numbers,
moments, tuples and lists, and what Python makes of them. Results, types, which objects are the same, effects and the
state of generators are eager's."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import random
from typing import Any

import pytest
import torch

import magpy
from magpy.report import find_callable

given: dict[str, Any] = {}
out: list[Any] = []


@magpy.opaque
def text() -> Any:
    return given["text"]


@magpy.opaque
def data() -> Any:
    return given["data"]


@magpy.opaque
def number() -> Any:
    return given["number"]


@magpy.opaque
def large() -> Any:
    return given["large"]


@magpy.opaque
def real() -> Any:
    return given["real"]


@magpy.opaque
def moment() -> Any:
    return given["moment"]


@magpy.opaque
def pair() -> Any:
    return given["pair"]


@magpy.opaque
def several() -> Any:
    return list(given["several"])


class Box:
    """What shows and compares itself by code of its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        return f"<{self.value}>"

    def __repr__(self) -> str:
        return f"Box({self.value!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.value == other.value

    def __hash__(self) -> int:
        return 1

    def __int__(self) -> int:
        return self.value

    @property
    def seen(self) -> Any:
        return self.value


@dataclasses.dataclass
class Row:
    first: Any
    second: Any = 3


#: By the kind of a value v: kinds and sources of what is made of it. s and i stand for text and an int, k for a digit.
USES: dict[str, list[tuple[str, str]]] = {
    "str": [
        *[("str", use) for use in (
            "v[:k]", "v[k:]", "v[::-1]", "v[0]", "v.upper()", "v.replace('a', 'zz')", "v + s", "s + v", "v * 2",
            "'%s-%s' % (v, s)", "f'{v}-{s}'", "f'{v:>k}'", "f'{v!r}'", "'{}|{}'.format(v, s)", "'-'.join([v, s])",
            "v.strip('a')", "v.zfill(12)", "str(v)", "repr(v)", "str(Box(v))", "f'{Box(v)}'", "f'{Box(v)!r:>20}'",
            "Box(v).seen", "str(Row(v, 1))", "(v or 'x')", "'%s' % Box(v)", "'{0:>5}'.format(v)",
            "getattr(v, 'lower')()",
            "v.rstrip('0123456789')", "v.translate({97: 98})", "(lambda *a, **b: a[0] + b['z'])(*(v,), **{'z': s})",
        )],
        *[("int", use) for use in (
            "len(v)", "ord(v[0])", "int(v, 16)", "v.find('b')", "v.count('a')", "(1 if v else 2)", "hash(v)",
        )],
        *[("bool", use) for use in (
            "'a' in v", "v == s", "v < s", "v.startswith('a')", "v is s", "v is v", "v[:1] is 'a'", "Box(v) == Box(s)",
        )],
        *[("any", use) for use in (
            "{'a': 1, 'b': 2}.get(v[0])", "{v: 1}", "(v, [v])", "Row(v)", "sorted([v, '5'])", "max(v, '8')", "{v, s}",
            "out.append(v)", "isinstance(v, str)", "dict(k=v)", "print(v, s)", "[c for c in v if c > '8']",
        )],
        ("bytes", "v.encode()"), ("list", "v.split('a')"), ("list", "list(v)"), ("tuple", "v.partition('c')"),
    ],
    "bytes": [
        ("str", "v.hex()"), ("int", "v[0]"), ("bytes", "v[:k]"), ("int", "int.from_bytes(v, 'big')"), ("int", "len(v)"),
        ("int", "int.from_bytes(v, byteorder='little')"), ("bytes", "v + b'a'"), ("str", "v.decode('latin1')"),
        ("bool", "v == b'a'"), ("bytes", "bytes(v)"), ("list", "list(v)"), ("str", "f'{v}'"), ("bytes", "v * 2"),
        ("bytes", "b''.join([v, b'-', v])"), ("bytes", "v.strip(b'a')"), ("bool", "v is v[:]"),
    ],
    "int": [
        *[("int", use) for use in (
            "v + k", "v - i", "v * i", "v // k", "v % k", "v >> k", "v & 255", "v | i", "v ^ i", "v.bit_length()", "-v",
            "(1 if v else 2)", "abs(v)", "~v", "pow(v, 2, k)", "max(v, i)", "min(v, 5)", "sum([v, i])", "int(Box(v))",
            "v ** 2", "round(v, -1)", "v.real",
        )],
        *[("str", use) for use in (
            "str(v)", "hex(v)", "f'{v:x}'", "f'{v:05d}'", "'%d-%x' % (v, v)", "chr(v % 90 + 33)",
        )],
        *[("bool", use) for use in ("v > i", "v == i", "v in (1, 2, 3)", "v is i", "not v", "bool(v)", "v % 3 is 1")],
        *[("any", use) for use in (
            "x * (v % 7)", "x + v % 100", "[1, 2, 3, 4, 5, 6, 7][v % 7]", "(1, 2, 3)[v % 3]", "range(v % 5)",
            "[j for j in range(v % 4)]", "x[v % 4]", "x[[v % 4, 0]]", "torch.tensor([v % 9, 1])", "{v % 3: 1}",
            "torch.full((2,), v % 5)", "random.choice([v, 1, 2])", "random.sample(range(v % 5 + 1), 1)",
        )],
        ("tuple", "divmod(v, k)"), ("float", "float(v)"), ("float", "v / k"),
        ("bytes", "(v & 65535).to_bytes(4, 'big')"),
    ],
    "float": [
        *[("float", use) for use in (
            "v + k", "v * i", "v / 3", "round(v, 2)", "abs(v)", "-v", "max(v, 0.5)", "v ** 2",
        )],
        *[("str", use) for use in ("f'{v:.3f}'", "str(v)", "'%.2f' % v", "'{:8.3f}|'.format(v)", "v.hex()")],
        ("int", "int(v)"), ("int", "round(v)"), ("bool", "v > 0.5"), ("any", "x * v"), ("any", "v.is_integer()"),
        ("any", "[v] * 2"),
    ],
    "moment": [
        *[("str", use) for use in (
            "v.isoformat()", "v.strftime('%H:%M:%S')", "f'{v:%Y-%m}'", "str(v)", "repr(v)", "'%s' % v",
            "'{:%d}'.format(v)",
        )],
        ("int", "v.year"), ("int", "v.microsecond"), ("int", "v.weekday()"), ("float", "v.timestamp()"),
        ("any", "v.date()"),
        ("time", "v - datetime.datetime(2020, 1, 1)"), ("bool", "v > datetime.datetime(2021, 1, 1)"),
        ("any", "v.tzinfo"),
        ("moment", "v.replace(year=2000)"), ("moment", "v + datetime.timedelta(days=k)"), ("any", "[v, v]"),
        ("any", "v.timetuple().tm_year"),
    ],
    "time": [
        ("float", "v.total_seconds()"), ("int", "v.days"), ("time", "v * 2"), ("time", "v / 2"), ("str", "str(v)"),
        ("bool", "v > datetime.timedelta(days=400)"), ("time", "-v"), ("time", "abs(v)"),
        ("float", "v / datetime.timedelta(hours=1)"), ("int", "v // datetime.timedelta(hours=1)"),
    ],
    "list": [("any", use) for use in (
        "len(v)", "v + [1]", "tuple(v)", "v[:1]", "[y for y in v]", "list(reversed(v))", "'|'.join(map(str, v))",
        "out.extend(v)", "[*v]", "list(enumerate(v))", "sorted(v)", "str(v)", "v == [1]", "v.count('a')",
        "random.shuffle(v)", "1 in v", "str(v[0])", "v.reverse()",
    )],
    "tuple": [("any", use) for use in (
        "len(v)", "v[0]", "v + (1,)", "[*v]", "v == v", "str(v[0])", "v.count(None)", "(lambda a, *b: b)(*v)",
    )],
}  # fmt: skip
ROOTS = [
    ("str", "text()"), ("bytes", "data()"), ("int", "number()"), ("int", "large()"), ("float", "real()"),
    ("moment", "moment()"), ("tuple", "pair()"), ("list", "several()"), ("float", "x.sum().item()"),
    ("str", "f'{x.sum().item():.2f}'"), ("int", "int(x[1].item())"), ("str", "'%d' % x.max().item()"),
]  # fmt: skip


def written(choose: random.Random) -> str:
    """The source of a program."""
    names: list[tuple[str, str]] = []
    lines = ["def program(x):"]

    def keep(kind: str, source: str, indent: str = "    ") -> None:
        names.append((kind, f"v{len(names)}"))
        lines.append(f"{indent}v{len(names) - 1} = {source}")

    for kind, source in choose.sample(ROOTS, choose.randint(1, 3)):
        keep(kind, source)
    for _ in range(choose.randint(1, 7)):
        kind, name = choose.choice(names[-4:])
        if kind not in USES:
            continue
        made, use = choose.choice(USES[kind])
        others = {key: [n for k, n in names if k == key] for key in ("str", "int")}
        for letter, value in (
            ("v", name), ("s", choose.choice(others["str"] or ["'ab'"])), ("i", choose.choice(others["int"] or ["12"])),
            ("k", str(choose.randint(1, 9))),
        ):  # fmt: skip
            use = _replaced(use, letter, value)
        if choose.random() < 0.15:
            lines.append("    try:")
            keep("any", use, "        ")
            lines += ["    except Exception as error:", f"        v{len(names) - 1} = str(error)"]
        elif made == "bool" and choose.random() < 0.5:
            lines.append(f"    if {use}:")
            keep("any", "x + 1", "        ")
            lines += ["    else:", f"        v{len(names) - 1} = 'no'"]
        else:
            keep(made, use)
        if choose.random() < 0.2:
            lines.append(f"    x = x + {choose.randint(1, 3)}")
    lines.append(f"    return x * 2, [{', '.join(n for _, n in names if choose.random() < 0.8)}]")
    return "\n".join(lines)


def _replaced(source: str, letter: str, value: str) -> str:
    """A name of one letter, outside of strings but for the fields of f-strings."""
    made, quoted = "", False
    for at, c in enumerate(source):
        before, after = source[at - 1 : at] or " ", source[at + 1 : at + 2] or " "
        field = source.startswith("f'") and (before in "{>" or after == "}")
        if c == "'":
            quoted = not quoted
        alone = not (before.isalnum() or before in "_.%") and not (after.isalnum() or after in "_=")
        made += value if c == letter and alone and (not quoted or field) else c
    return made


def renew(choose: random.Random) -> None:
    def digits(n: int) -> str:
        return "".join(choose.choices("0123456789abcdef", k=n))

    day = datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=choose.random() * 1e8)
    given.update(
        text=digits(choose.choice([8, 8, 8, 1, 3])), data=choose.randbytes(choose.choice([4, 4, 4, 1])), moment=day,
        number=choose.randrange(1000), large=choose.getrandbits(choose.choice([100, 100, 40])),
        real=choose.random() * 3, pair=(digits(4), choose.randrange(9)),
        several=[choose.randrange(9) for _ in range(3)],
    )  # fmt: skip


def outcome(program: Any, x: torch.Tensor, seed: int) -> Any:
    out.clear()
    random.seed(seed)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            y, kept = program(x)
        except Exception as error:
            result: Any = (type(error), str(error))
        else:
            objects = [
                v
                for v in kept
                if not isinstance(v, (int, float)) and not (isinstance(v, (str, bytes, tuple)) and len(v) < 2)
            ]
            same = [[a is b for b in objects] for a in objects]  # of small values there is one for the whole process
            result = (repr(y), repr(kept), [type(v) for v in kept], same)
    return result, repr(out), shown.getvalue(), random.getstate()


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # "is" with a constant
@pytest.mark.parametrize("group", range(8))
def test_random_programs(group: int) -> None:
    hits = 0
    for seed in range(20 * group, 20 * group + 20):
        choose = random.Random(seed)
        source = written(choose)
        names = dict(globals())
        exec(source, names)
        program = names["program"]
        fast = torch.compile(program, backend="magpy")
        for call in range(5):
            renew(choose)
            x = torch.tensor([1.0, 2.0, 0.5, 3.0]) + call % 3
            expected = outcome(program, x.clone(), seed)
            assert outcome(fast, x.clone(), seed) == expected, (source, call, given)
        hits += find_callable(fast).hits
    assert hits > 15
