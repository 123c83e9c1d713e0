"""Text → token ids for rollouts that hold no ids, and token ids → text for showing steps.

There are two ways. A tokenizer of the `tokenizers` library is exact, if it is the policy's. The fallback
needs nothing: its token is a word, or one other character, with the white space before it. It cuts where
most tokenizers cut, but its trees can differ in detail: completions that differ from the middle of a word
on differ here from the word's beginning on.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.errors import InputError

Int32 = NDArray[np.int32]

FALLBACK = "words"
_LOOKED_AT = 20  # completions whose text is compared with what their ids decode to
_CHARACTERS = 200  # of each
_ALIKE = 0.5  # a policy's own tokenizer gives about 1, another one less than 0.3
_PIECE = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


def pieces(text: str) -> list[str]:
    """The fallback's tokens; their concatenation is the text.

    >>> pieces("So 7+2 = 9. ")
    ['So', ' 7', '+', '2', ' =', ' 9', '.', ' ']
    """
    return _PIECE.findall(text)


def ids_of_pieces(rows: Sequence[Sequence[str]]) -> list[Int32]:
    """Number the distinct token strings of one batch by first appearance; the numbers mean nothing
    outside it."""
    seen: dict[str, int] = {}
    return [np.array([seen.setdefault(piece, len(seen)) for piece in row], np.int32) for row in rows]


class Tokeniser:
    """A tokenizer loaded from a folder, a `tokenizer.json`, or a Hub id.

    Raises:
        InputError: nothing there that the `tokenizers` library can load.
    """

    def __init__(self, source: str) -> None:
        from tokenizers import Tokenizer

        self.source = source
        path = Path(source)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            if path.exists():
                self._tokenizer: Any = Tokenizer.from_file(str(file))
            else:
                self._tokenizer = Tokenizer.from_pretrained(source)
        except Exception as error:  # the library raises bare Exception
            raise InputError(
                f"cannot load a tokenizer from {source!r}: expected a folder with a tokenizer.json, such a "
                f"file, or a Hub id that can be reached. tokenizers says: {error}"
            ) from error

    def encode(self, texts: Sequence[str]) -> list[Int32]:
        """Token ids of each text, without special tokens added."""
        # Rust strings hold no lone surrogates; a replacement keeps the rest of the text exact.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        encoded = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encoded]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids, with special tokens written out or left away."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))

    def misfit(self, texts: Sequence[str], ids: Sequence[Int32]) -> tuple[str, str] | None:
        """As the function `misfit`, for completions as saved and their ids."""
        decoded = [self.decode(row[:_CHARACTERS].tolist(), special=False) for row in ids[:_LOOKED_AT]]
        return misfit(list(zip(texts, decoded, strict=False)))


def misfit(pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The pair (text as saved, text as decoded) that differs most, cut short; None if the pairs are alike.

    Only the first completions and their first characters are compared, and completions without text are not.

    >>> misfit([("7+2 = 9", "7+2 = 9")])
    >>> misfit([("7+2 = 9", "Ġvon Stadt")])
    ('7+2 = 9', 'Ġvon Stadt')
    """
    pairs = [(saved.strip()[:_CHARACTERS], decoded.strip()[:_CHARACTERS]) for saved, decoded in pairs]
    pairs = [(saved, decoded) for saved, decoded in pairs if saved][:_LOOKED_AT]
    alike = [SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs]
    if not alike or sum(alike) / len(alike) >= _ALIKE:
        return None
    saved, decoded = pairs[alike.index(min(alike))]
    return saved[:60], decoded[:60]
