"""Observed programs: what their mocks rebuild and commit is what an eager run returns and leaves behind."""

from __future__ import annotations

import contextvars
import copy
from collections import OrderedDict, defaultdict, deque
from typing import Any

import pytest

from magpy import _C


class Slotted:
    __slots__ = ("x", "y")


class State:
    def __init__(self) -> None:
        self.count = 0
        self.log: list[Any] = ["start"]
        self.table: dict[Any, Any] = {"a": 1, "b": [2]}
        self.ordered = OrderedDict(a=1, b=2, c=3)
        self.groups: defaultdict[str, list[Any]] = defaultdict(list, old=[0])
        self.queue = deque([1, 2, 3], maxlen=4)
        self.seen = {1, 2}
        self.slotted = Slotted()
        self.slotted.x = 1
        self.child = Child()
        self.pair = (self.child, [self.log])


class Child:
    def __init__(self) -> None:
        self.value = 1


def shape(value: Any, seen: dict[int, int]) -> Any:
    """All of a structure as nested tuples: types, order, sharing."""
    if value is None or type(value) in (int, float, str, bool, bytes):
        return (type(value), value)
    if isinstance(value, type):
        return value
    if id(value) in seen:
        return ("shared", seen[id(value)])
    seen[id(value)] = len(seen)
    parts: list[Any] = [type(value)]
    if isinstance(value, dict):
        parts += [(shape(k, seen), shape(v, seen)) for k, v in value.items()]
    elif isinstance(value, (list, tuple, deque)):
        parts += [shape(item, seen) for item in value]
    elif isinstance(value, (set, frozenset)):
        parts += sorted(map(repr, value))
    elif callable(value) and hasattr(value, "__closure__"):
        parts += [value.__qualname__, *(shape(cell.cell_contents, seen) for cell in value.__closure__ or ())]
    for name in getattr(type(value), "__slots__", ()):
        parts.append((name, shape(getattr(value, name, "unset"), seen)))
    if hasattr(value, "__dict__") and not callable(value):
        parts += [(name, shape(item, seen)) for name, item in vars(value).items()]
    return tuple(parts)


