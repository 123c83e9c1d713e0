"""What `sample` is asked for, checked, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lambda_grpo.branching import BranchPlan
from lambda_grpo.errors import InputError, expect
from lambda_grpo.packing.positions import check_positions
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.draw import DrawSettings

Seed = int | torch.Generator | None


@dataclass(frozen=True, eq=False)
class Samples:
    """Completions of prompts, `num_completions` neighbours for each prompt.

    Attributes:
        completions: token ids, the end token included.
        logps: of each token: log π at the temperature of sampling, before filters and penalties; at
            temperature 1 if greedy. None if they were not asked for.
        prompt_tokens: tokens of prompts that the model ran over; a token that k rows share counts once.
        reason: why transformers' `generate` sampled; empty if it did not.
        sampled_tokens: tokens that were drawn. With branches fewer than the completions hold, because the
            rows of a block share them.
    """

    completions: list[list[int]]
    logps: list[list[float]] | None
    prompt_tokens: int
    reason: str = ""
    sampled_tokens: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """What to sample, one prompt a row.

    Attributes:
        prompts: of all rows, repetitions included.
        max_new_tokens: T.
        settings: how to draw.
        end_ids: tokens that end a completion.
        ends: transformers' criterion for end strings; None if there are none.
        batch_size: rows that are sampled at a time.
        cached_tokens: rows × columns that the cache may hold; None: no bound.
        logprobs: whether they are wanted.
        seed: of all rows; row i draws its numbers from (seed, i).
        group: G, neighbouring rows that have one prompt.
        branches: where the rows of a group fork; None: they are independent.
    """

    prompts: list[list[int]]
    max_new_tokens: int
    settings: DrawSettings
    end_ids: tuple[int, ...]
    ends: Any
    batch_size: int
    cached_tokens: int | None
    logprobs: bool
    seed: int
    group: int = 1
    branches: BranchPlan | None = None

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Rows of a block before the first fork, after it, and so on."""
        return self.branches.sizes(self.group) if self.branches else (1,)

    @property
    def may_pad(self) -> bool:
        """Whether rows of different lengths may run together: they have them, or join one after the other."""
        lengths = {len(prompt) for prompt in self.prompts}
        return len(lengths) > 1 or self.batch_size < len(self.prompts) or self.cached_tokens is not None

    def uniform(self, row: int) -> np.ndarray:
        """(T,) the numbers in [0, 1) by which a row draws, whatever other rows do."""
        return np.random.default_rng([self.seed, row]).random(self.max_new_tokens)

    def check(self, model: Any) -> None:
        """Refuse what cannot be sampled with this model.

        Raises:
            InputError: names the prompt, number or token at fault.
        """
        expect(len(self.prompts) > 0, "prompts", "none", "at least one")
        expect(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        expect(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1 row")
        if self.branches:
            self.branches.check_length(self.max_new_tokens)
            most = self.block_sizes[0]
            expect(
                self.batch_size >= most, "batch_size", self.batch_size, f"at least {most}, the rows of a root"
            )
        inner = inner_model(model)
        vocabulary = inner.get_input_embeddings().num_embeddings
        for token in self.end_ids:
            inside = f"a token of the model's vocabulary, from 0 to {vocabulary - 1}"
            expect(0 <= token < vocabulary, "eos_token_ids", token, inside)
        for i, prompt in enumerate(self.prompts):
            if not len(prompt):
                raise InputError(f"prompt #{i} has no token, and nothing can be continued from it")
            if not 0 <= min(prompt) <= max(prompt) < vocabulary:
                got = min(prompt) if min(prompt) < 0 else max(prompt)
                raise InputError(
                    f"prompt #{i}: got token id {got}, expected ids from 0 to {vocabulary - 1}, the model's "
                    "vocabulary; cut off padding first"
                )
            self._check_room(i, len(prompt) + self.max_new_tokens)
        longest = max(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))
        count = len(self.prompts[longest])
        what = f"prompt #{longest} ({count} tokens) and {self.max_new_tokens} new tokens"
        check_positions(inner, count + self.max_new_tokens - 1, what)  # the last one is not run

    def _check_room(self, i: int, columns: int) -> None:
        columns *= self.block_sizes[0]
        if self.cached_tokens is not None and columns > self.cached_tokens:
            what = "one completion" if self.block_sizes[0] == 1 else "the completions of one root"
            raise InputError(
                f"cached_tokens: got {self.cached_tokens}, expected at least {columns}, which {what} "
                f"of prompt #{i} may need"
            )


def end_strings(strings: Sequence[str], tokenizer: Any) -> Any:
    """transformers' criterion by which an end string ends a completion; None if there are none.

    Raises:
        InputError: no tokenizer, an empty string, or one that the tokenizer's tokens cannot spell.
    """
    from transformers import StopStringCriteria

    if isinstance(strings, str):
        strings = [strings]
    if not strings:
        return None
    if tokenizer is None:
        raise InputError("stop_strings need a tokenizer, which knows the text of tokens: got None")
    for string in strings:
        unknown = tokenizer.unk_token_id
        if not string or (unknown is not None and unknown in tokenizer(string)["input_ids"]):
            raise InputError(
                f"stop_strings: got {string!r}, which the tokenizer's tokens cannot spell, so that no "
                "completion could end with it"
            )
    return StopStringCriteria(tokenizer, list(strings))


def draw_seed(seed: Seed) -> int:
    """The seed itself, or a number drawn from a generator; None draws from torch's own."""
    if isinstance(seed, int):
        expect(seed >= 0, "seed", seed, "at least 0")
        return seed
    device = "cpu" if seed is None else seed.device
    return int(torch.randint(2**63 - 1, (), generator=seed, device=device))
