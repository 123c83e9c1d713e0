"""A process tree, or a credit, as an inline SVG for a notebook: plain elements, no script and no style sheet.

Rows are completions. A box is a process step: as wide as its tokens, as high as the completions that share
it. Its colour is its push, Σ over λ of weight × advantage: blue up, orange down, by the square root of its
size, so that small pushes can be told from none. A step whose push changes from token to token is cut there.
A shared step also shows its push as a number, if it is wide enough.

The colours are see-through and the text has the colour of the text around it, so both a light and a dark page
show them well. A picture shows the beginning of a large tree and says so: it draws no more than
`max_completions` × `max_tokens` cells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.errors import InputError

if TYPE_CHECKING:
    from lambda_grpo.credit.token_credit import TokenCredit
    from lambda_grpo.tree import ProcessTree

MAX_COMPLETIONS = 32
MAX_TOKENS = 60

# In pixels.
ROW = 20
CELL = 12  # a token without text
CHARACTER = 7
TOP = 26  # of the first row, below the title

_LEGEND = 62 * CHARACTER  # the width of the line below the rows
_LONGEST = 14  # characters of a token that are shown
_WHITE_SPACE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})
_UP, _DOWN, _NEUTRAL = "#1f86d1", "#dd6b10", "currentColor"


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A drawing that a notebook shows; `svg` is its text, which a file may hold too."""

    svg: str

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self.svg}</div>'


@dataclass(frozen=True)
class _Block:
    """A rectangle of rows [row, row + rows) and tokens [start, end), and what it says when pointed at."""

    row: int
    rows: int
    start: int
    end: int
    value: float
    tip: str
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class _Drawing:
    """Blocks with what stands around them; with `shared`, values are shares of completions, not pushes."""

    title: str
    labels: Sequence[str]
    num_tokens: int
    blocks: Sequence[_Block]
    shared: bool = False


@dataclass(frozen=True)
class View:
    """What a picture of a tree shows beside the tree; `ProcessTree.picture` explains each."""

    credit: "TokenCredit | None" = None
    decode: Callable[[int], str] | None = None
    rewards: ArrayLike | None = None
    max_completions: int = MAX_COMPLETIONS
    max_tokens: int = MAX_TOKENS


def draw_tree(tree: "ProcessTree", view: View) -> Picture:
    """The picture of a tree.

    Raises:
        InputError: a credit or rewards that do not fit the tree, a limit below 1.
    """
    for name in ("max_completions", "max_tokens"):
        if getattr(view, name) < 1:
            raise InputError(f"{name} is {getattr(view, name)}, expected at least 1")
    longest = int(tree.lengths.max())
    rows, tokens = min(tree.num_completions, view.max_completions), min(longest, view.max_tokens)
    total = int(tree.lengths.sum())
    title = (
        f"{tree.num_completions:,} completions, {tree.num_steps:,} process steps, {total:,} tokens, "
        f"{tree.unique_tokens:,} unique"
    ) + _cut(rows, tree.num_completions, tokens, longest)
    nodes = np.flatnonzero((tree.first < rows) & (tree.start < tokens) & (tree.end > tree.start)).tolist()
    weighted = None if view.credit is None else _weighted(tree, view.credit)
    blocks = [
        block for node in nodes for block in _step_blocks(tree, node, (rows, tokens), weighted, view.decode)
    ]
    labels = _labels(tree.order[:rows].tolist(), _rewards(tree, view.rewards))
    return Picture(_svg(_Drawing(title, labels, tokens, blocks, shared=weighted is None)))


