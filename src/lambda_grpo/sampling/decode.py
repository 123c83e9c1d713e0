"""The loop: it draws a token for each row, lets ended rows leave, and runs the model over the new tokens.

Rows wait in depth-first order of their prompts and join when places are free. Each row draws from random
numbers of its own. So, except for rounding, its tokens do not depend on when it joins or which rows leave.
With a `BranchPlan` a block is sampled as one row, its first. At a fork this row is copied, cache and all, to
the first row of each new block. The caches of rows lack long prefixes that several share (`shared_prefix`).

R is the number of rows in the batch, V the size of the vocabulary, W the number of columns in the cache.
"""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lambda_grpo.packing.attention.switching import switched
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.cache import growing_cache
from lambda_grpo.sampling.draw import draw, log_probs
from lambda_grpo.sampling.drawn_tokens import DrawnTokens
from lambda_grpo.sampling.prefill import Prefilled, cache_argument, prefill
from lambda_grpo.sampling.request import Request, Samples
from lambda_grpo.sampling.rows_on_device import RowsOnDevice
from lambda_grpo.sampling.shared_prefix import IMPLEMENTATION, SharedPrefixes, worth_sharing
from lambda_grpo.sampling.trie import PromptTrie

_WAIT_FOR = 4  # new rows join when a quarter of the batch is free: each time the cache is copied


