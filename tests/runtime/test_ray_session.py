"""A local Ray beside others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnit_dist.core.storage import private_directory
from nnit_dist.runtime.ray_session import _token_file


@pytest.mark.timeout(180)
def test_no_other_ray_is_asked_whether_ours_is_alive():
    """Ray Train would stop its workers, as another Ray knows no such controller."""
    script = Path(__file__).parents[1] / "support" / "beside_another_ray.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150)
    assert result.stdout.splitlines()[-1] == "nobody answers", result.stdout + result.stderr


def test_auto_is_a_cluster_that_was_started_and_not_another_runs_ray(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    script = (
        "from nnit_dist.runtime.ray_session import ray_session\n"
        "from nnit_dist.core.errors import NnitError\n"
        "try:\n    with ray_session('auto'): print('joined')\n"
        "except NnitError as error: print(error)"
    )

    def said(**env: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=40,
        )
        return result.stdout.splitlines()[-1]

    assert "no cluster of Ray has been started on this machine" in said()
    assert "could not be reached at 127.0.0.1:9" in said(RAY_ADDRESS="127.0.0.1:9")


def test_a_local_ray_and_its_token_are_of_this_account_alone(ray_local):
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert session.parent.parent.lstat().st_mode & 0o777 == 0o700  # first: the next line mends it
    assert (session.parent.parent, session.parent.name) == (private_directory(), "ray")
    token = _token_file()
    if token.exists():
        assert (token.stat().st_mode | token.parent.stat().st_mode) & 0o077 == 0
