"""The error that a user is meant to read: it names the mistake and the remedy."""

from collections.abc import Sequence
from difflib import get_close_matches


class NnitError(Exception):
    """Bad input, or a machine that cannot do what was asked. Users see it without a traceback."""


def nearest(name: str, known: Sequence[str]) -> str:
    """` Did you mean A or B?` with the known names closest to `name`; empty if none is close."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
