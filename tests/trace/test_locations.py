"""What a call reads from outside: locations, what they held, and that the first access decides."""

import operator

import pytest

from magpy import _C

SCALE = 3
NAMES = ["a", "b"]
TABLE = {"x": 1, "y": 2}
SHARED = None


class Box:
    limit = 5

    def __init__(self, value):
        self.value = value

    @property
    def doubled(self):
        return self.value * 2

    def method(self, by=7):
        return self.value + by + self.limit


class Slotted:
    __slots__ = ("inside",)

    def __init__(self):
        self.inside = 4


def observed(function, *args, **kwargs):
    """Result and rows (kind, key, held) of an observed call that must not have been abandoned."""
    result, seen = _C._observe(function, *args, **kwargs)
    assert seen["reason"] is None, seen["reason"]
    return result, [(kind, key, held) for kind, _, key, held in seen["reads"]], seen["writes"]


def reads(function, *args, **kwargs):
    return observed(function, *args, **kwargs)[1]


def test_scalar_arguments_are_read_by_value():
    rows = reads(lambda a, b: None, 1, b=-0.0)
    assert [row for row in rows if row[0] == "VALUE"] == [
        ("VALUE", None, ("value", 1)),
        ("VALUE", None, ("value", -0.0)),
    ]


def test_the_same_argument_twice_is_a_read():
    box = Box(1)
    assert ("SAME_ARG", 1, ("any",)) in reads(lambda a, b: None, box, box)


def test_globals_and_builtins():
    rows = reads(lambda: (SCALE, KeyError))
    assert ("KEY", "SCALE", ("value", 3)) in rows
    assert ("KEY", "KeyError", ("missing",)) in rows  # absent from the module, before it is found in builtins
    assert [row for row in rows if row[1] == "KeyError"][1][2][0] == "object"


def test_a_functions_parts_are_read_when_it_is_called():
    def inner(a, b=2, *, c=3):
        return a + b + c

    def program():
        return inner(1)

    rows = reads(program)
    keys = {row[1] for row in rows if row[0] == "MEMBER"}
    assert {"__code__", "__globals__", "__defaults__", "__kwdefaults__", "__closure__"} <= keys
    assert ("ITEM", 0, ("value", 2)) in rows
    assert ("KEY", "c", ("value", 3)) in rows


def test_closure_cells():
    cell = 5

    def program():
        return cell

    assert ("CELL", None, ("value", 5)) in reads(program)


def test_cells_of_the_calls_own_are_not_outside():
    def program():
        count = 1

        def inner():
            nonlocal count
            count += 1
            return count

        return inner()

    result, rows, writes = observed(program)
    assert result == 2
    assert not [row for row in rows if row[0] == "CELL"]
    assert writes == []


def test_attributes_of_instances_classes_and_properties():
    box = Box(10)
    result, rows, _ = observed(lambda: box.doubled + box.method())
    assert result == 42
    found = {(row[0], row[1]) for row in rows}
    assert ("TYPE_ATTR", "doubled") in found
    assert ("MEMBER", "fget") in found
    assert ("TYPE_ATTR", "method") in found
    assert ("INSTANCE_ATTR", "value") in found or ("KEY", "value") in found
    assert ("TYPE_ATTR", "limit", ("value", 5)) in rows


def test_looking_at_an_instance_does_not_give_it_a_dict():
    """Materialising the dict would slow the program's own accesses down for ever."""
    box = Box(1)
    rows = reads(lambda: box.value)
    assert ("INSTANCE_ATTR", "value", ("value", 1)) in rows
    assert not [row for row in rows if row[0] == "DICT"]


def test_slots_are_locations_of_their_own():
    slotted = Slotted()
    rows = reads(lambda: slotted.inside)
    assert [row[2] for row in rows if row[0] == "SLOT"] == [("value", 4)]


def test_items_keys_and_absent_keys():
    def program():
        try:
            TABLE["z"]
        except KeyError:
            pass
        return TABLE["x"], NAMES[-1], "q" in TABLE

    rows = reads(program)
    assert ("KEY", "x", ("value", 1)) in rows
    assert ("KEY", "z", ("missing",)) in rows
    assert ("HAS", "q", ("value", False)) in rows
    assert ("ITEM", -1, ("value", "b")) in rows


def test_iteration_reads_length_and_items():
    def program():
        return [name for name in NAMES]

    rows = reads(program)
    assert ("LEN", None, ("value", 2)) in rows
    assert ("ITEM", 0, ("value", "a")) in rows
    assert ("ITEM", 1, ("value", "b")) in rows


def test_iterating_a_dict_reads_its_order():
    def program():
        return [key for key in TABLE]

    rows = reads(program)
    assert ("KEY_AT", 0, ("value", "x")) in rows
    assert ("KEY_AT", 1, ("value", "y")) in rows


def test_what_was_written_first_is_not_read():
    def program():
        global SHARED
        SHARED = 1
        return SHARED

    result, rows, writes = observed(program)
    assert result == 1
    assert not [row for row in rows if row[1] == "SHARED"]
    assert [(row[0], row[2], row[3]) for row in writes] == [("KEY", "SHARED", 1)]


