"""Shared fixtures: one local Ray for the tests that need it, a small sampler, a bucket."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.networks import (
    TASK,
    changed_distribution,
    changed_task,
    random_policy,
    small_sampler,
)

# Ray's workers unpickle policies that are defined in test modules; processes that tests start run
# the package that lies beside them, whatever is installed.
os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"


@pytest.fixture(scope="session")
def ray_local():
    from nnit_dist.runtime.ray_session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # Prometheus is asked for them
        with ray_session(num_cpus=2):
            yield


@pytest.fixture(scope="session")
def sampler():
    return small_sampler()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, sampler):
    """A run directory as the pipeline leaves it: small, its model hardly trained."""
    import torch

    from nnit_dist.artifacts.run_directory import RunDirectory
    from nnit_dist.hypernet.data import DistillationData
    from nnit_dist.nnit.config import NNiTConfig
    from nnit_dist.nnit.dataset import AlignedDataset
    from nnit_dist.nnit.train import trained_model
    from nnit_dist.nnit.trainer import Trainer

    out = tmp_path_factory.mktemp("run")
    (out / "align").mkdir()
    (out / "train").mkdir()
    seen = [(16,), (32,), (16, 16), (32, 32)]
    sampler = changed_distribution(sampler, seen=seen, variation=2)
    sampler = changed_task(sampler, success=torch.tensor([0.8, 0.8, 0.3]))
    sampler = replace(sampler, max_teachers_per_mix=2)
    sampler.save(out / "align" / "ghn.safetensors")
    rng = np.random.default_rng(0)
    obs = [rng.normal(size=(80, 35)).astype(np.float32) for _ in range(3)]
    teachers = [random_policy((16, 16), seed) for seed in range(3)]
    DistillationData.of(sampler.current.normalizer, obs, teachers).save(
        out / "align" / f"states-{TASK}-0.safetensors"
    )
    nnit = {
        "transformer": {"width": 32, "depth": 1, "heads": 2},
        "steps": 2,
        "topologies_per_step": 2,
    }
    align = {
        "seed": 1,
        "topologies": {
            "widths": [16, 32],
            "depths": [1, 2],
            "unseen_widths": [24],
            "unseen": {"combination": 1, "width": 1},
        },
        "align": {
            "ghn": {"embed_dim": 16, "channels": [8, 8], "latent_dim": 4},
            "distill": {"steps": 2, "topologies_per_step": 2, "states": 16},
        },
    }
    for stage, config in (("align", align), ("train", {"nnit": nnit, "seed": 0})):
        text = json.dumps({"key": {"config": config}})
        (out / stage / "manifest.json").write_text(text)
    config = NNiTConfig(**nnit)
    source = AlignedDataset(sampler, config, 0)
    trainer = Trainer(config, source, torch.device("cpu"), 0)
    trained_model(trainer, source).save(out / "train" / "nnit.safetensors")
    return RunDirectory(out)


@pytest.fixture(scope="session")
def bucket():
    """The address of an empty bucket of an S3 server on this machine."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("nnit-test")
        yield "s3://nnit-test"
    server.stop()
