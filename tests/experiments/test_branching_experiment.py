"""The experiment with forks in miniature, and its figures by hand."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.branching import arm_differences, gradient_noise, taught_policy
from experiments.branching.gradient_noise import Drawn
from experiments.branching.long_sums import CARELESS_SHARE, EarlyMark, LateMark
from experiments.branching.setups import Arm, setups
from experiments.common import command, config_flags
from lambda_grpo import InputError, ProcessTree, policy
from lambda_grpo.branching import BranchPlan
from lambda_grpo.logps import completion_logps
from lambda_grpo.tasks import Problem

CONFIG = config_flags.settings_of(command.folder_of("branching") / "config.yaml", quick=False)


def test_in_miniature_it_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick_policy: None
) -> None:
    monkeypatch.setattr(taught_policy, "TEACHING", replace(taught_policy.TEACHING, steps=2, batch_size=4))
    flags = ["--arms", "chains-grpo,branched-branch"]
    one = {
        "tasks": "experiments.branching.long_sums:LateMark", "models": "taught", "seeds": "1",
        "steps": "2",
        "prompts": "2", "chains": "4", "slots": "4", "depths": "18", "factors": "2",
        "max_completion_lengths": "24", "temperatures": "1.0", "learning_rates": "1e-4", "warmup_steps": "1",
        "validate_every": "1", "validation_problems": "4", "validation_samples": "1", "groups": "3",
    }  # fmt: skip
    for name, value in one.items():
        flags += [f"--{name}", value]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command.main(["branching", *flags, "-o", str(whole)]) == 0
    lines = (whole / "runs.jsonl").read_text().splitlines(keepends=True)
    noise, chains, forks = map(json.loads, lines[1:])
    assert noise["gradient_of"].endswith("LateMark")
    assert (chains["arm"], forks["arm"]) == ("chains-grpo", "branched-branch")
    assert chains["accuracy"][0] == forks["accuracy"][0], "the same policy and problems at the start"
    assert 0 < forks["tokens"][1] < forks["tokens"][2] < chains["tokens"][2], "shared tokens count once"
    assert chains["tokens"][2] == pytest.approx(2 * 2 * 4 * chains["mean_length"], rel=0.01)
    figures = json.loads((whole / "results.json").read_text())["figures"]
    assert "LateMark | branched-branch - chains-grpo | mean over tokens" in figures
    assert figures["LateMark | tokens, branched over chains"] < 1
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")

    stopped.mkdir()
    (stopped / "runs.jsonl").write_text("".join(lines[:3]))
    capsys.readouterr()
    assert command.main(["branching", *flags, "-o", str(stopped)]) == 0
    again = (stopped / "runs.jsonl").read_text().splitlines(keepends=True)
    assert again[:3] == lines[:3], "what was done stays"
    redone = json.loads(again[3])
    assert {**redone, "seconds": []} == {**forks, "seconds": []}, "and the rest is what it would have been"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="seeds: expected 3 values, one per task, got 1"):
        setups({**CONFIG, "seeds": [3]})
    for wrong in ("grpo", "forked-grpo", "chains-"):
        with pytest.raises(InputError, match="expected chains-CREDIT or branched-CREDIT"):
            Arm.of(wrong)
    with pytest.raises(InputError, match="unknown credit 'no_such'"):
        Arm.of("chains-no_such")


def test_what_the_long_sums_earn() -> None:
    early, late = EarlyMark(), LateMark()
    problem = Problem("1+2+3=", 6)
    texts = ("?3,6", ".3,6", ".9,6", "?3,7", "?6", "3,6", "?3,6,", "")
    assert [early.score(problem, text) for text in texts] == [1, 1, 1, 0, 0, 0, 0, 0]
    problem = Problem("1+2+3==", 6)
    assert [late.score(problem, text) for text in ("1+2+3=?3,6", "?3,6", "1+2+4=?3,6")] == [1, 0, 0]


@pytest.mark.parametrize("task", [EarlyMark(), LateMark()])
def test_demonstrations_are_right_if_careful(task: EarlyMark) -> None:
    rng = random.Random(0)
    right: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3000):
        prompt, answer = task.demonstration(rng)
        total = sum(map(int, prompt.rstrip("=").split("+")))
        right[task.traits(answer)["care"] > 0].append(task.score(Problem(prompt, total), answer))
        assert answer.find("?" if "?" in answer else ".") == (18 if isinstance(task, LateMark) else 0)
        assert 36 <= len(answer) <= 43
    assert np.mean(right[True]) == 1
    assert 0.15 < np.mean(right[False]) < 0.22  # 0.10 without a slip; several may cancel
    assert len(right[False]) / 3000 == pytest.approx(CARELESS_SHARE, abs=0.03)


def rows(arm: str, accuracy: list[list[float]], tokens: list[float]) -> list[dict[str, object]]:
    return [
        {"task": "m:T", "arm": arm, "seed": i, "accuracy": a, "tokens": tokens, "seconds": [0, 2, 4],
         "tokens_before": tokens[:2], "training_reward": a[:2]}
        for i, a in enumerate(accuracy)
    ]  # fmt: skip


def test_arms_are_compared_where_both_have_come_by_hand() -> None:
    """Chains: 0, then 0.4 at 100 tokens and 0.8 at 200. Forks: 0.5 at 80 and 0.5 at 160, where both are cut."""
    chains = rows("chains-grpo", [[0.0, 0.4, 0.8]] * 2, [0, 100, 200])
    forks = rows("branched-branch", [[0.0, 0.5, 0.5]] * 2, [0, 80, 160])
    found = arm_differences.measured([*chains, *forks])
    # Up to 160, chains are a straight line from 0 to 0.64; forks rise to 0.5 by 80.
    assert found["chains-grpo"][0]["mean over tokens"] == pytest.approx(0.32)
    assert found["branched-branch"][0]["mean over tokens"] == pytest.approx((0.25 * 80 + 0.5 * 80) / 160)
    # The last step of forks began at 80 tokens: up to there chains are a line from 0 to 0.32.
    assert found["chains-grpo"][0]["training over tokens"] == pytest.approx(0.16)
    assert found["branched-branch"][0]["training over tokens"] == pytest.approx(0.25)
    change = arm_differences.differences(found, "branched-branch")
    assert change["mean over tokens"].mean == pytest.approx(0.375 - 0.32)
    assert change["end"].mean == pytest.approx(-0.3)
    flat = arm_differences.figures([*chains, *forks])
    assert flat["T | branched-branch - chains-grpo | mean over seconds"] == pytest.approx(-0.025)


def test_noise_scale_and_direction_of_made_up_gradients() -> None:
    """Two thousand noisy copies of a vector of length 5 in 50 dimensions; half of it; and another direction."""
    rng = np.random.default_rng(0)
    mean = np.zeros(50)
    mean[:2] = 3, 4
    turned = np.zeros(50)
    turned[:2] = 3, -4

    def noisy(vector: np.ndarray, std: float) -> np.ndarray:
        return (vector + std * rng.normal(size=(2000, 50))).astype(np.float32)

    arms = {
        "chains-grpo": noisy(mean / 2, 0.5),
        "branched-branch": noisy(mean, 2.0),
        "branched-grpo": noisy(turned, 1.0),
    }
    found = gradient_noise.compare(arms, dict.fromkeys(arms, 1.0) | {"branched-grpo": 0.5}, others=2.0)
    assert found["chains-grpo | noise"] == pytest.approx(50 / 25, rel=0.05)
    assert found["chains-grpo | scale"] == pytest.approx(0.5), "the rest is the factor G / (G - 1)"
    assert found["branched-branch | scale"] == pytest.approx(1, rel=0.02)
    assert found["chains-grpo | variance"] == pytest.approx(0.25), "half as long"
    assert found["branched-branch | variance"] == pytest.approx(4, rel=0.05)
    assert found["branched-branch | cosine"] == pytest.approx(1, abs=0.01)
    assert found["branched-grpo | noise"] == pytest.approx(1, rel=0.05), "half the tokens, half the noise"
    assert found["branched-grpo | cosine"] == pytest.approx(-7 / 25, abs=0.02)
    low, high = (found[f"branched-branch | variance | {end}"] for end in ("low", "high"))
    assert low < 4 < high < low * 1.3


def test_folded_gradients_keep_their_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_noise, "LARGEST_WHOLE", 10)
    monkeypatch.setattr(gradient_noise, "FOLDED", 4096)
    random = torch.Generator().manual_seed(1)
    common = torch.randn(30_001, generator=random)
    x, y = (common + torch.randn(30_001, generator=random) for _ in range(2))
    folds = gradient_noise.Folds.of(30_001)
    ours = np.stack([folds.folded(gradient) for gradient in (x, y, x + y)])
    assert ours.shape == (3, 4096)
    products, whole = ours @ ours.T, torch.stack([x, y, x + y])
    np.testing.assert_allclose(products, whole @ whole.T, rtol=5 * 4096**-0.5)
    np.testing.assert_allclose(ours[2], ours[0] + ours[1], atol=1e-4)
    np.testing.assert_array_equal(gradient_noise.Folds.of(3).folded(x[:3]), x[:3])


def test_the_gradient_of_a_group_is_that_of_plain_rows(quick_policy: None) -> None:
    """A forked group, packed, against one row per completion."""
    from lambda_grpo import console

    model, _ = policy.load_policy(str(console.embedded_policy()), dtype="float32")
    plan = BranchPlan((2,), (2,))
    completions = [[5, 6, 7], [5, 6, 8, 1], [9, 6, 1], [9, 6, 1]]
    drawn = Drawn([[9], [4, 5]], [[[5]], completions], np.array([[0, 0, 0, 0], [1.0, 0, 0, 0]]), 0)
    assert [float(g.abs().max()) for g in gradient_noise.gradients_of(model, drawn, 0, plan, 0.8)] == [0] * 3
    found = list(gradient_noise.gradients_of(model, drawn, 1, plan, 0.8))
    assert len(found) == 3
    credits = gradient_noise.coefficients(ProcessTree.build(completions), drawn.rewards[1], plan)
    for gradient, given in zip(found, credits, strict=True):
        logps = completion_logps(model, [[4, 5]] * 4, completions, temperature=0.8)
        pushed = (logps * torch.from_numpy(given)).sum() / 4
        plain = torch.autograd.grad(pushed, list(model.parameters()))
        flat = torch.cat([part.flatten() for part in plain]).numpy()
        assert abs(flat).max() > 1e-3
        np.testing.assert_allclose(gradient, flat, atol=1e-5 * abs(flat).max() + 1e-7)
