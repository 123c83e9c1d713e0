"""The corners of TRL's trainer, each against TRL's own loss with one line spliced in."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corner_settings import CORNERS, length, often_unscorable
from datasets import Dataset
from jobs import Jobs
from oracle import spliced_compute_loss
from peft import LoraConfig
from reference import ReferenceGroup
from tiny_trainers import (
    GROUP,
    PROMPTS,
    TOKENIZER,
    assert_close,
    expected_weights,
    gradients,
    make_trainer,
    micro_batches,
    qwen2,
    reward,
)
from trl import GRPOTrainer

from lambda_grpo import ProcessTree, credit
from lambda_grpo.errors import LambdaGRPOError
from lambda_grpo.rollouts import RolloutReader


def assert_equals_the_oracle(trainer: Any, tolerance: float = 1e-6) -> list[dict[str, Any]]:
    """Gradients of every micro-batch, with weights from the literal definitions; returns the batches."""
    batches = micro_batches(trainer)
    for batch, weight in zip(batches, expected_weights(batches, trainer), strict=True):
        policy = batch["completion_mask"] * batch.get("tool_mask", 1)
        assert torch.allclose(batch["credit_weights"], (weight * policy).float())
        literal = {**batch, "credit_weights": weight.float(), "advantages": batch["advantages"].sum(1)}
        literal["advantages"] /= (
            (batch["advantages"] != 0).sum(1).clamp(min=1)
        )  # a_i, the same on all its tokens
        got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
        for splice in ("gradient", "term") if trainer.importance_sampling_level == "token" else ("gradient",):
            if splice == "term" and (
                trainer._entropy_bonus_enabled or trainer.accelerator.mixed_precision != "no"
            ):
                continue
            value = spliced_compute_loss(splice)(trainer, trainer.model, literal)
            assert_close(got, gradients(trainer, value), tolerance)
        plain = gradients(trainer, GRPOTrainer._compute_loss(trainer, trainer.model, literal))
        with pytest.raises(AssertionError):  # the planted fault: no weights at all
            assert_close(got, plain, 1e-3)
    return batches


@pytest.mark.parametrize("name", CORNERS)
def test_corner(tmp_path: Path, name: str) -> None:
    assert_equals_the_oracle(make_trainer(tmp_path, **copy.deepcopy(CORNERS[name])))


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"beta": 0.1, "num_iterations": 2}])
def test_lora(tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    trainer = make_trainer(tmp_path, trainer_kwargs={"peft_config": adapter}, **settings)
    assert sum(p.requires_grad for p in trainer.model.parameters()) == 8
    assert_equals_the_oracle(trainer)


def test_bf16_autocast(tmp_path: Path) -> None:
    assert_equals_the_oracle(make_trainer(tmp_path, bf16=True, num_iterations=2), tolerance=1e-2)


def test_a_model_in_bf16(tmp_path: Path) -> None:
    """Log-probs, and so their gradients, may be bfloat16: the float32 weights must not change that."""
    trainer = make_trainer(tmp_path, model=qwen2().to(torch.bfloat16))
    assert trainer.model.dtype == torch.bfloat16
    assert_equals_the_oracle(trainer, tolerance=2e-2)


def test_trls_own_advantages_are_used(tmp_path: Path) -> None:
    """Whatever made them: λ-GRPO's are TRL's a_i; the process credit's are their means."""
    settings = {"scale_rewards": "batch", "trainer_kwargs": {"reward_funcs": [often_unscorable, length]}}
    batches = {}
    for cls, extra in ((GRPOTrainer, {}), *((None, {"credit": name}) for name in ("lambda_grpo", "process"))):
        kwargs = {"cls": cls} if cls else {}
        trainer = make_trainer(tmp_path, **kwargs, **settings, **extra)
        (batches[extra.get("credit", "trl")],) = micro_batches(trainer)
    own = batches["trl"]["advantages"]
    mask = batches["trl"]["completion_mask"]
    assert torch.equal(batches["lambda_grpo"]["advantages"], own[:, None] * mask)
    prompts = TOKENIZER.batch_decode(batches["trl"]["prompt_ids"])
    ids = batches["trl"]["completion_ids"]
    for i in range(len(own)):
        group = [j for j in range(len(own)) if prompts[j] == prompts[i]]
        for t in range(int(mask[i].sum())):
            same = [j for j in group if mask[j, t] and torch.equal(ids[j, : t + 1], ids[i, : t + 1])]
            assert batches["process"]["advantages"][i, t].item() == pytest.approx(
                own[same].mean().item(), abs=1e-6
            )