def pair(a: Any, b: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Which object of the copy stands for which of the original."""
    if id(a) in found or type(a) in (int, str, float, bool, type(None)):
        return
    found[id(a)] = (a, b)
    if isinstance(a, dict):
        for key in list(a):
            pair(a[key], b[key], found)
    elif isinstance(a, (list, tuple, deque)):
        for x, y in zip(a, b, strict=True):
            pair(x, y, found)
    for name in getattr(type(a), "__slots__", ()):
        if hasattr(a, name):
            pair(getattr(a, name), getattr(b, name), found)
    if hasattr(a, "__dict__"):
        pair(vars(a), vars(b), found)


def counter(s: Any) -> Any:
    s.count += 1
    return s.count


def new_attributes(s: Any) -> Any:
    s.first = [s.count]
    s.second = {"log": s.log}
    s.count = s.first
    return s.first


def delete_and_set_again(s: Any) -> Any:
    del s.count
    s.later = 1
    s.count = 5
    return list(vars(s))


def appends(s: Any) -> Any:
    s.log.append("x")
    s.log.append([1])
    return "done"


def append_then_look(s: Any) -> Any:
    s.log.append("x")
    return len(s.log), s.log[-1]


def list_changes(s: Any) -> Any:
    s.log.extend([3, 1, 2])
    s.log[0] = 9
    s.log.sort()
    s.log.insert(1, "new")
    return s.log.pop(), s.log[::-1]


def dict_changes(s: Any) -> Any:
    s.table["c"] = s.table["b"]
    s.table["a"] = 10
    s.table.update({"d": 4})
    s.table.setdefault("e", []).append(1)
    return s.table.pop("b"), list(s.table)


def dict_delete(s: Any) -> Any:
    del s.table["a"]
    s.table["z"] = 1
    s.table["a"] = 3
    return list(s.table.items())


def ordered_changes(s: Any) -> Any:
    s.ordered.move_to_end("a")
    s.ordered["d"] = 4
    return list(s.ordered)


def default_changes(s: Any) -> Any:
    s.groups["new"].append(s.child)
    s.groups["old"].append(2)
    return s.groups["new"]


def deque_changes(s: Any) -> Any:
    s.queue.append(4)
    s.queue.append(5)
    s.queue.popleft()
    return list(s.queue)


def set_changes(s: Any) -> Any:
    s.seen.add(3)
    s.seen.discard(1)
    return sorted(s.seen)


def slot_changes(s: Any) -> Any:
    s.slotted.y = s.slotted.x
    s.slotted.x = [s.slotted]
    return s.slotted.y


def swap(s: Any) -> Any:
    s.log, s.table["log"] = [s.log], s.log
    s.child.value, s.count = s.count, s.child.value
    return s.pair


def new_graph(s: Any) -> Any:
    node: dict[str, Any] = {"up": s}
    node["self"] = node
    s.node = node
    s.child.parent = s
    return [node, (node, s.child)]


def closures(s: Any) -> Any:
    total = s.count

    def add(n: int) -> int:
        nonlocal total
        total += n
        return total

    s.callback = add
    return add, add(2)


def through_vars(s: Any) -> Any:
    vars(s)["count"] = 7
    s.__dict__["extra"] = s.count
    return s.extra


def new_child(s: Any) -> Any:
    s.child = Child()
    s.child.value = [s.pair[0]]
    return s.child


def nothing_lasting(s: Any) -> Any:
    local = list(s.log)
    local.append(1)
    return {"local": local, "same": s.log}


def store_and_take_back(s: Any) -> Any:
    s.temporary = 1
    del s.temporary
    return hasattr(s, "temporary")


PROGRAMS = [
    counter, new_attributes, delete_and_set_again, appends, append_then_look, list_changes, dict_changes, dict_delete,
    ordered_changes, default_changes, deque_changes, set_changes, slot_changes, swap, new_graph, closures, through_vars,
    new_child, nothing_lasting, store_and_take_back,
]  # fmt: skip


@pytest.mark.parametrize("materialised", [False, True])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_commit_leaves_the_state_of_an_eager_run(program: Any, materialised: bool) -> None:
    observed = State()
    if materialised:
        vars(observed)
    eager, current, again = (copy.deepcopy(observed) for _ in range(3))
    to_current: dict[int, tuple[Any, Any]] = {}
    pair(observed, current, to_current)
    to_again: dict[int, tuple[Any, Any]] = {}
    pair(observed, again, to_again)
    expected = program(eager)
    mock = _C._mocks(program, observed)
    assert shape([mock.result, observed], {}) == shape([expected, eager], {})
    for state, mapping in ((current, to_current), (again, to_again)):
        objects = tuple(mapping[id(o)][1] if id(o) in mapping else o for o in mock.now)
        result = mock.rebuild(objects, ())
        assert shape([result, state], {}) == shape([expected, eager], {})
    assert all(isinstance(line, str) for line in mock.writes)


total = 0


def test_globals_and_cells_of_the_outside() -> None:
    count = 0

    def run() -> Any:
        global total
        nonlocal count
        total += 1
        count = [count]
        return count

    mock = _C._mocks(run)
    assert total == 1 and count == [0]
    result = mock.rebuild(mock.now, ())
    assert total == 1 and count is result and count == [0]


variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


def test_context_variables() -> None:
    def run(keep: bool) -> Any:
        token = variable.set([1])
        value = variable.get()
        if not keep:
            variable.reset(token)
        return value

    def in_context(keep: bool) -> None:
        mock = _C._mocks(run, keep)
        if keep:
            variable.set("other")
        result = mock.rebuild(mock.now, ())
        assert result == [1] and (variable.get() is result if keep else variable.get(None) is None)

    for keep in (False, True):
        contextvars.copy_context().run(in_context, keep)


def test_class_attributes_of_the_outside() -> None:
    cls = type("C", (), {"count": 0})

    def run(c: Any) -> Any:
        c.count += 1
        c.fresh = [c.count]
        return c.fresh

    mock = _C._mocks(run, cls)
    cls.count = 0
    del cls.fresh
    assert mock.rebuild(mock.now, ()) is cls.fresh and cls.count == 1
