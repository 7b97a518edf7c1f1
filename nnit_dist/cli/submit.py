"""Submit a run as a job to a Ray cluster; only this package and a configuration are uploaded."""

import asyncio
import hashlib
import logging
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import IN_JOB
from nnit_dist.runtime.interrupts import interrupt_code
from nnit_dist.runtime.progress import console, styled
from nnit_dist.runtime.ray_session import cluster_token
from nnit_dist.stages.config_file import load_config

MODELS = "pretrained"  # the directory of trained models in the package
RUN = "nnit_run"  # in a job's metadata: which run it is
_POLL_S = 1.0


def submit(
    config: Path,
    address: str,
    out: Path | None = None,
    overrides: list[str] | None = None,
    *,
    wait: bool = True,
) -> int:
    """Start `nnit run config` on the cluster's head node; returns the job's exit code.

    Without `wait`, it returns 0 as soon as the job is submitted. If the job of a run was stopped
    or died, the next submission resumes the run.

    Raises:
        NnitError: the configuration is invalid, `out` is a relative path, the cluster cannot be
            reached or refuses the token, or another job of this run has not ended.
    """
    loaded = load_config(config, overrides)
    if out and not ("://" in str(out) or out.is_absolute()):
        raise NnitError(
            f"--out {out} would lie in the job's own directory, which Ray deletes. Name an "
            "absolute path that all nodes share, or an address such as s3://bucket/runs/x."
        )
    place = str(out or loaded.name).rstrip("/")
    if cluster_token() and not _is_private(address):
        console.print(
            styled(
                ("warning:", "yellow"),
                f" the cluster's token, with which anyone can run code there, goes to {address} "
                "unencrypted. Tunnel to it instead: `ray dashboard CLUSTER.yaml`.",
            )
        )
    client = _connect(address)
    try:
        with _package(config, loaded.continue_from) as directory:
            job_id = _start(client, place, _entrypoint(config, out, overrides), directory)
    except (RuntimeError, OSError) as error:
        raise NnitError(f"{address} takes no job: {_first_line(error)}") from None
    follow = f"ray job logs --follow --address {address} {job_id}"
    console.print(f"job {job_id}")
    if not wait:
        console.print(f"follow it with RAY_AUTH_MODE=token {follow}")
        return 0
    try:
        return _follow(client, job_id)
    except (KeyboardInterrupt, RuntimeError, OSError, aiohttp.ClientError) as error:
        reason = "interrupted" if interrupt_code() else _first_line(error)
        console.print(f"{reason}; the job goes on: RAY_AUTH_MODE=token {follow}")
        return interrupt_code() or 1


def _start(client: Any, place: str, entrypoint: str, directory: Path) -> str:
    """Submit under an id that Ray accepts only once, so that a run never has two jobs at work."""
    earlier = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN) == place]
    for job in earlier:
        if not job.status.is_terminal():
            raise NnitError(
                f"{place} is at work as job {job.submission_id}. `ray job stop` ends it, and then "
                "the same command goes on with it."
            )
    words = re.sub(r"[^A-Za-z0-9]+", "-", place).strip("-")
    job_id = f"nnit-{words}-{hashlib.sha256(place.encode()).hexdigest()[:4]}-{len(earlier) + 1}"
    return client.submit_job(
        entrypoint=entrypoint,
        submission_id=job_id,
        runtime_env={
            "working_dir": str(directory),
            "env_vars": {"PYTHONUNBUFFERED": "1", IN_JOB: "1"},
        },
        metadata={RUN: place},
    )


def _entrypoint(config: Path, out: Path | None, overrides: list[str] | None) -> str:
    words = ["python", "-m", "nnit_dist", "run", f"configs/{config.name}"]
    words += ["--out", str(out)] if out else []
    for override in ["ray.address=auto", *(overrides or [])]:
        words += ["--set", override]
    return shlex.join(words)


def _is_private(address: str) -> bool:
    """Whether nobody can listen: the address is this machine's, or encrypted."""
    if address.startswith("https://"):
        return True
    with suppress(ValueError):
        host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    return False


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job").setLevel(logging.WARNING)
    token = cluster_token()
    try:
        return JobSubmissionClient(
            address, headers={"Authorization": f"Bearer {token}"} if token else None
        )
    except Exception as error:
        raise NnitError(
            f"no cluster takes jobs at {address}: {_first_line(error)} Is `ray dashboard "
            "CLUSTER.yaml` running, and is the cluster's token in ~/.ray/auth_token or "
            "RAY_AUTH_TOKEN?"
        ) from None


@contextmanager
def _package(config: Path, continue_from: str | None) -> Iterator[Path]:
    """A temporary directory with this package and the configuration, laid out like a checkout.

    It lacks the trained models of the package (71 MB), unless the run continues from one.
    """
    source = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        models = [] if MODELS in Path(continue_from or "").parts else [MODELS]
        ignored = shutil.ignore_patterns("__pycache__", *models)
        shutil.copytree(source, directory / source.name, ignore=ignored)
        (directory / "configs").mkdir()
        shutil.copy(config, directory / "configs" / config.name)
        yield directory


def _follow(client: Any, job_id: str) -> int:
    """Print the job's log until the job ends; returns its exit code."""
    from ray.job_submission import JobStatus

    async def tail() -> None:
        async for lines in client.tail_job_logs(job_id):
            print(lines, end="", flush=True)

    asyncio.run(tail())
    while not client.get_job_status(job_id).is_terminal():
        time.sleep(_POLL_S)
    info = client.get_job_info(job_id)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    console.print(f"job {job_id}: {info.status}")
    return info.driver_exit_code or 1


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
