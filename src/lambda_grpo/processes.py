"""One job of several processes, started by torchrun or `accelerate launch`: who does what, and who speaks.

Started plainly there is one process, and everything here does nothing. The first process writes the run
folder and the terminal; all of them sample, score and train. What fails on one process ends the job:
torchrun stops the others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.tensor import DTensor

from lambda_grpo import console
from lambda_grpo.errors import LambdaGRPOError, expect
from lambda_grpo.evaluation import Answers, Evaluation, answer, summarise, usual_pass_at
from lambda_grpo.sampling import Sampling
from lambda_grpo.tasks import Problem, Task

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return bool(PartialState().is_main_process)


def expect_alone(what: str) -> None:
    """Refuse to do `what` in a job of several processes.

    Raises:
        InputError: there are several.
    """
    count = PartialState().num_processes
    expect(count == 1, what, f"{count} processes", "one: leave torchrun or accelerate launch away")


def quiet_others() -> None:
    """Only the first process writes to the terminal from here on; errors any of them."""
    console.CONSOLE.quiet = not is_first()


def agreed(value: T) -> T:
    """The first process's value, on all of them."""
    found = [value]
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def on_first(function: Callable[[], T]) -> T:
    """What `function` returns on the first process, which alone calls it, on all of them.

    Raises:
        LambdaGRPOError, OSError: what it raised there, on all of them.
    """
    outcome: Any = None
    if is_first():
        try:
            outcome = function()
        except (LambdaGRPOError, OSError) as error:
            outcome = error
    outcome = agreed(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    found: T = outcome
    return found


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first process runs the block; then the others do, and find what it left."""
    with PartialState().main_process_first():
        yield


def evaluate(
    model: Any, tokenizer: Any, task: Task, problems: Sequence[Problem], sampling: Sampling, progress: Any
) -> Evaluation:
    """`evaluation.evaluate`, each process answering its share of the problems; all get the same result.

    Process r of n answers problems r, r + n, …, with a seed of its own: greedy answers are those of one
    process, sampled ones are others of the same distribution.

    Raises:
        InputError: as `evaluation.answer`; fewer problems than processes.
    """
    state = PartialState()
    count, rank = state.num_processes, state.process_index
    if _cut_up(model):  # no process can answer without the others: all answer the same
        count, rank = 1, 0
    wanted = f"at least one for each of {count} processes"
    expect(len(problems) >= count, "eval_problems", len(problems), wanted)
    mine = replace(sampling, seed=sampling.seed + rank)
    answers = answer(model, tokenizer, task, problems[rank::count], mine, progress)
    if count > 1:
        answers = _interleaved(gather_object([answers]))
    return summarise(answers, usual_pass_at(sampling.samples))


def _cut_up(model: Any) -> bool:
    """Whether each process holds a part of the weights: DTensors (FSDP2), or ZeRO-3's."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def _interleaved(shares: Sequence[Answers]) -> Answers:
    """Answers to all problems, in their order, of those to problems r, r + n, … from n processes."""
    total, count = sum(len(share.greedy) for share in shares), len(shares)

    def joined(name: str) -> Any:
        parts = [getattr(share, name) for share in shares]
        whole = np.empty((total, *parts[0].shape[1:]))
        for rank, part in enumerate(parts):
            whole[rank::count] = part
        return whole

    traits = {
        name: sum(share.traits[name] * len(share.greedy) for share in shares) / total
        for name in shares[0].traits
    }
    return Answers(joined("sampled"), joined("greedy"), joined("lengths"), traits)
