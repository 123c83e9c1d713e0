"""How the answer of a completion is found: one rule for every task, and for gold answers too.

1. The model's thinking is no answer. The text up to the last `</think>` is left out. If `<think>` is not
   closed, there is no answer.
2. The last `<answer>…</answer>` is the answer, else all of the text (`final_answer`). Other tasks
   than maths read there what they need, such as a list of integers.
3. Tasks with numbers and formulas (`stated_answer`) take the first of these that is there:
   - the last `\\boxed{…}` (`\\fbox` and `\\framebox` too), or the last few if only commas or "and" stand
     between them. If the last one is not closed, the text was cut off, and there is no answer. The same
     holds for an `<answer>` that is not closed;
   - what stands after `####`, as in GSM8K (`gsm8k.py`);
   - what math-verify takes from the text: the formula or number after a phrase like "the answer is", else the
     last formula or number.
4. A number keeps its value, whatever is around it: `$18`, `\\$18`, `18 dollars`, `18.`, `**18**`,
   `\\textbf{(018)}` and `18 km/h` are 18; `5e-05` is 0.00005; `- 3` is −3, except in a list with one item a
   line. `2xy`, `2 pi` and `18 million` are no numbers with a unit, and stay formulas.

| completion | answer |
|---|---|
| `<think>9*2=18</think><answer>17</answer>` | 17 |
| `She makes \\$18 every day.` | 18 |
| `So \\boxed{17}. No: \\boxed{18}` | 18 |
| `So \\boxed{17}. No: \\boxed{18` | none |
"""

import re

from lambda_grpo.tasks.gsm8k import marked_answer, without_notes
from lambda_grpo.tasks.quantities import quantity, without_powers

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_SHORT_BOX = re.compile(r"\\boxed\s+(-?\d[\d.,]*(?<![.,]))")
_BETWEEN = re.compile(r"[\s$]*(?:,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)|,)[\s$]*")
_PERCENT = re.compile(r"[\s$]*\\?%")
_LETTER_OF_CHOICE = re.compile(
    r"^\s*\\(?:text|math)(?:bf|rm)?\s*\{\s*\([A-F]\)\s*\}[\s~]*(?:\\[ ,;]|\\q?quad)?(?=.*\S)"
)

