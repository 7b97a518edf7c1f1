"""Who teaches, and what their networks count as."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.networks import TASK, random_policy

from nnit_dist.artifacts.run_directory import AlignDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.core.zoo import Member
from nnit_dist.hypernet.config import AlignConfig
from nnit_dist.hypernet.dagger import BAR, DistillationRounds, with_noise
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.recording import record
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.stages.align import Alignment
from nnit_dist.stages.config import RunConfig
from nnit_dist.training.config import Placement
from nnit_dist.training.sampling import TrainingDistribution

TRIALS = {"a": [0.1, 0.5, 0.7, 0.95, 0.6], "b": [0.3, 0.92], "c": [0.2, 0.8]}


def population() -> list[Member]:
    return [
        Member(random_policy((16, 8), policy_id=f"{trial}{i}"), trial, 0, 100 * i, once, once, 1.0)
        for trial, successes in TRIALS.items()
        for i, once in reversed(list(enumerate(successes)))
    ]


def alignment(sampler, tmp_path, **settings) -> Alignment:
    config = AlignConfig(**{"min_success": 0.9, **settings})
    seen = [(8,), (16, 8)]
    members = population()
    run = run_config(config, variation=0)
    return Alignment(run, [sampler.task], members, seen, out=AlignDirectory(tmp_path))


def run_config(config: AlignConfig, variation: int) -> RunConfig:
    return RunConfig(
        name="x",
        tasks=[TASK],
        align=config,
        topologies={"variation": variation},
        training=Placement(cpus=1),
        ray={"actors": 1},
    )


@pytest.mark.long
def test_a_training_with_stops_writes_what_the_stage_writes(ray_local, tmp_path):
    members = [Member(random_policy((16, 16)), "trial", 0, 1, 1.0, 1.0, 0.0)]
    distill = {
        "steps": 6, "dagger_rounds": 1, "teacher_episodes": 4, "dagger_networks": 2,
        "dagger_episodes": 1,
    }  # fmt: skip
    config = AlignConfig(success_episodes=1, ghn={"channels": [8, 8]}, distill=distill)
    task, seen = TaskInfo(TASK, DEFAULT_CONTROL_MODE, 35, 8, 50), [(8,), (16, 8)]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    place = Placement(cpus=1)
    run = run_config(config, variation=1)
    stage = Alignment(run, [task], members, seen, out=AlignDirectory(whole))
    stage.run()
    (teacher_set,) = stage.teacher_sets
    condition = (
        [task],
        [teacher_set.teachers],
        TrainingDistribution(seen, 1),
        AlignDirectory(whole),
        AlignDirectory(pieces),
        place,
        0,
    )
    simulators = Simulators(TASK, DEFAULT_CONTROL_MODE)
    for until in (2, 4, 6):  # the first round ends after 3
        rounds = DistillationRounds(config.ghn, config.distill, *condition, stops=[2, 4])
        with StageProgress("") as view:
            view.add(BAR, 6)
            rounds.train(until, lambda _, jobs, __: record(simulators, 1, jobs), view)
        rounds.forget()
        assert [path.name for path in pieces.glob("*.pt")] == [
            {2: "step-2.pt", 4: "step-4.pt", 6: "round-1.pt"}[until]
        ]
    visited = [directory / f"states-{TASK}-1.safetensors" for directory in (whole, pieces)]
    assert visited[0].read_bytes() == visited[1].read_bytes()
    sampler, known = rounds.model(), HypernetModel.load(AlignDirectory(whole).hypernet)
    for (name, one), other in zip(
        sampler.ghn.state_dict().items(), known.ghn.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_no_two_of_many_teachers_are_recorded_from_the_same_start_states(sampler, tmp_path):
    stage, policy = alignment(sampler, tmp_path), random_policy((8,))
    starts = []
    for stage.seed in (0, 1):
        for teacher in range(150):
            starts += [s for job in stage._teacher_jobs(policy, teacher) for s in job.seeds]
    assert len(starts) == 300 * stage.config.distill.teacher_episodes
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize(
    ("snapshots", "expected"),
    [(0, []), (1, ["a0", "b0"]), (2, ["a0", "a1", "b0"]), (9, ["a0", "a1", "a2", "b0"])],
)
def test_the_best_of_good_trials_teach_and_earlier_snapshots_of_these(
    sampler, tmp_path, snapshots, expected
):
    (teacher_set,) = alignment(sampler, tmp_path, snapshots=snapshots).teacher_sets
    assert [t.id for t in teacher_set.teachers if t.best] == ["a3", "b1"]
    assert [t.id for t in teacher_set.teachers if not t.best] == expected
    assert [policy.id for policy in teacher_set.policies] == [t.id for t in teacher_set.teachers]


def test_of_the_best_those_teach_that_can_be_mixed_with_their_trials_snapshots(sampler, tmp_path):
    (teacher_set,) = alignment(sampler, tmp_path, snapshots=9).teacher_sets
    some = teacher_set.restricted_to([1])
    assert [(t.id, t.best) for t in some.teachers] == [("b1", True), ("b0", False)]
    assert [policy.id for policy in some.policies] == ["b1", "b0"]


def test_noise_is_in_proportion_to_the_weights_for_whitened_inputs():
    norm = ObservationNormalizer(
        np.zeros(35, np.float32), np.geomspace(0.01, 10, 35).astype(np.float32)
    )
    policy = random_policy((16, 8))
    shaken = with_noise(policy, norm, 0.1, torch.Generator().manual_seed(0))
    for old, new in zip(norm.unfold(policy.layers), norm.unfold(shaken.layers), strict=True):
        for before, after in zip(old, new, strict=True):
            moved = np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))
            assert moved == pytest.approx(0.1, rel=0.5 if before.size < 20 else 0.15)
    assert with_noise(policy, norm, 0.0, torch.Generator()).flat() == pytest.approx(policy.flat())


def test_a_population_without_a_good_trial_is_refused(sampler, tmp_path):
    with pytest.raises(NnitError, match=r"reaches align.min_success=0.99 \(best 0.95\)"):
        alignment(sampler, tmp_path, min_success=0.99)


def test_networks_after_the_best_count_alike_and_the_others_by_themselves(
    sampler, tmp_path, monkeypatch
):
    known = {"after_0_8": 0.9, "after_1_8": 1.0, "after_2_8": 0.3}
    known |= {"after_0_16x8": 0.8, "after_1_16x8": 0.9, "after_2_16x8": 0.5}

    @dataclass
    class Measured:
        policies: list
        failures = None

        def rows(self):
            return [{"success_once": known[policy.id]} for policy in self.policies]

    heard = []
    monkeypatch.setattr(
        "nnit_dist.rollout.evaluation.Evaluator.evaluate",
        lambda self, policies, *_, **__: heard.extend(policies) or Measured(policies),
    )
    stage = alignment(sampler, tmp_path, snapshots=1)
    success = stage._measure(sampler)  # two of the best, and another
    assert torch.allclose(success, torch.tensor([0.9, 0.9, 0.4]))
    teacher_weights = [
        policy.metadata["teacher_weights"] for policy in heard if policy.id.startswith("after_2")
    ]
    assert teacher_weights == ['{"c": 1.0}'] * 2
