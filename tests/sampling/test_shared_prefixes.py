"""Which prefixes are kept once, and that rows do without copies of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_model

from lambda_grpo.sampling import decode, prefill, shared_prefix
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


def test_the_attention_is_switched_once_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching goes through all modules, which for each token cost more than some layers."""
    monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 0})
    entered = []
    switch = decode.switched
    monkeypatch.setattr(decode, "switched", lambda *args: (entered.append(args[1]), switch(*args))[1])
    model = make_model("llama")
    model.set_attn_implementation("eager")
    step = Decoder._step
    monkeypatch.setattr(Decoder, "_step", lambda self, tokens: (step(self, tokens), used(model)))

    def used(model: Any) -> None:
        assert model.config._attn_implementation == shared_prefix.IMPLEMENTATION

    Decoder(model, request(5)).run()
    assert entered == [shared_prefix.IMPLEMENTATION]
    assert model.config._attn_implementation == "eager"


def test_the_attention_is_put_back_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 0})
    model = make_model("llama")
    before = model.config._attn_implementation

    def crash(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if model.config._attn_implementation == shared_prefix.IMPLEMENTATION:
            raise RuntimeError("in a step")

    model.model.layers[0].register_forward_pre_hook(crash)
    with pytest.raises(RuntimeError, match="in a step"):
        Decoder(model, request(5)).run()
    assert model.config._attn_implementation == before


def test_prompts_that_join_later_know_the_models_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers must know which attention it is: SDPA leaves out a soft cap, and is refused there."""
    monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 0})
    told = []
    bind = prefill.bound
    monkeypatch.setattr(prefill, "bound", lambda layout, own: (told.append(own), bind(layout, own))[1])
    model = make_model("llama")
    model.set_attn_implementation("eager")
    Decoder(model, replace(request(4), batch_size=2)).run()
    assert told == ["eager", "eager"]
