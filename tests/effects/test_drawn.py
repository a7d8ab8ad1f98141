"""Values that every run has anew (identifiers, random bytes and text, the date) and what the program makes of them:
text, numbers, parts. They differ from call to call, fit together as in eager, go with other effects in order, and a
decision by one is checked."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import io
import logging
import os
import random
import secrets
import string
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch

import magpy
from magpy.report import find_callable
from tests.counting import Counted

X = torch.arange(4.0)
CALLS = 5


@dataclasses.dataclass
class Run:
    name: str
    number: int = 0

    def __str__(self) -> str:
        return f"<{self.name}>"


class Place:
    kept: Any = None


place = Place()


def _set(value: Any) -> Any:
    place.kept = value
    return value


OF_UUID: dict[str, Callable[[uuid.UUID], Any]] = {
    "itself": lambda u: u,
    "str": str,
    "repr": repr,
    "hex": lambda u: u.hex,
    "hex[:8]": lambda u: u.hex[:8],
    "one character": lambda u: (u.hex[0], u.hex[-1]),
    "int": lambda u: u.int,
    "int()": int,
    "bytes": lambda u: (u.bytes, u.bytes_le, bytes(u.bytes)),
    "fields": lambda u: (u.fields, u.time_low, u.node, u.clock_seq),
    "urn": lambda u: u.urn,
    "version": lambda u: (u.version, u.variant),
    "f-string": lambda u: f"run-{u}",
    "f-string of repr": lambda u: f"{u!r}",
    "f-string of hex": lambda u: f"run-{u.hex}",
    "f-string with a format": lambda u: f"{u.hex:>40}|{u.int:x}|{u.hex[:6]!r:^12}",
    "percent": lambda u: "%s-%d" % (u.hex, u.int),  # noqa: UP031
    "format": lambda u: f"{u.hex}-{u.hex:.4}-{u.int}",
    "join": lambda u: "-".join([u.hex[:4], "x", u.hex[4:]]),
    "sum": lambda u: "run-" + u.hex + ".pt",
    "upper": lambda u: u.hex.upper().replace("A", "_"),
    "split": lambda u: str(u).split("-"),
    "partition": lambda u: str(u).partition("-"),
    "split and joined": lambda u: "/".join(str(u).split("-")[1:3]),
    "encoded": lambda u: u.hex.encode().hex(),
    "number": lambda u: int(u.hex[:6], 16) / 2,
    "arithmetic": lambda u: (u.int % 1000, -u.int, u.int >> 70 & 0xFF, divmod(u.int, 7)),
    "again": lambda u: uuid.UUID(str(u)),
    "from int": lambda u: uuid.UUID(int=u.int),
    "of it": lambda u: uuid.uuid5(uuid.NAMESPACE_DNS, "x") if u is None else u,
    "list": lambda u: [u, u.hex, [u]],
    "dict": lambda u: {"id": u, "text": str(u)},
    "object": lambda u: Run(u.hex, u.int % 5),
    "object's text": lambda u: f"{Run(u.hex)}",
    "attribute": _set,
    "equal": lambda u: (u == u, u.hex == "no", u != 1),
    "less": lambda u: u < u,
    "in": lambda u: "-" in str(u),
    "length": lambda u: len(u.hex),
    "truth": lambda u: 1 if u.hex else 2,
    "type": lambda u: (type(u.hex), isinstance(u.bytes, bytes), callable(u.hex)),
}


@pytest.mark.parametrize("make", [uuid.uuid4, uuid.uuid1])
@pytest.mark.parametrize("name", OF_UUID)
def test_identifiers(name: str, make: Callable[[], uuid.UUID]) -> None:
    use, seen = OF_UUID[name], []

    def program(x: torch.Tensor) -> Any:
        u = make()
        return x + 1, u, use(u)

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(CALLS):
            y, u, made = fast(X)
            expected = use(u)
            assert made == expected and repr(made) == repr(expected) and type(made) is type(expected)
            assert u.version == (4 if make is uuid.uuid4 else 1) and y.equal(X + 1)
            if name == "itself":
                assert made is u
            if name == "list":
                assert made[0] is u and made[2][0] is u
            if name == "attribute":
                assert place.kept is made is u
            seen.append(u)
    assert len(set(seen)) == CALLS
    assert counted.hits == CALLS - 1 and not counted.fallbacks


#: Programs that give new values and what they are made from, and a check of these.
OTHERS: dict[str, tuple[Callable[[], Any], Callable[[Any], bool]]] = {
    "urandom": (lambda: os.urandom(6), lambda b: type(b) is bytes and len(b) == 6),
    "token_bytes": (lambda: secrets.token_bytes(6), lambda b: type(b) is bytes and len(b) == 6),
    "token_hex": (lambda: secrets.token_hex(4), lambda t: len(t) == 8 and len(bytes.fromhex(t)) == 4),
    "token_urlsafe": (
        lambda: [secrets.token_urlsafe(9), secrets.token_urlsafe(16), secrets.token_urlsafe()],
        lambda ts: [len(base64.urlsafe_b64decode(t + "==")) for t in ts] == [9, 16, 32],
    ),
    "randbits": (lambda: secrets.randbits(100), lambda n: type(n) is int and 0 <= n < 1 << 100),
    "base64": (
        lambda: (b := os.urandom(9), base64.b64encode(b), base64.b64encode(b).decode()),
        lambda r: r[1] == base64.b64encode(r[0]) and r[2] == r[1].decode(),
    ),
    "parts": (
        lambda: (b := os.urandom(5), b[0], b[1:3], b[::-1], b.hex(), binascii.crc32(b), int.from_bytes(b, "little")),
        lambda r: r[1:] == (
            *(r[0][0], r[0][1:3], r[0][::-1], r[0].hex(), binascii.crc32(r[0])), int.from_bytes(r[0], "little")
        ),
    ),
    "letters": (
        lambda: "".join(random.choices(string.ascii_lowercase, k=9)), lambda t: len(t) == 9 and t.islower()
    ),
    "many bits": (lambda: random.getrandbits(100), lambda n: type(n) is int and 0 <= n < 1 << 100),
    "randbytes": (lambda: random.randbytes(7), lambda b: type(b) is bytes and len(b) == 7),
    "a name of a file": (
        lambda: (time.time(), f"run_{datetime.datetime.now():%Y%m%d_%H%M%S_%f}-{uuid.uuid4().hex[:6]}.pt"),
        lambda r: len(r[1]) == len("run_20260101_000000_000000-abcdef.pt"),
    ),
    "mixed with data": (
        lambda: f"{uuid.uuid4().hex[:4]} {torch.ones(3).sum().item() + 0.5:.2f} {random.random():.3f}",
        lambda t: len(t.split()) == 3 and t.split()[1] == "3.50",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_new_each_time(name: str) -> None:
    make, holds = OTHERS[name]
    fast = torch.compile(lambda x: (x * 2, make()), backend="magpy")
    seen = []
    with Counted() as counted:
        for _ in range(CALLS):
            y, made = fast(X)
            assert holds(made) and type(made) is type(make()) and y.equal(X * 2)
            assert made not in seen
            seen.append(made)
    assert counted.hits == CALLS - 1 and not counted.fallbacks


def test_every_part_of_an_identifier_varies() -> None:
    fast = torch.compile(lambda x: (x + 1, uuid.uuid4().hex), backend="magpy")
    texts = [fast(X)[1] for _ in range(500)]
    for i in range(32):
        digits = {text[i] for text in texts}
        assert digits == {"4"} if i == 12 else digits <= set("89ab") if i == 16 else len(digits) == 16


def test_order_with_other_effects_and_draws(caplog: pytest.LogCaptureFixture) -> None:
    log, out = logging.getLogger("drawn"), io.StringIO()

    def program(x: torch.Tensor, rows: list[Any]) -> torch.Tensor:
        u = uuid.uuid4()
        print("start", u, u.hex[:4])
        rows.append((u, random.random()))
        log.warning("run %s at %s", u, datetime.datetime.now())
        x = x * random.randint(1, 9)
        last = f"{u.hex}-{random.randint(0, 99)}"
        rows.append(last)
        print(f"end {last}", end="|\n")
        return x

    fast = torch.compile(program, backend="magpy")
    rows: list[Any] = []
    with Counted() as counted, redirect_stdout(out):
        random.seed(5)
        for i in range(CALLS):
            y = fast(X, rows)
            u, number = rows[-2]
            lines = out.getvalue().splitlines()[-2:]
            assert lines == [f"start {u} {u.hex[:4]}", f"end {rows[-1]}|"]
            assert caplog.messages[-1].startswith(f"run {u} at 2") and len(caplog.messages) == i + 1
            assert rows[-1].startswith(u.hex) and len(rows) == 2 * i + 2
            state = random.getstate()
            random.seed(5)
            for _ in range(i + 1):
                expected = random.random(), random.randint(1, 9), random.randint(0, 99)
            assert random.getstate() == state and number == expected[0] and y.equal(X * expected[1])
            assert rows[-1].endswith(f"-{expected[2]}")
    assert counted.hits == CALLS - 1 and not counted.fallbacks


def test_a_run_that_is_thrown_away_leaves_nothing() -> None:
    def program(x: torch.Tensor, rows: list[Any]) -> torch.Tensor:
        rows.append((uuid.uuid4(), secrets.token_hex(4), random.choices("abc", k=3)))
        return x * 2 if x.sum() > 0 else x - 1

    fast = torch.compile(program, backend="magpy")
    rows: list[Any] = []
    random.seed(3)
    for i, x in enumerate((X, -X, X, X, -X, -X), 1):
        assert fast(x, rows).equal(x * 2 if x.sum() > 0 else x - 1)
        assert len(rows) == i and len({row[0] for row in rows}) == i
    assert find_callable(fast).hits == 4
    state = random.getstate()
    random.seed(3)
    assert [row[2] for row in rows] == [random.choices("abc", k=3) for _ in rows] and random.getstate() == state


DECISIONS: dict[str, Callable[[uuid.UUID], Any]] = {
    "digit": lambda u: u.hex[0] in "01234567",
    "equal": lambda u: u.hex[0] == "a",
    "number": lambda u: u.int % 2 == 0,
    "starts": lambda u: u.hex.startswith(("a", "b", "c")),
    "identity": lambda u: u.hex.strip("f") is u.hex,
    "length": lambda u: len(u.hex.lstrip("0")) > 31,
    "items": lambda u: u.hex.split("a")[:1],
    "truth": lambda u: bool(u.hex[:1].strip("0123456789")),
    "key": lambda u: {"a": 1, "b": 2}.get(u.hex[0]),
    "index": lambda u: "zero one two three".split()[u.int % 4],
    "sorted": lambda u: sorted([u.hex[0], "8"])[0],
    "iterated": lambda u: [c for c in u.hex[:2] if c == "a"],
    "raised": lambda u: _number(u.hex[0]),
    "set": lambda u: len({u.hex[0], "a"}),
}


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_are_checked(name: str) -> None:
    decide = DECISIONS[name]

    def program(x: torch.Tensor) -> Any:
        u = uuid.uuid4()
        decided = decide(u)
        return (x + 1 if decided else x - 1), decided, u

    fast = torch.compile(program, backend="magpy")
    for _ in range(40):
        y, decided, u = fast(X)
        assert decided == decide(u) and type(decided) is type(decide(u))
        assert y.equal(X + 1 if decided else X - 1)
    if name in ("digit", "equal", "number", "starts", "length", "truth"):
        assert find_callable(fast).n_traces <= 2 and find_callable(fast).hits >= 38


def test_which_traces_there_are_does_not_decide_what_is_drawn() -> None:
    """Each trace holds for some values: all are tried with the same ones."""
    fast = torch.compile(lambda x: x + 1 if os.urandom(1)[0] < 64 else x - 1, backend="magpy")
    n = 2000
    share = sum(float(fast(X)[0]) > 0 for _ in range(n)) / n
    assert abs(share - 0.25) < 6 * (0.25 * 0.75 / n) ** 0.5


def test_numbers_of_drawn_values_in_the_graph() -> None:
    def program(x: torch.Tensor) -> Any:
        u = uuid.uuid4()
        return x * (u.int % 7) + int(u.hex[:2], 16) / 3 + len(u.hex), u

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(CALLS):
            y, u = fast(X)
            torch.testing.assert_close(y, X * (u.int % 7) + int(u.hex[:2], 16) / 3 + 32)
    assert counted.hits == CALLS - 1 and not counted.fallbacks


def test_numbers_that_fit_into_no_tensor() -> None:
    def program(x: torch.Tensor) -> Any:
        n = uuid.uuid4().int >> 66  # 62 bits
        return x + (n - n), n, n << 10

    fast = torch.compile(program, backend="magpy")
    for _ in range(CALLS):
        y, n, shifted = fast(X)
        assert y.equal(X) and shifted == n << 10
    fast = torch.compile(lambda x: x * float(uuid.uuid4().int), backend="magpy")
    for _ in range(CALLS):
        assert (fast(X)[1:] > 1e30).all()
    fast = torch.compile(lambda x: x + uuid.uuid4().int, backend="magpy")
    for _ in range(CALLS):
        with pytest.raises(OverflowError):
            fast(X)


# -- Lists whose order is drawn ---------------------------------------------------------------------------------------


def shuffled(x: torch.Tensor) -> Any:
    order = list(range(4))
    random.shuffle(order)
    return x[order], order, order[0] + 1


def shuffled_twice(x: torch.Tensor) -> Any:
    order = [3, 1, 0, 2]
    random.shuffle(order)
    random.shuffle(order)
    y = torch.zeros_like(x)
    y[order] = x
    return y, torch.tensor(order), order


def sampled(x: torch.Tensor) -> Any:
    some = random.sample(range(4), 3)
    return x[some], x[[*some, 0]], some, random.sample([1.5, 2.5, 3.5], 2)


def chosen(x: torch.Tensor) -> Any:
    return x[random.choices(range(4), k=5)] * random.choices([1, 2, 3])[0], random.choices(
        "abc", weights=[1, 2, 3], k=2
    )


def rows_and_columns(x: torch.Tensor) -> Any:
    x = torch.arange(16.0).reshape(4, 4) + x
    rows, columns = list(range(4)), random.sample(range(4), 2)
    random.shuffle(rows)
    return x[:, columns], x[rows][:, columns], x[rows, 0], x[rows, [0, 1, 2, 3]]


def of_numpy(x: torch.Tensor) -> Any:
    import numpy as np

    order = [0, 1, 2, 3]
    np.random.shuffle(order)
    return x[order], order, x[np.random.permutation(4)], x[torch.as_tensor(np.random.permutation(4))]


def of_strings(x: torch.Tensor) -> Any:
    names = ["a", "b", "c", "d"]
    random.shuffle(names)
    return x + 1, names, "".join(names), names[0] + "!"


kept_order = [0, 1, 2, 3]


def from_outside(x: torch.Tensor) -> Any:
    random.shuffle(kept_order)
    return x[kept_order], list(kept_order)


ORDERS = {f.__name__: f for f in (shuffled, shuffled_twice, sampled, chosen, rows_and_columns, of_numpy, of_strings)}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_eagers(name: str) -> None:
    import numpy as np

    program = ORDERS[name]
    fast = torch.compile(program, backend="magpy")
    random.seed(7), np.random.seed(7)
    expected = [program(X) for _ in range(12)]
    after = random.getstate(), repr(np.random.get_state(legacy=False))
    random.seed(7), np.random.seed(7)
    with Counted() as counted:
        mine = [fast(X) for _ in range(12)]
    assert (random.getstate(), repr(np.random.get_state(legacy=False))) == after
    assert repr(mine) == repr(expected)
    assert counted.hits == 11 and not counted.fallbacks


def test_a_list_from_outside_is_shuffled_on() -> None:
    fast = torch.compile(from_outside, backend="magpy")
    results = []
    for function in (from_outside, fast):
        kept_order[:] = [0, 1, 2, 3]
        random.seed(11)
        results.append(repr([(function(X), list(kept_order)) for _ in range(8)]))
    assert results[0] == results[1]


def test_objects_that_are_shuffled() -> None:
    def program(x: torch.Tensor) -> Any:
        parts = [x + 1, x * 2]
        random.shuffle(parts)
        names = [Run("a"), Run("b")]
        random.shuffle(names)
        return parts[0] - parts[1], names, random.sample(names, 1), random.choices(parts, k=2)

    fast = torch.compile(program, backend="magpy")
    results = []
    for function in (program, fast):
        random.seed(13)
        results.append(repr([function(X) for _ in range(20)]) + repr(random.getstate()))
    assert results[0] == results[1]


def test_a_generator_that_the_call_makes() -> None:
    def program(x: torch.Tensor) -> Any:
        order = [0, 1, 2, 3]
        random.Random(3).shuffle(order)
        return x[order], random.Random(4).sample(range(4), 2)

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(3):
            assert repr(fast(X)) == repr(program(X))
    assert counted.hits == 2


# -- Declared by the user ---------------------------------------------------------------------------------------------


VALUES: list[Any] = [
    "a",
    "bb",
    "",
    "12",
    b"a",
    b"",
    3,
    1 << 80,
    2.5,
    None,
    True,
    (1, "a"),
    (2, "b"),
    (),
    ["x"],
    ["y", "z"],
]
VALUES += [datetime.datetime(2020, 1, 2), datetime.date(2020, 1, 2), datetime.timedelta(3), "c", 2 + 1j, (1, None)]


@pytest.mark.parametrize("use", [repr, lambda v: v, lambda v: f"{v}", lambda v: (type(v), v), lambda v: [v, v]])
def test_an_opaque_function_may_give_anything(use: Callable[[Any], Any]) -> None:
    given: Any = None

    @magpy.opaque
    def reading() -> Any:
        return list(given) if isinstance(given, list) else given

    fast = torch.compile(lambda x: (x + 1, use(reading())), backend="magpy")
    for _ in range(2):
        for given in VALUES:
            for _ in range(2):
                y, made = fast(X)
                assert repr(made) == repr(use(given)) and y.equal(X + 1)


@pytest.mark.parametrize("used", [False, True])
def test_a_step_that_raises_in_a_later_run(used: bool) -> None:
    given = "1"

    @magpy.opaque
    def reading() -> str:
        return given

    def program(x: torch.Tensor) -> Any:
        number = int(reading())
        return x + 1, number if used else None

    fast = torch.compile(program, backend="magpy")
    for given in ("1", "22", "3"):
        assert fast(X)[1] == (int(given) if used else None)
    assert find_callable(fast).hits == 2
    given = "x"
    with pytest.raises(ValueError, match="invalid literal"):
        fast(X)
    given = "4"
    assert fast(X)[1] == (4 if used else None)


def test_steps_of_data_that_raise_in_a_later_run() -> None:
    """Late steps: the text is the graph's."""

    def program(x: torch.Tensor) -> torch.Tensor:
        f"{x[0].item():.0f}".rjust(5).index("1")
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for value in (1.0, 10.0, 21.0):
        assert fast(X + value).equal(X + value + 1)
    with pytest.raises(ValueError, match="substring not found"):
        fast(X + 2)


