"""One case: eager twice, then compiled, and the outcome. Runs in the case's own process.

Each of the three makes the module under one seed and calls it three times: twice on the same inputs, then on others.
Modules are in eval mode and gradients are off, as in ParityBench.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch

from tests.paritybench.snapshots import Different, compare, random_state, seed, snapshot

SEED = 1337
CALLS = (0, 0, 1)  # what is added to the seed of each call's inputs
Case = tuple[Any, Callable[[], Any], Callable[[], Any], Any]
Left = tuple[Any, ...]  # what one call left behind


def run_case(case: Case, backend: str) -> dict[str, Any]:
    """{"outcome": skip, graph, fallback, miss, wrong or error, "reason": text}."""
    warnings.simplefilter("ignore")
    with torch.no_grad():
        try:
            expected = run_calls(case, lambda model: model)
            again = run_calls(case, lambda model: model)
        except Exception as error:
            return {"outcome": "skip", "reason": f"eager: {describe(error)}"}
        try:
            compare_calls(again, expected)
        except Different as difference:
            return {"outcome": "skip", "reason": f"eager is not deterministic: {difference}"}
        probe = MagpyProbe() if backend == "magpy" else DynamoProbe(backend)
        try:
            actual = run_calls(case, probe.compile, probe.after_call)
        except Exception as error:
            return probe.failed(error)
        try:
            compare_calls(actual, expected)
        except Different as difference:
            return {"outcome": "wrong", "reason": str(difference)}
        return probe.outcome()


def run_calls(
    case: Case, compile_: Callable[[Any], Any], after: Callable[[], None] = lambda: None
) -> tuple[list[Left], Left]:
    """What each call left behind (result and arguments as one, which shows what they share; random state), and
    the module as the last call left it."""
    make, init_inputs, call_inputs, _ = case
    seed(SEED)
    args, kwargs = init_inputs()
    model = make(*args, **kwargs)
    if isinstance(model, torch.nn.Module):
        model.eval()
    attributes = set(getattr(model, "__dict__", ()))
    compiled = compile_(model)
    added = set(getattr(model, "__dict__", ())) - attributes  # by torch.compile, before any call
    left: list[Left] = []
    for offset in CALLS:
        seed(SEED + offset)
        args, kwargs = call_inputs()
        result = compiled(*args, **kwargs)
        state = random_state()
        after()
        left.append((snapshot((result, args, kwargs)), state))
    kind, name, *rest = snapshot(model)
    if kind == "object":
        rest = [tuple(entry for entry in rest[0] if entry[0] not in added)]
    return left, (kind, name, *rest)


def compare_calls(actual: tuple[list[Left], Left], expected: tuple[list[Left], Left]) -> None:
    for i, (a, e) in enumerate(zip(actual[0], expected[0], strict=True), 1):
        for what, part, reference in zip(("result", "args", "kwargs"), a[0][2], e[0][2], strict=True):
            compare(part, reference, f"call {i}: {what}")
        if a[1] != e[1]:
            raise Different(f"call {i}: random state")
    compare(actual[1], expected[1], "module")


def describe(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


class MagpyProbe:
    """Reads magpy's counters after each call, and its log for the reason of a fallback."""

    def __init__(self) -> None:
        import magpy

        self.stats = magpy.stats
        self.after: list[dict[str, Any]] = []
        self.messages: list[str] = []
        magpy.reset()
        logger = logging.getLogger("magpy")
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: self.messages.append(record.getMessage())  # type: ignore[method-assign]
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def compile(self, model: Any) -> Any:
        return torch.compile(model, backend="magpy")

    def after_call(self) -> None:
        self.after.append(self.stats())

    def failed(self, error: Exception) -> dict[str, Any]:
        return {"outcome": "error", "reason": describe(error)}

    def outcome(self) -> dict[str, Any]:
        first, *_, last = self.after
        if last["fallbacks"] or not first["traces"]:
            told = [message for message in self.messages if message.startswith("not compiled")]
            reason = told[0] if told else f"fallback: {', '.join(last['fallbacks']) or 'nothing was traced'}"
            return {"outcome": "fallback", "reason": reason.removeprefix("not compiled: ")}
        for i, (before, now) in enumerate(zip(self.after, self.after[1:], strict=False), 2):
            if now["hits"] <= before["hits"] or now["misses"] > before["misses"]:
                return {"outcome": "miss", "reason": f"call {i} was not a hit"}
        return {"outcome": "graph", "reason": ""}


class DynamoProbe:
    """A complete graph by Dynamo, `fullgraph=True`. The backend "dynamo" runs its graphs as they are."""

    def __init__(self, backend: str) -> None:
        import torch._dynamo.utils

        self.backend = "eager" if backend == "dynamo" else backend
        self.counters = torch._dynamo.utils.counters
        self.graphs: list[int] = []

    def compile(self, model: Any) -> Any:
        return torch.compile(model, backend=self.backend, fullgraph=True)

    def after_call(self) -> None:
        self.graphs.append(self.counters["stats"]["unique_graphs"])

    def failed(self, error: Exception) -> dict[str, Any]:
        refused = type(error).__module__.startswith("torch._dynamo")
        return {"outcome": "fallback" if refused else "error", "reason": describe(error)}

    def outcome(self) -> dict[str, Any]:
        if self.graphs[-1] != self.graphs[0]:
            return {"outcome": "miss", "reason": "compiled again"}
        return {"outcome": "graph", "reason": ""}


def summary_key(reason: str) -> str:
    """A reason without its place and numbers, to count by."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r" \([^()]*:\d+\)$", "", reason))[:110]
