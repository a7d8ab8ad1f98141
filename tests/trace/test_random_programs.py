"""Random programs over outside state: compiled and eager runs agree while the state is changed between the calls."""

from __future__ import annotations

import copy
import linecache
import random
from collections import OrderedDict, defaultdict, deque
from typing import Any

import pytest
import torch

import magpy


class Slotted:
    __slots__ = ("x", "y")


class Child:
    def __init__(self, value: int) -> None:
        self.value = value


class Child2(Child):
    pass


class Base:
    kind = "base"
    count: int

    def get(self) -> int:
        return self.count

    def who(self) -> str:
        return "base"


class State(Base):
    def __init__(self) -> None:
        self.count = 0
        self.log: list[Any] = ["start"]
        self.table: dict[str, Any] = {"a": 1, "b": [2]}
        self.ordered = OrderedDict(a=1, b=2, c=3)
        self.groups: defaultdict[str, list[int]] = defaultdict(list, old=[0])
        self.queue = deque([1, 2, 3], maxlen=4)
        self.seen = {1, 2}
        self.slotted = Slotted()
        self.slotted.x = 1
        self.child = Child(1)
        self.other = Child(2)
        self.children = [self.child, self.other]
        self.pair = (self.child, [self.log])
        self._p = 0

    @property
    def prop(self) -> int:
        return self._p

    @prop.setter
    def prop(self, value: int) -> None:
        self._p = value

    def who(self) -> str:
        return "state " + super().who()


STATEMENTS = [
    "s.count = (s.count + 1) % 3",
    "s.log.append(s.count)",
    "if len(s.log) > 4: s.log.clear()",
    "s.table['k%d' % s.count] = s.log[-1] if s.log else None",
    "if 'a' in s.table: del s.table['a']",
    "acc.append(s.table.pop('b', None))",
    "s.table.setdefault('c', []).append(1)",
    "if len(s.table.get('c', ())) > 3: s.table['c'] = []",
    "s.table['a'] = s.count",
    "s.ordered.move_to_end('a')",
    "s.ordered['d'] = s.count",
    "s.ordered.pop('d', None)",
    "acc.append(list(s.ordered.items()))",
    "s.extra = {'n': s.child, 'm': [s.count]}",
    "if hasattr(s, 'extra'): del s.extra",
    "acc.append(s.queue[0])",
    "s.queue.rotate(1)",
    "s.queue.append(s.count)",
    "s.seen ^= {s.count}",
    "acc.append(sorted(s.seen))",
    "acc.append(s.count in s.seen)",
    "s.child.value, s.other.value = s.other.value, s.child.value",
    "s.child, s.other = s.other, s.child",
    "acc.append(s.child is s.other)",
    "s.slotted.x = getattr(s.slotted, 'y', 0)",
    "s.slotted.y = s.count",
    "acc.append(list(vars(s)))",
    "acc.append([v for v in s.table.values() if type(v) is int])",
    "acc.append(list(s.table))",
    "acc.append(s.groups['g%d' % s.count])",
    "acc.append({k: len(v) for k, v in s.groups.items()})",
    "acc.append(getattr(s.child, 'missing', None))",
    "s.child.missing = [s.count]",
    "s.pair[1][0].append(9)",
    "acc.append({**s.table})",
    "acc.append(s.log[::-1])",
    "acc.append(tuple(s.log))",
    "acc.append(s.get())",
    "acc.append(s.who())",
    "acc.append(s.prop)",
    "s.prop = (s.prop + 1) % 2",
    "acc.append(s.kind)",
    "s.kind = 'own'",
    "acc.append(s.child in s.children)",
    "if s.child in s.children: s.children.remove(s.child)",
    "s.children.insert(0, s.other)",
    "if len(s.children) > 3: s.children.pop()",
    "acc.append(len(s.children))",
    "acc.append([c.value for c in s.children])",
    "s.child.up = acc",
    "s.node = (s.child, {'in': acc})",
    "acc.append(s.log and s.log[-1])",
    "acc.append(bool(s.table), )",
    "acc.append(s.table == {'a': 1, 'b': [2]})",
    "s.log += [s.count]",
    "s.log[0:1] = [5]",
    "if s.log: s.log[-1] = 'last'",
    "acc.append(s.children[0] is s.child)",
    "acc.append(s.queue == deque([1, 2, 3]))",
    "acc.append(' '.join(map(str, s.log)))",
    "acc.append(max(len(s.log), len(s.table)))",
    "acc.append([type(v).__name__ for v in (s.count, s._p)])",
    "acc.append(s.__dict__.get('extra', 'none'))",
    "vars(s)['viavars'] = s.count",
    "acc.append(isinstance(s.count, bool))",
    "s.child = Child(s.count)",
    "s.table.update(z=s.count, y=0)",
    "acc.append(sum(v for v in s.seen))",
    "acc.append(any(c is s.child for c in s.children))",
    "acc.append(s.count == s.prop)",
    "acc.append(repr(s.log))",
    'acc.append(f"{s.count}-{s.prop}")',
    "acc.append(dict(zip(s.log, range(3))))",
    "x = x + s.count",
    "x = x * (1 if s.prop else 2)",
    "acc.append(x)",
    "s.tensor = x",
    "acc.append(getattr(s, 'tensor', None) is not None)",
    "for c in s.children: c.value += 1",
    "while len(s.log) > 3: s.log.pop(0)",
    "acc.append([*s.queue, *s.seen])",
    "a, *b = s.log or [0]; acc.append(b)",
    "acc.append(s.slotted.__class__.__name__)",
    "try: acc.append(s.table['nokey'])\nexcept KeyError: acc.append('KeyError')",
    "try: acc.append(s.nothing)\nexcept AttributeError: acc.append('AttributeError')",
]

