"""What docs/build_site.py, docs/doctests.py and docs/settings_page.py make of the pages. `make docs` builds the site itself."""

import ast
import dataclasses
import importlib
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from lambda_grpo import ProcessTree, credit
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.training.options import TrainOptions

ROOT = Path(__file__).parents[2]
API = re.findall(r"^::: (\S+)\n.*\n +members: \[(.*)\]$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)

NAMED = re.compile(r"\| `(\w+)` \|")  # a row of a table of settings


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")


@pytest.fixture
def build_site(docs: None):
    pytest.importorskip("mkdocs")
    import build_site

    return build_site


def built(build_site, name: str, text: str) -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=name))
    return build_site.on_page_markdown(text, page, None, None)


def test_links_between_files_become_links_between_pages(build_site) -> None:
    assert (
        built(build_site, "index.md", "[five](docs/start.md#train-something)")
        == "[five](start.md#train-something)"
    )
    assert built(build_site, "start.md", "[all](../README.md)") == "[all](index.md)"
    assert (
        built(build_site, "idea.md", "[loop](../examples/own_loop.py)") == "[loop](examples/own_loop.py.md)"
    )
    assert built(build_site, "idea.md", "![tree](images/report.png)") == "![tree](images/report.png)"
    picture = built(
        build_site,
        "experiments/curves/README.md",
        "![curves](results/curves.png) [all](../../docs/packing.md)",
    )
    assert picture == "![curves](results/curves.png) [all](../../packing.md)"
    untouched = (
        "[paper](https://arxiv.org/abs/2509.21154) [here](#below)\n\n```md\n[five](docs/start.md)\n```\n"
    )
    assert built(build_site, "index.md", untouched) == untouched


def test_a_link_named_as_its_file_gets_the_title(build_site) -> None:
    assert (
        built(build_site, "index.md", "([docs/credits.md](docs/credits.md))")
        == "([Choose a credit](credits.md))"
    )
    assert built(build_site, "index.md", "[the log](experiments/LOG.md)") == "[the log](experiments/LOG.md)"


def test_a_page_that_fetches_from_elsewhere_is_a_warning(build_site, caplog) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    with caplog.at_level(logging.WARNING):
        build_site.on_post_page(
            '<script src="assets/own.js"></script><a href="https://arxiv.org">', page, None
        )
        assert not caplog.records
        build_site.on_post_page('<script src="https://cdn.example/x.js"></script>', page, None)
    assert "index.md fetches from elsewhere" in caplog.text


def test_two_attributes_explained_at_once(build_site) -> None:
    row = '<td><code><span title="tree.start,">start,</span></code></td>\n<td>\n <code>end</code>\n</td>'
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api.md"))
    assert (
        build_site.on_post_page(row, page, None) == "<td><code>start</code>, <code>end</code></td><td></td>"
    )


def test_doctests_become_code(docs: None) -> None:
    pytest.importorskip("griffe")
    from doctests import fenced

    text = "Sums.\n\n>>> total = 1 + 1\n>>> total\n2\n\nMore.\n\n    >>> 3\n    3"
    code = "```pycon\n>>> total = 1 + 1\n>>> total\n2\n```"
    assert fenced(text) == f"Sums.\n\n{code}\n\nMore.\n\n    ```pycon\n    >>> 3\n    3\n    ```"


def defined(module: str) -> set[str]:
    """The public names of a module, read off its source where it cannot be imported here."""
    if module == "lambda_grpo.engines.tinker":
        tree = ast.parse((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text())
        return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return set(dir(importlib.import_module(module)))


@pytest.mark.parametrize(("module", "members"), API)
def test_the_api_page_names_what_there_is(module: str, members: str) -> None:
    shown = set(members.split(", "))
    assert shown <= defined(module)
    exported = getattr(importlib.import_module(module), "__all__", []) if "tinker" not in module else []
    assert {name for name in exported if not name.isupper()} <= shown


def test_the_map_names_every_module() -> None:
    """CONTRIBUTING names each module, or the folder it is in."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    package = ROOT / "src" / "lambda_grpo"
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "engines"}
    modules = {path.name for path in [*package.glob("*.py"), *package.glob("engines/*.py")]}
    assert not {name for name in modules - {"__init__.py"} if name not in page}
    assert not {name for name in folders - {"__pycache__/"} if f"`{name}`" not in page}


def test_the_example_of_the_idea_is_one() -> None:
    """The JSON lines, of which the pictures are made, and the snippet are the same group; 3 × -0.29 = -0.87."""
    page = (ROOT / "docs/idea.md").read_text()
    rows = [json.loads(line) for line in re.search(r"```json\n(.*?)```", page, re.DOTALL)[1].splitlines()]
    assert f"completions = {[row['token_ids'] for row in rows]}\n" in page
    assert f"rewards = {[float(row['reward']) for row in rows]}\n" in page
    tree = ProcessTree.build([row["token_ids"] for row in rows])
    value = credit.process(tree, [row["reward"] for row in rows]).advantage[0, 0]
    assert (round(float(value), 2), round(3 * float(value), 2)) == (-0.29, -0.87)


def test_every_setting_is_listed(docs: None) -> None:
    """docs/settings.md is what docs/settings_page.py writes, and that misses no field."""
    import settings_page

    page = (ROOT / "docs/settings.md").read_text()
    installed = {f.name for f in dataclasses.fields(TrainingArguments)}
    ours, theirs = page.split(settings_page.TRANSFORMERS)
    kept = [line for line in theirs.splitlines(True) if not (row := NAMED.match(line)) or row[1] in installed]
    page = ours + settings_page.TRANSFORMERS + "".join(kept)  # an older transformers has fewer settings
    assert settings_page.page() == page, "run `python docs/settings_page.py` to write docs/settings.md anew"
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    fields = [f.name for cls in (TrainOptions, LambdaGRPOConfig) for f in dataclasses.fields(cls) if f.init]
    assert sorted(listed) == sorted(fields)


@pytest.mark.slow
def test_the_search_finds_every_page(tmp_path: Path) -> None:
    """The index that the search of the site reads holds each page of the navigation, and its sections by their headings."""
    pytest.importorskip("mkdocs")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    index = json.loads((tmp_path / "site/search/search_index.json").read_text())
    found = {entry["location"]: entry for entry in index["docs"]}
    named = re.findall(r"(\w+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(named) > 20
    assert {f"{name}.html" for name in named if name != "index"} <= set(found)
    assert "index.html" in found
    assert "anti-exploitation" in found["reproduction.html"]["text"]
    assert "min_p" in found["trl.html#how-lambda-grpo-train-asks"]["text"]
