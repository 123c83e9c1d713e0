"""Forks through TRL's `VLLMGeneration`, on stand-ins for vLLM itself: never run with vLLM."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jobs import Jobs
from standin_vllm import give
from tiny_trainers import GROUP, PROMPTS, completions_of, make_trainer
from trl.generation.vllm_generation import VLLMGeneration

from lambda_grpo import InputError
from lambda_grpo.branching import BranchPlan
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.engines.trl.vllm_forks import generate_forked

END, LONGEST = 0, 7
PLAN = BranchPlan((2, 4), (2, 2))  # of 8: 2 roots
FORKS: dict[str, Any] = {
    "branch_depths": [2], "branch_factors": [3], "sampler": "auto", "temperature": 1.0,
    "vllm_importance_sampling_mode": "token_truncate",
}  # fmt: skip
ROWS = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
SIGNATURE = inspect.signature(VLLMGeneration.generate)


class Scripted:
    """Every token is the number of tokens before it, its log-prob a count of calls; some beginnings end."""

    max_completion_length = LONGEST

    def __init__(self, ended: Any = None, **generation_kwargs: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.limits: list[int] = []
        self.generation_kwargs = generation_kwargs
        self.ended = ended or (lambda row, place: False)
        self.drawn = 0

    def generate(self, *args: Any, **asked: Any) -> tuple[Any, ...]:
        given = SIGNATURE.bind(self, *args, **asked).arguments
        self.calls.append(given)
        self.limits.append(self.max_completion_length)
        ids: list[list[int]] = []
        for row, prompt in enumerate(given["prompts"]):
            own: list[int] = []
            for _ in range(self.max_completion_length):
                place = len(prompt) + len(own)
                end = self.ended(row, place)
                self.drawn += 1
                own.append(END if end else 100 * self.drawn + place)
                if end:
                    break
            ids.append(own)
        logprobs = [[[-float(token), -99.0] for token in own] for own in ids]
        return given["prompts"], ids, logprobs, None


def forked(vllm: Scripted, prompts: list[list[int]], **more: Any) -> tuple[Any, Any, int]:
    given = {"prompts": prompts, "images": None, "num_generations": 8, "profiler": None} | more
    (told, ids, logprobs, _), drawn = generate_forked(vllm, vllm.generate, PLAN, [END], **given)
    assert told == prompts
    return ids, logprobs, drawn


def test_one_call_a_segment() -> None:
    """2 prompts × 8: 4 roots of 2 tokens, 8 blocks of 2 more, 16 of the last 3."""
    vllm, prompts = Scripted(), [[1]] * 8 + [[5, 6, 7]] * 8
    ids, logprobs, drawn = forked(vllm, prompts)
    assert vllm.limits == [2, 2, 3]
    assert vllm.max_completion_length == LONGEST
    assert [call["num_generations"] for call in vllm.calls] == [2, 2, 2]
    assert [len(call["prompts"]) for call in vllm.calls] == [4, 8, 16]
    assert vllm.calls[0]["prompts"] == [[1]] * 2 + [[5, 6, 7]] * 2
    for call, depth in (
        (1, 2),
        (2, 4),
    ):  # neighbours have one beginning, as TRL's server mode takes for granted
        size = PLAN.sizes(8)[call]
        expected = [prompts[row] + ids[row][:depth] for row in range(0, 16, size)]
        assert vllm.calls[call]["prompts"] == expected
        assert expected[0] == expected[1] != expected[2]
    assert drawn == 4 * 2 + 8 * 2 + 16 * 3
    blocks = PLAN.blocks(8, LONGEST)
    for row, own in enumerate(ids):
        assert [token % 100 for token in own] == [len(prompts[row]) + t for t in range(LONGEST)]
        assert logprobs[row] == [[-float(token), -99.0] for token in own]
        for t, token in enumerate(own):
            same = [row - row % 8 + k for k in range(8) if blocks[k, t] == blocks[row % 8, t]]
            assert {ids[k][t] for k in same} == {token}
    assert len({token for own in ids for token in own}) == drawn


def test_what_has_ended_is_asked_for_no_more() -> None:
    """Of one prompt: root 0 ends with its second token, right at the fork; a block of root 1 before token 4."""
    vllm = Scripted(lambda row, place: (row, place) in ((0, 2), (1, 3)))
    ids, logprobs, drawn = forked(vllm, [[1]] * 8)
    assert [len(call["prompts"]) for call in vllm.calls] == [2, 2, 2]
    assert [len(own) for own in ids] == [2] * 4 + [7] * 2 + [3] * 2
    assert all(ids[k] == ids[0] and logprobs[k] == logprobs[0] for k in range(4))
    assert ids[6] == ids[7]
    assert ids[4][:4] == ids[5][:4]
    assert ids[4][4:] != ids[5][4:]
    assert [[p[0] for p in own] for own in logprobs] == [[-float(token) for token in own] for own in ids]
    assert drawn == 2 + 2 + (2 + 1) + 3 + 3


def test_where_all_have_ended_there_is_no_further_call() -> None:
    vllm = Scripted(lambda row, place: place == 1)
    ids, _, drawn = forked(vllm, [[1]] * 8)
    assert (ids, drawn, len(vllm.calls)) == ([[END]] * 8, 2, 1)


def test_stop_tokens_of_vllm_end_too() -> None:
    """A segment that is full, and whose last token vLLM took for an end."""
    vllm = Scripted(stop_token_ids=[102, 202, 302, 402])
    ids, *_ = forked(vllm, [[1]] * 8)
    assert [own[1] for own in ids] == [202] * 4 + [402] * 4
    assert [len(own) for own in ids] == [2] * 8


def test_the_limit_is_put_back_after_an_error() -> None:
    vllm = Scripted(lambda row, place: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        forked(vllm, [[1]] * 8)
    assert vllm.max_completion_length == LONGEST
    with pytest.raises(InputError, match="branch_depths: images cannot fork"):
        forked(Scripted(), [[1]] * 8, images=["picture"] * 8)


def turn(trainer: Any, mode: str = "train") -> dict[str, Any]:
    trainer.model.train(mode == "train")
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    torch.manual_seed(4)
    return trainer._generate_and_score_completions(ROWS)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_the_trainer_forks_through_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """TRL's own code on its side of vLLM; the joined log-probs give the ratio of its correction, 1 here."""
    trainer = make_trainer(tmp_path, **FORKS, credit="branch")
    vllm = give(trainer, mode, monkeypatch)
    batch = turn(trainer)
    groups = [completions_of(batch)[i : i + GROUP] for i in range(0, len(ROWS), GROUP)]
    roots = [root for group in groups for root in (group[:3], group[3:])]
    assert all(len({tuple(ids[:2]) for ids in root}) == 1 for root in roots)
    assert any(len({tuple(ids) for ids in root}) == 3 for root in roots)
    assert vllm.synced == 1
    assert [limit for _, limit, _ in vllm.calls] == [2, 3]
    assert [n for *_, n in vllm.calls] == ([2, 3] if mode == "server" else [1, 1])
    going = [root for root in roots if len(root[0]) > 2 or root[0][-1] not in trainer.eos_token_ids]
    assert 0 < len(going) < len(roots)
    prompts = len(going) * (1 if mode == "server" else 3)
    assert [len(asked) for asked, *_ in vllm.calls] == [4 if mode == "server" else 8, prompts]
    drawn = sum(len(root[0][:2]) + sum(len(ids[2:]) for ids in root) for root in roots)
    assert trainer._metrics["train"]["tree/sampled_tokens"] == [drawn]
    mask = batch["completion_mask"].bool()
    assert torch.allclose(batch["importance_sampling_ratio"][mask], torch.tensor(1.0), atol=1e-4)
    assert torch.isfinite(trainer._compute_loss(trainer.model, batch))


