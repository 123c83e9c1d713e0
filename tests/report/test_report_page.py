"""The page in a real headless Chromium: it loads, asks the network for nothing, and does what it says."""

import json
import re
from random import Random

import numpy as np
import pytest
from browser import assert_hostile_page_is_quiet, opened
from hostile import assert_survived, random_rows
from rollout_samples import BY_HAND, branching_ids, text_of, write_jsonl, write_run

from lambda_grpo.report import ReportOptions, write_report

HOSTILE = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><b>bold</b> "
    "\u202egnorw\u202c \x00\x07\x1b[31m \ud800 🙂👩‍👩‍👧 "
    "\u2028\u2029 &lt; {{ 7 * 7 }} ${7*7} مرحبا \u200b\U000e0041 end"
)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand")
    return write_report([write_jsonl(folder / "r.jsonl", BY_HAND)], folder / "report.html").html


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / name, steps=4, groups=5, seed=i) for i, name in enumerate(("grpo", "lambda"))]
    return write_report(runs, folder / "report.html").html


def tip(page) -> dict[str, str]:
    names, values = page.locator("#tip dt"), page.locator("#tip dd")
    return dict(zip(names.all_text_contents(), values.all_text_contents(), strict=True))


@pytest.mark.parametrize(
    "fault", ["<img src='http://127.0.0.1:9/x.png'>", "<script>throw Error('planted')</script>"]
)
def test_the_checker_sees_a_planted_fault(browser, tmp_path, fault):
    (tmp_path / "bad.html").write_text(fault)
    with (
        pytest.raises(AssertionError, match=r"asked for http|planted"),
        opened(browser, tmp_path / "bad.html"),
    ):
        pass


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_loads_without_errors_or_requests(browser, two_runs, scheme, width):
    with opened(browser, two_runs, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        assert page.locator("#statements li").count() == 2
        assert page.locator("#charts canvas").count() == 9
        assert page.locator(".block").count() > 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_twin_is_what_the_page_draws_from(browser, two_runs):
    twin = json.loads(two_runs.with_suffix(".json").read_text())
    with opened(browser, two_runs) as page:
        assert page.evaluate("JSON.parse(document.getElementById('data').textContent)") == twin
        run = twin["runs"][0]
        statement = page.locator("#statements li").first.inner_text()
        assert f"Flat groups: {run['flat_groups']} of {run['means']['groups']}." in statement
        page.locator("#numbers summary").click()
        page.wait_for_selector("#numbers tbody tr")
        assert page.locator("#numbers tbody tr").count() == len(twin["steps"]["step"]) == 8


def test_it_opens_with_the_verdict(browser, tmp_path, two_runs, by_hand):
    one_run = write_report([write_run(tmp_path / "one", steps=4, groups=5)], tmp_path / "r.html").html
    for html, question, runs in ((one_run, "h1", "this run"), (two_runs, "h2#question", "these runs")):
        twin = json.loads(html.with_suffix(".json").read_text())
        with opened(browser, html, viewport={"width": 1280, "height": 800}) as page:
            assert page.locator(question).inner_text() == f"What does λ-GRPO change in {runs}?"
            for place, run in enumerate(twin["runs"]):
                card = page.locator("#statements > li").nth(place)
                assert card.locator(".answer").all_text_contents() == run["verdict"]["sentences"]
                assert card.locator("strong").inner_text().startswith("λ-GRPO changes ")
                box = card.locator("canvas").bounding_box()
                assert box["width"] > 300
                first_screen = box["y"] + box["height"] < 800
                assert first_screen == (html == one_run), "several runs open with what sets them apart"
    with opened(browser, by_hand) as page:  # one step: two bars, no curve
        assert page.locator("#statements canvas").count() == 0
        assert page.locator("#statements .bar").count() == 2
        assert "56%" in page.locator(".verdict-figure").inner_text()  # 5 of 9 tokens are shared


def test_a_track_is_the_whole(browser, by_hand):
    """Bars of shares are as wide as the shares say; numbers that are no shares have no track."""
    parts = "bars => bars.map((bar) => bar.getBoundingClientRect().width / bar.parentNode.getBoundingClientRect().width)"
    (run,) = json.loads(by_hand.with_suffix(".json").read_text())["runs"]
    with opened(browser, by_hand) as page:
        opening = page.locator("#statements .bar-track > .bar").evaluate_all(parts)
        shares = [run["means"][name] for name in ("shared_tokens", "push_removed")]
        assert opening == pytest.approx(shares, abs=0.005)
        flaw = page.locator("#flaw .bar-track > .bar").evaluate_all(parts)
        names = [
            f"{name}_{credit}"
            for name in ("best_share_down", "frequent_share")
            for credit in ("grpo", "lambda")
        ]
        assert flaw == pytest.approx([run["means"][name] for name in names], abs=0.005)
        terms = page.locator("#flaw .bar-room > .bar").evaluate_all(parts)
        assert (len(terms), max(terms)) == (2, 1)


def test_ticks_of_steps_are_whole(browser, tmp_path):
    html = write_report([write_run(tmp_path / "one", steps=3, groups=2)], tmp_path / "r.html").html
    drawn = """async () => {
        const texts = [];
        const fill = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
            if (this.textAlign === "center") texts.push(text);  // the others are beside the axis of values
            return fill.call(this, text, ...place);
        };
        const data = JSON.parse(document.getElementById("data").textContent);
        Overview.draw(data);
        Verdict.draw(data);
        await new Promise((done) => setTimeout(done, 200));
        return texts;
    }"""
    with opened(browser, html) as page:
        assert set(page.evaluate(drawn)) == {"0", "1", "2"}


def test_counts_of_one_are_singular(browser, by_hand):
    with opened(browser, by_hand) as page:
        page.locator('.leaf[data-completion="3"]').click()
        said = page.locator("body").inner_text()
        assert "Flat groups: 0 of 1." in said
        assert "The only group." in said
        assert page.locator("#match-count").inner_text() == "1 of 1 shown group"
        assert re.findall(r"\b1 (?:\w+ )?(?:groups|tokens|completions|steps|rows|files)\b", said) == []


def test_the_paper_is_a_link(browser, by_hand):
    with opened(browser, by_hand) as page:
        link = page.locator("#made-by a")
        assert link.get_attribute("href") == "https://arxiv.org/abs/2509.21154"
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert re.match(
            r"Made by lambda-grpo \S+\. The method: Sullivan & Koller, ",
            page.locator("#made-by").inner_text(),
        )


def test_hovering_shows_the_numbers_worked_by_hand(browser, by_hand):
    with opened(browser, by_hand) as page:
        page.locator('.block[data-node="1"]').hover()  # "one ", shared by three: A = -1/3
        assert page.locator("#tip .tip-text").inner_text() == "one "
        assert tip(page) == {
            "tokens": "0",
            "shared by |λ|": "3 of 4",
            "step reward R̂": "0.333",
            "step advantage A": "−0.33",
            "weight": "1",
            "push |λ|·A": "−1.00",
            "of the group's gradient": "10%",
        }
        page.get_by_text("λ-GRPO: A", exact=True).click()
        page.locator('.block[data-node="1"]').hover()
        shown = tip(page)
        assert (shown["weight"], shown["push A"]) == ("1/3", "−0.33")
        assert shown["of the group's gradient"] == "3.8%"  # 2/53


def test_switching_changes_what_shared_steps_get_and_nothing_else(browser, by_hand):
    with opened(browser, by_hand) as page:
        fills = "[...document.querySelectorAll('.block > rect')].map(r => r.getAttribute('fill'))"
        grpo = page.evaluate(fills)
        page.get_by_text("λ-GRPO: A", exact=True).click()
        weighted = page.evaluate(fills)
        # Depth-first: "one ", "two ", then the leaves.
        assert [a != b for a, b in zip(grpo, weighted, strict=True)] == [
            True,
            True,
            False,
            False,
            False,
            False,
        ]


def test_keys_reach_every_step(browser, by_hand):
    with opened(browser, by_hand) as page:
        page.locator("#widths input:checked").focus()
        page.keyboard.press("Tab")
        focused = "Number(document.activeElement.dataset.node)"
        assert page.evaluate(focused) == 3, "the first completion's leaf"
        seen = []
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp"):
            page.keyboard.press(key)
            seen.append(page.evaluate(focused))
        # "three" → "two " → "one " → "two " → below it "five" → "six" → above it "one "
        assert seen == [2, 1, 2, 5, 6, 1]
        assert "shared by 3 of 4" in page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert tip(page)["shared by |λ|"] == "3 of 4"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert page.locator("#reader-title").inner_text().startswith("Completion 3 (4 of 4)")
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()


def test_reading_completions(browser, by_hand):
    with opened(browser, by_hand) as page:
        assert page.locator("#prompt .part").text_content() == "count"
        assert page.locator("#completion .part").all_text_contents() == ["", "one ", "two ", "three"]
        page.locator("#next").click()
        assert "".join(page.locator("#completion .part").all_text_contents()) == "one two four"
        page.locator('.leaf[data-completion="3"]').click()
        assert (
            page.locator("#reader-title").inner_text()
            == "Completion 3 (4 of 4): reward 0.5, advantage +1.00, 1 token"
        )


def test_picking_searching_and_sorting(browser, two_runs):
    twin = json.loads(two_runs.with_suffix(".json").read_text())
    with opened(browser, two_runs) as page:
        entries = page.locator("#groups li")
        assert entries.count() == len(twin["groups"]) == 40
        page.locator("#groups").focus()
        before = page.locator("#group-title").inner_text()
        page.keyboard.press("ArrowDown")
        assert page.locator("#group-title").inner_text() != before
        assert entries.nth(1).get_attribute("aria-selected") == "true"
        page.locator("#search").fill("what is 2 + 3")
        assert entries.count() == 2
        assert page.locator("#match-count").inner_text() == "2 of 40 shown groups"
        page.locator("#search").fill("")
        page.locator("#pick-step").select_option("3")
        page.locator("#pick-run").select_option("lambda")
        assert entries.count() == 5
        page.locator("#sort").select_option("depth")
        depths = [g["path_depth"] for g in twin["groups"] if g["step"] == 3 and g["run"] == "lambda"]
        shown = [
            text.split("depth ")[1].split()[0] for text in page.locator(".entry-facts").all_text_contents()
        ]
        assert [float(depth) for depth in shown] == pytest.approx(sorted(depths, reverse=True), rel=0.01)
        page.locator("#search").fill("nothing holds this")
        assert entries.count() == 0


def test_hostile_text_stays_text(browser, tmp_path):
    rows = [
        {"group": HOSTILE, "prompt": HOSTILE, "completion": HOSTILE + end, "reward": reward}
        for end, reward in [(" a", 1), (" b", 0)]
    ]
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    html = write_report(
        [write_jsonl(folder / "run.jsonl", rows), write_jsonl(folder / "<b>.jsonl", rows)],
        tmp_path / "r.html",
    ).html
    with opened(browser, html) as page:
        assert page.title() == "Hidden process rewards: run.jsonl, <b>.jsonl"
        assert page.locator("img, b:has-text('bold')").count() == 0
        shown = page.locator("#prompt .part").text_content()
        for literal in (
            "</script><script>",
            "<img src=x",
            "<b>bold</b>",
            "{{ 7 * 7 }} ${7*7}",
            "&lt;",
            "🙂👩‍👩‍👧",
            "مرحبا",
        ):
            assert literal in shown
        named = ("202E", "202C", "0000", "0007", "001B", "D800", "2028", "2029", "200B", "E0041")
        assert [f"‹U+{code}›" in shown for code in named] == [True] * len(named)
        for raw in ("\u202e", "\x00", "\x1b", "\u2028", "\u200b"):
            assert raw not in page.locator("body").inner_text()
        page.locator(".block").first.hover()
        assert "<b>bold</b>" in page.locator("#tip").inner_text()
    assert html.read_bytes().isascii() is False  # our own words hold λ …
    assert b"\\ud800" in html.read_bytes(), "… but text of models is escaped"


@pytest.mark.parametrize(
    "planted",
    [
        "<script>document.title='ran'</script>",
        "<script src='data:text/javascript,document.title=1'></script>",
        "<img src=x onerror=\"document.title='ran'\">",
        "<iframe srcdoc=\"<script>parent.document.title='ran'</script>\"></iframe>",
        "<base href='http://127.0.0.1:9/'>",
    ],
)
def test_nothing_injected_could_run(browser, by_hand, planted):
    """The policy in the page blocks a script and a request that get in some other way; our own script runs."""
    path = by_hand.with_name("planted.html")
    path.write_text(by_hand.read_text().replace("<header", f"{planted}<header", 1))
    with pytest.raises(AssertionError, match="Content Security Pol"), opened(browser, path) as page:
        page.locator(".block").first.wait_for()
        assert page.title() == "Hidden process rewards: r.jsonl"


@pytest.mark.parametrize("seed", range(2))
def test_random_hostile_pages(browser, tmp_path, seed):
    html = tmp_path / "r.html"
    path = write_jsonl(tmp_path / f"{seed}<b>.jsonl", random_rows(Random(seed)))
    assert assert_survived([path], html)
    assert_hostile_page_is_quiet(browser, html)


def test_one_step_has_numbers_but_no_curve(browser, by_hand):
    with opened(browser, by_hand) as page:
        assert page.locator("#charts canvas").count() == 0
        assert "33%" not in page.locator("#charts").inner_text()
        assert "0.375" in page.locator("#charts").inner_text()  # mean reward
        assert page.locator("#charts-note").inner_text() == "One training step, 0: its means."


def test_what_was_left_out_is_said_on_the_page(browser, tmp_path):
    rows = [*BY_HAND, {"group": "b", "completion": "x", "reward": 1}, {"group": "c", "completion": "x"}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    html = write_report([path], tmp_path / "r.html", ReportOptions(skip_bad=True)).html
    with opened(browser, html) as page:
        said = page.locator(".warning").first.inner_text()
        assert "Left out as unusable: 2 rows (2 whole groups) and 0 files. First: " in said
        assert "row 5: group 'b' of step 0 has one completion" in said


def test_an_unscored_completion_is_shown_as_such(browser, tmp_path):
    rows = [
        {"group": 0, "tokens": tokens, "reward": r}
        for tokens, r in ((["a ", "b"], 1.0), (["a ", "c"], None), (["a ", "d"], 0.0), (["e"], 0.0))
    ]
    html = write_report([write_jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "r.html").html
    with opened(browser, html) as page:
        assert "1 of 4 completions is unscored" in page.locator(".warning").inner_text()
        assert "1unscored" in page.locator("#group-facts").text_content()
        leaf = page.locator('.leaf[data-completion="1"]')
        assert leaf.locator(".value").all_text_contents() == ["1", "unscored", "–"]
        leaf.click()
        assert (
            "unscored: no reward function could score it, 2 tokens"
            in page.locator("#reader-title").inner_text()
        )
        page.locator('.block[data-node="1"]').hover()  # "a ", shared by three; two have a reward
        shown = tip(page)
        assert (shown["shared by |λ|"], shown["scored of them"], shown["step reward R̂"]) == (
            "3 of 4",
            "2",
            "0.5",
        )
        assert shown["push scored·A"] == "+0.58"  # 1.155 - 0.577


def test_long_texts_fold(browser, tmp_path):
    text = "word " * 2000
    rows = [
        {"group": 0, "prompt": text, "completion": text + end, "reward": r} for end, r in (("a", 1), ("b", 0))
    ]
    html = write_report([write_jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "r.html").html
    with opened(browser, html) as page:
        assert len(page.locator("#prompt .part").text_content()) == 1501
        page.locator("#prompt .unfold").click()
        assert page.locator("#prompt .part").text_content() == text
        assert page.locator("#completion .part").all_text_contents() == [" a"], "what is shared folds"
        page.locator("#completion .folded").click()
        assert "".join(page.locator("#completion .part").all_text_contents()) == text + "a"


def test_a_step_without_end_folds(browser, tmp_path):
    text = "word " * 40_000
    rows = [{"group": 0, "completion": end + text, "reward": r} for end, r in (("a ", 1), ("b ", 0))]
    html = write_report([write_jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "r.html").html
    with opened(browser, html) as page:
        assert len(page.locator("#completion .passage .part").text_content()) == 60_001
        page.locator("#completion .unfold").click()
        assert len(page.locator("#completion .passage .part").text_content()) == 200_002


def test_a_group_of_64_times_4000_tokens_is_fluid(browser, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"group": 0, "completion": text_of(ids), "token_ids": ids, "reward": float(rng.random() < 0.5)}
        for ids in branching_ids(rng, 64, 4000, stay=0.995)
    ]
    html = write_report([write_jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "r.html").html
    with opened(browser, html) as page:
        spent = page.evaluate(
            """() => {
                const begin = performance.now();
                for (let i = 0; i < 5; i++) { Explorer.draw(); document.body.getBoundingClientRect(); }
                return (performance.now() - begin) / 5;
            }"""
        )
        assert spent < 150, f"{spent} ms to draw; about 10 on a laptop, and hovering draws nothing anew"


def test_groups_too_long_to_show_are_said(browser, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", BY_HAND)
    html = write_report([path], tmp_path / "r.html", ReportOptions(text_bytes=10)).html
    with opened(browser, html) as page:
        assert "A sample of 0 of 1 group," in page.locator("#sample-note").inner_text()
        assert "1 of the sample was too long" in page.locator("#sample-note").inner_text()
        assert page.locator(".stage").is_hidden()
