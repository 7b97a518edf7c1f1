"""What searches are made of, and the files of one that is invented."""

import json
import sys
from pathlib import Path

from optuna.distributions import distribution_to_json
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from support.networks import TASK

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.files import write_json
from nnit_dist.search.results import rung_file

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "pushcube.yaml"
SMALL = {
    "nnit.transformer.width": 32,
    "nnit.transformer.depth": 2,
    "nnit.transformer.heads": 2,
    "nnit.steps": 6,
    "nnit.topologies_per_step": 2,
    "nnit.networks_per_topology": 1,
    "nnit.architectures": 2,
    "training.cpus": 1,
    "training.workers": 1,
    "topologies.unseen": {"combination": 1, "width": 1},
}
SPACE = """
from ray import tune
STAGE = "train"
SPACE = {"nnit.lr": tune.loguniform(1e-4, 1e-2), "nnit.ema": tune.choice([0.9, 0.995])}
"""


def space_file(tmp_path: Path, text: str = SPACE) -> Path:
    path = tmp_path / "space.py"
    path.write_text(text)
    return path


def search_command(tmp_path: Path, trials: int, space: str = SPACE) -> list[str]:
    sets = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    return [
        sys.executable, str(Path(__file__).with_name("short_search.py")),
        "tune", str(space_file(tmp_path, space)), str(CONFIG),
        "--run", str(shipped(TASK)), "--out", str(tmp_path / "search"), "--trials", str(trials),
        "--topologies=3", "--episodes=1", "--set=ray.num_cpus=2", *sets,
    ]  # fmt: skip


def fake_search(out: Path, trials: int) -> None:
    """A search's files with invented figures, to look at its page."""
    import random

    rng = random.Random(0)
    domains = {
        "nnit.lr": tune.loguniform(1e-4, 1e-2),
        "nnit.transformer.width": tune.choice([64, 128, 256]),
        "nnit.condition_depth_noise": tune.uniform(0, 1),
    }
    distributions = OptunaSearch.convert_search_space(domains)
    write_json(
        out / "search.json",
        {
            "stage": "train",
            "rungs": [0.25, 0.5, 1.0],
            "distributions": {k: distribution_to_json(d) for k, d in distributions.items()},
            "settings": {"trials": trials, "topologies": 12, "episodes": 40},
            "run": "runs/quickstart",
            "task": TASK,
        },
    )
    for number in range(trials):
        values = {key: domain.sample() for key, domain in domains.items()}
        directory = out / f"{number:04d}"
        write_json(directory / "trial.json", {"values": values})
        good = 0.9 - 0.1 * abs(values["nnit.condition_depth_noise"] - 0.3) + rng.gauss(0, 0.02)
        for rung in range(1 + number % 3):
            write_json(
                rung_file(directory, rung),
                {
                    "rung": rung,
                    "step": 100 * 2**rung,
                    "loss": 0.3 - 0.2 * good + rng.gauss(0, 0.01),
                    "success": good - 0.2 / 2**rung,
                    "parameters": 10_000 * values["nnit.transformer.width"],
                    "networks": [
                        {"policy": f"nnit_{w}", "parameters": 43 * w + 8, "success": good - 1 / w}
                        for w in (16, 32, 64)
                    ],
                    "seconds": {"start": 8.0, "train": 60.0, "write": 1.0, "measure": 10.0},
                },
            )
        if number % 3 < 2:
            write_json(directory / "stopped.json", {"after": number % 3})
