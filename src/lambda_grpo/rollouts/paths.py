"""Paths the user names → runs: a name and the rollout files that belong to it, in order of their steps."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lambda_grpo.errors import InputError

_SUFFIXES = {".parquet", ".jsonl"}
_OTHER_FILES = {"metrics.jsonl"}
_INNER = ("rollouts", "completions")  # ours, TRL's


@dataclass(frozen=True)
class FoundRun:
    """The rollout files of one training run.

    Attributes:
        name: the one that was given, else the shortest end of its path that tells it from the other runs.
        files: at least one, in natural order (2.jsonl before 10.jsonl).
        folder: the run folder, with what else the run wrote; None if only a file was named.
    """

    name: str
    files: Sequence[Path]
    folder: Path | None = None


def find_runs(paths: Sequence[str | Path]) -> list[FoundRun]:
    """The runs under `paths`: a rollout file, a run folder (ours, TRL's), a folder of rollout files, or a
    folder of such folders. A text `NAME=PATH` names its run; names are made unlike one another.

    Raises:
        InputError: a path that does not exist, cannot be read or holds no rollouts, a run or a file named
            twice, or no path at all.
    """
    found: dict[Path, list[Path]] = {}
    given: dict[Path, str] = {}
    for text in paths:
        name, path = "", Path(text)
        try:
            name, path = _named(text)
            runs = _runs_at(path)
        except (
            OSError,
            RuntimeError,
        ) as error:  # no permission, a name too long; links that lead in a circle
            raise InputError(f"{path}: cannot be read: {error}") from error
        for root, files in runs.items():
            if root in found:
                raise InputError(f"{path}: named twice; each run is read once")
            found[root] = files
            if name:
                given[root] = name if len(runs) == 1 else f"{name}/{root.name}"
    if not found:
        raise InputError("no path given: name a rollout file or a run folder")
    _expect_apart(found)
    names = dict(zip(found, _short_names(list(found)), strict=True)) | given
    unlike = _made_unlike([names[root] for root in found])
    return [
        FoundRun(name, files, _folder(root))
        for name, (root, files) in zip(unlike, found.items(), strict=True)
    ]


def _named(text: str | Path) -> tuple[str, Path]:
    """The name and the path of `NAME=PATH`; without a name, an empty one. A path that exists is a path."""
    name, sign, path = str(text).partition("=")
    is_path = isinstance(text, Path) or not (sign and name.strip() and path)
    if is_path or "/" in name or "\\" in name or Path(text).exists():
        return "", Path(text)
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder ({text} names it {name.strip()!r})")
    return name.strip(), Path(path)


def _expect_apart(found: Mapping[Path, Sequence[Path]]) -> None:
    """No file belongs to two runs, as it would to a run folder and to the folder rollouts in it."""
    owner: dict[str, Path] = {}
    for root, files in found.items():
        for file in files:
            other = owner.setdefault(os.path.realpath(file), root)
            if other != root:
                raise InputError(f"{root}: {file.name} is named twice, it is in {other} too")


def _made_unlike(names: Sequence[str]) -> list[str]:
    """The names, equal ones with numbers.

    >>> _made_unlike(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    unlike: dict[str, None] = {}
    for name in names:
        number, new = 1, name
        while new in unlike:
            number += 1
            new = f"{name} ({number})"
        unlike[new] = None
    return list(unlike)


def _folder(root: Path) -> Path | None:
    if root.is_file():
        return None
    return root.parent if root.name in _INNER else root


def _runs_at(path: Path) -> dict[Path, list[Path]]:
    if path.is_file():
        return {path.resolve(): [path]}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    own = _files_of_run(path)
    if own:
        return {path.resolve(): own}
    below = {
        folder.resolve(): _files_of_run(folder)
        for folder in sorted(path.iterdir(), key=_natural)
        if folder.is_dir()
    }
    runs = {folder: files for folder, files in below.items() if files}
    if not runs:
        raise InputError(
            f"{path}: holds no rollouts. Expected rollouts/*.parquet (lambda-grpo, with save_rollouts), "
            "completions/*.parquet (TRL, with log_completions), *.jsonl (verl, with rollout_data_dir), or "
            "folders with these"
        )
    return runs


def _files_of_run(folder: Path) -> list[Path]:
    for place in (*(folder / name for name in _INNER), folder):
        if place.is_dir():
            files = [
                file
                for file in place.iterdir()
                if file.suffix in _SUFFIXES
                and file.name not in _OTHER_FILES
                and not file.name.startswith(".")  # still being written
            ]
            if files:
                return sorted(files, key=_natural)
    return []


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which numbers compare as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _short_names(roots: Sequence[Path]) -> list[str]:
    """For each path the fewest last parts that make it unlike the others; what every run folder has is
    left away."""
    outer = [root.parent if root.name in _INNER and root.is_dir() else root for root in roots]
    roots = outer if len(set(outer)) == len(outer) else roots
    names = []
    for root in roots:
        count = 1
        others = [other for other in roots if other != root]
        while any(other.parts[-count:] == root.parts[-count:] for other in others):
            count += 1
        names.append("/".join(root.parts[-count:]))
    return names
