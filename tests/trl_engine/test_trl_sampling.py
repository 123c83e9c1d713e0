"""Sampling on the tree in the trainer, against TRL's own generation of the same turns."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Jobs
from peft import LoraConfig
from tiny_trainers import (
    GROUP,
    PROMPTS,
    TOKENIZER,
    completions_of,
    gpt2_float64,
    make_trainer,
    micro_batches,
    qwen2,
)
from transformers import Qwen2ForCausalLM
from trl import GRPOTrainer

from lambda_grpo import InputError
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.engines.trl import sampling as trl_sampling

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
SURE = {
    "top_k": 1,
    "max_completion_length": 8,
}  # each token is the most likely one: nothing is left to chance
ROWS = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]


def turn(trainer: Any, mode: str = "train") -> dict[str, Any]:
    """One batch of rows, generated and scored."""
    trainer.model.train(mode == "train")
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._generate_and_score_completions(ROWS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was sampled on a tree."""
    made: list[Any] = []
    sample = trl_sampling.sample_on_tree

    def counted(model: Any, request: Any) -> Any:
        made.append(sample(model, request))
        return made[-1]

    monkeypatch.setattr(trl_sampling, "sample_on_tree", counted)
    return made


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": gpt2_float64},
        {"trainer_kwargs": {"peft_config": LORA}},
        {"gradient_checkpointing": True},
        {"repetition_penalty": 1.4},
        {"bf16": True},
    ],
    ids=["plain", "learned positions", "LoRA", "gradient checkpointing", "penalty", "bf16 autocast"],
)
def test_the_same_turns_as_those_of_trl(
    tmp_path: Path, settings: dict[str, Any], mode: str, calls: list[Any]
) -> None:
    model: Callable[[], Any] = settings.get("model", qwen2)
    found = {}
    for sampler in ("tree", "generate"):
        given = {**SURE, **settings, "model": model()}
        found[sampler] = completions_of(turn(make_trainer(tmp_path, sampler=sampler, **given), mode))
    assert found["tree"] == found["generate"]
    assert len(set(map(tuple, found["tree"]))) > 1
    (samples,) = calls
    assert samples.prompt_tokens == 7  # of "a", "bb", "ca", "abc": 2 rows begin with "a", and 6 share each


def test_generate_is_trl_to_the_bit_and_auto_is_the_tree(tmp_path: Path, calls: list[Any]) -> None:
    drawn = {}
    for name, cls, settings in (
        ("TRL", GRPOTrainer, {}),
        ("generate", LambdaGRPOTrainer, {"sampler": "generate"}),
        ("auto", LambdaGRPOTrainer, {"sampler": "auto"}),
        ("again", LambdaGRPOTrainer, {"sampler": "auto"}),
    ):
        trainer = make_trainer(tmp_path, cls=cls, temperature=1.0, **settings)
        torch.manual_seed(4)
        drawn[name] = completions_of(turn(trainer))
        assert "generate" not in vars(trainer.model)
    assert drawn["TRL"] == drawn["generate"] != drawn["auto"] == drawn["again"]
    assert len(calls) == 2
    assert LambdaGRPOConfig("out", use_cpu=True, bf16=False).sampler == "auto"


def test_every_micro_batch_of_a_step(tmp_path: Path, calls: list[Any]) -> None:
    trainer = make_trainer(
        tmp_path, sampler="tree", gradient_accumulation_steps=2, per_device_train_batch_size=12, **SURE
    )
    ours = [ids for batch in micro_batches(trainer) for ids in completions_of(batch)]
    trainer = make_trainer(
        tmp_path, sampler="generate", gradient_accumulation_steps=2, per_device_train_batch_size=12, **SURE
    )
    theirs = [ids for batch in micro_batches(trainer) for ids in completions_of(batch)]
    assert sorted(ours) == sorted(theirs)
    assert len(calls) == 1


def dropping_out() -> Any:
    model = qwen2()
    model.config.attention_dropout = 0.1
    return model


A = TOKENIZER.convert_tokens_to_ids("a")


class WithoutA(Qwen2ForCausalLM):
    """A user's logits processor, in the only place that TRL leaves for it."""

    def generate(self, **given: Any) -> Any:
        return super().generate(**given, suppress_tokens=[A])


