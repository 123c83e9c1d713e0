"""Tiny models of each supported family, random weights, float64."""

import types
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCABULARY = 13
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_GEMMA = _SIZE | {"head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 3}
_NEOX = {name: value for name, value in _SIZE.items() if name != "num_key_value_heads"}

FAMILIES: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_NEOX)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZE, tie_word_embeddings=True)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_SIZE, use_sliding_window=True, sliding_window=3, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZE, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SIZE, sliding_window=4)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=4.0)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**_GEMMA, layer_types=["sliding_attention", "full_attention"])
    ),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **_SIZE,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            head_dim=4,
            experts_implementation="eager",
        )
    ),
}
LAYER_NORM = ("gpt2", "gpt_neox")


def make_model(family: str) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[family]().double().eval()
    if family == "gemma2":
        model.set_attn_implementation("eager")  # SDPA would drop the soft cap
    return model


def with_exact_norms(model: Any) -> Any:
    """RMSNorm in float64: stock ones compute in float32, also after `.double()`."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        epsilon = self.eps if hasattr(self, "eps") else self.variance_epsilon
        weight = 1 + self.weight if "Gemma" in type(self).__name__ else self.weight
        return weight * (x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + epsilon))

    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = types.MethodType(forward, module)
    return model
