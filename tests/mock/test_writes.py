"""Committing writes: the state afterwards is what the eager call would have left."""

from __future__ import annotations

import contextvars
import copy
import gc
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from typing import Any

import pytest
import torch

from magpy import _C

T0 = torch.zeros(1)


def call(*args: Any, **kwargs: Any) -> Any:
    """The value of a CALL write."""
    return (args, kwargs, ())


class Thing:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Light:
    """Never looked at by vars(): its attributes stay inline values."""

    def __init__(self) -> None:
        self.a = 1


class Slotted:
    __slots__ = ("x", "y")


class MyList(list):
    pass


def write(objects: list[Any], *writes: tuple[Any, ...], outputs: tuple[Any, ...] = (), result: Any = None) -> Any:
    """Compile writes as an observed call left them, and commit them to `objects` (by position)."""
    mock = _C._mock(result, tuple(objects), outputs, writes)
    return mock


def commit(mock: Any, objects: list[Any], outputs: tuple[Any, ...] = ()) -> Any:
    return mock.rebuild(tuple(objects[i] for i in mock.objects), tuple(outputs[i] for i in mock.values))


def ordered(value: Any) -> Any:
    """A dict with its order, for comparison."""
    return list(value.items()) if isinstance(value, dict) else value


def eager_new_keys(d: Any) -> None:
    d["b"] = 20
    d["new"] = [1]
    d["newer"] = 2


def eager_delete_and_reinsert(d: Any) -> None:
    del d["a"]
    d["new"] = 1
    d["a"] = 2


def eager_clear(d: Any) -> None:
    d.clear()


@pytest.mark.parametrize("make", [dict, OrderedDict, lambda **k: defaultdict(list, **k)])
@pytest.mark.parametrize("eager", [eager_new_keys, eager_delete_and_reinsert, eager_clear])
def test_dict_contents_are_replaced_in_place_and_in_order(make: Any, eager: Any) -> None:
    observed, current, expected = (make(a=1, b=2, c=3) for _ in range(3))
    eager(observed)
    eager(expected)
    mock = write([observed], ("CONTENTS", observed, None, observed))
    commit(mock, [current])
    assert type(current) is type(expected)
    assert ordered(current) == ordered(expected)


@pytest.mark.parametrize("make", [dict, OrderedDict])
def test_key_stores_keep_the_insertion_order_of_new_keys(make: Any) -> None:
    observed, current, expected = (make(a=1, b=2) for _ in range(3))
    eager_new_keys(expected)
    mock = write(
        [observed],
        ("KEY", observed, "b", 20),
        ("KEY", observed, "new", [1]),
        ("KEY", observed, "newer", 2),
    )
    commit(mock, [current])
    assert ordered(current) == ordered(expected)
    assert mock.writes == ["object0['b'] = 20", "object0['new'] = [1]", "object0['newer'] = 2"]


def test_key_is_deleted_and_a_missing_one_is_no_error() -> None:
    current = {"a": 1}
    mock = write([current], ("KEY", current, "a", ...), ("KEY", current, "b", ...))
    commit(mock, [current])
    assert current == {}


def test_outside_object_as_key_is_the_current_one() -> None:
    observed_key, key, d = Thing(), Thing(), {}
    mock = write([d, observed_key], ("KEY", d, observed_key, 1))
    commit(mock, [d, key])
    assert list(d) == [key]


def test_list_items_appends_and_contents() -> None:
    observed, current = [1, 2, 3], [1, 2, 3]
    mock = write(
        [observed],
        ("ITEM", observed, 1, [T0]),
        ("LIST_APPEND", observed, None, "x"),
        ("LIST_APPEND", observed, None, [4]),
        outputs=(T0,),
    )
    other = torch.ones(1)
    commit(mock, [current], (other,))
    assert current == [1, [other], 3, "x", [4]]
    assert current[1][0] is other


