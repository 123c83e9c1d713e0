"""The page of `lambda-grpo watch` in headless Chromium: it loads itself anew, and keeps what was open."""

import shutil
import threading

import pytest
from browser import launched
from rollout_samples import write_run

from lambda_grpo.report import ReportOptions, watch
from lambda_grpo.report import page as report_page
from lambda_grpo.report.watch import LivePage, WatchServer


@pytest.fixture
def tab():
    with launched() as started:
        yield started.new_page()


def test_new_rollouts_show_and_what_was_open_stays(tab, tmp_path, monkeypatch):
    asset = report_page._asset
    monkeypatch.setattr(
        report_page, "_asset", lambda name: asset(name).replace("EVERY = 3000", "EVERY = 100")
    )
    monkeypatch.setattr(watch, "_PAUSE_PER_SECOND", 0.0)
    faults = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    whole = write_run(tmp_path / "whole", steps=3, groups=3) / "rollouts"
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    with WatchServer(LivePage(run, ReportOptions(skip_bad=True), 0.0), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            tab.goto(server.url)
            assert tab.locator("h1").inner_text() == "No rollouts yet"
            shutil.copy(whole / "step-000000-rank-0.parquet", run / "rollouts")
            tab.locator("#groups li").first.wait_for()
            tab.locator("#search").fill("problem")
            tab.locator("#groups li").nth(2).click()
            tab.locator("#next").click()
            tab.get_by_text("λ-GRPO: A", exact=True).click()
            tab.locator("#numbers summary").click()
            tab.locator("#find").fill("numbers")
            tab.locator("#fold").click()
            open_before = [tab.locator(at).inner_text() for at in ("#group-title", "#reader-title")]
            shutil.copy(whole / "step-000001-rank-0.parquet", run / "rollouts")
            tab.locator("#groups li").nth(5).wait_for()
            assert [tab.locator(at).inner_text() for at in ("#group-title", "#reader-title")] == open_before
            assert tab.locator("#search").input_value() == "problem"
            assert tab.locator("#find").input_value() == "numbers"
            assert tab.locator("#fold").inner_text() == "Unfold shared"
            assert tab.locator("input[name=credit]:checked").get_attribute("value") == "lambda"
            assert tab.locator("#numbers").get_attribute("open") is not None
            assert faults == []
        finally:
            server.shutdown()
