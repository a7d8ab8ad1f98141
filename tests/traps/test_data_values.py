"""Floats and lists that programs read from tensor data: the trace serves the data it was made for, and no other."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted
from tests.traps.differential import attempt, same_as_eager


def bits(value: Any) -> Any:
    """The value as something that equals exactly what is the same in type and bits."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), bits(value.detach().tolist())
    if isinstance(value, (list, tuple)):
        return type(value), [bits(item) for item in value]
    if isinstance(value, complex):
        return bits([value.real, value.imag])
    return type(value), struct.pack("d", value) if isinstance(value, float) else value


def mutated(x: torch.Tensor) -> Any:
    rows = x.reshape(1, -1).tolist()
    rows[0].append(x.shape)
    rows[0][0] = -5.0
    rows.append(len(rows[0]))
    return x + rows[0][1], rows


def aliased(x: torch.Tensor) -> Any:
    values = x.tolist()
    return x * 2, values, [values, values]


def looked_at(x: torch.Tensor) -> float:
    """A float of data whose text C code looks at."""
    return [*map(float, [str(x.item())])][0]


PROGRAMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item in a branch": lambda x: x + 1 if x[0].item() > 1.5 else x - 1,
    "item as text": lambda x: (x * looked_at(x[0]), f"{x[0].item():.2f}"),
    "item as a key": lambda x: x * {x[0].item(): 2.0}[x[0].item()],
    "float": lambda x: x + hash(float(x[1])),
    "complex": lambda x: (x + 1, complex(x[0])),
    "item of complex numbers": lambda x: (x + 1, torch.complex(x, -x)[0].item()),
    "tolist in a branch": lambda x: x + 1 if 2.0 in x.tolist() else x - 1,
    "tolist in arithmetic": lambda x: x * sum(x.tolist()),
    "tolist in the result": lambda x: (x + 1, x.tolist()),
    "tolist into a tensor": lambda x: torch.tensor(x.tolist()) + x,
    "nested lists": lambda x: (x + 1, x.reshape(1, -1, 1).tolist()),
    "empty list": lambda x: (x + len(x[2:2].tolist()), looked_at(x[0])),
    "list that the program changes": mutated,
    "list twice in the result": aliased,
    "list of bools": lambda x: (x + 1, (x > 1.5).tolist(), looked_at(x[0])),
    "after a change in place": lambda x: ((y := x.clone()).mul_(2), y[0].item(), y.add_(1), y.tolist()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_of_data_are_checked(name: str) -> None:
    program = PROGRAMS[name]
    fast = torch.compile(program, backend="magpy")
    one, other = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 3.0, -1.0])
    for x, new in ((one, 1), (one.clone(), 0), (other, 1), (one, 0), (other, 0), (other.clone(), 0)):
        with Counted() as counted:
            mine = fast(x)
        assert bits(mine) == bits(program(x.clone()))
        assert (counted.traces, counted.hits, counted.fallbacks) == (new, 1 - new, {})


VALUES = {"zero": 0.0, "minus zero": -0.0, "nan": float("nan"), "one": 1.0}


@pytest.mark.parametrize("first", VALUES)
@pytest.mark.parametrize("second", VALUES)
@pytest.mark.parametrize("form", ["item", "list"])
def test_values_are_compared_by_bits(first: str, second: str, form: str) -> None:
    def program(x: torch.Tensor) -> Any:
        return (x + 1, x[0].item().hex()) if form == "item" else (x + 1, x.tolist())

    fast = torch.compile(program, backend="magpy")
    fast(torch.tensor([VALUES[first], 3.0]))
    x = torch.tensor([VALUES[second], 3.0])
    with Counted() as counted:
        mine = fast(x)
    assert bits(mine) == bits(program(x))
    assert (counted.hits, counted.traces) == ((1, 0) if first == second else (0, 1))


def test_the_answer_given_by_a_hit_is_the_callers_own() -> None:
    fast = torch.compile(lambda x: (x + 1, x.reshape(1, -1).tolist()), backend="magpy")
    x = torch.tensor([1.0, 2.0])
    for _ in range(4):
        _, rows = fast(x)
        assert rows == [[1.0, 2.0]]
        rows[0].clear()
        rows.append(None)
    assert find_callable(fast).n_traces == 1 and find_callable(fast).hits == 3


def test_a_run_thrown_away_leaves_the_random_state() -> None:
    def program(x: torch.Tensor) -> Any:
        y = F.dropout(x, 0.5)
        return y * looked_at(x.sum()), torch.rand(2)

    fast = torch.compile(program, backend="magpy")
    inputs = [torch.full((8,), float(k)) for k in (1, 2, 1, 2, 2, 1)]
    torch.manual_seed(3)
    mine, state = [fast(x) for x in inputs], torch.get_rng_state()
    torch.manual_seed(3)
    assert_same(mine, [program(x) for x in inputs])
    assert torch.equal(state, torch.get_rng_state())
    assert find_callable(fast).n_traces == 2


