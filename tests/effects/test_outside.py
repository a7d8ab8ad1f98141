"""What programs use of the world outside: callers' frames, locks, JSON; and what others may do to a compiled model's
tensors. Each scenario runs in plain Python and compiled, and must note the same."""

from __future__ import annotations

import copy
import io
import json
import logging
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.traps.differential import Wrap, attempt, same_as_eager

log = logging.getLogger("magpy.tests.outside")
log.propagate = False


def linear(value: float = 0.3) -> nn.Linear:
    module = nn.Linear(3, 3)
    for p in module.parameters():
        nn.init.constant_(p, value)
    return module


class TestCallers:
    """Warnings and log records are of the program's lines, however deep the stack level reaches."""

    @pytest.mark.parametrize("level", [1, 2, 3, 4])
    def test_stack_level(self, level: int) -> None:
        def warned(x: torch.Tensor) -> torch.Tensor:
            warnings.warn("careful", stacklevel=level)
            log.warning("careful", stacklevel=level)
            return x * 2

        def through(x: torch.Tensor) -> torch.Tensor:
            return warned(x) + 1

        def called(function: Any) -> Any:
            return function(torch.ones(3))

        def scenario(wrap: Wrap) -> Iterator[Any]:
            function = wrap(through)
            handler = logging.StreamHandler(io.StringIO())
            handler.setFormatter(logging.Formatter("%(filename)s:%(lineno)d %(funcName)s %(message)s"))
            log.handlers = [handler]
            for _ in range(3):
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter("always")
                    result = called(function)
                yield result, [(str(w.message), w.filename, w.lineno) for w in seen], handler.stream.getvalue()

        same_as_eager(scenario, hits=2)

    def test_filters_of_the_caller_s_module(self) -> None:
        def warned(x: torch.Tensor) -> torch.Tensor:
            warnings.warn("careful", stacklevel=2)
            return x * 2

        def scenario(wrap: Wrap) -> Iterator[Any]:
            function = wrap(warned)
            for module in ("nowhere", "nowhere", __name__, "magpy"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    warnings.filterwarnings("error", module=module)
                    yield attempt(function, torch.ones(3))

        same_as_eager(scenario, min_hits=1)


class TestLocks:
    def test_condition_and_event(self) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            lock, event, condition = threading.Lock(), threading.Event(), threading.Condition()

            def program(x: torch.Tensor) -> Any:
                with lock:
                    busy = lock.locked(), lock.acquire(False)
                event.set()
                if event.is_set():
                    x = x + 1
                event.clear()
                with condition:
                    condition.notify_all()
                return x, busy

            function = wrap(program)
            for _ in range(3):
                yield function(torch.ones(3)), event.is_set(), lock.locked()

        same_as_eager(scenario, hits=2)

    def test_a_lock_of_the_caller_s(self) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            lock = threading.Lock()

            def program(x: torch.Tensor) -> Any:
                return x * 2, lock.acquire(False), lock.locked()

            function = wrap(program)
            for _ in range(3):
                yield function(torch.ones(3))
                yield function(torch.ones(3))
                lock.release()

        same_as_eager(scenario, hits=0)

    def test_released_for_the_caller(self) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            lock = threading.Lock()

            def program(x: torch.Tensor) -> Any:
                lock.release()
                y = x * 2
                lock.acquire()
                return y

            function = wrap(program)
            for _ in range(3):
                with lock:
                    yield function(torch.ones(3))

        same_as_eager(scenario, hits=0)


class TestJson:
    def test_texts(self) -> None:
        def program(x: torch.Tensor, config: str, more: dict[str, Any]) -> Any:
            read = json.loads(config)
            ordered = json.loads(config, object_pairs_hook=OrderedDict, parse_float=str)
            text = json.dumps({"a": [1, 2.5, None, True, "é"], **more}, indent=1)
            return x * read["scale"], ordered, text, json.dumps(more, default=lambda o: type(o).__name__)

        def scenario(wrap: Wrap) -> Iterator[Any]:
            function = wrap(program)
            more: dict[str, Any] = {"b": [1]}
            for scale in (2, 2, 3.5, 2, 2):
                yield function(torch.ones(3), json.dumps({"scale": scale}), more)
            more["b"].append(4)
            yield function(torch.ones(3), '{"scale": 2}', more)
            yield attempt(function, torch.ones(3), '{"scale": ', more)

        same_as_eager(scenario, min_hits=2)

    def test_hooks_are_called(self) -> None:
        seen: list[Any] = []

        def program(x: torch.Tensor) -> Any:
            json.loads('{"a": 1}', object_hook=seen.append)
            return x * 2

        def scenario(wrap: Wrap) -> Iterator[Any]:
            seen.clear()
            function = wrap(program)
            for _ in range(3):
                yield function(torch.ones(3)), list(seen)

        same_as_eager(scenario)


class TestTensorsThatOthersSwap:
    """A compiled model holds no weak references to its weights: torch does not swap tensors that have some."""

    @pytest.mark.parametrize("grad", [False, True])
    def test_swapped_weight(self, grad: bool) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            module = linear()
            function = wrap(module)
            for value in (0.7, 0.2):
                with torch.set_grad_enabled(grad):
                    for _ in range(2):
                        yield function(torch.ones(3))
                assert not weakref.getweakrefs(module.weight)
                torch.utils.swap_tensors(module.weight, nn.Parameter(torch.full((3, 3), value)))
            with torch.set_grad_enabled(grad):
                yield function(torch.ones(3))
            module.load_state_dict({"weight": torch.full((3, 3), 0.5), "bias": torch.zeros(3)}, assign=True)
            with torch.set_grad_enabled(grad):
                yield function(torch.ones(3))

        same_as_eager(scenario, hits=5)

    def test_modules_that_swap_when_converted(self) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            module = linear()
            function = wrap(module)
            torch.__future__.set_swap_module_params_on_conversion(True)
            try:
                with torch.no_grad():
                    yield function(torch.ones(3)), function(torch.ones(3))
                    module.double()
                    yield function(torch.ones(3, dtype=torch.float64)), function(torch.ones(3, dtype=torch.float64))
            finally:
                torch.__future__.set_swap_module_params_on_conversion(False)

        same_as_eager(scenario, hits=2)


class TestCopiesOfModules:
    def test_deep_copy_used_and_returned(self) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            module = nn.Sequential(linear(), nn.BatchNorm1d(3), nn.ReLU())

            def program(x: torch.Tensor) -> Any:
                copied = copy.deepcopy(module)
                stack = nn.ModuleList([copy.deepcopy(module[0]) for _ in range(2)])
                for layer in stack:
                    x = layer(x)
                return copied, copied(x)

            function = wrap(program)
            for i in range(3):
                copied, result = function(torch.arange(6.0).reshape(2, 3) * (i + 1))
                yield result, [type(m) for m in copied.modules()], copied.training, copied[0].weight is module[0].weight
                yield dict(copied.state_dict()), dict(module.state_dict())
                with torch.no_grad():
                    module[0].weight.add_(1)
                    copied[0].weight.add_(5)

        same_as_eager(scenario, hits=2)
