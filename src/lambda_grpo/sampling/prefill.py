"""Run prompts through the model, each shared token once: keys, values, and logits of the first drawn token.

The trie of the prompts is one row for the model, and tree attention (`packing.attention`) lets each token see
its own prefix only. Each row's part of the cache is then read off along its path, but for the prefixes that
`shared_prefix` keeps once.

Invariant: keys, values and logits equal those of each prompt in a row of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import TreeLayout, bound
from lambda_grpo.packing.attention.switching import switched
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.shared_prefix import Prefix
from lambda_grpo.sampling.trie import PromptTrie, chunks

CHUNK_TOKENS = 8192  # unique tokens in one pass: what passes need beside the cache grows with them


@dataclass(frozen=True, eq=False)
class Prefilled:
    """What is known of some rows before the first token is drawn.

    Attributes:
        cache: one row, the N unique tokens of the prompts.
        paths: (R, P) the token of the cache that stands in each row's column, aligned on the right; without
            the tokens of `prefixes`.
        logits: (R, V) of the first token, float32.
        tokens: N.
        prefixes: what is kept once, of all layers.
        shared: (R,) how many tokens of each row's prompt are in `prefixes`.
    """

    cache: DynamicCache
    paths: Tensor
    logits: Tensor
    tokens: int
    prefixes: list[Prefix]
    shared: np.ndarray

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """(R, heads, P, features) keys and values of a layer, fanned out to the rows."""
        layer = self.cache.layers[index]
        return self._fan_out(layer.keys), self._fan_out(layer.values)

    def _fan_out(self, packed: Tensor) -> Tensor:
        rows, width = self.paths.shape
        found = packed[0].index_select(1, self.paths.flatten())
        return found.view(len(found), rows, width, packed.shape[-1]).transpose(0, 1)


def prefill(model: Any, prompts: Sequence[Sequence[int]], worth: int | None = None) -> Iterator[Prefilled]:
    """Run over the prompts, in parts of at most `CHUNK_TOKENS` unique tokens.

    Args:
        model: as it was given, maybe with adapters.
        prompts: in depth-first order, maybe repeated.
        worth: which prefixes are kept once, see `PromptTrie.shared_prefixes`; None: none of them.

    Raises:
        InputError: a model whose layers cannot fork.
    """
    for part in chunks(prompts, CHUNK_TOKENS):
        yield _run(model, PromptTrie.build(prompts[part]), worth)


def cache_argument(model: Any) -> str:
    """What a model's forward calls its cache: it depends on the version of transformers."""
    parameters = signature(type(inner_model(model)).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


@contextmanager
def logits_only_at(model: Any, places: Tensor) -> Iterator[None]:
    """Inside, a pass over one row gives logits (1, n, V) for the tokens at n places of it, and no others.

    Args:
        model: a transformers model, unwrapped.
        places: (n,) on the model's device.
    """

    def select(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].index_select(1, places),)

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _run(model: Any, trie: PromptTrie, worth: int | None) -> Prefilled:
    inner = inner_model(model)
    device = inner.device
    ids, position, end = (
        torch.from_numpy(values).to(device) for values in (trie.ids, trie.position, trie.subtree_end)
    )
    last, row = (torch.from_numpy(x).to(device) for x in np.unique(trie.last, return_inverse=True))
    cache = DynamicCache()
    layout = TreeLayout(end, position, "pieces")
    with logits_only_at(inner, last), switched(inner) as own, bound(layout, own) as binding:
        output = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=position[None],
            use_cache=True,
            **{cache_argument(model): cache},
        )
    if binding.layers != inner.config.get_text_config().num_hidden_layers:
        raise InputError(f"{type(inner).__name__}: not all of its layers attend to a tree of prompts")
    found = [] if worth is None else trie.shared_prefixes(worth)
    shared = np.zeros(len(trie.lengths), np.int64)
    for stretch in found:
        shared[slice(*stretch.rows)] += len(stretch.tokens)
    width = int((trie.lengths - shared).max())
    paths = torch.from_numpy(trie.paths[:, trie.paths.shape[1] - width :]).to(device)
    prefixes = [Prefix.of(cache, stretch) for stretch in found]
    return Prefilled(cache, paths, output.logits[0].float()[row], len(ids), prefixes, shared)
