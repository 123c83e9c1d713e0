"""One of two processes of `test_two_ranks_ask_for_equally_many`: TRL's server mode, one prompt × 8 a rank."""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from standin_vllm import stand_in

from lambda_grpo.branching import BranchPlan
from lambda_grpo.engines.trl import vllm_forks

END, PLAN, LONGEST = 0, BranchPlan((2,), (4,)), 5


def draw(prompt: list[int], most: int) -> tuple[list[int], list[float]]:
    """As many tokens as the prompt's first says, then the end; tokens tell the prompt's second."""
    whole = [prompt[1]] * (prompt[0] - 1) + [END]
    so_far = len(prompt) - 2
    ids = whole[so_far : so_far + most]
    return ids, [-float(len(prompt) + t) for t in range(len(ids))]


def main(_: str) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    for lengths in ((2, 5), (5, 1), (4, 4), (1, 2)):  # tokens of each rank's completions
        vllm = stand_in(accelerator, draw, "server", max_completion_length=LONGEST)
        ids, logprobs, drawn = _forked(vllm, lengths[rank], rank)
        longer = max(lengths) > 2
        told = gather_object([len(vllm.calls)])  # only the first rank speaks with the server
        assert told == [1 + longer, 0], told
        assert ids == [[7 + rank] * (lengths[rank] - 1) + [END]] * 8, ids
        assert logprobs == [[[-float(2 + t)] for t in range(lengths[rank])]] * 8, logprobs
        assert drawn == 2 * min(lengths[rank], 2) + 8 * max(lengths[rank] - 2, 0), drawn
        if rank == 0 and longer:
            assert [len(prompts) * n for prompts, _, n in vllm.calls] == [2 * 2, 2 * 8]
    vllm_forks._as_many_on_each_rank = _planted
    vllm = stand_in(accelerator, draw, "server", max_completion_length=LONGEST)
    _, _, drawn = _forked(vllm, 5, rank)
    right = gather_object([drawn == 2 * 2 + 8 * 3])
    assert not all(right), "the planted fault was not noticed"


def _forked(vllm: Any, length: int, rank: int) -> tuple[Any, Any, int]:
    prompts = [[length, 7 + rank]] * 8
    (_, ids, logprobs, _), drawn = vllm_forks.generate_forked(
        vllm, vllm.generate, PLAN, [END], prompts=prompts, images=None, num_generations=8
    )
    return ids, logprobs, drawn


def _planted(asked: list[list[int]], filler: list[int]) -> list[list[int]]:
    """The second rank leaves one of its prompts away where there are two."""
    return asked[: 2 - Accelerator(cpu=True).process_index]
