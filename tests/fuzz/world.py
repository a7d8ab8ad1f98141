"""The world that a random program lives in: classes, functions and state, made anew for each run of it.

This file is not imported but executed in a namespace of its own for each side (plain, compiled), so that programs and
the changes between their calls can do what they like to its classes and globals.
"""
# ruff: noqa: B006, B008, F401, F821 (names of world_parts.py)

import abc
import array
import base64
import bisect
import collections
import contextlib
import contextvars
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import heapq
import inspect
import io
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import pickle
import pprint
import random
import re
import statistics
import string
import struct
import sys
import textwrap
import threading
import time
import types
import typing
import uuid
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from fractions import Fraction
from functools import reduce

import numpy
import torch
from torch import nn
from torch.nn import functional as F

G = 1
rate = 0.5
log: list = []
deaths: list = []
table = {"k": 1}
names = ("a", "b")
buffer = torch.ones(3)


class Perm(enum.Flag):
    READ = 1
    WRITE = 2


class Abstract(abc.ABC):
    """Some classes are registered as its subclasses, between calls."""

    @abc.abstractmethod
    def get(self):
        raise NotImplementedError


@dataclasses.dataclass(order=True, slots=True)
class Shaped:
    """A dataclass with slots and an order."""

    size: int
    name: str = "n"

    def area(self):
        return self.size**2


@functools.total_ordering
class Ranked:
    def __init__(self, rank):
        self.rank = rank

    def __eq__(self, other):
        return isinstance(other, Ranked) and self.rank == other.rank

    def __lt__(self, other):
        return self.rank < other.rank

    def __hash__(self):
        return hash(self.rank)

    def __repr__(self):
        return f"Ranked({self.rank})"

    def __reversed__(self):
        return iter([self.rank])


class Meta(type):
    """Classes that know each other."""

    def __new__(meta, name, bases, space, **options):
        made = super().__new__(meta, name, bases, space)
        made.options = options
        return made

    def __contains__(cls, name):
        return name in cls.names

    @property
    def first(cls):
        return cls.names[:1]


class Registered(metaclass=Meta, kind="root"):
    names: list = ["root"]

    @classmethod
    def count(cls):
        return len(cls.names)


class Described:
    """A descriptor that learns its name, without storing of its own."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, obj, owner=None):
        return self if obj is None else vars(obj).get("_" + self.name, 3)

    def __set__(self, obj, value):
        vars(obj)["_" + self.name] = value


class Slotted:
    __slots__ = ("x", "y", "__weakref__")


class Child:
    def __init__(self, value):
        self.value = value


class Child2(Child):
    pass


class Base:
    kind = "base"
    count: int

    def get(self):
        return self.count

    def who(self):
        return "base"


class Doubled:
    """A data descriptor."""

    def __get__(self, obj, owner=None):
        return self if obj is None else vars(obj).get("_d", 1) * 2

    def __set__(self, obj, value):
        vars(obj)["_d"] = value


class Loose:
    """Attributes are made when they are asked for."""

    def __init__(self):
        self.asked = 0

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.asked += 1
        return len(name)


class Money(int):
    def __add__(self, other):
        return Money(int(self) + int(other) + 1)

    def __mul__(self, other):
        return NotImplemented


class Text(str):
    def __eq__(self, other):
        return str(self).lower() == str(other).lower()

    __hash__ = str.__hash__


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclasses.dataclass
class Point:
    x: int = 0
    y: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Key:
    a: int
    b: str = "b"


class Pair(typing.NamedTuple):
    left: object
    right: object = 1


class Bag(dict):
    def __missing__(self, key):
        return 5


class Vector:
    """Operators, truth, length, items and calls in Python."""

    def __init__(self, *items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __bool__(self):
        return self.items != [0]

    def __eq__(self, other):
        return isinstance(other, Vector) and self.items == other.items

    def __hash__(self):
        return hash(tuple(self.items))

    def __getitem__(self, index):
        return self.items[index]

    def __setitem__(self, index, value):
        self.items[index] = value

    def __contains__(self, item):
        return item in self.items

    def __add__(self, other):
        return Vector(*self.items, other)

    def __radd__(self, other):
        return Vector(other, *self.items)

    def __iadd__(self, other):
        self.items.append(other)
        return self

    def __neg__(self):
        return Vector(*[-item for item in self.items])

    def __lt__(self, other):
        return len(self.items) < len(other)

    def __call__(self, a, n=1):
        return a * n + len(self.items)


class Managed:
    def __init__(self, owner, swallow=False):
        self.owner, self.swallow = owner, swallow

    def __enter__(self):
        self.owner.log.append("in")
        return self

    def __exit__(self, kind, error, trace):
        self.owner.log.append("out" if kind is None else kind.__name__)
        return self.swallow


class Mortal:
    """Says when it died."""

    def __init__(self, name):
        self.name = name

    def __del__(self):
        deaths.append((self.name, len(log)))


class Problem(ValueError):
    def __init__(self, text, code=3):
        super().__init__(text, code)
        self.code = code


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a * 2

    @staticmethod
    def backward(ctx, g):
        return g * 3


class Clipped(torch.autograd.Function):
    """Keeps a number and a tensor; one of its arguments has no gradient."""

    @staticmethod
    def forward(ctx, a, most):
        ctx.most = most
        ctx.save_for_backward(a)
        return a.clamp(max=most)

    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        return g * (a <= ctx.most), None


class Setup(torch.autograd.Function):
    @staticmethod
    def forward(a, n):
        return a * n, a.sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.n = inputs[1]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, g, _):
        return g * ctx.n, None


class Halved(nn.Module):
    def forward(self, w):
        return w * 0.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.more = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.ReLU()])
        self.register_buffer("seen", torch.zeros(3))
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 0.5]))
        self.calls = 0
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(((torch.arange(p.numel()) * 7 + i) % 5 - 2.0).div(2).view(p.shape))

    def forward(self, a):
        self.calls += 1
        a = self.lin(a) if self.calls % 2 else self.lin(a) * self.scale
        for layer in self.more:
            a = layer(a)
        if self.training:
            self.seen.mul_(0.5).add_(a.detach().reshape(-1, 3).sum(0))
        return a


def settled(module):
    """The module with weights that are exact in float32."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(((torch.arange(p.numel()) * 5 + i) % 3 - 1.0).div(2).view(p.shape))
    return module


