"""Packed sequences: packing, padding and recurrent layers over packed data are parts of a graph, found again for the
same lengths and never used for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpad_sequence,
)

from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted
from tests.traps.differential import attempt

LENGTHS = [[5, 3, 2], [2, 5, 5], [5, 3, 2], [1, 1, 1], [2, 5, 5]]


def data(k: int = 0, **options: Any) -> torch.Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(k)).to(**options)


def packed(x: torch.Tensor, lengths: torch.Tensor, **options: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False, **options)


def of_columns(x: torch.Tensor, lengths: torch.Tensor) -> Any:
    p = pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False)
    return p.data.exp(), p.batch_sizes, pad_packed_sequence(p, padding_value=-1.5, total_length=7)


def from_mask(x: torch.Tensor, lengths: torch.Tensor) -> Any:
    mask = torch.arange(5)[None] < lengths[:, None]
    p = packed(x * mask[..., None], mask.sum(1))
    return PackedSequence(p.data * 2, p.batch_sizes, p.sorted_indices, p.unsorted_indices)


PROGRAMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "packed": lambda x, n: packed(x * 2, n),
    "there and back": lambda x, n: pad_packed_sequence(packed(x, n), batch_first=True),
    "longer": lambda x, n: pad_packed_sequence(packed(x + 1, n), batch_first=True, total_length=6)[0] + 1,
    "padding": lambda x, n: pad_packed_sequence(packed(x, n), padding_value=float("-inf"))[0].amax(0),
    "columns": of_columns,
    "mask": from_mask,
    "unpadded": lambda x, n: [t + 1 for t in unpad_sequence(x, n, batch_first=True)],
    "sequences": lambda x, n: pack_sequence([x[0], x[1, :3] * 2, x[2, :1]]).data + n.sum(),
    "padded sequences": lambda x, n: pad_sequence([x[0, : int(n[0])], x[1], x[2, :1]], padding_value=2.0) * 2,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_with_other_lengths_at_each_call(name: str, grad: bool) -> None:
    program = PROGRAMS[name]
    program(data(), torch.tensor(LENGTHS[0]))  # torch's own caches of classes
    fast = torch.compile(program, backend="magpy")
    for k, lengths in enumerate(LENGTHS):
        given = [data(k).requires_grad_(grad) for _ in range(2)]
        mine, expected = fast(given[0], torch.tensor(lengths)), program(given[1], torch.tensor(lengths))
        assert_same(mine, expected)
        if grad:
            for out in (mine, expected):
                sum(t.square().sum() for t in floats(out) if t.isfinite().all()).backward()
            assert_same(given[0].grad, given[1].grad)
    with Counted() as counted:
        fast(data(0).requires_grad_(grad), torch.tensor(LENGTHS[0]))
    assert counted.fallbacks == {} and counted.hits == 1


def floats(out: Any) -> list[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return [out] if out.requires_grad else []
    return [t for item in (out or ()) if isinstance(item, (torch.Tensor, tuple, list)) for t in floats(item)]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(4, 3, batch_first=True),
    "deep lstm": lambda: nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True),
    "projected lstm": lambda: nn.LSTM(4, 3, proj_size=2),
    "gru": lambda: nn.GRU(4, 3, bidirectional=True),
    "rnn": lambda: nn.RNN(4, 3, 2, nonlinearity="relu", bias=False),
    "tanh": lambda: nn.RNN(4, 3),
    "dropout": lambda: nn.GRU(4, 3, 2, dropout=0.5),
}


class Encoder(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]):
        super().__init__()
        self.layer = layer()

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        out, state = self.layer(packed(x.sin(), lengths))
        y, n = pad_packed_sequence(out, batch_first=True)
        return y.tanh(), n, state


@pytest.mark.parametrize(
    ("name", "grad"), [*[(name, False) for name in LAYERS], ("deep lstm", True), ("dropout", True)]
)
def test_recurrent_layers(name: str, grad: bool) -> None:
    torch.manual_seed(0)
    nets = [Encoder(LAYERS[name]) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fast = torch.compile(nets[0], backend="magpy")
    hits = 0
    for k, lengths in enumerate(LENGTHS[: 3 if grad else 5]):
        results = []
        with Counted() as counted:
            for run, net in ((fast, nets[0]), (nets[1], nets[1])):
                torch.manual_seed(k)
                net.zero_grad()
                with torch.set_grad_enabled(grad):
                    x = data(k).requires_grad_(grad)
                    out = run(x, torch.tensor(lengths))
                if grad:
                    sum(t.square().sum() for t in floats(out)).backward()
                results.append([out, x.grad, [p.grad for p in net.parameters()], torch.get_rng_state()])
        assert_same(*results)
        hits += counted.hits
    assert hits >= 1


class Normed(Encoder):
    """Batch norm in training is traced in a way of its own."""

    def __init__(self, layer: Callable[[], nn.Module]):
        super().__init__(layer)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return super().forward(self.norm(x.flatten(0, 1)).view(x.shape), lengths)


@pytest.mark.parametrize("kind", [Encoder, Normed])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "dropout"])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [1, 1, 1], [4, 4, 2]])
def test_recurrent_layers_that_are_trained(kind: type[Encoder], name: str, lengths: list[int]) -> None:
    torch.manual_seed(0)
    nets = [kind(LAYERS[name]) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fast = torch.compile(nets[0], backend="magpy")
    with Counted() as counted:
        for k in range(3):
            results = []
            for run, net in ((fast, nets[0]), (nets[1], nets[1])):
                net.zero_grad()
                x = data(k).requires_grad_()
                out = run(x, torch.tensor(lengths))
                sum(t.square().sum() for t in floats(out)).backward()
                results.append([out, x.grad, [p.grad for p in net.parameters()], list(net.buffers())])
            assert_same(*results)
    assert counted.fallbacks == {} and counted.hits == 2


def test_a_packed_sequence_as_an_argument() -> None:
    layer = nn.LSTM(4, 3)
    fast = torch.compile(layer, backend="magpy")
    for k, lengths in enumerate(LENGTHS):
        p = packed(data(k), torch.tensor(lengths))
        assert_same(fast(p), layer(p))
    assert find_callable(fast).hits >= 2


def test_equal_sizes_of_other_steps() -> None:
    """As many rows and steps, but others: what was spelled out for the first must not serve the second."""
    layer = nn.GRU(4, 3)
    fast = torch.compile(lambda x, n: layer(packed(x, n)), backend="magpy")
    for lengths in ([5, 4, 1], [5, 3, 2], [1, 5, 4], [5, 3, 2], [2, 3, 5]):
        for requires_grad in (True, False):
            layer.requires_grad_(requires_grad)
            assert_same(fast(data(), torch.tensor(lengths)), layer(packed(data(), torch.tensor(lengths))))


@pytest.mark.parametrize("lengths", [[0, 1, 2], [6, 1, 1], [-1, 2, 3]])
def test_lengths_that_are_refused(lengths: list[int]) -> None:
    fast = torch.compile(PROGRAMS["there and back"], backend="magpy")
    for _ in range(2):
        fast(data(), torch.tensor([5, 3, 2]))
    with pytest.raises((RuntimeError, IndexError)) as mine:
        fast(data(), torch.tensor(lengths))
    with pytest.raises(mine.type) as expected:
        PROGRAMS["there and back"](data(), torch.tensor(lengths))
    assert str(mine.value) == str(expected.value)


def test_other_dtypes() -> None:
    fast = torch.compile(lambda x, n: pad_packed_sequence(packed(x, n)), backend="magpy")
    for dtype in (torch.float64, torch.int32, torch.bool, torch.bfloat16, torch.float64):
        x = data(dtype=dtype)
        assert_same(fast(x, torch.tensor([5, 3, 2])), pad_packed_sequence(packed(x, torch.tensor([5, 3, 2]))))


def test_under_autocast() -> None:
    layer = nn.LSTM(4, 3)
    fast = torch.compile(lambda x, n: layer(packed(x, n)), backend="magpy")
    for lengths in LENGTHS[:4]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mine, eager = (
                attempt(run, data(), torch.tensor(lengths)) for run in (fast, lambda x, n: layer(packed(x, n)))
            )
        if isinstance(eager, RuntimeError):  # oneDNN has no such layer for CPUs without AVX-512
            assert repr(mine) == repr(eager)
        else:
            assert_same(mine, eager, 2e-2, 1e-2)
