"""What each model is asked, and what it has answered so far: one sheet per model and benchmark."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambda_grpo import console, policy
from lambda_grpo.evaluating.answer_log import AnswerLog
from lambda_grpo.evaluating.completions import Sampling, encode
from lambda_grpo.evaluating.intervals import Floats
from lambda_grpo.tasks.asking import PromptFormat
from lambda_grpo.tasks.benchmarks import Benchmark


@dataclass(frozen=True)
class Asking:
    """How the problems are asked.

    Attributes:
        sampling: its `samples` answers per problem.
        greedy: the likeliest answer; then one is enough.
        prompt_format: how a problem becomes what the model reads.
        engine: `transformers`, `vllm`, or `auto`: vLLM if it is installed and there is a CUDA device.
        pass_at: the k of pass@k; None for 2, 4, 8, … and all samples.
    """

    sampling: Sampling
    greedy: bool
    prompt_format: PromptFormat
    engine: str
    pass_at: Sequence[int] | None = None


@dataclass
class Sheet:
    """One model's answers to one benchmark, the prompts as token ids, and how it was asked."""

    model: str
    benchmark: Benchmark
    prompts: list[list[int]]
    log: AnswerLog
    samples: int
    asked: dict[str, Any]

    def missing(self) -> list[int]:
        return [row for row in range(len(self.prompts) * self.samples) if row not in self.log.done]

    def array(self, field: str) -> Floats:
        """(P, K) of a field of the answers."""
        rows = range(len(self.prompts) * self.samples)
        values = np.array([getattr(self.log.done[row], field) for row in rows], np.float64)
        return values.reshape(len(self.prompts), self.samples)


def lay_out(model: str, benchmarks: Sequence[Benchmark], asking: Asking, folder: Path) -> list[Sheet]:
    """One sheet per benchmark for a model.

    Raises:
        InputError: a tokenizer that cannot be loaded or cannot be asked so, answers under other settings.
    """
    tokenizer, how = policy.load_tokenizer(console.policy_folder(model)), asking.prompt_format
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", model).strip("-.")
    found = []
    for benchmark in benchmarks:
        asked = [how.apply(problem.prompt, tokenizer) for problem in benchmark.problems]
        prompts = [encode(tokenizer, prompt, how.chat_template_kwargs) for prompt in asked]
        record = how.record(chat=not isinstance(asked[0], str))
        settings = _settings(model, benchmark, prompts, asking) | record
        log = AnswerLog(folder / slug / f"{benchmark.name}.jsonl", settings)
        found.append(Sheet(model, benchmark, prompts, log, asking.sampling.samples, record))
    return found


def _settings(model: str, benchmark: Benchmark, prompts: Any, asking: Asking) -> dict[str, Any]:
    """What the answers and their rewards depend on, beside the prompt format."""
    golds = [problem.answer for problem in benchmark.problems]
    drawn = asdict(asking.sampling)
    if asking.greedy:  # the rest has no influence
        names = ("max_completion_length", "repetition_penalty", "generation_kwargs", "samples")
        drawn = {name: drawn[name] for name in names}
    return {
        "model": model,
        "weights": _fingerprint(Path(model)),
        "problems": hashlib.sha256(repr((prompts, golds)).encode()).hexdigest()[:16],
        "engine": asking.engine,
        "greedy": asking.greedy,
        **drawn,
    }


def _fingerprint(folder: Path) -> str | None:
    """Tells a local model from a later one in its folder, by sizes and times; None for one of the Hub."""
    if not folder.is_dir():
        return None
    files = [(path.name, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
