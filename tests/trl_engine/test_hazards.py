"""What goes wrong in training: each hazard has a stated behaviour (docs/hazards.md) and a test here."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import math_verify
import numpy as np
import pytest
import stress_resume
import torch
from tiny_trainers import PROMPTS, TOKENIZER, make_trainer, qwen2, reward
from torch.amp.grad_scaler import OptState
from trl import GRPOTrainer

from lambda_grpo import InputError, LambdaGRPOError, cli
from lambda_grpo.engines.trl.guards import Guarded
from lambda_grpo.engines.trl.reward_limits import checked, guarded
from lambda_grpo.policy import load_policy
from lambda_grpo.training import run_folder


def weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def unchanged(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def with_reward(folder: Path, function: Any, **settings: Any) -> Any:
    return make_trainer(folder, trainer_kwargs={"reward_funcs": function}, **settings)


def raises(completions: list[str], **_: Any) -> list[float]:
    raise KeyError("answer")


def sleeps(completions: list[str], **_: Any) -> list[float]:
    with contextlib.suppress(Exception):  # as careless reward functions do
        time.sleep(60)
    return [0.0] * len(completions)


def spins(completions: list[str], **_: Any) -> list[float]:
    while True:
        pass


def verifies(completions: list[str], **_: Any) -> list[float]:
    """math-verify sets and clears the process's alarm, which must not clear the limit too."""
    math_verify.parse("$3$")
    return sleeps(completions)


async def awaits(completions: list[str], **_: Any) -> list[float]:
    await asyncio.sleep(60)
    return [0.0] * len(completions)


async def fails_later(completions: list[str], **_: Any) -> list[float]:
    raise KeyError("answer")


async def gives_up(completions: list[str], **_: Any) -> list[float]:
    raise TimeoutError("the judge gave no answer")


async def turns_into_another_error(completions: list[str], **_: Any) -> list[float]:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as error:
        raise RuntimeError("interrupted") from error
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, "reward function 'raises' failed: KeyError: 'answer' .*test_hazards.py, line"),
        (fails_later, "reward function 'fails_later' failed: KeyError: 'answer'"),
        (sleeps, "reward function 'sleeps' took longer than 0.5 s for one batch"),
        (spins, "reward function 'spins' took longer than 0.5 s"),
        (verifies, "reward function 'verifies' took longer than 0.5 s"),
        (awaits, "reward function 'awaits' took longer than 0.5 s"),
        (gives_up, "reward function 'gives_up' failed: TimeoutError: the judge gave no answer"),
        (turns_into_another_error, "reward function 'turns_into_another_error' took longer than 0.5 s"),
    ],
)
def test_a_reward_function_that_fails_or_hangs_ends_training(
    tmp_path: Path, function: Any, message: str
) -> None:
    trainer = with_reward(tmp_path, function, reward_timeout=0.5)
    before, started = weights(trainer), time.monotonic()
    handler = signal.getsignal(signal.SIGRTMAX)
    with pytest.raises(LambdaGRPOError, match=message):
        trainer.train()
    assert time.monotonic() - started < 10
    assert unchanged(before, weights(trainer))
    assert signal.getsignal(signal.SIGRTMAX) == handler


