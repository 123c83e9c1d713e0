"""Training many seeds of one cell of the toy tree at a time, with our own trees, credits and loss.

The policy is whatever the model says at the 15 inner nodes, and there only: one forward pass over 15 tokens
gives every log-prob that any completion could need, and autograd sums the gradients of the completions that
pass an edge. This is exact, not an estimate (`packing.py` does the same for real rollouts).

Deviations from the paper: the model (unless `gpt2-small`), Adam without weight decay and without gradient
clipping, the learning rates, 40 seeds instead of 5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.binary_tree import toy_tree
from experiments.binary_tree.stacked_gpt2 import Weights, log_probs, stack
from experiments.binary_tree.toy_tree import Cell
from lambda_grpo.credit import CREDITS, Credit, TokenCredit, lambda_grpo
from lambda_grpo.errors import InputError
from lambda_grpo.loss import Objective, TokenBatch, policy_loss
from lambda_grpo.tree import ProcessTree

GROUP = 16
LEFT_RIGHT = (1, 2)  # token ids in the tiny model; 0 begins every row
GPT2_START, GPT2_LEFT_RIGHT = 50256, (43, 49)  # <|endoftext|>, "L" and "R" in GPT-2's vocabulary


@dataclass(frozen=True)
class Variant:
    """What is compared: a credit, and β of the KL term."""

    name: str
    credit: Credit
    beta: float = 0.0


class Trainable(Protocol):
    """What `train` needs: M models at the start.

    Attributes:
        weights: of the start, each (M, …); of a single model they may have no first dimension.
        large: whether a step of Adam is slower than Python, so that each weight steps by itself.
    """

    large: ClassVar[bool]

    @property
    def weights(self) -> Weights: ...

    def log_probs(self, weights: Weights) -> torch.Tensor:
        """(M, 15, 2) of L and R at each inner node."""
        ...


@dataclass(frozen=True)
class Policies:
    """The models at the start, one per seed, and what they read."""

    weights: Weights
    config: GPT2Config
    start: int
    tokens: Sequence[int]
    large: ClassVar[bool] = False

    def log_probs(self, weights: Weights) -> torch.Tensor:
        """(M, 15, 2) of L and R at each inner node."""
        return log_probs(weights, self.config, toy_tree.layout(self.start, self.tokens), self.tokens)


@dataclass(frozen=True)
class Draws:
    """What chance decides, the same for every variant: a target and the random numbers of each seed."""

    targets: NDArray[np.int64]  # (M,) leaves
    uniforms: torch.Tensor  # (steps, M, 16, 4)


def grpo_scaled(tree: ProcessTree, rewards: NDArray[np.float64]) -> TokenCredit:
    """GRPO, one weight for the group, so that its total |advantage| mass is λ-GRPO's: Σ|a|w / Σ|a|."""
    credit = lambda_grpo(tree, rewards)
    mass = np.abs(credit.advantage).sum()
    scale = np.abs(credit.weighted).sum() / mass if mass > 0 else 1.0
    return TokenCredit(credit.advantage, np.where(credit.weight > 0, np.float32(scale), np.float32(0)))


def kl_unweighted(tree: ProcessTree, rewards: NDArray[np.float64]) -> TokenCredit:
    """λ-GRPO's policy term; the KL term with weight 1."""
    credit = lambda_grpo(tree, rewards)
    return TokenCredit(credit.weighted, (credit.weight > 0).astype(np.float32))


def variants() -> dict[str, Variant]:
    """All registered credits but `process`, whose gradient is grpo's here (the theorem; held by a test).

    And λ-GRPO at |λ|^-½, between GRPO and λ-GRPO.
    """
    found = {name: Variant(name, credit) for name, credit in CREDITS.items() if name != "process"}
    half = "lambda_grpo power=0.5"
    return found | {half: Variant(half, partial(lambda_grpo, power=0.5))}


def controls(beta: float) -> dict[str, Variant]:
    """The controls: GRPO with λ-GRPO's mass; the KL term with and without weights."""
    found = [
        Variant("grpo_scaled", grpo_scaled),
        Variant("grpo, KL", CREDITS["grpo"], beta),
        Variant("lambda_grpo, KL", lambda_grpo, beta),
        Variant("lambda_grpo, KL unweighted", kl_unweighted, beta),
    ]
    return {variant.name: variant for variant in found}


def draw(seeds: Sequence[int], steps: int) -> Draws:
    """The draws of these seeds; a seed's own do not depend on which others are there."""
    rngs = [np.random.default_rng(seed) for seed in seeds]
    targets = np.array([rng.integers(toy_tree.LEAVES) for rng in rngs])
    uniforms = [rng.random((steps, GROUP, toy_tree.DEPTH), np.float32) for rng in rngs]
    return Draws(targets, torch.from_numpy(np.stack(uniforms, axis=1)))


