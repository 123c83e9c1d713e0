"""One rollout file of any trainer → blocks of rows. docs/rollouts.md is the schema.

A file that begins with Parquet's magic bytes is Parquet, any other is JSON lines; the names of the columns
tell who wrote it. A file is read as a stream of `FileRows`, so that memory holds one of them at a time: the
neighbouring rows of one group or, in TRL's and verl's files, which have no group ids, of one training step.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from lambda_grpo.errors import InputError
from lambda_grpo.rollouts.values import MISSING, short

_BATCH = 2048  # rows of a Parquet file decoded at a time
# What a row may ask for. A completion takes far less, and 64 MB of `[],[],…` are already 1.3 GB in memory.
_LINE_BYTES = 2**26
_DEPTH = 100
_NAME_LENGTH = 500


@dataclass(frozen=True)
class Format:
    """How one kind of file is recognised, and what its columns are called."""

    name: str
    needs: frozenset[str]  # every one of these columns
    one_of: frozenset[str] = frozenset()  # and at least one of these
    columns: Mapping[str, str] = field(default_factory=dict)  # our name → the file's, if they differ


FORMATS = [
    Format("lambda-grpo", frozenset({"group", "reward"}), frozenset({"completion", "token_ids", "tokens"})),
    Format("TRL", frozenset({"step", "prompt", "completion", "advantage"})),
    Format(
        "verl",
        frozenset({"input", "output", "score"}),
        columns={
            "prompt": "input",
            "completion": "output",
            "reward": "score",
            "group": "uid",
            "correct": "acc",
        },
    ),
]


@dataclass(frozen=True)
class FileRows:
    """Neighbouring rows that one group or step consists of; each column a list, absent if the file has none.

    Attributes:
        file, format: the rows' source.
        numbers: the row of each in its file, counted from 1 (the line of a JSONL file).
        columns: our names (`step`, `group`, `prompt`, `prompt_ids`, `completion`, `token_ids`, `tokens`,
            `block`, `reward`, `advantage`, `correct`) → one value per row; in TRL's files also the reward
            functions.
    """

    file: Path
    format: Format
    numbers: Sequence[int]
    columns: Mapping[str, Sequence[Any]]


OnProblem = Callable[[Path, int | None, str], None]  # a problem with a row, or with the whole file


def recognise(file: Path, columns: Sequence[str]) -> Format:
    """The format whose columns these are.

    Raises:
        InputError: none is.
    """
    names = set(columns)
    for fmt in FORMATS:
        if fmt.needs <= names and (not fmt.one_of or fmt.one_of & names):
            return fmt
    got = ", ".join(short(name).strip("'") for name in sorted(names)[:20]) + (
        ", …" if len(names) > 20 else ""
    )
    known = "; ".join(
        f"{fmt.name}: {', '.join(sorted(fmt.needs))}"
        + (f" and one of {', '.join(sorted(fmt.one_of))}" if fmt.one_of else "")
        for fmt in FORMATS
    )
    near = min(FORMATS, key=lambda fmt: len(fmt.needs - names))
    lacks = near.needs - names
    hint = f" {near.name}'s lacks only {next(iter(lacks))!r}." if len(lacks) == 1 else ""
    raise InputError(f"{file}: columns {got} fit no known rollout file.{hint} Known: {known}")


def read_rows(file: Path, report: OnProblem) -> Iterator[FileRows]:
    """The rows of one file, in blocks; problems go to `report`, which raises or counts them."""
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            return report(file, None, "is no file, expected rollouts")
        with file.open("rb") as handle:
            head = handle.read(4)
    except OSError as error:
        return report(file, None, f"cannot be read: {error}")
    if head[:2] == b"\x1f\x8b":
        return report(file, None, "is compressed, expected JSON lines or Parquet: unpack it with gunzip")
    if not head:
        return report(file, None, "is empty, expected rollouts")
    rows = _parquet(file, report) if head == b"PAR1" else _json_lines(file, report)
    yield from _blocks(file, _placed(file, rows, report))


_Row = tuple[Format, int, Mapping[str, Any]]


def _placed(file: Path, rows: Iterator[_Row], report: OnProblem) -> Iterator[_Row]:
    """The rows that say what step and group they belong to."""
    for fmt, number, values in rows:
        step, group = values.get("step", 0), values.get("group", 0)
        if type(step) is not int or abs(step) > 2**53:
            report(file, number, f"step is {short(step)}, expected an integer")
        elif not isinstance(group, str | int | float) or len(str(group)) > _NAME_LENGTH:
            name = fmt.columns.get("group", "group")
            expected = f"a number, or text of at most {_NAME_LENGTH} characters"
            report(file, number, f"{name} is {short(group)}, expected {expected}")
        else:
            yield fmt, number, values


def _blocks(file: Path, rows: Iterator[_Row]) -> Iterator[FileRows]:
    """Join neighbouring rows of one step or, in our own format, of one group of a step."""

    def block(row: _Row) -> Any:
        fmt, _, values = row
        group = str(values.get("group")) if fmt.name == "lambda-grpo" else None
        return fmt.name, values.get("step"), group

    for _, members in groupby(rows, key=block):
        kept = list(members)
        names = list(dict.fromkeys(name for _, _, values in kept for name in values))
        columns = {name: [values.get(name) for _, _, values in kept] for name in names}
        yield FileRows(file, kept[0][0], [number for _, number, _ in kept], columns)


def _parquet(file: Path, report: OnProblem) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            fmt, ours = _columns_of(file, parquet.schema_arrow)
            for batch in parquet.iter_batches(_BATCH, columns=list(ours.values())):
                lists = {name: _column(name, batch.column(theirs)) for name, theirs in ours.items()}
                for values in zip(*lists.values(), strict=True):
                    number += 1
                    yield fmt, number, dict(zip(lists, values, strict=True))
    except InputError as error:
        report(file, None, str(error).removeprefix(f"{file}: "))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # values raise too
        report(file, number + 1 if number else None, f"is not a whole Parquet file: {str(error).rstrip('.')}")


def _columns_of(file: Path, schema: Any) -> tuple[Format, dict[str, str]]:
    """The format, and our name → the file's; of TRL's only what can be a reward or is TRL's own.

    Raises:
        InputError: no known format, or a name that comes twice.
    """
    import pyarrow as pa

    fmt = recognise(file, schema.names)
    own = fmt.needs if fmt.name == "TRL" else schema.names
    names = [field.name for field in schema if field.name in own or pa.types.is_floating(field.type)]
    ours = _our_names(fmt, names)
    for name in ours.values():
        if names.count(name) > 1:
            raise InputError(f"has {names.count(name)} columns {name!r}")
    return fmt, ours


def _our_names(fmt: Format, names: Sequence[str]) -> dict[str, str]:
    """Our name → the file's, of the columns worth reading."""
    if fmt.name == "TRL":
        return {name: name for name in names}
    ours = [
        "step", "group", "prompt", "prompt_ids", "completion", "token_ids", "tokens", "reward", "advantage",
        "correct",
    ]  # fmt: skip
    if fmt.name == "lambda-grpo":  # elsewhere a column of this name is somebody's own
        ours.append("block")
    theirs = {name: fmt.columns.get(name, name) for name in ours}
    return {name: column for name, column in theirs.items() if column in names}


