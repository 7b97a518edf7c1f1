"""The one error that a user is meant to read: it names the mistake and the remedy."""

from collections.abc import Sequence
from difflib import get_close_matches


class NnitError(Exception):
    """Bad input or a machine that cannot do what was asked. Shown without a traceback."""


def nearest(name: str, known: Sequence[str]) -> str:
    """` Did you mean A or B?`, or nothing when no known name comes near."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
