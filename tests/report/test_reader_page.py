"""Long completions and forks in the explorer, in a real headless Chromium: fold, find, keys, a phone's width."""

import json
from pathlib import Path

import pytest
from browser import opened
from long_rollouts import forked_rows, long_rows
from rollout_samples import BY_HAND, write_jsonl

from lambda_grpo.branching import BranchPlan
from lambda_grpo.report import write_report

COMPLETION = "document.getElementById('reader-title').textContent.match(/^Completion ([0-9]+)/)[1]"
SHOWN = "[...document.querySelectorAll('#completion .part')].map((part) => part.textContent).join('')"


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The rows of one group of 16 completions of up to 4,000 tokens, and its report."""
    folder, rows = tmp_path_factory.mktemp("long"), long_rows()
    html = write_report([write_jsonl(folder / "r.jsonl", rows)], folder / "report.html").html
    return rows, html


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("forked"), forked_rows(BranchPlan((60, 300), (2, 2)))
    return write_report([write_jsonl(folder / "r.jsonl", rows)], folder / "report.html").html


def group_of(html: Path) -> dict:
    return json.loads(html.with_suffix(".json").read_text())["groups"][0]


def path_of(group: dict, completion: int) -> list[int]:
    nodes, node = [], group["leaf"][completion]
    while node >= 0:
        nodes.insert(0, node)
        node = group["nodes"]["parent"][node]
    return nodes


def matches_of(group: dict, asked: str) -> list[tuple[int, int]]:
    """Completion and place of each match, those in a shared step once, in the order of the figure."""
    found, seen = [], set()
    for completion in group["order"]:
        nodes = path_of(group, completion)
        texts = [group["nodes"]["text"][node] for node in nodes]
        whole, place = "".join(texts).lower(), -1
        while (place := whole.find(asked.lower(), place + 1)) >= 0:
            ends = [sum(map(len, texts[: i + 1])) for i in range(len(texts))]
            node = next(node for node, end in zip(nodes, ends, strict=True) if end > place)
            if (node, place) not in seen:
                found.append((completion, place))
            seen.add((node, place))
    return found


def test_shared_steps_fold_and_unfold(browser, long):
    rows, html = long
    group = group_of(html)
    with opened(browser, html) as page:
        completion = int(page.evaluate(COMPLETION))
        path = path_of(group, completion)
        assert page.locator("#completion .folded").count() == len(path) - 1 > 3
        own = group["nodes"]["text"][path[-1]]
        assert page.evaluate(SHOWN) == own
        page.locator("#completion .folded").nth(1).click()
        assert page.evaluate(SHOWN) == group["nodes"]["text"][path[1]] + own
        page.locator("#completion").focus()
        page.keyboard.press("f")
        assert page.locator("#completion .folded").count() == 0
        assert page.evaluate(SHOWN) == rows[completion]["completion"], "no character is lost"
        page.keyboard.press("j")
        following = group["order"][1]
        assert int(page.evaluate(COMPLETION)) == following
        assert page.evaluate(SHOWN) == rows[following]["completion"], "and the next one is unfolded too"
        page.keyboard.press("k")
        page.keyboard.press("f")
        assert int(page.evaluate(COMPLETION)) == completion
        assert page.evaluate(SHOWN) == own
        assert page.locator("#fold").inner_text() == "Unfold shared"


def test_a_step_picked_in_the_figure_unfolds(browser, long):
    group = group_of(long[1])
    with opened(browser, long[1]) as page:
        step = path_of(group, int(page.evaluate(COMPLETION)))[2]
        page.locator(f'.block[data-node="{step}"]').click()
        passage = page.locator(f'#completion .passage[data-step="{step}"]')
        assert passage.locator(".part").text_content() == group["nodes"]["text"][step]
        assert "selected" in passage.get_attribute("class")


@pytest.mark.parametrize("asked", ["IMPORT cache", "<|im_start|>tool", "\\boxed{51}", "(n-1)$ board"])
def test_find_goes_through_all_completions(browser, long, asked):
    group = group_of(long[1])
    expected = matches_of(group, asked)
    texts = [row["completion"].lower() for row in long[0]]
    holding = sum(asked.lower() in text for text in texts)
    with opened(browser, long[1]) as page:
        page.locator("#completion").focus()
        page.keyboard.press("/")
        page.keyboard.type(asked)
        page.keyboard.press("Enter")
        first = page.locator("#found").inner_text()
        number = int(first.split()[0])
        assert first == f"{number} of {len(expected)}, in {holding} of 16 completions"
        for step in range(3):
            at = (number - 1 + step) % len(expected)
            assert page.locator("#found").inner_text().startswith(f"{at + 1} of ")
            mark = page.locator("#completion mark.current")
            assert "".join(mark.all_text_contents()).lower() == asked.lower()
            box, host = mark.first.bounding_box(), page.locator("#completion").bounding_box()
            assert host["y"] <= box["y"] < host["y"] + host["height"], "it is in sight"
            place = expected[at][1]
            assert texts[int(page.evaluate(COMPLETION))][place:].startswith(asked.lower())
            page.keyboard.press("Enter")
        page.keyboard.press("Shift+Enter")
        page.locator("#completion").focus()
        page.keyboard.press("N")
        assert (
            page.locator("#found")
            .inner_text()
            .startswith(f"{(number + 1) % len(expected) or len(expected)} of ")
        )
        page.locator("#find").focus()
        page.keyboard.press("Escape")
        assert page.locator("mark").count() == 0
        assert page.locator("#found").inner_text() == ""
        assert page.locator("#completion").evaluate("host => host === document.activeElement")


def test_the_figure_shows_where_matches_lie(browser, long):
    group = group_of(long[1])
    with opened(browser, long[1]) as page:
        assert page.locator("svg.searched").count() == 0
        page.locator("#find").fill("import cache")
        holding = [n for n, text in enumerate(group["nodes"]["text"]) if "import cache" in text]
        shown = page.locator(".block.found").evaluate_all("all => all.map((one) => Number(one.dataset.node))")
        assert sorted(shown) == holding
        page.locator("#find").fill("nothing holds this")
        assert page.locator("#found").inner_text() == "nothing found"
        assert page.locator("svg.searched, #find-next:enabled").count() == 0


def test_a_folded_step_says_what_was_found_in_it(browser, long):
    with opened(browser, long[1]) as page:
        page.locator("#search").fill("recurrence first")  # of the picker: it marks, and goes nowhere
        assert page.locator("#find").input_value() == "recurrence first"
        assert page.locator("#completion .folded mark").all_text_contents() == ["1 found"]


def test_keys_do_nothing_while_one_types(browser, long):
    with opened(browser, long[1]) as page:
        before = page.evaluate(COMPLETION)
        page.locator("#find").focus()
        page.keyboard.type("jjf/n")
        assert page.locator("#find").input_value() == "jjf/n"
        assert page.evaluate(COMPLETION) == before


def test_markers_are_set_apart(browser, long):
    with opened(browser, long[1]) as page:
        page.locator("#fold").click()
        shown = set(page.locator("#completion .marker").all_text_contents())
        assert {"<think>", "</think>", "<tool_call>", "<|im_start|>tool", "<|im_end|>"} <= shown
        assert page.locator("#completion .boxed").last.text_content().startswith("\\boxed{")
        assert page.locator("#prompt .marker").first.text_content() == "[system]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_nothing_sticks_out(browser, long, forked, width, scheme):
    for html in (long[1], forked):
        with opened(browser, html, color_scheme=scheme, viewport={"width": width, "height": 740}) as page:
            page.locator("#fold").click()
            page.locator("#find").fill("the")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for name in ("#completion", "#prompt", ".find", "#forks"):
                if page.locator(name).is_visible():
                    box = page.locator(name).bounding_box()
                    assert box["x"] >= 0
                    assert box["x"] + box["width"] <= width
            assert page.locator("#completion").evaluate("host => host.scrollWidth - host.clientWidth") <= 0


def test_64_completions_of_4000_tokens_open_at_once(browser, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", long_rows(64, 4500, seed=3))
    with opened(browser, write_report([path], tmp_path / "r.html").html) as page:
        opening = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert opening < 3000, f"{opening} ms; about 200 alone"
        spent = page.evaluate(
            """() => {
                const begin = performance.now();
                document.getElementById('next').click();
                const find = document.getElementById('find');
                for (const asked of ['e', 'cache']) {
                    find.value = asked;
                    find.dispatchEvent(new Event('input'));
                }
                document.body.getBoundingClientRect();
                return performance.now() - begin;
            }"""
        )
        assert spent < 1500, f"{spent} ms for a completion and two searches; about 100 alone"


# Forks


def test_forks_are_drawn_and_listed(browser, forked):
    branching = group_of(forked)["branching"]
    with opened(browser, forked) as page:
        assert page.locator(".fork").count() == len(branching["forks"]) == 9
        assert page.locator(".fork .differs").count() == sum(
            fork["difference"] > 0 for fork in branching["forks"]
        )
        spans = [span for spans in branching["draws"] for span in spans if span[2] > 1]
        assert page.locator(".hatch").count() == len(spans) > 0
        assert page.locator("#fork-rows tr").count() == 9
        first = branching["forks"][0]
        assert page.locator("#fork-rows tr").first.inner_text().split("\t")[0] == "after token 60"
        assert page.locator(".fork-difference").first.inner_text() == f"{first['difference']:g}"
        page.locator("#fork-rows button").first.click()
        assert int(page.evaluate(COMPLETION)) == first["parts"][0][0]
        page.locator('.block[data-node="0"]').hover()
        assert "drawn4 times" in page.locator("#tip dl").inner_text().replace("\n", "")
        assert (
            "Completions fork on purpose after tokens 60 and 300" in page.locator("#statements").inner_text()
        )


def test_a_fork_stands_where_its_parts_part(browser, forked):
    """A fork of which the parts part at once lies at the end of the step that they share."""
    group = group_of(forked)
    nodes = group["nodes"]
    with opened(browser, forked) as page:
        seen = 0
        for i, fork in enumerate(group["branching"]["forks"]):
            step = next(n for n in path_of(group, fork["parts"][0][0]) if nodes["end"][n] >= fork["depth"])
            if nodes["end"][step] != fork["depth"]:
                continue
            seen += 1
            block = page.locator(f'.block[data-node="{step}"] > rect').first.bounding_box()
            comb = page.locator(".fork .line").nth(i).bounding_box()
            assert comb["x"] + comb["width"] == pytest.approx(block["x"] + block["width"], abs=5)
            assert block["y"] < comb["y"] < comb["y"] + comb["height"] < block["y"] + block["height"]
        assert seen > 3


def test_forks_that_lie_among_one_another_stay_apart(browser, tmp_path):
    rows = [
        {"group": 0, "token_ids": ids, "block": blocks, "reward": 0}
        for ids, blocks in [
            ([5, 6], [0, 2]),
            ([5, 8], [0, 3]),
            ([5, 6, 7], [1, 4, 4]),
            ([5, 8, 9], [1, 5, 5]),
        ]
    ]
    html = write_report([write_jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "r.html").html
    assert group_of(html)["order"] in ([0, 2, 1, 3], [2, 0, 3, 1]), "they do"
    with opened(browser, html) as page:
        one, other = (dot.bounding_box() for dot in page.locator(".fork circle").all())
        assert abs(one["x"] - other["x"]) > 9


def test_without_a_plan_nothing_of_it_is_shown(browser, tmp_path):
    html = write_report([write_jsonl(tmp_path / "r.jsonl", BY_HAND)], tmp_path / "r.html").html
    with opened(browser, html) as page:
        assert page.locator(".fork, .hatch, pattern").count() == 0
        assert page.locator("#forks").is_hidden()
        assert page.locator("#fork-key").is_hidden()
        assert page.locator("#statements .answer").count() == 2
