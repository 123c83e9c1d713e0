"""Architectures of transformers, tiny and random: packed equals plain, or is refused; plain stays what it was.

First those that we name, with what must become of them; then every causal model that this version of transformers has.
"""

import inspect
from typing import Any

import pytest
import torch
import transformers
from architectures import GPT2, LATENT, MHA, MOE, SIZE, gradients, make, make_any, packed_group, plain_logps
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.gptj import modeling_gptj

from lambda_grpo.errors import InputError
from lambda_grpo.packing import tree_logps

pytestmark = pytest.mark.slow

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
NO_PDROP = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OPT = SIZE | NO_DROPOUT | {"word_embed_proj_dim": 32, "ffn_dim": 48}

PACKED: dict[str, dict[str, Any]] = {
    "Llama": SIZE, "Qwen2": SIZE, "Qwen3": SIZE, "Mistral": SIZE, "Gemma": SIZE,
    "Gemma2": SIZE | {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "Gemma3Text": SIZE | {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "Phi": MHA | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}, "Phi3": SIZE | {"resid_pdrop": 0.0},
    "GPTNeoX": MHA, "StableLm": SIZE, "Starcoder2": SIZE | {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "Olmo": SIZE, "Olmo2": SIZE, "Cohere": SIZE, "Cohere2": SIZE, "Granite": SIZE, "Glm": SIZE, "Helium": SIZE,
    "SmolLM3": SIZE, "Mixtral": SIZE | MOE, "Ministral": SIZE, "Exaone4": SIZE,
    "SeedOss": SIZE | {"residual_dropout": 0.0, "attention_dropout": 0.0},
    "GPT2": GPT2 | NO_PDROP, "GPTJ": GPT2 | NO_PDROP | {"rotary_dim": 4, "n_inner": 48}, "OPT": OPT,
    "MiniCPM3": MHA | LATENT, "DeepseekV3": MHA | MOE | LATENT, "Qwen2Moe": SIZE | MOE | {"shared_expert_intermediate_size": 16},
}  # fmt: skip
# Layers that compute in the weights' own precision: LayerNorm, and no router.
EXACT = {"GPT2", "GPTJ", "GPTNeoX", "OPT", "Phi", "StableLm", "Starcoder2"}
# Refused in training, packed in evaluation: the number that is active.
ACTIVE: dict[str, tuple[str, dict[str, Any], str]] = {
    "OPT": ("OPT", OPT | {"dropout": 0.1}, "dropout 0.1 is active"),
    "OPT, layers": ("OPT", OPT | {"layerdrop": 0.2}, "layerdrop: dropout 0.2 is active"),
    "GPT2": ("GPT2", GPT2, "dropout 0.1 is active"),
    "GPTJ": ("GPTJ", PACKED["GPTJ"] | {"resid_pdrop": 0.3}, "dropout 0.3 is active"),
    "Phi3": ("Phi3", SIZE | {"embd_pdrop": 0.2, "resid_pdrop": 0.2}, "dropout 0.2 is active"),
    "Qwen3": ("Qwen3", SIZE | {"attention_dropout": 0.1}, "attention_dropout: dropout 0.1 is active"),
    "Mixtral": ("Mixtral", SIZE | MOE | {"router_jitter_noise": 0.1}, "jitter_noise: noise 0.1 is active"),
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Mamba": (SIZE, "state from token to token"),
    "Mamba2": (SIZE | {"num_heads": 8, "n_groups": 1, "state_size": 8}, "state from token to token"),
    "FalconMamba": (SIZE, "state from token to token"),
    "Rwkv": (SIZE, "state from token to token"),
    "RecurrentGemma": (SIZE | {"lru_width": 32}, "state from token to token"),
    "Bloom": (SIZE, "position_ids"),
    "Falcon": ({name: SIZE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}, "does not go through transformers' attention interface"),
    "GptOss": (SIZE | MOE, "s_aux"),
    "Doge": (SIZE | {"keep_window_size": 3}, "computes with its attention mask"),
    "GlmMoeDsa": (MHA | MOE | LATENT, "chooses the keys that a token sees"),
}  # fmt: skip

if "get_interface" not in inspect.getsource(modeling_gptj):  # in older releases of transformers
    REFUSED["GPTJ"] = PACKED.pop("GPTJ"), "does not go through transformers' attention interface"
    del ACTIVE["GPTJ"]


def assert_packed_equals_plain(model: Any, value: float, gradient: float, least: float = 1e-6) -> None:
    """Log-probs within `value`, each gradient within `gradient` of its norm (`least` if that is 0, as of a router that
    picks one expert), and plain rows to the bit as before."""
    plain = plain_logps(model)
    packed = tree_logps(model, packed_group())
    assert (packed - plain).abs().max() < value
    for ours, theirs in zip(gradients(model, packed), gradients(model, plain), strict=True):
        assert (ours - theirs).norm() <= gradient * theirs.norm() + least
    assert torch.equal(plain_logps(model), plain)


@pytest.mark.parametrize("mode", ["train", "eval", "checkpointing"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_plain(name: str, mode: str) -> None:
    model = make(name, PACKED[name]).train(mode != "eval")
    if mode == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_packed_equals_plain(model, 2e-5, 1e-4)


@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_plain_in_float64(name: str) -> None:
    """RMSNorm and routers round to float32, whatever the weights are."""
    model = make(name, PACKED[name], torch.float64)
    if getattr(model.config, "_experts_implementation", None) == "grouped_mm":
        model.set_experts_implementation("eager")  # the other has no float64
    assert_packed_equals_plain(model, *((1e-11, 1e-11, 1e-13) if name in EXACT else (5e-6, 1e-5)))


@pytest.mark.parametrize("case", ACTIVE)
def test_what_draws_random_numbers_is_packed_in_evaluation_only(case: str) -> None:
    name, config, reason = ACTIVE[case]
    model = make(name, config).eval()
    assert_packed_equals_plain(model, 2e-5, 1e-4)
    with pytest.raises(InputError, match=reason):
        tree_logps(model.train(), packed_group())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused_by_name(name: str, training: bool) -> None:
    config, reason = REFUSED[name]
    model = make(name, config).train(training)
    before = plain_logps(model)
    with pytest.raises(InputError, match=reason):
        tree_logps(model, packed_group())
    assert torch.equal(plain_logps(model), before)


def test_encoders_are_refused() -> None:
    config = {name: value for name, value in SIZE.items() if name not in ("num_key_value_heads", "head_dim")}
    model = transformers.BertLMHeadModel(transformers.BertConfig(**config)).eval()
    with pytest.raises(InputError, match="is an encoder"):
        tree_logps(model, packed_group())


def test_a_model_that_masks_the_logits_of_image_tokens_is_refused() -> None:
    vision = {
        "embed_dim": 4,
        "num_embeddings": 8,
        "latent_channels": 8,
        "base_channels": 32,
        "resolution": 8,
        "z_channels": 8,
    }
    words = {"<image>": 39, "IMGIMGA": 38}
    config = transformers.ChameleonConfig(**SIZE, vq_config=vision, vocabulary_map=words)
    model = transformers.ChameleonForConditionalGeneration(config).eval()
    before = plain_logps(model)
    with pytest.raises(InputError, match="masks the logits of image tokens"):
        tree_logps(model, packed_group())
    assert torch.equal(plain_logps(model), before)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused(kind: str) -> None:
    import peft

    model = peft.get_peft_model(
        make("Llama", SIZE), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(InputError, match="virtual tokens"):
        tree_logps(model, packed_group())


# Every causal model that transformers has

SLOW = {
    "blt",
    "falcon_h1",
    "kimi_linear",
    "nemotron_h",
    "phi4_multimodal",
}  # large whatever sizes they are given
EVERY = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - SLOW)


@pytest.mark.parametrize("model_type", EVERY)
def test_every_model_is_packed_right_or_refused(model_type: str) -> None:
    model = make_any(model_type, dropout=0.0)
    for training in (True, False):
        model.train(training)
        before = plain_logps(model)
        try:
            tree_logps(model, packed_group())
        except InputError:
            assert torch.equal(plain_logps(model), before)
        else:
            assert_packed_equals_plain(model, 2e-5, 1e-4)


@pytest.mark.parametrize("model_type", EVERY)
def test_every_model_that_draws_random_numbers_is_refused(model_type: str) -> None:
    model = make_any(model_type, dropout=0.4)
    with torch.no_grad():
        draws = not torch.equal(plain_logps(model), plain_logps(model))
        if draws:
            with pytest.raises(InputError):
                tree_logps(model, packed_group())
