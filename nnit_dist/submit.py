"""A run as a job on a Ray cluster: this package and a configuration travel, nothing else does."""

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnit_dist.config import load_config
from nnit_dist.errors import NnitError
from nnit_dist.progress import console

DASHBOARD = "http://127.0.0.1:8265"  # where `ray dashboard cluster.yaml` tunnels to
_RUN = "nnit_run"  # in a job's metadata: which run it is
_POLL_S = 1.0


def submit(
    config: Path,
    address: str = DASHBOARD,
    out: Path | None = None,
    overrides: list[str] | None = None,
    wait: bool = True,
    entrypoint_cpus: float = 0,
) -> int:
    """Start `nnit run config` on the cluster's head node; returns the job's exit code.

    Without `wait` it returns 0 as soon as the job is there. A job that was stopped, or died, is
    continued by the next submission of the same run. `entrypoint_cpus` is what the driver reserves.

    Raises:
        NnitError: the configuration is wrong, the cluster is not reached or asks for another
            token, or a job of this run is at work.
    """
    from ray.job_submission import JobStatus

    name = load_config(config, overrides).name
    client, place = _connect(address), str(out or name)
    for job in client.list_jobs():
        own = (job.metadata or {}).get(_RUN) == place
        if own and job.status in (JobStatus.PENDING, JobStatus.RUNNING):
            raise NnitError(
                f"{place} is at work as job {job.submission_id}: `ray job logs --follow` with its "
                "name follows it, `ray job stop` ends it."
            )
    words = ["python", "-m", "nnit_dist", "run", f"configs/{config.name}"]
    words += ["--out", str(out)] if out else []
    for override in ["ray.address=auto", *(overrides or [])]:
        words += ["--set", override]
    with _package(config) as directory:
        job_id = client.submit_job(
            entrypoint=shlex.join(words),
            submission_id=f"nnit-{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            runtime_env={"working_dir": str(directory), "env_vars": {"PYTHONUNBUFFERED": "1"}},
            metadata={_RUN: place},
            entrypoint_num_cpus=entrypoint_cpus,
        )
    console.print(f"job {job_id}; `ray job logs --follow {job_id}`, `ray job stop {job_id}`")
    if not wait:
        return 0
    try:
        return _follow(client, job_id)
    except KeyboardInterrupt:
        console.print(f"\nthe job goes on; `ray job stop {job_id}` ends it.")
        return 130


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job").setLevel(logging.WARNING)
    if os.environ.get("RAY_AUTH_TOKEN") or _token_file().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NnitError(
            f"no cluster takes jobs at {address}: {reason[0]} Is `ray dashboard CLUSTER.yaml` "
            "running, and is the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN?"
        ) from None


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


@contextmanager
def _package(config: Path) -> Iterator[Path]:
    """A directory with this package and the configuration, as a checkout has them."""
    source = Path(__file__).parent
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, directory / source.name, ignore=ignored)
        (directory / "configs").mkdir()
        shutil.copy(config, directory / "configs" / config.name)
        yield directory


def _follow(client: Any, job_id: str) -> int:
    """Print the job's log until it ends; its exit code."""
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
    console.print(f"[bold red]{info.status}[/]: {info.message}", markup=True)
    return info.driver_exit_code or 1
