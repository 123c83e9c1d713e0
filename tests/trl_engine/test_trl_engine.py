"""LambdaGRPOTrainer against TRL's own loss with one line spliced in, gradients compared."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from literal_credits import literal, plain
from oracle import spliced_compute_loss
from reference import ReferenceGroup
from tiny_trainers import (
    CASES,
    GROUP,
    PROMPTS,
    assert_close,
    completions_of,
    expected_weights,
    gpt2_float64,
    gradients,
    make_trainer,
    micro_batches,
    plain_logps,
    qwen2,
    reward,
)
from trl import GRPOConfig, GRPOTrainer

from lambda_grpo import InputError, ProcessTree
from lambda_grpo.credit import CREDITS
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.engines.trl.config import LOSS_TYPES
from lambda_grpo.rollouts import RolloutReader
from lambda_grpo.rollouts.writing import truncate_rollouts


@pytest.mark.parametrize(("loss_type", "beta", "iterations", "accumulation"), CASES)
def test_equals_the_spliced_oracle(
    tmp_path: Path, loss_type: str, beta: float, iterations: int, accumulation: int
) -> None:
    trainer = make_trainer(
        tmp_path,
        loss_type=loss_type,
        beta=beta,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=len(PROMPTS) * GROUP // accumulation,
        epsilon_high=5.0 if loss_type == "cispo" else None,
    )
    batches = micro_batches(trainer)
    assert len(batches) == accumulation
    weights = expected_weights(batches, trainer)
    assert min(w[w > 0].min() for w in weights) < 0.5  # there is something to weight
    oracle = {splice: spliced_compute_loss(splice) for splice in ("gradient", "term")}
    for batch, weight in zip(batches, weights, strict=True):
        loss = trainer._compute_loss(trainer.model, batch)
        got = gradients(trainer, loss)
        literal = {**batch, "credit_weights": weight.float(), "advantages": batch["advantages"][:, 0]}
        values = {}
        for splice, compute_loss in oracle.items():
            value = compute_loss(trainer, trainer.model, literal)
            values[splice] = value.item()
            assert_close(got, gradients(trainer, value), 1e-6)
        assert loss.item() == pytest.approx(values["gradient"], rel=1e-5, abs=1e-7)  # TRL's, unweighted
        plain = gradients(trainer, GRPOTrainer._compute_loss(trainer, trainer.model, literal))
        with pytest.raises(AssertionError):  # the planted fault: no weights at all
            assert_close(got, plain, 1e-3)


def test_equals_the_spliced_oracle_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", plain_logps)
    trainer = make_trainer(tmp_path, model=gpt2_float64(), beta=0.3, num_iterations=2)
    (batch,) = micro_batches(trainer)
    (weight,) = expected_weights([batch], trainer)
    exact = {**batch, "credit_weights": weight}
    got = gradients(trainer, trainer._compute_loss(trainer.model, exact))
    expected = gradients(trainer, spliced_compute_loss("term")(trainer, trainer.model, exact))
    assert got.dtype == torch.float64
    assert_close(got, expected, 1e-10)


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2, "beta": 0.1, "loss_type": "grpo"}])
def test_credit_grpo_is_trl_to_the_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    trained = []
    for cls, extra in ((GRPOTrainer, {}), (LambdaGRPOTrainer, {"credit": "grpo"})):
        trainer = make_trainer(tmp_path, cls=cls, **settings, **extra)
        trainer.train()
        trained.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_a_whole_training_equals_one_with_the_spliced_loss(tmp_path: Path) -> None:
    class Spliced(LambdaGRPOTrainer):
        _compute_loss = spliced_compute_loss("term")

    settings = {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 12,
        "beta": 0.1,
        "optim": "sgd",
    }
    trained = []
    for cls in (Spliced, LambdaGRPOTrainer):
        trainer = make_trainer(tmp_path, cls=cls, **settings)
        start = torch.cat([p.detach().clone().flatten() for p in trainer.model.parameters()])
        trainer.train()
        trained.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - start)
    assert_close(trained[1], trained[0], 1e-4)  # differences of float32 weights


def test_process_credit_has_grpos_gradient_unclipped(tmp_path: Path) -> None:
    """The theorem through the trainer: on-policy, one denominator (bnpo)."""
    trainer = make_trainer(tmp_path, loss_type="bnpo", credit="process")
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)])
    got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    grpo = torch.tensor(_own_advantages(batch, trainer), dtype=torch.float32)
    assert not torch.allclose(batch["advantages"], grpo[:, None] * batch["credit_weights"], atol=0.1)
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, {**batch, "advantages": grpo})
    assert_close(got, gradients(trainer, expected), 1e-5)


@pytest.mark.parametrize("name", ["lambda_grpo_matched", "optimistic", "tempo", "treepo", "vineppo"])
def test_other_credits_equal_the_spliced_oracle(tmp_path: Path, name: str) -> None:
    """Advantages and weights of the literal definitions in TRL's own loss, off-policy."""
    trainer = make_trainer(tmp_path, num_iterations=2, epsilon=0.2, loss_type="bnpo", credit=name)
    (batch,) = micro_batches(trainer)
    got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    compute_loss = spliced_compute_loss("term")

    def expected(definition: str) -> torch.Tensor:
        advantages, weights = torch.zeros((2, *batch["completion_ids"].shape))
        texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        prompts = trainer.processing_class.batch_decode(batch["prompt_ids"])
        for prompt in set(prompts):
            rows = [i for i, other in enumerate(prompts) if other == prompt]
            case = plain([completions_of(batch)[i] for i in rows], reward([texts[i] for i in rows]))
            for values, part in zip((advantages, weights), literal(definition, case), strict=True):
                values[rows, : part.shape[1]] = torch.tensor(part, dtype=torch.float32)
        exact = {**batch, "advantages": advantages, "credit_weights": weights}
        return gradients(trainer, compute_loss(trainer, trainer.model, exact))

    assert_close(got, expected(name), 1e-5)
    with pytest.raises(AssertionError):  # the planted fault: another credit
        assert_close(got, expected("lambda_grpo"), 1e-2)


