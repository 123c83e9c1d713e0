"""Read rollouts, load the model, compare gradients; a line in the terminal and a JSON file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, policy
from lambda_grpo.credit import get_credit, refuse_plan, try_credit
from lambda_grpo.effect.gradients import Comparison, Passes, can_pack, compare_gradients, group_tokens
from lambda_grpo.effect.readable_groups import check_fit, pushing_groups
from lambda_grpo.rollouts import Group, RolloutReader
from lambda_grpo.whole_files import write_json

SCHEMA = "lambda-grpo/effect/1"


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, as the command line's options say it."""

    model: str
    rollouts: Sequence[str]
    credit: str
    credit_kwargs: Mapping[str, Any]
    loss_type: str
    temperature: float
    groups: int | None
    tokens: int
    skip_bad: bool


def measure(wanted: Wanted, output: Path) -> list[Comparison]:
    """Compare the gradients, print what came out, and write it to `output`.

    Raises:
        InputError: rollouts, model or credit that cannot be used.
    """
    try_credit(wanted.credit, wanted.credit_kwargs)
    refuse_plan(wanted.credit, "a rollout file")
    reader = RolloutReader(wanted.rollouts, skip_bad=wanted.skip_bad)
    groups, read = pushing_groups(reader, wanted.groups)
    if reader.left_out.rows or reader.left_out.files:
        lost = f"note: left out {reader.left_out.rows} rows and {reader.left_out.files} files"
        console.CONSOLE.print(lost, markup=False, highlight=False)
    model = _loaded(wanted.model, groups)
    why_plain = can_pack(model)
    if why_plain:
        console.CONSOLE.print(f"note: each token runs by itself. {why_plain}", markup=False)
    credit = partial(get_credit(wanted.credit), **wanted.credit_kwargs)
    by_completion = wanted.loss_type == "grpo"
    passes = Passes(credit, by_completion, wanted.temperature, wanted.tokens, packed=why_plain is None)
    with console.progress(f"Gradients of {len(groups)} groups") as shown:
        found = compare_gradients(model, groups, passes, shown)
    write_json(output, _content(wanted, groups, read, found))
    _show(wanted, found, read)
    console.CONSOLE.print(f"Every number, step by step, is in {output}", markup=False, highlight=False)
    return found


def _loaded(name: str, groups: Sequence[Group]) -> Any:
    """The model in float32, without dropout, on the device there is; refused if the ids do not fit it."""
    transformers_logging.disable_progress_bar()
    model, tokenizer = policy.load_policy(console.policy_folder(name), dtype=torch.float32)
    check_fit(groups, tokenizer, model.get_input_embeddings().num_embeddings, name)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model.eval()


def _content(
    wanted: Wanted, groups: Sequence[Group], read: int, found: Sequence[Comparison]
) -> dict[str, Any]:
    raw = sum(len(ids) for group in groups for ids in (*group.prompt_ids, *group.token_ids))
    return {
        "schema": SCHEMA,
        **asdict(wanted),
        "against": "grpo",
        "cosine": found[0].cosine,
        "norm_ratio": found[0].norm_ratio,
        "groups": len(groups),
        "groups_read": read,
        "completions": sum(len(group.token_ids) for group in groups),
        "tokens": raw,
        "unique_tokens": sum(map(group_tokens, groups)),
        "steps": [asdict(each) for each in found[1:]],
        "versions": {name: version(name) for name in ("lambda-grpo", "torch", "transformers")},
    }


def _show(wanted: Wanted, found: Sequence[Comparison], read: int) -> None:
    whole, *steps = found
    print_line = partial(console.CONSOLE.print, markup=False, highlight=False)
    on = f"{wanted.credit} against grpo, on {whole.groups} groups with unequal rewards (of {read} read): "
    if math.isnan(whole.cosine):
        print_line(f"{on}one of the gradients is 0, so there is no cosine")
        return
    degrees = math.degrees(math.acos(whole.cosine))
    print_line(f"{on}cosine {whole.cosine:.4f} ({degrees:.0f}°), norm ratio {whole.norm_ratio:.3f}")
    known = [step for step in steps if not math.isnan(step.cosine)]
    if len(known) > 1:
        cosines, ratios = [step.cosine for step in known], [step.norm_ratio for step in known]
        print_line(
            f"step by step ({len(steps)} steps): cosine {min(cosines):.4f} to {max(cosines):.4f}, "
            f"norm ratio {min(ratios):.3f} to {max(ratios):.3f}"
        )