def subclassed() -> Any:
    model = WithoutA(qwen2().config)
    model.load_state_dict(qwen2().state_dict())
    return model


ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"model": dropping_out}, "dropout 0.1 is active"),
    "unknown setting": (
        {"generation_kwargs": {"no_repeat_ngram_size": 2}},
        "set no_repeat_ngram_size, which",
    ),
    "another cache": ({"cache_implementation": "static"}, "set cache_implementation, which"),
    "beams": ({"generation_kwargs": {"num_beams": 2}}, "set num_beams, which"),
    "no longest completion": ({"max_completion_length": None}, "max_completion_length is not set"),
    "generate of the class": ({"model": subclassed}, "WithoutA has a generate of its own"),
    "greedy": ({"generation_kwargs": {"do_sample": False}}, "set do_sample, which"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_not_ours_goes_the_way_of_trl(
    tmp_path: Path, name: str, calls: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings, reason = ELSEWHERE[name]
    make_model: Callable[[], Any] = settings.get("model", qwen2)
    found = {}
    for sampler in ("auto", "generate"):
        trainer = make_trainer(tmp_path, **{"sampler": sampler, **settings, "model": make_model()})
        for _ in range(2):
            torch.manual_seed(4)
            found[sampler] = completions_of(turn(trainer))  # the second turn does not try
    assert found["auto"] == found["generate"]
    assert not calls
    (said,) = [record for record in caplog.records if record.name == trl_sampling.__name__]
    assert reason in said.message
    assert said.levelno == logging.WARNING
    trainer = make_trainer(tmp_path, **{"sampler": "tree", **settings, "model": make_model()})
    with pytest.raises(InputError, match=r"sampler: got 'tree', but .*Set sampler='auto'"):
        turn(trainer)


def test_a_generate_of_the_users_own(tmp_path: Path, calls: list[Any]) -> None:
    trainer = make_trainer(tmp_path, sampler="auto", model=subclassed())
    assert not any(A in ids for ids in completions_of(turn(trainer)))
    trainer = make_trainer(tmp_path, sampler="auto")
    trainer.model.generate = partial(trainer.model.generate, suppress_tokens=[A])
    assert not any(A in ids for ids in completions_of(turn(trainer)))
    assert not calls


def test_the_settings_of_the_model_count_where_trl_leaves_them_open(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, sampler="tree")
    trainer.model.generation_config.min_p = 0.2
    trainer.model.generation_config.top_p = 0.3  # TRL sets its own
    request = trl_sampling.request_of(trainer.model, [[3]], trainer.generation_config)
    assert (request.settings.min_p, request.settings.top_p, request.settings.top_k) == (0.2, 1.0, 0)
    assert request.end_ids == (TOKENIZER.eos_token_id,)
    trainer.model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(InputError, match="no_repeat_ngram_size"):
        trl_sampling.request_of(trainer.model, [[3]], trainer.generation_config)


def test_settings_that_are_switched_off_are_ours(tmp_path: Path) -> None:
    """As `lambda-grpo train` switches off what a model brings for its own generation."""
    off = {"epsilon_cutoff": 0.0, "typical_p": 1.0, "no_repeat_ngram_size": 0, "min_p": 0.0, "num_beams": 1}
    trainer = make_trainer(tmp_path, sampler="tree", generation_kwargs=off)
    own = {"epsilon_cutoff": 3e-4, "typical_p": 0.9, "no_repeat_ngram_size": 3, "min_p": 0.1}
    trainer.model.generation_config.update(**own)
    request = trl_sampling.request_of(trainer.model, [[3]], trainer.generation_config)
    assert len(request.settings.processors()) == 1  # the temperature


def test_samplers_are_named() -> None:
    given: dict[str, Any] = {"output_dir": "out", "use_cpu": True, "bf16": False}
    with pytest.raises(InputError, match="unknown sampler 'treee': did you mean 'tree'"):
        LambdaGRPOConfig(sampler="treee", **given)
    with pytest.raises(InputError, match="sampler: got 'tree', but vLLM"):
        LambdaGRPOConfig(sampler="tree", use_transformers_continuous_batching=True, **given)


@pytest.mark.slow
def test_two_ranks_sample_their_own_prompts(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.start(tmp_path, call="sampling_worker:main")
    assert job.wait(300) == 0, job.output()
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    for drawn in (first, second):
        assert drawn["tree"] == drawn["generate"]
        assert len(set(map(tuple, drawn["random"]))) > 4
    assert first["tree"] != second["tree"]
    assert first["random"] != second["random"]
