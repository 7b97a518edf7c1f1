"""Who teaches the hypernetwork: good policies of the population, task by task."""

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
    """The teachers of one task: the best snapshots of its trials, then earlier ones."""

    task: TaskInfo
    number: int
    best: list[Member]
    earlier: list[Member]

    @classmethod
    def of(
        cls,
        task: TaskInfo,
        number: int,
        members: list[Member],
        min_success: float,
        snapshots: int,
    ) -> Self:
        """From the population: of every trial that reaches `min_success`, up to so many earlier.

        Raises:
            NnitError: no teacher is good enough.
        """
        own = [member for member in members if member.policy.task == task.name]
        best = _good_enough(task.name, own, min_success)
        return cls(task, number, best, _earlier(best, own, snapshots))

    def only(self, best: list[int]) -> Self:
        """With these of the best alone, and the earlier snapshots of their trials."""
        kept = [self.best[i] for i in best]
        trials = {member.trial for member in kept}
        return replace(self, best=kept, earlier=[m for m in self.earlier if m.trial in trials])

    @property
    def policies(self) -> list[Policy]:
        return [member.policy for member in [*self.best, *self.earlier]]

    @property
    def about(self) -> list[Teacher]:
        return [Teacher(p.id, i < len(self.best)) for i, p in enumerate(self.policies)]


def _good_enough(task: str, members: list[Member], min_success: float) -> list[Member]:
    """The best snapshot of every trial that reaches `min_success`."""
    best = best_of_trials(members)
    if taught := [member for member in best if member.success_once >= min_success]:
        return taught
    most = max((member.success_once for member in members), default=0.0)
    raise NnitError(
        f"no policy for {task} reaches align.min_success={min_success} (best {most:.2f}). "
        "Raise population.recipe.env_steps or lower align.min_success."
    )


def _earlier(taught: list[Member], members: list[Member], count: int) -> list[Member]:
    """Up to `count` earlier snapshots of the trial of each, evenly over its training."""
    found = []
    for best in taught:
        own = [m for m in members if m.trial == best.trial and m.env_steps < best.env_steps]
        found += spread(sorted(own, key=lambda member: member.env_steps), count)
    return found
