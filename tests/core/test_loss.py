"""The loss: numbers worked by hand, TRL's own loss, and the paper's theorem on tensors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import splice_after, spliced_compute_loss, stand_in_trainer
from reference import ReferenceGroup
from trl import GRPOTrainer

from lambda_grpo import ProcessTree, credit
from lambda_grpo.errors import InputError
from lambda_grpo.loss import NORMALISATIONS, Objective, TokenBatch, policy_loss, token_terms

LENGTH = 7  # max_completion_length in these tests


def objective(normalisation, **constants):
    return Objective(normalisation, max_completion_length=LENGTH, **constants)


def value_and_gradient(loss_of, logps):
    """loss_of(leaf) and its gradient, for a fresh leaf with the numbers of `logps`."""
    leaf = logps.detach().clone().requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# Numbers worked by hand -------------------------------------------------------------------------------------


def two_completions(beta_ratio=None):
    """Three tokens and two; ε = 0.2 below, 0.3 above. Of row 1, token 2 is past the end.

    P        1.5   0.5   1.1          0.5   2.0    -
    A        2     2     2            -1    -1     -
    P·A      3     1     2.2         -0.5   -2
    clip·A   2.6   1.6   2.2         -0.8   -1.3
    min      2.6   1     2.2         -0.8   -2
    ∂min/∂logp = P·A where P·A is the smaller, 0 where the clipped one is:
             0     1     2.2          0     -2
    """
    old = torch.full((2, 3), -2.0, dtype=torch.float64)
    ratio = torch.tensor([[1.5, 0.5, 1.1], [0.5, 2.0, 9.0]], dtype=torch.float64)
    tokens = TokenBatch(
        advantage=torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]], dtype=torch.float64),
        weight=torch.ones(2, 3, dtype=torch.float64),
        mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
        old_logps=old,
    )
    return old + ratio.log(), tokens


TERMS = torch.tensor([[-2.6, -1.0, -2.2], [0.8, 2.0, 0.0]], dtype=torch.float64)
SLOPES = torch.tensor([[0.0, -1.0, -2.2], [0.0, 2.0, 0.0]], dtype=torch.float64)
CLIPPED = {"epsilon_low": 0.2, "epsilon_high": 0.3}


def test_terms_by_hand():
    logps, tokens = two_completions()
    terms, slopes = value_and_gradient(
        lambda leaf: token_terms(leaf, tokens, objective("dapo", **CLIPPED)).sum(), logps
    )
    close(token_terms(logps, tokens, objective("dapo", **CLIPPED)), TERMS)
    close(terms, torch.tensor(-3.0, dtype=torch.float64))
    close(slopes, SLOPES)


# The terms sum to -5.8 over the three tokens of row 0 and to 2.8 over the two of row 1.
@pytest.mark.parametrize(
    ("normalisation", "value", "divisors"),
    [
        ("grpo", (-5.8 / 3 + 2.8 / 2) / 2, [[6.0], [4.0]]),
        ("dapo", -3.0 / 5, 5.0),
        ("bnpo", -3.0 / 5, 5.0),
        ("dr_grpo", -3.0 / 14, 14.0),  # two sequences × 7 tokens
    ],
)
def test_normalisations_by_hand(normalisation, value, divisors):
    logps, tokens = two_completions()
    loss, gradient = value_and_gradient(
        lambda leaf: policy_loss(leaf, tokens, objective(normalisation, **CLIPPED)), logps
    )
    close(loss, torch.tensor(value, dtype=torch.float64))
    close(gradient, SLOPES / torch.tensor(divisors, dtype=torch.float64))


def test_dapo_divides_by_the_tokens_it_is_given():
    logps, tokens = two_completions()
    loss = policy_loss(logps, tokens, objective("dapo", **CLIPPED), num_tokens=12)
    close(loss, torch.tensor(-3.0 / 12, dtype=torch.float64))
    for other in ("grpo", "bnpo", "dr_grpo"):
        ignored = policy_loss(logps, tokens, objective(other, **CLIPPED), num_tokens=12)
        close(ignored, policy_loss(logps, tokens, objective(other, **CLIPPED)))


def test_weights_scale_terms_but_no_denominator():
    # weights  1/2   1   0        4   1/4        terms  -1.3  -1  0      3.2  0.5      sum 1.4, over 5 tokens
    logps, tokens = two_completions()
    weight = torch.tensor([[0.5, 1.0, 0.0], [4.0, 0.25, 9.0]], dtype=torch.float64)
    tokens = replace(tokens, weight=weight)
    loss, gradient = value_and_gradient(
        lambda leaf: policy_loss(leaf, tokens, objective("bnpo", **CLIPPED)), logps
    )
    close(loss, torch.tensor(1.4 / 5, dtype=torch.float64))
    close(gradient, SLOPES * weight / 5)


def test_kl_by_hand():
    # π_ref / π = 2 and 1/2, A = 0: D = 2 - ln 2 - 1 and 1/2 + ln 2 - 1; ∂D/∂logp = 1 - π_ref/π = -1 and 1/2.
    # The weight 1/4 of the second token divides its KL too.
    logps = torch.tensor([[-1.0, -1.0]], dtype=torch.float64)
    tokens = TokenBatch(
        advantage=torch.zeros(1, 2, dtype=torch.float64),
        weight=torch.tensor([[1.0, 0.25]], dtype=torch.float64),
        mask=torch.ones(1, 2, dtype=torch.bool),
        ref_logps=logps + torch.tensor([[2.0, 0.5]], dtype=torch.float64).log(),
    )
    loss, gradient = value_and_gradient(
        lambda leaf: policy_loss(leaf, tokens, objective("bnpo", beta=0.1)), logps
    )
    expected = 0.1 * ((1 - math.log(2)) + 0.25 * (math.log(2) - 0.5)) / 2
    close(loss, torch.tensor(expected, dtype=torch.float64))
    close(gradient, 0.1 * torch.tensor([[-1.0, 0.25 * 0.5]], dtype=torch.float64) / 2)


def test_kl_keeps_its_digits_near_the_reference():
    # Δ = 1e-4: D = Δ²/2 to four digits, where float32 knows e^Δ to 1e-7 only.
    logps = torch.full((1, 1), -1e-4)
    ones = torch.ones(1, 1)
    tokens = TokenBatch(0 * ones, ones, ones, ref_logps=0 * ones)
    assert policy_loss(logps, tokens, objective("bnpo", beta=1.0)).item() == pytest.approx(5e-9, rel=1e-3)


def test_without_old_logps_the_ratio_is_one():
    # The value is -mean A, the gradient -A / 5: REINFORCE.
    logps, tokens = two_completions()
    on_policy = replace(tokens, old_logps=None)
    loss, gradient = value_and_gradient(lambda leaf: policy_loss(leaf, on_policy, objective("bnpo")), logps)
    close(loss, torch.tensor(-(3 * 2 - 2) / 5, dtype=torch.float64))
    close(gradient, -tokens.advantage * tokens.mask / 5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_masked_positions_have_no_influence(normalisation):
    logps, tokens = two_completions()
    tokens = replace(tokens, ref_logps=logps - 0.5)
    chosen = objective(normalisation, beta=0.1)
    expected = value_and_gradient(lambda leaf: policy_loss(leaf, tokens, chosen), logps)
    masked = tokens.mask == 0
    for junk in (math.nan, math.inf, -math.inf):
        spoilt = replace(
            tokens,
            **{
                name: getattr(tokens, name).masked_fill(masked, junk)
                for name in ("advantage", "weight", "old_logps", "ref_logps")
            },
        )
        got = value_and_gradient(
            lambda leaf, spoilt=spoilt: policy_loss(leaf, spoilt, chosen), logps.masked_fill(masked, junk)
        )
        close(got[0], expected[0])
        close(got[1], expected[1])


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_row_without_policy_tokens_adds_nothing(normalisation):
    # Beside one ordinary row of one token with A = 1 on-policy: term -1, divided by
    divisors = {"grpo": 2, "dapo": 1, "bnpo": 1, "dr_grpo": 2 * LENGTH}
    ones = torch.ones(2, 1, dtype=torch.float64)
    tokens = TokenBatch(ones, ones, torch.tensor([[True], [False]]))
    loss, gradient = value_and_gradient(
        lambda leaf: policy_loss(leaf, tokens, objective(normalisation)), -ones
    )
    close(loss, -ones[0, 0] / divisors[normalisation])
    close(gradient, torch.tensor([[-1.0], [0.0]], dtype=torch.float64) / divisors[normalisation])


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("width", [0, 3])
def test_a_batch_without_policy_tokens_is_zero(normalisation, width):
    numbers = torch.ones(2, width)
    tokens = TokenBatch(numbers, numbers, torch.zeros(2, width, dtype=torch.bool))
    loss, gradient = value_and_gradient(
        lambda leaf: policy_loss(leaf, tokens, objective(normalisation), num_tokens=0), -numbers
    )
    assert loss.item() == 0
    close(gradient, torch.zeros(2, width))


def test_half_precision_is_computed_in_float32():
    logps = torch.tensor([[-1.0, -3.0]], dtype=torch.bfloat16)
    ones = torch.ones(1, 2)
    tokens = TokenBatch(ones, ones, ones, old_logps=torch.tensor([[-1.01, -2.99]]))
    loss, gradient = value_and_gradient(lambda leaf: policy_loss(leaf, tokens, objective("bnpo")), logps)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-(math.exp(0.01) + math.exp(-0.01)) / 2, rel=1e-6)
    assert gradient.dtype == torch.bfloat16


def test_no_gradient_flows_into_what_is_fixed():
    logps, tokens = two_completions()
    attached = replace(
        tokens,
        old_logps=logps.clone().requires_grad_(),
        ref_logps=logps.clone().requires_grad_(),
        advantage=tokens.advantage.clone().requires_grad_(),
        weight=tokens.weight.clone().requires_grad_(),
    )
    value_and_gradient(lambda leaf: policy_loss(leaf, attached, objective("dapo", beta=0.1)), logps)
    assert all(
        getattr(attached, name).grad is None for name in ("old_logps", "ref_logps", "advantage", "weight")
    )


def test_micro_batches_add_up_to_the_batch():
    logps, tokens = two_completions()
    whole = value_and_gradient(lambda leaf: policy_loss(leaf, tokens, objective("dapo")), logps)

    def in_two(leaf):
        parts = [slice(0, 1), slice(1, 2)]
        return sum(policy_loss(leaf[p], tokens.rows(p), objective("dapo"), num_tokens=5) for p in parts)

    parts = value_and_gradient(in_two, logps)
    close(parts[0], whole[0])
    close(parts[1], whole[1])


# From credits -----------------------------------------------------------------------------------------------


def test_from_credits_pads_groups_to_one_batch():
    trees = ProcessTree.build_many([[5, 6, 7], [1], [5], [2]], ["a", "b", "a", "b"])
    tokens = TokenBatch.from_credits(
        trees, [credit.lambda_grpo(tree, [1, 0], advantages=[1, -2]) for tree in trees]
    )
    assert tokens.advantage.tolist() == [[1, 1, 1], [-2, 0, 0], [1, 0, 0], [-2, 0, 0]]
    assert tokens.weight.tolist() == [[0.5, 1, 1], [0.5, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert tokens.mask.tolist() == [[True, True, True], [True, False, False]] + 2 * [[True, False, False]]


def test_from_credits_keeps_tool_tokens_out_of_the_denominator():
    # Token 1 of both rows is the environment's: two policy tokens are left in row 0, one in row 1.
    tree = ProcessTree.build([[5, 8, 7], [5, 9]])
    mask = np.array([[1, 0, 1], [1, 0, 0]])
    result = credit.lambda_grpo(tree, [1, 0], advantages=[1, 1], mask=mask)
    tokens = TokenBatch.from_credits([tree], [result], [mask])
    assert tokens.mask.tolist() == mask.astype(bool).tolist()
    loss = policy_loss(torch.zeros(2, 3), tokens, objective("bnpo"))
    close(loss, torch.tensor(-(0.5 + 1 + 0.5) / 3))


# TRL's own loss ---------------------------------------------------------------------------------------------


def random_batch(seed, rows=4, width=5):
    """float64 log-probs of many sizes of ratio, a mask with holes and with an empty row, all of (B, T)."""
    rng = np.random.default_rng(seed)

    def normal(scale, *shape):
        return torch.from_numpy(rng.normal(0, scale, shape))

    logps = -normal(2, rows, width).abs()
    mask = torch.from_numpy(rng.integers(0, 4, (rows, width)) > 0)
    mask[0] = False
    tokens = TokenBatch(
        advantage=normal(1, rows, width),
        weight=normal(1, rows, width).abs(),
        mask=mask,
        old_logps=logps - normal(0.4, rows, width),
        ref_logps=logps - normal(0.4, rows, width),
    )
    return logps, tokens


def trl_inputs(tokens, num_tokens):
    width = tokens.mask.shape[1]
    ids = torch.zeros_like(tokens.mask, dtype=torch.long)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids[:, :width],
        "completion_mask": tokens.mask.long(),
        "advantages": tokens.advantage,
        "old_per_token_logps": tokens.old_logps,
        "ref_per_token_logps": tokens.ref_logps,
        "num_items_in_batch": torch.tensor(num_tokens),
        "credit_weights": tokens.weight,
    }


def trl_loss(compute_loss, logps, tokens, chosen, num_tokens=None):
    """TRL's loss for the same numbers."""
    trainer = stand_in_trainer(
        logps,
        loss_type=chosen.normalisation,
        beta=chosen.beta,
        epsilon_low=chosen.epsilon_low,
        epsilon_high=chosen.epsilon_high,
        max_completion_length=chosen.max_completion_length,
    )
    count = int(tokens.mask.sum()) if num_tokens is None else num_tokens
    return compute_loss(trainer, None, trl_inputs(tokens, count))


