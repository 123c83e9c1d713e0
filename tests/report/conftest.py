"""What the tests of pages share."""

import pytest


@pytest.fixture(scope="module")
def browser():
    from browser import launched

    with launched() as started:
        yield started
