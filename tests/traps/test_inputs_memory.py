"""Results that show an input's memory, and inputs whose elements share memory: later changes act as in eager."""

from typing import Any

import numpy
import pytest
import torch

from tests.counting import Counted

MAKES = {
    "detach": lambda a: a.detach(),
    "detached_view": lambda a: a.detach()[1:],
    "view_detached": lambda a: a[1:].detach(),
    "view": lambda a: a[1:],
    "alias": lambda a: a.view_as(a),
}
CHANGES = {"nothing": lambda a: a + 1, "in_place": lambda a: a.add_(a), "view_in_place": lambda a: a[:2].mul_(3)}


def facts(t: torch.Tensor) -> tuple:
    return t.requires_grad, t.is_leaf, t._is_view(), t.tolist()


def later(program, a: torch.Tensor) -> list:
    """What a result shows after the input has begun to require grad and was changed, or which error that is."""
    shown, _ = program(a)
    found = [facts(shown), shown.data_ptr() - a.data_ptr()]
    try:
        a.requires_grad_()
        found.append(shown.requires_grad)
        with torch.no_grad():
            a.mul_(2)
        return [*found, facts(shown)]
    except RuntimeError as error:
        return [*found, str(error)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("given", ["base", "view"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_result_that_shows_an_input_stays_as_cut_off_as_in_eager(make, change, given, grad):
    fresh = (lambda: torch.ones(3)) if given == "base" else (lambda: torch.ones(5)[1:4])

    def program(a):
        return MAKES[make](a), CHANGES[change](a)

    compiled = torch.compile(program, backend="magpy")
    for _ in range(3):
        with torch.set_grad_enabled(grad):
            got = later(compiled, fresh())
            assert got == later(program, fresh())


OVERLAPPING = {
    "expanded": lambda: torch.ones(1, 3).expand(2, 3),
    "inner_expanded": lambda: torch.ones(2, 1).expand(2, 3),
    "windows": lambda: torch.ones(6).as_strided((3, 3), (1, 1)),
}
APART = {
    "slice": lambda: torch.ones(4, 6)[::2, ::2],
    "transposed": lambda: torch.ones(3, 2).t(),
    "one_row_expanded": lambda: torch.ones(1, 3).expand(1, 3),
    "empty": lambda: torch.ones(1, 3).expand(0, 3),
}


@pytest.mark.parametrize("make", [*OVERLAPPING, *APART])
def test_inputs_whose_elements_share_memory_are_changed_as_in_eager(make):
    def program(a, b):
        a.add_(b.zero_().sum())
        b.fill_(2)
        return a * 2, b

    fresh = {**OVERLAPPING, **APART}[make]
    compiled = torch.compile(program, backend="magpy")
    for call in range(3):
        b, expected_b = fresh(), fresh()
        with Counted() as counted:
            result = compiled(torch.ones(3), b)
        expected = program(torch.ones(3), expected_b)
        assert torch.equal(result[0], expected[0]) and result[1] is b and torch.equal(b, expected_b)
        if call and make in APART:
            counted.assert_hit()


class Recurrent:
    """A state that each call replaces, beside a counter and a log that it changes in place."""

    def __init__(self, state: Any, steps: Any, log: Any) -> None:
        self.state, self.steps, self.log = state, steps, log

    def __call__(self, x: torch.Tensor) -> Any:
        self.steps += 1
        self.log[0] = 7
        self.state = self.state * 0.5 + 1
        return torch.as_tensor(self.state).sum() + self.steps[0] + x


def parts(a: numpy.ndarray, *ends: int) -> list[torch.Tensor]:
    """Tensors over parts of one memory, which know nothing of each other."""
    return [torch.from_numpy(a[i:k]) for i, k in zip(ends[::2], ends[1::2], strict=True)]


#: How state, counter and log lie; which calls a trace must serve.
LET_GO = {
    "apart": (lambda: (torch.ones(3), torch.zeros(1), torch.zeros(2)), (1, 2, 3)),
    "array": (lambda: (numpy.ones(3), torch.zeros(1), torch.zeros(2)), (1, 2, 3)),
    "neighbours": (lambda: parts(numpy.ones(6), 0, 3, 3, 4, 4, 6), (2, 3)),
    "memory_of_the_changed": (lambda: parts(numpy.ones(7), 0, 3, 6, 7, 2, 6), (2, 3)),
    "view_of_the_changed": (lambda: (lambda t: (t[:3], torch.zeros(1), t))(torch.ones(5)), (2, 3)),
    "view_of_the_counter": (lambda: (lambda t: (t[:3], t[2:], torch.zeros(2)))(torch.ones(3)), (2, 3)),
    "array_of_the_changed": (lambda: (lambda t: (t.numpy()[:3], torch.zeros(1), t))(torch.ones(5)), (2, 3)),
}


@pytest.mark.parametrize("layout", LET_GO)
def test_a_call_may_let_go_of_an_input_while_it_changes_another_in_place(layout):
    make, served = LET_GO[layout]
    mine, expected = Recurrent(*make()), Recurrent(*make())
    compiled = torch.compile(mine, backend="magpy")
    for call in range(6):
        if call == 4:  # the state of the last call, among those that are changed
            mine.log = torch.as_tensor(mine.state)[:2]
            expected.log = torch.as_tensor(expected.state)[:2]
        x = torch.arange(4.0) + call
        with Counted() as counted:
            result = compiled(x)
        assert torch.allclose(result, expected(x))
        for a, b in [(mine.state, expected.state), (mine.steps, expected.steps), (mine.log, expected.log)]:
            assert type(a) is type(b) and torch.allclose(torch.as_tensor(a), torch.as_tensor(b))
        assert counted.hits or call not in served


#: Two tensors that show the same memory through storages of their own.
ONE_MEMORY = {
    "array": lambda: parts(numpy.ones(6), 0, 6, 0, 6),
    "parts_of_an_array": lambda: parts(numpy.ones(6), 0, 4, 2, 6),
    "dlpack": lambda: (lambda t: (t, torch.from_dlpack(t)))(torch.ones(4)),
    "buffer": lambda: (lambda b: [torch.frombuffer(b, dtype=torch.uint8) for _ in range(2)])(bytearray(b"abcdef")),
}


@pytest.mark.parametrize("memory", ONE_MEMORY)
@pytest.mark.parametrize("first_apart", [False, True])
def test_a_change_shows_in_what_has_the_same_memory_in_another_storage(memory, first_apart):
    def program(a, b):
        before = b * 3
        a.add_(1)
        return before, b * 2

    compiled = torch.compile(program, backend="magpy")
    mine, expected = ONE_MEMORY[memory](), ONE_MEMORY[memory]()
    if first_apart:
        compiled(*[t.clone() for t in mine])
    for _ in range(3):
        for got, wanted in zip(compiled(*mine), program(*expected), strict=True):
            assert torch.equal(got, wanted)
        assert torch.equal(mine[0], expected[0]) and torch.equal(mine[1], expected[1])
