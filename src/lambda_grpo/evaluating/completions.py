"""How prompts are completed for an evaluation: the most likely tokens, or drawn ones.

Completions come from the policy itself, as in training: the temperature, filters, penalties and beams that a
model brings for its own generation (such as Qwen's repetition penalty) are not applied. A greedy completion
does not depend on its batch, but for rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lambda_grpo.sampling
from lambda_grpo.errors import InputError, expect


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn for an evaluation.

    Attributes:
        top_k: 0 for all tokens.
        batch_size: completions generated at a time. Sampled completions depend on it; greedy ones do not.
        samples: K, sampled completions per problem.

    Raises:
        InputError: a number out of its range.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 128
    seed: int = 0
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "samples"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        finite = math.isfinite(self.temperature)
        expect(finite and self.temperature > 0, "temperature", self.temperature, "a number above 0")
        expect(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1")
        expect(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: all tokens)")
        expect(self.seed >= 0, "seed", self.seed, "at least 0")


def encode(tokenizer: Any, prompt: Any) -> list[int]:
    """The token ids of a prompt: a text, or chat messages, which go through the tokenizer's chat template.

    Raises:
        InputError: chat messages without a chat template; a prompt without a token.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif not tokenizer.chat_template:
        raise InputError(
            f"the task's prompts are chat messages ({str(prompt)[:60]}…) and the model's tokenizer has no "
            "chat template: expected a chat model, or a task with prompts of text"
        )
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    if not ids:
        raise InputError(f"the prompt {prompt!r} has no tokens, and nothing can be continued from it")
    return list(ids)


def complete(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, *, sample: bool
) -> tuple[list[str], list[int]]:
    """One completion per prompt (token ids): the texts, and their lengths in tokens."""
    drawn: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
    rows = lambda_grpo.sampling.sample(
        model,
        prompts,
        num_completions=1,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_ids=_end_tokens(model, tokenizer),
        batch_size=sampling.batch_size,
        **(drawn if sample else {"temperature": 0.0}),
    ).completions
    return tokenizer.batch_decode(rows, skip_special_tokens=True), [len(row) for row in rows]


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end-of-sequence token first, then those of the model's generation settings."""
    own = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(token for token in found if token is not None))