@pytest.mark.parametrize("make", [list, MyList, deque, set])
def test_contents_of_sequences_and_sets(make: Any) -> None:
    observed, current = make([5, 6]), make([1, 2, 3])
    mock = write([observed], ("CONTENTS", observed, None, observed))
    identity = id(current)
    commit(mock, [current])
    assert current == observed and id(current) == identity and type(current) is make


def test_deque_keeps_its_length_limit() -> None:
    observed, current = deque([2, 3], maxlen=2), deque([1, 2], maxlen=2)
    commit(write([observed], ("CONTENTS", observed, None, observed)), [current])
    assert current == deque([2, 3]) and current.maxlen == 2


def test_cells() -> None:
    value = 1

    def get() -> Any:
        return value

    cell = get.__closure__[0]
    commit(write([cell], ("CELL", cell, None, [7])), [cell])
    assert get() == [7]
    commit(write([cell], ("CELL", cell, None, ...)), [cell])
    with pytest.raises(NameError):
        get()


def test_slots() -> None:
    current = Slotted()
    x, y = Slotted.__dict__["x"], Slotted.__dict__["y"]
    mock = write([current], ("SLOT", current, x, [1]), ("SLOT", current, y, 2))
    commit(mock, [current])
    assert (current.x, current.y) == ([1], 2)
    commit(write([current], ("SLOT", current, x, ...), ("SLOT", current, x, ...)), [current])
    assert not hasattr(current, "x")


def test_attributes_of_an_instance_without_a_dict_object() -> None:
    current = Light()
    commit(write([current], ("ATTR", current, "a", 5), ("ATTR", current, "b", [T0]), outputs=(T0,)), [current], (T0,))
    assert current.a == 5 and current.b[0] is T0
    assert list(vars(current)) == ["a", "b"]
    commit(write([current], ("ATTR", current, "a", ...)), [current])
    assert list(vars(current)) == ["b"]


def test_attributes_of_classes() -> None:
    cls = type("C", (), {"count": 0})
    commit(write([cls], ("ATTR", cls, "count", 3)), [cls])
    assert cls.count == 3 and cls().count == 3


def test_attributes_of_thread_locals() -> None:
    local = threading.local()
    commit(write([local], ("ATTR", local, "depth", 3)), [local])
    assert local.depth == 3


def test_context_variables() -> None:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("v", default=None)
    commit(write([variable], ("CONTEXT_VAR", variable, None, [1])), [variable])
    assert variable.get() == [1]


def test_effects_run_last_and_in_order() -> None:
    log: list[Any] = []
    d: dict[str, int] = {}

    def effect(name: str) -> None:
        log.append((name, dict(d)))

    mock = write(
        [d],
        ("CALL", None, effect, call("first")),
        ("KEY", d, "a", 1),
        ("CALL", None, effect, call("second")),
        result="r",
    )
    assert commit(mock, [d]) == "r"
    assert log == [("first", {"a": 1}), ("second", {"a": 1})]


def test_an_effect_that_raises_raises_after_the_stores() -> None:
    d: dict[str, int] = {}

    def effect() -> None:
        raise KeyError("effect")

    mock = write([d], ("CALL", None, effect, call()), ("KEY", d, "a", 1))
    with pytest.raises(KeyError, match="effect"):
        commit(mock, [d])
    assert d == {"a": 1}


def test_written_and_returned_values_are_one_object() -> None:
    observed, current = {}, {}
    inner = [1]
    observed["x"] = inner
    mock = write(
        [observed], ("KEY", observed, "x", inner), ("KEY", observed, "y", {"in": inner}), result=(inner, observed)
    )
    first, owner = commit(mock, [current])
    assert owner is current and current["x"] is first and current["y"]["in"] is first and first == [1]
    again, _ = commit(mock, [{}])
    assert again is not first


def test_written_value_may_lead_back_to_its_owner() -> None:
    observed, current = {}, {}
    node = Thing(owner=observed)
    mock = write([observed], ("KEY", observed, "node", node))
    commit(mock, [current])
    assert current["node"].owner is current


