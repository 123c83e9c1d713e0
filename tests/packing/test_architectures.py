"""Architectures of transformers, tiny and random: packed equals plain, or is refused; plain stays what it was."""

from typing import Any

import pytest
import torch
import transformers

from lambda_grpo import ProcessTree
from lambda_grpo.errors import InputError
from lambda_grpo.packing import pack, tree_logps

pytestmark = pytest.mark.slow

PROMPT, COMPLETIONS = [3, 4, 5], [[6, 7, 8, 9], [6, 7, 2], [6, 7, 8, 1, 1], [10]]
SIZE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
MHA = SIZE | {"num_key_value_heads": 4}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

PACKED: dict[str, dict[str, Any]] = {
    "Llama": SIZE, "Qwen2": SIZE, "Qwen3": SIZE, "Mistral": SIZE, "Gemma": SIZE,
    "Gemma2": SIZE | {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "Phi": MHA | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}, "Phi3": SIZE | {"resid_pdrop": 0.0},
    "GPTNeoX": MHA, "StableLm": SIZE, "Starcoder2": SIZE | {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "Olmo": SIZE, "Olmo2": SIZE, "Cohere": SIZE, "Cohere2": SIZE, "Granite": SIZE, "Glm": SIZE, "Helium": SIZE,
    "SmolLM3": SIZE, "Mixtral": SIZE | MOE, "Ministral": SIZE, "Exaone4": SIZE, "SeedOss": SIZE | {"residual_dropout": 0.0, "attention_dropout": 0.0},
    "GPT2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "OPT": SIZE | NO_DROPOUT | {"word_embed_proj_dim": 32, "ffn_dim": 48},
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Mamba": (SIZE, "state from token to token"),
    "Mamba2": (SIZE | {"num_heads": 8, "n_groups": 1, "state_size": 8}, "state from token to token"),
    "FalconMamba": (SIZE, "state from token to token"),
    "Rwkv": (SIZE, "state from token to token"),
    "RecurrentGemma": (SIZE | {"lru_width": 32}, "state from token to token"),
    "Bloom": (SIZE, "position_ids"),
    "GptOss": (SIZE | MOE, "s_aux"),
    "OPT": (SIZE | {"word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.1}, "dropout 0.1 is active"),
}


def make(name: str, config: dict[str, Any]) -> Any:
    kind = getattr(transformers, f"{name}Config", None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**config), dtype=torch.float32)


def plain_logps(model: Any) -> torch.Tensor:
    """(4, 5) log-probs of each completion in a row of its own; 0 past its end."""
    logps = torch.zeros(len(COMPLETIONS), max(map(len, COMPLETIONS)))
    for i, completion in enumerate(COMPLETIONS):
        ids = torch.tensor([PROMPT + completion])
        every = model(input_ids=ids, use_cache=False).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        logps[i, : len(completion)] = every.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return logps


def gradients(model: Any, logps: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, logps.numel()).view(logps.shape)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((weights * logps).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_plain(name: str, training: bool) -> None:
    model = make(name, PACKED[name]).train(training)
    plain = plain_logps(model)
    packed = tree_logps(model, pack(PROMPT, ProcessTree.build(COMPLETIONS)))
    assert (packed - plain).abs().max() < 2e-5
    for ours, theirs in zip(gradients(model, packed), gradients(model, plain), strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6
    assert torch.equal(plain_logps(model), plain)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused_by_name(name: str) -> None:
    config, reason = REFUSED[name]
    model = make(name, config).train()
    with pytest.raises(InputError, match=reason):
        tree_logps(model, pack(PROMPT, ProcessTree.build(COMPLETIONS)))
    model.eval()
    assert torch.equal(plain_logps(model), plain_logps(model))


def test_encoders_are_refused() -> None:
    config = {name: value for name, value in SIZE.items() if name not in ("num_key_value_heads", "head_dim")}
    model = transformers.BertLMHeadModel(transformers.BertConfig(**config)).eval()
    with pytest.raises(InputError, match="is an encoder"):
        tree_logps(model, pack(PROMPT, ProcessTree.build(COMPLETIONS)))


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused(kind: str) -> None:
    import peft

    model = peft.get_peft_model(
        make("Llama", SIZE), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(InputError, match="virtual tokens"):
        tree_logps(model, pack(PROMPT, ProcessTree.build(COMPLETIONS)))
