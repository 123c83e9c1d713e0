"""A whole training step of a real language model: sampling, scoring, update; TRL's own trainer beside ours.

Both trainers get the same model, prompts, seed and settings: 64 completions in one micro-batch, float32, no gradient
checkpointing, AdamW. Ours runs as it does by default. Each trainer runs in a process of its own, TRL first and then ours, and
the peak is that process's largest resident memory, the model and the optimizer's state included. The first step
warms up; the figures are the median of the others. Both trainers draw their own completions, so the numbers of
sampled tokens differ a little; they are in the table.

    python benchmarks/llm_step.py MODEL [-o FOLDER] [--steps 2] [--rows largest:48:8 word-sums:48:8 …]

MODEL is a local folder, such as that of SmolLM2-135M-Instruct. A row is TASK:NEW:G: prompts of the task
(`largest`, a chat of about 50 tokens, or `word-sums`, about 200 tokens of which all prompts share three worked
examples), at most NEW new tokens, G completions a prompt. Rows that FOLDER has are not run again.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMPLETIONS = 64
ROWS = [
    f"{task}:{new}:{size}" for new, size in ((48, 8), (48, 16), (128, 8)) for task in ("largest", "word-sums")
]
PHASES = ("sampling", "scoring", "update", "step")


def measure(model: str, trainer: str, row: str, steps: int) -> dict[str, Any]:
    """Train `steps` + 1 steps here and return the medians, in seconds, of all steps but the first."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
    from lambda_grpo.tasks import Problem, get_task
    from lambda_grpo.tasks.asking import Asked, PromptFormat

    name, new, group = row.split(":")[0], *map(int, row.split(":")[1:])
    tokenizer = AutoTokenizer.from_pretrained(model)
    task = Asked(get_task(name), PromptFormat(), tokenizer)
    problems = task.problems("train", COMPLETIONS // group * (steps + 1), 0)
    seen: dict[str, list[float]] = {name: [] for name in (*PHASES, "prompt", "tokens")}

    def reward(completions: list[Any], answer: list[int], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [
            task.score(Problem("", a), text) or 0.1 * (i % 2)  # never all equal: there is a gradient
            for i, (text, a) in enumerate(zip(texts, answer, strict=True))
        ]

    base = {"trl": GRPOTrainer, "ours": LambdaGRPOTrainer}[trainer]

    class Timed(base):  # type: ignore[valid-type,misc]
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            out = super()._generate(*args, **kwargs)
            seen["sampling"].append(time.perf_counter() - started)
            seen["prompt"].append(statistics.mean(map(len, out[0])))
            seen["tokens"].append(sum(map(len, out[1])))
            return out

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            out = super()._generate_and_score_completions(*args, **kwargs)
            seen["scoring"].append(time.perf_counter() - started - seen["sampling"][-1])
            return out

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["step"].append(time.perf_counter() - self.started)
            seen["update"].append(seen["step"][-1] - seen["sampling"][-1] - seen["scoring"][-1])

    config = GRPOConfig if trainer == "trl" else LambdaGRPOConfig
    with tempfile.TemporaryDirectory() as folder:
        args = config(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False, report_to="none", disable_tqdm=True,
            per_device_train_batch_size=COMPLETIONS, num_generations=group, max_completion_length=new, max_steps=steps + 1,
            temperature=0.75, learning_rate=1e-6, gradient_checkpointing=False, save_strategy="no", logging_steps=1000, seed=0,
        )  # fmt: skip
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run = Timed(
            policy, reward_funcs=reward, args=args, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems]),
            callbacks=[Clock()],
        )  # fmt: skip
        run.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    medians = {name: statistics.median(values[1:]) for name, values in seen.items()}
    shape = {
        "threads": torch.get_num_threads(),
        "loaded_gb": before * 1024 / 1e9,
        "peak_gb": peak * 1024 / 1e9,
    }
    return {"row": row, "trainer": trainer, **medians, **shape}


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| task, new tokens, G | prompt tokens | trainer | sampling | scoring | update | step | peak memory | sampled tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(key.split()[0] for key in found):
        both = {name: found.get(f"{row} {name}") for name in ("trl", "ours")}
        for name, f in both.items():
            if f:
                seconds = " | ".join(f"{f[phase]:.1f} s" for phase in PHASES)
                lines.append(
                    f"| {row.replace(':', ', ')} | {f['prompt']:.0f} | {name} | {seconds} | {f['peak_gb']:.1f} GB | {f['tokens']:.0f} |"
                )
        if all(both.values()):
            trl, ours = both["trl"], both["ours"]
            ratios = " | ".join(
                f"{trl[p] / ours[p]:.1f} ×" if ours[p] > 0.05 else "–"
                for p in ("sampling", "scoring", "update", "step")
            )
            lines.append(f"| | | TRL ÷ ours | {ratios} | {ours['peak_gb'] / trl['peak_gb']:.2f} of TRL's | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of a causal language model with a chat template")
    parser.add_argument("-o", "--output", type=Path, help="folder for llm_step.json and llm_step.md")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that warms up")
    parser.add_argument("--rows", nargs="+", default=ROWS, help="TASK:NEW:G")
    parser.add_argument("--one", choices=["trl", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.model, args.one, args.rows[0], args.steps)))
        return
    output = args.output and args.output / "llm_step.json"
    found = json.loads(output.read_text()) if output and output.exists() else {}
    for row in args.rows:
        for trainer in ("trl", "ours"):
            key = f"{row} {trainer}"
            if key in found:
                continue
            print(f"{key} …", file=sys.stderr, flush=True)
            command = [
                sys.executable,
                __file__,
                args.model,
                "--one",
                trainer,
                "--rows",
                row,
                "--steps",
                str(args.steps),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode > 0:
                sys.exit(f"{key} failed:\n{done.stderr[-3000:]}")
            if (
                done.returncode < 0
            ):  # a signal; the system kills a process that wants more memory than there is
                print(f"{key} was ended by signal {-done.returncode}: not enough memory?", file=sys.stderr)
                continue
            found[key] = json.loads(done.stdout.splitlines()[-1])
            if output:
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(found, indent=1) + "\n")
                output.with_suffix(".md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
