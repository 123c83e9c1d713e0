"""How prompts are completed for an evaluation: with the most likely tokens, or with drawn ones.

`lambda_grpo.sampling` runs each shared prompt once. transformers' `generate` completes what it cannot.

Completions come from the policy itself, as in training: the temperature, filters, penalties and beams that a
model brings for its own generation (Qwen's repetition penalty, for example) are not applied. `Sampling` is
what training and evaluation both draw with. Except for rounding, a greedy completion does not
depend on its batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import GenerationConfig

import lambda_grpo.sampling
from lambda_grpo.errors import InputError, expect, unknown_name
from lambda_grpo.sampling import DrawSettings
from lambda_grpo.sampling.plain import OF_NO_EFFECT, drawing

_SETTINGS_OF_THEIR_OWN = {"max_new_tokens": "max_completion_length", "max_length": "max_completion_length"}
_SETTINGS_OF_THEIR_OWN |= {
    name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
}
_REFUSED = ("do_sample", "eos_token_id", "pad_token_id", "bos_token_id", "stop_strings", "token_healing",
            "num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits",
            "output_attentions", "output_hidden_states")  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        top_k: 0 for all tokens.
        min_p: only tokens at least so likely, in shares of the likeliest; 0 for all.
        repetition_penalty: 1 for none. Greedy completions have it too.
        generation_kwargs: further fields of transformers' GenerationConfig, as TRL's setting of that name.
        batch_size: completions generated at a time. Sampled completions depend on it; greedy ones do not.
        samples: K, sampled completions per problem.

    Raises:
        InputError: a number out of its range; an unknown field, or one that is not the caller's to set.
    """

    max_completion_length: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    generation_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    seed: int = 0
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("max_completion_length", "batch_size", "samples"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            expect(math.isfinite(value) and value > 0, name, value, "a number above 0")
        expect(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1")
        expect(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: all tokens)")
        expect(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1 (0: all tokens)")
        expect(self.seed >= 0, "seed", self.seed, "at least 0")
        check_generation_kwargs(self.generation_kwargs)

    def record(self) -> dict[str, Any]:
        """What training and evaluation share: for results.json and `in_words`."""
        names = ("max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        shared = {name: getattr(self, name) for name in names}
        return {**shared, "generation_kwargs": dict(self.generation_kwargs)}

    def in_words(self, *, sampled: bool = True) -> str:
        """The same for the line below a table; what has no effect is left out.

        >>> Sampling(8, temperature=0.7, min_p=0.1, generation_kwargs={"no_repeat_ngram_size": 3}).in_words()
        'temperature 0.7, min_p 0.1, no_repeat_ngram_size=3, at most 8 tokens'
        """
        parts = [f"temperature {self.temperature:g}"] if sampled else []
        kept = {"top_p": 1.0, "top_k": 0, "min_p": 0.0} if sampled else {}
        for name, none in (kept | {"repetition_penalty": 1.0}).items():
            if getattr(self, name) != none:
                parts.append(f"{name} {getattr(self, name):g}")
        parts += [f"{name}={value!r}" for name, value in self.generation_kwargs.items()]
        return ", ".join([*parts, f"at most {self.max_completion_length:,} tokens"])


def check_generation_kwargs(given: Any) -> None:
    """Refuse what transformers does not know, and what would not reach training and evaluation alike.

    Raises:
        InputError: either.
    """
    expect(isinstance(given, Mapping), "generation_kwargs", repr(given), "a JSON object")
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for name in given:
        if name in _SETTINGS_OF_THEIR_OWN:
            raise InputError(f"generation_kwargs: {name!r}: set {_SETTINGS_OF_THEIR_OWN[name]} instead")
        if name in _REFUSED:
            raise InputError(
                f"generation_kwargs: {name!r} cannot be set: it decides where a completion ends, or what "
                "generate returns, which is the trainer's to say. A task may name texts that end a "
                "completion: its attribute `stop`"
            )
        if name not in known:
            raise unknown_name(
                "field of transformers' GenerationConfig in generation_kwargs:", str(name), known
            )


def encode(
    tokenizer: Any, prompt: Any, chat_template_kwargs: Mapping[str, Any] = MappingProxyType({})
) -> list[int]:
    """The token ids of a prompt: a text, or chat messages, which go through the tokenizer's chat template.

    The calls are TRL's, so the ids are those of training.

    Raises:
        InputError: chat messages without a chat template, or that it refuses; a prompt without a token.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif not tokenizer.chat_template:
        raise InputError(
            f"the task's prompts are chat messages ({str(prompt)[:60]}…) and the model's tokenizer has no "
            "chat template: expected a chat model, or a task with prompts of text"
        )
    else:
        try:
            ids = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=True, **chat_template_kwargs
            )["input_ids"]
        except TemplateError as error:
            raise InputError(
                f"the tokenizer's chat template refuses the prompt {str(prompt)[:60]}…: {error}"
            ) from error
    if not ids:
        raise InputError(f"the prompt {prompt!r} has no tokens, and nothing can be continued from it")
    return list(ids)


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    sample: bool,
    end_tokens: Sequence[int] = (),
) -> tuple[list[str], list[int]]:
    """One completion per prompt (token ids): the texts, and their lengths in tokens.

    A completion ends with the model's end tokens, and with `end_tokens`. `generation_kwargs` may hold
    anything that transformers' `generate` knows, so that with them it samples; without them shared prompts
    run once.
    """
    ends = [*_end_tokens(model, tokenizer), *end_tokens]
    if sampling.generation_kwargs:
        rows = _generate(model, tokenizer, prompts, _settings(model, sampling, sample), ends, sampling)
    else:
        drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
        rows = lambda_grpo.sampling.sample(
            model,
            prompts,
            num_completions=1,
            max_new_tokens=sampling.max_completion_length,
            eos_token_ids=ends,
            batch_size=sampling.batch_size,
            repetition_penalty=sampling.repetition_penalty,
            **(drawn | {"min_p": sampling.min_p or None} if sample else {"temperature": 0.0}),
        ).completions
    return tokenizer.batch_decode(rows, skip_special_tokens=True), [len(row) for row in rows]


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    ends: Sequence[int],
    sampling: Sampling,
) -> list[list[int]]:
    """The completions' ids by transformers' `generate`."""
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    width = max(map(len, prompts))
    inputs = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    output = model.generate(
        input_ids=inputs.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=sampling.max_completion_length,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        **settings,
    )
    ids = output[:, width:].cpu()
    is_end = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype))
    lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, ids.shape[1]).tolist()
    return [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]


def _settings(model: Any, sampling: Sampling, sample: bool) -> dict[str, Any]:
    """What `generate` is told of the sampling; of greedy completions what changes the likeliest token."""
    penalty = sampling.repetition_penalty
    if not sample:
        kwargs = {k: value for k, value in sampling.generation_kwargs.items() if k not in OF_NO_EFFECT}
        return drawing(model, DrawSettings(temperature=0, repetition_penalty=penalty)) | kwargs
    drawn = DrawSettings(
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p or None, penalty
    )
    return drawing(model, drawn) | dict(sampling.generation_kwargs)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end-of-sequence token first, then those of the model's generation settings."""
    own = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(token for token in found if token is not None))