def policies(model: str, seeds: Sequence[int]) -> Policies:
    """`tiny` and `gpt2-small`: random weights per seed. Else a folder or Hub id of a GPT-2, for all seeds.

    Raises:
        InputError: no GPT-2 is there.
    """
    tiny = GPT2Config(
        vocab_size=3, n_positions=4, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    shapes = {"tiny": tiny, "gpt2-small": GPT2Config()}
    if model in shapes:
        made = []
        for seed in seeds:
            torch.manual_seed(seed)
            made.append(GPT2LMHeadModel(shapes[model]))
    else:
        try:
            loaded = GPT2LMHeadModel.from_pretrained(model, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model {model!r}: expected tiny, gpt2-small, or a folder or Hub id of a GPT-2: {error}"
            ) from error
        made = [loaded] * len(seeds)
    start, tokens = (0, LEFT_RIGHT) if model == "tiny" else (GPT2_START, GPT2_LEFT_RIGHT)
    return Policies(stack(made), made[0].config, start, tokens)


def group_credits(
    edges: torch.Tensor, targets: NDArray[np.int64], cell: Cell, variant: Variant
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Trees and credits of M groups: (M × 16, 4) advantages and weights; (M, 16) leaf XOR target."""
    seen = toy_tree.leaves(edges).numpy() ^ targets[:, None]
    rewards = cell.rewards()[seen]
    tokens = (edges % 2).numpy().astype(np.int32).reshape(-1, toy_tree.DEPTH)
    groups = np.repeat(np.arange(len(targets)), GROUP).tolist()
    trees = ProcessTree.build_many(list(tokens), groups)
    credits = [variant.credit(tree, r) for tree, r in zip(trees, rewards, strict=True)]
    return TokenBatch.from_credits(trees, credits), seen


def loss_of(
    log_probs: torch.Tensor, edges: torch.Tensor, batch: TokenBatch, beta: float, start: torch.Tensor
) -> torch.Tensor:
    """The sum over models of the paper's loss, Σ terms / ΣT_i, each over its own group."""
    chosen, reference = (
        at.flatten(1).gather(1, edges.flatten(1)).reshape(-1, toy_tree.DEPTH) for at in (log_probs, start)
    )
    objective = Objective("dapo", math.inf, math.inf, beta)
    if beta:
        batch = TokenBatch(batch.advantage, batch.weight, batch.mask, ref_logps=reference)
    return policy_loss(chosen, batch, objective, num_tokens=GROUP * toy_tree.DEPTH)


def adam(weights: Weights, learning_rate: float, each_alone: bool) -> Callable[[torch.Tensor, bool], None]:
    """Adam on these weights: a function that takes a step down a loss, told whether its gradient is zero.

    If `each_alone`, a weight steps within the backward pass, as soon as its gradient is there, and the
    gradient is dropped: it never leaves the processor's cache. Adam treats every weight by itself, so the
    numbers are the same. A gradient of zero then needs no backward pass: the weights go on by their momentum.
    """
    if not each_alone:
        together = torch.optim.Adam(weights.values(), learning_rate, fused=True)

        def step(loss: torch.Tensor, flat: bool) -> None:
            torch.autograd.backward([loss])
            together.step()
            together.zero_grad(set_to_none=False)  # fresh pages cost more than the arithmetic

        return step
    alone: list[tuple[torch.optim.Adam, Any]] = [
        (torch.optim.Adam([weight], learning_rate, fused=True), weight) for weight in weights.values()
    ]

    def step_each(loss: torch.Tensor, flat: bool) -> None:
        if flat:
            for optimizer, weight in alone:
                weight.grad = torch.zeros_like(weight)
                _step_alone(optimizer, weight)
            return
        hooks = [
            weight.register_post_accumulate_grad_hook(partial(_step_alone, optimizer))
            for optimizer, weight in alone
        ]
        torch.autograd.backward([loss])
        for hook in hooks:
            hook.remove()  # a weight, its hook and its optimizer hold each other, and nothing collects that

    return step_each


def _step_alone(optimizer: torch.optim.Adam, weight: torch.Tensor) -> None:
    optimizer.step()
    weight.grad = None


def train(
    policies: Trainable,
    draws: Draws,
    cell: Cell,
    variant: Variant,
    learning_rate: float,
    shown: Callable[[], None] | None = None,
) -> NDArray[np.uint8]:
    """Train every seed on one cell; (steps, M, 16) how often each `leaf XOR target` was sampled."""
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in policies.weights.items()}
    step_down = adam(weights, learning_rate, policies.large)
    with torch.no_grad():
        start = policies.log_probs(weights)
    counts = np.zeros((*draws.uniforms.shape[:2], toy_tree.LEAVES), np.uint8)
    models = np.repeat(np.arange(len(draws.targets)), GROUP)
    for step, uniforms in enumerate(draws.uniforms):
        at_nodes = policies.log_probs(weights)
        edges = toy_tree.walk(at_nodes.detach(), uniforms)
        batch, seen = group_credits(edges, draws.targets, cell, variant)
        np.add.at(counts[step], (models, seen.ravel()), 1)
        flat = not (variant.beta or batch.advantage.any())
        step_down(loss_of(at_nodes, edges, batch, variant.beta, start), flat)
        if shown and step % 10 == 9:
            shown()
    return counts
