"""Completions that no reward function could score: in the tree and in |λ|, and in no mean."""

from functools import partial

import numpy as np
import pytest
from tiny_trainers import GROUP, PROMPTS, TOKENIZER, make_trainer, reward

from lambda_grpo import ProcessTree
from lambda_grpo.credit import CREDITS
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.engines.trl.trainer import credit_group
from lambda_grpo.errors import InputError
from lambda_grpo.report import write_report
from lambda_grpo.rollouts import RolloutReader

TREE = ProcessTree.build([[5, 6], [5, 7], [5, 8], [9]])
REWARDS = np.array([1.0, np.nan, 0.0, 0.0])
# Mean 1/3 and sample std 0.5774 over the three that were scored; TRL gives the fourth 0.
ADVANTAGES = np.array([1.1547, 0.0, -0.57735, -0.57735])


def credited(name: str) -> tuple[np.ndarray, np.ndarray]:
    result = credit_group(CREDITS[name], TREE, REWARDS, ADVANTAGES, None)
    return result.advantage, result.weight


def test_by_hand() -> None:
    """A({5 …}) is (1.1547 - 0.5774) / 2 = 0.2887 over the two scored members; diluted it was 0.1925."""
    advantage, weight = credited("process")
    np.testing.assert_allclose(advantage[0], [0.28868, 1.1547], rtol=1e-4)
    np.testing.assert_allclose(advantage[2], [0.28868, -0.57735], rtol=1e-4)
    assert (advantage[1] == 0).all()
    assert (weight[1] == 1).all()
    diluted = CREDITS["process"](TREE, np.nan_to_num(REWARDS), advantages=ADVANTAGES)
    assert diluted.advantage[0, 0] == pytest.approx(0.19245, rel=1e-4)  # what the mask mends


@pytest.mark.parametrize("name", sorted(CREDITS))
def test_no_credit_hears_them(name: str) -> None:
    """The siblings get what they get where the completion is masked whole, and it gets nothing itself."""
    advantage, weight = credited(name)
    mask = np.ones((4, 2), bool)
    mask[1] = False
    expected = CREDITS[name](
        TREE, np.nan_to_num(REWARDS), advantages=ADVANTAGES, mask=mask & (TREE.step_index >= 0)
    )
    np.testing.assert_array_equal(advantage, expected.advantage)
    assert (advantage[1] == 0).all()
    if name.startswith("lambda_grpo") and name != "lambda_grpo_unique":
        assert weight[0, 0] < 1  # it still counts in |λ|


def test_a_group_that_was_scored_whole_is_left_alone() -> None:
    rewards = np.array([1.0, 0.5, 0.0, 0.0])
    for credit in CREDITS.values():
        given = credit_group(credit, TREE, rewards, ADVANTAGES, None)
        plain = credit(TREE, rewards, advantages=ADVANTAGES)
        np.testing.assert_array_equal(given.advantage, plain.advantage)
        np.testing.assert_array_equal(given.weight, plain.weight)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence'"),
        ({"loss_type": "vespo"}, "loss_type='vespo'"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold=0.5"),
    ],
)
def test_credits_per_token_need_ratios_per_token(settings: dict[str, object], named: str, tmp_path) -> None:
    config = partial(
        LambdaGRPOConfig, output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4, **settings
    )
    config(credit="lambda_grpo")
    config(credit="grpo")
    with pytest.raises(InputError, match=f"'process' gives each token .* {named} needs one advantage"):
        config(credit="process")


def test_a_run_with_unscorable_completions_is_reported_whole(tmp_path) -> None:
    """What training saves of them can be read; their siblings stay in the report."""

    def some(completions: list[str], **_: object) -> list[float | None]:
        return [None if i % 5 == 0 else r for i, r in enumerate(reward(completions))]

    trainer = make_trainer(tmp_path, trainer_kwargs={"reward_funcs": some}, save_rollouts=True, max_steps=1)
    trainer.train()
    groups = list(RolloutReader([tmp_path]))
    assert len(groups) == len(PROMPTS)
    rewards = np.concatenate([group.rewards for group in groups])
    assert np.flatnonzero(np.isnan(rewards)).tolist() == list(range(0, len(PROMPTS) * GROUP, 5))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert TOKENIZER.batch_decode(group.prompt_ids) == [prompt] * GROUP
    advantages = np.concatenate([group.advantages for group in groups])
    assert (advantages[np.isnan(rewards)] == 0).all()
    written = write_report([tmp_path], tmp_path / "report.html")
    assert (written.groups, written.left_out.rows) == (len(PROMPTS), 0)
