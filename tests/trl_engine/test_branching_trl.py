"""Forked completions under the TRL trainer: what is sampled, its credit in TRL's own loss, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from jobs import Jobs
from oracle import spliced_compute_loss
from peft import LoraConfig
from tiny_trainers import GROUP, PROMPTS, assert_close, completions_of, gradients, make_trainer, qwen2, reward
from transformers import MambaConfig, MambaForCausalLM

from lambda_grpo import InputError, cli, fork_chooser
from lambda_grpo.branching import BranchPlan
from lambda_grpo.credit import CREDITS, get_credit, try_credit
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.engines.trl import sampling as trl_sampling
from lambda_grpo.engines.trl.branching import Branching
from lambda_grpo.training.settings import resolve

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
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
        assert not {name for name in trainer._metrics[mode] if name.startswith("branch/")}
        assert ("tree/sampled_tokens" in trainer._metrics[mode]) == (mode == "train")
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
    given = {"num_iterations": 2, "epsilon": 0.001, "beta": 0.1, "credit": "branch", "credit_kwargs": kwargs}
    trainer = make_trainer(tmp_path, **FORKS, **given)
    batch = turn(trainer)
    rewards, width = values(own_rewards(batch, trainer)), batch["completion_ids"].shape[1]
    moved(trainer)
    got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
    assert 0.1 < trainer._metrics["train"]["clip_ratio/region_mean"][-1] < 0.9
    advantages = literal_advantages(rewards, forked_groups(batch), width)
    exact = {**batch, "advantages": advantages, "credit_weights": torch.ones_like(advantages)}
    compute_loss = spliced_compute_loss("term")
    assert_close(got, gradients(trainer, compute_loss(trainer, trainer.model, exact)), 1e-5)
    with pytest.raises(AssertionError):  # the planted fault: each completion against all the others
        alone = rewards.reshape(-1, GROUP)
        wrong = (alone - alone.mean(1, keepdims=True)) * GROUP / (GROUP - 1)
        exact["advantages"] = torch.tensor(wrong.reshape(-1, 1), dtype=torch.float32).expand(-1, width)
        assert_close(got, gradients(trainer, compute_loss(trainer, trainer.model, exact)), 1e-3)


@pytest.mark.parametrize("more", [{}, {"trainer_kwargs": {"peft_config": LORA}}], ids=["plain", "LoRA"])
def test_packed_equals_plain(tmp_path: Path, more: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, **FORKS, credit="branch", tree_packing="on", num_iterations=2, **more)
    batch = turn(trainer)
    assert all(map(is_forked, forked_groups(batch)))
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


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_completion_that_fills_several_rows_is_scored_once(tmp_path: Path, kind: str) -> None:
    """What ended by token 2 is in three rows; a random reward is the same in all of them."""
    calls: list[dict[str, Any]] = []

    def judged(completions: list[str], log_extra: Any, **given: Any) -> list[float]:
        calls.append(given | {"completions": completions})
        log_extra("number", [float(i) for i in range(len(completions))])
        return [float(np.random.default_rng([7, i]).random()) for i in range(len(completions))]

    async def later(**given: Any) -> list[float]:
        return judged(**given)

    function = judged if kind == "sync" else later
    trainer = make_trainer(tmp_path, **FORKS, trainer_kwargs={"reward_funcs": function})
    roots = [root for group in forked_groups(turn(trainer)) for root in (group[:3], group[3:])]
    ended = [len(root[0]) <= 2 for root in roots]
    assert 0 < sum(ended) < len(roots)
    (given,) = calls
    assert len(given["completions"]) == sum(1 if over else 3 for over in ended)
    seen = [ids for root, over in zip(roots, ended, strict=True) for ids in root[: 1 if over else 3]]
    assert given["completion_ids"] == seen
    assert len(given["prompts"]) == len(seen)
    rewards = trainer._rewards.reshape(-1, 3)
    numbers = np.reshape(list(trainer._logs["extra"]["number"]), (-1, 3))
    for row, number, over in zip(rewards, numbers, ended, strict=True):
        assert len(set(row.tolist())) == len(set(number.tolist())) == (1 if over else 3)
    turn(trainer, "eval")
    assert len(calls[-1]["completions"]) == len(ROWS)


def configured(**settings: Any) -> LambdaGRPOConfig:
    given = {"per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 32}
    given |= {"branch_depths": [16], "branch_factors": [2], "use_cpu": True, "bf16": False}
    return LambdaGRPOConfig("out", **given | settings)


AUTO: dict[str, Any] = {"branch_depths": "auto", "branch_factors": None}
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "order": ({"branch_depths": [16, 8], "branch_factors": [2, 2]}, "each deeper than the one before"),
    "factor 1": ({"branch_factors": [1]}, r"branch factors: expected whole numbers from 2 on, got \[1\]"),
    "no factors": (
        {"branch_factors": None},
        r"branch_depths \[16\] need branch_factors, one for each depth, such as 2",
    ),
    "no depths": (
        {"branch_depths": None},
        r"branch_factors \[2\] need branch_depths, one for each factor, such as 8",
    ),
    "one number": (
        {"branch_depths": 16},
        r"branch depths: expected a list of whole numbers, such as \[1\], got 16",
    ),
    "product": ({"branch_factors": [3]}, "product 3 does not divide the 8 completions"),
    "one root": ({"branch_factors": [8]}, "one root, which all completions share: .* no gradient"),
    "depth": ({"branch_depths": [32]}, "32 is not below max_completion_length 32"),
    "generate": ({"sampler": "generate"}, "sampler 'generate' cannot fork. Set sampler='auto'"),
    "no longest completion": ({"max_completion_length": None}, "max_completion_length is not set"),
    "auto, no longest completion": (
        AUTO | {"max_completion_length": None},
        "max_completion_length is not set",
    ),
    "batching": (
        {"use_transformers_continuous_batching": True},
        "continuous batching cannot fork completions",
    ),
    "a word": ({"branch_depths": "late"}, "expected whole numbers, such as 8 16, or auto, got 'late'"),
    "words": (
        {"branch_depths": ["auto", "8"]},
        r"expected whole numbers, such as 8 16, or auto, got \['auto', 8\]",
    ),
    "auto and factors": (
        {"branch_depths": "auto"},
        r"branch_factors: got \[2\], but branch_depths is 'auto'",
    ),
    "auto, prime": (
        AUTO | {"num_generations": 7, "per_device_train_batch_size": 7},
        "7 completions of a group cannot be",
    ),
    "auto, one token": (AUTO | {"max_completion_length": 1}, "completions of 1 token have no place to fork"),
    "auto, generate": (AUTO | {"sampler": "generate"}, "sampler 'generate' cannot fork"),
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


def test_the_command_line_takes_auto(tmp_path: Path) -> None:
    size = ["--num_generations", "8", "--per_device_train_batch_size", "8", "--max_completion_length", "32"]
    for given in (["--branch_depths", "auto"], ["--branch_depths=auto"]):
        settings = resolve("", [*given, *size])
        assert settings.explicit["branch_depths"] == settings.config.branch_depths == "auto"
        assert settings.config.forks
        assert settings.config.branch_plan is None
    recipe = tmp_path / "mine.yaml"
    for written, expected in (("auto", "auto"), ("[8, 16]", [8, 16])):
        factors = "branch_factors: [2, 2]\n" if expected != "auto" else ""
        recipe.write_text(f"branch_depths: {written}\n{factors}")
        assert resolve(str(recipe), size).config.branch_depths == expected


def test_the_command_line_takes_a_plan() -> None:
    flags = ["--branch_depths", "8", "16", "--branch_factors", "2", "2", "--num_generations", "8"]
    settings = resolve("", [*flags, "--per_device_train_batch_size", "8", "--max_completion_length", "32"])
    assert settings.config.branch_plan == BranchPlan((8, 16), (2, 2))
    assert settings.explicit["branch_depths"] == [8, 16]


@pytest.mark.parametrize(
    "flags", [["--branch_depths", "6", "--branch_factors", "2"], ["--branch_depths=auto"]]
)
def test_a_dry_run_forks_where_the_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    flags = [*flags, "--credit", "branch"]
    assert cli.main(["train", "--dry_run", *flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert "max_completion_length" in capsys.readouterr().out


def test_what_a_step_drew_is_logged(tmp_path: Path) -> None:
    """Tokens, distinct completions, and the variance between and within roots, from the rows themselves."""
    for settings in (FORKS, {"sampler": "tree", "temperature": 1.0}, {"temperature": 1.0}):
        trainer = make_trainer(tmp_path, **settings)
        groups = forked_groups(turn(trainer))
        logged = trainer._metrics["train"]
        assert logged["tree/distinct_completions"] == [np.mean([len(set(map(tuple, g))) for g in groups])]
        if settings is not FORKS:
            assert logged["tree/sampled_tokens"] == [sum(len(ids) for g in groups for ids in g)]
            assert "branch/variance_between" not in logged
            continue
        r = trainer._rewards.double().numpy().reshape(-1, 2, 3)
        within = r.var(axis=2, ddof=1).mean(axis=1)
        between = r.mean(axis=2).var(axis=1, ddof=1) - within / 3
        assert logged["branch/variance_within"] == pytest.approx([within.mean()])
        assert logged["branch/variance_between"] == pytest.approx([between.mean()])
        assert abs(between.mean()) > 1e-3
        assert "branch/depth" not in logged  # it is the one that was set


def test_groups_with_unscored_completions_are_in_no_variance(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **FORKS)
    trainer.model.train()
    logged = trainer._branch_fractions(np.array([0, 1, 0, 1, 0, 1, np.nan, 0, 1, 0, 1, 0]))
    assert logged["branch/variance_within"] == (pytest.approx(1 / 3), 1)  # of 0 1 0 and 1 0 1
    assert logged["branch/variance_between"] == (pytest.approx(1 / 18 - 1 / 9), 1)


def test_auto_forks_by_earlier_batches(tmp_path: Path, requests: list[Any]) -> None:
    """The first batch is independent; then depth and factor are those that earlier batches taught."""
    trainer = make_trainer(tmp_path, **FORKS | AUTO, credit="branch", max_steps=4, save_rollouts=True)
    chosen = []
    learn = trainer._chooser.learn
    trainer._chooser.learn = lambda plan, *seen: (learn(plan, *seen), chosen.append(trainer._chooser.plan))
    trainer.train()
    plans = [request.branches for request in requests]
    assert plans == [None, *chosen[:-1]]
    assert plans[1:] == [BranchPlan((1,), (2,))] * 3  # of at most 5 tokens
    rows = [row for row in trainer.state.log_history if "branch/depth" in row]
    assert [(row["branch/depth"], row["branch/factor"]) for row in rows] == [(0, 1)] + [(1, 2)] * 3
    assert ["branch/variance_within" in row for row in rows] == [False, True, True, True]
    files = sorted((tmp_path / "rollouts").iterdir())
    assert ["block" in pq.read_table(file).column_names for file in files] == [False, True, True, True]
    assert trainer._chooser.shares(1)[2] > 0
    turn(trainer, "eval")
    assert requests[-1].branches is None
    assert len(chosen) == 4  # validation teaches nothing


def test_auto_says_once_that_it_is_off(
    tmp_path: Path, requests: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third batch on no fork is good enough."""
    monkeypatch.setattr(fork_chooser, "TRIED_GROUPS", 2)
    trainer = make_trainer(tmp_path, **FORKS | AUTO, credit="branch", max_steps=5)
    learn, seen = trainer._chooser.learn, []

    def late(*batch: Any) -> None:
        seen.append(batch)
        if len(seen) == 3:
            monkeypatch.setattr(fork_chooser, "LEAST_GAIN", 99.0)
        learn(*batch)

    trainer._chooser.learn = late
    trainer.train()
    assert [request.branches is None for request in requests] == [True, False, False, True, True]
    assert trainer._chooser.is_off
    assert len(seen) == 3
    (said,) = [r.getMessage() for r in caplog.records if r.name == "lambda_grpo.engines.trl.branching"]
    assert "branch_depths 'auto' is off from here on: at equal tokens no fork is estimated to gain" in said
    assert "by token 1 (" in said
    resumed = make_trainer(tmp_path, **FORKS | AUTO, credit="branch")
    resumed._chooser.load_state(trainer._chooser.state())
    turn(resumed)
    assert requests[-1].branches is None
    assert len([r for r in caplog.records if r.name == "lambda_grpo.engines.trl.branching"]) == 1


