"""One hypernetwork and one NNiT for several tasks, and a task added to what is trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.networks import TASK, changed_task, distiller_of, small_sampler

from nnit_dist.core.errors import NnitError
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.ghn import GHN
from nnit_dist.hypernet.latents import TeacherLatents
from nnit_dist.hypernet.model import HypernetModel, HypernetTask, Teacher
from nnit_dist.nnit.config import NNiTConfig, TransformerConfig
from nnit_dist.nnit.dataset import AlignedDataset
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.tokens import detokenize
from nnit_dist.nnit.train import trained_model, warm_start_from
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.training.sampling import TaskSampler
from nnit_dist.training.warm_start import warm_start

OTHER = TaskInfo("PickCube-v1", "pd_joint_delta_pos", 42, 8, 50)
CONFIG = NNiTConfig(
    transformer=TransformerConfig(32, 2, 2),
    steps=4,
    topologies_per_step=3,
    networks_per_topology=2,
    architectures=4,
)


def two_tasks() -> HypernetModel:
    """The small hypernetwork with a second task beside its own."""
    first = small_sampler()
    ghn = GHN(first.ghn.config, 42, 8, 32, tasks=2).eval()
    warm_start(ghn, first.ghn)
    second = HypernetTask(
        OTHER,
        ObservationNormalizer(np.zeros(42, np.float32), np.ones(42, np.float32)),
        TeacherLatents(2, 4),
        [Teacher("d", True), Teacher("e", False)],
        torch.tensor([0.8, 0.3]),
    )
    return replace(first, ghn=ghn, tasks=[first.current, second])


def trained(model, config=CONFIG) -> NNiTModel:
    source = AlignedDataset(model, config, 0)
    trainer = Trainer(config, source, torch.device("cpu"), 0)
    for step in range(config.steps):
        trainer.step(step)
    return trained_model(trainer, source)


def test_a_hypernetwork_that_grew_a_task_writes_the_others_as_before():
    before, (first, second) = small_sampler(), two_tasks().each_task()
    one, other = (sampler.policies((16, 8), 2, 0) for sampler in (before, first))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.flat(), b.flat())
    assert second.policies((16, 8), 1, 0)[0].topology.dims == (42, 16, 8, 8)


def test_a_hypernetwork_that_grew_wider_writes_as_before():
    known = small_sampler()
    wide = known.ghn.config.model_copy(
        update={"channels": [c + 8 for c in known.ghn.config.channels]}
    )
    ghn = GHN(wide, 35, 8, 32).eval()
    warm_start(ghn, known.ghn)
    one, other = (s.policies((16, 8), 2, 0) for s in (known, replace(known, ghn=ghn)))
    for a, b in zip(one, other, strict=True):
        assert np.allclose(a.flat(), b.flat(), atol=1e-5)


def test_tasks_have_their_turns_spread_over_a_round():
    tasks = ["a", "b", "c"]
    assert TaskSampler(tasks, {}).round == [0, 1, 2]
    assert TaskSampler(tasks, {"b": 3}).round == [1, 0, 1, 2, 1]
    with pytest.raises(NnitError, match="a weight for d, which is not among the tasks"):
        TaskSampler(tasks, {"d": 2})


def test_a_hypernetwork_of_other_sizes_is_not_grown():
    known = small_sampler().ghn
    with pytest.raises(NnitError, match="Keep the sizes of its configuration"):
        warm_start(GHN(known.config.model_copy(update={"embed_dim": 8}), 35, 8, 32), known)


def test_tasks_have_input_and_output_matrices_of_their_own():
    """The same latent for the same sizes, and another task: only the hidden matrix is the same."""
    ghn, z = two_tasks().ghn, torch.randn(1, 4)
    topology = Topology(35, (16, 16), 8)
    networks = ghn([(topology, z), (topology, z)], tasks=[0, 1])
    alike = [torch.equal(one, other) for one, other in networks.weights]
    assert alike == [False, True, False]


def test_samplers_of_one_hypernetwork_survive_their_file(tmp_path):
    known = two_tasks()
    back = HypernetModel.load(known.save(tmp_path / "ghn.safetensors"))
    for old, new in zip(known.each_task(), back.each_task(), strict=True):
        assert new.ghn is back.ghn
        assert (new.task, new.number) == (old.task, old.number)
        assert new.current.teachers == old.current.teachers
        one, two = (sampler.policies((16, 8), 1, 3)[0] for sampler in (old, new))
        assert np.array_equal(one.flat(), two.flat())
    picked = HypernetModel.load(tmp_path / "ghn.safetensors", OTHER.name)
    assert picked.task == OTHER
    with pytest.raises(NnitError, match="for PushCube-v1, PickCube-v1, not for StackCube-v1"):
        HypernetModel.load(tmp_path / "ghn.safetensors", "StackCube-v1")


def test_training_networks_of_tasks_take_turns_and_are_those_of_their_samplers():
    model = two_tasks()
    source = AlignedDataset(model, CONFIG, 0)
    examples = source.examples(1, range(10))
    tasks = [source.vocabulary.tasks[e.ids[0] - source.vocabulary._task] for e in examples]
    assert tasks == [OTHER.name, TASK] * 5  # of networks and of architectures alone
    assert [e.layout.topology.obs_dim for e in examples[:6]] == [42, 35] * 3
    for example, drawn in zip(examples[:6], source.drawn(1, range(6)), strict=True):
        sampler = model.each_task()[drawn.task]
        network = sampler.networks(
            [drawn.topology], drawn.teacher_weights[None], [drawn.rng], [drawn.condition]
        )
        values = source.token_normalizers[drawn.task].denormalize(example.x[None], example.layout)
        for weight, own in zip(
            detokenize(values, example.layout).weights, network.weights, strict=True
        ):
            assert torch.allclose(weight, own, atol=1e-4)
        assert example.success == pytest.approx(
            float(drawn.teacher_weights @ sampler.current.success)
        )


def test_weights_of_every_task_are_of_unit_spread():
    model = two_tasks()
    with torch.no_grad():  # a task whose first layer's weights are ten times as large
        for block in model.ghn.decoder.blocks[-1:]:
            block.maps[3] *= 10
    source = AlignedDataset(model, CONFIG, 0)
    for task in range(2):
        values: dict[int, list[torch.Tensor]] = {}
        for example in source.examples(0, range(6)) + source.examples(1, range(6)):
            if example.layout.topology.obs_dim != source.model.tasks[task].task.obs_dim:
                continue
            for kind in example.layout.kind.unique().tolist():
                mine = example.layout.kind == kind
                values.setdefault(kind, []).append(example.x[mine][example.layout.mask[mine] > 0])
        for kind, parts in values.items():
            assert torch.cat(parts).std() == pytest.approx(1, abs=0.5), (task, kind)


def test_a_model_with_one_whitening_for_all_tasks_is_read(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = trained(two_tasks()).save(tmp_path / "nnit.safetensors")
    with safe_open(str(path), framework="pt") as file:
        state, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    for part in ("mean", "std"):
        state[f"whitening.{part}"] = state.pop(f"token_normalizer.{part}")[0].contiguous()
    save_file(state, tmp_path / "old.safetensors", metadata | {"format": "nnit.model/4"})
    one, other = NNiTModel.load(tmp_path / "old.safetensors").tasks
    assert torch.equal(one.token_normalizer.std, other.token_normalizer.std)


def test_a_model_writes_policies_of_every_task_that_it_serves(tmp_path):
    model = trained(two_tasks())
    back = NNiTModel.load(model.save(tmp_path / "nnit.safetensors"))
    for task, obs_dim, best in ((TASK, 35, 0.9), (OTHER.name, 42, 0.8)):
        own, again = model.for_task(task), back.for_task(task)
        assert own.best_success == again.best_success == pytest.approx(best)
        one, two = (m.generate((16, 24), 1)[0] for m in (own, again))
        assert np.array_equal(one.flat(), two.flat())
        assert (one.task, one.topology.obs_dim) == (task, obs_dim)
    assert len(back.for_task(OTHER.name).draw_architectures(4)) > 0
    with pytest.raises(NnitError, match="not for StackCube-v1"):
        model.for_task("StackCube-v1")


def test_an_nnit_that_grew_a_task_begins_with_what_it_could():
    one = trained(small_sampler())
    source = AlignedDataset(two_tasks(), CONFIG, 0)
    trainer = Trainer(CONFIG, source, torch.device("cpu"), 0)
    warm_start_from(trainer, one)
    grown = trained_model(trainer, source)
    before, after = (m.for_task(TASK).generate((16, 24), 2) for m in (one, grown))
    for a, b in zip(before, after, strict=True):
        assert np.allclose(a.flat(), b.flat(), atol=1e-6)


@pytest.mark.parametrize("change", [{"patch": 4}, {"transformer": TransformerConfig(16, 2, 2)}])
def test_an_nnit_of_another_make_is_not_continued(change):
    one, config = trained(small_sampler()), CONFIG.model_copy(update=change)
    trainer = Trainer(config, AlignedDataset(two_tasks(), config, 0), torch.device("cpu"), 0)
    with pytest.raises(NnitError, match="cannot continue from this model of PushCube-v1"):
        warm_start_from(trainer, one)


def test_distillation_goes_on_from_what_is_known_of_each_teacher(tmp_path):
    known, distiller = small_sampler(), distiller_of(tmp_path)
    known.current.teachers = [Teacher("c", False), Teacher("a", True), Teacher("z", True)]
    fresh = distiller.latents_of(0).mean.detach().clone()
    distiller.warm_start_from(known)
    for own, old in zip(distiller.ghn.parameters(), known.ghn.parameters(), strict=True):
        assert torch.equal(own, old)
    latents = distiller.latents_of(0)  # of the teachers a, b and c
    assert torch.equal(latents.mean[[0, 2]], known.current.latents.mean[[1, 0]])
    assert torch.equal(latents.mean[1], fresh[1])
    with pytest.raises(NnitError, match="has the tasks PickCube-v1. Name them first"):
        distiller.warm_start_from(changed_task(known, task=OTHER))
