"""Trials have their turns at one pool of simulators."""

import threading
import time

import pytest
import ray
from support.networks import TASK, random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.rollout.actors import Simulators
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.search.server import evaluation_server
from nnit_dist.search.watch import Watch


def test_trials_have_their_turns_and_failing_networks_count_as_zero(ray_local, tmp_path):
    simulators = Simulators(TASK, "pd_joint_delta_pos", sim_backend="physx_cpu")
    with evaluation_server(simulators, 1, False) as server:
        _take_turns(server)
        with StageProgress("trials") as view:
            watch = Watch(view, tmp_path, total=1, trials=[], rungs=1, server=server)
            ray.kill(server)
            with pytest.raises(NnitError, match="the pool of simulators died"):
                while True:  # before trials fail for it
                    watch.looked = 0.0
                    watch.on_step_end(0, [])
                    time.sleep(0.1)


def _take_turns(server):
    long = [random_policy((16,), seed, f"long{seed}") for seed in range(200)]
    ended: dict[str, float] = {}

    def ask(name, policies):
        ended[name + "_success"] = ray.get(server.success.remote(policies, 4))
        ended[name] = time.monotonic()

    asking = [threading.Thread(target=ask, args=("long", long))]
    asking[0].start()
    while not ray.get(server.figures.remote())["episodes"]:  # the long one's first turn
        time.sleep(0.1)
    short = [random_policy((16,), seed, f"short{seed}") for seed in range(2)]
    asking.append(threading.Thread(target=ask, args=("short", short)))
    asking[1].start()
    for thread in asking:
        thread.join(timeout=120)
    assert ended["short"] < ended["long"]
    assert len(ended["long_success"]) == 200
    broken = random_policy((16,), 0, "broken", act_dim=4)
    assert ray.get(server.success.remote([broken, *short], 2))[0] == 0.0
    figures = ray.get(server.figures.remote())
    assert figures["episodes"] == 200 * 4 + 2 * 4 + 3 * 2
    assert figures["failed_networks"] == 1
