"""The toy tree: many models side by side are the models one by one, and its rewards are the paper's."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.binary_tree import toy_training, toy_tree
from experiments.binary_tree.stacked_gpt2 import log_probs, stack
from experiments.binary_tree.toy_training import GROUP, Policies, Variant
from experiments.binary_tree.toy_tree import Cell
from lambda_grpo import ProcessTree, credit
from lambda_grpo.errors import InputError

CONFIG = GPT2Config(
    vocab_size=5, n_positions=4, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
)
TOKENS = (3, 1)
PREFIXES = [[0]]
for node in range(1, toy_tree.NODES):
    PREFIXES.append([*PREFIXES[(node - 1) // 2], TOKENS[(node - 1) % 2]])


def models(count: int) -> list[GPT2LMHeadModel]:
    """Random, in float64, and far from the start's small weights, so that nothing is nearly zero."""
    torch.manual_seed(0)
    made = [GPT2LMHeadModel(CONFIG).double().eval() for _ in range(count)]
    for model in made:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def allowed_log_probs(model: GPT2LMHeadModel, rows: torch.Tensor) -> torch.Tensor:
    """What transformers says after every token of ordinary rows, over L and R only."""
    return model(rows).logits[..., list(TOKENS)].log_softmax(-1)


def test_one_row_of_fifteen_tokens_says_what_transformers_says_after_each_prefix() -> None:
    three = models(3)
    got = log_probs(stack(three), CONFIG, toy_tree.layout(0, TOKENS), TOKENS)
    for model, at_nodes in zip(three, got, strict=True):
        for prefix, at_node in zip(PREFIXES, at_nodes, strict=True):
            expected = allowed_log_probs(model, torch.tensor([prefix]))[0, -1]
            torch.testing.assert_close(at_node, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*toy_training.variants(), *toy_training.controls(0.04)])
def test_gradients_are_those_of_one_row_per_completion(name: str) -> None:
    """Two models, 16 completions each, every weight; the reference is another policy than the start's."""
    variant = (toy_training.variants() | toy_training.controls(0.04))[name]
    two = models(2)
    weights = stack(two)
    draws = toy_training.draw([5, 6], steps=1)
    at_nodes = log_probs(weights, CONFIG, toy_tree.layout(0, TOKENS), TOKENS)
    edges = toy_tree.walk(at_nodes.detach(), draws.uniforms[0])
    batch, _ = toy_training.group_credits(edges, draws.targets, Cell("anti-exploitation", -1.5, 1), variant)
    reference = (0.5 * at_nodes.detach()).log_softmax(-1)
    toy_training.loss_of(at_nodes, edges, batch, variant.beta, reference).backward()

    for m, model in enumerate(two):
        bits = edges[m] % 2
        rows = torch.cat([torch.zeros(GROUP, 1, dtype=torch.int64), torch.tensor(TOKENS)[bits]], dim=1)
        logps = allowed_log_probs(model, rows[:, :-1]).gather(-1, bits[..., None])[..., 0]
        delta = reference[m].flatten()[edges[m]] - logps
        own = slice(m * GROUP, (m + 1) * GROUP)
        ratio = (logps - logps.detach()).exp()
        terms = -ratio * batch.advantage[own] + variant.beta * (delta.exp() - delta - 1)
        ((batch.weight[own] * terms).sum() / (GROUP * toy_tree.DEPTH)).backward()
        for key, parameter in model.transformer.named_parameters():
            torch.testing.assert_close(
                weights[key].grad[m], parameter.grad, rtol=1e-9, atol=1e-12, msg=f"{name}: {key}"
            )


def test_adam_on_the_stack_is_adam_on_each() -> None:
    """A few steps of both seeds together end at the weights that each reaches alone."""
    draws = toy_training.draw([5, 6], steps=8)
    together = Policies(stack(models(2)), CONFIG, 0, TOKENS)
    cell, variant = Cell("anti-exploration", -1.0), toy_training.variants()["lambda_grpo"]
    counts = toy_training.train(together, draws, cell, variant, 1e-2)
    for m in range(2):
        alone = Policies({k: w[m : m + 1] for k, w in together.weights.items()}, CONFIG, 0, TOKENS)
        own = toy_training.Draws(draws.targets[m : m + 1], draws.uniforms[:, m : m + 1])
        np.testing.assert_array_equal(toy_training.train(alone, own, cell, variant, 1e-2)[:, 0], counts[:, m])


