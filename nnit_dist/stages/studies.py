"""Networks for three studies of a trained NNiT, on a few unseen topologies.

steps: success against the number of sampler steps.
asked: measured success against the success asked for.
drawn: success on architectures that the model draws itself, to compare with that on seen ones.
"""

from collections.abc import Iterator

from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Hidden
from nnit_dist.nnit.model import NNiTModel

STEPS = (2, 4, 8, 16, 32, 64)
ASKED = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
DRAWN = 48


def study_policies(
    model: NNiTModel, topologies: list[Hidden], seed: int
) -> Iterator[tuple[str, Policy]]:
    """The policies of every study, each with the study's name.

    Ids carry the study and its setting; the metadata has `study` and `setting` too.
    """
    for study, setting, policy in _settings(model, topologies, seed):
        policy.id = f"{study}_{setting}_{policy.id}"
        policy.metadata |= {"study": study, "setting": setting}
        yield study, policy


def study_size(topologies: list[Hidden]) -> int:
    """The largest number of policies that the studies can have."""
    return (len(STEPS) + len(ASKED)) * len(topologies) + DRAWN


def _settings(
    model: NNiTModel, topologies: list[Hidden], seed: int
) -> Iterator[tuple[str, str, Policy]]:
    for steps in STEPS:
        for hidden in topologies:
            yield "steps", str(steps), model.generate(hidden, 1, seed, steps)[0]
    for asked in ASKED:
        for hidden in topologies:
            yield "asked", str(asked), model.generate(hidden, 1, seed, success=asked)[0]
    for number, hidden in enumerate(model.draw_architectures(DRAWN, seed)):
        yield "drawn", "joint", model.generate(hidden, 1, seed, first=number)[0]
