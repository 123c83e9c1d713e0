"""The two trees of docs/idea.md, drawn by the report from that page: `python docs/idea_pictures.py`.

Writes docs/images/idea-grpo.png and docs/images/idea-lambda.png. Needs chromium, playwright and Pillow.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from screenshot import FLAGS, IMAGES, shrink

from lambda_grpo.report import write_report

PAGE = Path(__file__).parent / "idea.md"
UNSELECT = "document.querySelectorAll('.selected').forEach(part => part.classList.remove('selected'))"


def rollouts() -> str:
    """The JSON lines on the page."""
    found = re.search(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{PAGE} has no json block"
    return found[1]


def take(page: Any, credit: str) -> None:
    page.locator(f"#credit input[value={credit}]").evaluate("button => button.click()")
    page.evaluate(UNSELECT)
    top, bottom = page.locator(".controls").bounding_box(), page.locator("#figure").bounding_box()
    clip = {
        "x": top["x"] - 12,
        "y": top["y"] + page.evaluate("scrollY") - 12,
        "width": top["width"] + 24,
        "height": bottom["y"] + bottom["height"] - top["y"] + 24,
    }
    picture = IMAGES / f"idea-{credit}.png"
    page.screenshot(path=picture, full_page=True, clip=clip)
    shrink(picture)
    print(picture, picture.stat().st_size, "bytes")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        (Path(folder) / "rollouts.jsonl").write_text(rollouts())
        html = write_report([folder], Path(folder) / "report.html").html
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 1000}, device_scale_factor=2)
        page.goto(html.as_uri())
        for credit in ("grpo", "lambda"):
            take(page, credit)
        browser.close()


if __name__ == "__main__":
    main()
