"""How GSM8K's answers are read: `hub:openai/gsm8k:main`, or `jsonl:` with its rows.

A worked solution ends with a line such as `#### 18`, and notes what a calculator said between `<<` and `>>`:

    Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.
    She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.
    #### 18

`answers.py` calls this for gold answers and for completions alike, in every task with gold answers.
"""

import re

_NOTE = re.compile(r"<<[^<>\n]*>>")
_LAST_LINE = re.compile(r"(?:^|\s)####[ \t]*(\S.*)\Z")
_NUMBER_LINE = re.compile(
    r"^####[ \t]*([-+]?[ \t]*\\?\$?[ \t]*[-+]?[\d,.]*\d\.?[ \t]*(?:\\?%)?)[ \t]*$", re.M
)


def without_notes(text: str) -> str:
    """A text without the calculator's notes.

    >>> without_notes("9 * 2 = $<<9*2=18>>18 every day")
    '9 * 2 = $18 every day'
    """
    return _NOTE.sub("", text)


def marked_answer(text: str) -> str | None:
    """What stands after `####`: in the last line, or in the last line that holds a number and nothing else.

    So a model may write on after its answer, and a Markdown heading such as `#### Step 2` is no answer.

    >>> marked_answer("9 * 2 = 18\\n#### 18"), marked_answer("#### 18\\n\\nQuestion: 9?"), marked_answer("18")
    ('18', '18', None)
    """
    if last := _LAST_LINE.search(text.rstrip()):
        return last[1].strip()
    numbers = _NUMBER_LINE.findall(text)
    return numbers[-1].strip() if numbers else None