def assert_equals_trl(compute_loss, logps, tokens, chosen, num_tokens=None):
    got = value_and_gradient(lambda leaf: policy_loss(leaf, tokens, chosen, num_tokens), logps)
    expected = value_and_gradient(
        lambda leaf: trl_loss(compute_loss, leaf, tokens, chosen, num_tokens), logps
    )
    close(got[0], expected[0])
    close(got[1], expected[1])


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("off_policy", [True, False])
def test_equals_trl_with_weight_one(normalisation, beta, off_policy):
    logps, tokens = random_batch(0)
    ratio = (logps - tokens.old_logps).exp()[tokens.mask]
    positive = tokens.advantage[tokens.mask] > 0
    assert ((ratio > 1.3) & positive).any()  # clipped above
    assert ((ratio < 0.8) & ~positive).any()  # clipped below
    tokens = replace(tokens, weight=torch.ones_like(tokens.weight))
    if not off_policy:
        tokens = replace(tokens, old_logps=None)
    chosen = objective(normalisation, beta=beta, **CLIPPED)
    assert_equals_trl(GRPOTrainer._compute_loss, logps, tokens, chosen)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    width=st.integers(1, 6),
    normalisation=st.sampled_from(NORMALISATIONS),
    beta=st.sampled_from([0.0, 0.04]),
)
def test_equals_trl_with_weights_on_random_batches(seed, rows, width, normalisation, beta):
    logps, tokens = random_batch(seed, rows, width)
    chosen = objective(normalisation, beta=beta, **CLIPPED)
    assert_equals_trl(spliced_compute_loss("term"), logps, tokens, chosen)


