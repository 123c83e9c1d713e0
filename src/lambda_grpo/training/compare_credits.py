"""`lambda-grpo train --compare grpo,lambda_grpo`: one run per credit, all else the same, side by side.

The runs start from the same weights and see the same problems in the same order with the same seed. What they
sample is the same too until their weights differ. It is one seed: the intervals in the table cover the choice
of test problems. They do not say how much another seed would change.
"""

import gc
from dataclasses import asdict
from pathlib import Path

from lambda_grpo import console
from lambda_grpo.training import (
    asking_settings,
    curve_picture,
    multi_rank,
    results,
    start_or_resume,
)
from lambda_grpo.training.callbacks import ReportWriter
from lambda_grpo.training.options import TrainSettings
from lambda_grpo.training.results import Trained
from lambda_grpo.training.train import train
from lambda_grpo.whole_files import write_json, write_yaml


def compare(settings: TrainSettings) -> Path:
    """Train once with each credit; print and write the comparison; return its folder.

    Raises:
        InputError: as `train`.
    """
    run = start_or_resume.WantedRun(
        Path(settings.config.output_dir), settings.explicit, settings.options.overwrite, "compare.json"
    )
    if multi_rank.on_first(lambda: _finished(run)):
        console.run_finished(run.folder)
    else:
        with start_or_resume.opened(run):
            multi_rank.on_first(lambda: _begin(run))
            _train_each(run.folder, settings)
    multi_rank.on_first(lambda: _show(settings))
    return run.folder


def _finished(run: start_or_resume.WantedRun) -> bool:
    start_or_resume.check(run)
    return start_or_resume.finished(run)


def _begin(run: start_or_resume.WantedRun) -> None:
    write_yaml(run.folder / "config.yaml", run.settings)
    console.run_starts(run.folder, multi_rank.count())


def _train_each(folder: Path, settings: TrainSettings) -> None:
    compared: dict[str, Trained] = {}
    for credit in settings.credits:
        compared[credit] = train(settings.for_credit(credit), alone=False)
        gc.collect()  # trainers refer to themselves; the next one needs the memory
    if multi_rank.is_first():
        _write(folder, settings, compared)


def _write(folder: Path, settings: TrainSettings, compared: dict[str, Trained]) -> None:
    first = next(iter(compared.values()))
    content = {
        "settings": settings.explicit,
        "asked": first.asked,
        "before": asdict(first.before),
        "same_start": all(run.before == first.before for run in compared.values()),
        "credits": {
            credit: {
                "folder": run.folder.name,
                "after": asdict(run.after),
                "steps": run.steps,
                "model_step": run.model_step,
                "validation": asdict(run.validated) if run.validated else None,
                "seconds": run.seconds,
                "resumed_from": run.resumed_from,
            }
            for credit, run in compared.items()
        },
    }
    curve_picture.draw_comparison(
        folder / "compare.png",
        {credit: run.folder for credit, run in compared.items()},
        {credit: run.validated.best_step for credit, run in compared.items() if run.validated},
    )
    if settings.config.save_rollouts:
        folders = [run.folder for run in compared.values()]
        ReportWriter(folders, folder / "report.html", first.folder / "tokenizer").write()
    write_json(folder / "compare.json", content)  # last: the comparison is finished


def _show(settings: TrainSettings) -> None:
    folders = {c: Path(settings.for_credit(c).config.output_dir) for c in settings.credits}
    compared = {credit: results.read(folder) for credit, folder in folders.items()}
    more: dict[str, dict[str, str]] = {"best validation": {}, "seconds": {}}
    first = next(iter(compared.values()))
    columns = {"before": first.before}
    for credit, run in compared.items():
        title = f"{credit} after"
        columns[title] = run.after
        since = "" if run.resumed_from is None else f"\nfrom step {run.resumed_from} on"
        more["seconds"][title] = f"{run.seconds:.0f}{since}"
        if run.validated:
            more["best validation"][title] = (
                f"{run.validated.best_value:.3f}\nat step {run.validated.best_step}"
            )
    shown = {title: row for title, row in more.items() if row}
    console.table(columns, shown, asking_settings.in_words(first.asked))