_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|(?<!\\)\$|\\begin\{(?:equation|align|gather)")
_WORD = re.compile(r"[A-Za-z]{3,}")
_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{2,}[,;]?\s+[A-Za-z]{2,}\b|\n")

# What math-verify does not see as a number in prose, and as what it does.
_IN_PROSE = [
    (re.compile(r"\n[ \t]*[-*•][ \t]+(?=[$\d])"), "\n"),  # the items of a list
    (re.compile(r"(?:US|\\)\$(?=[\d.])"), ""),
    (re.compile(r"(\d)\s*[×x]\s*10\s*\^"), r"\1 * 10^"),
    (re.compile(r"((?:=|:|\bis)\s*)-\s+(?=[$\d])"), r"\1-"),
    (
        re.compile(r"(?<![\w*])(?:[*_`\"'“‘]+|<b>)(-?\$?\d[\d,.]*%?)(?:[*_`\"'”’]+|</b>)(?![\w*])"),
        r" \1 ",
    ),
    (re.compile(r"(?<=[A-Za-z]:)(?=[-$]?\d)|[≈~](?=[-$]?\d)"), " "),
]


def final_answer(completion: str) -> str:
    """The text in the last `<answer>…</answer>` after the thinking, else all the text after it; stripped.

    >>> final_answer("<answer>1</answer> no, <answer> 2 </answer> it is")
    '2'
    >>> final_answer("<think> 4? </think> 3 ")
    '3'
    """
    text = _after_thinking(completion)
    tagged = _tagged(text)
    return (text if tagged is None else tagged).strip()


def stated_answer(completion: str) -> str:
    """The number or formula that a completion states, as a text for math-verify; empty if there is none.

    >>> stated_answer("<answer>18 dollars</answer>"), stated_answer("It makes \\\\$18 a day.")
    ('\\\\boxed{18}', 'It makes 18 a day.')
    """
    text = final_answer(completion)
    if "<answer>" in text:
        return ""
    return _stated(text, alone=_tagged(_after_thinking(completion)) is not None)


def gold_answer(text: str) -> str:
    """The same of a gold answer: a bare formula is read as a whole, so it is boxed.

    >>> print(gold_answer("(-1, 2]"), gold_answer("20 + 22 = 42\\n#### 42"), gold_answer("so $x=2$"))
    \\boxed{(-1, 2]} \\boxed{42} so $x=2$
    >>> print(gold_answer("Friday"), "|", gold_answer("two and two make 4"), "|", gold_answer("5e-05"))
    \\boxed{\\text{Friday}} | two and two make 4 | \\boxed{0.00005}
    """
    return _stated(final_answer(text), alone=True)


def _stated(text: str, alone: bool) -> str:
    """`alone`: the text is an answer and nothing else, so that a formula in it needs no delimiters."""
    text = _SHORT_BOX.sub(r"\\boxed{\1}", _BOX.sub(r"\\boxed", without_notes(text)))
    text = without_powers(text).replace("−", "-")
    if r"\boxed{" in text:
        return _boxed(text)
    marked = marked_answer(text)
    if marked is not None:
        text, alone = marked, True
    number = quantity(text)
    if number is not None:
        return rf"\boxed{{{number}}}"
    if not alone or not text or _DELIMITED.search(text) or _PROSE.search(text):
        return _prose(text)
    if _WORD.fullmatch(text):  # otherwise it is read as a product of letters
        text = rf"\text{{{text}}}"
    return rf"\boxed{{{text}}}"


def last_number(completion: str) -> str | None:
    """The last integer or decimal fraction of the answer, without commas; None if there is none.

    >>> last_number("The largest of 18, 59 and 44 is **59**."), last_number("1,250"), last_number("who knows")
    ('59', '1250', None)
    """
    found = re.findall(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", final_answer(completion))
    return found[-1].replace(",", "") if found else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` of a text; None if there is none, or it is not closed.

    >>> last_boxed(r"\\boxed{1}, no: $\\boxed{\\frac{1}{2}}$.")
    '\\\\frac{1}{2}'
    """
    start, end = _last_box(text)
    return text[start:end] if end > 0 else None


def _last_box(text: str) -> tuple[int, int]:
    """Where the content of the last box begins and ends; the end is 0 if there is none."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return 0, 0
    start += len(r"\boxed{")
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return start, i
    return start, 0


def _after_thinking(completion: str) -> str:
    _, _, text = completion.rpartition("</think>")
    return text.partition("<think>")[0] if "<think>" not in text else ""


def _tagged(text: str) -> str | None:
    before, closed, _ = text.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    return answer if opened and closed else None


def _boxed(text: str) -> str:
    """The last box, or the last few that only commas or "and" stand between, as one box."""
    start, end = _last_box(text)
    if not end:
        return ""
    percent = bool(_PERCENT.match(text, end + 1))
    contents = [_content(text[start:end])]
    while True:
        rest = text[: start - len(r"\boxed{")]
        earlier, end = _last_box(rest)
        if not end or not _BETWEEN.fullmatch(rest, end + 1):
            break
        start = earlier
        contents.insert(0, _content(text[start:end]))
    return rf"\boxed{{{', '.join(dict.fromkeys(contents))}{chr(92) + '%' if percent else ''}}}"


def _content(box: str) -> str:
    box = _LETTER_OF_CHOICE.sub("", box)
    number = quantity(box)
    return box.strip() if number is None else number


def _prose(text: str) -> str:
    text = text.replace("</answer>", " ")
    for pattern, instead in _IN_PROSE:
        text = pattern.sub(instead, text)
    return text