@pytest.mark.parametrize("kept", [True, False])
def test_auto_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """A run that is resumed chooses as if it had not been killed."""
    monkeypatch.setattr(fork_chooser, "TRIED_GROUPS", 4)
    if not kept:
        monkeypatch.delattr(Branching, "load_kept_state")
    settings = {
        **FORKS,
        **AUTO,
        "credit": "branch",
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    outcomes = []
    for checkpoint in (None, str(tmp_path / "checkpoint-5")):
        trainer = make_trainer(tmp_path, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        rows = [row for row in trainer.state.log_history if "branch/depth" in row]
        forks = [(row["branch/depth"], row["branch/factor"]) for row in rows]
        outcomes.append((forks, [p.detach().clone() for p in trainer.model.parameters()]))
    assert len(set(outcomes[0][0])) > 2  # it tried several
    same = outcomes[0][0] == outcomes[1][0]
    same = same and all(torch.equal(a, b) for a, b in zip(outcomes[0][1], outcomes[1][1], strict=True))
    assert same == kept


@pytest.mark.slow
def test_two_ranks_fork_alike(jobs: Jobs, tmp_path: Path) -> None:
    """Each its own groups; with `auto` both choose the same, after a kill too."""
    job = jobs.start(tmp_path, call="branching_worker:main")
    assert job.wait(300) == 0, job.output()
