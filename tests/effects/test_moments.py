"""datetime.now(), date.today() and the like: the object is made again by each run, of the time that it is then, and so
is what the program makes of it: text, parts, differences. Whatever looks at one sees the moment of its own call."""

from __future__ import annotations

import copy
import datetime
import functools
import io
import itertools
import logging
import operator
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from magpy.report import find_callable
from tests.counting import Counted

X = torch.arange(4.0)

ZONE = datetime.timezone(datetime.timedelta(hours=-3), "far")
MOMENTS: dict[str, Callable[[], Any]] = {
    "now": lambda: datetime.datetime.now(),
    "now of no zone": lambda: datetime.datetime.now(None),
    "now in a zone": lambda: datetime.datetime.now(datetime.UTC),
    "now in a zone by name": lambda: datetime.datetime.now(tz=ZONE),
    "utcnow": lambda: datetime.datetime.utcnow(),
    "today": lambda: datetime.datetime.today(),
    "date": lambda: datetime.date.today(),
}


class Place:
    pass


def _attribute(moment: Any, place: Any) -> Any:
    place.moment = moment
    return place.moment


def _item(moment: Any, place: Any) -> Any:
    place.items["at"] = {"both": (moment, [moment])}
    return place.items["at"]["both"][0]


def _appended(moment: Any, place: Any) -> Any:
    place.rows.append(moment)
    return moment


def _built(moment: Any, place: Any) -> Any:
    made = Place()
    made.moment = moment  # type: ignore[attr-defined]
    setattr(place, "made", made)  # noqa: B010
    return place.made.moment


def _printed(moment: Any, place: Any) -> Any:
    print("at", moment, file=place.out)
    return moment


def _logged(moment: Any, place: Any) -> Any:
    place.log.warning("at %s", moment)
    return moment


USES: list[Callable[[Any, Any], Any]] = [_attribute, _item, _appended, _built, _printed, _logged]


def new_place() -> Any:
    place: Any = Place()
    place.items, place.rows, place.out = {}, [], io.StringIO()
    place.log = logging.Logger("moments")
    place.log.addHandler(logging.StreamHandler(place.out))
    return place


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", MOMENTS)
def test_a_moment_that_is_only_kept_is_that_of_its_run(name: str, late: bool) -> None:
    make, place = MOMENTS[name], new_place()

    def program(x: torch.Tensor) -> Any:
        y = x + 1 if late else x
        moments = [use(make(), place) for use in USES]
        return y * 2, moments

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for i in range(4):
            before = make()
            y, moments = fast(X)
            for earlier, moment in itertools.pairwise([before, *moments, make()]):
                assert type(moment) is type(earlier) and earlier <= moment
                assert getattr(moment, "tzinfo", None) == getattr(earlier, "tzinfo", None)
            assert y.equal((X + 1 if late else X) * 2)
            kept = [place.moment, place.items["at"]["both"][0], place.rows[i], place.made.moment]
            assert all(moment is at for moment, at in zip(moments, kept, strict=False))
            assert place.items["at"]["both"][1][0] is kept[1]
            assert place.out.getvalue().splitlines()[2 * i :] == [f"at {moment}" for moment in moments[4:]]
            time.sleep(0.0001)
    assert counted.hits == 3 and not counted.fallbacks
    assert len(place.rows) == 4


def test_what_is_timed_lies_between_two_moments() -> None:
    def program(x: torch.Tensor) -> Any:
        x = x + 1
        first = datetime.datetime.now()
        for _ in range(3):
            x = torch.tanh(x @ x)
        return x, first, datetime.datetime.now()

    fast = torch.compile(program, backend="magpy")
    x = torch.rand(500, 500)
    with Counted() as counted:
        for _ in range(3):
            _, first, second = fast(x)
            assert (second - first).total_seconds() > 2e-4
    assert counted.hits == 2


def _matched(moment: Any) -> Any:
    match moment:
        case datetime.date(year=year):
            return year
    return None


