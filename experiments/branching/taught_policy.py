"""The embedded policy, taught the two tasks of long_sums.py by demonstrations; made once and cached."""

import hashlib
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.branching import long_sums
from lambda_grpo import console, policy
from lambda_grpo.policy import cache, imitation
from lambda_grpo.policy.imitation import Pretraining, imitate

TAUGHT = "taught"
TEACHING = Pretraining(steps=3000, batch_size=64, learning_rate=2e-3, warmup=0.1, max_grad_norm=1.0)


def taught_policy() -> Path:
    """The folder of the policy, taught now if it is not in the cache.

    Raises:
        LambdaGRPOError: the cache cannot be written to.
    """
    start = console.embedded_policy()
    modules = long_sums.__file__, imitation.__file__, __file__
    source = "".join(Path(module).read_text() for module in modules)
    key = hashlib.sha256(f"{start.name} {source} {asdict(TEACHING)}".encode()).hexdigest()[:12]

    def make(aside: Path) -> None:
        model, tokenizer = policy.load_policy(str(start), dtype="float32")
        with console.progress("Teaching long sums") as shown:
            teach(model, tokenizer, shown)
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    return cache.made_once(f"long-sums-{key}", make)


def teach(model: Any, tokenizer: Any, shown: console.Shown) -> None:
    """Imitate demonstrations of both tasks, half of each batch one task."""
    rng = random.Random(f"{TEACHING.seed} demonstrations")
    tasks = [task() for task in long_sums.TASKS]
    count = TEACHING.steps * TEACHING.batch_size
    imitate(model, tokenizer, [tasks[i % 2].demonstration(rng) for i in range(count)], TEACHING, shown)
