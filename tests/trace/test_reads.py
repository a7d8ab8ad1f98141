"""What attribute and container accesses read and write, and that looking runs no code of the user's."""

from __future__ import annotations

import collections
import enum
import functools
import operator
import re
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch

from magpy import _C

Row = tuple[Any, ...]


def observe(function: Any, *args: Any) -> tuple[Any, set[Row], list[Row]]:
    """The result, the reads as (kind, key, what it held), and the writes as (kind, key, value)."""
    result, about = _C._observe(function, *args)
    assert about["reason"] is None, about["reason"]
    reads = {
        (kind, repr(key), held[-1] if held[0] == "object" else held)
        for kind, _, key, held in map(hashable, about["reads"])
    }
    return result, reads, [(w[0], *w[2:]) for w in about["writes"]]


def hashable(row: Row) -> Row:
    return (*row[:3], tuple(x if not isinstance(x, (list, dict, set)) else repr(x) for x in row[3]))


def reason(function: Any, *args: Any) -> str:
    return _C._observe(function, *args)[1]["reason"] or ""


def value(x: Any) -> Row:
    return ("value", x)


MISSING = ("missing",)
ANY = ("any",)


class Base:
    tag = 1

    def method(self) -> int:
        return self.a

    def inherited(self) -> str:
        return "base"


class Thing(Base):
    def __init__(self) -> None:
        self.a = 1
        self.items = [1, 2, 3]
        self.table = {"x": 1, "y": 2}

    @property
    def prop(self) -> int:
        return self.a

    @staticmethod
    def static() -> int:
        return 1

    @classmethod
    def made(cls) -> int:
        return cls.tag

    def inherited(self) -> str:
        return super().inherited()


def materialised() -> Thing:
    thing = Thing()
    vars(thing)
    return thing


# -- Attributes


def test_instance_attribute_without_a_dict_object() -> None:
    thing = Thing()
    result, reads, _ = observe(lambda o: o.a, thing)
    assert result == 1
    assert ("INSTANCE_ATTR", "'a'", value(1)) in reads
    assert ("NO_DATA_DESCR", "'a'", ANY) in reads
    assert not any(kind == "DICT" for kind, *_ in reads)


def test_observing_does_not_materialise_the_instance_dict() -> None:
    thing, other = Thing(), Thing()
    _C._observe(lambda o: (o.a, o.method()), thing)
    assert sys.getsizeof(thing) == sys.getsizeof(other)
    assert "INSTANCE_ATTR" in {row[0] for row in _C._observe(lambda o: o.a, thing)[1]["reads"]}


def test_instance_attribute_with_a_dict_object() -> None:
    _, reads, _ = observe(lambda o: o.a, materialised())
    assert ("DICT", "None", "dict") in reads and ("KEY", "'a'", value(1)) in reads


def test_method_reads_the_class_and_that_the_instance_has_none() -> None:
    _, reads, _ = observe(lambda o: o.method(), Thing())
    assert ("TYPE_ATTR", "'method'", "function") in reads
    assert ("INSTANCE_ATTR", "'method'", MISSING) in reads


def test_property_is_read_from_the_class_alone() -> None:
    _, reads, _ = observe(lambda o: o.prop, Thing())
    assert ("TYPE_ATTR", "'prop'", "property") in reads
    assert ("MEMBER", "'fget'", "function") in reads
    assert not any(kind == "INSTANCE_ATTR" and key == "'prop'" for kind, key, _ in reads)


@pytest.mark.parametrize("name", ["static", "made"])
def test_static_and_class_methods_read_their_function(name: str) -> None:
    _, reads, _ = observe(lambda o: getattr(o, "a") and (o.static(), o.made()), Thing())  # noqa: B009
    assert ("TYPE_ATTR", repr(name), "staticmethod" if name == "static" else "classmethod") in reads
    assert ("MEMBER", "'__func__'", "function") in reads


def test_super_reads_what_comes_after_in_the_mro() -> None:
    result, reads, _ = observe(lambda o: o.inherited(), Thing())
    assert result == "base"
    assert any(kind == "SUPER_ATTR" and held == "function" for kind, _, held in reads)