def _raises(look: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def looks(moment: Any) -> Any:
        try:
            look(moment)
        except TypeError as error:
            return str(error)
        return None

    return looks


def _missing(table: dict[Any, Any], key: Any) -> Any:
    try:
        return table[key]
    except KeyError as error:
        return error.args


LOOKS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda m: m.microsecond,
    "getattr": lambda m: getattr(m, "microsecond"),  # noqa: B009
    "getattr with a default": lambda m: getattr(m, "microsecond", None),
    "object.__getattribute__": lambda m: object.__getattribute__(m, "microsecond"),
    "hasattr": lambda m: hasattr(m, "microsecond"),
    "method": lambda m: m.isoformat(),
    "method of the class": lambda m: datetime.datetime.isoformat(m),
    "strftime": lambda m: m.strftime("%f"),
    "str": str,
    "repr": repr,
    "format": lambda m: f"{m:%f}",
    "text": lambda m: f"{m}",
    "percent": lambda m: "%s" % m,  # noqa: UP031
    "percent of several": lambda m: "%s %s" % (m, 1),  # noqa: UP031
    "hash": hash,
    "key": lambda m: list({m: 1}),
    "set": lambda m: sorted({m}),
    "in": lambda m: m in [m],
    "less": lambda m: m < datetime.datetime.max,
    "equal": lambda m: m == m,
    "is": lambda m: m is None,
    "is itself": lambda m: m is m,
    "truth": lambda m: 1 if m else 2,
    "not": lambda m: not m,
    "or": lambda m: m or 1,
    "bool": bool,
    "difference": lambda m: m - datetime.timedelta(hours=1),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replaced": lambda m: m.replace(year=1999),
    "timestamp": lambda m: m.timestamp(),
    "sorted": lambda m: sorted([m, datetime.datetime.max])[0],
    "max": lambda m: max(m, datetime.datetime.min),
    "index": lambda m: [1, m].index(m),
    "type": lambda m: type(m).__name__,
    "isinstance": lambda m: isinstance(m, datetime.date),
    "match": _matched,
    "attribute of the super": lambda m: super(datetime.datetime, m).day,
    "method of the super": lambda m: super(datetime.datetime, m).isoformat(),
    "getattr of the super": lambda m: getattr(super(datetime.datetime, m), "day"),  # noqa: B009
    "attrgetter": operator.attrgetter("microsecond"),
    "descriptor": lambda m: datetime.datetime.microsecond.__get__(m),  # type: ignore[attr-defined]
    "map": lambda m: list(map(operator.attrgetter("microsecond"), [m])),
    "partial": lambda m: functools.partial(getattr, m)("microsecond"),
    "method kept": lambda m: (lambda method: method())(m.isoformat),
    "error": lambda m: str(ValueError(m)),
    "key that is missing": lambda m: _missing({}, m),
    "text of a list": lambda m: str([m]),
    "default": lambda m: getattr(1, "nothing", m).microsecond,
    "next": lambda m: next(iter([m])).microsecond,
    "length": _raises(len),
    "iteration": _raises(list),
    "negative": _raises(lambda m: -m),
    "called": _raises(lambda m: m()),
    "tensor": _raises(lambda m: torch.ones(2) + m),
    "tensor made of it": _raises(lambda m: torch.full((2,), m)),
    "number": _raises(float),
    "slice": _raises(lambda m: [1, 2][m:]),
    "item": _raises(lambda m: [1, 2][m]),
}


#: What each run does again, of a moment that it reads before its graph or in it; all else ends the trace.
AGAIN = (
    "attribute method strftime str repr format text percent in less equal is truth not or bool difference timestamp"
).split()
AGAIN += ["next", "method of the class", "percent of several", "method kept"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_at_a_moment_sees_that_of_its_call(name: str, late: bool) -> None:
    look = LOOKS[name]

    def program(x: torch.Tensor) -> Any:
        if late:
            x = x + 1
        moment = datetime.datetime.now()
        return x * 2, moment, look(moment)

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        before = datetime.datetime.now()
        y, moment, seen = fast(X)
        assert before <= moment <= datetime.datetime.now()
        assert seen == look(moment) and type(seen) is type(look(moment))
        assert y.equal((X + 1 if late else X) * 2)
    if name in AGAIN or find_callable(fast).hits:
        assert find_callable(fast).hits == 2


def test_a_run_that_is_thrown_away_leaves_no_moment() -> None:
    place = new_place()

    def program(x: torch.Tensor) -> torch.Tensor:
        place.rows.append(datetime.datetime.now())
        return x * 2 if x.sum() > 0 else x - 1

    fast = torch.compile(program, backend="magpy")
    for i, x in enumerate((X, -X, X, X, -X), 1):
        before = datetime.datetime.now()
        assert fast(x).equal(x * 2 if x.sum() > 0 else x - 1)
        assert len(place.rows) == i and before <= place.rows[-1] <= datetime.datetime.now()
    assert find_callable(fast).hits == 3


class Own(datetime.datetime):
    def __new__(cls, *args: Any, **kwargs: Any) -> Own:
        made.append(args)
        return super().__new__(cls, *args, **kwargs)


class OwnZone(datetime.tzinfo):
    def utcoffset(self, moment: datetime.datetime | None) -> datetime.timedelta:
        made.append(moment)
        return datetime.timedelta(0)

    def dst(self, moment: datetime.datetime | None) -> datetime.timedelta:
        return datetime.timedelta(0)


made: list[Any] = []
OWN_ZONE = OwnZone()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own.now(),
        lambda: Own.today(),
        lambda: datetime.datetime.now(OWN_ZONE),
        lambda: datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=len(made) % 3))),
    ],
)
def test_classes_and_zones_of_the_program(make: Callable[[], Any]) -> None:
    place = new_place()

    def program(x: torch.Tensor) -> torch.Tensor:
        place.moment = make()
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for i in range(3):
        made[:] = [None] * i
        expected, calls = make(), len(made)
        made[:] = [None] * i
        fast(X)
        assert len(made) == calls and type(place.moment) is type(expected)
        assert str(place.moment.tzinfo) == str(expected.tzinfo)


def test_the_function_that_date_today_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    place = new_place()

    def program(x: torch.Tensor) -> torch.Tensor:
        place.moment = datetime.date.today()
        return x + 1

    fast = torch.compile(program, backend="magpy")
    fast(X)
    fast(X)
    monkeypatch.setattr(time, "time", lambda: 86400.0 * 366)
    for _ in range(2):
        fast(X)
        assert place.moment == datetime.date.fromtimestamp(86400.0 * 366)
    monkeypatch.undo()
    fast(X)
    assert place.moment == datetime.date.today()
