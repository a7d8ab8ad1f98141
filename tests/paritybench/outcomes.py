"""One case: eager twice, then compiled, and the outcome. Runs in the case's own process.

Each of the three makes the module under one seed and calls it five times: twice on the same inputs, on others, and on
both again. The first call is observed; the second and third must hit, unless data that the program looks at sends it
another way, which takes an observation of its own; the last two show that what was observed serves.

Modes: "inference" has modules in eval mode and gradients off, as in ParityBench. "gradients" has gradients on, and each
call is followed by a backward pass, whose gradients of the parameters are compared; "training" does so with modules in
training mode.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tests.paritybench.snapshots import Different, compare, random_state, seed, snapshot

SEED = 1337
# By how many last bits weights are nudged to see what rounding does. Sums of many terms are off by more than one.
NUDGES = (8, 8, 8, 8, 32, 32, 32, 32)
NEAR = 1e-2  # results in float64 are the same ones
CALLS = (0, 0, 1, 0, 1)  # what is added to the seed of each call's inputs
MODES = ("inference", "gradients", "training")
# graph: one graph. tree: one for each way that data sent the program. again: further observations for another reason,
# then hits. miss: the last calls were still observed.
OUTCOMES = ("graph", "tree", "again", "miss", "fallback", "wrong", "error")  # worst last
COMPLETE = ("graph", "tree")
Case = tuple[Any, Callable[[], Any], Callable[[], Any], Any]
Left = tuple[Any, ...]  # what one call left behind
Run = tuple[list[Left], Left]  # of all calls, and the module


def run_case(case: Case, backend: str, mode: str = "inference", seconds: float = 1e9) -> dict[str, Any]:
    """{"outcome": skip or one of OUTCOMES, "reason": text}. seconds: for the calls by eager; more are a skip."""
    warnings.simplefilter("ignore")
    with torch.set_grad_enabled(mode != "inference"):
        try:
            with at_most(seconds):
                expected = run_calls(case, mode, lambda model: model)
                again = run_calls(case, mode, lambda model: model)
        except Exception as error:
            return {"outcome": "skip", "reason": f"eager: {describe(error)}"}
        try:
            compare_calls(again, expected)
        except Different as difference:
            return {"outcome": "skip", "reason": f"eager is not deterministic: {difference}"}
        probe = MagpyProbe() if backend == "magpy" else DynamoProbe(backend)
        try:
            actual = run_calls(case, mode, probe.compile, probe.after_call)
        except Exception as error:
            return probe.failed(error)
        try:
            compare_but_for_rounding(case, mode, actual, expected)
        except Different as difference:
            return {"outcome": "wrong", "reason": str(difference)}
        return probe.outcome()


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after so many seconds."""

    def stop(signal_number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_calls(case: Case, mode: str, compile_: Callable[[Any], Any], after: Callable[[], None] = lambda: None) -> Run:
    """What each call left behind (result, arguments and gradients as one, which shows what they share; random state),
    and the module as the last call left it."""
    make, init_inputs, call_inputs, _ = case
    seed(SEED)
    args, kwargs = init_inputs()
    model = make(*args, **kwargs)
    if isinstance(model, torch.nn.Module):
        model.train(mode == "training")
    compiled = compile_(model)
    left: list[Left] = []
    for offset in CALLS:
        seed(SEED + offset)
        args, kwargs = call_inputs()
        result = compiled(*args, **kwargs)
        state = random_state()
        gradients = [] if mode == "inference" else backward(model, result)
        after()
        left.append((snapshot((result, args, kwargs, gradients)), state))
    return left, snapshot(model)


def backward(model: Any, result: Any) -> list[torch.Tensor | None]:
    """Differentiate a number that depends on all of `result`. Its parameters' gradients, then cleared."""
    if not isinstance(model, torch.nn.Module):
        return []
    total: Any = 0
    for tensor in tensors_in(result, set()):
        if tensor.requires_grad and tensor.layout == torch.strided:
            weight = torch.linspace(0.5, 1.5, tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
            total = total + (tensor.abs() if tensor.is_complex() else tensor).double().mul(weight).sum()
    if isinstance(total, torch.Tensor) and total.requires_grad:
        total.backward()
    gradients = []
    for parameter in model.parameters():
        gradients.append(parameter.grad)
        parameter.grad = None
    return gradients


def tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, seen)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()), seen)


def compare_but_for_rounding(case: Case, mode: str, actual: Run, expected: Run) -> None:
    """Raise Different unless both runs left the same behind, or differ as eager does with other rounding errors: sums
    that cancel, batch norm over few elements and maxima make much of them."""
    rounded: list[Run] = []
    others = rounded_otherwise(case, mode)
    while True:
        try:
            return compare_calls(actual, expected, rounded)
        except Different:
            if not (run := next(others, None)):
                raise
            rounded.append(run)