def test_missing_attribute_reads_every_place_it_could_be() -> None:
    def run(o: Any) -> str:
        try:
            return o.nothing
        except AttributeError:
            return "none"

    result, reads, _ = observe(run, Thing())
    assert result == "none"
    for row in [("TYPE_ATTR", "'nothing'"), ("INSTANCE_ATTR", "'nothing'"), ("TYPE_ATTR", "'__getattr__'")]:
        assert (*row, MISSING) in reads


def test_module_attributes_are_items_of_the_module_dict() -> None:
    module = types.ModuleType("m")
    module.x = 5
    result, reads, _ = observe(lambda m: m.x, module)
    assert result == 5 and ("KEY", "'x'", value(5)) in reads


def test_class_attributes() -> None:
    result, reads, _ = observe(lambda: Thing.tag)
    assert result == 1 and ("TYPE_ATTR", "'tag'", value(1)) in reads


class Slotted:
    __slots__ = ("x", "y")


def test_slots() -> None:
    slotted = Slotted()
    slotted.x = 3

    def run(o: Any) -> Any:
        o.y = o.x
        return o.y

    result, reads, writes = observe(run, slotted)
    assert result == 3
    assert any(kind == "SLOT" and held == value(3) for kind, _, held in reads)
    assert [(w[0], w[2]) for w in writes] == [("SLOT", 3)]
    assert sum(kind == "SLOT" for kind, *_ in reads) == 1  # y was written before it was read


def test_namedtuple_fields() -> None:
    point = namedtuple("Point", "x y")(1, 2)
    result, reads, _ = observe(lambda p: p.x, point)
    assert result == 1 and ("ITEM", "0", value(1)) in reads


def test_bound_method_reads_its_parts() -> None:
    thing = Thing()
    result, reads, _ = observe(lambda m: m.__func__.__name__, thing.method)
    assert result == "method" and ("MEMBER", "'__func__'", "function") in reads


def test_thread_locals_are_locations() -> None:
    local = threading.local()
    local.depth = 2

    def run(o: Any) -> int:
        o.depth = o.depth + 1
        return o.depth

    result, reads, writes = observe(run, local)
    assert result == 3
    assert ("LOCAL_ATTR", "'depth'", value(2)) in reads
    assert writes == [("ATTR", "depth", 3)]


