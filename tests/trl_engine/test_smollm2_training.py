"""Training a real language model, SmolLM2-135M: `grpo` is TRL's, LoRA is packed, and a killed run goes on."""

import gc
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stress_resume
import torch
from datasets import Dataset
from peft import LoraConfig
from report_texts import shown_completions
from tiny_trainers import assert_close, gradients, make_trainer, reward
from trl import GRPOTrainer

from lambda_grpo import cli
from lambda_grpo.engines.trl import LambdaGRPOTrainer, checkpoint_folders
from lambda_grpo.policy import load_policy, load_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = ["The largest of 18, 59 and 44 is", "My favourite animal is the"]
GROUP = 4


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes, which are removed."""
    yield tmp_path
    shutil.rmtree(tmp_path)
    gc.collect()  # trainers refer to themselves


@pytest.fixture(scope="module")
def policy(smollm2_folder: Path) -> tuple[Any, Any]:
    return load_policy(str(smollm2_folder))


def trainer_of(folder: Path, policy: tuple[Any, Any], more: dict[str, Any], **settings: Any) -> Any:
    model, tokenizer = policy
    given = {
        "reward_funcs": reward,
        "train_dataset": Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        "processing_class": tokenizer,
    }
    return make_trainer(
        folder, model=model, trainer_kwargs=given | more, num_generations=GROUP, learning_rate=1e-5, temperature=0.75,
        per_device_train_batch_size=len(PROMPTS) * GROUP, max_completion_length=10, max_steps=2, **settings,
    )  # fmt: skip


def test_credit_grpo_is_trl_to_the_bit(folder: Path, policy: tuple[Any, Any]) -> None:
    """Sampled by `generate`, and not packed."""
    ended = []
    for cls, extra in ((GRPOTrainer, {}), (LambdaGRPOTrainer, {"credit": "grpo"})):
        trainer = trainer_of(folder, policy, {}, cls=cls, **extra)
        trainer.train()
        ended.append(trainer.model.state_dict())
        del trainer
        gc.collect()
    start = policy[0].state_dict()
    moved = [name for name in start if not torch.equal(start[name], ended[0][name])]
    assert len(moved) > 200
    assert [name for name in start if not torch.equal(ended[0][name], ended[1][name])] == []


def test_lora_packed_and_plain(folder: Path, policy: tuple[Any, Any]) -> None:
    """One λ-GRPO step, sampled on the tree: the adapters' gradients are those of plain rows."""
    adapters = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    trainer = trainer_of(
        folder, policy, {"peft_config": adapters}, sampler="tree", branch_depths=[4], branch_factors=[2]
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)])
    found = {}
    for mode in ("on", "off"):
        trainer.args.tree_packing = mode
        found[mode] = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    assert trainer._metrics["train"]["tree/packed"] == [1.0]
    assert len(found["on"]) == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert_close(found["on"], found["off"], 1e-4)
    unweighted = {**batch, "credit_weights": torch.ones_like(batch["credit_weights"])}
    with pytest.raises(AssertionError):  # the planted fault: no weights
        assert_close(gradients(trainer, trainer._compute_loss(trainer.model, unweighted)), found["on"], 1e-2)


def test_killed_and_resumed(folder: Path, smollm2_folder: Path) -> None:
    """`kill -9` in the second step; weights, metrics, rollouts and results are those of a run without it.

    The report shows what the tokenizer makes of the sampled tokens.
    """

    def command(run: Path) -> list[str]:
        return [
            "train", f"--model={smollm2_folder}", f"--output_dir={run}", f"--task={stress_resume.TASK}:Varied", "--chat=off",
            "--max_steps=2", "--save_steps=1", "--save_total_limit=1", "--learning_rate=1e-5", "--use_cpu",
            "--per_device_train_batch_size=4", "--num_generations=2", "--max_completion_length=8",
            "--train_problems=4", "--eval_problems=1",
        ]  # fmt: skip

    run = folder / "run"
    seal = run / "checkpoint-1" / checkpoint_folders.SEAL
    killed = stress_resume.attempt(command(run), run, file=seal)
    assert killed.status == -signal.SIGKILL, killed.output
    assert not (run / "results.json").exists()
    assert cli.main(command(run)) == 0
    results = json.loads((run / "results.json").read_text())
    assert (results["steps"], results["resumed_from"]) == (2, 1)
    assert_report_shows_rollouts(run, load_tokenizer(str(smollm2_folder)))
    found = stress_resume.content(run)
    shutil.rmtree(run)
    gc.collect()
    assert cli.main(command(run)) == 0
    assert stress_resume.differences(stress_resume.content(run), found) == []


def assert_report_shows_rollouts(run: Path, tokenizer: Any) -> None:
    sampled: dict[tuple[int, str], list[str]] = {}
    for path in sorted((run / "rollouts").iterdir()):
        for row in pq.read_table(path).to_pylist():
            texts = sampled.setdefault((row["step"], str(row["group"])), [])
            texts.append(tokenizer.decode(row["token_ids"]))
    groups = json.loads((run / "report.json").read_text())["groups"]
    assert {(group["step"], group["group"]): shown_completions(group) for group in groups} == sampled
    assert len(sampled) == 4
