"""Rebuilding results: equal in type, structure and sharing, with outside objects as themselves."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import gc
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch

from magpy import _C

Point = namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any
    b: Any


class Slots:
    __slots__ = ("x", "y", "__weakref__")


class SlotsAndDict(Slots):
    def __init__(self, x: Any) -> None:
        self.x = x
        self.extra = x


class NoInit:
    """Its __init__ and __setattr__ must not run again."""

    made = 0

    def __init__(self, value: Any) -> None:
        type(self).made += 1
        self.__dict__["value"] = value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("not to be called")


class HasProperty:
    """An instance attribute that a property of the class hides."""

    def __init__(self) -> None:
        self.__dict__["hidden"] = 1
        self.other = 2

    @property
    def hidden(self) -> int:
        return 99


class MyList(list):
    pass


class MyDict(dict):
    pass


class MyTuple(tuple):
    pass


class MySet(set):
    pass


class MyDeque(deque):
    pass


class MyInt(int):
    pass


class MyStr(str):
    pass


class Output(OrderedDict):
    """Like a ModelOutput: items and attributes at once."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        for key, value in kwargs.items():
            self[key] = value
            self.__dict__[key] = value


class Hashed:
    def __init__(self, key: int) -> None:
        self.key = key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and self.key == other.key


