"""Random programs, compiled, do what they do in eager while their world is changed between the calls.

`python -m tests.fuzz` runs as many of them as one likes, finds out which of their lines matter, and survives crashes.
"""

from __future__ import annotations

import copy

import pytest
import torch

import magpy
from tests.fuzz.programs import Call, Program, differs, draw, failure
from tests.fuzz.shrink import shrink
from tests.fuzz.tree import Block, Node

BATCH = 25


@pytest.mark.parametrize("first", range(0, 150, BATCH))
def test_random_programs_run_as_in_eager(first: int) -> None:
    for seed in range(first, first + BATCH):
        program = draw(seed)
        found = failure(program)
        assert not found, f"{found}\n{program.text()}"


def test_programs_are_their_seeds() -> None:
    texts = [draw(seed).text() for seed in range(20)]
    assert texts == [draw(seed).text() for seed in range(20)] and len(set(texts)) == 20


def test_many_calls_are_served_by_traces() -> None:
    """Else the tests above would prove little."""
    before = magpy.stats()
    for seed in range(1000, 1030):
        differs(draw(seed))
    after = magpy.stats()
    assert after["hits"] - before["hits"] > (after["calls"] - before["calls"]) / 6


def statement(text: str) -> Node:
    return Node("S", [text])


def program(*lines: str, changes: list[list[str]]) -> Program:
    calls = [Call(change, "torch.ones(2, 3)", "torch.ones(3)", "", False) for change in changes]
    return Program(0, "function", Block([statement(line) for line in lines]), calls)


STALE = [
    ("a = a + s.scale", "s.scale = 0.5"),
    ("acc.append(s.kind)", "State.kind = 'other'"),
    ("acc.append(len(s.log))", "s.log.append(1)"),
    ("s.buf.add_(1)", "s.buf = torch.ones(3)"),
    ("a = s.net(a)", "s.net.eval()"),
    ("G += 1", "G = 7"),
    ("s.seen.add(s.count)", "s.count = 4"),
]


@pytest.mark.parametrize(("line", "change"), STALE)
def test_stale_results_and_state_are_found(line: str, change: str) -> None:
    """What a compiler without guards would do (repeat the first call) is noticed, whatever it gets wrong."""

    def careless(target):
        first = []

        def call(*args):
            if not first:
                first.append(target(*copy.deepcopy(args)))
            return first[0]

        return call

    failing = program("b = b + 1", line, "m = 3", changes=[[], [change], []])
    assert differs(failing, careless)
    assert not differs(failing, lambda target: target)


def test_failing_programs_are_made_small() -> None:
    big = program(*[f"n = {i}" for i in range(10)], "s.count = 4", *["acc.append(n)"] * 5, changes=[[], ["G = 2"], []])
    small = shrink(big, lambda p: "s.count = 4" in p.source())
    assert [node.text() for node in small.body.body] == ["s.count = 4"]
    assert len(small.calls) == 1 and not small.calls[0].changes


def test_default_dtype_is_left_as_it_was() -> None:
    changing = program("a = a + 1", changes=[["torch.set_default_dtype(torch.float64)"]])
    assert differs(changing) is None and torch.get_default_dtype() is torch.float32
