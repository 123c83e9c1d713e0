"""Groups → the numbers of the hidden process reward model, for notebooks and for the report.

    analysis = analyse(RolloutReader(["runs/a"]))
    pandas.DataFrame(analysis.groups)      # one row per group
    pandas.DataFrame(analysis.nodes)       # one row per process step (node of a tree)
    pandas.DataFrame(analysis.steps())     # one row per run and training step

One pass, in bounded memory: token ids are held for a few million tokens at a time, the tables for all.
Means over completions, tokens or groups are taken over all of a step's or a run's, not over means of groups.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo import measures
from lambda_grpo.credit import path_sums, step_means, step_sums
from lambda_grpo.rollouts import Group
from lambda_grpo.tree import ProcessTree

Table = Mapping[str, NDArray[Any]]
Visit = Callable[[Group, ProcessTree, Mapping[str, Any]], None]

_BATCH_TOKENS = 2**21  # tokens of groups whose trees are built in one pass
NODE_COLUMNS = ("parent", "start", "end", "size", "depth")

# What a mean over groups weighs each group by; every other measure counts each group once.
WEIGHTS = {
    "reward": "scored",
    "accuracy": "scored",
    "length": "completions",
    "path_depth": "counted",
    "intermediate_proportion": "counted",
    "shared_tokens": "tokens",
    "push_removed": "push",
    "push_cancelled": "push",
    "packing_ratio": "packed_tokens",
    "sampling_ratio": "sampled_tokens",
}
GROUP_MEASURES = (
    *WEIGHTS,
    "flat",
    "best_pushed_down",
    "best_tokens_down",
    "best_share_down_grpo",
    "best_share_down_lambda",
    "frequent_share_grpo",
    "frequent_share_lambda",
    "effective_terms_grpo",
    "effective_terms_lambda",
    "unique_tokens",
)


@dataclass(frozen=True, eq=False)
class Analysis:
    """The tables of some rollouts, each a mapping of column names to equally long arrays.

    Attributes:
        groups: one row per group. `run`, `step`, `group` name it; `completions`, `tokens`,
            `unique_tokens` are counts, `counted` the completions with at least one token, `scored` those
            with a reward; `reward` and `accuracy` are means over scored completions, `length` over all,
            `spread` is max - min reward; `path_depth` and `intermediate_proportion` are means over counted
            completions; `shared_tokens` is the share of tokens with |λ| > 1; `flat` is 0 or 1; the
            rest is the push, the savings and the flaw, see `group_row`. nan where a group does not define a
            number.
        nodes: one row per process step. `run`, `step`, `group`, `node` name it; `parent`, `start`, `end`,
            `size`, `depth` are the tree's; `scored` is how many of its completions have a reward, `reward`
            is R̂(λ) and `advantage` A(λ), their means over these.
    """

    groups: Table
    nodes: Table

    def steps(self) -> Table:
        """One row per run and training step: `run`, `step`, `groups` and the means of every measure."""
        return mean_table(self.groups, ("run", "step"))

    def runs(self) -> Table:
        """One row per run: `run`, `groups`, and the means of every measure."""
        return mean_table(self.groups, ("run",))


def analyse(
    groups: Iterable[Group],
    *,
    correct_at: float = 1.0,
    keep_nodes: bool = True,
    visit: Visit | None = None,
) -> Analysis:
    """Build the tree of every group and measure it.

    Args:
        groups: for example a `RolloutReader`; read once.
        correct_at: a completion is right if its reward is at least this, where the file does not say.
        keep_nodes: fill the table of nodes, which grows with the number of completions.
        visit: called with each group, its tree, and its row of the table.

    Raises:
        InputError: what reading the groups raises.
    """
    rows: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    for batch in _batches(groups):
        for group, tree in zip(batch, build_trees(batch), strict=True):
            row = group_row(group, tree, correct_at)
            rows.append(row)
            if keep_nodes:
                nodes.append(_node_rows(group, tree))
            if visit:
                visit(group, tree, row)
    counts = ("completions", "scored", "counted", "tokens", "push", "packed_tokens", "sampled_tokens")
    names = ("run", "step", "group", *counts, "spread", *GROUP_MEASURES)
    table = {name: np.array([row[name] for row in rows]) for name in names}
    return Analysis(table, _joined(nodes))


def build_trees(batch: Sequence[Group]) -> list[ProcessTree]:
    """The trees of some groups, in one vectorised pass."""
    completions = [ids for group in batch for ids in group.token_ids]
    places = np.repeat(np.arange(len(batch)), [len(group.token_ids) for group in batch])
    contexts = None
    if any(group.contexts.any() for group in batch):
        contexts = [context for group in batch for context in group.contexts.tolist()]
    return ProcessTree.build_many(completions, places.tolist(), contexts)


def group_row(group: Group, tree: ProcessTree, correct_at: float = 1.0) -> dict[str, Any]:
    """One group's row of the table.

    - push: Σ|a| over tokens; push_removed: Σ|a|·(1 - 1/|λ|) by it, what λ-GRPO takes off it; push_cancelled:
      the part of that on the root's tokens, which all completions share, if their advantages sum to zero:
      these pushes cancel under GRPO too.
    - packed_tokens, sampled_tokens: tokens, prompts included, if each shared one is computed once, and if
      each prompt is; packing_ratio, sampling_ratio: all tokens by these. nan if the prompts' tokens are not
      known.

    The flaw, of GRPO (w = 1) and of λ-GRPO (w = 1/|λ|):

    - best_pushed_down: 1 if a best completion (highest reward; several may tie) has tokens whose
      step advantage is negative, else 0; best_tokens_down: how many, mean over the best. nan if all
      rewards are equal. Completions that could not be scored are not compared.
    - best_share_down: of the |gradient weight| on the best completions' tokens, the share that pushes down
      (`measures.downward_share`), mean over the best.
    - frequent_share: how much of the group's |gradient weight| falls on its most frequent step
      (`measures.most_frequent_share`); nan for flat groups, which have no frequent step.
    - effective_terms: `measures.effective_terms`, at most `unique_tokens`.
    """
    nan = float("nan")
    a, once = group.advantages, 1 / tree.size
    counted = measures.counted(tree)
    tokens = int(tree.lengths.sum())
    flat = measures.is_flat(tree)
    scored = group.scored
    correct = np.where(np.isnan(group.correct), group.rewards >= correct_at, group.correct)
    spread = float(np.ptp(group.rewards[scored])) if scored.any() else nan
    best = scored & (group.rewards == np.max(group.rewards[scored], initial=-np.inf))
    down = measures.tokens_pushed_down(tree, a)[best]
    unequal = spread > 0
    return {
        "run": group.run,
        "step": group.step,
        "group": group.name,
        "completions": tree.num_completions,
        "tokens": tokens,
        "counted": int(counted.sum()),
        "scored": int(scored.sum()),
        "spread": spread,
        "reward": _mean(group.rewards),
        "accuracy": _mean(correct[scored]),
        "length": float(tree.lengths.mean()),
        "path_depth": _mean(measures.path_depth(tree)[counted]),
        "intermediate_proportion": _mean(measures.intermediate_proportion(tree)[counted]),
        "shared_tokens": measures.shared_tokens(tree) / tokens if tokens else nan,
        "flat": float(flat),
        "best_pushed_down": float(down.any()) if unequal else nan,
        "best_tokens_down": float(down.mean()) if unequal else nan,
        "best_share_down_grpo": _mean(measures.downward_share(tree, a)[best]),
        "best_share_down_lambda": _mean(measures.downward_share(tree, a, once)[best]),
        "frequent_share_grpo": nan if flat else measures.most_frequent_share(tree, a),
        "frequent_share_lambda": nan if flat else measures.most_frequent_share(tree, a, once),
        "effective_terms_grpo": measures.effective_terms(tree, a),
        "effective_terms_lambda": measures.effective_terms(tree, a, once),
        "unique_tokens": tree.unique_tokens,
        **_push(group, tree),
        **_savings(group, tree),
    }


def _push(group: Group, tree: ProcessTree) -> dict[str, float]:
    a, tokens = group.advantages, tree.end - tree.start
    push = float(np.abs(a) @ tree.lengths)
    if push == 0:
        return {"push": 0.0, "push_removed": float("nan"), "push_cancelled": float("nan")}
    removed = float(np.abs(a) @ path_sums(tree, tokens * (1 - 1 / tree.size)))
    total = float(np.abs(a).sum())
    cancels = abs(a.sum()) < 1e-6 * total
    root = total * float(tokens[0]) * (1 - 1 / tree.num_completions) if cancels else 0.0
    return {"push": push, "push_removed": removed / push, "push_cancelled": root / push}


def _savings(group: Group, tree: ProcessTree) -> dict[str, float]:
    tokens = float(tree.lengths.sum())
    each = group.prompt_lengths.astype(np.float64) if len(group.prompt_lengths) else np.full(1, np.nan)
    once = each[np.unique(group.contexts)].sum() if len(each) > 1 else np.nan
    raw, packed, sampled = each.sum() + tokens, once + tree.unique_tokens, once + tokens
    return {
        "packed_tokens": packed,
        "sampled_tokens": sampled,
        "packing_ratio": raw / packed if packed else np.nan,
        "sampling_ratio": raw / sampled if sampled else np.nan,
    }


def mean_table(groups: Table, by: Sequence[str]) -> Table:
    """The means of every measure over the groups that agree in the columns `by`, in order of first
    appearance of the first column, then ascending; nan where no group defines a measure."""
    keys = list(zip(*(groups[name].tolist() for name in by), strict=True))
    first = {key[0]: place for place, key in reversed(list(enumerate(keys)))}
    distinct = sorted(set(keys), key=lambda key: (first[key[0]], *key[1:]))
    number = {key: place for place, key in enumerate(distinct)}
    place = np.array([number[key] for key in keys], np.int64)
    table = {name: np.array([key[i] for key in distinct]) for i, name in enumerate(by)}
    table["groups"] = np.bincount(place, minlength=len(distinct))
    for name in ("completions", "scored", "tokens"):
        table[name] = np.bincount(place, groups[name], len(distinct)).astype(np.int64)
    for name in GROUP_MEASURES:
        values = groups[name].astype(np.float64)
        weight = groups[WEIGHTS[name]].astype(np.float64) if name in WEIGHTS else np.ones(len(place))
        weight = np.where(np.isnan(values), 0, weight)
        sums = np.bincount(place, weight * np.nan_to_num(values), len(distinct))
        total = np.bincount(place, weight, len(distinct))
        table[name] = np.where(total > 0, sums / np.where(total > 0, total, 1), np.nan)
    return table


def _batches(groups: Iterable[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    tokens = 0
    for group in groups:
        batch.append(group)
        tokens += sum(map(len, group.token_ids))
        if tokens >= _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _node_rows(group: Group, tree: ProcessTree) -> dict[str, Any]:
    same = {"run": group.run, "step": group.step, "group": group.name}
    return {
        **{name: np.full(tree.num_steps, value) for name, value in same.items()},
        "node": np.arange(tree.num_steps),
        **{name: getattr(tree, name).copy() for name in NODE_COLUMNS},
        **step_columns(group, tree),
    }


def step_columns(group: Group, tree: ProcessTree) -> dict[str, NDArray[Any]]:
    """(N,) of each process step: how many of its completions were `scored`, and the means over these,
    R̂(λ) (`reward`, NaN if there are none) and A(λ) (`advantage`, 0 if there are none)."""
    scored = step_sums(tree, group.scored).astype(np.int64)
    reward = step_means(tree, np.nan_to_num(group.rewards), group.scored)
    return {
        "scored": scored,
        "reward": np.where(scored > 0, reward, np.nan),
        "advantage": step_means(tree, group.advantages, group.scored),
    }


def _joined(tables: Sequence[Mapping[str, Any]]) -> Table:
    names = ("run", "step", "group", "node", *NODE_COLUMNS, "scored", "reward", "advantage")
    return {
        name: np.concatenate([table[name] for table in tables]) if tables else np.array([]) for name in names
    }


def _mean(values: NDArray[Any]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
