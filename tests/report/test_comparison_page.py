"""The page of several runs in a real headless Chromium."""

import json
import shutil
import threading
from random import Random

import pytest
from browser import assert_hostile_page_is_quiet, opened
from hostile import MARKUP, assert_survived, random_rows
from rollout_samples import write_jsonl, write_run

from lambda_grpo.report import ReportOptions, watch, write_report
from lambda_grpo.report import page as page_module
from lambda_grpo.report.watch import LivePage, WatchServer


def runs(folder, names):
    made = [write_run(folder / name, steps=10, groups=6, seed=seed) for seed, name in enumerate(names)]
    for run in made:
        rows = [{"step": step, "eval_reward": 0.1 * step} for step in (0, 5, 10)]
        write_jsonl(run / "metrics.jsonl", rows)
    estimate = {"mean": 0.5, "low": 0.25, "high": 0.75}
    (made[0] / "results.json").write_text(json.dumps({"after": {"greedy_accuracy": estimate}}))
    return made


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return write_report(runs(folder, ("grpo", "lambda")), folder / "r.html", ReportOptions(groups=12)).html


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    names = ("a", "b", "a-name-that-is-much-longer-than-any-column-of-a-table-can-be-on-a-phone")
    return write_report(runs(folder, names), folder / "r.html").html


