"""Training of the graph hypernetwork: one worker of Ray Train.

Each step draws topologies and mixes of teachers, number i of them from (seed, step, i), so that
it does not matter over how many workers they are spread. Tasks take turns. The generated network
must act as its teachers do on average, on states that teachers and generated networks visited.
Gaussian noise on the generated weights during training makes the function flat around them, so that
the small errors of a generative model cost little success. Widths are varied, and the sizes and the
depth that the hypernetwork is told are jittered (`told.py`).

What is random is drawn ahead of a step, in processes of its own if a worker has some
(`training.py`); the step itself is a few large operations.

Shapes: B networks, T teachers of all tasks, S states, L layers at most, W units at most.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.rng import generator_of
from nnit_dist.core.storage import path_of
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.config import DistillConfig, GHNConfig
from nnit_dist.hypernet.data import DistillationData, draw_states
from nnit_dist.hypernet.ghn import GHN, Plan
from nnit_dist.hypernet.latents import (
    TeacherLatents,
    action_error,
    draw_teacher_weights,
    sample_latents,
)
from nnit_dist.hypernet.model import HypernetModel, load_samplers
from nnit_dist.training.loop import Loop, LoopSpec, worker_setup
from nnit_dist.training.optimizer import (
    average_gradients,
    average_with_losses,
    learning_rate,
    set_learning_rate,
)
from nnit_dist.training.sampling import TaskSampler, jitter_condition, vary_widths
from nnit_dist.training.state import restore_state, save_state
from nnit_dist.training.warm_start import warm_start

WARMUP = 100  # steps in which the learning rate rises


def distill_worker(config: dict, loop_spec: LoopSpec) -> None:
    """Ray Train loop: continue training up to `config["until"]` steps."""
    device, rank, workers = worker_setup()
    trainer = Distiller(config, device, (rank, workers))
    start, known = config.get("start_from"), config.get("continue_from")
    loop = Loop(
        trainer.state(), loop_spec, log_every=25, save_every=trainer.config.checkpoint_every
    )
    if loop.start == 0 and start:
        loop.start = restore_state(trainer.state(), path_of(start))
    elif loop.start == 0 and known:
        trainer.warm_start_from(load_samplers(path_of(known)))
    loop.run(config["until"], trainer.sample_batch, trainer.train_step)
    if rank == 0:
        save_state(trainer.state(), config["until"], path_of(config["result"]))


@dataclass(frozen=True)
class TaskData:
    """One task: its teachers (by id), which are the best (bool [T]), and topologies.

    Its teachers and their states follow those of the tasks before: `first_teacher` and
    `first_state` are theirs among all, and `states` counts each teacher's own.
    """

    task: str
    teachers: list[str]
    best: Tensor
    topologies: list[Topology]
    states: Tensor
    first_teacher: int
    first_state: int

    def draw_states(self, teacher_weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Indices int64 [B, count] of states, each a teacher's by its share in mixes [B, own T]."""
        first = self.first_state + self.states.cumsum(0) - self.states
        owners, places = draw_states(teacher_weights, self.states, count, rng)
        return first[owners] + places


@dataclass
class Batch:
    """What a worker needs for a step: the networks, whom they imitate and where they must act.

    `teacher_weights` float32 [B, T], `latent_noise` [B, latent_dim], `states` int64 [B, S] of all
    states; `noise` is standard normal, for the networks' weights.
    """

    plan: Plan
    teacher_weights: Tensor
    latent_noise: Tensor
    states: Tensor
    noise: MLPBatch

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.plan.to(device),
            self.teacher_weights.to(device),
            self.latent_noise.to(device),
            self.states.to(device),
            self.noise.to(device),
        )


