"""Forked completions under the TRL trainer: what is sampled, its credit in TRL's own loss, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import spliced_compute_loss
from tiny_trainers import GROUP, PROMPTS, assert_close, completions_of, gradients, make_trainer, qwen2, reward
from transformers import MambaConfig, MambaForCausalLM

from lambda_grpo import InputError, cli
from lambda_grpo.branching import BranchPlan
from lambda_grpo.credit import CREDITS, get_credit, try_credit
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.engines.trl import sampling as trl_sampling
from lambda_grpo.training.settings import resolve

ROWS = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
PLAN = BranchPlan((2,), (3,))  # 2 roots, each of 3 slots
FORKS: dict[str, Any] = {"branch_depths": [2], "branch_factors": [3], "sampler": "tree", "temperature": 1.0}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the sampler."""
    made: list[Any] = []
    sample = trl_sampling.sample_on_tree
    monkeypatch.setattr(trl_sampling, "sample_on_tree", lambda m, r: made.append(r) or sample(m, r))
    return made


def turn(trainer: Any, mode: str = "train") -> dict[str, Any]:
    """One batch of rows, generated and scored, in the order of its groups."""
    trainer.model.train(mode == "train")
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    torch.manual_seed(4)
    return trainer._generate_and_score_completions(ROWS)


def forked_groups(batch: dict[str, Any]) -> list[list[list[int]]]:
    completions = completions_of(batch)
    return [completions[i : i + GROUP] for i in range(0, len(completions), GROUP)]


def is_forked(group: list[list[int]]) -> bool:
    return all(len({tuple(ids[:2]) for ids in root}) == 1 for root in (group[:3], group[3:]))


def test_the_rows_of_a_block_share_their_tokens(tmp_path: Path, requests: list[Any]) -> None:
    trainer = make_trainer(tmp_path, **FORKS)
    groups = forked_groups(turn(trainer))
    assert all(map(is_forked, groups))
    assert any(group[0][:2] != group[3][:2] for group in groups)
    assert any(group[0] != group[1] for group in groups)
    # Both roots once, and of each slot what comes after token 2.
    drawn = sum(len(g[0][:2]) + len(g[3][:2]) + sum(len(ids[2:]) for ids in g) for g in groups)
    assert trainer._metrics["train"]["tree/sampled_tokens"] == [drawn]
    assert requests[0].branches == PLAN
    assert requests[0].group == GROUP


def test_validation_and_the_default_never_fork(tmp_path: Path, requests: list[Any]) -> None:
    for settings, mode in ((FORKS, "eval"), ({"sampler": "tree", "temperature": 1.0}, "train")):
        trainer = make_trainer(tmp_path, **settings)
        assert not all(map(is_forked, forked_groups(turn(trainer, mode))))
        assert (requests[-1].branches, requests[-1].group) == (None, 1)
        assert "tree/sampled_tokens" not in trainer._metrics[mode]
    assert LambdaGRPOConfig("out", use_cpu=True, bf16=False).branch_plan is None


def test_without_branches_training_is_what_it_was(tmp_path: Path) -> None:
    """The same weights, to the bit, as with the turns of a sampler that knows no plan."""

    class Before(type(make_trainer(tmp_path))):  # type: ignore[misc]
        _plan = None

    ended = []
    for cls in ({}, {"cls": Before}):
        trainer = make_trainer(tmp_path, sampler="tree", **cls)
        trainer.train()
        ended.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


def literal_advantages(values: np.ndarray, groups: list[list[list[int]]], width: int) -> torch.Tensor:
    """By hand for two roots of three slots: a root has no sibling but the other, a slot has two."""
    rows = np.zeros((len(values), width))
    for g, group in enumerate(groups):
        r = values[g * GROUP : (g + 1) * GROUP]
        for i, ids in enumerate(group):
            root, other = (r[:3], r[3:]) if i < 3 else (r[3:], r[:3])
            outside = (r.sum() - r[i]) / 5
            siblings = (root.sum() - r[i]) / 2
            rows[g * GROUP + i, :2] = root.mean() - other.mean()
            rows[g * GROUP + i, 2:] = r[i] - (2 / 3 * siblings + 1 / 3 * outside)
            rows[g * GROUP + i, len(ids) :] = 0
    return torch.tensor(rows, dtype=torch.float32)


def own_rewards(batch: dict[str, Any], trainer: Any) -> np.ndarray:
    texts = trainer.processing_class.batch_decode(completions_of(batch), skip_special_tokens=True)
    return np.array(reward(texts))


