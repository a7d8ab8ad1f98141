"""The table of effects: every row is about something that exists, and no callable stands in two classes."""

import collections
import logging
import math
import operator
import random
import threading
import time

import pytest
import torch

from magpy import _C


def test_every_row_resolves():
    assert _C._effect_rows()["missing"] == []


def test_no_callable_has_two_classes():
    assert _C._effect_rows()["clashes"] == []


@pytest.mark.parametrize(
    ("callable_", "effect"),
    [
        (math.sqrt, "PURE"),
        ("".startswith, "PURE"),
        (str.startswith, "PURE"),
        ([].extend, "WRITES"),
        (list.extend, "WRITES"),
        (collections.OrderedDict.move_to_end, "STORES"),
        (operator.add, "PURE"),
        (operator.iadd, "COMPARES"),
        (time.time, "CLOCK"),
        (random.random, "OPAQUE"),
        (random.Random.gauss, "OPAQUE"),
        (print, "OUTPUT"),
        (logging.Logger.info, "SPECIAL"),
        (int, "SPECIAL"),
        (zip, "KEYS"),
        (map, "CALLS"),
        (threading.Lock().acquire, "SPECIAL"),
        (torch.add, "TORCH"),
        (torch.Tensor.add, "TORCH"),
        (torch.nn.functional.linear, "TORCH"),
        (torch.is_grad_enabled, "STATE"),
        (torch._C._get_tracing_state, "STATE"),
        (torch._C._get_cudnn_enabled, "STATE_CALL"),
        (torch.from_numpy, "SPECIAL"),
        (torch.frombuffer, "REFUSED"),
    ],
)
def test_class_of(callable_, effect):
    assert _C._effect_of(callable_) == effect


def test_a_method_is_found_by_its_function_not_by_its_name():
    class Mine(list):
        pass

    assert _C._effect_of(Mine().append) == _C._effect_of([].append) == "SPECIAL"


def test_unknown_callables_have_no_class():
    import _ctypes

    assert _C._effect_of(_ctypes.sizeof) is None


def test_declare_makes_a_callable_known():
    import zlib

    def f(x):
        return x + zlib.crc32(b"magpy")

    x = torch.ones(2)
    if _C._effect_of(zlib.crc32) is None:
        _, about = _C._observe(f, x)
        assert "zlib.crc32" in about["reason"]
    _C.declare(zlib.crc32, "pure")
    out, about = _C._observe(f, x)
    assert about["reason"] is None
    assert torch.equal(out, f(x))


def test_declare_refuses_nonsense():
    with pytest.raises(ValueError, match="unknown class of effects"):
        _C.declare(math.sqrt, "harmless")
    with pytest.raises(TypeError, match="is watched"):
        _C.declare(lambda: None, "pure")
    with pytest.raises(TypeError, match="not callable"):
        _C.declare(1, "pure")
