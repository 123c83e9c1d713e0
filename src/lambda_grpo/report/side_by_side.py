"""What is known of several runs, before they are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lambda_grpo.report.analysis import Table
from lambda_grpo.report.matching import Int, MetPrompts
from lambda_grpo.report.run_records import RunRecords


@dataclass(frozen=True, eq=False)
class SideBySide:
    """What is known of several runs.

    Attributes:
        names: of the runs, R of them.
        groups: the table of groups, of all runs.
        met: what was noted of each of these groups, in the same order.
        records: R, what the runs' folders hold beside rollouts.
        origins: R, what made the token ids.
    """

    names: Sequence[str]
    groups: Table
    met: MetPrompts
    records: Sequence[RunRecords]
    origins: Sequence[Sequence[str]]

    @cached_property
    def run(self) -> Int:
        """(N,) the number of each group's run."""
        number = {name: place for place, name in enumerate(self.names)}
        return np.array([number[name] for name in self.groups["run"].tolist()], np.int64)

    @cached_property
    def right(self) -> Int:
        """(N,) how many completions of each group are right; -1 if none is scored."""
        share, scored = self.groups["accuracy"], self.groups["scored"]
        return np.where(scored > 0, np.round(np.nan_to_num(share) * scored), -1).astype(np.int64)