def test_a_signal_on_its_way_as_the_call_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for: after the call it would hit whoever handles that signal, or end the process."""
    strays, send = [], signal.pthread_kill
    monkeypatch.setattr(signal, "pthread_kill", lambda *signalled: (time.sleep(0.2), send(*signalled)))
    handler = signal.signal(signal.SIGRTMAX, lambda *_: strays.append(time.monotonic()))
    try:
        with pytest.raises(LambdaGRPOError, match="'ends' took longer than 0.05 s"):
            guarded(lambda completions: time.sleep(0.1) or [1.0], "ends", 0.05)(completions=["a"])
        time.sleep(0.3)
        assert strays == []
    finally:
        signal.signal(signal.SIGRTMAX, handler)


def test_a_call_that_never_comes_back_to_python_ends_the_process() -> None:
    """`pow` of big numbers holds the interpreter; the watchdog needs none."""
    code = (
        "from lambda_grpo.engines.trl import reward_limits; reward_limits._GRACE = 0.5\n"
        "reward_limits.guarded(lambda completions: [pow(3, 10**9)], 'power', 0.5)(completions=['a'])"
    )
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert time.monotonic() - started < 20
    assert ended.returncode != 0
    assert "Timeout" in ended.stderr


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 rewards for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 rewards for 2 completions"),
        ([1.0, float("nan")], "returned nan for completion #1, 'b': expected a finite number, or None"),
        ([float("inf"), 0], "returned inf for completion #0, 'a'"),
        ([np.float32("nan"), 0], r"returned .*nan.* for completion #0"),
        (torch.tensor([0.0, float("nan")]), "for completion #1"),
        (["1.0", 0], "returned '1.0' for completion #0"),
        ([[1.0], [0.0]], r"returned \[1.0\] for completion #0"),
        ("ab", "returned 'ab': expected a list"),
        (0.5, "returned 0.5: expected a list"),
        (None, "returned None: expected a list"),
        (torch.tensor(0.5), "expected a list"),
        ({"a": 1, "b": 2}, "expected a list"),
    ],
)
def test_rewards_that_are_none(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"reward function 'mine' .*{message}"):
        guarded(lambda completions: returned, "mine", 0)(completions=["a", "b"])


def test_rewards_that_are_good() -> None:
    for given in ([1, None], (np.float32(1), None), (x for x in (True, None))):
        assert checked(given, ["a", "b"], "mine") == [1.0, None]
    assert checked(torch.tensor([1.0, 0.5]), ["a", "b"], "mine") == [1.0, 0.5]


def test_good_reward_functions_are_not_changed(tmp_path: Path) -> None:
    """Names, sync and async, and what TRL makes of None stay as they are."""

    async def half(completions: list[str], **_: Any) -> list[float | None]:
        return [None if i % 2 else 0.5 for i in range(len(completions))]

    trainer = with_reward(tmp_path, [reward, half], max_steps=1)
    trainer.train()
    row = trainer.state.log_history[0]
    assert {"rewards/reward/mean", "rewards/half/mean"} <= set(row)
    assert row["rewards/half/mean"] == 0.5


@pytest.mark.parametrize("one_unscored", [False, True])
def test_equal_rewards_teach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_unscored: bool
) -> None:
    """The float32 mean of five such values is another value; so TRL's advantages are not 0, and Adam steps."""
    draws = torch.rand(999, generator=torch.manual_seed(0))
    value = next(v for v in draws if v.expand(5).nanmean() != v and v.expand(6).nanmean() != v).item()

    def equal(completions: list[str], **_: Any) -> list[float | None]:
        return [value, value, None, value, value, value] * 4 if one_unscored else [value] * len(completions)

    trainer = with_reward(tmp_path / "ours", equal, max_steps=2)
    before = weights(trainer)
    trainer.train()
    assert unchanged(before, weights(trainer))

    monkeypatch.delattr(Guarded, "_generate_and_score_completions")
    trainer = with_reward(tmp_path / "theirs", equal, max_steps=2)
    trainer.train()
    assert not unchanged(before, weights(trainer))


def test_rewards_whose_sums_are_equal_teach_nothing(tmp_path: Path) -> None:
    """One function gives 1 and 0 by turns, the other the rest of 1; weights count, too."""
    turns = [1.0, 0.0] * 12
    functions = [lambda prompts, **_: turns, lambda prompts, **_: [0.7 - 0.7 * one for one in turns]]
    trainer = with_reward(tmp_path, functions, reward_weights=[0.7, 1.0])
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(6)])
    assert not batch["advantages"].any()


def test_only_equal_rewards_lose_their_advantage(tmp_path: Path) -> None:
    """Four groups: different rewards; equal ones; one value beside None; nothing but None."""
    rows = iter([0.0, 1.0] * 3 + [0.5] * 6 + [None, 1.0] * 3 + [None] * 6)
    trainer = with_reward(tmp_path, lambda completions, **_: [next(rows) for _ in completions])
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(6)])
    groups = batch["advantages"].view(4, -1).abs().sum(dim=1)
    assert (groups != 0).tolist() == [True, False, False, False]  # one reward and Nones: nothing to compare


@pytest.mark.parametrize("credit", ["grpo", "lambda_grpo", "process"])
def test_empty_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credit: str) -> None:
    """An empty answer is one token, the end of sequence, and taught like any other; no token at all is refused."""
    generate = GRPOTrainer._generate_single_turn
    seen = []

    def noted(completions: list[str], **given: Any) -> list[float]:
        seen.extend(completions)
        return reward(completions)

    def emptied(self: Any, *args: Any) -> Any:
        ids, *rest = generate(self, *args)
        return [[TOKENIZER.eos_token_id] if i % 2 else row for i, row in enumerate(ids)], *rest

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", emptied)
    trainer = with_reward(tmp_path, noted, credit=credit, max_steps=1)
    before = weights(trainer)
    trainer.train()
    assert seen.count("") >= 12
    assert all(parameter.isfinite().all() for parameter in weights(trainer))
    assert not unchanged(before, weights(trainer))

    def none(self: Any, *args: Any) -> Any:
        ids, *rest = generate(self, *args)
        return [*ids[:-1], []], *rest

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", none)
    with pytest.raises(LambdaGRPOError, match="completion #23 of 24 has no tokens"):
        make_trainer(tmp_path, credit=credit, max_steps=1).train()


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_all_completions_truncated(tmp_path: Path, loss_type: str) -> None:
    """With mask_truncated_completions none has a token to teach: the step does nothing, and says so."""
    trainer = make_trainer(
        tmp_path, loss_type=loss_type, mask_truncated_completions=True, max_steps=2,
        generation_kwargs={"suppress_tokens": [0, 1]},
    )  # fmt: skip
    before = weights(trainer)
    trainer.train()
    assert unchanged(before, weights(trainer))
    row = trainer.state.log_history[0]
    assert (row["completions/clipped_ratio"], row["credit/truncated"]) == (1.0, 1.0)
    assert (row["loss"], row["hazards/skipped_steps"]) == (0.0, 0.0)


