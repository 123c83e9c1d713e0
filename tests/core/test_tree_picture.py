"""The pictures of trees and credits: where blocks lie, by hand; and nothing in them but plain marks."""

import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from lambda_grpo import InputError, ProcessTree, TokenCredit, credit
from lambda_grpo.tree_picture import CELL, CHARACTER, ROW, TOP

SVG = "{http://www.w3.org/2000/svg}"
# Rows in the tree's order: #2 [4], then #1 [5, 6, 7] and #0 [5, 6, 8].
COMPLETIONS = [[5, 6, 8], [5, 6, 7], [4]]
REWARDS = [1.0, 0.0, 0.0]
TEXTS = {4: "x", 5: "So", 6: " long", 7: "\n", 8: "<script>alert(1)</script>"}
LEFT = 2 * CHARACTER + 8  # the labels are "#0", "#1", "#2"


@pytest.fixture
def tree() -> ProcessTree:
    return ProcessTree.build(COMPLETIONS)


def blocks(html: str) -> list[tuple[str, tuple[int, int, int, int], str, str]]:
    """What each block says when pointed at, its (x, y, width, height), its colour and its opacity."""
    root = ET.fromstring(html)  # it is well-formed XML, or this raises
    return [
        (group.find(f"{SVG}title").text, box(rect), rect.get("fill"), rect.get("fill-opacity"))
        for group in root.iter(f"{SVG}g")
        for rect in group.iter(f"{SVG}rect")
    ]


def box(rect: ET.Element) -> tuple[int, int, int, int]:
    return tuple(int(rect.get(name)) for name in ("x", "y", "width", "height"))


def texts(html: str) -> list[str]:
    return [text.text for text in ET.fromstring(html).iter(f"{SVG}text")]


def test_a_block_is_as_wide_as_its_tokens_and_as_high_as_its_completions(tree: ProcessTree) -> None:
    assert (LEFT, TOP, ROW, CELL) == (22, 26, 20, 12)
    found = blocks(tree._repr_html_())
    assert [(tip, place) for tip, place, *_ in found] == [
        ("step 1: 1 of 3 completions, token 0", (22, 26, 12, 20)),
        ("step 2: 2 of 3 completions, tokens 0 to 1", (22, 46, 24, 40)),
        ("step 3: 1 of 3 completions, token 2", (46, 46, 12, 20)),
        ("step 4: 1 of 3 completions, token 2", (46, 66, 12, 20)),
    ]
    # Grey of opacity .04 + .26 |λ|/G: shares 1/3 and 2/3.
    assert [look for *_, colour, opacity in found for look in [(colour, opacity)]] == [
        ("currentColor", "0.13"), ("currentColor", "0.21"), ("currentColor", "0.13"), ("currentColor", "0.13"),
    ]  # fmt: skip
    assert texts(tree._repr_html_())[:4] == [
        "3 completions, 5 process steps, 7 tokens, 5 unique", "#2", "#1", "#0",
    ]  # fmt: skip


def test_colours_are_pushes(tree: ProcessTree) -> None:
    """a = (1.1545, −.5772, −.5772): GRPO pushes the shared step by their sum, λ-GRPO by their mean."""
    tips = [tip for tip, *_ in blocks(tree.picture(credit=credit.grpo(tree, REWARDS)).svg)]
    assert [tip.rpartition(" ")[2] for tip in tips] == ["−0.577", "+0.577", "−0.577", "+1.15"]
    found = blocks(tree.picture(credit=credit.lambda_grpo(tree, REWARDS)).svg)
    assert [tip.rpartition(" ")[2] for tip, *_ in found] == ["−0.577", "+0.289", "−0.577", "+1.15"]
    # Opacity .04 + .66 √(|push| / 1.1545): √.5 = .707, √.25 = .5, √1.
    assert [(colour, opacity) for *_, colour, opacity in found] == [
        ("#dd6b10", "0.51"), ("#1f86d1", "0.37"), ("#dd6b10", "0.51"), ("#1f86d1", "0.70"),
    ]  # fmt: skip


def test_a_step_is_cut_where_its_push_changes(tree: ProcessTree) -> None:
    """Token 0 of the shared step is masked in both its completions, so nothing pushes it."""
    mask = np.array([[0, 1, 1], [0, 1, 1], [1, 0, 0]])
    found = blocks(tree.picture(credit=credit.grpo(tree, REWARDS, mask=mask)).svg)
    assert found[1][:2] == ("step 2: 2 of 3 completions, token 0: push 0", (22, 46, 12, 40))
    assert found[1][2:] == ("currentColor", "0.04")
    assert found[2][:2] == ("step 2: 2 of 3 completions, token 1: push +0.577", (34, 46, 12, 40))


def test_columns_are_as_wide_as_their_longest_text(tree: ProcessTree) -> None:
    """Token 0: "So", 2 × 7 + 6 = 20 pixels. Token 1: "·long", 41. Token 2: 14 characters, 104."""
    picture = tree.picture(decode=TEXTS.__getitem__)
    assert [place for _, place, *_ in blocks(picture.svg)] == [
        (22, 26, 20, 20), (22, 46, 61, 40), (83, 46, 104, 20), (83, 66, 104, 20),
    ]  # fmt: skip
    assert texts(picture.svg)[4:-1] == ["x", "So", "·long", "↵", "<script>alert…"]


