"""One job of several processes, started by torchrun or `accelerate launch`: what each does, and which prints.

Without a launcher there is one process, and everything here does nothing. The first process writes the run
folder and the terminal. All of them sample, score and train. A failure on one process ends the job, because
torchrun stops the others.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch.distributed.tensor import DTensor

from lambda_grpo import console
from lambda_grpo.errors import LambdaGRPOError, expect
from lambda_grpo.evaluating.completions import Sampling
from lambda_grpo.evaluating.evaluation import Answers, Evaluation, answer, summarise, usual_pass_at
from lambda_grpo.tasks import Problem, Task

T = TypeVar("T")


def count() -> int:
    """Of how many processes this job is."""
    return int(PartialState().num_processes)


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return bool(PartialState().is_main_process)


def expect_all_started() -> None:
    """Refuse `accelerate launch --cpu --num_processes N`: without MPI it starts one process, in silence.

    It leaves an address to meet at, and no number of processes.

    Raises:
        InputError: so it was.
    """
    environment = os.environ
    lost = environment.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in environment
    expect(
        not lost or "WORLD_SIZE" in environment or count() > 1,
        "accelerate launch --cpu with several processes",
        "one process, since accelerate starts no more on CPUs without MPI",
        "`torchrun --nproc_per_node N -m lambda_grpo.cli train …`",
    )


def check_sharding(accelerator: Any) -> None:
    """Refuse FSDP that was asked for but is not in force, or that would save the weights in parts.

    On CPUs accelerate takes DDP in its place, and does not say so. `model/` is for anyone to read.

    Raises:
        InputError: either.
    """
    kind = accelerator.distributed_type
    asked = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    wanted = "FSDP, as asked for: accelerate has it on GPUs only"
    expect(not asked or kind == DistributedType.FSDP, "accelerate", f"distributed type {kind.value}", wanted)
    if kind == DistributedType.FSDP:
        saved = accelerator.state.fsdp_plugin.state_dict_type.name
        wanted = "FULL_STATE_DICT: set it in the settings of accelerate, or in FSDP_STATE_DICT_TYPE"
        expect(saved == "FULL_STATE_DICT", "fsdp_state_dict_type", saved, wanted)


def quiet_others() -> None:
    """Only the first process writes to the terminal from here on; errors any of them."""
    console.CONSOLE.quiet = not is_first()


def agreed(value: T) -> T:
    """The first process's value, on all of them."""
    found = [value]
    if count() > 1:
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
    """Each process answers its share of the problems; all get the same summary.

    Process r of n answers problems r, r + n, …, with a seed of its own: greedy answers are those of one
    process, sampled ones are others of the same distribution.

    Raises:
        InputError: as `evaluation.answer`; fewer problems than processes.
    """
    shares, rank = count(), PartialState().process_index
    if _cut_up(model):  # no process can answer without the others: all answer the same
        shares, rank = 1, 0
    wanted = f"at least one for each of {shares} processes"
    expect(len(problems) >= shares, "eval_problems", len(problems), wanted)
    mine = replace(sampling, seed=sampling.seed + rank)
    answers = answer(model, tokenizer, task, problems[rank::shares], mine, progress)
    if shares > 1:
        answers = _interleaved(gather_object([answers]))
    return summarise(answers, usual_pass_at(sampling.samples))


def _cut_up(model: Any) -> bool:
    """Whether each process holds a part of the weights: DTensors (FSDP2), or ZeRO-3's."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def _interleaved(shares: Sequence[Answers]) -> Answers:
    """Answers to all problems, in their order, of those to problems r, r + n, … from n processes."""
    total = sum(len(share.greedy) for share in shares)

    def joined(name: str) -> Any:
        parts = [getattr(share, name) for share in shares]
        whole = np.empty((total, *parts[0].shape[1:]))
        for rank, part in enumerate(parts):
            whole[rank :: len(parts)] = part
        return whole

    traits = {
        name: sum(share.traits[name] * len(share.greedy) for share in shares) / total
        for name in shares[0].traits
    }
    return Answers(joined("sampled"), joined("greedy"), joined("lengths"), traits)
