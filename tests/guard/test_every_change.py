"""Guards that hold must mean the same behaviour: every change of every location of small worlds is tried."""

import gc

import pytest
import torch  # noqa: F401 (guards are about torch programs)

from magpy import _C
from tests.guard.worlds import MISSING, World, changes

WORLDS = {
    "globals": "scale = 2\nzero = 0.0\nunread = 1\ndef f(y): return (scale, zero, y)\nARGS = (1,)",
    "builtin_shadowed": "unread = 1\ndef f(): return abs(-1)\nARGS = ()",
    "instance": """
class A:
    k = 3
    def __init__(self): self.x, self.name, self.w = 1, "a", 0.0
    def method(self, y): return (self.x, self.k, self.name, y, self.w)
a = A()
def f(y): return a.method(y)
ARGS = (1,)
""",
    "instance_with_dict": """
class A:
    k = 3
    def __init__(self): self.x = 1; vars(self)["name"] = "a"
    def method(self, y): return (self.x, self.k, self.name, y)
a = A()
a.__dict__
def f(y): return a.method(y)
ARGS = (1,)
""",
    "inheritance": """
class Base:
    k = 3
    def method(self): return (self.k, self.x)
class A(Base):
    x = 1
    def method(self): return (Base.method(self), 1)
a = A()
def f(): return a.method()
ARGS = ()
""",
    "slots": """
class A:
    __slots__ = ("x", "y")
    def __init__(self): self.x, self.y = 1, (2, 3)
a = A()
def f(): return (a.x, a.y[1], a.y[0])
ARGS = ()
""",
    "property": """
class A:
    def __init__(self): self.hidden = 1
    @property
    def x(self): return self.hidden
    @staticmethod
    def s(y): return y
    @classmethod
    def c(cls, y): return (cls.k, y)
    k = 5
a = A()
def f(): return (a.x, a.s(2), a.c(3), A.c(4))
ARGS = ()
""",
    "getattr": """
class A:
    def __init__(self): self.table = {"x": 1}
    def __getattr__(self, name): return self.table[name]
a = A()
def f(): return a.x
ARGS = ()
""",
    "truth": """
class A: pass
a = A()
lst, dct = [1], {}
def f():
    return (1 if a else 2, 1 if lst else 2, 1 if dct else 2)
ARGS = ()
""",
    "cells": """
def outer():
    n, items = 4, [1, 2.0, "x"]
    def f(y): return (n, items[0], items[-1], y)
    return f
f = outer()
ARGS = (1,)
""",
    "defaults": """
def g(a, b=2, *, c=3, d=(1, 2)): return (a, b, c, d[0])
def f(): return g(1)
ARGS = ()
""",
    "containers": """
table = {"a": 1, "b": [1, (2, 3.0)], 3: {"deep": True}}
def f(): return (table["a"], table["b"][1][1], table[3]["deep"], "zz" in table)
ARGS = ()
""",
    "iteration": """
lst, dct = [1, 2, 3], {"x": 1, "y": 2}
def f(): return ([v for v in lst], [k for k in dct], [*dct.items()] if 0 else 0)
ARGS = ()
""",
    "argument_list": """
def f(lst): return (lst[0], lst[1]["k"])
ARGS = ([1, {"k": 2}],)
""",
    "argument_instance": """
class A:
    def __init__(self): self.x, self.items = 1, [1, 2]
    def method(self): return (self.x, self.items[1])
def f(a): return a.method()
ARGS = (A(),)
""",
    "nested": """
class Leaf:
    def __init__(self, n): self.x = n
    def method(self): return self.x
class Tree:
    def __init__(self): self.children = {"a": Leaf(1), "b": Leaf(2)}; self.leaf = self.children["a"]
tree = Tree()
def f(): return (tree.children["a"].method(), tree.children["b"].method(), tree.leaf.x)
ARGS = ()
""",
    "super": """
class Base:
    k = 3
    def method(self): return (self.k, self.x)
class Middle(Base):
    pass
class A(Middle):
    x = 1
    def method(self): return (super().method(), 1)
a = A()
def f(): return a.method()
ARGS = ()
""",
    "builtins": """
class A:
    def __init__(self): self.x = 1
    def __len__(self): return 3
a, lst, dct, text = A(), [3, 1, 2], {"x": 1, "y": [2]}, "abc"
def f():
    return (len(a), len(lst), isinstance(a, A), hasattr(a, "q"), getattr(a, "x", 0), sorted(lst), max(lst),
            text.upper(), dct.get("x"), dct.get("z", 5), "y" in dct, list(dct), [*zip(lst, "abc")],
            [*enumerate(lst)], sum(lst))
ARGS = ()
""",
    "sets": """
items, frozen = {1, 2, 3}, frozenset([4])
def f(): return (1 in items, 9 in items, 4 in frozen, len(items), sorted(items))
ARGS = ()
""",
    "deque": """
from collections import deque
items = deque([1, 2, (3, 4)])
def f(): return (items[0], items[-1][1], len(items))
ARGS = ()
""",
    "items_and_views": """
dct = {"x": 1, "y": 2}
def f(): return ([(k, v) for k, v in dct.items()], [v for v in dct.values()], [k for k in dct.keys()])
ARGS = ()
""",
    "arguments_unpacked": """
pos, kw = (1, 2), {"c": 3}
def g(a, b, c=0): return (a, b, c)
def f(): return g(*pos, **kw)
ARGS = ()
""",
    "partial": """
import functools
def g(a, b, c=0): return (a, b, c)
p = functools.partial(g, 1, c=3)
def f(): return p(2)
ARGS = ()
""",
    "bound_method": """
class A:
    def __init__(self, x): self.x = x
    def method(self, y): return (self.x, y)
call = A(1).method
def f(): return call(2)
ARGS = ()
""",
    "named_tuple": """
from collections import namedtuple
P = namedtuple("P", "x y")
p = P(1, (2, 3))
def f(): return (p.x, p.y[1], p[0])
ARGS = ()
""",
    "dataclass": """
import dataclasses
@dataclasses.dataclass
class D:
    x: int = 1
    y: float = 0.0
d = D()
def f(): return (d.x, d.y)
ARGS = ()
""",
    "special_methods": """
class A:
    def __init__(self): self.x = 1
    def __add__(self, o): return self.x + o
    def __getitem__(self, k): return (self.x, k)
    def __call__(self, y): return self.x * y
    def __contains__(self, k): return k == self.x
    def __eq__(self, o): return self.x == o
a = A()
def f(): return (a + 1, a[5], a(3), 1 in a, a == 1)
ARGS = ()
""",
    "subclasses_of_scalars": """
class N(int): pass
class T(str): pass
n, t = N(3), T("abc")
def f(): return (n + 1, t + "d")
ARGS = ()
""",
    "argument_dict": """
def f(d): return (d["a"], d["b"][0], d.get("c"), len(d))
ARGS = ({"a": 1, "b": [2]},)
""",
    "metaclass": """
class Meta(type):
    m = 1
class A(metaclass=Meta):
    k = 2
def f(): return (A.m, A.k)
ARGS = ()
""",
}


