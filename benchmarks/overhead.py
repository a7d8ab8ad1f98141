"""Call overhead: what a call costs beside its graph: magpy with dry_run, Dynamo with a backend that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measure import interleaved, ratio
from benchmarks.proof import proven
from benchmarks.zoo import _tokens, bert_config


def no_op(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """A Dynamo backend that runs the graph once and then answers with those tensors."""
    answer: list[Any] = []

    def run(*args: Any) -> Any:
        if not answer:
            answer.append(graph(*args))
        return answer[0]

    return run


def programs() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """One tensor; 100 modules; a 12-layer BERT."""
    from transformers import BertModel

    hundred = nn.Sequential(*[nn.Linear(4, 4) for _ in range(100)]).eval()
    bert = BertModel(bert_config("small", layers=12)).eval()
    return {
        "one tensor": (lambda x: x + 1, (torch.randn(4),), {}),
        "100 Linear": (hundred, (torch.randn(2, 4),), {}),
        "BERT-12": (bert, (), _tokens(1, 8)),
    }


TARGETS = {"one tensor": 1 / 6, "100 Linear": 1 / 15, "BERT-12": 1 / 15}


def run(rounds: int = 15) -> dict[str, Any]:
    """Microseconds per call of both and magpy's fraction of Dynamo's, per program."""
    torch.set_num_threads(1)
    table = {}
    for name, (program, args, kwargs) in programs().items():
        torch.compiler.reset()
        compiled = {
            "dynamo": torch.compile(program, backend=no_op),
            "magpy": torch.compile(program, backend="magpy", options={"dry_run": True}),
        }
        with torch.no_grad():
            calls = {k: (lambda c=c, a=args, kw=kwargs: c(*a, **kw)) for k, c in compiled.items()}
            for call in calls.values():
                for _ in range(3):
                    call()
            proven(calls["magpy"], need_kernels=False)
            samples = interleaved(calls, rounds, 0.05)
            proven(calls["magpy"], need_kernels=False)
        table[name] = {
            "dynamo_us": min(samples["dynamo"]) * 1e6,
            "magpy_us": min(samples["magpy"]) * 1e6,
            "fraction": ratio(samples, "magpy", "dynamo"),
            "target": TARGETS[name],
        }
    return table
