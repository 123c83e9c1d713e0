"""Architectures of transformers, tiny and random, and a group of completions to score with them."""

import copy
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lambda_grpo import ProcessTree
from lambda_grpo.packing import PackedTree, pack

PROMPT, COMPLETIONS = [3, 4, 5], [[6, 7, 8, 9], [6, 7, 2], [6, 7, 8, 1, 1], [10]]
SIZE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
MHA = SIZE | {"num_key_value_heads": 4}
MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
}
# Multi-head latent attention, and an indexer that keeps three keys.
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_topk": 3, "index_n_heads": 2, "index_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_EVERY_NAME = MHA | MOE | GPT2 | LATENT | {
    "n_inner": 48, "n_ctx": 64, "rotary_dim": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "d_model": 32,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "num_layers": 2,
    "query_pre_attn_scalar": 8, "keep_window_size": 3, "sliding_window": 4,
}  # fmt: skip


def packed_group() -> PackedTree:
    return pack(PROMPT, ProcessTree.build(COMPLETIONS))


def make(name: str, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """The causal model of `{name}Config`; skips the test if this version of transformers has none."""
    kind = getattr(transformers, f"{name}Config", None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    return _build(kind(**config), dtype)


def _build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    capped = (
        {"attn_implementation": "eager"} if hasattr(config, "attn_logit_softcapping") else {}
    )  # SDPA drops it
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, **capped)


def make_any(model_type: str, dropout: float) -> Any:
    """A causal model of transformers with whatever sizes it takes; skips the test if it cannot be made tiny."""
    try:
        config = _some_config(model_type)
        _set_dropout(config, dropout)
        text = config.get_text_config()
        size = max(getattr(text, "hidden_size", 0), 32 * getattr(text, "num_hidden_layers", 0))
        if size > 128:
            pytest.skip(f"{model_type} takes none of our sizes")
        torch.manual_seed(0)
        model = _build(config).train()
        with torch.no_grad():
            plain_logps(copy.deepcopy(model))
    except Exception as error:
        pytest.skip(f"{model_type} cannot be made with any sizes: {type(error).__name__}: {str(error)[:80]}")
    return model


def _some_config(model_type: str) -> Any:
    given = dict(_EVERY_NAME)
    while True:
        try:
            return CONFIG_MAPPING[model_type](**given)
        except Exception as error:  # a name that this configuration has no room for, or another meaning
            refused = [name for name in given if name in str(error)]
            if not refused:
                raise
            given = {name: value for name, value in given.items() if name not in refused}


def _set_dropout(config: Any, value: float) -> None:
    """Of all of a configuration's numbers whose names speak of dropout or noise, in its parts too."""
    for name, old in list(vars(config).items()):
        if isinstance(old, transformers.PreTrainedConfig):
            _set_dropout(old, value)
        elif type(old) in (float, int) and ("drop" in name or "jitter" in name):
            setattr(config, name, value)


def plain_logps(model: Any) -> torch.Tensor:
    """(4, 5) log-probs of each completion in a row of its own; 0 past its end."""
    rows = []
    for completion in COMPLETIONS:
        ids = torch.tensor([PROMPT + completion])
        every = model(input_ids=ids, use_cache=False).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        logps = every.gather(1, torch.tensor(completion)[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(logps, (0, max(map(len, COMPLETIONS)) - len(completion))))
    return torch.stack(rows)


def gradients(model: Any, logps: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view(logps.shape)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((weights * logps).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