class Decoder:
    """Samples what a `Request` asks for.

    Attributes:
        row: (R,) numbers of the rows in the batch.
        lengths: (R,) tokens of each so far, its prompt's included.
        shared: (R,) how many of them are in shared prefixes; the cache of the row holds the others.
        block: (R,) the rows of the group that share this row's tokens until the next fork; 1 without
            branches.
        logits: (R, V) of the next token.
        drawn: of all rows of the request.
        uniform: (R, T) each row's random numbers, on the device.
        on_device: what the device knows of the rows; None: others have joined, left or forked since.
        last: (R,) the tokens just drawn, on the device; None: rows have left or forked since.
        prefixes: what rows share.
        worth: which prefixes are shared; None: none of them.
    """

    def __init__(self, model: Any, request: Request) -> None:
        inner = inner_model(model)
        self.model, self.request, self.device = model, request, inner.device
        self.cache = growing_cache(inner.config)
        self.cache_argument = cache_argument(model)
        self.sizes = request.block_sizes
        trie = PromptTrie.build(request.prompts)
        self.waiting = deque(row for row in trie.order if row % self.sizes[0] == 0)
        self.row = np.zeros(0, np.int64)
        self.block = np.zeros(0, np.int64)
        self.lengths = np.zeros(0, np.int64)
        self.shared = np.zeros(0, np.int64)
        self.uniform = torch.zeros(0, request.max_new_tokens, dtype=torch.float64, device=self.device)
        self.on_device: RowsOnDevice | None = None
        self.last: Tensor | None = None
        self.logits = torch.zeros(0)
        self.prompt_tokens = self.sampled_tokens = 0
        self.prompt_lengths = np.array([len(prompt) for prompt in request.prompts])
        self.drawn = DrawnTokens(request)
        self.prefixes = SharedPrefixes()
        self.worth = self._worth(trie.of_rows(list(self.waiting)))

    @property
    def shares(self) -> bool:
        """Whether rows share prefixes in this run."""
        return self.worth is not None

    def _worth(self, trie: PromptTrie) -> int | None:
        """What makes a prefix worth sharing; None if there is no such prefix among all prompts."""
        longest = int(self.prompt_lengths.max()) + self.request.max_new_tokens
        worth = worth_sharing(inner_model(self.model), self.cache, longest)
        return worth if worth is not None and trie.shared_prefixes(worth) else None

    def run(self) -> Samples:
        """Sample until no row is left."""
        with self._attention():
            self._sample()
        drawn = self.drawn
        logps = None if drawn.logps is None else drawn.lists(drawn.logps)
        return Samples(drawn.lists(drawn.ids), logps, self.prompt_tokens, sampled_tokens=self.sampled_tokens)

    def _attention(self) -> AbstractContextManager[Any]:
        """Inside, the model attends to shared prefixes; a switch goes through all modules, so once."""
        if not self.shares:
            return nullcontext()
        return switched(inner_model(self.model), IMPLEMENTATION)

    def _sample(self) -> None:
        while self.waiting or len(self.row):
            joining = self._joining()
            if joining:
                self._join(joining)
            tokens = self._draw()
            tokens = self._leave(~self.drawn.ended(self.row), tokens)
            tokens = self._fork(tokens)
            if len(self.row):
                self._step(tokens)

    def _joining(self) -> list[int]:
        """The rows for which there is room now; none, if it is not worth a copy of the cache yet."""
        request, joining, used = self.request, list[int](), int(self.block.sum())
        if used and request.batch_size - used < max(self.sizes[0], request.batch_size // _WAIT_FOR):
            return joining
        most = self.prompt_lengths[self.row].max(initial=0)
        while self.waiting and used + self.sizes[0] <= request.batch_size:
            most = max(most, self.prompt_lengths[self.waiting[0]])
            used += self.sizes[0]
            columns = used * (most + request.max_new_tokens)
            if request.cached_tokens is not None and columns > request.cached_tokens:
                break
            joining.append(self.waiting.popleft())
        return joining

    def _join(self, rows: list[int]) -> None:
        for part in prefill(self.model, [self.request.prompts[row] for row in rows], self.worth):
            self._admit(part, np.array(rows[len(self.shared) - len(self.row) :]))
        self.row = np.append(self.row, rows)
        self.block = np.append(self.block, np.full(len(rows), self.sizes[0]))
        self.lengths = np.append(self.lengths, self.prompt_lengths[rows])
        self._add_uniform(rows)
        self.on_device = None

    def _add_uniform(self, rows: list[int]) -> None:
        """Add random numbers of new rows."""
        new = torch.from_numpy(np.stack([self.request.uniform(row) for row in rows])).to(self.device)
        self.uniform = torch.cat([self.uniform, new])

    def _admit(self, part: Prefilled, rows: np.ndarray) -> None:
        """Add the rows of a part of the prompts to the cache; they are the first of `rows`."""
        for i, layer in enumerate(self.cache.layers):
            layer.admit(*part.layer(i))
        self.logits = torch.cat([self.logits, part.logits]) if len(self.logits) else part.logits
        self.prompt_tokens += part.tokens
        self.prefixes.add(part.prefixes, rows, self.sizes[0])
        self.shared = np.append(self.shared, part.shared)

    @property
    def width(self) -> int:
        """W, columns of the cache: what the longest row has beside shared prefixes."""
        return int((self.lengths - self.shared).max(initial=0))

    def _rows(self) -> RowsOnDevice:
        """What the device knows of the rows, sent again if they are others now."""
        if self.on_device is None:
            cached, drawn = self.lengths - self.shared, self.drawn.count[self.row]
            self.on_device = RowsOnDevice.sent(self.lengths, cached, drawn, self.device)
            self.prefixes.place(self.row, self.device)
        return self.on_device

    def _draw(self) -> np.ndarray:
        """(R,) a token for each row, written down."""
        settings, rows = self.request.settings, self._rows()
        ids = self.drawn.so_far(self.row).to(self.device) if settings.penalises else None
        tokens = draw(self.logits, settings, self.uniform.gather(1, rows.drawn)[:, 0], ids)
        rows.drawn += 1
        logps = None
        if self.request.logprobs:
            logps = log_probs(self.logits, tokens, settings.temperature).cpu().numpy()
        self.last, found = tokens, tokens.cpu().numpy()
        self.drawn.write(self.row, found, logps)
        self.sampled_tokens += len(self.row)
        return found

    def _leave(self, going: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Let ended rows leave; the last ones take their places. Returns the tokens of those that stay."""
        count = int(going.sum())
        if count == len(going):
            return tokens
        for row, block in zip(self.row[~going], self.block[~going], strict=True):
            self.drawn.copy(row, np.arange(row + 1, row + block))  # it ended before its fork
        to, source = np.flatnonzero(~going[:count]), count + np.flatnonzero(going[count:])
        for values in (self.row, self.block, self.lengths, self.shared, tokens):
            values[to] = values[source]
        self.row, self.block, self.shared = self.row[:count], self.block[:count], self.shared[:count]
        self.lengths = self.lengths[:count]
        places = tuple(torch.from_numpy(np.stack([to, source])).to(self.device))
        self.uniform[places[0]] = self.uniform[places[1]]
        self.uniform, self.on_device, self.last = self.uniform[:count], None, None
        for layer in self.cache.layers:
            layer.move(*places, count)
            layer.crop_to(self.width)
        self.prefixes.drop_unused(self.row)
        self.logits = self.logits[:0]
        return tokens[:count]

    def _fork(self, tokens: np.ndarray) -> np.ndarray:
        """Split the blocks that have come to a fork; returns the last tokens of old rows and new ones."""
        plan = self.request.branches
        if plan is None or not len(self.row):
            return tokens
        for depth, factor, size in zip(plan.depths, plan.factors, self.sizes[1:], strict=True):
            at = np.flatnonzero((self.drawn.count[self.row] == depth) & (self.block > size))
            if not len(at):
                continue
            for copy in range(1, factor):
                new = self.row[at] + copy * size
                for row, to in zip(self.row[at], new, strict=True):
                    self.drawn.copy(row, to)
                self._copy(at, new, size)
                tokens = np.append(tokens, tokens[at])
            self.block[at] = size
        return tokens

    def _copy(self, at: np.ndarray, new: np.ndarray, size: int) -> None:
        """Add rows that go on from where the rows at these places are."""
        places = torch.from_numpy(at).to(self.device)
        for layer in self.cache.layers:
            layer.admit(layer.keys[places], layer.values[places])
        self.row = np.append(self.row, new)
        self.block = np.append(self.block, np.full(len(new), size))
        self.lengths = np.append(self.lengths, self.lengths[at])
        self.shared = np.append(self.shared, self.shared[at])
        self._add_uniform(new.tolist())
        self.logits, self.on_device, self.last = self.logits[:0], None, None

    def _step(self, tokens: np.ndarray) -> None:
        """Run the model over one new token a row."""
        rows = self._rows()
        ids = torch.from_numpy(tokens).to(self.device) if self.last is None else self.last
        self.lengths = self.lengths + 1
        padding = rows.padding(self.width)
        with self._attending(padding):
            output = self.model(
                input_ids=ids[:, None],
                attention_mask=None if padding is None else (~padding).long(),
                position_ids=rows.position,
                use_cache=True,
                **{self.cache_argument: self.cache},
            )
        rows.position = rows.position + 1
        self.logits = output.logits[:, -1].float()

    def _attending(self, padding: Tensor | None) -> AbstractContextManager[Any]:
        """Inside, rows attend to the prefixes that they share."""
        if not self.shares:
            return nullcontext()
        return self.prefixes.attending(inner_model(self.model), padding)