def draw_credit(credit: "TokenCredit") -> Picture:
    """The picture of a credit alone: a block is a run of tokens of one completion with the same push."""
    weight, weighted = np.asarray(credit.weight), np.asarray(credit.weighted)
    count, longest = weight.shape
    rows, tokens = min(count, MAX_COMPLETIONS), min(longest, MAX_TOKENS)
    blocks = []
    for i in range(rows):
        push = np.where(weight[i] > 0, weighted[i], np.inf)[:tokens]  # inf: no policy token, nothing is drawn
        for start, end in _runs(push):
            if weight[i, start] > 0:
                value = float(push[start])
                tip = f"completion #{i}, {_span(start, end)}: push {_number(value)}"
                blocks.append(_Block(i, 1, start, end, value, tip))
    title = f"the credit of {count:,} completions, {longest:,} tokens long"
    title += _cut(rows, count, tokens, longest)
    return Picture(_svg(_Drawing(title, _labels(list(range(rows)), None), tokens, blocks)))


def _cut(rows: int, all_rows: int, tokens: int, all_tokens: int) -> str:
    if rows == all_rows and tokens == all_tokens:
        return ""
    return f". Shown: {rows:,} of {all_rows:,} completions, the first {tokens:,} of {all_tokens:,} tokens"


def _weighted(tree: "ProcessTree", credit: "TokenCredit") -> NDArray[np.float32]:
    weighted, expected = np.asarray(credit.weighted), (tree.num_completions, int(tree.lengths.max()))
    if weighted.shape != expected:
        raise InputError(
            f"credit: expected shape {expected} (completions, tokens), got {weighted.shape}: "
            "compute it from this tree"
        )
    return weighted


def _rewards(tree: "ProcessTree", rewards: ArrayLike | None) -> NDArray[np.float64] | None:
    if rewards is None:
        return None
    try:
        row = np.asarray(rewards, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"rewards: expected numbers: {error}") from None
    if row.shape != (tree.num_completions,):
        raise InputError(
            f"rewards: expected {tree.num_completions} (one per completion), got shape {row.shape}"
        )
    return row


def _step_blocks(
    tree: "ProcessTree",
    node: int,
    shown: tuple[int, int],
    weighted: NDArray[np.float32] | None,
    decode: Callable[[int], str] | None,
) -> Iterator[_Block]:
    """The blocks of one step, a block for each run of equal pushes; `shown`: the rows and tokens on show."""
    first, size, step_start = int(tree.first[node]), int(tree.size[node]), int(tree.start[node])
    height = min(size, shown[0] - first)
    width = min(int(tree.end[node]), shown[1]) - step_start
    if weighted is None:
        push = np.full(width, size / tree.num_completions)
    else:
        push = weighted[tree.order[first : first + size], step_start : step_start + width].sum(axis=0)
    offset = int((tree.end[:node] - tree.start[:node]).sum()) if decode else 0
    ids = tree.tokens[offset : offset + width].tolist() if decode else []
    texts = [_visible(str(decode(i))) for i in ids] if decode else []
    for low, high in _runs(push):
        start, end, value = step_start + low, step_start + high, float(push[low])
        tip = f"step {node}: {size:,} of {tree.num_completions:,} completions, {_span(start, end)}"
        if weighted is not None:
            tip += f": push {_number(value)}"
        yield _Block(first, height, start, end, value, tip, texts[low:high])


def _labels(rows: Sequence[int], rewards: NDArray[np.float64] | None) -> list[str]:
    width = len(str(max(rows)))
    names = [f"#{i:<{width}}" for i in rows]
    if rewards is None:
        return names
    values = ["none" if np.isnan(rewards[i]) else f"{rewards[i]:.3g}".replace("-", "−") for i in rows]
    return [f"{name} reward {value}" for name, value in zip(names, values, strict=True)]


