"""A coverage-guided fuzzer (atheris, libFuzzer) over rollout files, the report, data sets and recipes.

    pip install atheris
    python tests/support/fuzz_readers.py FOLDER -max_total_time=1500     # libFuzzer's own options

Any exception but `InputError`, a page that is not inert, and a file that takes 10 s are crashes. Each new place is
written to FOLDER/crashes and the search goes on. Not part of the tests: what it finds becomes one.
"""

import hashlib
import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["lambda_grpo"]):
    import hostile
    import pyarrow as pa
    import pyarrow.parquet as pq
    from rollout_samples import BY_HAND

    from lambda_grpo.evaluating.answer_log import AnswerLog
    from lambda_grpo.tasks.data_files import read_jsonl

SLOW_S = 10.0


def value(source: atheris.FuzzedDataProvider, name: str) -> Any:
    """Mostly one that fits the column, so that rows come through the first checks."""
    kind = source.ConsumeIntInRange(0, 11)
    if kind < 8:
        ids = [source.ConsumeIntInRange(0, 3) for _ in range(source.ConsumeIntInRange(0, 4))]
        fitting = {
            "step": kind // 6,
            "group": kind // 4,
            "uid": str(kind // 4),
            "token_ids": ids,
            "tokens": [hostile.TEXTS[i] for i in ids],
            "reward": kind / 2,
            "score": kind / 2,
            "advantage": kind - 3.5,
            "accuracy_reward": kind / 2,
            "correct": kind % 2 == 0,
            "acc": kind % 2,
        }
        return fitting.get(name, f"{name} {kind // 4}")
    if kind == 8:
        return source.PickValueInList(hostile.NUMBERS)
    if kind == 9:
        return source.PickValueInList(hostile.TEXTS)
    if kind == 10:
        return source.PickValueInList(hostile.SHAPES)
    return source.ConsumeUnicode(source.ConsumeIntInRange(0, 40))


def columns(source: atheris.FuzzedDataProvider) -> list[str]:
    start = source.PickValueInList(
        [
            ["group", "reward", "completion"],
            ["group", "reward", "token_ids", "tokens", "step"],
            ["step", "prompt", "completion", "accuracy_reward", "advantage"],
            ["input", "output", "score"],
            ["input", "output", "score", "uid", "acc"],
            [],
        ]
    )
    more = [
        source.PickValueInList([*hostile.COLUMNS, *hostile.OTHER_COLUMNS])
        for _ in range(source.ConsumeIntInRange(0, 3))
    ]
    return list(dict.fromkeys([*start, *more]))


def json_lines(source: atheris.FuzzedDataProvider) -> bytes:
    names = columns(source)
    lines = []
    for _ in range(source.ConsumeIntInRange(1, 8)):
        fields = {name: json.dumps(value(source, name)) for name in names}
        change = source.ConsumeIntInRange(0, 15)
        if change == 0 and names:
            fields[source.PickValueInList(names)] = source.PickValueInList(hostile.RAW)
        elif change == 1 and names:
            del fields[source.PickValueInList(names)]
        elif change == 2:
            fields[source.ConsumeUnicodeNoSurrogates(8)] = "1"
        line = "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in fields.items()) + "}"
        lines.append(line.encode("utf-8", "surrogatepass"))
    text = source.PickValueInList([b"\n", b"\n", b"\n", b"\r\n", b"\r", b""]).join(lines)
    if source.ConsumeIntInRange(0, 9) == 0:
        text = (
            source.PickValueInList([b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08", b"PAR1", b"\x00"]) + text
        )
    if source.ConsumeIntInRange(0, 9) == 0:
        text = text[: source.ConsumeIntInRange(0, len(text))]
    return text


def parquet(source: atheris.FuzzedDataProvider, path: Path) -> None:
    """A sound file with unsound values; then, perhaps, bytes of it are changed."""
    names = columns(source)
    rows = source.ConsumeIntInRange(0, 6)
    arrays = []
    for name in names:
        values = [value(source, name) for _ in range(rows)]
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            array = pa.array([str(one).encode("utf-8", "surrogatepass") for one in values], pa.binary())
        kind = source.ConsumeIntInRange(0, 7)
        if kind == 0 and pa.types.is_binary(array.type):
            array = array.view(pa.string())  # text that may not be UTF-8
        elif kind == 1:
            array = pa.array(range(rows), pa.timestamp("ns"))
        elif kind == 2 and not pa.types.is_nested(array.type) and not pa.types.is_null(array.type):
            array = array.dictionary_encode()
        arrays.append(array)
    if source.ConsumeIntInRange(0, 9) == 0 and names:
        names.append(names[0])
        arrays.append(arrays[0])
    path.unlink(missing_ok=True)
    try:
        pq.write_table(pa.table(arrays, names=names), path, compression="none")
    except pa.ArrowException:  # objects without fields, say, have no place in Parquet
        path.write_bytes(b"PAR1")
    if source.ConsumeIntInRange(0, 2) == 0:
        content = bytearray(path.read_bytes())
        for _ in range(source.ConsumeIntInRange(1, 8)):
            content[source.ConsumeIntInRange(0, len(content) - 1)] = source.ConsumeIntInRange(0, 255)
        path.write_bytes(content)


def try_one(source: atheris.FuzzedDataProvider, folder: Path) -> None:
    kind = source.ConsumeIntInRange(0, 9)
    size = source.PickValueInList([None, None, 2, 3])
    if kind == 0:
        path = folder / "d.jsonl"
        path.write_bytes(source.ConsumeBytes(2000))
        hostile.assert_only_refused(lambda: read_jsonl(str(path)))
    elif kind == 1:
        path = folder / "a.jsonl"
        path.write_bytes(source.PickValueInList([b'{"settings": {}}\n', b""]) + source.ConsumeBytes(2000))
        hostile.assert_only_refused(lambda: AnswerLog(path, {}))
    elif kind == 2:
        path = folder / "r.jsonl"
        path.write_bytes(source.ConsumeBytes(4000))
        hostile.assert_survived([path], folder / "out.html", size)
    elif kind <= 5:
        path = folder / "1.parquet"
        parquet(source, path)
        hostile.assert_survived([path], folder / "out.html", size)
    else:
        run = folder / "run"
        run.mkdir(exist_ok=True)
        (run / "1.jsonl").write_bytes(json_lines(source))
        (run / "2.jsonl").write_bytes(json_lines(source) if kind == 6 else b"")
        paths = [run] if kind == 6 else [run / "1.jsonl"]
        hostile.assert_survived(paths, folder / "out.html", size)


class Fuzzer:
    """Tries inputs; keeps one example of each place where something other than `InputError` came up."""

    def __init__(self, folder: Path) -> None:
        self.crashes = folder / "crashes"
        self.crashes.mkdir(parents=True, exist_ok=True)
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.seen: set[str] = set()

    def __call__(self, data: bytes) -> None:
        started = time.monotonic()
        try:
            try_one(atheris.FuzzedDataProvider(data), self.scratch)
        except Exception as error:
            self.keep(data, error)
        if time.monotonic() - started > SLOW_S:
            self.keep(data, TimeoutError(f"took {time.monotonic() - started:.0f} s"))

    def keep(self, data: bytes, error: Exception) -> None:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "lambda_grpo" in frame.filename
        ]
        last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the harness"
        place = f"{type(error).__name__} at {last}"
        if place in self.seen:
            return
        self.seen.add(place)
        name = hashlib.sha256(data).hexdigest()[:12]
        (self.crashes / name).write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self.crashes / f"{name}.txt").write_text(text, "utf-8", "backslashreplace")
        print(f"crash {len(self.seen)}: {place}: {str(error)[:200]!r}", flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in BY_HAND)
    (corpus / "sound").write_bytes(lines.encode() + b"\x02")  # the provider reads its numbers from the end
    warnings.simplefilter("ignore")
    atheris.Setup(
        [sys.argv[0], str(corpus), "-max_len=4096", "-rss_limit_mb=3000", *sys.argv[2:]], Fuzzer(folder)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
