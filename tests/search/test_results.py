"""What a search came to."""

import pytest
from optuna.distributions import distribution_to_json
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from support.searches import fake_search

from nnit_dist.core.errors import NnitError
from nnit_dist.search.final import compare
from nnit_dist.search.results import ENOUGH, importance, read_trials, summarize_search


def test_what_a_search_came_to(tmp_path):
    fake_search(tmp_path, 60)
    found = summarize_search(read_trials(tmp_path))
    assert (found["trials"], found["complete"], found["stopped"]) == (60, 20, 40)
    assert found["loss_and_success"][-1]["rank_correlation"] < -0.3
    assert found["seconds"]["start"] == pytest.approx(found["seconds"]["train"] * 8 / 60)
    with pytest.raises(NnitError, match="no trial of the search came through"):
        summarize_search([])


def test_lists_are_choices_too(tmp_path):
    domains = OptunaSearch.convert_search_space({"x": tune.choice([[1], [2, 3]])})
    known = [
        {"rungs": [{"success": 0.1 * k}], "inherited": 0, "values": {"x": [[1], [2, 3]][k % 2]}}
        for k in range(ENOUGH)
    ]
    text = {key: distribution_to_json(domain) for key, domain in domains.items()}
    assert importance(known, text) == {"x": pytest.approx(1)}
    known[0]["inherited"] = 1  # its first rung is another's
    assert importance(known, text) == {}


def test_the_best_and_the_defaults_are_paired_by_topology_where_they_have_the_same():
    best = {(16,): [1.0, 0.8], (8, 8): [0.6, 0.4]}
    figures = compare({"best": best, "defaults": {(8, 8): [0.5, 0.5], (16,): [0.7, 0.7]}})
    assert figures["best"]["success"] == pytest.approx(0.7)
    assert figures["difference"]["mean"] == pytest.approx((0.2 + 0.0) / 2)
    other = compare({"best": best, "defaults": {(8, 8): [0.5, 0.5], (32,): [0.7, 0.7]}})
    assert set(other) == {"best", "defaults"}
