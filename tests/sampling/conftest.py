"""What the tests of sampling share."""

import pytest

from lambda_grpo.sampling import shared_prefix


@pytest.fixture(params=["copied", "shared"])
def prefixes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each row holds a copy of its prompt, or every prefix is kept once, be it only one row's."""
    monkeypatch.setattr(
        shared_prefix, "_WORTH_BYTES", {"cpu": {"copied": 1 << 40, "shared": 0}[request.param]}
    )
    return str(request.param)