def test_equals_trl_in_an_accumulation_window():
    # 40 policy tokens in a generation batch of 4 micro-batches, 2 per optimiser step: TRL divides by 20.
    logps, tokens = random_batch(1)
    trainer = stand_in_trainer(
        logps, args_steps_per_generation=4, current_gradient_accumulation_steps=2, loss_type="dapo"
    )
    expected = GRPOTrainer._compute_loss(trainer, None, trl_inputs(tokens, 40))
    tokens = replace(tokens, weight=torch.ones_like(tokens.weight))
    close(policy_loss(logps, tokens, objective("dapo"), num_tokens=20), expected)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_weighting_a_term_is_scaling_the_gradient(normalisation):
    """Identity 1: TRL's two splices give one gradient."""
    logps, tokens = random_batch(2)
    chosen = objective(normalisation, beta=0.1)
    by_term, by_gradient = (
        value_and_gradient(
            lambda leaf, splice=splice: trl_loss(spliced_compute_loss(splice), leaf, tokens, chosen), logps
        )
        for splice in ("term", "gradient")
    )
    close(by_term[1], by_gradient[1])
    assert abs(by_term[0] - by_gradient[0]) > 1e-3  # the value is weighted by one of them only


@pytest.mark.parametrize("fault", ["weighted denominator", "KL unweighted", "weight forgotten"])
def test_a_planted_fault_is_seen(fault):
    logps, tokens = random_batch(3)
    chosen = objective("bnpo", beta=0.1)

    def faulty(leaf):
        plain = replace(tokens, weight=torch.ones_like(tokens.weight))
        if fault == "weight forgotten":
            return policy_loss(leaf, plain, chosen)
        if fault == "weighted denominator":
            weight_sum = tokens.weight[tokens.mask].sum()
            return token_terms(leaf, tokens, chosen).sum() / weight_sum
        no_kl = replace(chosen, beta=0.0)
        kl = policy_loss(leaf, plain, chosen) - policy_loss(leaf, plain, no_kl)
        return policy_loss(leaf, tokens, no_kl) + kl

    expected = value_and_gradient(
        lambda leaf: trl_loss(spliced_compute_loss("term"), leaf, tokens, chosen), logps
    )
    got = value_and_gradient(faulty, logps)
    for part in (0, 1):
        with pytest.raises(AssertionError):
            close(got[part], expected[part], tolerance=1e-6)


