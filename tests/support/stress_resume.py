"""Kill `lambda-grpo train` again and again; what it leaves at the end must equal an uninterrupted run's.

    python tests/support/stress_resume.py [TRIALS] [SEED]

Each trial draws one of the SETTINGS and runs the same command until it ends by itself; its first attempts are
ended by `kill -9`, at a moment drawn over the run's time, or (every other trial) at a file operation in the
run folder drawn over all of them: so half-written and half-deleted files do occur. Weights, metrics (without
timings), rollouts and results are compared bit for bit. `tests/trl_engine/test_resume.py` runs three trials.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TASK = Path(__file__).parent / "varied_task.py"
COMMON = [
    "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=8", "--learning_rate=1e-3",
    f"--task={TASK}:Varied", "--warmup_steps=3", "--max_completion_length=6", "--use_cpu",
]  # fmt: skip
SETTINGS = {
    "plain": ["--max_steps=8", "--save_steps=3", "--train_problems=7"],  # several epochs
    "mid-buffer": [
        "--max_steps=9", "--save_steps=1", "--train_problems=12", "--num_iterations=2", "--steps_per_generation=4",
        "--gradient_accumulation_steps=2", "--logging_steps=2", "--beta=0.1", "--use_adaptive_entropy",
    ],
    "best": [
        "--max_steps=9", "--validate_every=2", "--validation_problems=4", "--train_problems=40",
        "--early_stopping_patience=3",
    ],
    "compare": ["--max_steps=4", "--save_steps=2", "--train_problems=40", "--compare=grpo,lambda_grpo"],
}  # fmt: skip
TIMINGS = ("step_time", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_step_time")
_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclass
class Attempt:
    """One process that trains: how it ended, after how many seconds and file operations in the run folder."""

    status: int
    seconds: float
    operations: int
    output: str


def command(model: Path, folder: Path, name: str) -> list[str]:
    return ["train", f"--model={model}", f"--output_dir={folder}", *COMMON, *SETTINGS[name]]


def attempt(
    arguments: list[str], folder: Path, *, seconds: float = 0, operation: int = 0, file: Path | None = None
) -> Attempt:
    """Train, and kill the process `seconds` after the run folder is begun, at a file operation in it, or once
    a file is there."""
    counter = folder.with_suffix(".count")
    child = [sys.executable, __file__, "--child", str(folder), str(operation), str(counter), *arguments]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(child, stdout=output, stderr=subprocess.STDOUT)
        begun = 0.0
        while process.poll() is None:
            begun = begun or (time.monotonic() if (folder / ".lock").exists() else 0.0)
            late = seconds and begun and time.monotonic() - begun > seconds
            if late or (file and file.exists()):
                process.kill()
                process.wait()
                break
            time.sleep(0.005)
        output.seek(0)
        operations = int(counter.read_text()) if counter.exists() else 0
        counter.unlink(missing_ok=True)
        took = time.monotonic() - begun if begun else 0.0
        return Attempt(process.returncode, took, operations, output.read().decode())


def child(folder: Path, operation: int, counter: Path, arguments: list[str]) -> int:
    """Train in this process; at the given file operation in the run folder it kills itself."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _OPERATIONS and str(args[0]).startswith(str(folder)):
            if event == "open" and "r" in str(args[1] or "w") and "+" not in str(args[1]):
                return
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    from lambda_grpo import cli

    sys.addaudithook(hook)
    status = cli.main(arguments)
    counter.write_text(str(count))
    return status


def content(folder: Path) -> dict[str, Any]:
    """What a run leaves, without what time and place decide."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pydict()
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: row[key] for key in row if key not in TIMINGS} for row in rows]
        elif path.name == "model.safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("results.json", "compare.json"):
            found[name] = without(json.loads(path.read_text()), ("seconds", "resumed_from", "settings"))
        elif path.is_file() and path.name != ".lock":
            found[name] = None  # that it is there
    return found


def without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    return value


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the files that differ, compared as text so that NaN equals NaN."""
    names = sorted({*first, *second})
    return [name for name in names if repr(first.get(name, "absent")) != repr(second.get(name, "absent"))]


def make_model(folder: Path) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from lambda_grpo.policy import character_tokenizer
    from lambda_grpo.tasks.thinking_sums import CHARACTERS

    tokenizer = character_tokenizer(CHARACTERS)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
            tie_word_embeddings=True, attention_dropout=0.1, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Stress:
    """Trials in one folder; the uninterrupted run of each setting is done once."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.model = make_model(folder / "model")
        self.whole: dict[str, tuple[Attempt, dict[str, Any]]] = {}

    def uninterrupted(self, name: str) -> tuple[Attempt, dict[str, Any]]:
        if name not in self.whole:
            run = self.folder / f"whole-{name}"
            done = attempt(command(self.model, run, name), run)
            assert done.status == 0, done.output
            self.whole[name] = done, content(run)
        return self.whole[name]

    def trial(self, number: int, name: str, kills: int) -> str:
        """Kill up to `kills` times, then let it end; raise if the outcome differs. Returns what happened."""
        whole, expected = self.uninterrupted(name)
        run = self.folder / f"trial-{number}-{name}"
        arguments = command(self.model, run, name)
        story = []
        for _ in range(kills):
            if number % 2:
                at = {"operation": self.random.randint(1, whole.operations * 3 // 4)}
            else:
                at = {"seconds": self.random.uniform(0, whole.seconds * 3 / 4)}
            killed = attempt(arguments, run, **at)
            story.append(" ".join(f"{key} {value:.4g}" for key, value in at.items()))
            if killed.status != -signal.SIGKILL:
                assert killed.status == 0, killed.output
                story[-1] += " (had ended)"
                break
        last = attempt(arguments, run)
        assert last.status == 0, last.output
        found = differences(expected, content(run))
        assert not found, f"trial {number} ({name}, killed at {story}): {found} differ\n{last.output}"
        resumed = last.output.split("goes on from the checkpoint of ")[1:]
        how = ", ".join(text.split("\n")[0] for text in resumed) or "the beginning, or had ended"
        shutil.rmtree(run)
        return f"{name}: killed at {'; '.join(story)}; last from {how}"


def main(trials: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(Path(folder), seed)
        for number in range(trials):
            name = list(SETTINGS)[number // 2 % len(SETTINGS)]
            print(f"trial {number + 1}: same. {stress.trial(number, name, kills=2)}", flush=True)
    print(f"{trials} trials: every one ended as if it had not been killed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:]))
    main(int(sys.argv[1]) if sys.argv[1:] else 20, int(sys.argv[2]) if sys.argv[2:] else 0)