def test_power_equals_the_spliced_oracle(tmp_path: Path) -> None:
    """|λ|^-½ in TRL's own loss, off-policy; |λ|^-1 is the planted fault."""
    trainer = make_trainer(
        tmp_path, num_iterations=2, beta=0.3, epsilon=0.2, loss_type="bnpo", credit_kwargs={"power": 0.5}
    )
    (batch,) = micro_batches(trainer)
    got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    (weight,) = expected_weights([batch], trainer)
    compute_loss = spliced_compute_loss("term")

    def expected(weights: torch.Tensor) -> torch.Tensor:
        return gradients(trainer, compute_loss(trainer, trainer.model, {**batch, "credit_weights": weights}))

    assert_close(got, expected(weight.sqrt()), 1e-5)
    with pytest.raises(AssertionError):
        assert_close(got, expected(weight), 1e-3)


def _own_advantages(batch: dict[str, Any], trainer: Any) -> np.ndarray:
    """a_i of each row, from its text."""
    texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    prompts = trainer.processing_class.batch_decode(batch["prompt_ids"])
    result = np.zeros(len(texts))
    for prompt in set(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        result[rows] = ReferenceGroup([[]] * GROUP).advantages(reward([texts[i] for i in rows]))
    return result


def test_several_generation_batches_to_a_step_are_all_saved(tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "steps_per_generation": 2}
    trainer = make_trainer(tmp_path, save_rollouts=True, max_steps=2, **settings)
    trainer.train()
    names = sorted(file.name for file in (tmp_path / "rollouts").iterdir())
    assert len(names) == 4
    assert names[:2] == ["step-000000-rank-0-batch-1.parquet", "step-000000-rank-0.parquet"]
    groups = list(RolloutReader([tmp_path]))
    assert [len(group.token_ids) for group in groups] == [GROUP] * 8
    truncate_rollouts(tmp_path, 1)
    assert len(list((tmp_path / "rollouts").iterdir())) == 2


def test_metrics_and_rollouts(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    trainer = make_trainer(tmp_path, save_rollouts=True, max_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [file.name for file in files] == ["step-000000-rank-0.parquet", "step-000001-rank-0.parquet"]
    for row, file in zip(rows, files, strict=True):
        table = pq.read_table(file).to_pandas()
        assert len(table) == len(PROMPTS) * GROUP
        groups = [part for _, part in table.groupby("group")]
        references = [ReferenceGroup(part["token_ids"].tolist()) for part in groups]
        count = range(GROUP)
        depths = [ref.path_depth(i) for ref in references for i in count]
        proportions = [ref.intermediate_proportion(i) for ref in references for i in count]
        sizes = [
            len(ref.process_set(i, t))
            for ref in references
            for i in count
            for t in range(len(ref.completions[i]))
        ]
        assert row["tree/path_depth"] == pytest.approx(np.mean(depths))
        assert row["tree/intermediate_proportion"] == pytest.approx(np.mean(proportions))
        assert row["tree/shared_tokens"] == pytest.approx(np.mean(np.array(sizes) > 1))
        assert row["tree/flat_groups"] == np.mean([ref.is_flat() for ref in references])
        assert row["credit/mean_weight"] == pytest.approx(np.mean(1 / np.array(sizes)))
        assert row["credit/unscorable"] == row["credit/truncated"] == 0
        assert table["reward"].tolist() == pytest.approx(reward(table["completion"].tolist()))
        for part, ref in zip(groups, references, strict=True):
            assert part["advantage"].tolist() == pytest.approx(
                ref.advantages(part["reward"].tolist()), abs=1e-5
            )
            assert part["prompt"].nunique() == 1
        assert (table["step"] == int(file.name[5:11])).all()


def test_evaluation_runs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_generations_eval=2, per_device_eval_batch_size=4)
    metrics = trainer.evaluate(Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]))
    assert 0 <= metrics["eval_tree/shared_tokens"] <= 1


