"""The update phase on trees: log-probs forward and backward, plain rows against packed trees, side by side.

Five ways over the same completions, taken in turns; medians, and the most memory each adds to the process:

    TRL         TRL's own `_get_per_token_logps_and_entropies`: on CPU its head projects every position
    kept        plain rows, `logits_to_keep` (`logps.completion_logps`)
    plain       plain rows with the chunked head that packed rows have: what is left is due to sharing alone
    prompt      one packed row that shares the prompt only, as PrefixGrouper and Unsloth do
    tree        one packed row that shares every common prefix

`work` is the plain rows' linear, attention and head work over the tree's, `gain` what `predicted_gain` says.
Completions branch off earlier ones at random places, deeper or shallower until raw ÷ unique tokens is as asked. A
Qwen2-like model of random weights, float32.

    python benchmarks/packing.py [--groups 8 16 64]
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from lambda_grpo import ProcessTree
from lambda_grpo.lm_head import Logits, chunk_rows, token_scores
from lambda_grpo.logps import completion_logps
from lambda_grpo.packing import pack, tree_logps
from lambda_grpo.packing_cost import predicted_gain, row_work, tree_work

VOCABULARY = 8_000
RATIOS = (1.5, 2, 4, 8)

Way = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A kind of group: tokens of the prompt and of the longest completion."""

    name: str
    prompt: int
    completion: int


SHAPES = (Shape("short prompt, deep sharing", 32, 224), Shape("long prompt", 384, 128))


