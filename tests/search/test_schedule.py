"""Which trial goes on, and which takes over another's weights."""

import pytest
from ray.tune.experiment import Trial
from support.searches import CONFIG, SPACE, space_file

from nnit_dist.core.errors import NnitError
from nnit_dist.search.schedule import Halving, Population, asha, check_pbt, first_ones
from nnit_dist.search.space import load_space
from nnit_dist.stages.config_file import load_config


@pytest.mark.parametrize(
    ("space", "trials", "expected"),
    [
        (SPACE.replace("nnit.lr", "nnit.patch").replace("loguniform(1e-4, 1e-2)", "choice([4, 8])"),
         4, "does not fit another nnit.patch"),
        (SPACE.replace("train", "align").replace("nnit.", "align.distill.").replace("ema", "wd"),
         4, "only NNiT's training does"),
        (SPACE, 1, "at least 2 trials"),
        (SPACE.replace("nnit.lr", "nnit.weight_decay").replace("1e-4, 1e-2", "1e-3, 0.1"), 4,
         "does not fit another nnit.weight_decay"),
    ],
)  # fmt: skip
def test_pbt_refuses_what_weights_do_not_fit(tmp_path, space, trials, expected):
    space = space.replace('"align.distill.wd": tune.choice([0.9, 0.995])', "")
    with pytest.raises(NnitError, match=expected):
        check_pbt(load_space(space_file(tmp_path, space), load_config(CONFIG)), trials)


def test_a_population_begins_with_different_trials(tmp_path):
    text = 'from ray import tune\nSTAGE = "train"\nSPACE = {"nnit.ema": tune.choice([0.9, 0.995])}'
    config = load_config(CONFIG)
    space = load_space(space_file(tmp_path, text), config)
    first_ones(space, config, 2, seed=0)
    with pytest.raises(NnitError, match="has 2 different values, and PBT begins with 3 trials"):
        first_ones(space, config, 3, seed=0)


class Tuned:
    """What PBT reads of Tune: some trials, of which one has failed."""

    search_alg = None

    def __init__(self, configs):
        self.trials = [Trial("fake", config=config, stub=True) for config in configs]

    def get_trials(self):
        return self.trials

    get_live_trials = get_trials


def test_nobody_waits_for_a_trial_of_a_population_that_failed(tmp_path):
    space = load_space(space_file(tmp_path), load_config(CONFIG))
    scheduler = Population(space, seed=0)
    scheduler.set_search_properties("success", "max")
    tuned = Tuned([{"nnit.lr": 1e-3, "nnit.ema": 0.9}] * 3)
    for trial in tuned.trials:
        scheduler.on_trial_add(tuned, trial)
    for number, trial in enumerate(tuned.trials[:2]):
        assert scheduler.choose_trial_to_run(tuned) is not None
        result = {"training_iteration": 1, "success": 0.1 * number}
        assert scheduler.on_trial_result(tuned, trial, result) == scheduler.PAUSE
        trial.set_status(Trial.PAUSED)
    tuned.trials[2].set_status(Trial.ERROR)
    assert scheduler.choose_trial_to_run(tuned) in tuned.trials[:2]


def test_what_may_go_on_is_not_asked_again(tmp_path):
    known = [{"name": str(k), "state": "done", "rungs": [{"success": 0.9}]} for k in range(4)]
    trial, result = Trial("fake", stub=True), {"directory": "x", "rung": 0, "success": 0.1}
    for began, expected in ((False, Halving.STOP), (True, Halving.CONTINUE)):
        scheduler = asha(known, tmp_path)
        scheduler.set_search_properties("success", "max")
        scheduler.on_trial_add(None, trial)
        if began:
            (tmp_path / "x" / "rung-1").mkdir(parents=True)
        assert (
            scheduler.on_trial_result(None, trial, result | {"training_iteration": 1}) == expected
        )