def test_option_verify() -> None:
    fast = torch.compile(
        lambda x: (x + 1, random.choices("abc", k=4), [*"ab"], random.sample(range(9), 3)),
        backend="magpy",
        options={"verify": True},
    )
    random.seed(3)
    mine = [fast(X)[1:] for _ in range(4)]
    random.seed(3)
    assert mine == [(random.choices("abc", k=4), ["a", "b"], random.sample(range(9), 3)) for _ in range(4)]


# -- Which object it is ------------------------------------------------------------------------------------------------


def test_small_ints_are_the_processes_own() -> None:
    """There is one object of each, also where they are data, before and after they are looked at."""

    @magpy.opaque
    def reading() -> int:
        return 1

    def program(x: torch.Tensor) -> Any:
        n, m, one = int(x[1].item()), reading(), x.shape[0] - 3
        seen = [n is n, n is one, m is m, m is n, one is m]
        seen += [{n: True}[n], {m: True}[m]]
        return x + 1, [*seen, n is n, n is one, m is one, one is m]

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        assert fast(X)[1] == program(X)[1] and all(program(X)[1])
    assert find_callable(fast).hits == 2


def test_the_time_in_parts() -> None:
    def program(x: torch.Tensor) -> Any:
        now = time.localtime()
        text = time.strftime("%Y-%m-%d", now)
        return x + 1, now.tm_year, now[1], text, f"{now.tm_hour:02d}", time.gmtime(0).tm_year, now

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for _ in range(CALLS):
            _, year, month, text, hour, first, now = fast(X)
            assert type(now) is time.struct_time and (year, month, f"{now.tm_hour:02d}") == (*now[:2], hour)
            assert text == time.strftime("%Y-%m-%d", now) and first == 1970
            assert abs(time.mktime(now) - time.time()) < 5
    assert counted.hits == CALLS - 1 and not counted.fallbacks
