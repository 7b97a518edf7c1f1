"""Records of a search come back from its files, those of older searches too."""

import pytest

from nnit_dist.core.files import write_json
from nnit_dist.search.records import RungRecord, TrialRecord
from nnit_dist.search.results import SEARCH, TRIAL, read_trials, rung_file, schedule

RUNG: RungRecord = {
    "rung": 0,
    "step": 10,
    "loss": None,
    "success": 0.5,
    "networks": [{"policy": "p", "parameters": 8, "success": 0.5}],
    "seconds": {"start": 1.0, "train": 2.0, "write": 0.5, "measure": 3.0},
    "parameters": 100,
}


@pytest.mark.parametrize("key", ["inherited", "taken_over"])
def test_a_trial_comes_back_with_what_it_inherited(key, tmp_path):
    write_json(tmp_path / SEARCH, {"rungs": [0.5, 1.0]})
    write_json(tmp_path / "a" / TRIAL, {"values": {"nnit.lr": 1e-3}})
    write_json(tmp_path / "b" / TRIAL, {"values": {"nnit.lr": 1e-4}, "donor": "a", key: 1})
    for name in ("a", "b"):
        write_json(rung_file(tmp_path / name, 0), RUNG)
    trials = read_trials(tmp_path)
    assert all(set(trial) == set(TrialRecord.__annotations__) for trial in trials)
    first, second = trials
    assert (first["inherited"], first["donor"]) == (0, None)
    assert (second["inherited"], second["donor"]) == (1, "a")
    assert first["rungs"] == second["rungs"] == [RUNG]
    assert (first["state"], first["complete"], first["success"]) == ("open", False, 0.5)
    assert schedule(trials, second) == [
        {"after": 0, "values": {"nnit.lr": 1e-3}},
        {"after": 1, "values": {"nnit.lr": 1e-4}},
    ]
