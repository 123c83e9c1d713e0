"""How a run went: the content of its results.json, which is written last, and of its before.json."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lambda_grpo.evaluating.evaluation import Evaluation
from lambda_grpo.evaluating.intervals import Estimate
from lambda_grpo.whole_files import write_json


@dataclass(frozen=True)
class Validated:
    """How validation went.

    Attributes:
        metric: what decides on the best, `eval_reward` unless set otherwise.
        best_step, best_value: of the best checkpoint, which is the policy in `model/`. The policy at the
            start is no checkpoint, even if it was better.
        start_value: of the policy at the start; nan if it was not validated.
        every, problems, problems_from: how often, on how many, from which of the task's splits.
    """

    metric: str
    best_step: int
    best_value: float
    start_value: float
    every: int
    problems: int
    problems_from: str

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.best_value:.3f} ({self.start_value:.3f} at the start), "
            f"on {self.problems} held-out problems of the {self.problems_from} split"
        )


@dataclass(frozen=True)
class Trained:
    """One run: where it is and how it went.

    Attributes:
        model_step: the step of the policy in `model/`.
        seconds: from the start of the process that finished the run.
        resumed_from: the step from which that process went on; None if it did all of the run.
        asked: how the policy was asked, in training, in validation and for the table alike.
    """

    folder: Path
    before: Evaluation
    after: Evaluation
    steps: int
    model_step: int
    validated: Validated | None
    seconds: float
    resumed_from: int | None
    asked: Mapping[str, Any]


def write(trained: Trained, settings: Mapping[str, Any]) -> None:
    """Write results.json, which says that the run is finished."""
    content = asdict(trained)
    del content["folder"]
    content["validation"] = content.pop("validated")
    versions = {name: version(name) for name in ("lambda-grpo", "torch", "transformers", "trl")}
    write_json(trained.folder / "results.json", {"settings": dict(settings), **content, "versions": versions})


def read(folder: Path) -> Trained:
    """The run that `write` wrote."""
    content = json.loads((folder / "results.json").read_text("utf-8"))
    return Trained(
        folder=folder,
        before=_evaluation(content["before"]),
        after=_evaluation(content["after"]),
        steps=content["steps"],
        model_step=content["model_step"],
        validated=Validated(**_with_nan(content["validation"])) if content["validation"] else None,
        seconds=content["seconds"],
        resumed_from=content["resumed_from"],
        asked=content["asked"],
    )


def write_before(folder: Path, before: Evaluation) -> None:
    write_json(folder / "before.json", asdict(before))


def read_before(folder: Path) -> Evaluation | None:
    """The evaluation before training, if an earlier process has come that far."""
    path = folder / "before.json"
    return _evaluation(json.loads(path.read_text("utf-8"))) if path.exists() else None


def _evaluation(content: Mapping[str, Any]) -> Evaluation:
    estimates = ("sampled_accuracy", "greedy_accuracy", "mean_reward")
    return Evaluation(
        **{
            **_with_nan(content),
            **{name: Estimate(**_with_nan(content[name])) for name in estimates},
            "pass_at": {int(k): Estimate(**_with_nan(each)) for k, each in content["pass_at"].items()},
            "traits": _with_nan(content["traits"]),
        }
    )


def _with_nan(content: Mapping[str, Any]) -> dict[str, Any]:
    """NaN where JSON has null."""
    return {name: math.nan if value is None else value for name, value in content.items()}