@pytest.mark.parametrize("times", [0, 2])
def test_the_splice_fails_when_its_anchor_moves(times):
    source = "def f():\n" + times * "    here = 1\n" + "    return here\n"
    with pytest.raises(AssertionError, match=f"found it {times} times"):
        splice_after(source, "here = 1", "here += 1")


def test_the_splice_goes_below_its_anchor():
    assert splice_after("if x:\n    here = 1\n    y", "here = 1", "z") == "if x:\n    here = 1\n    z\n    y"


# The theorem ------------------------------------------------------------------------------------------------


def random_group(seed):
    """Completions over a two-letter alphabet, hence with much in common: also empty ones and duplicates."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    completions = [rng.integers(0, 2, rng.integers(0, 7)).tolist() for _ in range(count)]
    return completions, rng.normal(size=count).round(1).tolist(), rng


def token_positions(tree):
    """(G, T): the place of each token among the tree's U unique tokens; 0 past the end."""
    starts = np.cumsum(tree.end - tree.start) - (tree.end - tree.start)
    place = tree.per_token(starts - tree.start) + np.arange(tree.step_index.shape[1])
    return torch.from_numpy(np.where(tree.step_index >= 0, place, 0))


def exact_batch(tree, completions, rewards, kind):
    """The credit in float64: advantages by definition (`reference`), weights from the process sets."""
    group = ReferenceGroup(completions)
    advantage = np.zeros(tree.step_index.shape)
    weight = np.zeros(tree.step_index.shape)
    a = group.advantages(rewards)
    for i, y in enumerate(completions):
        for t in range(len(y)):
            advantage[i, t] = group.step_advantage(rewards, i, t) if kind == "process" else a[i]
            weight[i, t] = 1 / len(group.process_set(i, t)) if kind == "lambda_grpo" else 1
    mask = torch.from_numpy(tree.policy_tokens())
    return TokenBatch(torch.from_numpy(advantage), torch.from_numpy(weight), mask)


