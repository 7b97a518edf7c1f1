from multiprocessing import get_context

import numpy as np
import pytest
from conftest import random_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from nnit_dist.errors import NnitError
from nnit_dist.zoo import Member, Zoo


def member(policy_id="a", hidden=(16, 8), success=0.5, seed=0) -> Member:
    policy = random_policy(hidden, seed, policy_id)
    return Member(policy, "parent", seed, 1000, success, success / 2, 12.5)


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
    assert (back.success_once, back.env_steps, back.parent) == (success, 1000, "parent")


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


def test_unknown_id(tmp_path):
    zoo = Zoo(tmp_path)
    zoo.append([member("a")])
    with pytest.raises(NnitError, match="has no policy 'b'"):
        zoo.get("b")
