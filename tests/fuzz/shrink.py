"""A failing program made small: statements, expressions, calls and changes go as long as it still fails."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

from tests.fuzz import grammar
from tests.fuzz.programs import Program
from tests.fuzz.tree import Block, Node, blocks, nodes

SIMPLE = {kind: Node(kind, [templates[0]]) for kind, templates in grammar.EXPRESSIONS.items()}


def smaller(program: Program) -> Iterator[Program]:
    """Programs a little simpler than this one, boldest first."""
    for i in reversed(range(len(program.calls))):
        if len(program.calls) > 1:
            yield edited(program, lambda p, i=i: p.calls.pop(i))
    for count in (8, 4, 2, 1):
        for number, block in enumerate(blocks(program.body)):
            for i in range(0, len(block.body), count):
                if len(block.body) >= count:
                    yield edited(program, lambda p, n=number, i=i, c=count: drop(list(blocks(p.body))[n].body, i, c))
    for number, block in enumerate(blocks(program.body)):
        for i, node in enumerate(block.body):
            for j, hole in enumerate(node.holes):
                if isinstance(hole, Block):
                    yield edited(program, lambda p, n=number, i=i, j=j: unwrap(list(blocks(p.body))[n].body, i, j))
    for number, node in enumerate(nodes(program.body)):
        for j, hole in enumerate(node.holes):
            if isinstance(hole, Block):
                continue
            inner = [each for each in nodes(hole) if each.kind == hole.kind]
            for k in range(len(inner)):
                yield edited(program, lambda p, n=number, j=j, k=k: lift(list(nodes(p.body))[n], j, k))
            if hole.text() != SIMPLE[hole.kind].text():
                yield edited(program, lambda p, n=number, j=j: simplify(list(nodes(p.body))[n], j))
    for i, call in enumerate(program.calls):
        for j in range(len(call.changes)):
            yield edited(program, lambda p, i=i, j=j: p.calls[i].changes.pop(j))
    for name, simple in (
        ("x", grammar.ARGUMENTS[0]),
        ("y", grammar.ARGUMENTS[0]),
        ("around", ""),
        ("backward", False),
        ("more", ""),
    ):
        if any(getattr(call, name) != simple for call in program.calls):
            yield edited(program, lambda p, n=name, s=simple: [setattr(call, n, s) for call in p.calls])
        for i, call in enumerate(program.calls):
            if getattr(call, name) != simple:
                yield edited(program, lambda p, i=i, n=name, s=simple: setattr(p.calls[i], n, s))
    if program.target != "function":
        yield edited(program, lambda p: setattr(p, "target", "function"))


def edited(program: Program, edit: Callable[[Program], object]) -> Program:
    other = copy.deepcopy(program)
    edit(other)
    return other


def drop(body: list[Node], start: int, count: int) -> None:
    del body[start : start + count]


def unwrap(body: list[Node], i: int, j: int) -> None:
    inside = body[i].holes[j]
    assert isinstance(inside, Block)
    body[i : i + 1] = inside.body


def lift(node: Node, j: int, k: int) -> None:
    hole = node.holes[j]
    node.holes[j] = [each for each in nodes(hole) if each.kind == getattr(hole, "kind", "")][k]


def simplify(node: Node, j: int) -> None:
    hole = node.holes[j]
    assert isinstance(hole, Node)
    node.holes[j] = SIMPLE[hole.kind]


def shrink(program: Program, fails: Callable[[Program], bool], seconds: float = 120) -> Program:
    """The smallest program found within `seconds` for which `fails` still holds."""
    end = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for other in smaller(program):
            if time.monotonic() > end:
                break
            if fails(other):
                program, progress = other, True
                break
    return program
