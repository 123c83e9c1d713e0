"""Shared set-up: no network, and a hypothesis profile that repeats itself in CI."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: more threads only wait for each other

from collections.abc import Iterator
from pathlib import Path

import pytest

# Assertions of the shared modules say what they compared, as those of tests do.
pytest.register_assert_rewrite(*(path.stem for path in (Path(__file__).parent / "support").glob("*.py")))

from hypothesis import HealthCheck, settings
from jobs import Jobs

settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
# For `--hypothesis-profile=long`: new groups each time, and no examples of former runs.
settings.register_profile(
    "long",
    deadline=None,
    max_examples=10_000,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on CPUs, those excepted that ask for a device: `pytest -m gpu`."""
    if config.getoption("-m") != "gpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and `pytest -m gpu`"))


@pytest.fixture(scope="session")
def policy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real SmolLM2-135M-Instruct, fetched into an empty cache; a skip where no place gives it.

    The workers of one run of the tests share the cache, so one of them fetches it.
    """
    from lambda_grpo import InputError, policy

    patch = pytest.MonkeyPatch()
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = (
        tmp_path_factory.getbasetemp().parent / "smollm2" if parallel else tmp_path_factory.mktemp("smollm2")
    )
    patch.setenv("LAMBDA_GRPO_CACHE", str(shared))
    try:
        return policy.smollm2_policy()
    except InputError as error:
        if "where one of them can be reached" not in str(error):  # something is wrong with what was given
            raise
        pytest.skip(str(error))
    finally:
        patch.undo()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    served = Jobs(tmp_path_factory.mktemp("jobs"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def quick_policy(policy_cache: Path) -> Iterator[None]:
    """The embedded policy is one pre-trained for a few steps, once for all modules that ask for it."""

    from lambda_grpo.policy import embedded

    patch = pytest.MonkeyPatch()
    patch.setattr(embedded, "PRETRAINING", embedded.Pretraining(steps=30, batch_size=32))
    patch.setenv("LAMBDA_GRPO_CACHE", str(policy_cache))
    yield
    patch.undo()
