"""`python -m lambda_grpo.engines.verl.check`: does verl see our plugin?

verl says that a plugin failed to load at log level DEBUG only, and training then ends with "Unknown trainer
'lambda_sync'". This says why, on the machine it runs on (run it on each node), and ends with status 1. With
`--ray` it also starts Ray and TransferQueue on this machine for a moment.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

PACKAGES = ("lambda-grpo", "verl", "ray", "tensordict", "TransferQueue", "torch")
ENTRY = "lambda_sync"  # the name of the entry point and of the trainer mode
_RAY_SECONDS = 120


def main(arguments: list[str] | None = None) -> int:
    """Print one line per finding; return 0 if all are good, else 1 after the first bad one."""
    parser = argparse.ArgumentParser(prog="python -m lambda_grpo.engines.verl.check", description=__doc__)
    parser.add_argument("--ray", action="store_true", help="also start Ray and TransferQueue, and stop them")
    given = parser.parse_args(arguments)
    checks = [_versions, _found, _allowed, _loaded, _registered, *([_ray_starts] if given.ray else [])]
    for check in checks:
        try:
            for line in check():
                print(f"ok    {line}")
        except Exception as error:  # whatever keeps it from working is what this command is for
            print(f"FAIL  {check.__name__.strip('_')}: {type(error).__name__}: {error}")
            return 1
    print(f"ready: trainer.v1.trainer_mode={ENTRY}")
    return 0


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            raise RuntimeError(f"{name} is not installed: pip install 'lambda-grpo[verl]'") from None


def _found() -> Iterator[str]:
    found = [entry for entry in entry_points(group="verl.plugins") if entry.name == ENTRY]
    if not found:
        raise RuntimeError("no entry point in the group verl.plugins: install lambda-grpo anew with pip")
    yield f"entry point {found[0].name} = {found[0].value}"


def _allowed() -> Iterator[str]:
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy.strip().lower() != "auto" and ENTRY not in [name.strip() for name in policy.lower().split(",")]:
        raise RuntimeError(
            f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading it: unset it, or name {ENTRY} in it"
        )
    yield "verl may load it"


def _loaded() -> Iterator[str]:
    importlib.import_module("verl")  # which loads its plugins, and says nothing if one fails
    importlib.import_module("lambda_grpo.engines.verl.trainer")  # so that the error shows
    yield "the plugin imports"


def _registered() -> Iterator[str]:
    base = importlib.import_module("verl.trainer.ppo.v1.trainer_base")
    trainer = base.get_trainer_cls(ENTRY)
    ours = importlib.import_module("lambda_grpo.engines.verl.trainer").LambdaSyncTrainer
    if trainer is not ours:
        raise RuntimeError(f"the name belongs to {trainer.__module__}.{trainer.__name__}, which came first")
    yield f"{trainer.__module__}.{trainer.__name__} is registered"


def _ray_starts() -> Iterator[str]:
    ray, queue = importlib.import_module("ray"), importlib.import_module("transfer_queue")
    if ray.is_initialized():
        raise RuntimeError("this process already has Ray: run the check in one of its own")
    stop: list[Callable[[], None]] = []
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(_RAY_SECONDS)
    try:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        stop.append(ray.shutdown)
        yield "Ray starts"
        queue.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})
        stop.append(queue.close)
        queue.kv_put(key="check", partition_id="check", tag={"is": "here"})
        if queue.kv_list("check").get("check", {}).get("check") != {"is": "here"}:
            raise RuntimeError("TransferQueue did not give back what was put in")
        yield "TransferQueue answers"
    finally:
        signal.alarm(0)
        for end in reversed(stop):
            end()


def _too_slow(*_: object) -> None:
    raise TimeoutError(
        f"not done after {_RAY_SECONDS} s; Ray's own log is in its session folder, under logs/"
    )


if __name__ == "__main__":
    sys.exit(main())
