"""TRL's trainer, resumed exactly: a killed run that goes on from a checkpoint ends as if never killed.

transformers restores weights, optimiser, scheduler, random numbers and its own state; TRL its adaptive
entropy. This module keeps what both leave out, in one file per process in each checkpoint:

- completions that are still to be learnt from (`steps_per_generation` or `num_iterations` above 1), our
  credits included, and `_step`, which says which of them come next;
- what was measured since the last logged line (`logging_steps` above 1);
- the sampler's random numbers: TRL draws another order of the problems in each epoch;
- whether tree packing was given up, and the machine's speed, by which `auto` decides what to pack: packed
  passes and plain ones differ by rounding;
- whether sampling on the tree was given up, and on a GPU which way of sampling was faster;
- what `branch_depths: auto` learned, by which it chooses where to fork;
- the reference model, where `sync_ref_model` changes it.

Not kept: the random state of vLLM, and that of an iterable data set. Tested with trl 1.16.0 and
transformers 5.24.0 and 5.10.4.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from trl import GRPOTrainer

from lambda_grpo.engines.trl import checkpoint_folders
from lambda_grpo.errors import InputError, LambdaGRPOError
from lambda_grpo.rollouts.writing import set_rollouts_aside, truncate_rollouts

_log = logging.getLogger(__name__)
# What transformers and TRL count during a run and leave out of their checkpoints.
_COUNTERS = ("_step", "_current_train_step_time", "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")


class KeepsState(GRPOTrainer):
    """`GRPOTrainer` whose parts say what of theirs a checkpoint must hold, each of its own.

    A part extends `kept_state` and `load_kept_state`, calls `super()`, and names no attribute of another.
    Values are what `torch.load(weights_only=True)` reads: tensors, numbers, text, lists, dictionaries.
    """

    def kept_state(self) -> dict[str, Any]:
        """What goes into a checkpoint, by the part's name."""
        return {}

    def load_kept_state(self, kept: Mapping[str, Any]) -> None:
        """Put back what `kept_state` returned when the checkpoint was written."""