def rounded_otherwise(case: Case, mode: str) -> Iterator[Run]:
    """Runs by eager with other rounding errors: of weights that are off by some last bits, with hardly any (its own may
    be the same in every run), and by other routines, which take long."""
    for number, last_bits in enumerate(NUDGES):
        generator = torch.Generator().manual_seed(number)

        def nudged(model: Any, generator: torch.Generator = generator, last_bits: int = last_bits) -> Any:
            with torch.no_grad():
                for weight in model.parameters() if isinstance(model, torch.nn.Module) else ():
                    if weight.is_floating_point():
                        off = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5
                        weight.mul_(1 + last_bits * torch.finfo(weight.dtype).eps * off)
            return model

        yield run_calls(case, mode, nudged)
    if exact := in_float64(case, mode):
        yield exact
    with torch.backends.mkldnn.flags(enabled=False):
        yield run_calls(case, mode, lambda model: model)


def in_float64(case: Case, mode: str) -> Run | None:
    """A run by eager in float64. None if the program does not work so, or draws other random numbers there: what it
    gives is another thing then."""
    make, init_inputs, call_inputs, name = case

    def doubled() -> Any:
        return double(call_inputs())

    try:
        single = run_calls(case, mode, lambda model: model)
        run = run_calls((make, init_inputs, doubled, name), mode, lambda model: model.double())
        for one, other in zip(run[0], single[0], strict=True):
            for a, b in zip(values_in(one[0][2][0]), values_in(other[0][2][0]), strict=True):
                if not torch.allclose(a.double(), b.double(), rtol=NEAR, atol=NEAR * float(b.abs().max())):
                    return None
        return run
    except Exception:
        return None


def double(value: Any) -> Any:
    """Tensors of plain containers in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(map(double, value))
    return {key: double(item) for key, item in value.items()} if type(value) is dict else value


def values_in(left: Any) -> Iterator[torch.Tensor]:
    """The tensors in a snapshot."""
    if isinstance(left, torch.Tensor):
        yield left
    elif isinstance(left, tuple):
        for item in left:
            yield from values_in(item)


def compare_calls(actual: Run, expected: Run, rounded: Sequence[Run] = ()) -> None:
    """Raise Different unless both runs left the same behind; `rounded` as in `compare`."""
    for i, (a, e) in enumerate(zip(actual[0], expected[0], strict=True)):
        for j, what in enumerate(("result", "args", "kwargs", "gradients")):
            near = [run[0][i][0][2][j] for run in rounded]
            compare(a[0][2][j], e[0][2][j], f"call {i + 1}: {what}", near)
        if a[1] != e[1]:
            raise Different(f"call {i + 1}: random state")
    compare(actual[1], expected[1], "module", [run[1] for run in rounded])


def describe(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


class MagpyProbe:
    """Reads magpy's counters after each call, and its log for the reason of a fallback."""

    def __init__(self) -> None:
        import magpy
        from magpy.report import find_callable

        self.stats, self.find_callable = magpy.stats, find_callable
        self.compiled: Any = None
        self.after: list[tuple[dict[str, Any], str | None]] = []  # counters, and the guard that failed last
        self.checks = False
        self.messages: list[str] = []
        magpy.reset()
        logger = logging.getLogger("magpy")
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: self.messages.append(record.getMessage())  # type: ignore[method-assign]
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def compile(self, model: Any) -> Any:
        self.compiled = self.find_callable(compiled := torch.compile(model, backend="magpy"))
        return compiled

    def after_call(self) -> None:
        state = self.compiled.describe() if self.compiled else {"traces": [], "last_miss": None}
        self.checks |= any(trace["checks"] for trace in state["traces"])
        self.after.append((self.stats(), state["last_miss"]))

    def failed(self, error: Exception) -> dict[str, Any]:
        return {"outcome": "error", "reason": describe(error)}

    def outcome(self) -> dict[str, Any]:
        first, last = self.after[0][0], self.after[-1][0]
        if last["fallbacks"] or not first["traces"]:
            told = [message for message in self.messages if message.startswith("not compiled")]
            reason = told[0] if told else f"fallback: {', '.join(last['fallbacks']) or 'nothing was traced'}"
            return {"outcome": "fallback", "reason": reason.removeprefix("not compiled: ")}
        missed = {}
        for i, ((before, guard), (now, failed)) in enumerate(zip(self.after, self.after[1:], strict=False), 2):
            if now["hits"] <= before["hits"] or now["misses"] > before["misses"]:
                missed[i] = "other data" if failed is guard else failed
        reason = "; ".join(f"call {i} was observed: {why}" for i, why in missed.items())
        if missed and max(missed) > len(CALLS) - 2:
            return {"outcome": "miss", "reason": reason}
        if any(why != "other data" for why in missed.values()):
            return {"outcome": "again", "reason": reason}
        return {"outcome": "tree" if self.checks else "graph", "reason": reason}


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
