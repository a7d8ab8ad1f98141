"""Parts of the world that a random program lives in: collections, descriptors and conversions as programs write them.

Executed like world.py and before it, in the same namespace.
"""

import contextlib
import copy
import dataclasses
import typing
from collections import OrderedDict

import torch


class Steps:
    """An iterator in Python."""

    def __init__(self, most):
        self.n, self.most = 0, most

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        if self.n > self.most:
            raise StopIteration
        return self.n


class Rows(list):
    """Counts who goes through it and what is put into it."""

    seen = 0

    def __iter__(self):
        Rows.seen = (Rows.seen + 1) % 5
        return super().__iter__()

    def append(self, item):
        self.added = getattr(self, "added", 0) + 1
        super().append(item)


class Recent:
    """The results that were asked for last."""

    def __init__(self, size):
        self.size, self.data, self.hits = size, OrderedDict(), 0

    def get(self, key, make):
        if key in self.data:
            self.hits += 1
            self.data.move_to_end(key)
        else:
            self.data[key] = make()
            while len(self.data) > self.size:
                self.data.popitem(last=False)
        return self.data[key]


class Ring:
    """The last few tensors, in one buffer."""

    def __init__(self, size):
        self.buffer, self.at, self.full = torch.zeros(size, 3), 0, False

    def push(self, row):
        self.buffer[self.at] = row
        self.at += 1
        if self.at == len(self.buffer):
            self.at, self.full = 0, True

    def mean(self):
        return self.buffer.sum(0) if self.full else self.buffer[: self.at].sum(0)


class Shadow:
    """Exponential averages by name."""

    def __init__(self, decay):
        self.decay, self.shadow = decay, {}

    def update(self, name, value):
        old = self.shadow.get(name)
        self.shadow[name] = value if old is None else old * self.decay + value * (1 - self.decay)
        return self.shadow[name]


class Checked:
    """Setting and deleting attributes is Python."""

    def __init__(self):
        object.__setattr__(self, "changes", 0)
        self.level = 1

    def __setattr__(self, name, value):
        object.__setattr__(self, "changes", self.changes + 1)
        object.__setattr__(self, name, value)

    def __delattr__(self, name):
        object.__setattr__(self, "changes", -1)
        object.__delattr__(self, name)


class SlotBase:
    __slots__ = ("a", "_b")

    @property
    def b(self):
        return getattr(self, "_b", 0)

    @b.setter
    def b(self, value):
        self._b = value

    @b.deleter
    def b(self):
        del self._b


class SlotChild(SlotBase):
    __slots__ = ("c", "__dict__")


class NonData:
    """A descriptor that an instance's own attribute hides."""

    def __get__(self, obj, owner=None):
        return owner.__name__ if obj is None else obj.count


class Number:
    """Converts to everything."""

    def __init__(self, n):
        self.n = n

    def __index__(self):
        return self.n

    def __float__(self):
        return self.n + 0.5

    def __format__(self, spec):
        return f"<{self.n:{spec}}>"

    def __eq__(self, other):
        return isinstance(other, Number) and self.n == other.n

    def __hash__(self):
        return self.n % 3


class Copied:
    def __init__(self, value, how="made"):
        self.value, self.how = value, how

    def __copy__(self):
        return Copied(self.value, "copied")

    def __deepcopy__(self, memo):
        return Copied(copy.deepcopy(self.value, memo), "deep")


class Single:
    """One object for all who ask."""

    only = None

    def __new__(cls):
        if cls.only is None:
            cls.only = super().__new__(cls)
        return cls.only


class Matched:
    __match_args__ = ("left", "right")

    def __init__(self, left, right):
        self.left, self.right = left, right


class Asked(type):
    """Says itself what is an instance."""

    def __instancecheck__(cls, obj):
        return hasattr(obj, "value") and cls.willing


class Ducks(metaclass=Asked):
    willing = True


@dataclasses.dataclass
class Post:
    n: int
    more: dataclasses.InitVar[int] = 1
    made: typing.ClassVar[int] = 0
    twice: int = dataclasses.field(init=False, repr=False)

    def __post_init__(self, more):
        self.twice = self.n * 2 + more
        Post.made = (Post.made + 1) % 4


class Closing:
    def __init__(self, owner):
        self.owner = owner

    def close(self):
        self.owner.log.append("closing")


registry: dict = {}


def registered(name):
    def add(fn):
        registry[name] = fn
        return fn

    return add


@contextlib.contextmanager
def swallowing(s):
    try:
        yield len(s.log)
    except Exception as error:
        s.log.append(type(error).__name__)


def fib(n, known={0: 0, 1: 1}):  # noqa: B006
    if n not in known:
        known[n] = fib(n - 1) + fib(n - 2) if n > 0 else 0
    return known[n]


def even(n):
    return n <= 0 or odd(n - 1)


def odd(n):
    return n > 0 and even(n - 1)


def flat(tree):
    return [leaf for branch in tree for leaf in flat(branch)] if isinstance(tree, list) else [tree]


def averaging():
    total = n = 0
    mean = None
    while True:
        total += yield mean
        n += 1
        mean = total / n