def test_process_credit_is_grpo_with_truncated_rows_left_out(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, credit="process", mask_truncated_completions=True, loss_type="bnpo")
    lengths = []
    for _ in range(8):  # until some, but not all, of a batch are truncated
        trainer._buffered_inputs = None
        (batch,) = micro_batches(trainer)
        lengths.append(batch["completion_mask"].sum(1))
        if 0 < (lengths[-1] == 0).sum() < len(lengths[-1]):
            break
    else:
        pytest.fail(f"no batch with some truncated rows: {lengths}")
    batch.pop("old_per_token_logps", None)  # on-policy
    got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    trees = _advantages_by_text(trainer, batch)
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, {**batch, "advantages": trees})
    assert_close(got, gradients(trainer, expected), 1e-5)


def _advantages_by_text(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    texts = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch["completion_ids"]]
    prompts = TOKENIZER.batch_decode(batch["prompt_ids"])
    own = np.zeros(len(texts), np.float32)
    for prompt in set(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        own[rows] = ReferenceGroup([[]] * GROUP).advantages(reward([texts[i] for i in rows]))
    return torch.from_numpy(own)


def test_several_turns(tmp_path: Path) -> None:
    """Equal actions after different observations are different steps; observations carry no credit."""
    a, b, c = (TOKENIZER.convert_tokens_to_ids(token) for token in "abc")
    end = TOKENIZER.eos_token_id
    # Action a, observation b or c, action a, end. Rows 0-2 see b, rows 3-5 see c; row 5 then acts otherwise.
    turns = [[a, b, a, end]] * 3 + [[a, c, a, end]] * 2 + [[a, c, b, end]]
    env_mask = [[1, 0, 1, 1]] * 6

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [TOKENIZER(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": turns * len(PROMPTS),
            "logprobs": None,
            "env_mask": env_mask * len(PROMPTS),
        }

    scores = [1.0, 0.0, 0.5, 0.25, 0.0, 1.0]
    given = {"rollout_func": rollout, "reward_funcs": lambda completions, **_: scores * len(PROMPTS)}
    trainer = make_trainer(tmp_path, trainer_kwargs=given)
    (batch,) = assert_equals_the_oracle(trainer)
    prompts = TOKENIZER.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    rows = [
        row for row, prompt in zip(batch["credit_weights"].tolist(), prompts, strict=True) if prompt == "a"
    ]
    expected = [[1 / 6, 0, 1 / 3, 1 / 3]] * 3 + [[1 / 6, 0, 1 / 2, 1 / 2]] * 2 + [[1 / 6, 0, 1, 1]]
    assert np.array(sorted(rows)) == pytest.approx(np.array(expected))
    # Strictly between root and leaf with a policy token: the root holds action a alone.
    # {0,1,2} "b a end" is a leaf; {3,4,5} "c" holds an observation only.
    assert trainer._metrics["train"]["tree/path_depth"] == [0]


@pytest.mark.parametrize("masked", [False, True], ids=["all trained", "truncated ones masked"])
def test_only_what_the_policy_wrote_counts_as_sampled(tmp_path: Path, masked: bool) -> None:
    """Rows of different lengths: TRL pads their tool mask with ones, and masks truncated rows whole."""
    a, end = TOKENIZER.convert_tokens_to_ids("a"), TOKENIZER.eos_token_id
    turns = [([a, a, a, end], [1, 0, 1, 1]), ([a, a], [0, 1]), ([end], [1])] * (2 * len(PROMPTS))

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [TOKENIZER(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [ids for ids, _ in turns],
            "logprobs": None,
            "env_mask": [mask for _, mask in turns],
        }

    trainer = make_trainer(
        tmp_path, mask_truncated_completions=masked, trainer_kwargs={"rollout_func": rollout}
    )
    micro_batches(trainer)
    assert trainer._metrics["train"]["tree/sampled_tokens"] == [(3 + 1 + 1) * len(turns) / 3]
    turns[4] = ([], [])
    with pytest.raises(LambdaGRPOError, match="completion #4 of 24 has no tokens"):
        micro_batches(trainer)


def test_prompts_that_differ_within_a_group(tmp_path: Path) -> None:
    """Different prompts share nothing, however alike the completions."""
    a, b = (TOKENIZER.convert_tokens_to_ids(token) for token in "ab")
    turns = [[a, b]] * 6

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        prompt_ids = [[a]] * 2 + [[b]] * 4
        return {"prompt_ids": prompt_ids * 4, "completion_ids": turns * 4, "logprobs": None}

    given = {
        "rollout_func": rollout,
        "reward_funcs": lambda completions, **_: [float(i % 3) for i in range(len(completions))],
    }
    trainer = make_trainer(tmp_path, trainer_kwargs=given)
    (batch,) = micro_batches(trainer)
    weights = torch.where(batch["prompt_ids"] == a, 1 / 2, 1 / 4).expand(-1, 2)
    assert torch.equal(batch["credit_weights"], weights)


def test_unscorable_and_truncated_are_counted(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        max_completion_length=3,
        mask_truncated_completions=True,
        trainer_kwargs={"reward_funcs": often_unscorable},
    )
    (batch,) = micro_batches(trainer)
    logged = {name: values[0] for name, values in trainer._metrics["train"].items()}
    texts = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch["completion_ids"]]
    unscorable = np.mean([text.count("a") % 2 for text in texts])
    truncated = (batch["completion_mask"].sum(1) == 0).float().mean().item()
    assert 0 < unscorable < 1
    assert 0 < truncated < 1
    assert logged["credit/unscorable"] == pytest.approx(unscorable)
    assert logged["credit/truncated"] == pytest.approx(truncated)


def test_one_generation_per_prompt_in_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_generations_eval=1, per_device_eval_batch_size=3)
    metrics = trainer.evaluate(Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]))
    assert metrics["eval_credit/mean_weight"] == 1
    assert metrics["eval_tree/flat_groups"] == 1
    assert metrics["eval_tree/path_depth"] == 0