def with_attributes(object_: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(object_, name, value)
    return object_


OUTSIDE = [object(), {"k": 1}, [1], torch.nn.Linear(1, 1), torch.nn.Parameter(torch.zeros(1))]
TENSORS = [torch.zeros(1), torch.ones(2)]


PLAIN = (int, float, str, bytes, complex, type(None), type(...), range, torch.Size, torch.dtype, bytearray)
FIXED = (type, types.ModuleType, enum.Enum, types.CodeType, types.UnionType, types.GenericAlias)


def same(a: Any, b: Any, memo: dict[int, Any]) -> None:
    """Assert that b is a copy of a: same types, structure, order and sharing; outside objects are the same objects."""
    fixed = isinstance(a, FIXED) or (isinstance(a, types.FunctionType) and "<locals>" not in a.__qualname__)
    if fixed or any(a is o for o in OUTSIDE + TENSORS):
        assert a is b
        return
    assert type(a) is type(b)
    if isinstance(
        a, (int, float, str, bytes, complex, type(None), type(...), range, torch.Size, torch.dtype, bytearray)
    ):
        assert a == b and repr(a) == repr(b)
        if not hasattr(a, "__dict__"):
            return
    if id(a) in memo:
        assert memo[id(a)][1] is b
        return
    memo[id(a)] = (a, b)
    assert a is not b or isinstance(a, (tuple, frozenset, slice, types.BuiltinFunctionType))
    if isinstance(a, dict):
        assert len(dict.keys(a)) == len(dict.keys(b))
        for (ka, va), (kb, vb) in zip(type(a).items(a), type(b).items(b), strict=True):
            same(ka, kb, memo)
            same(va, vb, memo)
        if isinstance(a, defaultdict):
            assert a.default_factory is b.default_factory
    elif isinstance(a, (list, tuple, deque)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y, memo)
        if isinstance(a, deque):
            assert a.maxlen == b.maxlen
    elif isinstance(a, (set, frozenset)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y, memo)
    elif isinstance(a, types.MethodType):
        same(a.__func__, b.__func__, memo)
        same(a.__self__, b.__self__, memo)
    elif isinstance(a, functools.partial):
        same([a.func, a.args, a.keywords], [b.func, b.args, b.keywords], memo)
    elif isinstance(a, types.FunctionType):
        for name in ("code", "globals", "name", "qualname", "module", "doc"):
            assert getattr(a, f"__{name}__") is getattr(b, f"__{name}__"), name
        for name in ("closure", "defaults", "kwdefaults", "annotations"):
            same(getattr(a, f"__{name}__"), getattr(b, f"__{name}__"), memo)
    elif isinstance(a, types.CellType):
        same(a.cell_contents, b.cell_contents, memo)
    elif isinstance(a, slice):
        same([a.start, a.stop, a.step], [b.start, b.stop, b.step], memo)
    elif isinstance(a, BaseException):
        same(a.args, b.args, memo)
    for cls in type(a).__mro__:
        for slot in cls.__dict__.get("__slots__", ()):
            if slot.startswith("__"):
                continue
            assert hasattr(a, slot) == hasattr(b, slot)
            if hasattr(a, slot):
                same(getattr(a, slot), getattr(b, slot), memo)
    if hasattr(a, "__dict__") and not isinstance(a, (types.FunctionType, types.MethodType)):
        assert list(vars(a)) == list(vars(b))
        for name in vars(a):
            same(vars(a)[name], vars(b)[name], memo)


def cyclic_list() -> Any:
    a: list[Any] = [1]
    a.append(a)
    return a


def cyclic_through_tuple() -> Any:
    a: list[Any] = []
    a.append((a, TENSORS[0]))
    return a


def cyclic_objects() -> Any:
    a, b = Plain(1), Plain(2)
    a.b, b.b = b, a
    return [a, {"b": b}]


def shared() -> Any:
    inner = [TENSORS[0]]
    return {"a": inner, "b": (inner, [inner])}


def closure() -> Any:
    counter = 0

    def add(n: int, *, scale: float = 2.0) -> Any:
        nonlocal counter
        counter += n
        return counter, scale

    def get() -> Any:
        return counter

    return [add, get]


def recursive_closure() -> Any:
    def f(n: int) -> Any:
        return n and f(n - 1)

    return f


def decorated() -> Any:
    def inner() -> int:
        return 1

    @functools.wraps(inner)
    def outer() -> int:
        return inner()

    return outer


def vars_shared() -> Any:
    p = Plain(1, [2])
    return [p, vars(p)]


def unset_slot() -> Any:
    s = Slots()
    s.y = [1]
    return s


def ordered_moved() -> Any:
    d = OrderedDict(a=1, b=2, c=3)
    d.move_to_end("a")
    return d


def views() -> Any:
    d = {"a": 1}
    return [d]


T0, T1 = TENSORS
CASES: dict[str, Any] = {
    "none": lambda: None,
    "scalars": lambda: (1, 1.5, -0.0, "a", b"b", 2j, True, ..., torch.float32, torch.Size([1, 2]), range(3)),
    "tensor": lambda: T0,
    "tuple": lambda: (T0, T1, T0),
    "empty": lambda: [(), [], {}, set(), frozenset(), deque()],
    "nested": lambda: {"a": [T0, {"b": (T1, [1, [2, [3]]])}], 1: {2: {3: None}}},
    "namedtuple": lambda: Point(T0, [1]),
    "list subclass": lambda: with_attributes(MyList([1, T0]), tag=[1]),
    "dict subclass": lambda: with_attributes(MyDict(a=1, b=T0), tag=1),
    "tuple subclass": lambda: with_attributes(MyTuple([1, [T0]]), tag=1),
    "set subclass": lambda: with_attributes(MySet([1, 2]), tag=1),
    "deque subclass": lambda: with_attributes(MyDeque([1, 2], 5), tag=1),
    "int subclass": lambda: with_attributes(MyInt(7), tag=1),
    "str subclass": lambda: with_attributes(MyStr("s"), tag=1),
    "deque": lambda: deque([1, T0], maxlen=3),
    "defaultdict": lambda: defaultdict(list, {"a": [1]}),
    "counter": lambda: collections.Counter("hello"),
    "ordered": ordered_moved,
    "sets": lambda: [{1, 2, 3}, frozenset({"a"}), {(1, 2), "b"}],
    "set of objects": lambda: {Plain, len, Color.RED},
    "set of outside": lambda: {OUTSIDE[0]},
    "slices": lambda: (slice(1, None, 2), slice(T0, [1], None)),
    "dataclass": lambda: Plain([1], T0),
    "frozen": lambda: Frozen([T0]),
    "slotted": lambda: Slotted(1, [T0]),
    "unset slot": unset_slot,
    "slots and dict": lambda: SlotsAndDict([1]),
    "hidden by property": HasProperty,
    "no init": lambda: NoInit([1]),
    "model output": lambda: Output(loss=T0, logits=T1, hidden_states=(T0, T1), none=None),
    "namespace": lambda: types.SimpleNamespace(a=1, b=[T0]),
    "bytearray": lambda: bytearray(b"abc"),
    "enums": lambda: [Color.RED, Flags.A | Flags.B],
    "classes": lambda: (Plain, torch, len, dict, torch.Tensor, types, Color, int | str, list[int]),
    "outside": lambda: [OUTSIDE, tuple(OUTSIDE)],
    "method": lambda: Plain([1]).__eq__,
    "partial": lambda: functools.partial(same, [1], memo={"a": T0}),
    "closure": closure,
    "recursive closure": recursive_closure,
    "decorated": decorated,
    "cell": lambda: types.CellType([T0]),
    "exception": lambda: ValueError("no", [1]),
    "exception with attributes": lambda: with_attributes(KeyError("k"), note=[1]),
    "cyclic list": cyclic_list,
    "cyclic tuple": cyclic_through_tuple,
    "cyclic objects": cyclic_objects,
    "shared": shared,
    "vars shared": vars_shared,
    "user hash": lambda: [{Hashed(1): T0}, {Hashed(2)}, {Frozen((1, 2)): [1]}],
    "hash of nested": lambda: {Frozen(Frozen(1)): Frozen(2)},
    "return type": lambda: torch.return_types.max((T0, T1)),
    "bound builtin": lambda: [1, 2].append,
}


def functions_in(value: Any, found: list[Any], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, types.FunctionType) and "<locals>" in value.__qualname__:
        found.append(value)
    for part in (
        gc.get_referents(value) if isinstance(value, (list, types.FunctionType, types.CellType, tuple, dict)) else ()
    ):
        if part is not globals():
            functions_in(part, found, seen)


def compile_(value: Any, **more: Any) -> Any:
    internals: list[Any] = []
    functions_in(value, internals, set())
    return _C._mock(value, tuple(OUTSIDE), tuple(TENSORS), internals=tuple(internals), **more)


def rebuild(mock: Any) -> Any:
    return mock.rebuild(tuple(OUTSIDE[i] for i in mock.objects), tuple(TENSORS[i] for i in mock.values))


@pytest.mark.parametrize("name", CASES)
def test_rebuilt_result_equals_the_observed_one(name: str) -> None:
    value = CASES[name]()
    made = NoInit.made
    mock = compile_(value)
    first, second = rebuild(mock), rebuild(mock)
    same(value, first, {})
    same(value, second, {})
    assert NoInit.made == made
    assert all(isinstance(line, str) for line in mock.text)


@pytest.mark.parametrize("name", CASES)
def test_rebuilds_share_nothing_that_can_change(name: str) -> None:
    value = CASES[name]()
    if isinstance(value, (type(None), torch.Tensor, tuple)):
        return
    mock = compile_(value)
    assert rebuild(mock) is not rebuild(mock)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.unsanitized  # it counts blocks of pymalloc, which is off
def test_refcounts_are_stable_over_many_rebuilds(name: str) -> None:
    value = CASES[name]()
    mock = compile_(value)
    watched = OUTSIDE + TENSORS + [None, Plain, Point, Color.RED, Output, 7.25]
    rebuild(mock)
    gc.collect()
    before = [sys.getrefcount(o) for o in watched]
    blocks = sys.getallocatedblocks()
    objects = tuple(OUTSIDE[i] for i in mock.objects)
    outputs = tuple(TENSORS[i] for i in mock.values)
    for _ in range(2_000):
        mock.rebuild(objects, outputs)
    for _ in range(100):
        mock.discard(objects, outputs)
    del objects, outputs, _
    gc.collect()
    grown = {repr(o)[:40]: sys.getrefcount(o) - n for o, n in zip(watched, before, strict=True)}
    # None is everybody's: what a collection frees elsewhere in the process shows in its count. A leak would be 2,000.
    assert {k: n for k, n in grown.items() if abs(n) >= (1_000 if k == "None" else 50)} == {}
    assert sys.getallocatedblocks() - blocks < 500


def test_closures_share_their_cells() -> None:
    add, get = rebuild(compile_(closure()))
    assert add(5) == (5, 2.0)
    assert get() == 5
    add, get = rebuild(compile_(closure()))
    assert get() == 0


def test_rebuilt_containers_are_tracked_by_the_collector() -> None:
    a = rebuild(compile_([[T0, [1]], {"a": [T0]}, Plain([1])]))
    assert all(gc.is_tracked(x) for x in (a, a[0], a[0][1], a[1], a[2]))


def live_generator() -> Any:
    yield 1


def raised() -> Any:
    try:
        raise ValueError("x")
    except ValueError as error:
        return error


def made_class() -> Any:
    class Inner:
        pass

    return Inner


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (live_generator, "generator"),
        (threading.Lock, "lock"),
        (lambda: open("/dev/null"), "TextIOWrapper"),
        (lambda: [iter({1: 2})], "dict_keyiterator"),
        (lambda: {"a": torch.zeros(3)}, "unknown origin"),
        (raised, "ValueError"),
        (lambda: zip([1], open("/dev/null"), strict=False), "TextIOWrapper"),  # noqa: SIM115
    ],
)
def test_what_cannot_be_rebuilt_is_named(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        compile_(make())


def test_a_tensor_subclass_made_by_the_call_cannot_be_rebuilt() -> None:
    class Own(torch.Tensor):
        pass

    tensor = torch.zeros(1).as_subclass(Own)
    with pytest.raises(ValueError, match="Own"):
        _C._mock(tensor, (), (tensor,))


@pytest.mark.parametrize("kind", ["gradient", "hook"])
def test_a_leaf_with_state_of_autograds_cannot_be_rebuilt(kind) -> None:
    tensor = torch.nn.Parameter(torch.zeros(1))
    if kind == "gradient":
        tensor.grad = torch.ones(1)
    else:
        tensor.register_hook(lambda grad: grad)
    with pytest.raises(ValueError, match="gradient or hook"):
        _C._mock(tensor, (), (tensor,))


def test_a_class_made_by_the_call_cannot_be_rebuilt() -> None:
    cls = made_class()
    with pytest.raises(ValueError, match="made by the call"):
        _C._mock([cls], (), (), internals=(cls,))


def test_an_instance_follows_a_class_that_grew_a_property() -> None:
    cls = type("Grows", (), {})
    value = with_attributes(cls(), a=1, b=2)
    mock = compile_(value)
    cls.a = property(lambda self: 99)
    assert vars(rebuild(mock)) == {"a": 1, "b": 2}


def test_result_is_described() -> None:
    assert compile_({"a": [T0, OUTSIDE[0]], "b": Plain(1, "x")}).text == [
        "{'a': [tensor 0, object0], 'b': Plain(a=1, b='x')}"
    ]
