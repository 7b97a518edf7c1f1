import pytest

from nnit_dist.core.errors import NnitError
from nnit_dist.core.splits import is_bottleneck, split_topologies

GRID = dict(widths=[16, 32, 64], depths=[1, 2, 3], unseen_widths=[24, 48])


COUNTS = {"combination": 5, "bottleneck": 3, "width": 6, "deeper": 3, "wider": 2}


def test_split_keeps_every_unseen_topology_out_of_training():
    split = split_topologies(**GRID, counts=COUNTS, seed=3)
    unseen = {hidden for held in split.unseen.values() for hidden in held}
    assert not unseen & set(split.seen)
    assert {kind: len(held) for kind, held in split.unseen.items()} == COUNTS


def test_unseen_kinds_are_what_they_say():
    split = split_topologies(**GRID, counts=COUNTS, seed=3)
    seen_widths = {width for hidden in split.seen for width in hidden}
    assert all(set(hidden) <= seen_widths for hidden in split.unseen["combination"])
    assert all(set(hidden) - seen_widths for hidden in split.unseen["width"])
    assert all(max(hidden) <= 64 for hidden in split.unseen["width"])
    assert {len(hidden) for hidden in split.unseen["deeper"]} == {4, 5}
    bottlenecks = {
        kind: sum(is_bottleneck(h, 40) for h in held) for kind, held in split.unseen.items()
    }
    assert bottlenecks["bottleneck"] == 3
    assert bottlenecks["combination"] == bottlenecks["width"] == 0
    assert not any(is_bottleneck(hidden, 40) for hidden in split.seen)
    assert all(max(hidden) > 64 for hidden in split.unseen["wider"])


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [((64, 16, 64), True), ((16, 64, 16), False), ((64, 64, 16), False), ((48, 32, 48, 64), True)],
)
def test_bottlenecks(hidden, expected):
    assert is_bottleneck(hidden, 40) == expected


def test_split_depends_on_the_seed_alone():
    one, same = (split_topologies(**GRID, counts=COUNTS, seed=0) for _ in range(2))
    other = split_topologies(**GRID, counts=COUNTS, seed=1)
    assert one == same
    assert one != other


def test_what_was_trained_is_not_unseen_and_changes_nothing_else():
    whole = split_topologies(**GRID, counts=COUNTS, seed=0)
    trained = {whole.unseen["combination"][0], whole.unseen["width"][2], whole.seen[0]}
    split = split_topologies(**GRID, counts=COUNTS, seed=0, trained=trained)
    assert split.seen == whole.seen
    for kind, held in whole.unseen.items():
        assert split.unseen[kind] == [hidden for hidden in held if hidden not in trained]


def test_split_that_asks_for_too_many_names_the_key():
    with pytest.raises(NnitError, match=r"topologies\.unseen\.combination asks for 500"):
        split_topologies(**GRID, counts={"combination": 500}, seed=0)
