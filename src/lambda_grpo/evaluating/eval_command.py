"""`lambda-grpo eval`: its options. `compare_models.py` and `benchmark_models.py`, with torch, do the rest."""

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError, missing_extra
from lambda_grpo.tasks import get_task
from lambda_grpo.tasks.asking import CHAT, PromptFormat
from lambda_grpo.tasks.benchmarks import BENCHMARKS, load_benchmark, named

DESCRIPTION = """\
How good models are at a task: greedy accuracy, accuracy over K samples per problem (avg@K), unbiased pass@k,
each with its 95% bootstrap interval over problems. One column per MODEL; of two models also the paired
difference, second minus first. An answer is right if its reward is at least 1.
With --benchmark: exact match on benchmarks, and its mean over them. A rerun goes on where the last one ended.
"""

SYSTEM_PROMPT = "Let's think step by step and output the final answer within \\boxed{}."
"""As in our OpenRS recipes."""

_DEFAULTS = {
    "task": ("thinking-sums", None),
    "split": ("test", None),
    "problems": (512, None),
    "samples": (4, 1),
    "temperature": (1.0, 0.0),
    "max_completion_length": (512, 4096),
    "engine": (None, "auto"),
    "system_prompt": ("", SYSTEM_PROMPT),
}
"""By name: for a task, for benchmarks; None where there is no such setting, or all problems are taken."""

