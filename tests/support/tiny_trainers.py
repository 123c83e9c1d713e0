"""Tiny models under `LambdaGRPOTrainer`, for every test that trains."""

import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from reference import ReferenceGroup
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig

from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.engines.trl.config import LOSS_TYPES
from lambda_grpo.policy import character_tokenizer

TOKENIZER = character_tokenizer("abc")


PROMPTS = ["a", "bb", "ca", "abc"]


GROUP = 6


def reward(completions: list[str], **_: Any) -> list[float]:
    """Depends on the whole text, so that rewards differ within groups."""
    return [zlib.crc32(text.encode()) % 5 / 4 for text in completions]


def qwen2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3,
            eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id, bos_token_id=None,
        )
    )  # fmt: skip


def gpt2_float64() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(TOKENIZER), n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id, bos_token_id=None,
        )
    ).double()  # fmt: skip


def make_trainer(
    folder: Path,
    *,
    cls: type = LambdaGRPOTrainer,
    model: PreTrainedModel | None = None,
    trainer_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    config = LambdaGRPOConfig if issubclass(cls, LambdaGRPOTrainer) else GRPOConfig
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": len(PROMPTS) * GROUP, "num_generations": GROUP, "save_strategy": "no",
        "max_completion_length": 5, "temperature": 0.5, "learning_rate": 1e-2, "gradient_checkpointing": False, "max_steps": 3,
        "logging_steps": 1, "use_bias_correction_kl": False, "epsilon": 0.02, "shuffle_dataset": False,
    }  # fmt: skip
    if config is LambdaGRPOConfig:
        defaults["tree_packing"] = "off"  # on: tests/trl_engine/test_trl_packing.py
        defaults["sampler"] = "generate"  # tree: tests/trl_engine/test_trl_sampling.py
    model = qwen2() if model is None else model
    start = folder / "start"  # TRL loads the reference from where the policy came from
    state = PartialState(cpu=True)
    if state.is_main_process:
        model.save_pretrained(start)
    state.wait_for_everyone()
    given = {
        "reward_funcs": reward,
        "train_dataset": Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        "processing_class": TOKENIZER,
    }
    return cls(
        model.from_pretrained(start),
        args=config(**{**defaults, **settings}),
        **{**given, **(trainer_kwargs or {})},
    )


def micro_batches(trainer: Any) -> list[dict[str, Any]]:
    """The micro-batches of one generation batch, after which the policy is moved, so that ratios differ from 1."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
    batches = []
    for step in range(trainer.args.steps_per_generation):
        trainer._step = step
        batches.append(trainer._prepare_inputs(rows))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.005 * torch.randn_like(parameter)
    return batches


def completions_of(batch: dict[str, Any]) -> list[list[int]]:
    """The ids as generated; a completion whose mask TRL zeroed is truncated, so it has all the tokens it may have."""
    found = []
    for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True):
        found.append(ids[mask.bool()].tolist() if mask.any() else ids.tolist())
    return found


def expected_weights(batches: list[dict[str, Any]], trainer: Any) -> list[torch.Tensor]:
    """1/|λ(i,t)| of every row of every micro-batch, from the literal definitions."""
    groups = defaultdict(list)
    for b, batch in enumerate(batches):
        for row, prompt in enumerate(trainer.processing_class.batch_decode(batch["prompt_ids"])):
            groups[prompt].append((b, row, completions_of(batch)[row]))
    weights = [torch.zeros(batch["completion_ids"].shape, dtype=torch.float64) for batch in batches]
    for members in groups.values():
        assert len(members) == GROUP
        reference = ReferenceGroup([ids for *_, ids in members])
        for i, (b, row, ids) in enumerate(members):
            for t in range(len(ids)):
                weights[b][row, t] = 1 / len(reference.process_set(i, t))
    return weights


def gradients(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in trainer.model.parameters() if p.grad is not None])


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest entry."""
    assert expected.abs().max() > 1e-4  # there is something to compare
    assert ((got - expected).abs().max() / expected.abs().max()).item() <= tolerance


# Pairwise over loss type × β × number of iterations × accumulation.
CASES = [
    (loss_type, beta, iterations, accumulation)
    for i, loss_type in enumerate(LOSS_TYPES)
    for beta, iterations, accumulation in [(0.0, 1 + i % 2, 1 + i // 2 % 2), (0.3, 2 - i % 2, 2 - i // 2 % 2)]
]


def plain_logps(self: Any, model: Any, ids: Any, mask: Any, keep: int, *_: Any, **__: Any) -> Any:
    """As TRL's, without its fused head, which computes in float32, and with positions that do not count the
    padding on the left, which TRL leaves out (GPT-2's learned positions tell the difference)."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -keep - 1 : -1]
    scores = (logits / self.temperature).log_softmax(-1)
    logps = scores.gather(-1, ids[:, -keep:, None])[..., 0]
    return logps, -(scores.exp() * scores).sum(-1).detach(), None
