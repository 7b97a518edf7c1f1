"""Figures are written in one way, wherever they appear."""

import pytest

from nnit_dist.core import formatting


@pytest.mark.parametrize(
    ("write", "figures", "expected"),
    [
        (formatting.percent, (0.9653,), "96.5"),
        (formatting.percent_range, (0.951, 0.98), "95.1-98.0"),
        (formatting.percent_interval, (0.9653, 0.951, 0.98), "96.5 (95.1-98.0)"),
        (formatting.points, (0.0123,), "+1.2"),
        (formatting.points_interval, (0.0123, -0.003, 0.025), "+1.2 points [-0.3, +2.5]"),
        (formatting.points_cell, (0.0123, -0.003, 0.025), "+1.2 (-0.3 to +2.5)"),
        (formatting.share_interval, (0.9653, 0.951, 0.98), "0.965 [0.951, 0.980]"),
        (formatting.difference_interval, (0.0123, -0.003, 0.025), "+0.012 [-0.003, +0.025]"),
        (formatting.difference_interval, (0.0, 0.0, 0.0), "+0.000 [+0.000, +0.000]"),
        (formatting.share_range, (0.951, 0.98, 2), "0.95 to 0.98"),
        (formatting.decimal, (0.125, 2), "0.12"),
        (formatting.decimal, (None, 2), "-"),
        (formatting.decimal, (None, 2, "unknown"), "unknown"),
        (formatting.count, (1234567,), "1,234,567"),
        (formatting.millions, (5_412_345,), "5.4M"),
        (formatting.short_time, (42.4,), "42 s"),
        (formatting.short_time, (89.9,), "90 s"),
        (formatting.short_time, (102,), "1.7 min"),
    ],
)
def test_a_figure_is_written_as_documented(write, figures, expected):
    assert write(*figures) == expected
