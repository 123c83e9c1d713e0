"""Any two settings of TRL together, packed or not: the gradients are those of TRL's own loss with one line spliced in,
over plain rows, with the credit of the literal definitions."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from covering import all_pairs, pairs_of
from literal_credits import Case, literal
from oracle import spliced_compute_loss
from tiny_trainers import GROUP, PROMPTS, assert_close, gradients, make_trainer, micro_batches

from lambda_grpo import ProcessTree, TokenCredit
from lambda_grpo.engines.trl import trainer as trainer_module
from lambda_grpo.engines.trl.config import LOSS_TYPES

VALUES: dict[str, list[Any]] = {
    "loss_type": list(LOSS_TYPES),
    "credit": [
        "grpo",
        "lambda_grpo",
        "lambda_grpo_matched",
        "lambda_grpo_unique",
        "process",
        "tempo",
        "treepo",
        "vineppo",
    ],
    "importance_sampling_level": ["token", "sequence"],
    "scale_rewards": ["group", "batch", "none"],
    "beta": [0.0, 0.3],
    "num_iterations": [1, 2],
    "gradient_accumulation_steps": [1, 2],
    "mask_truncated_completions": [False, True],
    "use_bias_correction_kl": [False, True],
    "top_entropy_quantile": [1.0, 0.5],
    "off_policy_mask_threshold": [None, 1e-4],
    "delta": [None, 1.01],
    "entropy_coef": [0.0, 0.05],
    "temperature": [0.5, 1.0],
    "tree_packing": ["off", "on"],
}
PER_TOKEN = {"process", "tempo", "vineppo"}  # credits with an advantage for each token


def allowed(row: dict[str, Any]) -> bool:
    """Not what we refuse: an advantage per token where TRL judges a completion as a whole."""
    judged = row["importance_sampling_level"] == "sequence" or row["loss_type"] == "vespo"
    return row["credit"] not in PER_TOKEN or not (judged or row["off_policy_mask_threshold"])


ROWS = all_pairs(VALUES, allowed)


def test_every_pair_that_is_allowed_occurs() -> None:
    met = set().union(*map(pairs_of, ROWS))
    refused = {"sequence", "vespo", 1e-4}
    for a, b in itertools.combinations(VALUES, 2):
        for x, y in itertools.product(VALUES[a], VALUES[b]):
            assert ((a, x, b, y) in met) != bool(PER_TOKEN & {x, y} and refused & {x, y})
    assert len(ROWS) < 100
    assert all(map(allowed, ROWS))


def completions_of(tree: ProcessTree) -> list[list[int]]:
    """The token ids that a tree was built of."""
    first = np.concatenate([[0], np.cumsum(tree.end - tree.start)[:-1]]) - tree.start
    return [
        [int(tree.tokens[first[node] + t]) for t, node in enumerate(row[:length])]
        for row, length in zip(tree.step_index, tree.lengths, strict=True)
    ]


def make(folder: Path, row: dict[str, Any]) -> Any:
    return make_trainer(
        folder,
        **row,
        per_device_train_batch_size=len(PROMPTS) * GROUP // row["gradient_accumulation_steps"],
        epsilon_high=5.0 if row["loss_type"] == "cispo" else None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[f"{i}" for i in range(len(ROWS))])
def test_gradients_equal_the_spliced_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]
) -> None:
    def literal_group(_: Any, tree: ProcessTree, rewards: Any, a: Any, mask: Any) -> TokenCredit:
        inside = tree.policy_tokens(mask)
        case = Case(completions_of(tree), a.tolist(), inside, slope=1.0, shift=0.0)
        advantage, weight = literal(row["credit"], case)
        return TokenCredit(advantage.astype(np.float32), weight.astype(np.float32))

    trainer = make(tmp_path, row)
    batches = micro_batches(trainer)
    monkeypatch.setattr(trainer_module, "credit_group", literal_group)
    oracle = make(tmp_path, row)
    expected = micro_batches(oracle)
    oracle.args.tree_packing = "off"
    compute_loss = spliced_compute_loss("gradient")
    assert len(batches) == row["gradient_accumulation_steps"]
    weighted = []
    for batch, literally in zip(batches, expected, strict=True):
        assert torch.equal(batch["completion_ids"], literally["completion_ids"])
        if row["credit"] not in PER_TOKEN:  # one advantage per completion, as TRL has it
            tokens = (literally["advantages"] != 0).sum(1).clamp(min=1)
            literally["advantages"] = literally["advantages"].sum(1) / tokens
        got = gradients(trainer, trainer._compute_loss(trainer.model, batch))
        wanted = gradients(oracle, compute_loss(oracle, oracle.model, literally))
        assert_close(got, wanted, 2e-5)
        plain = {**literally, "credit_weights": torch.ones_like(literally["credit_weights"])}
        unweighted = gradients(oracle, compute_loss(oracle, oracle.model, plain))
        weighted.append(((unweighted - wanted).abs().max() > 1e-3 * wanted.abs().max()).item())
        if row["tree_packing"] == "on":
            assert trainer._metrics["train"]["tree/packed"][-1] == 1
    # The planted fault, no weights; in a micro-batch where TRL clips every token there is nothing to weight.
    assert any(weighted) == row["credit"].startswith("lambda_grpo")
