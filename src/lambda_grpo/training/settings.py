"""Settings of `lambda-grpo train`: defaults ← recipe ← flags, checked before anything long runs.

Without a recipe, recipes/default.yaml is used, and recipes/default-other-model.yaml with `--model X`.
A recipe with the key `extends` goes over another one, which the key names: one of ours, or a path.
"""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from lambda_grpo import policy
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.training import multi_rank
from lambda_grpo.training.options import (
    TrainOptions,
    TrainSettings,
    check,
    check_best_is_kept,
    check_credits,
    folder_name,
    implied,
)
from lambda_grpo.whole_files import read_yaml

RECIPES = Path(__file__).parents[1] / "recipes"


_LISTED_BY = "lambda-grpo train --help-all"

_JSON_EXAMPLES = {
    "credit_kwargs": '{"power": 0.5}',
    "chat_template_kwargs": '{"enable_thinking": false}',
    "generation_kwargs": '{"no_repeat_ngram_size": 3}',
}


class _Parser(HfArgumentParser):
    """One flag per field of `TrainOptions` and `LambdaGRPOConfig`."""

    def __init__(self) -> None:
        super().__init__([TrainOptions, LambdaGRPOConfig], prog="lambda-grpo train", allow_abbrev=False)
        for action in self._actions:
            if action.dest in LambdaGRPOConfig._VALID_DICT_FIELDS:
                action.type = partial(_json_text, action.dest)

    def error(self, message: str) -> Any:
        raise InputError(message)


def _json_text(name: str, text: str) -> str:
    """The text, checked to hold a JSON object; where a path may stand, only if it begins as one."""
    if not (text.startswith("{") or name.endswith("_kwargs")):
        return text
    example = _JSON_EXAMPLES.get(name, '{"name": 1}')
    try:
        found = json.loads(text)
    except ValueError as error:
        message = f"not JSON: {error}; got {text!r}, expected an object such as {example!r}"
        raise argparse.ArgumentTypeError(message) from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as {example!r}, got {text!r}")
    return text


def default_recipe(flags: Sequence[str]) -> str:
    """The recipe where none is named: one suits the embedded policy, and one all others.

    Raises:
        InputError: `--model` without a name.
    """
    model = _Parser().parse_known_args(list(flags))[0].model
    return "default" if model == policy.EMBEDDED else "default-other-model"


def resolve(recipe: str, flags: Sequence[str]) -> TrainSettings:
    """Read the recipe (a path, or the name of one of ours; empty: the default) and lay the flags over it.

    Raises:
        InputError: no such recipe, an unknown key or flag (with the nearest miss), a value that does not fit.
    """
    parser = _Parser()
    if "--help-all" in flags:
        parser.print_help()
        raise SystemExit(0)
    recipe = recipe or default_recipe(flags)
    content = _read_recipe(recipe)
    given = _names_given(recipe, content, flags)
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    parser.set_defaults(
        use_cpu=on_cpu,
        bf16=not on_cpu,
        report_to="none",
        logging_steps=1,
        save_rollouts=True,
        restore_callback_states_from_checkpoint=True,
    )
    parser.set_defaults(**content)
    options, config = _parse(parser, flags)
    check(options, config)
    if options.validate_every:
        stands_for = implied(options, config)
        if not content.get("validate_every"):  # a recipe without validation saves as suits a run without
            for name in ("save_strategy", "save_steps"):
                content.pop(name, None)
        parser.set_defaults(**{name: value for name, value in stands_for.items() if name not in content})
        options, config = _parse(parser, flags)
        check_best_is_kept(options, config)
    if "output_dir" not in given:
        kind = "compare" if options.compare else folder_name(config.credit)
        stamp = multi_rank.agreed(time.strftime("%Y%m%d-%H%M%S"))
        config.output_dir = f"runs/{re.sub('[^a-z0-9]+', '-', options.task)}-{kind}-{stamp}"
    values = asdict(options) | config.to_dict()
    explicit = {name: values[name] for name in dict.fromkeys([*given, "output_dir"]) if name != "overwrite"}
    settings = TrainSettings(options, config, explicit)
    check_credits(settings)
    return settings


def check_vllm(config: LambdaGRPOConfig) -> None:
    """Raise InputError if the settings ask for vLLM and it is not installed."""
    if config.use_vllm and find_spec("vllm") is None:
        raise InputError(
            "use_vllm: the package vllm is not installed: pip install vllm, or leave --use_vllm away"
        )


def known_names() -> list[str]:
    """The names of all settings."""
    return [f.name for cls in (TrainOptions, LambdaGRPOConfig) for f in dataclasses.fields(cls) if f.init]


def _names_given(recipe: str, content: Mapping[str, Any], flags: Sequence[str]) -> list[str]:
    """The names that recipe and flags set, all of them known."""
    names = known_names()
    for key in content:
        if key not in names:
            raise unknown_name(f"key in recipe {recipe!r}:", str(key), names, _LISTED_BY)
    flagged = [flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]
    flagged = [name if name in names else name.removeprefix("no_") for name in flagged]
    for name in flagged:
        if name not in names:
            raise unknown_name("flag", f"--{name}", [f"--{known}" for known in names], _LISTED_BY)
    return [*content, *flagged]


def _parse(parser: _Parser, flags: Sequence[str]) -> tuple[TrainOptions, LambdaGRPOConfig]:
    try:
        options, config, rest = parser.parse_args_into_dataclasses(
            list(flags), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        raise error if isinstance(error, InputError) else InputError(f"settings: {error}") from error
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}: settings are given as --name value")
    return options, config


def _read_recipe(recipe: str, readers: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe, laid over those of the recipe that its `extends` names."""
    content = _read_yaml(recipe)
    if "extends" not in content:
        return content
    base = content.pop("extends")
    readers = (*readers, recipe)
    if not isinstance(base, str):
        raise InputError(f"recipe {recipe!r}: extends: expected the name of a recipe, got {base!r}")
    if base in readers:
        raise InputError(f"recipe {recipe!r}: extends itself: {' → '.join((*readers, base))}")
    return _read_recipe(base, readers) | content


def _read_yaml(recipe: str) -> dict[str, Any]:
    ours, path = RECIPES / f"{recipe}.yaml", Path(recipe)
    if ours.exists():
        path = ours
    elif path.suffix not in (".yaml", ".yml") and not path.exists():
        raise unknown_name("recipe", recipe, [known.stem for known in RECIPES.glob("*.yaml")])
    try:
        content = read_yaml(path)
    except InputError as error:
        raise InputError(f"recipe {error}") from error
    if content is None:
        raise InputError(
            f"recipe {str(path)!r}: the file is empty; expected `key: value` lines, such as max_steps: 100"
        )
    if not isinstance(content, dict):
        raise InputError(f"recipe {str(path)!r}: expected `key: value` lines, got {type(content).__name__}")
    return content
