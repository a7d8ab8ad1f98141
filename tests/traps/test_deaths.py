"""Finalizers of what a call lets die run between its stores: they see, and are seen, as in eager."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import pytest
import torch

from tests.counting import Counted
from tests.traps.differential import same_as_eager

X = torch.ones(3)


class Mortal:
    def __init__(self, box, name):
        self.box, self.name = box, name

    def __del__(self):
        self.box.log.append((self.name, self.box.count, len(self.box.items)))


class Light:
    __slots__ = ("value", "__weakref__")


class Box:
    def __init__(self):
        self.log: list[Any] = []
        self.count = 0
        self.child: Any = None
        self.items: list[Any] = []
        self.table: dict[str, Any] = {}
        self.queue: deque[Any] = deque(maxlen=1)
        self.light = Light()
        self.light.value = None
        self.weak: Any = weakref.WeakValueDictionary()


def attribute(box, x):
    box.child = None
    box.count += 1
    return x * 2


def attribute_of_slots(box, x):
    box.light.value = 1
    box.count += 1
    return x * 2


def item(box, x):
    box.items[0] = 3
    box.count += 1
    return x + 1


def contents(box, x):
    box.items.clear()
    box.count += 1
    return x + 1


def key(box, x):
    box.table["a"] = box.count
    box.count += 1
    return x + len(box.log)


def deleted_key(box, x):
    box.table.pop("a", None)
    box.count += 1
    return x + 1


def pushed_out(box, x):
    box.queue.append(box.count)
    box.count += 1
    return x + 1


def log_between(box, x):
    box.log.append("before")
    box.child = None
    box.log.append("after")
    return x + len(box.log)


def two_places(box, x):
    box.child = None
    box.count += 1
    box.items[0] = None
    box.count += 1
    return x + 1


PLACES = {
    "attribute": lambda box, dying: setattr(box, "child", dying),
    "attribute_of_slots": lambda box, dying: setattr(box.light, "value", dying),
    "item": lambda box, dying: box.items.__setitem__(slice(0, 1), [dying]),
    "contents": lambda box, dying: box.items.__setitem__(slice(0, 2), [dying, 1]),
    "key": lambda box, dying: box.table.__setitem__("a", dying),
    "deleted_key": lambda box, dying: box.table.__setitem__("a", dying),
    "pushed_out": lambda box, dying: box.queue.append(dying),
    "log_between": lambda box, dying: setattr(box, "child", dying),
    "two_places": lambda box, dying: (setattr(box, "child", dying), box.items.__setitem__(slice(0, 1), [dying])),
}


def generator(box):
    try:
        yield
    finally:
        box.log.append(("closed", box.count))


def begun(box):
    made = generator(box)
    next(made)
    return made


def watched(box):
    made = Light()
    box.weak["last"] = made
    return made


def called_back(box):
    made = Light()
    box.reference = weakref.ref(made, lambda _: box.log.append(("gone", box.count)))
    return made


DYING = {
    "finalizer": lambda box: Mortal(box, "itself"),
    "in a list": lambda box: [1, [Mortal(box, "in a list")]],
    "in an instance": lambda box: type("Holder", (), {})(),
    "generator": begun,
    "weak dictionary": watched,
    "callback": called_back,
    "harmless": lambda box: [Light(), {"a": 1}],
}


# While a call is observed, what it took out of containers that have no weak references lives until its end.
LATE = pytest.mark.xfail(reason="observation owns lists", strict=True)
CASES = [
    pytest.param(place, dying, marks=LATE)
    if dying == "in a list" and place in ("contents", "deleted_key", "pushed_out")
    else (place, dying)
    for place in PLACES
    for dying in DYING
]


@pytest.mark.parametrize(("program", "dying"), CASES)
def test_finalizers_see_what_they_see_in_eager(program: str, dying: str) -> None:
    def scenario(wrap):
        box = Box()
        fast = wrap(globals()[program])
        for step in range(8):
            if step in (3, 4, 6):
                made = DYING[dying](box)
                if dying == "in an instance":
                    made.held = Mortal(box, "in an instance")
                PLACES[program](box, made)
                del made
            elif step != 5:
                PLACES[program](box, step)
            yield fast(box, X), box.log, box.count, len(box.weak), box.items, box.table

    same_as_eager(scenario)


def test_what_lives_on_or_has_no_finalizer_is_let_go_by_the_commit() -> None:
    box = Box()
    kept = Mortal(box, "kept")
    fast = torch.compile(attribute, backend="magpy")
    for step in range(6):
        box.child = [kept, {"a": Light()}, torch.ones(2), (n for n in range(3))] if step % 2 else kept
        with Counted() as counted:
            fast(box, X)
        assert step < 3 or (counted.hits == 1 and not counted.fallbacks)
    assert not box.log


class Bare:
    """Its instances are no objects of the collector's."""

    __slots__ = ()

    def __del__(self):
        GONE.append("bare")


class Rich:
    def __del__(self):
        GONE.append("rich")


GONE: list[str] = []


@pytest.mark.parametrize("options", [{}, {"verify": True}], ids=["committed", "verified"])
def test_what_a_run_made_and_threw_away_has_never_lived(options):
    def scenario(wrap):
        GONE.clear()
        box = Box()

        def program(x, box):
            made = Bare(), Rich()
            box.child = made
            return x * 2, made

        fast = wrap(program)
        for step in range(6):
            if step == 4:
                box.child = Mortal(box, "dying")
            result = fast(X, box)
            yield result[0], list(GONE), box.log
            del result

    same_as_eager(scenario, **options)


@pytest.mark.parametrize("depths", [(1, 2), (2, 0, 0, 0, 2), (0, 1, 0, 1, 0, 1, 1)], ids=str)
def test_an_abandoned_observation_holds_nothing_that_the_program_lets_go(depths):
    """What the call had stored before it was abandoned dies where the program replaces it."""

    def scenario(wrap):
        box = Box()

        def program(x, depth):
            def inner(left):
                box.child = Mortal(box, (depth, left))
                box.table["last"] = [Mortal(box, left)]
                box.count += 1
                return inner(left - 1) if left else 0

            inner(depth)
            box.count += 1
            return x + 1

        fast = wrap(program)
        for depth in depths:
            yield fast(X, depth), box.log

    same_as_eager(scenario)
