"""What was drawn so far for each row of a request, and which rows have ended."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lambda_grpo.sampling.request import Request


class DrawnTokens:
    """The completions of all rows of a request, as far as they are known.

    Attributes:
        prompts: the tokens before them.
        ids: (rows, T) tokens.
        logps: (rows, T) their log-probs; None: nobody wants them.
        count: (rows,) how many tokens of each row are known.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompts = [np.asarray(prompt, np.int64) for prompt in request.prompts]
        shape = len(self.prompts), request.max_new_tokens
        self.ids = np.zeros(shape, np.int64)
        self.logps = np.zeros(shape) if request.logprobs else None
        self.count = np.zeros(len(self.prompts), np.int64)

    def write(self, rows: np.ndarray, ids: np.ndarray, logps: np.ndarray | None) -> None:
        """Add a token to each of some rows."""
        self.ids[rows, self.count[rows]] = ids
        if self.logps is not None:
            self.logps[rows, self.count[rows]] = logps
        self.count[rows] += 1

    def copy(self, row: int, to: Any) -> None:
        """Write what a row has down for others as well."""
        self.ids[to], self.count[to] = self.ids[row], self.count[row]
        if self.logps is not None:
            self.logps[to] = self.logps[row]

    def ended(self, rows: np.ndarray) -> np.ndarray:
        """(R,) bool, whether the last token of each of these rows has ended it."""
        count = self.count[rows]
        ended = count == self.request.max_new_tokens
        ended |= np.isin(self.ids[rows, count - 1], self.request.end_ids)
        if self.request.ends is not None:
            ended |= self._end_strings(rows, self.request.ends)
        return ended

    def _end_strings(self, rows: np.ndarray, ends: Any) -> np.ndarray:
        """(R,) bool, the rows whose last token completes an end string."""
        ended = np.zeros(len(rows), bool)
        tails = [self._tail(row, ends.maximum_token_len) for row in rows.tolist()]
        lengths = np.array([len(tail) for tail in tails])
        for length in set(lengths.tolist()):  # padding might spell the string's beginning
            same = np.flatnonzero(lengths == length)
            ids = torch.from_numpy(np.stack([tails[i] for i in same]))
            ended[same] = ends(ids, None).numpy()
        return ended

    def so_far(self, rows: np.ndarray) -> Tensor:
        """(R, longest row) tokens, prompts included, aligned on the right; a row's first token pads it.

        A penalty asks which tokens occur, so this padding says nothing new.
        """
        whole = [self._tail(row, len(self.prompts[row]) + self.count[row]) for row in rows.tolist()]
        width = max(map(len, whole))
        return torch.from_numpy(
            np.stack([np.pad(ids, (width - len(ids), 0), constant_values=ids[0]) for ids in whole])
        )

    def _tail(self, row: int, count: int) -> np.ndarray:
        """The last tokens of a row, its prompt's included; fewer than `count`, if there are no more."""
        drawn, prompt = self.ids[row, : self.count[row]], self.prompts[row]
        before = max(0, count - len(drawn))
        return np.concatenate([prompt[max(0, len(prompt) - before) :], drawn])[-count:]

    def lists(self, values: np.ndarray) -> list[list[Any]]:
        """`ids` or `logps` row by row, without what is not drawn."""
        return [row[:count].tolist() for row, count in zip(values, self.count, strict=True)]