def scaled(rewards: np.ndarray) -> np.ndarray:
    r = rewards.reshape(-1, GROUP)
    return ((r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()


def moved(trainer: Any) -> None:
    """Ratios differ from 1 then."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.005 * torch.randn_like(parameter)


@pytest.mark.parametrize(
    ("kwargs", "values"), [({"scale": "none"}, lambda r: r), ({}, scaled)], ids=["rewards", "advantages"]
)
def test_credit_branch_equals_the_spliced_oracle(
    tmp_path: Path, kwargs: dict[str, Any], values: Callable[[np.ndarray], np.ndarray]
) -> None:
    given = {"num_iterations": 2, "epsilon": 0.2, "beta": 0.1, "credit": "branch", "credit_kwargs": kwargs}
    trainer = make_trainer(tmp_path, **FORKS, **given)
    batch = turn(trainer)
    rewards, width = values(own_rewards(batch, trainer)), batch["completion_ids"].shape[1]
    moved(trainer)
    got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    advantages = literal_advantages(rewards, forked_groups(batch), width)
    exact = {**batch, "advantages": advantages, "credit_weights": torch.ones_like(advantages)}
    compute_loss = spliced_compute_loss("term")
    assert_close(got, gradients(trainer, compute_loss(trainer, trainer.model, exact)), 1e-5)
    with pytest.raises(AssertionError):  # the planted fault: each completion against all the others
        alone = rewards.reshape(-1, GROUP)
        wrong = (alone - alone.mean(1, keepdims=True)) * GROUP / (GROUP - 1)
        exact["advantages"] = torch.tensor(wrong.reshape(-1, 1), dtype=torch.float32).expand(-1, width)
        assert_close(got, gradients(trainer, compute_loss(trainer, trainer.model, exact)), 1e-3)


def test_packed_equals_plain(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **FORKS, credit="branch", tree_packing="on", num_iterations=2)
    batch = turn(trainer)
    moved(trainer)
    found = []
    for mode in ("on", "off"):
        trainer.args.tree_packing = mode
        found.append(gradients(trainer, trainer._compute_loss(trainer.model, batch)))
    assert trainer._metrics["train"]["tree/packed"] == [1]
    assert_close(*found, 1e-5)


@pytest.mark.parametrize("name", CREDITS)
def test_every_credit_takes_forked_groups(tmp_path: Path, name: str) -> None:
    trainer = make_trainer(tmp_path, **FORKS, credit=name)
    batch = turn(trainer)
    assert torch.isfinite(batch["advantages"]).all()
    assert batch["advantages"].abs().max() > 0.1
    validated = turn(trainer, "eval")
    assert torch.isfinite(validated["advantages"]).all()


def test_training_and_validation_log_what_was_drawn(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **FORKS, credit="branch", max_steps=2)
    trainer.train()
    drawn = [row["tree/sampled_tokens"] for row in trainer.state.log_history if "tree/sampled_tokens" in row]
    assert len(drawn) == 2
    # Without forks at most 24 × 5; with them 8 roots of 2 tokens and 24 slots of 3.
    assert all(8 < each <= 8 * 2 + 24 * 3 for each in drawn)


def test_rollout_files_say_which_block_sampled_a_token(tmp_path: Path) -> None:
    for settings in (FORKS, {}):
        folder = tmp_path / str(len(settings))
        make_trainer(folder, save_rollouts=True, max_steps=1, **settings).train()
        (file,) = (folder / "rollouts").iterdir()
        rows = pq.read_table(file).to_pylist()
        assert len(rows) == len(ROWS)
        for i, row in enumerate(rows):
            slot = i % GROUP  # roots 0 and 1; below them slots 2 to 7
            numbers = ([slot // 3] * 2 + [2 + slot] * 3)[: len(row["token_ids"])]
            assert row.get("block") == (numbers if settings else None)


def configured(**settings: Any) -> LambdaGRPOConfig:
    given = {"per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 32}
    given |= {"branch_depths": [16], "branch_factors": [2], "use_cpu": True, "bf16": False}
    return LambdaGRPOConfig("out", **given | settings)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "order": ({"branch_depths": [16, 8], "branch_factors": [2, 2]}, "each deeper than the one before"),
    "factor 1": ({"branch_factors": [1]}, r"branch factors: expected whole numbers from 2 on, got \[1\]"),
    "no factors": ({"branch_factors": None}, "branch factors: expected at least one whole number, got None"),
    "no depths": ({"branch_depths": None}, "branch depths: expected at least one whole number, got None"),
    "one number": ({"branch_depths": 16}, "branch depths: expected at least one whole number, got 16"),
    "product": ({"branch_factors": [3]}, "product 3 does not divide the 8 completions"),
    "one root": ({"branch_factors": [8]}, "one root, which all completions share: .* no gradient"),
    "depth": ({"branch_depths": [32]}, "32 is not below max_completion_length 32"),
    "generate": ({"sampler": "generate"}, "sampler 'generate' cannot fork. Set sampler='auto'"),
    "vLLM": ({"use_vllm": True}, "vLLM and continuous batching cannot fork completions yet"),
    "batching": ({"use_transformers_continuous_batching": True}, "vLLM and continuous batching cannot fork"),
    "no plan": (
        {"branch_depths": None, "branch_factors": None, "credit": "branch"},
        "credit 'branch' is for completions that fork: set branch_depths and branch_factors",
    ),
    "plan": (
        {"credit": "branch", "credit_kwargs": {"plan": 3}},
        "unknown parameter of credit 'branch' 'plan'. Known: baseline, scale",
    ),
    "one ratio": ({"credit": "branch", "importance_sampling_level": "sequence"}, "'branch' gives each token"),
    "baseline": ({"credit": "branch", "credit_kwargs": {"baseline": "outsid"}}, "did you mean 'outside'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_settings_that_do_not_fit(name: str) -> None:
    settings, message = ERRORS[name]
    assert configured().branch_plan == BranchPlan((16,), (2,))
    with pytest.raises(InputError, match=message):
        configured(**settings)


def test_a_group_forks_on_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LambdaGRPOConfig, "world_size", 2)
    assert configured().branch_plan
    with pytest.raises(InputError, match="each of 2 ranks generates 4 rows, which are no whole groups of 8"):
        configured(per_device_train_batch_size=4)


def mamba() -> Any:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, state_size=4))


def test_a_model_that_cannot_fork_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="branch_depths: completions cannot fork here: .*Mamba"):
        make_trainer(tmp_path, model=mamba(), **FORKS | {"sampler": "auto"})


def test_what_cannot_fork_is_no_fallback(tmp_path: Path) -> None:
    model = qwen2()
    model.config.attention_dropout = 0.1  # active once training begins
    for given, message in (
        ({"model": model}, "dropout 0.1 is active"),
        ({"generation_kwargs": {"num_beams": 2}}, "set num_beams, which"),
    ):
        trainer = make_trainer(tmp_path, **FORKS | {"sampler": "auto"}, **given)
        with pytest.raises(InputError, match=f"branch_depths: completions cannot fork here: .*{message}"):
            turn(trainer)


def no_rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
    raise NotImplementedError


def test_several_turns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="branch_depths: tools, several turns and rollout_func cannot fork"):
        make_trainer(tmp_path, **FORKS, trainer_kwargs={"rollout_func": no_rollouts})


def test_images_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **FORKS)
    with pytest.raises(InputError, match="cannot fork here: tools and images go through TRL's own turns"):
        trainer._generate_single_turn([[3]], [["picture"]], {}, GROUP)


def test_the_credit_is_tried_on_a_group_that_fits_a_plan() -> None:
    tried = try_credit("branch", {"scale": "none"})
    # [1, 2, 3] 1, [1, 2, 4] 0, [5, 6] 0.25, [5] 0.5: the roots are worth 0.5 and 0.375.
    assert tried.advantage[:, 0] == pytest.approx([0.125, 0.125, -0.125, -0.125])
    assert get_credit("branch", {"baseline": "siblings"}) is CREDITS["branch"]


def test_the_command_line_takes_a_plan() -> None:
    flags = ["--branch_depths", "8", "16", "--branch_factors", "2", "2", "--num_generations", "8"]
    settings = resolve("", [*flags, "--per_device_train_batch_size", "8", "--max_completion_length", "32"])
    assert settings.config.branch_plan == BranchPlan((8, 16), (2, 2))
    assert settings.explicit["branch_depths"] == [8, 16]


def test_a_dry_run_forks_where_the_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--branch_depths", "6", "--branch_factors", "2", "--credit", "branch"]
    assert cli.main(["train", "--dry_run", *flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert "max_completion_length" in capsys.readouterr().out
