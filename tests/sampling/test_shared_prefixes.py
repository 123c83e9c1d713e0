"""Which prefixes are kept once, and that rows do without copies of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_model

from lambda_grpo.sampling import shared_prefix
from lambda_grpo.sampling.decode import Decoder
from lambda_grpo.sampling.draw import DrawSettings
from lambda_grpo.sampling.request import Request
from lambda_grpo.sampling.trie import PromptTrie

prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=9)


@given(prompts, st.integers(0, 12))
def test_kept_prefixes_are_the_beginnings_of_their_rows(rows: list[list[int]], worth: int) -> None:
    ordered = [rows[i] for i in PromptTrie.build(rows).order]
    trie = PromptTrie.build(ordered)
    begin: list[list[int]] = [[] for _ in ordered]
    for prefix in trie.shared_prefixes(worth):
        first, stop = prefix.rows
        assert len(prefix.tokens) * (stop - first - 1) >= worth
        for row in range(first, stop):
            begin[row] += trie.ids[prefix.tokens].tolist()
    for row, kept in zip(ordered, begin, strict=True):
        assert row[: len(kept)] == kept
        # What is left is not worth it: no more rows than these begin so.
        alike = sum(other[: len(kept) + 1] == row[: len(kept) + 1] for other in ordered)
        assert len(kept) == len(row) or alike == 1 or alike - 1 < worth
    if worth == 0:
        assert begin == ordered


def request(count: int) -> Request:
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    return Request([prompt] * count, 4, DrawSettings(), (0,), None, count, None, False, 0)


@pytest.mark.parametrize(("family", "shares"), [("llama", True), ("gpt2", True), ("mistral", False)])
def test_a_cache_holds_what_is_a_rows_own(family: str, shares: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose window is shorter than a row keeps its copies."""
    monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 64})
    widths = []
    step = Decoder._step
    monkeypatch.setattr(
        Decoder, "_step", lambda self, tokens: (step(self, tokens), widths.append(self.width))
    )
    decoder = Decoder(make_model(family), request(5))
    assert decoder.shares == shares
    decoder.run()
    assert widths[0] == (1 if shares else 9)


def test_a_short_prefix_is_copied() -> None:
    decoder = Decoder(make_model("llama"), request(5))
    assert not decoder.shares
    assert np.all(decoder.shared == 0)