class Finalized:
    """Looks at the world when it dies."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def __del__(self) -> None:
        self.look()


def test_replaced_values_die_after_all_stores_in_order() -> None:
    seen: list[Any] = []
    current: dict[str, Any] = {}
    items: list[Any] = [None]
    thing = Light()
    current["a"] = Finalized(lambda: seen.append(("a", current["a"], items[0], thing.a)))
    items[0] = Finalized(lambda: seen.append(("b", current["a"], items[0], thing.a)))
    thing.a = Finalized(lambda: seen.append(("c", current["a"], items[0], thing.a)))
    mock = write([current, items, thing], ("KEY", current, "a", 1), ("ITEM", items, 0, 2), ("ATTR", thing, "a", 3))
    commit(mock, [current, items, thing])
    assert seen == [("a", 1, 2, 3), ("b", 1, 2, 3), ("c", 1, 2, 3)]


@pytest.mark.parametrize("make", [list, deque, lambda items: dict(enumerate(items))])
def test_replaced_contents_die_after_all_stores(make: Any) -> None:
    seen: list[Any] = []
    last = {"done": False}
    current = make([Finalized(lambda: seen.append(last["done"]))])
    observed = make([])
    mock = write([observed, last], ("CONTENTS", observed, None, observed), ("KEY", last, "done", True))
    commit(mock, [current, last])
    assert seen == [True] and len(current) == 0


def test_a_finalizer_may_rebuild_again() -> None:
    current: dict[str, Any] = {}
    mock = write([current], ("KEY", current, "a", [1]), result=[2])
    results: list[Any] = []
    current["a"] = Finalized(lambda: results.append(commit(mock, [current])))
    assert commit(mock, [current]) == [2]
    assert results == [[2]] and current == {"a": [1]}


def test_the_program_may_be_dropped_by_an_effect() -> None:
    holder: list[Any] = []
    mock = _C._mock(["r"], (holder,), (), (("CALL", None, holder.clear, call()),))
    holder.append(mock)
    del mock
    assert holder[0].rebuild((holder,), ()) == ["r"] and holder == []


def test_discarding_changes_nothing() -> None:
    current = {"a": 1}
    mock = write([current], ("KEY", current, "a", [2]), ("CALL", None, current.clear, call()))
    mock.discard((current,) * len(mock.objects), ())
    assert current == {"a": 1}


def test_a_value_that_cannot_be_rebuilt_is_the_reason() -> None:
    current: dict[str, Any] = {}
    with pytest.raises(ValueError, match="generator"):
        write([current], ("KEY", current, "g", (i for i in ())))


def test_collector_is_left_as_it_was() -> None:
    current: dict[str, Any] = {}
    mock = write([current], ("KEY", current, "a", 1))
    assert gc.isenabled()
    commit(mock, [current])
    assert gc.isenabled()
    gc.disable()
    try:
        commit(mock, [current])
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_refcounts_are_stable_over_many_commits() -> None:
    current = {"d": {"k": 1}, "l": [1, 2], "s": {1}, "t": Thing(a=1), "q": deque([1])}
    observed = copy.deepcopy(current)
    objects = [observed["d"], observed["l"], observed["s"], observed["t"], observed["q"]]
    now = [current["d"], current["l"], current["s"], current["t"], current["q"]]
    value = [T0, {"deep": (1, [2])}]
    mock = write(
        objects,
        ("KEY", objects[0], "k", value),
        ("KEY", objects[0], "n", 1.5),
        ("ITEM", objects[1], 0, value),
        ("CONTENTS", objects[2], None, objects[2]),
        ("ATTR", objects[3], "b", value),
        ("CONTENTS", objects[4], None, objects[4]),
        outputs=(T0,),
        result=value,
    )
    commit(mock, now, (T0,))
    gc.collect()
    before = [sys.getrefcount(o) for o in [*now, T0, 1.5]]
    blocks = sys.getallocatedblocks()
    for _ in range(10_000):
        commit(mock, now, (T0,))
    del _
    gc.collect()
    assert [abs(sys.getrefcount(o) - n) < 50 for o, n in zip([*now, T0, 1.5], before, strict=True)] == [True] * 7
    assert sys.getallocatedblocks() - blocks < 500
