"""YAML files as plain data: mappings, lists, text, numbers, dates; no tags, no aliases.

A tag can ask PyYAML for any Python object (its safe loader refuses those, but trips over wrong values of the
others), and a few lines of aliases to aliases are a list of many million items.
"""

from pathlib import Path
from typing import Any

import yaml

from lambda_grpo.errors import InputError


def read(path: Path) -> Any:
    """The content of a file in UTF-8.

    Raises:
        InputError: it cannot be read, is no YAML, or uses tags or aliases.
    """
    try:
        return load(path.read_text("utf-8"))
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from error


def load(text: str) -> Any:
    """What some YAML says.

    Raises:
        yaml.YAMLError, ValueError, OverflowError, RecursionError: it is no YAML, or uses tags or aliases.
    """
    return yaml.load(text, _PlainLoader)


def dump(content: Any) -> str:
    """YAML that `load` takes, keys in their order."""
    return yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.AliasEvent)
        if alias or getattr(event, "tag", None) is not None:
            what = "an alias (*name)" if alias else f"a tag ({event.tag})"
            raise yaml.YAMLError(f"found {what}, expected plain values{event.start_mark}")
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
