"""Objects of C types from outside: what C code looks at in them is read, what it changes in them is not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.counting import Counted
from tests.snapshot import Picture, difference

X = torch.ones(3)
FILE = "<program>"
WORLD = """
import collections, functools, numpy, types, weakref, torch

class Base:
    def who(self): return "base"

class Other:
    def who(self): return "other"

class Meth:
    def m(self): return 1

class State: pass

def fn(a, b=1, *, k=2):
    return b + k

def make_getter():
    n = 1
    def get(): return n
    return get

s = State()
s.log = []
s.err, s.key, s.os = ValueError(1, 2), KeyError("k"), OSError(2, "a")
s.group = ExceptionGroup("g", [ValueError(1)])
s.ns = types.SimpleNamespace(a=1)
s.fn, s.get, s.part = fn, make_getter(), functools.partial(fn, 3, k=4)
s.dd = collections.defaultdict(list)
s.cls = type("Cls", (Base,), {"a": 1})
s.inst, s.obj = s.cls(), Meth()
s.meth = s.obj.m
s.arr = numpy.ones((2, 3))
s.ref = weakref.ref(s.obj)
s.rows, s.table = [1], {"a": 1, "b": 2}
s.append, s.text = s.rows.append, s.obj.__str__
s.keys, s.values, s.items = s.table.keys(), s.table.values(), s.table.items()
"""

#: What a call does, and what is done before some of the calls; the result of a stale look would differ.
READS: dict[str, tuple[str, str]] = {
    "str of an exception": ("s.log.append(str(s.err))", "s.err.args = (k,)"),
    "repr of an exception": ("s.log.append(repr(s.key))", "s.key.args = (k,)"),
    "an exception in an f-string": ("s.log.append(f'{s.err}|{s.key!r}')", "s.key.args = (k,)"),
    "an exception in %": ("s.log.append('%s' % s.key)", "s.key.args = (k,)"),
    "an exception in format": ("s.log.append('{}'.format(s.err))", "s.err.args = (k,)"),
    "an exception in a list": ("s.log.append(repr([s.err, {1: s.key}]))", "s.key.args = (k,)"),
    "str of an OSError": ("s.log.append(str(s.os))", "s.os.errno = k"),
    "str of a file's OSError": ("s.log.append(str(s.os))", "s.os.filename = 'f%d' % k"),
    "str of a group": ("s.log.append(str(s.group)); s.log.append(repr(s.group))", "s.group.exceptions[0].args = (k,)"),
    "str of a cause": (
        "\n    try:\n        raise ValueError(1) from s.err\n    except ValueError as e:\n"
        "        s.log.append(str(e.__cause__))",
        "s.err.args = (k,)",
    ),
    "repr of a namespace": ("s.log.append(repr(s.ns))", "s.ns.a = k"),
    "another namespace": ("s.log.append(f'{s.ns}')", "s.ns = types.SimpleNamespace(c=k)"),
    "== of namespaces": ("s.log.append(s.ns == types.SimpleNamespace(a=1))", "s.ns.a = k"),
    "== of lists of namespaces": ("s.log.append([s.ns] == [types.SimpleNamespace(a=1)])", "s.ns.a = k"),
    "== of methods": ("s.log.append(s.meth == s.obj.m)", "s.obj = Meth()"),
    "== of cells": (
        "s.log.append(s.get.__closure__[0] == types.CellType(1))",
        "s.get.__closure__[0].cell_contents = k",
    ),
    "repr of a defaultdict": ("s.log.append(repr(s.dd))", "s.dd.default_factory = dict"),
    "repr of a function": ("s.log.append(repr(s.fn)[:12])", "s.fn.__qualname__ = 'n%d' % k"),
    "repr of a class": ("s.log.append(repr(s.cls))", "s.cls.__qualname__ = 'n%d' % k"),
    "a class's module in its text": ("s.log.append(f'{s.cls}')", "s.cls.__module__ = 'n%d' % k"),
    "an instance's class in its text": ("s.log.append(str(s.inst)[:18])", "s.cls.__qualname__ = 'n%d' % k"),
    "repr of a method": ("s.log.append(repr(s.meth)[:18])", "Meth.m.__qualname__ = 'n%d' % k"),
    "a class in a list": ("s.log.append(repr([(s.cls,)]))", "s.cls.__qualname__ = 'n%d' % k"),
    "an instance in a dict": ("s.log.append(repr({1: s.inst})[:18])", "s.cls.__qualname__ = 'n%d' % k"),
    "== of weak references": ("s.log.append(s.ref == weakref.ref(s.obj))", "s.obj = Meth()"),
    "== of builtin methods": ("s.log.append(s.append == s.rows.append)", "s.rows = [1]"),
    "== of method wrappers": ("s.log.append(s.text == s.obj.__str__)", "s.obj = Meth()"),
    "isinstance": ("s.log.append(isinstance(s.inst, Other))", "s.cls.__bases__ = (Other,)"),
    "isinstance of one of several": ("s.log.append(isinstance(s.inst, (int, Other)))", "s.cls.__bases__ = (Other,)"),
    "issubclass": ("s.log.append(issubclass(s.cls, Other))", "s.cls.__bases__ = (Other,)"),
    "a class in match": (
        "\n    match s.inst:\n        case Other(): s.log.append('other')\n        case _: s.log.append('no')",
        "s.cls.__bases__ = (Other,)",
    ),
    "callable": ("s.log.append(callable(s.inst))", "s.cls.__call__ = lambda self: 1"),
    "an attribute of a base": ("s.log.append(s.inst.who())", "s.cls.__bases__ = (Other,)"),
    "super": ("s.log.append(super(s.cls, s.inst).who())", "s.cls.__bases__ = (Other,)"),
    "a partial": ("s.log.append(s.part())", "s.part.__setstate__((fn, (3, 5), {}, {}))"),
    "a function's defaults": ("s.log.append(s.fn(1))", "s.fn.__defaults__ = (k,)"),
}

#: Changes that must not be lost: the call falls back, or makes them.
CHANGES: dict[str, str] = {
    "a note": "s.err.add_note('n')",
    "__init__ of an exception": "ValueError.__init__(s.err, len(s.err.args) + 5)",
    "__setstate__ of an exception": "s.err.__setstate__({'q': 5})",
    "arguments of an exception": "s.err.args = (3,)",
    "a cause": "s.err.__cause__ = s.key",
    "a traceback": "s.err.with_traceback(None)",
    "raising": "\n    try:\n        raise s.err\n    except ValueError as e:\n        s.log.append(e.args)",
    "raising from another": (
        "\n    try:\n        raise s.err from s.key\n    except ValueError as e:\n        s.log.append(e.args)"
    ),
    "raising in a handler": (
        "\n    try:\n        try:\n            raise s.key\n        except KeyError:\n            raise s.err\n"
        "    except ValueError as e:\n        s.log.append(e.__context__ is s.key)"
    ),
    "an exception's own suppression": "s.made = ValueError(1); s.made.__suppress_context__ = True",
    "no cause": "s.made = ValueError(1); s.made.__cause__ = None",
    "an array's flag": "s.log.append(s.arr.flags.writeable); s.arr.flags.writeable = False",
    "an array's flag by its name": "s.log.append(s.arr.flags.writeable); s.arr.flags['WRITEABLE'] = False",
    "bases": "s.cls.__bases__ = (Other,); s.log.append(s.inst.who())",
}
#: Of dict views from outside nothing is read: the call falls back.
VIEWS = [
    "sorted(s.keys | {'q'})",
    "sorted(s.keys - {'q'})",
    "s.keys == {'a', 'b'}",
    "s.keys <= {'a', 'b'}",
    "s.items == {('a', 1), ('b', 2)}",
    "repr(s.keys)",
    "f'{s.values}'",
    "bool(s.keys)",
    "len(s.values)",
    "list(s.items)",
    "s.keys.isdisjoint(['c'])",
    "s.keys.mapping['a']",
]
BEFORE = {"an array's flag", "an array's flag by its name"}  # set again between the calls


def run(wrap: Callable[[Any], Any], body: str, change: str) -> list[Any]:
    """What can be seen after each of nine calls, with the change made before three of them."""
    space: dict[str, Any] = {"__name__": "world"}
    exec(compile(WORLD, FILE, "exec"), space)
    exec(compile(f"def f(x, s):\n    {body}\n    return x + 1\n", FILE, "exec"), space)
    target, seen = wrap(space["f"]), []
    for k in range(9):
        space["k"] = k
        space["s"].log.clear()
        if k in (3, 6, 7):
            exec(change, space)
        result = target(X, space["s"])
        seen.append(Picture((FILE,)).of([result, vars(space["s"]), space["s"].arr.flags.writeable]))
    return seen


def compiled(target: Any) -> Any:
    return torch.compile(target, backend="magpy")


@pytest.mark.parametrize("name", READS)
def test_what_c_code_looks_at_is_guarded(name: str) -> None:
    body, change = READS[name]
    expected = run(lambda target: target, body, change)
    with Counted() as counted:
        actual = run(compiled, body, change)
    assert not difference(actual, expected) and actual[2] != actual[3]
    assert counted.hits >= 3 and not counted.fallbacks


@pytest.mark.parametrize("name", CHANGES)
def test_what_c_code_changes_is_not_lost(name: str) -> None:
    change = "s.arr.flags.writeable = True" if name in BEFORE else "pass"
    expected = run(lambda target: target, CHANGES[name], change)
    assert not difference(run(compiled, CHANGES[name], change), expected)


@pytest.mark.parametrize("look", VIEWS)
@pytest.mark.parametrize("change", ["s.table['c'] = k", "s.table['a'] = k", "s.table.clear()"])
def test_dict_views_from_outside(look: str, change: str) -> None:
    body = f"s.log.append({look}) if s.table else None"
    assert not difference(run(compiled, body, change), run(lambda target: target, body, change))
