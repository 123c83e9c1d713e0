"""Files are whole or absent; JSON is strict."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lambda_grpo.whole_files import sync, without_nan, write_json, written_whole


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_read_only_file_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a model's own code with its permissions; nobody but root may write such a file."""
    code, opened = tmp_path / "modeling_mine.py", os.open

    def refuse_to_write(path: Path, flags: int, *rest: Any) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *rest)

    code.touch()
    monkeypatch.setattr(os, "open", refuse_to_write)
    sync(code)


def test_json_has_null_for_what_it_lacks(tmp_path: Path) -> None:
    content = {"a": [math.nan, {"b": (math.inf, 0.1 + 0.2, np.float64("nan"))}], 3: True, "n": None}
    expected = {"a": [None, {"b": [None, 0.1 + 0.2, None]}], 3: True, "n": None}
    assert without_nan(content) == expected
    assert without_nan(1 / 3, 3) == 0.333
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text())["a"] == expected["a"]
