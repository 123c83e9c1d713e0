"""Several models on several benchmarks: exact match with intervals, and its mean over benchmarks.

A folder holds MODEL/BENCHMARK.jsonl, each answer as it came (`answer_log.py`), and results.json. A rerun of
the same command answers what is missing, and loads no model that has answered all.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, policy
from lambda_grpo.errors import InputError
from lambda_grpo.evaluating.answer_log import Answered
from lambda_grpo.evaluating.benchmark_questions import Asking, Sheet, lay_out
from lambda_grpo.evaluating.completions import Sampling, complete
from lambda_grpo.evaluating.completions_vllm import VLLMModel
from lambda_grpo.evaluating.evaluation import check_pass_at, usual_pass_at
from lambda_grpo.evaluating.intervals import Floats, bootstrap, bootstrap_mean, pass_at_k
from lambda_grpo.tasks.asking import in_words
from lambda_grpo.tasks.benchmarks import BENCHMARKS, Benchmark
from lambda_grpo.whole_files import write_json


class _Model(Protocol):
    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], *, sample: bool
    ) -> tuple[list[str], list[int]]: ...


def compare(models: Sequence[str], benchmarks: Sequence[Benchmark], asking: Asking, folder: Path) -> None:
    """Answer what is missing in `folder`, print the table, and write results.json there.

    Raises:
        InputError: greedy with several samples, a k above their number, a model that cannot be loaded,
            transformers' settings for vLLM, what `lay_out` refuses.
    """
    transformers_logging.disable_progress_bar()
    if asking.greedy and asking.sampling.samples > 1:
        raise InputError(
            f"samples is {asking.sampling.samples}, but temperature 0 gives the same answer each time: set "
            "a temperature above 0, or samples to 1"
        )
    pass_at = usual_pass_at(asking.sampling.samples) if asking.pass_at is None else asking.pass_at
    check_pass_at(pass_at, asking.sampling.samples)
    if asking.engine == "auto":
        with_vllm = find_spec("vllm") is not None and torch.cuda.is_available()
        asking = replace(asking, engine="vllm" if with_vllm else "transformers")
    if asking.engine == "vllm" and asking.sampling.generation_kwargs:
        raise InputError(
            "generation_kwargs are transformers' settings, and vLLM generates: set --engine transformers"
        )
    sheets = {model: lay_out(model, benchmarks, asking, folder) for model in models}
    for model, own in sheets.items():
        _answer(model, own, asking)
    results = {
        **asdict(asking),
        "pass_at": list(pass_at),
        "benchmarks": {
            each.name: {"source": each.source, "unparsable": each.unparsable()} for each in benchmarks
        },
        "models": {model: _results(own, asking, pass_at) for model, own in sheets.items()},
        "versions": {name: version(name) for name in ("lambda-grpo", "torch", "transformers")},
    }
    write_json(folder / "results.json", results)
    _show(sheets, asking)


def _answer(model: str, sheets: Sequence[Sheet], asking: Asking) -> None:
    """Let the model answer what is missing on its sheets."""
    to_do = [(sheet, row) for sheet in sheets for row in sheet.missing()]
    if not to_do:
        return
    sampling = asking.sampling
    longest = (
        max(len(sheet.prompts[row // sheet.samples]) for sheet, row in to_do) + sampling.max_completion_length
    )
    folder = policy.model_folder(model)
    network = VLLMModel(folder, longest) if asking.engine == "vllm" else _Transformers(folder)
    total = sum(len(sheet.prompts) * sheet.samples for sheet in sheets)
    done = total - len(to_do)
    with console.progress(f"Answering: {model}") as shown:
        shown(done, total)
        for sheet in sheets:
            for rows in _batches(sheet, sampling.batch_size):
                sheet.log.add(_answered(network, sheet, rows, asking))
                done += len(rows)
                rewards = [each.reward for each in sheet.log.done.values()]
                shown(done, total, f"{sheet.benchmark.name} {sum(rewards) / len(rewards):.2f}")


def _batches(sheet: Sheet, size: int) -> list[list[int]]:
    """The missing rows by batch. Batches begin at the same rows whatever is missing: a rerun repeats them."""
    batches: dict[int, list[int]] = {}
    for row in sheet.missing():
        batches.setdefault(row // size, []).append(row)
    return list(batches.values())


def _answered(network: _Model, sheet: Sheet, rows: Sequence[int], asking: Asking) -> list[Answered]:
    seeds = [zlib.crc32(f"{asking.sampling.seed} {sheet.benchmark.name} {row}".encode()) for row in rows]
    prompts = [sheet.prompts[row // sheet.samples] for row in rows]
    texts, tokens = network.complete(prompts, asking.sampling, seeds, sample=not asking.greedy)
    return [
        Answered(
            row, text, count, sheet.benchmark.score(sheet.benchmark.problems[row // sheet.samples], text)
        )
        for row, text, count in zip(rows, texts, tokens, strict=True)
    ]


class _Transformers:
    """A model run by transformers; a batch is drawn with the seed of its first row."""

    def __init__(self, model: str) -> None:
        self.model, self.tokenizer = policy.load_policy(model)
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.model.eval()

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], *, sample: bool
    ) -> tuple[list[str], list[int]]:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seeds[0])
            return complete(self.model, self.tokenizer, prompts, sampling, sample=sample)


def _results(sheets: Sequence[Sheet], asking: Asking, pass_at: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for sheet in sheets:
        rewards, tokens = sheet.array("reward"), sheet.array("tokens")
        right, tried = rewards.sum(axis=1), np.full(len(rewards), sheet.samples)
        found[sheet.benchmark.name] = {
            "exact_match": asdict(bootstrap(rewards.mean(axis=1))),
            "pass_at": {k: asdict(bootstrap(pass_at_k(right, tried, k))) for k in pass_at},
            "problems": len(rewards),
            "mean_tokens": float(tokens.mean()),
            "cut_off": float((tokens >= asking.sampling.max_completion_length).mean()),
        }
    mean = asdict(bootstrap_mean(_scores(sheets)))
    return {"asked": sheets[0].asked, "benchmarks": found, "mean": mean}


def _scores(sheets: Sequence[Sheet]) -> list[Floats]:
    """Per benchmark (P,): the share of each problem's answers that are right."""
    return [sheet.array("reward").mean(axis=1) for sheet in sheets]


