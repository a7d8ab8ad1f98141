"""Observing torch programs: every operator is seen, torch's mode stack is as before, and numbers do not change."""

import sys
import threading
import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode

from magpy import _C


class Through(TorchFunctionMode):
    """A user's mode that changes nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def modes():
    return torch._C._len_torch_function_stack()


def test_operators_are_seen_once_and_in_order():
    x = torch.ones(2)
    result, seen = _C._observe(lambda x: (x + 1).relu() * x, x)
    assert seen["reason"] is None
    assert result.tolist() == [2.0, 2.0]
    assert [op[0].__name__.strip("_") for op in seen["ops"]] == ["add", "relu", "mul"]
    assert modes() == 0


def test_operators_called_from_c_are_seen():
    tensors = [torch.ones(2), torch.ones(2)]
    result, seen = _C._observe(lambda: sum(tensors))
    assert result.tolist() == [2.0, 2.0]
    assert seen["reason"] is not None or len(seen["ops"]) == 2


def test_an_error_of_an_operator_is_the_programs():
    with pytest.raises(RuntimeError, match="size of tensor"):
        _C._observe(lambda: torch.ones(2) + torch.ones(3))
    assert modes() == 0
    assert sys.gettrace() is None


def test_a_caught_error_of_an_operator():
    def program():
        try:
            return torch.ones(2) + torch.ones(3)
        except RuntimeError:
            return torch.zeros(1)

    result, _ = _C._observe(program)
    assert result.tolist() == [0.0]
    assert modes() == 0


def test_the_mode_is_gone_when_the_recording_is_abandoned():
    depth = []

    def program():
        unknown = sys._getframe(0)  # another object each time
        depth.append(torch._C._len_torch_function_stack())
        return unknown is None

    _, seen = _C._observe(program)
    assert seen["reason"] is not None
    assert depth == [0]


def test_modes_the_program_leaves_behind_stay():
    mode = Through()

    def program():
        mode.__enter__()
        return torch.ones(1)

    _C._observe(program)
    try:
        assert modes() == 1
        assert torch._C._get_function_stack_at(0) is mode
    finally:
        mode.__exit__(None, None, None)
    assert modes() == 0


def test_modes_that_were_there_are_left_alone():
    with Through() as mode:
        result, _ = _C._observe(lambda: torch.ones(1) + 1)
        assert modes() == 1
        assert torch._C._get_function_stack_at(0) is mode
    assert result.item() == 2.0


def test_user_code_inside_an_operator_is_noticed():
    called = []

    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            called.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    loud = torch.ones(2).as_subclass(Loud)

    def program(value):
        return value.double()

    _, seen = _C._observe(program, loud)
    assert called
    assert seen["reason"] is not None


def test_encoder_layers_keep_their_fast_path():
    """A mode makes has_torch_function true, which would change the numbers of padded rows."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=mask)
        result, _ = _C._observe(encoder, x, src_key_padding_mask=mask)
    assert result.shape == expected.shape
    assert torch.equal(result, expected)


def test_peak_of_live_tensors_is_as_unwatched():
    """Each layer's result dies when the next has used it; watching must not own it."""
    references = []

    class Layer(torch.nn.Module):
        def forward(self, x):
            return x + 1

    def program(x):
        for layer in layers:
            x = layer(x)
            references.append(weakref.ref(x))
            alive.append([reference() is not None for reference in references])
        return x

    layers, alive = [Layer() for _ in range(3)], []
    program(torch.ones(2))
    expected, alive = alive, []
    references.clear()
    result, seen = _C._observe(program, torch.ones(2))
    assert alive == expected
    assert seen["reason"] is None, seen["reason"]


def test_torch_in_another_thread_is_unwatched():
    out = []

    def work():
        out.append((modes(), (torch.ones(2) + 1).tolist()))

    def program():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    _C._observe(program)
    assert out == [(0, [2.0, 2.0])]


def test_backward_through_what_was_observed():
    weight = torch.ones(2, requires_grad=True)
    result, _ = _C._observe(lambda: (weight * 3).sum())
    result.backward()
    assert weight.grad.tolist() == [3.0, 3.0]


def test_modules_made_inside_are_no_obstacle_after_dynamo_has_run():
    """Dynamo patches nn.Module.__init__ to note new modules in a weak dictionary; that is its own affair."""
    from torch import nn

    from tests.counting import Counted

    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(2))

    def program(x, y):
        loss = nn.MSELoss()
        return loss(x, y)

    compiled = torch.compile(program, backend="magpy")
    x, y = torch.ones(3), torch.zeros(3)
    with Counted() as first:
        assert compiled(x, y) == 1
    first.assert_observed()
    with Counted() as second:
        assert compiled(x, y) == 1
    second.assert_hit()


def test_what_dies_with_the_outermost_frame_ends_the_trace_if_somebody_listens():
    import weakref

    from tests.counting import Counted

    class Thing:
        pass

    log = []

    def program(x):
        thing = Thing()
        program.watch = weakref.ref(thing, lambda ref: log.append("gone"))
        return x + 1

    compiled = torch.compile(program, backend="magpy")
    with Counted() as counted:
        for i in range(3):
            compiled(torch.ones(2))
            assert log == ["gone"] * (i + 1)
    assert counted.traces == 0 and counted.fallbacks