def unique_logps(tree, rng):
    """(U,) log-probs of policy, old policy and reference: shared tokens have the same context, hence one."""
    return (torch.from_numpy(-np.abs(rng.normal(1, 0.5, max(tree.unique_tokens, 1)))) for _ in range(3))


def tree_loss(leaf, tree, tokens, chosen, old, ref):
    where = token_positions(tree)
    tokens = replace(tokens, old_logps=old[where], ref_logps=ref[where])
    return policy_loss(leaf[where], tokens, chosen)


UNCLIPPED = {"epsilon_low": 1.0, "epsilon_high": math.inf, "beta": 0.1}


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), normalisation=st.sampled_from(["dapo", "bnpo", "dr_grpo"]))
def test_theorem_grpo_is_a_process_reward_objective(seed, normalisation):
    completions, rewards, rng = random_group(seed)
    tree = ProcessTree.build(completions)
    logp, old, ref = unique_logps(tree, rng)
    chosen = objective(normalisation, **UNCLIPPED)
    outcome, process = (
        value_and_gradient(
            lambda leaf, kind=kind: tree_loss(
                leaf, tree, exact_batch(tree, completions, rewards, kind), chosen, old, ref
            ),
            logp,
        )
        for kind in ("grpo", "process")
    )
    close(process[0], outcome[0], 1e-10)
    close(process[1], outcome[1], 1e-10)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_theorem_lambda_grpo_has_one_term_per_unique_token(seed):
    """1/ΣT_i · Σ_λ Σ_(t in λ's step) (P·A(λ) - D): a process set is averaged, not summed."""
    completions, rewards, rng = random_group(seed)
    tree = ProcessTree.build(completions)
    logp, old, ref = unique_logps(tree, rng)
    tokens = exact_batch(tree, completions, rewards, "lambda_grpo")
    got = value_and_gradient(
        lambda leaf: tree_loss(leaf, tree, tokens, objective("bnpo", **UNCLIPPED), old, ref), logp
    )

    group = ReferenceGroup(completions)
    node_advantage = credit.step_means(tree, group.advantages(rewards))
    lengths = tree.end - tree.start
    advantage = torch.from_numpy(np.repeat(node_advantage, lengths))

    def per_unique_token(leaf):
        leaf, used, used_ref = (
            leaf[: tree.unique_tokens],
            old[: tree.unique_tokens],
            ref[: tree.unique_tokens],
        )
        ratio, delta = (leaf - used).exp(), used_ref - leaf
        return -(ratio * advantage - 0.1 * (delta.exp() - delta - 1)).sum() / max(
            sum(map(len, completions)), 1
        )

    expected = value_and_gradient(per_unique_token, logp)
    close(got[0], expected[0], 1e-10)
    close(got[1], expected[1], 1e-10)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["grpo", "process", "lambda_grpo"]))
