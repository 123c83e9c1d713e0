"""`lambda-grpo train --dry_run`: two steps of a recipe, offline and in seconds.

Whatever needs the network, or would take long, is replaced by settings that go over the others as flags:
the model by a tiny random one of the same class, a data set of the Hub by a few lines in its form, the sizes
by small ones. Credit, loss, adapters, batches, validation and checkpoints stay as they are. So it shows that
the settings fit together and with the installed libraries. It shows nothing about memory, speed or learning.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from lambda_grpo import policy
from lambda_grpo.tasks.task import in_test_split
from lambda_grpo.training.options import TrainSettings

MODEL_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    policy.EMBEDDED: ("qwen2", {"tie_word_embeddings": True}),
    policy.SMOLLM2: ("llama", {"tie_word_embeddings": True}),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", {"tie_word_embeddings": False}),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", {"tie_word_embeddings": True}),
}
"""Class of models that need not be on this machine; others are asked for their config."""

_TINY = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
_TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }} {{ turn.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
_TRAIN_LINES, _TEST_PROBLEMS = 4, 2


def replacements(settings: TrainSettings, flags: Sequence[str], folder: Path) -> dict[str, str]:
    """What to lay over the settings, name → value; writes the model and the data to `folder`.

    The run folder lies in `folder` too, unless a flag names another.

    Raises:
        InputError: the model's class is not known here.
    """
    options, config = settings.options, settings.config
    depths = config.branch_plan.depths if config.branch_plan else ()
    prompts = config.generation_batch_size // config.num_generations
    rows, group = config.per_device_eval_batch_size, config.num_generations_eval or config.num_generations
    validated = max(1, rows // group) if options.validate_every else 0
    found = {
        "model": _write_model(options.model, folder / "model"),
        "max_steps": "2",
        "max_completion_length": str(max([4, *(depth + 2 for depth in depths)])),
        "train_problems": str(max(_TRAIN_LINES, prompts)),  # no step is made of less
        "eval_problems": str(_TEST_PROBLEMS),
        "use_vllm": "false",
    }
    if options.task.startswith("hub:"):
        found["task"] = _write_data(folder / "data.jsonl", _TEST_PROBLEMS + validated)
    if options.validate_every:
        found |= {"validate_every": "1", "validation_problems": str(validated)}
    if not any(flag.replace("-", "_").startswith("__output_dir") for flag in flags):
        found["output_dir"] = str(folder / "run")
    return found


def describe(settings: TrainSettings, replaced: Mapping[str, str]) -> str:
    """One line per replaced setting that differs, and what they were."""
    values = vars(settings.options) | vars(settings.config)
    notes = {"model": " (random weights, the same class)", "task": " (made-up lines)"}
    lines = [
        f"  {name}: {values[name]} → {value}{notes.get(name, '')}"
        for name, value in replaced.items()
        if str(values[name]).lower() != value and name != "output_dir"
    ]
    return "\n".join(["Dry run. Replaced, all else as set:", *lines])


def _write_model(name: str, folder: Path) -> str:
    """A tiny random model of the class that `name` has; it says 0 and 1, so it is right now and then."""
    transformers_logging.disable_progress_bar()
    tokenizer = policy.character_tokenizer("01")
    if name != policy.EMBEDDED:  # the embedded policy has none
        tokenizer.chat_template = _TEMPLATE
    model_type, more = MODEL_TYPES.get(name) or (_model_type(name), {})
    config = AutoConfig.for_model(
        model_type,
        **(_TINY | more),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _model_type(name: str) -> str:
    try:
        return str(AutoConfig.from_pretrained(policy.model_folder(name), trust_remote_code=False).model_type)
    except (OSError, ValueError, KeyError) as error:
        what = f"dry_run: the config of {name!r} cannot be loaded, so its class is unknown"
        raise policy.not_loaded(what, name, error, f", or one of {', '.join(MODEL_TYPES)}") from error


def _write_data(path: Path, test_lines: int) -> str:
    """Lines in OpenRS's form: 4 to train on, and as many to test on as asked for. Which is the last bit?"""
    wanted = {False: _TRAIN_LINES, True: test_lines}
    rows = []
    number = 0
    while any(wanted.values()):
        row = {"problem": f"{number:b}", "answer": str(number % 2)}
        row |= {"solution": f"It is $\\boxed{{{row['answer']}}}$.", "level": "Easy"}
        number += 1
        for_test = in_test_split(row["problem"])
        if wanted[for_test]:
            wanted[for_test] -= 1
            rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return f"jsonl:{path}"
