"""Programs as trees: what a generator grows from tables of templates and a minimiser prunes.

A template is Python text with holes: `{t}` is an expression of kind t, `{B}` an indented block of statements. The kinds
and their tables are in grammar.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

HOLE = re.compile(r"\{([tifbwlmvoucB])\}")


@dataclass
class Node:
    """A statement or expression: its template's text around the holes, and what fills them."""

    kind: str
    parts: list[str]
    holes: list[Node | Block] = field(default_factory=list)

    def text(self) -> str:
        out = self.parts[0]
        for hole, part in zip(self.holes, self.parts[1:], strict=True):
            inside = hole.text()
            if isinstance(hole, Block):  # one step further in than the hole stands
                outer = out[out.rfind("\n") + 1 :]
                inside = inside.replace("\n", f"\n{outer}    ")
                out += "    "
            out += inside + part
        return out


@dataclass
class Block:
    """Statements in a row."""

    body: list[Node]

    def text(self) -> str:
        return "\n".join(node.text() for node in self.body) or "pass"


class Grower:
    """Grows trees from `tables`: kind -> templates. Deep down only a kind's first `leaves[kind]` templates are used."""

    def __init__(self, choice: random.Random, tables: Mapping[str, Sequence[str]], leaves: Mapping[str, int]):
        self.choice, self.tables, self.leaves = choice, tables, leaves

    def node(self, kind: str, depth: int) -> Node:
        templates = self.tables[kind]
        if depth <= 0:
            templates = templates[: self.leaves[kind]]
        pieces = HOLE.split(self.choice.choice(templates))
        holes = [self.block(depth - 1) if k == "B" else self.node(k, depth - 1) for k in pieces[1::2]]
        return Node(kind, pieces[::2], holes)

    def block(self, depth: int, most: int = 3) -> Block:
        return Block([self.node("S", depth) for _ in range(self.choice.randint(1, most))])


def nodes(tree: Node | Block) -> Iterator[Node]:
    """All nodes of a tree, outer ones first."""
    for child in tree.body if isinstance(tree, Block) else tree.holes:
        if isinstance(child, Node):
            yield child
        yield from nodes(child)


def blocks(tree: Node | Block) -> Iterator[Block]:
    """All blocks of a tree, outer ones first."""
    if isinstance(tree, Block):
        yield tree
    for child in tree.body if isinstance(tree, Block) else tree.holes:
        yield from blocks(child)
