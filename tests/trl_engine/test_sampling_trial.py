"""What `sampler: auto` times on a device that is not a CPU, and what it chooses."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import pretended_gpu, trainers_on_gpu
from tiny_trainers import completions_of, make_trainer, qwen2
from torch import Tensor
from transformers import GenerationMixin
from trl import GRPOTrainer

from lambda_grpo import InputError
from lambda_grpo.engines.trl import sampling as trl_sampling
from lambda_grpo.engines.trl import sampling_trial
from lambda_grpo.engines.trl.sampling_trial import SamplingTrial, is_timed

PROMPTS = torch.zeros(3, 2, dtype=torch.long)


class Machine:
    """A clock that runs only while something is sampled, and what was sampled so far."""

    def __init__(self, tree: float, generate: float, tokens: tuple[int, int] = (10, 10)) -> None:
        self.seconds, self.turns = 0.0, ""
        self._per_token, self._tokens = (tree, generate), tokens

    def tree(self) -> Tensor:
        self.seconds += 0 if "t" in self.turns else 100  # of the first samples
        return self._sample("t", 0)

    def generate(self) -> Tensor:
        self.seconds += 0 if "g" in self.turns else 100  # cuDNN plans
        return self._sample("g", 1)

    def _sample(self, name: str, way: int) -> Tensor:
        self.turns += name
        self.seconds += self._per_token[way] * self._tokens[way]
        return torch.zeros(3, 2 + self._tokens[way], dtype=torch.long)

    def run(self, trial: SamplingTrial, turns: int, training: bool = True) -> None:
        for _ in range(turns):
            trial.turn(PROMPTS, self.tree, self.generate, training)


def machine_of(monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> Machine:
    machine = Machine(*args, **kwargs)
    monkeypatch.setattr(sampling_trial, "now", lambda device: machine.seconds)
    return machine


@pytest.mark.parametrize(
    ("tree", "generate", "turns"),
    [
        (0.5, 0.25, "tttggggg"),
        (0.25, 0.5, "tttgggtt"),
        (0.5, 0.46, "tttgggtt"),  # faster by 9%
        (0.5, 0.45, "tttggggg"),  # by 11%
    ],
)
def test_the_faster_way_after_six_turns(
    monkeypatch: pytest.MonkeyPatch, tree: float, generate: float, turns: str
) -> None:
    machine = machine_of(monkeypatch, tree, generate)
    machine.run(SamplingTrial(), 8)
    assert machine.turns == turns


@pytest.mark.parametrize("tokens", [(40, 10), (10, 40), (10, 20)])
def test_seconds_are_those_of_a_token_of_the_longest(
    monkeypatch: pytest.MonkeyPatch, tokens: tuple[int, int]
) -> None:
    for tree, generate, turns in ((0.25, 0.3, "tttgggt"), (0.3, 0.25, "tttgggg")):
        machine = machine_of(monkeypatch, tree, generate, tokens=tokens)
        machine.run(SamplingTrial(), 7)
        assert machine.turns == turns


def test_turns_of_evaluation_go_the_chosen_way_and_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, trial = machine_of(monkeypatch, 0.5, 0.25), SamplingTrial()
    for training in (False, True) * 6 + (False,):
        machine.run(trial, 1, training)
    assert machine.turns == "tttttttgtgtgg"


def test_one_line_says_both_figures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, sampling_trial.__name__)
    machine_of(monkeypatch, 0.066, 0.033).run(SamplingTrial(), 7)
    machine_of(monkeypatch, 0.03, 0.06).run(SamplingTrial(), 7)
    generate, tree = caplog.records
    assert (generate.levelno, tree.levelno) == (logging.WARNING, logging.INFO)
    assert "generate samples from now on: it took 33 ms a token, and the tree took 66 ms" in generate.message
    assert "Set sampler='tree'" in generate.message
    assert (
        "on the tree from now on: it took 30 ms a token, and transformers' generate took 60 ms"
        in tree.message
    )
    assert "Set sampler='generate'" in tree.message


def full(turns: Machine) -> Tensor:
    turns.turns += "!"
    raise torch.OutOfMemoryError("full")


def test_the_tree_samples_where_memory_runs_out_in_generate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, sampling_trial.__name__)
    machine, trial = machine_of(monkeypatch, 0.5, 0.25), SamplingTrial()
    monkeypatch.setattr(machine, "generate", lambda: full(machine))
    machine.run(trial, 6)
    assert machine.turns == "ttt!ttt"
    machine, trial = machine_of(monkeypatch, 0.5, 0.25), SamplingTrial()
    machine.run(trial, 7)
    monkeypatch.setattr(machine, "generate", lambda: full(machine))
    machine.run(trial, 2)
    assert machine.turns == "tttgggg!tt"
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING"]
    assert all("generate ran out of memory" in caplog.records[i].message for i in (0, 2))


def test_a_checkpoint_keeps_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, turns, then in ((0.25, 6, "gggg"), (0.9, 6, "tttt"), (0.25, 5, "tttg")):
        machine, trial = machine_of(monkeypatch, 0.5, seconds), SamplingTrial()
        machine.run(trial, turns)
        resumed, machine = SamplingTrial(), machine_of(monkeypatch, 0.5, seconds)
        resumed.load(trial.kept())
        machine.run(resumed, 4)
        assert machine.turns == then


def test_what_is_timed() -> None:
    assert [is_timed(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [False, True, True]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """By which way each turn of a trainer is sampled; `generate` is twice as fast."""
    clock, made = [0.0], list[str]()
    sample, generate = trl_sampling.sample_on_tree, GenerationMixin.generate

    def on_tree(model: Any, request: Any) -> Any:
        samples = sample(model, request)
        clock[0] += max(map(len, samples.completions))
        made.append("tree")
        return samples

    def generated(self: Any, **given: Any) -> Any:
        output = generate(self, **given)
        clock[0] += 0.5 * (output.shape[1] - given["input_ids"].shape[1])
        made.append("generate")
        return output

    monkeypatch.setattr(trl_sampling, "sample_on_tree", on_tree)
    monkeypatch.setattr(GenerationMixin, "generate", generated)
    monkeypatch.setattr(sampling_trial, "now", lambda device: clock[0])
    return made


def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU is timed as if it were none."""
    monkeypatch.setattr(trl_sampling, "is_timed", lambda device: True)


