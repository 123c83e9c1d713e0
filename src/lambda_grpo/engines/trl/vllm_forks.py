"""Forked completions from vLLM, in TRL's trainer: one call of `VLLMGeneration.generate` for each segment.

A segment is what lies between two forks. Each call asks for the tokens of one segment: a prompt is the prompt
of the group and the tokens so far, and gets as many completions as there are blocks. vLLM's prefix caching
(on by default) keeps it from computing the beginning again. Completions that have ended are not asked for
again.

Every rank makes equally many calls with equally many prompts, because TRL gathers them: in server mode, and
where ranks share an engine (`vllm_tensor_parallel_size`). A rank on which more have ended fills up with
prompts whose completions are thrown away.

Tested with TRL's own `VLLMGeneration` on a stand-in engine, never with vLLM on a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object

from lambda_grpo.branching import BranchPlan
from lambda_grpo.errors import InputError

# What may be among `generation_kwargs`: it draws each token by itself and what lies before it. Others count a
# completion's tokens (max_tokens, min_tokens), look for texts that a fork may cut (stop, bad_words), penalise
# what was generated and not what was given (frequency_penalty), or make siblings alike (seed).
_PER_TOKEN = {
    "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias",
    "allowed_token_ids", "logprobs", "detokenize", "skip_special_tokens",
}  # fmt: skip


@dataclass
class ForkedRows:
    """Completions that grow segment by segment.

    Attributes:
        ids: B lists of token ids.
        logprobs: for each token what vLLM gives: a list, the drawn token's log-prob first.
        sampled_tokens: those that were drawn; a block's count once.
    """

    ids: list[list[int]]
    logprobs: list[list[list[float]]]
    sampled_tokens: int = 0

    def extend(self, rows: range, ids: Sequence[int], logprobs: Sequence[list[float]]) -> None:
        """Write a segment down for all rows of its block."""
        self.sampled_tokens += len(ids)
        for row in rows:
            self.ids[row] = [*self.ids[row], *ids]
            self.logprobs[row] = [*self.logprobs[row], *logprobs]


def generate_forked(
    vllm: Any,
    generate: Callable[..., tuple[Any, ...]],
    plan: BranchPlan,
    end_ids: Sequence[int],
    *,
    prompts: list[list[int]],
    images: Any,
    num_generations: int,
    profiler: Any = None,
) -> tuple[tuple[Any, ...], int]:
    """What `VLLMGeneration.generate` returns, forked, and the number of tokens that were drawn.

    Args:
        vllm: TRL's `VLLMGeneration`.
        generate: its own method.
        plan: where to fork.
        end_ids: tokens after which a completion does not go on; `stop_token_ids` of vLLM's own come on top.
        prompts, images, num_generations, profiler: as TRL's method takes them: one prompt a row, G neighbours
            alike. Log-probs of other tokens than the drawn ones are not returned.

    Raises:
        InputError: images.
    """
    if images is not None:
        raise InputError("branch_depths: images cannot fork: leave branch_depths away")
    rows = ForkedRows([[] for _ in prompts], [[] for _ in prompts])
    sizes, longest = plan.sizes(num_generations), vllm.max_completion_length
    ends = {*end_ids, *(vllm.generation_kwargs.get("stop_token_ids") or ())}
    parents, parent_size = list(range(0, len(prompts), num_generations)), num_generations
    try:
        for size, begin, end in zip(sizes, (0, *plan.depths), (*plan.depths, longest), strict=True):
            copies = parent_size // size
            asked = _as_many_on_each_rank([prompts[row] + rows.ids[row] for row in parents], prompts[0])
            if not asked:
                break
            vllm.max_completion_length = end - begin
            _, ids, logprobs, _ = generate(
                prompts=[prompt for prompt in asked for _ in range(copies)],
                images=None,
                num_generations=copies,
                profiler=profiler,
            )
            heads = [row + copy * size for row in parents for copy in range(copies)]  # a block's first row
            for head, own_ids, own_logprobs in zip(heads, ids, logprobs, strict=False):
                rows.extend(range(head, head + size), own_ids, own_logprobs)
            parents = [row for row in heads if len(rows.ids[row]) == end and rows.ids[row][-1] not in ends]
            parent_size = size
    finally:
        vllm.max_completion_length = longest
    return (prompts, rows.ids, rows.logprobs, None), rows.sampled_tokens


def check_generation_kwargs(given: dict[str, Any] | None, regex: str | None) -> None:
    """Refuse settings of vLLM that would mean something else in each segment than in a whole completion.

    Raises:
        InputError: names them.
    """
    others = set(given or {}) - _PER_TOKEN | ({"vllm_structured_outputs_regex"} if regex else set())
    if others:
        raise InputError(
            f"branch_depths: vLLM generates the tokens between forks one part after the other, and "
            f"{', '.join(sorted(others))} would count for each part anew: leave it away, or branch_depths"
        )


def _as_many_on_each_rank(asked: list[list[int]], filler: list[int]) -> list[list[int]]:
    """As many prompts as the rank with most of them asks for."""
    most = max(gather_object([len(asked)]))
    return asked + [filler] * (most - len(asked))