@dataclasses.dataclass(frozen=True, kw_only=True)
class TypedOptions:
    level: int
    names: tuple = ("p", "q")


class Averages:
    """Of numbers and tensors, as training loops keep them."""

    def __init__(self):
        self.total, self.n, self.by_name = 0.0, 0, defaultdict(float)

    def update(self, value, n=1, name="all"):
        self.total += value * n
        self.n += n
        self.by_name[name] += value

    @property
    def mean(self):
        return self.total / max(self.n, 1)


meter = Averages()


class State(Base):
    double = Doubled()
    described = Described()
    nondata = NonData()

    def __init__(self):
        self.count = 0
        self.source = iter(range(2, 9))
        self.nones = iter([None, 1, None, "a", None, None])
        self.stepper = Steps(6)
        self.rows = Rows([1, 2])
        self.recent = Recent(2)
        self.memory = Ring(2)
        self.shadow = Shadow(0.5)
        self.checked = Checked()
        self.slots = SlotChild()
        self.fraction = Fraction(1, 2)
        self.price = decimal.Decimal("1.5")
        self.pattern = re.compile("(a+)(b*)")
        self.heap = [1, 3]
        self.listed = collections.UserList([1])
        self.maps = collections.ChainMap({}, {"a": 1})
        self.bytes = bytearray(b"ab")
        self.counted = collections.Counter("aab")
        self.nested = defaultdict(functools.partial(defaultdict, int))
        self.post = Post(2)
        self.log = ["start"]
        self.table = {"a": 1, "b": [2]}
        self.ordered = OrderedDict(a=1, b=2, c=3)
        self.groups = defaultdict(list, old=[0])
        self.queue = deque([1, 2, 3], maxlen=4)
        self.seen = {1, 2}
        self.slotted = Slotted()
        self.slotted.x = 1
        self.child = Child(1)
        self.other = Child(2)
        self.children = [self.child, self.other]
        self.pair = (self.child, [self.log])
        self.loose = Loose()
        self.vector = Vector(1, 2)
        self.point = Point(1)
        self.bag = Bag(q=1)
        self.colour = Colour.RED
        self.money = Money(3)
        self.text = Text("Ab")
        self.scale = 2.0
        self.buf = torch.tensor([0.5, -1.0, 2.0])
        self.w = torch.tensor([[1.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 2.0, 1.0]])
        self.kept = []
        self.net = Net()
        self.fn = step
        self._p = 0
        self.flags = Perm.READ
        self.ranked = Ranked(2)
        self.weak = weakref.WeakValueDictionary()
        self.grouped = defaultdict(list)
        self.stamp = {}
        self.reversible = deque([1, 2])
        self.cycle = itertools.cycle([1, 2])
        self.window = deque(maxlen=2)
        self.ring = [torch.ones(3), torch.zeros(3)]
        self.array = numpy.ones(3, numpy.float32)
        self.rng = numpy.random.default_rng(3)
        self.lock = threading.Lock()
        self.rnn = settled(nn.GRU(3, 2))
        self.normed = nn.utils.weight_norm(settled(nn.Linear(3, 3)))
        self.mixed = nn.Sequential(settled(nn.Linear(3, 3)), nn.Dropout(0.5), nn.Identity())
        self.rated = nn.LeakyReLU(0.5)
        self.scripted = doubled  # noqa: F821 (given by programs.py)
        self.pipe = composed(torch.relu, step)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)
        self.epoch = 0
        self.lr = 0.5
        self.tally = {"a": 0, "b": 1, "c": 0.5}
        self.history = []
        self.modules_ = nn.ModuleDict({"p": settled(nn.Linear(3, 3)), "q": nn.Tanh()})
        self.options = TypedOptions(level=1)

    @property
    def prop(self):
        return self._p

    @prop.setter
    def prop(self, value):
        self._p = value

    @functools.cached_property
    def lazy(self):
        self.log.append("lazy")
        return self.count + 10

    def who(self):
        return "state " + super().who()

    def bump(self, n=1, *more, key=None, **rest):
        self.count = (self.count + n + len(more) + len(rest)) % 5
        return self.count if key is None else key

    @functools.lru_cache(4)  # noqa: B019
    def method_cache(self, n):
        return n + 1

    @functools.singledispatchmethod
    def typed(self, value):
        return 0

    @typed.register
    def _(self, value: int):
        return value % 5

    @typed.register
    def _(self, value: str):
        return value.upper()

    bound = functools.partialmethod(lambda self, n: n + self.count, 2)

    @classmethod
    def make(cls, *args):
        return cls.__name__, len(args)

    @staticmethod
    def still(n):
        return n - 1


