"""Where the problems of `jsonl:PATH` and `hub:ID` come from: rows with named columns, in one part or two."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError, missing_extra, unknown_name
from lambda_grpo.tasks.task import Split

PROMPT_COLUMNS = ("prompt", "problem", "question")
ANSWER_COLUMNS = ("answer", "solution")


@dataclass(frozen=True)
class ProblemRows:
    """Rows of one source.

    Attributes:
        source: its name, for messages.
        parts: the rows of each split; the same object twice if prompts are to be divided by checksum.
        place: names row i of a part in messages, such as `data.jsonl, line 3`.
    """

    source: str
    parts: Mapping[Split, Sequence[Mapping[str, Any]]]
    place: Callable[[Split, int], str]

    @property
    def divided(self) -> bool:
        """Whether the source has no test split of its own."""
        return self.parts.get("train") is self.parts.get("test")


def pick_columns(source: str, columns: Sequence[str]) -> tuple[str, str]:
    """The columns that hold the prompt and the gold answer: the first present of each kind.

    >>> pick_columns("open-rs", ["problem", "solution", "answer", "level"])
    ('problem', 'answer')

    Raises:
        InputError: one kind is absent.
    """
    prompts = [name for name in PROMPT_COLUMNS if name in columns]
    answers = [name for name in ANSWER_COLUMNS if name in columns]
    if not prompts or not answers:
        raise InputError(
            f"{source}: expected a column with the prompt ({', '.join(PROMPT_COLUMNS)}) and one with the "
            f"gold answer ({', '.join(ANSWER_COLUMNS)}); it has {', '.join(columns) or 'none'}: rename yours"
        )
    return prompts[0], answers[0]


def read_jsonl(path: str) -> ProblemRows:
    """The rows of a file with one JSON object per line, encoded in UTF-8.

    Raises:
        InputError: no such file, an empty one, or a line that is not a JSON object.
    """
    try:
        # Only \\n ends a line: JSON strings may hold the other characters that splitlines() splits at.
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"jsonl:{path}: cannot be read: {error}") from error
    if lines == [""]:
        raise InputError(f"jsonl:{path}: the file is empty; expected one JSON object per line")
    rows = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return ProblemRows(path, {"train": rows, "test": rows}, lambda _, i: f"{path}, line {i + 1}")


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}): {line[:60]!r}") from error
    if not isinstance(row, dict):
        raise InputError(f'{place}: expected {{"prompt": …, "answer": …}} or the like, got {line[:60]!r}')
    return row


def load_hub(name: str) -> ProblemRows:
    """The rows of a data set on the Hugging Face Hub, or of a local folder that `datasets` can load.

    Args:
        name: `ID`, `ID:CONFIG`, `ID:SPLIT` or `ID:CONFIG:SPLIT`, where a split may be a slice such as
            `train[:1000]`. Without one the data set's own `train` and `test` are used. A split that is named,
            or the only one, or `train` without `test`, is divided; a lone `test` is all for testing.

    Raises:
        InputError: `datasets` is not installed or cannot load that; unknown config or split.
    """
    if find_spec("datasets") is None:
        raise missing_extra("datasets", "tasks")
    identity, *rest = re.split(r":(?![^\[]*\])", name)  # not at the colon of a slice
    if not identity or len(rest) > 2:
        raise InputError(f"hub:{name}: expected hub:ID, hub:ID:CONFIG, hub:ID:SPLIT or hub:ID:CONFIG:SPLIT")
    config, split = _config_and_split(name, identity, rest)
    splits = _load(name, identity, config)
    parts: dict[Split, Any]
    if split:
        known = split.partition("[")[0]
        if known not in splits:
            raise unknown_name(f"split of hub:{identity}", known, splits)
        whole = splits[known] if known == split else _load(name, identity, config, split)
        parts = {"train": whole, "test": whole}
    elif "test" in splits:
        parts = {part: splits[part] for part in ("train", "test") if part in splits}
    elif "train" in splits or len(splits) == 1:
        whole = splits["train"] if "train" in splits else next(iter(splits.values()))
        parts = {"train": whole, "test": whole}
    else:
        raise InputError(f"hub:{name}: name one of its splits, hub:{name}:SPLIT: {', '.join(sorted(splits))}")
    return ProblemRows(f"hub:{name}", parts, lambda part, i: f"hub:{name}, {part} row {i}")


def _config_and_split(name: str, identity: str, rest: list[str]) -> tuple[str | None, str | None]:
    """Config and split; if only one part follows the ID, the data set decides which of the two it is."""
    if not rest:
        return None, None
    if len(rest) == 2:
        return rest[0], rest[1]
    from datasets import get_dataset_config_names

    configs = _attempt(name, get_dataset_config_names, identity)
    if rest[0] in configs:
        return rest[0], None
    if len(configs) > 1:
        raise unknown_name(f"config of hub:{identity}", rest[0], configs)
    return None, rest[0]


def _load(name: str, identity: str, config: str | None, split: str | None = None) -> Any:
    from datasets import load_dataset

    return _attempt(name, load_dataset, identity, config, split=split)


def _attempt(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return function(*args, **kwargs)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(
            f"hub:{name}: expected a data set on the Hub that can be reached, or a local folder of data "
            f"files. datasets says: {error}"
        ) from error