class Resumable(KeepsState):
    """`GRPOTrainer` whose checkpoints are sealed when whole, and resumed exactly.

    `train(resume_from_checkpoint=True)` takes the last whole checkpoint in `output_dir`.
    """

    _sampler: Any = None
    _epoch = 0
    _epoch_start: torch.Tensor | None = None  # the sampler's random state when this epoch began
    _kept: Mapping[str, Any] | None = None  # of the checkpoint to go on from, until it is in force
    _stopped_early = False

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not resume_from_checkpoint:
            self._prepare_rollouts(None)
            return super().train(None, *args, **kwargs)
        checkpoint = self._checkpoint(resume_from_checkpoint)
        self._read(checkpoint)
        on_start, self.args.eval_on_start = self.args.eval_on_start, False  # the start is past
        try:
            return super().train(str(checkpoint), *args, **kwargs)
        finally:
            self.args.eval_on_start = on_start
            self._kept, self._stopped_early = None, False

    def _checkpoint(self, wanted: Any) -> Path:
        if wanted is not True:
            return Path(wanted)
        folder = Path(self.args.output_dir)
        found = checkpoint_folders.last_whole(folder)
        if found is None:
            others = ", ".join(path.name for path in checkpoint_folders.find(folder)) or "none at all"
            raise InputError(
                f"resume_from_checkpoint: {str(folder)!r} holds no whole checkpoint (half-written, or not "
                f"from LambdaGRPOTrainer: {others}). Train from the start, or give a checkpoint's path"
            )
        return found

    def _read(self, checkpoint: Path) -> None:
        path = checkpoint / _name(self.accelerator.process_index)
        if path.exists():
            self._kept = torch.load(path, map_location="cpu", weights_only=True)
            self._check_processes(checkpoint, self._kept["processes"])
        else:
            _log.warning("%s is missing: training goes on, but not exactly as it would have", path)
        self._prepare_rollouts(checkpoint)
        if self.args.restore_callback_states_from_checkpoint:
            state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
            control = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {})
            ended = control.get("should_training_stop", False)
            self._stopped_early = ended and state["global_step"] < state["max_steps"]

    def _prepare_rollouts(self, checkpoint: Path | None) -> None:
        """Keep in rollouts/ what was sampled up to a checkpoint of this folder; set aside another run's."""
        folder = Path(self.args.output_dir)
        self.accelerator.wait_for_everyone()  # another rank may still write what was sampled before
        if self.args.save_rollouts and self.accelerator.is_main_process:
            if checkpoint and checkpoint.resolve() in checkpoint_folders.find(folder.resolve()):
                truncate_rollouts(folder, checkpoint_folders.step_of(checkpoint))
            elif aside := set_rollouts_aside(folder):
                _log.warning("output_dir holds the rollouts of another run: they are in %s now", aside)
        self.accelerator.wait_for_everyone()

    def _check_processes(self, checkpoint: Path, before: int) -> None:
        now = self.accelerator.num_processes
        if before != now:
            raise InputError(
                f"checkpoint {str(checkpoint)!r}: got {now} processes, expected {before}, as when it was "
                "written: a step takes other completions with another number. Start as many, or train anew "
                "from its weights: give it as the model"
            )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        trained = super()._init_training_state(*args, **kwargs)
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir():  # the folder may have been moved
            self.state.best_model_checkpoint = str(best)
        return trained

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._stopped_early or self.state.global_step >= self.state.max_steps:
            # The checkpoint was the last one; transformers would do one more step.
            self.control.should_training_stop = True
            return
        self._epoch = kwargs["epoch"]
        if self._kept is not None and self._kept["sampler"] is not None:
            same = self._epoch == self._kept["epoch"]  # or the checkpoint was the last step of an epoch
            self._sampler.generator.set_state(self._kept["epoch_start" if same else "sampler"])
        self._epoch_start = self._sampler_state()
        super()._run_epoch(*args, **kwargs)

    def _sampler_state(self) -> torch.Tensor | None:
        generator = getattr(self._sampler, "generator", None)  # only if it shuffles
        return None if generator is None else generator.get_state()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.args.device == torch.device("cpu", 0):  # of several processes; torch can load nothing onto it
            self.args.__dict__["_setup_devices"] = torch.device("cpu")
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: Any) -> None:
        """The last that transformers restores before the first step."""
        super()._load_rng_state(checkpoint)
        if self._kept is None:
            return
        self.load_kept_state(send_to_device(dict(self._kept), self.accelerator.device))
        self._kept = None

    def load_kept_state(self, kept: Mapping[str, Any]) -> None:
        super().load_kept_state(kept)
        for name, value in kept["counters"].items():
            setattr(self, name, value)
        self._buffered_inputs = kept["buffered_inputs"]
        for mode, metrics in kept["metrics"].items():
            self._metrics[mode].clear()
            self._metrics[mode].update(metrics)
        for column in ("prompt", "completion", "advantages"):
            self._logs[column].extend(kept["logs"].get(column, []))
        for column in ("rewards", "extra"):
            for name, values in kept["logs"].get(column, {}).items():
                self._logs[column][name].extend(values)
        if kept["ref_model"] is not None:
            self.ref_model.load_state_dict(kept["ref_model"])

    def kept_state(self) -> dict[str, Any]:
        every = self.args.steps_per_generation * self.num_iterations
        moving = self.args.sync_ref_model and self.ref_model is not None
        logs = {column: rows for column, rows in self._logs.items() if column != "images"}
        return super().kept_state() | {
            "processes": self.accelerator.num_processes,
            "counters": {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)},
            "epoch": self._epoch,
            "epoch_start": self._epoch_start,
            "sampler": self._sampler_state(),
            "buffered_inputs": self._buffered_inputs if self._step % every else None,
            "metrics": _plain(self._metrics),
            "logs": _plain(logs) if self.log_completions else {},
            "ref_model": self.accelerator.unwrap_model(self.ref_model).state_dict() if moving else None,
        }

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self.kept_state(), Path(output_dir) / _name(self.accelerator.process_index))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        # Delete no checkpoint before this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                (checkpoint / checkpoint_folders.SEAL).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and not self.args.save_only_model:
                checkpoint_folders.seal(checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                shutil.rmtree(checkpoint, ignore_errors=True)
            if isinstance(error, torch.OutOfMemoryError | torch.distributed.DistError):
                raise  # nothing to do with the disk
            last = checkpoint_folders.last_whole(folder)
            good = f"{last.name} is good" if last else "there is no earlier one"
            raise LambdaGRPOError(
                f"the checkpoint {str(checkpoint)!r} could not be written: {error}. Make room, or let the "
                f"folder be written to, and resume: {good}"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoint_folders.rotate(folder, limit or 0, {checkpoint, Path(best) if best else checkpoint})


def _name(rank: int) -> str:
    return f"lambda_grpo_state_{rank}.pt"


def _plain(value: Any) -> Any:
    """Dictionaries, lists, numbers and text: what can be read back without running code."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return [_plain(inner) for inner in value]
    except TypeError:
        return str(value)
