"""A griffe extension for the API page: doctests become code blocks; to Markdown `>>>` is a quotation."""

import re
from typing import Any

from griffe import Extension

DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)  # up to an empty line


class Doctests(Extension):
    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    return DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)
