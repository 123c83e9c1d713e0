"""The texts that a report shows, read from its JSON twin."""

from collections.abc import Mapping
from typing import Any


def shown_completions(group: Mapping[str, Any]) -> list[str]:
    """What the page shows of each completion: the texts of its steps, from the root on."""
    parents, texts = group["nodes"]["parent"], group["nodes"]["text"]
    found = []
    for leaf in group["leaf"]:
        path, node = [], leaf
        while node >= 0:
            path.append(texts[node])
            node = parents[node]
        found.append("".join(reversed(path)))
    return found
