"""Which tasks of ManiSkill3 work on this machine.

Each is built and stepped in a process of its own, which a task may end, or keep for minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import DEFAULT_CONTROL_MODE

TRY_S = 300.0


@dataclass(frozen=True)
class TaskSupport:
    """What can be done with a task here.

    Attributes:
        robot: its robots, joined by a plus sign; empty if it cannot be built.
        control_mode: the mode that was tried: the default one, or else the robot's first.
        evaluation, population: why policies cannot be measured on it, and why no population can be
            trained; empty where they can.
    """

    task: str
    robot: str
    control_mode: str
    evaluation: str
    population: str


def survey(tasks: Sequence[str]) -> Iterator[TaskSupport]:
    """Try tasks, as many at once as there are cores; yields them as they are done."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in as_completed([pool.submit(_in_process, task) for task in tasks]):
            yield future.result()


def _in_process(task: str) -> TaskSupport:
    command = [sys.executable, "-W", "ignore", "-m", "nnit_dist.envs.survey", task]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TRY_S)
    except subprocess.TimeoutExpired:
        return _unusable(task, f"it took more than {TRY_S:.0f} s to start.")
    lines = ran.stdout.splitlines()
    if ran.returncode or not lines:
        return _unusable(task, f"its process ended with code {ran.returncode}.")
    return TaskSupport(**json.loads(lines[-1]))


def _unusable(task: str, reason: str) -> TaskSupport:
    return TaskSupport(task, "", "", reason, reason)


def try_task(task: str) -> TaskSupport:
    """Build a task, run it for a few steps, and say what can be done with it."""
    from nnit_dist.envs.sim import SimEnv, control_modes
    from nnit_dist.envs.tasks import check_task

    try:
        check_task(task)
        modes = control_modes(task)
        mode = modes[0] if modes and DEFAULT_CONTROL_MODE not in modes else DEFAULT_CONTROL_MODE
        env = SimEnv(task, mode, reward=False)
        env.reset(seed=0)
        for _ in range(2):
            env.apply(env.bounds.clip(0 * env.bounds.low))
    except NnitError as error:
        return _unusable(task, str(error))
    population = ""
    try:
        check_task(task, training=True)
        env.bounds.check(task, mode)
    except NnitError as error:
        population = str(error)
    return TaskSupport(task, env.info.robot, mode, "", population)


if __name__ == "__main__":
    print(json.dumps(asdict(try_task(sys.argv[1]))))
