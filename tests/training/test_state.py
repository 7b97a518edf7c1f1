"""What a training leaves while it runs."""

import json

import pytest

from nnit_dist.training.state import read_metrics


def test_metrics_survive_a_half_written_line_and_repeated_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 2.5}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    assert [row["loss"] for row in read_metrics(path)] == pytest.approx([3.0, 2.5])
    assert read_metrics(tmp_path / "none.jsonl") == []