def test_masked_rows_are_left_out_of_step_means() -> None:
    # 0: a b, 1: a c, 2: a (masked away): A({0,1,2}) is the mean of the first two.
    tree = ProcessTree.build([[1, 2], [1, 3], [1]])
    mask = np.array([[1, 1], [1, 1], [0, 0]])
    result = credit.process(tree, [0, 0, 0], advantages=[3, 1, -9], mask=mask)
    assert result.advantage.tolist() == [[2, 3], [2, 1], [0, 0]]


def test_a_group_that_straddles_two_processes(jobs: Jobs, tmp_path: Path) -> None:
    """4 groups of 6 on 2 processes of 12 rows do not straddle, 3 groups of 8 do: rows 8-15 are one group."""
    job = jobs.start(tmp_path, call="straddling_worker:main")
    assert job.wait(300) == 0, job.output()
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert reports[0]["logged"] == reports[1]["logged"]
    ids = reports[0]["ids"] + reports[1]["ids"]  # in the order of generation
    groups = [ReferenceGroup(ids[g : g + 8]) for g in range(0, 24, 8)]
    depths = [group.path_depth(i) for group in groups for i in range(8)]
    sizes = [
        len(group.process_set(i, t))
        for group in groups
        for i in range(8)
        for t in range(len(group.completions[i]))
    ]
    logged = reports[0]["logged"]
    assert logged["tree/path_depth"] == pytest.approx(np.mean(depths))
    assert logged["tree/flat_groups"] == pytest.approx(np.mean([group.is_flat() for group in groups]))
    assert logged["tree/shared_tokens"] == pytest.approx(np.mean(np.array(sizes) > 1))
    assert logged["credit/mean_weight"] == pytest.approx(np.mean(1 / np.array(sizes)))
    weights = reports[0]["weights"] + reports[1]["weights"]
    for row, (i, y) in enumerate((i, y) for group in groups for i, y in enumerate(group.completions)):
        expected = [1 / len(groups[row // 8].process_set(i, t)) for t in range(len(y))]
        assert weights[row][: len(y)] == pytest.approx(expected)
        assert not any(weights[row][len(y) :])
    # What was generated before `train` is set aside by it; the reader refuses groups that are cut in two.
    written = list(RolloutReader([tmp_path / "out" / name for name in ("rollouts-1", "rollouts")]))
    assert [len(group.token_ids) for group in written] == [8] * 6  # of two generation batches
    first = [y.tolist() for group in written if int(group.name) < 3 for y in group.token_ids]
    assert first == ids
    for group in written:
        assert TOKENIZER.batch_decode(group.prompt_ids) == [group.prompt] * 8