def test_the_package_credits_are_the_exact_ones_in_float32(seed, kind):
    completions, rewards, rng = random_group(seed)
    tree = ProcessTree.build(completions)
    logp, old, ref = unique_logps(tree, rng)
    ours = TokenBatch.from_credits([tree], [credit.CREDITS[kind](tree, rewards)])
    exact = exact_batch(tree, completions, rewards, kind)
    got, expected = (
        value_and_gradient(
            lambda leaf, tokens=tokens: tree_loss(leaf, tree, tokens, objective("dapo"), old, ref), logp
        )
        for tokens in (ours, exact)
    )
    close(got[0], expected[0], 1e-6)
    close(got[1], expected[1], 1e-6)


def test_the_theorem_needs_one_denominator():
    # [5] and [5, 6] with a = ±1 share token 5, so the process gives it A = 0. Per-sequence means divide its
    # two terms by 1 and 2 (and both by 2 rows): -(1/1 - 1/2) / 2 = -1/4 is left of its gradient.
    tree = ProcessTree.build([[5], [5, 6]])
    for kind, expected in {"grpo": -0.25, "process": 0.0}.items():
        tokens = TokenBatch.from_credits([tree], [credit.CREDITS[kind](tree, [1, 0], advantages=[1, -1])])
        leaf = torch.zeros(tree.unique_tokens, requires_grad=True)
        policy_loss(leaf[token_positions(tree)], tokens, objective("grpo")).backward()
        assert leaf.grad[0].item() == expected


