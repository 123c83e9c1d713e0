"""One of two ranks of `test_packing_ranks.py`: packing fails on the second of them only, or does not pay there."""

import json
import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from processes_worker import assert_sharded, force_fsdp2, make

from lambda_grpo import InputError
from lambda_grpo.engines.trl import packing
from lambda_grpo.engines.trl.packing_trial import Trial
from lambda_grpo.packing.cost import Calibration, WayCost
from lambda_grpo.packing.proof import Proof


def plant(fault: str) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("planted")

    original, calls = packing.tree_logps_and_entropies, []

    def fail_in_training(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:  # the first is the probe's
            raise RuntimeError("planted")
        return original(*args, **kwargs)

    if fault == "before":
        packing.check_dropout = refuse
    elif fault == "proof":
        proof = Trial.proof
        wrong = Proof((1.0, 1.0), (0.0, 0.0), (0.1, 0.1))
        Trial.proof = lambda *args: proof(*args) and wrong  # type: ignore[method-assign]
    elif fault == "slow":
        Trial.calibration = timed_with(tree=1e6)  # type: ignore[method-assign]
    elif fault == "probe":
        probe = packing.why_not_packed
        packing.why_not_packed = lambda *args, **kwargs: probe(*args, **kwargs) or "planted"
    elif fault == "pass":
        packing.tree_logps_and_entropies = fail_in_training


def timed_with(tree: float) -> Any:
    """`Trial.calibration`, with another result: how many times slower than guessed packed rows are."""
    calibration = Trial.calibration

    def timed(*args: Any) -> Calibration:
        calibration(*args)
        return Calibration(1e10, WayCost(factor=1e3), WayCost(factor=tree))

    return timed


def main(given: str, kind: str, fault: str) -> None:
    folder, messages = Path(given), []
    if kind == "fsdp2":
        force_fsdp2()
    state = PartialState(cpu=True)
    mode = "auto" if fault in ("proof", "slow", "none") else "on"
    if mode == "auto":
        Trial.calibration = timed_with(tree=1.0)  # type: ignore[method-assign]
    if state.process_index == 1:
        plant(fault)
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    packing._logger.addHandler(handler)
    trainer = make(folder / "out", state.num_processes, tree_packing=mode)
    trainer.train()
    if kind == "fsdp2":
        assert_sharded(trainer)
    packed = [row["tree/packed"] for row in trainer.state.log_history if "tree/packed" in row]
    report = {"packed": packed, "messages": messages, "steps": trainer.state.global_step}
    (folder / f"rank-{state.process_index}.json").write_text(json.dumps(report))
