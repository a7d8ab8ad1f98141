"""Results that show an input's memory, and inputs whose elements share memory: later changes act as in eager."""

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
