from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.core.zoo import Member, Zoo


def member(policy_id="a", hidden=(16, 8), success=0.5, seed=0) -> Member:
    policy = random_policy(hidden, seed, policy_id)
    return Member(policy, "trial", seed, 1000, success, success / 2, 12.5)


@settings(max_examples=20, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple),
    success=st.floats(0, 1),
)
def test_round_trip(hidden, success, tmp_path_factory):
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.append([member("x", hidden, success)])
    back = zoo.get("x")
    assert np.array_equal(back.policy.flat(), random_policy(hidden).flat())
    assert back.policy.topology.hidden == hidden
    assert (back.success_once, back.env_steps, back.trial) == (success, 1000, "trial")


def test_appending_the_same_member_again_adds_nothing(tmp_path):
    zoo = Zoo(tmp_path)
    zoo.append([member("a")])
    zoo.append([member("a")])
    assert [row["id"] for row in zoo.rows()] == ["a"]
    assert zoo.verify() == []


def _append(path, number):
    Zoo(path).append([member(f"m{number}", seed=number)])


def test_many_writers_at_once(tmp_path):
    context = get_context("fork")
    writers = [context.Process(target=_append, args=(tmp_path, n)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [row["id"] for row in Zoo(tmp_path).rows()] == [f"m{n}" for n in range(8)]
    assert Zoo(tmp_path).verify() == []


def test_verify_finds_a_truncated_file_and_keeps_the_rest(tmp_path):
    zoo = Zoo(tmp_path)
    zoo.append([member("good")])
    bad = zoo.append([member("bad")])
    bad.write_bytes(bad.read_bytes()[:-50])
    problems = zoo.verify()
    assert len(problems) == 1
    assert bad.name in problems[0]
    with pytest.raises(NnitError, match="damaged or not a zoo file"):
        zoo.rows()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda m: m.policy.layers[0][0].__setitem__((0, 0), np.nan), "NaN"),
        (lambda m: setattr(m, "success_once", 1.5), "success_once is 1.5"),
    ],
)
def test_verify_finds_inconsistent_rows(tmp_path, damage, expected):
    broken = member("broken")
    damage(broken)
    zoo = Zoo(tmp_path)
    zoo.append([broken])
    assert expected in zoo.verify()[0]


def big_zoo(path, monkeypatch) -> Zoo:
    """Twelve policies in three files of two row groups each."""
    monkeypatch.setattr(
        "nnit_dist.core.zoo.GROUP_BYTES", 4 * random_policy((16, 8)).flat().size * 2
    )
    zoo = Zoo(path)
    for file in range(3):
        own = [
            member(f"m{4 * file + i:02d}", [(16, 8), (8,)][i % 2], (4 * file + i) / 12)
            for i in range(4)
        ]
        own[3].policy.task = "PickCube-v1"
        zoo.append(own)
    return zoo


def ids(members) -> list[str]:
    return sorted(member.policy.id for member in members)


def test_policies_are_found_by_task_widths_success_and_id(tmp_path, monkeypatch):
    zoo = big_zoo(tmp_path, monkeypatch)
    assert ids(zoo.members(tasks=["PickCube-v1"])) == ["m03", "m07", "m11"]
    assert ids(zoo.members(hidden=[(16, 8)])) == ["m00", "m02", "m04", "m06", "m08", "m10"]
    assert ids(zoo.members(success=(0.5, 0.75))) == ["m06", "m07", "m08", "m09"]
    assert ids(zoo.members(ids=["m05", "m99"])) == ["m05"]
    both = zoo.members(tasks=["PushCube-v1"], hidden=[(8,)], success=(0.4, 1.0))
    assert ids(both) == ["m05", "m09"]
    assert [row["id"] for row in zoo.rows(success=(0.9, 1.0))] == ["m11"]
    assert list(zoo.members(hidden=[])) == []


def test_workers_share_the_policies(tmp_path, monkeypatch):
    zoo = big_zoo(tmp_path, monkeypatch)
    shares = [ids(zoo.members(share=(rank, 4))) for rank in range(4)]
    assert sorted(name for share in shares for name in share) == ids(zoo.members())
    assert max(map(len, shares)) == 4  # two of six row groups


def test_only_one_row_group_is_in_memory(tmp_path, monkeypatch):
    zoo = big_zoo(tmp_path, monkeypatch)
    assert [len(table) for table in zoo.scan()] == [2] * 6


def test_compaction_keeps_every_policy_once(tmp_path, monkeypatch):
    zoo = big_zoo(tmp_path, monkeypatch)
    before = {m.policy.id: m.policy.flat() for m in zoo.members()}
    again = next(iter(zoo.members(ids=["m05"])))
    zoo.append([again])  # as after a compaction that was killed before it deleted its sources
    assert zoo.compact() == 12
    assert len(zoo.files()) == 1
    assert zoo.verify() == []
    after = {m.policy.id: m.policy.flat() for m in zoo.members()}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert zoo.compact() == 12
    assert len(zoo.files()) == 1


def test_a_table_of_something_else_is_no_zoo_file(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "part-x.parquet")
    with pytest.raises(NnitError, match="it lacks act_dim"):
        Zoo(tmp_path).rows()


def test_unknown_id(tmp_path):
    zoo = Zoo(tmp_path)
    zoo.append([member("a")])
    with pytest.raises(NnitError, match="has no policy 'b'"):
        zoo.get("b")
