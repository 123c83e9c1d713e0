"""sequences: integers under exact conditions, an application that the paper leaves to future work.

A character-level policy is pre-trained on demonstrations of the task `sequences` that keep length, order and
spread and round the sum to what is near; then it is trained like the policies of `curves`.

policy/   the pre-trained policy; the other files are those of `curves`
"""

import random
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambda_grpo import console, policy, runs
from lambda_grpo.experiments import curves
from lambda_grpo.tasks import Problem
from lambda_grpo.tasks.sequences import Sequences

RESUMES_FROM = curves.RESUMES_FROM
CHARACTERS = string.ascii_letters + string.digits + " ,.-"


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Pre-train the policy unless it is there, then `curves.run`; the figures.

    Raises:
        InputError: as `curves.run`.
    """
    recipe = policy.Pretraining(settings["pretraining_steps"], settings["pretraining_batch"])
    start = output / "policy"
    if not start.is_dir():
        pairs = demonstrations(recipe.steps * recipe.batch_size, recipe.seed)
        with console.progress("Pre-training the policy") as shown:
            model, tokenizer = policy.pretrain(pairs, CHARACTERS, recipe, shown)
        with runs.folder_written_whole(start) as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
    return curves.run(settings, output, str(start))


def demonstrations(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts of the train split with a completion each: right in one case of two to six, else near."""
    rng = random.Random(f"{seed} demonstrations")
    return [(p.prompt, _careless(p, rng)) for p in Sequences().problems("train", count, seed)]


def _careless(problem: Problem, rng: random.Random) -> str:
    """The first member is chosen last, and rounded, so that the sum misses by at most n / 2."""
    n, d, total = (problem.answer[name] for name in ("n", "d", "S"))
    above = [0, *sorted(rng.randint(0, d) for _ in range(n - 2)), d]
    first = round((total - sum(above)) / n)
    return ",".join(str(first + b) for b in above)
