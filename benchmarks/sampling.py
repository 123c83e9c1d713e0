"""Sampling on a tree beside transformers' `generate`: tokens per second and memory, in turns, medians.

64 rows (8 prompts × 8 completions) at temperature 1. `full`: no end token, all rows run to the limit. `tail`: every
n-th token of the vocabulary ends a row, so that lengths are near geometric with a mean of a third of the limit.
`own`: prompts share nothing with each other; `shared`: all but the last 20 tokens are common to all prompts, as
worked examples are. Memory is the most that a call adds to the process (Linux only).

`limit` is the share of the tree's seconds that its matrix products would take at the rate of large ones: two
operations for each weight and token, each prompt token run once. The rest is attention, drawing, and products that
are too small for that rate.

    python benchmarks/sampling.py [--model FOLDER] [--case NAME …] [--turns 3] [-o FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import added_memory
from transformers.utils import logging as transformers_logging

from lambda_grpo import policy
from lambda_grpo.packing.cost import flops_per_second
from lambda_grpo.sampling import Samples, sample

PROMPTS, COMPLETIONS, OWN = 8, 8, 20

Way = Callable[[int], list[list[int]] | Samples]


@dataclass(frozen=True)
class Case:
    """Prompts of so many tokens, of which `shared` are common to all; `tail`: rows end before the limit."""

    prompt: int
    shared: int
    limit: int
    tail: bool = False


CASES = {
    "45-own-full": Case(45, 0, 64),
    "45-own-tail": Case(45, 0, 96, tail=True),
    "207-shared-full": Case(207, 187, 40),
    "207-own-full": Case(207, 0, 40),
    "207-shared-tail": Case(207, 187, 96, tail=True),
    "1000-shared-tail": Case(1000, 980, 48, tail=True),
    "1000-own-tail": Case(1000, 0, 48, tail=True),
}


def make_prompts(case: Case, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    shared = rng.integers(3, vocabulary, case.shared).tolist()
    return [shared + rng.integers(3, vocabulary, case.prompt - case.shared).tolist() for _ in range(PROMPTS)]


def end_tokens(model: Any, case: Case, prompts: list[list[int]]) -> list[int]:
    """Tokens of which about one in limit / 3 is drawn, by the model's own probabilities after the prompts."""
    if not case.tail:
        return []
    ids = sample(model, prompts, num_completions=2, max_new_tokens=16, eos_token_ids=[], seed_or_generator=0)
    counts = np.bincount(np.concatenate(ids.completions), minlength=model.config.vocab_size)
    share = (counts + 0.02) / (counts + 0.02).sum()
    ends, left = (
        [],
        2.85 / case.limit,
    )  # the mean of a geometric length, cut at the limit, is then a third of it
    for token in np.random.default_rng(1).permutation(model.config.vocab_size).tolist():
        if share[token] <= left:
            ends.append(token)
            left -= share[token]
    return ends


def ways(model: Any, case: Case) -> dict[str, Way]:
    prompts = make_prompts(case, model.config.vocab_size)
    ends = end_tokens(model, case, prompts)
    rows = torch.tensor([prompt for prompt in prompts for _ in range(COMPLETIONS)])

    def ours(seed: int) -> Samples:
        return sample(
            model, prompts, num_completions=COMPLETIONS, max_new_tokens=case.limit, eos_token_ids=ends,
            seed_or_generator=seed,
        )  # fmt: skip

    def theirs(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), max_new_tokens=case.limit, do_sample=True,
            temperature=1.0, top_p=1.0, top_k=0, eos_token_id=ends or None, pad_token_id=0,
        )[:, rows.shape[1] :]  # fmt: skip
        is_end = torch.isin(output, torch.tensor(ends, dtype=torch.long))
        lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, output.shape[1]).tolist()
        return [ids[:count].tolist() for ids, count in zip(output, lengths, strict=True)]

    return {"generate": theirs, "tree": ours}


@dataclass(frozen=True)
class Run:
    """Seconds, drawn tokens, unique tokens of prompts, and MB that one call added at its peak (Linux only)."""

    seconds: float
    tokens: int
    prompt_tokens: int
    memory: float


def timed(run: Way, seed: int) -> Run:
    def drawn() -> tuple[Any, float]:
        started = time.perf_counter()
        samples = run(seed)
        return samples, time.perf_counter() - started

    (samples, seconds), memory = added_memory(drawn)
    if isinstance(samples, Samples):
        return Run(seconds, sum(map(len, samples.completions)), samples.prompt_tokens, memory)
    return Run(seconds, sum(map(len, samples)), 0, memory)


def least_seconds(model: Any, run: Run) -> float:
    """What the matrix products of a run on the tree would take at the rate of large ones."""
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.get_decoder().parameters() if p.ndim == 2)
    layers -= model.get_input_embeddings().weight.numel()
    tokens = run.prompt_tokens + run.tokens
    rate = flops_per_second(torch.get_num_threads(), model.device.type, model.dtype)
    return float(2 * (layers * tokens + head * run.tokens) / rate)


def compare(model: Any, name: str, case: Case, turns: int) -> dict[str, Any]:
    """One row of the table, printed and returned."""
    both = ways(model, case)
    sample(model, [[3]], num_completions=1, max_new_tokens=2, eos_token_ids=[])  # its trial is over
    runs: dict[str, list[Run]] = {way: [] for way in both}
    for turn in range(turns):
        for way, run in both.items():
            runs[way].append(timed(run, turn))
    memory = {way: max(run.memory for run in runs[way]) for way in both}
    median = {way: statistics.median(run.seconds for run in runs[way]) for way in both}
    rate = {way: statistics.median(run.tokens / run.seconds for run in runs[way]) for way in both}
    mean = {way: sum(run.tokens for run in runs[way]) / turns / PROMPTS / COMPLETIONS for way in both}
    ratio = rate["tree"] / rate["generate"]
    limit = statistics.median(least_seconds(model, run) / run.seconds for run in runs["tree"])
    print(
        f"{name:<18}"
        + "".join(f" {median[way]:>8.2f}" for way in both)
        + "".join(f" {rate[way]:>8.1f}" for way in both)
        + f" {ratio:>6.2f}× {limit:>5.0%}"
        + "".join(f" {memory[way]:>7.0f}" for way in both)
        + "".join(f" {mean[way]:>6.1f}" for way in both),
        flush=True,
    )
    seconds = {way: [run.seconds for run in runs[way]] for way in both}
    row = {"seconds": seconds, "rate": rate, "ratio": ratio, "memory_mb": memory, "mean_length": mean}
    return {"case": name, **row, "share_of_limit": limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a folder; the default is the embedded policy")
    parser.add_argument(
        "--case", nargs="+", choices=CASES, help="the default: all that the model has positions for"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    model, _ = policy.load_policy(args.model or str(policy.embedded_policy()))
    model = model.float().eval()
    positions = model.config.max_position_embeddings
    names = args.case or [name for name, case in CASES.items() if case.prompt + case.limit <= positions]
    print(
        f"{model.num_parameters() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'':<18} {'seconds':>17} {'tokens/s':>17} {'':>13} {'MB':>15} {'mean length':>13}")
    print(
        f"{'case':<18}"
        + (f" {'generate':>8} {'tree':>8}" * 2)
        + f" {'ratio':>7} {'limit':>5} {'gen.':>7} {'tree':>7} {'gen.':>6} {'tree':>6}"
    )
    rows = [compare(model, name, CASES[name], args.turns) for name in names]
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