def _show(sheets: Mapping[str, Sequence[Sheet]], asking: Asking) -> None:
    models = list(sheets)
    names = [sheet.benchmark.name for sheet in sheets[models[0]]]
    scores = {model: _scores(own) for model, own in sheets.items()}
    if len(models) == 2:
        first, second = scores.values()
        scores["second − first, paired"] = [b - a for a, b in zip(first, second, strict=True)]
    rows = {
        name: [format(bootstrap(own[i]), _spec(model, models)) for model, own in scores.items()]
        for i, name in enumerate(names)
    }
    if len(names) > 1:
        rows[f"mean of {len(names)}"] = [
            format(bootstrap_mean(own), _spec(model, models)) for model, own in scores.items()
        ]
    console.grid(list(scores), rows)
    sampling = asking.sampling
    how = "greedy" if asking.greedy else f"avg@{sampling.samples}"
    lines = [
        f"Exact match, {how}, {sampling.in_words(sampled=not asking.greedy)}; 95% intervals over problems",
        *console.asked({model: in_words(own[0].asked) for model, own in sheets.items()}),
    ]
    for sheet in sheets[models[0]]:
        given, whole = len(sheet.prompts), BENCHMARKS[sheet.benchmark.name].size
        if given != whole:
            lines.append(f"{sheet.benchmark.name}: {given} problems, where the whole has {whole}")
    for line in lines:
        console.CONSOLE.print(line, markup=False, highlight=False)


def _spec(column: str, models: Sequence[str]) -> str:
    return ".3f" if column in models else "+.3f"
