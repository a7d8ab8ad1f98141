"""No holes: whatever existed before a call and is looked into by it was reached by reads, or the call is not traced.

The oracle lists objects that are older than the call and are used without a path to them.
"""

import collections
import contextvars
import copy
import dataclasses
import enum
import functools
import itertools
import operator
import threading
import types
import weakref

import pytest

from magpy import _C


class Thing:
    shared = [1]

    def __init__(self, value):
        self.value = value

    def method(self):
        return self.value[0]

    @staticmethod
    def static(default=[4]):  # noqa: B006
        return default[0]

    @classmethod
    def of_class(cls):
        return cls.shared[0]

    @functools.cached_property
    def cached(self):
        return [self.value]


class Slotted:
    __slots__ = ("inside",)


class Descriptor:
    def __init__(self):
        self.data = [1]

    def __get__(self, instance, owner):
        return self.data


class Described:
    field = Descriptor()


class Dynamic:
    def __getattr__(self, name):
        return self.__dict__["store"][name]


class ListLike(list):
    pass


class DictLike(dict):
    def __missing__(self, key):
        return TABLE["a"]


class Colour(enum.Enum):
    RED = [1]
    BLUE = [2]


@dataclasses.dataclass
class Record:
    first: list
    second: int = 2


Pair = collections.namedtuple("Pair", "a b")


@functools.lru_cache
def remembered(n):
    return [n]


@functools.wraps(Thing.method)
def wrapping():
    return wrapping.__wrapped__(THING)


LISTS = [[1], [2]]
TUPLES = ([1], [2])
TABLE = {"a": [1], "b": [2]}
QUEUE = collections.deque([[1], [2]])
ORDERED = collections.OrderedDict(TABLE)
DEFAULTS = collections.defaultdict(list, TABLE)
CHAIN = collections.ChainMap(TABLE, {"c": [3]})
SPACE = types.SimpleNamespace(x=[1])
COUNTS = collections.Counter("aab")
SET = {Thing(1)}
FROZEN = frozenset(SET)
PROXY = types.MappingProxyType(TABLE)
PAIR = Pair([1], [2])
RECORD = Record([1])
THING = Thing([5])
REFERENCE = weakref.ref(THING)
WEAK_VALUES = weakref.WeakValueDictionary({"a": THING})
BOUND = THING.method
PARTIAL = functools.partial(lambda a, b: a[0] + b[0], [1])
SLOTTED = Slotted()
SLOTTED.inside = [1]
DESCRIBED = Described()
DYNAMIC = Dynamic()
DYNAMIC.__dict__["store"] = {"z": [1]}
LIST_LIKE = ListLike([[1]])
LIST_LIKE.extra = [2]
DICT_LIKE = DictLike(x=[1])
CYCLE = itertools.cycle(LISTS)
LOCAL = threading.local()
LOCAL.value = [1]
CONTEXT = contextvars.ContextVar("context")
CONTEXT.set([1])
remembered(1)
_ = THING.cached

