"""mkdocs hooks: pages may link to any file of the repository, and none is left out of the navigation.

Links are written as files lie in the repository, so that they work there too. README.md is the site's first
page; any other file outside docs/ that a page links to comes along: a page, a picture, or source code as a
listing. Links to folders become plain text. A link whose text is a page's file name gets the page's title. A
page that would fetch anything from elsewhere is a warning.
"""

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LOG = logging.getLogger("mkdocs.plugins.build_site")  # a warning from here fails `mkdocs build --strict`
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
NAMED_LINK = re.compile(r"\[[\w/]*\w+\.md\](?=\(([\w/.-]+\.md)\))")  # the text is a file's name, too
FOLDER_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+/)\)")
FENCE = re.compile(r"(^```.*?^```\n)", re.DOTALL | re.MULTILINE)
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//"""
    r"""|<link[^>]+(?:stylesheet|icon|preload|preconnect)[^>]+href=["']?(?:https?:)?//"""
)
# `start, end: …` in a docstring's attributes; mkdocstrings takes `end` for the type of `start,`
TWO_NAMES = re.compile(
    r'<td><code><span title="[^"]+,">(\w+),</span></code></td>\s*<td>\s*<code>(.*?)</code>\s*</td>', re.DOTALL
)
PICTURES = {".png", ".svg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "sh", ".json": "json", ".js": "js"}


def on_config(config: Any) -> Any:
    named = set(re.findall(r"[\w/.-]+\.md", repr(config.nav)))
    pages = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    more = [page for page in pages if page not in named]
    if more:
        config.nav.append({"More": more})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that they link to in turn."""
    waiting = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    waiting += [Path(file.abs_src_path) for file in files.documentation_pages()]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.is_relative_to(ROOT / "docs"):
            files.append(_page(path, config))
        if path.suffix == ".md":
            waiting += [to for to in _linked(path) if to.is_file() and not to.is_relative_to(ROOT / "docs")]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = posixpath.dirname(_repository_path(page.file.src_uri))
    base = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        return posixpath.relpath(_site_path(target), base or ".") + (match[2] or "")

    def titled(match: re.Match[str]) -> str:
        page = (ROOT / here / match[1]).read_text()
        return f"[{page.splitlines()[0].lstrip('# ')}]" if page.startswith("# ") else match[0]

    parts = FENCE.split(markdown)
    for number in range(0, len(parts), 2):  # the odd ones are code
        text = NAMED_LINK.sub(titled, FOLDER_LINK.sub(r"\1", parts[number]))
        parts[number] = LINK.sub(link, text)
    return "".join(parts)


def on_post_page(output: str, page: Any, config: Any) -> str:
    fetched = FETCHED.search(output)
    if fetched:
        LOG.warning("%s fetches from elsewhere: %s", page.file.src_uri, fetched[0])
    return TWO_NAMES.sub(r"<td><code>\1</code>, <code>\2</code></td><td></td>", output)


def _page(path: Path, config: Any) -> File:
    name = path.relative_to(ROOT).as_posix()
    if path.suffix in PICTURES:
        return File.generated(config, _site_path(name), abs_src_path=str(path))
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        text = f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
    return File.generated(config, _site_path(name), content=text)


def _linked(path: Path) -> list[Path]:
    text = "".join(FENCE.split(path.read_text(encoding="utf-8"))[::2])
    return [Path(os.path.normpath(path.parent / match[1])) for match in LINK.finditer(text)]


def _site_path(name: str) -> str:
    """Where a file of the repository lies in the site's sources."""
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if Path(name).suffix in {".md", *PICTURES} else f"{name}.md"


def _repository_path(name: str) -> str:
    if name == "index.md":
        return "README.md"
    return name if (ROOT / name).exists() else f"docs/{name}"
