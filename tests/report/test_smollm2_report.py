"""The report on rollouts in the tokens of a real language model, SmolLM2: parts of words and of characters."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from report_texts import shown_completions
from rollout_samples import write_jsonl

from lambda_grpo.policy import load_tokenizer
from lambda_grpo.report import ReportOptions, write_report

pytestmark = pytest.mark.slow

END = "<|im_end|>"
GROUPS = {
    "words and spaces": [
        f"The largest is  69.{END}",
        f"The larger one is 69{END}",
        f" The\n\n\tlargest{END}",
    ],
    # 😀 and 😁 differ in their third token, 🦊 and 🦁 too; a step ends within the character.
    "emoji": [f"So 😀 it is{END}", f"So 😁 it is{END}", "So 🦊", "So 🦁", "So 👩‍👩‍👧!", "So 👩‍👩‍👦!"],
    "other scripts": ["日本", "日曜", "año ñandú", "año ñame", "é\u0301e\u0301"],
    "chat markers": [f"Yes.{END}\n<|im_start|>user\nAnd?{END}", f"Yes.{END}\n<|im_start|>assistant\n", END],
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Any:
    return load_tokenizer(str(smollm2_folder))


def texts_of(folder: Path, smollm2_folder: Path, groups: dict[str, list[list[int]]]) -> dict[str, Any]:
    """The groups as the report shows them, by name."""
    rows = [
        {"group": name, "prompt": "Say something.", "token_ids": ids, "reward": i % 2}
        for name, completions in groups.items()
        for i, ids in enumerate(completions)
    ]
    options = ReportOptions(tokenizer=str(smollm2_folder), groups=len(groups))
    written = write_report([write_jsonl(folder / "r.jsonl", rows)], folder / "r.html", options)
    return {group["group"]: group for group in json.loads(written.json.read_text())["groups"]}


def test_the_text_shown_is_what_the_tokenizer_decodes(
    tmp_path: Path, smollm2_folder: Path, tokenizer: Any
) -> None:
    """Word parts, leading and double spaces, emoji, chat markers; no step shows half a character."""
    groups = {name: [tokenizer(text)["input_ids"] for text in texts] for name, texts in GROUPS.items()}
    shown = texts_of(tmp_path, smollm2_folder, groups)
    assert {name: shown_completions(group) for name, group in shown.items()} == GROUPS
    for group in shown.values():
        assert group["texts_exact"]
        assert "\ufffd" not in "".join(group["nodes"]["text"])
    steps = shown["emoji"]["nodes"]["text"]
    assert {"So", "😀 it is" + END, "😁 it is" + END, "🦊", "🦁"} <= set(steps)


def test_completions_cut_anywhere(tmp_path: Path, smollm2_folder: Path, tokenizer: Any) -> None:
    """A completion may be cut off within a character, which `decode` shows as U+FFFD; its text has it too."""
    rng = random.Random(0)
    pool = [tokenizer(text)["input_ids"] for texts in GROUPS.values() for text in texts]
    groups = {}
    for name in map(str, range(40)):
        begin, *ends = rng.choices(pool, k=6)
        kept = begin[: rng.randint(0, len(begin))]
        groups[name] = [kept + end[: rng.randint(1, len(end))] for end in ends]
    for name, group in texts_of(tmp_path, smollm2_folder, groups).items():
        for ids, text in zip(groups[name], shown_completions(group), strict=True):
            whole = tokenizer.decode(ids)
            goes_on = any(other[: len(ids)] == ids and len(other) > len(ids) for other in groups[name])
            assert text == (whole.rstrip("\ufffd") if goes_on else whole)
