"""Packing fails on one of two ranks: all run plainly, or training ends; no rank waits for another."""

import json
from pathlib import Path

import pytest
from jobs import Jobs

CALL = "disagreeing_worker:main"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("fault", ["before", "probe"])
def test_all_ranks_run_plainly_if_one_cannot_pack(jobs: Jobs, tmp_path: Path, kind: str, fault: str) -> None:
    job = jobs.start(tmp_path, kind, fault, call=CALL)
    assert job.wait(120) == 0, job.output()
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for report in reports:
        assert report["steps"] == 3
        assert set(report["packed"]) == {0.0}
    # In the probe all agree at once; what one rank finds in its own rows is its own.
    said = [len([m for m in report["messages"] if "planted" in m]) for report in reports]
    assert said == ([0, 1] if fault == "before" else [1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("fault", ["none", "proof", "slow"])
def test_ranks_try_both_ways_together_and_decide_alike(
    jobs: Jobs, tmp_path: Path, kind: str, fault: str
) -> None:
    """`auto`: on one rank the first micro-batch comes out wrong, or packing does not pay; or neither."""
    job = jobs.start(tmp_path, kind, fault, call=CALL)
    assert job.wait(120) == 0, job.output()
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    learned = [json.loads((tmp_path / "out" / f"machine_speed_{rank}.json").read_text()) for rank in range(2)]
    for report in reports:
        assert report["steps"] == 3
        assert set(report["packed"]) == {float(fault == "none")}
    assert [bool(found["reason"]) for found in learned] == [False, fault == "proof"]


@pytest.mark.slow
def test_training_ends_if_a_packed_pass_fails_on_one_rank(jobs: Jobs, tmp_path: Path) -> None:
    """Before, that rank went on with plain rows, and with sharded weights the other waited for it."""
    job = jobs.start(tmp_path, "fsdp2", "pass", call=CALL)
    assert job.wait(120) != 0
    assert "RuntimeError: planted" in job.output()