def test_wrongly_joined_log_probs_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambda_grpo.engines.trl import vllm_forks

    extend = vllm_forks.ForkedRows.extend
    monkeypatch.setattr(
        vllm_forks.ForkedRows, "extend", lambda self, rows, ids, logps: extend(self, rows, ids, logps[::-1])
    )
    trainer = make_trainer(tmp_path, **FORKS, credit="branch")
    give(trainer, "colocate", monkeypatch)
    batch = turn(trainer)
    mask = batch["completion_mask"].bool()
    assert not torch.allclose(batch["importance_sampling_ratio"][mask], torch.tensor(1.0), atol=1e-2)


def test_validation_goes_trls_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, **FORKS, credit="branch")
    vllm = give(trainer, "colocate", monkeypatch)
    turn(trainer, "eval")
    assert [(len(asked), limit) for asked, limit, _ in vllm.calls] == [(len(ROWS), 5)]


def test_what_vllm_cannot_do_in_parts_is_refused() -> None:
    given = {
        "per_device_train_batch_size": 8, "num_generations": 8, "branch_depths": [16], "branch_factors": [2],
        "use_vllm": True, "use_cpu": True, "bf16": False,
    }  # fmt: skip
    assert LambdaGRPOConfig("out", **given, generation_kwargs={"stop_token_ids": [3]}).forks
    with pytest.raises(InputError, match="and min_tokens, seed would count for each part anew"):
        LambdaGRPOConfig("out", **given, generation_kwargs={"seed": 1, "min_tokens": 4})
    with pytest.raises(InputError, match="vllm_structured_outputs_regex would count for each part anew"):
        LambdaGRPOConfig("out", **given, vllm_structured_outputs_regex="[ab]+")
    with pytest.raises(InputError, match="continuous batching cannot fork completions"):
        LambdaGRPOConfig("out", **given | {"use_vllm": False}, use_transformers_continuous_batching=True)


def test_a_model_that_only_vllm_can_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our sampler's rule does not hold for vLLM."""
    from lambda_grpo.engines.trl import branching

    def never(model: Any) -> None:
        raise InputError("its layers cannot fork")

    monkeypatch.setattr(branching, "check_can_fork", never)
    with pytest.raises(InputError, match="its layers cannot fork"):
        make_trainer(tmp_path, **FORKS)
    branching.check_model(SimpleNamespace(use_vllm=True, model=None))


@pytest.mark.slow
def test_two_ranks_ask_for_equally_many(jobs: Jobs, tmp_path: Path) -> None:
    """On one of them more have ended, or all: it fills up, and what it fills with is thrown away."""
    job = jobs.start(tmp_path, call="vllm_forks_worker:main")
    assert job.wait(200) == 0, job.output()
