"""A local Ray beside others."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(180)
def test_no_other_ray_is_asked_whether_ours_is_alive():
    """Ray Train would stop its workers, as another Ray knows no such controller."""
    script = Path(__file__).parents[1] / "support" / "beside_another_ray.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150)
    assert result.stdout.splitlines()[-1] == "nobody answers", result.stdout + result.stderr
