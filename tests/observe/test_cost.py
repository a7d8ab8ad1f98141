"""What observing does again and again is done once: reads, names; and what it reads in place is what torch says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from magpy import _C


class Counter:
    """An object of a class, with an attribute, an item and a method."""

    def __init__(self) -> None:
        self.step = 1
        self.table = {"a": 2}

    def again(self, x: torch.Tensor, times: int) -> torch.Tensor:
        total = 0
        for _ in range(times):
            total += self.step + self.table["a"] + self.number()
        return x + total

    def number(self) -> int:
        return self.step


def test_reads_do_not_grow_with_repetition() -> None:
    x = torch.ones(3)
    costs = [_C._observe_cost(Counter().again, x, times) for times in (1, 2, 200)]
    assert costs[0]["reads"] == costs[1]["reads"] == costs[2]["reads"]
    assert costs[0]["objects"] == costs[2]["objects"]
    assert costs[2]["opcodes"] > 100 * costs[0]["opcodes"] / 4
    assert costs[2]["frames"] == costs[0]["frames"] + 199


def test_cost_is_of_the_same_recording() -> None:
    counter, x = Counter(), torch.ones(3)
    _, told = _C._observe(counter.again, x, 3)
    cost = _C._observe_cost(counter.again, x, 3)
    assert cost["reads"] == len(told["reads"]) and cost["ops"] == len(told["ops"])
    assert cost["opcodes"] == told["opcodes"] and cost["seconds"] > 0


def test_a_call_that_is_not_recorded_has_no_cost() -> None:
    with pytest.raises(RuntimeError, match="data"):
        _C._observe_cost(lambda x: x.tolist(), torch.ones(2))
    with pytest.raises(ZeroDivisionError):
        _C._observe_cost(lambda: 1 // 0)
    with pytest.raises(TypeError):
        _C._observe_cost()


def test_a_replaced_class_is_read_although_the_old_one_was() -> None:
    class Other(Counter):
        def number(self) -> int:
            return 10

    def call(counter: Counter, x: torch.Tensor) -> torch.Tensor:
        return counter.again(x, 2)

    x, counter = torch.ones(3), Counter()
    guards = _C._guards(call, counter, x)
    assert guards.check(counter, x)[0]
    counter.__class__ = Other
    assert not guards.check(counter, x)[0]


def test_a_replaced_dict_is_read_although_the_old_one_was() -> None:
    def call(counter: Counter, x: torch.Tensor) -> torch.Tensor:
        return x + vars(counter)["step"] + counter.step

    x, counter = torch.ones(3), Counter()
    guards = _C._guards(call, counter, x)
    counter.__dict__ = {"step": 1, "table": {"a": 2}}
    counter.step = 5
    assert not guards.check(counter, x)[0]


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "plain": lambda: torch.zeros(3, 4),
    "scalar": lambda: torch.zeros(()),
    "empty": lambda: torch.zeros(0, 4),
    "int64": lambda: torch.zeros(3, dtype=torch.int64),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "bfloat16": lambda: torch.zeros(3, dtype=torch.bfloat16),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "transposed": lambda: torch.zeros(3, 4).t(),
    "offset": lambda: torch.zeros(9)[2:7:2],
    "expanded": lambda: torch.zeros(1, 4).expand(3, 4),
    "leaf": lambda: torch.zeros(3, requires_grad=True),
    "made": lambda: torch.zeros(3, requires_grad=True) * 2,
    "view of made": lambda: (torch.zeros(3, requires_grad=True) * 2)[1:],
    "detached": lambda: (torch.zeros(3, requires_grad=True) * 2).detach(),
    "parameter": lambda: nn.Parameter(torch.zeros(3)),
    "conj": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "neg": lambda: torch.zeros(3, dtype=torch.complex64).conj().imag,
    "inference": lambda: inference(),
    "mkldnn is refused": lambda: torch.zeros(3, 4).to_mkldnn(),
    "nested is refused": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "quantized transposed": lambda: torch.quantize_per_tensor(torch.zeros(3, 4), 0.1, 0, torch.qint8).t(),
    "sparse": lambda: torch.eye(3, 4).to_sparse(),
    "larger sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(3, 4).to_sparse_csr(),
    "sparse columns": lambda: torch.eye(3, 4).to_sparse_csc(),
    "sparse leaf is refused": lambda: torch.eye(3, 4).to_sparse().requires_grad_(),
}


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


def use(x: torch.Tensor) -> torch.Tensor:
    return torch.clone(x)


@pytest.mark.parametrize("name", TENSORS)
def test_metadata_read_in_place_tells_every_two_kinds_of_tensor_apart(name: str) -> None:
    """Kinds are apart where what torch's getters say is; `is_view` counts for tensors with a gradient only."""

    def facts(t: torch.Tensor) -> tuple[Any, ...]:
        grad = t._is_view() if t.requires_grad else None
        stride = t.stride() if t.layout is torch.strided else None
        return (type(t), t.layout, t.shape, stride, t.dtype, t.requires_grad, t.is_leaf, t.is_conj(), t.is_neg(), grad,
                t.is_inference())  # fmt: skip

    x = TENSORS[name]()
    if name.endswith("refused"):
        with pytest.raises(RuntimeError):
            _C._guards(use, x)
        return
    guards = _C._guards(use, x)
    assert guards.check(x) == (True, None)
    for other, make in TENSORS.items():
        if not other.endswith("refused"):
            assert guards.check(make())[0] == (facts(make()) == facts(x)), other
