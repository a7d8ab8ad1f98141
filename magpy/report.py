"""Seeing inside: what magpy did with a compiled function, as an object that prints as text."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from magpy import _C
from magpy.graph_counts import counts as graph_counts


def find_callable(fn: Any) -> _C.Callable | None:
    """The C callable behind what torch.compile returned, or None if `fn` is not compiled by magpy."""
    if isinstance(fn, _C.Callable):
        return fn
    if isinstance(fn, types.MethodType):
        return find_callable(fn.__func__)
    attributes = getattr(fn, "__dict__", {})
    for name in ("_magpy_callable", "_forward", "forward", "_compiled_call_impl"):
        inner = attributes.get(name)
        if isinstance(inner, _C.Callable):
            return inner
        if name == "_compiled_call_impl" and inner is not None:
            return find_callable(inner)
    return None


def plans_of(runner: Any, info: Any) -> list[Any]:
    """What runs a trace's graphs: the plans that lowering names, or the runner itself if it is a plan."""
    plans = info.get("plans") if isinstance(info, dict) else None
    return list(plans) if plans else [runner] if hasattr(runner, "steps") else []


def steps_of(plan: Any) -> list[tuple[str, str, str]]:
    """A plan's steps as (tier, name, detail); what is no plan runs in Python, as one step."""
    if not hasattr(plan, "steps"):
        return [("python", type(plan).__name__, "the graph could not be compiled")]
    return [(tier, name, detail) for tier, name, detail in plan.steps]


def kernels_of(plan: Any) -> list[dict[str, Any]]:
    """A plan's generated kernels."""
    return list(getattr(plan, "kernels", ()))


@dataclass
class Trace:
    """One trace of a callable."""

    guards: list[str]
    checks: list[str]
    writes: list[str]
    mocks: list[str]
    mutated: list[int]
    hits: int
    inputs: int
    operators: int
    kernels: list[dict[str, Any]]
    steps: list[tuple[str, str, str]]
    info: dict[str, Any]

    @staticmethod
    def of(raw: dict[str, Any]) -> Trace:
        plans = plans_of(raw["runner"], raw["info"])
        return Trace(
            guards=raw["guards"],
            checks=raw["checks"],
            writes=raw["writes"],
            mocks=raw["mocks"],
            mutated=raw["mutated"],
            hits=raw["hits"],
            inputs=raw["inputs"],
            operators=raw["operators"],
            kernels=[kernel for plan in plans for kernel in kernels_of(plan)],
            steps=[step for plan in plans for step in steps_of(plan)],
            info=raw["info"] if isinstance(raw["info"], dict) else {},
        )

    @property
    def tiers(self) -> dict[str, int]:
        """Plan steps by tier."""
        return dict(Counter(tier for tier, *_ in self.steps))

    def lines(self) -> Iterator[str]:
        yield f"{self.operators} operators on {self.inputs} inputs, {self.hits} hits"
        yield f"  guards ({len(self.guards)}):"
        yield from (f"    {text}" for text in self.guards)
        if self.checks:
            yield f"  checks of data ({len(self.checks)}):"
            yield from (f"    {text}" for text in self.checks)
        if self.mutated:
            yield f"  inputs written in place: {', '.join(map(str, self.mutated))}"
        if self.writes:
            yield f"  writes ({len(self.writes)}):"
            yield from (f"    {text}" for text in self.writes)
        yield "  result:"
        yield from (f"    {text}" for text in self.mocks)
        if self.kernels:
            yield f"  kernels ({len(self.kernels)}):"
            for kernel in self.kernels:
                yield f"    {kernel['name']}: {', '.join(kernel['ops'])}"
                yield f"      {kernel['source_path']}"
        if self.info.get("uncompiled"):
            yield f"  not compiled, runs operator by operator: {self.info['uncompiled']}"
        if self.info.get("kept"):
            yield f"  lowered graph: {self.info['kept']}"
        if self.steps:
            yield f"  plan: {', '.join(f'{n} {tier}' for tier, n in sorted(self.tiers.items()))}"
            yield from (f"    {' '.join(str(part) for part in step if part)}" for step in self.steps)


@dataclass
class Report:
    """What magpy did with one compiled function or module; ``str()`` of it is for people."""

    name: str
    calls: int
    hits: int
    misses: int
    last_miss: str | None
    traces: list[Trace]
    fallbacks: list[dict[str, Any]]
    callees: dict[str, Report] = field(default_factory=dict)
    result: Any = None

    @property
    def guards(self) -> list[str]:
        """The guards of all traces."""
        return [text for trace in self.traces for text in trace.guards]

    def lines(self) -> Iterator[str]:
        yield f"{self.name}: {self.calls} calls, {self.hits} hits, {self.misses} misses, {len(self.traces)} traces"
        if self.last_miss:
            yield f"last miss: {self.last_miss}"
        for number, trace in enumerate(self.traces):
            first, *rest = trace.lines()
            yield f"trace {number}: {first}"
            yield from rest
        if self.fallbacks:
            yield f"fallbacks ({sum(row['count'] for row in self.fallbacks)}):"
            yield from (f"  {row['count']} x {row['reason']}: {row['text']}" for row in self.fallbacks)
        for report in self.callees.values():
            if report.traces or report.fallbacks:
                yield "called frame:"
                yield from (f"  {line}" for line in report.lines())

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _name(target: Any) -> str:
    function = getattr(target, "__func__", target)
    owner = getattr(target, "__self__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{type(owner).__name__} ({name})" if owner is not None else name


def report_of(callable_: _C.Callable, name: str | None = None) -> Report:
    """The report of a C callable as it is now."""
    raw = callable_.describe()
    return Report(
        name=name or _name(raw["target"]),
        calls=raw["calls"],
        hits=raw["hits"],
        misses=raw["misses"],
        last_miss=raw["last_miss"],
        traces=[Trace.of(trace) for trace in raw["traces"]],
        fallbacks=raw["fallbacks"],
        callees={
            f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})": report_of(
                inner, f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
            )
            for code, inner in raw["callees"].items()
        },
    )


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """Explain what magpy does with `fn`: traces, guards, writes, mocks, kernels, plan steps, fallbacks.

    `fn` is what ``torch.compile(..., backend="magpy")`` returned, or a plain function or module, which is compiled
    for the purpose. With arguments, or if `fn` was never called, ``fn(*args, **kwargs)`` is called once, really, and
    its result is the report's ``result``; without arguments a `fn` that was called before is only reported on. Raises
    what the call raises.
    """
    found = find_callable(fn)
    if found is None:
        import torch

        fn = torch.compile(fn, backend="magpy")
        found = find_callable(fn)
        if found is None:
            raise TypeError(f"{fn!r} cannot be explained: torch.compile did not give it to magpy")
    result = None
    if args or kwargs or not found.calls:
        result = fn(*args, **kwargs)
    report = report_of(found)
    report.result = result
    return report


def stats() -> dict[str, Any]:
    """Counters of this process: see ``magpy.stats``."""
    result = _C.counters()
    kernels = 0
    tiers: Counter[str] = Counter()
    for callable_ in _C.callables():
        for runner, info in callable_.runners():
            for plan in plans_of(runner, info):
                kernels += len(kernels_of(plan))
                tiers.update(step[0] for step in steps_of(plan))
    result["kernels"] = kernels
    result["plan_steps"] = dict(tiers)
    result["graph_cache"] = graph_counts.show()
    return result
