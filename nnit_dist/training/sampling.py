"""Sampling in both trainers: tasks, widths between those of the grid, and conditioning shapes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.topology import MOST_WIDTH, Hidden, Topology, hidden_from
from nnit_dist.training.config import TaskWeights, check_task_weights


class TaskSampler:
    """Assigns networks of a training to tasks in proportion to their weights.

    The assignment repeats after as many networks as the weights add up to. Within such a round the
    networks of each task are evenly spaced. A task without a weight has a weight of 1.

    Raises:
        NnitError: there is a weight for a task that is not among `tasks`.
    """

    def __init__(self, tasks: Sequence[str], weights: TaskWeights) -> None:
        check_task_weights(tasks, weights)
        positions = [
            ((turn + 0.5) / weights.get(task, 1), number)
            for number, task in enumerate(tasks)
            for turn in range(weights.get(task, 1))
        ]
        self.round = [number for _, number in sorted(positions)]

    def task_of(self, network: int) -> int:
        """The index of the task of a network, by the index of the network."""
        return self.round[network % len(self.round)]


@dataclass(frozen=True)
class TrainingDistribution:
    """Which topologies a model is trained on: those of `seen`, their hidden widths varied.

    Attributes:
        seen: hidden widths on the training grid.
        variation: by how many units each width is varied at most.
    """

    seen: list[Hidden]
    variation: int

    def metadata(self) -> dict[str, str]:
        """Entries of a model file's metadata, of which `read` makes the distribution again."""
        return {"seen": json.dumps(self.seen), "variation": str(self.variation)}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "TrainingDistribution":
        """The distribution of a model file.

        Raises:
            KeyError, ValueError: the metadata has none, or one that is no list of topologies.
        """
        seen = [hidden_from(hidden) for hidden in json.loads(metadata["seen"])]
        variation = int(metadata["variation"])
        if not seen or variation < 0 or any(max(hidden) > MOST_WIDTH for hidden in seen):
            raise ValueError(f"it was trained on no topology, or on layers over {MOST_WIDTH} wide")
        return cls(seen, variation)

    @property
    def max_width(self) -> int:
        """The widest layer of training."""
        return max(max(hidden) for hidden in self.seen)

    @property
    def max_depth(self) -> int:
        """The most hidden layers of training."""
        return max(len(hidden) for hidden in self.seen)

    def vary(self, topology: Topology, rng: torch.Generator) -> Topology:
        """A topology near a seen one, as training has them."""
        return vary_widths(topology, self.variation, self.max_width, rng)


def vary_widths(topology: Topology, units: int, most: int, rng: torch.Generator) -> Topology:
    """Change each hidden width by a uniform number of at most `units`, up to the width `most`.

    So training also covers widths between those of the grid.
    """
    changes = torch.randint(-units, units + 1, (topology.depth,), generator=rng).tolist()
    hidden = tuple(
        min(most, width + change) for width, change in zip(topology.hidden, changes, strict=True)
    )
    return replace(topology, hidden=hidden)


def jitter_condition(
    topology: Topology, width_noise: float, depth_noise: float, rng: torch.Generator
) -> ConditioningShape:
    """The shape that a network is conditioned on in training: its true shape with uniform noise.

    Hidden widths change by up to `width_noise`, but are at least halved. The depth changes by up to
    `depth_noise`, but is at least 1. So weights change slowly with the shape, and topologies a
    little beyond those of training work too.
    """
    *width_moves, depth_move = (2 * torch.rand(topology.depth + 1, generator=rng) - 1).tolist()
    hidden = [
        max(width / 2, width + width_noise * move)
        for width, move in zip(topology.hidden, width_moves, strict=True)
    ]
    dims = (topology.obs_dim, *hidden, topology.act_dim)
    return ConditioningShape(dims, max(1.0, topology.depth + depth_noise * depth_move))