FORKS = {"branch_depths": [2], "branch_factors": [2], "credit": "branch"}


@pytest.mark.parametrize(
    ("settings", "device", "ways"),
    [
        ({"sampler": "auto"}, True, ["tree"] * 3 + ["generate"] * 4),
        ({"sampler": "auto"}, False, ["tree"] * 7),
        ({"sampler": "auto", **FORKS}, True, ["tree"] * 7),
        ({"sampler": "tree"}, True, ["tree"] * 7),
        ({"sampler": "generate"}, True, ["generate"] * 7),
    ],
    ids=["a device", "a CPU", "forks", "tree", "generate"],
)
def test_ways_of_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[str],
    settings: dict[str, Any],
    device: bool,
    ways: list[str],
) -> None:
    if device:
        on_a_device(monkeypatch)
    make_trainer(tmp_path, max_steps=7, **settings).train()
    assert drawn == ways


def test_a_resumed_run_does_not_time_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[str]
) -> None:
    on_a_device(monkeypatch)
    settings: dict[str, Any] = {"sampler": "auto", "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, max_steps=6, **settings).train()
    drawn.clear()
    checkpoint = tmp_path / "checkpoint-6"
    make_trainer(tmp_path, max_steps=8, **settings).train(resume_from_checkpoint=str(checkpoint))
    assert drawn == ["generate", "generate"]
    drawn.clear()
    (path,) = checkpoint.glob("lambda_grpo*")
    kept = torch.load(path, weights_only=True)
    del kept["sampling"]["timed"]  # as in older checkpoints
    torch.save(kept, path)
    make_trainer(tmp_path, max_steps=11, **settings).train(resume_from_checkpoint=str(checkpoint))
    assert drawn == ["tree"] * 3 + ["generate"] * 2


def test_a_refused_turn_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> Any:
        raise InputError("it cannot be sampled so")

    on_a_device(monkeypatch)
    trainer = make_trainer(tmp_path, sampler="auto", max_steps=2)
    monkeypatch.setattr(trl_sampling, "sample_on_tree", refused)
    trainer.train()
    assert trainer.kept_state()["sampling"] == {"off": True, "timed": {}}
    assert [record.name for record in caplog.records if "sampl" in record.name] == [trl_sampling.__name__]


def test_on_a_pretended_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers_on_gpu(monkeypatch)
    with pretended_gpu():
        trainer = make_trainer(tmp_path, model=qwen2(), sampler="auto", max_steps=6)
        trainer.train()
        timed = trainer.kept_state()["sampling"]["timed"]
    assert timed["tree"] > 0
    assert timed["generate"] > 0


def test_the_chosen_generate_is_trl_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_device(monkeypatch)
    found = []
    for cls, settings in ((None, {"sampler": "auto"}), (GRPOTrainer, {"cls": GRPOTrainer})):
        trainer = make_trainer(tmp_path, temperature=1.0, **settings)
        if cls is None:
            trainer._sampling_trial.load({"tree": 2.0, "generate": 1.0})
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        torch.manual_seed(4)
        rows = [{"prompt": prompt} for prompt in ("a", "bb", "ca", "abc") for _ in range(6)]
        found.append(completions_of(trainer._generate_and_score_completions(rows)))
    assert found[0] == found[1]
