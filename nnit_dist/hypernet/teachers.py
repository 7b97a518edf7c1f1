"""The choice of each task's teachers from the population."""

from dataclasses import dataclass, replace
from typing import Self

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import spread
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.zoo import Member, best_of_trials
from nnit_dist.hypernet.model import Teacher


@dataclass(frozen=True)
class TeacherSet:
    """The teachers of one task: the best snapshots of its trials, then earlier snapshots.

    `number` is the index of the task in the run.
    """

    task: TaskInfo
    number: int
    best: list[Member]
    earlier: list[Member]

    @classmethod
    def select(
        cls,
        task: TaskInfo,
        number: int,
        members: list[Member],
        *,
        min_success: float,
        snapshots: int,
    ) -> Self:
        """Select the teachers from the trials of the population that reach `min_success`.

        Each of these trials gives its best snapshot and up to `snapshots` earlier ones.

        Raises:
            NnitError: no trial reaches `min_success`.
        """
        candidates = [member for member in members if member.policy.task == task.name]
        best = _good_enough(task.name, candidates, min_success)
        return cls(task, number, best, _earlier(best, candidates, snapshots))

    def restricted_to(self, best: list[int]) -> Self:
        """Keep only some of the best teachers, and the earlier snapshots of their trials."""
        kept = [self.best[i] for i in best]
        trials = {member.trial for member in kept}
        return replace(self, best=kept, earlier=[m for m in self.earlier if m.trial in trials])

    @property
    def policies(self) -> list[Policy]:
        """All policies: the best snapshots, then the earlier ones."""
        return [member.policy for member in [*self.best, *self.earlier]]

    @property
    def teachers(self) -> list[Teacher]:
        """The teachers of the hypernetwork, in the order of `policies`."""
        return [Teacher(p.id, i < len(self.best)) for i, p in enumerate(self.policies)]


def _good_enough(task: str, members: list[Member], min_success: float) -> list[Member]:
    """The best snapshot of every trial that reaches `min_success`."""
    best = best_of_trials(members)
    if teachers := [member for member in best if member.success_once >= min_success]:
        return teachers
    most = max((member.success_once for member in members), default=0.0)
    raise NnitError(
        f"no policy for {task} reaches align.min_success={min_success} (best {most:.2f}). "
        "Raise population.recipe.env_steps or lower align.min_success."
    )


def _earlier(teachers: list[Member], members: list[Member], count: int) -> list[Member]:
    """Up to `count` earlier snapshots of each teacher's trial, evenly spread over its training."""
    chosen: list[Member] = []
    for best in teachers:
        before = [m for m in members if m.trial == best.trial and m.env_steps < best.env_steps]
        chosen += spread(sorted(before, key=lambda member: member.env_steps), count)
    return chosen
