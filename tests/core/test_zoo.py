import subprocess
import sys
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
from nnit_dist.core.zoo_file import SCHEMA


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


def _columns(rows: int, **changes) -> pa.Table:
    """A zoo's table that repeats one row, with other columns."""
    table = pa.Table.from_pylist([member().row()], schema=SCHEMA).take(pa.array([0] * rows))
    for name, values in changes.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def _weights(rows: int, each: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(
        np.arange(rows + 1, dtype=np.int32) * each, np.zeros(rows * each, np.float32)
    )


BOMBS = {
    "weights of a row": lambda: _columns(1, weights=_weights(1, 20 << 20)),
    "weights of a group": lambda: _columns(40, weights=_weights(40, 1 << 20)),
    "rows": lambda: _columns(200_000, weights=_weights(200_000, 0)),
    "text": lambda: _columns(1, source=pa.array(["x" * 10_000_000])),
    "repeated text": lambda: _columns(5_000, source=pa.array(["x" * 100_000]).take([0] * 5_000)),
    "other column": lambda: _columns(1).append_column("x", _weights(1, 100 << 20)),
    "numbers as text": lambda: _columns(
        400, seed=pa.array([f"{i}" + "x" * 500_000 for i in range(400)])
    ),
    "widths": lambda: _columns(
        1, hidden=pa.array([np.ones(5_000_000, np.int32)], pa.list_(pa.int32()))
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_would_fill_the_memory_is_refused(bomb, tmp_path):
    pq.write_table(BOMBS[bomb](), tmp_path / "part-a.parquet", compression="zstd")
    size = (tmp_path / "part-a.parquet").stat().st_size
    assert size < 3_000_000
    zoo = Zoo(tmp_path)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from nnit_dist.core.errors import NnitError; from nnit_dist.core.zoo import Zoo\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "zoo, before = Zoo(Path(sys.argv[1])), peak()\n"
        "refused = 'damaged or not a zoo file' in str(zoo.verify())\n"
        "for read in (zoo.rows, lambda: list(zoo.members())):\n"
        "    try: read()\n"
        "    except NnitError: assert refused\n"
        "    else: assert not refused\n"
        "print(peak() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 300_000  # kB
    # (A column of something else is not read.)
    assert (zoo.verify() == []) == (bomb == "other column")


@pytest.mark.parametrize("name", [name for name in SCHEMA.names if name != "id"])
def test_a_row_without_a_value_is_a_problem_of_its_own(name, tmp_path):
    nothing = pa.nulls(1, SCHEMA.field(name).type)
    pq.write_table(_columns(1, **{name: nothing}), tmp_path / "part-a.parquet")
    assert f"has no {name}" in Zoo(tmp_path).verify()[0]


def test_a_column_that_is_there_twice_and_a_text_that_is_none_are_refused(tmp_path):
    twice = _columns(1).append_column("parent", pa.array(["x"]))
    bytes_ = pa.array([b"\xff\xfe"]).view(pa.string())
    for table, expected in (
        (twice, "has more than one trial"),
        (_columns(1, source=bytes_), "UTF8|UTF-8"),
        (_columns(1, hidden=pa.array(["16"])), "hidden is string"),
    ):
        pq.write_table(table, tmp_path / "part-a.parquet")
        zoo = Zoo(tmp_path)
        with pytest.raises(NnitError, match=expected):
            zoo.rows()
        assert len(zoo.verify()) == 1


def test_a_row_without_success_is_not_passed_over(tmp_path):
    pq.write_table(_columns(1, success_once=pa.nulls(1, pa.float64())), tmp_path / "part-a.parquet")
    with pytest.raises(NnitError, match="has no success_once. See `nnit zoo verify"):
        Zoo(tmp_path).rows()


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    named = member("a")
    named.policy.source = "x" * 300
    with pytest.raises(NnitError, match="a text of over 256 bytes"):
        Zoo(tmp_path).append([named])
    assert Zoo(tmp_path).files() == []
    many = [member(f"p{i}", (1,)) for i in range(3)]
    Zoo(tmp_path).append(many)
    assert len(Zoo(tmp_path).rows()) == 3
