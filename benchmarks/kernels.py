"""Single operators and small patterns: magpy against eager and Inductor, one thread, interleaved in one process.

The row of a case says which tiers its plan has: what is timed as a kernel is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import limits
from benchmarks.steady import row


@dataclass(frozen=True)
class Case:
    """A function and the arguments it is called with."""

    fn: Callable[..., Any]
    make: Callable[[], tuple[torch.Tensor, ...]]


def _floats(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: tuple(torch.randn(shape).to(dtype) for shape in shapes)


def _with_indices(
    shape: tuple[int, ...], high: int, indices: tuple[int, ...]
) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randn(shape), torch.randint(0, high, indices))


def _tiny_chain(x: torch.Tensor) -> torch.Tensor:
    """Reductions that need each other: many kernels of a few elements."""
    for _ in range(8):
        x = x * torch.softmax(x, 0) + x.sum(1, keepdim=True).relu()
    return x


def _log_softmax_nll(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.nll_loss(F.log_softmax(x, -1), target)


def _pool_block(x: torch.Tensor) -> torch.Tensor:
    return F.relu(F.max_pool2d(x, 3, 2, 1))


B = torch.bfloat16
CASES: dict[str, Case] = {
    "chain": Case(
        lambda x, y: torch.tanh(x) * torch.sigmoid(y) + torch.exp(-x * x), _floats((1024, 1024), (1024, 1024))
    ),
    "chain_bf16": Case(
        lambda x, y: torch.tanh(x) * torch.sigmoid(y) + torch.exp(-x * x), _floats((1024, 1024), (1024, 1024), dtype=B)
    ),
    "sin_cos": Case(lambda x: x.sin() * x.cos(), _floats((100_000,))),
    "fmod": Case(torch.fmod, _floats((100_000,), (100_000,))),
    "remainder": Case(lambda x, y: torch.remainder(x, y), _floats((100_000,), (100_000,))),
    "shifts": Case(lambda i: (i << 2) ^ (i >> 3), lambda: (torch.randint(0, 1000, (100_000,)),)),
    "to_half": Case(lambda x: x.half(), _floats((100_000,))),
    "gelu": Case(F.gelu, _floats((128, 3072))),
    "where": Case(
        lambda x, y: torch.where(x > y, x * 2, y.masked_fill(y < 0, 0.5)), _floats((1024, 1024), (1024, 1024))
    ),
    "softmax_64": Case(lambda x: F.softmax(x, -1), _floats((96, 64, 64))),
    "softmax_100": Case(lambda x: F.softmax(x, -1), _floats((1000, 100))),
    "log_softmax_100": Case(lambda x: F.log_softmax(x, -1), _floats((1000, 100))),
    "softmax_turned": Case(lambda x: F.softmax(x.t(), -1), _floats((128, 768))),
    "softmax_1024": Case(lambda x: F.softmax(x, -1), _floats((512, 1024))),
    "softmax_32k": Case(lambda x: F.softmax(x, -1), _floats((32, 32768))),
    "softmax_bf16": Case(lambda x: F.softmax(x, -1), _floats((512, 1024), dtype=B)),
    "softmax_outer": Case(lambda x: F.softmax(x, 1), _floats((8, 64, 1024))),
    "log_softmax_nll": Case(_log_softmax_nll, lambda: (torch.randn(256, 8192), torch.randint(0, 8192, (256,)))),
    "layer_norm": Case(lambda x, w, b: F.layer_norm(x, (768,), w, b), _floats((512, 768), (768,), (768,))),
    "layer_norm_bf16": Case(
        lambda x, w, b: F.layer_norm(x, (768,), w, b), _floats((512, 768), (768,), (768,), dtype=B)
    ),
    "group_norm": Case(lambda x, w, b: F.group_norm(x, 32, w, b), _floats((2, 128, 56, 56), (128,), (128,))),
    "group_norm_7x7": Case(lambda x, w, b: F.group_norm(x, 8, w, b), _floats((4, 512, 7, 7), (512,), (512,))),
    "squeeze_excite_7x7": Case(lambda x, s: x * torch.sigmoid(s), _floats((4, 512, 7, 7), (4, 512, 1, 1))),
    "batch_norm_train": Case(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True), _floats((8, 64, 56, 56), (64,), (64,))
    ),
    "var": Case(lambda x: x.var(-1), _floats((512, 2048))),
    "std_outer": Case(lambda x: x.std(0), _floats((512, 2048))),
    "sum_inner": Case(lambda x: x.sum(-1), _floats((1024, 1024))),
    "sum_outer": Case(lambda x: x.sum(0), _floats((1024, 1024))),
    "sum_all": Case(lambda x: x.sum(), _floats((1024, 1024))),
    "sum_middle": Case(lambda x: x.sum(1), _floats((16, 256, 256))),
    "amax_bf16": Case(lambda x: x.amax(-1), _floats((1024, 1024), dtype=B)),
    "transpose": Case(lambda x: x.t().contiguous(), _floats((2048, 2048))),
    "transpose_add": Case(lambda x, y: x.t() + y, _floats((1024, 1024), (1024, 1024))),
    "to_channels_last": Case(lambda x: x.permute(0, 2, 3, 1).contiguous() * 2, _floats((4, 64, 56, 56))),
    "patches": Case(lambda x: x.flatten(2).transpose(1, 2) + 1, _floats((4, 384, 14, 14))),
    "heads": Case(lambda x: x.view(8, 128, 12, 64).transpose(1, 2).contiguous(), _floats((8, 128, 768))),
    "transpose_bf16": Case(lambda x: x.t().contiguous(), _floats((2048, 2048), dtype=B)),
    "cat_channels": Case(
        lambda x, y, z: torch.cat([x, F.relu(y), z * 2], 1), _floats((4, 64, 28, 28), (4, 32, 28, 28), (4, 96, 28, 28))
    ),
    "cat_many": Case(lambda *xs: F.relu(torch.cat(xs, 1)), _floats(*[(4, 32, 14, 14)] * 12)),
    "cat_last": Case(lambda x, y: torch.cat([x, y], -1), _floats((1024, 256), (1024, 512))),
    "cat_first": Case(lambda x, y: torch.cat([x, y], 0), _floats((128, 768), (128, 768))),
    "reflect": Case(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), _floats((1, 32, 56, 56))),
    "embedding": Case(lambda w, i: F.embedding(i, w), _with_indices((30000, 768), 30000, (8, 128))),
    "embedding_sum": Case(
        lambda w, i, p: F.layer_norm(F.embedding(i, w) + p, (768,)),
        lambda: (torch.randn(30000, 768), torch.randint(0, 30000, (8, 128)), torch.randn(128, 768)),
    ),
    "index_select": Case(lambda x, i: x.index_select(1, i), _with_indices((256, 1024), 1024, (512,))),
    "gather": Case(lambda x, i: x.gather(1, i), _with_indices((512, 1024), 1024, (512, 256))),
    "index_select_rows": Case(lambda x, i: x.index_select(1, i), _with_indices((10_000, 1000), 1000, (500,))),
    "gather_short": Case(lambda x, i: x.gather(1, i), _with_indices((3125, 32), 32, (3125, 17))),
    "index": Case(lambda x, i: x[i] * 2, _with_indices((4096, 64), 4096, (8192,))),
    "argmax": Case(lambda x: x.argmax(-1), _floats((1024, 1024))),
    "argmax_outer": Case(lambda x: x.argmax(0), _floats((1024, 1024))),
    "max_indices": Case(lambda x: x.max(-1), _floats((1024, 1024))),
    "cumsum": Case(lambda x: x.cumsum(-1), _floats((1024, 1024))),
    "cumsum_outer": Case(lambda x: x.cumsum(0), _floats((1024, 1024))),
    "flip": Case(lambda x: x.flip(-1) + x, _floats((1024, 1024))),
    "roll": Case(lambda x: x.roll((3, 3), (1, 2)) * 2, _floats((4, 56, 56, 96))),
    "one_hot": Case(lambda i: F.one_hot(i, 1000).float() * 0.9, lambda: (torch.randint(0, 1000, (256,)),)),
    "max_pool": Case(_pool_block, _floats((4, 64, 56, 56))),
    "avg_pool": Case(lambda x: F.avg_pool2d(x, 2), _floats((4, 64, 56, 56))),
    "adaptive_pool": Case(lambda x: F.adaptive_avg_pool2d(x, 1), _floats((4, 512, 7, 7))),
    "nearest": Case(lambda x: F.interpolate(x, scale_factor=2.0), _floats((2, 64, 28, 28))),
    "bilinear": Case(
        lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False), _floats((2, 64, 28, 28))
    ),
    "tiny_chain": Case(_tiny_chain, _floats((8, 8))),
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The row of a case: milliseconds, "vs_X": how many times faster magpy is than X, and the tiers of its plan."""
    import magpy
    import magpy.backend  # noqa: F401  (imports are not timed)

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.reset()
    torch.manual_seed(0)
    case = CASES[name]
    arguments = case.make()
    functions = {
        "eager": case.fn,
        "inductor": torch.compile(case.fn),
        "magpy": torch.compile(case.fn, backend="magpy", fullgraph=True),
    }
    with torch.no_grad():
        calls = {k: (lambda f=f, a=arguments: f(*a)) for k, f in functions.items()}
        for call in calls.values():
            for _ in range(3):
                call()
        figures = row(calls, rounds, need_kernels=False)
        kernels = limits.shares(functions["magpy"], calls["magpy"], 1)
    tiers = magpy.explain(functions["magpy"]).traces[0].tiers
    shown = {"least_share": limits.least(kernels), "kernels": kernels}
    return {"model": name, **figures, **shown, "tiers": " ".join(f"{n} {tier}" for tier, n in sorted(tiers.items()))}
