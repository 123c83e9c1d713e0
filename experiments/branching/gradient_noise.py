"""How far the gradient of one group is from its mean, at fixed weights: chains and forked completions.

R groups are drawn, each for a prompt of its own, the same for all arms. The gradient of a group, over all
weights, is 1/G · Σ rows Σ tokens weight · advantage · ∇ log π. Rewards are not divided by the group's std, so
that a gradient can be compared with the policy gradient. A batch of P groups has 1/P of the variance.

All is computed from inner products of gradients of *different* groups, so that noise does not enter where
it should not. Let x_i be the gradients of an arm, and t_i those of chains with grpo, times G / (G - 1): then
each completion is compared with the mean of the others, and E t is the policy gradient.

    signal      ‖E x‖²                      the mean of ⟨x_i, x_j⟩ over i ≠ j
    variance    tr Cov(x) / tr Cov(t)       mean of ‖x_i‖² less the signal, over the same of t
    noise       tr Cov(x) / ‖E x‖²          uncertain where few groups tell the signal
    scale       ⟨E x, E t⟩ / ‖E t‖²         1 for the policy gradient
    cosine      of E x and E t

A biased arm may have less variance because its gradient is shorter: then the noise tells, or the scale.

The gradient of a large model is folded into `FOLDED` sums of its entries with random signs (a count sketch,
Charikar, Chen & Farach-Colton 2002). That keeps inner products in expectation; the error of one is about
‖x‖ ‖y‖ / sqrt(FOLDED).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from experiments.branching.setups import Setup
from lambda_grpo import ProcessTree, console, credit, policy
from lambda_grpo.branching import BranchPlan
from lambda_grpo.evaluating.completions import encode
from lambda_grpo.evaluating.intervals import Estimate
from lambda_grpo.packing import pack, tree_logps
from lambda_grpo.sampling import sample
from lambda_grpo.tasks import Problem, Task, get_task
from lambda_grpo.tasks.asking import Asked, PromptFormat

Floats = NDArray[Any]
BASELINE = "chains-grpo"
CREDITS = {False: ("grpo", "lambda_grpo"), True: ("grpo", "lambda_grpo", "branch")}
RESAMPLES = 2000
FOLDED = 2**16
LARGEST_WHOLE = 10**6  # weights of a model whose gradients are kept as they are


@dataclass(frozen=True)
class Drawn:
    """Groups of G completions, one per prompt.

    Attributes:
        prompts: token ids.
        completions: G token id lists for each prompt.
        rewards: (R, G)
        sampled_tokens: tokens that were drawn.
    """

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    rewards: Floats
    sampled_tokens: int


def measure(setup: Setup) -> dict[str, Any]:
    """Draw the groups and measure every arm; figures by `arm | measure`, with intervals."""
    model, tokenizer = policy.load_policy(setup.folder, dtype="float32")
    task = Asked(get_task(setup.task), PromptFormat(), tokenizer)
    problems = task.problems("train", setup.groups, seed=0)
    gradients: dict[str, Floats] = {}
    folds = Folds.of(sum(parameter.numel() for parameter in model.parameters()))
    drawn = {forks: draw(model, tokenizer, task, problems, setup, forks) for forks in CREDITS}
    with console.progress("Gradients") as shown:
        for forks, credits in CREDITS.items():
            rows = []
            for i in range(setup.groups):
                shown(i + forks * setup.groups, 2 * setup.groups)
                own = gradients_of(model, drawn[forks], i, setup.plan if forks else None, setup.temperature)
                rows.append([folds.folded(gradient) for gradient in own])
            for of, column in zip(credits, zip(*rows, strict=True), strict=True):
                gradients[arm_name(forks, of)] = np.stack(column)
        shown(2 * setup.groups, 2 * setup.groups)
    relative = drawn[True].sampled_tokens / drawn[False].sampled_tokens
    cost = {name: relative if name.startswith("branched") else 1.0 for name in gradients}
    share = decided(drawn[True].rewards, setup.factor)
    of_forks = {"tokens, branched over chains": relative, "share decided before the fork": share}
    others = setup.chains / (setup.chains - 1)
    return {name: round(x, 4) for name, x in of_forks.items()} | compare(gradients, cost, others)


def draw(
    model: Any, tokenizer: Any, task: Task, problems: Sequence[Problem], setup: Setup, forks: bool
) -> Drawn:
    """One group per problem, as training would draw it; a completion does not depend on other rows."""
    prompts = [encode(tokenizer, problem.prompt) for problem in problems]
    size = setup.slots if forks else setup.chains
    samples = sample(
        model,
        prompts,
        num_completions=size,
        max_new_tokens=setup.max_completion_length,
        temperature=setup.temperature,
        eos_token_ids=sorted({tokenizer.eos_token_id, *getattr(task, "end_tokens", ())}),
        seed_or_generator=int(forks),
        branches=setup.plan if forks else None,
    )
    rows = samples.completions
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    rewards = [task.score(problems[i // size], text) or 0.0 for i, text in enumerate(texts)]
    completions = [rows[i : i + size] for i in range(0, len(rows), size)]
    return Drawn(prompts, completions, np.reshape(rewards, (-1, size)), samples.sampled_tokens)


def coefficients(tree: ProcessTree, rewards: Floats, plan: BranchPlan | None) -> list[Floats]:
    """(G, T) what each of `CREDITS` multiplies ∇ log π with; of chains if `plan` is None, else of forks."""
    centred = rewards - rewards.mean()
    given = [
        credit.grpo(tree, rewards, advantages=centred),
        credit.lambda_grpo(tree, rewards, advantages=centred),
    ]
    if plan:
        given.append(credit.branch(tree, rewards, plan=plan, scale="none"))
    return [each.weighted for each in given]


@dataclass(frozen=True, eq=False)
class Folds:
    """The random signs by which gradients are folded; None: they are kept whole."""

    signs: torch.Tensor | None

    @classmethod
    def of(cls, weights: int) -> "Folds":
        """For a model of so many weights."""
        if weights <= LARGEST_WHOLE:
            return cls(None)
        drawn = torch.randint(2, (weights,), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
        return cls(2 * drawn - 1)

    def folded(self, gradient: torch.Tensor) -> Floats:
        """(weights,) → (FOLDED,): each entry with its sign, entries a multiple of FOLDED apart summed."""
        if self.signs is None:
            return np.asarray(gradient.numpy())
        signed = torch.nn.functional.pad(gradient * self.signs, (0, -len(gradient) % FOLDED))
        return np.asarray(signed.view(-1, FOLDED).sum(dim=0).numpy())


def gradients_of(
    model: Any, drawn: Drawn, i: int, plan: BranchPlan | None, temperature: float
) -> Iterator[torch.Tensor]:
    """One gradient per credit, flat, of group i."""
    if np.ptp(drawn.rewards[i]) == 0:
        nothing = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
        yield from [nothing] * len(CREDITS[plan is not None])
        return
    tree = ProcessTree.build(drawn.completions[i])
    logps = tree_logps(model, pack(drawn.prompts[i], tree), temperature=temperature)
    for given in coefficients(tree, drawn.rewards[i], plan):
        scaled = torch.from_numpy(given / len(given)).to(logps.dtype)
        parts = torch.autograd.grad(logps, list(model.parameters()), scaled, retain_graph=True)
        yield torch.cat([part.flatten() for part in parts])


@np.errstate(invalid="ignore", divide="ignore")  # a figure that cannot be told is left out
def compare(gradients: dict[str, Floats], cost: dict[str, float], others: float) -> dict[str, Any]:
    """Figures of all arms, with 95% bootstrap intervals over groups, all arms with the same ones.

    Args:
        gradients: (R, D) for each arm. Group i has the same prompt in all of them.
        cost: sampled tokens of a group, relative to chains. Variance and noise are multiplied by it, because
            the variance of a mean over n times as many groups is n times smaller.
        others: G / (G - 1) of chains.
    """
    count = len(next(iter(gradients.values())))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    counts = np.concatenate([np.ones((1, count)), drawn])  # the first row: all groups once
    truth = gradients[BASELINE] * np.float32(others)
    truth_signal = signal(truth @ truth.T, counts)
    measures: dict[str, Floats] = {}
    for name, rows in gradients.items():
        own = rows @ rows.T
        size, along = signal(own, counts), signal(rows @ truth.T, counts)
        spread = trace(own, counts) * cost[name]
        measures[f"{name} | variance"] = spread / trace(truth @ truth.T, counts)
        measures[f"{name} | noise"] = spread / size
        measures[f"{name} | scale"] = along / truth_signal
        measures[f"{name} | cosine"] = along / np.sqrt(size * truth_signal)
    flat: dict[str, Any] = {}
    for name, values in measures.items():
        low, high = np.quantile(values[1:], [0.025, 0.975])
        found = {"": values[0], " | low": low, " | high": high}
        flat |= {f"{name}{part}": float(f"{x:.5g}") for part, x in found.items() if not np.isnan(x)}
    return flat


@np.errstate(invalid="ignore")
def decided(rewards: Floats, factor: int) -> float:
    """The share of the rewards' variance that the tokens before the fork decide.

    Half the mean square difference of two completions is the variance: within a beginning if they share it,
    of independent completions if they do not.

    Args:
        rewards: (groups, G), neighbours in blocks of `factor`.

    >>> decided(np.array([[1, 1, 0, 0]]), 2), decided(np.array([[1, 0, 1, 0]]), 2)
    (1.0, -1.0)
    """
    squares = (rewards[:, :, None] - rewards[:, None, :]) ** 2 / 2
    block = np.arange(rewards.shape[1]) // factor
    shared = block[:, None] == block[None, :]
    within = squares[:, shared & ~np.eye(len(block), dtype=bool)].mean()
    return float(1 - within / squares[:, ~shared].mean())


def signal(products: Floats, counts: Floats) -> Floats:
    """The mean of ⟨x_i, y_j⟩ over pairs of different groups, group i taken counts[b, i] times: (B,).

    Args:
        products: (R, R) ⟨x_i, y_j⟩.
        counts: (B, R)

    >>> signal(np.array([[9.0, 1.0], [3.0, 9.0]]), np.array([[1.0, 1.0], [2.0, 1.0]]))
    array([2., 2.])
    """
    w, inner = counts.astype(np.float64), products.astype(np.float64)
    pairs = w.sum(axis=1) ** 2 - (w**2).sum(axis=1)
    return np.asarray((((w @ inner) * w).sum(axis=1) - w**2 @ np.diag(inner)) / pairs)


def trace(products: Floats, counts: Floats) -> Floats:
    """tr Cov(x), (B,); arguments as for `signal`.

    >>> trace(np.array([[9.0, 2.0], [2.0, 7.0]]), np.array([[1.0, 1.0]]))
    array([6.])
    """
    squares = counts @ np.diag(products) / counts.sum(axis=1)
    return np.asarray(squares - signal(products, counts))


def show(of_tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Print variance, scale and cosine of each arm, with their intervals; task → figures."""
    shown = Table("gradient of", "arm", "variance", "scale", "cosine")
    for task, found in of_tasks.items():
        for arm in [arm_name(forks, of) for forks, credits in CREDITS.items() for of in credits]:
            cells = []
            for name in ("variance", "scale", "cosine"):
                parts = [found.get(f"{arm} | {name}{end}", np.nan) for end in ("", " | low", " | high")]
                cells.append(escape(format(Estimate(*parts), ".2f")))
            shown.add_row(task, arm, *cells)
    console.CONSOLE.print(shown)


def arm_name(forks: bool, of: str) -> str:
    """As in config.yaml."""
    return f"{'branched' if forks else 'chains'}-{of}"
