"""Starting or joining Ray, quietly and with its token authentication on."""

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nnit_dist.core.errors import NnitError

_ENVIRONMENT = {
    # Threads of torch that wait spin briefly, then sleep. An NNiT step on two threads takes
    # 0.53 s on idle cores and 1.0 s beside two busy processes; spinning on, as is the default,
    # 0.45 s and up to 20 s.
    "GOMP_SPINCOUNT": "3000",
    # Ray's own notices go to its log directory; a user sees progress and errors only.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "PYTHONWARNINGS": "ignore",
}

# A local Ray has no dashboard. Ray Train asks one whether its controller lives, and would take that
# of whatever Ray was started last on this machine, which knows no such controller: the workers are
# then stopped. Nothing listens at this address, and no answer changes nothing.
_NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
# Nodes that are labelled `nnit.dev/role: training` have their cores for training: what simulates
# on CPUs goes elsewhere. Where no node has a label, as on one machine, this means nothing.
ROLE, TRAINING = "nnit.dev/role", "training"
AWAY_FROM_TRAINING = {ROLE: f"!{TRAINING}"}


_CLAIM_S = 30.0  # a driver that was killed is missed by then
_joined = False  # a cluster that is there already, and may grow


def cluster_token() -> str | None:
    """From where Ray looks for it (`RAY_AUTH_TOKEN`, or its file); None where there is none."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    found = os.environ.get("RAY_AUTH_TOKEN") or (file.read_text() if file.is_file() else "")
    return found.strip() or None


def may_grow() -> bool:
    """Whether nodes may come for what waits: not where this process has started Ray itself."""
    return _joined


@contextmanager
def ray_session(
    address: str | None = None, num_cpus: int | None = None, claim: Path | None = None
) -> Iterator[None]:
    """Start a local Ray (or join `address`) for the duration of a stage.

    `num_cpus` is the number of logical CPUs of a local Ray; all cores by default. On a cluster
    a run's directory, its `claim`, is that of one driver at a time.

    Raises:
        NnitError: Ray cannot be started or reached, or another driver has the directory.
    """
    global _joined
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in ("ray", "ray.train", "ray.tune", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        yield
        return
    if address:
        _check_reachable(address)
    # Workers must find the package also when it runs from a source tree.
    root = str(Path(__file__).resolve().parents[2])
    env_vars = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    local: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    if not address:
        env_vars |= _NO_DASHBOARD
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            runtime_env={"env_vars": env_vars | _ENVIRONMENT},
            **local,
        )
    except Exception as error:
        where = f"at {address}" if address else "on this machine"
        raise NnitError(
            f"Ray could not be started {where}: {str(error).splitlines()[0]} "
            "Check `nnit doctor`; a cluster that has a token needs it in RAY_AUTH_TOKEN."
        ) from error
    _joined = bool(address)
    try:
        with _claimed(claim) if address and claim else nullcontext():
            yield
    finally:
        _joined = False
        ray.shutdown()


class _Claim:
    """Its name says whose a run is; it ends with the driver that made it."""


@contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """Have a run for this driver alone.

    Raises:
        NnitError: another driver has it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    claim: Any = ray.remote(_Claim).options(
        name=str(run.absolute()), namespace="nnit", num_cpus=0, scheduling_strategy=here
    )
    until, held = time.monotonic() + _CLAIM_S, None
    while held is None:
        try:
            held = claim.remote()
        except ValueError:
            if time.monotonic() > until:
                raise NnitError(
                    f"{run} is at work already, by another driver on this cluster. Wait for it, "
                    "or stop it (`ray job list`); then the same command goes on."
                ) from None
            time.sleep(1)
    yield  # the actor ends with the session


def _check_reachable(address: str) -> None:
    """Fail within seconds where Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto" and the like: Ray finds the cluster itself
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise NnitError(
            f"Ray could not be reached at {address}: {error.strerror or error}. Is the cluster up, "
            "and is this its address (`ray status` on its head node)?"
        ) from None