def test_the_theorem_needs_unclipped_ratios():
    # Siblings' advantages differ in sign, so clipping keeps one of the two terms: with P = 2 and ε = 0.2,
    # min(2, 1.2) + min(-2, -1.2) = -0.8 and not 2·(1 - 1) = 0.
    tree = ProcessTree.build([[5], [5]])
    values = {}
    for kind in ("grpo", "process"):
        tokens = TokenBatch.from_credits([tree], [credit.CREDITS[kind](tree, [1, 0], advantages=[1, -1])])
        tokens = replace(tokens, old_logps=torch.full((2, 1), -math.log(2)))
        values[kind] = policy_loss(torch.zeros(2, 1), tokens, objective("bnpo")).item()
    assert values == pytest.approx({"grpo": 0.8 / 2, "process": 0.0})


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"normalisation": "dr-grpo"}, "unknown normalisation 'dr-grpo': did you mean 'dr_grpo'"),
        ({"normalisation": "dr_grpo"}, "max_completion_length: normalisation 'dr_grpo' divides by it"),
        ({"max_completion_length": 0}, "max_completion_length: expected a positive number of tokens, got 0"),
        ({"epsilon_low": -0.1}, "epsilon_low: expected a number ≥ 0, got -0.1"),
        ({"epsilon_high": math.nan}, "epsilon_high: expected a number ≥ 0, got nan"),
        ({"beta": "1e-3"}, "beta: expected a number ≥ 0, got '1e-3'"),
        ({"beta": math.inf}, "beta: expected a number ≥ 0, got inf"),
    ],
)
def test_objective_refuses(constants, message):
    with pytest.raises(InputError, match=message):
        Objective(**constants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(2, 2)}, r"weight: .* got \(2, 2\) beside advantage \(2, 3\)"),
        ({"advantage": torch.ones(2)}, r"advantage: expected shape \(completions, tokens\)"),
        ({"mask": np.ones((2, 3))}, "mask: expected a torch tensor, got ndarray"),
        ({"ref_logps": torch.ones(3, 2)}, r"ref_logps: .* got \(3, 2\)"),
    ],
)
def test_token_batch_refuses(change, message):
    _, tokens = two_completions()
    with pytest.raises(InputError, match=message):
        replace(tokens, **change)


def test_policy_loss_refuses():
    logps, tokens = two_completions()
    with pytest.raises(InputError, match=r"logps: expected shape \(2, 3\) .* got \(2, 2\)"):
        policy_loss(logps[:, :2], tokens, objective("dapo"))
    with pytest.raises(InputError, match=r"logps: expected floating point, got torch.int64"):
        policy_loss(logps.long(), tokens, objective("dapo"))
    with pytest.raises(InputError, match=r"ref_logps: beta = 0.1 needs the reference's log-probs"):
        policy_loss(logps, tokens, objective("dapo", beta=0.1))
    with pytest.raises(InputError, match="num_tokens: expected a number of tokens, got -1"):
        policy_loss(logps, tokens, objective("dapo"), num_tokens=-1)
    with pytest.raises(InputError, match="logps: expected at least one completion"):
        policy_loss(logps[:0], tokens.rows(slice(0, 0)), objective("dapo"))


def test_from_credits_refuses():
    tree = ProcessTree.build([[5, 6], [5]])
    other = ProcessTree.build([[5, 6, 7], [5]])
    result = credit.grpo(tree, [1, 0])
    with pytest.raises(InputError, match="trees: expected one per group, got none"):
        TokenBatch.from_credits([], [])
    with pytest.raises(InputError, match="credits: expected 2, one per tree, got 1"):
        TokenBatch.from_credits([tree, tree], [result])
    with pytest.raises(InputError, match="masks: expected 1, one per tree, got 0"):
        TokenBatch.from_credits([tree], [result], [])
    with pytest.raises(InputError, match=r"credits: #0 has shape \(2, 2\), its tree \(2, 3\)"):
        TokenBatch.from_credits([other], [result])