def make_group(
    shape: Shape, size: int, ratio: float, seed: int = 0
) -> tuple[list[int], list[np.ndarray]] | None:
    """A prompt and completions of 3/4 to all of the shape's length, or None if no sharing gives the ratio."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, VOCABULARY, shape.prompt).tolist()
    lengths = rng.integers(3 * shape.completion // 4, shape.completion + 1, size)
    own = [rng.integers(1, VOCABULARY, n) for n in lengths]
    trunks = [int(rng.integers(i)) if i else 0 for i in range(size)]
    places = rng.uniform(0.5, 1, size)

    def completions(depth: float) -> list[np.ndarray]:
        rows = [row.copy() for row in own]
        for i in range(1, size):
            trunk = rows[trunks[i]]
            cut = int(min(depth * places[i], 0.97) * min(len(trunk), len(rows[i])))
            rows[i][:cut] = trunk[:cut]
        return rows

    def reached(depth: float) -> float:
        packed = pack(prompt, ProcessTree.build(completions(depth)))
        return packed.raw_tokens / packed.num_tokens

    low, high = 0.0, 2.0
    if not reached(low) <= ratio * 1.02 or not reached(high) >= ratio * 0.98:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < ratio else (low, middle)
    return prompt, completions(high)


def make_model(width: int, layers: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(width // 128, 1), max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def padded(prompt: list[int], completions: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of plain rows: one prompt, so that padding is on the right only."""
    width = max(map(len, completions))
    ids = torch.zeros(len(completions), len(prompt) + width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(completions):
        stop = len(prompt) + len(row)
        ids[i, :stop], mask[i, :stop] = torch.tensor([*prompt, *row]), 1
    return ids, mask


def ways(
    model: Qwen2ForCausalLM, plain: Qwen2ForCausalLM, prompt: list[int], rows: list[np.ndarray]
) -> dict[str, Way]:
    """Each gives (G, T) log-probs; `plain` shares the weights of `model` and keeps stock attention."""
    ids, mask = padded(prompt, rows)
    keep = ids.shape[1] - len(prompt)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    score = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # without its profiler

    def trl() -> torch.Tensor:
        return score(trainer, plain, ids, mask, keep)[0]

    def kept() -> torch.Tensor:
        return completion_logps(plain, [prompt] * len(rows), rows)

    def same_head() -> torch.Tensor:
        hidden = plain.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        real = mask[:, len(prompt) :].bool()
        chosen, targets = hidden[:, len(prompt) - 1 : -1][real], ids[:, len(prompt) :][real]
        logps, _ = token_scores(plain.lm_head, chosen, targets, Logits(), chunk_rows(VOCABULARY))
        return torch.zeros(real.shape).masked_scatter(real, logps)

    prompt_only = pack(prompt, ProcessTree.build(rows, contexts=range(len(rows))))
    tree = pack(prompt, ProcessTree.build(rows))
    return {
        "TRL": trl, "kept": kept, "plain": same_head,
        "prompt": lambda: tree_logps(model, prompt_only), "tree": lambda: tree_logps(model, tree),
    }  # fmt: skip


def update(model: torch.nn.Module, way: Way) -> float:
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    logps = way()
    (logps * torch.linspace(-1, 1, logps.shape[1])).sum().backward()
    return time.perf_counter() - started


def extra_memory(model: torch.nn.Module, way: Way) -> float:
    """MB that one forward and backward adds at its peak (Linux only)."""
    model.zero_grad(set_to_none=True)

    def resident(field: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier runs left
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = resident("VmRSS")
    update(model, way)
    return (resident("VmHWM") - before) / 1024


def compare(
    model: Qwen2ForCausalLM, plain: Qwen2ForCausalLM, shape: Shape, size: int, ratio: float, turns: int
) -> None:
    group = make_group(shape, size, ratio)
    if group is None:
        print(f"{shape.name:<28} {size:>3} {ratio:>5}   cannot be reached")
        return
    both = ways(model, plain, *group)
    memory = {name: extra_memory(plain, way) for name, way in both.items()}  # the first run warms up, too
    times: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(turns):
        for name, way in both.items():
            times[name].append(update(plain, way))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    packed = pack(group[0], ProcessTree.build(group[1]))
    gain = predicted_gain(packed, model.config)
    work = row_work(packed, model.config).flops / tree_work(packed, model.config).flops
    print(
        f"{shape.name:<28} {size:>3} {packed.raw_tokens:>7,} {packed.raw_tokens / packed.num_tokens:>5.2f}"
        + "".join(f" {1e3 * seconds[name]:>7.0f}" for name in both)
        + "  "
        + "".join(f" {seconds[name] / seconds['tree']:>6.2f}×" for name in list(both)[:-1])
        + f"  {work:>5.2f}× {gain:>5.2f}×  "
        + "".join(f" {memory[name]:>6.0f}" for name in both),
        flush=True,
    )


def construction() -> None:
    """Seconds per raw token to build the tree and pack it, from arrays."""
    rng = np.random.default_rng(0)
    for size, length in ((16, 4_000), (64, 1_000), (64, 8_000)):
        rows = [rng.integers(0, 150_000, length) for _ in range(size)]
        for i in range(1, size):
            cut = int(rng.integers(length))
            rows[i][:cut] = rows[rng.integers(i)][:cut]
        times = []
        for _ in range(15):
            started = time.perf_counter()
            packed = pack(range(500), ProcessTree.build(rows))
            times.append(time.perf_counter() - started)
        print(
            f"tree + packing of ({size}, {length:,}): {statistics.median(times) / (size * length):.1e} s per completion "
            f"token, {packed}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    construction()
    model, plain = make_model(args.width, args.layers), make_model(args.width, args.layers)
    for ours, theirs in zip(model.modules(), plain.modules(), strict=True):
        for name, parameter in theirs.named_parameters(recurse=False):
            setattr(ours, name, parameter)
    add_fused_lm_head(plain, outputs=("log_probs", "entropy"))
    print(
        f"{torch.get_num_threads()} threads, {args.layers} × {args.width}, V = {VOCABULARY}; ms, speed-up of the tree, MB\n"
        "shape                          G     raw ratio     TRL    kept   plain  prompt    tree     TRL    kept   plain  prompt "
        "  work   gain  memory: TRL, kept, plain, prompt, tree"
    )
    for shape in SHAPES:
        for size in args.groups:
            for ratio in args.ratios:
                compare(model, plain, shape, size, ratio, args.turns)


if __name__ == "__main__":
    main()