CHANGES = [
    "s.count = 0",
    "s.count = 1",
    "s.count = True",
    "s.count = 1.0",
    "s.log = ['start']",
    "s.log.append('m')",
    "s.table = dict(s.table)",
    "s.table = OrderedDict(s.table)",
    "s.table['m'] = 1",
    "s.table.pop('m', None)",
    "s.child = s.other",
    "s.child = Child(7)",
    "s.children.reverse()",
    "s.children[:] = []",
    "s.children.append(s.child)",
    "s.kind = 'mutated'",
    "vars(s).pop('kind', None)",
    "vars(s).pop('extra', None)",
    "s.prop = 0",
    "s.prop = 1",
    "s.seen = set()",
    "s.seen.add(2)",
    "s.queue = deque([1, 2, 3], maxlen=4)",
    "s.queue.append(0)",
    "s.ordered.move_to_end('b')",
    "s.groups['g0'] = []",
    "s.groups.clear()",
    "s.child.__class__ = Child2",
    "s.child.__class__ = Child",
    "s.slotted = Slotted(); s.slotted.x = 0",
    "s.pair = (s.other, [s.log])",
]


def shape(value: Any, seen: dict[int, int]) -> Any:
    """All of a structure as nested tuples: types, order, sharing."""
    if value is None or type(value) in (int, float, str, bool):
        return (type(value), value)
    if id(value) in seen:
        return ("shared", seen[id(value)])
    seen[id(value)] = len(seen)
    parts: list[Any] = [type(value)]
    if isinstance(value, torch.Tensor):
        return (type(value), value.dtype, value.tolist())
    if isinstance(value, dict):
        parts += [(shape(k, seen), shape(v, seen)) for k, v in value.items()]
    elif isinstance(value, (list, tuple, deque, set)):
        parts += [shape(item, seen) for item in value]
    for name in getattr(type(value), "__slots__", ()):
        parts.append((name, shape(getattr(value, name, "unset"), seen)))
    if hasattr(value, "__dict__"):
        parts += [(name, shape(item, seen)) for name, item in vars(value).items()]
    return tuple(parts)


def program(lines: list[str], name: str) -> Any:
    """The function f(x, s) with these lines as its body."""
    source = "def f(x, s):\n    acc = []\n    x = x + 1\n"
    source += "".join("    " + line.replace("\n", "\n    ") + "\n" for line in lines) + "    return acc, x\n"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace = dict(globals())
    exec(compile(source, name, "exec"), namespace)
    return namespace["f"]


def change(choice: random.Random, states: tuple[State, State]) -> list[str]:
    lines = [choice.choice(CHANGES) for _ in range(choice.choice([0, 0, 1, 2]))]
    for line in lines:
        for state in states:
            try:
                exec(line, globals(), {"s": state})
            except (AttributeError, KeyError, ValueError):
                pass  # does not apply to this state: to neither of the two
    return lines


def outcome(function: Any, state: State) -> Any:
    try:
        return shape([function(torch.ones(2), state), state], {})
    except Exception as error:
        return shape([type(error).__name__, str(error), state], {})


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_run_as_in_eager(seed: int) -> None:
    choice = random.Random(seed)
    lines = [choice.choice(STATEMENTS) for _ in range(choice.randint(1, 5))]
    eager = program(lines, f"<eager {seed}>")
    compiled = torch.compile(program(lines, f"<compiled {seed}>"), backend="magpy")
    state = State()
    if choice.random() < 0.5:
        vars(state)
    expected = copy.deepcopy(state)
    for _ in range(10):
        changed = change(choice, (state, expected))
        assert outcome(compiled, state) == outcome(eager, expected), (lines, changed)


def test_unchanged_programs_are_served_by_traces() -> None:
    compiled = torch.compile(
        program(["acc.append([s.get(), s.log[-1]])", "s.extra = acc"], "<served>"), backend="magpy"
    )
    state = State()
    before = magpy.stats()["hits"]
    for _ in range(5):
        compiled(torch.ones(2), state)
    assert magpy.stats()["hits"] >= before + 3
