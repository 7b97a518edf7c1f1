"""Success of P policies from E start seeds, filled in as episodes arrive."""

from collections.abc import Sequence

import numpy as np

from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.statistics import STOP_EVERY, stop_length

MISSING = -1


class Scores:
    """Scores of P policies from the same E start seeds.

    With `halfwidth`, measuring a policy stops once the 95% interval of its success is that narrow
    (see `statistics.stop_length`). Only the episodes up to that point count, even if more were
    run, so that figures do not depend on the order in which episodes arrive.

    Attributes:
        success_once, success_at_end: int8 [P, E], 1, 0, or MISSING.
        returns: float64 [P, E].
    """

    def __init__(self, policies: int, seeds: Sequence[int], halfwidth: float | None = None) -> None:
        self.seeds = list(seeds)
        self.halfwidth = halfwidth
        shape = (policies, len(self.seeds))
        self.success_once = np.full(shape, MISSING, np.int8)
        self.success_at_end = np.full(shape, MISSING, np.int8)
        self.returns = np.zeros(shape)
        self._column = {seed: column for column, seed in enumerate(self.seeds)}
        self._counted = np.full(policies, len(self.seeds))

    def add(self, policy: int, rollouts: Rollouts) -> None:
        """Fill in episodes; those of other start seeds are ignored."""
        rows = [row for row, seed in enumerate(rollouts.seeds) if seed in self._column]
        columns = [self._column[rollouts.seeds[row]] for row in rows]
        self.success_once[policy, columns] = rollouts.success_once[rows]
        self.success_at_end[policy, columns] = rollouts.success_at_end[rows]
        self.returns[policy, columns] = rollouts.returns[rows]
        if self.halfwidth is not None:
            known = self.success_once[policy]
            measured = int(np.argmax(np.append(known == MISSING, True)))
            length = stop_length(known[:measured], self.halfwidth)
            self._counted[policy] = length or len(self.seeds)

    def counted(self, policy: int) -> int:
        """How many of the start seeds count for a policy."""
        return int(self._counted[policy])

    def missing(self, policy: int) -> tuple[int, ...]:
        """Start seeds that count and are not yet measured."""
        known = self.success_once[policy, : self.counted(policy)] != MISSING
        return tuple(self.seeds[column] for column in np.flatnonzero(~known))

    @property
    def batch(self) -> int | None:
        """Episodes between two checks of whether to stop; None without `halfwidth`."""
        return None if self.halfwidth is None else STOP_EVERY
