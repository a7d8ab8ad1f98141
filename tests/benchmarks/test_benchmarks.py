"""Benchmarks measure what they say: compiled calls are proven by counters, what cannot run is named with a reason."""

import gc

import pytest
import torch

from benchmarks import chart, contenders, limits, parts, steady, training
from benchmarks.cases import Built
from benchmarks.proof import NotCompiled


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.unsanitized  # OpenVINO loads libraries in a way that sanitizers refuse
def test_a_row_has_every_contender_or_the_reason():
    row = steady.measure("tiny_mlp", 2, 1, "fp32", ["eager", "onnxruntime", "openvino", "magpy"], 1)
    assert row["vs_eager"] > 0 and row["batch"] == 2
    for contender in ("onnxruntime", "openvino"):
        assert (f"vs_{contender}" in row) != (contender in row["unavailable"])
    speeds = chart.speeds(row)
    assert speeds["magpy"] == row["vs_eager"]


@pytest.mark.parametrize("name", ["policy", "rms_norm"])
def test_models_are_measured_in_bf16(name):
    built = steady.in_dtype(parts.CASES[name].build("small"), torch.bfloat16)
    with torch.no_grad():
        assert contenders.prepared("magpy", built, 1)() is not None
    assert all(p.dtype == torch.bfloat16 for p in built.model.parameters())


def test_a_call_that_fell_back_is_not_timed():
    class Unwatched(torch.nn.Module):
        def forward(self, x):
            return x + 0 * len(gc.get_objects())

    call = contenders.prepared("magpy", Built(Unwatched(), (torch.ones(2),)), 1)
    with pytest.raises(NotCompiled):
        steady.row({"eager": call, "magpy": call}, 1)


def test_a_failing_contender_says_why():
    class Bad(torch.nn.Module):
        def forward(self, x):
            raise ValueError("no such thing")

    with pytest.raises(contenders.Unavailable, match="ValueError: no such thing"):
        contenders.prepared("eager", Built(Bad(), (torch.ones(2),)), 1)


def test_an_exporter_gets_tensors_and_gives_eagers_tensors():
    built = parts.CASES["policy"].build("small")
    model = contenders.TensorsOnly(Built(built.model, (), {"observation": built.args[0]}))
    out, expected = model(*model.tensors), built.model(*built.args)
    assert [t.shape for t in out] == [t.shape for t in expected.values()]


def test_a_training_step_is_measured_on_the_compiled_path(monkeypatch):
    small = lambda: (torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), torch.randn(4, 8), 8)  # noqa: E731
    monkeypatch.setitem(training.CASES, "tiny", small)
    monkeypatch.setattr(training, "CONTENDERS", {"eager": None, "magpy": {"backend": "magpy"}})
    row = training.measure("tiny", 1, 1)
    assert row["vs_eager"] > 0


def test_large_kernels_are_compared_with_the_machine(monkeypatch):
    monkeypatch.setattr(limits, "LARGE", 0.0)
    monkeypatch.setattr(limits, "SECONDS", 0.0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 256)
    )
    compiled = torch.compile(model, backend="magpy")
    x = torch.randn(2, 4, 8, 8)
    for _ in range(2):
        compiled(x).sum().backward()
    rows = limits.shares(compiled, lambda: compiled(x), 1)
    assert rows and all(row["share"] > 0 and row["limit"] in ("flop/s", "bytes/s") for row in rows)
    assert limits.least(rows).split()[0] == f"{min(row['share'] for row in rows):.2f}"
    assert limits.least([]) == "-"


def test_plans_of_the_trace_that_is_run_have_shares(monkeypatch):
    monkeypatch.setattr(limits, "LARGE", 0.0)
    monkeypatch.setattr(limits, "SECONDS", 0.0)
    compiled = torch.compile(lambda x: x * 2 if (x > 3).all() else x @ x, backend="magpy")

    def kernels(value: float) -> set[str]:
        x = torch.full((8, 8), value)
        for _ in range(2):
            compiled(x)
        return {row["kernel"] for row in limits.shares(compiled, lambda: compiled(x), 1)}

    assert any("mm" in name or "matmul" in name for name in kernels(2.0) - kernels(4.0))
