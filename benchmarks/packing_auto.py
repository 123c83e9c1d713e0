"""What `tree_packing: auto` reaches where packing gains little: a run by off, on and auto, taken in turns.

A run here is several micro-batches of one kind. It goes through the trainer's own pass, so `auto` learns from its
first micro-batch, which is not timed, and pays for its decisions. Raw ÷ unique lies between 1.0 and 1.4, where
the two ways are nearest. Small models and vocabularies make packed rows slow.

    share       seconds of the better of off and on, over those of auto: the whole run; medians of each micro-batch
    worst       the same for the worst of its micro-batches, by the better way of that micro-batch
    again       the least share of the run that one of several trials would have given, by the times of off and on

Processor time of one thread, so that other work on the machine counts less.

    OMP_NUM_THREADS=1 python benchmarks/packing_auto.py [-o FOLDER]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from lambda_grpo import ProcessTree, policy
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer

RATIOS = (1.0, 1.05, 1.1, 1.2, 1.4)
WAYS = ("off", "on", "auto")
MODELS = ((64, 2, 64), (128, 3, 512))  # width, layers, vocabulary


@dataclass(frozen=True)
class Kind:
    """Of micro-batches: rows, tokens of a prompt and of the longest completion; `tail`: most are far shorter."""

    name: str
    rows: int
    prompt: int
    completion: int
    tail: bool = False


KINDS = (
    Kind("short prompts", 16, 8, 72),
    Kind("long prompts", 8, 112, 32),
    Kind("padded with a tail", 16, 16, 128, tail=True),
    Kind("many short rows", 96, 4, 12),
)


@dataclass(frozen=True)
class MicroBatch:
    """As a trainer has it: (R, L) ids and mask, and the width of the completions."""

    ids: torch.Tensor
    mask: torch.Tensor
    width: int


def make_micro_batch(kind: Kind, ratio: float, vocabulary: int, seed: int) -> MicroBatch:
    """Rows that branch off earlier ones at random places, as deep as raw ÷ unique asks."""
    rng = np.random.default_rng(seed)
    ends = rng.lognormal(-1.2, 0.7, kind.rows) if kind.tail else rng.uniform(0.75, 1, kind.rows)
    ends[0] = 1.0
    lengths = kind.prompt + np.clip(ends * kind.completion, 1, kind.completion).astype(int)
    own = [rng.integers(1, vocabulary, n) for n in lengths]
    trunks = [int(rng.integers(i)) if i else 0 for i in range(kind.rows)]
    places = rng.uniform(0.5, 1, kind.rows)

    def rows(depth: float) -> list[np.ndarray]:
        made = [row.copy() for row in own]
        for i in range(1, kind.rows):
            cut = int(min(depth * places[i], 1.0) * min(len(made[trunks[i]]), len(made[i]) - 1))
            made[i][:cut] = made[trunks[i]][:cut]
        return made

    low, high = 0.0, 2.0 if ratio > 1 else 0.0
    for _ in range(16):
        middle = (low + high) / 2
        tree = ProcessTree.build(rows(middle))
        low, high = (middle, high) if tree.lengths.sum() < ratio * tree.unique_tokens else (low, middle)
    ids = torch.zeros(kind.rows, kind.prompt + kind.completion, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows(high)):
        ids[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row), 1
    return MicroBatch(ids, mask, kind.completion)


def make_trainer(folder: str, width: int, layers: int, vocabulary: int) -> Any:
    torch.manual_seed(0)
    tokenizer = policy.character_tokenizer("abc")
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
            num_attention_heads=width // 32, num_key_value_heads=width // 64, max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
        )
    )  # fmt: skip
    config = LambdaGRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=2, num_generations=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = LambdaGRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), config, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
    )  # fmt: skip
    trainer.model.train()
    return trainer


def update(trainer: Any, batch: MicroBatch, way: str) -> float:
    """Seconds of one forward and backward."""
    trainer.args.tree_packing = way
    trainer.model.zero_grad(set_to_none=True)
    started = time.process_time()
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, batch.ids, batch.mask, batch.width
    )
    (logps * torch.linspace(-1, 1, logps.shape[1])).sum().backward()
    return time.process_time() - started


def learn(trainer: Any, batch: MicroBatch) -> dict[str, Any]:
    """What `auto` learns when a run begins with this micro-batch, with the seconds that it takes."""
    trainer._learned = None
    (Path(trainer.args.output_dir) / "machine_speed_0.json").unlink(missing_ok=True)
    started = time.process_time()
    update(trainer, batch, "auto")
    return trainer._learned | {"seconds": time.process_time() - started}


def packed_by_auto(trainer: Any, batch: MicroBatch) -> bool:
    trainer._metrics["train"].clear()
    update(trainer, batch, "auto")
    return bool(trainer._metrics["train"]["tree/packed"][-1])


def run(trainer: Any, kind: Kind, vocabulary: int, turns: int, trials: int) -> dict[str, Any]:
    """One row of the table."""
    first = make_micro_batch(kind, 1.2, vocabulary, seed=100)
    batches = [make_micro_batch(kind, ratio, vocabulary, seed) for seed, ratio in enumerate(RATIOS)]
    choices = []  # one list a trial
    for _ in range(trials):
        learned = learn(trainer, first)
        choices.append([packed_by_auto(trainer, batch) for batch in batches])
    times: list[dict[str, list[float]]] = [{way: [] for way in WAYS} for _ in batches]
    for turn in range(turns + 1):
        for i, batch in enumerate(batches):
            for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
                times[i][way].append(update(trainer, batch, way))
    seconds = [{way: statistics.median(values[1:]) for way, values in batch.items()} for batch in times]
    total = {way: sum(batch[way] for batch in seconds) for way in WAYS}
    best = min(total["off"], total["on"])
    chosen = [
        sum(batch["on" if packs else "off"] for batch, packs in zip(seconds, choice, strict=True))
        for choice in choices
    ]
    return {
        "kind": kind.name, "seconds": seconds, "total": total, "packed": choices[-1], "learned": learned,
        "share": best / total["auto"], "again": best / max(chosen), "choices": choices,
        "worst": min(min(batch["off"], batch["on"]) / batch["auto"] for batch in seconds),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    gains = " ".join(f"{batch['off'] / batch['on']:.2f}" for batch in row["seconds"])
    total = " | ".join(f"{1e3 * row['total'][way]:,.0f}" for way in WAYS)
    shares = " | ".join(f"{row[name]:.3f}" for name in ("share", "worst", "again"))
    packed = " ".join("yes" if packs else "no" for packs in row["packed"])
    return f"| {row['model']} | {row['kind']} | {gains} | {packed} | {total} | {shares} |"


HEAD = (
    "| model | completions | off ÷ on, at raw ÷ unique " + " ".join(f"{ratio:g}" for ratio in RATIOS) + " "
    "| packed by auto | off, ms | on | auto | share | worst | again |\n|---|---|---|---|" + "--:|" * 6 + "\n"
)


def table(turns: int, trials: int) -> Iterator[dict[str, Any]]:
    for width, layers, vocabulary in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(folder, width, layers, vocabulary)
            for kind in KINDS:
                row = run(trainer, kind, vocabulary, turns, trials)
                row["model"] = f"{layers} × {width}, V = {vocabulary:,}"
                print(line(row), flush=True)
                yield row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--trials", type=int, default=2, help="how many times `auto` learns")
    parser.add_argument("-o", "--output", type=Path, help="folder for table.json and table.md")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    print(HEAD, end="")
    rows = list(table(args.turns, args.trials))
    print(f"least share of a run: {min(row['share'] for row in rows):.3f}")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.output / "table.md").write_text(HEAD + "".join(line(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