def test_one_tree_per_group_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    build_many = ProcessTree.build_many
    monkeypatch.setattr(
        ProcessTree, "build_many", lambda ids, *rest: calls.append(len(ids)) or build_many(ids, *rest)
    )
    trainer = make_trainer(tmp_path, num_iterations=3)
    micro_batches(trainer)
    assert calls == [len(PROMPTS) * GROUP]


def test_loss_types_are_those_that_trl_names() -> None:
    said = GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    named = said.partition("Supported values are")[2].partition(". ")[0]
    assert set(re.findall("'(.+?)'", named)) == set(LOSS_TYPES)  # that it computes each: the oracle's tests


def test_bad_settings(tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 4}
    with pytest.raises(InputError, match="unknown credit 'lamda_grpo': did you mean 'lambda_grpo'"):
        LambdaGRPOConfig(**settings, num_generations=4, credit="lamda_grpo")
    with pytest.raises(InputError, match=r"unknown parameter of credit 'lambda_grpo' 'tau'\. Known: power"):
        LambdaGRPOConfig(**settings, num_generations=4, credit_kwargs={"tau": 1})
    with pytest.raises(InputError, match="takes no parameters, got credit_kwargs 'tau'"):
        LambdaGRPOConfig(**settings, num_generations=4, credit="grpo", credit_kwargs={"tau": 1})
    with pytest.raises(InputError, match="power: expected a number from 0 on, got -1"):
        LambdaGRPOConfig(**settings, num_generations=4, credit_kwargs={"power": -1})
    for name in CREDITS:
        if name == "branch":  # needs branch_depths: test_branching_trl.py
            continue
        varying = {"process", "optimistic", "tempo", "vineppo"}  # inside a completion
        message = f"'{name}' gives each .* choose credit .* or set importance_sampling_level='token'"
        with pytest.raises(InputError, match=message) if name in varying else nullcontext():
            LambdaGRPOConfig(**settings, num_generations=4, credit=name, importance_sampling_level="sequence")
    for given, message in (
        ({"loss_type": "grop"}, "unknown loss_type 'grop': did you mean 'grpo'"),
        ({"learning_rate": -1e-5}, "learning_rate: got -1e-05, expected 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan"),
        ({"learning_rate": "1e-5"}, "learning_rate: got '1e-5', expected a number. In YAML write 1.0e-5"),
        ({"num_generations": "4"}, "num_generations: got '4', expected a number"),
        ({"reward_timeout": "1e3"}, "reward_timeout: got '1e3', expected a number"),
        (
            {"num_generations": 3},
            "which is 4, such as 2 or 4; or set per_device_train_batch_size to a multiple",
        ),
        (
            {"num_generations": 3, "generation_batch_size": 8},
            "which is 8, .* or set generation_batch_size to a",
        ),
        ({"num_generations": 1}, "num_generations: got 1, expected at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            LambdaGRPOConfig(**settings | {"num_generations": 4} | given)
    assert LambdaGRPOConfig(**settings, num_generations=4, learning_rate=0.0).learning_rate == 0
    with pytest.raises(InputError, match="args: expected a LambdaGRPOConfig, got GRPOConfig"):
        LambdaGRPOTrainer(qwen2(), reward, GRPOConfig(**settings, num_generations=4))
