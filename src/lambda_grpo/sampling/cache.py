"""The key-value cache of the rows that are being sampled: transformers' dynamic cache without its copies.

transformers' `DynamicLayer` copies the whole cache for each token (`torch.cat`), and rows that have ended
stay in it. Here a layer is a view into a larger buffer:

- a token is written into the next free column, and only every `SPARE` tokens a new buffer is made;
- a row that has ended gives its place to the last row, so one row is copied and not all others;
- columns on the left that hold only padding are cut off, at no cost.

All rows end in the last column, and shorter ones have padding on the left. The distance of two columns is
that of two tokens, so sliding windows are those of transformers.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lambda_grpo.errors import InputError

SPARE = 32  # free columns of a new buffer: more take memory, fewer mean more copies


class ColumnBuffer:
    """A tensor (rows, heads, columns, features) within a larger one: it can grow without a copy.

    Attributes:
        rows: rows in use.
        left, right: the columns in use.
    """

    def __init__(self, data: Tensor) -> None:
        self._data = data.new_empty(0)
        self.rows, self.left, self.right = data.shape[0], 0, 0
        self._reserve(data.shape, SPARE)
        self._data[:, :, : data.shape[2]] = data
        self.right = data.shape[2]

    def _reserve(self, shape: torch.Size | tuple[int, ...], spare: int) -> None:
        rows, heads, columns, features = shape
        self._data = self._data.new_empty(rows, heads, columns + spare, features)

    @property
    def view(self) -> Tensor:
        """What is in use."""
        return self._data[: self.rows, :, self.left : self.right]

    def append(self, columns: Tensor) -> None:
        """Write new columns after the last one."""
        count = columns.shape[2]
        if self.right + count > self._data.shape[2]:
            old = self.view
            self._reserve(old.shape, max(SPARE, count))
            self._data[:, :, : old.shape[2]] = old
            self.left, self.right = 0, old.shape[2]
        self._data[: self.rows, :, self.right : self.right + count] = columns
        self.right += count

    def move(self, to: Tensor, source: Tensor, rows: int) -> None:
        """Copy some rows into the places of others, then keep only the first `rows`."""
        if len(to):
            used = self._data[:, :, self.left : self.right]
            used[to] = used[source]
        self.rows = rows

    def crop(self, columns: int) -> None:
        """Keep so many columns on the right at most."""
        self.left = max(self.left, self.right - columns)

    def admit(self, data: Tensor) -> None:
        """Add rows below; the narrower of the two gets zeros on its left, which are finite and masked."""
        old = self.view
        width = max(old.shape[2], data.shape[2])
        self._reserve((old.shape[0] + data.shape[0], old.shape[1], width, old.shape[3]), SPARE)
        for first, part in ((0, old), (old.shape[0], data)):
            there = self._data[first : first + len(part), :, :width]
            there[:, :, : width - part.shape[2]] = 0
            there[:, :, width - part.shape[2] :] = part
        self.rows, self.left, self.right = old.shape[0] + data.shape[0], 0, width


class _Growing:
    """What both kinds of layers have in common; `keys` and `values` are views, as transformers reads them."""

    _buffers: tuple[ColumnBuffer, ...] = ()

    def admit(self, keys: Tensor, values: Tensor) -> None:
        """Add rows, aligned on the right."""
        if self._buffers:
            for buffer, data in zip(self._buffers, (keys, values), strict=True):
                buffer.admit(data)
        else:
            self._buffers = ColumnBuffer(keys), ColumnBuffer(values)
        self._show()

    def move(self, to: Tensor, source: Tensor, rows: int) -> None:
        """As `ColumnBuffer.move`."""
        for buffer in self._buffers:
            buffer.move(to, source, rows)
        self._show()

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        for buffer, data in zip(self._buffers, (keys, values), strict=True):
            buffer.append(data)
        self._show()
        return self.keys, self.values

    def _crop(self, columns: int) -> None:
        for buffer in self._buffers:
            buffer.crop(columns)
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (buffer.view for buffer in self._buffers)
        self.is_initialized, self.device, self.dtype = True, self.keys.device, self.keys.dtype


class GrowingLayer(_Growing, DynamicLayer):  # type: ignore[misc]
    """A layer that sees all tokens before."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._append(key_states, value_states)

    def crop_to(self, width: int) -> None:
        """Cut off columns on the left, where all rows have padding."""
        self._crop(width)


class GrowingWindowLayer(_Growing, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A layer that sees a window: it holds the last `sliding_window - 1` tokens, as transformers' does."""

    cumulative_length: int  # columns so far, those that have left the window included

    def admit(self, keys: Tensor, values: Tensor) -> None:
        self.cumulative_length = max(self.cumulative_length, keys.shape[2])
        kept = self.sliding_window - 1
        first = max(0, keys.shape[2] - kept)
        super().admit(keys[:, :, first:], values[:, :, first:])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.cumulative_length += key_states.shape[2]
        seen = self._append(key_states, value_states)
        self._crop(self.sliding_window - 1)
        return seen

    def crop_to(self, width: int) -> None:
        """Cut off columns on the left, where all rows have padding."""
        self.cumulative_length = min(self.cumulative_length, width)
        self._crop(width)


def growing_cache(config: Any) -> DynamicCache:
    """transformers' own dynamic cache for a model, with layers that grow without copies.

    Raises:
        InputError: a layer of the model keeps something else than keys and values.
    """
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = GrowingWindowLayer(sliding_window=layer.sliding_window)
        elif type(layer) is DynamicLayer:
            cache.layers[i] = GrowingLayer()
        else:
            raise InputError(f"layer {i} keeps a {type(layer).__name__}, which cannot fork")
    return cache
