"""Training: whole steps (forward, loss, backward, optimizer) against eager and Inductor, interleaved."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.child import measured
from benchmarks.steady import row
from benchmarks.zoo import BasicBlock, ResNet


def mlp() -> tuple[nn.Module, torch.Tensor, int]:
    """Three hidden layers with BatchNorm and dropout, batch 64."""
    layers: list[nn.Module] = []
    for width in (256, 512, 512):
        layers += [nn.Linear(width, 512), nn.BatchNorm1d(512), nn.GELU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(64, 256), 10


def small_resnet() -> tuple[nn.Module, torch.Tensor, int]:
    """Two stages of two basic blocks, images of 32 x 32, batch 16."""
    return ResNet(BasicBlock, [2, 2], 32, 10), torch.randn(16, 3, 32, 32), 10


class BertClassifier(nn.Module):
    """Hugging Face's BERT with a linear head on the pooled output."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=5000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
        )
        self.bert = BertModel(config)
        self.head = nn.Linear(256, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.bert(input_ids=ids).pooler_output)


def bert() -> tuple[nn.Module, torch.Tensor, int]:
    """Four layers of width 256 with dropout, 64 tokens, batch 8."""
    return BertClassifier(), torch.randint(2, 5000, (8, 64)), 10


CASES: dict[str, Callable[[], tuple[nn.Module, torch.Tensor, int]]] = {
    "mlp": mlp,
    "small_resnet": small_resnet,
    "bert": bert,
}

CONTENDERS: dict[str, dict[str, Any] | None] = {"eager": None, "inductor": {}, "magpy": {"backend": "magpy"}}
"""What torch.compile is asked for; None for no compiling."""


def _step(model: nn.Module, call: Callable, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, foreach=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(call(x), y).backward()
        optimizer.step()

    return step


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """The row of `name`: milliseconds of a step, and "vs_X": how many times faster magpy's is. Raises NotCompiled."""
    import magpy.backend  # noqa: F401  (imports are not timed)

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, x, classes = CASES[name]()
    model.train()
    y = torch.randint(0, classes, (x.shape[0],))
    calls = {}
    for contender, how in CONTENDERS.items():
        own = copy.deepcopy(model)
        calls[contender] = _step(own, own if how is None else torch.compile(own, **how), x, y)
    for call in calls.values():
        for _ in range(3):
            call()
    return {"model": name, "group": "training", "threads": threads, **row(calls, rounds)}


def in_process(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own. RuntimeError with the end of what it printed where it failed."""
    return measured("benchmarks.training", name, str(threads), str(rounds), OMP_NUM_THREADS=str(threads))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
