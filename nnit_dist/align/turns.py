"""Whose turn it is: how tasks share the networks of a training."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from nnit_dist.errors import NnitError, nearest

Turns = Annotated[
    dict[str, PositiveInt],
    Field(description="how many turns a task has in a round of all; one where it is not named"),
]


def round_of(tasks: Sequence[str], turns: Turns) -> list[int]:
    """A round: the number of a task for every turn in it, each task's spread over the round.

    Raises:
        NnitError: turns are given for a task that is not there.
    """
    if unknown := sorted(turns.keys() - set(tasks)):
        raise NnitError(
            f"there are turns for {unknown[0]}, which is not among the tasks."
            f"{nearest(unknown[0], tasks)}"
        )
    places = [
        ((turn + 0.5) / turns.get(task, 1), number)
        for number, task in enumerate(tasks)
        for turn in range(turns.get(task, 1))
    ]
    return [number for _, number in sorted(places)]
