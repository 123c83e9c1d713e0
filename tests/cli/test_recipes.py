"""The recipes say what the paper says, and each runs, in small and offline."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from lambda_grpo import InputError, cli, policy
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.training import run_folder
from lambda_grpo.training.settings import RECIPES, resolve

pytest.importorskip("math_verify")
OPENRS = sorted(path.stem for path in RECIPES.glob("openrs-*.yaml"))
QWEN, LLAMA = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "meta-llama/Llama-3.2-1B-Instruct"


# What the paper says


@pytest.mark.parametrize(
    ("recipe", "model", "beta", "rate"),
    [
        ("openrs-qwen-1.5b", QWEN, 0.0, 1e-6),
        ("openrs-qwen-1.5b-kl", QWEN, 0.04, 1e-6),
        ("openrs-llama-1b", LLAMA, 0.0, 5e-7),
        ("openrs-llama-1b-kl", LLAMA, 0.04, 1e-7),
    ],
)
@pytest.mark.parametrize("credit", ["grpo", "lambda_grpo"])
def test_section_5(recipe: str, model: str, beta: float, rate: float, credit: str) -> None:
    settings = resolve(recipe, [f"--credit={credit}", "--use_cpu", "--bf16=false"])
    options, config = settings.options, settings.config
    assert (options.model, config.beta, config.learning_rate, config.credit) == (model, beta, rate, credit)
    assert options.task == "hub:knoveleng/open-rs"
    assert (config.max_steps, config.num_generations, config.temperature) == (1000, 6, 0.75)
    assert config.generation_batch_size == 4 * 6  # 4 prompts a step
    assert (config.steps_per_generation, config.num_iterations) == (config.gradient_accumulation_steps, 1)
    assert config.max_completion_length == 4096
    assert (options.lora_r, options.lora_alpha, options.lora_dropout) == (64, 128, 0.05)
    assert (options.validate_every, options.validation_problems) == (25, 125)
    assert (config.save_strategy, config.load_best_model_at_end) == ("steps", True)
    assert config.use_bias_correction_kl is False
    assert (config.loss_type, config.lr_scheduler_type) == ("dapo", "constant")
    assert options.validation_problems % config.per_device_eval_batch_size == 0  # TRL averages over batches


@pytest.mark.parametrize(("size", "steps", "rate"), [(6, 1675, 6e-6), (36, 275, 1e-6)])
def test_section_3_2(size: int, steps: int, rate: float) -> None:
    settings = resolve(f"openrs-overlap-{size}", ["--use_cpu", "--bf16=false"])
    config = settings.config
    assert (config.num_generations, config.max_steps, config.learning_rate) == (size, steps, rate)
    assert config.generation_batch_size == 4 * size
    assert settings.options.train_problems == 4 * steps


# Those that are used where none is named


def test_the_default_recipe_belongs_to_the_embedded_policy() -> None:
    """Any other model gets TRL's own defaults: here are all settings that decide the size of a step."""
    for flags in ([], ["--model", "embedded"], ["--task=sequences"]):
        config = resolve("", flags).config
        assert (config.learning_rate, config.per_device_train_batch_size) == (1e-4, 256)
        assert config.gradient_checkpointing is False
    trl = LambdaGRPOConfig(output_dir="out", use_cpu=True, bf16=False)
    ours = {"output_dir", "use_cpu", "bf16", "report_to", "logging_steps", "save_rollouts",
            "restore_callback_states_from_checkpoint", "logging_dir"}  # fmt: skip
    for flags in (["--model", "Qwen/Qwen2.5-0.5B-Instruct"], ["--model=./mine", "--use_cpu", "--bf16=false"]):
        config = resolve("", flags).config
        found, expected = config.to_dict(), trl.to_dict()
        assert {name for name in expected if found[name] != expected[name]} <= ours
    assert resolve("", ["--model", "mine", "--learning_rate=1e-5"]).config.learning_rate == 1e-5
    assert resolve("default", ["--model", "mine"]).config.learning_rate == 1e-4  # asked for by name


def test_a_dry_run_replaces_the_model_and_not_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A step takes 32 problems with the embedded policy's recipe, and one with the other, so the least is made: 4."""
    for flags, problems in (([], 32), (["--model", QWEN], 4)):
        assert cli.main(["train", "--dry_run", *flags]) == 0
        assert f"train_problems: 10000 → {problems}\n" in capsys.readouterr().out


# Each runs


