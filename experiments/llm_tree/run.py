"""llm_tree: the paper's toy tree (section 4.3) with a pre-trained language model at the paper's settings.

Environment, draws, credits and loss are those of `binary_tree`; a seed's target is too. Every run starts from
the same model.

runs.jsonl     one line per run (cell, credit, learning rate, seed); an experiment that was stopped goes on
               with `--output` and the same folder, and `--minutes` ends it between two runs
results.json   by cell: the target's frequency, the step at which it passes one half, differences from grpo
               and lambda_grpo over the seeds that both have, with 95% intervals of Student's t
curves-*.png   the curves of each learning rate
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.binary_tree import toy_training, toy_tree
from experiments.binary_tree.toy_training import GROUP
from experiments.binary_tree.toy_tree import Cell
from experiments.binary_tree.tree_pictures import CURVE_STEPS
from experiments.common import resumable_runs
from experiments.llm_tree import tree_results
from experiments.llm_tree.llama_on_tree import LlamaPolicy
from lambda_grpo import console, policy
from lambda_grpo.errors import InputError, unknown_name

RESUMES_FROM = resumable_runs.FILE
TINY = LlamaConfig(vocab_size=3, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                   num_attention_heads=4, num_key_value_heads=2)  # fmt: skip


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train what is not in runs.jsonl yet; draw and print; the figures.

    Raises:
        InputError: an unknown credit or model, or fewer steps than `last_steps`.
    """
    if settings["steps"] < settings["last_steps"]:
        raise InputError(f"last_steps: {settings['last_steps']} of only {settings['steps']} steps")
    known = toy_training.variants()
    for name in settings["credits"]:
        if name not in known:
            raise unknown_name("credit", name, known)
    cells = {cell.name: cell for cell in paper_cells(settings)}
    wanted = plan(settings, cells)
    shared = {key: settings[key] for key in ("model", "steps", "last_steps")}
    start = load(settings["model"])

    def train(i: int) -> dict[str, Any]:
        run = wanted[i]
        draws = toy_training.draw([run["seed"]], settings["steps"])
        cell, variant = cells[run["cell"]], known[run["variant"]]
        counts = toy_training.train(start, draws, cell, variant, run["learning_rate"])
        return measures(counts[:, 0], settings["last_steps"]) | _at_start(start, int(draws.targets[0]))

    with console.progress("Training") as shown:
        rows = resumable_runs.complete(output, wanted, shared, train, shown)
    tree_results.draw(rows, output)
    return tree_results.figures(rows)


def paper_cells(settings: Mapping[str, Any]) -> list[Cell]:
    """The paper's cells."""
    return [
        Cell("anti-exploitation", r_neg, n)
        for r_neg, n in product(settings["r_neg"], settings["prefix_lengths"])
    ]


def plan(settings: Mapping[str, Any], cells: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """Every run: all cells at the paper's rate, and then some at the higher one. Pairs are neighbours."""
    seeds = range(settings["seeds"])
    some = [name for name, cell in cells.items() if cell.r_neg in settings["higher_rate_r_neg"]]
    usual = [(settings["learning_rate"], *pair) for pair in product(seeds, cells)]
    higher = [(settings["higher_rate"], *pair) for pair in product(seeds, some)]
    return [
        {"cell": cell, "variant": variant, "learning_rate": rate, "seed": seed}
        for (rate, seed, cell), variant in product([*usual, *higher], settings["credits"])
    ]


def load(model: str) -> LlamaPolicy:
    """The policy at the start; `tiny` is a Llama of random weights.

    Raises:
        InputError: no Llama is there, or its tokenizer has no start token, or no single token L or R.
    """
    if model == "tiny":
        torch.manual_seed(0)
        return LlamaPolicy.of(LlamaForCausalLM(TINY), (0, 1, 2))
    loaded, tokenizer = policy.load_policy(console.policy_folder(model), dtype=torch.float32)
    ids = [tokenizer.bos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in ("L", "R"))]
    if None in ids or tokenizer.unk_token_id in ids[1:]:
        raise InputError(f"model {model!r}: expected a start token, and tokens L and R, got the ids {ids}")
    return LlamaPolicy.of(loaded, ids)


def measures(counts: NDArray[np.uint8], last: int) -> dict[str, Any]:
    """From the counts (steps, 16) of each `leaf XOR target`.

    `half_at` is the first step from which on, over five steps, the target is more than half of what is
    sampled; None if it never is.
    """
    frequency = counts[:, 0] / GROUP
    points = len(frequency) // CURVE_STEPS
    curve = frequency[: points * CURVE_STEPS].reshape(points, CURVE_STEPS).mean(axis=1)
    moving = np.convolve(frequency, np.full(CURVE_STEPS, 1 / CURVE_STEPS), "valid")
    passed = np.flatnonzero(moving > 0.5)
    return {
        "target": round(float(frequency[-last:].mean()), 4),
        "half_at": int(passed[0]) if len(passed) else None,
        "curve": curve.round(3).tolist(),
    }


def _at_start(start: LlamaPolicy, target: int) -> dict[str, float]:
    """How likely the target is before the first step."""
    with torch.no_grad():
        at_nodes = start.log_probs(start.weights)[0].flatten()
    return {"probability_at_start": round(float(at_nodes[toy_tree.path(target)].sum().exp()), 6)}
