"""Values and tools of the standard library inside a call: dates, decimals, digests, dispatch by type, class namespaces.
State behind them changes between the calls; each scenario must note the same in plain Python and compiled."""

from __future__ import annotations

import array
import dataclasses
import datetime
import decimal
import enum
import functools
import hashlib
import typing
import weakref
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import torch

from tests.traps.differential import Wrap, same_as_eager

ONES = torch.ones(3)


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


def by_hour(x: torch.Tensor, held: Holder) -> Any:
    return x * held.value.hour, held.value.isoformat()


def by_days(x: torch.Tensor, held: Holder) -> Any:
    return x * (held.value - datetime.datetime(2020, 1, 1)).days, held.value


def by_digits(x: torch.Tensor, held: Holder) -> Any:
    return x * float(held.value), str(held.value), held.value + 1


UTC = datetime.UTC
EAST = datetime.timezone(datetime.timedelta(hours=2))
DAY = datetime.datetime(2020, 1, 2, 12)


@pytest.mark.parametrize(
    ("program", "values", "hits"),
    [
        (by_hour, [DAY.replace(tzinfo=UTC), DAY.replace(tzinfo=UTC), DAY.replace(hour=14, tzinfo=EAST)], 1),
        (by_hour, [DAY.replace(tzinfo=EAST), DAY.replace(tzinfo=datetime.timezone(EAST.utcoffset(None), "name"))], 0),
        (by_days, [DAY, datetime.datetime(2020, 1, 2, 12), DAY.replace(fold=1), DAY.replace(day=5)], 1),
        (by_digits, [Decimal("1.0"), Decimal("1.0"), Decimal("1.00"), Decimal("-0"), Decimal("0")], 1),
    ],
)
def test_values_from_outside_are_told_apart_by_all_that_they_show(program: Any, values: list[Any], hits: int) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for value in values:
            yield repr(function(ONES, Holder(value)))

    same_as_eager(scenario, hits=hits)


def test_a_zone_of_the_program_is_asked_by_every_call() -> None:
    class Zone(datetime.tzinfo):
        hours = 1

        def utcoffset(self, when: Any) -> datetime.timedelta:
            return datetime.timedelta(hours=self.hours)

        def dst(self, when: Any) -> None:
            return None

    def scenario(wrap: Wrap) -> Iterator[Any]:
        zone = Zone()
        held = Holder(datetime.datetime(2020, 1, 2, tzinfo=zone))
        function = wrap(lambda x, held: (x * 2, str(held.value), str(datetime.datetime(2020, 1, 2, tzinfo=zone))))
        for hours in (1, 1, 2):
            zone.hours = hours
            yield function(ONES, held)

    same_as_eager(scenario)


def test_decimal_arithmetic_reads_the_context() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        third = Decimal(1) / 3
        function = wrap(lambda x: (x * float(third * third), str(Decimal(1) / 7), f"{Decimal('2.5'):.0f}", -third))
        with decimal.localcontext() as context:
            for precision, rounding in ((28, None), (28, None), (3, None), (3, decimal.ROUND_UP), (28, None)):
                context.prec, context.rounding = precision, rounding or decimal.ROUND_HALF_EVEN
                yield repr(function(ONES))

    same_as_eager(scenario, hits=2)


def test_digests_and_arrays() -> None:
    def program(x: torch.Tensor, seed: str) -> Any:
        digest = hashlib.sha256(seed.encode())
        digest.update(b"more")
        numbers = array.array("i", [3, 4])
        numbers.append(len(seed))
        return x * digest.digest()[0] * sum(numbers), digest.hexdigest(), numbers.tolist()

    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for seed in ("a", "a", "b"):
            yield function(ONES, seed)

    same_as_eager(scenario, hits=1)


def test_a_digest_from_outside() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        digest = hashlib.md5(b"outside")

        def program(x: torch.Tensor) -> Any:
            digest.update(b"x")
            return x * 2, digest.hexdigest()

        function = wrap(program)
        for _ in range(3):
            yield function(ONES)

    same_as_eager(scenario)


def test_single_dispatch_follows_later_registrations() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        @functools.singledispatch
        def scale(value: Any) -> int:
            return 2

        scale.register(int, lambda value: value + 3)
        function = wrap(lambda x: (x * scale(1) * scale("a"), scale(x)))
        for i in range(6):
            if i == 4:
                scale.register(str, lambda value: 7)
            yield function(ONES)

    same_as_eager(scenario, min_hits=2)


def test_weak_keys_of_classes() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        table = weakref.WeakKeyDictionary({Holder: 2, by_hour: 3})
        function = wrap(lambda x: x * table[Holder] * table[by_hour] * (5 if int in table else 7))
        for value in (2, 2, 4):
            table[Holder] = value
            yield function(ONES)
        table[int] = 1
        yield function(ONES)

    same_as_eager(scenario, hits=1)


def test_the_namespace_of_a_class() -> None:
    class Settings:
        width = 2
        depth = 3

    def program(x: torch.Tensor) -> Any:
        numbers = {k: v for k, v in vars(Settings).items() if isinstance(v, int)}
        return x * Settings.__dict__["width"], numbers, "extra" in vars(Settings)

    def scenario(wrap: Wrap) -> Iterator[Any]:
        Settings.width = 2
        function = wrap(program)
        yield function(ONES)
        yield function(ONES)
        Settings.width = 5
        yield function(ONES)
        Settings.extra = 1
        yield function(ONES)
        del Settings.extra
        yield function(ONES)

    same_as_eager(scenario, min_hits=1)


@typing.runtime_checkable
class HasScale(typing.Protocol):
    def scale(self) -> int: ...


def test_protocols_follow_the_class() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        class Thing:
            pass

        function = wrap(lambda x, thing: x * (2 if isinstance(thing, HasScale) else 3))
        yield function(ONES, Thing())
        yield function(ONES, Thing())
        Thing.scale = lambda self: 1
        yield function(ONES, Thing())

    same_as_eager(scenario)


def test_comparing_by_a_function() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        sign = [1]

        def program(x: torch.Tensor) -> Any:
            return x * 2, sorted([3, 1, 2], key=functools.cmp_to_key(lambda a, b: sign[0] * (a - b)))

        function = wrap(program)
        for value in (1, 1, -1):
            sign[0] = value
            yield function(ONES)

    same_as_eager(scenario, hits=1)


def test_modules_moved_inside_the_call() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        torch.manual_seed(1)
        layer = torch.nn.Linear(3, 2)

        def program(x: torch.Tensor) -> torch.Tensor:
            return layer.to(x.device).to(torch.float32)(x.to(next(layer.parameters()).dtype))

        function = wrap(program)
        for i in range(3):
            yield function(ONES * i)
        layer.double()
        yield function(ONES)
        yield layer.weight.dtype

    same_as_eager(scenario, hits=2)


@dataclasses.dataclass(slots=True)
class Slots:
    a: Any
    b: int = 2


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def test_slots_and_members_come_back() -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(lambda x: (Slots(x * 2).a, Color(2).value, Color["RED"] is Color.RED, Color.BLUE))
        for _ in range(3):
            yield function(ONES)

    same_as_eager(scenario, hits=2)
