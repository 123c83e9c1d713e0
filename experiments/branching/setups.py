"""Who is trained on what, and how: a column of config.yaml's lists for each task, and the arms."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from experiments.branching.taught_policy import TAUGHT, taught_policy
from lambda_grpo.branching import BranchPlan
from lambda_grpo.credit import get_credit
from lambda_grpo.errors import InputError

_COLUMNS = {"tasks": "task", "models": "model", "max_completion_lengths": "max_completion_length"} | {
    name: name.removesuffix("s") for name in ("depths", "factors", "temperatures", "learning_rates")
}


@dataclass(frozen=True)
class Setup:
    """One task and how policies are trained on it; the comments of config.yaml say what each is."""

    task: str
    model: str
    seeds: int
    steps: int
    prompts: int
    chains: int
    slots: int
    depth: int
    factor: int
    max_completion_length: int
    temperature: float
    learning_rate: float
    warmup_steps: int
    validate_every: int
    validation_problems: int
    validation_samples: int
    groups: int

    @property
    def plan(self) -> BranchPlan:
        """Where completions fork in the branched arms."""
        return BranchPlan((self.depth,), (self.factor,))

    @property
    def folder(self) -> str:
        """What `load_policy` loads."""
        return str(taught_policy()) if self.model == TAUGHT else self.model


@dataclass(frozen=True)
class Arm:
    """What is compared: whether completions fork, and the credit.

    Raises:
        InputError: (from `of`) another name than chains-CREDIT or branched-CREDIT.
    """

    forks: bool
    credit: str

    @classmethod
    def of(cls, name: str) -> "Arm":
        how, _, credit = name.partition("-")
        if how not in ("chains", "branched") or not credit:
            raise InputError(f"arms: expected chains-CREDIT or branched-CREDIT, got {name!r}")
        get_credit(credit)
        return cls(how == "branched", credit)


def setups(settings: Mapping[str, Any]) -> list[Setup]:
    """One setup per task.

    Raises:
        InputError: a list that has not one value per task.
    """
    columns = {key: value for key, value in settings.items() if key != "arms"}
    count = len(settings["tasks"])
    for key, values in columns.items():
        if len(values) != count:
            raise InputError(f"{key}: expected {count} values, one per task, got {len(values)}")
    named = {_COLUMNS.get(key, key): values for key, values in columns.items()}
    return [Setup(**{f.name: named[f.name][i] for f in fields(Setup)}) for i in range(count)]
