"""Real models: the first call is observed as one trace, the second is a hit, results and state are eager's."""

import copy

import pytest
import torch

from benchmarks import parts, zoo
from tests.compare import assert_same, assert_same_state
from tests.counting import Counted

CASES = {**zoo.CASES, **parts.CASES}


@pytest.mark.parametrize("name", CASES)
def test_inference_is_one_trace_and_equals_eager(name):
    built = CASES[name].build("small")
    reference = copy.deepcopy(built.model)
    compiled = torch.compile(built.model, backend="magpy")
    with torch.no_grad():
        expected = reference(*built.args, **built.kwargs)
        with Counted() as first:
            observed = compiled(*built.args, **built.kwargs)
        with Counted() as second:
            actual = compiled(*built.args, **built.kwargs)
    first.assert_observed()
    second.assert_hit()
    assert_same(observed, expected)
    assert_same(actual, expected)
    assert_same_state(built.model, reference)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit", "resnet18", "lstm_loop", "mlp_mixer", "policy"])
def test_frozen_weights(name):
    built = CASES[name].build("small")
    compiled = torch.compile(built.model, backend="magpy", options={"freezing": True})
    with torch.no_grad():
        expected = built.model(*built.args, **built.kwargs)
        compiled(*built.args, **built.kwargs)
        with Counted() as counted:
            actual = compiled(*built.args, **built.kwargs)
    counted.assert_hit()
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["bert", "resnet18", "lstm_loop", "mlp_mixer", "unet"])
def test_other_batch_size_is_a_second_trace(name):
    built = CASES[name].build("small")
    reference = copy.deepcopy(built.model)
    compiled = torch.compile(built.model, backend="magpy")

    def double(x):
        if isinstance(x, torch.Tensor):
            return torch.cat([x, x], 1 if name == "lstm_loop" and x.dim() == 3 else 0)
        return type(x)(double(i) for i in x) if isinstance(x, tuple) else x

    args, kwargs = double(built.args), {k: double(v) for k, v in built.kwargs.items()}
    with torch.no_grad():
        compiled(*built.args, **built.kwargs)
        with Counted() as other:
            compiled(*args, **kwargs)
        other.assert_observed()
        with Counted() as both:
            actual = compiled(*args, **kwargs)
            compiled(*built.args, **built.kwargs)
        both.assert_hit(2)
        assert_same(actual, reference(*args, **kwargs))


@pytest.mark.parametrize("name", ["bert", "resnet18", "lstm_loop", "mlp_mixer", "gpt2"])
def test_gradients_equal_eager(name):
    built = CASES[name].build("small")
    reference = copy.deepcopy(built.model)
    compiled = torch.compile(built.model, backend="magpy")

    def loss(out):
        if isinstance(out, torch.Tensor):
            return out.square().mean()
        return (out[0] if isinstance(out, tuple) else out.last_hidden_state).square().mean()

    loss(reference(*built.args, **built.kwargs)).backward()
    compiled(*built.args, **built.kwargs)
    with Counted() as second:
        result = compiled(*built.args, **built.kwargs)
    second.assert_hit()
    loss(result).backward()
    assert_same_state(built.model, reference, rtol=1e-3, atol=1e-5)
