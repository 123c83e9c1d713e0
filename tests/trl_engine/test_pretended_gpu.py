"""Everything a GPU run computes lies on the GPU, shown with a device that is only pretended."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_groups import gradients
from pretended_gpu import GPU, module_on_gpu, pretended_gpu, trainers_on_gpu
from tiny_models import FAMILIES, make_model
from tiny_trainers import make_trainer, qwen2

from lambda_grpo import InputError, ProcessTree, credit
from lambda_grpo.branching import BranchPlan
from lambda_grpo.engines.trl import packing_trial
from lambda_grpo.logps import completion_logps
from lambda_grpo.loss import Objective, TokenBatch, policy_loss
from lambda_grpo.packing import attention, join, pack, tree_logps
from lambda_grpo.sampling import decode, sample

PROMPTS = [[5, 9, 1, 1, 12, 4], [5, 9, 1, 1, 12, 7, 3], [5, 9]]
MIXTURES = {"qwen3-moe"}  # `one_hot`, by which its experts are chosen, makes its numbers in C++


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention has nothing to compile for here."""
    monkeypatch.setattr(attention, "has_kernel", lambda *_: False)


def sampled(model: Any, branches: BranchPlan | None = None) -> list[list[int]]:
    settings = {"num_completions": 4, "max_new_tokens": 9, "eos_token_ids": [2], "branches": branches}
    samples = sample(model, PROMPTS, seed_or_generator=3, logprobs=True, **settings)
    assert not samples.reason
    return samples.completions


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == GPU
        assert (there * 2 + here.to(GPU)).cpu().tolist() == [3, 3, 3]
        for mistake in (lambda: there + here, lambda: here[there.long()], lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mistake()
        for mistake in (lambda: there.numpy(), lambda: np.asarray(there)):
            with pytest.raises(TypeError, match="numpy"):
                mistake()


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - MIXTURES))
def test_samples_and_log_probs_of_each_family(family: str) -> None:
    model = make_model(family)
    completions = sampled(model)
    forked = sampled(model, BranchPlan((2,), (2,)))
    packed = join(
        [pack(prompt, ProcessTree.build(completions[4 * i : 4 * i + 4])) for i, prompt in enumerate(PROMPTS)]
    )
    logps = tree_logps(model, packed)
    expected = gradients(model, logps)
    with pretended_gpu():
        module_on_gpu(model)
        assert sampled(model) == completions
        assert sampled(model, BranchPlan((2,), (2,))) == forked
        there = tree_logps(model, packed)
        torch.testing.assert_close(there.cpu(), logps)
        for found, right in zip(gradients(model, there), expected, strict=True):
            torch.testing.assert_close(found.cpu(), right)


def test_a_loop_of_your_own() -> None:
    model = make_model("llama")
    completions = [[5, 6, 7], [5, 6, 8], [9]]
    tree = ProcessTree.build(completions)
    tokens = TokenBatch.from_credits([tree], [credit.lambda_grpo(tree, [0, 0, 1])])

    def loss() -> torch.Tensor:
        logps = completion_logps(model, [PROMPTS[0]] * 3, completions)
        return policy_loss(logps, replace(tokens, ref_logps=tokens.weight), Objective(beta=0.04))

    expected = loss()
    with pretended_gpu():
        module_on_gpu(model)
        there = loss()
        there.backward()
        assert there.device == GPU
        torch.testing.assert_close(there.cpu(), expected)


def test_a_tensor_left_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def left(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.device = torch.device("cpu")
        return step(self, *args, **kwargs)

    step = decode.Decoder._step
    monkeypatch.setattr(decode.Decoder, "_step", left)
    with pretended_gpu():
        model = module_on_gpu(make_model("llama"))
        with pytest.raises(InputError, match="same device"):
            sampled(model, BranchPlan((2,), (2,)))


def test_sampling_keeps_off_cudnns_attention() -> None:
    """It plans for each new shape, and each token has a new one."""
    before, seen = torch.backends.cuda.cudnn_sdp_enabled(), list[bool]()
    with pretended_gpu():
        model = module_on_gpu(make_model("llama"))
        model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
        sampled(model)
    assert seen
    assert not any(seen)
    assert before
    assert torch.backends.cuda.cudnn_sdp_enabled()


TRAINED: dict[str, dict[str, Any]] = {
    "plain rows": {"credit": "lambda_grpo", "sampler": "generate"},
    "packed": {"credit": "lambda_grpo", "tree_packing": "on", "beta": 0.04, "num_iterations": 2},
    "auto": {"credit": "optimistic", "tree_packing": "auto", "loss_type": "cispo"},
    "forks": {"credit": "branch", "tree_packing": "on", "branch_depths": [2], "branch_factors": [2]},
    "forks, auto": {"credit": "branch", "tree_packing": "on", "branch_depths": "auto"},
}


@pytest.mark.parametrize("settings", TRAINED.values(), ids=TRAINED)
def test_training(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers_on_gpu(monkeypatch)
    monkeypatch.setattr(packing_trial, "flops_per_second", lambda *_: 1e11)  # a product as large as a GPU's
    model = qwen2()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pretended_gpu():
        trainer = make_trainer(tmp_path, model=model, **{"sampler": "tree"} | settings)
        trainer.train()
        after = [parameter.detach().cpu() for parameter in trainer.model.parameters()]
        assert all(parameter.is_cuda for parameter in trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
