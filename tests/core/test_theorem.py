"""GRPO is a process reward model (arXiv 2509.21154, section 3), on real models, in value and every gradient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import ReferenceGroup
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from lambda_grpo import ProcessTree, credit

PROMPT = [3, 1, 4]
COMPLETIONS = [[1, 2, 3, 9], [1, 2, 4], [1, 5], [1, 2, 3, 9], [6, 6], [1], [], [1, 2, 4, 4, 4]]
REWARDS = [1.0, 0.0, 0.5, 1.0, -1.0, 0.25, 0.0, 2.0]
BETA = 0.3

Weights = np.ndarray  # one number per token, (G, T)
Terms = tuple[Weights, Weights]  # what multiplies P, and what multiplies D


def gpt2(seed: int) -> PreTrainedModel:
    """LayerNorm model in float64 throughout."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, initializer_range=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double()


def qwen2(seed: int) -> PreTrainedModel:
    """RMSNorm model in float64, whose stock norm computes in float32 all the same."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def logps(model: PreTrainedModel, completion: list[int]) -> torch.Tensor:
    """(T,) log-probs of one completion, from a forward pass of its own."""
    ids = torch.tensor([PROMPT + completion])
    scores = model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, torch.tensor(completion, dtype=torch.long)[:, None])[:, 0]


def objective(
    make: Callable[[int], PreTrainedModel], terms: Terms, beta: float
) -> tuple[float, dict[str, torch.Tensor]]:
    """1/ΣT · Σ (P·terms[0] - D·terms[1]) and its gradient, with π_old = π and π_ref another model."""
    model, reference = make(0), make(1)
    total = 0
    for i, completion in enumerate(COMPLETIONS):
        on_p, on_d = (torch.as_tensor(term[i, : len(completion)]) for term in terms)
        logp = logps(model, completion)
        ratio = (logp - logp.detach()).exp()
        delta = logps(reference, completion).detach() - logp
        divergence = beta * (delta.exp() - delta - 1)
        total = total + (ratio * on_p - divergence * on_d).sum()
    total = total / sum(map(len, COMPLETIONS))
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


def exact(value: Callable[[ReferenceGroup, int, int], float]) -> Weights:
    """A (G, T) float64 array filled token by token from the literal definitions."""
    reference = ReferenceGroup(COMPLETIONS)
    array = np.zeros((len(COMPLETIONS), max(map(len, COMPLETIONS))))
    for i, completion in enumerate(COMPLETIONS):
        for t in range(len(completion)):
            array[i, t] = value(reference, i, t)
    return array


A_GRPO = exact(lambda ref, i, t: ref.advantages(REWARDS)[i])
A_PRM = exact(lambda ref, i, t: ref.step_advantage(REWARDS, i, t))
INVERSE_SIZE = exact(lambda ref, i, t: 1 / len(ref.process_set(i, t)))
ONE_MEMBER = exact(lambda ref, i, t: float(i == min(ref.process_set(i, t))))  # one term per unique token
ONES = np.ones_like(A_GRPO)


def assert_same(left: tuple, right: tuple, tolerance: float) -> None:
    assert left[0] == pytest.approx(right[0], rel=tolerance, abs=tolerance)
    scale = max(grad.abs().max().item() for grad in left[1].values())
    assert scale > 1e-3  # there is something to compare
    for name, grad in left[1].items():
        assert (grad - right[1][name]).abs().max().item() <= tolerance * max(scale, 1), name


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_grpo_equals_the_process_reward_model_in_float64(beta: float) -> None:
    assert_same(objective(gpt2, (A_GRPO, ONES), beta), objective(gpt2, (A_PRM, ONES), beta), 1e-12)


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_lambda_grpo_is_one_term_per_unique_token_in_float64(beta: float) -> None:
    weighted = objective(gpt2, (A_GRPO * INVERSE_SIZE, INVERSE_SIZE), beta)
    assert_same(weighted, objective(gpt2, (A_PRM * ONE_MEMBER, ONE_MEMBER), beta), 1e-12)


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_our_float32_credits_on_a_stock_model(beta: float) -> None:
    tree = ProcessTree.build(COMPLETIONS)
    plain, process, weighted = (
        credit.CREDITS[name](tree, REWARDS) for name in ("grpo", "process", "lambda_grpo")
    )
    assert_same(
        objective(qwen2, (plain.advantage, plain.weight), beta),
        objective(qwen2, (process.advantage, process.weight), beta),
        1e-6,
    )
    assert_same(
        objective(qwen2, (weighted.weighted, weighted.weight), beta),
        objective(qwen2, (process.advantage * ONE_MEMBER, ONE_MEMBER), beta),
        1e-6,
    )


def test_off_by_one_prefix_breaks_the_theorem() -> None:
    """The planted fault: steps found by comparing t tokens, not t + 1, are not GRPO's."""

    class OffByOne(ReferenceGroup):
        def process_set(self, i: int, t: int) -> frozenset[int]:
            return frozenset(j for j in range(len(self.completions)) if self.shares_prefix(i, j, t))

    wrong = OffByOne(COMPLETIONS)
    a_wrong = exact(lambda ref, i, t: wrong.step_advantage(REWARDS, i, t))
    grpo = objective(gpt2, (A_GRPO, ONES), 0.0)
    with pytest.raises(AssertionError):
        assert_same(grpo, objective(gpt2, (a_wrong, ONES), 0.0), 1e-12)
