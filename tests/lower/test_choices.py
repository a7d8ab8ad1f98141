"""Choices between implementations: measured once, remembered across processes, equal in what they compute."""

import json
import threading

import pytest
import torch

import magpy
from magpy import choices, products


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty memory of choices in a directory of its own."""
    monkeypatch.setattr(choices._C, "cache_dir", lambda: str(tmp_path))
    monkeypatch.setattr(choices, "_known", None)
    monkeypatch.setattr(choices, "_unsaved", {})
    return tmp_path / choices.FILE


def forget_process():
    choices._known = None


def test_a_choice_is_measured_once_and_outlives_the_process(memory):
    made = []
    slow, fast = (lambda: sum(range(20000))), (lambda: None)

    def make():
        made.append(1)
        return {"first": slow, "second": fast}

    assert [choices.choose("shape", make) for _ in range(3)] == ["second"] * 3
    forget_process()
    assert choices.choose("shape", make) == "second" and len(made) == 1


def test_the_first_candidate_stays_without_a_clear_gain(memory, monkeypatch):
    monkeypatch.setattr(choices, "_seconds", lambda candidates: {"first": 1.0, "second": 0.97})
    assert choices.choose("shape", dict) == "first"


def test_what_returns_seconds_has_measured_itself(memory):
    ways = {"first": lambda: 2.0, "second": lambda: 1.0, "third": lambda: 1.5}
    assert choices.choose("shape", lambda: ways) == "second"


def test_choices_of_other_processes_are_kept(memory, monkeypatch):
    monkeypatch.setattr(choices, "_seconds", lambda candidates: {"first": 1.0})
    choices.choose("mine", dict)
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "theirs": "x"}))
    choices.choose("mine too", dict)
    assert "theirs" in json.loads(memory.read_text()) and len(json.loads(memory.read_text())) == 3


def test_a_graph_of_another_thread_does_not_keep_choices_from_being_written(memory, monkeypatch):
    monkeypatch.setattr(choices, "_seconds", lambda candidates: {"first": 1.0})
    inside, done = threading.Event(), threading.Event()

    def other():
        with choices.saved_together():
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(20)
    choices.choose("mine", dict)
    written = memory.exists() and len(json.loads(memory.read_text()))
    done.set()
    thread.join()
    assert written == 1


def test_choices_of_one_graph_are_written_at_once(memory, monkeypatch):
    monkeypatch.setattr(choices, "_seconds", lambda candidates: {"first": 1.0})
    with pytest.raises(KeyError), choices.saved_together():
        with choices.saved_together():
            choices.choose("one", dict)
        choices.choose("two", dict)
        assert not memory.exists()
        raise KeyError
    assert len(json.loads(memory.read_text())) == 2
    choices.choose("three", dict)
    assert len(json.loads(memory.read_text())) == 3


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', "\udcff"])
def test_a_damaged_memory_is_measured_again(memory, monkeypatch, text):
    memory.write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr(choices, "_seconds", lambda candidates: {"first": 1.0})
    assert choices.choose("shape", dict) == "first"
    assert len(json.loads(memory.read_text())) == 1


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 5), (300, 300), (2000, 2000)])
def test_weights_that_are_measured_in_turn_take_little_memory(rows, columns):
    weight = torch.randn(columns, rows).t()
    turns = products._Turns(weight, products.FAR)
    taken = [turns.take() for _ in range(300)]
    assert all(t.shape == weight.shape and t.stride() == weight.stride() for t in taken)
    memory = {t.data_ptr(): t.numel() * t.element_size() for t in taken}
    assert len(memory) <= products.FAR // products.SMALL
    assert sum(memory.values()) <= max(products.FAR, weight.numel() * 4)


@pytest.mark.parametrize("library", ["blas", "onednn", "own"])
@pytest.mark.parametrize("m, k, n", [(64, 128, 96), (8, 256, 512), (2, 512, 1024)])
def test_every_library_gives_eagers_product(monkeypatch, library, m, k, n):
    def take(what, make):
        for call in make().values():
            call()  # each candidate must run
        return library

    monkeypatch.setattr(choices, "choose", take)
    x, w, b = torch.randn(m, k), torch.randn(k, n), torch.randn(n)
    wt = w.t().contiguous()

    def program(x, w, wt, b):
        return torch.addmm(b, x, w).tanh(), x @ w, torch.nn.functional.linear(x * 2, wt, b), (x @ wt.t()).relu()

    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    expected = program(x, w, wt, b)
    for _ in range(2):
        for got, want in zip(compiled(x, w, wt, b), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
            assert got.stride() == want.stride()
    steps = [step[:2] for step in magpy.explain(compiled).traces[0].steps]
    assert (("kernel", "magpy.matmul.default") in steps) is (library == "own")
    assert (("shim", "mkldnn._linear_pointwise.default") in steps) is (library == "onednn")
    assert ("python", "mkldnn._linear_pointwise.default") not in steps