PROGRAMS = {
    "chain": lambda: [item[0] for item in itertools.chain(LISTS, TUPLES)],
    "chain_from_iterable": lambda: list(itertools.chain.from_iterable(LISTS)),
    "map": lambda: list(map(lambda item: item[0], LISTS)),
    "filter": lambda: [item[0] for item in filter(lambda item: item[0], LISTS)],
    "zip": lambda: [a[0] + b[0] for a, b in zip(LISTS, TUPLES)],  # noqa: B905
    "enumerate": lambda: [item[0] for _, item in enumerate(LISTS)],
    "reversed": lambda: [item[0] for item in reversed(LISTS)],
    "sorted": lambda: [item[0] for item in sorted(LISTS, key=lambda item: item[0])],
    "items": lambda: [value[0] for _, value in TABLE.items()],
    "values": lambda: [value[0] for value in TABLE.values()],
    "get": lambda: TABLE.get("a")[0],
    "setdefault": lambda: TABLE.setdefault("a", 0)[0],
    "max": lambda: max(LISTS)[0],
    "reduce": lambda: functools.reduce(lambda a, b: a + b, LISTS)[0],
    "itemgetter": lambda: operator.itemgetter("a")(TABLE)[0],
    "attrgetter": lambda: operator.attrgetter("x")(SPACE)[0],
    "deque_item": lambda: QUEUE[0][0],
    "deque_iteration": lambda: [item[0] for item in QUEUE],
    "ordered_dict": lambda: [value[0] for value in ORDERED.values()],
    "defaultdict": lambda: DEFAULTS["a"][0],
    "chain_map": lambda: CHAIN["c"][0],
    "namespace": lambda: SPACE.x[0],
    "counter": lambda: COUNTS.most_common(1),
    "set": lambda: [thing.value for thing in SET],
    "frozenset": lambda: [thing.value for thing in FROZEN],
    "proxy": lambda: PROXY["a"][0],
    "namedtuple": lambda: PAIR.a[0],
    "dataclass": lambda: RECORD.first[0],
    "replace": lambda: dataclasses.replace(RECORD, second=3).first[0],
    "asdict": lambda: dataclasses.asdict(RECORD)["first"][0],
    "fields": lambda: [field.name for field in dataclasses.fields(RECORD)],
    "enum_member": lambda: Colour.RED.value[0],
    "enum_iteration": lambda: [member.value[0] for member in Colour],
    "enum_by_name": lambda: Colour["RED"].value[0],
    "weak_values": lambda: WEAK_VALUES["a"].value,
    "weak_reference": lambda: REFERENCE().value[0],
    "partial": lambda: PARTIAL([2]),
    "lru_cache": lambda: remembered(1)[0],
    "wraps": wrapping,
    "bound_method": lambda: BOUND(),
    "staticmethod": lambda: Thing.static(),
    "classmethod": lambda: Thing.of_class(),
    "cached_property": lambda: THING.cached[0][0],
    "slot": lambda: SLOTTED.inside[0],
    "descriptor": lambda: DESCRIBED.field[0],
    "getattr_hook": lambda: DYNAMIC.z[0],
    "list_subclass": lambda: LIST_LIKE[0][0] + LIST_LIKE.extra[0],
    "dict_subclass": lambda: DICT_LIKE["x"][0] + DICT_LIKE["absent"][0],
    "thread_local": lambda: LOCAL.value[0],
    "context_variable": lambda: CONTEXT.get()[0],
    "copy": lambda: copy.copy(LISTS)[0][0],
    "deepcopy": lambda: copy.deepcopy(LISTS)[0][0],
    "getattr": lambda: getattr(SPACE, "x")[0],  # noqa: B009
    "vars": lambda: vars(SPACE)["x"][0],
    "slice": lambda: LISTS[0:1][0][0],
    "concatenation": lambda: (LISTS + LISTS)[0][0],
    "repetition": lambda: (LISTS * 2)[0][0],
    "unpacking": lambda: [*LISTS][0][0],
    "keywords": lambda: dict(**TABLE)["a"][0],
    "merge": lambda: {**TABLE}["a"][0],
    "tuple": lambda: tuple(LISTS)[0][0],
    "dict_copy": lambda: TABLE.copy()["a"][0],
    "next": lambda: next(iter(LISTS))[0],
    "zip_longest": lambda: list(itertools.zip_longest(LISTS, TUPLES))[0][0][0],
    "islice": lambda: list(itertools.islice(LISTS, 1))[0][0],
    "product": lambda: list(itertools.product(LISTS, TUPLES))[0][0][0],
    "groupby": lambda: [list(group)[0][0] for _, group in itertools.groupby(LISTS, lambda item: item[0])],
    "format": lambda: f"{LISTS}{TABLE!r}",
    "join": lambda: ",".join(str(item[0]) for item in LISTS),
    "any": lambda: any(item[0] > 1 for item in LISTS),
    "mro": lambda: type(THING).__mro__[0].shared[0],
    "defaults": lambda: Thing.static.__defaults__[0][0],
    "partial_parts": lambda: PARTIAL.args[0][0],
    "globals": lambda: globals()["LISTS"][0][0],
    "outside_iterator": lambda: next(CYCLE)[0],
    "update": lambda: [made.update(TABLE) or made["a"][0] for made in [{}]],
    "extend": lambda: [made.extend(LISTS) or made[0][0] for made in [[]]],
    "star_target": lambda: [first[0] for first, *_ in [LISTS]],
}


@pytest.fixture(autouse=True)
def oracle():
    _C._set_oracle(True)
    yield
    _C._set_oracle(False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_holes(name):
    expected = PROGRAMS[name]() if name != "outside_iterator" else [1]
    result, seen = _C._observe(PROGRAMS[name])
    assert seen["holes"] == []
    if name != "outside_iterator":
        assert result == expected


def test_most_of_these_are_traced():
    _C._set_oracle(False)  # not needed here, and slow
    reasons = {name: _C._observe(program)[1]["reason"] for name, program in PROGRAMS.items()}
    assert {name for name, reason in reasons.items() if reason} <= {"proxy", "outside_iterator", "lru_cache"}


def test_the_oracle_sees_what_has_no_path():
    """A list among a code object's constants: no compiler makes one, and no read leads to it."""

    def program():
        return "replaced".append

    hidden = []
    constants = tuple(hidden if constant == "replaced" else constant for constant in program.__code__.co_consts)
    program.__code__ = program.__code__.replace(co_consts=constants)
    _, seen = _C._observe(program)
    assert len(seen["holes"]) == 1 and seen["holes"][0].startswith("list:")
