"""What the device knows of the rows that are being sampled, so that a token needs no transfer to it.

A GPU waits for each transfer, however small, and between two tokens it has little else to do. So these
numbers are sent when rows join, leave or fork, and the device counts on by itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class RowsOnDevice:
    """R rows in the order of the batch.

    Attributes:
        position: (R, 1) of the next token.
        empty: (R, 1) columns of padding on the left of each row's cache; None: no row has any.
        drawn: (R, 1) tokens drawn so far.
    """

    position: Tensor
    empty: Tensor | None
    drawn: Tensor

    @classmethod
    def sent(
        cls, lengths: np.ndarray, cached: np.ndarray, drawn: np.ndarray, device: torch.device
    ) -> "RowsOnDevice":
        """Send what is known of the rows, in one transfer.

        Args:
            lengths: (R,) tokens so far, the prompt's included.
            cached: (R,) those of them that the row's own cache holds.
            drawn: (R,) those of them that were drawn.
            device: of the model.
        """
        empty = cached.max(initial=0) - cached
        sent = torch.from_numpy(np.stack([lengths, empty, drawn])[:, :, None]).to(device)
        return cls(sent[0], sent[1] if empty.any() else None, sent[2])

    def padding(self, width: int) -> Tensor | None:
        """(R, width) bool, the columns that are padding; None: none is."""
        return None if self.empty is None else torch.arange(width, device=self.empty.device) < self.empty
