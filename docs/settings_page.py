"""Writes docs/settings.md from the settings themselves: `python docs/settings_page.py`.

A test compares the two.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import GRPOConfig

from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.evaluating import eval_command as eval_command
from lambda_grpo.report import report_command as report_command
from lambda_grpo.report import watch_command as watch_command
from lambda_grpo.training.options import TrainOptions

PAGE = Path(__file__).parent / "settings.md"
INTRODUCTION = """\
# Settings

`lambda-grpo train` takes every name below as a flag, `--name value`, and as a line of a YAML recipe; a flag
goes over the recipe, the recipe over the default. In Python, `LambdaGRPOConfig` takes all but the first
table. A name that does not exist is an error that names the nearest one.

```sh
lambda-grpo train --config recipes/default.yaml --credit lambda_grpo_matched
lambda-grpo train --help-all
```

Without `--config` the recipe is [recipes/default.yaml](../recipes/default.yaml), which suits the embedded
policy; with `--model` and another model it is
[recipes/default-other-model.yaml](../recipes/default-other-model.yaml), which holds TRL's own defaults.

`lambda-grpo train` sets these itself, unless told otherwise: `use_cpu` where there is no GPU, `bf16` where
there is one, `report_to: none`, `logging_steps: 1`, `save_rollouts: true`; and `validate_every` stands for
`eval_strategy`, `eval_steps`, `eval_on_start`, `per_device_eval_batch_size`, `save_strategy`,
`save_total_limit`, `load_best_model_at_end` and `metric_for_best_model`.

## Recipes and dry runs

A recipe is a YAML file of settings. It may begin with `extends: NAME` (one of ours, or a path), and then says
only what differs.

`--dry_run` works with every recipe. It replaces the model by a tiny random one of the same class, a data set
of the Hub by a few lines in its form, and sizes by small ones, and it says so. Then it trains for two steps,
validation and best checkpoint included. It needs no network and takes seconds. It shows that the settings fit
together and with the installed versions. It shows nothing about memory, speed or learning. Its run folder is
thrown away unless `--output_dir` names one.

The tables below are written by `docs/settings_page.py` from the code, with the versions in
[constraints.txt](../constraints.txt).
"""
TRL = """\
What they mean is TRL's: its documentation of `GRPOConfig`, or `lambda-grpo train --help-all`. How they go
together with a credit: [Use with TRL](trl.md).
"""
TRANSFORMERS = """\
What they mean is documented with transformers' `TrainingArguments`, and by `lambda-grpo train --help-all`.
"""


def page() -> str:
    """The whole page."""
    trl = _names(GRPOConfig) - _names(TrainingArguments)
    return "\n".join(
        [
            INTRODUCTION,
            "## Only with `lambda-grpo train`\n",
            _explained(dataclasses.fields(TrainOptions)),
            "## `LambdaGRPOConfig`: ours\n",
            _explained(f for f in _fields() if f.name not in _names(GRPOConfig)),
            "## `GRPOConfig`: TRL's\n",
            TRL,
            _listed(f for f in _fields() if f.name in trl),
            "## `TrainingArguments`: transformers'\n",
            TRANSFORMERS,
            _listed(f for f in _fields() if f.name in _names(TrainingArguments)),
            "## Options of `lambda-grpo report`\n",
            _command(report_command.add_arguments),
            "## Options of `lambda-grpo watch`\n",
            _command(watch_command.add_arguments),
            "## Options of `lambda-grpo eval`\n",
            _command(eval_command.add_arguments),
        ]
    )


def _fields() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(LambdaGRPOConfig) if field.init]


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _explained(fields: Iterable[dataclasses.Field[Any]]) -> str:
    rows = [f"| `{f.name}` | {_default(f)} | {_cell(f.metadata['help'])} |" for f in fields]
    return "\n".join(["| name | default | |", "|---|---|---|", *rows, ""])


def _listed(fields: Iterable[dataclasses.Field[Any]]) -> str:
    rows = [f"| `{f.name}` | {_default(f)} |" for f in sorted(fields, key=lambda field: field.name)]
    return "\n".join(["| name | default |", "|---|---|", *rows, ""])


def _command(add_arguments: Any) -> str:
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        names = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar}…`"
        rows.append(f"| {names} | {_cell(formatter._expand_help(action))} |")
    return "\n".join(["| option | |", "|---|---|", *rows, ""])


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory is not dataclasses.MISSING
    value = field.default_factory() if made else field.default
    value = getattr(value, "value", value)  # of an enum
    return f"`{json.dumps(value, default=str)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