def twin(html):
    return json.loads(html.with_suffix(".json").read_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("name", ["two", "three"])
def test_loads_without_errors_or_requests(browser, request, name, scheme, width):
    html = request.getfixturevalue(name)
    with opened(browser, html, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#charts canvas").count() == 10  # nine measures and the validation
        assert page.locator("#statements > li").count() == len(twin(html)["runs"])
        assert page.locator(".pair-card .block").count() > 4


def test_it_opens_with_the_answers_and_the_figures(browser, two):
    said = twin(two)["comparison"]
    with opened(browser, two, viewport={"width": 1280, "height": 900}) as page:
        assert page.locator("h1").inner_text() == "grpo and lambda, side by side"
        assert page.locator("h2#question").inner_text() == "What does λ-GRPO change in these runs?"
        assert page.locator("#compare-answers li").all_text_contents() == said["answers"]
        rows = page.locator("#finals tbody tr").all_inner_texts()
        assert rows[0].strip() == "After training, on the test problems"
        assert "Greedy accuracy" in rows[1]
        assert "50.0% [25.0%, 75.0%]" in rows[1]
        reward = said["figures"]["training"][0]
        assert (reward["title"], rows[3].split("\t")[0]) == ("Accuracy", "Accuracy"), "rewards are 0 or 1"
        for run in reward["runs"]:
            assert f"{100 * run['mean']:.1f}%" in rows[3]
        apart = reward["differences"][1]
        shown = f"{abs(100 * apart['mean']):.1f} ["
        assert shown in rows[3]
        assert "points to grpo" in rows[3]
        assert page.locator("#finals tbody tr").nth(3).locator("circle").count() == 2


def test_who_got_what_right_follows_the_rule(browser, two):
    (pair,) = twin(two)["comparison"]["pairs"]
    with opened(browser, two) as page:
        for rule, words in (("most", "most completions are"), ("any", "any completion is")):
            page.get_by_text(words, exact=True).click()
            counts = page.locator("#who-legend b").all_text_contents()
            who = pair[rule]
            assert counts == [str(n) for n in (who["both"], *who["only"], who["neither"])]
            assert page.locator(".only h3 b").all_text_contents() == [str(n) for n in who["only"]]
            assert page.locator(".only").nth(0).locator("li").count() == who["only"][0]
            assert page.locator(".who-column").count() == len(who["parts"])
        assert page.locator("#pair-selects").is_hidden()


def test_a_link_shows_the_same_prompt_of_both_runs(browser, two):
    said = twin(two)["comparison"]
    with opened(browser, two) as page:
        link = page.locator(".only a").nth(1)
        name = link.get_attribute("href").removeprefix("#problem=")
        problem = next(one for one in said["problems"] if one["id"] == name)
        link.click()
        page.locator("#pair-title:focus").wait_for()
        assert page.evaluate("scrollY") > 200
        assert page.locator("#pair-prompt").inner_text() == problem["prompt"]
        for place, met in enumerate(problem["groups"]):
            facts = page.locator(".pair-card").nth(place).locator(".fact b").all_text_contents()
            assert facts[:2] == [f"{met['step']} · {met['group']}", f"{met['right']} of {met['scored']}"]
        fresh = page.context.new_page()
        fresh.goto(page.url)  # the address is the problem's
        assert fresh.locator("#pair-prompt").inner_text() == problem["prompt"]
        page.locator("#pair-next").click()
        after = page.locator("#pair-prompt").inner_text()
        page.locator("#pair-previous").click()
        assert after != problem["prompt"]
        assert page.locator("#pair-prompt").inner_text() == problem["prompt"]


def test_both_trees_have_one_scale(browser, tmp_path):
    """Four tokens and one: a token is as wide in both. Advantages of 2 and 1: half the push is paler."""
    texts = {"a": (["one ", "two ", "three ", "four"], ["five"]), "b": (["six"], ["seven"])}
    paths = []
    for name, advantage in (("a", 2.0), ("b", 1.0)):
        rows = [
            {"group": 0, "prompt": "p", "tokens": tokens, "reward": sign > 0, "advantage": sign * advantage}
            for tokens, sign in zip(texts[name], (1, -1), strict=True)
        ]
        paths.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    with opened(browser, write_report(paths, tmp_path / "r.html").html) as page:
        widths, fills = (
            [
                [float(value) if name == "width" else value for value in page.locator(".pair-card").nth(place).locator(".block > rect").evaluate_all(
                    f"rects => rects.map((rect) => rect.getAttribute('{name}'))"
                )]
                for place in (0, 1)
            ]
            for name in ("width", "fill")
        )  # fmt: skip
        gap = 1.5
        (four, one), (six, seven) = ([width + gap for width in each] for each in widths)
        assert four == pytest.approx(4 * one)
        assert six == pytest.approx(one)
        assert seven == pytest.approx(one)
        full, half = ([int(x) for x in fill[0][4:-1].split()] for fill in fills)
        assert sum(full) < sum(half), "on light paper a stronger push is darker"


def test_completions_of_both_runs_can_be_read(browser, two):
    with opened(browser, two) as page:
        card = page.locator(".pair-card").nth(1)
        first = card.locator("h4").inner_text()
        card.get_by_label("Next completion").click()
        assert card.locator("h4").inner_text() != first
        card.locator(".leaf").last.click()
        assert card.locator(".leaf.selected").count() == 1
        card.locator(".block").first.hover()
        assert "shared by |λ|" in page.locator("#tip").inner_text()
        page.locator(".pair-card").nth(0).locator(".block").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.closest('.pair-card') !== null")
        fills = (
            "[...document.querySelectorAll('.pair-card .block > rect')].map((r) => r.getAttribute('fill'))"
        )
        before = page.evaluate(fills)
        page.locator("#pair-credit").get_by_text("λ-GRPO: A", exact=True).click()
        assert page.evaluate(fills) != before


def test_any_two_of_three_runs_can_be_compared(browser, three):
    pairs = {tuple(pair["runs"]): pair for pair in twin(three)["comparison"]["pairs"]}
    with opened(browser, three) as page:
        assert page.locator(".pair-card").count() == 3
        page.locator("#pair-a").select_option("2")
        assert page.locator(".only h3 b").all_text_contents() == [str(n) for n in pairs[1, 2]["most"]["only"]]
        page.locator("#pair-b").select_option("2")
        assert page.locator("#problems-note").inner_text() == "Choose two different runs."
        assert page.locator("#problems-body").is_hidden()
        page.locator("#pair-b").select_option("0")
        assert page.locator(".only h3 b").all_text_contents() == [str(n) for n in pairs[0, 2]["most"]["only"]]
        assert page.locator("#finals thead th").count() == 5


def test_runs_that_share_nothing_have_no_lists(browser, tmp_path):
    paths = []
    for name in "ab":
        rows = [
            {"group": 0, "prompt": name, "completion": text, "reward": r} for text, r in (("x", 1), ("y", 0))
        ]
        paths.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    with opened(browser, write_report(paths, tmp_path / "r.html").html) as page:
        assert "The runs share no prompt" in page.locator(".warning").first.inner_text()
        assert "met no problem in common" in page.locator("#problems-note").inner_text()
        assert page.locator("#problems-body").is_hidden()
        assert page.locator("#pair").is_hidden()
        assert page.locator("#groups li").count() == 2


def test_hostile_names_and_prompts_stay_text(browser, tmp_path):
    paths = []
    for name, rewards in (("a", (1, 1)), ("b", (0, 0))):
        rows = [
            {"group": MARKUP, "prompt": MARKUP + "\u202e", "completion": f"{MARKUP}{i}", "reward": reward}
            for i, reward in enumerate(rewards)
        ]
        paths.append(
            f"{MARKUP[:24].replace('/', '').replace('=', '')}\u202e{name}={write_jsonl(tmp_path / f'{name}.jsonl', rows)}"
        )
    html = write_report(paths, tmp_path / "r.html").html
    assert_hostile_page_is_quiet(browser, html)
    with opened(browser, html) as page:
        assert page.locator(".only a").count() == 1
        page.locator(".only a").click()
        for at in ("h1", "#finals", "#who-legend", ".only >> nth=0", "#pair-prompt", ".pair-card >> nth=0"):
            shown = page.locator(at).inner_text()
            assert "script>" in shown, at
            assert "‹U+202E›" in shown, at
            assert "\u202e" not in page.locator(at).inner_html()


@pytest.mark.parametrize("seed", range(3))
def test_random_hostile_runs(browser, tmp_path, seed):
    random = Random(seed)
    paths = [write_jsonl(tmp_path / f"{n}<b>.jsonl", random_rows(random)) for n in range(2)]
    assert assert_survived(paths, tmp_path / "r.html")
    assert_hostile_page_is_quiet(browser, tmp_path / "r.html")


def test_watching_a_comparison_keeps_the_problem(browser, tmp_path, monkeypatch):
    asset = page_module._asset
    monkeypatch.setattr(
        page_module, "_asset", lambda name: asset(name).replace("EVERY = 3000", "EVERY = 100")
    )
    monkeypatch.setattr(watch, "_PAUSE_PER_SECOND", 0.0)
    whole = runs(tmp_path / "whole", ("a", "b"))
    for run in whole:
        shutil.copytree(run, tmp_path / "both" / run.name)
    added = [tmp_path / "both" / run.name / "rollouts" / "step-000009-rank-0.parquet" for run in whole]
    for file in added:
        file.unlink()
    with WatchServer(LivePage(tmp_path / "both", ReportOptions(skip_bad=True), 0.0), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        tab = browser.new_page()
        faults = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        try:
            tab.goto(server.url)
            assert "a and b, side by side" in tab.locator("h1").inner_text()
            tab.locator(".only a").nth(2).click()
            prompt = tab.locator("#pair-prompt").inner_text()
            assert tab.locator("#problems-note").inner_text().startswith("54 problems")
            for file in added:
                shutil.copy(tmp_path / "whole" / file.parents[1].name / "rollouts" / file.name, file)
            tab.locator("#problems-note", has_text="60 problems").wait_for()
            assert tab.locator("#pair-prompt").inner_text() == prompt
            assert faults == []
        finally:
            tab.close()
            server.shutdown()