SLOW = ("openrs-overlap-36", "openrs-llama-1b")


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OPENRS]
)
def test_dry_run(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert cli.main(["train", "--config", recipe, "--dry_run", "--output_dir", str(folder)]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    asked, ran = (values(recipe), yaml.safe_load((folder / "config.yaml").read_text()))
    replaced = {"model", "task", "max_steps", "max_completion_length", "train_problems", "eval_problems",
                "validate_every", "validation_problems", "use_vllm", "dry_run", "output_dir"}  # fmt: skip
    assert {name for name in ran if ran[name] != asked.get(name)} <= replaced
    assert f"model: {asked['model']} → " in shown
    assert "task: hub:knoveleng/open-rs → jsonl:" in shown
    adapter = json.loads((folder / "model/adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (64, 128, 0.05)
    adapted = {name.rpartition(".")[2] for name in adapter["target_modules"]}
    assert adapted == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    metrics = run_folder.read_metrics(folder)
    assert [row["step"] for row in metrics if "loss" in row] == [1, 2]
    if "overlap" in recipe:
        return
    assert sum(row["reward"] for row in metrics if "reward" in row) > 0  # or nothing was learnt from
    assert any("kl" in row for row in metrics) == recipe.endswith("-kl")
    second = load_file(folder / "model/adapter_model.safetensors")
    assert any(weight.any() for name, weight in second.items() if "lora_B" in name)
    (kept,) = folder.glob("checkpoint-*")
    best = load_file(kept / "adapter_model.safetensors")
    assert all((second[name] == best[name]).all() for name in best)
    assert [row["step"] for row in metrics if "eval_reward" in row] == [0, 1, 2]


def values(recipe: str) -> dict[str, Any]:
    return resolve(recipe, ["--use_cpu", "--bf16=true"]).explicit | {"use_cpu": None}


def test_a_dry_run_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a recipe that is no data set of the Hub the task stays."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "model: embedded → " in shown
    assert "task:" not in shown
    assert "dry run ended well" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry_run", "--model", "no/such-model"]) == 2
    said = capsys.readouterr().err
    assert "dry_run: the config of 'no/such-model' cannot be loaded" in said
    assert "there is no folder 'no/such-model' here" in said
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert cli.main(["train", "--dry_run", "--model", str(tmp_path)]) == 2
    assert f"{tmp_path} is a run folder: its model is {tmp_path / 'model'}" in capsys.readouterr().err


def test_a_dry_run_finds_settings_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: the name of a module that the model does not have."""
    arguments = ["--dry_run", "--config", "openrs-llama-1b", "--lora_target", "c_attn"]
    assert cli.main(["train", *arguments]) == 2
    assert "unknown module in lora_target 'c_attn'" in capsys.readouterr().err


# Recipes that extend others


def test_extends(tmp_path: Path) -> None:
    base, recipe = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("extends: default\nlearning_rate: 1.0e-3\nmax_steps: 7\n")
    recipe.write_text(f"extends: {base}\nmax_steps: 9\n")
    config = resolve(str(recipe), ["--num_generations", "4"]).config
    assert (config.learning_rate, config.max_steps, config.num_generations) == (1e-3, 9, 4)
    assert config.adam_beta2 == 0.95  # of the default
    assert "extends" not in resolve(str(recipe), []).explicit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: defualt", "unknown recipe 'defualt': did you mean 'default'"),
        ("extends: 3", "extends: expected the name of a recipe, got 3"),
        ("extends: {me}", "extends itself: {me} → {me}"),
    ],
)
def test_extends_with_mistakes(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text.format(me=recipe))
    with pytest.raises(InputError) as raised:
        resolve(str(recipe), [])
    assert message.format(me=recipe) in str(raised.value)


# Adapters


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lora_r=-1", "lora_r: expected at least 0, got -1"),
        ("--lora_alpha=0", "lora_alpha: expected at least 1, got 0"),
        ("--lora_dropout=1", "lora_dropout: expected at least 0 and below 1, got 1.0"),
    ],
)
def test_adapters_with_mistakes(flag: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("default", [flag])


@pytest.mark.slow
def test_trained_adapters_are_a_model(tmp_path: Path, quick_policy: None) -> None:
    """model/ holds adapters only; `eval`, which loads it, finds the policy that "after" was measured on."""
    folder = tmp_path / "run"
    task = f"--task={Path(__file__).parents[1] / 'support' / 'varied_task.py'}:Varied"
    small = [
        "--max_steps=2",
        "--per_device_train_batch_size=8",
        "--num_generations=4",
        "--eval_problems=8",
        task,
    ]
    assert cli.main(["train", *small, "--lora_r=4", "--learning_rate=0.5", "--output_dir", str(folder)]) == 0
    assert not (folder / "model/model.safetensors").exists()
    after = json.loads((folder / "results.json").read_text())["after"]
    model = str(folder / "model")
    arguments = [task, "--problems=8", "--max_new_tokens=14", "--output", str(tmp_path / "out.json")]
    assert cli.main(["eval", str(policy.embedded_policy()), model, *arguments]) == 0
    before, found = json.loads((tmp_path / "out.json").read_text())["models"]
    assert found["greedy_accuracy"] == after["greedy_accuracy"]
    assert found["mean_length"] != before["mean_length"]  # the adapters are not lost


def test_the_document_names_every_recipe_and_its_commands_are_understood(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs/openrs.md").read_text()
    assert re.findall(r"^\| `(openrs-[^`]+)`", document, re.MULTILINE) == [
        "openrs-qwen-1.5b", "openrs-qwen-1.5b-kl", "openrs-llama-1b", "openrs-llama-1b-kl",
        "openrs-overlap-6", "openrs-overlap-36",
    ]  # fmt: skip
    for recipe in OPENRS:
        settings = resolve(recipe, ["--use_cpu", "--bf16=false"])
        row = next(line for line in document.splitlines() if line.startswith(f"| `{recipe}`"))
        cells = [cell.strip() for cell in row.split("|")]
        assert float(cells[4]) == settings.config.learning_rate
        assert int(cells[5]) == settings.config.num_generations
        assert int(cells[6].replace(",", "")) == settings.config.max_steps
        assert float(cells[3].split()[0]) == settings.config.beta
    (block,) = re.findall(r"```sh\n(.*?)```", document, re.DOTALL)
    for line in block.splitlines():
        command, *arguments = line.split()[1:]
        if command == "train":
            resolve(arguments[1], [*arguments[2:], "--use_cpu", "--bf16=false"])
        else:
            cli._parser("eval").parse_args([command, *arguments])
