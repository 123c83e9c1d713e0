"""Reports in headless Chromium."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium: apt-get install chromium chromium-driver", allow_module_level=True)


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launched():
    """The browser, closed at the end."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@contextmanager
def opened(browser, path: Path, **context):
    """A page, failing at the end if it had an error or asked for anything but itself."""
    tab = browser.new_context(**context)
    page = tab.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request", lambda request: request.url == path.as_uri() or faults.append(f"asked for {request.url}")
    )
    page.goto(path.as_uri())
    yield page
    page.wait_for_timeout(50)
    tab.close()
    faults = [fault for fault in faults if fault != "asked for data:,"]  # the empty icon
    assert faults == []


def assert_hostile_page_is_quiet(browser, html: Path) -> None:
    """Everything on the page is looked at, and nothing but our own script runs."""
    with opened(browser, html) as page:
        page.locator("#numbers summary").click()
        if page.locator(".block").count():
            page.locator(".block").first.hover(force=True)
        for entry in range(page.locator("#groups li").count()):
            page.locator("#groups li").nth(entry).click()
            if page.locator("#fold").is_visible():
                page.locator("#fold").click()
            for asked in ("<", "\\", "(", "‹", "\u202e"):
                page.locator("#find").fill(asked)
                page.keyboard.press("Enter")
        page.locator("#search").fill("<")
        assert page.title().startswith("Hidden process rewards: ")
        assert page.locator("img, base, iframe, object, embed, a[href^='javascript']").count() == 0
        assert page.locator("script").count() == 2
        assert page.evaluate("[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith('on'))") == []  # fmt: skip
