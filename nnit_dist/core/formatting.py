"""How figures are written: shares, percentages, points, durations and counts.

Means, differences and the bounds of their intervals are shares of 1; what is written as a
percentage or as points is a hundred times that. Hidden widths are written by
`topology.hidden_name`.
"""


def percent(share: float) -> str:
    """`0.9653` -> `96.5`."""
    return f"{100 * share:.1f}"


def percent_range(low: float, high: float) -> str:
    """`0.951, 0.98` -> `95.1-98.0`."""
    return f"{percent(low)}-{percent(high)}"


def percent_interval(mean: float, low: float, high: float) -> str:
    """`0.9653, 0.951, 0.98` -> `96.5 (95.1-98.0)`."""
    return f"{percent(mean)} ({percent_range(low, high)})"


def points(difference: float) -> str:
    """`0.0123` -> `+1.2`."""
    return f"{100 * difference:+.1f}"


def points_interval(difference: float, low: float, high: float) -> str:
    """`0.0123, -0.003, 0.025` -> `+1.2 points [-0.3, +2.5]`."""
    return f"{points(difference)} points [{points(low)}, {points(high)}]"


def points_cell(difference: float, low: float, high: float) -> str:
    """`0.0123, -0.003, 0.025` -> `+1.2 (-0.3 to +2.5)`, for a column that names its unit."""
    return f"{points(difference)} ({points(low)} to {points(high)})"


def share_interval(mean: float, low: float, high: float) -> str:
    """`0.9653, 0.951, 0.98` -> `0.965 [0.951, 0.980]`."""
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def difference_interval(difference: float, low: float, high: float) -> str:
    """`0.0123, -0.003, 0.025` -> `+0.012 [-0.003, +0.025]`."""
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def share_range(low: float, high: float, digits: int) -> str:
    """`0.951, 0.98` with two digits -> `0.95 to 0.98`."""
    return f"{low:.{digits}f} to {high:.{digits}f}"


def decimal(value: float | None, digits: int, missing: str = "-") -> str:
    """A number with so many digits behind the point, or `missing` if there is none."""
    return missing if value is None else f"{value:.{digits}f}"


def count(number: float) -> str:
    """`1234567` -> `1,234,567`: parameters, episodes, steps."""
    return f"{number:,.0f}"


def millions(number: float) -> str:
    """`5412345` -> `5.4M`."""
    return f"{number / 1e6:.1f}M"


def short_time(seconds: float) -> str:
    """`42` -> `42 s`, `102` -> `1.7 min`."""
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