@pytest.mark.parametrize("name", WORLDS)
def test_guards_that_hold_mean_the_same_behaviour(name: str) -> None:
    world = World(WORLDS[name])
    f, args = world.f, world.args
    before = world.run()
    guards = _C._guards(f, *args)
    tried = missed = 0
    for location in world.locations():
        old = location.get()
        todo = [(what, new) for what, new in changes(old)]
        if old is not MISSING and location.drop:
            todo.append(("deleted", MISSING))
        for what, new in todo:
            assert guards.check(*args) == (True, None), f"before {location.path} {what}"
            assert guards.check(*args) == (True, None), f"a second time, before {location.path} {what}"
            try:
                location.drop() if new is MISSING else location.put(new)
            except (TypeError, AttributeError, ValueError):
                continue  # Python does not let this be changed
            holds = guards.check(*args)[0]
            after = world.run()
            if after != before:
                assert not holds, f"{location.path} {what}: {before} became {after}"
                assert not guards.check(*args)[0], f"{location.path} {what}: a second check"
            tried += 1
            missed += not holds
            location.restore(old)
            gc.collect(0)
    assert tried > missed > 0
    assert guards.check(*args)[0]


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_not_read_may_change(name: str) -> None:
    world = World(WORLDS[name])
    f, args = world.f, world.args
    guards = _C._guards(f, *args)
    for i in range(5):  # a script's globals change all the time
        world.space[f"statement{i}"] = i
        assert guards.check(*args) == (True, None)
    for value in list(world.space.values()):
        if isinstance(value, type) and value.__module__ == "world":
            value.never_looked_at = 1
            assert guards.check(*args) == (True, None), value
        elif type(value).__module__ == "world" and hasattr(value, "__dict__"):
            value.never_looked_at = 1
            assert guards.check(*args) == (True, None), value
    for i in range(5):
        del world.space[f"statement{i}"]
        assert guards.check(*args) == (True, None)