def test_what_was_read_first_keeps_its_old_value():
    box = Box(1)

    def program():
        box.value = box.value + 1
        box.value += 1
        return box.value

    result, rows, writes = observed(program)
    assert result == 3
    assert [row[2] for row in rows if row[1] == "value" and row[0] in ("KEY", "INSTANCE_ATTR")] == [("value", 1)]
    assert [(row[2], row[3]) for row in writes] == [("value", 3)]


def test_length_after_a_key_was_added_is_the_length_before():
    table = {"a": 1}

    def program():
        table["b"] = 2
        return bool(table), [key for key in table]

    result, rows, writes = observed(program)
    assert result == (True, ["a", "b"])
    assert ("LEN", None, ("value", 1)) in rows
    assert ("HAS", "b", ("value", False)) in rows
    assert ("KEY_AT", 0, ("value", "a")) in rows
    assert not [row for row in rows if row[0] == "KEY_AT" and row[1] == 1]
    assert [(row[0], row[2], row[3]) for row in writes] == [("KEY", "b", 2)]


def test_overwriting_a_key_reads_nothing_of_it():
    table = {"a": 1}

    def program():
        table["a"] = 2

    _, rows, writes = observed(program)
    assert not [row for row in rows if row[1] == "a"]
    assert [(row[0], row[2], row[3]) for row in writes] == [("KEY", "a", 2)]


def test_item_stores_count_from_the_end_like_reads():
    items = [1, 2, 3]

    def program():
        items[-1] = 9
        return items[2]

    result, rows, writes = observed(program)
    assert result == 9
    assert not [row for row in rows if row[0] == "ITEM" and row[2][0] == "value"]
    assert [(row[0], row[2], row[3]) for row in writes] == [("ITEM", 2, 9)]


def test_in_place_operators_own_the_container():
    items = [1]

    def program():
        nonlocal items
        items += [2]

    _, rows, writes = observed(program)
    assert ("LEN", None, ("value", 1)) in rows
    assert "CONTENTS" in [row[0] for row in writes]


def test_deleted_attributes():
    box = Box(1)

    def program():
        del box.value

    _, rows, writes = observed(program)
    assert [(row[0], row[3]) for row in writes] == [("CONTENTS", {})]  # order is gone, so all of it is put back
    assert ("KEY", "value", ("value", 1)) in rows


def test_values_that_look_alike_are_kept_apart():
    values = [1, True, 1.0]
    rows = reads(lambda: (values[0], values[1], values[2]))
    held = [row[2][1] for row in rows if row[0] == "ITEM" and row[2][0] == "value"]
    assert [type(value) for value in held] == [int, bool, float]


def test_functions_of_the_calls_own_are_not_pinned():
    def program():
        def inner(a, b=1):
            return a + b

        return inner(1)

    result, rows, _ = observed(program)
    assert result == 2
    assert len([row for row in rows if row[1] == "__code__"]) == 1  # the program's own


def test_special_methods_found_by_the_interpreter_belong_to_their_class():
    class Number:
        def __init__(self, value):
            self.value = value

        def __add__(self, other):
            return self.value + other

    number = Number(1)
    result, rows, _ = observed(lambda: number + 1)
    assert result == 2
    assert ("TYPE_DUNDERS", None, ("any",)) in rows
    assert [row[2][0] for row in rows if row[0] == "TYPE_ATTR" and row[1] == "__add__"] == ["object"]


def test_imports_read_the_table_of_modules():
    def program():
        import os.path

        return os.path

    result, rows, _ = observed(program)
    keys = [row[1] for row in rows if row[0] == "KEY"]
    assert "os" in keys and "os.path" in keys


def test_first_import_is_not_traced():
    import sys

    sys.modules.pop("this_is_not_there", None)

    def program():
        try:
            import this_is_not_there  # noqa: F401
        except ImportError:
            return 1

    result, seen = _C._observe(program)
    assert result == 1
    assert "this_is_not_there" in seen["reason"]


def test_pattern_matching():
    class Point:
        __match_args__ = ("x", "y")

        def __init__(self):
            self.x, self.y = 1, 2

    point = Point()

    def program(value):
        match value:
            case Point(1, y):
                return y

    result, rows, _ = observed(program, point)
    assert result == 2
    assert any(row[0] == "TYPE_ATTR" and row[1] == "__match_args__" for row in rows)


def test_a_store_that_fails_ends_the_trace():
    class Typed:
        __slots__ = ("__dict__",)

    typed = Typed()

    def program():
        try:
            typed.__class__ = 5
        except TypeError:
            return 2

    result, seen = _C._observe(program)
    assert result == 2
    assert seen["reason"] is not None


@pytest.mark.parametrize("operation", [operator.eq, operator.lt], ids=["eq", "lt"])
def test_comparison_looks_at_containers_deeply(operation):
    left, right = [1, [2]], [1, [3]]
    source = {operator.eq: lambda: left == right, operator.lt: lambda: left < right}[operation]
    rows = reads(source)
    assert ("ITEM", 0, ("value", 2)) in rows
    assert ("ITEM", 0, ("value", 3)) in rows
