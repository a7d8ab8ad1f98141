"""The tables that programs grow from: kind of expression or statement -> templates.

Kinds: t tensor, i int, f float, b truth, w text, l list, m mapping, v anything, o object with attributes, u iterable,
c callable of a tensor, S statement, B block. In a program the names a b c (tensors), n m (ints), r (float), w (text),
acc (list, returned), d (dict) are always bound, and s is the state of world.py.

Tensors end in a dimension of 3 or 1 where a program is not unlucky; an exception is an outcome, too. Numbers are chosen
so that most arithmetic is exact in float32: kernels may contract and reorder.
"""

from __future__ import annotations

from tests.fuzz.grammar.outside import ARGUMENTS, CHANGES, OPTIONS, SURROUNDINGS
from tests.fuzz.grammar.statements import STATEMENTS
from tests.fuzz.grammar.tensors import TENSORS
from tests.fuzz.grammar.values import VALUES

__all__ = ["ARGUMENTS", "CHANGES", "EXPRESSIONS", "LEAVES", "OPTIONS", "STATEMENTS", "SURROUNDINGS"]

EXPRESSIONS: dict[str, list[str]] = {**TENSORS, **VALUES}

#: How many templates at the head of each table are leaves.
LEAVES = {"t": 12, "i": 16, "f": 6, "b": 10, "w": 7, "l": 7, "m": 4, "v": 10, "o": 6, "u": 7, "c": 6, "S": 24}
