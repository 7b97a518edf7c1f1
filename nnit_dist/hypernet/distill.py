"""Training of the graph hypernetwork: the part of one worker of Ray Train.

Each step draws topologies and mixes of teachers. Number i depends on (seed, step, i) alone, so the
number of workers does not matter. Tasks alternate in proportion to their weights. A generated
network is trained to act as its teachers do on average, on states that teachers and generated
networks visited. Gaussian noise on the generated weights makes the policy insensitive to small
errors in its weights, so that errors of a generative model cost little success. Widths are varied,
and the conditioning shape is jittered (`training/sampling.py`).

All random numbers of a step are drawn ahead, by the worker's loader processes if it has any
(`training/loop.py`). The step itself is a few large operations.

Shapes: B networks, T teachers of all tasks, S states, L layers at most, W units at most.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.rng import stream
from nnit_dist.core.storage import path_of
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.config import DistillConfig, GHNConfig
from nnit_dist.hypernet.data import DistillationData, draw_states
from nnit_dist.hypernet.ghn import GHN, Plan
from nnit_dist.hypernet.latents import (
    TeacherLatents,
    action_error,
    draw_teacher_weights,
    sample_latents,
)
from nnit_dist.hypernet.model import HypernetModel, Teacher
from nnit_dist.training.loop import Loop, LoopSpec, worker_setup
from nnit_dist.training.optimizer import (
    average_gradients,
    average_with_losses,
    learning_rate,
    set_learning_rate,
)
from nnit_dist.training.sampling import TaskSampler, TrainingDistribution, jitter_condition
from nnit_dist.training.state import restore_state, save_state
from nnit_dist.training.warm_start import warm_start

WARMUP = 100  # steps in which the learning rate rises


@dataclass(frozen=True)
class TaskSource:
    """The training data of a task: the file of its distillation data, and its teachers in order."""

    task: str
    states: str
    teachers: list[Teacher]


@dataclass(frozen=True)
class DistillSpec:
    """Data and settings of a training. Paths are text, because they are sent to other machines."""

    config: DistillConfig
    ghn: GHNConfig
    distribution: TrainingDistribution
    tasks: list[TaskSource]
    seed: int


@dataclass(frozen=True)
class DistillWork:
    """The work of a Ray Train worker: train up to step `until`, then write the state to `result`.

    Training starts from the hypernetwork in `continue_from`, or resumes from the trainer's state in
    `start_from`.
    """

    spec: DistillSpec
    until: int
    result: str
    continue_from: str | None
    start_from: str | None


def distill_worker(work: DistillWork, loop_spec: LoopSpec) -> None:
    """Train up to step `work.until`, then write the trainer's state."""
    device, rank, workers = worker_setup()
    trainer = Distiller(work.spec, device, (rank, workers))
    every = work.spec.config.checkpoint_every
    loop = Loop(trainer.state(), loop_spec, log_every=25, save_every=every)
    if loop.start == 0 and work.start_from:
        loop.start = restore_state(trainer.state(), path_of(work.start_from))
    elif loop.start == 0 and work.continue_from:
        trainer.warm_start_from(HypernetModel.load(path_of(work.continue_from)))
    loop.run(work.until, trainer.sample_batch, trainer.train_step)
    if rank == 0:
        save_state(trainer.state(), work.until, path_of(work.result))