class Everything:
    """Counts how often its hooks are called."""

    calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        Everything.calls.append(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        Everything.calls.append("set " + name)
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        Everything.calls.append("eq")
        return self is other

    def __hash__(self) -> int:
        Everything.calls.append("hash")
        return 1

    def __len__(self) -> int:
        Everything.calls.append("len")
        return 1

    def __bool__(self) -> bool:
        Everything.calls.append("bool")
        return True

    def __iter__(self) -> Any:
        Everything.calls.append("iter")
        return iter([1])

    def __contains__(self, item: Any) -> bool:
        Everything.calls.append("contains")
        return True

    def __getitem__(self, key: Any) -> Any:
        Everything.calls.append("getitem")
        return key


def use_everything(o: Any) -> Any:
    o.x = 1
    return o.x, bool(o), list(iter(o)), 1 in o, o[1], o == 1


def test_looking_calls_none_of_the_users_hooks() -> None:
    plain, observed = Everything(), Everything()
    Everything.calls.clear()
    expected = use_everything(plain)
    eager = list(Everything.calls)
    Everything.calls.clear()
    assert _C._observe(use_everything, observed)[0] == expected
    assert Everything.calls == eager


def test_keys_with_user_equality_are_not_compared() -> None:
    key, other = Everything(), Everything()
    table = {other: 0, key: 5}

    def run(d: Any, k: Any) -> Any:
        return d[k]

    Everything.calls.clear()
    expected = run(table, key)
    eager = list(Everything.calls)
    Everything.calls.clear()
    result, about = _C._observe(run, table, key)
    assert result == expected and Everything.calls == eager
    reads = about["reads"]
    assert {row[2] for row in reads if row[0] == "KEY_AT"} == {0, 1}


def test_enum_members_as_keys() -> None:
    class Color(enum.Enum):
        RED = 1
        BLUE = 2

    result, reads, _ = observe(lambda d: (d[Color.RED], Color.BLUE in d), {Color.RED: 5, "x": 1})
    assert result == (5, False)
    assert any(kind == "KEY" and held == value(5) for kind, _, held in reads)
    assert any(kind == "HAS" and held == value(False) for kind, _, held in reads)


def test_unknown_outcome_of_user_equality_ends_the_trace() -> None:
    table = {Everything(): 0}
    assert "own __eq__" in reason(lambda d, k: k in d, table, Everything())


# -- Stores


def test_new_attribute_of_an_instance_without_a_dict_object() -> None:
    def run(o: Any) -> int:
        o.new = 5
        return o.new

    result, reads, writes = observe(run, Thing())
    assert result == 5 and writes == [("ATTR", "new", 5)]
    assert not any(kind == "INSTANCE_ATTR" and key == "'new'" for kind, key, _ in reads)


def test_attribute_store_with_a_dict_object() -> None:
    def run(o: Any) -> None:
        o.a = 7

    _, _, writes = observe(run, materialised())
    assert writes == [("KEY", "a", 7)]


def test_deleting_an_attribute_commits_the_whole_dict() -> None:
    def run(o: Any) -> None:
        del o.a

    thing = Thing()
    _, reads, writes = observe(run, thing)
    assert [w[0] for w in writes] == ["CONTENTS"]
    assert list(writes[0][-1]) == ["items", "table"]
    assert ("KEY_AT", "0", value("a")) in reads


def test_class_attribute_store() -> None:
    cls = type("C", (), {"count": 0})

    def run(c: Any) -> None:
        c.count += 1

    _, reads, writes = observe(run, cls)
    assert ("TYPE_ATTR", "'count'", value(0)) in reads and writes == [("ATTR", "count", 1)]


# -- Containers


def test_dict_item_and_absence() -> None:
    result, reads, _ = observe(lambda d: (d["x"], "q" in d, "x" in d), {"x": 1})
    assert result == (1, False, True)
    assert ("KEY", "'x'", value(1)) in reads and ("HAS", "'q'", value(False)) in reads


def test_list_items_by_negative_index_and_length() -> None:
    result, reads, _ = observe(lambda o: o[-1] if o else 0, [1, 2, 3])
    assert result == 3 and ("ITEM", "-1", value(3)) in reads and ("LEN", "None", value(3)) in reads


def test_slicing_reads_the_whole() -> None:
    _, reads, _ = observe(lambda o: o[1:], [1, 2, 3])
    assert {("ITEM", str(i), value(i + 1)) for i in range(3)} <= reads


@pytest.mark.parametrize("make", [list, tuple, deque])
def test_iteration_reads_length_and_items(make: Any) -> None:
    def run(items: Any) -> int:
        total = 0
        for item in items:
            total += item
        return total

    result, reads, _ = observe(run, make([4, 5]))
    assert result == 9
    assert {("LEN", "None", value(2)), ("ITEM", "0", value(4)), ("ITEM", "1", value(5))} <= reads


@pytest.mark.parametrize("make", [dict, OrderedDict])
def test_iteration_of_dicts_reads_the_order(make: Any) -> None:
    d = make(a=1, b=2)
    if make is OrderedDict:
        d.move_to_end("a")
    first, second = d
    _, reads, _ = observe(lambda x: [k for k in x], d)  # noqa: C416
    assert {("KEY_AT", "0", value(first)), ("KEY_AT", "1", value(second)), ("LEN", "None", value(2))} <= reads


def test_sets() -> None:
    result, reads, _ = observe(lambda s: (1 in s, 9 in s), {1, 2})
    assert result == (True, False)
    assert ("SET_HAS", "1", value(True)) in reads and ("SET_HAS", "9", value(False)) in reads
    _, reads, _ = observe(lambda s: [x for x in s], {1, 2})  # noqa: C416
    assert ("SET_ITEMS", "None", value((1, 2))) in reads


def test_missing_key_of_a_defaultdict_commits_the_contents() -> None:
    result, reads, writes = observe(lambda d: d["new"], defaultdict(list))
    assert result == []
    assert ("KEY", "'new'", MISSING) in reads and any(kind == "SLOT" and held == "type" for kind, _, held in reads)
    assert [w[0] for w in writes] == ["CONTENTS"]


def test_item_stores() -> None:
    def run(d: Any, items: Any) -> None:
        d["x"] = 5
        items[-1] = 6
        items[2] = 7

    _, reads, writes = observe(run, {"x": 1}, [1, 2, 3])
    assert writes == [("KEY", "x", 5), ("ITEM", 2, 7)]
    assert ("LEN", "None", value(3)) in reads
    assert not any(kind == "KEY" and key == "'x'" for kind, key, _ in reads)


def test_deleting_an_item_commits_the_contents() -> None:
    def run(d: Any) -> None:
        del d["a"]
        d["b"] = 1
        d["a"] = 2

    _, _, writes = observe(run, {"a": 0, "c": 1})
    assert [w[0] for w in writes] == ["CONTENTS"]
    assert list(writes[0][-1].items()) == [("c", 1), ("b", 1), ("a", 2)]


def test_comparison_reads_deeply() -> None:
    _, reads, _ = observe(lambda a: a == [[1], {"k": (2,)}], [[1], {"k": (2,)}])
    assert {("ITEM", "0", value(1)), ("ITEM", "0", value(2)), ("KEY_AT", "0", value("k"))} <= reads


def test_comparing_a_cyclic_structure_ends() -> None:
    a: list[Any] = [1]
    a.append(a)
    _, reads, _ = observe(lambda x: x == [2], a)
    assert ("LEN", "None", value(2)) in reads


def test_enum_members_and_classes() -> None:
    class Color(enum.Enum):
        RED = 1

    result, _, _ = observe(lambda c: c.RED, Color)
    assert result is Color.RED


def test_immutable_c_objects_are_read_by_identity() -> None:
    pattern = re.compile("a")
    assert reason(lambda p: p == 1, pattern) == ""


@pytest.mark.parametrize(
    ("make", "use", "word"),
    [
        (lambda: iter([1]), lambda o: [x for x in o], "iterator"),  # noqa: C416
        (lambda: (i for i in (1,)), lambda o: [x for x in o], "generator"),  # noqa: C416
        (lambda: bytearray(b"a"), lambda o: o[0], "bytearray"),
        (lambda: memoryview(b"a"), lambda o: o == b"b", "memoryview"),
    ],
)
def test_what_cannot_be_read_ends_the_trace(make: Any, use: Any, word: str) -> None:
    assert word in reason(use, make())


def test_storing_into_what_cannot_be_stored_into_writes_nothing() -> None:
    def run(t: Any, s: Any) -> Any:
        for target in (t, s):
            try:
                target[0] = 1
            except TypeError:
                pass
        return t

    _, _, writes = observe(run, (1, 2), frozenset({1}))
    assert writes == []


def test_cell_contents_is_the_cell_itself() -> None:
    x = 1

    def get() -> int:
        return x

    def run(cell: Any) -> int:
        cell.cell_contents += 1
        return cell.cell_contents

    result, reads, writes = observe(run, get.__closure__[0])
    assert result == 2 and ("CELL", "None", value(1)) in reads and writes == [("CELL", None, 2)]
    assert x == 2


def test_a_property_with_a_c_getter_ends_the_trace() -> None:
    class Named:
        both = property(operator.attrgetter("a", "b"))
        a = b = 1

    assert "property" in reason(lambda o: o.both, Named())


def test_class_made_by_the_call_is_no_outside_object() -> None:
    def run() -> Any:
        class Inner:
            x = 1

        return Inner.x

    result, about = _C._observe(run)
    assert result == 1
    assert not any(row[2] == "x" and row[0] == "TYPE_ATTR" for row in about.get("reads", ()))


def test_pending_exceptions_are_kept() -> None:
    def run(d: Any, o: Any) -> Any:
        try:
            raise KeyError("mine")
        except KeyError as error:
            return d.get("q"), o.a, "z" in d, error.args, functools, collections

    assert _C._observe(run, {}, Thing())[0][3] == ("mine",)


def test_python_attributes_of_tensors() -> None:
    tensor = torch.zeros(1)
    tensor.note = 4
    result, reads, _ = observe(lambda t: t.note, tensor)
    assert result == 4
    assert ("INSTANCE_ATTR", "'note'", value(4)) in reads or ("KEY", "'note'", value(4)) in reads
