"""Training: whole steps (forward, loss, backward, optimizer) against eager and Inductor, one thread, interleaved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.steady import compared, summary
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


def _step(model: nn.Module, call: Callable, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, foreach=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(call(x), y).backward()
        optimizer.step()

    return step


def run(names: list[str] | None = None, rounds: int = 15) -> dict[str, Any]:
    """Speeds of training steps relative to eager and Inductor per model, and their geometric means."""
    import magpy.backend  # noqa: F401  (imports are not timed)

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table: dict[str, dict[str, float]] = {}
    for name in [n for n in names or list(CASES) if n in CASES]:
        torch.manual_seed(0)
        model, x, classes = CASES[name]()
        model.train()
        y = torch.randint(0, classes, (x.shape[0],))
        torch.compiler.reset()
        models = {"eager": model, "inductor": copy.deepcopy(model), "magpy": copy.deepcopy(model)}
        compiled = {
            "eager": models["eager"],
            "inductor": torch.compile(models["inductor"]),
            "magpy": torch.compile(models["magpy"], backend="magpy"),
        }
        calls = {k: _step(models[k], compiled[k], x, y) for k in models}
        table[name] = compared(name, calls, rounds)
    if not table:
        return {"models": {}}
    return summary(table)
