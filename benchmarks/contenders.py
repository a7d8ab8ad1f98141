"""What a model is compared with: each contender turns a model and its arguments into a call without arguments.

Every call runs under torch.no_grad and answers in the contender's own form. What is not installed or cannot take the
model raises Unavailable with the reason; nothing is left out silently.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.cases import Built

Call = Callable[[], Any]


class Unavailable(RuntimeError):
    """A contender that is not installed, or that cannot take a model."""


class TensorsOnly(nn.Module):
    """A model as exporters want it: tensors in by position, a tuple of tensors out."""

    def __init__(self, built: Built) -> None:
        super().__init__()
        self.model = built.model
        leaves, self.spec = pytree.tree_flatten((built.args, built.kwargs))
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors = tuple(leaves[i] for i in self.places)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        out = self.model(*args, **kwargs)
        return tuple(leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed") from error


def _compiled(built: Built, **how: Any) -> Call:
    return functools.partial(torch.compile(built.model, **how), *built.args, **built.kwargs)


def eager(built: Built, threads: int) -> Call:
    """PyTorch as it is."""
    return lambda: built.model(*built.args, **built.kwargs)


def inductor(built: Built, threads: int) -> Call:
    """torch.compile's default."""
    return _compiled(built)


def inductor_freezing(built: Built, threads: int) -> Call:
    """Inductor with weights as constants: packed and folded."""
    return _compiled(built, options={"freezing": True})


def inductor_max_autotune(built: Built, threads: int) -> Call:
    """Inductor choosing among its templates by measurement."""
    return _compiled(built, mode="max-autotune")


def magpy(built: Built, threads: int) -> Call:
    """magpy's default: no weight is ever copied."""
    return _compiled(built, backend="magpy")


def magpy_freezing(built: Built, threads: int) -> Call:
    """magpy with weights packed and folded, guarded by identity and version."""
    return _compiled(built, backend="magpy", options={"freezing": True})


def onnxruntime(built: Built, threads: int) -> Call:
    """ONNX Runtime's CPU provider on torch.onnx's export; inputs are converted beforehand."""
    ort = _installed("onnxruntime")
    _installed("onnx")
    model = TensorsOnly(built)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        names = [f"x{i}" for i in range(len(model.tensors))]
        torch.onnx.export(model, model.tensors, path, input_names=names, dynamo=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    feeds = {name: tensor.numpy() for name, tensor in zip(names, model.tensors, strict=True) if name in wanted}
    return lambda: session.run(None, feeds)


def openvino(built: Built, threads: int) -> Call:
    """OpenVINO's CPU plugin on its own conversion, asked for latency and for the model's own precision."""
    ov = _installed("openvino")
    model = TensorsOnly(built)
    converted = ov.convert_model(model, example_input=model.tensors)
    dtypes = {t.dtype for t in built.model.parameters()}
    how = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if torch.bfloat16 in dtypes else "f32",
    }
    request = ov.Core().compile_model(converted, "CPU", how).create_infer_request()
    if any(t.dtype == torch.bfloat16 for t in model.tensors):
        raise Unavailable("bfloat16 inputs have no numpy form")
    feeds = [t.numpy() for t in model.tensors]
    return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)


CONTENDERS: dict[str, Callable[[Built, int], Call]] = {
    "eager": eager,
    "inductor": inductor,
    "inductor_freezing": inductor_freezing,
    "inductor_max_autotune": inductor_max_autotune,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "magpy": magpy,
    "magpy_freezing": magpy_freezing,
}


def prepared(name: str, built: Built, threads: int) -> Call:
    """A warmed-up call of the contender `name`. Raises Unavailable, with the error's first line where it failed."""
    try:
        call = CONTENDERS[name](built, threads)
        for _ in range(3):
            call()
    except Unavailable:
        raise
    except Exception as error:  # whatever a foreign exporter or compiler raises on this model
        raise Unavailable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return call
