"""What a run folder says beside its rollouts: evaluations, validation, and which tokenizer was used.

Such files may be half written or a stranger's. What cannot be used is passed over, with a note.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError
from lambda_grpo.rollouts.paths import FoundRun
from lambda_grpo.rollouts.tokens import Tokeniser

_LARGEST = 2**27  # bytes of a file that is read
_EVALUATED = ("sampled_accuracy", "greedy_accuracy", "mean_reward")
VALIDATED = ("eval_reward", "eval_rewards/accuracy_reward/mean")  # ours and TRL's names


@dataclass(frozen=True)
class RunRecords:
    """What one run wrote beside its rollouts.

    Attributes:
        before, after: measure → mean, low and high, of the evaluations before and after training; empty if
            there is none.
        task: what was trained and tested on; empty if that is not known.
        validation: measure → (step, value) pairs, in order of steps.
        vocabulary: equal for runs with the same tokenizer; empty if the folder holds none.
        notes: what could not be used.
    """

    before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    after: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    task: str = ""
    validation: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    vocabulary: str = ""
    notes: tuple[str, ...] = ()


def read_records(run: FoundRun) -> RunRecords:
    """What stands in the folder of a run; nothing if only a file was named."""
    if run.folder is None:
        return RunRecords()
    notes: list[str] = []

    def unusable(name: str, why: object) -> None:
        notes.append(f"{run.name}: {name} cannot be used: {why}")

    results: Any = {}
    try:
        text = _text(run.folder / "results.json")
        results = json.loads(text) if text else {}
    except (OSError, ValueError, RecursionError) as error:
        unusable("results.json", error)
    validation: dict[str, list[tuple[int, float]]] = {}
    try:
        validation = _validation(run.folder / "metrics.jsonl")
    except (OSError, ValueError) as error:
        unusable("metrics.jsonl", error)
    return RunRecords(
        before=_estimates(results, "before"),
        after=_estimates(results, "after"),
        task=_task(results),
        validation=validation,
        vocabulary=_vocabulary(run.folder / "tokenizer" / "tokenizer.json"),
        notes=tuple(notes),
    )


def own_tokeniser(run: FoundRun) -> Tokeniser | None:
    """The tokenizer in the folder of a run, if there is one that can be loaded."""
    if run.folder is None or not (run.folder / "tokenizer" / "tokenizer.json").is_file():
        return None
    try:
        return Tokeniser(str(run.folder / "tokenizer"))
    except InputError:
        return None


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST // 2**20} MB")
    return path.read_text("utf-8")


def _validation(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The validations in metrics.jsonl; lines that are none, or not written to their end, are passed over."""
    found: dict[str, dict[int, float]] = {}
    for line in _text(path).split("\n"):
        row = _object(line) if '"eval_' in line else {}
        step = row.get("step")
        for name in VALIDATED:
            if isinstance(step, int) and 0 <= step < 2**53 and _is_number(row.get(name)):
                found.setdefault(name, {})[step] = float(row[name])
    return {name: sorted(values.items()) for name, values in found.items()}


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _estimates(results: Any, when: str) -> dict[str, dict[str, float]]:
    """The means of an evaluation with their intervals, by name; `pass@k` among them."""
    evaluation = results.get(when) if isinstance(results, dict) else None
    if not isinstance(evaluation, dict):
        return {}
    found = {name: evaluation.get(name) for name in _EVALUATED}
    passed = evaluation.get("pass_at")
    if isinstance(passed, dict):
        found |= {f"pass@{k}": value for k, value in passed.items() if k.isdecimal() and len(k) < 6}
    if found["mean_reward"] == found["sampled_accuracy"]:  # every reward is 0 or 1
        del found["mean_reward"]
    return dict(_numbers(found))


def _task(results: Any) -> str:
    settings = results.get("settings") if isinstance(results, dict) else None
    task = settings.get("task") if isinstance(settings, dict) else None
    return task[:100] if isinstance(task, str) else ""


def _numbers(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    for name, value in found.items():
        if isinstance(value, dict) and all(_is_number(value.get(key)) for key in ("mean", "low", "high")):
            yield name, {key: float(value[key]) for key in ("mean", "low", "high")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e100


def _vocabulary(path: Path) -> str:
    """A checksum of what tokenizer.json says of tokens; how it pads and cuts is left out."""
    try:
        content = json.loads(_text(path) or "null")
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    told = json.dumps([content.get("model"), content.get("added_tokens")], sort_keys=True)
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