def _column(name: str, values: Any) -> Sequence[Any]:
    """A column as a list; token ids as one array per row, without copying them."""
    import pyarrow as pa

    kind = values.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    ids = lists and name in ("token_ids", "prompt_ids", "block")
    if not ids or not pa.types.is_integer(kind.value_type) or values.values.null_count:
        return list(values.to_pylist())
    flat = values.values.to_numpy()
    rows: list[Any] = [flat[a:b] for a, b in pairwise(values.offsets.to_numpy().tolist())]
    for i in np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)) if values.null_count else ():
        rows[i] = None
    return rows


def _json_lines(file: Path, report: OnProblem) -> Iterator[_Row]:
    fmt: Format | None = None
    first: Sequence[str] = ()  # names of columns; a table of TRL's has the same in each row
    step = _step_of_name(file)
    with file.open("rb") as handle:
        for number, line in enumerate(_lines(handle), 1):
            if not line.strip():
                continue
            try:
                values = _object(line)
                if fmt is None:
                    fmt, first = recognise(file, list(values)), list(values)
                missing = sorted(fmt.needs - values.keys())
                if fmt.one_of and not fmt.one_of & values.keys():
                    missing.append(" or ".join(sorted(fmt.one_of)))
                if missing and missing != [fmt.columns.get("reward", "reward")]:  # its group says so
                    raise InputError(
                        f"has no {', '.join(missing)}: the file began as {fmt.name}'s, and formats are not "
                        "mixed within one file"
                    )
            except InputError as error:
                report(file, number, str(error).removeprefix(f"{file}: "))
            else:
                names = [name for name in first if name in values] if fmt.name == "TRL" else list(values)
                ours = {name: values[column] for name, column in _our_names(fmt, names).items()}
                if missing:
                    ours["reward"] = MISSING
                if fmt.name == "verl" and step is not None:
                    ours.setdefault("step", step)
                yield fmt, number, ours


def _lines(handle: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of a line that is too long only its beginning, which is too long as well."""
    line = handle.readline(_LINE_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    while line:
        yield line
        rest = line
        while len(rest) > _LINE_BYTES and not rest.endswith(b"\n"):
            rest = handle.readline(_LINE_BYTES + 1)
        line = handle.readline(_LINE_BYTES + 1)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        InputError: there is none, or one that is too long or too deep.
    """
    if len(line) > _LINE_BYTES:
        raise InputError(f"is longer than {_LINE_BYTES >> 20} MB, expected one completion per line")
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
    except ValueError as error:  # numbers with thousands of digits raise it too
        raise InputError(f"is not a whole JSON object: {error}") from error
    except RecursionError as error:
        raise InputError("is nested too deeply") from error
    if not isinstance(values, dict):
        raise InputError(f"holds a {type(values).__name__}, expected a JSON object")
    if line.count(b"[") + line.count(b"{") > _DEPTH and _too_deep(values):
        raise InputError("is nested too deeply")
    return values


def _too_deep(values: Any) -> bool:
    """Whether lists and objects lie in one another more than `_DEPTH` times; without recursion."""
    level = [values]
    for _ in range(_DEPTH):
        inside = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inside if isinstance(item, list | dict)]
    return bool(level)


def _step_of_name(file: Path) -> int | None:
    """verl names a step's file after it: 120.jsonl."""
    return int(file.stem) if re.fullmatch(r"[0-9]{1,12}", file.stem) else None