def poisoned(trainer: Any, steps: set[int], value: float) -> Any:
    """The trainer, one of whose gradients is `value` in these steps."""
    measure = trainer._clip_grad_norm

    def clip(model: Any) -> Any:
        if trainer.state.global_step in steps:
            next(model.parameters()).grad[0, 0] = value
        return measure(model)

    trainer._clip_grad_norm = clip
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_skipped(tmp_path: Path, value: float) -> None:
    """Step 0 of 1 leaves the weights alone; training goes on, and the share of skipped steps is logged."""
    trainer = poisoned(make_trainer(tmp_path, max_steps=1), {0}, value)
    before = weights(trainer)
    trainer.train()
    assert unchanged(before, weights(trainer))
    trainer = poisoned(make_trainer(tmp_path, max_steps=4, logging_steps=2), {1, 2}, value)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["hazards/skipped_steps"] for row in rows] == [0.5, 0.5]
    assert all(parameter.isfinite().all() for parameter in weights(trainer))
    assert not unchanged(before, weights(trainer))


def test_too_many_skipped_steps_in_a_row_end_training(tmp_path: Path) -> None:
    """Limit 3: skipped at 1 and 2, fine at 3, skipped at 4, 5 and 6, which is the third in a row."""
    trainer = make_trainer(tmp_path, max_steps=9, max_skipped_steps=3)
    with pytest.raises(LambdaGRPOError, match="not finite in 3 steps in a row, up to step 7"):
        poisoned(trainer, {1, 2, 4, 5, 6}, float("nan")).train()
    assert all(parameter.isfinite().all() for parameter in weights(trainer))


def scaled(trainer: Any, scaler: Any) -> Any:
    """The trainer with fp16's gradient scaler, which accelerate gives it on a GPU only."""
    accelerator = trainer.accelerator
    accelerator.scaler = scaler
    accelerator.unscale_gradients = lambda *_: scaler.unscale_(trainer.optimizer.optimizer)
    return trainer


class Stuck(torch.amp.GradScaler):
    """One that sees no overflow, such as where only the norm is too large."""

    def update(self, *_: Any) -> None:
        for state in self._per_optimizer_states.values():
            state.update(stage=OptState.READY, found_inf_per_device={})


def test_a_gradient_scaler_finds_its_scale(tmp_path: Path) -> None:
    """12 overflows at the start, at 65536, …, 32, are no reason to stop; from 16 on the weights move."""
    scaler = torch.amp.GradScaler("cpu")
    trainer = scaled(make_trainer(tmp_path, max_steps=14, max_skipped_steps=3), scaler)
    poisoned(trainer, set(range(12)), float("inf")).train()
    assert scaler.get_scale() == 16
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["hazards/skipped_steps"] for row in rows] == [1.0] * 12 + [0.0] * 2


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        (torch.amp.GradScaler, 19),  # 16 steps at 65536, …, 2, then three that count at 1, 1/2, 1/4
        (Stuck, 4),  # nothing says at the first step that the scale will not fall
    ],
)
def test_a_gradient_scaler_cannot_mend_all(tmp_path: Path, kind: Any, last: int) -> None:
    trainer = scaled(make_trainer(tmp_path, max_steps=30, max_skipped_steps=3), kind("cpu"))
    with pytest.raises(LambdaGRPOError, match=f"not finite in 3 steps in a row, up to step {last}"):
        poisoned(trainer, set(range(30)), float("nan")).train()


def test_metrics_hold_no_nan(tmp_path: Path) -> None:
    """NaN and infinity are no JSON."""
    run_folder.append_metrics(
        tmp_path, {"step": 1, "grad_norm": float("nan"), "loss": float("inf"), "kl": 0.5}
    )
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "grad_norm": null, "loss": null, "kl": 0.5}\n'
    )


@pytest.mark.parametrize("pad", ["none", "eos"])
def test_a_tokenizer_without_pad_or_with_pad_equal_to_eos(tmp_path: Path, pad: str) -> None:
    """Padding is then the end-of-sequence token; what is learnt is the same as with a token of its own."""
    from lambda_grpo.policy import character_tokenizer

    outcomes = []
    for kind in ("own", pad):
        tokenizer = character_tokenizer("abc")
        if kind != "own":
            tokenizer.pad_token = None if kind == "none" else tokenizer.eos_token
        trainer = make_trainer(tmp_path / kind, model=qwen2(), trainer_kwargs={"processing_class": tokenizer})
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        outcomes.append((weights(trainer), [row["credit/mean_weight"] for row in rows]))
    for own, other in zip(outcomes[0][0], outcomes[1][0], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1])


def test_the_command_takes_a_tokenizer_without_pad(tmp_path: Path) -> None:
    folder = stress_resume.make_model(tmp_path / "model")
    _, tokenizer = load_policy(str(folder))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    arguments = [f"--model={folder}", f"--output_dir={tmp_path / 'run'}", "--max_steps=1", "--eval_problems=4",
                 "--train_problems=8", "--per_device_train_batch_size=8", "--num_generations=4"]  # fmt: skip
    assert cli.main(["train", *arguments]) == 0