@dataclass(frozen=True)
class TaskData:
    """One task: the ids of its teachers, which of them are best (bool [T]), and its topologies.

    `states` int64 [T] counts the states of each teacher. Teachers and states of all tasks are
    numbered in the order of the tasks; this task's begin at `first_teacher` and `first_state`.
    """

    task: str
    teachers: list[str]
    best: Tensor
    topologies: list[Topology]
    states: Tensor
    first_teacher: int
    first_state: int

    def draw_states(self, teacher_weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Draw indices int64 [B, count] of states, for mixes [B, T] of this task's teachers.

        A teacher's share of the states is its weight in the mix.
        """
        first = self.first_state + self.states.cumsum(0) - self.states
        owners, places = draw_states(teacher_weights, self.states, count, rng)
        return first[owners] + places


@dataclass
class Batch:
    """The inputs of a worker's step: networks to write, the teachers they imitate, and the states.

    `teacher_weights` is float32 [B, T], `latent_noise` float32 [B, latent_dim]. `states` int64
    [B, S] are indices among the states of all tasks. `noise` is standard normal noise for weights.
    """

    plan: Plan
    teacher_weights: Tensor
    latent_noise: Tensor
    states: Tensor
    noise: MLPBatch

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.plan.to(device),
            self.teacher_weights.to(device),
            self.latent_noise.to(device),
            self.states.to(device),
            self.noise.to(device),
        )


class Distiller:
    """The trainer of the hypernetwork and the latents.

    `share` is (rank, workers). A worker takes every `workers`-th topology of a step, from its rank.
    """

    def __init__(
        self, spec: DistillSpec, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.config, self.distribution = spec.config, spec.distribution
        self.device, self.seed, self.share = device, spec.seed, share
        torch.manual_seed(self.seed)
        data = [DistillationData.load(path_of(source.states)) for source in spec.tasks]
        self.task_data = _task_data(spec, data)
        names = [source.task for source in spec.tasks]
        self.task_sampler = TaskSampler(names, self.config.task_weights)
        obs_dim = max(recorded.obs_dim for recorded in data)
        self.states = torch.cat(
            [F.pad(torch.cat(recorded.obs), (0, obs_dim - recorded.obs_dim)) for recorded in data]
        ).to(device)
        self.teachers = MLPBatch.cat([recorded.teachers for recorded in data]).to(device)
        act_dim, max_width = max(recorded.act_dim for recorded in data), self.distribution.max_width
        self.ghn = GHN(spec.ghn, obs_dim, act_dim, max_width, tasks=len(data)).to(device)
        self.latents = nn.ModuleList(
            TeacherLatents(len(source.teachers), spec.ghn.latent_dim) for source in spec.tasks
        ).to(device)
        self.parameters = [*self.ghn.parameters(), *self.latents.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The contents of a checkpoint."""
        return {"ghn": self.ghn, "latents": self.latents, "optimizer": self.optimizer}

    def step(self, step: int) -> dict[str, float]:
        """Take step number `step`, and return the mean losses."""
        return self.train_step(step, self.sample_batch(step))

    def sample_batch(self, step: int) -> Batch:
        """Draw this worker's share of step number `step`, on the CPU."""
        cfg, (rank, workers) = self.config, self.share
        numbers = range(rank, cfg.topologies_per_step, workers)
        tasks = [self.task_sampler.task_of(step + number) for number in numbers]
        drawn = [
            self._draw(self.task_data[task], stream("hypernet.batch", self.seed, step, number))
            for task, number in zip(tasks, numbers, strict=True)
        ]
        count = cfg.networks_per_topology
        plan = self.ghn.plan(
            [d.topology for d in drawn], [d.condition for d in drawn], tasks, [count] * len(drawn)
        )
        teacher_weights = torch.zeros(len(drawn), count, len(self.teachers))
        for row, (networks, task) in enumerate(zip(drawn, tasks, strict=True)):
            first, weights = self.task_data[task].first_teacher, networks.teacher_weights
            teacher_weights[row, :, first : first + weights.shape[1]] = weights
        return Batch(
            plan,
            teacher_weights.flatten(0, 1),
            torch.cat([d.latent_noise for d in drawn]),
            torch.cat([d.states for d in drawn]),
            MLPBatch.cat([d.noise for d in drawn]),
        )

    def _draw(self, data: TaskData, rng: torch.Generator) -> "_Drawn":
        cfg, dim = self.config, self.ghn.config.latent_dim
        picked = int(torch.randint(len(data.topologies), (), generator=rng))
        topology = self.distribution.vary(data.topologies[picked], rng)
        teacher_weights = draw_teacher_weights(
            data.best, cfg.networks_per_topology, cfg.best_share, cfg.max_teachers_per_mix, rng=rng
        )
        return _Drawn(
            topology,
            teacher_weights,
            torch.randn(cfg.networks_per_topology, dim, generator=rng),
            jitter_condition(topology, cfg.condition_width_noise, cfg.condition_depth_noise, rng),
            data.draw_states(teacher_weights, cfg.states, rng),
            MLPBatch.randn(topology, cfg.networks_per_topology, rng),
        )

    def train_step(self, step: int, batch: Batch) -> dict[str, float]:
        """Take step number `step` with its batch, and return the mean losses."""
        cfg, batch = self.config, batch.to(self.device)
        set_learning_rate(
            self.optimizer, learning_rate(step, cfg.steps, peak=cfg.lr, warmup=WARMUP)
        )
        networks = self._written(batch)
        obs = self.states[batch.states]
        target = self._targets(batch.teacher_weights, obs)
        output = networks.add_noise(cfg.weight_noise, batch.noise).forward(obs)
        act_dims = networks.act_dims.to(obs.device, non_blocking=True)
        errors = action_error(output, target).mean(1).sum(1) / act_dims  # padding has no error
        networks_per_step = cfg.topologies_per_step * cfg.networks_per_topology
        error = self.share[1] / networks_per_step * errors.sum()  # gradients are averaged
        loss = error + cfg.kl_weight * self._kl()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        (mean_error,) = average_with_losses(self.parameters, error[None], average_gradients)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {"action_mse": float(mean_error), "kl": float(self._kl().detach())}

    def _written(self, batch: Batch) -> MLPBatch:
        latents = [self.latents_of(task) for task in range(len(self.task_data))]
        mean, log_std = (
            torch.cat([getattr(task_latents, name) for task_latents in latents])
            for name in ("mean", "log_std")
        )
        z = sample_latents(batch.teacher_weights, mean, log_std, batch.latent_noise)
        return self.ghn.write(batch.plan, z)

    @torch.no_grad()
    def _targets(self, teacher_weights: Tensor, obs: Tensor) -> Tensor:
        """Weighted mean of the teachers' clipped actions, in [-1, 1]: [B, S, act_dim]."""
        networks, teachers = teacher_weights.nonzero(as_tuple=True)
        actions = self.teachers.select(teachers).forward(obs[networks]).clamp(-1, 1)
        shares = teacher_weights[networks, teachers][:, None, None]
        zeros = obs.new_zeros(*obs.shape[:2], actions.shape[2])
        return zeros.index_add(0, networks, shares * actions)

    @torch.no_grad()
    def warm_start_from(self, earlier: HypernetModel) -> None:
        """Copy the weights of a trained hypernetwork; its tasks come first, new tasks after them.

        Raises:
            NnitError: the hypernetworks have other sizes, or the earlier tasks do not come first.
        """
        names = [task.task.name for task in earlier.tasks]
        if [data.task for data in self.task_data][: len(names)] != names:
            raise NnitError(
                f"the run to continue from has the tasks {', '.join(names)}. Name them first and "
                "in this order, and new ones after them."
            )
        warm_start(self.ghn, earlier.ghn)
        for number, task in enumerate(earlier.tasks):
            place_of = {teacher.id: i for i, teacher in enumerate(task.teachers)}
            latents = self.latents_of(number)
            for i, teacher in enumerate(self.task_data[number].teachers):
                if teacher in place_of:
                    latents.mean[i] = task.latents.mean[place_of[teacher]]
                    latents.log_std[i] = task.latents.log_std[place_of[teacher]]

    def _kl(self) -> Tensor:
        tasks = range(len(self.task_data))
        return torch.stack([self.latents_of(task).kl() for task in tasks]).mean()

    def latents_of(self, task: int) -> TeacherLatents:
        """The latents of a task's teachers."""
        latents = self.latents[task]
        assert isinstance(latents, TeacherLatents)
        return latents


@dataclass(frozen=True)
class _Drawn:
    """The random draws for the `networks_per_topology` networks of one topology."""

    topology: Topology
    teacher_weights: Tensor
    latent_noise: Tensor
    condition: ConditioningShape
    states: Tensor
    noise: MLPBatch


def _task_data(spec: DistillSpec, data: list[DistillationData]) -> list[TaskData]:
    task_data: list[TaskData] = []
    first_teacher = first_state = 0
    for source, recorded in zip(spec.tasks, data, strict=True):
        counts = torch.tensor([len(obs) for obs in recorded.obs])
        task_data.append(
            TaskData(
                source.task,
                [teacher.id for teacher in source.teachers],
                torch.tensor([teacher.best for teacher in source.teachers]),
                [Topology(recorded.obs_dim, h, recorded.act_dim) for h in spec.distribution.seen],
                counts,
                first_teacher,
                first_state,
            )
        )
        first_teacher += len(source.teachers)
        first_state += int(counts.sum())
    return task_data
