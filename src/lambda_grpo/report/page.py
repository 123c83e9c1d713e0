"""The report's content → an HTML file.

Everything is inlined. uPlot (vendor/, MIT licence) draws the curves, because it adds 50 kB to each report,
and plotly.js would add 4 MB. The page's Content-Security-Policy lets only our own script run, known by its
hash, and lets nothing be fetched. Models' text is data: it stands in a block of JSON without any `<`, and the
script puts it on the page as text only.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda_grpo.errors import InputError, printable
from lambda_grpo.report.content import BEGINNING, ReportOptions, as_json, report_content
from lambda_grpo.rollouts import LeftOut
from lambda_grpo.whole_files import written_whole

if TYPE_CHECKING:
    from jinja2 import Template

_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "show.js",
    "colours.js",
    "overview.js",
    "verdict.js",
    "forks.js",
    "figure.js",
    "find.js",
    "reader.js",
    "explorer.js",
    "main.js",
)
_COMPARED = ("finals.js", "problems.js", "pair.js", "compare.js")  # of several runs
_WATCH = "watch.js"
_STYLES = ("vendor/uPlot.min.css", "report.css")
_COMPARED_STYLE = "compare.css"


@dataclass(frozen=True)
class Written:
    """What `write_report` wrote.

    Attributes:
        html, json: the two files.
        groups, shown: groups measured, and those shown in full on the page.
        left_out: what `skip_bad` passed over.
        notes: what the reader of the report should know, also on the page.
        answers: what is said of several runs side by side; empty for one run.
        forks: a sentence about each run that forked on purpose, also on the page.
    """

    html: Path
    json: Path
    groups: int
    shown: int
    left_out: LeftOut
    notes: Sequence[str]
    answers: Sequence[str] = ()
    forks: Sequence[str] = ()


def write_report(
    paths: Sequence[str | Path], out: str | Path = "report.html", options: ReportOptions | None = None
) -> Written:
    """Measure the rollouts under `paths`, write the page to `out` and its twin beside it as .json.

    Both are written aside and renamed, so that a browser never sees half a page. They replace an earlier
    report, and no JSON file of another kind.

    Raises:
        InputError: rollouts or paths that cannot be used, or another JSON file in the place of the twin.
    """
    html = Path(out)
    if html.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{html}: expected a name that ends in .html; the JSON twin is put beside it")
    twin = html.with_suffix(".json")
    _expect_replaceable(twin)
    content = report_content(paths, options or ReportOptions())
    try:
        for path, text in ((html, render(content)), (twin, as_json(content))):
            with written_whole(path) as aside:
                aside.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{html}: cannot be written: {error}") from error
    return Written(
        html,
        twin,
        content["groups_total"],
        len(content["groups"]),
        LeftOut(**content["left_out"]),
        content["notes"],
        content["comparison"]["answers"] if "comparison" in content else (),
        [f"{run['name']}: {run['branching']['sentence']}" for run in content["runs"] if "branching" in run],
    )


def _expect_replaceable(twin: Path) -> None:
    """Raise InputError if a file stands where the JSON twin goes, and is no earlier report."""
    try:
        with twin.open("rb") as file:
            found = file.read(len(BEGINNING))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{twin}: cannot be replaced by the page's JSON twin: {error}") from error
    if found != BEGINNING:
        raise InputError(
            f"{twin}: the page's JSON twin would overwrite this file, which is no report: choose another "
            "name for the page with -o"
        )


def render(content: Mapping[str, Any], version: str = "") -> str:
    """The page, as text.

    Args:
        content: what `report_content` made.
        version: of the page that `lambda-grpo watch` serves: such a page may ask its server, and nothing
            else, whether there is a newer one. A page without a version asks nothing.
    """
    several = "comparison" in content
    scripts = [*_SCRIPTS[:-1], *(_COMPARED if several else ()), _SCRIPTS[-1], *([_WATCH] if version else ())]
    return _filled(
        "report.html",
        title="Hidden process rewards",
        script=_joined(scripts),
        style=_joined((*_STYLES, _COMPARED_STYLE) if several else _STYLES),
        comparison=several,
        version=version,
        licence=_asset("vendor/uPlot.LICENSE"),
        data=as_json(content).replace("<", "\\u003c"),
    )


def render_waiting(why: str, version: str) -> str:
    """The page that `lambda-grpo watch` serves while there is nothing to report on, as text."""
    return _filled(
        "waiting.html",
        title="Waiting for rollouts",
        script=_asset(_WATCH),
        style=_joined(_STYLES),
        version=version,
        why=printable(why),
    )


def _filled(name: str, script: str, style: str, **values: str | bool) -> str:
    """A template with a style and a script, both known to the page's policy by their hashes."""
    hashes = {"script_hash": _hash(script), "style_hash": _hash(style)}
    return _template(name).render(script=script, style=style, **hashes, **values)


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _asset(name: str) -> str:
    return (files("lambda_grpo.report") / name).read_text("utf-8")


def _joined(names: Sequence[str]) -> str:
    return "\n".join(_asset(name) for name in names)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
