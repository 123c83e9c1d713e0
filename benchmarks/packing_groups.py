"""Completions for `benchmarks/packing.py`: made ones with a chosen share of common prefixes, and real ones."""

from dataclasses import dataclass

import numpy as np
import torch

from lambda_grpo import ProcessTree, policy
from lambda_grpo.evaluating.completions import Sampling, complete, encode
from lambda_grpo.tasks import get_task

VOCABULARY = 8_000


@dataclass(frozen=True)
class Shape:
    """A kind of group: tokens of the prompt and of the longest completion; branches begin at multiples of `turn`."""

    name: str
    prompt: int
    completion: int
    turn: int = 1


SHAPES = (
    Shape("short prompt, deep sharing", 32, 224),
    Shape("long prompt", 384, 128),
    Shape("agentic turns", 96, 512, turn=64),  # an action and what the tool answers
)


@dataclass(frozen=True)
class Rows:
    """Groups one after the other: prompts and completions, R lists of token ids each, and each row's group."""

    prompts: list[list[int]]
    completions: list[list[int]]
    groups: list[int]

    def padded(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(R, L) ids and mask as a trainer has them, and the width of the completions."""
        left, right = max(map(len, self.prompts)), max(map(len, self.completions))
        ids = torch.zeros(len(self.prompts), left + right, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (prompt, completion) in enumerate(zip(self.prompts, self.completions, strict=True)):
            real = slice(left - len(prompt), left + len(completion))
            ids[i, real], mask[i, real] = torch.tensor([*prompt, *completion]), 1
        return ids, mask, right


def make_rows(shape: Shape, size: int, ratio: float, seed: int = 0) -> Rows | None:
    """One group that branches at random places, deeper or shallower until raw ÷ unique tokens is as asked;
    its completions have 3/4 to all of the shape's length. None if no sharing gives the ratio. Ratio 1: nothing
    is shared, the prompt neither."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, VOCABULARY, (size, shape.prompt))
    lengths = rng.integers(3 * shape.completion // 4, shape.completion + 1, size)
    own = [rng.integers(1, VOCABULARY, n) for n in lengths]
    trunks = [int(rng.integers(i)) if i else 0 for i in range(size)]
    places = rng.uniform(0.5, 1, size)
    if ratio == 1:
        return Rows(prompts.tolist(), [row.tolist() for row in own], list(range(size)))

    def completions(depth: float) -> list[list[int]]:
        rows = [row.copy() for row in own]
        for i in range(1, size):
            trunk = rows[trunks[i]]
            cut = int(min(depth * places[i], 0.97) * min(len(trunk), len(rows[i])))
            cut = round(cut / shape.turn) * shape.turn
            rows[i][: min(cut, len(trunk))] = trunk[:cut][: len(rows[i])]
        return [row.tolist() for row in rows]

    def reached(depth: float) -> float:
        tree = ProcessTree.build(completions(depth))
        return (shape.prompt * size + int(tree.lengths.sum())) / (shape.prompt + tree.unique_tokens)

    low, high = 0.0, 2.0
    if not reached(low) <= ratio * 1.02 or not reached(high) >= ratio * 0.95:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < ratio else (low, middle)
    return Rows([prompts[0].tolist()] * size, completions(high), [0] * size)


def demo_rows(prompts: int = 32, size: int = 8) -> Rows:
    """What the embedded policy answers to the demo's problems before training."""
    model, tokenizer = policy.load_policy(str(policy.embedded_policy()))
    problems = get_task("thinking-sums").problems("train", prompts, 0)
    rows = [encode(tokenizer, problem.prompt) for problem in problems for _ in range(size)]
    texts, lengths = complete(model, tokenizer, rows, Sampling(max_completion_length=14), sample=True)
    completions = [tokenizer(text)["input_ids"] for text in texts]
    ended = [
        [*row, tokenizer.eos_token_id] if n > len(row) else row
        for row, n in zip(completions, lengths, strict=True)
    ]
    return Rows(rows, ended, [i // size for i in range(len(rows))])


def prompt_only(rows: Rows) -> list[tuple[list[int], list[list[int]]]]:
    """Prompt and completions of each group."""
    return [
        (
            next(p for p, group in zip(rows.prompts, rows.groups, strict=True) if group == g),
            [c for c, group in zip(rows.completions, rows.groups, strict=True) if group == g],
        )
        for g in sorted(set(rows.groups))
    ]
