"""Models beyond the zoo: inference with changing data, batch, mode and hooks equals eager's, in one trace each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.compare import assert_same
from tests.counting import Counted

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = 99
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
SPEECH = {
    **TEXT,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": "p2c|c2p"}


def text(batch: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, WORDS, (batch, 12)), "attention_mask": torch.ones(batch, 12).long()}


def sound(batch: int) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 400)}


def labelled(batch: int) -> dict[str, Any]:
    return {**text(batch), "labels": torch.randint(0, 2, (batch,))}


CASES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2}, text),
    "mpnet": ("MPNetModel", "MPNetConfig", TEXT, text),
    "deberta": ("DebertaModel", "DebertaConfig", DEBERTA, text),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", SPEECH, sound),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**TEXT, "num_key_value_heads": 2, "num_local_experts": 4, "intermediate_size": 40},
        text,
    ),
    "mamba": ("MambaModel", "MambaConfig", {**TEXT, "state_size": 4}, text),
    "bert_labels": ("BertForSequenceClassification", "BertConfig", TEXT, labelled),
}


def normal(value: Any) -> Any:
    """Caches and outputs as plain containers."""
    if isinstance(value, dict):
        return {k: normal(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [normal(v) for v in value]
    if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor):
        return {k: normal(v) for k, v in vars(value).items() if not callable(v)}
    return value


@pytest.mark.parametrize("name", CASES)
def test_model_equals_eager_whatever_changes(name):
    model_class, config_class, settings, inputs = CASES[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    reference = copy.deepcopy(model)
    fast = torch.compile(model, backend="magpy")

    def equal(given: dict[str, Any]) -> None:
        with torch.no_grad():
            actual, expected = fast(**copy.deepcopy(given)), reference(**copy.deepcopy(given))
        assert type(actual) is type(expected)
        assert_same(normal(actual), normal(expected), rtol=1e-3, atol=1e-4)

    first = inputs(2)
    equal(first)
    equal(first)  # a config may note what it has seen, once: then the second call is observed as well
    with Counted() as hits:
        equal(first)
        equal(inputs(2))
    hits.assert_hit(2)
    equal(inputs(3))
    with Counted() as hits:
        equal(first)
    hits.assert_hit()
    state = {k: v * 1.05 if v.is_floating_point() else v for k, v in reference.state_dict().items()}
    for each in (model, reference):
        each.load_state_dict(state)
    equal(first)
    hooks = []
    for each in (model, reference):
        last = [m for m in each.modules() if isinstance(m, nn.Linear)][-1]
        hooks.append(last.register_forward_hook(lambda module, args, out: out * 1.5))
    equal(first)
    for hook in hooks:
        hook.remove()
    equal(first)