class Distiller:
    """GHN, latents and optimiser, with one training step.

    `share` is (rank, workers): which of a step's topologies are this worker's.
    """

    def __init__(self, config: dict, device: torch.device, share: tuple[int, int] = (0, 1)) -> None:
        self.config = DistillConfig(**config["distill"])
        self.device, self.seed, self.share = device, config["seed"], share
        torch.manual_seed(self.seed)
        self.variation, self.max_width = config["variation"], config["max_width"]
        distillation_data = [
            DistillationData.load(path_of(about["states"])) for about in config["tasks"]
        ]
        self.obs_dim = max(data.obs_dim for data in distillation_data)
        self.act_dim = max(data.act_dim for data in distillation_data)
        self.task_data = _task_data(
            config["tasks"], distillation_data, json.loads(config["topologies"])
        )
        names = [data.task for data in self.task_data]
        self.task_sampler = TaskSampler(names, self.config.task_weights)
        padding = [self.obs_dim - data.obs_dim for data in distillation_data]
        self.states = torch.cat(
            [
                F.pad(torch.cat(data.obs), (0, zeros))
                for data, zeros in zip(distillation_data, padding, strict=True)
            ]
        ).to(device)
        self.teachers = MLPBatch.cat([data.teachers for data in distillation_data]).to(device)
        ghn_config, tasks = GHNConfig(**config["ghn"]), len(self.task_data)
        self.ghn = GHN(ghn_config, self.obs_dim, self.act_dim, self.max_width, tasks).to(device)
        self.latents = nn.ModuleList(
            TeacherLatents(len(data.best), ghn_config.latent_dim) for data in self.task_data
        ).to(device)
        self.parameters = [*self.ghn.parameters(), *self.latents.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def state(self) -> dict:
        return {"ghn": self.ghn, "latents": self.latents, "optimizer": self.optimizer}

    def step(self, step: int) -> dict[str, float]:
        """Take step number `step`; returns the mean losses."""
        return self.train_step(step, self.sample_batch(step))

    def sample_batch(self, step: int) -> Batch:
        """Draw this worker's share of step number `step`; on the CPU, whatever the device."""
        cfg, (rank, workers) = self.config, self.share
        numbers = range(rank, cfg.topologies_per_step, workers)
        tasks = [self.task_sampler.task_of(step + number) for number in numbers]
        drawn = [
            self._draw(self.task_data[task], generator_of(self.seed, step, number))
            for task, number in zip(tasks, numbers, strict=True)
        ]
        topologies, condition = [one.topology for one in drawn], [one.condition for one in drawn]
        plan = self.ghn.plan(topologies, condition, tasks, [cfg.networks_per_topology] * len(drawn))
        teacher_weights = torch.zeros(len(drawn), cfg.networks_per_topology, len(self.teachers))
        for row, (one, task) in enumerate(zip(drawn, tasks, strict=True)):
            first = self.task_data[task].first_teacher
            teacher_weights[row, :, first : first + one.teacher_weights.shape[1]] = (
                one.teacher_weights
            )
        return Batch(
            plan,
            teacher_weights.flatten(0, 1),
            torch.cat([one.latent_noise for one in drawn]),
            torch.cat([one.states for one in drawn]),
            MLPBatch.cat([one.noise for one in drawn]),
        )

    def _draw(self, data: TaskData, rng: torch.Generator) -> "_Drawn":
        cfg, dim = self.config, self.ghn.config.latent_dim
        picked = int(torch.randint(len(data.topologies), (), generator=rng))
        topology = vary_widths(data.topologies[picked], self.variation, self.max_width, rng)
        teacher_weights = draw_teacher_weights(
            data.best, cfg.networks_per_topology, cfg.best_share, cfg.max_teachers_per_mix, rng
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
        """Take step number `step` with its prepared batch; returns the mean losses."""
        cfg, batch = self.config, batch.to(self.device)
        set_learning_rate(self.optimizer, learning_rate(step, cfg.steps, cfg.lr, WARMUP))
        networks = self._written(batch)
        obs = self.states[batch.states]
        target = self._targets(batch.teacher_weights, obs)
        output = networks.add_noise(cfg.weight_noise, batch.noise).forward(obs)
        act_dims = networks.act_dims.to(obs.device, non_blocking=True)
        errors = action_error(output, target).mean(1).sum(1) / act_dims  # what it lacks is zero
        weight = self.share[1] / (
            cfg.topologies_per_step * cfg.networks_per_topology
        )  # gradients are averaged
        error = weight * errors.sum()
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
            torch.cat([getattr(own, n) for own in latents]) for n in ("mean", "log_std")
        )
        z = sample_latents(batch.teacher_weights, mean, log_std, batch.latent_noise)
        return self.ghn.write(batch.plan, z)

    @torch.no_grad()
    def _targets(self, teacher_weights: Tensor, obs: Tensor) -> Tensor:
        """What the teachers of each mix do on average, in [-1, 1]: [B, S, act_dim]."""
        networks, teachers = teacher_weights.nonzero(as_tuple=True)
        actions = self.teachers.select(teachers).forward(obs[networks]).clamp(-1, 1)
        shares = teacher_weights[networks, teachers][:, None, None]
        zeros = obs.new_zeros(*obs.shape[:2], actions.shape[2])
        return zeros.index_add(0, networks, shares * actions)

    @torch.no_grad()
    def warm_start_from(self, samplers: list[HypernetModel]) -> None:
        """Begin with what is known: these tasks come first, further ones are new.

        Raises:
            NnitError: the hypernetworks differ in more than their tasks.
        """
        names = [sampler.task.name for sampler in samplers]
        if [data.task for data in self.task_data][: len(names)] != names:
            raise NnitError(
                f"the run to continue from has the tasks {', '.join(names)}. Name them first and "
                "in this order, and new ones after them."
            )
        warm_start(self.ghn, samplers[0].ghn)
        for task, sampler in enumerate(samplers):
            places = {teacher.id: i for i, teacher in enumerate(sampler.teachers)}
            latents = self.latents_of(task)
            for i, teacher in enumerate(self.task_data[task].teachers):
                if teacher in places:
                    latents.mean[i] = sampler.latents.mean[places[teacher]]
                    latents.log_std[i] = sampler.latents.log_std[places[teacher]]

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
    """Networks of one topology, `networks_per_topology` of them."""

    topology: Topology
    teacher_weights: Tensor
    latent_noise: Tensor
    condition: ConditioningShape
    states: Tensor
    noise: MLPBatch


def _task_data(
    tasks: list[dict[str, Any]], distillation_data: list[DistillationData], hidden: list[Hidden]
) -> list[TaskData]:
    task_data: list[TaskData] = []
    teachers = states = 0
    for about, data in zip(tasks, distillation_data, strict=True):
        ids, best = zip(*about["teachers"], strict=True)
        counts = torch.tensor([len(obs) for obs in data.obs])
        task_data.append(
            TaskData(
                about["task"],
                list(ids),
                torch.tensor(best),
                [Topology(data.obs_dim, tuple(h), data.act_dim) for h in hidden],
                counts,
                teachers,
                states,
            )
        )
        teachers, states = teachers + len(ids), states + int(counts.sum())
    return task_data
