"""The pictures of the report in the README: `python docs/screenshot.py PATH… [--tokenizer PATH]`.

Of one run it writes docs/images/report.png (the explorer) and docs/images/report-overview.png, of several
runs docs/images/report-runs.png. PATHs are rollouts, as `lambda-grpo report` takes them. Needs chromium,
playwright and Pillow.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from lambda_grpo.report import ReportOptions, write_report

IMAGES = Path(__file__).parent / "images"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]


def shrink(path: Path) -> None:
    """To the 256 colours that cover most of the page, the colour scale included."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )
    small.save(path, optimize=True)


def take(page: Any, group: str) -> None:
    explorer = IMAGES / "report.png"
    if group:
        page.locator("#search").fill(group)
    else:
        page.locator("#groups li").first.click()
    page.locator("#groups").evaluate("list => list.style.maxHeight = '380px'")
    page.locator(".block").first.scroll_into_view_if_needed()
    tallest = """[...document.querySelectorAll('.block')]
        .sort((a, b) => b.getBBox().height - a.getBBox().height)[0].dataset.node"""
    page.locator(f'.block[data-node="{page.evaluate(tallest)}"]').hover()
    box = page.locator("#explorer").bounding_box()
    clip = {
        "x": 0,
        "y": box["y"] + page.evaluate("scrollY") - 16,
        "width": 1180,
        "height": box["height"] + 32,
    }
    page.screenshot(path=explorer, full_page=True, clip=clip)
    page.mouse.move(0, 0)
    overview = IMAGES / "report-overview.png"
    box = page.locator("#flaw").bounding_box()
    clip = {"x": 0, "y": 0, "width": 1180, "height": box["y"] + page.evaluate("scrollY") + box["height"] + 16}
    page.screenshot(path=overview, full_page=True, clip=clip)
    for path in (explorer, overview):
        shrink(path)
        print(path, path.stat().st_size, "bytes")


def take_runs(page: Any) -> None:
    """Who got what right, and the same prompt of each run."""
    picture = IMAGES / "report-runs.png"
    page.locator(".problems").evaluate_all(
        "lists => lists.forEach((list) => (list.style.maxHeight = '150px'))"
    )
    top, bottom = page.locator("#problems").bounding_box(), page.locator("#pair").bounding_box()
    clip = {
        "x": 0,
        "y": top["y"] + page.evaluate("scrollY") - 16,
        "width": 1180,
        "height": bottom["y"] + bottom["height"] - top["y"] + 32,
    }
    page.screenshot(path=picture, full_page=True, clip=clip)
    shrink(picture)
    print(picture, picture.stat().st_size, "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--group", default="", help="show the first group that holds this text")
    parser.add_argument("--tokenizer", help="as `lambda-grpo report` takes it")
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    options = ReportOptions(tokenizer=args.tokenizer)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        html = write_report(args.paths, Path(folder) / "report.html", options).html
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 1300})
        page.goto(html.as_uri())
        if page.locator("#pair").count():
            take_runs(page)
        else:
            take(page, args.group)
        browser.close()


if __name__ == "__main__":
    main()
