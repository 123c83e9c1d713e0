"""Advantages relative to every subgroup that a completion belongs to."""

import numpy as np
from numpy.typing import ArrayLike

from lambda_grpo.credit.token_credit import (
    TokenCredit,
    own_advantages,
    path_sums,
    samples,
    step_means,
    step_sums,
    token_credit,
)
from lambda_grpo.tree import ProcessTree


def treepo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """TreePO: every token of completion i gets (mean over its subgroups λ of a_i - A(λ), 1).

    Li et al., arXiv 2508.17445. The subgroups are the group itself, which gives a_i, and every process set
    of two or more completions on i's path, which gives (r_i - R̂(λ)) / (std r + ε). So a completion is also
    compared with those that began like it; in a group without shared steps this is GRPO.

    Our choices: one number per completion, as in the paper's code (its formula is per segment); a plain mean
    (its `average`), not one weighted by subgroup size; the group's own std, and no whitening over the batch.
    TreePO's subgroups come from the forks of its sampler, ours from the prefixes that an ordinary group
    shares. Masked completions are left out of A(λ) as in `process`.

    Arguments and errors as `grpo`.
    """
    a_G = own_advantages(tree, rewards, advantages)
    counted = samples(tree, mask)
    number = tree.size if counted is None else step_sums(tree, counted)
    subgroup = number > 1
    subgroup[0] = False  # a_G is relative to the whole group already
    means = path_sums(tree, subgroup * step_means(tree, a_G, counted))
    advantage = a_G - means / (1 + path_sums(tree, subgroup.astype(np.int64)))
    return token_credit(tree, advantage[:, None], 1.0, mask)