def test_values_of_data_under_training() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> Any:
            largest = looked_at(x.detach().abs().max())
            return self.linear(x) / largest * sum(x.tolist()[0])

    torch.manual_seed(0)
    net = Net()
    fast = torch.compile(net, backend="magpy")
    inputs = [torch.full((2, 3), float(k)) for k in (1, 2, 1, 2)]
    for x in inputs:
        gradients = []
        for model in (fast, net):
            net.zero_grad()
            given = x.clone().requires_grad_()
            model(given).sum().backward()
            gradients.append([given.grad, *[p.grad.clone() for p in net.parameters() if p.grad is not None]])
        assert len(gradients[0]) == 3
        for mine, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, expected)
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 2


@pytest.mark.parametrize("form", ["item", "list"])
def test_values_that_never_come_back_are_given_up(form: str) -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1

    def program(x: torch.Tensor) -> Any:
        y = inner(x) * 2
        return y, looked_at(y[0]) if form == "item" else y.tolist()

    fast = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for k in range(30):
            x = torch.full((2,), float(k))
            assert bits(fast(x)) == bits(program(x))
    mine = find_callable(fast)
    assert mine.n_traces == 0 and "DATA_READ" in counted.fallbacks
    assert counted.traces < 10
    assert any(each.hits > 10 for each in mine.describe()["callees"].values())  # the rest is compiled as before


def test_traces_without_values_outlive_those_that_are_given_up() -> None:
    def program(x: torch.Tensor, look: bool) -> Any:
        return x * looked_at(x[0]) if look else x + 1

    fast = torch.compile(program, backend="magpy")
    fast(torch.ones(2), False)
    for k in range(12):
        x = torch.full((2,), float(k))
        assert_same(fast(x, True), program(x, True))
    with Counted() as counted:
        assert_same(fast(torch.ones(2), False), torch.full((2,), 2.0))
    counted.assert_hit()


def test_values_that_mostly_come_back_stay_checked() -> None:
    def program(x: torch.Tensor) -> Any:
        return x * looked_at(x[0])

    fast = torch.compile(program, backend="magpy")
    for k in range(7):
        x = torch.full((2,), float(k))
        for _ in range(3):
            assert_same(fast(x), program(x))
    assert find_callable(fast).n_traces == 7 and find_callable(fast).hits == 14


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_masks_of_transformers_are_looked_at():
    """Whether nested tensors will do is asked of the mask's data."""

    def scenario(wrap):
        layers = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
        run = wrap(lambda x, mask: layers(x, src_key_padding_mask=mask))
        middle = torch.tensor([[False, True, False], [True, False, False]])
        end = torch.tensor([[False, False, True], [False, False, False]])
        with torch.no_grad():
            for mask in [middle, middle, ~middle, end, middle, end & ~end, end, end | ~end]:
                yield attempt(run, torch.randn(2, 3, 4), mask)

    counted = same_as_eager(scenario, hits=5)
    assert set(counted.fallbacks) <= {"EXCEPTION"}  # where all is padding


NESTED = {
    "padded": lambda x, nested: nested.to_padded_tensor(1.5, x.size()),
    "to the longest": lambda x, nested: nested.to_padded_tensor(0.0),
    "computed with": lambda x, nested: (nested * 2).to_padded_tensor(0.0, x.size()),
    "counted": lambda x, nested: x * nested.numel(),
    "measured": lambda x, nested: x * nested.size(1),
    "as a result": lambda x, nested: (x * 2, nested),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", NESTED)
def test_sizes_of_nested_tensors_are_data(form):
    def program(x, mask):
        try:
            return NESTED[form](x, torch._nested_tensor_from_mask(x, mask, mask_check=False))
        except RuntimeError:  # a size that there is not
            return x - 1

    def plain(value):
        value = value if isinstance(value, tuple) else (value,)
        return [list(t.unbind()) if t.is_nested else t for t in value]

    def scenario(wrap):
        run = wrap(program)
        for counts in [(2, 3), (2, 3), (1, 3), (2, 2), (3, 2), (0, 3), (0, 0)]:
            yield plain(run(torch.randn(2, 3, 4), torch.arange(3) < torch.tensor(counts).unsqueeze(1)))

    counted = same_as_eager(scenario)
    assert counted.hits == 5 if form == "padded" else counted.fallbacks