def step(a, n=1, *more, k=2, **rest):
    return a * k + n + len(more) + len(rest)


def other_step(a, n=1, *more, k=2, **rest):
    return a - n


def numbers(n, s=None):
    try:
        for i in range(n):
            got = yield i
            if got is not None and s is not None:
                s.log.append(got)
    finally:
        if s is not None:
            s.log.append("closed")


def chain(n):
    yield "first"
    yield from numbers(n)
    return n


def collect(items):
    """A generator over anything that says how many there were."""
    n = 0
    for item in items:
        n += 1
        yield item
    yield n


def pushed(items, most=3):
    seen = []
    for item in items:
        seen.append(item)
        if len(seen) > most:
            return
        yield len(seen)


async def waits(n):
    async def inner(k):
        return k * 2

    return await inner(n) + 1


def composed(*functions):
    return lambda a: reduce(lambda value, function: function(value), functions, a)


def down(a, n):
    return a if n <= 0 else down(a, n - 1) + n


def defaults(n, seen=[], *, where={}):
    seen.append(n)
    where[n] = len(seen)
    return sum(seen[-2:])


@functools.lru_cache(maxsize=2)
def cached(n):
    log.append(f"cached {n}")
    return n * 2


@functools.singledispatch
def shown(value):
    return "other"


@shown.register
def _(value: int):
    return f"int {value}"


@contextlib.contextmanager
def noted(s, name):
    s.log.append(name)
    try:
        yield name
    finally:
        s.log.append("/" + name)


def counter(start=0):
    n = start

    def count(by=1):
        nonlocal n
        n = (n + by) % 4
        return n

    return count


def grad_scaled(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


@grad_scaled
def wrapped(a, n=2):
    return a - n


@contextlib.contextmanager
def var_set(value):
    token = var.set(value)
    try:
        yield
    finally:
        var.reset(token)


var = contextvars.ContextVar("var", default=1)
local = threading.local()
local.value = 1
counts = itertools.count()
tick = counter()
half = functools.partial(step, k=0.5)
s = State()
