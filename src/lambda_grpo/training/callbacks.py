"""What happens while a run trains: metrics.jsonl grows, the progress bar moves, the report is refreshed."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lambda_grpo import console
from lambda_grpo.errors import InputError, LambdaGRPOError
from lambda_grpo.report import ReportOptions, write_report
from lambda_grpo.training import run_folder

_REPORT_SHARE = 0.1
"""Refreshing the report may take at most this share of the time."""


class Log(TrainerCallback):
    """Writes metrics.jsonl, training and validation (`eval_…`) rows, and moves the progress bar."""

    def __init__(self, folder: Path, shown: console.Shown) -> None:
        self.folder, self.shown = folder, shown
        self.notes: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for name, title in (("reward", "reward"), ("eval_reward", "validation")):
            if logs.get(name) is not None:
                self.notes[name] = f"{title} {logs[name]:.2f}"
        if state.is_world_process_zero and ("loss" in logs or "eval_loss" in logs):
            run_folder.append_metrics(self.folder, {"step": state.global_step, **logs})
        self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._show(state)

    def _show(self, state: Any) -> None:
        self.shown(state.global_step, state.max_steps, " ".join(self.notes.values()))


class CheckMetric(TrainerCallback):
    """Stops at the first validation, before training, if it does not measure what decides on the best."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        wanted = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        if metrics.get(wanted) is None:
            known = ", ".join(sorted(name for name, value in metrics.items() if value is not None))
            raise InputError(
                f"metric_for_best_model is {args.metric_for_best_model!r}, but validation at step "
                f"{state.global_step} measured no such thing. It measured {known}"
            )


class Refresh(TrainerCallback):
    """Writes the run's report every N steps; reading all rollouts again each time, it grows slower.

    A refresh is passed over while the last one took more than a tenth of the time since. Training goes on
    whatever happens here.
    """

    def __init__(self, report: "ReportWriter", every: int) -> None:
        self.report, self.every = report, every
        self.seconds = 0.0
        self.ended = time.monotonic()
        self.due = self.passed_over = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps
        if not (due and state.is_world_process_zero):
            return
        self.due += 1
        started = time.monotonic()
        if self.seconds > _REPORT_SHARE * (started - self.ended):
            self.passed_over += 1
            return
        self.report.write()
        self.ended = time.monotonic()
        self.seconds = self.ended - started

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.passed_over:
            console.CONSOLE.print(
                f"note: of {self.due} refreshes of the report {self.passed_over} passed over, because one "
                f"takes {self.seconds:.1f} s: a larger report_every suits this run",
                highlight=False,
            )


class ReportWriter:
    """The report over some run folders; its tokenizer shows token ids as text.

    Args:
        runs: folders that hold rollouts.
        path: of the page.
        tokenizer: a folder written by `save_pretrained`; not used if no tokenizer.json is in it.
    """

    def __init__(self, runs: Sequence[Path], path: Path, tokenizer: Path) -> None:
        self.runs, self.path = runs, path
        exact = (tokenizer / "tokenizer.json").is_file()
        self.options = ReportOptions(tokenizer=str(tokenizer) if exact else None, skip_bad=True)
        self.failed = False

    def write(self) -> None:
        """Write the report. What goes wrong is said once, and is no reason to lose a training run."""
        try:
            write_report(self.runs, self.path, self.options)
        except (LambdaGRPOError, OSError) as error:
            if not self.failed:
                console.CONSOLE.print(f"warning: {self.path} was not written: {error}", markup=False)
            self.failed = True
