"""Jobs of several processes, started by torchrun's agent, without importing everything again for each process.

Run as a program this imports lambda-grpo once, and forks a job for each line it reads: a JSON object with
`call`, what each process calls (`module:function`, which may return an exit status), its `arguments`, the number of
`processes`, the `log` and more `environment`.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any


class Jobs:
    """Starts jobs in a folder; ends what it started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        self.server: Any = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self, *arguments: Any, call: str = "jobs:command", processes: int = 2, **environment: str
    ) -> "Job":
        self.started += 1
        log = self.folder / f"job-{self.started}.log"
        asked = {"call": call, "arguments": [str(a) for a in arguments], "processes": processes}
        print(
            json.dumps(asked | {"log": str(log), "environment": environment}),
            file=self.server.stdin,
            flush=True,
        )
        return Job(int(self.server.stdout.readline()), log)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(30)


class Job:
    """A started job: the process group `pid`."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log

    def wait(self, seconds: float = 120) -> int:
        """Its exit status; fails where it takes longer, and then kills it."""
        until = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"still running after {seconds} s:\n{self.output()}")
            time.sleep(0.05)
        return int(self.log.with_suffix(".status").read_text())

    def alive(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        while self.alive():
            time.sleep(0.05)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def command(*arguments: str) -> int:
    """`lambda-grpo …` on one of the processes."""
    from lambda_grpo import cli

    return cli.main(arguments)


def sharded(state_dict_type: str, *arguments: str) -> int:
    """The same with FSDP2: each process holds a share of the weights, to be saved as `state_dict_type` says."""
    from processes_worker import assert_sharded, force_fsdp2

    from lambda_grpo.training import train

    force_fsdp2(state_dict_type)
    original = train._Trainer.train

    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        assert_sharded(self)
        return output

    train._Trainer.train = checked
    return command(*arguments)


def different_rows() -> None:
    """One process holds three completions, the other four; then one has a tool mask."""
    from accelerate import Accelerator

    from lambda_grpo import InputError
    from lambda_grpo.engines.trl.ranks import check_agreement

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    check_agreement(accelerator, 3, False)
    for rows, masked in ((3 + rank, False), (3, rank == 1)):
        try:
            check_agreement(accelerator, rows, masked)
        except InputError as error:
            print(f"{rank} says: {error}", flush=True)


def process(call: str, *arguments: str) -> None:
    """What `python -m` would do: an exit status, or a traceback."""
    try:
        module, _, name = call.partition(":")
        status = getattr(import_module(module), name)(*arguments)
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)


def job(asked: dict[str, Any]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.update(asked["environment"])
    config = LaunchConfig(
        1, 1, asked["processes"], run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, process)(asked["call"], *asked["arguments"])
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def main() -> None:
    from lambda_grpo.training import compare_credits, settings

    assert compare_credits  # imported for the forks to come
    assert settings
    from lambda_grpo.policy import embedded

    embedded.PRETRAINING = embedded.Pretraining(steps=30, batch_size=32)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # jobs that have ended leave nothing behind
    for line in sys.stdin:
        asked = json.loads(line)
        if pid := os.fork():
            os.setpgid(pid, pid)
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with open(asked["log"], "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = job(asked)
        Path(asked["log"]).with_suffix(".status").write_text(str(status))
        os._exit(0)


if __name__ == "__main__":
    main()
