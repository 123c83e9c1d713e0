"""Reports of random hostile rollouts, opened in headless Chromium: no dialog, no script but ours, no request.

PYTHONPATH=src python tests/support/fuzz_pages.py 300      # how many pages
"""

import sys
import tempfile
import time
from pathlib import Path
from random import Random

from browser import assert_hostile_page_is_quiet, launched
from hostile import assert_survived, random_rows
from rollout_samples import write_jsonl


def main(count: int) -> None:
    started, opened = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name, launched() as browser:
        for seed in range(count):
            path = write_jsonl(Path(name) / f"{seed}.jsonl", random_rows(Random(seed)))
            html = Path(name) / "page.html"
            if assert_survived([path], html):
                assert_hostile_page_is_quiet(browser, html)
                opened += 1
    print(
        f"{count} files, {opened} pages opened, nothing ran or was asked for; {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
