"""Token-level policy losses for a training loop of your own: torch and nothing else.

Each policy token (i, t) has the term

    ℓ_it = w_it · ( -min(P_it·A_it, clip(P_it, 1 - ε_low, 1 + ε_high)·A_it) + β·D_it )

with the ratio P = π / π_old, the k3 estimate of the KL divergence D = e^Δ - Δ - 1, Δ = log π_ref - log π, and
the credit's advantage A and weight w. With A = a_i and w = 1 this is GRPO; with w = 1/|λ(i,t)| it is λ-GRPO
(Sullivan & Koller, arXiv 2509.21154, section 4), which divides the policy and the KL term alike.

Invariant: a weight scales its token's term and nothing else. Every denominator is a raw count, so the loss
with weights is not a weighted mean. Values where the mask is false have no influence, not even NaN.

Deviation from the paper: it takes one update per batch and clips nothing; here the ratio is clipped, which
changes nothing while old and new policy agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from numpy.typing import ArrayLike

from lambda_grpo.credit import TokenCredit
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tree import ProcessTree

NORMALISATIONS = ("grpo", "dapo", "bnpo", "dr_grpo")


@dataclass(frozen=True)
class Objective:
    """The constants of the loss.

    `normalisation` says what the sum of the terms is divided by:

        grpo     each sequence's own policy tokens, then the number of sequences (arXiv 2402.03300)
        dapo     policy tokens of the whole batch: all micro-batches of an optimiser step (arXiv 2503.14476)
        bnpo     policy tokens of this micro-batch; the paper's 1/ΣT_i if that is the whole batch
        dr_grpo  sequences × max_completion_length (arXiv 2503.20783)

    Attributes:
        normalisation: one of `NORMALISATIONS`.
        epsilon_low, epsilon_high: the ratio is clipped to [1 - ε_low, 1 + ε_high]; `math.inf` never clips.
        beta: β ≥ 0; 0 leaves the KL term out.
        max_completion_length: the most tokens a completion may have; needed by `dr_grpo` only.

    Raises:
        InputError: an unknown normalisation, a constant that is no number ≥ 0, or `dr_grpo` without a length.
    """

    normalisation: str = "dapo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    max_completion_length: int | None = None

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise unknown_name("normalisation", self.normalisation, NORMALISATIONS)
        for name in ("epsilon_low", "epsilon_high", "beta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= 0 or (name == "beta" and math.isinf(value)):
                raise InputError(f"{name}: expected a number ≥ 0, got {value!r}")
        length = self.max_completion_length
        if length is not None and (not isinstance(length, int) or length <= 0):
            raise InputError(f"max_completion_length: expected a positive number of tokens, got {length!r}")
        if length is None and self.normalisation == "dr_grpo":
            raise InputError("max_completion_length: normalisation 'dr_grpo' divides by it, got None")


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """What is fixed about B completions while the policy is updated on them: all (B, T), no gradients.

    Attributes:
        advantage, weight: floating point, from the credit.
        mask: true (or nonzero) at policy tokens; false past a completion's end and at tool tokens.
        old_logps: log-probs under the policy that sampled. None: this update is on-policy, P = 1.
        ref_logps: log-probs under the reference. Needed if β > 0.

    Raises:
        InputError: something that is no tensor, or shapes that differ.
    """

    advantage: torch.Tensor
    weight: torch.Tensor
    mask: torch.Tensor
    old_logps: torch.Tensor | None = None
    ref_logps: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self._tensors().items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name}: expected a torch tensor, got {type(tensor).__name__}")
            if tensor.ndim != 2 or tensor.shape != self.advantage.shape:
                raise InputError(
                    f"{name}: expected shape (completions, tokens), the same for all, got "
                    f"{tuple(tensor.shape)} beside advantage {tuple(self.advantage.shape)}"
                )

    @classmethod
    def from_credits(
        cls,
        trees: Sequence[ProcessTree],
        credits: Sequence[TokenCredit],
        masks: Sequence[ArrayLike] | None = None,
    ) -> "TokenBatch":
        """Put the groups of a batch one below the other, padded to the longest completion.

        Args:
            trees: one per group, as `ProcessTree.build_many` returns them.
            credits: one per tree.
            masks: (G, T) per tree, the ones given to the credits, if any.

        Returns:
            float32 advantages and weights, a bool mask; `dataclasses.replace` adds the log-probs.

        Raises:
            InputError: no trees, numbers of groups or shapes that do not match.
        """
        if len(trees) == 0:
            raise InputError("trees: expected one per group, got none")
        groups = {"credits": credits} if masks is None else {"credits": credits, "masks": masks}
        for name, given in groups.items():
            if len(given) != len(trees):
                raise InputError(f"{name}: expected {len(trees)}, one per tree, got {len(given)}")
        for i, (tree, credit) in enumerate(zip(trees, credits, strict=True)):
            if credit.advantage.shape != tree.step_index.shape:
                raise InputError(
                    f"credits: #{i} has shape {credit.advantage.shape}, its tree {tree.step_index.shape}"
                )
        policy = [tree.policy_tokens(None if masks is None else masks[i]) for i, tree in enumerate(trees)]
        return cls(
            _stack([torch.tensor(credit.advantage) for credit in credits]),
            _stack([torch.tensor(credit.weight) for credit in credits]),
            _stack([torch.tensor(mask) for mask in policy]),
        )

    def rows(self, rows: slice) -> "TokenBatch":
        """Some of the completions: a micro-batch."""
        return replace(self, **{name: tensor[rows] for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def policy_loss(
    logps: torch.Tensor, tokens: TokenBatch, objective: Objective, num_tokens: float | None = None
) -> torch.Tensor:
    """The loss to minimise: all terms ℓ_it (module docstring), summed and normalised.

    A completion without policy tokens adds no term and no gradient. If no completion has one, the
    loss is 0.

    Args:
        logps: (B, T) log-probs of the completions' tokens under the policy; the gradient flows into them.
        tokens: the rest, on any device.
        objective: the constants.
        num_tokens: the denominator of `dapo` (ignored by the others): policy tokens in all micro-batches of
            this optimiser step, divided by the number of ranks if gradients are averaged over them.
            None: those of `tokens`. With the other normalisations divide each micro-batch's loss by the
            number of micro-batches.

    Returns:
        A scalar in the dtype of `logps`, float32 at least.

    Raises:
        InputError: `logps` that do not fit `tokens` or are not floating point, β > 0 without reference,
            a negative num_tokens, no completions.

    >>> from lambda_grpo import credit
    >>> tree = ProcessTree.build([[5, 6, 7], [5, 6, 8], [9]])
    >>> tokens = TokenBatch.from_credits([tree], [credit.lambda_grpo(tree, [0, 0, 1])])
    >>> logps = torch.full((3, 3), -1.0, requires_grad=True)
    >>> policy_loss(logps, tokens, Objective(normalisation="dapo")).backward()
    >>> logps.grad * 7  # seven tokens; each of [5, 6] is shared by two completions
    tensor([[ 0.2886,  0.2886,  0.5773],
            [ 0.2886,  0.2886,  0.5773],
            [-1.1545,  0.0000,  0.0000]])
    """
    if num_tokens is not None and num_tokens < 0:
        raise InputError(f"num_tokens: expected a number of tokens, got {num_tokens}")
    terms = token_terms(logps, tokens, objective)
    policy = tokens.mask.to(logps.device).bool()
    if objective.normalisation == "grpo":
        return (terms.sum(dim=1) / policy.sum(dim=1).clamp(min=1)).mean()
    if objective.normalisation == "dr_grpo":
        assert objective.max_completion_length is not None  # Objective has checked it
        return terms.sum() / (len(terms) * objective.max_completion_length)
    if objective.normalisation == "dapo" and num_tokens is not None:
        return terms.sum() / max(num_tokens, 1)
    return terms.sum() / policy.sum().clamp(min=1)


def token_terms(logps: torch.Tensor, tokens: TokenBatch, objective: Objective) -> torch.Tensor:
    """The terms ℓ_it (module docstring) before they are summed: (B, T), zero where masked.

    Arguments and errors as `policy_loss`. Half-precision log-probs are taken to float32 first: a ratio of
    bfloat16 numbers has two digits.
    """
    _check_logps(logps, tokens, objective)
    policy = tokens.mask.to(logps.device).bool()
    dtype = torch.promote_types(logps.dtype, torch.float32)

    def at_policy_tokens(values: torch.Tensor) -> torch.Tensor:
        """The values, with 0 elsewhere, so that what stands there reaches neither loss nor gradient."""
        return torch.where(policy, values.to(logps.device, dtype), 0)

    logp = at_policy_tokens(logps)
    old = logp if tokens.old_logps is None else at_policy_tokens(tokens.old_logps)
    advantage = at_policy_tokens(tokens.advantage.detach())
    ratio = torch.exp(logp - old.detach())
    clipped = ratio.clamp(1 - objective.epsilon_low, 1 + objective.epsilon_high)
    terms = -torch.minimum(ratio * advantage, clipped * advantage)
    if objective.beta > 0 and tokens.ref_logps is not None:
        delta = at_policy_tokens(tokens.ref_logps.detach()) - logp
        terms = terms + objective.beta * (torch.expm1(delta) - delta)
    return at_policy_tokens(tokens.weight.detach()) * terms


def _stack(groups: Sequence[torch.Tensor]) -> torch.Tensor:
    """(G, T) of each group → (B, T): rows below each other, zeros to the right."""
    width = max(group.shape[1] for group in groups)
    return torch.cat([torch.nn.functional.pad(group, (0, width - group.shape[1])) for group in groups])


def _check_logps(logps: torch.Tensor, tokens: TokenBatch, objective: Objective) -> None:
    if not logps.is_floating_point():
        raise InputError(f"logps: expected floating point, got {logps.dtype}")
    if logps.shape != tokens.mask.shape:
        raise InputError(
            f"logps: expected shape {tuple(tokens.mask.shape)} (completions, tokens) as the mask's, "
            f"got {tuple(logps.shape)}"
        )
    if len(logps) == 0:
        raise InputError("logps: expected at least one completion, got none")
    if objective.beta > 0 and tokens.ref_logps is None:
        raise InputError(f"ref_logps: beta = {objective.beta} needs the reference's log-probs, got None")