def test_no_text_runs_out_of_the_picture(tree: ProcessTree) -> None:
    for shown in (
        tree,
        tree.picture(credit=credit.grpo(tree, REWARDS), decode=TEXTS.__getitem__, rewards=REWARDS),
    ):
        root = ET.fromstring(shown._repr_html_())
        width = int(next(root.iter(f"{SVG}svg")).get("width"))
        ends = [int(text.get("x")) + CHARACTER * len(text.text) for text in root.iter(f"{SVG}text")]
        assert max(ends) <= width


def test_rewards_stand_beside_their_completions(tree: ProcessTree) -> None:
    assert texts(tree.picture(rewards=[1, None, -0.5]).svg)[1:4] == [
        "#2 reward −0.5", "#1 reward none", "#0 reward 1",
    ]  # fmt: skip


def test_a_shared_step_shows_its_push_if_it_is_wide_enough(tree: ProcessTree) -> None:
    """ "+0.577" takes 6 × 7 + 6 = 48 pixels: 61 with these texts, 24 without."""
    pushed = credit.grpo(tree, REWARDS)
    assert "+0.577" in texts(tree.picture(credit=pushed, decode=TEXTS.__getitem__).svg)
    assert "+0.577" not in texts(tree.picture(credit=pushed).svg)


@pytest.mark.parametrize(
    "text",
    ['"><script>alert(1)</script>', "</text></svg>", "&lt;", "\x00\x1b[0m", "\ud800", "\u202eabc", "]]>", "a" * 10**6, ""],
)  # fmt: skip
def test_hostile_text_stays_text(tree: ProcessTree, text: str) -> None:
    picture = tree.picture(decode=lambda _: text)
    root = ET.fromstring(picture._repr_html_().encode())
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names <= {"div", "svg", "g", "title", "rect", "text"}
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]
    assert len(picture.svg) < 10_000
    assert all((character or "x").isprintable() for character in "".join(t or "" for t in texts(picture.svg)))


def test_a_large_tree_is_cut_and_says_so() -> None:
    rng = np.random.default_rng(0)
    rows = [[*range(50), *rng.integers(0, 9, 2000)] for _ in range(500)]
    tree = ProcessTree.build(rows)
    began = time.perf_counter()
    html = tree._repr_html_()
    assert time.perf_counter() - began < 2
    assert len(html) < 50_000
    assert "Shown: 32 of 500 completions, the first 60 of 2,050 tokens" in html
    places = [place for _, place, *_ in blocks(html)]
    left = 4 * CHARACTER + 8
    assert places[0] == (left, TOP, 50 * CELL, 32 * ROW)  # the trunk, which goes on below
    assert max(x + width for x, _, width, _ in places) == left + 60 * CELL
    assert max(y + height for _, y, _, height in places) == TOP + 32 * ROW
    pushed = credit.grpo(tree, rng.random(500))
    assert len(pushed._repr_html_()) < 50_000
    assert "Shown: 32 of 500" in pushed._repr_html_()
    assert "Shown" not in tree.picture(max_completions=500, max_tokens=2050).svg


@pytest.mark.parametrize("rows", [[[]], [[], []], [[7]], [[7], []], [[7, 8], [7, 8]], [[7], [7, 8]]])
def test_small_and_empty_groups_have_pictures(rows: list[list[int]]) -> None:
    tree = ProcessTree.build(rows)
    found = credit.grpo(tree, [0.0] * len(rows))
    for shown in (tree, tree.picture(credit=found, decode=str), found):
        ET.fromstring(shown._repr_html_())


def test_a_credit_alone_has_a_block_for_each_run_of_equal_pushes() -> None:
    pushed = TokenCredit(
        np.array([[1, 1, -2], [1, 0, 0]], np.float32), np.array([[1, 1, 0.5], [0, 0, 0]], np.float32)
    )
    found = blocks(pushed._repr_html_())
    assert [(tip, place) for tip, place, *_ in found] == [
        ("completion #0, tokens 0 to 1: push +1", (22, 26, 24, 20)),
        ("completion #0, token 2: push −1", (46, 26, 12, 20)),
    ]  # the second completion is masked


def test_a_credit_that_is_no_number_is_drawn() -> None:
    values = np.array([[np.nan, np.inf, 1]], np.float32)
    assert len(blocks(TokenCredit(values, np.ones_like(values))._repr_html_())) == 3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"rewards": [1.0]}, "rewards: expected 3"),
        ({"rewards": ["a", "b", "c"]}, "rewards: expected numbers"),
        ({"max_tokens": 0}, "max_tokens is 0, expected at least 1"),
        ({"max_completions": -1}, "max_completions is -1"),
        ({"credit": TokenCredit(np.zeros((3, 2)), np.zeros((3, 2)))}, r"expected shape \(3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(tree: ProcessTree, wanted: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tree.picture(**wanted)