_SAMPLING = ("max_completion_length", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs",
             "batch_size", "seed", "samples")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""

    def add(
        name: str, metavar: str, kind: Any, text: str, default: Any = None, also: Sequence[str] = ()
    ) -> None:
        flags = dict.fromkeys(
            f"--{each}" for known in (name, *also) for each in (known, known.replace("_", "-"))
        )
        usual, for_benchmarks = _DEFAULTS.get(name, (default, default))
        text += f" (default: {usual}"
        text += f"; with --benchmark {for_benchmarks})" if for_benchmarks != usual else ")"
        parser.add_argument(*flags, type=kind, default=default, metavar=metavar, help=text)

    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a local folder, a GGUF file, a Hub id, smollm2-135m, or `embedded` for our own policy",
    )
    parser.add_argument("--task", metavar="NAME", help="`lambda-grpo tasks` lists them (thinking-sums)")
    parser.add_argument("--split", choices=("test", "train"), help="of the task (default: test)")
    parser.add_argument(
        "--benchmark",
        type=str,
        metavar="NAME,…",
        help=f"{', '.join(BENCHMARKS)}, or all, from the Hub; NAME:PATH for a file or folder of your own",
    )
    parser.add_argument(
        "--problems", type=int, metavar="N", help="how many (default: 512, or all there are; benchmarks: all)"
    )
    add("samples", "K", int, "sampled completions per problem")
    parser.add_argument(
        "--pass_at", "--pass-at", type=_numbers, metavar="K,…", help="the k of pass@k (2, 4, 8, … and K)"
    )
    add("batch_size", "N", int, "completions generated at a time", 128)
    add("temperature", "T", float, "of the samples; with --benchmark 0 for the likeliest answer")
    add("top_p", "P", float, "nucleus sampling", 1.0)
    add("top_k", "N", int, "sample from the N likeliest tokens; 0 for all", 0)
    add("min_p", "P", float, "only tokens at least so likely, in shares of the likeliest; 0 for all", 0.0)
    add("repetition_penalty", "X", float, "on tokens that came before; 1 for none", 1.0)
    parser.add_argument(
        "--generation_kwargs",
        "--generation-kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="further fields of transformers' GenerationConfig, as `lambda-grpo train` takes them",
    )
    add("max_completion_length", "N", int, "longest completion", also=["max_new_tokens"])
    add("seed", "N", int, "of the problems and of the samples", 42)
    parser.add_argument(
        "--engine",
        choices=("auto", "transformers", "vllm"),
        help="with --benchmark: what generates (default: vllm if installed and on CUDA, else transformers)",
    )
    parser.add_argument(
        "--chat",
        choices=CHAT,
        default="auto",
        help="ask a prompt that is text as the user's message: on, off, or auto (the default): where the "
        "tokenizer has a chat template, unless the task says that its prompts are texts to be continued",
    )
    parser.add_argument(
        "--system_prompt",
        "--system-prompt",
        metavar="TEXT",
        help="the chat's system message (default: none; with --benchmark to reason step by step)",
    )
    parser.add_argument(
        "--chat_template_kwargs",
        "--chat-template-kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="what the chat template is given, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="the JSON file (default: eval-TASK-TIME.json); of benchmarks the folder (default: benchmarks)",
    )


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,8; got {text!r}") from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object such as {{"a": 1}}; got {text!r}')
    return found


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and write the results; the exit status.

    Raises:
        InputError: an option, task, model or output file that cannot be used, before any model is run.
    """
    if args.problems is not None and args.problems < 1:
        raise InputError(f"problems: got {args.problems}, expected at least 1")
    if args.system_prompt is None and args.chat == "off":
        args.system_prompt = ""
    for name, pair in _DEFAULTS.items():
        default, other = pair if args.benchmark is None else pair[::-1]
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif default is None and other is not None and name != "problems":
            needs = "a task" if args.benchmark else "--benchmark"
            raise InputError(f"--{name} goes with {needs} only: leave it away")
    return _run_task(args) if args.benchmark is None else _run_benchmarks(args)


def _run_task(args: argparse.Namespace) -> int:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    output = args.output or Path(f"eval-{re.sub('[^a-z0-9]+', '-', args.task.lower())}-{stamp}.json")
    _check_output(output)
    try:
        from lambda_grpo import console
        from lambda_grpo.evaluating import compare_models
        from lambda_grpo.evaluating.completions import Sampling
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error
    names = (*_SAMPLING, "temperature")
    sampling = Sampling(**{name: getattr(args, name) for name in names})
    setting = compare_models.Comparison(
        args.task, args.split, args.problems, sampling, args.pass_at, _prompt_format(args)
    )
    compare_models.compare(args.models, get_task(args.task), setting, output)
    console.CONSOLE.print(f"Every number, and the rewards of each problem, are in {output}")
    return 0


def _run_benchmarks(args: argparse.Namespace) -> int:
    folder = args.output or Path("benchmarks")
    _check_writable(folder / "results.json", folder)
    try:
        from lambda_grpo import console
        from lambda_grpo.evaluating import benchmark_models
        from lambda_grpo.evaluating.benchmark_questions import Asking
        from lambda_grpo.evaluating.completions import Sampling
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error
    greedy = args.temperature == 0
    temperature = 1.0 if greedy else args.temperature
    sampling = Sampling(**{name: getattr(args, name) for name in _SAMPLING}, temperature=temperature)
    asking = Asking(sampling, greedy, _prompt_format(args), args.engine, args.pass_at)
    chosen = [load_benchmark(name, path) for name, path in named(args.benchmark).items()]
    chosen = [benchmark.first(args.problems) for benchmark in chosen]
    benchmark_models.compare(args.models, chosen, asking, folder)
    console.CONSOLE.print(
        f"Every number is in {folder / 'results.json'}, each answer in the folders beside it"
    )
    return 0


def _prompt_format(args: argparse.Namespace) -> PromptFormat:
    return PromptFormat(args.chat, args.system_prompt, args.chat_template_kwargs)


def _check_output(path: Path) -> None:
    if path.exists():
        raise InputError(
            f"output {str(path)!r} is already there, and nothing is overwritten: name another file with "
            "--output, or remove it yourself"
        )
    _check_writable(path, path.parent)


def _check_writable(path: Path, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"output {str(path)!r}: {str(folder)!r} is no folder that can be written to")
