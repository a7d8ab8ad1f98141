"""torch's global modes: each change is seen, and gone when it is undone; what cannot be traced is said."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from magpy import _C


@contextlib.contextmanager
def setting(get, put, value) -> Iterator[None]:
    old = get()
    put(value)
    try:
        yield
    finally:
        put(old)


@contextlib.contextmanager
def function_disabled() -> Iterator[None]:
    with torch._C.DisableTorchFunction():
        yield


@contextlib.contextmanager
def flush_denormal() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def deterministic(warn_only: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def forward_ad() -> Iterator[None]:
    with torch.autograd.forward_ad.dual_level():
        yield


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast_cpu": lambda: torch.autocast("cpu"),
    "autocast_float16": lambda: setting(
        lambda: torch.get_autocast_dtype("cpu"), lambda d: torch.set_autocast_dtype("cpu", d), torch.float16
    ),
    "autocast_cuda": lambda: setting(
        lambda: torch.is_autocast_enabled("cuda"), lambda b: torch.set_autocast_enabled("cuda", b), True
    ),
    "autocast_cache": lambda: setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, False),
    "default_dtype": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default_device": lambda: torch.device("meta"),
    "deterministic": lambda: deterministic(False),
    "deterministic_warn": lambda: deterministic(True),
    "mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False),
    "flash": lambda: setting(torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash, False),
    "math": lambda: setting(torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math, False),
    "matmul_precision": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "anomaly": torch.autograd.detect_anomaly,
    "saved_tensor_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(identity, identity),
    "function_mode": torch.overrides.BaseTorchFunctionMode,
    "function_disabled": function_disabled,
    "dispatch_mode": torch.utils._python_dispatch.TorchDispatchMode,
    "flush_denormal": flush_denormal,
    "forward_ad": forward_ad,
}
UNTRACEABLE = {
    "default_device",
    "anomaly",
    "saved_tensor_hooks",
    "function_mode",
    "function_disabled",
    "dispatch_mode",
    "forward_ad",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODES)
def test_a_mode_is_seen_while_it_is_on(name: str) -> None:
    snapshot = _C._torch_state_read()
    assert _C._torch_state_same(snapshot) is None
    with MODES[name]():
        assert _C._torch_state_same(snapshot) is not None
        inside = _C._torch_state_read()
        assert _C._torch_state_same(inside) is None
        assert (_C._torch_state_traceable() is not None) == (name in UNTRACEABLE)
    if name != "matmul_precision":  # torch's own setter does not put back what was there before the first call
        assert _C._torch_state_same(snapshot) is None
    assert _C._torch_state_traceable() is None
    assert _C._torch_state_same(inside) is not None


def test_transforms_and_jit_tracing_are_not_traceable() -> None:
    snapshot, seen = _C._torch_state_read(), []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append((_C._torch_state_same(snapshot), _C._torch_state_traceable()))
        return x * 2

    torch.func.vmap(watch)(torch.ones(3))
    torch.func.grad(lambda x: watch(x).sum())(torch.ones(3))
    torch.jit.trace(watch, torch.ones(3), check_trace=False)
    assert len(seen) == 3
    for same, why in seen:
        assert same and why


def test_every_mode_is_read_without_calling_python() -> None:
    slow = [name for name, (_, direct) in _C._torch_state().items() if not direct]
    assert slow == []