def _runs(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Where runs of equal values begin and end."""
    if len(values):
        changes = np.flatnonzero(values[1:] != values[:-1]) + 1
        yield from pairwise([0, *changes.tolist(), len(values)])


def _span(start: int, end: int) -> str:
    return f"token {start}" if end == start + 1 else f"tokens {start} to {end - 1}"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:+.3g}".replace("-", "−")


def _visible(text: str) -> str:
    """A token's text on one line: white space as signs, and no character that has no look of its own."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[: _LONGEST + 1].translate(_WHITE_SPACE))
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def _svg(drawing: _Drawing) -> str:
    left = CHARACTER * max(map(len, drawing.labels), default=0) + 8
    edges = left + _edges(drawing)
    extreme = 1.0 if drawing.shared else _extreme(drawing.blocks)
    bottom = TOP + ROW * len(drawing.labels)
    parts = [_text(0, 14, drawing.title)]
    parts += [_text(0, TOP + ROW * i + 14, label) for i, label in enumerate(drawing.labels)]
    for block in drawing.blocks:
        parts += _block(block, edges, 0.0 if extreme == 0 else block.value / extreme, drawing.shared)
    parts += _legend(left, bottom + 8, extreme, drawing.shared)
    width, height = max(int(edges[-1]), left + _LEGEND, CHARACTER * len(drawing.title)) + 2, bottom + 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(drawing.title)}" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" fill="currentColor" '
        f'font-family="ui-monospace, monospace">{"".join(parts)}</svg>'
    )


def _edges(drawing: _Drawing) -> NDArray[np.int64]:
    """(tokens + 1,): where each token's column begins, from 0; as wide as its longest text."""
    widths = np.full(drawing.num_tokens, CELL)
    for block in drawing.blocks:
        for token, text in enumerate(block.texts, start=block.start):
            widths[token] = max(widths[token], CHARACTER * len(text) + 6)
    return np.concatenate([[0], np.cumsum(widths)])


def _extreme(blocks: Sequence[_Block]) -> float:
    return max((abs(block.value) for block in blocks if np.isfinite(block.value)), default=0.0)


def _block(block: _Block, edges: NDArray[np.int64], position: float, shared: bool) -> Iterator[str]:
    x, right, y = int(edges[block.start]), int(edges[block.end]), TOP + ROW * block.row
    height = ROW * block.rows
    yield f"<g><title>{escape(block.tip)}</title>"
    yield _rect((x, y, right - x, height), _fill(position, shared))
    for token, text in enumerate(block.texts, start=block.start):
        yield _text(int(edges[token]) + 3, y + height // 2 + 4, text)
    number = _number(block.value)
    if block.rows > 1 and not shared and CHARACTER * len(number) + 6 <= right - x:
        yield _text(x + 3, y + height - 4, number, "9")
    yield "</g>"


def _fill(position: float, shared: bool) -> str:
    """The colour at a position from -1 to 1 (a share from 0 to 1); of a number that is none, that of zero."""
    position = min(1.0, max(-1.0, position)) if np.isfinite(position) else 0.0
    if shared:
        return f'fill="{_NEUTRAL}" fill-opacity="{0.04 + 0.26 * position:.2f}"'
    colour = _NEUTRAL if position == 0 else _UP if position > 0 else _DOWN
    return f'fill="{colour}" fill-opacity="{0.04 + 0.66 * abs(position) ** 0.5:.2f}"'


def _legend(x: int, y: int, extreme: float, shared: bool) -> Iterator[str]:
    if shared:
        yield _text(x, y + 10, "The stronger the grey, the more completions share the step.")
        return
    ends = [(0.0, "0")] if extreme == 0 else [(-1.0, _number(-extreme)), (0.0, "0"), (1.0, _number(extreme))]
    yield _text(x, y + 10, "push:")
    x += 6 * CHARACTER
    for position, text in ends:
        yield _rect((x, y, 12, 12), _fill(position, shared))
        yield _text(x + 17, y + 10, text)
        x += 17 + CHARACTER * (len(text) + 2)


def _rect(box: tuple[int, int, int, int], fill: str) -> str:
    x, y, width, height = box
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {fill} '
        'stroke="currentColor" stroke-opacity=".45"/>'
    )


def _text(x: int, y: int, text: str, size: str = "11") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" xml:space="preserve">{escape(text)}</text>'
