"""The session of Ray: a local Ray is started, or a cluster joined, for as long as a stage runs."""

import logging
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import private_directory
from nnit_dist.runtime.interrupts import handle_interrupts

_ENVIRONMENT = {
    # Waiting threads of torch spin briefly, then sleep. A step of NNiT on two threads then takes
    # 0.53 s on idle cores and 1.0 s beside two busy processes. By default they spin on: 0.45 s and
    # up to 20 s.
    "GOMP_SPINCOUNT": "3000",
    # Ray's notices go to its log directory. A user sees only progress and errors.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "PYTHONWARNINGS": "ignore",
}

# A local Ray has no dashboard. Ray Train asks a dashboard whether its controller lives. It would
# find that of the Ray that was started last on this machine, which does not know the controller,
# and stop the workers. Nothing listens at this address, and without an answer the workers go on.
_NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
# Nodes labeled `nnit.dev/role: training` keep their cores for training; simulation on CPUs goes to
# other nodes. Without labels, as on a single machine, this has no effect.
ROLE, TRAINING = "nnit.dev/role", "training"
AWAY_FROM_TRAINING = {ROLE: f"!{TRAINING}"}
_CLAIM_S = 30.0  # by then a cluster has noticed that a driver was killed
_joined = False  # whether this process has joined a cluster, which may grow


def cluster_token() -> str | None:
    """The cluster's token from `RAY_AUTH_TOKEN` or Ray's token file; None if there is none."""
    file = _token_file()
    token = os.environ.get("RAY_AUTH_TOKEN") or (file.read_text() if file.is_file() else "")
    return token.strip() or None


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def _protect_token() -> None:
    """Let this account alone read Ray's token, which Ray writes for everybody to read."""
    token = _token_file()
    with suppress(OSError):  # a home that cannot be written
        token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            token.parent.chmod(0o700)
        if token.is_file():
            token.chmod(0o600)


def may_grow() -> bool:
    """Whether nodes may be added for waiting work: in a cluster, but not in a local Ray."""
    return _joined


@contextmanager
def ray_session(
    address: str | None = None, num_cpus: int | None = None, claim: Path | None = None
) -> Iterator[None]:
    """Start a local Ray, or join the one at `address`, until the block ends.

    Nothing happens if Ray is initialized already.

    Args:
        num_cpus: logical CPUs of a local Ray; by default all cores.
        claim: directory of a run. On a cluster only one driver at a time may claim it.

    Raises:
        NnitError: Ray cannot be started or reached, or another driver has claimed the directory.
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
    address = _current_cluster() if address == "auto" else address
    if address:
        _check_reachable(address)
    # Workers need the path if the package runs from a source tree.
    root = str(Path(__file__).resolve().parents[2])
    env_vars = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    if not address:
        env_vars |= _NO_DASHBOARD
    local: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False}
    if not os.environ.get("RAY_TMPDIR"):
        # Ray lets every account write in its directory, so it lies in one that is closed to them.
        local["_temp_dir"] = str(private_directory() / "ray")
    _protect_token()
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            runtime_env={"env_vars": env_vars | _ENVIRONMENT},
            **({} if address else local),
        )
    except SystemExit:
        # Ray's own handler of SIGTERM, which it has set while it starts.
        ray.shutdown()
        if handle_interrupts():
            signal.raise_signal(signal.SIGTERM)
        raise
    except Exception as error:
        where = f"at {address}" if address else "on this machine"
        raise NnitError(
            f"Ray could not be started {where}: {str(error).splitlines()[0]} "
            "Check `nnit doctor`; if the cluster has a token, set RAY_AUTH_TOKEN to it."
        ) from error
    _protect_token()
    handle_interrupts()  # in place of Ray's
    _joined = bool(address)
    try:
        with _claimed(claim) if address and claim else nullcontext():
            yield
    finally:
        _joined = False
        ray.shutdown()


class _Claim:
    """An actor whose name claims a run. It ends with the driver that created it."""


@contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """Claim a run for this driver.

    Raises:
        NnitError: another driver has claimed it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    claim: Any = ray.remote(_Claim).options(
        name=str(run.absolute()), namespace="nnit", num_cpus=0, scheduling_strategy=here
    )
    deadline, actor = time.monotonic() + _CLAIM_S, None
    while actor is None:
        try:
            actor = claim.remote()
        except ValueError:
            if time.monotonic() > deadline:
                raise NnitError(
                    f"{run} is at work already, by another driver on this cluster. Wait for it, or "
                    "stop it (`ray job list`); then run the same command again."
                ) from None
            time.sleep(1)
    yield  # the actor ends with the session


def _current_cluster() -> str:
    """Address of the cluster that `RAY_ADDRESS` names, or that `ray start` has started here.

    Ray's own "auto" also joins the private Ray of any other run on this machine.
    """
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    # (The files for `ray up` keep Ray's files in the private directory.)
    named_place = os.environ.get("RAY_TMPDIR")
    places = [Path(named_place)] if named_place else [Path("/tmp"), private_directory()]
    files = [place / "ray" / "ray_current_cluster" for place in places]
    address = next((file.read_text().strip() for file in files if file.is_file()), "")
    if not address:
        raise NnitError(
            "no cluster of Ray has been started on this machine. Start one with `ray start "
            "--head`, name its address instead of auto, or leave the address out."
        )
    return address


def _check_reachable(address: str) -> None:
    """Fail within seconds where Ray itself would retry for minutes."""
    if address.startswith(("http://", "https://")):
        raise NnitError(
            f"{address} is a dashboard's address, which `nnit submit --address` takes. An address "
            "of Ray is HOST:6379 (from a machine of the cluster), ray://HOST:10001, or auto."
        )
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