def test_process_has_grpos_gradient_so_it_is_not_run() -> None:
    two = models(1)
    draws = toy_training.draw([5], steps=1)
    gradients = []
    for name in ("grpo", "process"):
        weights = stack(two)
        at_nodes = log_probs(weights, CONFIG, toy_tree.layout(0, TOKENS), TOKENS)
        edges = toy_tree.walk(at_nodes.detach(), draws.uniforms[0])
        variant = Variant(name, credit.CREDITS[name])
        batch, _ = toy_training.group_credits(
            edges, draws.targets, Cell("anti-exploitation", -1.0, 2), variant
        )
        toy_training.loss_of(at_nodes, edges, batch, 0.0, at_nodes.detach()).backward()
        gradients.append(weights["h.0.mlp.c_fc.weight"].grad)
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_rewards_by_hand() -> None:
    """n = 2: of the four paths that begin as the target does, three are bad; twelve others get 0.7."""
    assert Cell("anti-exploitation", -0.5, 2).rewards().tolist() == [1, -0.5, -0.5, -0.5, *[0.7] * 12]
    assert Cell("anti-exploitation", -1, 1).rewards().tolist() == [1, *[-1] * 7, *[0.7] * 8]
    crowd = Cell("anti-exploration", -0.5).rewards()
    assert crowd.tolist() == [1, *[0] * 7, *[0.7] * 4, *[-0.5] * 4]
    with pytest.raises(InputError, match="mode: expected"):
        Cell("other", -1).rewards()


def test_what_the_modes_are_called_after() -> None:
    """With every path sampled once: the target's first token is pushed down, or no prefix of it is."""
    tokens = [[leaf >> 3 & 1, leaf >> 2 & 1, leaf >> 1 & 1, leaf & 1] for leaf in range(16)]
    tree = ProcessTree.build(tokens)
    for r_neg in (-0.5, -1.0, -1.5):
        for n in (1, 2):
            rewards = Cell("anti-exploitation", r_neg, n).rewards()
            assert credit.process(tree, rewards).advantage[0, 0] < 0  # leaf 0 is the target
        advantage = credit.process(tree, Cell("anti-exploration", r_neg).rewards()).advantage[0]
        assert (advantage > 0).all()


def test_the_mass_controls() -> None:
    tree = ProcessTree.build([[1, 1], [1, 2], [1, 2], [2, 2]])
    rewards = np.array([1.0, 0.0, 0.3, 0.2])
    ours, scaled = credit.lambda_grpo(tree, rewards), toy_training.grpo_scaled(tree, rewards)
    np.testing.assert_allclose(abs(scaled.weighted).sum(), abs(ours.weighted).sum(), rtol=1e-6)
    assert np.unique(scaled.weight).size == 1
    unweighted = toy_training.kl_unweighted(tree, rewards)
    np.testing.assert_allclose(unweighted.weighted, ours.weighted)
    assert (unweighted.weight == 1).all()


def test_a_walk_ends_at_the_leaf_of_its_edges() -> None:
    for leaf in range(16):
        assert toy_tree.leaves(torch.tensor(toy_tree.path(leaf))).item() == leaf
    right = torch.log(torch.tensor([[[0.25, 0.75]] * 15]))
    edges = toy_tree.walk(right, torch.tensor([[[0.74, 0.76, 0.76, 0.74]]]))  # R L L R
    assert edges.tolist() == [[toy_tree.path(0b1001)]]


def test_a_seed_draws_the_same_whoever_else_is_there() -> None:
    alone, among = toy_training.draw([7], 3), toy_training.draw([6, 7], 3)
    assert alone.targets[0] == among.targets[1]
    torch.testing.assert_close(alone.uniforms[:, 0], among.uniforms[:, 1])


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="expected tiny, gpt2-small, or a folder"):
        toy_training.policies("no/such-model", [0])
